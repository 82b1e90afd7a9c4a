//! What people and programs meet: the HTTP API, and the command line, which is a client of it.

pub mod cli;
pub mod client;
pub mod http;
