//! How a job's end becomes an exit code, and a sentence.

use serde_json::Value;

use super::Status;
use super::text::{at, between, clean, number};
use crate::exit_code::ExitCode;

/// Codes above belong to us or to signals, so an agent's own stop here.
const AGENT_CODE_MAX: u64 = 119;

/// Nothing more comes of it by itself: it ended, or nobody can say how.
pub(super) fn is_over(job: &Value) -> bool {
    ["ended", "unknown"].contains(&at(job, "/phase"))
}

/// The exit code of `run` and `wait` for a job that is over.
pub(super) fn status(job: &Value) -> Status {
    if at(job, "/phase") != "ended" {
        return ExitCode::Unknown as Status;
    }
    match at(job, "/outcome/kind") {
        "completed" => ExitCode::Success as Status,
        "failed" => failed(job),
        "interrupted" => ExitCode::Interrupted as Status,
        "timed_out" => ExitCode::TimedOut as Status,
        "cancelled" => ExitCode::Cancelled as Status,
        // A kind that a later server knows is certainly not a success.
        _ => ExitCode::Unknown as Status,
    }
}

fn failed(job: &Value) -> Status {
    let own = number(job, "/outcome/exit_code").filter(|code| (1..=AGENT_CODE_MAX).contains(code));
    let signal = number(job, "/outcome/signal").filter(|signal| (1..=64).contains(signal));
    let status = own.or(signal.map(|signal| 128 + signal));
    status.and_then(|status| Status::try_from(status).ok()).unwrap_or(ExitCode::Failed as Status)
}

/// A job's phase in one or two words, the outcome where there is one. For jobs of a list and whole ones.
pub(super) fn state(job: &Value) -> String {
    let phase = at(job, "/phase");
    if !at(job, "/unavailable").is_empty() {
        return "unknown: records lost".to_string();
    }
    let kind = at(job, "/outcome/kind");
    let kind = if kind.is_empty() { at(job, "/outcome") } else { kind };
    match (phase, number(job, "/queue_position")) {
        ("ended", _) if !kind.is_empty() => clean(&kind.replace('_', " ")),
        ("queued", Some(position)) => format!("queued ({position})"),
        _ => clean(phase),
    }
}

/// The end in one sentence: `job x failed after 3.2 s: exit code 42`.
pub(super) fn sentence(job: &Value) -> String {
    let after = between(at(job, "/started_at"), at(job, "/ended_at"));
    let after = after.map(|after| format!(" after {after}")).unwrap_or_default();
    let reason = at(job, "/outcome/reason");
    let reason = if reason.is_empty() { String::new() } else { format!(": {}", clean(reason)) };
    let mut text = format!("job {} {}{after}{reason}", at(job, "/id"), past(job));
    let disagreement = at(job, "/outcome/disagreement");
    if !disagreement.is_empty() {
        text.push_str("\nnote: ");
        text.push_str(&clean(disagreement));
    }
    text
}

fn past(job: &Value) -> String {
    match (at(job, "/phase"), at(job, "/outcome/kind")) {
        ("unknown", _) if !at(job, "/unavailable").is_empty() => {
            format!("cannot be judged: {}", clean(at(job, "/unavailable")))
        }
        ("unknown", _) => "ended in a way that nobody can prove (see `outlive why`)".to_string(),
        ("ended", "completed") => "completed".to_string(),
        ("ended", "failed") => "failed".to_string(),
        ("ended", "timed_out") => "timed out".to_string(),
        ("ended", kind) => format!("was {}", clean(kind)),
        _ => format!("is {}", state(job)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_outcome_has_the_promised_exit_code() {
        let job = |kind: &str, code: Value, signal: Value| json!({ "phase": "ended", "outcome": { "kind": kind, "exit_code": code, "signal": signal } });
        let null = || Value::Null;
        for (job, expected) in [
            (job("completed", json!(0), null()), 0),
            (job("completed", json!(3), null()), 0),
            (job("failed", json!(0), null()), 1),
            (job("failed", json!(1), null()), 1),
            (job("failed", json!(42), null()), 42),
            (job("failed", json!(119), null()), 119),
            (job("failed", json!(120), null()), 1),
            (job("failed", json!(255), null()), 1),
            (job("failed", null(), null()), 1),
            (job("failed", null(), json!(9)), 137),
            (job("failed", null(), json!(15)), 143),
            (job("failed", null(), json!(500)), 1),
            (job("interrupted", null(), json!(9)), 123),
            (job("timed_out", null(), json!(15)), 124),
            (job("cancelled", null(), json!(15)), 130),
            (job("evaporated", json!(0), null()), 125),
            (json!({ "phase": "unknown" }), 125),
            (json!({}), 125),
        ] {
            assert_eq!(status(&job), expected, "{job}");
        }
    }

    #[test]
    fn a_state_is_told_in_a_word_for_lists_and_whole_jobs() {
        for (job, told) in [
            (json!({ "phase": "ended", "outcome": "timed_out" }), "timed out"),
            (json!({ "phase": "ended", "outcome": { "kind": "failed" } }), "failed"),
            (json!({ "phase": "queued", "queue_position": 3 }), "queued (3)"),
            (json!({ "phase": "queued", "queue_position": null }), "queued"),
            (json!({ "phase": "running", "outcome": null }), "running"),
        ] {
            assert_eq!(state(&job), told);
        }
    }

    #[test]
    fn an_end_is_told_with_its_reason_and_disagreement() {
        let job = json!({
            "id": "abc", "phase": "ended",
            "started_at": "2026-01-02T03:04:05.000Z", "ended_at": "2026-01-02T03:04:08.250Z",
            "outcome": { "kind": "failed", "reason": "exit code 42", "disagreement": "it said\nyes" },
        });
        assert_eq!(sentence(&job), "job abc failed after 3.2 s: exit code 42\nnote: it said yes");
    }
}
