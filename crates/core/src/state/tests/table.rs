//! The two tables, pair by pair: what may be asked in each phase, and what may happen in each phase.

use alloc::boxed::Box;
use alloc::string::ToString as _;
use alloc::vec;
use alloc::vec::Vec;

use super::{Look, Rig, add_repo, attempt_no, entries, repo, task};
use crate::event::{Accepted, Event, RequeueCause};
use crate::ids::{JobId, OperationId, SessionId};
use crate::job::{Action, OutcomeKind, Phase, WaitReason, Work, Workspace};
use crate::repo::OperationKind;
use crate::request::{Edit, Granted, Refusal, Request};
use crate::spec::StopCause;
use crate::state::decide::told;

/// A job in each phase, `stopping` and `preparing` in both their ways.
pub(super) fn jobs_in_every_phase() -> Vec<(&'static str, Rig, JobId)> {
    let mut all = Vec::new();
    let mut rig = Rig::with_repo(1);
    let held = rig.submit_with(|s| s.held = true);
    all.push(("held", rig, held));

    let mut rig = Rig::with_repo(0);
    let queued = rig.submit();
    all.push(("queued", rig, queued));

    let mut rig = Rig::with_repo(1);
    let later = rig.now.after(core::time::Duration::from_hours(1));
    let waiting = rig.submit_with(|s| s.start_after = Some(later));
    all.push(("waiting", rig, waiting));

    let mut rig = Rig::with_repo(1);
    let preparing = rig.submit();
    all.push(("preparing", rig, preparing));

    let mut rig = Rig::with_repo(1);
    let running = rig.running();
    all.push(("running", rig, running));

    let mut rig = Rig::with_repo(1);
    let stopping = rig.running();
    rig.granted(Request::Cancel(stopping.clone()));
    all.push(("stopping", rig, stopping));

    let mut rig = Rig::with_repo(1);
    let stopping = rig.submit();
    rig.granted(Request::Cancel(stopping.clone()));
    all.push(("stopping", rig, stopping));

    let mut rig = Rig::with_repo(1);
    let unknown = rig.running();
    rig.see_job(&unknown, &Look::Lost);
    all.push(("unknown", rig, unknown));

    let mut rig = Rig::with_repo(1);
    let ended = rig.running();
    rig.see_job(&ended, &Look::Exited(0));
    all.push(("ended", rig, ended));
    all
}

/// Every request about a job, but for uploads, which State does not see.
fn requests(job: &JobId) -> [(Action, Request); 8] {
    let id = || job.clone();
    let session = SessionId("another".into());
    let edit = Edit { priority: Some(7), ..Edit::default() };
    [
        (Action::Start, Request::Start(id())),
        (Action::Hold, Request::Hold(id())),
        (Action::Edit, Request::Edit { job: id(), edit }),
        (Action::Cancel, Request::Cancel(id())),
        (Action::Resume, Request::Resume { job: id(), prompt: "more".into() }),
        (Action::Retry, Request::Retry { job: id(), session }),
        (Action::Settle, Request::Settle { job: id(), kind: OutcomeKind::Failed }),
        (Action::Remove, Request::Remove { job: id() }),
    ]
}

/// The promise's table, a second time.
fn promised(phase: &str, action: Action) -> bool {
    promised_by_name(phase, action.name())
}

/// The same by the action's name.
pub(super) fn promised_by_name(phase: &str, action: &str) -> bool {
    let allowed: &[&str] = match phase {
        "held" => &["start", "edit", "upload", "cancel", "remove"],
        "queued" => &["edit", "hold", "cancel", "remove"],
        "waiting" => &["start", "edit", "hold", "cancel", "remove"],
        "preparing" | "running" => &["cancel", "resume"],
        "stopping" => &["cancel"],
        "unknown" => &["settle", "resume", "retry"],
        "ended" => &["resume", "retry", "remove", "upload"],
        other => panic!("{other} is no phase"),
    };
    allowed.contains(&action)
}

#[test]
fn every_request_is_granted_or_refused_in_every_phase_as_the_promise_says() {
    for (phase, rig, job) in jobs_in_every_phase() {
        assert_eq!(rig.phase(&job), phase);
        for (action, request) in requests(&job) {
            let mut state = rig.state.clone();
            match state.decide(request, "ann") {
                Ok((events, granted)) => {
                    assert!(promised(phase, action), "{phase} granted {}", action.name());
                    assert_eq!(granted, Granted::Job(job.clone()));
                    for event in &events {
                        let done = state.apply(rig.state.lsn().next(), rig.now, event);
                        done.expect("what is granted can happen");
                    }
                }
                Err(Refusal::NotAllowed { action: asked, phase: named, allowed }) => {
                    assert!(!promised(phase, action), "{phase} refused {}", action.name());
                    assert_eq!((asked, named), (action, phase));
                    assert!(allowed.iter().all(|name| *name != action.name()));
                    assert!(entries(&state) == entries(&rig.state));
                }
                Err(other) => panic!("{phase}, {}: {other}", action.name()),
            }
        }
    }
}

