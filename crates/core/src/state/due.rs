//! `due`: what time and free slots bring about without being asked.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Bound;

use super::decide::told;
use super::{Removal, Rules, State};
use crate::engine::Opening;
use crate::event::{Event, operation_entity, repo_entity};
use crate::ids::{AttemptNo, JobId, Lsn, OperationId, RepoName};
use crate::job::{Job, OutcomeKind, Phase, WaitReason, Work};
use crate::limits;
use crate::record::EntityKind;
use crate::repo::{OperationKind, RepoPhase};
use crate::time::Timestamp;

impl State {
    /// The next thing that is due, as events to apply; empty when nothing is. Call again after applying.
    pub fn due(&self, now: Timestamp, rules: Rules) -> Vec<Event> {
        if rules.held {
            return Vec::new();
        }
        self.timer_due(now)
            .or_else(|| self.pause_astray(now))
            .or_else(|| self.repo_waiter_due())
            .or_else(|| self.operation_lost())
            .or_else(|| self.slot_free(rules))
            .or_else(|| self.removal_old(now))
            .unwrap_or_default()
    }

    /// When something will be due by time alone.
    pub fn next_due(&self) -> Option<Timestamp> {
        let timer = self.index.timers.keys().next().map(|(at, _)| *at);
        let removal = self.index.expiries.keys().next().map(|(at, _)| *at);
        timer.into_iter().chain(removal).min()
    }

    fn timer_due(&self, now: Timestamp) -> Option<Vec<Event>> {
        let ((until, job), ()) = self.index.timers.iter().next()?;
        (*until <= now).then(|| release(job))
    }

    /// A pause whose end is further away than any pause lasts: the clock has been set back since it began, perhaps by a month, so
    /// it is due. (A start time is a person's word and stays as it is.)
    fn pause_astray(&self, now: Timestamp) -> Option<Vec<Event>> {
        let ((until, job), ()) = self.index.pauses.iter().next_back()?;
        (until.since(now) > limits::INTERRUPT_BACKOFF_MAX).then(|| release(job))
    }

    fn repo_waiter_due(&self) -> Option<Vec<Event>> {
        let mut waiters = self.index.repo_waiters.iter().next();
        while let Some(((name, _), job)) = waiters {
            match self.standing(name) {
                Ok(Standing::Ready) => return Some(release(job)),
                Err(reason) => return Some(vec![unavailable(job, name, &reason)]),
                // All who wait for this repo wait on; the next repo's first waiter may not have to.
                Ok(Standing::Cloning) => {
                    let after = (Bound::Excluded((name.clone(), Lsn(u64::MAX))), Bound::Unbounded);
                    waiters = self.index.repo_waiters.range(after).next();
                }
            }
        }
        None
    }

    /// Whether jobs can use a repo now or soon.
    ///
    /// # Errors
    /// They cannot: why, for people.
    pub fn usable(&self, name: &RepoName) -> Result<(), String> {
        self.standing(name).map(drop)
    }

    /// Whether jobs can use a repo now or soon, or why they cannot.
    pub(super) fn standing(&self, name: &RepoName) -> Result<Standing, String> {
        if let Some(reason) = self.unavailable(&repo_entity(name)) {
            return Err(reason.to_string());
        }
        let repo = self.repos.get(name).ok_or_else(|| "it was removed".to_string())?;
        match &repo.phase {
            RepoPhase::Ready => Ok(Standing::Ready),
            RepoPhase::Cloning if self.index.clones.contains_key(name) => Ok(Standing::Cloning),
            RepoPhase::Cloning => Err("the records of its clone cannot be read".to_string()),
            RepoPhase::Unavailable { reason } => Err(reason.clone()),
        }
    }

