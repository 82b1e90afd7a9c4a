//! Repair: what is still known of jobs and repos whose records are lost (I10), and how a person has them taken up again.
//!
//! Until then they are unavailable: nothing is due for them, and their files and processes are left alone. What is known of such a
//! job, from the records that are left and from its directory, is shown as it was last; it is no truth. It becomes one by an event
//! that carries all of it, so that nothing lost before it matters any more. Then evidence decides what its agent has done, as after
//! any other crash. Absent: reading the directory.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use super::State;
use super::apply::{IllegalEvent, illegal, untouched};
use super::decide::{Decision, said, told, unknown_repo};
use super::ending::concluded;
use crate::effect::Effect;
use crate::engine::EngineOptions;
use crate::event::{Event, job_entity, repo_entity};
use crate::ids::{AttemptNo, JobId, Lsn, OperationId, RepoName, SessionId};
use crate::job::{
    Action, Attempt, AttemptEnd, EndedBy, Job, OutcomeKind, Phase, Session, Work, Workspace,
};
use crate::limits;
use crate::repo::OperationKind;
use crate::request::{Granted, Refusal};
use crate::spec::{self, Spec, Started, StopCause};
use crate::task::{OnInterrupt, OnLimit, OnUnknown, Task, TaskLimits};
use crate::time::Timestamp;

/// What a job's directory tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// The record of its acceptance, by its marker.
    pub accepted: Option<Lsn>,
    /// Its workspaces, in the order of its sessions.
    pub workspaces: Vec<Option<Workspace>>,
    /// Its attempts, in their order.
    pub attempts: Vec<AttemptRemains>,
}

/// What an attempt's keep directory tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRemains {
    /// Its number.
    pub n: AttemptNo,
    /// What was to be run.
    pub spec: Option<Spec>,
    /// That its agent was let go.
    pub started: Option<Started>,
    /// How its agent ended.
    pub outcome: Option<spec::Outcome>,
}

impl AttemptRemains {
    /// Which of the job's sessions it belongs to, counted from 0, by the name of its workspace.
    fn session(&self) -> usize {
        let name = self.spec.as_ref().and_then(|spec| spec.cwd.rsplit('/').next());
        let number = name.and_then(|name| name.strip_prefix("workspace-")?.parse().ok());
        number.map_or(0, |number: usize| number.clamp(1, limits::ATTEMPTS_MAX) - 1)
    }

    /// The session's id, by the name of its output file.
    fn session_id(&self) -> Option<SessionId> {
        let name = self.spec.as_ref()?.stdout.rsplit('/').next()?;
        name.strip_suffix(".output").map(|id| SessionId(id.to_string()))
    }
}

impl State {
    /// Adds what a job's directory tells to what is known of an unavailable job. It stays unavailable.
    pub fn recall(&mut self, id: &JobId, remains: &Remains, owner: &str) {
        let entity = job_entity(id);
        let Some(reason) = self.unavailable.get(&entity).cloned() else { return };
        let known = self.jobs.get(id).map(|job| Job::clone(job));
        let mut job = known.unwrap_or_else(|| self.stranger(id, remains, owner));
        for found in &remains.attempts {
            add_attempt(&mut job, found, remains);
        }
        self.put(repaired(&job, self.clock));
        self.set_unavailable(entity, reason);
    }

    /// Operations up to this number have left a directory: the number is not given again, whatever became of their records.
    pub fn operation_was_seen(&mut self, id: OperationId) {
        self.next_operation = self.next_operation.max(id.0.saturating_add(1));
    }

    /// A job of whose records nothing is left.
    fn stranger(&self, id: &JobId, remains: &Remains, owner: &str) -> Job {
        let started = remains.attempts.iter().find_map(|attempt| attempt.started.as_ref());
        let at = started.map_or(self.clock, |started| started.at);
        let accepted = self.free_place(remains.accepted.unwrap_or(self.lsn), id);
        let spec = remains.attempts.iter().rev().find_map(|attempt| attempt.spec.as_ref());
        untouched(id.clone(), owner.to_string(), (accepted, at), task_of(spec), Phase::Held)
    }

    /// A place in the order of all jobs that no other job has: the wanted one, or the next before it.
    fn free_place(&self, wanted: Lsn, id: &JobId) -> Lsn {
        let mut place = wanted;
        while place > Lsn::NONE && self.index.order.get(&place).is_some_and(|other| other != id) {
            place = Lsn(place.0 - 1);
        }
        place
    }

