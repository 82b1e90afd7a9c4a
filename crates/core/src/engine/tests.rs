//! What the engines promise, table by table. The lines of output are real ones, trimmed.

mod launching;
mod reading;
mod verdicts;
