//! The loop of a supervisor or caretaker: waits for what happens, does what is due, until the agent's end and the end of its tree
//! are recorded (I5).
//!
//! Absent on purpose: how it came to its agent (`launch`, `caretake`). From here on both are the same.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use outlive_core::ids::ProcessRef;
use outlive_core::planted::planted;
use outlive_core::spec::{
    self, Outcome, Reading, Sentinel, Spec, Started, StopCause, TreeEmpty, VERSION, file as name,
};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

use crate::claim::{Claim, Given};
use crate::files::{self, FileError};
use crate::identity::Here;
use crate::outcome::Slots;
use crate::output::Output;
use crate::room::Room;
use crate::silence::Silence;
use crate::tree::Tree;
use crate::watch::{Happened, Watch};
use crate::{Leave, caretake, clock, complain, crash_point, stop, sys};

/// Tools that are left when the agent ended by itself get this much grace at most: nobody waits for what they do.
const SURVIVORS_GRACE_MS: u64 = 2000;
/// How often the length of the output files is looked at, if it has a limit and no pump sees every byte.
const OUTPUT_LOOK_MS: u64 = 1000;
/// Between two tries to record something: at first, and at most.
const RECORD_AGAIN_MS: (u64, u64) = (100, 30_000);
/// A heartbeat faster than this would only heat the disk.
const HEARTBEAT_MS_MIN: u64 = 50;
/// How many orphans are buried in one go.
const REAP_MAX: u32 = 1000;

/// The agent's main process.
#[derive(Debug)]
pub(crate) struct Agent {
    /// None: it is gone without a trace.
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) reference: ProcessRef,
    /// Its pid, if it is our child.
    pub(crate) child: Option<Pid>,
}

impl Agent {
    /// A child, which keeps its pid until we reap it.
    pub(crate) fn of_child(pid: Pid, here: &Here) -> io::Result<Self> {
        let pidfd = Some(pidfd_open(pid, PidfdFlags::empty())?);
        let reference = here.name(pid.as_raw_nonzero().get().unsigned_abs());
        let reference = reference.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { pidfd, reference, child: Some(pid) })
    }

    /// Leaves it with whoever started us, who outlives us perhaps: then its end can still be told if we die before we recorded it.
    pub(crate) fn post(&self, given: &Given) {
        let (Some(mailbox), Some(pidfd)) = (&given.mailbox, &self.pidfd) else { return };
        if let Err(error) = mailbox.post(&self.reference, pidfd.as_fd()) {
            // It costs certainty should we be killed in a bad moment, and nothing else.
            complain(format_args!("the agent could not be left with the server: {error}"));
        }
    }
}

/// What is known of the main process.
#[derive(Debug)]
enum Main {
    Runs,
    /// It ended so; not recorded yet.
    Ended {
        ending: spec::Ending,
        at: outlive_core::time::Timestamp,
    },
    /// It ended and nobody can say how.
    Unproven,
    /// Its end is recorded.
    Recorded,
}

/// Everything a supervisor holds.
#[derive(Debug)]
pub(crate) struct Keeper {
    dir: PathBuf,
    /// Never touched again: held until this process ends.
    _lock: File,
    me: ProcessRef,
    host: String,
    spec: Spec,
    started: Started,
    agent: Agent,
    slots: Slots,
    output: Output,
    tree: Tree,
    room: Room,
    watch: Watch,
    main: Main,
    stop: Option<StopCause>,
    ending: Option<stop::Ending>,
    /// Usage of children reaped so far: microseconds, bytes.
    reaped: (u64, u64),
    /// The same of the main process, which is reaped last.
    of_main: (u64, u64),
    beat_at: u64,
    look_at_output: Option<u64>,
    /// None: it may be silent for ever.
    silence: Option<Silence>,
    /// When to try again to record what could not be recorded, and how long to wait after that.
    record_again: Option<u64>,
    record_again_ms: u64,
    /// The sentinel could not be written; said once.
    beat_failed: bool,
}

/// What a keeper is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) claim: Claim,
    pub(crate) spec: Spec,
    pub(crate) started: Started,
    pub(crate) agent: Agent,
    pub(crate) slots: Slots,
    pub(crate) output: Output,
    pub(crate) tree: Tree,
    pub(crate) watch: Watch,
}

