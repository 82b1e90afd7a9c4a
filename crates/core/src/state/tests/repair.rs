//! What lost records is taken up again when a person asks for it, as far as it is known; nothing begins by itself (I10, I7).

use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use super::damage::without;
use super::table::jobs_in_every_phase;
use super::{Look, Rig, attempt_no, is_ready, model, repo, restored};
use crate::effect::Effect;
use crate::event::{Event, job_entity, operation_entity, repo_entity, server_entity};
use crate::ids::{JobId, Lsn, OperationId, RepoName, SessionId};
use crate::job::{Action, Job, OutcomeKind, Phase, Work, Workspace};
use crate::limits;
use crate::record::EntityKey;
use crate::repo::OperationKind;
use crate::request::{Granted, Refusal, Request};
use crate::spec::{Ending, Outcome, Spec};
use crate::state::State;
use crate::state::repair::{AttemptRemains, Remains};
use crate::time::Timestamp;

const WHY: &str = "record 7 in segment 3 at byte 512: checksum";

fn damage(rig: &mut Rig, entity: EntityKey) {
    rig.state.set_unavailable(entity, WHY.to_string());
}

fn actions(rig: &Rig, id: &JobId) -> Vec<&'static str> {
    rig.state.actions(rig.job(id)).map(Action::name).collect()
}

#[test]
fn a_job_of_any_phase_is_taken_up_as_it_is_known_and_nothing_begins_by_itself() {
    for (phase, mut rig, id) in jobs_in_every_phase() {
        let stops = matches!(&rig.job(&id).phase, Phase::Stopping { work, .. } if matches!(work, Work::Operation { .. }));
        damage(&mut rig, job_entity(&id));
        rig.pass(core::time::Duration::from_hours(2));
        assert_eq!(
            (rig.state.phase_name(rig.job(&id)), actions(&rig, &id)),
            ("unknown", vec!["repair"])
        );
        assert_eq!(
            rig.state.last_lsn(&job_entity(&id)),
            Lsn::NONE,
            "the next record begins it again"
        );
        rig.last_effects();
        rig.granted(Request::Repair { job: id.clone() });
        let wanted = match phase {
            "held" | "queued" | "waiting" | "preparing" => "held",
            "stopping" if stops => "ended",
            other => other,
        };
        assert_eq!(rig.phase(&id), wanted, "{phase}");
        assert_eq!(rig.state.phase_name(rig.job(&id)), wanted);
        let effects = rig.last_effects();
        let launched = effects.iter().any(|effect| matches!(effect, Effect::Launch { .. }));
        assert!(!launched, "{phase}: {effects:?}");
        let watched = effects.iter().any(|effect| matches!(effect, Effect::Watch { .. }));
        assert_eq!(watched, ["running", "stopping"].contains(&wanted), "{phase}: {effects:?}");
        let last = rig.job(&id).decisions.last().expect("the repair is a decision");
        assert_eq!((last.what.as_str(), last.because.as_str()), ("taken up again by ann", WHY));
        assert_eq!(rig.state.last_lsn(&job_entity(&id)), rig.state.lsn());
        model::check_history(&rig);
        let again = rig.ask(Request::Repair { job: id.clone() });
        assert!(
            matches!(again, Err(Refusal::NotAllowed { action: Action::Repair, .. })),
            "{again:?}"
        );
    }
}

// Proves I7: what an agent did is found out by looking, and it is not started again.
#[test]
fn the_end_of_an_attempt_whose_record_is_lost_is_found_again() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    damage(&mut rig, job_entity(&id));
    rig.granted(Request::Repair { job: id.clone() });
    rig.see_job(&id, &Look::Exited(42));
    assert_eq!(rig.outcome(&id).0, OutcomeKind::Failed);
    assert_eq!(rig.launches(&id, 1), 1);
    model::check_history(&rig);
}

#[test]
fn a_repaired_job_that_was_held_can_be_started_or_removed() {
    let mut rig = Rig::with_repo(1);
    let first = rig.submit_with(|s| s.held = true);
    let second = rig.submit_with(|s| s.held = true);
    for id in [&first, &second] {
        damage(&mut rig, job_entity(id));
        rig.granted(Request::Repair { job: id.clone() });
    }
    rig.granted(Request::Start(first.clone()));
    assert_eq!(rig.phase(&first), "preparing");
    rig.granted(Request::Remove { job: second });
    model::check_history(&rig);
}

