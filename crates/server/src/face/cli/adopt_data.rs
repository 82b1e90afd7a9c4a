//! `outlive adopt-data`: a copied data directory becomes one of its own.

use std::io::Write as _;

use clap::Args;
use serde_json::{Value, json};

use super::failure::Failure;
use super::text::{at, clean};
use super::{Context, SUCCESS, Status};

/// Lets a copied data directory, or a restored backup, go on where its original stood. Until then its server holds everything:
/// nothing is launched, judged, ended or cleared away, so that nothing happens twice beside a living original.
#[derive(Debug, Args)]
#[command(after_help = "\
Make sure before that the original does not run any more. From then on
  what was queued begins;
  what was running in the original was cut off, and follows its `on_interrupt`;
  what has ended stays as it is.")]
pub(super) struct AdoptData {}

impl AdoptData {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let Self {} = self;
        let told = context.client.post("/api/admin/adopt-data", &json!({}))?.json()?;
        writeln!(std::io::stdout(), "{}", sentence(&told))?;
        Ok(SUCCESS)
    }
}

fn sentence(told: &Value) -> String {
    if told["adopted"].as_bool() == Some(true) {
        return format!("adopted: {}", clean(at(told, "/summary")));
    }
    "nothing to do: this data directory is where it was made, or adopted".to_string()
}
