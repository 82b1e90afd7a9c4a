//! `observe`: what follows from what was seen of a piece of work. It cannot refuse; news of what is no longer under way is no news.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use super::State;
use super::decide::told;
use super::due::launch;
use super::ending::attempt_end;
use super::policy::{held, interrupted, limited, requeued, unknown};
use crate::engine::SessionSign;
use crate::event::{Event, RequeueCause};
use crate::ids::{AttemptNo, JobId, OperationId};
use crate::job::{Attempt, AttemptEnd, EndedBy, Job, OutcomeKind, Phase, Work, Workspace};
use crate::limits;
use crate::recovery::{Intent, Judgement, Verdict, judge};
use crate::repo::{Operation, OperationKind};
use crate::request::Report;
use crate::spec::{self, Ending, StopCause};
use crate::time::Timestamp;

impl State {
    /// The events that follow from a report, at `now`.
    pub fn observe(&self, report: &Report, now: Timestamp) -> Vec<Event> {
        match &report.work {
            Work::Operation { id } => match self.operations.get(id) {
                Some(operation) => self.observe_operation(operation, report),
                None => vec![],
            },
            // I10: what a job's lost records said of this attempt, nobody knows.
            Work::Attempt { job, attempt } => match self.whole_job(job) {
                Some(found) => observe_attempt(found, *attempt, report, now),
                None => vec![],
            },
        }
    }

    fn whole_job(&self, id: &JobId) -> Option<&Job> {
        self.jobs.get(id).filter(|_| self.is_whole(id)).map(|job| &**job)
    }

    fn observe_operation(&self, operation: &Operation, report: &Report) -> Vec<Event> {
        let job = match &operation.kind {
            OperationKind::Copy { job } => self.whole_job(job),
            OperationKind::Clone { .. } => None,
        };
        let stopping = job.and_then(|job| match &job.phase {
            Phase::Stopping { work, cause } if *work == report.work => Some((job, *cause)),
            _ => None,
        });
        let intent = stopping.map_or(Intent::Running, |(_, cause)| Intent::Stopping(cause));
        let work = || report.work.clone();
        let again = |event: Event| {
            let stop = stopping.map(|(job, cause)| stop_again(job, report, cause));
            core::iter::once(event).chain(stop).collect()
        };
        let over = |result| self.operation_over(operation, job, result);
        let cared_for = operation.caretakers < limits::CARETAKERS_MAX;
        match judge(&report.evidence, intent).verdict {
            Verdict::Adopt => again(Event::Adopted { work: work() }),
            Verdict::Caretake { empty_tree } if cared_for => {
                again(Event::CaretakerPlanned { work: work(), empty_tree })
            }
            // An operation may be repeated, but never beside its own survivors.
            Verdict::Unknown if cared_for && has_survivors(report) => {
                again(Event::CaretakerPlanned { work: work(), empty_tree: true })
            }
            Verdict::Launch => vec![Event::RelaunchPlanned { work: work() }],
            Verdict::Conclude(outcome) => over(operation_result(&outcome, report)),
            Verdict::Cancelled | Verdict::TimedOut => over(Err("it was stopped".to_string())),
            Verdict::Caretake { .. } => over(Err("its caretakers died too often".to_string())),
            _ if stopping.is_some() => over(Err("it was stopped".to_string())),
            _ if operation.tries < limits::OPERATION_TRIES_MAX && !has_survivors(report) => {
                self.plan_again(operation, job)
            }
            _ => over(Err("it was cut off too often".to_string())),
        }
    }

    /// An operation is over for good, and this came of it.
    fn operation_over(
        &self,
        operation: &Operation,
        job: Option<&Job>,
        result: Result<Option<serde_json::Value>, String>,
    ) -> Vec<Event> {
        let follows = match (&operation.kind, job) {
            // A repo whose records are lost cannot be told (I10).
            (OperationKind::Clone { repo }, _) if self.standing(repo).is_err() => vec![],
            (OperationKind::Clone { repo }, _) => vec![match result {
                Ok(_) => Event::RepoReady { name: repo.clone() },
                Err(reason) => Event::RepoFailed { name: repo.clone(), reason },
            }],
            (OperationKind::Copy { .. }, Some(job)) => copy_ended(job, operation.id, result),
            (OperationKind::Copy { .. }, None) => vec![],
        };
        core::iter::once(Event::OperationEnded { id: operation.id }).chain(follows).collect()
    }

