//! The supervisor is killed, the agent is not; a caretaker tells the true end.

use std::fs;

use outlive_core::evidence::{Lock, Seen};
use outlive_core::spec::{Capture, Ending, Reading, StopCause};
use outlive_supervisor::exit;
use rustix::process::{Signal, pidfd_send_signal};

use crate::fixture::{
    Keep, User, bury, exited, go, keeps_exit_status, open, open_ref, users, wait_gone,
};
use crate::outputs::seq;

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_caretaker_records_the_true_exit_code_and_signal", true_end),
    ("an_agent_buried_before_its_caretaker_looks_still_tells_its_end", buried_before_asked),
    ("no_byte_is_lost_when_the_supervisor_is_killed_again_and_again", no_byte_lost),
    ("an_agent_with_pipes_waits_without_a_pump_and_is_never_refused_a_write", no_epipe),
    ("output_that_only_the_server_still_holds_is_not_lost", held_by_server),
    ("an_end_that_the_supervisor_did_not_come_to_record_is_told_all_the_same", end_unrecorded),
    ("a_caretaker_holds_the_deadline_that_passed_without_anybody", caretaker_deadline),
    ("a_caretaker_obeys_a_stop_that_nobody_was_there_to_hear", caretaker_stop),
    ("an_agent_that_ended_unseen_leaves_its_survivors_alone_until_a_stop", ended_unseen),
    ("what_is_left_alone_is_not_left_frozen", left_alone_thawed),
    ("a_caretaker_leaves_what_belongs_to_another_boot_or_nobody", not_here),
];

fn true_end() {
    for &user in users() {
        for (script, ending) in [
            ("echo ready; read x < go; exit 42", exited(42)),
            ("echo ready; read x < go; exit 0", exited(0)),
            ("ulimit -c 0; echo ready; read x < go; kill -ABRT $$", Ending::Signaled(6)),
        ] {
            let keep = Keep::script(user, script);
            let gate = keep.gate();
            let keeper = keep.start();
            keep.wait_for_output("ready");
            keeper.kill();
            assert_eq!(keep.probe().agent, Seen::Alive);
            let caretaker = keep.caretake();
            keep.wait_until("the caretaker beats", |keep| keep.beaten_by(&caretaker));
            assert!(matches!(keep.probe().lock, Lock::Held(Some(it)) if it.pid == caretaker.pid()));
            go(&gate);
            assert_eq!(caretaker.wait().code(), Some(0), "{}", keep.read("keeper.err"));
            assert_eq!(keep.recorded().0.ending, ending);
        }
    }
}

fn buried_before_asked() {
    for &user in users() {
        let keep = Keep::script(user, "echo ready; read x < go; exit 43");
        let gate = keep.gate();
        let keeper = keep.start();
        keep.wait_for_output("ready");
        keeper.kill();
        let caretaker = keep.caretake();
        keep.wait_until("the caretaker beats", |keep| keep.beaten_by(&caretaker));
        // It holds the agent's pidfd and nothing else: when it looks, nobody has that pid any more.
        caretaker.signal(Signal::STOP);
        go(&gate);
        bury(&keep.started().agent);
        caretaker.signal(Signal::CONT);
        let code = caretaker.wait().code();
        if keeps_exit_status() {
            assert_eq!((code, keep.recorded().0.ending), (Some(0), exited(43)));
        } else {
            assert_eq!(code, Some(i32::from(exit::UNPROVEN)));
        }
    }
}

fn no_byte_lost() {
    for &user in users() {
        for capture in [Capture::File, Capture::Pipe] {
            // It goes on to the next part only when told to: so it cannot have ended before the last kill.
            let script =
                "i=0; while [ $i -lt 8 ]; do seq 1 200000; read x < go; i=$((i+1)); done; exit 11";
            let mut keep = Keep::script(user, script);
            keep.spec.capture = capture;
            let gate = keep.gate();
            let part = seq(200_000);
            let length = |keep: &Keep| fs::metadata(keep.path("out")).map_or(0, |it| it.len());
            let mut keeper = keep.start();
            for parts in 0..8_u64 {
                let middle = parts * part.len() as u64 + 600_000;
                keep.wait_until("more output", |keep| length(keep) >= middle);
                keeper.kill();
                keeper = keep.caretake();
                go(&gate);
            }
            assert_eq!(keeper.wait().code(), Some(0), "{}", keep.read("keeper.err"));
            let out = keep.read("out");
            assert!(out == part.repeat(8), "{user:?} {capture:?}");
            let (outcome, empty) = keep.recorded();
            assert_eq!(outcome.ending, exited(11));
            assert_eq!(
                (outcome.output_to[0], empty.output_to[0]),
                (out.len() as u64, out.len() as u64)
            );
        }
    }
}

