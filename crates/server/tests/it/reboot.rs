//! What a new boot makes of a running job, and what nobody can prove.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::case::kill_all;
use crate::claude::rig_with_claude;
use crate::fake_model::FakeModel;
use crate::rig::{Rig, code, long_or_short, script_job, signal, wait_gone};

/// A server that sees another boot id, if mounts may be made here.
struct Boots {
    rig: Rig,
    id: PathBuf,
}

/// Mounts a boot id of our own over the kernel's, for one server and all it starts.
const WITH_BOOT_ID: &str = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";

impl Boots {
    /// Without root, in a user namespace of our own: same uid outside.
    fn new() -> Self {
        Self::within(Rig::new())
    }

    fn within(mut rig: Rig) -> Self {
        let id = rig.path("boot_id");
        let path = id.display().to_string();
        if rustix::process::geteuid().is_root() {
            rig.wrap(&["unshare", "-m", "sh", "-c", WITH_BOOT_ID, &path]);
        } else {
            rig.wrap(&["unshare", "-rm", "sh", "-c", WITH_BOOT_ID, &path]);
        }
        rig.set("OUTLIVE_GRACE_S", "0");
        let mut boots = Self { rig, id };
        boots.boot(1);
        boots
    }

    /// Everything of ours ends, and the next server finds a machine that was started anew.
    fn reboot(&mut self, n: u32) {
        // The wrapper became the server, so its pid is the server's.
        self.rig.kill();
        kill_everything(&self.rig);
        self.boot(n);
    }

    fn boot(&mut self, n: u32) {
        fs::write(&self.id, format!("00000000-0000-4000-8000-{n:012}\n")).expect("a file");
        self.rig.start();
    }
}

fn kill_everything(rig: &Rig) {
    let keepers = crate::rig::keepers_below(&rig.data());
    let all: Vec<u32> = keepers.into_iter().chain(rig.marked()).collect();
    kill_all(&all);
    all.into_iter().for_each(wait_gone);
}

/// A job whose agent stands at a gate, after it has said so.
fn at_the_gate(rig: &Rig, more: Value) -> String {
    let script = format!(
        "echo start >> {}; echo before; echo here > {}; read x < {}; echo after",
        rig.path("starts").display(),
        rig.make_gate("here").display(),
        rig.make_gate("gate").display(),
    );
    let mut body = script_job(&script);
    let Value::Object(more) = more else { panic!("not an object") };
    body.as_object_mut().expect("an object").extend(more);
    let id = rig.submit(&body);
    assert_eq!(fs::read(rig.path("here")).expect("it says so"), b"here\n");
    id
}

#[test]
fn a_job_that_a_reboot_cut_off_is_interrupted_and_ends_there_if_it_says_so() {
    let mut boots = Boots::new();
    boots.rig.repo();
    let id = at_the_gate(&boots.rig, json!({ "on_interrupt": "fail" }));
    boots.reboot(2);
    let rig = &boots.rig;
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "interrupted", "{job:#}\n{}", rig.why(&id));
    assert!(rig.why(&id).contains("row 7"), "{}", rig.why(&id));
    assert_eq!(rig.count_lines("starts"), 1);
}

#[test]
fn a_job_that_a_reboot_cut_off_is_tried_afresh_if_it_says_so() {
    // Proves I7: the new attempt exists by the job's own policy.
    let mut boots = Boots::new();
    boots.rig.repo();
    let id = at_the_gate(&boots.rig, json!({ "on_interrupt": "retry" }));
    let first = boots.rig.job(&id);
    boots.reboot(2);
    let rig = &boots.rig;
    assert_eq!(fs::read(rig.path("here")).expect("it says so"), b"here\n");
    rig.open_gate("gate");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "completed", "{job:#}\n{}", rig.why(&id));
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(2), "{job:#}");
    assert_ne!(job["session"], first["session"], "a conversation of its own");
    assert_ne!(job["workspace"]["path"], first["workspace"]["path"]);
    assert_eq!(rig.count_lines("starts"), 2);
}

