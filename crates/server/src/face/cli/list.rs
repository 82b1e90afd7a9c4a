//! `outlive list`: jobs, newest first.

use std::io::Write as _;

use clap::Args;
use outlive_core::time::Timestamp;
use serde_json::{Value, json};

use super::ending::state;
use super::failure::Failure;
use super::text::{ago, at, clean, items, short, table};
use super::{Context, SUCCESS, Status, print_json};
use crate::clock;
use crate::face::client::{Client, ClientError, escape};

/// Jobs asked for at once: what the server gives at most.
const PAGE: usize = 1000;

/// Lists jobs, newest first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outlive list
  outlive list --phase running
  outlive list --outcome failed --repo web --limit 10
  outlive list --json | jq -r '.jobs[].id'")]
pub(super) struct List {
    /// Only in this phase: held, queued, waiting, preparing, running, stopping, unknown, ended
    #[arg(long)]
    phase: Option<String>,
    /// Only with this outcome: completed, failed, `timed_out`, cancelled, interrupted
    #[arg(long)]
    outcome: Option<String>,
    /// Only of this repository
    #[arg(long)]
    repo: Option<String>,
    /// Only of this engine
    #[arg(long)]
    engine: Option<String>,
    /// Only of this group
    #[arg(long)]
    group: Option<String>,
    /// Only with this text in title or prompt
    #[arg(short, value_name = "TEXT")]
    query: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// Print the server's JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let filters = [
            ("phase", &self.phase),
            ("outcome", &self.outcome),
            ("repo", &self.repo),
            ("engine", &self.engine),
            ("group", &self.group),
            ("q", &self.query),
        ];
        let given = filters.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let found = jobs(&context.client, &given.collect::<Vec<_>>(), self.limit)?;
        if self.json {
            return print_json(&found);
        }
        let mut out = std::io::stdout().lock();
        write!(out, "{}", lines(&found))?;
        if !found["next_cursor"].is_null() {
            writeln!(out, "… there are more: --limit N shows them")?;
        }
        let hindrance = clean(at(&found, "/hindrance"));
        if !hindrance.is_empty() {
            writeln!(out, "nothing that is queued begins; it waits for {hindrance}")?;
        }
        Ok(SUCCESS)
    }
}

/// The server's answer about at most so many jobs, pages put together.
pub(super) fn jobs(
    client: &Client,
    filters: &[(&str, &str)],
    limit: usize,
) -> Result<Value, ClientError> {
    let term = |(name, value): &(&str, &str)| format!("&{name}={}", escape(value));
    let query: String = filters.iter().map(term).collect();
    let mut found: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    // Each page brings at least one job more, or is the last.
    loop {
        let wanted = (limit - found.len()).clamp(1, PAGE);
        let path = format!("/api/jobs?limit={wanted}{cursor}{query}");
        let mut page = client.get(&path)?.json()?;
        let new = items(&page, "/jobs");
        let last = new.is_empty();
        found.extend_from_slice(new);
        let next = page["next_cursor"].clone();
        if last || next.is_null() || found.len() >= limit {
            page["jobs"] = json!(found);
            return Ok(page);
        }
        cursor = format!("&cursor={next}");
    }
}

fn lines(found: &Value) -> String {
    let now = clock::now();
    let row = |job: &Value| {
        let repos: Vec<&str> =
            items(job, "/repos").iter().filter_map(|repo| repo.as_str()).collect();
        let title = short(at(job, "/title"), 60);
        let engine = clean(at(job, "/engine"));
        let created = ago(at(job, "/created_at"), now);
        let starts = starts(job, now);
        [clean(at(job, "/id")), state(job), starts, repos.join(","), engine, created, title]
    };
    let rows: Vec<[String; 7]> = items(found, "/jobs").iter().map(row).collect();
    if rows.is_empty() {
        return "no jobs\n".to_string();
    }
    table(["ID", "STATE", "STARTS", "REPO", "ENGINE", "CREATED", "TITLE"], &rows)
}

/// When a job that does not run will go on: at a time that is known, or probably.
fn starts(job: &Value, now: Timestamp) -> String {
    match (at(job, "/waiting/until"), at(job, "/estimated_start")) {
        ("", "") => String::new(),
        ("", estimate) => format!("~{}", ago(estimate, now)),
        (until, _) => ago(until, now),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::face::client::tests::{answer, peer};

    #[test]
    fn a_list_is_a_table_of_clean_lines() {
        let created = clock::rfc3339(clock::now());
        let in_a_year = clock::now().after(Duration::from_hours(366 * 24 - 1));
        let found = json!({ "jobs": [
            { "id": "abcdefghijkl", "phase": "ended", "outcome": "failed", "repos": ["web"],
              "engine": "demo", "created_at": created, "title": "a\u{1b}b" },
            { "id": "bcdefghijklm", "phase": "queued", "queue_position": 2, "repos": ["web"],
              "engine": "claude", "created_at": created, "title": null,
              "estimated_start": clock::rfc3339(in_a_year) },
        ] });
        let lines = lines(&found);
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines[0], "ID            STATE       STARTS    REPO  ENGINE  CREATED  TITLE");
        assert!(
            lines[1].starts_with("abcdefghijkl  failed                web   demo    "),
            "{}",
            lines[1]
        );
        assert!(lines[1].ends_with(" ago   a b"), "{}", lines[1]);
        assert!(
            lines[2].starts_with("bcdefghijklm  queued (2)  ~in 365d  web   claude  "),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn pages_are_put_together_up_to_the_limit() {
        let page = |ids: &[u32], next: Value| {
            let jobs: Vec<Value> = ids.iter().map(|id| json!({ "id": id })).collect();
            answer("200 OK", "", &json!({ "jobs": jobs, "next_cursor": next }).to_string())
        };
        let (server, asked) =
            peer(vec![page(&[5, 4], json!(4)), page(&[3], json!(3)), page(&[2], Value::Null)]);
        let client = Client::new(server, None);
        let found = jobs(&client, &[("group", "a b&c")], 3).expect("listed");
        assert_eq!(items(&found, "/jobs").len(), 3);
        assert_eq!(found["next_cursor"], 3);
        let found = jobs(&client, &[], 3).expect("listed");
        assert_eq!((items(&found, "/jobs").len(), found["next_cursor"].is_null()), (1, true));
        let asked: Vec<String> = asked
            .iter()
            .map(|asked| asked.split(' ').nth(1).unwrap_or_default().to_string())
            .collect();
        assert_eq!(
            asked,
            [
                "/api/jobs?limit=3&group=a%20b%26c",
                "/api/jobs?limit=1&cursor=4&group=a%20b%26c",
                "/api/jobs?limit=3"
            ]
        );
    }
}
