//! The keeper of one process: launches it, outlives the server, ends its whole tree, records how it ended.
//!
//! A supervisor is a process of its own and works on one *keep directory* (`outlive_core::spec` tells its files). It needs no
//! server (I5): alone it holds the deadline, obeys a stop request and writes the outcome. A *caretaker* is a supervisor without a
//! child, for an agent whose supervisor was killed.
//!
//! Absent on purpose: threads, async, networks, and any decision about a job. What is true is written down; what follows from it
//! is for others to say.

#![deny(clippy::print_stdout)]

mod caretake;
mod cgroup;
mod child;
mod claim;
mod clock;
mod crash;
mod files;
mod holder;
mod identity;
mod keeper;
mod launch;
mod mailbox;
mod namespace;
mod outcome;
mod output;
mod pipes;
mod probe;
mod room;
mod silence;
mod slot;
mod stop;
#[expect(
    unsafe_code,
    reason = "fork, execve, OFD locks and exit status by pidfd have no safe wrapper"
)]
mod sys;
mod tree;
mod watch;

use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use claim::Gifts;
pub use clock::boot_ms;
pub use crash::{CRASH_POINTS, crash_point};
pub use files::{
    FileError, read_sentinel, read_spec, read_started, read_stop, replace_file, replace_file_by,
    wake, write_stop,
};
pub use holder::Holder;
pub use identity::{Here, open_process, self_ref, signal};
pub use outcome::{read_freeze, read_slots};
pub use probe::probe;
pub use room::{Space, space};
pub use slot::overwrite_in_place;

/// Exit codes of a supervisor, for whoever started it. What it achieved stands in the keep directory.
pub mod exit {
    /// The agent has ended, its tree is empty, all of it is recorded.
    pub const DONE: u8 = 0;
    /// Something failed before the agent could be let go; `keeper.err` says what.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// Another supervisor holds the lock.
    pub const HELD: u8 = 3;
    /// The agent was let go before, or may have been: only a caretaker may follow.
    pub const STARTED: u8 = 4;
    /// There is no agent that could be taken care of from this boot and pid namespace.
    pub const NOT_HERE: u8 = 5;
    /// The agent is gone, its exit status cannot be had, and nobody asked for its tree to be ended: left alone.
    pub const UNPROVEN: u8 = 6;
}

/// Why a supervisor ends.
#[derive(Debug)]
enum Leave {
    Done,
    Held,
    Started,
    NotHere,
    Unproven,
    Failed(FileError),
}

impl From<FileError> for Leave {
    fn from(error: FileError) -> Self {
        Self::Failed(error)
    }
}

impl Leave {
    fn code(&self) -> u8 {
        match self {
            Self::Done => exit::DONE,
            Self::Held => exit::HELD,
            Self::Started => exit::STARTED,
            Self::NotHere => exit::NOT_HERE,
            Self::Unproven => exit::UNPROVEN,
            Self::Failed(_) => exit::FAILED,
        }
    }
}

/// Is the supervisor of `DIR`, or with `--caretake` its caretaker: the arguments after `outlive supervise`, `DIR` the last. With
/// `--pipes` our own standard output and error are pipes for the agent, with `--mailbox` our standard input is one end of a
/// mailbox; whoever started us holds them too.
///
/// To be called first of all in `main`: it closes descriptors and forks, so the process must have neither threads nor open files.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Some(Call { role, gifts, dir }) = Call::parse(args.into_iter().collect()) else {
        return ExitCode::from(exit::USAGE);
    };
    let leave = run(&dir, role, gifts).unwrap_or_else(|leave| leave);
    if let Leave::Failed(error) = &leave {
        complain(format_args!("{}", error.line()));
    }
    ExitCode::from(leave.code())
}

/// What this process is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Supervisor,
    Caretaker,
}

/// A command line, understood.
#[derive(Debug)]
struct Call {
    role: Role,
    gifts: Gifts,
    dir: PathBuf,
}

impl Call {
    fn parse(mut args: Vec<OsString>) -> Option<Self> {
        let dir = args.pop().filter(|dir| !dir.as_encoded_bytes().starts_with(b"--"))?;
        let dir = std::path::absolute(PathBuf::from(dir)).ok()?;
        let mut call = Self { role: Role::Supervisor, gifts: Gifts::default(), dir };
        for flag in args {
            match flag.to_str()? {
                "--caretake" => call.role = Role::Caretaker,
                "--pipes" => call.gifts.pipes = true,
                "--mailbox" => call.gifts.mailbox = true,
                _ => return None,
            }
        }
        Some(call)
    }
}

fn run(dir: &Path, role: Role, gifts: Gifts) -> Result<Leave, Leave> {
    let given = claim::detach(dir, gifts)?;
    let keeper = match role {
        Role::Caretaker => caretake::take_over(dir, &given)?,
        Role::Supervisor => launch::launch(dir, &given)?,
    };
    match keeper {
        Some(keeper) => Ok(keeper.keep()),
        None => Ok(Leave::Done),
    }
}

/// Says what went wrong, to whoever reads `keeper.err`.
fn complain(what: fmt::Arguments<'_>) {
    let line = format!("{}: {what}\n", clock::now());
    // At one stroke, so that lines of two processes do not mix. When even this fails there is nobody left to tell.
    std::io::stderr().write_all(line.as_bytes()).ok();
}
