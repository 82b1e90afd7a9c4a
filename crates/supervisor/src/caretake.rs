//! The caretaker: takes over an agent whose supervisor was killed, or the rest of its tree when the agent is gone too.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;

use outlive_core::ids::ProcessRef;
use outlive_core::spec::{Ending, Reading, Spec, Started};

use crate::cgroup::Leaf;
use crate::claim::{self, Claim, Given};
use crate::files::{self, FileError};
use crate::identity::{self, Stat};
use crate::keeper::{Agent, Keeper, Parts};
use crate::outcome::Slots;
use crate::output::Output;
use crate::tree::{Member, Tree};
use crate::watch::Watch;
use crate::{Leave, pipes, sys};

/// Takes over what `started` names. None: all is recorded already.
///
/// A pidfd that somebody opened while the agent was there is worth more than one of today: it tells the end of one that is gone.
pub(crate) fn take_over(dir: &Path, given: &Given) -> Result<Option<Keeper>, Leave> {
    let claim = claim::claim(dir)?;
    let Reading::Valid(started) = files::read_started(dir) else {
        return Err(Leave::NotHere);
    };
    if !claim.here.judges(&started.agent) {
        return Err(Leave::NotHere);
    }
    let slots = Slots::open(dir)?;
    if slots.outcome().valid().is_some() && slots.tree_empty().valid().is_some() {
        Leaf::reopen(&started.cgroups).remove();
        return Ok(None);
    }
    let spec = claim::read_spec(dir)?;
    let wake = claim::open_wake(dir);
    let watch = Watch::new(wake, false).map_err(FileError::at("watch", dir))?;
    let root = Member { pid: started.agent.pid, start_ticks: started.agent.start_ticks };
    let leaf = Leaf::reopen(&started.cgroups);
    let tree = Tree::new(leaf, !started.cgroups.is_empty(), &spec.mark, Some(root));
    let output = take_output(&claim, &spec, &started, &tree);
    let letter = given.mailbox.as_ref().and_then(|mailbox| mailbox.take(&started.agent));
    let pidfd = letter.or_else(|| identity::open_process(&started.agent, &claim.here));
    let reference = started.agent.clone();
    let agent = Agent { pidfd, reference, child: None };
    Ok(Some(Keeper::new(Parts { claim, spec, started, agent, slots, output, tree, watch })))
}

/// Opens the files, and the pipes again wherever a process of the tree holds them.
fn take_output(claim: &Claim, spec: &Spec, started: &Started, tree: &Tree) -> Output {
    let mut output = Output::open(spec).unwrap_or_else(|error| {
        crate::complain(format_args!("{}", error.line()));
        Output::none()
    });
    // A process of the tree may hold them, or whoever started this caretaker.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    let members = tree.members().into_iter().map(|member| member.pid);
    let agent = pipes::alive(&started.agent, &claim.here);
    let mut found = pipes::find(started, agent.into_iter().chain(parent).chain(members));
    for (stream, inode) in started.pipes.into_iter().flatten().enumerate() {
        if let Some(pipe) = found.remove(&inode) {
            output.pump(stream, pipe);
        }
    }
    output
}

/// How a process ended that is not our child: while it is a zombie from its stat, afterwards from its pidfd (Linux 6.15).
///
/// None if the kernel does not tell. It never guesses: a stat that hides the status from us shows 0.
pub(crate) fn ending_of_stranger(pidfd: BorrowedFd<'_>, process: &ProcessRef) -> Option<Ending> {
    // Asked twice around the look at the zombie, which may be buried in between.
    let kept = || sys::kept_wait_status(pidfd);
    let status = kept().or_else(|| zombie_status(process)).or_else(kept)?;
    Some(sys::decode_wait_status(status))
}

fn zombie_status(process: &ProcessRef) -> Option<i32> {
    // The kernel shows the true status exactly to those to whom it shows this link.
    fs::read_link(format!("/proc/{}/ns/pid", process.pid)).ok()?;
    let stat = Stat::read(process.pid)?;
    (stat.start_ticks == process.start_ticks && !stat.lives()).then_some(stat.exit_code)
}
