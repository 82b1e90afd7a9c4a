//! Order, slots, time, and keys.

use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Look, Rig, key, model, replayed, restored};
use crate::ids::JobId;
use crate::limits;
use crate::request::{Edit, Granted, Refusal, Request};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// Lets jobs run one after another and notes the order.
fn order_of_launches(rig: &mut Rig) -> Vec<JobId> {
    rig.rules.running_max = 1;
    rig.pass(SECOND);
    let mut order = Vec::new();
    loop {
        let busy = rig.state.index.busy.keys().next().cloned();
        let Some(job) = busy else { return order };
        rig.see_job(&job, &Look::Exited(0));
        rig.see_job(&job, &Look::Exited(0));
        order.push(job);
    }
}

#[test]
fn jobs_of_one_priority_go_in_the_order_of_their_acceptance() {
    let mut rig = Rig::with_repo(0);
    let jobs: Vec<_> = (0..40)
        .map(|n| {
            // Some in the same millisecond, some later.
            if n % 3 == 0 {
                rig.pass(Duration::from_millis(7));
            }
            rig.submit()
        })
        .collect();
    assert_eq!(rig.state.queued(), 40);
    for (ahead, id) in jobs.iter().enumerate() {
        assert_eq!(rig.state.queue_position(rig.job(id)), Some(ahead));
    }
    // Proves I3: the order is that of the records, however State was come by.
    let ways = [
        rig.state.clone(),
        restored(&rig.state),
        replayed(&rig.records).expect("it was lived"),
        restored(&replayed(&rig.records).expect("it was lived")),
    ];
    for state in ways {
        let mut rig = Rig { state, records: vec![], effects: vec![], ..Rig::new(0) };
        rig.now = rig.state.clock();
        rig.made = 1_000;
        assert_eq!(order_of_launches(&mut rig), jobs);
    }
}

#[test]
fn the_order_is_kept_though_the_clock_is_set_back_by_a_month() {
    let mut rig = Rig::with_repo(0);
    rig.pass(Duration::from_hours(30 * 24));
    let [first, second] = [rig.submit(), rig.submit()];
    rig.granted(Request::Hold(second.clone()));
    rig.now = crate::time::Timestamp(rig.now.0 - 30 * 24 * 3_600_000);
    let third = rig.submit();
    rig.granted(Request::Start(second.clone()));
    assert!(rig.job(&third).created_at < rig.job(&first).created_at, "times are told as they were");
    // Ready at one time, as the queue counts it: the order of acceptance decides.
    assert_eq!(order_of_launches(&mut rig), [first, second, third]);
}

#[test]
fn the_more_urgent_goes_first_and_nothing_starves() {
    let mut rig = Rig::with_repo(0);
    let low = rig.submit_with(|s| s.task.priority = 0);
    rig.pass(Duration::from_millis(100 * 60_000 - 1));
    let high = rig.submit_with(|s| s.task.priority = 100);
    let middle = rig.submit();
    rig.pass(Duration::from_millis(1));
    let late = rig.submit_with(|s| s.task.priority = 100);
    // 100 minutes of waiting outweigh 100 points: what is one millisecond short of it does not.
    assert_eq!(order_of_launches(&mut rig), [high, low, late, middle]);
}

#[test]
fn a_new_priority_changes_the_place_and_nothing_else() {
    let mut rig = Rig::with_repo(0);
    let [first, second, third] = [rig.submit(), rig.submit(), rig.submit()];
    let edit = Edit { priority: Some(60), ..Edit::default() };
    rig.granted(Request::Edit { job: third.clone(), edit });
    assert_eq!(order_of_launches(&mut rig), [third, first, second]);
}

#[test]
fn no_more_jobs_are_taken_up_than_there_are_slots_and_each_end_frees_one() {
    let mut rig = Rig::with_repo(2);
    let jobs: Vec<_> = (0..5).map(|_| rig.submit()).collect();
    assert_eq!((rig.state.busy(), rig.state.queued()), (2, 3));
    rig.see_job(&jobs[0], &Look::Exited(1));
    assert_eq!((rig.state.busy(), rig.state.queued()), (2, 2));
    assert_eq!(rig.outcome(&jobs[0]).1, "its workspace was not made: Exited(1)");
    assert_eq!(rig.phase(&jobs[2]), "preparing");
    // A smaller limit takes nothing away from what is alive.
    rig.rules.running_max = 1;
    rig.see_job(&jobs[1], &Look::Exited(0));
    rig.see_job(&jobs[1], &Look::Exited(0));
    assert_eq!((rig.phase(&jobs[1]), rig.state.busy()), ("ended", 1));
    assert_eq!(rig.phase(&jobs[3]), "queued");
}

