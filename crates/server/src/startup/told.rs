//! The startup log: what this start and the last ones found and did, as it is written and shown.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use anyhow::Context as _;
use outlive_core::event::Event;
use outlive_core::startup_plan::{self, Plan};
use outlive_core::state::State;
use serde::{Deserialize, Serialize};

use super::marker::{self, Found, Marker, Marking};
use crate::clock;
use crate::data_dir::Paths;
use crate::truth::degraded::{Degraded, Kind};

/// Starts remembered besides the current one.
const HISTORY_MAX: usize = 10;

/// What one start found and did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Start {
    /// Counted from 1 over the life of the data directory.
    pub number: u64,
    /// When (RFC 3339).
    pub started_at: String,
    /// The program's version.
    pub version: String,
    /// In which boot of the machine.
    #[serde(default)]
    pub boot_id: String,
    /// Every stage without which the server cannot work is over.
    pub ready: bool,
    /// From the start of the process to ready, in milliseconds.
    pub ready_ms: Option<f64>,
    /// How the run before this one ended.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// Its stages, in their order.
    pub stages: Vec<Stage>,
    /// What was found not to be available.
    pub degraded: Vec<Degraded>,
    /// When its server was told to end and did (RFC 3339). None: it runs, or was cut off.
    #[serde(default)]
    pub ended_at: Option<String>,
    /// In one sentence.
    pub summary: String,
}

/// How a run ended, as far as it can be proved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Previous {
    /// The number of its start.
    pub number: u64,
    /// How.
    pub how: How,
    /// The stages of its startup that it ended in; empty if it had started.
    pub stages: Vec<String>,
    /// Its version, if it was another than today's.
    pub other_version: Option<String>,
    /// All of it in words.
    pub text: String,
}

/// See [`Previous`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// It was told to end, and did.
    Clean,
    /// Its process was killed, or crashed.
    Killed,
    /// The machine went down, or was started anew, under it.
    MachineDown,
}

/// One step of a start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// What it waits for.
    #[serde(default)]
    pub depends_on: Vec<String>,
    /// Without it the server cannot work.
    #[serde(default)]
    pub critical: bool,
    /// Its place in the order, from 1.
    #[serde(default)]
    pub order: usize,
    /// How it stands.
    #[serde(default)]
    pub standing: Standing,
    /// From the start of the process to its beginning, in milliseconds.
    #[serde(default)]
    pub started_ms: f64,
    /// How long it took, with all tries and pauses, in milliseconds.
    pub duration_ms: f64,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: u32,
    /// What it counted.
    pub counts: BTreeMap<String, u64>,
    /// What it repaired or found damaged, in words.
    pub notes: Vec<String>,
    /// Why its last try failed.
    #[serde(default)]
    pub error: Option<String>,
}

/// How a stage stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Its turn has not come.
    #[default]
    Waiting,
    /// It is being worked on.
    Running,
    /// It is over.
    Done,
    /// It failed; the rest goes on without it.
    Failed,
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
    marking: Arc<Mutex<Marking>>,
    begun: Instant,
    paths: Paths,
}

/// What a stage has to tell.
#[derive(Debug, Default)]
pub struct Report {
    /// What it counted.
    pub counts: BTreeMap<String, u64>,
    /// What it repaired or found damaged, in words.
    pub notes: Vec<String>,
}

impl Report {
    /// With counts alone.
    pub fn of<const N: usize>(counts: [(&str, u64); N]) -> Self {
        let counts = counts.map(|(name, count)| (name.to_string(), count)).into();
        Self { counts, notes: Vec::new() }
    }

    /// Nothing was done: the data directory is a copy that nobody has adopted.
    pub fn held() -> Self {
        Self { notes: vec!["held until this data directory is adopted".into()], ..Self::default() }
    }
}

impl Telling {
    /// Begins a new entry after what earlier starts told, and leaves a marker until it is over.
    pub fn begin(paths: &Paths, plan: &Plan, boot_id: String, begun: Instant) -> Self {
        let bytes = std::fs::read(paths.startup_log()).unwrap_or_default();
        // A startup log that cannot be read costs its history, nothing else.
        let before: StartupLog = serde_json::from_slice(&bytes).unwrap_or_default();
        let found = marker::find(&paths.startup_marker());
        let mut history = before.history;
        if before.current.number > 0 {
            history.insert(0, before.current);
        }
        if let Some(aborted) = aborted(&found, history.first()) {
            history.insert(0, aborted);
        }
        history.truncate(HISTORY_MAX);
        let stages = plan.stages().iter().zip(1..);
        let current = Start {
            number: history.first().map_or(1, |last| last.number + 1),
            started_at: clock::rfc3339(clock::now()),
            version: env!("CARGO_PKG_VERSION").to_string(),
            previous: history.first().map(|last| previous(last, &found, &boot_id)),
            boot_id,
            stages: stages.map(|(stage, order)| Stage::planned(stage, order)).collect(),
            ..Start::default()
        };
        let marker = Marker {
            version: 1,
            number: current.number,
            started_at: current.started_at.clone(),
            boot_id: current.boot_id.clone(),
            deaths: match &found {
                Found::Marker(marker) => marker.deaths_with_this_one(),
                Found::Nothing | Found::Unreadable => BTreeMap::new(),
            },
            ..Marker::default()
        };
        let marking = Arc::new(Mutex::new(Marking::begin(paths.startup_marker(), marker)));
        let told = Arc::new(RwLock::new(StartupLog { current, history }));
        Self { told, marking, begun, paths: paths.clone() }
    }