#[test]
fn nothing_is_offered_for_which_there_is_no_request_yet() {
    for (phase, rig, job) in jobs_in_every_phase() {
        let mut offered = rig.state.actions(rig.job(&job));
        assert!(offered.all(|action| action != Action::Upload), "{phase}");
    }
}

#[test]
fn what_has_not_begun_can_be_taken_back_and_nothing_else_can_be_asked_of_a_copy() {
    for (phase, rig, job) in jobs_in_every_phase() {
        let works = matches!(phase, "preparing" | "running" | "stopping");
        for (action, request) in requests(&job) {
            let wanted = matches!(action, Action::Hold | Action::Cancel | Action::Edit) && !works;
            let can = rig.state.is_about_what_has_not_begun(&request);
            assert_eq!(can, wanted, "{phase}, {}", action.name());
        }
    }
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let mut rig = Rig::with_repo(1);
    let nobody = rig.fresh_id();
    for (_, request) in requests(&nobody) {
        assert_eq!(rig.ask(request), Err(Refusal::UnknownJob(nobody.to_string())));
    }
    let unknown = |nearest| Refusal::UnknownRepo { name: "x".into(), nearest };
    assert_eq!(rig.ask(Request::RemoveRepo(repo("x"))), Err(unknown(None)));
    let mut submission = rig.submission();
    submission.task.repos = vec![repo("x")];
    assert_eq!(rig.ask(Request::Submit(submission.into())), Err(unknown(None)));
    assert_eq!(rig.ask(add_repo("r")), Err(Refusal::RepoExists("r".into())));
}

/// Every event that can be about a job, as it would be if it fitted the job's present work.
fn events(rig: &Rig, id: &JobId) -> Vec<(&'static str, Event)> {
    let job = || id.clone();
    let found = rig.job(id);
    let attempt = attempt_no(u32::try_from(found.attempts.len().max(1)).expect("few"));
    let own = Work::Attempt { job: job(), attempt };
    let work = found.phase.work(id).unwrap_or_else(|| own.clone());
    let next = attempt_no(u32::try_from(found.attempts.len()).expect("few") + 1);
    let outcome = || Box::new(told(OutcomeKind::Failed, "x"));
    let end = Rig::an_end();
    let until = Some(rig.now.after(core::time::Duration::from_secs(9)));
    let workspace =
        Workspace { made_by: "copy".into(), base_commit: None, branch: "outlive/x".into() };
    let waits = Event::JobWaits { job: job(), reason: WaitReason::BackOff, until };
    let operation = OperationId(900);
    let edited = Event::JobEdited { job: job(), task: Box::new(task()), prompt: None };
    let cause = RequeueCause::Interruption;
    let requeued = Event::JobRequeued { job: job(), cause, until, afresh: None };
    let launch = Event::LaunchPlanned { job: job(), attempt: next, turn: 1, resume: false };
    let stop = Event::StopRequested { job: job(), work: work.clone(), cause: StopCause::Survivors };
    let words = || "words".to_string();
    let (what, because, rule) = (words(), words(), words());
    let decided = Event::Decided { job: job(), what, because, rule };
    vec![
        ("released", Event::JobReleased { job: job() }),
        ("held", Event::JobHeld { job: job() }),
        ("waits", waits),
        ("edited", edited),
        ("copy", Event::CopyPlanned { job: job(), operation }),
        ("workspace", Event::WorkspaceReady { job: job(), workspace }),
        ("launch", launch),
        ("stop", stop),
        ("attempt-ended", Event::AttemptEnded { job: job(), attempt, end: Box::new(end) }),
        ("attempt-unknown", Event::AttemptUnknown { job: job(), attempt }),
        ("turn-done", Event::TurnDone { job: job() }),
        ("requeued", requeued),
        ("ended", Event::JobEnded { job: job(), outcome: outcome() }),
        ("turn-added", Event::TurnAdded { job: job(), prompt: "more".into() }),
        ("removed", Event::JobRemoved { job: job() }),
        ("forgotten", Event::JobForgotten { job: job() }),
        ("adopted", Event::Adopted { work: own.clone() }),
        ("caretaker", Event::CaretakerPlanned { work: own.clone(), empty_tree: true }),
        ("relaunch", Event::RelaunchPlanned { work: own }),
        ("decided", decided),
    ]
}

/// What may happen in each phase, as the picture of a job's life has it. In `running` no end of the attempt is known yet.
fn possible(phase: &str, stops_attempt: bool) -> &'static [&'static str] {
    match phase {
        "held" => &["released", "edited", "ended", "removed", "decided"],
        "queued" => &["held", "waits", "edited", "copy", "launch", "ended", "removed", "decided"],
        "waiting" => &["released", "held", "edited", "ended", "removed", "decided"],
        "preparing" => &["copy", "workspace", "launch", "stop", "ended", "turn-added", "decided"],
        "running" => {
            &["stop", "attempt-ended", "turn-added", "adopted", "caretaker", "relaunch", "decided"]
        }
        "stopping" if stops_attempt => {
            &["stop", "attempt-ended", "adopted", "caretaker", "decided"]
        }
        "stopping" => &["stop", "ended", "decided"],
        "unknown" => &["stop", "requeued", "ended", "turn-added", "caretaker", "decided"],
        "ended" => &["requeued", "turn-added", "removed", "decided"],
        other => panic!("{other} is no phase"),
    }
}

