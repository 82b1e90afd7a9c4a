//! What the stages of a startup do: the write-ahead log is opened and made whole, State is summed up, and everything that was under
//! way is looked at and judged.

use std::collections::BTreeMap;
use std::sync::Arc;

use outlive_core::job::{Job, Phase, Work};
use outlive_core::state::State;
use outlive_supervisor::crash_point;

use super::lost;
use super::told::Report;
use crate::data_dir::{Instance, Paths};
use crate::truth::driver::Handle;
use crate::truth::store::{Replayed, log_config, replay};
use crate::truth::wal::{self, Opened, WalError};
use crate::world::fleet::Fleet;

/// Stage storage: the write-ahead log is opened, and repaired.
///
/// # Errors
/// It cannot be opened.
pub fn storage(paths: &Paths, instance: &Instance) -> Result<Opened, WalError> {
    let opened = wal::open(log_config(paths, instance))?;
    crash_point("startup.storage");
    Ok(opened)
}

/// Stage state: State is summed up, and whoever lost something is held.
pub fn state(
    opened: &Opened,
    paths: &Paths,
    instance: &Instance,
    owner: &str,
) -> (State, Replayed) {
    let mut state = State::default();
    let replayed = replay(opened, &mut state);
    lost::hold(&mut state, &opened.lost, paths, &instance.instance, owner);
    (state, replayed)
}

/// What stage storage has to tell.
pub fn told_of_storage(opened: &Opened) -> Report {
    let report = &opened.report;
    let counts = [
        ("records", opened.records.len() as u64),
        ("segments", report.segments_read as u64),
        ("bytes_cut", report.cut_bytes),
        ("records_rewritten", report.rewritten_records as u64),
        ("damaged_places", (report.damage.len() + report.damage_unlisted) as u64),
    ];
    let mut notes = Vec::new();
    if let Some((file, offset)) = &report.cut_at {
        let (bytes, file) = (report.cut_bytes, file.display());
        notes.push(format!("a torn last group was cut: {bytes} bytes of {file} at {offset}"));
    }
    for damage in &report.damage {
        let (file, offset, what) = (damage.file.display(), damage.offset, &damage.what);
        let kept = damage.kept.as_ref();
        let kept = kept.map(|kept| format!("; kept as {}", kept.display())).unwrap_or_default();
        notes.push(format!("{file} at byte {offset}: {what}{kept}"));
    }
    Report { notes, ..Report::of(counts) }
}

/// What stage state has to tell.
pub fn told_of_state(state: &State, replayed: &Replayed) -> Report {
    let counts = [
        ("jobs", state.jobs().count() as u64),
        ("not_ended", state.jobs().filter(|job| !has_ended(job)).count() as u64),
        ("queued", state.queued() as u64),
        ("repos", state.repos().count() as u64),
        ("events", replayed.events),
        ("unavailable", state.all_unavailable().count() as u64),
    ];
    Report::of(counts)
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
pub async fn attempts(handle: &Handle, fleet: &Fleet, works: &[Work]) -> Report {
    let looks: Vec<_> = works.iter().map(|work| fleet.look_and_report(work.clone())).collect();
    for look in looks {
        look.await;
    }
    crash_point("startup.attempts");
    // Reports are durable by now; what was queued may start. No driver means that the process is ending.
    handle.tick().await.ok();
    Report { counts: outcomes(&handle.view(), works), notes: Vec::new() }
}

/// Stage trash: deletions go on.
///
/// # Errors
/// Something could not be deleted; the rest is gone.
pub async fn trash(fleet: &Fleet) -> anyhow::Result<Report> {
    let emptied = fleet.empty_trash().await?;
    if let Some(error) = emptied.failed.into_iter().next() {
        return Err(error.into());
    }
    Ok(Report::of([("deleted", emptied.entries), ("bytes_freed", emptied.bytes)]))
}

fn has_ended(job: &Job) -> bool {
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
