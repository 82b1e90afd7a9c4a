//! What must be true of a disk after a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use outlive::truth::disk::RealDisk;
use outlive::truth::store::replay;
use outlive::truth::wal;
use outlive_core::job::{Job, Phase};
use outlive_core::repo::RepoPhase;
use outlive_core::spec::{Outcome, Reading, TreeEmpty};
use outlive_core::state::State;
use outlive_supervisor::{read_sentinel, read_slots, read_spec, read_started};
use serde_json::Value;

use super::life::{self, Tree};
use crate::rig::Rig;

/// What was found wrong, by subject.
#[derive(Debug, Default)]
pub(super) struct Findings(BTreeMap<&'static str, Vec<String>>);

impl Findings {
    fn add(&mut self, subject: &'static str, what: impl Into<String>) {
        self.0.entry(subject).or_default().push(what.into());
    }

    /// The findings of a subject: `log`, `output`, `workspace` or `files`.
    pub(super) fn of(&self, subject: &str) -> &[String] {
        self.0.get(subject).map_or(&[], Vec::as_slice)
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .flat_map(|(subject, found)| found.iter().map(move |it| format!("{subject}: {it}")))
    }

    /// Each with the name of the state.
    pub(super) fn named(mut self, name: &str) -> Self {
        let all = self.0.values_mut().flatten();
        all.for_each(|found| *found = format!("{name}: {found}"));
        self
    }
}

/// What clients had been told.
#[derive(Debug, Default)]
struct Told {
    /// Titles by id.
    accepted: BTreeMap<String, String>,
    removing: BTreeSet<String>,
    removed: BTreeSet<String>,
    ended: BTreeSet<String>,
}

impl Told {
    fn of(lines: &[String]) -> Self {
        let mut told = Self::default();
        for line in lines {
            match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
                ["accepted", id, title] => drop(told.accepted.insert(id.into(), title.into())),
                ["removing", id] => drop(told.removing.insert(id.into())),
                ["removed", id] => drop(told.removed.insert(id.into())),
                ["ended", id] => drop(told.ended.insert(id.into())),
                ["ready"] => {}
                _ => panic!("never told: {line}"),
            }
        }
        told
    }
}

/// Recovers what is there and looks at all of it; `served`: by a real server.
pub(super) fn check(place: &Path, told: &[String], tree: &Tree, served: bool) -> Findings {
    let mut findings = Findings::default();
    let data = place.join("data");
    whole_files(&data, &mut findings);
    let told = Told::of(told);
    if served {
        serve(place, &told, &mut findings);
    }
    let Some(state) = recover(&data, &mut findings) else { return findings };
    jobs(&state, &told, &mut findings);
    for job in state.jobs() {
        attempts(&data, job, &told, &mut findings);
    }
    workspaces(&data, &state, tree, &mut findings);
    findings
}

/// Every small file is whole, or not there.
fn whole_files(data: &Path, findings: &mut Findings) {
    let json = |path: &Path| match fs::read(path) {
        Ok(bytes) => serde_json::from_slice::<Value>(&bytes).err().map(|error| error.to_string()),
        Err(_) => None,
    };
    let below = |dir: &str| fs::read_dir(data.join(dir)).into_iter().flatten().flatten();
    let jobs: Vec<_> = below("jobs").map(|entry| entry.path()).collect();
    let markers = jobs.iter().map(|job| job.join("marker.json"));
    let own = ["instance.json", "startup-log.json"].map(|name| data.join(name));
    for path in own.into_iter().chain(markers) {
        if let Some(why) = json(&path) {
            findings.add("files", format!("{}: {why}", path.display()));
        }
    }
    let token = fs::read_to_string(data.join("token"));
    if token.is_ok_and(|token| token.len() < 20 || !token.ends_with('\n')) {
        findings.add("files", "half a token");
    }
    let operations = below("operations").map(|entry| entry.path());
    for keep in operations.chain(jobs.iter().map(|job| job.join("attempts/1"))) {
        let damaged = [
            matches!(read_spec(&keep), Reading::Damaged(_)),
            matches!(read_started(&keep), Reading::Damaged(_)),
            matches!(read_sentinel(&keep), Reading::Damaged(_)),
        ];
        if damaged != [false; 3] {
            findings.add("files", format!("{}: {damaged:?}", keep.display()));
        }
    }
}

