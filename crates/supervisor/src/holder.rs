//! What whoever starts keepers holds beside them, so that nothing is lost with one: the agent's pipes, and the agent itself.
//!
//! A keeper that is killed takes its descriptors along, and the kernel forgets what nobody holds: bytes in a pipe, and how a process
//! ended. The next keeper gets both from here.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use outlive_core::evidence::{Evidence, Seen};
use outlive_core::ids::ProcessRef;
use outlive_core::spec::{Capture, Reading};

use crate::files::{read_spec, read_started};
use crate::identity::{self, Here};
use crate::mailbox::Mailbox;
use crate::pipes::{self, HeldOutput};

/// All that is held of one keep directory's agent. To be dropped when its outcome is recorded.
#[derive(Debug, Default)]
pub struct Holder {
    /// The agent's pipes, made here.
    pipes: Option<[OwnedFd; 2]>,
    /// The same of an agent that was launched when this holder did not exist.
    output: Option<HeldOutput>,
    /// Our end of the supervisor's mailbox.
    mailbox: Option<Mailbox>,
    /// The agent, and who it is.
    agent: Option<(ProcessRef, OwnedFd)>,
}

impl Holder {
    /// The command that becomes the supervisor of `dir`, once more of the same: `exe supervise …`.
    ///
    /// Pipes are made at the first launch of an agent that writes into some. What cannot be made is done without.
    pub fn supervisor(&mut self, exe: &str, dir: &Path) -> Command {
        let mut command = supervise(exe);
        if let Some([stdout, stderr]) = self.pipes_to_give(dir) {
            command.arg("--pipes").stdout(stdout).stderr(stderr);
        }
        if let Ok((ours, theirs)) = Mailbox::pair() {
            command.arg("--mailbox").stdin(OwnedFd::from(theirs));
            self.mailbox = Some(ours);
        }
        command.arg(dir);
        command
    }

    /// The command that becomes the caretaker of `dir`. It gets the agent, and finds the pipes with its parent.
    pub fn caretaker(&mut self, exe: &str, dir: &Path, here: &Here) -> Command {
        let mut command = supervise(exe);
        command.arg("--caretake");
        let posted = self.agent(dir, here).and_then(|(agent, pidfd)| {
            let (ours, theirs) = Mailbox::pair().ok()?;
            ours.post(agent, pidfd.as_fd()).ok()?;
            Some(theirs)
        });
        if let Some(theirs) = posted {
            command.arg("--mailbox").stdin(OwnedFd::from(theirs));
        }
        command.arg(dir);
        command
    }

    /// Takes hold of an agent that somebody else keeps already.
    pub fn take_hold(&mut self, dir: &Path, here: &Here) {
        self.output = pipes::hold_output(dir, here);
        self.agent(dir, here);
    }

    /// Whether a caretaker could tell of an agent that is gone what nobody has recorded: its end, or the last of its output.
    pub fn can_tell(&mut self, evidence: &Evidence, dir: &Path, here: &Here) -> bool {
        let unseen = evidence.agent == Seen::Gone && evidence.outcome == Reading::Absent;
        let holds = self.pipes.is_some() || self.output.is_some();
        unseen && (holds || self.agent(dir, here).is_some())
    }

    /// The agent that `started` names: as the supervisor left it here, else as it can be opened now.
    fn agent(&mut self, dir: &Path, here: &Here) -> Option<&(ProcessRef, OwnedFd)> {
        let started = read_started(dir);
        let agent = &started.valid()?.agent;
        if self.agent.as_ref().is_none_or(|(held, _)| held != agent) {
            let letter = self.mailbox.as_ref().and_then(|mailbox| mailbox.take(agent));
            let pidfd = letter.or_else(|| identity::open_process(agent, here));
            self.agent = pidfd.map(|pidfd| (agent.clone(), pidfd));
        }
        self.agent.as_ref()
    }

    fn pipes_to_give(&mut self, dir: &Path) -> Option<[OwnedFd; 2]> {
        let Reading::Valid(spec) = read_spec(dir) else { return None };
        if spec.capture == Capture::File {
            return None;
        }
        if self.pipes.is_none() {
            let end = || std::io::pipe().map(|(reader, _)| OwnedFd::from(reader));
            self.pipes = end().ok().zip(end().ok()).map(<[OwnedFd; 2]>::from);
        }
        let [stdout, stderr] = self.pipes.as_ref()?;
        stdout.try_clone().ok().zip(stderr.try_clone().ok()).map(<[OwnedFd; 2]>::from)
    }
}

fn supervise(exe: &str) -> Command {
    let mut command = Command::new(exe);
    command.arg("supervise").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