    /// A job whose operation's records cannot be read would wait for its end for ever (I10).
    fn operation_lost(&self) -> Option<Vec<Event>> {
        if self.unavailable.is_empty() {
            return None;
        }
        let needed = self.index.busy.keys().find_map(|id| {
            let phase = &self.jobs.get(id)?.phase;
            let Work::Operation { id: operation } = phase.work(id)? else { return None };
            let reason = self.unavailable(&operation_entity(operation))?;
            let kind = match phase {
                Phase::Stopping { .. } => OutcomeKind::Cancelled,
                _ => OutcomeKind::Failed,
            };
            let outcome = told(kind, format!("its workspace was not made: {reason}"));
            Some(vec![Event::JobEnded { job: id.clone(), outcome: Box::new(outcome) }])
        });
        needed.or_else(|| {
            // Work of our own may be repeated at any time: what nobody waits for need not be remembered.
            let id = self.unavailable.keys().find_map(|entity| match entity.kind {
                EntityKind::Operation => entity.name.parse().ok().map(OperationId),
                _ => None,
            })?;
            Some(vec![Event::OperationForgotten { id }])
        })
    }

    fn slot_free(&self, rules: Rules) -> Option<Vec<Event>> {
        if !rules.has_room || self.index.busy.size() >= rules.running_max as usize {
            return None;
        }
        let (_, id) = self.index.queue.iter().next()?;
        let job = self.jobs.get(id)?;
        Some(self.take_up(job))
    }

    /// The next step of a job that has a slot: its copy, or its launch.
    fn take_up(&self, job: &Job) -> Vec<Event> {
        if job.attempts.len() >= limits::ATTEMPTS_MAX {
            let reason = "it has had as many attempts as a job may have";
            let outcome = Box::new(told(OutcomeKind::Failed, reason));
            return vec![Event::JobEnded { job: job.id.clone(), outcome }];
        }
        if job.session().is_some_and(|session| session.workspace.is_some()) {
            return vec![launch(job)];
        }
        // Only a workspace that is to be made needs the repo.
        for name in &job.task.repos {
            match self.standing(name) {
                Ok(Standing::Ready) => {}
                Ok(Standing::Cloning) => {
                    let reason = WaitReason::Repo { name: name.clone() };
                    return vec![Event::JobWaits { job: job.id.clone(), reason, until: None }];
                }
                Err(reason) => return vec![unavailable(&job.id, name, &reason)],
            }
        }
        let operation = self.free_operation();
        vec![
            Event::CopyPlanned { job: job.id.clone(), operation },
            Event::OperationPlanned {
                id: operation,
                kind: OperationKind::Copy { job: job.id.clone() },
                tries: 1,
            },
        ]
    }

    fn removal_old(&self, now: Timestamp) -> Option<Vec<Event>> {
        let ((until, removal), ()) = self.index.expiries.iter().next()?;
        let event = match removal {
            Removal::Job(id) => Event::JobForgotten { job: id.clone() },
            Removal::Repo(name) => Event::RepoForgotten { name: name.clone() },
        };
        (*until <= now).then(|| vec![event])
    }
}

/// How a repo stands for the jobs that need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// They can use it.
    Ready,
    /// They can use it soon.
    Cloning,
}

/// Out of waiting, into the queue.
fn release(job: &JobId) -> Vec<Event> {
    vec![Event::JobReleased { job: job.clone() }]
}

/// The launch of a job's next attempt; the end of the job where its conversation is lost.
pub(super) fn launch(job: &Job) -> Event {
    let session = u32::try_from(job.sessions.len().saturating_sub(1)).unwrap_or(u32::MAX);
    let ours = job.attempts.iter().rev().filter(|attempt| attempt.session == session);
    let signs = ours.map(|attempt| attempt.end.as_ref().and_then(|end| end.session_sign));
    let opening = crate::engine::find(&job.task.engine).map(|engine| engine.opening(signs));
    let resume = match opening {
        Some(Ok(Opening::Resume)) => true,
        Some(Ok(Opening::Fresh)) | None => false,
        Some(Err(lost)) => {
            let outcome = Box::new(told(OutcomeKind::Failed, lost.to_string()));
            return Event::JobEnded { job: job.id.clone(), outcome };
        }
    };
    let count = u32::try_from(job.attempts.len()).unwrap_or(u32::MAX - 1);
    let attempt = AttemptNo::MIN.saturating_add(count);
    Event::LaunchPlanned { job: job.id.clone(), attempt, turn: job.current_turn(), resume }
}

fn unavailable(job: &JobId, repo: &RepoName, reason: &str) -> Event {
    let outcome = told(OutcomeKind::Failed, format!("repository unavailable: {repo}: {reason}"));
    Event::JobEnded { job: job.clone(), outcome: Box::new(outcome) }
}
