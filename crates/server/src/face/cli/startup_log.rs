//! `outlive startup-log`: what the server found and did when it started, as a time line.

use std::io::Write as _;

use clap::Args;
use outlive_core::time::Timestamp;
use serde_json::Value;

use super::failure::Failure;
use super::text::{ago, at, clean, items, table};
use super::{Context, SUCCESS, Status, print_json};
use crate::clock;

/// The time line's width in characters.
const WIDTH: usize = 40;

/// Tells what the server found and did at its last start, stage by stage; and how earlier starts went.
#[derive(Debug, Args)]
pub(super) struct StartupLog {
    /// Print the server's JSON
    #[arg(long)]
    json: bool,
}

impl StartupLog {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let told = context.client.get("/api/admin/startup-log")?.json()?;
        if self.json {
            return print_json(&told);
        }
        write!(std::io::stdout(), "{}", report(&told, clock::now()))?;
        Ok(SUCCESS)
    }
}

fn report(told: &Value, now: Timestamp) -> String {
    let current = &told["current"];
    let mut lines = vec![headline(current, now)];
    let before = clean(at(current, "/previous/text"));
    if !before.is_empty() {
        lines.push(format!("before it: {before}"));
    }
    lines.extend(stages(current).lines().map(str::to_string));
    for stage in items(current, "/stages") {
        let name = clean(at(stage, "/name"));
        for note in items(stage, "/notes").iter().filter_map(Value::as_str) {
            lines.push(format!("! {name}: {}", clean(note)));
        }
        if let Some(error) = stage["error"].as_str() {
            let tries = &stage["attempts"];
            lines.push(format!("! {name}: tried {tries} times; last failure: {}", clean(error)));
        }
    }
    for degraded in items(current, "/degraded") {
        let (what, why) = (clean(at(degraded, "/resource")), clean(at(degraded, "/cause")));
        let since = ago(at(degraded, "/since"), now);
        lines.push(format!("! not available, known since {since}: {what}: {why}"));
        lines.push(format!("    remedy: {}", clean(at(degraded, "/remedy"))));
    }
    lines.push(closing(current));
    let history = items(told, "/history");
    if !history.is_empty() {
        lines.push("\nearlier starts".to_string());
        lines.extend(history.iter().map(|start| format!("  {}", earlier(start, now))));
    }
    lines.join("\n") + "\n"
}

fn headline(start: &Value, now: Timestamp) -> String {
    let (number, version) = (&start["number"], clean(at(start, "/version")));
    let started = at(start, "/started_at");
    format!("start {number} of outlive {version}, {} ({})", ago(started, now), clean(started))
}

/// A bar for each stage, from when it began; stages side by side have theirs one below the other.
fn stages(start: &Value) -> String {
    let stages = items(start, "/stages");
    let ms = |stage: &Value, what: &str| stage[what].as_f64().unwrap_or(0.0).max(0.0);
    let began = |stage: &Value| ms(stage, "started_ms");
    let took = |stage: &Value| ms(stage, "duration_ms");
    let total = stages.iter().map(|stage| began(stage) + took(stage)).fold(0.0, f64::max);
    let row = |stage: &Value| {
        let counts = stage["counts"].as_object();
        let counts = counts.into_iter().flatten().filter(|(_, count)| **count != 0);
        let mut told: Vec<String> = counts
            .map(|(name, count)| format!("{count} {}", clean(&name.replace('_', " "))))
            .collect();
        let standing = at(stage, "/standing");
        if standing != "done" {
            told.insert(0, clean(standing));
        }
        let time = format!("{:>8.1} ms", took(stage));
        let bar = bar(began(stage), took(stage), total);
        [format!("  {}", clean(at(stage, "/name"))), bar, time, told.join(", ")]
    };
    let rows: Vec<[String; 4]> = stages.iter().map(row).collect();
    table(["", "", "", ""], &rows)
}

/// A piece of the time line, at least one character long; everything else is dots.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a position on a line of 40 characters; casts from floats saturate"
)]
fn bar(begun: f64, took: f64, total: f64) -> String {
    let share = |part: f64| if total > 0.0 { part / total * WIDTH as f64 } else { 0.0 };
    let from = (share(begun).round() as usize).min(WIDTH - 1);
    let to = (share(begun + took).round() as usize).clamp(from + 1, WIDTH);
    format!("{}{}{}", "·".repeat(from), "█".repeat(to - from), "·".repeat(WIDTH - to))
}

