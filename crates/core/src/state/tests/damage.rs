//! Damage costs the entity that has it, and no other (I10).

use alloc::string::ToString as _;
use alloc::vec;

use super::{Look, Rig, add_repo, entries, key, model, repo, restored};
use crate::event::{job_entity, operation_entity, repo_entity};
use crate::ids::JobId;
use crate::job::{Action, OutcomeKind, Work};
use crate::record::EntityKey;
use crate::request::{Edit, Granted, Refusal, Request};
use crate::state::State;

const WHY: &str = "record 7 in segment 3 at byte 512: checksum";

fn damage(rig: &mut Rig, entity: EntityKey) {
    rig.state.set_unavailable(entity, WHY.to_string());
}

/// State made of all checkpoint entries but one.
pub(super) fn without(state: &State, lost: &EntityKey) -> State {
    let mut other = State::default();
    for (entity, _, body) in state.entries() {
        if entity == *lost {
            other.set_unavailable(entity, WHY.to_string());
        } else {
            other.restore(&entity, &body).expect("our own entry");
        }
    }
    other.restored_through(state.lsn());
    other
}

fn refusal(job: &JobId) -> Refusal {
    Refusal::Unavailable { entity: alloc::format!("job {job}"), reason: WHY.into() }
}

#[test]
fn a_damaged_job_refuses_everything_and_the_others_nothing() {
    let mut rig = Rig::with_repo(0);
    let [bad, good] = [rig.submit(), rig.submit()];
    damage(&mut rig, job_entity(&bad));
    let edit = || Edit { priority: Some(1), ..Edit::default() };
    for request in [
        Request::Cancel(bad.clone()),
        Request::Hold(bad.clone()),
        Request::Start(bad.clone()),
        Request::Remove { job: bad.clone() },
        Request::Edit { job: bad.clone(), edit: edit() },
        Request::Settle { job: bad.clone(), kind: OutcomeKind::Failed },
    ] {
        // Proves I10.
        assert_eq!(rig.ask(request), Err(refusal(&bad)));
    }
    rig.granted(Request::Edit { job: good.clone(), edit: edit() });
    rig.granted(Request::Cancel(good));
    rig.submit();
}

#[test]
fn a_damaged_job_is_neither_launched_nor_woken_and_holds_no_slot() {
    // Proves I10 and I7: of a job whose records are lost nobody knows whether it was launched already.
    for (phase, mut rig, id) in super::table::jobs_in_every_phase() {
        let before = rig.job(&id).clone();
        damage(&mut rig, job_entity(&id));
        rig.rules.running_max = 1;
        rig.last_effects();
        let other = rig.submit();
        rig.pass(core::time::Duration::from_hours(2));
        assert_eq!(rig.phase(&other), "preparing", "{phase}");
        assert_eq!(rig.job(&id), &before, "{phase}");
        if let Some(work) = before.phase.work(&id) {
            for look in super::looks::every() {
                rig.see(&work, &look);
                assert_eq!(rig.job(&id), &before, "{phase} {look:?}");
            }
        }
    }
}

#[test]
fn a_checkpoint_does_not_forget_what_is_damaged() {
    for (phase, rig, id) in super::table::jobs_in_every_phase() {
        let entity = job_entity(&id);
        let mut stale = rig.state.clone();
        stale.set_unavailable(entity.clone(), WHY.to_string());
        for state in [stale, without(&rig.state, &entity)] {
            let again = restored(&restored(&state));
            // Proves I10: never silence, and never a job that comes to life again in an old state.
            assert_eq!(again.unavailable(&entity), Some(WHY), "{phase}");
            assert!(model::same(&again, &state), "{phase}");
            assert_eq!(again.decide(Request::Remove { job: id.clone() }, "ann"), Err(refusal(&id)));
        }
    }
    for entity in [repo_entity(&repo("r")), operation_entity(crate::ids::OperationId(1))] {
        let mut rig = Rig::new(1);
        rig.add_repo("r");
        let again = restored(&without(&rig.state, &entity));
        assert_eq!(again.unavailable(&entity), Some(WHY));
    }
}

