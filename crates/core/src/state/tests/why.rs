//! `why`: the whole story of a job, by its records alone.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::time::Duration;

use super::{Look, Rig, model, replayed};
use crate::event::Event;
use crate::ids::{JobId, Lsn};
use crate::job::OutcomeKind;
use crate::limits;
use crate::request::Request;

/// What was decided, a line each.
fn story(rig: &Rig, id: &JobId) -> Vec<String> {
    let line = |d: &crate::job::Decision| {
        let because = if d.because.is_empty() { "" } else { ": " };
        format!("{}{because}{}", d.what, d.because)
    };
    rig.job(id).decisions.iter().map(line).collect()
}

fn start_of_server(rig: &mut Rig, number: u64) {
    let (version, boot_id) = ("1".to_string(), "b".to_string());
    rig.write(&[Event::ServerStarted { number, version, boot_id }]);
}

#[test]
fn a_job_tells_its_story_from_slot_to_end() {
    let mut rig = Rig::with_repo(1);
    start_of_server(&mut rig, 1);
    let id = rig.running();
    start_of_server(&mut rig, 7);
    rig.see_job(&id, &Look::Alive);
    rig.granted(Request::Cancel(id.clone()));
    rig.see_job(&id, &Look::Stopped(crate::spec::StopCause::Cancel));
    let session = &rig.job(&id).sessions[0].id;
    let processes = "agent pid 7 started 1970-01-01T00:00:00.001Z by supervisor pid 7";
    assert_eq!(
        story(&rig, &id),
        [
            "workspace being made: by operation 2; queued for 0.0 s".to_string(),
            format!("workspace made: by reflink from abc, on branch outlive/{id}"),
            format!("attempt 1 launched: turn 1; opens session {session}"),
            format!("attempt 1: adopted: keeper.lock is held by pid 7, same boot; {processes}"),
            "cancel asked for by ann".to_string(),
            "stop requested: it is cancelled".to_string(),
            format!("attempt 1: concluded: outcome recorded: ended by signal 15; {processes}"),
            "ended: cancelled: cancelled: killed by signal 15 (SIGTERM)".to_string(),
        ]
    );
    let decisions = &rig.job(&id).decisions;
    let starts: Vec<u64> = decisions.iter().map(|d| d.start).collect();
    assert_eq!(starts, [1, 1, 1, 7, 7, 7, 7, 7]);
    assert_eq!(decisions[3].rule, "row 2 of docs/recovery.md");
    assert!(decisions.windows(2).all(|pair| pair[0].lsn <= pair[1].lsn && pair[0].lsn > Lsn::NONE));
    // From the records alone.
    let replay = replayed(&rig.records).expect("it was lived");
    assert_eq!(replay.job(&id).map(|job| &job.decisions), Some(decisions));
    model::check_history(&rig);
}

#[test]
fn who_asked_for_what_is_told() {
    let mut rig = Rig::with_repo(1);
    let id = rig.submit_with(|s| s.held = true);
    rig.granted(Request::Start(id.clone()));
    rig.see_job(&id, &Look::Exited(0));
    rig.see_job(&id, &Look::Lost);
    rig.granted(Request::Settle { job: id.clone(), kind: OutcomeKind::Failed });
    rig.granted(Request::Resume { job: id.clone(), prompt: "more".into() });
    let story = story(&rig, &id).join("\n");
    for line in [
        "start asked for by ann\nqueued",
        "attempt 1: unknown: its agent is gone, and nothing tells how it ended",
        "settled by ann\nended: failed: settled by a person",
        "turn 2 asked for by ann\nqueued again: a person asked for it",
    ] {
        assert!(story.contains(line), "{story}");
    }
}

#[test]
fn the_same_decision_many_times_in_a_row_is_one_line_with_a_count() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    let before = rig.job(&id).decisions.len();
    for _ in 0..50 {
        rig.see_job(&id, &Look::Nothing);
        rig.pass(Duration::from_secs(30));
    }
    let decisions = &rig.job(&id).decisions;
    assert_eq!((decisions.len(), decisions[before].times), (before + 1, 50));
    assert!(decisions[before].what.contains("launched again"), "{}", decisions[before].what);
}

#[test]
fn long_words_are_cut_and_say_so() {
    let mut rig = Rig::with_repo(0);
    let id = rig.submit();
    for (words, wanted) in [
        ("x".repeat(limits::DECISION_BYTES_MAX), "x".repeat(limits::DECISION_BYTES_MAX)),
        ("é".repeat(limits::DECISION_BYTES_MAX), "é".repeat(limits::DECISION_BYTES_MAX / 2) + "…"),
    ] {
        let (job, what, rule) = (id.clone(), "told".to_string(), String::new());
        rig.write(&[Event::Decided { job, what, because: words, rule }]);
        assert_eq!(rig.job(&id).decisions.last().map(|it| &it.because), Some(&wanted));
    }
}

#[test]
fn who_waited_is_told_for_what_and_what_ended_it() {
    let mut rig = Rig::new(0);
    rig.add_repo("r");
    let for_repo = rig.submit();
    let hour = Duration::from_hours(1);
    let begin = rig.now.after(hour);
    rig.end_clone("r", &Look::Exited(0));
    let later = |rig: &mut Rig| rig.submit_with(|s| s.start_after = Some(begin));
    let (for_time, let_go) = (later(&mut rig), later(&mut rig));
    rig.granted(Request::Start(let_go.clone()));
    rig.pass(hour);
    assert_eq!(
        story(&rig, &for_repo),
        ["waits: repo r is being cloned", "queued: repo r can be used"]
    );
    assert_eq!(story(&rig, &for_time), ["queued: the time it waited for has come"]);
    assert_eq!(story(&rig, &let_go), ["start asked for by ann", "queued"]);
}

#[test]
fn interruptions_and_limits_are_told_with_their_rule_and_until_when_it_waits() {
    let mut rig = Rig::with_repo(1);
    let id = rig.running();
    rig.see_job(&id, &Look::Rebooted);
    let last = rig.job(&id).decisions.last().expect("told").clone();
    assert_eq!(last.what, "waits");
    assert!(last.because.starts_with("it was cut off until 1970-01-01T00:"), "{}", last.because);
    assert_eq!(last.rule, "try 1 of 3 after interruptions");
    rig.pass(Duration::from_secs(1));
    rig.see_job(&id, &Look::Limited(crate::engine::Limit::Overload));
    let last = rig.job(&id).decisions.last().expect("told");
    assert!(last.because.starts_with("its agent met an overloaded model until "));
    assert_eq!(last.rule, "on_limit = wait");
}
