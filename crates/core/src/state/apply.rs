//! `apply`: the only place where State changes (I3). An event that does not fit is damage or a bug, never a refusal.

use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::transition::next_phase;
use super::{Removal, Removed, RemovedRepo, State, history};
use crate::effect::Effect;
use crate::event::{Accepted, Event, RequeueCause};
use crate::ids::{AttemptNo, JobId, Lsn, RepoName};
use crate::job::{Action, Attempt, EndedBy, Job, Phase, Session, Turn, WaitReason, Work};
use crate::repo::{Operation, Repo, RepoPhase};
use crate::task::Task;
use crate::time::Timestamp;

/// An event that cannot have happened in the state it came to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} cannot happen {place}")]
pub struct IllegalEvent {
    /// The event, in short.
    pub event: alloc::string::String,
    /// The state that does not fit.
    pub place: alloc::string::String,
}

pub(super) fn illegal(event: &Event, place: &str) -> IllegalEvent {
    let mut text = alloc::format!("{event:?}");
    text.truncate(text.char_indices().nth(200).map_or(text.len(), |(at, _)| at));
    IllegalEvent { event: text, place: place.to_string() }
}

impl State {
    /// Changes State by one event of the record `lsn`, and says what the world is to be made to do.
    ///
    /// # Errors
    /// The event does not fit: damage, or a bug. State is unchanged.
    pub fn apply(
        &mut self,
        lsn: Lsn,
        at: Timestamp,
        event: &Event,
    ) -> Result<Vec<Effect>, IllegalEvent> {
        let effects = match event {
            Event::ServerStarted { number, .. } => {
                self.starts = self.starts.max(*number);
                self.server_changed = lsn;
                vec![]
            }
            Event::JobRepaired { job } => self.repair_job(lsn, at, job, event)?,
            Event::OperationForgotten { .. } => vec![],
            Event::RepoAdded { .. }
            | Event::RepoRepaired { .. }
            | Event::RepoReady { .. }
            | Event::RepoFailed { .. }
            | Event::RepoRemoved { .. } => self.apply_repo(lsn, at, event)?,
            Event::OperationPlanned { .. }
            | Event::OperationEnded { .. }
            | Event::Adopted { work: Work::Operation { .. } }
            | Event::CaretakerPlanned { work: Work::Operation { .. }, .. }
            | Event::RelaunchPlanned { work: Work::Operation { .. } } => {
                self.apply_to_operation(lsn, at, event)?
            }
            Event::JobAccepted(accepted) => {
                if self.jobs.contains_key(&accepted.job) {
                    return Err(illegal(event, "to a job that exists"));
                }
                let job = new_job(lsn, at, self.clock.max(at), accepted);
                self.count((lsn, at), event, None, Some(&job));
                self.put(job);
                vec![]
            }
            Event::JobForgotten { job } => self.forget(&Removal::Job(job.clone()), event)?,
            Event::RepoForgotten { name } => self.forget(&Removal::Repo(name.clone()), event)?,
            Event::JobRemoved { job } => self.remove_job(lsn, at, job, event)?,
            _ => self.apply_to_job(lsn, at, event)?,
        };
        if event.begins_again() {
            self.unavailable.remove_mut(&event.entity());
        }
        self.lsn = self.lsn.max(lsn);
        self.clock = self.clock.max(at);
        Ok(effects)
    }

    fn apply_repo(
        &mut self,
        lsn: Lsn,
        at: Timestamp,
        event: &Event,
    ) -> Result<Vec<Effect>, IllegalEvent> {
        if let Event::RepoAdded { name, owner, source, branch }
        | Event::RepoRepaired { name, owner, source, branch } = event
        {
            let before = self.repos.get(name);
            if before.is_some() && matches!(event, Event::RepoAdded { .. }) {
                return Err(illegal(event, "to a repo that exists"));
            }
            let created_at = before.map_or(at, |repo| repo.created_at);
            self.forget_repo(name);
            self.repos.insert_mut(
                name.clone(),
                Arc::new(Repo {
                    name: name.clone(),
                    owner: owner.clone(),
                    source: source.clone(),
                    branch: branch.clone(),
                    created_at,
                    changed: lsn,
                    phase: RepoPhase::Cloning,
                }),
            );
            return Ok(vec![]);
        }
        let (name, phase) = match event {
            Event::RepoReady { name } => (name, RepoPhase::Ready),
            Event::RepoFailed { name, reason } => {
                (name, RepoPhase::Unavailable { reason: reason.clone() })
            }
            Event::RepoRemoved { name } => return self.remove_repo(lsn, at, name, event),
            _ => return Err(illegal(event, "to a repo")),
        };
        let cloning = |repo: &&Arc<Repo>| repo.phase == RepoPhase::Cloning;
        let Some(repo) = self.repos.get(name).filter(cloning) else {
            return Err(illegal(event, "to a repo that is not being cloned"));
        };
        let changed = Repo { phase, changed: lsn, ..Repo::clone(repo) };
        self.repos.insert_mut(name.clone(), Arc::new(changed));
        Ok(vec![])
    }

