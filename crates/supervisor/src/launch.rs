//! The way to a running agent: fork it behind its gate, claim the keep directory, write `started`, open the gate.
//!
//! The fork comes before the lock, so that the child cannot inherit it: a lock that is held means a supervisor that lives. Until
//! `started` names it the child can do nothing but leave.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use outlive_core::planted::planted;
use outlive_core::spec::{
    Capture, Ending, Outcome, Reading, Spec, Started, StopCause, TreeEmpty, VERSION, file as name,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

use crate::cgroup::Leaf;
use crate::child::Birth;
use crate::claim::{self, Claim, Given};
use crate::files::{self, FileError};
use crate::keeper::{Agent, Keeper, Parts};
use crate::outcome::Slots;
use crate::output::Output;
use crate::sys::{self, Fork};
use crate::tree::{Member, Tree};
use crate::watch::Watch;
use crate::{Leave, child, clock, crash_point, namespace, slot};

/// Launches the agent. None: it must not run, because a stop was asked for first; that is recorded.
pub(crate) fn launch(dir: &Path, given: &Given) -> Result<Option<Keeper>, Leave> {
    let spec = claim::read_spec(dir)?;
    crash_point("supervisor.spec_read");
    let unborn = Unborn::fork(dir, &spec, given)?;
    crash_point("supervisor.forked");
    // Whoever may not launch ends the child at once. Once named it leaves by itself when the gate ends, for it has a word to say.
    let (claim, slots, watch) = prepare(dir).inspect_err(|_| end_child(unborn.pid))?;
    let born = unborn.name(claim, spec, slots, watch, given)?;
    let stop = files::read_stop(dir);
    crash_point("supervisor.stop_looked_for");
    if let Reading::Valid(stop) = stop {
        born.never_let_go(stop.cause)?;
        return Ok(None);
    }
    Ok(Some(born.let_go()))
}

/// Takes the keep directory in possession, if it is fit for a launch, and becomes able to keep a tree.
fn prepare(dir: &Path) -> Result<(Claim, Slots, Watch), Leave> {
    let claim = claim::claim(dir)?;
    let slots = Slots::open(dir)?;
    // Now, so that what runs can be stopped when the disk is full.
    slot::allocate(&dir.join(name::STOP))?;
    claim::void_if_never_ran(dir, &slots)?;
    crash_point("supervisor.slots_ready");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(FileError::at("become the subreaper for", dir))?;
    let watch = Watch::new(claim::open_wake(dir), true).map_err(FileError::at("watch", dir))?;
    Ok((claim, slots, watch))
}

/// Ends a child that is still behind its gate. Not reaped before, it has its pid yet, and it cannot refuse.
fn end_child(pid: Pid) {
    rustix::process::kill_process(pid, Signal::KILL).ok();
    waitpid(Some(pid), WaitOptions::empty()).ok();
}

/// A child behind its gate, not named by `started`.
#[derive(Debug)]
struct Unborn {
    /// Its own until it is waited for.
    pid: Pid,
    gate: OwnedFd,
    output: Output,
    readers: Vec<OwnedFd>,
    pipes: Option<[u64; 2]>,
}

impl Unborn {
    /// Forks. The child becomes ready, waits for a byte from the gate, and leaves at its end.
    fn fork(dir: &Path, spec: &Spec, given: &Given) -> Result<Self, FileError> {
        let gate = pipe_with(PipeFlags::CLOEXEC);
        let (gate_of_child, gate) = gate.map_err(FileError::at("make a gate for", dir))?;
        let (output, trouble) = match Output::open(spec) {
            Ok(output) => (output, None),
            Err(error) => (Output::none(), Some(child::Failure::of(&error))),
        };
        let plumbing = plumb(spec, given).map_err(FileError::at("make pipes for", dir))?;
        let Plumbing { writers, readers, inodes: pipes } = plumbing;
        match sys::fork().map_err(FileError::at("fork for", dir))? {
            Fork::Child => {
                // Else it would keep its own gate from ending.
                drop(gate);
                child::run(&Birth { dir, spec, writers, trouble, gate: gate_of_child })
            }
            Fork::Parent(pid) => Ok(Self { pid, gate, output, readers, pipes }),
        }
    }

    /// Puts the child into its leaf and names it in `started`: from then on it is this attempt's agent.
    fn name(
        mut self,
        claim: Claim,
        spec: Spec,
        slots: Slots,
        watch: Watch,
        given: &Given,
    ) -> Result<Born, FileError> {
        let dir = &claim.dir;
        let agent = Agent::of_child(self.pid, &claim.here).map_err(FileError::at("watch", dir))?;
        agent.post(given);
        crash_point("supervisor.posted");
        let mut leaf = Leaf::create(&spec);
        leaf.join(agent.reference.pid);
        crash_point("supervisor.joined");
        let deadline = |timeout| clock::boot_ms().saturating_add(timeout);
        let started = Started {
            version: VERSION,
            at: clock::now(),
            agent: agent.reference.clone(),
            keeper: claim.me.clone(),
            cgroups: leaf.paths(),
            deadline_boot_ms: spec.timeout_ms.map(deadline),
            pipes: self.pipes,
            output_from: self.output.lengths(),
            namespace: namespace::mark_own(),
            unenforced: leaf.unenforced(&spec),
        };
        if planted("supervisor.launch_before_durable") {
            rustix::io::write(&self.gate, &[1]).ok();
        }
        files::create_whole(&dir.join(name::STARTED), &files::json(&started))?;
        crash_point("supervisor.started_linked");
        files::sync_dir(dir)?;
        crash_point("supervisor.started_synced");
        for (stream, reader) in self.readers.into_iter().enumerate() {
            self.output.pump(stream, reader);
        }
        let root = Member { pid: claim.me.pid, start_ticks: claim.me.start_ticks };
        let tree = Tree::new(leaf, !started.cgroups.is_empty(), &spec.mark, Some(root));
        let (gate, output) = (self.gate, self.output);
        let parts = Parts { claim, spec, started, agent, slots, output, tree, watch };
        Ok(Born { parts, gate })
    }
}

/// Pipes for the agent's output, if it is to write into pipes.
#[derive(Debug, Default)]
struct Plumbing {
    /// The agent's ends for stdout and stderr.
    writers: Option<[OwnedFd; 2]>,
    /// Our ends; a single one when both streams go into one file.
    readers: Vec<OwnedFd>,
    inodes: Option<[u64; 2]>,
}

fn plumb(spec: &Spec, given: &Given) -> io::Result<Plumbing> {
    if spec.capture == Capture::File {
        return Ok(Plumbing::default());
    }
    if let (Some([(stdout, stdout_inode), (stderr, stderr_inode)]), true) =
        (given.open()?, spec.stdout != spec.stderr)
    {
        return Ok(Plumbing {
            writers: given.writers()?,
            readers: vec![stdout, stderr],
            inodes: Some([stdout_inode, stderr_inode]),
        });
    }
    let (stdout, stdout_writer, stdout_inode) = pipe()?;
    if spec.stdout == spec.stderr {
        let writers = Some([stdout_writer.try_clone()?, stdout_writer]);
        return Ok(Plumbing { writers, readers: vec![stdout], inodes: Some([stdout_inode; 2]) });
    }
    let (stderr, stderr_writer, stderr_inode) = pipe()?;
    Ok(Plumbing {
        writers: Some([stdout_writer, stderr_writer]),
        readers: vec![stdout, stderr],
        inodes: Some([stdout_inode, stderr_inode]),
    })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd, u64)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // Only our end: the agent's is opened anew by the child.
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK)?;
    let inode = rustix::fs::fstat(&reader)?.st_ino;
    Ok((reader, writer, inode))
}

