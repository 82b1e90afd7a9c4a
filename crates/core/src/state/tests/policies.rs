//! What follows the end of an attempt: the policies for what was interrupted, and for what cannot be known.

use core::time::Duration;

use super::{Look, Rig, model};
use crate::effect::Effect;
use crate::engine::SessionSign;
use crate::ids::JobId;
use crate::job::{EndedBy, OutcomeKind, Phase, WaitReason, Work};
use crate::limits;
use crate::request::Request;
use crate::spec::{Reading, StopCause};
use crate::task::{OnInterrupt, OnUnknown};
use crate::time::Timestamp;

fn back_off(rig: &Rig, id: &JobId) -> Duration {
    match &rig.job(id).phase {
        Phase::Waiting { reason: WaitReason::BackOff, until: Some(until) } => until.since(rig.now),
        other => panic!("no back-off: {other:?}"),
    }
}

#[test]
fn an_interrupted_job_resumes_after_growing_pauses_until_its_tries_are_used_up() {
    for look in [Look::Rebooted, Look::OutOfMemory] {
        let mut rig = Rig::with_repo(1);
        let id = rig.running();
        for seconds in [1, 2, 4] {
            rig.see_job(&id, &look);
            assert_eq!(back_off(&rig, &id), Duration::from_secs(seconds));
            rig.pass(Duration::from_millis(seconds * 1000 - 1));
            assert_eq!(rig.phase(&id), "waiting");
            rig.pass(Duration::from_millis(1));
            assert_eq!(rig.phase(&id), "running");
        }
        let job = rig.job(&id);
        assert_eq!((job.attempts.len(), job.sessions.len(), job.interrupts), (4, 1, 3));
        assert!(job.attempts[1..].iter().all(|attempt| attempt.resume && attempt.turn == 1));
        rig.see_job(&id, &look);
        let (kind, reason) = rig.outcome(&id);
        assert_eq!(kind, OutcomeKind::Interrupted);
        assert!(reason.ends_with("its 3 tries are used up"), "{reason}");
        model::check_history(&rig);
    }
}

#[test]
fn what_the_agent_said_last_and_what_the_kernel_counted_are_told_with_the_end() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::SaidDone);
    let Phase::Ended { outcome } = &rig.job(&id).phase else { panic!("ended") };
    assert_eq!(outcome.agent_result.as_ref().map(|said| said.text.as_str()), Some("done"));
    for (code, wanted) in [(1, true), (0, false)] {
        let mut rig = Rig::with_repo(1);
        let id = rig.running();
        let work = rig.job(&id).phase.work(&id).expect("it runs");
        let mut report = Look::Exited(code).report(work, rig.fresh_session());
        let Reading::Valid(outcome) = &mut report.evidence.outcome else { panic!("recorded") };
        outcome.oom = true;
        rig.report(&report);
        let (_, reason) = rig.outcome(&id);
        assert_eq!(reason.ends_with("(out of memory)"), wanted, "{reason}");
    }
}

#[test]
fn the_longest_pause_is_waited_for_to_its_end() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running_with(|s| s.task.max_interrupts = 12);
    for n in 0..12 {
        rig.see_job(&id, &Look::Rebooted);
        let pause = limits::INTERRUPT_BACKOFF.saturating_mul(1 << n);
        assert_eq!(back_off(&rig, &id), pause.min(limits::INTERRUPT_BACKOFF_MAX));
        rig.pass(back_off(&rig, &id));
    }
}

#[test]
fn a_pause_ends_though_the_clock_was_set_forth_for_its_beginning_and_back_in_it() {
    const JUMPS: [Duration; 2] = [Duration::from_hours(1), Duration::from_hours(30 * 24)];
    for jump in JUMPS {
        let mut rig = Rig::with_repo(1);
        let at = rig.now.after(Duration::from_mins(1));
        let later = rig.submit_with(|s| s.start_after = Some(at));
        let id = rig.running();
        let before = rig.now;
        rig.pass(jump);
        assert_eq!(rig.phase(&later), "queued", "its start time has come, by the clock");
        assert_eq!(rig.phase(&id), "running", "no clock ends what runs");
        rig.see_job(&id, &Look::Rebooted);
        assert_eq!(back_off(&rig, &id), Duration::from_secs(1));
        // A clock that is put right by a little makes it no shorter.
        rig.now = Timestamp(rig.now.0 - 60_000);
        rig.pass(Duration::ZERO);
        assert_eq!(rig.phase(&id), "waiting");
        let away = rig.now.after(Duration::from_mins(1));
        let asked = rig.submit_with(|s| s.start_after = Some(away));
        rig.now = before;
        rig.pass(Duration::ZERO);
        assert_ne!(rig.phase(&id), "waiting", "its pause would last for {jump:?}");
        assert_eq!(rig.phase(&asked), "waiting", "a start time is what a person said");
        model::check_history(&rig);
    }
}