    /// The same operation once more, under a new name, if anybody still wants it.
    fn plan_again(&self, operation: &Operation, job: Option<&Job>) -> Vec<Event> {
        let (id, tries) = (self.free_operation(), operation.tries + 1);
        let kind = operation.kind.clone();
        let planned = Event::OperationPlanned { id, kind, tries };
        let ended = Event::OperationEnded { id: operation.id };
        match (&operation.kind, job) {
            (OperationKind::Copy { .. }, Some(job)) => {
                vec![ended, Event::CopyPlanned { job: job.id.clone(), operation: id }, planned]
            }
            (OperationKind::Clone { repo }, _) if self.standing(repo).is_ok() => {
                vec![ended, planned]
            }
            _ => vec![ended],
        }
    }
}

/// A wish to stop that was accepted is passed on to whoever has the work now.
fn stop_again(job: &Job, report: &Report, cause: StopCause) -> Event {
    Event::StopRequested { job: job.id.clone(), work: report.work.clone(), cause }
}

pub(super) fn has_survivors(report: &Report) -> bool {
    report.evidence.survivors > 0 && report.evidence.tree_empty.valid().is_none()
}

fn observe_attempt(job: &Job, n: AttemptNo, report: &Report, now: Timestamp) -> Vec<Event> {
    let intent = match &job.phase {
        Phase::Running { attempt } if *attempt == n => Intent::Running,
        Phase::Stopping { work, cause } if *work == report.work => Intent::Stopping(*cause),
        _ => return vec![],
    };
    let Some(attempt) = job.attempt(n) else { return vec![] };
    let judged = judge(&report.evidence, intent);
    let work = || report.work.clone();
    let again = |event: Event| {
        let stop = match intent {
            Intent::Stopping(cause) => Some(stop_again(job, report, cause)),
            Intent::Running => None,
        };
        core::iter::once(event).chain(stop).collect()
    };
    let cared_for = attempt.caretakers < limits::CARETAKERS_MAX;
    let events = match &judged.verdict {
        Verdict::Adopt => again(Event::Adopted { work: work() }),
        Verdict::Caretake { .. } if !cared_for => held(job, attempt, report, now),
        Verdict::Caretake { empty_tree: true } => {
            vec![Event::CaretakerPlanned { work: work(), empty_tree: true }]
        }
        Verdict::Caretake { empty_tree: false } => {
            again(Event::CaretakerPlanned { work: work(), empty_tree: false })
        }
        Verdict::Launch => vec![Event::RelaunchPlanned { work: work() }],
        Verdict::Unknown => unknown(job, attempt, report, now),
        Verdict::Conclude(_)
        | Verdict::ConcludeByResult(_)
        | Verdict::Cancelled
        | Verdict::TimedOut
        | Verdict::Interrupted(_) => conclude(job, attempt, &judged.verdict, report, now),
    };
    decided(job, &judged, report).into_iter().chain(events).collect()
}

fn decided(job: &Job, judged: &Judgement, report: &Report) -> Option<Event> {
    let Work::Attempt { attempt, .. } = &report.work else { return None };
    let verdict = match &judged.verdict {
        Verdict::Conclude(_) | Verdict::ConcludeByResult(_) => "concluded",
        Verdict::Adopt => "adopted",
        Verdict::Caretake { empty_tree: true } => "what is left of its tree is ended",
        Verdict::Caretake { empty_tree: false } => "taken over by a caretaker",
        Verdict::Launch => "launched again, for it certainly did not run",
        Verdict::Cancelled => "cancelled",
        Verdict::TimedOut => "timed out",
        Verdict::Interrupted(_) => "interrupted",
        Verdict::Unknown => "unknown",
    };
    let because = format!("{}{}", judged.because, who(report));
    let rule = format!("row {} of docs/recovery.md", judged.row);
    let what = format!("attempt {attempt}: {verdict}");
    Some(Event::Decided { job: job.id.clone(), what, because, rule })
}

/// The processes that the evidence names, and what is damaged of it.
fn who(report: &Report) -> String {
    let evidence = &report.evidence;
    let processes = evidence.started.valid().map(|started| {
        let (agent, keeper) = (started.agent.pid, started.keeper.pid);
        format!("; agent pid {agent} started {} by supervisor pid {keeper}", started.at)
    });
    let damage = evidence.sentinel_damage.as_ref();
    let damage = damage.map(|why| format!("; sentinel.json damaged: {why}"));
    [processes, damage].into_iter().flatten().collect()
}

