//! Nothing is told and nothing is done while the disk has not answered. A kill cannot show that: what is told too early rarely
//! gets out before the process is gone. So the write-ahead log's thread is held, everything else goes on, and only then comes the kill.

use std::fs;
use std::path::Path;

use outlive::face::client::Reply;
use outlive_core::spec::Reading;
use serde_json::{Value, json};

use crate::rig::{Rig, script_job};

/// Answers that are waited for while the write-ahead log is held: whatever was let out too early is out by then.
const ANSWERS: usize = 100;

/// A server whose write-ahead log stops at the Nth group from here.
fn held(point: &str, pass: u32) -> (Rig, inotify::Inotify) {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    rig.kill();
    rig.set("OUTLIVE_CRASH", format!("{point}:{pass}"));
    rig.set("OUTLIVE_CRASH_ONCE", rig.path("held").display().to_string());
    rig.set("OUTLIVE_CRASH_HOLD", "1");
    let watch = rig.watch_files();
    rig.start();
    (rig, watch)
}

/// Waits until the write-ahead log is held, and then until everybody else has had time to be wrong.
fn wait_held(rig: &Rig, watch: &inotify::Inotify, point: &str) -> Value {
    rig.wait_file(watch, &format!("held.{point}"));
    let mut jobs = Value::Null;
    for _ in 0..ANSWERS {
        jobs = rig.client().get("/api/jobs").expect("readers do not wait").json().expect("JSON");
    }
    jobs
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn go_on(rig: &mut Rig) {
    rig.kill();
    rig.unset("OUTLIVE_CRASH");
    rig.start();
}

// Proves I1 for replies, reads and effects.
#[test]
fn a_job_that_is_not_on_disk_is_neither_answered_nor_shown_nor_begun() {
    for point in ["wal.before_write", "wal.after_write"] {
        let (mut rig, watch) = held(point, 1);
        let client = rig.client().clone();
        let asked = std::thread::spawn(move || client.post("/api/jobs", &script_job("true")));
        let jobs = wait_held(&rig, &watch, point);
        assert_eq!(jobs["jobs"], json!([]), "shown too early, {point}");
        assert_eq!(entries(&rig.data().join("operations")), 0, "begun too early, {point}");
        assert!(!asked.is_finished(), "answered too early, {point}");
        go_on(&mut rig);
        let answer: Result<Reply, _> = asked.join().expect("no panic");
        assert!(answer.is_err(), "{answer:?}");
    }
}

// Proves I1 for launches.
#[test]
fn an_attempt_that_is_not_on_disk_is_not_launched() {
    for point in ["wal.before_write", "wal.after_write"] {
        let (mut rig, watch) = held(point, 2);
        let script = format!("echo start >> {}", rig.path("starts").display());
        let id = rig.submit_script(&script);
        let jobs = wait_held(&rig, &watch, point);
        assert_eq!(jobs["jobs"][0]["phase"], "preparing", "{jobs}");
        assert_eq!(entries(&rig.data().join("jobs").join(&id).join("attempts")), 0, "{point}");
        go_on(&mut rig);
        let job = rig.wait_ended(&id);
        assert_eq!(job["outcome"]["kind"], "completed", "{job:#}");
        assert_eq!(rig.count_lines("starts"), 1);
    }
}

// Proves I1 for stops.
#[test]
fn a_cancel_that_is_not_on_disk_is_not_carried_out() {
    let point = "wal.before_write";
    let (mut rig, watch) = held(point, 3);
    let here = rig.make_gate("here");
    let gate = rig.make_gate("gate");
    let script = format!("echo here > {}; read x < {}", here.display(), gate.display());
    let id = rig.submit_script(&script);
    assert_eq!(fs::read(here).expect("it runs"), b"here\n");
    let client = rig.client().clone();
    let path = format!("/api/jobs/{id}/cancel");
    let asked = std::thread::spawn(move || client.post(&path, &json!({})));
    let jobs = wait_held(&rig, &watch, point);
    assert_eq!(jobs["jobs"][0]["phase"], "running", "{jobs}");
    let stop = outlive_supervisor::read_stop(&rig.keep(&id, 1));
    assert_eq!(stop, Reading::Absent, "passed on too early");
    assert!(!asked.is_finished(), "answered too early");
    go_on(&mut rig);
    asked.join().expect("no panic").expect_err("nobody answered");
    rig.open_gate("gate");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "completed", "it was never cancelled: {job:#}");
}