/// The recovery of the server, twice: the second finds what the first left.
pub(super) fn recover(data: &Path, findings: &mut Findings) -> Option<State> {
    let instance = fs::read(data.join("instance.json")).ok()?;
    let instance: Value = serde_json::from_slice(&instance).ok()?;
    let instance: uuid::Uuid = instance["instance"].as_str()?.parse().ok()?;
    let open = || {
        let nonce = || u64::from_le_bytes(outlive::random::bytes());
        let (dir, quarantine) = (data.join("wal"), data.join("quarantine"));
        wal::open(wal::Config::new(
            Arc::new(RealDisk),
            dir,
            quarantine,
            *instance.as_bytes(),
            nonce,
        ))
    };
    let mut states = Vec::new();
    for _ in 0..2 {
        let opened = match open() {
            Ok(opened) => opened,
            Err(error) => {
                findings.add("log", format!("cannot be opened: {error:?}"));
                return None;
            }
        };
        let damage = opened.report.damage.iter().filter(|damage| !damage.harmless);
        damage.for_each(|damage| findings.add("log", format!("{damage:?}")));
        let mut state = State::default();
        for (entity, why) in replay(&opened, &mut state).unavailable {
            findings.add("log", format!("{entity} is unavailable: {why}"));
        }
        states.push(state);
    }
    let second = states.pop()?;
    if states.first().is_some_and(|first| first.lsn() != second.lsn()) {
        findings.add("log", "the second recovery found something else than the first");
    }
    Some(second)
}

/// Everything acknowledged is there, and nothing is there by half.
fn jobs(state: &State, told: &Told, findings: &mut Findings) {
    let found: BTreeMap<&str, &Arc<Job>> = state.jobs().map(|job| (job.id.as_str(), job)).collect();
    for (id, title) in &told.accepted {
        let job = found.get(id.as_str());
        if job.is_none() && !told.removing.contains(id) {
            findings.add("log", format!("LOST: {id} ({title})"));
        }
        if job.is_some() && told.removed.contains(id) {
            findings.add("log", format!("LOST: the removal of {id} ({title})"));
        }
    }
    for id in &told.ended {
        let ended = |job: &&Arc<Job>| matches!(job.phase, Phase::Ended { .. });
        if !found.get(id.as_str()).is_some_and(ended) {
            findings.add("log", format!("LOST: the end of {id}"));
        }
    }
    for job in found.values() {
        let title = job.task.title.clone().unwrap_or_default();
        let whole = match title.split_once(' ').map(|(kind, n)| (kind, n.parse())) {
            Some(("held", Ok(n))) => job.prompt(1) == Some(life::prompt(n)),
            Some(("running", Ok(_))) => job.task.engine == "command",
            Some(_) | None => false,
        };
        if !whole {
            findings.add("log", format!("HALF: {} ({title})", job.id));
        }
    }
}

/// An outcome that says N bytes never stands beside a file with fewer, or with others.
fn attempts(data: &Path, job: &Job, told: &Told, findings: &mut Findings) {
    let dir = data.join("jobs").join(job.id.as_str());
    let (outcome, empty): (Reading<Outcome>, Reading<TreeEmpty>) =
        read_slots(&dir.join("attempts/1"));
    for damage in [matches!(outcome, Reading::Damaged(_)), matches!(empty, Reading::Damaged(_))] {
        if damage {
            findings.add("output", format!("{}: a torn slot", job.id));
        }
    }
    let lengths = outcome.valid().map(|it| it.output_to).max(empty.valid().map(|it| it.output_to));
    if lengths.is_none() && told.ended.contains(job.id.as_str()) {
        findings.add("output", format!("LOST: the outcome of {}", job.id));
    }
    let (Some([stdout, _]), Some(session)) = (lengths, job.session()) else { return };
    let title = job.task.title.clone().unwrap_or_default();
    let n = title.split_once(' ').and_then(|(_, n)| n.parse().ok()).unwrap_or(0);
    let (expected, promised) = (life::output(n), usize::try_from(stdout).expect("fits"));
    let found = fs::read(dir.join(format!("{}.output", session.id))).unwrap_or_default();
    if found.get(..promised) != expected.as_bytes().get(..promised) {
        let id = &job.id;
        let found = found.len();
        findings.add(
            "output",
            format!("{id}: {promised} bytes are promised, {found} there, or others"),
        );
    }
}

/// What is said to be ready is whole.
fn workspaces(data: &Path, state: &State, tree: &Tree, findings: &mut Findings) {
    let jobs = state.jobs().filter(|job| job.session().is_some_and(|it| it.workspace.is_some()));
    let workspaces = jobs.map(|job| data.join("jobs").join(job.id.as_str()).join("workspace"));
    let ready = state.repos().filter(|repo| matches!(repo.phase, RepoPhase::Ready));
    let repos = ready.map(|repo| data.join("repos").join(repo.name.as_str()));
    for root in workspaces.chain(repos) {
        for wrong in life::compare(&root, tree) {
            findings.add("workspace", format!("{}: {wrong}", root.display()));
        }
    }
}

/// A real server starts on it, and shows what was acknowledged.
fn serve(place: &Path, told: &Told, findings: &mut Findings) {
    let mut rig = Rig::with_data_below(place);
    let client = rig.start();
    for id in told.accepted.keys().filter(|id| !told.removing.contains(*id)) {
        if let Err(error) = client.get(&format!("/api/jobs/{id}")) {
            findings.add("log", format!("LOST, says the server: {id}: {error}"));
        }
    }
    let ready: Value = client.get("/readyz").expect("ready").json().expect("JSON");
    if ready["degraded"].as_array().is_none_or(|degraded| !degraded.is_empty()) {
        findings.add("log", format!("the server is degraded: {ready}"));
    }
    rig.kill();
}
