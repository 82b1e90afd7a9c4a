//! What a job's history says of an event: the lines of `outlive why` that follow from the event itself.
//!
//! Evidence and the names of those who asked come as events of their own ([`Event::Decided`]); an event that one of them always
//! goes with has no second line here. That a job was accepted stands in the job itself.

use alloc::format;
use alloc::string::{String, ToString as _};

use crate::event::{Event, RequeueCause};
use crate::ids::Lsn;
use crate::job::{Decision, Job, OutcomeKind, Phase, WaitReason};
use crate::limits;
use crate::spec::StopCause;
use crate::time::Timestamp;

/// One line, not yet placed.
struct Line {
    what: String,
    because: String,
    rule: String,
}

/// Adds what an event means to its job's history. `before` is the job as the event found it.
pub(super) fn note(
    job: &mut Job,
    before: &Job,
    (lsn, at, start): (Lsn, Timestamp, u64),
    event: &Event,
) {
    let Some(Line { what, because, rule }) = line(before, at, event) else { return };
    let (what, because) = (cut(what), cut(because));
    if let Some(last) = job.decisions.last_mut()
        && (&last.what, &last.because, &last.rule, last.start) == (&what, &because, &rule, start)
    {
        last.times = last.times.saturating_add(1);
        return;
    }
    if job.decisions.len() >= limits::DECISIONS_MAX {
        // The beginning of the story stays; the middle goes.
        job.decisions.remove(limits::DECISIONS_MAX / 4);
        job.decisions_dropped = job.decisions_dropped.saturating_add(1);
    }
    job.decisions.push(Decision { lsn, at, start, what, because, rule, times: 1 });
}

fn cut(mut text: String) -> String {
    if text.len() > limits::DECISION_BYTES_MAX {
        text.truncate(text.floor_char_boundary(limits::DECISION_BYTES_MAX));
        text.push('…');
    }
    text
}

fn told(what: impl Into<String>, because: impl Into<String>) -> Line {
    Line { what: what.into(), because: because.into(), rule: String::new() }
}

fn line(job: &Job, at: Timestamp, event: &Event) -> Option<Line> {
    Some(match event {
        Event::Decided { what, because, rule, .. } => {
            Line { what: what.clone(), because: because.clone(), rule: rule.clone() }
        }
        Event::JobReleased { .. } => match &job.phase {
            Phase::Waiting { until: Some(until), .. } if at >= *until => {
                told("queued", "the time it waited for has come")
            }
            Phase::Waiting { reason: WaitReason::Repo { name }, .. } => {
                told("queued", format!("repo {name} can be used"))
            }
            _ => told("queued", ""),
        },
        Event::JobWaits { reason, until, .. } => {
            let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
            told("waits", format!("{}{until}", reason_in_words(reason)))
        }
        Event::CopyPlanned { operation, .. } => {
            let waited = at.since(job.ready_at).as_secs_f64();
            told(
                "workspace being made",
                format!("by operation {operation}; queued for {waited:.1} s"),
            )
        }
        Event::WorkspaceReady { workspace, .. } => {
            let base = workspace.base_commit.as_deref().unwrap_or("a repo without commits");
            let (made_by, branch) = (&workspace.made_by, &workspace.branch);
            told("workspace made", format!("by {made_by} from {base}, on branch {branch}"))
        }
        Event::LaunchPlanned { attempt, turn, resume, .. } => {
            let session = job.session().map(|session| session.id.to_string()).unwrap_or_default();
            let how = if *resume { "goes on in" } else { "opens" };
            told(
                format!("attempt {attempt} launched"),
                format!("turn {turn}; {how} session {session}"),
            )
        }
        Event::StopRequested { cause, .. } => told("stop requested", stop_in_words(*cause)),
        Event::TurnDone { .. } => told(format!("turn {} done", job.current_turn()), ""),
        Event::JobRequeued { cause, until, afresh, .. } => {
            requeued(job, *cause, *until, afresh.is_some())
        }
        Event::JobEnded { outcome, .. } => {
            told(format!("ended: {}", outcome_in_words(outcome.kind)), outcome.reason.clone())
        }
        Event::ServerStarted { .. }
        | Event::JobRepaired { .. }
        | Event::RepoRepaired { .. }
        | Event::OperationForgotten { .. }
        | Event::RepoAdded { .. }
        | Event::RepoReady { .. }
        | Event::RepoFailed { .. }
        | Event::RepoRemoved { .. }
        | Event::RepoForgotten { .. }
        | Event::OperationPlanned { .. }
        | Event::OperationEnded { .. }
        | Event::JobAccepted(_)
        | Event::JobHeld { .. }
        | Event::JobEdited { .. }
        | Event::AttemptEnded { .. }
        | Event::AttemptUnknown { .. }
        | Event::TurnAdded { .. }
        | Event::JobRemoved { .. }
        | Event::JobForgotten { .. }
        | Event::Adopted { .. }
        | Event::CaretakerPlanned { .. }
        | Event::RelaunchPlanned { .. } => return None,
    })
}

fn requeued(job: &Job, cause: RequeueCause, until: Option<Timestamp>, afresh: bool) -> Line {
    let (reason, rule) = match cause {
        RequeueCause::Asked => ("a person asked for it", String::new()),
        RequeueCause::Interruption => {
            let (n, most) = (job.interrupts + 1, job.task.max_interrupts);
            ("it was cut off", format!("try {n} of {most} after interruptions"))
        }
        RequeueCause::UsageLimit => ("its agent met a usage limit", "on_limit = wait".to_string()),
        RequeueCause::Overload => {
            ("its agent met an overloaded model", "on_limit = wait".to_string())
        }
        RequeueCause::Reopened => {
            let rule = "nothing was done, so it is still the same try".to_string();
            ("its conversation has to be opened in the other way", rule)
        }
    };
    let way = if afresh { "; afresh, in a new workspace" } else { "" };
    let (what, until) = match until {
        Some(until) => ("waits", format!(" until {until}")),
        None => ("queued again", String::new()),
    };
    Line { what: what.to_string(), because: format!("{reason}{way}{until}"), rule }
}

/// Why a job waits, for people.
pub fn reason_in_words(reason: &WaitReason) -> String {
    match reason {
        WaitReason::Repo { name } => format!("repo {name} is being cloned"),
        WaitReason::BackOff => "a pause before the next attempt".to_string(),
        WaitReason::StartTime => "its start time".to_string(),
        WaitReason::UsageLimit => "a usage limit of its agent's account".to_string(),
        WaitReason::Overload => "the model is overloaded".to_string(),
    }
}

fn stop_in_words(cause: StopCause) -> &'static str {
    match cause {
        StopCause::Cancel => "it is cancelled",
        StopCause::Timeout => "its running time is over",
        StopCause::OutputLimit => "it wrote more than it may",
        StopCause::IdleOutput => "it wrote nothing for longer than it may",
        StopCause::Survivors => "what is left of its tree has to end first",
    }
}

fn outcome_in_words(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Completed => "completed",
        OutcomeKind::Failed => "failed",
        OutcomeKind::TimedOut => "timed out",
        OutcomeKind::Cancelled => "cancelled",
        OutcomeKind::Interrupted => "interrupted",
    }
}
