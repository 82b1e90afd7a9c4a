//! `why`: the story of a job as State has it, which is the sum of its records.

use outlive_core::event::job_entity;
use outlive_core::ids::RepoName;
use outlive_core::job::{Decision, Job};
use outlive_core::limits;
use outlive_core::state::State;
use serde_json::{Value, json};

use crate::clock::rfc3339;

/// Everything that was decided about a job, its acceptance first.
pub(super) fn story(job: &Job, state: &State) -> Value {
    let mut decisions = vec![accepted(job)];
    let kept = limits::DECISIONS_MAX / 4;
    for (index, decision) in job.decisions.iter().enumerate() {
        if index == kept && job.decisions_dropped > 0 {
            decisions.push(gap(job.decisions_dropped, decision));
        }
        decisions.push(line(decision));
    }
    json!({
        "id": job.id, "phase": state.phase_name(job), "accepted": job.accepted,
        "unavailable": state.unavailable(&job_entity(&job.id)),
        "decisions": decisions, "dropped": job.decisions_dropped,
    })
}

fn line(decision: &Decision) -> Value {
    let Decision { lsn, at, start, what, because, rule, times } = decision;
    json!({
        "lsn": lsn, "at": rfc3339(*at), "start": start, "what": what, "because": because,
        "rule": rule, "times": times, "text": text(what, because, rule),
    })
}

/// The decision in one line.
fn text(what: &str, because: &str, rule: &str) -> String {
    let because = if because.is_empty() { String::new() } else { format!(": {because}") };
    let rule = if rule.is_empty() { String::new() } else { format!(" ({rule})") };
    format!("{what}{because}{rule}")
}

/// Acceptance is part of the job itself, not of its decisions.
fn accepted(job: &Job) -> Value {
    let repos: Vec<&str> = job.task.repos.iter().map(RepoName::as_str).collect();
    let because = format!(
        "from {}: engine {}, repo {}, priority {}",
        job.owner,
        job.task.engine,
        repos.join(", "),
        job.task.priority
    );
    json!({
        "lsn": job.accepted, "at": rfc3339(job.created_at), "start": Value::Null,
        "what": "accepted", "because": because, "rule": "", "times": 1,
        "text": text("accepted", &because, ""),
    })
}

/// What is no longer kept is said, where it stood.
fn gap(dropped: u32, next: &Decision) -> Value {
    let because = format!("a job keeps {} of them", limits::DECISIONS_MAX);
    let what = format!("{dropped} decisions that were taken here are no longer kept");
    json!({
        "lsn": Value::Null, "at": rfc3339(next.at), "start": next.start,
        "what": what, "because": because, "rule": "", "times": 1,
        "text": text(&what, &because, ""),
    })
}