#[test]
fn a_job_that_a_reboot_cut_off_goes_on_in_its_session_if_its_engine_can() {
    let mut boots = Boots::new();
    boots.rig.repo();
    let go = boots.rig.path("go");
    let options = json!({ "line_ms": 5, "until_file": go });
    let body = json!({ "repo": "r", "engine": "demo", "prompt": "x", "engine_options": options,
        "on_interrupt": "resume" });
    let id = boots.rig.submit(&body);
    let stream = boots.rig.client().stream(&format!("/api/jobs/{id}/output?follow=true"), &[]);
    let mut first = [0; 3];
    std::io::Read::read_exact(&mut stream.expect("there"), &mut first).expect("it works");
    boots.reboot(2);
    fs::write(&go, "").expect("a file");
    let rig = &boots.rig;
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "completed", "{job:#}\n{}", rig.why(&id));
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(2), "{job:#}");
    assert_eq!(job["attempts"][1]["resume"], true, "{job:#}");
    assert_eq!(job["attempts"][0]["session"], job["attempts"][1]["session"]);
    let output = rig.output(&id);
    assert!(String::from_utf8_lossy(&output).contains("resumed session"), "same file");
}

/// Every file below a directory.
fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => files_below(&entry.path(), found),
            _ => found.push(entry.path()),
        }
    }
}

#[test]
fn conversations_of_claude_go_on_after_a_reboot_in_their_workspaces_and_transcripts() {
    let sessions = long_or_short(20, 4);
    let model = FakeModel::start();
    let mut rig = rig_with_claude(&model);
    rig.set("OUTLIVE_RUNNING_MAX", sessions.to_string());
    let mut boots = Boots::within(rig);
    boots.rig.repo();
    let submit = |n| {
        let prompt = format!("[[tool=echo {n} > made.txt]] [[gate=g{n}]] words {n}.");
        boots.rig.submit(&json!({ "repo": "r", "engine": "claude", "prompt": prompt }))
    };
    let ids: Vec<String> = (0..sessions).map(submit).collect();
    (0..sessions).for_each(|n| model.wait_until_held(&format!("g{n}")));
    let before: Vec<Value> = ids.iter().map(|id| boots.rig.job(id)).collect();
    boots.rig.kill();
    kill_everything(&boots.rig);
    // An answer to the same words again would not have to wait.
    (0..sessions).for_each(|n| model.open_gate(&format!("g{n}")));
    boots.boot(2);
    let rig = &boots.rig;
    for (n, id) in ids.iter().enumerate() {
        let job = rig.wait_ended(id);
        assert_eq!(job["outcome"]["kind"], "completed", "{job:#}\n{}", rig.why(id));
        assert_eq!(job["attempts"].as_array().map(Vec::len), Some(2), "{job:#}");
        assert_eq!(job["attempts"][1]["resume"], true, "{job:#}");
        for same in ["session", "workspace"] {
            assert_eq!(job[same], before[n][same], "{job:#}");
        }
        let root = rig.data().join("jobs").join(id);
        let made = fs::read_to_string(root.join("workspace/made.txt")).expect("it stayed");
        assert_eq!(made, format!("{n}\n"));
        let path = format!("/api/jobs/{id}/output?format=text");
        let said = String::from_utf8(rig.client().get(&path).expect("there").body).expect("text");
        assert!(said.contains(&format!("first=words {n}.")), "another conversation: {said}");
        let session = job["session"].as_str().expect("an id");
        let mut files = Vec::new();
        files_below(&root, &mut files);
        files_below(&rig.path("home"), &mut files);
        let name = format!("{session}.jsonl");
        files.retain(|path| path.file_name().is_some_and(|found| *found == *name));
        let [transcript] = &*files else { panic!("not one transcript: {files:?}") };
        let told = fs::read_to_string(transcript).expect("text");
        assert!(
            told.contains(&format!("words {n}.")) && told.contains("DONE user_turns="),
            "{told}"
        );
    }
}

#[test]
fn a_job_past_its_deadline_when_the_machine_comes_back_has_timed_out() {
    let mut boots = Boots::new();
    boots.rig.repo();
    let id = at_the_gate(&boots.rig, json!({ "timeout_s": 1, "on_interrupt": "retry" }));
    // Everything dies before the deadline, and the machine comes back after it.
    boots.rig.kill();
    kill_everything(&boots.rig);
    let timer = rustix::time::Timespec { tv_sec: 2, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut [], Some(&timer)).expect("poll"), 0);
    boots.boot(2);
    let rig = &boots.rig;
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "timed_out", "{job:#}\n{}", rig.why(&id));
    assert_eq!(rig.count_lines("starts"), 1);
}

