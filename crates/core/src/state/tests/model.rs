//! What must hold after every record, computed anew and naively.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use super::{Record, Rig, State, entries, replayed, restored};
use crate::event::{Event, Transaction};
use crate::ids::{AttemptNo, JobId, Lsn, RepoName};
use crate::job::{Job, OutcomeKind, Phase, WaitReason};
use crate::limits;
use crate::record::{EntityKey, EntityKind};
use crate::stats::Key;
use crate::time::Timestamp;

/// Everything that always holds and is cheap to compute.
pub(super) fn check(rig: &Rig) {
    let state = &rig.state;
    indexes_say_what_the_jobs_say(state);
    if let Some(next) = state.next_due() {
        assert!(next > rig.now, "what is due by time was done: {next} is not after {}", rig.now);
    }
    for job in state.jobs() {
        every_attempt_is_accounted(job);
        no_pause_is_longer_than_any(state, job, rig.now);
    }
}

/// Whatever the clock did since it began.
fn no_pause_is_longer_than_any(state: &State, job: &Job, now: Timestamp) {
    if let Phase::Waiting { reason: WaitReason::BackOff, until: Some(until) } = &job.phase
        && available(state, job)
    {
        assert!(until.since(now) <= limits::INTERRUPT_BACKOFF_MAX, "{until} is far from {now}");
    }
}

/// Everything else: the whole history is gone through.
pub(super) fn check_history(rig: &Rig) {
    // Proves I3: replay is the live path, so the sum of the records is the State that made them.
    let replay = replayed(&rig.records).expect("what was lived can be replayed");
    assert!(same(&replay, &rig.state), "replay differs from what was lived");
    assert!(same(&restored(&rig.state), &rig.state), "a checkpoint differs from its state");
    for record in &rig.records {
        let bytes = serde_json::to_vec(&record.transaction).expect("no odd keys");
        let back: Transaction = serde_json::from_slice(&bytes).expect("our own bytes");
        assert_eq!(back, record.transaction);
    }
    launched_once(&rig.records);
    everything_is_counted_once(&rig.records, &rig.state);
    for cut in [rig.records.len() / 3, rig.records.len() * 2 / 3] {
        a_checkpoint_can_be_gone_on_from(rig, cut);
    }
}

/// The same truth, and the same ways to find it.
pub(super) fn same(one: &State, other: &State) -> bool {
    entries(one) == entries(other)
        && one.lsn == other.lsn
        && one.clock == other.clock
        && one.index == other.index
        && one.unavailable == other.unavailable
}

/// What the statistics must say, counted anew and naively by the whole history.
fn everything_is_counted_once(records: &[Record], state: &State) {
    let mut accepted = 0;
    let mut outcomes: BTreeMap<JobId, OutcomeKind> = BTreeMap::new();
    let mut ran: BTreeMap<(JobId, AttemptNo), u64> = BTreeMap::new();
    for event in records.iter().flat_map(|record| &record.transaction.events) {
        match event {
            Event::JobAccepted(_) => accepted += 1,
            Event::JobEnded { job, outcome } => drop(outcomes.insert(job.clone(), outcome.kind)),
            Event::JobRequeued { job, .. } => drop(outcomes.remove(job)),
            Event::JobRepaired { job } => match &job.phase {
                Phase::Ended { outcome } => drop(outcomes.insert(job.id.clone(), outcome.kind)),
                _ => drop(outcomes.remove(&job.id)),
            },
            Event::AttemptEnded { job, attempt, end } => {
                let key = (job.clone(), *attempt);
                match end.started_at {
                    Some(at) => drop(ran.insert(key, end.ended_at.0.saturating_sub(at.0))),
                    None => drop(ran.remove(&key)),
                }
            }
            _ => {}
        }
    }
    let total = state.stats.row(&Key::Total).cloned().unwrap_or_default();
    assert_eq!((total.accepted, total.ended()), (accepted, outcomes.len() as u64));
    for kind in [OutcomeKind::Completed, OutcomeKind::Failed, OutcomeKind::Cancelled] {
        let count = outcomes.values().filter(|outcome| **outcome == kind).count() as u64;
        assert_eq!(*total.clone().outcome(kind), count, "{kind:?}");
    }
    assert_eq!((total.attempts, total.run_ms.sum), (ran.len() as u64, ran.values().sum()));
    let live = state.jobs().filter(|job| !matches!(job.phase, Phase::Ended { .. })).count() as u64;
    assert_eq!(total.accepted, total.ended() + total.removed + live, "every job counts once");
    for sort in ["engine", "owner", "day"] {
        let rows = state.stats.rows().filter(|(key, _)| key.entity_name().starts_with(sort));
        let sums = rows.fold((0, 0, 0), |(accepted, ended, attempts), (_, row)| {
            (accepted + row.accepted, ended + row.ended(), attempts + row.attempts)
        });
        assert_eq!(sums, (total.accepted, total.ended(), total.attempts), "{sort}");
    }
}

/// Proves I7: an attempt is planned once, in its order, and launched again only while it is the current one.
fn launched_once(records: &[Record]) {
    let mut planned: BTreeMap<JobId, AttemptNo> = BTreeMap::new();
    let mut over: BTreeSet<(JobId, AttemptNo)> = BTreeSet::new();
    for event in records.iter().flat_map(|record| &record.transaction.events) {
        match event {
            Event::LaunchPlanned { job, attempt, .. } => {
                let before = planned.insert(job.clone(), *attempt);
                assert_eq!(before.map_or(1, |before| before.get() + 1), attempt.get());
            }
            Event::AttemptEnded { job, attempt, .. } => {
                over.insert((job.clone(), *attempt));
            }
            Event::RelaunchPlanned { work: crate::job::Work::Attempt { job, attempt } } => {
                assert_eq!(planned.get(job), Some(attempt));
                assert!(!over.contains(&(job.clone(), *attempt)), "launched after its end");
            }
            _ => {}
        }
    }
}

