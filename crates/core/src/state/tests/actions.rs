//! What people ask: cancel, resume, retry, follow-ups, edits.

use alloc::vec::Vec;
use core::time::Duration;

use super::{Look, Rig, model};
use crate::effect::Effect;
use crate::job::{Action, OutcomeKind};
use crate::limits;
use crate::request::{Edit, Refusal, Request};
use crate::spec::StopCause;

fn resume(job: &crate::ids::JobId, prompt: &str) -> Request {
    Request::Resume { job: job.clone(), prompt: prompt.into() }
}

#[test]
fn a_conversation_can_go_on_where_its_workspace_is_or_will_be() {
    let mut rig = Rig::with_repo(1);
    let mut submit = || rig.submit_with(|s| s.task.engine = "claude".into());
    let [preparing, queued] = [submit(), submit()];
    rig.granted(Request::Cancel(queued.clone()));
    let can_resume = |id| rig.state.actions(rig.job(id)).any(|action| action == Action::Resume);
    assert_eq!([rig.phase(&preparing), rig.phase(&queued)], ["preparing", "ended"]);
    assert!(can_resume(&preparing) && !can_resume(&queued));
}

#[test]
fn a_job_has_its_slot_from_when_it_left_the_queue() {
    let mut rig = Rig::with_repo(0);
    let id = rig.submit();
    let edit = Edit { priority: Some(7), ..Edit::default() };
    rig.granted(Request::Edit { job: id.clone(), edit });
    assert_eq!(rig.job(&id).slot_at, None);
    rig.rules.running_max = 1;
    rig.pass(Duration::from_secs(9));
    let since = Some(rig.now);
    assert_eq!((rig.phase(&id), rig.job(&id).slot_at), ("preparing", since));
    rig.pass(Duration::from_secs(9));
    rig.see_job(&id, &Look::Lost);
    assert_eq!((rig.phase(&id), rig.job(&id).slot_at), ("preparing", since), "copied again");
}

#[test]
fn what_is_adopted_is_watched_and_what_never_ran_is_launched() {
    let mut rig = Rig::with_repo(1);
    rig.add_repo("s");
    let work = rig.clone_of("s");
    rig.effects.clear();
    rig.see(&work, &Look::Alive);
    assert_eq!(rig.effects, [Effect::Watch { work: work.clone() }]);
    rig.effects.clear();
    rig.see(&work, &Look::NeverRan);
    assert_eq!(rig.effects, [Effect::Launch { work }]);
    let id = rig.running();
    rig.effects.clear();
    rig.see_job(&id, &Look::Alive);
    let work = rig.job(&id).phase.work(&id).expect("it runs");
    assert_eq!(rig.effects, [Effect::Watch { work }]);
}

#[test]
fn a_job_that_has_not_begun_is_cancelled_at_once_and_one_that_has_when_it_is_over() {
    for (phase, mut rig, id) in super::table::jobs_in_every_phase() {
        match phase {
            "held" | "queued" | "waiting" => rig.granted(Request::Cancel(id.clone())),
            "preparing" | "running" | "stopping" => {
                rig.granted(Request::Cancel(id.clone()));
                rig.granted(Request::Cancel(id.clone()));
                assert_eq!((rig.phase(&id), rig.state.busy()), ("stopping", 1));
                rig.see_job(&id, &Look::Stopped(StopCause::Cancel));
            }
            _ => continue,
        }
        assert_eq!(rig.outcome(&id).0, OutcomeKind::Cancelled, "{phase}");
        assert_eq!(rig.state.busy(), 0);
        model::check_history(&rig);
    }
}

#[test]
fn a_follow_up_becomes_the_next_turn_in_the_same_session() {
    let mut rig = Rig::with_repo(1);
    let id = rig.submit();
    rig.granted(resume(&id, "two"));
    rig.see_job(&id, &Look::Exited(0));
    rig.granted(resume(&id, "three"));
    for turn in 1..=3 {
        let attempt = rig.job(&id).attempts.last().cloned().expect("one runs");
        assert_eq!((attempt.turn, attempt.resume), (turn, turn > 1));
        assert_eq!(rig.phase(&id), "running");
        rig.see_job(&id, &Look::Exited(0));
    }
    assert_eq!(rig.outcome(&id).0, OutcomeKind::Completed);
    let job = rig.job(&id);
    assert_eq!((job.sessions.len(), job.turns_done), (1, 3));
    assert_eq!((job.prompt(2), job.prompt(3)), (Some("two"), Some("three")));
}

#[test]
fn a_follow_up_waits_for_its_turn_in_the_queue_like_everybody() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    let other = rig.submit();
    rig.granted(resume(&id, "two"));
    rig.pass(Duration::from_secs(1));
    rig.see_job(&id, &Look::Exited(0));
    assert_eq!((rig.phase(&id), rig.phase(&other)), ("queued", "preparing"));
}

#[test]
fn an_ended_job_resumes_with_the_new_prompt_alone() {
    for look in [Look::Exited(0), Look::Exited(42)] {
        let mut rig = Rig::with_repo(1);
        let id = rig.running();
        rig.see_job(&id, &look);
        rig.granted(resume(&id, "more"));
        let job = rig.job(&id);
        assert_eq!((job.attempts.len(), job.attempts[1].turn), (2, 2));
        assert!(job.attempts[1].resume && job.sessions.len() == 1);
    }
}

