//! Killed at every named point, healed by what recovery would do: never started twice, ended exactly once, told the truth.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;

use outlive_core::evidence::{Lock, Seen};
use outlive_core::spec::{Capture, Ending, Reading, StopCause};
use outlive_supervisor::{CRASH_POINTS, Here, exit, open_process};

use crate::fixture::{Keep, User, exited, go, keeps_exit_status, users, wait_gone};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("killed_at_any_point_the_agent_starts_once_and_its_end_is_true", supervisor_sweep),
    ("a_caretaker_killed_at_any_point_is_followed_by_another", caretaker_sweep),
    ("a_child_killed_behind_its_gate_is_an_agent_that_was_killed", child_killed),
];

/// From the first of these on the agent is gone, and its end stands nowhere yet: whoever dies here takes it along, unless a server
/// holds the agent's pidfd and the kernel has kept the end with it.
const LAST_WITNESS: &[&str] = &["supervisor.agent_ended", "supervisor.output_synced"];

/// Whether an end may be unknown that was lost at this point.
fn may_be_lost(keep: &Keep, point: &str) -> bool {
    let stands_nowhere = LAST_WITNESS.contains(&point) || point == "supervisor.kill_sent";
    stands_nowhere && !(keep.is_served() && keeps_exit_status())
}

/// Points that are passed only when a tree is being stopped.
const STOPPING: &[&str] = &["supervisor.term_sent", "supervisor.kill_sent"];

/// Points that are passed only after a launch that never ran.
const VOIDING: &[&str] = &["supervisor.voiding", "supervisor.voided"];

fn is_before(point: &str, other: &str) -> bool {
    let place = |name| CRASH_POINTS.iter().position(|it| *it == name).expect("a known point");
    place(point) < place(other)
}

fn keep(user: User, capture: Capture, point: &str, served: bool) -> (Keep, File) {
    let deaf = if STOPPING.contains(&point) { "trap '' TERM;" } else { "" };
    let script = format!("{deaf} echo start >> starts; echo ready; read x < go; echo end; exit 7");
    let mut keep = Keep::script(user, &script);
    keep.spec.capture = capture;
    keep.spec.grace_ms = 50;
    if served {
        keep.serve();
    }
    let gate = keep.gate();
    (keep, gate)
}

fn supervisor_sweep() {
    // Proves I7 and I5.
    for &user in users() {
        for capture in [Capture::File, Capture::Pipe] {
            for point in CRASH_POINTS.iter().filter(|point| !point.contains(".child.")) {
                supervisor_dies(user, capture, point, false);
                // Pipes made by a server that is another user could not be opened: there is no such server.
                if (user, capture) != (User::Nobody, Capture::Pipe) {
                    supervisor_dies(user, capture, point, true);
                }
            }
        }
    }
}

fn supervisor_dies(user: User, capture: Capture, point: &'static str, served: bool) {
    let (keep, gate) = keep(user, capture, point, served);
    if VOIDING.contains(&point) {
        let died = keep.start_crashing(&[], "supervisor.started_synced").wait();
        assert_eq!(died.signal(), Some(9));
        wait_for_agent(&keep);
    }
    // The first pass over slots is their creation; points in recording an end are meant later.
    let pass = if point == "supervisor.slot_written" { ":2" } else { "" };
    if !is_before(point, "supervisor.agent_ended") {
        go(&gate);
    }
    let keeper = keep.start_crashing(&[], &format!("{point}{pass}"));
    if STOPPING.contains(&point) {
        keep.wait_for_output("ready");
        keep.stop_now(50);
    }
    let died = keeper.wait();
    assert_eq!(
        died.signal(),
        Some(9),
        "{point}: it must really have died; {}",
        keep.read("keeper.err")
    );
    bury_with(point);
    let evidence = keep.probe();
    if evidence.started == Reading::Absent && !VOIDING.contains(&point) {
        crate::fixture::bury_orphans();
        assert_eq!(keep.probe().outcome, Reading::Absent, "{point}: an unnamed child spoke");
    }
    let ended = heal(&keep, &gate, point);
    judge(&keep, point, ended);
}

