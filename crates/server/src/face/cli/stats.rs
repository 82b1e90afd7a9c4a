//! `outlive stats`: what became of jobs, as tables.

use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value};

use super::failure::Failure;
use super::text::{NOTHING, at, bytes, clean, exact, items, number, table};
use super::{Context, SUCCESS, Status, print_json};

/// Tells what became of jobs: how many ended how, how long they took, what they used.
#[derive(Debug, Args)]
#[command(after_help = "\
P50 and P90 are within 6.25 % of the true value; counts and sums are exact.
A job counts with the outcome it has now; times and use count for every attempt.")]
pub(super) struct Stats {
    /// So many of the last days
    #[arg(long, default_value_t = 7, value_name = "N")]
    days: usize,
    /// Print the server's JSON, with every row there is
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let told = context.client.get("/api/stats")?.json()?;
        if self.json {
            return print_json(&told);
        }
        write!(std::io::stdout(), "{}", report(&told, self.days))?;
        Ok(SUCCESS)
    }
}

const HEADER: [&str; 14] = [
    "",
    "JOBS",
    "DONE",
    "FAILED",
    "TIMEOUT",
    "CANCEL",
    "INTERR",
    "QUEUE P50",
    "P90",
    "RUN P50",
    "P90",
    "CPU",
    "PEAK P90",
    "COST",
];

fn report(told: &Value, days: usize) -> String {
    let mut out = String::new();
    let section = |name: &str, rows: Vec<(String, Value)>| {
        let cells: Vec<[String; 14]> = rows.iter().map(|(name, row)| cells(name, row)).collect();
        let mut header = HEADER;
        header[0] = name;
        if cells.is_empty() { String::new() } else { format!("{}\n", table(header, &cells)) }
    };
    let total = ("all jobs".to_string(), told["total"].clone());
    out.push_str(&section("TOTAL", vec![total]));
    for (name, pointer) in [("ENGINE", "/engines"), ("REPO", "/repos"), ("OWNER", "/owners")] {
        out.push_str(&section(name, rows(told, pointer)));
    }
    let mut by_day = rows(told, "/days");
    out.push_str(&section("DAY", by_day.split_off(by_day.len().saturating_sub(days))));
    let n = |pointer| number(told, pointer).unwrap_or(0);
    let (queued, busy, max) = (n("/queued"), n("/busy"), n("/running_max"));
    let now = format!("now: {queued} queued, {busy} of {max} slots taken\n");
    let lost = items(told, "/incomplete").iter().map(|lost| {
        let (what, why) = (clean(at(lost, "/what")), clean(at(lost, "/why")));
        format!("NOT COMPLETE: {what} is damaged: {why}\n")
    });
    std::iter::once(out).chain([now]).chain(lost).collect()
}

/// The rows of an object, in the order of their names.
fn rows(told: &Value, pointer: &str) -> Vec<(String, Value)> {
    let empty = Map::new();
    let map = told.pointer(pointer).and_then(Value::as_object).unwrap_or(&empty);
    map.iter().map(|(name, row)| (clean(name), row.clone())).collect()
}

fn cells(name: &str, row: &Value) -> [String; 14] {
    let count = |pointer| number(row, pointer).unwrap_or(0).to_string();
    let time = |pointer| seconds(row.pointer(pointer));
    let peak = number(row, "/peak_memory_bytes/p90").map_or_else(|| NOTHING.to_string(), bytes);
    let cost = row.pointer("/usage/cost_usd").and_then(Value::as_f64).unwrap_or(0.0);
    [
        name.to_string(),
        count("/jobs/accepted"),
        count("/jobs/completed"),
        count("/jobs/failed"),
        count("/jobs/timed_out"),
        count("/jobs/cancelled"),
        count("/jobs/interrupted"),
        time("/queue_s/p50"),
        time("/queue_s/p90"),
        time("/run_s/p50"),
        time("/run_s/p90"),
        time("/cpu_s"),
        peak,
        if cost > 0.0 { format!("${cost:.2}") } else { NOTHING.to_string() },
    ]
}

fn seconds(value: Option<&Value>) -> String {
    let seconds = value.and_then(Value::as_f64);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.map_or_else(|| NOTHING.to_string(), exact)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statistics_are_tables_with_the_last_days_and_what_is_missing() {
        let row = json!({
            "jobs": { "accepted": 12, "completed": 7, "failed": 2, "timed_out": 1, "cancelled": 1, "interrupted": 0 },
            "queue_s": { "p50": 0.5, "p90": 61.0 }, "run_s": { "p50": 90.0, "p90": null },
            "cpu_s": 3.5, "peak_memory_bytes": { "p90": 1_572_864 }, "usage": { "cost_usd": 1.5 },
        });
        let told = json!({
            "total": row, "engines": { "demo": row }, "repos": {}, "owners": {},
            "days": { "2026-01-01": row, "2026-01-02": row }, "queued": 3, "busy": 1, "running_max": 2,
            "incomplete": [{ "what": "stats/total", "why": "checksum" }],
        });
        let report = report(&told, 1);
        let lines: Vec<&str> = report.lines().collect();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words(lines[1]),
            "all jobs 12 7 2 1 1 0 500 ms 1m 01s 1m 30s - 3.5 s 1.5 MiB $1.50"
        );
        assert!(lines[3].starts_with("ENGINE") && lines[4].starts_with("demo"), "{report}");
        assert!(!report.contains("2026-01-01") && report.contains("2026-01-02"), "{report}");
        assert!(report.ends_with(
            "now: 3 queued, 1 of 2 slots taken\nNOT COMPLETE: stats/total is damaged: checksum\n"
        ));
    }
}