/// An agent behind its gate.
#[derive(Debug)]
struct Born {
    parts: Parts,
    gate: OwnedFd,
}

impl Born {
    /// Opens the gate: from here on the agent runs.
    fn let_go(self) -> Keeper {
        let opened = rustix::io::write(&self.gate, &[1]);
        // A child that was killed behind its gate is an agent that ended by a signal; the keeper records it.
        if let Err(error) = opened {
            crate::complain(format_args!("the agent died behind its gate: {error}"));
        }
        drop(self.gate);
        crash_point("supervisor.gate_opened");
        Keeper::new(self.parts)
    }

    /// Ends the child behind its gate and records that it never ran, and why.
    fn never_let_go(self, stop: StopCause) -> Result<(), FileError> {
        let Parts { agent, slots, output, mut tree, .. } = self.parts;
        if let Some(pid) = agent.child {
            // Dead before we speak: its own word, without the cause, could overwrite ours.
            end_child(pid);
        }
        let outcome = Outcome {
            version: VERSION,
            ending: Ending::NeverRan,
            at: clock::now(),
            stop: Some(stop),
            oom: false,
            cpu_ms: 0,
            peak_memory_bytes: 0,
            output_to: output.lengths(),
        };
        slots.record_outcome(&outcome)?;
        tree.leaf.remove();
        slots.record_tree_empty(&TreeEmpty {
            version: VERSION,
            at: clock::now(),
            proof: tree.proof(),
            killed: 0,
            output_to: outcome.output_to,
        })
    }
}
