//! `outlive operate …`: our own long work on files, one verb per run, as the process that a supervisor keeps (I11).
//!
//! Synchronous, one thread. May be killed at any instant and run again from the start (I7). The answer is one line of JSON on
//! standard output, a failure one line on standard error with exit code 1. Absent: anything that knows of jobs or records.

use std::error::Error;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use outlive_core::retry::backoff;

use crate::world::files::FileError;
use crate::world::source;
use crate::world::workspace::{self, Made, Ours};

/// Between two tries while the disk is full: doubles from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// See [`FIRST_WAIT`].
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Work that the server gives to itself.
#[derive(Debug, Parser)]
#[command(name = "outlive operate", disable_help_subcommand = true)]
enum Verb {
    /// Make a repo's source copy from a local work tree or a git URL.
    Clone {
        /// Absolute path of a git work tree, or a git URL.
        source: String,
        /// The directory to make.
        dest: PathBuf,
        /// The branch to check out.
        #[arg(long)]
        branch: Option<String>,
        /// Where left-overs go before they are deleted; on the same file system.
        #[arg(long)]
        trash: PathBuf,
        /// The data directory's UUID.
        #[arg(long)]
        instance: String,
    },
    /// Make a job's workspace from a source copy.
    Copy {
        /// The source copy.
        source: PathBuf,
        /// The directory to make.
        dest: PathBuf,
        /// The branch to begin at its HEAD.
        #[arg(long)]
        branch: String,
        /// Where left-overs go before they are deleted; on the same file system.
        #[arg(long)]
        trash: PathBuf,
        /// The data directory's UUID.
        #[arg(long)]
        instance: String,
    },
}

/// Runs one verb; `args` are those after `operate`. Exit code 0, 1 for a failure, 2 for a wrong command line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let program = OsString::from("outlive operate");
    let verb = match Verb::try_parse_from(std::iter::once(program).chain(args)) {
        Ok(verb) => verb,
        Err(e) => {
            // Nowhere is left to tell that telling failed.
            e.print().ok();
            return ExitCode::from(2);
        }
    };
    match patiently(|| perform(&verb)).and_then(|made| answer(&made)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            writeln!(std::io::stderr(), "{}", one_line(&*e)).ok();
            ExitCode::FAILURE
        }
    }
}

/// Tries until it is not for want of space that it fails: what was accepted is not given up for a full disk. What was made until
/// then is gone again, so that others have the space.
fn patiently(work: impl Fn() -> Result<Made, Box<dyn Error>>) -> Result<Made, Box<dyn Error>> {
    let mut tries = 0_u32;
    loop {
        match work() {
            Err(error) if is_for_want_of_space(&*error) => {
                writeln!(std::io::stderr(), "waits for space: {}", one_line(&*error)).ok();
                pause(backoff(FIRST_WAIT, LONGEST_WAIT, tries));
                tries = tries.saturating_add(1);
            }
            done => return done,
        }
    }
}

/// In the system's words, which git passes on.
fn is_for_want_of_space(error: &dyn Error) -> bool {
    let text = one_line(error);
    ["No space left on device", "Disk quota exceeded"].iter().any(|words| text.contains(words))
}

#[expect(clippy::disallowed_methods, reason = "nobody tells when a disk has room again")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

fn perform(verb: &Verb) -> Result<Made, Box<dyn Error>> {
    Ok(match verb {
        Verb::Clone { source, dest, branch, trash, instance } => {
            let source = source::parse_source(source)?;
            workspace::make_source_copy(&source, dest, branch.as_deref(), Ours { trash, instance })?
        }
        Verb::Copy { source, dest, branch, trash, instance } => {
            workspace::make_workspace(source, dest, branch, Ours { trash, instance })?
        }
    })
}

fn answer(made: &Made) -> Result<(), Box<dyn Error>> {
    let mut line = serde_json::to_string(made)?;
    line.push('\n');
    let mut stdout = std::io::stdout();
    let told = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
    Ok(told.map_err(FileError::on("write to", "standard output"))?)
}

/// An error and its causes in one line.
fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        line = format!("{line}: {e}");
        cause = e.source();
    }
    line.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests;