    pub(super) fn repair(&self, id: JobId, by: &str) -> Result<Decision, Refusal> {
        let job = self.jobs.get(&id).ok_or_else(|| Refusal::UnknownJob(id.to_string()))?;
        let Some(reason) = self.unavailable(&job_entity(&id)) else {
            let (action, phase) = (Action::Repair, job.phase.name());
            let allowed = self.actions(job).map(Action::name).collect();
            return Err(Refusal::NotAllowed { action, phase, allowed });
        };
        let job = Box::new(repaired(job, self.clock));
        if serde_json::to_vec(&job).map_or(0, |body| body.len()) > limits::REPAIRED_JOB_BYTES_MAX {
            let what = "what is known of this job does not fit into a record";
            return Err(Refusal::LimitReached { what, limit: limits::REPAIRED_JOB_BYTES_MAX });
        }
        let asked = match said(&id, format!("taken up again by {by}")) {
            Event::Decided { job, what, .. } => {
                let rule = "what is known counts, what is lost does not".to_string();
                Event::Decided { job, what, because: reason.to_string(), rule }
            }
            other => other,
        };
        Ok((vec![Event::JobRepaired { job }, asked], Granted::Job(id)))
    }

    pub(super) fn repair_job(
        &mut self,
        lsn: Lsn,
        at: Timestamp,
        repaired: &Job,
        event: &Event,
    ) -> Result<Vec<Effect>, IllegalEvent> {
        let id = &repaired.id;
        if self.removed.contains_key(id) {
            return Err(illegal(event, "to a job that was removed"));
        }
        let before = self.jobs.get(id).cloned();
        let accepted = self.free_place(repaired.accepted, id);
        let job = Job { changed: lsn, accepted, ..Job::clone(repaired) };
        if let Some(before) = before.as_ref().filter(|before| before.accepted != accepted) {
            self.take(before);
        }
        self.count((lsn, at), event, before.as_deref(), Some(&job));
        let work = job.phase.work(id);
        self.put(job);
        Ok(work.map(|work| Effect::Watch { work }).into_iter().collect())
    }

    pub(super) fn repair_repo(
        &self,
        name: RepoName,
        owner: String,
        source: Option<String>,
        branch: Option<String>,
    ) -> Result<Decision, Refusal> {
        let known = self.repos.get(&name);
        let lost = self.unavailable(&repo_entity(&name)).is_some();
        if known.is_none() && !lost {
            return Err(unknown_repo(&name));
        }
        if !lost && self.usable(&name).is_ok() {
            return Ok((vec![], Granted::Repo(name)));
        }
        let owner = known.map_or(owner, |repo| repo.owner.clone());
        let (source, branch) = match (source, known) {
            (Some(source), _) => (source, branch),
            (None, Some(repo)) => (repo.source.clone(), repo.branch.clone()),
            (None, None) => return Err(Refusal::SourceLost(name.to_string())),
        };
        let mut events = vec![Event::RepoRepaired { name: name.clone(), owner, source, branch }];
        if !self.index.clones.contains_key(&name) {
            let kind = OperationKind::Clone { repo: name.clone() };
            // Not as a first try: that would clear away a source copy that is there and whole.
            events.push(Event::OperationPlanned { id: self.free_operation(), kind, tries: 2 });
        }
        Ok((events, Granted::Repo(name)))
    }
}

/// A job as it is taken up: where its agent may be alive evidence decides, and nothing begins by itself.
fn repaired(job: &Job, now: Timestamp) -> Job {
    let mut job = job.clone();
    let open = job.attempts.last().filter(|attempt| attempt.end.is_none()).map(|last| last.n);
    job.phase = match (open, &job.phase) {
        (Some(attempt), Phase::Stopping { work: Work::Attempt { .. }, cause }) => {
            let work = Work::Attempt { job: job.id.clone(), attempt };
            Phase::Stopping { work, cause: *cause }
        }
        (Some(attempt), _) => Phase::Running { attempt },
        (None, known @ (Phase::Ended { .. } | Phase::Unknown { .. })) => known.clone(),
        (None, Phase::Stopping { cause: StopCause::Cancel, .. }) => {
            ended(OutcomeKind::Cancelled, "cancelled; the rest of its records is lost")
        }
        (None, _) if !job.has_task() => {
            ended(OutcomeKind::Interrupted, "what it was asked to do is lost")
        }
        (None, _) => Phase::Held,
    };
    if matches!(job.phase, Phase::Ended { .. }) {
        job.ended_at = job.ended_at.or(Some(now));
    }
    job
}

fn ended(kind: OutcomeKind, reason: &str) -> Phase {
    Phase::Ended { outcome: told(kind, reason) }
}

