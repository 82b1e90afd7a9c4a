//! What is outside: observed and acted upon, never remembered.

pub mod backup;
pub mod copy;
pub mod diff;
pub mod files;
pub mod fleet;
pub mod git;
pub mod launch;
pub mod look;
pub mod operation;
pub mod partial;
pub mod remains;
pub mod removal;
pub mod repos;
pub mod sight;
pub mod source;
pub mod workspace;