    /// That this server has started, for its first record. The number is the one told here; should the startup log have been
    /// lost, the write-ahead log knows where counting stands.
    pub fn started(&self, state: &State) -> Event {
        let number = self.read().current.number.max(state.starts() + 1);
        self.change(|start| start.number = number);
        let start = self.read().current;
        Event::ServerStarted { number, version: start.version, boot_id: start.boot_id }
    }

    /// What is told so far.
    pub fn read(&self) -> StartupLog {
        self.told.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every stage without which the server cannot work is over.
    pub fn is_ready(&self) -> bool {
        self.told.read().unwrap_or_else(PoisonError::into_inner).current.ready
    }

    /// How many starts in a row, right before this one, died in a stage.
    pub fn deaths(&self, stage: &str) -> u32 {
        self.marking().marker.deaths.get(stage).copied().unwrap_or(0)
    }

    /// Where the marker of this start is.
    pub fn marker_path(&self) -> String {
        self.paths.startup_marker().display().to_string()
    }

    /// A stage is tried.
    pub fn begins(&self, stage: &str) {
        self.marking().begins(stage);
        let now = self.ms();
        self.change_stage(stage, |stage| {
            if stage.attempts == 0 {
                stage.started_ms = now;
            }
            stage.attempts += 1;
            stage.standing = Standing::Running;
        });
    }

    /// A try has failed.
    pub fn fails(&self, stage: &str, error: String) {
        self.change_stage(stage, |stage| stage.error = Some(error));
    }

    /// A stage is over.
    pub fn succeeds(&self, stage: &str, report: Report) {
        self.is_over(stage, |stage| {
            stage.standing = Standing::Done;
            (stage.counts, stage.notes) = (report.counts, report.notes);
        });
        self.change(|start| start.degraded.retain(|it| !is_of_stage(it, stage)));
    }

    /// The start goes on without a stage. What it would have brought is not available from now on, or still not.
    pub fn goes_without(&self, stage: &str, cause: String, remedy: &str) {
        self.is_over(stage, |stage| stage.standing = Standing::Failed);
        let since = clock::rfc3339(clock::now());
        let (resource, remedy) = (stage.to_string(), remedy.to_string());
        self.change(|start| match start.degraded.iter_mut().find(|it| is_of_stage(it, stage)) {
            Some(known) => known.cause = cause,
            None => {
                start.degraded.push(Degraded { kind: Kind::Stage, resource, cause, since, remedy });
            }
        });
    }

    /// Something was found not to be available. Since when: since the first start in a row that found it.
    pub fn finds_degraded(&self, mut degraded: Degraded) {
        let log = self.read();
        let last = log.history.iter().find(|start| start.ready);
        let same = |it: &&Degraded| it.kind == degraded.kind && it.resource == degraded.resource;
        if let Some(known) = last.and_then(|start| start.degraded.iter().find(same)) {
            degraded.since.clone_from(&known.since);
        }
        self.change(|start| start.degraded.push(degraded));
    }

    /// Every stage without which the server cannot work is over.
    pub fn is_ready_now(&self) {
        let ready_ms = self.ms();
        self.change(|start| {
            start.ready = true;
            start.ready_ms = Some(ready_ms);
            start.summary = format!("{}, {ready_ms:.1} ms", start.sentence());
        });
    }

    /// A copied data directory is one of its own from here on, and what its start had left undone is done.
    pub fn is_adopted(&self) {
        self.change(|start| {
            start.degraded.retain(|it| it.kind != Kind::Copy);
            let ready_ms = start.ready_ms.unwrap_or_default();
            start.summary = format!("{}, {ready_ms:.1} ms, then adopted", start.sentence());
        });
    }

    /// No stage is left.
    pub fn is_complete(&self) {
        // One at a time: what is written last must be what was said last.
        let mut marking = self.marking();
        self.keep();
        marking.remove();
    }

    /// The server ends because it was told to, or because it cannot start and has said why.
    pub fn ends(&self, summary: Option<String>) {
        self.change(|start| {
            start.ended_at = Some(clock::rfc3339(clock::now()));
            start.summary = summary.unwrap_or_else(|| std::mem::take(&mut start.summary));
        });
        self.is_complete();
    }

    fn is_over(&self, stage: &str, change: impl FnOnce(&mut Stage)) {
        self.marking().is_over(stage);
        let now = self.ms();
        self.change_stage(stage, |stage| {
            change(stage);
            stage.duration_ms = now - stage.started_ms;
        });
    }

    fn marking(&self) -> MutexGuard<'_, Marking> {
        self.marking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Start)) {
        change(&mut self.told.write().unwrap_or_else(PoisonError::into_inner).current);
    }

    fn change_stage(&self, name: &str, change: impl FnOnce(&mut Stage)) {
        self.change(|start| {
            if let Some(stage) = start.stages.iter_mut().find(|stage| stage.name == name) {
                change(stage);
            }
        });
    }

    fn ms(&self) -> f64 {
        self.begun.elapsed().as_secs_f64() * 1000.0
    }

    fn keep(&self) {
        let path = self.paths.startup_log();
        let written = serde_json::to_vec_pretty(&self.read()).context("cannot be written");
        let written = written.and_then(|b| Ok(outlive_supervisor::replace_file(&path, &b)?));
        if let Err(error) = written {
            tracing::warn!(error = %format!("{error:#}"), "the startup log was not kept");
        }
    }
}