/// What recovery does, by the evidence alone; how the agent ended, if that can be proved.
fn heal(keep: &Keep, gate: &File, point: &str) -> Option<Ending> {
    for _ in 0..16 {
        let evidence = keep.probe();
        assert!(
            !matches!(evidence.started, Reading::Damaged(_)),
            "{point}: {:?}",
            evidence.started
        );
        let done = evidence.tree_empty.valid().is_some();
        let stop = outlive_supervisor::read_stop(&keep.dir).valid().is_some();
        match evidence.outcome {
            Reading::Valid(outcome) if outcome.ending == Ending::NeverRan && !stop => {
                wait_for_agent(keep);
                go(gate);
                keep.start().wait();
            }
            Reading::Valid(outcome) if done => return Some(outcome.ending),
            Reading::Valid(_) => {
                keep.caretake().wait();
            }
            Reading::Damaged(why) => panic!("{point}: {why}"),
            Reading::Absent => match (evidence.started, evidence.agent) {
                (Reading::Absent, _) => {
                    go(gate);
                    keep.start().wait();
                }
                (_, Seen::Alive) => {
                    // Only when somebody empties its pipes may it end: what is in them is lost with their last holder.
                    let caretaker = keep.caretake();
                    keep.wait_until("a caretaker beats", |keep| keep.beaten_by(&caretaker));
                    go(gate);
                    caretaker.wait();
                }
                _ => {
                    let code = keep.caretake().wait().code();
                    if code == Some(i32::from(exit::UNPROVEN)) {
                        return None;
                    }
                }
            },
        }
        assert_eq!(keep.probe().lock, Lock::Free, "{point}: a lock outlives its holder");
    }
    panic!("{point}: not healed: {:?}; {}", keep.probe(), keep.read("keeper.err"));
}

fn judge(keep: &Keep, point: &str, ended: Option<Ending>) {
    assert_eq!(keep.read("starts"), "start\n", "{point}: started once, and only once");
    let stopped = STOPPING.contains(&point);
    match ended {
        Some(ending) if stopped => {
            assert!(matches!(ending, Ending::Signaled(9) | Ending::Exited(7)));
        }
        Some(ending) => assert_eq!(ending, exited(7), "{point}"),
        None => assert!(may_be_lost(keep, point), "{point}"),
    }
    let (out, whole) = (keep.read("out"), "ready\nend\n");
    match keep.spec.capture {
        // What is in a pipe is gone when the agent has ended and whoever empties it dies before it has, unless a server holds it.
        Capture::Pipe if point == "supervisor.agent_ended" && !keep.is_served() => {
            assert!(whole.starts_with(&out));
        }
        _ if stopped => assert!(whole.starts_with(&out)),
        _ => assert_eq!(out, whole, "{point}"),
    }
    assert!(keep.marked().is_empty(), "{point}");
}

fn caretaker_sweep() {
    let points = CRASH_POINTS
        .iter()
        .filter(|point| !is_before(point, "supervisor.beat") || **point == "supervisor.locked");
    for (point, served) in points.flat_map(|point| [(point, false), (point, true)]) {
        let (keep, gate) = keep(User::Same, Capture::Pipe, point, served);
        let keeper = keep.start();
        keep.wait_for_output("ready");
        keeper.kill();
        if STOPPING.contains(point) {
            keep.stop(StopCause::Cancel, 50);
        }
        let caretaker = keep.start_crashing(&["--caretake"], point);
        if !STOPPING.contains(point) && is_before("supervisor.beat", point) {
            keep.wait_until("the caretaker beats", |keep| keep.beaten_by(&caretaker));
            go(&gate);
        }
        let died = caretaker.wait();
        assert_eq!(died.signal(), Some(9), "{point}: {}", keep.read("keeper.err"));
        bury_with(point);
        let ended = heal(&keep, &gate, point);
        judge(&keep, point, ended);
    }
}

/// The last who saw the end is gone, and so is the agent: as a zombie it could still tell everybody.
fn bury_with(point: &str) {
    if LAST_WITNESS.contains(&point) {
        crate::fixture::bury_orphans();
    }
}

fn child_killed() {
    for point in ["supervisor.child.waiting", "supervisor.child.let_go"] {
        let (keep, _gate) = keep(User::Same, Capture::File, point, false);
        let keeper = keep.start_crashing(&[], point);
        assert_eq!(keeper.wait().code(), Some(0));
        assert_eq!(keep.recorded().0.ending, Ending::Signaled(9));
        assert_eq!(keep.read("starts"), "", "it did not become the agent");
    }
}

fn wait_for_agent(keep: &Keep) {
    let started = outlive_supervisor::read_started(&keep.dir);
    let Some(started) = started.valid() else { return };
    if let Some(agent) = open_process(&started.agent, &Here::observe().expect("here")) {
        wait_gone(agent, "the child behind the gate");
    }
}
