//! Running the git command line: a cleaned environment, no questions asked, bounded time and output.
//!
//! Absent: which commands are run. A repository that an agent has written to is hostile: its config can name programs for git
//! to run. `reading` switches off what our commands could start.

use std::io::{self, Read as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Why a git command gave no result.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no git to run.
    #[error("cannot run git: is it installed?")]
    NotStarted(#[source] io::Error),
    /// Git refused; `reason` is what it said, in one line.
    #[error("git {verb} failed: {reason}")]
    Failed {
        /// The git command.
        verb: String,
        /// Its exit code; absent if a signal ended it.
        code: Option<i32>,
        /// From its standard error.
        reason: String,
    },
    /// It was ended by us after this long.
    #[error("git {verb} did not end within {} s", after.as_secs())]
    TooSlow {
        /// The git command.
        verb: String,
        /// The bound.
        after: Duration,
    },
    /// It was ended by us because it said more than this.
    #[error("git {verb} gave more than {limit} bytes")]
    TooLarge {
        /// The git command.
        verb: String,
        /// The bound in bytes.
        limit: u64,
    },
    /// Its output could not be read or handed on.
    #[error("cannot pass on the output of git {verb}")]
    Output {
        /// The git command.
        verb: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How long a command may take and how much it may say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// None: somebody else watches the time (a supervisor).
    pub(super) time: Option<Duration>,
    /// Bytes on standard output.
    pub(super) bytes: u64,
}

impl Bounds {
    /// For questions with a short answer, asked while a person waits.
    pub(super) const SHORT: Self = Self { time: Some(Duration::from_secs(20)), bytes: 64 << 10 };
    /// For what a supervisor watches.
    pub(super) const SUPERVISED: Self = Self { time: None, bytes: 64 << 10 };
}

/// Of git's standard error, this much is kept to find the reason in.
const COMPLAINT_BYTES_MAX: usize = 64 << 10;
/// A reason is one line for people.
const REASON_BYTES_MAX: usize = 600;

/// A git that may use the network: nobody is asked for a password, and only these transports are used.
pub(super) fn network() -> Command {
    let mut git = clean();
    git.env("GIT_ALLOW_PROTOCOL", "https:http:ssh:file");
    git
}

/// A git that works on one repository of ours, without reaching out and without running what its config names.
pub(super) fn local(git_dir: &Path) -> Command {
    let mut git = clean();
    git.args(["-c", "core.fsmonitor=false"]);
    // Given explicitly, so nothing is searched for, and a repository owned by another user is fine.
    git.arg("--git-dir").arg(git_dir);
    // A partial clone would fetch missing objects by a program that its config names.
    git.env("GIT_ALLOW_PROTOCOL", "none").env("GIT_NO_LAZY_FETCH", "1");
    git
}

fn clean() -> Command {
    let mut git = Command::new("git");
    for (name, _) in std::env::vars_os() {
        // Repository, index and config of whoever started us; not how to reach hosts, and not the user's config file.
        let kept = ["GIT_SSH", "GIT_SSL_", "GIT_PROXY_", "GIT_EXEC_PATH", "GIT_CONFIG_GLOBAL"];
        let kept = kept.iter().chain(&["GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"]);
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"GIT_") && !kept.into_iter().any(|k| bytes.starts_with(k.as_bytes()))
        {
            git.env_remove(&name);
        }
    }
    git.env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0").env("GIT_OPTIONAL_LOCKS", "0");
    git.env("GIT_ASKPASS", "").env("SSH_ASKPASS_REQUIRE", "never").env("GIT_PAGER", "cat");
    git.args(["-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", "-c", "maintenance.auto=false"]);
    git
}

/// The `.git` directory of a work tree, if `tree` is the root of one: a real directory, neither a link nor a file that points
/// elsewhere.
pub(super) fn git_dir(tree: &Path) -> Option<PathBuf> {
    let dir = tree.join(".git");
    let real = std::fs::symlink_metadata(&dir).is_ok_and(|m| m.is_dir());
    (real && std::fs::symlink_metadata(dir.join("HEAD")).is_ok()).then_some(dir)
}

/// Runs a command to its end; its standard output goes to `sink`. `verb` is for messages.
pub(super) fn run(
    command: &mut Command,
    verb: &str,
    bounds: Bounds,
    sink: &mut dyn Write,
) -> Result<(), GitError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that its helpers can be ended with it.
    let mut child = command.process_group(0).spawn().map_err(GitError::NotStarted)?;
    let mut running = Running { verb, bounds, deadline: None, complaint: Vec::new() };
    running.deadline = bounds.time.map(|time| Instant::now() + time);
    let ended = running.drain(&mut child, sink).and_then(|()| running.exit(&child));
    if ended.is_err() {
        // Not yet waited for, so the group cannot be anybody else's; a group already gone is as good.
        kill_process_group(Pid::from_child(&child), Signal::KILL).ok();
    }
    let status = child.wait().map_err(|source| running.output(source))?;
    ended?;
    if status.success() {
        return Ok(());
    }
    let reason = match reason(&String::from_utf8_lossy(&running.complaint)) {
        none if none.is_empty() => status.to_string(),
        reason => reason,
    };
    Err(GitError::Failed { verb: verb.to_owned(), code: status.code(), reason })
}