    fn remove_repo(
        &mut self,
        lsn: Lsn,
        at: Timestamp,
        name: &RepoName,
        event: &Event,
    ) -> Result<Vec<Effect>, IllegalEvent> {
        // As with a job: where records before this one are lost, it says more than they could.
        let lost = self.unavailable.remove_mut(&event.entity());
        if !self.repos.remove_mut(name) && !lost {
            return Err(illegal(event, "to a repo that is not there"));
        }
        self.put_removed_repo(name.clone(), RemovedRepo { changed: lsn, at });
        Ok(vec![Effect::TrashRepo { name: name.clone() }])
    }

    fn apply_to_operation(
        &mut self,
        lsn: Lsn,
        at: Timestamp,
        event: &Event,
    ) -> Result<Vec<Effect>, IllegalEvent> {
        if let Event::OperationPlanned { id, kind, tries } = event {
            if self.operations.contains_key(id) {
                return Err(illegal(event, "to an operation that exists"));
            }
            let (id, tries, kind) = (*id, *tries, kind.clone());
            let planned_at = at;
            let operation = Operation { id, kind, tries, changed: lsn, planned_at, caretakers: 0 };
            self.put_operation(operation);
            return Ok(vec![Effect::Launch { work: Work::Operation { id } }]);
        }
        let id = match event {
            Event::OperationEnded { id }
            | Event::Adopted { work: Work::Operation { id } }
            | Event::CaretakerPlanned { work: Work::Operation { id }, .. }
            | Event::RelaunchPlanned { work: Work::Operation { id } } => *id,
            _ => return Err(illegal(event, "to an operation")),
        };
        let Some(found) = self.operations.get(&id) else {
            return Err(illegal(event, "to an operation that is not there"));
        };
        let mut operation = Operation { changed: lsn, ..Operation::clone(found) };
        let work = Work::Operation { id };
        let effects = match event {
            Event::OperationEnded { .. } => {
                self.take_operation(id);
                return Ok(vec![Effect::Release { work }, Effect::TrashOperation { id }]);
            }
            Event::CaretakerPlanned { empty_tree, .. } => {
                operation.caretakers += 1;
                vec![Effect::Caretake { work, empty_tree: *empty_tree }]
            }
            Event::RelaunchPlanned { .. } => vec![Effect::Launch { work }],
            _ => vec![Effect::Watch { work }],
        };
        self.put_operation(operation);
        Ok(effects)
    }

    fn apply_to_job(
        &mut self,
        lsn: Lsn,
        at: Timestamp,
        event: &Event,
    ) -> Result<Vec<Effect>, IllegalEvent> {
        let entity = event.entity();
        let found = JobId::parse(&entity.name).ok().and_then(|id| self.jobs.get(&id).cloned());
        let Some(found) = found else {
            return Err(illegal(event, "to a job that is not there"));
        };
        let mut job = Job::clone(&found);
        job.changed = lsn;
        job.phase = next_phase(&job, event)?;
        let effects = change_job(&mut job, &found, at, event)?;
        if becomes_ready(event) {
            job.ready_at = self.clock.max(at);
        }
        history::note(&mut job, &found, (lsn, at, self.starts), event);
        self.count((lsn, at), event, Some(&found), Some(&job));
        self.put(job);
        Ok(effects)
    }

    fn forget(&mut self, removal: &Removal, event: &Event) -> Result<Vec<Effect>, IllegalEvent> {
        let known = match removal {
            Removal::Job(id) => self.forget_job(id),
            Removal::Repo(name) => self.forget_repo(name),
        };
        if known { Ok(vec![]) } else { Err(illegal(event, "to a removal that is not known")) }
    }

