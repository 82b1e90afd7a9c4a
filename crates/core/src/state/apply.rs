//! `apply`: the only place where State changes (I3). An event that does not fit is damage or a bug, never a refusal.

use alloc::string::ToString as _;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::{Removed, State};
use crate::effect::Effect;
use crate::event::{Accepted, Event};
use crate::ids::{AttemptNo, JobId, Lsn, RepoName};
use crate::job::{Action, Attempt, Decision, Job, Outcome, Phase, Session, Turn, WaitReason, Work};
use crate::limits;
use crate::repo::{Operation, Repo, RepoPhase};
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

fn illegal(event: &Event, place: &str) -> IllegalEvent {
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
            Event::RepoAdded { .. }
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
                self.put(new_job(lsn, at, accepted));
                vec![]
            }
            Event::KeyForgotten { job } => {
                if !self.forget_key(job) {
                    return Err(illegal(event, "to a key that is not kept"));
                }
                vec![]
            }
            Event::JobRemoved { job } => self.remove_job(lsn, at, job, event)?,
            _ => self.apply_to_job(lsn, at, event)?,
        };
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
        if let Event::RepoAdded { name, owner, source, branch } = event {
            if self.repos.contains_key(name) {
                return Err(illegal(event, "to a repo that exists"));
            }
            self.repos.insert_mut(
                name.clone(),
                Arc::new(Repo {
                    name: name.clone(),
                    owner: owner.clone(),
                    source: source.clone(),
                    branch: branch.clone(),
                    created_at: at,
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
            Event::RepoRemoved { name } => return self.remove_repo(name, event),
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

    fn remove_repo(&mut self, name: &RepoName, event: &Event) -> Result<Vec<Effect>, IllegalEvent> {
        if !self.repos.remove_mut(name) {
            return Err(illegal(event, "to a repo that is not there"));
        }
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
        let effects = change_job(&mut job, lsn, at, event)?;
        self.put(job);
        Ok(effects)
    }

    fn remove_job(
        &mut self,
        lsn: Lsn,
        at: Timestamp,
        id: &JobId,
        event: &Event,
    ) -> Result<Vec<Effect>, IllegalEvent> {
        let Some(job) = self.jobs.get(id).cloned() else {
            return Err(illegal(event, "to a job that is not there"));
        };
        if !job.phase.allows(Action::Remove) {
            return Err(illegal(event, job.phase.name()));
        }
        self.take(&job);
        if let Some(idempotency) = job.idempotency.clone() {
            let owner = job.owner.clone();
            self.put_removed(id.clone(), Removed { changed: lsn, owner, idempotency, at });
        }
        Ok(vec![Effect::TrashJob { job: id.clone() }])
    }
}

fn new_job(lsn: Lsn, at: Timestamp, accepted: &Accepted) -> Job {
    let phase = match (accepted.held, accepted.start_after) {
        (true, _) => Phase::Held,
        (false, Some(until)) => {
            Phase::Waiting { reason: WaitReason::StartTime, until: Some(until) }
        }
        (false, None) => Phase::Queued,
    };
    Job {
        id: accepted.job.clone(),
        owner: accepted.owner.clone(),
        accepted: lsn,
        changed: lsn,
        created_at: at,
        ready_at: at,
        task: accepted.task.clone(),
        phase,
        turns: vec![Turn { prompt: accepted.prompt.clone(), at }],
        turns_done: 0,
        sessions: vec![Session {
            id: accepted.session.clone(),
            workspace: None,
            output_base: [0, 0],
            first_attempt: None,
        }],
        attempts: vec![],
        interrupts: 0,
        decisions: vec![],
        idempotency: accepted.idempotency.clone(),
    }
}

/// Which phase follows: the one table of transitions. Whatever is not in it did not happen.
fn next_phase(job: &Job, event: &Event) -> Result<Phase, IllegalEvent> {
    use Phase::{Ended, Held, Preparing, Queued, Running, Stopping, Unknown, Waiting};
    let phase = &job.phase;
    if work_of(event).is_some_and(|work| work_in_question(job) != Some(work)) {
        return Err(illegal(event, "to work that is not under way"));
    }
    if leaves_its_attempt(event) && !attempt_is_over(job) {
        return Err(illegal(event, "before the attempt is over"));
    }
    Ok(match (phase, event) {
        (Held | Waiting { .. }, Event::JobReleased { .. })
        | (Running { .. }, Event::TurnDone { .. }) => Queued,
        (Queued | Waiting { .. }, Event::JobHeld { .. }) => Held,
        (Queued, Event::JobWaits { reason, until, .. }) => {
            Waiting { reason: reason.clone(), until: *until }
        }
        (Queued | Preparing { .. }, Event::CopyPlanned { operation, .. }) => {
            Preparing { operation: *operation }
        }
        (Queued | Preparing { .. }, Event::LaunchPlanned { attempt, .. }) => {
            Running { attempt: *attempt }
        }
        (
            Preparing { .. } | Running { .. } | Stopping { .. } | Unknown { .. },
            Event::StopRequested { work, cause, .. },
        ) => Stopping { work: work.clone(), cause: *cause },
        (Running { .. } | Stopping { .. }, Event::AttemptUnknown { attempt, .. }) => {
            Unknown { attempt: *attempt }
        }
        (
            Running { .. }
            | Stopping { work: Work::Attempt { .. }, .. }
            | Unknown { .. }
            | Ended { .. },
            Event::JobRequeued { not_before, .. },
        ) => match not_before {
            Some(until) => Waiting { reason: WaitReason::BackOff, until: Some(*until) },
            None => Queued,
        },
        (Ended { .. }, Event::JobEnded { .. }) => return Err(illegal(event, phase.name())),
        (_, Event::JobEnded { outcome, .. }) => Ended { outcome: Outcome::clone(outcome) },
        (Held | Queued | Waiting { .. }, Event::JobEdited { .. })
        | (Preparing { .. }, Event::WorkspaceReady { .. })
        | (Running { .. }, Event::RelaunchPlanned { .. })
        | (Running { .. } | Stopping { .. }, Event::AttemptEnded { .. } | Event::Adopted { .. })
        | (Running { .. } | Stopping { .. } | Unknown { .. }, Event::CaretakerPlanned { .. })
        | (
            Preparing { .. } | Running { .. } | Unknown { .. } | Ended { .. },
            Event::TurnAdded { .. },
        )
        | (_, Event::Decided { .. }) => phase.clone(),
        _ => return Err(illegal(event, phase.name())),
    })
}

/// The work that an event is about, where it speaks of work that is there.
fn work_of(event: &Event) -> Option<Work> {
    match event {
        Event::AttemptEnded { job, attempt, .. } | Event::AttemptUnknown { job, attempt } => {
            Some(Work::Attempt { job: job.clone(), attempt: *attempt })
        }
        Event::StopRequested { work, .. }
        | Event::Adopted { work }
        | Event::CaretakerPlanned { work, .. }
        | Event::RelaunchPlanned { work } => Some(work.clone()),
        _ => None,
    }
}

/// The work that a job is about now, be it that nobody knows whether it still is under way.
fn work_in_question(job: &Job) -> Option<Work> {
    match &job.phase {
        Phase::Unknown { attempt } => {
            Some(Work::Attempt { job: job.id.clone(), attempt: *attempt })
        }
        phase => phase.work(&job.id),
    }
}

fn leaves_its_attempt(event: &Event) -> bool {
    matches!(
        event,
        Event::AttemptUnknown { .. }
            | Event::TurnDone { .. }
            | Event::JobRequeued { .. }
            | Event::JobEnded { .. }
    )
}

/// The attempt that the job is about, if it is about one, is accounted for.
fn attempt_is_over(job: &Job) -> bool {
    let Some(Work::Attempt { attempt, .. }) = job.phase.work(&job.id) else { return true };
    job.attempt(attempt).is_some_and(|attempt| attempt.end.is_some())
}

/// Everything but the phase.
fn change_job(
    job: &mut Job,
    lsn: Lsn,
    at: Timestamp,
    event: &Event,
) -> Result<Vec<Effect>, IllegalEvent> {
    match event {
        Event::JobReleased { .. } => job.ready_at = at,
        Event::JobEdited { task, prompt, .. } => {
            job.task = crate::job::Task::clone(task);
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
            let work = Work::Attempt { job: job.id.clone(), attempt: *attempt };
            return Ok(vec![Effect::Release { work }]);
        }
        Event::TurnDone { .. } => {
            job.turns_done += 1;
            job.ready_at = at;
        }
        Event::JobRequeued { afresh, interrupted, .. } => {
            job.interrupts += u32::from(*interrupted);
            job.ready_at = at;
            if let Some(session) = afresh {
                begin_afresh(job, session.clone());
            }
        }
        Event::JobEnded { .. } => job.turns_done = turn_count(job),
        Event::TurnAdded { prompt, .. } => {
            if matches!(job.phase, Phase::Ended { .. } | Phase::Unknown { .. }) {
                job.turns_done = turn_count(job);
            }
            job.turns.push(Turn { prompt: prompt.clone(), at });
        }
        Event::Decided { text, .. } => decide_noted(job, lsn, at, text),
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

fn decide_noted(job: &mut Job, lsn: Lsn, at: Timestamp, text: &str) {
    if job.decisions.len() >= limits::DECISIONS_MAX {
        // The beginning of the story stays; the middle goes.
        job.decisions.remove(limits::DECISIONS_MAX / 4);
    }
    job.decisions.push(Decision { lsn, at, text: text.to_string() });
}