#[test]
fn a_job_with_a_start_time_sleeps_until_then_and_start_wakes_it() {
    let mut rig = Rig::with_repo(5);
    let at = rig.now.after(MINUTE);
    let [one, two] = [(); 2].map(|()| rig.submit_with(|s| s.start_after = Some(at)));
    assert_eq!(rig.state.next_due(), Some(at));
    rig.granted(Request::Start(two.clone()));
    assert_eq!((rig.phase(&one), rig.phase(&two)), ("waiting", "preparing"));
    rig.pass(Duration::from_millis(59_999));
    assert_eq!(rig.phase(&one), "waiting");
    rig.pass(Duration::from_millis(1));
    assert_eq!((rig.phase(&one), rig.state.next_due()), ("preparing", None));
}

#[test]
fn held_and_started_a_job_stands_where_it_became_ready() {
    let mut rig = Rig::with_repo(0);
    let [first, second] = [rig.submit(), rig.submit()];
    rig.granted(Request::Hold(first.clone()));
    rig.pass(SECOND);
    rig.granted(Request::Start(first.clone()));
    assert_eq!(order_of_launches(&mut rig), [second, first]);
}

#[test]
fn a_key_names_one_job_from_its_acceptance_until_a_day_after_its_removal() {
    let mut rig = Rig::with_repo(1);
    let id = rig.submit_with(|s| s.idempotency = Some(key("k", "body")));
    let again = |rig: &mut Rig, owner: &str, body: &str| {
        let mut submission = rig.submission();
        submission.owner = owner.into();
        submission.idempotency = Some(key("k", body));
        rig.ask(Request::Submit(submission.into()))
    };
    let check = |rig: &mut Rig| {
        let records = rig.records.len();
        assert_eq!(again(rig, "ann", "body"), Ok(Granted::SameJob(id.clone())));
        let reused = Err(Refusal::KeyReused(id.as_str().into()));
        assert_eq!(again(rig, "ann", "another"), reused);
        assert_eq!(rig.records.len(), records, "nothing was accepted");
    };
    check(&mut rig);
    let other = again(&mut rig, "bob", "another");
    assert!(matches!(other, Ok(Granted::Job(_))), "a key is its owner's own");
    rig.see_job(&id, &Look::Exited(0));
    rig.see_job(&id, &Look::Exited(0));
    check(&mut rig);
    rig.granted(Request::Remove { job: id.clone() });
    check(&mut rig);
    // A checkpoint and a replay keep it.
    rig.state = restored(&rig.state);
    check(&mut rig);
    rig.pass(limits::IDEMPOTENCY_KEPT.saturating_sub(Duration::from_millis(1)));
    check(&mut rig);
    let last = rig.state.next_due();
    rig.pass(Duration::from_millis(1));
    assert_eq!(last, Some(rig.now));
    assert!(matches!(again(&mut rig, "ann", "another"), Ok(Granted::Job(_))));
    model::check_history(&rig);
}

#[test]
fn prompts_are_counted_in_bytes_and_a_full_store_refuses_every_way_in() {
    let mut rig = Rig::with_repo(1);
    let ended = rig.running();
    rig.see_job(&ended, &Look::Exited(0));
    let held = rig.submit_with(|s| s.held = true);
    // Proves I9: a bound that one of the ways does not keep is none.
    rig.state.index.prompt_bytes = limits::PROMPTS_BYTES_MAX;
    let submission = rig.submission();
    let edit = |prompt: &str| Edit { prompt: Some(prompt.into()), ..Edit::default() };
    for request in [
        Request::Submit(submission.into()),
        Request::Resume { job: ended, prompt: "p".into() },
        Request::Edit { job: held.clone(), edit: edit("a longer prompt") },
    ] {
        let refused = rig.state.decide(request.clone(), "ann");
        let limit = limits::PROMPTS_BYTES_MAX;
        let full =
            matches!(refused, Err(Refusal::LimitReached { limit: told, .. }) if told == limit);
        assert!(full, "{request:?}: {refused:?}");
    }
    let shorter = Request::Edit { job: held, edit: edit("p") };
    assert!(rig.state.decide(shorter, "ann").is_ok(), "a shorter prompt takes no room");
}

#[test]
fn the_clock_of_the_records_never_goes_back() {
    let mut rig = Rig::with_repo(0);
    let id = rig.submit();
    let (lsn, clock) = (rig.state.lsn().next(), rig.state.clock());
    let early = crate::time::Timestamp(1);
    let done = rig.state.apply(lsn, early, &crate::event::Event::JobHeld { job: id });
    done.expect("it was queued");
    assert_eq!((rig.state.lsn(), rig.state.clock()), (lsn, clock));
}