fn spec(workspace: &str, session: &str) -> Spec {
    let json = serde_json::json!({
        "version": 1, "mark": "m", "job": "j", "attempt": 1, "engine": "demo", "argv": ["x"],
        "cwd": alloc::format!("/d/jobs/j/{workspace}"), "env": [], "env_remove": [], "stdin": null,
        "stdout": alloc::format!("/d/jobs/j/{session}.output"),
        "stderr": alloc::format!("/d/jobs/j/{session}.stderr"), "capture": "file",
        "timeout_ms": 7_000, "grace_ms": 1, "heartbeat_ms": 1, "output_bytes_max": null,
        "memory_bytes_max": 5, "pids_max": null, "cgroup": "c",
    });
    serde_json::from_value(json).expect("a spec")
}

fn outcome(code: i32, output_to: u64) -> Outcome {
    Outcome {
        version: 1,
        ending: Ending::Exited(code),
        at: Timestamp(1_000_500),
        stop: None,
        oom: false,
        cpu_ms: 3,
        peak_memory_bytes: 4,
        output_to: [output_to, 1],
    }
}

fn workspace() -> Workspace {
    Workspace {
        made_by: "copy".into(),
        base_commit: Some("abc".into()),
        branch: "outlive/j".into(),
    }
}

fn found(n: u32, workspace: &str, session: &str, ended: Option<i32>) -> AttemptRemains {
    AttemptRemains {
        n: attempt_no(n),
        spec: Some(spec(workspace, session)),
        started: None,
        outcome: ended.map(|code| outcome(code, 100)),
    }
}

/// A State in which nothing is left of a job but that it was there.
fn stranger(rig: &mut Rig, id: &JobId, remains: &Remains) {
    rig.state = without(&rig.state, &job_entity(id));
    rig.state.recall(id, remains, "ann");
    rig.records.clear();
}

#[test]
fn a_job_of_which_no_record_is_left_is_known_by_its_directory() {
    let mut rig = Rig::with_repo(1);
    let other = rig.submit_with(|s| s.held = true);
    let id = rig.running();
    let remains = Remains {
        accepted: Some(rig.job(&id).accepted),
        workspaces: vec![Some(workspace()), None],
        attempts: vec![
            found(1, "workspace", "first", Some(3)),
            AttemptRemains { n: attempt_no(2), spec: None, started: None, outcome: None },
            found(3, "workspace-2", "second", None),
        ],
    };
    stranger(&mut rig, &id, &remains);
    let job = rig.job(&id).clone();
    assert_eq!((job.attempts.len(), job.sessions.len(), job.turns.len()), (3, 2, 0));
    assert_eq!((job.task.engine.as_str(), job.task.timeout_ms), ("demo", 7_000));
    assert_eq!((job.task.limits.memory_bytes, job.owner.as_str()), (Some(5), "ann"));
    let sessions: Vec<&str> = job.sessions.iter().map(|session| session.id.0.as_str()).collect();
    assert_eq!(sessions, ["first", "second"]);
    assert_eq!(job.sessions[0].workspace, Some(workspace()));
    assert_eq!(job.sessions[1].output_base, [100, 1], "after what the first one wrote");
    let ends: Vec<Option<Option<i32>>> = job
        .attempts
        .iter()
        .map(|attempt| attempt.end.as_ref().map(|end| end.outcome.exit_code))
        .collect();
    assert_eq!(ends, [Some(Some(3)), Some(None), None]);
    // Looking again adds nothing, nor does a start from a checkpoint.
    for mut state in [rig.state.clone(), restored(&rig.state)] {
        state.recall(&id, &remains, "ann");
        assert_eq!(**state.job(&id).expect("there"), job);
    }
    assert_eq!(rig.state.newest_first(None).count(), 2);
    assert_eq!(actions(&rig, &id), ["repair"]);
    rig.granted(Request::Repair { job: id.clone() });
    assert_eq!(rig.job(&id).phase, Phase::Running { attempt: attempt_no(3) });
    rig.see_job(&id, &Look::Exited(0));
    assert_eq!(rig.outcome(&id).0, OutcomeKind::Completed);
    // What it was asked is lost, so it cannot be done again; its conversation can go on.
    let retry = Request::Retry { job: id.clone(), session: SessionId("new".into()) };
    assert_eq!(rig.ask(retry), Err(Refusal::TaskLost(id.to_string())));
    assert!(!actions(&rig, &id).contains(&"retry"));
    assert_eq!(rig.phase(&other), "held");
    assert!(model::same(&restored(&rig.state), &rig.state));
}

#[test]
fn a_job_that_left_nothing_at_all_can_be_ended_and_removed() {
    let mut rig = Rig::with_repo(0);
    let id = rig.submit();
    stranger(&mut rig, &id, &Remains::default());
    rig.granted(Request::Repair { job: id.clone() });
    assert_eq!(
        rig.outcome(&id),
        (OutcomeKind::Interrupted, "what it was asked to do is lost".into())
    );
    assert!(rig.job(&id).ended_at.is_some());
    rig.granted(Request::Remove { job: id });
    assert!(model::same(&restored(&rig.state), &rig.state));
}