#[test]
fn a_damaged_repo_fails_its_jobs_and_no_others_and_is_not_registered_anew() {
    for lost in [false, true] {
        for cloned in [false, true] {
            let mut rig = Rig::with_repo(5);
            rig.add_repo("bad");
            let clone = rig.clone_of("bad");
            rig.rules.running_max = 0;
            let waits = rig.submit_with(|s| s.task.repos = vec![repo("bad")]);
            if cloned {
                rig.see(&clone, &Look::Exited(0));
            }
            let good = rig.submit();
            let entity = repo_entity(&repo("bad"));
            if lost {
                rig.state = without(&rig.state, &entity);
            } else {
                damage(&mut rig, entity);
            }
            rig.records.clear();
            rig.rules.running_max = 5;
            rig.pass(core::time::Duration::from_secs(1));
            let (kind, reason) = rig.outcome(&waits);
            assert_eq!(kind, OutcomeKind::Failed);
            assert_eq!(reason, alloc::format!("repository unavailable: bad: {WHY}"));
            assert_eq!(rig.phase(&good), "preparing");
            let told = Refusal::RepoUnavailable { name: "bad".into(), reason: WHY.into() };
            assert_eq!(rig.ask(add_repo("bad")), Err(told.clone()));
            assert_eq!(rig.ask(Request::RemoveRepo(repo("bad"))), Err(told.clone()));
            let mut submission = rig.submission();
            submission.task.repos = vec![repo("bad")];
            assert_eq!(rig.ask(Request::Submit(submission.into())), Err(told));
            // Its clone, if one is under way, ends without a repo to tell.
            for look in super::looks::every() {
                rig.see(&clone, &look);
            }
            rig.see(&clone, &Look::Exited(0));
            assert_eq!(rig.state.unavailable(&repo_entity(&repo("bad"))), Some(WHY));
        }
    }
}

#[test]
fn an_operation_whose_records_are_lost_fails_what_needs_it() {
    let mut rig = Rig::with_repo(1);
    rig.add_repo("s");
    let waits = rig.submit_with(|s| s.task.repos = vec![repo("s")]);
    let copied = rig.submit();
    let stopped = rig.submit();
    rig.rules.running_max = 2;
    rig.pass(core::time::Duration::from_secs(1));
    rig.granted(Request::Cancel(stopped.clone()));
    for id in [&copied, &stopped] {
        let Some(Work::Operation { id }) = rig.job(id).phase.work(id) else { panic!("a copy") };
        damage(&mut rig, operation_entity(id));
    }
    let Work::Operation { id } = rig.clone_of("s") else { panic!("a clone") };
    damage(&mut rig, operation_entity(id));
    let last = rig.submit();
    let (kind, reason) = rig.outcome(&copied);
    assert_eq!(kind, OutcomeKind::Failed);
    assert!(reason.contains(WHY), "{reason}");
    assert_eq!(rig.outcome(&stopped).0, OutcomeKind::Cancelled);
    assert!(rig.outcome(&waits).1.starts_with("repository unavailable: s: "));
    assert_eq!((rig.phase(&last), rig.state.busy()), ("preparing", 1));
    rig.granted(Request::RemoveRepo(repo("s")));
}

#[test]
fn an_operation_of_a_damaged_job_ends_without_it() {
    for lost in [false, true] {
        let mut rig = Rig::with_repo(1);
        let id = rig.submit();
        let copy = rig.job(&id).phase.work(&id).expect("it is copied");
        if lost {
            rig.state = without(&rig.state, &job_entity(&id));
        } else {
            damage(&mut rig, job_entity(&id));
        }
        rig.records.clear();
        rig.see(&copy, &Look::Rebooted);
        assert_eq!(rig.state.operations().count(), 0, "nobody wants it any more");
    }
}

#[test]
fn a_key_of_a_damaged_job_still_names_it() {
    let mut rig = Rig::with_repo(0);
    let id = rig.submit_with(|s| s.idempotency = Some(key("k", "body")));
    damage(&mut rig, job_entity(&id));
    rig.state = restored(&rig.state);
    let mut submission = rig.submission();
    submission.idempotency = Some(key("k", "body"));
    assert_eq!(rig.ask(Request::Submit(submission.into())), Ok(Granted::SameJob(id)));
}

#[test]
fn an_entry_that_is_not_ours_is_refused_and_leaves_no_trace() {
    let rig = Rig::with_repo(0);
    let mut state = State::default();
    for (entity, _, _) in rig.state.entries() {
        let error = state.restore(&entity, b"{\"nonsense\":1}").expect_err("nonsense");
        assert_eq!(error.entity, entity.name);
    }
    assert!(entries(&state) == entries(&State::default()));
    assert_eq!(Action::ALL.len(), 10);
}
