//! Tests with real processes, in one binary.

mod blocks;
mod case;
mod claude;
mod clocks;
mod copies;
mod crashes;
mod damage;
mod engine_claude;
mod fake_model;
mod filesystems;
mod formats;
mod fulldisk;
mod held_disk;
mod history;
mod limited;
mod many;
mod mount;
mod namespaces;
mod quota;
mod reboot;
mod removals;
mod rig;
mod shutdown;
mod silence;
#[path = "../common/source.rs"]
mod source;
mod spawning;
mod startups;
mod statistics;
mod stops;
mod story;
mod syscalls;
mod systemd;
mod unprivileged;
mod wal;
mod why;