fn no_epipe() {
    let script = "echo ready; read x < go; seq 1 100000; echo status $? > status";
    let mut keep = Keep::script(User::Same, script);
    keep.spec.capture = Capture::Pipe;
    let gate = keep.gate();
    let keeper = keep.start();
    keep.wait_for_output("ready");
    keeper.kill();
    go(&gate);
    // More than a pipe holds: it waits for a pump, and there is none. Its state cannot be awaited, only its not ending.
    let agent = open_ref(&keep.started().agent);
    assert!(!crate::fixture::ended(&agent, std::time::Duration::from_millis(300)));
    assert_eq!(keep.caretake().wait().code(), Some(0));
    assert_eq!(keep.read("status"), "status 0\n");
    assert!(keep.read("out") == format!("ready\n{}", seq(100_000)));
}

fn held_by_server() {
    let mut keep =
        Keep::script(User::Same, "echo ready; read x < go; seq 1 5000; seq 1 9 >&2; exit 5");
    keep.spec.capture = Capture::Pipe;
    let gate = keep.gate();
    let keeper = keep.start();
    keep.wait_for_output("ready");
    keep.restart_server();
    keeper.signal(Signal::STOP);
    go(&gate);
    wait_gone(open_ref(&keep.started().agent), "the agent");
    keeper.kill();
    assert_eq!(keep.read("out"), "ready\n");
    assert_eq!(keep.caretake().wait().code(), Some(0));
    assert!(keep.read("out") == format!("ready\n{}", seq(5000)) && keep.read("err") == seq(9));
    assert_eq!(keep.recorded().0.ending, exited(5));
}

fn end_unrecorded() {
    // Proves I5: a supervisor may die in any moment between its agent's end and the record of it.
    for &user in users() {
        for restarted in [false, true] {
            let mut keep = Keep::script(user, "echo ready; read x < go; exit 44");
            keep.serve();
            let gate = keep.gate();
            let keeper = keep.start();
            keep.wait_for_output("ready");
            if restarted {
                keep.restart_server();
            }
            keeper.signal(Signal::STOP);
            go(&gate);
            let agent = keep.started().agent;
            wait_gone(open_ref(&agent), "the agent");
            keeper.kill();
            // Nobody has that pid any more.
            bury(&agent);
            assert_eq!(keep.probe().agent, Seen::Gone);
            assert!(keep.can_tell(), "{user:?} {restarted}");
            let code = keep.caretake().wait().code();
            if keeps_exit_status() {
                assert_eq!((code, keep.recorded().0.ending), (Some(0), exited(44)));
                assert!(!keep.can_tell(), "all is told");
            } else {
                assert_eq!(code, Some(i32::from(exit::UNPROVEN)));
            }
        }
    }
}

fn caretaker_deadline() {
    let mut keep =
        Keep::script(User::Same, "trap '' TERM; echo ready; while :; do sleep 1000; done");
    keep.spec.timeout_ms = Some(300);
    keep.spec.grace_ms = 100;
    let keeper = keep.start();
    keep.wait_for_output("ready");
    keeper.kill();
    assert_eq!(keep.caretake().wait().code(), Some(0));
    let (outcome, _) = keep.recorded();
    assert_eq!((outcome.ending, outcome.stop), (Ending::Signaled(9), Some(StopCause::Timeout)));
    assert!(keep.marked().is_empty());
}