#[test]
fn every_event_happens_or_is_illegal_in_every_phase() {
    for (phase, rig, job) in jobs_in_every_phase() {
        let stops_attempt =
            matches!(rig.job(&job).phase, Phase::Stopping { work: Work::Attempt { .. }, .. });
        for (name, event) in events(&rig, &job) {
            let mut state = rig.state.clone();
            let done = state.apply(rig.state.lsn().next(), rig.now, &event);
            let wanted = possible(phase, stops_attempt).contains(&name);
            assert_eq!(done.is_ok(), wanted, "{phase} and {name}: {done:?}");
            if done.is_err() {
                // Proves I3: what cannot have happened changes nothing.
                assert!(super::model::same(&state, &rig.state), "{phase} and {name} left a trace");
            }
        }
    }
}

#[test]
fn after_the_end_of_its_attempt_a_job_goes_on_in_every_way_and_not_before() {
    let mut rig = Rig::with_repo(1);
    let job = rig.running();
    let events = events(&rig, &job);
    let find = |wanted: &str| {
        let found = events.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, event)| event.clone()).expect("it is in the list")
    };
    let mut ended = rig.state.clone();
    let lsn = ended.lsn().next();
    ended.apply(lsn, rig.now, &find("attempt-ended")).expect("it runs");
    for follows in ["attempt-unknown", "turn-done", "requeued", "ended"] {
        let mut before = rig.state.clone();
        before.apply(lsn, rig.now, &find(follows)).expect_err(follows);
        let mut after = ended.clone();
        after.apply(lsn, rig.now, &find(follows)).expect(follows);
    }
}

#[test]
fn an_event_about_another_attempt_is_illegal() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::Rebooted);
    rig.pass(core::time::Duration::from_secs(2));
    assert_eq!(rig.job(&id).attempts.len(), 2);
    let job = || id.clone();
    let attempt = attempt_no(1);
    let work = || Work::Attempt { job: job(), attempt };
    let end = Box::new(Rig::an_end());
    for event in [
        Event::AttemptEnded { job: job(), attempt, end },
        Event::AttemptUnknown { job: job(), attempt },
        Event::StopRequested { job: job(), work: work(), cause: StopCause::Cancel },
        Event::Adopted { work: work() },
        Event::CaretakerPlanned { work: work(), empty_tree: true },
        Event::RelaunchPlanned { work: work() },
    ] {
        let mut state = rig.state.clone();
        // Proves I7: no way leads back to an attempt that is over.
        state.apply(state.lsn().next(), rig.now, &event).expect_err("another attempt");
        assert!(super::model::same(&state, &rig.state));
    }
}

#[test]
fn events_of_repos_and_operations_that_do_not_fit_are_illegal_and_change_nothing() {
    let mut rig = Rig::with_repo(1);
    let held = rig.submit_with(|s| s.held = true);
    rig.add_repo("cloning");
    let Work::Operation { id: there } = rig.clone_of("cloning") else { panic!("an operation") };
    let (name, source) = (repo("r"), "/s".to_string());
    let operation = OperationId(900);
    let added = Event::RepoAdded { name: repo("r"), owner: "o".into(), source, branch: None };
    let kind = OperationKind::Clone { repo: repo("cloning") };
    let submission = rig.submission();
    let again = Event::JobAccepted(Box::new(Accepted {
        job: held,
        owner: "ann".into(),
        task: task(),
        prompt: "p".into(),
        session: submission.session,
        held: false,
        start_after: None,
        idempotency: None,
    }));
    let work = || Work::Operation { id: operation };
    for event in [
        added,
        Event::RepoReady { name: name.clone() },
        Event::RepoFailed { name, reason: "x".into() },
        Event::RepoReady { name: repo("nobody") },
        Event::RepoRemoved { name: repo("nobody") },
        Event::RepoForgotten { name: repo("r") },
        Event::OperationPlanned { id: there, kind, tries: 1 },
        Event::OperationEnded { id: operation },
        Event::JobRemoved { job: JobId::from_random(77) },
        Event::Adopted { work: work() },
        Event::CaretakerPlanned { work: work(), empty_tree: false },
        Event::RelaunchPlanned { work: work() },
        again,
    ] {
        let mut state = rig.state.clone();
        let illegal = state.apply(state.lsn().next(), rig.now, &event);
        illegal.expect_err("it does not fit");
        assert!(super::model::same(&state, &rig.state), "{event:?} left a trace");
    }
}

impl Rig {
    /// An attempt's end as it may be.
    fn an_end() -> crate::job::AttemptEnd {
        let mut rig = Rig::with_repo(1);
        let job = rig.running();
        rig.see_job(&job, &Look::Exited(1));
        let end = rig.job(&job).attempts.first().and_then(|attempt| attempt.end.clone());
        end.expect("it is over")
    }
}
