//! From what was opened to State: all of it, or what is left and who lost what.

use outlive_core::event::{Event, job_entity, repo_entity, server_entity};
use outlive_core::ids::{JobId, RepoName};
use outlive_core::record::{EntityKey, Link};
use serde_json::{Value, json};

use super::*;
use crate::truth::wal::{Broken, open};

const WHY: &str = "record 3 in a file at 512 cannot be read";

/// An empty write-ahead log, opened; what it holds is put in by hand.
fn opened(dir: &tempfile::TempDir) -> Opened {
    let disk = Arc::new(RealDisk);
    let (wal, quarantine) = (dir.path().join("wal"), dir.path().join("quarantine"));
    open(Config::new(disk, wal, quarantine, [1; 16], || 7)).expect("new")
}

fn record(lsn: u64, events: &[Value]) -> Record {
    let body = json!({ "at": 1000 * lsn, "events": events });
    let all = events.iter().map(|it| serde_json::from_value(it.clone()).expect("an event"));
    let links = all.map(|event: Event| Link { entity: event.entity(), previous: Lsn::NONE });
    let (links, body) = (links.collect(), body.to_string().into_bytes());
    Record { lsn: Lsn(lsn), synced_through: Lsn::NONE, links, body }
}

fn accepted(job: &JobId) -> Value {
    json!({
        "event": "job_accepted", "job": job, "owner": "local", "prompt": "do it", "session": "s",
        "held": true, "start_after": null, "idempotency": null,
        "task": {
            "repos": ["web"], "engine": "command", "engine_options": {}, "model": null, "timeout_ms": 1000,
            "priority": 50, "on_interrupt": "fail", "on_unknown": "hold", "max_interrupts": 3,
            "on_limit": "fail", "limit_wait_ms": 0, "limits": {}, "env": {}, "title": null, "group": null,
        },
    })
}

fn released(job: &JobId) -> Value {
    json!({ "event": "job_released", "job": job })
}

fn id(n: u64) -> JobId {
    JobId::from_random(n)
}

/// Two jobs, the first of them let go.
fn records() -> Vec<Record> {
    let started = json!({ "event": "server_started", "number": 4, "version": "v", "boot_id": "b" });
    vec![
        record(1, &[started, accepted(&id(1))]),
        record(2, &[accepted(&id(2))]),
        record(3, &[released(&id(1))]),
    ]
}

fn summed(opened: &Opened) -> (State, Replayed) {
    let mut state = State::default();
    let replayed = replay(opened, &mut state);
    (state, replayed)
}

fn phase(state: &State, n: u64) -> &'static str {
    state.job(&id(n)).expect("it is there").phase.name()
}

fn lost(replayed: &Replayed) -> Vec<&str> {
    replayed.unavailable.iter().map(|(entity, _)| entity.as_str()).collect()
}

#[test]
fn records_are_summed_up_and_so_is_the_checkpoint_before_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = opened(&dir);
    opened.records = records();
    opened.report.last_lsn = Lsn(3);
    let (whole, replayed) = summed(&opened);
    assert_eq!((phase(&whole, 1), phase(&whole, 2)), ("queued", "held"));
    assert_eq!((replayed.events, lost(&replayed).len()), (4, 0));
    assert_eq!((whole.lsn(), whole.starts()), (Lsn(3), 4));
    // The same by way of a checkpoint after the second.
    opened.records.truncate(2);
    opened.report.last_lsn = Lsn(2);
    let (early, _) = summed(&opened);
    let entries = early.entries().map(|(entity, lsn, body)| Entry { entity, lsn, body });
    opened.checkpoint = entries.collect();
    opened.report.checkpoint_lsn = Lsn(2);
    opened.records = records().split_off(2);
    opened.report.last_lsn = Lsn(9);
    let (state, replayed) = summed(&opened);
    assert_eq!((phase(&state, 1), replayed.events), ("queued", 1));
    assert_eq!(state.lsn(), Lsn(9), "what was lost at the end is passed over");
    assert!(state.entries().eq(whole.entries()));
}

// Proves I10: what was before the loss is known, what comes after does not count, and nobody else is concerned.
#[test]
fn whoever_lost_a_record_is_known_as_before_it_and_no_longer_followed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = opened(&dir);
    opened.records = records();
    opened.report.last_lsn = Lsn(3);
    for (since, known) in [(0, false), (1, false), (2, true), (3, true), (4, true)] {
        let broken = Broken { since: Lsn(since), why: WHY.to_string() };
        opened.broken = [(job_entity(&id(1)), broken)].into();
        let (state, replayed) = summed(&opened);
        assert_eq!(lost(&replayed), [job_entity(&id(1)).to_string()], "since {since}");
        assert_eq!(state.unavailable(&job_entity(&id(1))), Some(WHY));
        assert_eq!(state.job(&id(1)).is_some(), known, "since {since}");
        if known {
            assert_eq!(phase(&state, 1), if since == 4 { "queued" } else { "held" });
        }
        assert_eq!(phase(&state, 2), "held");
    }
}

