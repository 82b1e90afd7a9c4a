//! The core of the suite as a user who may do nothing special: no root, no cgroups.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;

use serde_json::json;

use crate::case::keeps_exit_status;
use crate::rig::{Rig, git, signal, wait_gone};
use crate::stops::submit_stubborn;

/// Nobody.
const NOBODY: u32 = 65534;

/// A rig whose server, supervisors and agents run as nobody when the test runs as root; otherwise they are unprivileged anyway.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.set("OUTLIVE_GRACE_S", "0");
    if !rustix::process::geteuid().is_root() {
        return rig;
    }
    let root = rig.path("");
    let program = rig.path("outlive");
    fs::copy(env!("CARGO_BIN_EXE_outlive"), &program).expect("a copy that nobody can reach");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("may be entered");
    chown(&root, Some(NOBODY), Some(NOBODY)).expect("theirs");
    rig.set("HOME", root.display().to_string());
    rig.run_as(program, &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    rig
}

/// Registers a repo that belongs to nobody too: git takes no other.
fn repo(rig: &Rig) {
    let source = rig.make_repo("source");
    if rustix::process::geteuid().is_root() {
        let owner = format!("{NOBODY}:{NOBODY}");
        let given = Command::new("chown").arg("-R").arg(owner).arg(&source).status();
        assert!(given.expect("chown runs").success());
    }
    let body = json!({ "name": "r", "source": source });
    rig.client().post("/api/repos", &body).expect("registered");
    let repo = rig.client().get("/api/repos/r?wait=true").expect("there").json().expect("JSON");
    assert_eq!(repo["phase"], "ready", "{repo}");
}

fn uid_of(pid: u32) -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(format!("/proc/{pid}")).expect("it lives").uid()
}

#[test]
fn without_privileges_a_job_outlives_its_server() {
    outlives(false);
}

#[test]
fn without_privileges_a_job_outlives_its_supervisor() {
    outlives(true);
}

fn outlives(with_supervisor: bool) {
    let mut rig = rig();
    rig.start();
    repo(&rig);
    let gate = rig.make_gate("gate");
    fs::set_permissions(&gate, fs::Permissions::from_mode(0o666)).expect("for everybody");
    let id =
        rig.submit_script(&format!("echo one; read x < {}; echo two; exit 42", gate.display()));
    rig.wait_phase(&id, "running");
    let follow = format!("/api/jobs/{id}/output?follow=true");
    let mut stream = rig.client().stream(&follow, &[]).expect("there");
    std::io::Read::read_exact(&mut stream, &mut [0; 4]).expect("comes");
    let (agent, keeper) = rig.pids(&id, 1);
    assert_ne!(uid_of(agent), 0, "it has no privileges");
    rig.kill();
    rig.start();
    if with_supervisor {
        signal(keeper, "-KILL");
        wait_gone(keeper);
        rig.wait_kept(&id);
    }
    rig.open_gate("gate");
    let job = rig.wait_for(&id, |job| job["phase"] == "ended" || job["phase"] == "unknown");
    if with_supervisor && job["phase"] == "unknown" && !keeps_exit_status() {
        // Whether the kernel tells a stranger how a process ended depends on who buries it, and when. Then nothing is guessed.
        assert!(rig.why(&id).contains("row 9"), "{}", rig.why(&id));
    } else {
        assert_eq!(job["outcome"]["exit_code"], 42, "{job:#}\n{}", rig.why(&id));
        assert_eq!(job["outcome"]["exit_status"], "exact");
    }
    assert_eq!(rig.output(&id), b"one\ntwo\n");
    let source = rig.path("source");
    let safe = format!("safe.directory={}", source.display());
    assert_eq!(git(&source, &["-c", &safe, "branch", "--show-current"]), "main");
}

#[test]
fn without_cgroups_a_cancel_ends_the_tree_as_far_as_it_can_be_found_and_says_so() {
    let mut rig = rig();
    rig.start();
    repo(&rig);
    let ready = rig.make_gate("ready");
    fs::set_permissions(&ready, fs::Permissions::from_mode(0o666)).expect("for everybody");
    let limits = json!({ "memory_bytes": 1 << 30, "pids": 100 });
    let id = submit_stubborn(&rig, &json!({ "limits": limits }));
    // What nothing enforces is told while it runs, not only afterwards.
    let job = rig.job(&id);
    assert_eq!(job["degraded"].as_array().map(Vec::len), Some(2), "{job:#}");
    rig.client().post(&format!("/api/jobs/{id}/cancel"), &json!({})).expect("accepted");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "cancelled", "{job:#}\n{}", rig.why(&id));
    assert_eq!(rig.marked(), Vec::<u32>::new());
    assert_eq!(job["attempts"][0]["tree_stop"], "best_effort", "{job:#}");
    assert_eq!(job["degraded"].as_array().map(Vec::len), Some(3), "{job:#}");
}
