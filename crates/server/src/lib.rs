//! The server: the driver and its write-ahead log, the world it acts upon, and the faces it shows.
//!
//! `truth` is what is durable, `world` what is observed and acted upon, `face` what people and programs meet. Arrows go from
//! `face` and `world` to `truth`, and only `serve` and `startup` see all three.
#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod data_dir;
pub mod demo;
pub mod demo_agent;
pub mod exit_code;
pub mod face;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
pub mod random;
pub mod serve;
pub mod startup;
pub mod truth;
pub mod world;