#[test]
fn a_retry_begins_afresh_and_its_output_follows_that_of_the_session_before() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running_with(|s| s.task.on_interrupt = OnInterrupt::Retry);
    for n in 1..=2 {
        rig.see_job(&id, &Look::Rebooted);
        rig.pass(Duration::from_secs(n));
        assert_eq!(rig.phase(&id), "preparing", "a workspace of its own");
        rig.see_job(&id, &Look::Exited(0));
    }
    let bases: alloc::vec::Vec<_> = rig.job(&id).sessions.iter().map(|s| s.output_base).collect();
    assert_eq!(bases, [[0, 0], [100, 10], [200, 20]]);
    let sessions: alloc::vec::Vec<_> = rig.job(&id).attempts.iter().map(|a| a.session).collect();
    assert_eq!(sessions, [0, 1, 2]);
    assert!(rig.job(&id).attempts.iter().all(|attempt| !attempt.resume));
}

#[test]
fn an_interrupted_job_that_is_to_fail_fails() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running_with(|s| s.task.on_interrupt = OnInterrupt::Fail);
    rig.see_job(&id, &Look::Rebooted);
    assert_eq!(rig.outcome(&id).0, OutcomeKind::Interrupted);
}

#[test]
fn each_end_is_told_as_what_it_is() {
    let ends = [
        (Look::Exited(0), OutcomeKind::Completed, EndedBy::Exit),
        (Look::Exited(42), OutcomeKind::Failed, EndedBy::Exit),
        (Look::SaidDone, OutcomeKind::Completed, EndedBy::ResultRecord),
        (Look::Stopped(StopCause::Timeout), OutcomeKind::TimedOut, EndedBy::Signal),
        (Look::Stopped(StopCause::OutputLimit), OutcomeKind::Failed, EndedBy::Signal),
        (Look::Stopped(StopCause::IdleOutput), OutcomeKind::Failed, EndedBy::Signal),
        (Look::RebootedLate, OutcomeKind::TimedOut, EndedBy::Signal),
        (Look::LaunchFailed, OutcomeKind::Failed, EndedBy::LaunchFailed),
    ];
    for (look, kind, ended_by) in ends {
        let mut rig = Rig::with_repo(1);
        let id = rig.running();
        rig.see_job(&id, &look);
        assert_eq!(rig.outcome(&id).0, kind, "{look:?}");
        let end = rig.job(&id).attempts[0].end.clone().expect("it is over");
        assert_eq!(end.ended_by, ended_by, "{look:?}");
        assert_eq!(end.output_to, super::looks::OUTPUT);
        assert_eq!(rig.state.busy(), 0);
    }
}

#[test]
fn what_never_ran_is_launched_under_the_same_number() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::Nothing);
    rig.see_job(&id, &Look::NeverRan);
    assert_eq!((rig.job(&id).attempts.len(), rig.launches(&id, 1)), (1, 3));
}

#[test]
fn what_cannot_be_known_is_held_and_a_person_settles_it() {
    for look in [Look::Lost, Look::LostTreeAlive, Look::Elsewhere, Look::Damaged] {
        for kind in [OutcomeKind::Completed, OutcomeKind::Failed, OutcomeKind::Interrupted] {
            let mut rig = Rig::with_repo(1);
            let id = rig.running();
            rig.last_effects();
            rig.see_job(&id, &look);
            assert_eq!(rig.phase(&id), "unknown");
            let touches = |effect: &Effect| {
                matches!(
                    effect,
                    Effect::Stop { .. } | Effect::Launch { .. } | Effect::Caretake { .. }
                )
            };
            // Proves I7: never run again, nor killed, on a guess.
            assert!(!rig.last_effects().iter().any(touches), "{look:?}");
            rig.granted(Request::Settle { job: id.clone(), kind });
            assert_eq!(rig.outcome(&id).0, kind);
            assert_eq!(rig.job(&id).attempts.len(), 1);
        }
    }
}

