//! What may be asked of jobs: start, hold, cancel, retry, repair, resume, edit, settle, remove.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::ending::state;
use super::failure::Failure;
use super::submit::{read_prompt, seconds};
use super::text::{at, items, parse_duration};
use super::{Context, SUCCESS, Status, list, note};
use crate::face::client::{Client, ClientError, escape};

/// A group is acted upon as a whole.
const GROUP_MAX: usize = outlive_core::limits::JOBS_MAX;

/// What is asked of one job or several alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Cancel,
    Start,
    Hold,
    Retry,
    Repair,
}

impl Action {
    /// Its name in the API.
    fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Start => "start",
            Self::Hold => "hold",
            Self::Retry => "retry",
            Self::Repair => "repair",
        }
    }
}

/// Jobs, by id or by group.
#[derive(Debug, Args)]
pub(super) struct Many {
    /// The jobs
    #[arg(value_name = "ID", required_unless_present = "group", conflicts_with = "group")]
    ids: Vec<String>,
    /// All jobs of this group of which it can be asked now
    #[arg(long)]
    group: Option<String>,
}

impl Many {
    pub(super) fn run(self, context: &Context, action: Action) -> Result<Status, Failure> {
        let client = &context.client;
        let ids = self.find(client, Some(action.name()))?;
        each(&ids, |id| {
            let path = format!("/api/jobs/{}/{}", escape(id), action.name());
            told(&client.post(&path, &json!({}))?.json()?)
        })
    }

    /// The ids that were given, or those of the group's jobs that can be asked for this.
    fn find(self, client: &Client, action: Option<&str>) -> Result<Vec<String>, Failure> {
        let Some(group) = self.group else { return Ok(self.ids) };
        let found = list::jobs(client, &[("group", &group)], GROUP_MAX)?;
        let can = |job: &&Value| {
            action.is_none_or(|wanted| items(job, "/actions").iter().any(|action| action == wanted))
        };
        let ids: Vec<String> = items(&found, "/jobs")
            .iter()
            .filter(can)
            .map(|job| at(job, "/id").to_string())
            .collect();
        if ids.is_empty() {
            note(&format!("nothing to do: group {group} has no such job"));
        }
        Ok(ids)
    }
}

/// Asks each; a refusal is told and does not keep the others from being asked. Gives the first failure's code.
fn each(
    ids: &[String],
    mut ask: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<Status, Failure> {
    let mut status = SUCCESS;
    for id in ids {
        match ask(id) {
            Ok(()) => {}
            Err(failure @ Failure::Client(ClientError::Problem { .. })) => {
                note(&failure.told());
                status = if status == SUCCESS { failure.status() } else { status };
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(status)
}

/// Tells what has become of a job.
fn told(job: &Value) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{}  {}", at(job, "/id"), state(job))?)
}

/// Gives a job one more prompt, in the same conversation and workspace. While it runs, that waits for its turn.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outlive resume last \"now add a test for it\"
  outlive resume last - < review.md")]
pub(super) struct Resume {
    /// The job
    #[arg(value_name = "ID")]
    id: String,
    /// What to do next; `-` reads it from standard input
    #[arg(value_name = "PROMPT", required_unless_present = "prompt_file")]
    prompt: Option<String>,
    /// Read what to do next from a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
}

impl Resume {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let prompt = read_prompt(self.prompt, self.prompt_file)?;
        let path = format!("/api/jobs/{}/resume", escape(&self.id));
        told(&context.client.post(&path, &json!({ "prompt": prompt }))?.json()?)?;
        Ok(SUCCESS)
    }
}

/// Changes a job that has not begun. What is not given stays as it is.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Edit {
    /// The job
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    changes: Changes,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// 0 to 100, higher first
    #[arg(long, value_name = "N")]
    priority: Option<u8>,
    /// Running time allowed to each attempt, as 90s, 30m, 2h or seconds
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// A title, for people
    #[arg(long)]
    title: Option<String>,
    /// What to do, while it is held; `-` reads it from standard input
    #[arg(long)]
    prompt: Option<String>,
    /// Read what to do from a file, while it is held
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
}

impl Edit {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let path = format!("/api/jobs/{}", escape(&self.id));
        told(&context.client.patch(&path, &self.changes.into_body()?)?.json()?)?;
        Ok(SUCCESS)
    }
}

