//! `outlive why`: the decisions taken about a job.

use std::io::Write as _;

use clap::Args;
use outlive_core::time::Timestamp;
use serde_json::Value;

use super::failure::Failure;
use super::text::{ago, at, clean, items, number, table};
use super::{Context, SUCCESS, Status, note, print_json};
use crate::clock;
use crate::face::client::escape;

/// Tells every decision taken about a job: the evidence, the rule, and the lsn of its record.
#[derive(Debug, Args)]
pub(super) struct Why {
    /// The job
    #[arg(value_name = "ID")]
    id: String,
    /// Print the server's JSON
    #[arg(long)]
    json: bool,
}

impl Why {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let path = format!("/api/jobs/{}/why", escape(&self.id));
        let told = context.client.get(&path)?.json()?;
        if self.json {
            return print_json(&told);
        }
        write!(std::io::stdout(), "{}", lines(&told, clock::now()))?;
        let lost = clean(at(&told, "/unavailable"));
        if !lost.is_empty() {
            let id = clean(at(&told, "/id"));
            note(&format!("its records cannot be read from here on: {lost}"));
            note(&format!("`outlive repair {id}` takes it up again"));
        }
        Ok(SUCCESS)
    }
}

fn lines(told: &Value, now: Timestamp) -> String {
    let row = |decision: &Value| {
        let lsn = number(decision, "/lsn").map(|lsn| lsn.to_string()).unwrap_or_default();
        let start = number(decision, "/start").map(|start| start.to_string()).unwrap_or_default();
        let times = number(decision, "/times").filter(|times| *times > 1);
        let times = times.map(|times| format!(" (×{times} in a row)")).unwrap_or_default();
        let text = format!("{}{times}", clean(at(decision, "/text")));
        [lsn, start, ago(at(decision, "/at"), now), text]
    };
    let rows: Vec<[String; 4]> = items(told, "/decisions").iter().map(row).collect();
    table(["LSN", "START", "WHEN", "DECISION"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn decisions_are_told_with_their_record_and_the_start_that_took_them() {
        let now = clock::parse("2026-01-02T03:04:10Z").expect("a time");
        let at = "2026-01-02T03:04:00.000Z";
        let accepted = json!({ "lsn": 3, "at": at, "start": null, "text": "accepted", "times": 1 });
        let adopted =
            json!({ "lsn": 12, "at": at, "start": 7, "text": "adopted: lock\nheld", "times": 2 });
        assert_eq!(
            lines(&json!({ "decisions": [accepted, adopted] }), now),
            "LSN  START  WHEN     DECISION\n\
             3           10s ago  accepted\n\
             12   7      10s ago  adopted: lock held (×2 in a row)\n"
        );
    }
}