fn closing(start: &Value) -> String {
    let summary = clean(at(start, "/summary"));
    if start["ready"].as_bool() != Some(true) {
        let over = start["ended_at"].is_string() && !summary.is_empty();
        return if over { summary } else { "the server is still recovering".to_string() };
    }
    format!("ready: {summary}")
}

fn earlier(start: &Value, now: Timestamp) -> String {
    let when = ago(at(start, "/started_at"), now);
    let told = clean(at(start, "/summary"));
    let how = if told.is_empty() { "did not come to its end".to_string() } else { told };
    format!("{}  {when}  {how}", start["number"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_start_is_told_as_a_time_line_with_its_closing_sentence() {
        let now = clock::parse("2026-01-02T03:04:10Z").expect("a time");
        let stage = |name: &str, from: f64, ms: f64, counts: Value, notes: Value| {
            json!({
                "name": name, "started_ms": from, "duration_ms": ms, "counts": counts,
                "notes": notes, "standing": "done",
            })
        };
        let mut trash = stage("trash", 1.0, 1.0, json!({}), json!([]));
        trash["standing"] = json!("failed");
        trash["attempts"] = json!(4);
        trash["error"] = json!("not a directory");
        let told = json!({
            "current": {
                "number": 3, "started_at": "2026-01-02T03:04:05.000Z", "version": "0.1.0",
                "ready": true, "ready_ms": 4.0, "summary": "105 jobs recovered, 4.0 ms",
                "stages": [
                    stage("storage", 0.0, 1.0, json!({ "records": 7, "bytes_cut": 0 }), json!(["cut\n3"])),
                    stage("state", 1.0, 0.01, json!({}), json!([])),
                    stage("attempts", 1.0, 3.0, json!({ "adopted": 1, "concluded": 1 }), json!([])),
                    trash,
                ],
                "previous": { "text": "start 2 was killed, or crashed" },
                "degraded": [{
                    "resource": "job abc", "cause": "unreadable", "remedy": "mend it",
                    "since": "2026-01-02T02:04:10.000Z",
                }],
            },
            "history": [
                { "number": 2, "started_at": "2026-01-02T03:03:05.000Z", "ready": true, "summary": "ok" },
                { "number": 1, "started_at": "2026-01-02T02:03:05.000Z", "ready": false },
            ],
        });
        let expected = format!(
            "start 3 of outlive 0.1.0, 5s ago (2026-01-02T03:04:05.000Z)\n\
             before it: start 2 was killed, or crashed\n\
             \x20 storage   {}{}       1.0 ms  7 records\n\
             \x20 state     {}█{}       0.0 ms\n\
             \x20 attempts  {}{}       3.0 ms  1 adopted, 1 concluded\n\
             \x20 trash     {}{}{}       1.0 ms  failed\n\
             ! storage: cut 3\n\
             ! trash: tried 4 times; last failure: not a directory\n\
             ! not available, known since 1h ago: job abc: unreadable\n\
             \x20   remedy: mend it\n\
             ready: 105 jobs recovered, 4.0 ms\n\
             \nearlier starts\n  2  1m ago  ok\n  1  1h ago  did not come to its end\n",
            "█".repeat(10),
            "·".repeat(30),
            "·".repeat(10),
            "·".repeat(29),
            "·".repeat(10),
            "█".repeat(30),
            "·".repeat(10),
            "█".repeat(10),
            "·".repeat(20),
        );
        assert_eq!(report(&told, now), expected);
    }

    #[test]
    fn a_start_that_is_under_way_says_so() {
        let now = clock::parse("2026-01-02T03:04:10Z").expect("a time");
        let told =
            json!({ "current": { "number": 1, "ready": false, "stages": [] }, "history": [] });
        assert!(report(&told, now).ends_with("the server is still recovering\n"));
    }

    #[test]
    fn a_bar_is_never_empty_and_never_too_long() {
        for (begun, took, total) in [
            (0.0, 0.0, 0.0),
            (0.0, 5.0, 5.0),
            (5.0, 0.0, 5.0),
            (9.0, 9.0, 5.0),
            (0.0, f64::NAN, 1.0),
        ] {
            let bar = bar(begun, took, total);
            assert_eq!(bar.chars().count(), WIDTH, "{begun} {took} {total}");
            assert!(bar.contains('█'), "{begun} {took} {total}");
        }
    }
}
