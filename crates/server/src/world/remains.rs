//! What directories tell of jobs and repos whose records are lost: they are read, and nothing is touched.
//!
//! Only what bears this data directory's own marker counts (I12). Absent: what follows from it.

use std::fs;
use std::path::Path;

use outlive_core::ids::{AttemptNo, JobId, Lsn, OperationId, RepoName};
use outlive_core::job::Workspace;
use outlive_core::limits;
use outlive_core::spec::file;
use outlive_core::state::repair::{AttemptRemains, Remains};
use outlive_supervisor::{read_slots, read_spec, read_started};
use serde_json::Value;

use crate::data_dir::Paths;
use crate::world::workspace::note_path;

/// The jobs that have a directory of ours, with the record of their acceptance.
pub fn jobs(paths: &Paths, instance: &str) -> Vec<(JobId, Lsn)> {
    let ids = names(&paths.jobs()).filter_map(|name| JobId::parse(&name).ok());
    ids.filter_map(|id| Some((id.clone(), accepted(paths, instance, &id)?))).collect()
}

/// The repos that have a source copy of ours.
pub fn repos(paths: &Paths, instance: &str) -> Vec<RepoName> {
    let names = names(&paths.repos()).filter_map(|name| RepoName::parse(&name).ok());
    names.filter(|name| has_copy(paths, instance, name)).collect()
}

/// Whether a repo has a source copy of ours, which then is whole.
pub fn has_copy(paths: &Paths, instance: &str, name: &RepoName) -> bool {
    let note = json(&note_path(&paths.repo(name)));
    note.is_some_and(|note| note["instance"] == instance)
}

/// The operation with the highest number that has a directory.
pub fn last_operation(paths: &Paths) -> Option<OperationId> {
    names(&paths.operations()).filter_map(|name| name.parse().ok()).max().map(OperationId)
}

/// How many attempts of a job have a directory; none where the job has none.
pub fn attempts(paths: &Paths, instance: &str, id: &JobId) -> Option<usize> {
    accepted(paths, instance, id)?;
    Some(highest_attempt(&paths.job(id)))
}

/// All that a job's directory tells of it; nothing if it is not ours.
pub fn of_job(paths: &Paths, instance: &str, id: &JobId) -> Remains {
    let Some(accepted) = accepted(paths, instance, id) else { return Remains::default() };
    let dir = paths.job(id);
    let numbers = 1..=u32::try_from(highest_attempt(&dir)).unwrap_or(0);
    let attempts = numbers.filter_map(AttemptNo::new).map(|n| attempt(&dir, n)).collect();
    let workspaces = (0..limits::ATTEMPTS_MAX)
        .map(|session| paths.workspace(id, session))
        .take_while(|path| path.exists())
        .map(|path| workspace(&path, id))
        .collect();
    Remains { accepted: Some(accepted), workspaces, attempts }
}

fn attempt(dir: &Path, n: AttemptNo) -> AttemptRemains {
    let keep = dir.join("attempts").join(n.to_string());
    let has = |name: &str| keep.join(name).exists();
    AttemptRemains {
        n,
        spec: read_spec(&keep).valid().cloned(),
        started: read_started(&keep).valid().cloned(),
        outcome: has(file::OUTCOME).then(|| read_slots(&keep).0.valid().cloned()).flatten(),
    }
}

fn workspace(path: &Path, id: &JobId) -> Option<Workspace> {
    let note = json(&note_path(path))?;
    let text = |name: &str| note[name].as_str().map(str::to_string);
    Some(Workspace {
        made_by: text("made_by")?,
        base_commit: text("base_commit"),
        branch: format!("outlive/{id}"),
    })
}

/// The record of a job's acceptance, by the marker in its directory.
fn accepted(paths: &Paths, instance: &str, id: &JobId) -> Option<Lsn> {
    let dir = paths.job(id);
    // I12: never through a link.
    fs::symlink_metadata(&dir).ok().filter(fs::Metadata::is_dir)?;
    let marker = json(&dir.join("marker.json"))?;
    (marker["instance"] == instance && marker["job"] == id.as_str())
        .then(|| marker["accepted"].as_u64().map(Lsn))
        .flatten()
}

fn highest_attempt(dir: &Path) -> usize {
    let numbers = names(&dir.join("attempts")).filter_map(|name| name.parse().ok());
    numbers.max().unwrap_or(0).min(limits::ATTEMPTS_MAX)
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The names in a directory that are text; none where there is no directory.
fn names(dir: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}