#[test]
fn what_cannot_be_known_follows_the_policy_that_the_job_names() {
    let policies = [
        (OnUnknown::Resume, "waiting", 1),
        (OnUnknown::Retry, "waiting", 2),
        (OnUnknown::Fail, "ended", 1),
    ];
    for (policy, phase, sessions) in policies {
        let mut rig = Rig::with_repo(1);
        let id = rig.running_with(|s| s.task.on_unknown = policy);
        rig.see_job(&id, &Look::LostTreeAlive);
        assert_eq!(rig.phase(&id), "running", "first what is left of its tree is ended");
        rig.see_job(&id, &Look::Lost);
        assert_eq!(rig.phase(&id), phase);
        assert_eq!(rig.job(&id).sessions.len(), sessions);
    }
}

#[test]
fn a_job_that_cannot_be_known_resumes_only_after_its_survivors() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::LostTreeAlive);
    rig.last_effects();
    rig.granted(Request::Resume { job: id.clone(), prompt: "go on".into() });
    let work = Work::Attempt { job: id.clone(), attempt: super::attempt_no(1) };
    let stop = Effect::Stop { work, cause: StopCause::Survivors };
    assert_eq!(rig.last_effects(), [stop]);
    rig.see_job(&id, &Look::LostTreeAlive);
    assert_eq!((rig.phase(&id), rig.job(&id).attempts.len()), ("stopping", 1));
    rig.see_job(&id, &Look::Lost);
    let job = rig.job(&id);
    assert_eq!((rig.phase(&id), job.attempts.len(), job.attempts[1].turn), ("running", 2, 2));
    let end = job.attempts[0].end.as_ref().expect("it is over");
    assert_eq!(end.ended_by, EndedBy::Unknown, "ending its survivors tells nothing of it");
    assert_eq!(end.outcome.kind, OutcomeKind::Interrupted);
    assert_eq!(job.prompt(2), Some("go on"));
}

#[test]
fn a_cancel_that_comes_while_survivors_are_ended_is_a_cancel() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::LostTreeAlive);
    rig.granted(Request::Resume { job: id.clone(), prompt: "go on".into() });
    rig.granted(Request::Cancel(id.clone()));
    rig.see_job(&id, &Look::Lost);
    assert_eq!(rig.outcome(&id).0, OutcomeKind::Cancelled);
    assert_eq!(rig.launches(&id, 2), 0);
    let end = rig.job(&id).attempts[0].end.as_ref().map(|end| end.ended_by);
    assert_eq!(end, Some(EndedBy::Unknown));
}

#[test]
fn a_cancel_is_never_undone_by_a_policy() {
    for policy in [OnUnknown::Hold, OnUnknown::Resume, OnUnknown::Retry, OnUnknown::Fail] {
        for interrupt in [OnInterrupt::Resume, OnInterrupt::Retry, OnInterrupt::Fail] {
            for look in super::looks::every() {
                let mut rig = Rig::with_repo(1);
                let id = rig.running_with(|s| {
                    s.task.on_unknown = policy;
                    s.task.on_interrupt = interrupt;
                });
                rig.granted(Request::Cancel(id.clone()));
                rig.see_job(&id, &look);
                rig.pass(Duration::from_hours(1));
                match rig.phase(&id) {
                    "ended" => assert_ne!(rig.outcome(&id).0, OutcomeKind::Completed, "{look:?}"),
                    "stopping" | "unknown" => {}
                    other => panic!("{look:?} with {policy:?} made it {other}"),
                }
                assert_eq!(rig.job(&id).attempts.len(), 1);
            }
        }
    }
}

#[test]
fn a_cancelled_attempt_that_did_run_is_not_said_to_have_never_run() {
    let ends = [
        (Look::Nothing, EndedBy::NeverRan),
        (Look::NeverRan, EndedBy::NeverRan),
        (Look::Lost, EndedBy::Unknown),
        (Look::Rebooted, EndedBy::Unknown),
        (Look::Stopped(StopCause::Cancel), EndedBy::Signal),
    ];
    for (look, ended_by) in ends {
        let mut rig = Rig::with_repo(1);
        let id = rig.running();
        rig.granted(Request::Cancel(id.clone()));
        rig.see_job(&id, &look);
        assert_eq!(rig.outcome(&id).0, OutcomeKind::Cancelled, "{look:?}");
        let end = rig.job(&id).attempts[0].end.as_ref().map(|end| end.ended_by);
        assert_eq!(end, Some(ended_by), "{look:?}");
    }
}