impl Start {
    /// What the stages found, in short. Lost are those whose records are damaged: they are held, and nothing is done for them.
    fn sentence(&self) -> String {
        let count = |stage: &str, name: &str| {
            let stage = self.stages.iter().find(|it| it.name == stage);
            stage.and_then(|stage| stage.counts.get(name).copied()).unwrap_or(0)
        };
        let held = self.degraded.iter().any(|it| it.kind == Kind::Copy);
        let held = if held { "HELD, FOR IT IS A COPY (see `outlive adopt-data`): " } else { "" };
        format!(
            "{held}{} recovered, {} re-adopted, {} lost",
            counted(count(super::STATE, "not_ended"), "job"),
            counted(count(super::ATTEMPTS, "adopted"), "agent"),
            count(super::STATE, "unavailable"),
        )
    }
}

fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

impl Stage {
    fn planned(stage: &startup_plan::Stage, order: usize) -> Self {
        Self {
            name: stage.name.to_string(),
            depends_on: stage.depends_on.iter().map(ToString::to_string).collect(),
            critical: stage.critical,
            order,
            ..Self::default()
        }
    }
}

fn is_of_stage(degraded: &Degraded, stage: &str) -> bool {
    degraded.kind == Kind::Stage && degraded.resource == stage
}

/// The start that left its marker, unless it had come so far that it told of itself.
fn aborted(found: &Found, last: Option<&Start>) -> Option<Start> {
    let number = last.map_or(0, |last| last.number);
    let aborted = match found {
        Found::Nothing => return None,
        Found::Unreadable => Start { number: number + 1, ..Start::default() },
        Found::Marker(marker) if marker.number <= number => return None,
        Found::Marker(marker) => Start {
            number: marker.number,
            started_at: marker.started_at.clone(),
            boot_id: marker.boot_id.clone(),
            ..Start::default()
        },
    };
    let stages = died_in(found).join(", ");
    let summary = if stages.is_empty() {
        "did not come to its end".to_string()
    } else {
        format!("did not come to its end: it died in stage {stages}")
    };
    Some(Start { summary, ..aborted })
}

fn died_in(found: &Found) -> Vec<String> {
    match found {
        Found::Marker(marker) => marker.current.iter().cloned().collect(),
        Found::Nothing | Found::Unreadable => Vec::new(),
    }
}