#[test]
fn two_jobs_are_never_in_one_place_of_the_order() {
    let mut rig = Rig::with_repo(0);
    let known = rig.submit_with(|s| s.held = true);
    let place = rig.job(&known).accepted;
    let lost: Vec<JobId> = (0..3).map(|_| rig.submit_with(|s| s.held = true)).collect();
    for id in &lost {
        let remains = Remains { accepted: Some(place), ..Remains::default() };
        stranger(&mut rig, id, &remains);
    }
    assert_eq!(rig.state.newest_first(None).count(), 4);
    for id in &lost {
        rig.granted(Request::Repair { job: id.clone() });
    }
    assert_eq!(rig.state.newest_first(None).count(), 4);
    assert_eq!(rig.job(&known).accepted, place);
    assert!(lost.iter().all(|id| rig.job(id).accepted < place), "before it, not after");
}

#[test]
fn an_attempt_that_only_the_directory_knows_is_not_launched_a_second_time() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::Exited(0));
    damage(&mut rig, job_entity(&id));
    let attempts = vec![found(1, "workspace", "s", Some(0)), found(2, "workspace", "s", None)];
    let remains = Remains { attempts, ..Remains::default() };
    rig.state.recall(&id, &remains, "ann");
    rig.last_effects();
    rig.granted(Request::Repair { job: id.clone() });
    assert_eq!(rig.job(&id).phase, Phase::Running { attempt: attempt_no(2) });
    let work = Work::Attempt { job: id.clone(), attempt: attempt_no(2) };
    assert_eq!(rig.last_effects(), [Effect::Watch { work }]);
    rig.see_job(&id, &Look::Exited(0));
    let session = SessionId("new".into());
    rig.granted(Request::Retry { job: id.clone(), session });
    rig.see_job(&id, &Look::Exited(0));
    assert_eq!(rig.launches(&id, 3), 1, "the third is the next");
}

#[test]
fn a_job_that_does_not_fit_into_a_record_is_refused_and_nothing_breaks() {
    let mut rig = Rig::with_repo(0);
    let prompt = || "x".repeat(limits::REPAIRED_JOB_BYTES_MAX);
    let id = rig.submit_with(|s| {
        s.prompt = prompt();
        s.held = true;
    });
    damage(&mut rig, job_entity(&id));
    let asked = rig.ask(Request::Repair { job: id });
    assert!(matches!(asked, Err(Refusal::LimitReached { .. })), "{asked:?}");
}

// Proves I10: ids are never used again, so that a removal stands whatever is lost around it.
#[test]
fn what_was_removed_stays_removed() {
    let mut rig = Rig::with_repo(0);
    let id = rig.submit();
    let before = rig.state.clone();
    rig.granted(Request::Remove { job: id.clone() });
    damage(&mut rig, job_entity(&id));
    assert_eq!(rig.state.unavailable(&job_entity(&id)), None);
    rig.pass(limits::REMOVAL_KEPT);
    assert_eq!(rig.state.removals().count(), 0, "and is forgotten in its time");
    // A removal whose job's earlier records are lost: replayed, it says more than they could.
    for known in [true, false] {
        let mut state = if known { before.clone() } else { without(&before, &job_entity(&id)) };
        state.set_unavailable(job_entity(&id), WHY.to_string());
        let removed = Event::JobRemoved { job: id.clone() };
        assert!(removed.begins_again());
        state.apply(state.lsn().next(), rig.now, &removed).expect("it was removed");
        assert_eq!((state.job(&id), state.unavailable(&job_entity(&id))), (None, None));
        let repaired = Event::JobRepaired {
            job: before.job(&id).map(|job| Job::clone(job)).expect("there").into(),
        };
        state.apply(state.lsn().next(), rig.now, &repaired).expect_err("it was removed");
    }
}

fn repair_repo(name: &str, source: Option<&str>) -> Request {
    let (name, owner) = (repo(name), "bob".to_string());
    Request::RepairRepo { name, owner, source: source.map(String::from), branch: None }
}

fn clones(state: &State, name: &RepoName) -> Vec<u32> {
    let clone = OperationKind::Clone { repo: name.clone() };
    state.operations().filter(|it| it.kind == clone).map(|it| it.tries).collect()
}