#[test]
fn a_job_without_workspace_or_without_sessions_cannot_be_resumed() {
    let mut rig = Rig::with_repo(0);
    let id = rig.submit();
    rig.granted(Request::Cancel(id.clone()));
    assert_eq!(rig.ask(resume(&id, "more")), Err(Refusal::WorkspaceGone));
    let command = rig.submit_with(|s| s.task.engine = "command".into());
    rig.granted(Request::Cancel(command.clone()));
    let refused = Err(Refusal::CannotResume("command".into()));
    assert_eq!(rig.ask(resume(&command, "more")), refused);
}

#[test]
fn a_retry_does_all_turns_again_in_a_session_of_its_own() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.granted(resume(&id, "two"));
    rig.see_job(&id, &Look::Exited(0));
    rig.see_job(&id, &Look::Exited(0));
    let session = rig.fresh_session();
    rig.granted(Request::Retry { job: id.clone(), session: session.clone() });
    assert_eq!(rig.phase(&id), "preparing");
    for _ in 0..3 {
        rig.see_job(&id, &Look::Exited(0));
    }
    let job = rig.job(&id);
    let turns: Vec<_> = job.attempts.iter().map(|a| (a.session, a.turn, a.resume)).collect();
    assert_eq!(turns, [(0, 1, false), (0, 2, true), (1, 1, false), (1, 2, true)]);
    let current = job.session().expect("it has one");
    assert_eq!((&current.id, current.output_base), (&session, super::looks::OUTPUT));
}

#[test]
fn a_retry_that_never_ran_leaves_nothing_behind_that_adds_up() {
    // Proves I9: asking again and again does not make a job grow without bound.
    let mut rig = Rig::with_repo(0);
    let id = rig.submit();
    for _ in 0..5 {
        rig.granted(Request::Cancel(id.clone()));
        let session = rig.fresh_session();
        rig.granted(Request::Retry { job: id.clone(), session: session.clone() });
        assert_eq!(rig.job(&id).sessions.len(), 1);
        assert_eq!(rig.job(&id).session().map(|s| &s.id), Some(&session));
    }
}

#[test]
fn a_retry_of_what_cannot_be_known_ends_what_is_left_and_does_not_wait_for_it() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::LostTreeAlive);
    let session = rig.fresh_session();
    rig.last_effects();
    rig.granted(Request::Retry { job: id.clone(), session });
    let cares = |effect: &crate::effect::Effect| {
        matches!(effect, crate::effect::Effect::Caretake { empty_tree: true, .. })
    };
    assert!(rig.last_effects().iter().any(cares));
    assert_eq!(rig.phase(&id), "preparing");
    let old = crate::job::Work::Attempt { job: id.clone(), attempt: super::attempt_no(1) };
    rig.see(&old, &Look::Lost);
    assert_eq!(rig.phase(&id), "preparing", "the old attempt has no say any more");
}

#[test]
fn a_prompt_is_edited_only_while_the_job_is_held() {
    let mut rig = Rig::with_repo(0);
    let id = rig.submit();
    let edit = Edit { prompt: Some("better".into()), ..Edit::default() };
    let request = Request::Edit { job: id.clone(), edit };
    let refused = rig.ask(request.clone());
    assert!(matches!(refused, Err(Refusal::NotAllowed { phase: "queued", .. })), "{refused:?}");
    rig.granted(Request::Hold(id.clone()));
    rig.granted(request);
    assert_eq!(rig.job(&id).prompt(1), Some("better"));
}

#[test]
fn turns_of_one_job_are_bounded() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    let mut job = rig.job(&id).clone();
    let turn = job.turns[0].clone();
    job.turns.resize(limits::TURNS_MAX - 1, turn);
    rig.state.put(job);
    rig.granted(resume(&id, "the last"));
    let refused = rig.ask(resume(&id, "more"));
    assert!(matches!(refused, Err(Refusal::LimitReached { .. })), "{refused:?}");
}

#[test]
fn attempts_and_decisions_of_one_job_are_bounded_and_the_beginning_of_its_story_is_kept() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running_with(|s| s.task.max_interrupts = u32::MAX);
    for _ in 0..limits::DECISIONS_MAX {
        rig.see_job(&id, &Look::OutOfMemory);
        rig.pass(limits::INTERRUPT_BACKOFF_MAX);
    }
    assert_eq!(rig.job(&id).decisions.len(), limits::DECISIONS_MAX);
    // Most attempts are made up, to be quick.
    let mut job = rig.job(&id).clone();
    let current = job.attempts.pop().expect("it runs");
    while job.attempts.len() < limits::ATTEMPTS_MAX - 2 {
        let n = super::attempt_no(u32::try_from(job.attempts.len()).expect("few") + 1);
        job.attempts.push(crate::job::Attempt { n, ..job.attempts[0].clone() });
    }
    let n = super::attempt_no(u32::try_from(job.attempts.len()).expect("few") + 1);
    job.attempts.push(crate::job::Attempt { n, ..current });
    job.phase = crate::job::Phase::Running { attempt: n };
    rig.state.put(job);
    for phase in ["running", "ended"] {
        rig.see_job(&id, &Look::OutOfMemory);
        rig.pass(limits::INTERRUPT_BACKOFF_MAX);
        assert_eq!(rig.phase(&id), phase);
    }
    assert_eq!(rig.job(&id).attempts.len(), limits::ATTEMPTS_MAX);
    assert_eq!(rig.job(&id).decisions.len(), limits::DECISIONS_MAX);
    let first = &rig.job(&id).decisions[0];
    assert_eq!((first.what.as_str(), first.lsn), ("workspace being made", rig.job(&id).accepted));
    let dropped = rig.job(&id).decisions_dropped as usize;
    assert!(dropped >= 3 * limits::DECISIONS_MAX, "how many are gone is told: {dropped}");
}