/// Runs a command whose answer is one short line of text.
pub(super) fn line(command: &mut Command, verb: &str) -> Result<String, GitError> {
    let mut answer = Vec::new();
    run(command, verb, Bounds::SHORT, &mut answer)?;
    Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
}

/// As `line`, but exit code 1 means "there is none".
pub(super) fn maybe_line(command: &mut Command, verb: &str) -> Result<Option<String>, GitError> {
    match line(command, verb) {
        Ok(answer) => Ok(Some(answer)),
        Err(GitError::Failed { code: Some(1), .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The commit that HEAD names; none on an unborn branch.
pub(super) fn head_commit(git_dir: &Path) -> Result<Option<String>, GitError> {
    let ask = |what| {
        maybe_line(local(git_dir).args(["rev-parse", "--quiet", "--verify", what]), "rev-parse")
    };
    let commit = ask("HEAD^{commit}")?;
    if commit.is_none()
        && let Some(id) = ask("HEAD")?
    {
        let reason = format!("HEAD names {id}, which is not there or not a commit");
        return Err(GitError::Failed { verb: "rev-parse".to_owned(), code: Some(1), reason });
    }
    Ok(commit)
}

/// The branch that HEAD names, born or not; none when detached.
pub(super) fn head_branch(git_dir: &Path) -> Result<Option<String>, GitError> {
    maybe_line(local(git_dir).args(["symbolic-ref", "--quiet", "--short", "HEAD"]), "symbolic-ref")
}

struct Running<'a> {
    verb: &'a str,
    bounds: Bounds,
    deadline: Option<Instant>,
    complaint: Vec<u8>,
}

impl Running<'_> {
    fn output(&self, source: io::Error) -> GitError {
        GitError::Output { verb: self.verb.to_owned(), source }
    }

    /// Until both pipes are at their end, or a bound is reached.
    fn drain(&mut self, child: &mut Child, sink: &mut dyn Write) -> Result<(), GitError> {
        let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
        let (mut buffer, mut said) = (vec![0; 64 << 10], 0);
        while stdout.is_some() || stderr.is_some() {
            let descriptors =
                [stdout.as_ref().map(|p| p.as_fd()), stderr.as_ref().map(|p| p.as_fd())];
            let ready = self.wait(descriptors)?;
            if ready[0]
                && let Some(pipe) = &mut stdout
            {
                let length = pipe.read(&mut buffer).map_err(|e| self.output(e))?;
                said += length as u64;
                if said > self.bounds.bytes {
                    let (verb, limit) = (self.verb.to_owned(), self.bounds.bytes);
                    return Err(GitError::TooLarge { verb, limit });
                }
                sink.write_all(&buffer[..length]).map_err(|e| self.output(e))?;
                if length == 0 {
                    stdout = None;
                }
            }
            if ready[1]
                && let Some(pipe) = &mut stderr
            {
                let length = pipe.read(&mut buffer).map_err(|e| self.output(e))?;
                let room = COMPLAINT_BYTES_MAX - self.complaint.len();
                self.complaint.extend_from_slice(&buffer[..length.min(room)]);
                if length == 0 {
                    stderr = None;
                }
            }
        }
        Ok(())
    }

    /// Until the process itself has ended; it may have closed its output before.
    fn exit(&self, child: &Child) -> Result<(), GitError> {
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())
            .map_err(|e| self.output(e.into()))?;
        self.wait([Some(pidfd.as_fd()), None]).map(drop)
    }

    fn wait(&self, on: [Option<std::os::fd::BorrowedFd<'_>>; 2]) -> Result<[bool; 2], GitError> {
        let mut asked: Vec<_> =
            on.iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        if poll(&mut asked, timeout.as_ref()).map_err(|e| self.output(e.into()))? == 0 {
            let after = self.bounds.time.unwrap_or_default();
            return Err(GitError::TooSlow { verb: self.verb.to_owned(), after });
        }
        let mut answers = asked.iter().map(|fd| !fd.revents().is_empty());
        Ok(on.map(|fd| fd.is_some() && answers.next().unwrap_or(false)))
    }
}

/// The telling lines of what git wrote to standard error, as one line.
fn reason(complaint: &str) -> String {
    let idle =
        ["Cloning into", "hint:", "warning:", "Please make sure", "and the repository exists"];
    let mut reason = String::new();
    for line in complaint.lines().map(str::trim).filter(|line| !line.is_empty()) {
        // Progress is overwritten by carriage returns.
        let line = line.rsplit('\r').next().unwrap_or(line);
        if idle.iter().any(|start| line.starts_with(start)) {
            continue;
        }
        let line = line.strip_prefix("fatal: ").or(line.strip_prefix("error: ")).unwrap_or(line);
        if !reason.is_empty() {
            reason.push_str("; ");
        }
        reason.extend(line.chars().filter(|c| !c.is_control()));
        if reason.len() > REASON_BYTES_MAX {
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
            reason.push('…');
            break;
        }
    }
    reason
}

#[cfg(test)]
pub(crate) mod tests;