fn caretaker_stop() {
    for &user in users() {
        let script = format!("{} echo ready; exec sleep 1000", marked_stubborn());
        let keep = Keep::script(user, &script);
        let keeper = keep.start();
        keep.wait_for_output("ready");
        keeper.kill();
        keep.stop(StopCause::Cancel, 100);
        assert!(!outlive_supervisor::wake(&keep.dir).expect("asked"), "nobody keeps it");
        assert_eq!(keep.caretake().wait().code(), Some(0), "{}", keep.read("keeper.err"));
        let (outcome, _) = keep.recorded();
        assert_eq!((outcome.ending, outcome.stop), (Ending::Signaled(15), Some(StopCause::Cancel)));
        assert!(keep.marked().is_empty());
    }
}

/// Stubborn tools that carry the mark: what is left to find them by when their supervisor died and there is no cgroup.
fn marked_stubborn() -> String {
    crate::stopping::STUBBORN.replace("env -i PATH=$PATH setsid", "setsid")
}

fn ended_unseen() {
    for &user in users() {
        let script = format!("{} echo ready; read x < go; exit 0", marked_stubborn());
        let keep = Keep::script(user, &script);
        let gate = keep.gate();
        let keeper = keep.start();
        keep.wait_for_output("ready");
        let pids: Vec<u32> =
            keep.read("pids").lines().map(|pid| pid.parse().expect("pid")).collect();
        keeper.kill();
        go(&gate);
        bury(&keep.started().agent);
        let evidence = keep.probe();
        assert_eq!((evidence.agent, evidence.outcome), (Seen::Gone, Reading::Absent));
        assert!(evidence.survivors >= 3, "{}", evidence.survivors);
        assert_eq!(keep.caretake().wait().code(), Some(i32::from(exit::UNPROVEN)));
        let tools: Vec<_> = pids.iter().map(|pid| open(*pid).expect("left alone")).collect();
        assert_eq!(keep.probe().tree_empty, Reading::Absent);
        keep.stop(StopCause::Cancel, 50);
        assert_eq!(keep.caretake().wait().code(), Some(0), "{}", keep.read("keeper.err"));
        for tool in tools {
            assert!(crate::fixture::ended(&tool, std::time::Duration::ZERO));
        }
        let evidence = keep.probe();
        assert_eq!((evidence.outcome, evidence.survivors), (Reading::Absent, 0));
        assert!(evidence.tree_empty.valid().expect("recorded").killed >= 3);
    }
}

fn left_alone_thawed() {
    let keep = Keep::script(User::Same, "setsid sh -c 'read x < go; echo >> out tool' & wait");
    let gate = keep.gate();
    let keeper = keep.start();
    keep.wait_beats(1);
    let freezers = crate::stopping::freezers(&keep);
    if freezers.is_empty() {
        println!("NOT COVERED: nothing to freeze with");
    }
    keeper.kill();
    let agent = keep.started().agent;
    pidfd_send_signal(open_ref(&agent), Signal::KILL).expect("signalled");
    bury(&agent);
    for (file, frozen, _) in &freezers {
        fs::write(file, frozen).expect("frozen");
    }
    assert_eq!(keep.caretake().wait().code(), Some(i32::from(exit::UNPROVEN)));
    go(&gate);
    // Frozen it could not.
    keep.wait_for_output("tool");
    keep.stop(StopCause::Cancel, 0);
    assert_eq!(keep.caretake().wait().code(), Some(0), "{}", keep.read("keeper.err"));
}

fn not_here() {
    let keep = Keep::script(User::Same, "echo ready; read x < go; exit 0");
    let gate = keep.gate();
    keep.write_spec();
    assert_eq!(keep.caretake().wait().code(), Some(i32::from(exit::NOT_HERE)), "nothing started");
    let keeper = keep.start();
    keep.wait_for_output("ready");
    keeper.kill();
    let mut started = keep.started();
    let agent = open_ref(&started.agent);
    "another".clone_into(&mut started.agent.boot_id);
    fs::write(keep.path("started"), serde_json::to_vec(&started).expect("json")).expect("written");
    assert_eq!(keep.probe().agent, Seen::OtherBoot);
    assert_eq!(keep.caretake().wait().code(), Some(i32::from(exit::NOT_HERE)));
    assert_eq!(keep.probe().outcome, Reading::Absent);
    go(&gate);
    wait_gone(agent, "the agent");
}