#[test]
fn a_record_that_begins_its_entity_again_makes_good_what_was_lost_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = opened(&dir);
    opened.records = records();
    let whole = summed(&opened).0;
    let job = serde_json::to_value(&**whole.job(&id(1)).expect("there")).expect("JSON");
    opened.records.push(record(4, &[json!({ "event": "job_repaired", "job": job })]));
    opened.records.push(record(5, &[json!({ "event": "job_removed", "job": id(2) })]));
    opened.report.last_lsn = Lsn(5);
    let broken = || Broken { since: Lsn(2), why: WHY.to_string() };
    opened.broken = [1, 2].map(|n| (job_entity(&id(n)), broken())).into();
    let (state, replayed) = summed(&opened);
    assert_eq!(state.all_unavailable().count(), 0, "{replayed:?}");
    assert_eq!((phase(&state, 1), state.job(&id(2))), ("queued", None));
    // What is lost after that is lost again.
    let again = Broken { since: Lsn(6), why: WHY.to_string() };
    opened.broken = [(job_entity(&id(1)), again)].into();
    assert!(summed(&opened).0.unavailable(&job_entity(&id(1))).is_some());
}

#[test]
fn what_cannot_be_understood_or_cannot_have_happened_costs_those_it_is_about() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = opened(&dir);
    opened.records = records();
    opened.records[2].body = b"{".to_vec();
    let (state, _) = summed(&opened);
    let why = state.unavailable(&job_entity(&id(1))).expect("lost");
    assert!(why.starts_with("record 3 cannot be understood: "), "{why}");
    assert_eq!(phase(&state, 2), "held");
    opened.records = records();
    opened.records.push(record(4, &[released(&id(1)), accepted(&id(3))]));
    let (state, replayed) = summed(&opened);
    let why = state.unavailable(&job_entity(&id(1))).expect("lost");
    assert!(why.starts_with("record 4: ") && why.contains("cannot happen"), "{why}");
    assert_eq!((phase(&state, 3), replayed.events), ("held", 5));
}

#[test]
fn an_entry_that_cannot_be_understood_costs_its_entity() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = opened(&dir);
    let repo = repo_entity(&RepoName::parse("web").expect("a name"));
    let entry = |entity: EntityKey, body: &[u8]| Entry { entity, lsn: Lsn(1), body: body.to_vec() };
    opened.checkpoint = vec![entry(repo.clone(), b"{"), entry(repo.clone(), b"[")];
    let (state, replayed) = summed(&opened);
    assert_eq!(lost(&replayed), ["repo/web"], "once");
    assert!(state.unavailable(&repo).is_some_and(|why| why.contains("checkpoint entry of web")));
    assert_eq!(state.unavailable(&server_entity()), None);
}

#[test]
fn a_checkpoint_is_due_after_so_many_records_and_not_while_one_waits() {
    let at = |lsn: u64| {
        let mut state = State::default();
        state.restored_through(Lsn(lsn));
        Arc::new(state)
    };
    let (mut checkpoints, CheckpointThread(states)) = Checkpoints::new(Lsn(10), 5);
    let asked = || states.try_recv().ok().map(|state| state.lsn().0);
    checkpoints.consider(&at(14));
    assert_eq!(asked(), None);
    checkpoints.consider(&at(15));
    checkpoints.consider(&at(16));
    assert_eq!((asked(), asked()), (Some(15), None));
    checkpoints.consider(&at(20));
    checkpoints.consider(&at(25));
    assert_eq!((asked(), asked()), (Some(20), None), "one waits; the next is tried again");
    checkpoints.consider(&at(25));
    assert_eq!(asked(), Some(25));
}

#[test]
fn a_checkpoint_holds_everything() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = opened(&dir);
    opened.records = records();
    let (state, _) = summed(&opened);
    let (wal, quarantine) = (dir.path().join("wal"), dir.path().join("quarantine"));
    let config = Config::new(Arc::new(RealDisk), wal, quarantine, [1; 16], || 7);
    let (sender, durable) = sync_channel(1);
    let on_durable =
        move |_: crate::truth::wal::Durable<Vec<()>>| sender.send(()).expect("awaited");
    let (wal, checkpointer) =
        crate::truth::wal::Wal::start(opened.log, on_durable, |e| panic!("{e}")).expect("starts");
    let drafts = records()
        .into_iter()
        .map(|record| crate::truth::wal::Draft { links: record.links, body: record.body });
    let batch = crate::truth::wal::Batch { first: Lsn(1), records: drafts.collect(), payload: () };
    wal.submit(batch).expect("taken");
    durable.recv().expect("durable");
    let (mut checkpoints, thread) = Checkpoints::new(Lsn::NONE, 3);
    let thread = thread.start(checkpointer).expect("starts");
    let state = Arc::new(state);
    checkpoints.consider(&state);
    drop(checkpoints);
    thread.join().expect("no panic");
    wal.stop();
    let again = open(config).expect("it opens");
    assert_eq!((again.report.checkpoint_lsn, again.records.len()), (Lsn(3), 0));
    assert!(summed(&again).0.entries().eq(state.entries()));
}
