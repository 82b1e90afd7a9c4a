//! The configuration: what a server is told besides its data directory. docs/config.md lists it for people.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use outlive_core::engine::nearest;
use outlive_core::heartbeat::Ages;
use outlive_core::limits;
use serde::Deserialize;

/// Replaying this many records takes some ten milliseconds.
const CHECKPOINT_RECORDS: u64 = 10_000;

/// Everything that can be laid down, with its defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Agents alive at once.
    pub running_max: u32,
    /// Between two heartbeats of a supervisor.
    pub heartbeat: Duration,
    /// From which ages on a heartbeat is stale, and dead.
    pub heartbeat_ages: Ages,
    /// An agent whose output has not grown for so long is noticed.
    pub stall: Duration,
    /// Between TERM and KILL.
    pub grace: Duration,
    /// Free space below which nothing new is accepted or begun, in bytes.
    pub min_free_bytes: u64,
    /// Free space below which running agents are frozen, in bytes; 0: never.
    pub freeze_free_bytes: u64,
    /// Records after which the write-ahead log is summed up in a checkpoint.
    pub checkpoint_records: u64,
    /// How long a supervisor may hold its lock past deadline and grace before it counts as hung.
    pub hung_margin: Duration,
    /// All that a job waits for usage limits and overload, when it says nothing itself.
    pub limit_wait: Duration,
    /// How long answers that are under way may hold up a stop of the server.
    pub stop_patience: Duration,
    /// Programs of engines that are not in `PATH`, by engine.
    pub programs: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        let cores = available_parallelism().map_or(2, |cores| cores.get() as u64);
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7878)),
            running_max: u32::try_from((cores / 2).max(2)).unwrap_or(2),
            heartbeat: limits::HEARTBEAT,
            heartbeat_ages: Ages { stale: limits::HEARTBEAT_STALE, dead: limits::HEARTBEAT_DEAD },
            stall: limits::STALL,
            grace: limits::STOP_GRACE,
            min_free_bytes: limits::MIN_FREE_BYTES,
            freeze_free_bytes: limits::FREEZE_FREE_BYTES,
            checkpoint_records: CHECKPOINT_RECORDS,
            hung_margin: limits::HUNG_MARGIN,
            limit_wait: limits::LIMIT_WAIT_DEFAULT,
            stop_patience: limits::STOP_PATIENCE,
            programs: BTreeMap::new(),
        }
    }
}

/// The file's keys, for the message about an unknown one; a dot stands for a table.
const KEYS: &[&str] = &[
    "listen",
    "running_max",
    "heartbeat.interval_s",
    "heartbeat.stale_s",
    "heartbeat.dead_s",
    "heartbeat.stall_s",
    "grace_s",
    "min_free_bytes",
    "freeze_free_bytes",
    "checkpoint_records",
    "hung_margin_s",
    "limit_wait_max_s",
    "stop_patience_ms",
    "programs",
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: Option<SocketAddr>,
    running_max: Option<u32>,
    heartbeat: Option<RawHeartbeat>,
    grace_s: Option<u64>,
    min_free_bytes: Option<u64>,
    freeze_free_bytes: Option<u64>,
    checkpoint_records: Option<u64>,
    hung_margin_s: Option<u64>,
    limit_wait_max_s: Option<u64>,
    stop_patience_ms: Option<u64>,
    programs: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "they are keys, and a number ends in its unit")]
struct RawHeartbeat {
    interval_s: Option<u64>,
    stale_s: Option<u64>,
    dead_s: Option<u64>,
    stall_s: Option<u64>,
}

/// Why a configuration is not used; the server does not start with it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It makes no sense.
    #[error("{source_name}: {problem}")]
    Wrong {
        /// The file, or the environment variable.
        source_name: String,
        /// Line and reason.
        problem: String,
    },
}

