//! `observe`: what follows from what was seen of a piece of work. It cannot refuse; news of what is no longer under way is no news.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use super::State;
use super::decide::told;
use super::due::launch;
use crate::engine::{self, SessionSign};
use crate::event::Event;
use crate::evidence::{AgentResult, Evidence};
use crate::ids::{AttemptNo, JobId, OperationId};
use crate::job::{
    Attempt, AttemptEnd, EndedBy, ExitStatus, Job, OnInterrupt, OnUnknown, Outcome, OutcomeKind,
    Phase, Work, Workspace,
};
use crate::limits;
use crate::recovery::{Intent, Interruption, Judgement, Verdict, judge};
use crate::repo::{Operation, OperationKind};
use crate::request::Report;
use crate::spec::{self, Ending, Reading, StopCause};
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

fn has_survivors(report: &Report) -> bool {
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
        Verdict::Launch => "launched",
        Verdict::Cancelled => "cancelled",
        Verdict::TimedOut => "timed out",
        Verdict::Interrupted(_) => "interrupted",
        Verdict::Unknown => "unknown",
    };
    let damage = report.evidence.sentinel_damage.as_ref();
    let damage = damage.map_or(String::new(), |why| format!(" (sentinel.json damaged: {why})"));
    let (row, because) = (judged.row, &judged.because);
    let text = format!("attempt {attempt}: {verdict}: {because}{damage} (row {row})");
    Some(Event::Decided { job: job.id.clone(), text })
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
        requeued(job, None, None, false)
    } else if ended_by == EndedBy::Interruption {
        return [vec![ended], interrupted(job, outcome, job.task.on_interrupt, report, now)]
            .concat();
    } else if again {
        requeued(job, None, None, false)
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

fn requeued(
    job: &Job,
    not_before: Option<Timestamp>,
    afresh: Option<crate::ids::SessionId>,
    interrupted: bool,
) -> Event {
    Event::JobRequeued { job: job.id.clone(), not_before, afresh, interrupted }
}

/// What the job's policy makes of an interruption.
fn interrupted(
    job: &Job,
    outcome: Outcome,
    policy: OnInterrupt,
    report: &Report,
    now: Timestamp,
) -> Vec<Event> {
    let afresh = match policy {
        OnInterrupt::Resume => None,
        OnInterrupt::Retry => Some(report.fresh_session.clone()),
        OnInterrupt::Fail => return vec![ended_event(job, outcome)],
    };
    if job.interrupts >= job.task.max_interrupts {
        let reason = format!("{}; its {} tries are used up", outcome.reason, job.interrupts);
        return vec![ended_event(job, Outcome { reason, ..outcome })];
    }
    let pause = crate::retry::backoff(job.interrupts);
    vec![requeued(job, Some(now.after(pause)), afresh, true)]
}

fn ended_event(job: &Job, outcome: Outcome) -> Event {
    Event::JobEnded { job: job.id.clone(), outcome: Box::new(outcome) }
}

/// What the job's policy makes of an attempt that may have finished or not.
fn unknown(job: &Job, attempt: &Attempt, report: &Report, now: Timestamp) -> Vec<Event> {
    let stopping = matches!(job.phase, Phase::Stopping { .. });
    let policy = match job.task.on_unknown {
        OnUnknown::Hold => return held(job, attempt, report, now),
        // Whoever asked for a stop does not want it to begin again.
        OnUnknown::Resume | OnUnknown::Retry if stopping => return held(job, attempt, report, now),
        OnUnknown::Resume => OnInterrupt::Resume,
        OnUnknown::Retry => OnInterrupt::Retry,
        OnUnknown::Fail => OnInterrupt::Fail,
    };
    if has_survivors(report) {
        if attempt.caretakers >= limits::CARETAKERS_MAX {
            return held(job, attempt, report, now);
        }
        return vec![Event::CaretakerPlanned { work: report.work.clone(), empty_tree: true }];
    }
    let end = attempt_end(job, &Verdict::Unknown, report, now);
    let outcome = end.outcome.clone();
    let ended = Event::AttemptEnded { job: job.id.clone(), attempt: attempt.n, end: Box::new(end) };
    [vec![ended], interrupted(job, outcome, policy, report, now)].concat()
}

/// A person must look.
fn held(job: &Job, attempt: &Attempt, report: &Report, now: Timestamp) -> Vec<Event> {
    let end = Box::new(attempt_end(job, &Verdict::Unknown, report, now));
    vec![
        Event::AttemptEnded { job: job.id.clone(), attempt: attempt.n, end },
        Event::AttemptUnknown { job: job.id.clone(), attempt: attempt.n },
    ]
}

fn attempt_end(job: &Job, verdict: &Verdict, report: &Report, now: Timestamp) -> AttemptEnd {
    let evidence = &report.evidence;
    let started = evidence.started.valid();
    let recorded = evidence.outcome.valid();
    let empty = evidence.tree_empty.valid();
    let (ended_by, outcome) = how_it_ended(job, verdict, evidence);
    let output_now = report.findings.output_now;
    AttemptEnd {
        ended_by,
        started_at: started.map(|started| started.at),
        ended_at: recorded.map(|o| o.at).or(empty.map(|e| e.at)).unwrap_or(now),
        outcome,
        output_from: started.map_or(output_now, |started| started.output_from),
        output_to: empty.map_or(output_now, |empty| empty.output_to),
        usage: report.findings.usage,
        cpu_ms: recorded.map_or(0, |o| o.cpu_ms),
        peak_memory_bytes: recorded.map_or(0, |o| o.peak_memory_bytes),
        best_effort: empty.is_some_and(|empty| empty.proof == spec::Proof::BestEffort),
        unenforced: started.map_or_else(Vec::new, |started| started.unenforced.clone()),
        session_sign: report.findings.session_sign,
    }
}

fn how_it_ended(job: &Job, verdict: &Verdict, evidence: &Evidence) -> (EndedBy, Outcome) {
    let result = evidence.result.as_ref();
    let cancelled = matches!(&job.phase, Phase::Stopping { cause: StopCause::Cancel, .. });
    let unproven =
        |kind, reason: &str| Outcome { agent_result: result.cloned(), ..told(kind, reason) };
    match verdict {
        Verdict::Conclude(recorded) => concluded(job, recorded, result, cancelled),
        Verdict::ConcludeByResult(said) => {
            let kind = if said.success { OutcomeKind::Completed } else { OutcomeKind::Failed };
            (EndedBy::ResultRecord, unproven(kind, "by the agent's own final result"))
        }
        Verdict::TimedOut => {
            (EndedBy::Signal, unproven(OutcomeKind::TimedOut, "its running time was over"))
        }
        Verdict::Cancelled => {
            let never_ran = evidence.started == Reading::Absent;
            let ended_by = if never_ran { EndedBy::NeverRan } else { EndedBy::Unknown };
            (ended_by, unproven(OutcomeKind::Cancelled, "cancelled"))
        }
        Verdict::Interrupted(Interruption::Reboot) => {
            let reason = "the machine was started anew while it ran";
            (EndedBy::Interruption, unproven(OutcomeKind::Interrupted, reason))
        }
        Verdict::Interrupted(Interruption::NamespaceEnded) => {
            let reason = "the pid namespace (container) it ran in ended";
            (EndedBy::Interruption, unproven(OutcomeKind::Interrupted, reason))
        }
        Verdict::Interrupted(Interruption::OutOfMemory) => {
            let reason = "the kernel ended it for want of memory";
            (EndedBy::Interruption, unproven(OutcomeKind::Interrupted, reason))
        }
        Verdict::Adopt | Verdict::Caretake { .. } | Verdict::Launch | Verdict::Unknown => {
            let reason = "it cannot be known how it ended";
            (EndedBy::Unknown, unproven(OutcomeKind::Interrupted, reason))
        }
    }
}

/// The kernel said how it ended: what that makes of the job.
fn concluded(
    job: &Job,
    recorded: &spec::Outcome,
    result: Option<&AgentResult>,
    cancelled: bool,
) -> (EndedBy, Outcome) {
    let (ended_by, exit_code, signal) = match &recorded.ending {
        Ending::Exited(code) => (EndedBy::Exit, Some(*code), None),
        Ending::Signaled(signal) => (EndedBy::Signal, None, Some(*signal)),
        Ending::LaunchFailed { .. } => (EndedBy::LaunchFailed, None, None),
        Ending::NeverRan => (EndedBy::NeverRan, None, None),
    };
    let engine = engine::find(&job.task.engine);
    let said = engine.map(|engine| engine::verdict(engine, Some(&recorded.ending), result));
    let success = said.as_ref().is_some_and(|said| said.success);
    let reason = said.as_ref().map_or_else(String::new, |said| said.reason.clone());
    let (kind, reason) = match recorded.stop {
        _ if cancelled => (OutcomeKind::Cancelled, format!("cancelled: {reason}")),
        Some(StopCause::Timeout) => {
            (OutcomeKind::TimedOut, "its running time was over".to_string())
        }
        Some(StopCause::Cancel) => (OutcomeKind::Cancelled, "cancelled".to_string()),
        Some(StopCause::OutputLimit) => {
            (OutcomeKind::Failed, "it wrote more than it may".to_string())
        }
        Some(StopCause::IdleOutput) => {
            (OutcomeKind::Failed, "it wrote nothing for longer than it may".to_string())
        }
        Some(StopCause::Survivors) | None if recorded.oom && !success => {
            (OutcomeKind::Failed, format!("{reason} (out of memory)"))
        }
        Some(StopCause::Survivors) | None if success => (OutcomeKind::Completed, reason),
        Some(StopCause::Survivors) | None => (OutcomeKind::Failed, reason),
    };
    let outcome = Outcome {
        kind,
        exit_code,
        signal,
        exit_status: ExitStatus::Exact,
        agent_result: result.cloned(),
        disagreement: said.and_then(|said| said.disagreement),
        reason,
    };
    (ended_by, outcome)
}