    fn remove_job(
        &mut self,
        lsn: Lsn,
        at: Timestamp,
        id: &JobId,
        event: &Event,
    ) -> Result<Vec<Effect>, IllegalEvent> {
        // Where records before this one are lost, it says more than they could.
        let lost = self.unavailable.remove_mut(&event.entity());
        let job = self.jobs.get(id).cloned();
        let (owner, idempotency) = match &job {
            Some(job) if !lost && !job.phase.allows(Action::Remove) => {
                return Err(illegal(event, job.phase.name()));
            }
            Some(job) => {
                self.count((lsn, at), event, Some(job), None);
                self.take(job);
                (job.owner.clone(), job.idempotency.clone())
            }
            None if lost => Default::default(),
            None => return Err(illegal(event, "to a job that is not there")),
        };
        self.put_removed(id.clone(), Removed { changed: lsn, owner, idempotency, at });
        Ok(vec![Effect::TrashJob { job: id.clone() }])
    }
}

fn new_job(lsn: Lsn, at: Timestamp, ready_at: Timestamp, accepted: &Accepted) -> Job {
    let phase = match (accepted.held, accepted.start_after) {
        (true, _) => Phase::Held,
        (false, Some(until)) => {
            Phase::Waiting { reason: WaitReason::StartTime, until: Some(until) }
        }
        (false, None) => Phase::Queued,
    };
    let (id, owner, task) = (accepted.job.clone(), accepted.owner.clone(), accepted.task.clone());
    Job {
        ready_at,
        turns: vec![Turn { prompt: accepted.prompt.clone(), at }],
        sessions: vec![Session {
            id: accepted.session.clone(),
            workspace: None,
            output_base: [0, 0],
            first_attempt: None,
        }],
        idempotency: accepted.idempotency.clone(),
        ..untouched(id, owner, (lsn, at), task, phase)
    }
}

/// A job to which nothing has happened yet, accepted then.
pub(super) fn untouched(
    id: JobId,
    owner: String,
    (lsn, at): (Lsn, Timestamp),
    task: Task,
    phase: Phase,
) -> Job {
    Job {
        id,
        owner,
        accepted: lsn,
        changed: lsn,
        created_at: at,
        ready_at: at,
        slot_at: None,
        ended_at: None,
        task,
        phase,
        turns: vec![],
        turns_done: 0,
        sessions: vec![],
        attempts: vec![],
        interrupts: 0,
        limits_met: 0,
        limit_waited_ms: 0,
        decisions: vec![],
        decisions_dropped: 0,
        idempotency: None,
    }
}

/// Whether a job gets a new place in the queue, now or after its pause.
fn becomes_ready(event: &Event) -> bool {
    matches!(event, Event::JobReleased { .. } | Event::TurnDone { .. } | Event::JobRequeued { .. })
}

/// Everything but the phase and the history. `before` is the job as the event found it.
fn change_job(
    job: &mut Job,
    before: &Job,
    at: Timestamp,
    event: &Event,
) -> Result<Vec<Effect>, IllegalEvent> {
    if before.phase == Phase::Queued
        && matches!(event, Event::CopyPlanned { .. } | Event::LaunchPlanned { .. })
    {
        job.slot_at = Some(at);
    }
    match event {
        Event::JobReleased { .. } => release(job, before, at),
        Event::JobEdited { task, prompt, .. } => {
            job.task = crate::task::Task::clone(task);
            if let (Some(prompt), Some(turn)) = (prompt, job.turns.last_mut()) {
                turn.prompt.clone_from(prompt);
            }
        }
        Event::WorkspaceReady { workspace, .. } => {
            if let Some(session) = job.sessions.last_mut() {
                session.workspace = Some(workspace.clone());
            }
        }
        Event::LaunchPlanned { attempt, turn, resume, job: id } => {
            plan_launch(job, at, event, (*attempt, *turn, *resume))?;
            let work = Work::Attempt { job: id.clone(), attempt: *attempt };
            return Ok(vec![Effect::Launch { work }]);
        }
        Event::Adopted { work } => return Ok(vec![Effect::Watch { work: work.clone() }]),
        Event::RelaunchPlanned { work } => return Ok(vec![Effect::Launch { work: work.clone() }]),
        Event::CaretakerPlanned { work: work @ Work::Attempt { attempt, .. }, empty_tree } => {
            attempt_mut(job, *attempt, event)?.caretakers += 1;
            return Ok(vec![Effect::Caretake { work: work.clone(), empty_tree: *empty_tree }]);
        }
        Event::StopRequested { work, cause, .. } => {
            return Ok(vec![Effect::Stop { work: work.clone(), cause: *cause }]);
        }
        Event::AttemptEnded { attempt, end, .. } => {
            attempt_mut(job, *attempt, event)?.end = Some(crate::job::AttemptEnd::clone(end));
            if !matches!(end.ended_by, EndedBy::UsageLimit | EndedBy::Overload) {
                job.limits_met = 0;
            }
            let work = Work::Attempt { job: job.id.clone(), attempt: *attempt };
            return Ok(vec![Effect::Release { work }]);
        }
        Event::TurnDone { .. } => {
            job.turns_done += 1;
        }
        Event::JobRequeued { cause, until, afresh, .. } => {
            requeue(job, *cause, *until, at);
            if let Some(session) = afresh {
                begin_afresh(job, session.clone());
            }
        }
        Event::JobEnded { .. } => {
            job.turns_done = turn_count(job);
            job.ended_at = Some(ended_at(before).unwrap_or(at));
        }
        Event::TurnAdded { prompt, .. } => {
            if matches!(job.phase, Phase::Ended { .. } | Phase::Unknown { .. }) {
                job.turns_done = turn_count(job);
            }
            job.turns.push(Turn { prompt: prompt.clone(), at });
        }
        _ => {}
    }
    Ok(vec![])
}

