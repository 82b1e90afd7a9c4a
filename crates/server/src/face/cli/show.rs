//! `outlive show`: a short report on a job.

use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use outlive_core::time::Timestamp;
use serde_json::Value;

use super::ending::state;
use super::failure::Failure;
use super::follow::job;
use super::text::{ago, at, between, bytes, clean, exact, items, number, short};
use super::{Context, SUCCESS, Status, print_json};
use crate::clock;

/// Reports on a job: where it is, its attempts, what came of them, and what can be asked of it now.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The job
    #[arg(value_name = "ID")]
    id: String,
    /// Print the server's JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let job = job(&context.client, &self.id)?;
        if self.json {
            return print_json(&job);
        }
        write!(std::io::stdout(), "{}", report(&job, clock::now()))?;
        Ok(SUCCESS)
    }
}

/// Lines of a name and what there is to say; a line without anything to say is left out.
struct Report(Vec<String>);

impl Report {
    fn line(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.0.push(format!("{name:<11}{}\n", clean(text)));
        }
    }
}

fn report(job: &Value, now: Timestamp) -> String {
    let mut report = Report(Vec::new());
    report.line("job", &joined(&[at(job, "/id"), at(job, "/title")], "  "));
    report.line("phase", &phase(job, now));
    report.line("outcome", &outcome(job.get("outcome").unwrap_or(&Value::Null)));
    report.line("NOTE", at(job, "/outcome/disagreement"));
    report.line("repo", &repo(job));
    report.line("workspace", &workspace(job));
    report.line("engine", &engine(job));
    report.line("prompt", &prompt(job));
    for attempt in items(job, "/attempts") {
        report.line("attempt", &attempt_line(attempt));
    }
    report.line("agent", &agent(job));
    report.line("output", &output(job));
    report.line("NOTE", &stalled(job));
    report.line("usage", &usage(job));
    report.line("resources", &resources(job));
    for note in items(job, "/degraded").iter().filter_map(|note| note.as_str()) {
        report.line("degraded", note);
    }
    report.line("now", &actions(job));
    report.0.concat()
}

fn joined(parts: &[&str], between: &str) -> String {
    let there = parts.iter().copied().filter(|part| !part.is_empty());
    there.collect::<Vec<_>>().join(between)
}

fn phase(job: &Value, now: Timestamp) -> String {
    let mut text = state(job);
    let waiting = at(job, "/waiting/reason");
    if !waiting.is_empty() {
        let until = at(job, "/waiting/until");
        let until =
            if until.is_empty() { String::new() } else { format!(", until {}", ago(until, now)) };
        text = format!("{text} for {waiting}{until}");
    }
    let estimate = at(job, "/estimated_start");
    if !estimate.is_empty() {
        text = format!("{text}, probably starts {}", ago(estimate, now));
    }
    let run = between(at(job, "/started_at"), at(job, "/ended_at"));
    let times = [("created", "/created_at"), ("started", "/started_at"), ("ended", "/ended_at")];
    for (name, pointer) in times {
        let time = at(job, pointer);
        if !time.is_empty() {
            text = format!("{text}, {name} {}", ago(time, now));
        }
    }
    if let Some(run) = run {
        text = format!("{text} (ran {run})");
    }
    text
}

/// How something ended: `failed: exit code 42`.
fn outcome(outcome: &Value) -> String {
    let kind = at(outcome, "/kind").replace('_', " ");
    if kind.is_empty() {
        return kind;
    }
    let status = match (number(outcome, "/exit_code"), number(outcome, "/signal")) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => String::new(),
    };
    let reason = at(outcome, "/reason");
    // Often the reason is nothing more than the status, in the same words.
    let status = if status == reason { String::new() } else { status };
    let unproven = at(outcome, "/exit_status") == "unproven";
    let status = if unproven { joined(&[&status, "unproven"], ", ") } else { status };
    let status = if status.is_empty() { status } else { format!(" ({status})") };
    joined(&[&format!("{kind}{status}"), reason], ": ")
}

fn repo(job: &Value) -> String {
    let names: Vec<&str> = items(job, "/repos").iter().filter_map(Value::as_str).collect();
    let base = at(job, "/workspace/base_commit");
    let base = base.get(..12).unwrap_or(base);
    let base = if base.is_empty() { String::new() } else { format!("from commit {base}") };
    joined(&[&names.join(", "), &base], ", ")
}

fn workspace(job: &Value) -> String {
    let branch = at(job, "/workspace/branch");
    let branch = if branch.is_empty() { String::new() } else { format!("on branch {branch}") };
    let made = at(job, "/workspace/made_by");
    let made = if made.is_empty() { String::new() } else { format!("made by {made}") };
    joined(&[at(job, "/workspace/path"), &branch, &made], ", ")
}

