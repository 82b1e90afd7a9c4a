//! From a raw submission to a checked one: parse, don't validate. The only way to a [`Submission`].

use std::collections::BTreeMap;
use std::time::Duration;

use outlive_core::engine::{self, Engine, EngineOptions};
use outlive_core::ids::RepoName;
use outlive_core::job::Idempotency;
use outlive_core::limits;
use outlive_core::request::Submission;
use outlive_core::task::{OnInterrupt, OnLimit, OnUnknown, Task, TaskLimits};
use outlive_core::time::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::problem::Problem;

/// The fields of a submission, for the message about an unknown one.
pub(super) const FIELDS: &[&str] = &[
    "repo",
    "repos",
    "prompt",
    "engine",
    "engine_options",
    "model",
    "timeout_s",
    "priority",
    "on_interrupt",
    "on_unknown",
    "max_interrupts",
    "on_limit",
    "limit_wait_max_s",
    "limits",
    "env",
    "title",
    "group",
    "start_after",
    "hold",
    "sidecars",
    "callbacks",
    "secrets",
];

/// A submission as it comes.
#[derive(Debug, Deserialize)]
pub(super) struct Raw {
    repo: Option<String>,
    repos: Option<Vec<String>>,
    prompt: Option<String>,
    engine: Option<String>,
    engine_options: Option<EngineOptions>,
    model: Option<String>,
    timeout_s: Option<f64>,
    priority: Option<u64>,
    on_interrupt: Option<OnInterrupt>,
    on_unknown: Option<OnUnknown>,
    max_interrupts: Option<u32>,
    on_limit: Option<OnLimit>,
    limit_wait_max_s: Option<f64>,
    limits: Option<RawLimits>,
    env: Option<BTreeMap<String, String>>,
    title: Option<String>,
    group: Option<String>,
    start_after: Option<String>,
    hold: Option<bool>,
    sidecars: Option<Value>,
    callbacks: Option<Value>,
    secrets: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    memory_bytes: Option<u64>,
    pids: Option<u64>,
    output_bytes: Option<u64>,
    idle_output_s: Option<f64>,
}

fn bad(field: &str, problem: impl std::fmt::Display) -> Problem {
    Problem::bad("bad_field", format!("`{field}` {problem}")).with("field", field)
}

impl Raw {
    /// Checks everything that can be checked without State.
    ///
    /// # Errors
    /// The first thing that is wrong, with its field.
    pub(super) fn parse(
        self,
        key: Option<Idempotency>,
        owner: &str,
        limit_wait: Duration,
    ) -> Result<Submission, Problem> {
        self.refuse_what_is_not_there_yet()?;
        let engine = parse_engine(self.engine.as_deref())?;
        let options = self.engine_options.unwrap_or_default();
        engine
            .validate_options(&options)
            .map_err(|error| Problem::bad("bad_engine_options", error.to_string()))?;
        let prompt = parse_prompt(self.prompt, engine)?;
        if self.model.is_some() && !engine.takes_model() {
            return Err(bad("model", format!("cannot be chosen with engine {}", engine.name)));
        }
        let on_interrupt = parse_on_interrupt(self.on_interrupt, engine)?;
        let on_unknown = self.on_unknown.unwrap_or(OnUnknown::Hold);
        if on_unknown == OnUnknown::Resume && !engine.can_resume {
            return Err(bad("on_unknown", format!("engine {} cannot resume", engine.name)));
        }
        let max_interrupts = self.max_interrupts.unwrap_or(limits::INTERRUPTS_DEFAULT);
        if max_interrupts > limits::INTERRUPTS_MAX {
            let most = limits::INTERRUPTS_MAX;
            return Err(bad("max_interrupts", format!("must be at most {most}")));
        }
        let task = Task {
            repos: parse_repos(self.repo, self.repos)?,
            engine: engine.name.to_string(),
            engine_options: options,
            model: self.model,
            timeout_ms: parse_timeout(self.timeout_s)?,
            priority: parse_priority(self.priority)?,
            on_interrupt,
            on_unknown,
            max_interrupts,
            on_limit: self.on_limit.unwrap_or(OnLimit::Wait),
            limit_wait_ms: parse_limit_wait(self.limit_wait_max_s, limit_wait)?,
            limits: parse_limits(&self.limits.unwrap_or_default())?,
            env: parse_env(self.env.unwrap_or_default())?,
            title: parse_line("title", self.title)?,
            group: parse_line("group", self.group)?,
        };
        Ok(Submission {
            job: crate::random::job_id(),
            session: crate::random::session_id(),
            owner: owner.to_string(),
            task,
            prompt,
            held: self.hold.unwrap_or(false),
            start_after: parse_start(self.start_after)?,
            idempotency: key,
        })
    }