/// A checkpoint taken at any time, and the records after it, give the same State; and each record follows the one that the
/// checkpoint or a record before names, or the write-ahead log would call the entity damaged.
pub(super) fn a_checkpoint_can_be_gone_on_from(rig: &Rig, cut: usize) {
    let (before, after) = rig.records.split_at(cut);
    let early = replayed(before).expect("a part of what was lived");
    let mut state = restored(&early);
    let mut seen: BTreeMap<EntityKey, Lsn> =
        early.entries().map(|(entity, lsn, _)| (entity, lsn)).collect();
    for record in after {
        for (entity, previous) in &record.links {
            let last = seen.insert(entity.clone(), record.lsn).unwrap_or(Lsn::NONE);
            let follows = *previous == Lsn::NONE || *previous == last;
            assert!(follows, "{entity:?}: {previous} was named, {last} was seen");
        }
        for event in &record.transaction.events {
            let done = state.apply(record.lsn, record.transaction.at, event);
            done.expect("what was lived can be gone on with");
        }
    }
    assert!(same(&state, &rig.state), "checkpoint and records differ from what was lived");
}

/// Where a job stands in line, as the promise has it: a point of priority is worth a minute of waiting.
fn place(job: &Job) -> (i128, Lsn) {
    let ready = i128::from(job.ready_at.0);
    (ready - i128::from(job.task.priority) * 60_000, job.accepted)
}

fn available(state: &State, job: &Job) -> bool {
    !state.unavailable.contains_key(&crate::event::job_entity(&job.id))
}

/// Whatever leaves the queue by itself is what stands first in it.
pub(super) fn the_first_in_line_goes(state: &State, due: &[Event]) {
    let Some(event) = due.first() else { return };
    let entity = event.entity();
    if entity.kind != EntityKind::Job {
        return;
    }
    let Some(job) = JobId::parse(&entity.name).ok().and_then(|id| state.job(&id)) else { return };
    if job.phase == Phase::Queued {
        let queued = state.jobs().filter(|job| job.phase == Phase::Queued);
        let first = queued.filter(|job| available(state, job)).map(|job| place(job)).min();
        assert_eq!(Some(place(job)), first, "FIFO within one effective priority");
    }
}

fn indexes_say_what_the_jobs_say(state: &State) {
    let mut queue: Vec<((i128, Lsn), JobId)> = Vec::new();
    let mut timers: BTreeSet<(Timestamp, JobId)> = BTreeSet::new();
    let mut pauses: BTreeSet<(Timestamp, JobId)> = BTreeSet::new();
    let mut waiters: BTreeSet<(RepoName, Lsn)> = BTreeSet::new();
    let mut busy: BTreeSet<JobId> = BTreeSet::new();
    let mut keys: BTreeSet<(String, String)> = BTreeSet::new();
    let mut users: BTreeSet<(RepoName, Lsn)> = BTreeSet::new();
    let mut prompts = 0;
    for job in state.jobs() {
        prompts += job.turns.iter().map(|turn| turn.prompt.len()).sum::<usize>();
        keys.extend(job.idempotency.iter().map(|i| (job.owner.clone(), i.key.clone())));
        if !matches!(job.phase, Phase::Ended { .. }) {
            users.extend(job.task.repos.iter().map(|repo| (repo.clone(), job.accepted)));
        }
        if !available(state, job) {
            continue;
        }
        match &job.phase {
            Phase::Queued => queue.push((place(job), job.id.clone())),
            Phase::Waiting { reason, until } => {
                timers.extend(until.map(|until| (until, job.id.clone())));
                if *reason == WaitReason::BackOff {
                    pauses.extend(until.map(|until| (until, job.id.clone())));
                }
                if let WaitReason::Repo { name } = reason {
                    waiters.insert((name.clone(), job.accepted));
                }
            }
            Phase::Preparing { .. } | Phase::Running { .. } | Phase::Stopping { .. } => {
                busy.insert(job.id.clone());
            }
            _ => {}
        }
    }
    let removed = state.removed.values();
    keys.extend(
        removed.filter_map(|r| Some((r.owner.clone(), r.idempotency.as_ref()?.key.clone()))),
    );
    queue.sort();
    let index = &state.index;
    assert!(index.queue.iter().map(|(key, id)| (*key, id.clone())).eq(queue), "queue");
    assert!(index.timers.keys().eq(timers.iter()), "timers");
    assert!(index.pauses.keys().eq(pauses.iter()), "pauses");
    assert!(index.repo_waiters.keys().eq(waiters.iter()), "repo waiters");
    assert!(index.repo_users.keys().eq(users.iter()), "repo users");
    assert!(index.busy.keys().eq(busy.iter()), "busy");
    assert!(index.keys.keys().eq(keys.iter()), "keys");
    assert_eq!(index.prompt_bytes, prompts);
    for (ahead, (key, _)) in index.queue.iter().enumerate() {
        assert_eq!(index.queue.rank(*key), ahead, "a place is what counting says");
    }
}

/// An attempt is either what its job is about now, or its end is known.
fn every_attempt_is_accounted(job: &Job) {
    for attempt in &job.attempts {
        let work = crate::job::Work::Attempt { job: job.id.clone(), attempt: attempt.n };
        let current = job.phase.work(&job.id) == Some(work);
        assert!(current || attempt.end.is_some(), "attempt {} of {:?}", attempt.n, job.phase);
    }
}
