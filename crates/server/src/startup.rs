//! Startup: from the data directory to a server that knows what is alive. Every start is a recovery; there is no other.
//!
//! storage (lock, write-ahead log) → state (replay) → attempts (look at everything that was under way, judge, act). What was found is told
//! in the startup log.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use anyhow::Context as _;
use outlive_core::event::Event;
use outlive_core::job::{Job, Phase, Work};
use outlive_core::state::State;
use outlive_supervisor::Here;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::data_dir::{DataDir, Paths};
use crate::truth::disk::RealDisk;
use crate::truth::driver::Handle;
use crate::truth::store::{Replayed, replay};
use crate::truth::wal::{self, Opened, WalError};
use crate::world::fleet::Fleet;

/// Starts remembered besides the current one.
const HISTORY_MAX: usize = 10;

/// What one start found and did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Start {
    /// Counted from 1 over the life of the data directory.
    pub number: u64,
    /// When.
    pub started_at: String,
    /// The program's version.
    pub version: String,
    /// All stages are done.
    pub ready: bool,
    /// From the start of the process to ready, in milliseconds.
    pub ready_ms: Option<f64>,
    /// What was done, in order.
    pub stages: Vec<Stage>,
    /// What is not available, and why.
    pub degraded: Vec<Degraded>,
    /// In one sentence.
    pub summary: String,
}

/// One step of a start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// What it counted.
    pub counts: BTreeMap<String, u64>,
    /// What it repaired or found damaged, in words.
    pub notes: Vec<String>,
}

/// A resource that is not available.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Degraded {
    /// What.
    pub resource: String,
    /// Why.
    pub cause: String,
}

/// The current start and the ones before it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StartupLog {
    /// This one.
    pub current: Start,
    /// Earlier ones, newest first.
    pub history: Vec<Start>,
}

/// The startup log as it is being written; readers get copies.
#[derive(Debug, Clone)]
pub struct Telling {
    told: Arc<RwLock<StartupLog>>,
    begun: Instant,
    paths: Paths,
}

impl Telling {
    /// Begins a new entry after what earlier starts told.
    pub fn begin(paths: &Paths, begun: Instant) -> Self {
        let bytes = std::fs::read(paths.startup_log()).unwrap_or_default();
        // A startup log that cannot be read costs its history, nothing else.
        let before: StartupLog = serde_json::from_slice(&bytes).unwrap_or_default();
        let number = before.current.number + 1;
        let mut history = before.history;
        if before.current.number > 0 {
            history.insert(0, before.current);
        }
        history.truncate(HISTORY_MAX);
        let current = Start {
            number,
            started_at: clock::rfc3339(clock::now()),
            version: env!("CARGO_PKG_VERSION").to_string(),
            ..Start::default()
        };
        let told = Arc::new(RwLock::new(StartupLog { current, history }));
        Self { told, begun, paths: paths.clone() }
    }

    /// That this server has started, for its first record. The number is the one told here; should the startup log have been
    /// lost, the write-ahead log knows where counting stands.
    ///
    /// # Errors
    /// It cannot be told which boot this is.
    pub fn started(&self, state: &State) -> anyhow::Result<Event> {
        let number = self.read().current.number.max(state.starts() + 1);
        self.change(|start| start.number = number);
        let boot_id = Here::observe().context("cannot tell which boot this is")?.boot_id;
        let version = env!("CARGO_PKG_VERSION").to_string();
        Ok(Event::ServerStarted { number, version, boot_id })
    }

