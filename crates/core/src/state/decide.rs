//! `decide`: what follows from a request, or why not. Where a job is refused.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString as _;
use alloc::vec;
use alloc::vec::Vec;

use super::due::Standing;
use super::{State, key_of};
use crate::event::{Accepted, Event, RequeueCause, job_entity, repo_entity};
use crate::ids::{JobId, Lsn, OperationId, RepoName, SessionId};
use crate::job::{Action, ExitStatus, Job, Outcome, OutcomeKind, Phase, WaitReason, Work};
use crate::limits;
use crate::planted::planted;
use crate::repo::OperationKind;
use crate::request::{Edit, Granted, Refusal, Request, Submission};
use crate::spec::StopCause;

/// Events, and what the caller is told once they are durable.
pub(super) type Decision = (Vec<Event>, Granted);

impl State {
    /// Answers a request of somebody. Changes nothing: the events do, by [`State::apply`].
    ///
    /// # Errors
    /// A refusal, with everything a caller needs to ask better.
    pub fn decide(&self, request: Request, by: &str) -> Result<Decision, Refusal> {
        match request {
            Request::Submit(submission) => self.submit(*submission),
            Request::AddRepo { name, owner, source, branch } => {
                self.add_repo(name, owner, source, branch)
            }
            Request::RepairRepo { name, owner, source, branch } => {
                self.repair_repo(name, owner, source, branch)
            }
            Request::RemoveRepo(name) => self.remove_repo_request(name),
            Request::Repair { job } => self.repair(job, by),
            Request::Start(id) => {
                let job = self.asked(&id, Action::Start)?;
                task_of(job)?;
                if job.session().is_none_or(|session| session.workspace.is_none()) {
                    self.repos_of(job)?;
                }
                let events = vec![
                    said(&id, format!("start asked for by {by}")),
                    Event::JobReleased { job: id.clone() },
                ];
                Ok((events, Granted::Job(id)))
            }
            Request::Hold(id) => {
                self.asked(&id, Action::Hold)?;
                let events =
                    vec![said(&id, format!("held by {by}")), Event::JobHeld { job: id.clone() }];
                Ok((events, Granted::Job(id)))
            }
            Request::Cancel(id) => self.cancel(id, by),
            Request::Resume { job, prompt } => self.resume(job, prompt, by),
            Request::Retry { job, session } => self.retry(job, session, by),
            Request::Edit { job, edit } => self.edit(job, edit, by),
            Request::Settle { job, kind } => self.settle(job, kind, by),
            Request::Remove { job } => {
                self.asked(&job, Action::Remove)?;
                Ok((vec![Event::JobRemoved { job: job.clone() }], Granted::Job(job)))
            }
        }
    }

    /// Whether a request only changes the record of a job that has not begun: that may be asked of a copied data directory too, so
    /// that what the original has done meanwhile can be taken out of the queue before the copy is let go.
    pub fn is_about_what_has_not_begun(&self, request: &Request) -> bool {
        let (Request::Hold(id) | Request::Cancel(id) | Request::Edit { job: id, .. }) = request
        else {
            return false;
        };
        let works = |job: &Job| job.phase.work(id).is_some();
        !self.jobs.get(id).is_some_and(|job| works(job))
    }

    /// The job, if it is there, whole, and in a phase that allows the action.
    fn asked(&self, id: &JobId, action: Action) -> Result<&Job, Refusal> {
        let entity = job_entity(id);
        if let Some(reason) = self.unavailable(&entity) {
            let reason = reason.to_string();
            return Err(Refusal::Unavailable { entity: format!("job {id}"), reason });
        }
        let job = self.jobs.get(id).ok_or_else(|| Refusal::UnknownJob(id.to_string()))?;
        if job.phase.allows(action) {
            return Ok(job);
        }
        let allowed = self.actions(job).map(Action::name).collect();
        Err(Refusal::NotAllowed { action, phase: job.phase.name(), allowed })
    }

