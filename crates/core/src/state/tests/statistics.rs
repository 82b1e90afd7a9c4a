//! Statistics: every job once, every attempt once, in every row it belongs to, however it came to its end.

use alloc::string::ToString as _;
use core::time::Duration;

use super::{Look, Rig, model, repo, restored};
use crate::ids::{JobId, SessionId};
use crate::job::OutcomeKind;
use crate::request::Request;
use crate::stats::{Key, Row};

const MINUTE: Duration = Duration::from_mins(1);

fn total(rig: &Rig) -> Row {
    rig.state.stats().row(&Key::Total).cloned().unwrap_or_default()
}

/// Completed, failed, timed out, cancelled, interrupted.
fn outcomes(rig: &Rig) -> [u64; 5] {
    let row = total(rig);
    [row.completed, row.failed, row.timed_out, row.cancelled, row.interrupted]
}

fn ended(rig: &mut Rig, code: i32) -> JobId {
    let id = rig.running();
    rig.see_job(&id, &Look::Exited(code));
    id
}

#[test]
fn a_job_that_is_taken_up_again_counts_once_with_the_outcome_it_has() {
    let mut rig = Rig::with_repo(1);
    let id = ended(&mut rig, 42);
    assert_eq!(outcomes(&rig), [0, 1, 0, 0, 0]);
    rig.granted(Request::Retry { job: id.clone(), session: SessionId("s".into()) });
    assert_eq!(outcomes(&rig), [0; 5], "it has not ended");
    rig.see_job(&id, &Look::Exited(0));
    // The next day: what it was yesterday does not stay.
    rig.now = rig.now.after(Duration::from_hours(24));
    rig.see_job(&id, &Look::Exited(0));
    assert_eq!(outcomes(&rig), [1, 0, 0, 0, 0]);
    rig.granted(Request::Resume { job: id.clone(), prompt: "more".into() });
    rig.granted(Request::Cancel(id.clone()));
    rig.see_job(&id, &Look::Stopped(crate::spec::StopCause::Cancel));
    assert_eq!(outcomes(&rig), [0, 0, 0, 1, 0]);
    let row = total(&rig);
    assert_eq!((row.accepted, row.attempts, row.run_ms.count), (1, 3, 3));
    // What was used is used, whatever came of it.
    assert_eq!((row.input_tokens, row.output_tokens, row.cost_micros), (15, 9, 21));
    rig.granted(Request::Remove { job: id });
    assert_eq!(outcomes(&rig), [0, 0, 0, 1, 0], "what has been, has been");
    model::check_history(&rig);
}

#[test]
fn an_attempt_of_which_nothing_was_known_counts_once_when_it_is_known() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::Lost);
    assert_eq!((total(&rig).attempts, outcomes(&rig)), (1, [0; 5]));
    rig.granted(Request::Resume { job: id.clone(), prompt: "go on".into() });
    rig.see_job(&id, &Look::Exited(0));
    assert_eq!((total(&rig).attempts, total(&rig).input_tokens), (1, 5), "the same attempt");
    rig.see_job(&id, &Look::Exited(0));
    assert_eq!((total(&rig).attempts, outcomes(&rig)), (2, [1, 0, 0, 0, 0]));

    let id = rig.running();
    rig.see_job(&id, &Look::Lost);
    rig.granted(Request::Settle { job: id, kind: OutcomeKind::Interrupted });
    assert_eq!(outcomes(&rig), [1, 0, 0, 0, 1]);
    model::check_history(&rig);
}