    /// What is told so far.
    pub fn read(&self) -> StartupLog {
        self.told.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Start)) {
        change(&mut self.told.write().unwrap_or_else(PoisonError::into_inner).current);
    }

    fn stage(&self, name: &str, since: Instant, fill: impl FnOnce(&mut Stage)) {
        let mut stage = Stage { name: name.to_string(), ..Stage::default() };
        fill(&mut stage);
        stage.duration_ms = millis(since);
        self.change(|start| start.stages.push(stage));
    }

    /// The start is over.
    fn ready(&self, summary: &str) {
        let ready_ms = millis(self.begun);
        self.change(|start| {
            start.ready = true;
            start.ready_ms = Some(ready_ms);
            start.summary = format!("{summary}, {ready_ms:.1} ms");
        });
        let told = self.read();
        let path = self.paths.startup_log();
        let written =
            serde_json::to_vec_pretty(&told).map_err(std::io::Error::from).and_then(|b| {
                outlive_supervisor::replace_file(&path, &b).map_err(std::io::Error::other)
            });
        if let Err(error) = written {
            tracing::warn!(%error, "the startup log was not kept");
        }
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Stages storage and state: the write-ahead log is opened (and repaired), and State is summed up.
///
/// # Errors
/// The write-ahead log cannot be opened.
pub fn recover_state(data: &DataDir, telling: &Telling) -> Result<(State, Opened), WalError> {
    let since = Instant::now();
    let instance = uuid::Uuid::parse_str(&data.instance.instance).unwrap_or_default();
    let opened = wal::open(wal::Config::new(
        Arc::new(RealDisk),
        data.paths.wal(),
        data.paths.quarantine(),
        *instance.as_bytes(),
        || u64::from_le_bytes(crate::random::bytes()),
    ))?;
    telling.stage("storage", since, |stage| tell_storage(stage, &opened));
    let since = Instant::now();
    let mut state = State::default();
    let replayed = replay(&opened, &mut state);
    telling.stage("state", since, |stage| tell_state(stage, &state, &replayed));
    let degraded = replayed.unavailable.into_iter();
    let degraded = degraded.map(|(resource, cause)| Degraded { resource, cause }).collect();
    telling.change(|start| start.degraded = degraded);
    Ok((state, opened))
}

fn tell_storage(stage: &mut Stage, opened: &Opened) {
    let report = &opened.report;
    let counts = [
        ("records", opened.records.len() as u64),
        ("segments", report.segments_read as u64),
        ("bytes_cut", report.cut_bytes),
        ("records_rewritten", report.rewritten_records as u64),
        ("damaged_places", (report.damage.len() + report.damage_unlisted) as u64),
    ];
    stage.counts = counts.map(|(name, count)| (name.to_string(), count)).into();
    if let Some((file, offset)) = &report.cut_at {
        let (bytes, file) = (report.cut_bytes, file.display());
        stage.notes.push(format!("a torn last group was cut: {bytes} bytes of {file} at {offset}"));
    }
    for damage in &report.damage {
        let (file, offset, what) = (damage.file.display(), damage.offset, &damage.what);
        stage.notes.push(format!("{file} at byte {offset}: {what}"));
    }
}

fn tell_state(stage: &mut Stage, state: &State, replayed: &Replayed) {
    let queued = state.queued() as u64;
    let counts = [
        ("jobs", state.jobs().count() as u64),
        ("queued", queued),
        ("repos", state.repos().count() as u64),
        ("events", replayed.events),
        ("unavailable", replayed.unavailable.len() as u64),
    ];
    stage.counts = counts.map(|(name, count)| (name.to_string(), count)).into();
}

/// Everything that was under way, according to State.
pub fn under_way(state: &State) -> Vec<Work> {
    let operations = state.operations().map(|operation| Work::Operation { id: operation.id });
    let of_job = |job: &Arc<Job>| job.phase.work(&job.id);
    let attempts = state.jobs().filter_map(of_job);
    let attempts = attempts.filter(|work| matches!(work, Work::Attempt { .. }));
    attempts.chain(operations).collect()
}

/// Stage attempts: looks at everything that was under way and lets the driver judge; then the queue moves again.
pub async fn recover_attempts(handle: &Handle, fleet: &Fleet, works: Vec<Work>, telling: &Telling) {
    let since = Instant::now();
    let recovered = handle.view().jobs().filter(|job| !ended(job)).count();
    let looks: Vec<_> = works.iter().map(|work| fleet.look_and_report(work.clone())).collect();
    for look in looks {
        look.await;
    }
    // Reports are durable by now; what was queued may start. No driver means that the process is ending.
    handle.tick().await.ok();
    let left_over = fleet.clear_operations().await;
    let state = handle.view();
    let mut counts = outcomes(&state, &works);
    counts.insert("operations_cleared".to_string(), left_over);
    let adopted = counts.get("adopted").copied().unwrap_or(0);
    telling.stage("attempts", since, |stage| stage.counts = counts);
    telling.ready(&format!("{recovered} jobs recovered, {adopted} agents re-adopted"));
}

fn ended(job: &Job) -> bool {
    matches!(job.phase, Phase::Ended { .. })
}

fn outcomes(state: &State, works: &[Work]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for work in works {
        let Work::Attempt { job, attempt } = work else { continue };
        let name = match state.job(job).map(|job| &job.phase) {
            Some(Phase::Running { attempt: now }) if now == attempt => "adopted",
            Some(Phase::Stopping { .. }) => "stopping",
            Some(Phase::Unknown { .. }) => "unknown",
            Some(Phase::Ended { .. }) => "concluded",
            _ => "requeued",
        };
        *counts.entry(name.to_string()).or_insert(0) += 1;
    }
    counts
}

/// When the server may say that it is ready: the time of its last stage.
pub fn is_ready(telling: &Telling) -> bool {
    telling.read().current.ready
}