#[test]
fn a_repo_is_made_usable_again_from_what_is_known_of_it() {
    for ready in [true, false] {
        let mut rig = Rig::with_repo(1);
        rig.add_repo("s");
        if ready {
            rig.end_clone("s", &Look::Exited(0));
        }
        damage(&mut rig, repo_entity(&repo("s")));
        assert_eq!(rig.ask(repair_repo("s", None)), Ok(Granted::Repo(repo("s"))));
        let after = rig.state.repo(&repo("s")).expect("there");
        assert_eq!((after.source.as_str(), after.owner.as_str()), ("/src", "ann"));
        // One clone, and not as a first try, which would clear away a source copy that is whole.
        assert_eq!(clones(&rig.state, &repo("s")), [if ready { 2 } else { 1 }]);
        let waits = rig.submit_with(|s| s.task.repos = vec![repo("s")]);
        rig.end_clone("s", &Look::Exited(0));
        assert!(is_ready(&rig.state, "s"));
        assert_eq!(rig.phase(&waits), "preparing");
        model::check_history(&rig);
        // A repo that is well is left as it is.
        let records = rig.records.len();
        assert_eq!(rig.ask(repair_repo("s", None)), Ok(Granted::Repo(repo("s"))));
        assert_eq!(rig.records.len(), records);
    }
}

#[test]
fn a_repo_whose_source_is_lost_asks_for_it() {
    let mut rig = Rig::with_repo(1);
    rig.state = without(&rig.state, &repo_entity(&repo("r")));
    rig.records.clear();
    assert_eq!(rig.ask(repair_repo("r", None)), Err(Refusal::SourceLost("r".into())));
    assert!(rig.state.unavailable(&repo_entity(&repo("r"))).is_some());
    rig.granted(repair_repo("r", Some("/elsewhere")));
    let after = rig.state.repo(&repo("r")).expect("there");
    assert_eq!((after.source.as_str(), after.owner.as_str()), ("/elsewhere", "bob"));
    rig.end_clone("r", &Look::Exited(0));
    rig.submit();
    let unknown = Refusal::UnknownRepo { name: "x".into(), nearest: None };
    assert_eq!(rig.ask(repair_repo("x", None)), Err(unknown));
}

#[test]
fn a_repo_whose_clone_failed_or_is_lost_is_cloned_again() {
    for lost in [true, false] {
        let mut rig = Rig::with_repo(1);
        rig.add_repo("s");
        if lost {
            let Work::Operation { id } = rig.clone_of("s") else { panic!("a clone") };
            damage(&mut rig, operation_entity(id));
        } else {
            rig.end_clone("s", &Look::Exited(1));
        }
        rig.pass(core::time::Duration::from_secs(1));
        assert!(rig.state.usable(&repo("s")).is_err());
        rig.granted(repair_repo("s", None));
        rig.end_clone("s", &Look::Exited(0));
        assert!(is_ready(&rig.state, "s"));
    }
}

#[test]
fn a_removed_repo_that_may_have_been_registered_again_is_not_cleared_away() {
    let mut rig = Rig::with_repo(0);
    rig.granted(Request::RemoveRepo(repo("r")));
    assert_eq!(rig.state.removals().count(), 1);
    damage(&mut rig, repo_entity(&repo("r")));
    assert_eq!(rig.state.removals().count(), 0);
    rig.granted(repair_repo("r", Some("/src")));
    rig.end_clone("r", &Look::Exited(0));
    assert!(is_ready(&rig.state, "r"));
    assert!(model::same(&restored(&rig.state), &rig.state));
    // And one whose removal is on record, though not what was before.
    let mut state = without(&rig.state, &repo_entity(&repo("r")));
    let removed = Event::RepoRemoved { name: repo("r") };
    state.apply(state.lsn().next(), rig.now, &removed).expect("it was removed");
    assert_eq!((state.removals().count(), state.unavailable(&repo_entity(&repo("r")))), (1, None));
}

#[test]
fn work_of_our_own_whose_records_are_lost_is_forgotten_when_nobody_waits_for_it() {
    let mut rig = Rig::with_repo(1);
    let id = rig.submit();
    let Some(Work::Operation { id: copy }) = rig.job(&id).phase.work(&id) else { panic!("a copy") };
    damage(&mut rig, operation_entity(copy));
    assert_eq!(rig.state.last_lsn(&operation_entity(copy)), Lsn::NONE);
    rig.pass(core::time::Duration::from_secs(1));
    assert_eq!(rig.outcome(&id).0, OutcomeKind::Failed);
    assert_eq!(rig.state.all_unavailable().count(), 0);
    // Its number is not given again, even where only its directory tells of it.
    rig.state.operation_was_seen(OperationId(40));
    rig.add_repo("s");
    assert_eq!(rig.clone_of("s"), Work::Operation { id: OperationId(41) });
}

#[test]
fn the_server_s_own_loss_is_made_good_by_the_next_start() {
    let mut rig = Rig::with_repo(0);
    damage(&mut rig, server_entity());
    let started = Event::ServerStarted { number: 9, version: "v".into(), boot_id: "b".into() };
    rig.write(&[started]);
    assert_eq!((rig.state.starts(), rig.state.unavailable(&server_entity())), (9, None));
}
