//! Whether an attempt succeeded: from how its process ended and from what its agent said, and what does not fit together.

use alloc::format;
use alloc::string::{String, ToString};

use super::Engine;
use crate::evidence::AgentResult;
use crate::spec::Ending;

/// What is thought of an attempt that ended by itself. (Whether it was cancelled or timed out is known elsewhere.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// It did what it was asked for, as far as exit status and agent can tell.
    pub success: bool,
    /// Where the two sources contradict each other; shown, never hidden.
    pub disagreement: Option<String>,
    /// Why, in a few words.
    pub reason: String,
}

/// Judges an attempt. `ending` is `None` when the exit status could not be proved.
///
/// Success needs both sources: exit code 0, and a good closing record from an agent that writes one. With an unproven exit
/// status the record stands alone.
pub fn verdict(engine: &Engine, ending: Option<&Ending>, result: Option<&AgentResult>) -> Verdict {
    let exited_well = match ending {
        Some(Ending::Exited(code)) => *code == 0,
        Some(Ending::Signaled(_) | Ending::LaunchFailed { .. } | Ending::NeverRan) => false,
        None => result.is_some(),
    };
    let how = how(engine, ending);
    let (success, disagreement, reason) = match result {
        Some(result) if result.success && exited_well => (true, None, how),
        Some(result) if result.success => {
            (false, Some(format!("the agent reported success, but: {how}")), how)
        }
        Some(result) => {
            let told = told(result);
            let said = exited_well && ending.is_some();
            (false, said.then(|| format!("{how}, but the agent reported: {told}")), told)
        }
        None if exited_well && engine.writes_result() => {
            let doubt = format!("{how}, but the agent left no closing record");
            (false, Some(doubt.clone()), doubt)
        }
        None => (exited_well, None, how),
    };
    Verdict { success, disagreement, reason }
}

fn told(result: &AgentResult) -> String {
    let first = result.text.lines().find(|line| !line.trim().is_empty());
    first.map_or_else(|| "a failure, without words".to_string(), ToString::to_string)
}

fn how(engine: &Engine, ending: Option<&Ending>) -> String {
    match ending {
        None => "exit status unproven".to_string(),
        Some(Ending::Exited(code)) => format!("exit code {code}"),
        Some(Ending::Signaled(signal)) => match signal_name(*signal) {
            Some(name) => format!("killed by signal {signal} ({name})"),
            None => format!("killed by signal {signal}"),
        },
        Some(Ending::NeverRan) => "the agent was never started".to_string(),
        Some(Ending::LaunchFailed { errno, what }) => {
            let why = errno_words(*errno);
            let hint = engine.install_hint;
            let missing = *errno == ENOENT && !hint.is_empty();
            let hint = if missing { format!("; to install it: {hint}") } else { String::new() };
            format!("cannot run `{what}`: {why} (errno {errno}){hint}")
        }
    }
}

const ENOENT: i32 = 2;

/// The errors that launching a program can meet; the numbers are Linux's.
fn errno_words(errno: i32) -> &'static str {
    match errno {
        ENOENT => "no such file or directory",
        7 => "argument list too long",
        8 => "not a program that this machine can run",
        11 => "too many processes",
        12 => "out of memory",
        13 => "permission denied",
        20 => "not a directory",
        26 => "being written to",
        _ => "system error",
    }
}

/// Names of the signals that end programs; the numbers are Linux's on x86 and ARM.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}
