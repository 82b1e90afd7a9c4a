//! Which phase follows an event: the one table of transitions.

use super::apply::{IllegalEvent, illegal};
use crate::event::{Event, RequeueCause};
use crate::job::{Job, Outcome, Phase, WaitReason, Work};

/// Which phase follows: the one table of transitions. Whatever is not in it did not happen.
pub(super) fn next_phase(job: &Job, event: &Event) -> Result<Phase, IllegalEvent> {
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
            Event::JobRequeued { cause, until, .. },
        ) => match until {
            Some(until) => Waiting { reason: reason_of(*cause), until: Some(*until) },
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

fn reason_of(cause: RequeueCause) -> WaitReason {
    match cause {
        RequeueCause::UsageLimit => WaitReason::UsageLimit,
        RequeueCause::Overload => WaitReason::Overload,
        RequeueCause::Asked | RequeueCause::Interruption | RequeueCause::Reopened => {
            WaitReason::BackOff
        }
    }
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
