//! Usage limits and overload: a job waits for what passes, not for ever, and only if it may.

use core::time::Duration;

use super::{Look, Rig, model};
use crate::engine::Limit;
use crate::ids::JobId;
use crate::job::{EndedBy, OutcomeKind, Phase, WaitReason};
use crate::limits;
use crate::request::Request;
use crate::task::OnLimit;
use crate::time::Timestamp;

fn waits(rig: &Rig, id: &JobId) -> (WaitReason, Duration) {
    match &rig.job(id).phase {
        Phase::Waiting { reason, until: Some(until) } => (reason.clone(), until.since(rig.now)),
        other => panic!("it does not wait: {other:?}"),
    }
}

fn usage(rig: &Rig, after: Duration) -> Look {
    Look::Limited(Limit::Usage { resets_at: Some(rig.now.after(after)) })
}

#[test]
fn a_usage_limit_is_waited_for_until_it_ends_and_the_same_turn_goes_on_in_its_session() {
    let mut rig = Rig::with_repo(1);
    let hours = Duration::from_hours(3);
    // Exactly as long as it may wait.
    let most = (hours + limits::USAGE_LIMIT_MARGIN).as_millis();
    let id = rig.running_with(|s| s.task.limit_wait_ms = most.try_into().expect("fits"));
    let look = usage(&rig, hours);
    rig.see_job(&id, &look);
    assert_eq!(waits(&rig, &id), (WaitReason::UsageLimit, hours + limits::USAGE_LIMIT_MARGIN));
    assert_eq!(rig.state.busy(), 0, "who waits holds no slot");
    let end = rig.job(&id).attempts[0].end.clone().expect("it is over");
    assert_eq!((end.ended_by, end.outcome.exit_code), (EndedBy::UsageLimit, Some(1)));
    rig.pass(hours + limits::USAGE_LIMIT_MARGIN);
    assert_eq!(rig.phase(&id), "running");
    let job = rig.job(&id);
    assert_eq!((job.attempts[1].turn, job.attempts[1].session), (1, 0));
    assert_eq!((job.interrupts, job.sessions.len()), (0, 1), "no try is used up");
    rig.see_job(&id, &Look::Exited(0));
    assert_eq!(rig.outcome(&id).0, OutcomeKind::Completed);
    assert_eq!(rig.job(&id).limits_met, 0);
    model::check_history(&rig);
}

#[test]
fn overload_and_limits_without_a_time_are_tried_again_after_growing_pauses() {
    for (limit, first) in [
        (Limit::Overload, limits::OVERLOAD_BACKOFF),
        (Limit::Usage { resets_at: None }, limits::USAGE_LIMIT_BACKOFF),
        // Long over, and the agent says it again and again.
        (Limit::Usage { resets_at: Some(Timestamp(1)) }, limits::OVERLOAD_BACKOFF),
    ] {
        let mut rig = Rig::with_repo(1);
        let id = rig.running_with(|s| s.task.limit_wait_ms = u64::MAX);
        for n in 0..12 {
            rig.see_job(&id, &Look::Limited(limit));
            let pause = first.saturating_mul(1 << n).min(limits::LIMIT_BACKOFF_MAX);
            assert_eq!(waits(&rig, &id).1, pause, "{limit:?}");
            rig.pass(pause);
        }
        // Another end breaks the row.
        rig.see_job(&id, &Look::Rebooted);
        rig.pass(Duration::from_secs(1));
        rig.see_job(&id, &Look::Limited(limit));
        assert_eq!(waits(&rig, &id).1, first);
    }
}

#[test]
fn who_is_not_to_wait_or_has_waited_enough_fails_and_is_told_why() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running_with(|s| s.task.on_limit = OnLimit::Fail);
    rig.see_job(&id, &Look::Limited(Limit::Overload));
    let (kind, reason) = rig.outcome(&id);
    assert_eq!(kind, OutcomeKind::Failed);
    assert!(reason.ends_with("on_limit = fail)"), "{reason}");
    assert_eq!(rig.job(&id).attempts[0].end.as_ref().map(|e| e.ended_by), Some(EndedBy::Overload));

    // An hour is allowed: a limit of 40 minutes is waited for once, not twice.
    let id = rig.running();
    let minutes = Duration::from_mins(40);
    let look = usage(&rig, minutes);
    rig.see_job(&id, &look);
    rig.pass(minutes + limits::USAGE_LIMIT_MARGIN);
    let look = usage(&rig, minutes);
    rig.see_job(&id, &look);
    let (kind, reason) = rig.outcome(&id);
    assert_eq!(kind, OutcomeKind::Failed);
    assert!(
        reason.contains("has waited 2405 s for limits already, and may wait 3600 s"),
        "{reason}"
    );
    // A person who says: go, gives it all its time again.
    rig.granted(Request::Retry { job: id.clone(), session: crate::ids::SessionId("s".into()) });
    rig.see_job(&id, &Look::Exited(0));
    let look = usage(&rig, minutes);
    rig.see_job(&id, &look);
    assert_eq!(rig.phase(&id), "waiting");
}

#[test]
fn who_is_let_go_early_has_waited_no_longer_than_that() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    let look = usage(&rig, Duration::from_mins(50));
    rig.see_job(&id, &look);
    rig.pass(Duration::from_mins(10));
    rig.granted(Request::Start(id.clone()));
    assert_eq!(rig.job(&id).limit_waited_ms, 600_000);
    rig.see_job(&id, &Look::Limited(Limit::Overload));
    assert_eq!(rig.phase(&id), "waiting");
}

#[test]
fn a_cancelled_or_timed_out_attempt_does_not_wait_for_a_limit() {
    for (cause, kind) in [
        (crate::spec::StopCause::Cancel, OutcomeKind::Cancelled),
        (crate::spec::StopCause::Timeout, OutcomeKind::TimedOut),
    ] {
        let mut rig = Rig::with_repo(1);
        let id = rig.running();
        let work = rig.job(&id).phase.work(&id).expect("it runs");
        let mut report = Look::Stopped(cause).report(work, rig.fresh_session());
        report.findings.limit = Some(Limit::Overload);
        rig.report(&report);
        assert_eq!(rig.outcome(&id).0, kind);
    }
}
