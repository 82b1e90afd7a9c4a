//! A supervisor that cannot be started, for want of memory, of a process more, or of its program: the work waits and is not lost.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::rig::{Rig, script_job};

/// A server whose program has been taken away, so that nothing can be started, and where it is now.
fn without_program() -> (Rig, PathBuf, PathBuf) {
    let mut rig = Rig::new();
    let (program, aside) = (rig.path("outlive"), rig.path("aside"));
    if fs::hard_link(env!("CARGO_BIN_EXE_outlive"), &program).is_err() {
        fs::copy(env!("CARGO_BIN_EXE_outlive"), &program).expect("a copy");
    }
    rig.run_as(program.clone(), &[]);
    rig.start();
    rig.repo();
    rename(&program, &aside);
    (rig, program, aside)
}

#[expect(clippy::disallowed_methods, reason = "nothing has to be durable here")]
fn rename(from: &PathBuf, to: &PathBuf) {
    fs::rename(from, to).expect("renamed");
}

#[test]
fn a_supervisor_that_cannot_be_started_is_started_when_it_can() {
    let (rig, program, aside) = without_program();
    let id = rig.submit(&script_job("echo done; exit 42"));
    rig.wait_complaint("cannot start a supervisor");
    rename(&aside, &program);
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["exit_code"], 42, "{job:#}\n{}", rig.why(&id));
    assert_eq!(rig.output(&id), b"done\n");
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_job_whose_supervisor_cannot_be_started_can_be_cancelled() {
    let (rig, _, _) = without_program();
    let id = rig.submit(&script_job("exit 42"));
    rig.wait_complaint("cannot start a supervisor");
    rig.client().post(&format!("/api/jobs/{id}/cancel"), &json!({})).expect("accepted");
    assert_eq!(rig.wait_ended(&id)["outcome"]["kind"], "cancelled");
}