impl Changes {
    fn into_body(self) -> Result<Value, Failure> {
        let fields = [
            ("priority", self.priority.map(Value::from)),
            ("timeout_s", self.timeout.map(seconds)),
            ("title", self.title.map(Value::from)),
            ("prompt", read_prompt(self.prompt, self.prompt_file)?.map(Value::from)),
        ];
        let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?)));
        Ok(Value::Object(given.collect::<Map<String, Value>>()))
    }
}

/// Says how a job ended whose end nobody can prove.
#[derive(Debug, Args)]
#[command(after_help = "\
`outlive why ID` tells what is known, `outlive output ID` what the agent wrote. Then, for example:
  outlive settle last --as completed")]
pub(super) struct Settle {
    /// The job
    #[arg(value_name = "ID")]
    id: String,
    /// How it ended
    #[arg(long = "as", value_name = "OUTCOME", value_parser = ["completed", "failed", "interrupted"])]
    kind: String,
}

impl Settle {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let path = format!("/api/jobs/{}/settle", escape(&self.id));
        told(&context.client.post(&path, &json!({ "as": self.kind }))?.json()?)?;
        Ok(SUCCESS)
    }
}

/// Forgets jobs and deletes their workspaces and output.
#[derive(Debug, Args)]
pub(super) struct Remove {
    #[command(flatten)]
    jobs: Many,
    /// Cancel jobs that are alive first, and wait until they are over
    #[arg(long)]
    force: bool,
}

impl Remove {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let client = &context.client;
        let action = (!self.force).then_some("remove");
        let ids = self.jobs.find(client, action)?;
        let query = if self.force { "?force=true" } else { "" };
        each(&ids, |id| {
            client.delete(&format!("/api/jobs/{}{query}", escape(id)))?;
            Ok(writeln!(std::io::stdout(), "{id}  removed")?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::face::client::tests::{answer, peer};

    #[test]
    fn a_refusal_does_not_keep_the_others_from_being_asked() {
        let refused =
            answer("409 Conflict", "", r#"{"code":"not_allowed_in_phase","detail":"no"}"#);
        let unknown = answer("404 Not Found", "", r#"{"code":"unknown_job","detail":"no"}"#);
        let (server, asked) = peer(vec![refused, answer("204 No Content", "", ""), unknown]);
        let client = Client::new(server, None);
        let ids = ["a", "b", "c"].map(str::to_string);
        let status = each(&ids, |id| {
            client.delete(&format!("/api/jobs/{id}"))?;
            Ok(())
        });
        assert_eq!(status.expect("asked"), 121);
        assert_eq!(asked.iter().count(), 3);
    }

    #[test]
    fn of_a_group_only_those_are_asked_that_allow_it() {
        let jobs = json!({ "next_cursor": null, "jobs": [
            { "id": "a", "actions": ["cancel"] }, { "id": "b", "actions": ["retry", "remove"] },
        ] });
        let page = || answer("200 OK", "", &jobs.to_string());
        let (server, asked) = peer(vec![page(), page(), page()]);
        let client = Client::new(server, None);
        let find = |action| {
            let many = Many { ids: Vec::new(), group: Some("g".to_string()) };
            many.find(&client, action).expect("found")
        };
        assert_eq!(find(Some("retry")), ["b"]);
        assert_eq!(find(Some("hold")), [""; 0]);
        assert_eq!(find(None), ["a", "b"]);
        assert!(asked.recv().expect("asked").starts_with("GET /api/jobs?limit=1000&group=g "));
    }
}