    /// Refused rather than ignored: nobody shall believe that a webhook will come.
    fn refuse_what_is_not_there_yet(&self) -> Result<(), Problem> {
        let asked = [
            ("sidecars", &self.sidecars),
            ("callbacks", &self.callbacks),
            ("secrets", &self.secrets),
        ];
        let wanted = |value: &Option<Value>| {
            value.as_ref().is_some_and(|value| value.as_array().is_none_or(|a| !a.is_empty()))
        };
        match asked.iter().find(|(_, value)| wanted(value)) {
            Some((name, _)) => Err(Problem::bad(
                "not_available_yet",
                format!("`{name}` is not available in this version"),
            )),
            None => Ok(()),
        }
    }
}

fn parse_engine(name: Option<&str>) -> Result<&'static Engine, Problem> {
    let name = name.unwrap_or("claude");
    engine::find(name).ok_or_else(|| {
        let known: Vec<&'static str> = engine::all().iter().map(|engine| engine.name).collect();
        let hint = engine::nearest(name, &known).map_or_else(
            || format!("known engines: {}", known.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        Problem::bad("unknown_engine", format!("there is no engine `{name}`")).hint(hint)
    })
}

/// Reads a prompt: not empty where the engine needs one, not too long, no NUL.
pub(super) fn parse_prompt(prompt: Option<String>, engine: &Engine) -> Result<String, Problem> {
    let prompt = prompt.unwrap_or_default();
    if engine.needs_prompt() && prompt.trim().is_empty() {
        return Err(Problem::bad("empty_prompt", "`prompt` is empty").with("field", "prompt"));
    }
    if prompt.len() > limits::PROMPT_BYTES_MAX {
        let most = limits::PROMPT_BYTES_MAX;
        let detail = format!("`prompt` has {} bytes; the limit is {most}", prompt.len());
        return Err(Problem::bad("prompt_too_long", detail).hint("put long material into a file"));
    }
    Ok(prompt)
}

fn parse_repos(
    one: Option<String>,
    several: Option<Vec<String>>,
) -> Result<Vec<RepoName>, Problem> {
    let names = match (one, several) {
        (Some(_), Some(_)) => return Err(bad("repos", "and `repo` exclude each other")),
        (Some(one), None) => vec![one],
        (None, Some(several)) => several,
        (None, None) => return Err(bad("repo", "is missing")),
    };
    if names.len() != 1 {
        let detail = "a job works on exactly one repo in this version";
        return Err(Problem::bad("not_available_yet", detail).with("field", "repos"));
    }
    names.iter().map(|name| RepoName::parse(name).map_err(|e| bad("repo", e.rule))).collect()
}

fn parse_on_interrupt(asked: Option<OnInterrupt>, engine: &Engine) -> Result<OnInterrupt, Problem> {
    match asked {
        Some(OnInterrupt::Resume) if !engine.can_resume => {
            Err(bad("on_interrupt", format!("cannot be resume: engine {} cannot", engine.name)))
        }
        Some(asked) => Ok(asked),
        None if engine.can_resume => Ok(OnInterrupt::Resume),
        None => Ok(OnInterrupt::Fail),
    }
}

fn parse_limits(raw: &RawLimits) -> Result<TaskLimits, Problem> {
    let idle = |seconds| parse_running_time("limits.idle_output_s", seconds);
    Ok(TaskLimits {
        memory_bytes: raw.memory_bytes,
        pids: raw.pids,
        output_bytes: raw.output_bytes,
        idle_output_ms: raw.idle_output_s.map(idle).transpose()?,
    })
}

/// Reads a running time in seconds.
pub(super) fn parse_timeout(seconds: Option<f64>) -> Result<u64, Problem> {
    let asked = seconds.unwrap_or(limits::TIMEOUT_DEFAULT.as_secs_f64());
    parse_running_time("timeout_s", asked)
}

fn parse_running_time(field: &str, seconds: f64) -> Result<u64, Problem> {
    let (least, most) = (limits::TIMEOUT_MIN, limits::TIMEOUT_MAX);
    let duration = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default();
    if duration < least || duration > most {
        let (least, most) = (least.as_secs(), most.as_secs());
        return Err(bad(field, format!("must be {least} to {most} seconds")));
    }
    Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn parse_limit_wait(seconds: Option<f64>, default: Duration) -> Result<u64, Problem> {
    let asked = match seconds.map(Duration::try_from_secs_f64) {
        None => Some(default),
        Some(asked) => asked.ok(),
    };
    let most = limits::LIMIT_WAIT_MAX;
    let Some(asked) = asked.filter(|asked| *asked <= most) else {
        return Err(bad("limit_wait_max_s", format!("must be 0 to {} seconds", most.as_secs())));
    };
    Ok(u64::try_from(asked.as_millis()).unwrap_or(u64::MAX))
}

/// Reads a priority.
pub(super) fn parse_priority(asked: Option<u64>) -> Result<u8, Problem> {
    let asked = asked.unwrap_or(u64::from(limits::PRIORITY_DEFAULT));
    u8::try_from(asked)
        .ok()
        .filter(|priority| *priority <= limits::PRIORITY_MAX)
        .ok_or_else(|| bad("priority", format!("must be 0 to {}", limits::PRIORITY_MAX)))
}

fn parse_env(env: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Problem> {
    let good = |name: &str| {
        !name.is_empty() && !name.contains(['=', '\0']) && !name.starts_with("OUTLIVE_")
    };
    if let Some(name) = env.keys().find(|name| !good(name)) {
        return Err(bad("env", format!("cannot set `{name}`")));
    }
    if let Some((name, _)) = env.iter().find(|(_, value)| value.contains('\0')) {
        return Err(bad("env", format!("has a NUL in the value of `{name}`")));
    }
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if env.len() > limits::ENV_COUNT_MAX || bytes > limits::ENV_BYTES_MAX {
        let (count, bytes) = (limits::ENV_COUNT_MAX, limits::ENV_BYTES_MAX);
        return Err(bad("env", format!("may have {count} variables and {bytes} bytes")));
    }
    Ok(env)
}

/// Reads a text of one line.
pub(super) fn parse_line(field: &str, text: Option<String>) -> Result<Option<String>, Problem> {
    match text {
        Some(text) if text.len() > limits::TITLE_BYTES_MAX || text.contains(['\n', '\0']) => Err(
            bad(field, format!("must be one line of at most {} bytes", limits::TITLE_BYTES_MAX)),
        ),
        text => Ok(text),
    }
}

fn parse_start(text: Option<String>) -> Result<Option<Timestamp>, Problem> {
    text.map(|text| crate::clock::parse(&text).map_err(|why| bad("start_after", why))).transpose()
}

/// Reads the client's key and binds it to the body it came with.
pub(super) fn parse_key(
    key: Option<&axum::http::HeaderValue>,
    body: &[u8],
) -> Result<Option<Idempotency>, Problem> {
    let Some(key) = key else { return Ok(None) };
    let key = key
        .to_str()
        .ok()
        .filter(|key| !key.is_empty() && key.len() <= limits::IDEMPOTENCY_KEY_BYTES_MAX);
    let Some(key) = key else {
        let most = limits::IDEMPOTENCY_KEY_BYTES_MAX;
        let detail = format!("the Idempotency-Key must have 1 to {most} visible characters");
        return Err(Problem::bad("bad_idempotency_key", detail));
    };
    let hash = Sha256::digest(body);
    let body_hash = crate::random::hex(&hash);
    Ok(Some(Idempotency { key: key.to_string(), body_hash }))
}
