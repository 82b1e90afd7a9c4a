//! Counting what happens to jobs: from an event that was applied to the rows of [`crate::stats`].

use alloc::string::ToString as _;
use alloc::vec::Vec;

use super::State;
use crate::event::Event;
use crate::ids::{AttemptNo, Lsn};
use crate::job::{AttemptEnd, Job, OutcomeKind, Phase};
use crate::stats::{Key, Row, Stats};
use crate::time::{Day, Timestamp};

impl State {
    /// What became of jobs, counted.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Counts what an event made of a job; `before` and `after` are the job around it, none where it was not yet, or is no more.
    pub(super) fn count(
        &mut self,
        (lsn, at): (Lsn, Timestamp),
        event: &Event,
        before: Option<&Job>,
        after: Option<&Job>,
    ) {
        let mut count = |job: &Job, on: Timestamp, change: &dyn Fn(&mut Row)| {
            for key in keys(job, on.day()) {
                self.stats.change(lsn, key, change);
            }
        };
        match (before, after) {
            (None, Some(job)) => count(job, at, &|row| row.accepted += 1),
            (Some(job), None) if ended(job).is_none() => count(job, at, &|row| row.removed += 1),
            _ => {}
        }
        let (Some(before), Some(after)) = (before, after) else { return };
        if ended(before) != ended(after) {
            // A job counts once, with the outcome that it has now.
            if let Some((kind, on)) = ended(before) {
                count(before, on, &|row| {
                    let counter = row.outcome(kind);
                    *counter = counter.saturating_sub(1);
                });
            }
            if let Some((kind, on)) = ended(after) {
                count(after, on, &|row| *row.outcome(kind) += 1);
            }
        }
        match event {
            Event::CopyPlanned { .. } | Event::LaunchPlanned { .. }
                if before.phase == Phase::Queued =>
            {
                let waited = millis(at, before.ready_at);
                count(after, at, &|row| row.queue_ms.add(waited));
            }
            Event::WorkspaceReady { .. } => {
                let took = before.slot_at.map_or(0, |slot_at| millis(at, slot_at));
                count(after, at, &|row| row.prepare_ms.add(took));
            }
            Event::AttemptEnded { attempt, .. } => {
                // An end that was unknown may be proved later: then it takes the place of what was counted.
                if let Some(end) = end_of(before, *attempt) {
                    count(after, end.ended_at, &|row| take_attempt(row, end));
                }
                if let Some(end) = end_of(after, *attempt) {
                    count(after, end.ended_at, &|row| add_attempt(row, end));
                }
            }
            _ => {}
        }
    }
}

fn keys(job: &Job, day: Day) -> Vec<Key> {
    let repos = job.task.repos.iter().map(|repo| Key::Repo(Some(repo.to_string())));
    let engine = Key::Engine(Some(job.task.engine.clone()));
    let rest = [Key::Total, engine, Key::Owner(Some(job.owner.clone())), Key::Day(day)];
    repos.chain(rest).collect()
}

fn ended(job: &Job) -> Option<(OutcomeKind, Timestamp)> {
    match &job.phase {
        Phase::Ended { outcome } => Some((outcome.kind, job.ended_at.unwrap_or_default())),
        _ => None,
    }
}

fn end_of(job: &Job, attempt: AttemptNo) -> Option<&AttemptEnd> {
    job.attempt(attempt)?.end.as_ref()
}

fn millis(at: Timestamp, since: Timestamp) -> u64 {
    u64::try_from(at.since(since).as_millis()).unwrap_or(u64::MAX)
}

fn run_ms(end: &AttemptEnd) -> Option<u64> {
    end.started_at.map(|started_at| millis(end.ended_at, started_at))
}

fn add_attempt(row: &mut Row, end: &AttemptEnd) {
    if let Some(run_ms) = run_ms(end) {
        row.attempts += 1;
        row.run_ms.add(run_ms);
        row.peak_memory_bytes.add(end.peak_memory_bytes);
    }
    sums(row, end, u64::saturating_add);
}

fn take_attempt(row: &mut Row, end: &AttemptEnd) {
    if let Some(run_ms) = run_ms(end) {
        row.attempts = row.attempts.saturating_sub(1);
        row.run_ms.take(run_ms);
        row.peak_memory_bytes.take(end.peak_memory_bytes);
    }
    sums(row, end, u64::saturating_sub);
}

fn sums(row: &mut Row, end: &AttemptEnd, change: fn(u64, u64) -> u64) {
    let usage = end.usage.unwrap_or_default();
    row.cpu_ms = change(row.cpu_ms, end.cpu_ms);
    row.input_tokens = change(row.input_tokens, usage.input_tokens);
    row.output_tokens = change(row.output_tokens, usage.output_tokens);
    row.cost_micros = change(row.cost_micros, usage.cost_micros.unwrap_or(0));
}
