//! Policies: what follows for a job whose attempt was cut off, met a limit, or ended nobody knows how.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::ending::attempt_end;
use super::observe::has_survivors;
use crate::engine::Limit;
use crate::event::{Event, RequeueCause};
use crate::ids::SessionId;
use crate::job::{Attempt, Job, Outcome, Phase};
use crate::limits;
use crate::recovery::Verdict;
use crate::request::Report;
use crate::retry::backoff;
use crate::task::{OnInterrupt, OnLimit, OnUnknown};
use crate::time::Timestamp;

/// Ready once more, perhaps after a pause.
pub(super) fn requeued(
    job: &Job,
    cause: RequeueCause,
    until: Option<Timestamp>,
    afresh: Option<SessionId>,
) -> Event {
    Event::JobRequeued { job: job.id.clone(), cause, until, afresh }
}

/// What the job's policy makes of an interruption.
pub(super) fn interrupted(
    job: &Job,
    outcome: Outcome,
    policy: OnInterrupt,
    report: &Report,
    now: Timestamp,
) -> Event {
    let afresh = match policy {
        OnInterrupt::Resume => None,
        OnInterrupt::Retry => Some(report.fresh_session.clone()),
        OnInterrupt::Fail => return ended_event(job, outcome),
    };
    if job.interrupts >= job.task.max_interrupts {
        let reason = format!("{}; its {} tries are used up", outcome.reason, job.interrupts);
        return ended_event(job, Outcome { reason, ..outcome });
    }
    let (first, longest) = (limits::INTERRUPT_BACKOFF, limits::INTERRUPT_BACKOFF_MAX);
    let until = now.after(backoff(first, longest, job.interrupts));
    requeued(job, RequeueCause::Interruption, Some(until), afresh)
}

/// What the job's policy makes of a usage limit or an overloaded model.
pub(super) fn limited(job: &Job, outcome: &Outcome, limit: Limit, now: Timestamp) -> Event {
    let no = |why: &str| {
        let reason = format!("{}; {why}", outcome.reason);
        ended_event(job, Outcome { reason, ..outcome.clone() })
    };
    if job.task.on_limit == OnLimit::Fail {
        return no("it is not to wait for that (on_limit = fail)");
    }
    let pause = |first| now.after(backoff(first, limits::LIMIT_BACKOFF_MAX, job.limits_met));
    let (cause, until) = match limit {
        // A time that has passed already, or passes at once, must not make it try again and again.
        Limit::Usage { resets_at: Some(at) } => {
            let until = at.after(limits::USAGE_LIMIT_MARGIN);
            (RequeueCause::UsageLimit, until.max(pause(limits::OVERLOAD_BACKOFF)))
        }
        Limit::Usage { resets_at: None } => {
            (RequeueCause::UsageLimit, pause(limits::USAGE_LIMIT_BACKOFF))
        }
        Limit::Overload => (RequeueCause::Overload, pause(limits::OVERLOAD_BACKOFF)),
    };
    let waited = Duration::from_millis(job.limit_waited_ms);
    let most = Duration::from_millis(job.task.limit_wait_ms);
    if until.since(now) + waited > most {
        let (waited, most) = (waited.as_secs(), most.as_secs());
        return no(&format!(
            "it would have to wait until {until}, has waited {waited} s for limits already, and may wait {most} s"
        ));
    }
    requeued(job, cause, Some(until), None)
}

fn ended_event(job: &Job, outcome: Outcome) -> Event {
    Event::JobEnded { job: job.id.clone(), outcome: Box::new(outcome) }
}

/// What the job's policy makes of an attempt that may have finished or not.
pub(super) fn unknown(job: &Job, attempt: &Attempt, report: &Report, now: Timestamp) -> Vec<Event> {
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
    vec![ended, interrupted(job, outcome, policy, report, now)]
}

/// A person must look.
pub(super) fn held(job: &Job, attempt: &Attempt, report: &Report, now: Timestamp) -> Vec<Event> {
    let end = Box::new(attempt_end(job, &Verdict::Unknown, report, now));
    vec![
        Event::AttemptEnded { job: job.id.clone(), attempt: attempt.n, end },
        Event::AttemptUnknown { job: job.id.clone(), attempt: attempt.n },
    ]
}
