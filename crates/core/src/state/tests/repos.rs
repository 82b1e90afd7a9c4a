//! Repos, their clones, and the jobs that wait for them.

use alloc::string::ToString as _;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Look, Rig, add_repo, is_ready, model, repo};
use crate::event::repo_entity;
use crate::ids::JobId;
use crate::job::{OutcomeKind, Phase, Work};
use crate::limits;
use crate::request::{Refusal, Request};

#[test]
fn jobs_for_a_repo_that_is_being_cloned_wait_and_go_on_in_their_order() {
    let mut rig = Rig::new(1);
    rig.add_repo("r");
    let jobs: Vec<_> = (0..4)
        .map(|_| {
            rig.pass(Duration::from_secs(1));
            rig.submit()
        })
        .collect();
    assert!(jobs.iter().all(|id| rig.phase(id) == "waiting"));
    assert_eq!(rig.state.next_due(), None, "no clock wakes them");
    rig.end_clone("r", &Look::Exited(0));
    let phases: Vec<_> = jobs.iter().map(|id| rig.phase(id)).collect();
    assert_eq!(phases, ["preparing", "queued", "queued", "queued"]);
    let positions: Vec<_> = jobs.iter().map(|id| rig.state.queue_position(rig.job(id))).collect();
    assert_eq!(positions, [None, Some(0), Some(1), Some(2)]);
    model::check_history(&rig);
}

#[test]
fn a_job_for_two_repos_waits_for_both() {
    let mut rig = Rig::new(1);
    rig.add_repo("r");
    rig.add_repo("s");
    let id = rig.submit_with(|s| s.task.repos = vec![repo("r"), repo("s")]);
    rig.end_clone("s", &Look::Exited(0));
    assert_eq!(rig.phase(&id), "waiting");
    rig.end_clone("r", &Look::Exited(0));
    assert_eq!(rig.phase(&id), "preparing");
}

#[test]
fn a_clone_that_fails_fails_the_jobs_that_wait_for_it_and_no_others() {
    let mut rig = Rig::with_repo(1);
    rig.add_repo("bad");
    let busy = rig.submit();
    let waiting = rig.submit_with(|s| s.task.repos = vec![repo("bad")]);
    let held = rig.submit_with(|s| {
        s.task.repos = vec![repo("bad")];
        s.held = true;
    });
    rig.end_clone("bad", &Look::Exited(128));
    let (kind, reason) = rig.outcome(&waiting);
    assert_eq!(kind, OutcomeKind::Failed);
    assert!(reason.starts_with("repository unavailable: bad: "), "{reason}");
    assert_eq!((rig.phase(&busy), rig.phase(&held)), ("preparing", "held"));
    // A start that could only fail is refused at once.
    let refused = rig.ask(Request::Start(held));
    assert!(matches!(refused, Err(Refusal::RepoUnavailable { .. })), "{refused:?}");
    let mut submission = rig.submission();
    submission.task.repos = vec![repo("bad")];
    let refused = rig.ask(Request::Submit(submission.into()));
    assert!(matches!(refused, Err(Refusal::RepoUnavailable { .. })), "{refused:?}");
}

#[test]
fn an_operation_that_was_cut_off_is_begun_anew_up_to_its_limit() {
    for look in [Look::Rebooted, Look::OutOfMemory, Look::Lost, Look::Damaged] {
        let mut rig = Rig::new(1);
        rig.add_repo("r");
        let id = rig.submit();
        let mut seen = vec![];
        for _ in 0..limits::OPERATION_TRIES_MAX {
            let work = rig.clone_of("r");
            assert!(!seen.contains(&work), "each try has a directory of its own");
            rig.see(&work, &look);
            seen.push(work);
        }
        let (kind, reason) = rig.outcome(&id);
        assert_eq!(kind, OutcomeKind::Failed);
        assert!(reason.contains("cut off too often"), "{reason}");
        assert_eq!(rig.state.operations().count(), 0);
    }
}

#[test]
fn a_copy_that_was_cut_off_goes_on_under_a_new_name_and_a_retry_has_all_its_tries_again() {
    let mut rig = Rig::with_repo(1);
    let id = rig.submit();
    for _ in 0..2 {
        for _ in 0..limits::OPERATION_TRIES_MAX {
            assert_eq!(rig.phase(&id), "preparing");
            rig.see_job(&id, &Look::Rebooted);
        }
        assert_eq!(rig.outcome(&id).0, OutcomeKind::Failed);
        let session = rig.fresh_session();
        rig.granted(Request::Retry { job: id.clone(), session });
    }
    rig.see_job(&id, &Look::Exited(0));
    assert_eq!(rig.phase(&id), "running");
    model::check_history(&rig);
}

#[test]
fn an_operation_is_not_repeated_beside_its_own_survivors() {
    let mut rig = Rig::new(1);
    rig.add_repo("r");
    let work = rig.clone_of("r");
    rig.see(&work, &Look::LostTreeAlive);
    assert_eq!(rig.clone_of("r"), work, "first its tree is ended");
    rig.see(&work, &Look::Lost);
    assert_ne!(rig.clone_of("r"), work);
    let work = rig.clone_of("r");
    rig.see(&work, &Look::Exited(0));
    assert!(is_ready(&rig.state, "r"));
}

