//! What the program's exit codes mean; scripts rely on them.

use std::process::ExitCode as Code;

/// Our own exit codes. `run` and `wait` may also pass on an agent's code (1–119) or 128 + its signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// All went well.
    Success = 0,
    /// The job failed, though its agent exited with 0.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The server cannot be reached.
    Unreachable = 120,
    /// The server said no.
    Refused = 121,
    /// There is no such thing.
    NotFound = 122,
    /// The job was interrupted.
    Interrupted = 123,
    /// The job timed out.
    TimedOut = 124,
    /// It is not known how the job ended.
    Unknown = 125,
    /// The token is missing, wrong, or not allowed to do this.
    Denied = 126,
    /// Data is damaged.
    Damaged = 127,
    /// The job was cancelled.
    Cancelled = 130,
}

impl From<ExitCode> for Code {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