fn operation_result(
    outcome: &spec::Outcome,
    report: &Report,
) -> Result<Option<serde_json::Value>, String> {
    match &outcome.ending {
        Ending::Exited(0) => Ok(report.findings.answer.clone()),
        Ending::LaunchFailed { errno, what } => Err(format!("cannot run {what} (errno {errno})")),
        Ending::Exited(_) | Ending::Signaled(_) | Ending::NeverRan => {
            let complaint = report.findings.complaint.trim();
            Err(if complaint.is_empty() {
                format!("{:?}", outcome.ending)
            } else {
                complaint.into()
            })
        }
    }
}

/// What follows for a job whose copy is over.
fn copy_ended(
    job: &Job,
    operation: OperationId,
    result: Result<Option<serde_json::Value>, String>,
) -> Vec<Event> {
    let work = Work::Operation { id: operation };
    if job.phase.work(&job.id) != Some(work) {
        return vec![];
    }
    let ended = |kind, reason: String| {
        let outcome = Box::new(told(kind, reason));
        vec![Event::JobEnded { job: job.id.clone(), outcome }]
    };
    if matches!(job.phase, Phase::Stopping { .. }) {
        return ended(OutcomeKind::Cancelled, "cancelled while its workspace was made".into());
    }
    match result.map(|answer| workspace_of(job, answer.as_ref())) {
        Err(reason) => ended(OutcomeKind::Failed, format!("its workspace was not made: {reason}")),
        Ok(workspace) => {
            vec![Event::WorkspaceReady { job: job.id.clone(), workspace }, launch(job)]
        }
    }
}

fn workspace_of(job: &Job, answer: Option<&serde_json::Value>) -> Workspace {
    let text = |name: &str| answer?.get(name)?.as_str().map(String::from);
    Workspace {
        made_by: text("made_by").unwrap_or_else(|| "copy".to_string()),
        base_commit: text("base_commit"),
        branch: format!("outlive/{}", job.id),
    }
}

/// The attempt is over: how, and what follows for its job.
fn conclude(
    job: &Job,
    attempt: &Attempt,
    verdict: &Verdict,
    report: &Report,
    now: Timestamp,
) -> Vec<Event> {
    let end = attempt_end(job, verdict, report, now);
    let outcome = end.outcome.clone();
    let ended_by = end.ended_by;
    let proved = matches!(verdict, Verdict::Conclude(_) | Verdict::ConcludeByResult(_));
    let end = match &attempt.end {
        // It was unknown before: that its survivors are gone now tells nothing new of it.
        Some(before) if !proved => AttemptEnd { output_to: end.output_to, ..before.clone() },
        _ => end,
    };
    let again = outcome.kind == OutcomeKind::Failed && opened_wrongly(job, attempt, &end);
    let id = || job.id.clone();
    let ended = Event::AttemptEnded { job: id(), attempt: attempt.n, end: Box::new(end) };
    let over = |outcome| Event::JobEnded { job: id(), outcome: Box::new(outcome) };
    let survivors_gone = matches!(&job.phase, Phase::Stopping { cause: StopCause::Survivors, .. });
    let follows = if survivors_gone {
        // A person wanted to go on, and now nothing is left to collide with.
        requeued(job, RequeueCause::Asked, None, None)
    } else if ended_by == EndedBy::Interruption {
        interrupted(job, outcome, job.task.on_interrupt, report, now)
    } else if again {
        requeued(job, RequeueCause::Reopened, None, None)
    } else if let (EndedBy::UsageLimit | EndedBy::Overload, Some(limit)) =
        (ended_by, report.findings.limit)
    {
        limited(job, &outcome, limit, now)
    } else if outcome.kind == OutcomeKind::Completed && job.current_turn() < turn_count(job) {
        Event::TurnDone { job: id() }
    } else {
        over(outcome)
    };
    vec![ended, follows]
}

/// The conversation was opened in the wrong way, so nothing was done and the next attempt is still the same try. Twice in a row
/// is no guess that went wrong.
fn opened_wrongly(job: &Job, attempt: &Attempt, end: &AttemptEnd) -> bool {
    let wrong = |sign| matches!(sign, Some(SessionSign::NotFound | SessionSign::InUse));
    let before = AttemptNo::new(attempt.n.get() - 1).and_then(|n| job.attempt(n));
    let before = before.filter(|before| before.session == attempt.session);
    let before = before.and_then(|attempt| attempt.end.as_ref()).and_then(|end| end.session_sign);
    wrong(end.session_sign) && !wrong(before)
}

fn turn_count(job: &Job) -> u32 {
    u32::try_from(job.turns.len()).unwrap_or(u32::MAX)
}
