//! `outlive submit`, and what it shares with `run`: from arguments to an accepted job.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::text::{at, parse_duration};
use super::{Context, SUCCESS, Status, note, print_json};
use crate::clock;
use crate::face::client::ClientError;
use crate::face::client::target::{PATIENCE, Patience};

/// A submission that broke off is sent again this often: its key makes that harmless.
const SENDS_MAX: u32 = 3;

/// Submits a job and prints its id, and nothing else, on standard output.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  id=$(outlive submit --repo web \"fix the failing test\")
  outlive submit --repo web --engine demo \"say hello\"
  outlive submit --repo web --after 2h --priority 10 --prompt-file nightly.md
  outlive submit --repo web --group lint -- make lint

Whoever gives an --idempotency-key may submit the same again, at any time: it stays one job.")]
pub(super) struct Submit {
    #[command(flatten)]
    task: Task,
    /// Only create it; `outlive start` lets it go
    #[arg(long)]
    hold: bool,
    /// Print the whole job as JSON
    #[arg(long)]
    json: bool,
}

impl Submit {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let job = self.task.submit(context, self.hold)?;
        if self.json {
            return print_json(&job);
        }
        let id = at(&job, "/id");
        writeln!(std::io::stdout(), "{id}")?;
        if std::io::stderr().is_terminal() {
            let next = if self.hold { "start" } else { "output -f" };
            note(&format!("next: `outlive {next} {id}`"));
        }
        Ok(SUCCESS)
    }
}

/// What is to be done.
#[derive(Debug, Args)]
pub(super) struct Task {
    /// The repository to work on a copy of
    #[arg(long, value_name = "NAME")]
    repo: String,
    /// The agent: see `outlive engine list` [default: claude; command if a command follows --]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
    /// What to do; `-` reads it from standard input
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    /// Read what to do from a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Running time allowed to each attempt, as 90s, 30m, 2h or seconds [default: 2h]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Stop it when it has written nothing for this long, as 90s, 10m or seconds [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    idle_output: Option<Duration>,
    /// 0 to 100, higher first [default: 50]
    #[arg(long, value_name = "N")]
    priority: Option<u8>,
    /// The model, where the engine has a choice
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Set a variable of the agent's environment; may be repeated. Not for secrets: jobs are shown with it
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    env: Vec<(String, String)>,
    /// Set an option of the engine, its value as JSON or text; may be repeated
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = parse_pair)]
    options: Vec<(String, String)>,
    /// What follows a reboot or want of memory [default: resume where the engine can, else fail]
    #[arg(long, value_name = "POLICY", value_parser = ["resume", "retry", "fail"])]
    on_interrupt: Option<String>,
    /// What follows when nobody can prove how it ended [default: hold, for a person to settle]
    #[arg(long, value_name = "POLICY", value_parser = ["hold", "resume", "retry", "fail"])]
    on_unknown: Option<String>,
    /// What follows when the agent meets a usage limit or an overloaded model [default: wait]
    #[arg(long, value_name = "POLICY", value_parser = ["wait", "fail"])]
    on_limit: Option<String>,
    /// Wait no longer than this for limits, all in all, as 30m, 2h, 2d [default: as the server is set]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    limit_wait_max: Option<Duration>,
    /// Not before this time, as 2026-12-31T08:00:00Z, or as 90s, 30m, 2h from now
    #[arg(long, value_name = "TIME", value_parser = parse_start)]
    after: Option<String>,
    /// A title, for people
    #[arg(long)]
    title: Option<String>,
    /// A group, for acting on several jobs at once
    #[arg(long)]
    group: Option<String>,
    /// The same key with the same job is accepted once, however often it is submitted [default: a new one]
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// A command to run instead of an agent; its standard input is the prompt, if there is one
    #[arg(value_name = "COMMAND", last = true)]
    argv: Vec<String>,
}

impl Task {
    /// Submits it; gives the accepted job.
    pub(super) fn submit(self, context: &Context, hold: bool) -> Result<Value, Failure> {
        let key = self.idempotency_key.clone().unwrap_or_else(new_key);
        let body = self.into_body(hold)?;
        post(context, &body, &key)
    }

