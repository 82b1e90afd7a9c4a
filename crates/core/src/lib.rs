//! The rules of Outlive, and nothing else: what may happen, what must follow, and how it is written down.
//!
//! Absent on purpose (I4): clock, disk, process, network, async, locks, randomness, iteration over hash maps. Time, ids and
//! jitter come in as arguments; facts about the world come in as [`evidence::Evidence`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod checkpoint;
pub mod effect;
pub mod engine;
pub mod event;
pub mod evidence;
pub mod file_header;
pub mod heartbeat;
pub mod ids;
pub mod job;
pub mod limits;
pub mod planted;
pub mod record;
pub mod recovery;
pub mod repo;
pub mod request;
pub mod retry;
pub mod spec;
pub mod startup_plan;
pub mod state;
pub mod stats;
pub mod task;
pub mod time;