#[test]
fn a_wish_to_stop_is_passed_on_to_whoever_has_the_work_now() {
    for look in [Look::Alive, Look::Orphan] {
        let mut rig = Rig::with_repo(1);
        let id = rig.running();
        rig.granted(Request::Cancel(id.clone()));
        rig.last_effects();
        rig.see_job(&id, &look);
        let stops = |effect: &Effect| matches!(effect, Effect::Stop { .. });
        assert_eq!(rig.last_effects().iter().filter(|effect| stops(effect)).count(), 1);
    }
}

#[test]
fn caretakers_of_an_attempt_are_bounded_and_then_a_person_must_look() {
    // Proves I9, for every intent and every policy.
    for look in [Look::Orphan, Look::ExitedTreeAlive, Look::LostTreeAlive] {
        for cancelled in [false, true] {
            for policy in [OnUnknown::Hold, OnUnknown::Retry] {
                let mut rig = Rig::with_repo(1);
                let id = rig.running_with(|s| s.task.on_unknown = policy);
                if cancelled {
                    rig.granted(Request::Cancel(id.clone()));
                }
                let mut looks = 0;
                while rig.phase(&id) != "unknown" {
                    rig.see_job(&id, &look);
                    looks += 1;
                    assert!(looks <= limits::CARETAKERS_MAX + 1, "{look:?} {cancelled} {policy:?}");
                }
                let attempt = &rig.job(&id).attempts[0];
                assert!(attempt.caretakers <= limits::CARETAKERS_MAX && attempt.end.is_some());
                model::check_history(&rig);
            }
        }
    }
}

#[test]
fn a_conversation_opened_in_the_wrong_way_gives_one_more_attempt_that_costs_no_try() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running_with(|s| s.task.engine = "claude".into());
    rig.see_job(&id, &Look::Rebooted);
    rig.pass(Duration::from_secs(1));
    assert!(rig.job(&id).attempts[1].resume, "it had announced its session");
    rig.see_job(&id, &Look::Sign(SessionSign::NotFound));
    assert_eq!(rig.phase(&id), "running", "at once, without a pause");
    assert!(!rig.job(&id).attempts[2].resume);
    rig.see_job(&id, &Look::Sign(SessionSign::InUse));
    assert_eq!(rig.outcome(&id).0, OutcomeKind::Failed, "twice in a row is no guess gone wrong");
    assert_eq!((rig.job(&id).attempts.len(), rig.job(&id).interrupts), (3, 1));
}

#[test]
fn a_person_who_says_go_gives_a_job_all_its_tries_again() {
    let used_up = |rig: &mut Rig| {
        let id = rig.running();
        for n in 0..4 {
            rig.see_job(&id, &Look::Rebooted);
            rig.pass(Duration::from_secs(1 << n));
        }
        assert_eq!(rig.outcome(&id).0, OutcomeKind::Interrupted);
        id
    };
    for resume in [true, false] {
        let mut rig = Rig::with_repo(1);
        let id = used_up(&mut rig);
        let again = if resume {
            Request::Resume { job: id.clone(), prompt: "once more".into() }
        } else {
            Request::Retry { job: id.clone(), session: crate::ids::SessionId("s".into()) }
        };
        rig.granted(again);
        if !resume {
            rig.see_job(&id, &Look::Exited(0));
        }
        rig.see_job(&id, &Look::Rebooted);
        assert_eq!(back_off(&rig, &id), Duration::from_secs(1), "from the beginning");
        assert_eq!(rig.job(&id).interrupts, 1);
    }
    // The same for what was unknown, where its survivors have to end first.
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::Rebooted);
    rig.pass(Duration::from_secs(1));
    rig.see_job(&id, &Look::LostTreeAlive);
    rig.granted(Request::Resume { job: id.clone(), prompt: "go on".into() });
    assert_eq!(rig.phase(&id), "stopping");
    rig.see_job(&id, &Look::Exited(0));
    assert_eq!((rig.phase(&id), rig.job(&id).interrupts), ("running", 0));
}