fn previous(last: &Start, found: &Found, boot_id: &str) -> Previous {
    let stages = died_in(found);
    let how = if last.ended_at.is_some() {
        How::Clean
    } else if !last.boot_id.is_empty() && last.boot_id != boot_id {
        How::MachineDown
    } else {
        How::Killed
    };
    let mut text = match how {
        How::Clean => "ended when it was told to".to_string(),
        How::Killed => "was killed, or crashed".to_string(),
        How::MachineDown => "ended with its machine, which was started anew since".to_string(),
    };
    if !stages.is_empty() {
        text = format!("{text}, in stage {} of its startup", stages.join(", "));
    } else if *found != Found::Nothing {
        text.push_str(", in its startup");
    }
    let today = env!("CARGO_PKG_VERSION");
    let other = (!last.version.is_empty() && last.version != today).then(|| last.version.clone());
    if let Some(version) = &other {
        text = format!("{text}; it was version {version}, this is {today}");
    }
    let text = format!("start {} {text}", last.number);
    Previous { number: last.number, how, stages, other_version: other, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: [startup_plan::Stage; 2] = [
        startup_plan::Stage { name: "storage", depends_on: &[], critical: true },
        startup_plan::Stage { name: "trash", depends_on: &["storage"], critical: false },
    ];

    fn begin(dir: &tempfile::TempDir, boot: &str) -> Telling {
        let plan = Plan::new(&PLAN).expect("a plan");
        Telling::begin(&Paths::new(dir.path()), &plan, boot.to_string(), Instant::now())
    }

    fn how(telling: &Telling) -> (How, Vec<String>) {
        let previous = telling.read().current.previous.expect("there was one");
        (previous.how, previous.stages)
    }

    fn start(dir: &tempfile::TempDir, boot: &str) -> Telling {
        let telling = begin(dir, boot);
        telling.begins("storage");
        telling.succeeds("storage", Report::default());
        telling.is_ready_now();
        telling.is_complete();
        telling
    }

    #[test]
    fn how_the_run_before_ended_is_told_as_far_as_it_can_be_proved() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(start(&dir, "a").read().current.previous.is_none(), "there was none");
        assert_eq!(how(&start(&dir, "a")), (How::Killed, vec![]));
        let third = start(&dir, "b");
        assert_eq!(how(&third), (How::MachineDown, vec![]));
        third.ends(None);
        let fourth = begin(&dir, "c");
        assert_eq!(how(&fourth), (How::Clean, vec![]));
        fourth.begins("storage");
        let fifth = begin(&dir, "c");
        assert_eq!(how(&fifth), (How::Killed, vec!["storage".to_string()]));
        let log = fifth.read();
        let numbers: Vec<u64> = log.history.iter().map(|start| start.number).collect();
        assert_eq!((log.current.number, numbers), (5, vec![4, 3, 2, 1]));
        assert_eq!(log.history[0].summary, "did not come to its end: it died in stage storage");
    }

    #[test]
    fn an_end_that_meets_the_completion_of_the_start_is_not_written_over() {
        let dir = tempfile::tempdir().expect("a directory");
        for _ in 0..100 {
            let telling = begin(&dir, "a");
            std::thread::scope(|scope| {
                scope.spawn(|| telling.is_complete());
                scope.spawn(|| telling.ends(None));
            });
            let log = std::fs::read(dir.path().join("startup-log.json")).expect("kept");
            let log: StartupLog = serde_json::from_slice(&log).expect("a startup log");
            assert!(log.current.ended_at.is_some(), "start {}", log.current.number);
        }
    }

    #[test]
    fn deaths_in_a_stage_are_counted_while_they_come_one_after_the_other() {
        let dir = tempfile::tempdir().expect("a directory");
        for deaths in 0..3 {
            let telling = begin(&dir, "a");
            assert_eq!(telling.deaths("storage"), deaths);
            telling.begins("storage");
        }
        let telling = begin(&dir, "a");
        assert_eq!(telling.deaths("storage"), 3);
        telling.begins("storage");
        telling.succeeds("storage", Report::default());
        telling.begins("trash");
        let telling = begin(&dir, "a");
        assert_eq!((telling.deaths("storage"), telling.deaths("trash")), (0, 1));
        telling.ends(Some("cannot start".to_string()));
        let telling = begin(&dir, "a");
        assert_eq!(telling.deaths("trash"), 0, "an end in good order is no death");
        assert_eq!(how(&telling).0, How::Clean);
    }

    #[test]
    fn what_was_not_available_before_is_so_since_then_and_a_failing_stage_says_its_last_cause() {
        let dir = tempfile::tempdir().expect("a directory");
        let lost = |since: &str| Degraded {
            kind: Kind::Job,
            resource: "job x".into(),
            cause: "damaged".into(),
            since: since.into(),
            remedy: String::new(),
        };
        let first = start(&dir, "a");
        first.finds_degraded(lost("then"));
        first.is_complete();
        let second = start(&dir, "a");
        second.finds_degraded(lost("now"));
        second.goes_without("trash", "one".into(), "mend it");
        second.goes_without("trash", "other".into(), "mend it");
        let degraded = second.read().current.degraded;
        assert_eq!(degraded[0].since, "then");
        assert_eq!((degraded.len(), degraded[1].cause.as_str()), (2, "other"));
        second.succeeds("trash", Report::default());
        assert_eq!(second.read().current.degraded.len(), 1, "it is available again");
    }
}