fn engine(job: &Value) -> String {
    let model = at(job, "/model");
    let model = if model.is_empty() { String::new() } else { format!("model {model}") };
    let turn = number(job, "/turn").filter(|turn| *turn > 1);
    let turn = turn.map(|turn| format!("turn {turn}")).unwrap_or_default();
    let priority = number(job, "/priority").map(|n| format!("priority {n}")).unwrap_or_default();
    let timeout = number(job, "/timeout_s").map(Duration::from_secs).map(exact);
    let timeout = timeout.map(|time| format!("timeout {time}")).unwrap_or_default();
    joined(&[at(job, "/engine"), &model, &turn, &priority, &timeout], ", ")
}

fn prompt(job: &Value) -> String {
    let argv: Vec<&str> =
        items(job, "/engine_options/argv").iter().filter_map(Value::as_str).collect();
    let argv = if argv.is_empty() { String::new() } else { format!("$ {}", argv.join(" ")) };
    joined(&[&short(&argv, 100), &short(at(job, "/prompt"), 100)], "  < ")
}

/// An attempt's number, turn, end, length and output.
fn attempt_line(attempt: &Value) -> String {
    let n = number(attempt, "/n").unwrap_or(0);
    let turn = number(attempt, "/turn").unwrap_or(0);
    let resumed = attempt["resume"].as_bool() == Some(true);
    let opening = if resumed { ", resumed" } else { "" };
    let by = at(attempt, "/ended_by").replace('_', " ");
    if by.is_empty() {
        return format!("{n} (turn {turn}{opening}): under way");
    }
    let took = between(at(attempt, "/started_at"), at(attempt, "/ended_at"));
    let took = took.map(|took| format!(" after {took}")).unwrap_or_default();
    let by = if by == "exit" { String::new() } else { format!("; ended by {by}") };
    let written = number(attempt, "/output_to")
        .zip(number(attempt, "/output_from"))
        .map(|(to, from)| format!(", {} of output", bytes(to.saturating_sub(from))))
        .unwrap_or_default();
    let how = outcome(&attempt["outcome"]);
    let best_effort = at(attempt, "/tree_stop") == "best_effort";
    let tree = if best_effort { "; process tree ended as far as found" } else { "" };
    format!("{n} (turn {turn}{opening}): {how}{by}{took}{written}{tree}")
}

fn agent(job: &Value) -> String {
    let pid = number(job, "/evidence/agent_pid").map(|pid| format!("pid {pid}"));
    let class = at(job, "/heartbeat/class");
    let age = number(job, "/heartbeat/age_s");
    let age = age.map(|age| format!(", {} ago", exact(Duration::from_secs(age))));
    let beat = if class.is_empty() {
        String::new()
    } else {
        format!("heartbeat {class}{}", age.unwrap_or_default())
    };
    let frozen = match at(job, "/frozen/reason") {
        "" => String::new(),
        reason => format!("FROZEN: {reason}"),
    };
    let (pid, warning) = (pid.unwrap_or_default(), at(job, "/heartbeat/warning"));
    joined(&[at(job, "/evidence/agent"), &pid, &beat, warning, &frozen], ", ")
}

fn output(job: &Value) -> String {
    let size = number(job, "/output_bytes").map(bytes).unwrap_or_default();
    let truncated = job["output_truncated"].as_bool() == Some(true);
    joined(&[&size, if truncated { "TRUNCATED by somebody" } else { "" }], ", ")
}

/// A notice only: nothing follows from it.
fn stalled(job: &Value) -> String {
    let time = number(job, "/stalled/for_s").map(Duration::from_secs);
    time.map(|time| format!("no output for {}", exact(time))).unwrap_or_default()
}

fn usage(job: &Value) -> String {
    let tokens = |pointer, what| number(job, pointer).map(|n| format!("{n} tokens {what}"));
    let input = tokens("/usage/input_tokens", "in").unwrap_or_default();
    let output = tokens("/usage/output_tokens", "out").unwrap_or_default();
    let cost = job.pointer("/usage/cost_usd").and_then(Value::as_f64);
    let cost = cost.map(|cost| format!("${cost:.4}")).unwrap_or_default();
    joined(&[&input, &output, &cost], ", ")
}

fn resources(job: &Value) -> String {
    let cpu = job.pointer("/resources/cpu_s").and_then(Value::as_f64);
    let cpu = cpu.map(|seconds| format!("{seconds:.1} s of CPU")).unwrap_or_default();
    let memory = number(job, "/resources/peak_memory_bytes").map(bytes);
    let memory = memory.map(|memory| format!("at most {memory} of memory")).unwrap_or_default();
    joined(&[&cpu, &memory], ", ")
}