impl Config {
    /// Reads a file over the defaults, and `OUTLIVE_…` variables over the file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(
        file: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
            config.take(&text, &path.display().to_string())?;
        }
        for key in KEYS.iter().filter(|key| **key != "programs") {
            let name = format!("OUTLIVE_{}", key.to_uppercase().replace('.', "_"));
            if let Some(value) = env(&name) {
                let quoted = if *key == "listen" { format!("\"{value}\"") } else { value };
                config.take(&format!("{key} = {quoted}"), &name)?;
            }
        }
        config.check()?;
        Ok(config)
    }

    /// What no key alone can get wrong.
    fn check(&self) -> Result<(), ConfigError> {
        let Ages { stale, dead } = self.heartbeat_ages;
        let problem = if stale <= self.heartbeat {
            "`heartbeat.stale_s` must be larger than `heartbeat.interval_s`, or every beat is stale"
        } else if dead < stale {
            "`heartbeat.dead_s` must be at least `heartbeat.stale_s`"
        } else {
            return Ok(());
        };
        let source_name = "configuration".to_string();
        Err(ConfigError::Wrong { source_name, problem: problem.to_string() })
    }

    /// Takes the address of a command line over everything else.
    ///
    /// # Errors
    /// It is no `ADDRESS:PORT`.
    pub fn listen_on(&mut self, address: &str) -> Result<(), ConfigError> {
        self.take(&format!("listen = {}", toml::Value::from(address)), "--listen")
    }

    /// Takes what a text says over what there is.
    pub(crate) fn take(&mut self, text: &str, source_name: &str) -> Result<(), ConfigError> {
        let wrong =
            |problem: String| ConfigError::Wrong { source_name: source_name.to_string(), problem };
        let raw: Raw = toml::from_str(text).map_err(|error| wrong(explain(&error, text)))?;
        let positive = |name: &str, value: Option<u64>| match value {
            Some(0) => Err(wrong(format!("`{name}` must be at least 1"))),
            value => Ok(value),
        };
        self.listen = raw.listen.unwrap_or(self.listen);
        let running = positive("running_max", raw.running_max.map(u64::from))?;
        self.running_max =
            running.and_then(|max| u32::try_from(max).ok()).unwrap_or(self.running_max);
        let raw_heartbeat = raw.heartbeat.unwrap_or_default();
        let ages = &mut self.heartbeat_ages;
        for (name, value, place) in [
            ("heartbeat.interval_s", raw_heartbeat.interval_s, &mut self.heartbeat),
            ("heartbeat.stale_s", raw_heartbeat.stale_s, &mut ages.stale),
            ("heartbeat.dead_s", raw_heartbeat.dead_s, &mut ages.dead),
            ("heartbeat.stall_s", raw_heartbeat.stall_s, &mut self.stall),
        ] {
            let value = positive(name, value)?.map(Duration::from_secs);
            *place = value.unwrap_or(*place);
        }
        self.grace = raw.grace_s.map_or(self.grace, Duration::from_secs);
        self.min_free_bytes = raw.min_free_bytes.unwrap_or(self.min_free_bytes);
        self.freeze_free_bytes = raw.freeze_free_bytes.unwrap_or(self.freeze_free_bytes);
        let records = positive("checkpoint_records", raw.checkpoint_records)?;
        self.checkpoint_records = records.unwrap_or(self.checkpoint_records);
        self.hung_margin = raw.hung_margin_s.map_or(self.hung_margin, Duration::from_secs);
        self.limit_wait = raw.limit_wait_max_s.map_or(self.limit_wait, Duration::from_secs);
        if self.limit_wait > limits::LIMIT_WAIT_MAX {
            let most = limits::LIMIT_WAIT_MAX.as_secs();
            return Err(wrong(format!("`limit_wait_max_s` must be at most {most}")));
        }
        self.stop_patience = raw.stop_patience_ms.map_or(self.stop_patience, Duration::from_millis);
        if let Some(programs) = raw.programs {
            let engines: Vec<&str> =
                outlive_core::engine::all().iter().map(|engine| engine.name).collect();
            if let Some(name) = programs.keys().find(|name| !engines.contains(&name.as_str())) {
                return Err(wrong(format!("`programs` names an unknown engine `{name}`")));
            }
            self.programs = programs;
        }
        Ok(())
    }
}

/// The line, the reason, and the key that was probably meant.
fn explain(error: &toml::de::Error, text: &str) -> String {
    let line = error
        .span()
        .map(|span| text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1);
    let at = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    let message = error.message();
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    let own_names: Vec<&'static str> =
        KEYS.iter().map(|key| key.rsplit('.').next().unwrap_or(key)).collect();
    // Whole keys first: one that was moved into a table is found by its old name.
    let near = unknown.and_then(|name| nearest(name, KEYS).or_else(|| nearest(name, &own_names)));
    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("{at}{message}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        config.take(text, "outlive.toml").map(|()| config)
    }

    #[test]
    fn an_unknown_key_is_refused_with_line_and_suggestion() {
        let error = parse("listen = \"127.0.0.1:1\"\nruning_max = 3\n").expect_err("misspelt");
        let text = error.to_string();
        assert!(text.contains("outlive.toml: line 2"), "{text}");
        assert!(text.contains("did you mean `running_max`?"), "{text}");
    }

    #[test]
    fn an_unknown_key_of_a_table_is_refused_with_a_suggestion() {
        let text = parse("[heartbeat]\nstale = 3\n").expect_err("misspelt").to_string();
        assert!(text.contains("line 2") && text.contains("did you mean `stale_s`?"), "{text}");
    }

    #[test]
    fn heartbeat_ages_are_taken_from_everywhere_and_have_to_fit_together() {
        let env = |set: &'static [(&str, &str)]| {
            let value = move |name: &str| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string())
            };
            Config::load(None, value)
        };
        let late =
            env(&[("OUTLIVE_HEARTBEAT_STALE_S", "700"), ("OUTLIVE_HEARTBEAT_DEAD_S", "700")]);
        assert_eq!(late.expect("good").heartbeat_ages.stale.as_secs(), 700);
        let early = env(&[("OUTLIVE_HEARTBEAT_DEAD_S", "60")]).expect_err("dead before stale");
        assert!(early.to_string().contains("heartbeat.dead_s"), "{early}");
        let slow = env(&[("OUTLIVE_HEARTBEAT_INTERVAL_S", "120")]).expect_err("always stale");
        assert!(slow.to_string().contains("heartbeat.stale_s"), "{slow}");
        let zero = env(&[("OUTLIVE_HEARTBEAT_STALL_S", "0")]).expect_err("no time at all");
        assert!(zero.to_string().contains("heartbeat.stall_s"), "{zero}");
    }

    #[test]
    fn the_environment_goes_over_the_file() {
        let env = |name: &str| (name == "OUTLIVE_RUNNING_MAX").then(|| "7".to_string());
        assert_eq!(Config::load(None, env).expect("good").running_max, 7);
        let env = |name: &str| (name == "OUTLIVE_RUNNING_MAX").then(|| "many".to_string());
        assert!(Config::load(None, env).expect_err("bad").to_string().contains("RUNNING_MAX"));
    }
}
