//! `outlive why`: the decisions taken about a job.

use std::io::Write as _;

use clap::Args;
use outlive_core::time::Timestamp;
use serde_json::Value;

use super::failure::Failure;
use super::text::{ago, at, clean, items, number, table};
use super::{Context, SUCCESS, Status, print_json};
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
        Ok(SUCCESS)
    }
}

fn lines(told: &Value, now: Timestamp) -> String {
    let row = |decision: &Value| {
        let lsn = number(decision, "/lsn").map(|lsn| lsn.to_string()).unwrap_or_default();
        [lsn, ago(at(decision, "/at"), now), clean(at(decision, "/text"))]
    };
    let rows: Vec<[String; 3]> = items(told, "/decisions").iter().map(row).collect();
    if rows.is_empty() {
        let (id, phase) = (clean(at(told, "/id")), clean(at(told, "/phase")));
        return format!("job {id} is {phase}; nothing had to be decided about it so far\n");
    }
    table(["LSN", "WHEN", "DECISION"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn decisions_are_told_with_their_record() {
        let now = clock::parse("2026-01-02T03:04:10Z").expect("a time");
        let decision =
            json!({ "lsn": 12, "at": "2026-01-02T03:04:00.000Z", "text": "adopted: lock\nheld" });
        assert_eq!(
            lines(&json!({ "decisions": [decision] }), now),
            "LSN  WHEN     DECISION\n12   10s ago  adopted: lock held\n"
        );
        let none = json!({ "id": "abc", "phase": "queued", "decisions": [] });
        assert_eq!(
            lines(&none, now),
            "job abc is queued; nothing had to be decided about it so far\n"
        );
    }
}