    /// What may be asked of a job now: what its phase allows, as far as its engine, its workspace and its records allow it too.
    pub fn actions<'a>(&self, job: &'a Job) -> impl Iterator<Item = Action> + use<'a> {
        let whole = self.is_whole(&job.id);
        let ended = matches!(job.phase, Phase::Ended { .. });
        let workspace = job.session().is_some_and(|session| session.workspace.is_some());
        let engine = crate::engine::find(&job.task.engine);
        let can_resume = engine.is_some_and(|engine| engine.can_resume) && (workspace || !ended);
        let allowed = move |action: &Action| match action {
            Action::Repair => !whole,
            // Its phases are known, but there is no request yet that brings files.
            Action::Upload => false,
            Action::Resume => whole && job.phase.allows(*action) && can_resume,
            Action::Start | Action::Retry => whole && job.phase.allows(*action) && job.has_task(),
            _ => whole && job.phase.allows(*action),
        };
        Action::ALL.into_iter().filter(allowed)
    }

    fn submit(&self, submission: Submission) -> Result<Decision, Refusal> {
        if let Some(idempotency) = &submission.idempotency
            && let Some(used) = self.index.keys.get(&key_of(&submission.owner, &idempotency.key))
        {
            return if used.body_hash == idempotency.body_hash {
                Ok((vec![], Granted::SameJob(used.job.clone())))
            } else {
                Err(Refusal::KeyReused(used.job.to_string()))
            };
        }
        self.room_for_prompt(submission.prompt.len())?;
        // The keys of removed jobs are kept for a while: they count too.
        if self.jobs.size() + self.removed.size() >= limits::JOBS_MAX {
            let what = "the number of jobs kept has reached its limit: remove old jobs";
            return Err(Refusal::LimitReached { what, limit: limits::JOBS_MAX });
        }
        let mut waits_for = None;
        for name in &submission.task.repos {
            if self.usable_repo(name)? == Standing::Cloning {
                waits_for = Some(name.clone());
            }
        }
        let job = submission.job.clone();
        let goes_on = !submission.held && submission.start_after.is_none();
        let mut events = vec![Event::JobAccepted(Box::new(Accepted {
            job: submission.job,
            owner: submission.owner,
            task: submission.task,
            prompt: submission.prompt,
            session: submission.session,
            held: submission.held,
            start_after: submission.start_after,
            idempotency: submission.idempotency,
        }))];
        if let (Some(name), true) = (waits_for, goes_on) {
            let reason = WaitReason::Repo { name };
            events.push(Event::JobWaits { job: job.clone(), reason, until: None });
        }
        Ok((events, Granted::Job(job)))
    }

    fn room_for_prompt(&self, bytes: usize) -> Result<(), Refusal> {
        if self.index.prompt_bytes + bytes <= limits::PROMPTS_BYTES_MAX {
            return Ok(());
        }
        let what = "the prompts kept have reached their limit in bytes: remove old jobs";
        Err(Refusal::LimitReached { what, limit: limits::PROMPTS_BYTES_MAX })
    }

    /// Refuses if one of a job's repos cannot be used.
    fn repos_of(&self, job: &Job) -> Result<(), Refusal> {
        job.task.repos.iter().try_for_each(|name| self.usable_repo(name).map(drop))
    }

    fn usable_repo(&self, name: &RepoName) -> Result<Standing, Refusal> {
        self.whole_repo(name)?;
        if !self.repos.contains_key(name) {
            return Err(unknown_repo(name));
        }
        self.standing(name)
            .map_err(|reason| Refusal::RepoUnavailable { name: name.to_string(), reason })
    }

    /// Refuses if a repo's records cannot be read.
    fn whole_repo(&self, name: &RepoName) -> Result<(), Refusal> {
        let Some(reason) = self.unavailable(&repo_entity(name)) else { return Ok(()) };
        let reason = reason.to_string();
        Err(Refusal::RepoUnavailable { name: name.to_string(), reason })
    }

    fn add_repo(
        &self,
        name: RepoName,
        owner: alloc::string::String,
        source: alloc::string::String,
        branch: Option<alloc::string::String>,
    ) -> Result<Decision, Refusal> {
        self.whole_repo(&name)?;
        if self.repos.contains_key(&name) {
            return Err(Refusal::RepoExists(name.to_string()));
        }
        if self.repos.size() >= limits::REPOS_MAX {
            let what = "the number of repos has reached its limit";
            return Err(Refusal::LimitReached { what, limit: limits::REPOS_MAX });
        }
        let operation = self.free_operation();
        let kind = OperationKind::Clone { repo: name.clone() };
        let events = vec![
            Event::RepoAdded { name: name.clone(), owner, source, branch },
            Event::OperationPlanned { id: operation, kind, tries: 1 },
        ];
        Ok((events, Granted::Repo(name)))
    }

    /// An operation id that nobody has.
    pub(super) fn free_operation(&self) -> OperationId {
        OperationId(self.next_operation.max(1))
    }

    fn remove_repo_request(&self, name: RepoName) -> Result<Decision, Refusal> {
        self.whole_repo(&name)?;
        if !self.repos.contains_key(&name) {
            return Err(unknown_repo(&name));
        }
        let users = self.index.repo_users.range((name.clone(), Lsn::NONE)..);
        let jobs = users.take_while(|((user, _), ())| *user == name).count();
        let cloning = self.standing(&name) == Ok(Standing::Cloning);
        if jobs > 0 || cloning {
            return Err(Refusal::RepoInUse { name: name.to_string(), jobs });
        }
        Ok((vec![Event::RepoRemoved { name: name.clone() }], Granted::Repo(name)))
    }

    fn cancel(&self, id: JobId, by: &str) -> Result<Decision, Refusal> {
        let job = self.asked(&id, Action::Cancel)?;
        let events = match (&job.phase, job.phase.work(&id)) {
            (Phase::Stopping { cause: StopCause::Cancel, .. }, _) => vec![],
            (_, Some(_)) if planted("state.lost_cancel") => vec![],
            (_, Some(work)) => vec![
                said(&id, format!("cancel asked for by {by}")),
                Event::StopRequested { job: id.clone(), work, cause: StopCause::Cancel },
            ],
            (_, None) => {
                let outcome = told(OutcomeKind::Cancelled, "cancelled before it began");
                vec![
                    said(&id, format!("cancel asked for by {by}")),
                    Event::JobEnded { job: id.clone(), outcome: Box::new(outcome) },
                ]
            }
        };
        Ok((events, Granted::Job(id)))
    }

    fn resume(
        &self,
        id: JobId,
        prompt: alloc::string::String,
        by: &str,
    ) -> Result<Decision, Refusal> {
        let job = self.asked(&id, Action::Resume)?;
        if !crate::engine::find(&job.task.engine).is_some_and(|engine| engine.can_resume) {
            return Err(Refusal::CannotResume(job.task.engine.clone()));
        }
        if job.turns.len() >= limits::TURNS_MAX {
            let what = "this job has as many turns as a job may have";
            return Err(Refusal::LimitReached { what, limit: limits::TURNS_MAX });
        }
        self.room_for_prompt(prompt.len())?;
        let turn = job.turns.len() + 1;
        let mut events = vec![
            said(&id, format!("turn {turn} asked for by {by}")),
            Event::TurnAdded { job: id.clone(), prompt },
        ];
        match &job.phase {
            Phase::Ended { .. } => {
                if job.session().is_none_or(|session| session.workspace.is_none()) {
                    return Err(Refusal::WorkspaceGone);
                }
                events.push(requeue(&id, None));
            }
            Phase::Unknown { attempt } => {
                // Never over survivors of the old tree: they are ended first, then the job is queued.
                let work = Work::Attempt { job: id.clone(), attempt: *attempt };
                let cause = StopCause::Survivors;
                events.push(Event::StopRequested { job: id.clone(), work, cause });
            }
            _ => {}
        }
        Ok((events, Granted::Job(id)))
    }

    fn retry(&self, id: JobId, session: SessionId, by: &str) -> Result<Decision, Refusal> {
        let job = self.asked(&id, Action::Retry)?;
        task_of(job)?;
        self.repos_of(job)?;
        let mut events = vec![said(&id, format!("retry asked for by {by}"))];
        if let Phase::Unknown { attempt } = &job.phase {
            // The new attempt has a workspace of its own, so it need not wait for the end of the old tree.
            let work = Work::Attempt { job: id.clone(), attempt: *attempt };
            events.push(Event::CaretakerPlanned { work, empty_tree: true });
        }
        events.push(requeue(&id, Some(session)));
        Ok((events, Granted::Job(id)))
    }

    fn edit(&self, id: JobId, edit: Edit, by: &str) -> Result<Decision, Refusal> {
        let job = self.asked(&id, Action::Edit)?;
        if edit.prompt.is_some() && job.phase != Phase::Held {
            let (action, phase) = (Action::Edit, job.phase.name());
            return Err(Refusal::NotAllowed { action, phase, allowed: vec!["hold"] });
        }
        if let Some(prompt) = &edit.prompt {
            let before = job.turns.last().map_or(0, |turn| turn.prompt.len());
            self.room_for_prompt(prompt.len().saturating_sub(before))?;
        }
        let mut task = job.task.clone();
        task.priority = edit.priority.unwrap_or(task.priority);
        task.timeout_ms = edit.timeout_ms.unwrap_or(task.timeout_ms);
        task.title = edit.title.or(task.title);
        let task = Box::new(task);
        let event = Event::JobEdited { job: id.clone(), task, prompt: edit.prompt };
        Ok((vec![said(&id, format!("edited by {by}")), event], Granted::Job(id)))
    }

    fn settle(&self, id: JobId, kind: OutcomeKind, by: &str) -> Result<Decision, Refusal> {
        let job = self.asked(&id, Action::Settle)?;
        let mut events = vec![said(&id, format!("settled by {by}"))];
        if let Phase::Unknown { attempt } = &job.phase {
            // What is left of the tree has been shown to a person, and the person has spoken.
            let work = Work::Attempt { job: id.clone(), attempt: *attempt };
            events.push(Event::CaretakerPlanned { work, empty_tree: true });
        }
        let outcome = told(kind, "settled by a person");
        events.push(Event::JobEnded { job: id.clone(), outcome: Box::new(outcome) });
        Ok((events, Granted::Job(id)))
    }
}

