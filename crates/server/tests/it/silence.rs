//! Supervisors and agents that are silent: noticed, shown, and stopped only where somebody asked for it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::rig::{Rig, code, script_job, signal, wait_gone};

/// A job at a gate, whose supervisor is stopped: nobody writes heartbeats but the test.
fn held_still() -> (Rig, String) {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let gate = rig.make_gate("gate").display().to_string();
    let ready = rig.make_gate("ready");
    let script =
        format!("echo before; echo ready > {}; read x < {gate}; echo after", ready.display());
    let id = rig.submit_script(&script);
    assert_eq!(fs::read(&ready).expect("it says so"), b"ready\n");
    rig.wait_kept(&id);
    let (_, keeper) = rig.pids(&id, 1);
    signal(keeper, "-STOP");
    (rig, id)
}

fn sentinel(rig: &Rig, id: &str) -> PathBuf {
    rig.keep(id, 1).join("sentinel.json")
}

/// Makes the last heartbeat so many seconds old; negative: from the future.
fn age_heartbeat(rig: &Rig, id: &str, seconds: i64) {
    let path = sentinel(rig, id);
    let mut beat: Value = serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
    let now = i64::try_from(outlive::clock::now().0).expect("not that late");
    beat["at"] = json!(now - seconds * 1000);
    fs::write(path, beat.to_string()).expect("written");
}

fn show(rig: &Rig, id: &str) -> String {
    let output = rig.command().args(["show", id]).output().expect("runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The metrics count the one job in this class and in no other.
fn counted_as(rig: &Rig, class: &str) {
    let metrics = rig.client().get("/metrics").expect("there").body;
    let metrics = String::from_utf8(metrics).expect("text");
    for each in ["fresh", "stale", "dead", "damaged"] {
        let count = u8::from(each == class);
        let line = format!("outlive_jobs_heartbeat{{class=\"{each}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
}

#[test]
fn a_heartbeat_is_shown_in_its_class_and_decides_nothing() {
    let (rig, id) = held_still();
    // Half a minute of slack on either side of an edge: the edges themselves are tried without a clock.
    for (age, class) in [(0, "fresh"), (90, "fresh"), (150, "stale"), (570, "stale"), (630, "dead")]
    {
        age_heartbeat(&rig, &id, age);
        let job = rig.job(&id);
        assert_eq!(job["heartbeat"]["class"], class, "{age} s: {job:#}");
        assert!(job["heartbeat"]["age_s"].as_i64().expect("a number") >= age, "{job:#}");
        assert!(show(&rig, &id).contains(&format!("heartbeat {class}")), "{}", show(&rig, &id));
        counted_as(&rig, class);
    }
    age_heartbeat(&rig, &id, -3600);
    let job = rig.job(&id);
    assert_eq!(job["heartbeat"]["class"], "stale", "{job:#}");
    assert!(show(&rig, &id).contains("from the future"), "{}", show(&rig, &id));
    assert_eq!((&job["phase"], &job["evidence"]["agent"]), (&json!("running"), &json!("alive")));
    fs::write(sentinel(&rig, &id), "{").expect("written");
    counted_as(&rig, "damaged");
    let (_, keeper) = rig.pids(&id, 1);
    signal(keeper, "-CONT");
    rig.open_gate("gate");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "completed", "{job:#}");
    assert_eq!(job["attempts"][0]["caretakers"], 0, "{job:#}");
    counted_as(&rig, "none");
}

#[test]
fn the_ages_of_a_heartbeat_can_be_set() {
    let (mut rig, id) = held_still();
    rig.kill();
    rig.set("OUTLIVE_HEARTBEAT_STALE_S", "7200");
    rig.set("OUTLIVE_HEARTBEAT_DEAD_S", "14400");
    rig.start();
    for (age, class) in [(3600, "fresh"), (10_000, "stale"), (15_000, "dead")] {
        age_heartbeat(&rig, &id, age);
        assert_eq!(rig.job(&id)["heartbeat"]["class"], class, "{age} s");
    }
}

#[test]
fn an_output_that_does_not_grow_is_noticed_and_nothing_follows() {
    let (rig, id) = held_still();
    assert_eq!(rig.job(&id)["stalled"], Value::Null);
    let session = rig.job(&id)["session"].as_str().expect("has one").to_string();
    let long_ago = Duration::from_millis(outlive::clock::now().0 - 700_000);
    let long_ago = SystemTime::UNIX_EPOCH + long_ago;
    for name in ["output", "stderr"] {
        let path = rig.data().join("jobs").join(&id).join(format!("{session}.{name}"));
        let file = File::options().write(true).open(path).expect("there");
        file.set_modified(long_ago).expect("it is ours");
    }
    // It has not been running for that long.
    assert_eq!(rig.job(&id)["stalled"], Value::Null);
    let started = rig.keep(&id, 1).join("started");
    let mut told: Value =
        serde_json::from_slice(&fs::read(&started).expect("there")).expect("JSON");
    told["at"] = json!(told["at"].as_u64().expect("a time") - 800_000);
    fs::write(&started, told.to_string()).expect("written");
    let job = rig.job(&id);
    assert!(job["stalled"]["for_s"].as_u64().is_some_and(|age| age >= 700), "{job:#}");
    assert!(show(&rig, &id).contains("no output for 11m"), "{}", show(&rig, &id));
    let (_, keeper) = rig.pids(&id, 1);
    signal(keeper, "-CONT");
    rig.open_gate("gate");
    let job = rig.wait_ended(&id);
    assert_eq!((&job["outcome"]["kind"], &job["stalled"]), (&json!("completed"), &Value::Null));
}

#[test]
fn an_agent_that_may_not_be_silent_is_stopped_with_no_server_running() {
    // Proves I5.
    let mut rig = Rig::new();
    rig.set("OUTLIVE_GRACE_S", "0");
    rig.start();
    rig.repo();
    let ready = rig.make_gate("ready");
    let mut body = script_job(&format!("echo one; echo ready > {}; sleep 600", ready.display()));
    body["limits"] = json!({ "idle_output_s": 1 });
    let id = rig.submit(&body);
    assert_eq!(rig.job(&id)["limits"]["idle_output_s"], 1);
    fs::read(&ready).expect("it runs");
    let (_, keeper) = rig.pids(&id, 1);
    rig.kill();
    wait_gone(keeper);
    rig.start();
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "failed", "{job:#}");
    let reason = job["outcome"]["reason"].as_str().expect("a reason");
    assert!(reason.contains("wrote nothing"), "{reason}");
    assert_eq!(rig.output(&id), b"one\n");
    assert_eq!(rig.marked(), Vec::<u32>::new());
}

#[test]
fn a_silence_that_makes_no_sense_is_refused() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    for idle in [json!(0), json!(-1), json!(1e12)] {
        let mut body = script_job("true");
        body["limits"] = json!({ "idle_output_s": idle });
        assert_eq!(code(rig.client().post("/api/jobs", &body)), "bad_field");
    }
}
