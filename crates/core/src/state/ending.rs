//! How an attempt ended: from verdict and evidence to what is kept of it.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::decide::told;
use crate::engine::{self, Limit};
use crate::evidence::{AgentResult, Evidence};
use crate::job::{AttemptEnd, EndedBy, ExitStatus, Job, Outcome, OutcomeKind, Phase};
use crate::recovery::{Interruption, Verdict};
use crate::request::Report;
use crate::spec::{self, Ending, Reading, StopCause};
use crate::time::Timestamp;

/// All there is to say of an attempt that is over.
pub(super) fn attempt_end(
    job: &Job,
    verdict: &Verdict,
    report: &Report,
    now: Timestamp,
) -> AttemptEnd {
    let evidence = &report.evidence;
    let started = evidence.started.valid();
    let recorded = evidence.outcome.valid();
    let empty = evidence.tree_empty.valid();
    let (mut ended_by, outcome) = how_it_ended(job, verdict, evidence);
    let told = matches!(ended_by, EndedBy::Exit | EndedBy::Signal | EndedBy::ResultRecord);
    if let (true, OutcomeKind::Failed, Some(limit)) = (told, outcome.kind, report.findings.limit) {
        ended_by = match limit {
            Limit::Usage { .. } => EndedBy::UsageLimit,
            Limit::Overload => EndedBy::Overload,
        };
    }
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
        Verdict::Interrupted(Interruption::Copied) => {
            let reason = "it ran in the data directory that this one is a copy of";
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
pub(super) fn concluded(
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