/// Refuses if nobody knows any more what a job was asked to do.
fn task_of(job: &Job) -> Result<(), Refusal> {
    if job.has_task() { Ok(()) } else { Err(Refusal::TaskLost(job.id.to_string())) }
}

pub(super) fn unknown_repo(name: &RepoName) -> Refusal {
    // Whoever is nearer to people (spelling distance) fills the nearest name in.
    Refusal::UnknownRepo { name: name.to_string(), nearest: None }
}

/// An outcome that no process told of.
pub(super) fn told(kind: OutcomeKind, reason: impl Into<alloc::string::String>) -> Outcome {
    Outcome {
        kind,
        exit_code: None,
        signal: None,
        exit_status: ExitStatus::Unproven,
        agent_result: None,
        disagreement: None,
        reason: reason.into(),
    }
}

/// Ready once more, because a person asked for it.
fn requeue(job: &JobId, afresh: Option<SessionId>) -> Event {
    Event::JobRequeued { job: job.clone(), cause: RequeueCause::Asked, until: None, afresh }
}

/// That somebody asked for what follows.
pub(super) fn said(job: &JobId, what: alloc::string::String) -> Event {
    let (because, rule) = (alloc::string::String::new(), alloc::string::String::new());
    Event::Decided { job: job.clone(), what, because, rule }
}