/// The commands that make sense now.
fn actions(job: &Value) -> String {
    let allowed: Vec<&str> = items(job, "/actions").iter().filter_map(Value::as_str).collect();
    if allowed.is_empty() {
        String::new()
    } else {
        format!("can be asked to: {}", allowed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ended() -> Value {
        json!({
            "id": "abcdefghijkl", "title": "Fix\u{7} it", "phase": "ended", "queue_position": null,
            "repos": ["web"], "engine": "claude", "model": "big", "priority": 50, "timeout_s": 7200,
            "turn": 2, "prompt": "please fix\nall of it", "waiting": null,
            "created_at": "2026-01-02T03:00:00.000Z", "started_at": "2026-01-02T03:01:00.000Z",
            "ended_at": "2026-01-02T03:02:05.000Z",
            "outcome": { "kind": "failed", "exit_code": 42, "signal": null, "exit_status": "exact",
                "reason": "exit code 42", "disagreement": "the agent says that it succeeded" },
            "attempts": [
                { "n": 1, "turn": 1, "resume": false, "ended_by": "interruption",
                  "started_at": "2026-01-02T03:01:00.000Z", "ended_at": "2026-01-02T03:01:03.000Z",
                  "output_from": 0, "output_to": 509, "tree_stop": "proved",
                  "outcome": { "kind": "interrupted", "exit_status": "unproven", "reason": "reboot" } },
                { "n": 2, "turn": 2, "resume": true, "ended_by": null },
            ],
            "workspace": { "path": "/data/jobs/abcdefghijkl/workspace", "made_by": "reflink",
                "base_commit": "0123456789abcdef0123", "branch": "outlive/abcdefghijkl" },
            "usage": { "input_tokens": 12, "output_tokens": 34, "cost_usd": 0.0123 },
            "resources": { "cpu_s": 1.25, "peak_memory_bytes": 1_572_864 },
            "heartbeat": { "class": "fresh", "age_s": 12 },
            "evidence": { "agent": "alive", "agent_pid": 77 },
            "stalled": { "since": "2026-01-02T02:54:10.000Z", "for_s": 600 },
            "output_bytes": 509, "output_truncated": false, "degraded": ["no cgroup"],
            "actions": ["resume", "retry", "remove"],
        })
    }

    const REPORT: &str = "\
job        abcdefghijkl  Fix  it
phase      failed, created 4m ago, started 3m ago, ended 2m ago (ran 1m 05s)
outcome    failed: exit code 42
NOTE       the agent says that it succeeded
repo       web, from commit 0123456789ab
workspace  /data/jobs/abcdefghijkl/workspace, on branch outlive/abcdefghijkl, made by reflink
engine     claude, model big, turn 2, priority 50, timeout 2h 00m
prompt     please fix…
attempt    1 (turn 1): interrupted (unproven): reboot; ended by interruption after 3.0 s, 509 bytes of output
attempt    2 (turn 2, resumed): under way
agent      alive, pid 77, heartbeat fresh, 12.0 s ago
output     509 bytes
NOTE       no output for 10m 00s
usage      12 tokens in, 34 tokens out, $0.0123
resources  1.2 s of CPU, at most 1.5 MiB of memory
degraded   no cgroup
now        can be asked to: resume, retry, remove
";

    #[test]
    fn a_report_tells_everything_there_is_and_nothing_else() {
        let now = clock::parse("2026-01-02T03:04:10Z").expect("a time");
        assert_eq!(report(&ended(), now), REPORT);
        assert_eq!(
            report(&json!({ "id": "a", "phase": "queued" }), now),
            "job        a\nphase      queued\n"
        );
    }

    #[test]
    fn a_waiting_job_says_for_what_and_how_long() {
        let now = clock::parse("2026-01-02T03:04:10Z").expect("a time");
        let waiting = json!({ "phase": "waiting", "waiting": {
            "reason": "its start time", "until": "2026-01-02T04:04:10.000Z",
        } });
        assert_eq!(phase(&waiting, now), "waiting for its start time, until in 1h");
    }

    #[test]
    fn a_queued_job_says_when_it_will_probably_start() {
        let now = clock::parse("2026-01-02T03:04:10Z").expect("a time");
        let queued = json!({ "phase": "queued", "queue_position": 3,
            "estimated_start": "2026-01-02T03:09:10.000Z" });
        assert_eq!(phase(&queued, now), "queued (3), probably starts in 5m");
    }

    #[test]
    fn a_command_is_shown_with_its_input() {
        let job = json!({ "engine_options": { "argv": ["make", "test"] }, "prompt": "" });
        assert_eq!(prompt(&job), "$ make test");
    }
}