#[test]
fn a_job_counts_for_its_engine_repo_owner_and_day() {
    let mut rig = Rig::with_repo(1);
    rig.add_repo("s");
    rig.end_clone("s", &Look::Exited(0));
    ended(&mut rig, 0);
    let id = rig.submit_with(|s| {
        s.owner = "bob".into();
        s.task.engine = "command".into();
        s.task.repos = alloc::vec![repo("s")];
    });
    rig.granted(Request::Cancel(id.clone()));
    rig.see_job(&id, &Look::Stopped(crate::spec::StopCause::Cancel));
    let row = |key: Key| {
        let row = rig.state.stats().row(&key).cloned().unwrap_or_default();
        (row.accepted, row.ended(), row.removed)
    };
    let named = |name: &str| Some(name.to_string());
    assert_eq!(row(Key::Engine(named("demo"))), (1, 1, 0));
    assert_eq!(row(Key::Engine(named("command"))), (1, 1, 0));
    assert_eq!(row(Key::Owner(named("bob"))), (1, 1, 0));
    assert_eq!(row(Key::Repo(named("r"))), (1, 1, 0));
    assert_eq!(row(Key::Repo(named("s"))), (1, 1, 0));
    assert_eq!(row(Key::Day(rig.now.day())), (2, 2, 0));
    assert_eq!(row(Key::Total), (2, 2, 0));
}

#[test]
fn a_job_that_is_removed_before_it_ended_is_counted_as_that() {
    let mut rig = Rig::with_repo(0);
    let id = rig.submit();
    rig.granted(Request::Remove { job: id });
    let row = total(&rig);
    assert_eq!((row.accepted, row.ended(), row.removed), (1, 0, 1));
    model::check_history(&rig);
}

#[test]
fn waiting_and_preparing_are_measured_from_their_own_beginnings() {
    let mut rig = Rig::with_repo(0);
    let id = rig.submit();
    rig.pass(MINUTE);
    rig.rules.running_max = 1;
    rig.pass(MINUTE);
    rig.now = rig.now.after(Duration::from_secs(7));
    rig.see_job(&id, &Look::Exited(0));
    let row = total(&rig);
    assert_eq!((row.queue_ms.sum, row.queue_ms.count), (120_000, 1));
    assert_eq!((row.prepare_ms.sum, row.prepare_ms.count), (7_000, 1));
}

#[test]
fn a_checkpoint_holds_the_statistics_and_damage_to_one_row_costs_that_row() {
    let mut rig = Rig::with_repo(1);
    ended(&mut rig, 0);
    let again = restored(&rig.state);
    assert_eq!(again.stats(), rig.state.stats());
    let lost = crate::record::EntityKey::new(crate::record::EntityKind::Stats, "engine/demo");
    rig.state = super::damage::without(&rig.state, &lost);
    rig.records.clear();
    ended(&mut rig, 0);
    assert_eq!(outcomes(&rig), [2, 0, 0, 0, 0]);
    let engine = rig.state.stats().row(&Key::Engine(Some("demo".into())));
    assert_eq!(engine.map(|row| row.completed), Some(1), "from here on");
    // Proves I10: it is never silent about it, over every checkpoint.
    assert!(restored(&rig.state).unavailable(&lost).is_some());
}

#[test]
fn a_queued_job_is_told_when_it_will_probably_start() {
    let mut rig = Rig::with_repo(2);
    let jobs: alloc::vec::Vec<_> = (0..6).map(|_| rig.submit()).collect();
    let estimate = |rig: &Rig, id: &JobId| {
        rig.state
            .estimated_start(rig.job(id), rig.now, rig.rules.running_max)
            .map(|at| at.since(rig.now))
    };
    assert_eq!(estimate(&rig, &jobs[2]), None, "nothing has ended yet");
    let mut row = total(&rig);
    row.run_ms.add(50_000);
    row.prepare_ms.add(10_000);
    rig.state.stats.put(Key::Total, row);
    // Two slots, a minute each: one is free every 30 seconds.
    let told: alloc::vec::Vec<_> = jobs.iter().map(|id| estimate(&rig, id)).collect();
    let seconds = |s| Some(Duration::from_secs(s));
    assert_eq!(told, [None, None, seconds(30), seconds(60), seconds(90), seconds(120)]);
    // With a third slot, which is free: at once for the first in line, and one every 20 seconds from then on.
    rig.rules.running_max = 3;
    let told: alloc::vec::Vec<_> = jobs.iter().map(|id| estimate(&rig, id)).collect();
    assert_eq!(told, [None, None, seconds(0), seconds(20), seconds(40), seconds(60)]);
}