/// As far as a spec tells of it; what nobody knows is such that nothing follows by itself.
fn task_of(spec: Option<&Spec>) -> Task {
    let timeout = u64::try_from(limits::TIMEOUT_DEFAULT.as_millis()).unwrap_or(u64::MAX);
    Task {
        repos: vec![],
        engine: spec.map_or_else(|| "lost".to_string(), |spec| spec.engine.clone()),
        engine_options: EngineOptions::default(),
        model: None,
        timeout_ms: spec.and_then(|spec| spec.timeout_ms).unwrap_or(timeout),
        priority: limits::PRIORITY_DEFAULT,
        on_interrupt: OnInterrupt::Fail,
        on_unknown: OnUnknown::Hold,
        max_interrupts: 0,
        on_limit: OnLimit::Fail,
        limit_wait_ms: 0,
        limits: spec.map_or_else(TaskLimits::default, |spec| TaskLimits {
            memory_bytes: spec.memory_bytes_max,
            pids: spec.pids_max,
            output_bytes: spec.output_bytes_max,
            idle_output_ms: spec.idle_output_ms,
        }),
        env: BTreeMap::new(),
        title: None,
        group: None,
    }
}

/// An attempt that the directory has and the records that are left do not.
fn add_attempt(job: &mut Job, found: &AttemptRemains, remains: &Remains) {
    let n = found.n.get() as usize;
    let known = job.attempts.len();
    if n != known + 1 || known >= limits::ATTEMPTS_MAX {
        return;
    }
    let before = known.checked_sub(1).and_then(|index| {
        let found = remains.attempts.iter().find(|it| it.n.get() as usize == known);
        let open = job.attempts.get(index)?.end.is_none();
        open.then(|| lost_end(job, found))
    });
    if let (Some(end), Some(last)) = (before, job.attempts.last_mut()) {
        last.end = Some(end);
    }
    let session = found.session().max(job.sessions.len().saturating_sub(1));
    add_sessions(job, session, found, remains);
    let planned_at = found.started.as_ref().map_or(job.created_at, |started| started.at);
    let (turn, resume) = (job.current_turn(), false);
    let session = u32::try_from(session).unwrap_or(u32::MAX);
    let attempt =
        Attempt { n: found.n, turn, session, resume, planned_at, caretakers: 0, end: None };
    job.attempts.push(attempt);
}

fn add_sessions(job: &mut Job, last: usize, found: &AttemptRemains, remains: &Remains) {
    while job.sessions.len() <= last {
        let index = job.sessions.len();
        let id = found.session_id().filter(|_| index == last);
        let id = id.unwrap_or_else(|| SessionId(format!("lost-{}", index + 1)));
        let base = job.sessions.last().map_or([0, 0], |session| session.output_base);
        let ends = job.attempts.iter().rev().find_map(|attempt| attempt.end.as_ref());
        let wrote = ends.map_or([0, 0], |end| end.output_to);
        let output_base = [base[0].saturating_add(wrote[0]), base[1].saturating_add(wrote[1])];
        job.sessions.push(Session { id, workspace: None, output_base, first_attempt: None });
    }
    if let Some(session) = job.sessions.get_mut(last) {
        session.first_attempt.get_or_insert(found.n);
        if session.workspace.is_none() {
            session.workspace = remains.workspaces.get(last).cloned().flatten();
        }
    }
}

/// How an attempt ended that another one followed.
fn lost_end(job: &Job, found: Option<&AttemptRemains>) -> AttemptEnd {
    let started = found.and_then(|found| found.started.as_ref());
    let recorded = found.and_then(|found| found.outcome.as_ref());
    let (ended_by, outcome) = recorded.map_or_else(
        || (EndedBy::Unknown, told(OutcomeKind::Interrupted, "the record of its end is lost")),
        |recorded| concluded(job, recorded, None, false),
    );
    let before = job.attempts.iter().rev().find_map(|attempt| attempt.end.as_ref());
    let output_from = started.map(|started| started.output_from);
    let output_from = output_from.or(before.map(|end| end.output_to)).unwrap_or_default();
    AttemptEnd {
        ended_by,
        started_at: started.map(|started| started.at),
        ended_at: recorded.map(|it| it.at).or(started.map(|it| it.at)).unwrap_or(job.created_at),
        outcome,
        output_from,
        output_to: recorded.map_or(output_from, |recorded| recorded.output_to),
        usage: None,
        cpu_ms: recorded.map_or(0, |recorded| recorded.cpu_ms),
        peak_memory_bytes: recorded.map_or(0, |recorded| recorded.peak_memory_bytes),
        best_effort: false,
        unenforced: vec![],
        session_sign: None,
    }
}