#[test]
fn a_damaged_sentinel_overrules_nothing_and_is_told() {
    // Proves I10 for the heartbeat: damage is named, and the lock decides.
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let id = at_the_gate(&rig, json!({}));
    rig.wait_kept(&id);
    rig.kill();
    fs::write(rig.keep(&id, 1).join("sentinel.json"), b"{\"version\":1,\"jo").expect("damaged");
    rig.start();
    assert_eq!(rig.job(&id)["phase"], "running");
    let why = rig.why(&id);
    assert!(why.contains("adopted") && why.contains("sentinel.json damaged"), "{why}");
    rig.open_gate("gate");
    assert_eq!(rig.wait_ended(&id)["outcome"]["kind"], "completed");
    assert_eq!(rig.output(&id), b"before\nafter\n");
}

#[test]
fn what_cannot_be_proved_is_held_until_somebody_settles_it() {
    let mut rig = Rig::new();
    rig.set("OUTLIVE_GRACE_S", "0");
    rig.start();
    rig.repo();
    let script = format!(
        "setsid sh -c 'echo tool > {}; sleep 600' & read x < {}",
        rig.make_gate("tool").display(),
        rig.make_gate("gate").display()
    );
    let id = rig.submit_script(&script);
    assert_eq!(fs::read(rig.path("tool")).expect("it runs"), b"tool\n");
    let (agent, keeper) = rig.pids(&id, 1);
    kill_all(&[rig.pid(), keeper]);
    rig.kill();
    wait_gone(keeper);
    signal(agent, "-KILL");
    wait_gone(agent);
    rig.start();
    let job = rig.job(&id);
    let why = rig.why(&id);
    assert_eq!(job["phase"], "unknown", "{job:#}\n{why}");
    assert!(why.contains("row 9"), "{why}");
    assert!(!rig.marked().is_empty(), "the tools it left are let alone");
    // Once more: still the same, and nothing was run or killed.
    rig.kill();
    rig.start();
    assert_eq!(rig.job(&id)["phase"], "unknown");
    assert_eq!(rig.job(&id)["attempts"].as_array().map(Vec::len), Some(1));
    assert!(!rig.marked().is_empty());
    let refused = rig.client().post(&format!("/api/jobs/{id}/cancel"), &json!({}));
    assert_eq!(code(refused), "not_allowed_in_phase");
    let tools = rig.marked();
    let path = format!("/api/jobs/{id}/settle");
    let settled = rig.client().post(&path, &json!({ "as": "failed" })).expect("settled");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "failed", "{settled:?} {job:#}");
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1));
    // It is over now, and soon they are.
    tools.into_iter().for_each(wait_gone);
}

#[test]
fn a_pid_that_is_somebody_elses_by_now_is_not_the_agent() {
    // Proves I6: the same pid with other start ticks is another process, and is neither adopted nor ended.
    let mut rig = Rig::new();
    rig.set("OUTLIVE_GRACE_S", "0");
    rig.start();
    rig.repo();
    let id = at_the_gate(&rig, json!({}));
    rig.kill();
    kill_everything(&rig);
    let mut stranger = std::process::Command::new("sleep").arg("600").spawn().expect("sleep runs");
    let path = rig.keep(&id, 1).join("started");
    let mut started: Value =
        serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
    started["agent"]["pid"] = json!(stranger.id());
    fs::write(&path, started.to_string()).expect("as if the pid had come round");
    rig.start();
    let phase = rig.job(&id)["phase"].clone();
    let path = format!("/api/jobs/{id}/settle");
    let settled = rig.client().post(&path, &json!({ "as": "failed" }));
    let lives = stranger.try_wait().expect("our child").is_none();
    stranger.kill().expect("our child");
    stranger.wait().expect("our child");
    assert_eq!(phase, "unknown", "{}", rig.why(&id));
    assert!(settled.is_ok() && lives, "{settled:?}");
}
