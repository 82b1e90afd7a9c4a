//! Ending an agent ends all it started, whoever died in between.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use serde_json::{Value, json};

use crate::case::kill_all;
use crate::rig::{Rig, signal, wait_gone};

/// Tools in a session of their own, double-forked, deaf to TERM; and the agent no better. Says "ready" when all of them run.
pub(crate) fn stubborn(rig: &Rig) -> String {
    let tool = "trap \"\" TERM; while :; do sleep 600; done";
    let ready = rig.path("ready");
    if !ready.exists() {
        rig.make_gate("ready");
    }
    let ready = ready.display();
    format!(
        "trap '' TERM; setsid sh -c '{tool}' & (setsid sh -c '({tool}) & ({tool}) & exit' &); \
         echo ready > {ready}; while :; do sleep 600; done"
    )
}

/// Submits the stubborn job and waits until all of it runs.
pub(crate) fn submit_stubborn(rig: &Rig, more: &Value) -> String {
    let mut body = crate::rig::script_job(&stubborn(rig));
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let id = rig.submit(&body);
    assert_eq!(fs::read(rig.path("ready")).expect("it says so"), b"ready\n");
    id
}

fn cancel(rig: &Rig, id: &str) {
    rig.client().post(&format!("/api/jobs/{id}/cancel"), &json!({})).expect("accepted");
}

fn check_ended(rig: &Rig, id: &str, kind: &str) {
    let job = rig.wait_ended(id);
    assert_eq!(job["outcome"]["kind"], kind, "{job:#}\n{}", rig.why(id));
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(rig.marked(), Vec::<u32>::new(), "{}", rig.why(id));
}

fn started() -> Rig {
    let mut rig = Rig::new();
    rig.set("OUTLIVE_GRACE_S", "0");
    rig.start();
    rig.repo();
    rig
}

#[test]
fn a_cancel_ends_tools_in_sessions_of_their_own() {
    let rig = started();
    let id = submit_stubborn(&rig, &json!({}));
    cancel(&rig, &id);
    check_ended(&rig, &id, "cancelled");
}

#[test]
fn a_timeout_ends_tools_in_sessions_of_their_own() {
    let rig = started();
    let id = submit_stubborn(&rig, &json!({ "timeout_s": 1 }));
    check_ended(&rig, &id, "timed_out");
}

#[test]
fn a_timeout_holds_while_no_server_lives() {
    // Proves I5.
    let mut rig = started();
    let id = submit_stubborn(&rig, &json!({ "timeout_s": 1 }));
    let (_, keeper) = rig.pids(&id, 1);
    rig.kill();
    wait_gone(keeper);
    assert_eq!(rig.marked(), Vec::<u32>::new());
    rig.start();
    check_ended(&rig, &id, "timed_out");
}

#[test]
fn a_timeout_holds_for_an_agent_whose_supervisor_was_killed() {
    // Proves I5: the caretaker has the deadline from `started`.
    let mut rig = started();
    let id = submit_stubborn(&rig, &json!({ "timeout_s": 2 }));
    let (_, keeper) = rig.pids(&id, 1);
    kill_all(&[rig.pid(), keeper]);
    rig.kill();
    rig.start();
    check_ended(&rig, &id, "timed_out");
}

#[test]
fn a_cancel_accepted_before_a_crash_is_a_cancel_after_it() {
    // Proves I1 and I3: the server dies with the answer given and nothing passed on.
    let mut rig = started();
    rig.kill();
    rig.set("OUTLIVE_CRASH", "fleet.before_stop");
    rig.start();
    let id = submit_stubborn(&rig, &json!({}));
    // The answer may or may not get out; what was written down counts.
    drop(rig.client().post(&format!("/api/jobs/{id}/cancel"), &json!({})));
    rig.wait_dead();
    assert!(!rig.marked().is_empty(), "nobody has told the agent");
    rig.unset("OUTLIVE_CRASH");
    rig.start();
    check_ended(&rig, &id, "cancelled");
}

#[test]
fn a_cancel_is_carried_out_though_server_and_supervisor_die_of_it() {
    let mut rig = started();
    rig.kill();
    rig.set("OUTLIVE_CRASH", "fleet.before_stop");
    rig.start();
    let id = submit_stubborn(&rig, &json!({}));
    let (_, keeper) = rig.pids(&id, 1);
    drop(rig.client().post(&format!("/api/jobs/{id}/cancel"), &json!({})));
    rig.wait_dead();
    signal(keeper, "-KILL");
    wait_gone(keeper);
    rig.unset("OUTLIVE_CRASH");
    rig.start();
    check_ended(&rig, &id, "cancelled");
}

#[test]
fn a_server_killed_right_after_it_accepted_a_cancel_has_accepted_it() {
    // Proves I1.
    let mut rig = started();
    let id = submit_stubborn(&rig, &json!({}));
    cancel(&rig, &id);
    rig.kill();
    rig.start();
    check_ended(&rig, &id, "cancelled");
}

#[test]
fn a_supervisor_that_hangs_past_the_deadline_is_replaced() {
    let mut rig = Rig::new();
    rig.set("OUTLIVE_GRACE_S", "0");
    rig.set("OUTLIVE_HUNG_MARGIN_S", "1");
    rig.start();
    rig.repo();
    let id = submit_stubborn(&rig, &json!({ "timeout_s": 2 }));
    let (_, keeper) = rig.pids(&id, 1);
    signal(keeper, "-STOP");
    check_ended(&rig, &id, "timed_out");
    assert_eq!(rig.job(&id)["attempts"][0]["caretakers"], 1, "{}", rig.why(&id));
}

#[test]
fn what_an_agent_leaves_running_is_ended_with_it() {
    leaves_something_running(&started());
}

// Proves I11: an end that is recorded is not the end of the tree, whoever was to see to that.
#[test]
fn what_an_agent_leaves_running_is_ended_though_its_supervisor_dies_in_between() {
    let mut rig = started();
    rig.kill();
    rig.set("OUTLIVE_CRASH", "supervisor.outcome_synced");
    rig.set("OUTLIVE_CRASH_IN", "/attempts/");
    let once = rig.path("died").display().to_string();
    rig.set("OUTLIVE_CRASH_ONCE", once);
    rig.start();
    leaves_something_running(&rig);
    assert!(rig.path("died.supervisor.outcome_synced").exists(), "it must really have died");
}

fn leaves_something_running(rig: &Rig) {
    let starts = rig.make_gate("left");
    let script = format!(
        "setsid sh -c 'trap \"\" TERM; echo left > {}; sleep 600' & read x < {}; exit 3",
        starts.display(),
        rig.make_gate("gate").display()
    );
    let id = rig.submit_script(&script);
    let mut said = String::new();
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(0)
        .open(starts)
        .and_then(|mut f| f.read_to_string(&mut said))
        .expect("it says so");
    rig.open_gate("gate");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["exit_code"], 3, "{job:#}");
    assert_eq!(rig.marked(), Vec::<u32>::new());
}