fn attempt_mut<'a>(
    job: &'a mut Job,
    n: AttemptNo,
    event: &Event,
) -> Result<&'a mut Attempt, IllegalEvent> {
    let found = job.attempts.get_mut(n.get() as usize - 1);
    found.ok_or_else(|| illegal(event, "to an attempt that is not there"))
}

fn turn_count(job: &Job) -> u32 {
    u32::try_from(job.turns.len()).unwrap_or(u32::MAX)
}

fn plan_launch(
    job: &mut Job,
    at: Timestamp,
    event: &Event,
    (n, turn, resume): (AttemptNo, u32, bool),
) -> Result<(), IllegalEvent> {
    if n.get() as usize != job.attempts.len() + 1 {
        return Err(illegal(event, "out of its order"));
    }
    let session = u32::try_from(job.sessions.len().saturating_sub(1)).unwrap_or(u32::MAX);
    if let Some(current) = job.sessions.last_mut() {
        current.first_attempt.get_or_insert(n);
    }
    let planned_at = at;
    job.attempts.push(Attempt { n, turn, session, resume, planned_at, caretakers: 0, end: None });
    Ok(())
}

/// A new conversation: its output follows that of the earlier ones, and all turns are to be done again.
fn begin_afresh(job: &mut Job, id: crate::ids::SessionId) {
    job.turns_done = 0;
    let last = job.attempts.iter().rev().find_map(|attempt| attempt.end.as_ref());
    let wrote = last.map_or([0, 0], |end| end.output_to);
    match job.sessions.last_mut() {
        // Nothing ran in it: the new one takes its place, or asking again and again would make the job grow.
        Some(session) if session.first_attempt.is_none() => session.id = id,
        last => {
            let base = last.map_or([0, 0], |session| session.output_base);
            let output_base = [base[0].saturating_add(wrote[0]), base[1].saturating_add(wrote[1])];
            job.sessions.push(Session { id, workspace: None, output_base, first_attempt: None });
        }
    }
}

/// Out of waiting; who is let go early has waited less than was planned.
fn release(job: &mut Job, before: &Job, at: Timestamp) {
    if let Phase::Waiting { reason: WaitReason::UsageLimit | WaitReason::Overload, until } =
        &before.phase
    {
        let left = until.map_or(0, |until| millis_between(at, until));
        job.limit_waited_ms = job.limit_waited_ms.saturating_sub(left);
    }
}

fn requeue(job: &mut Job, cause: RequeueCause, until: Option<Timestamp>, at: Timestamp) {
    job.ended_at = None;
    match cause {
        RequeueCause::Asked => {
            job.interrupts = 0;
            job.limits_met = 0;
            job.limit_waited_ms = 0;
        }
        RequeueCause::Interruption => job.interrupts += 1,
        RequeueCause::UsageLimit | RequeueCause::Overload => {
            job.limits_met = job.limits_met.saturating_add(1);
            let wait = until.map_or(0, |until| millis_between(at, until));
            job.limit_waited_ms = job.limit_waited_ms.saturating_add(wait);
        }
        RequeueCause::Reopened => {}
    }
}

fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX)
}

/// When the agent ended whose end ended the job, if that is how it ended.
fn ended_at(before: &Job) -> Option<Timestamp> {
    let Some(Work::Attempt { attempt, .. }) = before.phase.work(&before.id) else { return None };
    before.attempt(attempt)?.end.as_ref().map(|end| end.ended_at)
}