impl Keeper {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { claim, mut spec, started, agent, slots, output, tree, watch } = parts;
        // Of no more use, and perhaps large: a keeper is one of hundreds.
        spec.argv = Vec::new();
        spec.env = Vec::new();
        spec.env_remove = Vec::new();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            dir: claim.dir,
            _lock: claim.lock,
            me: claim.me,
            host: host.trim_end().to_owned(),
            look_at_output: spec.output_bytes_max.map(|_| 0),
            room: Room::new(&spec, &slots, &tree.leaf),
            silence: Silence::new(&spec, output.total()),
            spec,
            started,
            agent,
            slots,
            output,
            tree,
            watch,
            main: Main::Runs,
            stop: None,
            ending: None,
            reaped: (0, 0),
            of_main: (0, 0),
            beat_at: 0,
            record_again: None,
            record_again_ms: RECORD_AGAIN_MS.0,
            beat_failed: false,
        }
    }

    /// Keeps the agent until all is recorded, or until there is nothing more that could be.
    pub(crate) fn keep(mut self) -> Leave {
        if self.agent.pidfd.is_none() {
            self.main = self.end_of_main();
        }
        loop {
            if let Some(leave) = self.act(clock::boot_ms()) {
                return leave;
            }
            let due = self.due();
            let agent = self.agent.pidfd.as_ref().filter(|_| matches!(self.main, Main::Runs));
            let agent = agent.map(|pidfd| pidfd.as_fd());
            let watched = self.ending.iter().flat_map(stop::Ending::watched);
            match self.watch.wait(due, agent, self.output.waiting(), watched) {
                Ok(happened) => self.notice(&happened),
                Err(error) => return Leave::Failed(FileError::at("watch over", &self.dir)(error)),
            }
        }
    }

    /// The next moment at which something is due though nothing happened.
    fn due(&self) -> Option<u64> {
        let runs = matches!(self.main, Main::Runs);
        let freely = runs && self.stop.is_none();
        let deadline = self.room.deadline(self.started.deadline_boot_ms).filter(|_| freely);
        let look = self.look_at_output.filter(|_| freely);
        let room = self.room.look_at().filter(|_| freely);
        let ending = self.ending.as_ref().and_then(stop::Ending::due);
        let silence = self.silence.as_ref().map(Silence::look_at).filter(|_| freely);
        let again = [self.record_again, self.output.retry_at()];
        let all = [deadline, look, room, silence, ending].into_iter().chain(again);
        all.flatten().chain([self.beat_at]).min()
    }

    /// Takes in what happened. The agent's end first: whatever comes with it finds it ended by itself.
    fn notice(&mut self, happened: &Happened) {
        let now = clock::boot_ms();
        if happened.agent {
            self.main = self.end_of_main();
        }
        if happened.wake {
            self.look_for_stop(now);
        }
        if happened.children {
            self.reap();
        }
        if happened.pipes {
            self.output.drain(now);
            self.look_at_output(now);
        }
        if let Some(ending) = &mut self.ending {
            ending.ended(&happened.watched);
        }
    }

    /// Does everything whose time has come.
    fn act(&mut self, now: u64) -> Option<Leave> {
        if now >= self.beat_at {
            self.beat(now);
            self.look_for_stop(now);
            self.reap();
        }
        let runs_freely = matches!(self.main, Main::Runs) && self.stop.is_none();
        if runs_freely && self.room.look_at().is_some_and(|at| now >= at) {
            self.room.look(now, &self.tree.leaf, &self.slots);
        }
        let deadline = self.room.deadline(self.started.deadline_boot_ms);
        let deadline = deadline.filter(|_| !planted("supervisor.no_deadline"));
        if runs_freely && deadline.is_some_and(|deadline| now >= deadline) {
            self.stop_for(StopCause::Timeout, self.spec.grace_ms, now);
        }
        if self.silence.as_ref().is_some_and(|silence| now >= silence.look_at()) {
            self.look_for_silence(now);
        }
        if self.look_at_output.is_some_and(|at| now >= at) {
            self.look_at_output(now);
            let again = (!self.output.is_pumped()).then(|| now.saturating_add(OUTPUT_LOOK_MS));
            self.look_at_output = again;
        }
        if self.output.retry_at().is_some_and(|at| now >= at) {
            self.output.drain(now);
        }
        if self.record_again.is_some_and(|at| now < at) {
            return None;
        }
        self.record_again = None;
        match self.main {
            Main::Ended { .. } => self.conclude(now),
            Main::Unproven if self.stop.is_none() => {
                // What is left in pipes that the server holds is saved all the same.
                self.output.drain(now);
                self.output.sync();
                // Whoever is left is let alone, and not left frozen with nobody to thaw it.
                self.room.thaw(now, &self.tree.leaf, &self.slots);
                self.tree.leaf.thaw();
                return Some(Leave::Unproven);
            }
            Main::Unproven | Main::Runs | Main::Recorded => {}
        }
        let main_gone = !matches!(self.main, Main::Runs);
        let empty = self.ending.as_mut().is_some_and(|it| it.step(&self.tree, now, main_gone));
        let done = empty && matches!(self.main, Main::Recorded | Main::Unproven);
        if done { self.finish(now) } else { None }
    }

    /// Obeys the wish that the tree be ended, if there is one.
    fn look_for_stop(&mut self, now: u64) {
        match files::read_stop(&self.dir) {
            Reading::Absent => {}
            Reading::Valid(stop) => self.stop_for(stop.cause, stop.grace_ms, now),
            Reading::Damaged(why) => complain(format_args!("cannot read {}: {why}", name::STOP)),
        }
    }

    /// Begins to end the tree, or shortens the grace if that is under way.
    fn stop_for(&mut self, cause: StopCause, grace_ms: u64, now: u64) {
        match self.main {
            Main::Runs | Main::Unproven => self.stop = self.stop.or(Some(cause)),
            // It ended before: that is its outcome, and the rest is being ended already.
            Main::Ended { .. } | Main::Recorded => {}
        }
        self.room.thaw(now, &self.tree.leaf, &self.slots);
        match &mut self.ending {
            Some(ending) => ending.hasten(now, grace_ms),
            None if matches!(self.main, Main::Ended { .. }) => {}
            None => self.ending = Some(stop::Ending::begin(&self.tree, now, grace_ms)),
        }
    }

    fn look_at_output(&mut self, now: u64) {
        let runs = matches!(self.main, Main::Runs) && self.stop.is_none();
        if runs && self.spec.output_bytes_max.is_some_and(|max| self.output.total() > max) {
            self.stop_for(StopCause::OutputLimit, self.spec.grace_ms, now);
        }
    }

    fn look_for_silence(&mut self, now: u64) {
        if !matches!(self.main, Main::Runs) || self.stop.is_some() {
            return;
        }
        let held_up = self.output.is_stuck() || self.tree.leaf.is_frozen();
        let bytes = self.output.total();
        if self.silence.as_mut().is_some_and(|silence| silence.look(now, bytes, held_up)) {
            self.stop_for(StopCause::IdleOutput, self.spec.grace_ms, now);
        }
    }

    /// Writes the heartbeat. It tells people something; failing at it changes nothing.
    fn beat(&mut self, now: u64) {
        self.beat_at = now.saturating_add(self.spec.heartbeat_ms.max(HEARTBEAT_MS_MIN));
        if matches!(self.main, Main::Unproven) {
            return;
        }
        let sentinel = Sentinel {
            version: VERSION,
            job: self.spec.job.clone(),
            attempt: self.spec.attempt,
            engine: self.spec.engine.clone(),
            host: self.host.clone(),
            keeper: self.me.clone(),
            agent: self.agent.reference.clone(),
            at: clock::now(),
        };
        let written = files::replace_file(&self.dir.join(name::SENTINEL), &files::json(&sentinel));
        if let (Err(error), false) = (&written, self.beat_failed) {
            complain(format_args!("{}", error.line()));
        }
        self.beat_failed = written.is_err();
        crash_point("supervisor.beat");
    }

    /// Buries children that ended. The agent itself only when its end is recorded: until then its status is kept by the kernel.
    fn reap(&mut self) {
        if self.agent.child.is_none() {
            return;
        }
        for _ in 0..REAP_MAX {
            let Ok(Some(ended)) = sys::peek_ended(None) else { return };
            let is_agent = Some(ended.pid) == self.agent.child;
            if is_agent && !matches!(self.main, Main::Recorded) {
                return;
            }
            waitpid(Some(ended.pid), WaitOptions::NOHANG).ok();
            self.count(&ended);
        }
    }

    fn count(&mut self, ended: &sys::EndedChild) {
        let (cpu_us, peak) = self.reaped;
        self.reaped = (cpu_us.saturating_add(ended.cpu_us), peak.max(ended.peak_bytes));
    }

    fn end_of_main(&mut self) -> Main {
        let ending = match (&self.agent.pidfd, self.agent.child) {
            (Some(pidfd), Some(_)) => {
                let ended = sys::peek_ended(Some(pidfd.as_fd())).ok().flatten();
                ended.map(|ended| {
                    self.of_main = (ended.cpu_us, ended.peak_bytes);
                    ended.ending
                })
            }
            (Some(pidfd), None) => {
                caretake::ending_of_stranger(pidfd.as_fd(), &self.agent.reference)
            }
            (None, _) => None,
        };
        let at = clock::now();
        crash_point("supervisor.agent_ended");
        match (self.slots.outcome(), ending) {
            // Its own word that it never became the program; or a supervisor recorded its end and was killed.
            (Reading::Valid(_), _) => {
                self.begin_after_main();
                Main::Recorded
            }
            (_, Some(ending)) => Main::Ended { ending, at },
            (_, None) => Main::Unproven,
        }
    }

    /// Records how the main process ended, when all it wrote is durable. Tried again later if it fails: written anew and
    /// synced anew, for a failed sync alone proves nothing when repeated.
    fn conclude(&mut self, now: u64) {
        let Main::Ended { ending, at } = &self.main else { return };
        let (ending, at) = (ending.clone(), *at);
        self.output.drain(now);
        self.output.sync();
        crash_point("supervisor.output_synced");
        let cpu_ms = self.reaped.0.saturating_add(self.of_main.0) / 1000;
        let peak = self.reaped.1.max(self.of_main.1);
        let outcome = Outcome {
            version: VERSION,
            ending,
            at,
            stop: self.stop,
            oom: self.tree.leaf.oom_kills() > 0,
            cpu_ms: self.tree.leaf.cpu_ms().unwrap_or(cpu_ms),
            peak_memory_bytes: self.tree.leaf.peak_memory_bytes().unwrap_or(peak),
            output_to: self.output.lengths(),
        };
        let recorded = self.slots.record_outcome(&outcome);
        if self.is_recorded(recorded, now) {
            crash_point("supervisor.outcome_synced");
            self.main = Main::Recorded;
            self.reap();
            crash_point("supervisor.reaped");
            self.begin_after_main();
        }
    }

    fn begin_after_main(&mut self) {
        let now = clock::boot_ms();
        let grace_ms = self.spec.grace_ms.min(SURVIVORS_GRACE_MS);
        match &mut self.ending {
            Some(ending) => ending.main_is_gone(now, grace_ms),
            None => self.ending = Some(stop::Ending::begin(&self.tree, now, grace_ms)),
        }
    }

    /// Records that nothing of the tree is left. None: something still has to be waited for.
    fn finish(&mut self, now: u64) -> Option<Leave> {
        self.reap();
        crash_point("supervisor.tree_empty");
        if !self.output.drain(now) {
            if self.output.waits_for_space() {
                return None;
            }
            complain(format_args!("output that nobody can write is lost"));
        }
        self.output.sync();
        self.tree.leaf.remove();
        let empty = TreeEmpty {
            version: VERSION,
            at: clock::now(),
            proof: self.tree.proof(),
            killed: self.ending.as_ref().map_or(0, stop::Ending::killed),
            output_to: self.output.lengths(),
        };
        let recorded = self.slots.record_tree_empty(&empty);
        if !self.is_recorded(recorded, now) {
            return None;
        }
        crash_point("supervisor.tree_recorded");
        // The kernel may have needed a moment to let go of the last one's cgroup.
        self.tree.leaf.remove();
        Some(Leave::Done)
    }

    fn is_recorded(&mut self, recorded: Result<(), FileError>, now: u64) -> bool {
        let Err(error) = recorded else {
            self.record_again_ms = RECORD_AGAIN_MS.0;
            return true;
        };
        complain(format_args!("{}", error.line()));
        self.record_again = Some(now.saturating_add(self.record_again_ms));
        self.record_again_ms = self.record_again_ms.saturating_mul(2).min(RECORD_AGAIN_MS.1);
        false
    }
}