    fn into_body(self, hold: bool) -> Result<Value, Failure> {
        let (engine, options) = engine_and_options(self.engine, &self.options, self.argv)?;
        let prompt = read_prompt(self.prompt, self.prompt_file)?;
        if prompt.is_none() && options.is_empty() {
            let detail = "there is nothing to do: no prompt and no command".to_string();
            let hint = "give a PROMPT in quotes, `-`, --prompt-file FILE, or `-- COMMAND…`";
            return Err(Failure::Usage { detail, hint: hint.to_string() });
        }
        let env: BTreeMap<String, String> = self.env.into_iter().collect();
        let fields = [
            ("repo", Some(json!(self.repo))),
            ("engine", engine.map(Value::from)),
            ("engine_options", (!options.is_empty()).then_some(Value::Object(options))),
            ("prompt", prompt.map(Value::from)),
            ("timeout_s", self.timeout.map(seconds)),
            ("limits", self.idle_output.map(|time| json!({ "idle_output_s": seconds(time) }))),
            ("priority", self.priority.map(Value::from)),
            ("model", self.model.map(Value::from)),
            ("env", (!env.is_empty()).then_some(json!(env))),
            ("on_interrupt", self.on_interrupt.map(Value::from)),
            ("on_unknown", self.on_unknown.map(Value::from)),
            ("on_limit", self.on_limit.map(Value::from)),
            ("limit_wait_max_s", self.limit_wait_max.map(seconds)),
            ("start_after", self.after.map(Value::from)),
            ("title", self.title.map(Value::from)),
            ("group", self.group.map(Value::from)),
            ("hold", hold.then_some(Value::Bool(true))),
        ];
        let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?)));
        Ok(Value::Object(given.collect()))
    }
}

/// A command after `--` means the engine that runs commands.
fn engine_and_options(
    engine: Option<String>,
    pairs: &[(String, String)],
    argv: Vec<String>,
) -> Result<(Option<String>, Map<String, Value>), Failure> {
    let value =
        |text: &String| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
    let mut options: Map<String, Value> =
        pairs.iter().map(|(name, text)| (name.clone(), value(text))).collect();
    if argv.is_empty() {
        return Ok((engine, options));
    }
    let engine = engine.unwrap_or_else(|| "command".to_string());
    if engine != "command" {
        return Err(Failure::Usage {
            detail: format!("engine {engine} takes no command after `--`"),
            hint: "leave out --engine to run a command, or give the agent a prompt".to_string(),
        });
    }
    options.insert("argv".to_string(), argv.into());
    Ok((Some(engine), options))
}

/// A whole number of seconds where it is one.
#[expect(clippy::float_cmp, reason = "exactly a whole number or not")]
pub(super) fn seconds(duration: Duration) -> Value {
    let exact = duration.as_secs_f64();
    if exact == exact.trunc() { duration.as_secs().into() } else { exact.into() }
}

/// The prompt as given, from standard input for `-`, or from a file.
pub(super) fn read_prompt(
    prompt: Option<String>,
    file: Option<PathBuf>,
) -> Result<Option<String>, Failure> {
    match (prompt, file) {
        (_, Some(path)) => {
            let what = format!("cannot read {}", path.display());
            let read = std::fs::read_to_string(&path);
            read.map(Some).map_err(|source| Failure::Local { what, source })
        }
        (Some(dash), None) if dash == "-" => {
            let mut text = String::new();
            let what = "cannot read the prompt from standard input".to_string();
            let read = std::io::stdin().read_to_string(&mut text);
            read.map_err(|source| Failure::Local { what, source })?;
            Ok(Some(text))
        }
        (prompt, None) => Ok(prompt),
    }
}

/// Sends a submission until it is known to be accepted or refused. Who never reached a server learns it at once.
fn post(context: &Context, body: &Value, key: &str) -> Result<Value, Failure> {
    let mut patience = Patience::new(PATIENCE);
    let mut sends = 0;
    loop {
        let client = context.target.client();
        let error = match client.post_with("/api/jobs", body, &[("idempotency-key", key)]) {
            Ok(reply) => return Ok(reply.json()?),
            Err(error) => error,
        };
        let sent = !matches!(error, ClientError::Unreachable { .. });
        if !error.is_passing() || (sends == 0 && !sent) {
            return Err(error.into());
        }
        sends += u32::from(sent);
        if sends == SENDS_MAX || !patience.pause() {
            note(&format!(
                "the job may have been accepted: submitting it again with --idempotency-key {key} \
                 makes no second one"
            ));
            return Err(error.into());
        }
    }
}

fn new_key() -> String {
    uuid::Builder::from_random_bytes(crate::random::bytes()).into_uuid().to_string()
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
        _ => Err("write NAME=VALUE".to_string()),
    }
}

fn parse_start(text: &str) -> Result<String, String> {
    if let Ok(time) = clock::parse(text) {
        return Ok(clock::rfc3339(time));
    }
    let from_now = parse_duration(text).map_err(|_| {
        format!("`{text}` is no time: write 2026-12-31T08:00:00Z, or 90s, 30m, 2h from now")
    })?;
    let millis = u64::try_from(from_now.as_millis()).unwrap_or(u64::MAX);
    let now = clock::now().0;
    Ok(clock::rfc3339(outlive_core::time::Timestamp(now.saturating_add(millis))))
}

#[cfg(test)]
mod tests;