#[test]
fn a_clone_for_a_repo_whose_records_are_lost_is_not_repeated() {
    let mut rig = Rig::new(1);
    rig.add_repo("r");
    let work = rig.clone_of("r");
    rig.state = super::damage::without(&rig.state, &repo_entity(&repo("r")));
    rig.records.clear();
    rig.see(&work, &Look::Lost);
    assert_eq!(rig.state.operations().count(), 0);
}

#[test]
fn caretakers_of_an_operation_are_bounded() {
    // Proves I9: what dies for a reason that stays is not tried for ever.
    for look in [Look::LostTreeAlive, Look::Orphan, Look::ExitedTreeAlive] {
        let mut rig = Rig::new(1);
        rig.add_repo("r");
        let id = rig.submit();
        let work = rig.clone_of("r");
        for _ in 0..=limits::CARETAKERS_MAX {
            rig.see(&work, &look);
        }
        assert_eq!(rig.outcome(&id).0, OutcomeKind::Failed, "{look:?}");
    }
}

#[test]
fn a_copy_that_is_being_cancelled_ends_cancelled_whatever_is_seen_of_it() {
    for look in super::looks::every() {
        let mut rig = Rig::with_repo(1);
        let id = rig.submit();
        rig.granted(Request::Cancel(id.clone()));
        assert_eq!(rig.phase(&id), "stopping", "it ends when the copy has ended, not before");
        rig.see_job(&id, &look);
        if rig.phase(&id) == "stopping" {
            let left = [Look::Alive, Look::Orphan, Look::LostTreeAlive, Look::ExitedTreeAlive];
            assert!(left.contains(&look), "{look:?}");
            rig.see_job(&id, &Look::Stopped(crate::spec::StopCause::Cancel));
        }
        assert_eq!(rig.outcome(&id).0, OutcomeKind::Cancelled, "{look:?}");
        assert_eq!((rig.state.busy(), rig.state.operations().count()), (0, 0));
    }
}

#[test]
fn a_repo_is_kept_while_any_job_needs_it_whatever_letters_its_id_has() {
    for first in 0..32_u64 {
        let mut rig = Rig::with_repo(0);
        let job = JobId::from_random(first);
        rig.submit_with(|s| s.job = job.clone());
        let refused = rig.ask(Request::RemoveRepo(repo("r")));
        assert_eq!(refused, Err(Refusal::RepoInUse { name: "r".into(), jobs: 1 }), "{job}");
        rig.granted(Request::Cancel(job));
        rig.granted(Request::RemoveRepo(repo("r")));
    }
}

#[test]
fn a_repo_that_was_removed_can_be_added_again_and_its_records_still_follow_each_other() {
    let mut rig = Rig::with_repo(1);
    rig.granted(Request::RemoveRepo(repo("r")));
    // A checkpoint may be written here: check_history takes one after every third of the records.
    for _ in 0..4 {
        rig.add_repo("r");
        assert_eq!(
            rig.ask(Request::RemoveRepo(repo("r"))),
            Err(Refusal::RepoInUse { name: "r".to_string(), jobs: 0 })
        );
        rig.end_clone("r", &Look::Exited(0));
        rig.granted(Request::RemoveRepo(repo("r")));
        for cut in 0..rig.records.len() {
            model::a_checkpoint_can_be_gone_on_from(&rig, cut);
        }
    }
    assert_eq!(rig.ask(add_repo("r")), Ok(crate::request::Granted::Repo(repo("r"))));
}

#[test]
fn a_job_that_has_its_workspace_needs_its_repo_no_more() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::Exited(0));
    rig.granted(Request::RemoveRepo(repo("r")));
    rig.granted(Request::Resume { job: id.clone(), prompt: "more".into() });
    assert!(matches!(rig.job(&id).phase, Phase::Running { .. }), "{:?}", rig.job(&id).phase);
    rig.see_job(&id, &Look::Exited(0));
    let session = rig.fresh_session();
    let refused = rig.ask(Request::Retry { job: id, session });
    assert!(matches!(refused, Err(Refusal::UnknownRepo { .. })), "{refused:?}");
}

#[test]
fn news_of_what_is_over_is_no_news() {
    let mut rig = Rig::with_repo(1);
    let id = rig.submit();
    let copy = rig.job(&id).phase.work(&id).expect("it is copied");
    rig.see(&copy, &Look::Exited(0));
    rig.see_job(&id, &Look::Exited(0));
    let records = rig.records.len();
    for look in super::looks::every() {
        rig.see(&copy, &look);
        rig.see(&Work::Attempt { job: id.clone(), attempt: super::attempt_no(1) }, &look);
        rig.see(&Work::Attempt { job: id.clone(), attempt: super::attempt_no(2) }, &look);
        let nobody = rig.fresh_id();
        rig.see(&Work::Attempt { job: nobody, attempt: super::attempt_no(1) }, &look);
    }
    assert_eq!(rig.records.len(), records);
}
