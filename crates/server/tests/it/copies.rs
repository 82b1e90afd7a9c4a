//! Backups and copies of a data directory: whole, held until somebody adopts them, and harmless to a living original.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use outlive::face::client::Client;
use serde_json::{Value, json};

use crate::mount::{Kind, Mount};
use crate::rig::{Rig, code, keepers_below, move_aside, script_job, wait_gone};

/// Runs a program that must succeed.
fn run(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn outlive(rig: &Rig, args: &[&str]) -> String {
    run(rig.command().args(args))
}

fn back_up(rig: &Rig) -> PathBuf {
    let file = rig.path("backup.tar");
    outlive(rig, &["backup", file.to_str().expect("UTF-8")]);
    file
}

/// A server's data directory out of a backup, elsewhere.
fn restored(file: &Path) -> Rig {
    let mut copy = Rig::new();
    fs::create_dir(copy.data()).expect("made");
    run(Command::new("tar").arg("-xpf").arg(file).arg("-C").arg(copy.data()));
    copy.start();
    copy
}

/// One out of a plain copy.
fn copied(rig: &Rig) -> Rig {
    let mut copy = Rig::new();
    // A file that is being replaced just now may vanish under its hands: it complains, and goes on.
    let done = Command::new("cp").arg("-a").arg(rig.data()).arg(copy.data()).status();
    done.expect("cp runs");
    copy.start();
    copy
}

fn json_of(client: &Client, path: &str) -> Value {
    client.get(path).expect("answered").json().expect("JSON")
}

/// It shows what it knows, does nothing, and says why, wherever it is asked; also when it is started once more.
fn is_held(copy: &mut Rig) {
    for _ in 0..2 {
        let ready = json_of(copy.client(), "/readyz");
        assert_eq!(
            (&ready["status"], &ready["degraded"][0]["kind"]),
            (&json!("ready"), &json!("copy"))
        );
        let remedy = ready["degraded"][0]["remedy"].as_str().expect("told");
        assert!(remedy.contains("`outlive adopt-data`"), "{ready:#}");
        let log = outlive(copy, &["startup-log"]);
        assert!(log.contains("HELD, FOR IT IS A COPY") && log.contains(remedy), "{log}");
        let list = outlive(copy, &["list"]);
        assert!(list.contains("it waits for `outlive adopt-data`"), "{list}");
        assert_eq!(code(copy.client().post("/api/jobs", &script_job("true"))), "not_adopted");
        assert_eq!(keepers_below(&copy.data()), Vec::<u32>::new(), "something was launched");
        copy.kill();
        copy.start();
    }
}

/// A job at a gate, which runs on at once in its second attempt; and one that stands behind it in the queue.
fn running_and_queued(rig: &Rig) -> (String, String) {
    let (gate, starts) = (rig.make_gate("gate"), rig.path("starts"));
    let (gate, starts) = (gate.display(), starts.display());
    let mut running = script_job(&format!(
        "echo running $OUTLIVE_ATTEMPT $PWD >> {starts}; echo begun; \
         [ $OUTLIVE_ATTEMPT = 1 ] || exit 7; read x < {gate}; exit 42"
    ));
    running["on_interrupt"] = json!("retry");
    let running = rig.submit(&running);
    let queued = rig.submit_script(&format!("echo queued >> {starts}; echo q; exec sleep 1000"));
    let follow = format!("/api/jobs/{running}/output?follow=true");
    let mut said = [0; 6];
    rig.client().stream(&follow, &[]).expect("there").read_exact(&mut said).expect("it says so");
    rig.wait_kept(&running);
    assert_eq!(rig.job(&queued)["phase"], "queued");
    (running, queued)
}

/// Waits until a job's agent has said something.
fn wait_said(rig: &Rig, id: &str) {
    let path = format!("/api/jobs/{id}/output?follow=true");
    rig.client().stream(&path, &[]).expect("there").read_exact(&mut [0; 2]).expect("it says so");
}

// Proves I7 and I12 over copies: a copy does nothing, adopted it does its own, and the original never notices.
fn lives_beside_its_original(copy_of: impl FnOnce(&Rig) -> Rig) {
    let mut rig = Rig::new();
    rig.set("OUTLIVE_RUNNING_MAX", "1");
    rig.start();
    rig.repo();
    let ended = rig.submit_script("echo done; echo bad >&2; exit 3");
    rig.wait_ended(&ended);
    let (running, queued) = running_and_queued(&rig);
    let mut held = script_job("true");
    held["hold"] = json!(true);
    let held = rig.submit(&held);
    let before = (rig.pids(&running, 1), rig.count_lines("starts"), rig.marked().len());
    let mut copy = copy_of(&rig);
    is_held(&mut copy);
    for (id, phase) in
        [(&ended, "ended"), (&running, "running"), (&queued, "queued"), (&held, "held")]
    {
        assert_eq!(copy.job(id)["phase"], phase);
        assert_eq!(rig.job(id)["phase"], phase);
    }
    assert_eq!(copy.output(&ended), b"done\n");
    let agent = copy.job(&running)["evidence"]["agent"].clone();
    assert_eq!(agent, "of the data directory that this one is a copy of");
    // What has not begun may be taken out; what has may not be touched.
    let ask =
        |id: &str, verb: &str| copy.client().post(&format!("/api/jobs/{id}/{verb}"), &json!({}));
    assert_eq!(code(ask(&running, "cancel")), "not_adopted");
    assert_eq!(code(ask(&ended, "retry")), "not_adopted");
    ask(&held, "cancel").expect("it has not begun");
    assert_eq!((rig.pids(&running, 1), rig.count_lines("starts"), rig.marked().len()), before);

    let told = outlive(&copy, &["adopt-data"]);
    assert!(told.starts_with("adopted: "), "{told}");
    assert!(outlive(&copy, &["adopt-data"]).starts_with("nothing to do"));
    assert_eq!(json_of(copy.client(), "/readyz")["degraded"], json!([]));
    copy.wait_phase(&queued, "running");
    wait_said(&copy, &queued);
    // The same attempt of the same job runs in both now.
    rig.open_gate("gate");
    assert_eq!(rig.wait_ended(&running)["outcome"]["exit_code"], 42);
    wait_said(&rig, &queued);
    let ((agent, _), (own, _)) = (rig.pids(&queued, 1), copy.pids(&queued, 1));
    let cancelled = copy.client().post(&format!("/api/jobs/{queued}/cancel"), &json!({}));
    cancelled.expect("adopted, it does as it is told");
    assert_eq!(copy.wait_ended(&queued)["outcome"]["kind"], "cancelled");
    wait_gone(own);
    let other = copy.wait_ended(&running);
    assert_eq!(
        (&other["outcome"]["exit_code"], &other["attempts"][0]["ended_by"]),
        (&json!(7), &json!("interruption"))
    );
    let why = copy.why(&running);
    assert!(why.contains("row 7") && why.contains("that this one is a copy of"), "{why}");
    let starts = fs::read_to_string(rig.path("starts")).expect("there");
    let (ours, theirs) = (rig.data().display().to_string(), copy.data().display().to_string());
    let at =
        |attempt: u32, data: &str| starts.matches(&format!("running {attempt} {data}/")).count();
    assert_eq!(
        (at(1, &ours), at(2, &ours), at(1, &theirs), at(2, &theirs)),
        (1, 0, 0, 1),
        "{starts}"
    );
    assert_eq!(starts.lines().filter(|line| *line == "queued").count(), 2, "once in each");
    assert!(rig.marked().contains(&agent), "the original's agent was ended");
    assert_eq!(rig.job(&queued)["phase"], "running");
    // For good: also after the next start.
    copy.kill();
    copy.start();
    assert_eq!(json_of(copy.client(), "/readyz")["degraded"], json!([]));
    assert_eq!(copy.job(&running)["outcome"]["exit_code"], 7);
}

#[test]
fn a_restored_backup_is_held_until_it_is_adopted_and_its_original_lives_on() {
    lives_beside_its_original(|rig| restored(&back_up(rig)));
}

#[test]
fn a_plain_copy_is_held_until_it_is_adopted_and_its_original_lives_on() {
    lives_beside_its_original(copied);
}

#[test]
fn a_data_directory_that_is_moved_is_no_copy() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let id = rig.submit_script("echo here");
    rig.wait_ended(&id);
    rig.kill();
    let elsewhere = rig.path("elsewhere");
    fs::create_dir(&elsewhere).expect("made");
    let mut moved = Rig::with_data_below(&elsewhere);
    move_aside(&rig.data(), &moved.data());
    moved.start();
    assert_eq!(json_of(moved.client(), "/readyz")["degraded"], json!([]));
    let id = moved.submit_script("echo there");
    moved.wait_ended(&id);
    assert_eq!(moved.output(&id), b"there\n");
}

#[test]
fn a_copied_subvolume_of_btrfs_is_held_and_its_original_is_not_after_it_was_mounted_again() {
    let Some(mount) = Mount::new(Kind::Btrfs) else { return };
    let place = |name: &str| mount.path().join(name);
    run(Command::new("btrfs").args(["subvolume", "create"]).arg(place("first")));
    let mut rig = Rig::with_data_below(&place("first"));
    rig.start();
    rig.repo();
    let id = rig.submit_script("echo here");
    rig.wait_ended(&id);
    rig.kill();
    let mut snapshot = Command::new("btrfs");
    run(snapshot.args(["subvolume", "snapshot"]).arg(place("first")).arg(place("second")));
    let mut copy = Rig::with_data_below(&place("second"));
    copy.start();
    is_held(&mut copy);
    assert_eq!(copy.output(&id), b"here\n");
    outlive(&copy, &["adopt-data"]);
    copy.kill();
    run(Command::new("umount").arg(mount.path()));
    run(Command::new("mount").args(["-o", "loop"]).arg(mount.image()).arg(mount.path()));
    for rig in [&mut rig, &mut copy] {
        rig.start();
        assert_eq!(json_of(rig.client(), "/readyz")["degraded"], json!([]));
        rig.kill();
    }
}

#[test]
fn a_data_directory_from_another_machine_is_held() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    rig.kill();
    let path = rig.data().join("instance.json");
    let mut instance: Value =
        serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
    if instance["machine"] == "" {
        crate::crashes::tell("NOT COVERED: another machine: this one has no /etc/machine-id");
        return;
    }
    instance["machine"] = json!("0123456789abcdef0123456789abcdef");
    fs::write(&path, instance.to_string()).expect("as if it came from there");
    rig.start();
    is_held(&mut rig);
    outlive(&rig, &["adopt-data"]);
    let id = rig.submit_script("true");
    assert_eq!(rig.wait_ended(&id)["outcome"]["kind"], "completed");
}

/// Jobs that clients got acknowledged, in the order in which that came.
#[derive(Default)]
struct Acknowledged(Mutex<Vec<String>>);

impl Acknowledged {
    fn all(&self) -> Vec<String> {
        self.0.lock().expect("nobody panics").clone()
    }

    /// Submits jobs that say who they are, until it is enough.
    fn submit(&self, client: &Client, enough: &AtomicBool) {
        while !enough.load(Ordering::SeqCst) {
            let job = client.post("/api/jobs", &script_job("echo $OUTLIVE_JOB")).expect("accepted");
            let id = job.json().expect("JSON")["id"].as_str().expect("an id").to_string();
            self.0.lock().expect("nobody panics").push(id);
        }
    }
}

// Proves I1 over a backup: what was acknowledged before it is in it, and of what came later nothing is in it by half.
#[test]
fn a_backup_under_load_has_everything_that_was_acknowledged_before_it() {
    let mut rig = Rig::new();
    rig.set("OUTLIVE_RUNNING_MAX", "3");
    rig.set("OUTLIVE_CHECKPOINT_RECORDS", "50");
    rig.start();
    rig.repo();
    let (acknowledged, enough) = (Acknowledged::default(), AtomicBool::new(false));
    let (before, file) = std::thread::scope(|scope| {
        let client = rig.client();
        for _ in 0..3 {
            scope.spawn(|| acknowledged.submit(client, &enough));
        }
        let mut changes = client.stream("/api/events", &[]).expect("there");
        // Each event is a change: when some jobs have ended, others run and more are queued.
        while json_of(client, "/api/jobs?phase=ended&limit=8")["jobs"]
            .as_array()
            .map_or(0, Vec::len)
            < 8
        {
            changes.read_exact(&mut [0; 1]).expect("it goes on");
        }
        let before = acknowledged.all();
        let file = back_up(&rig);
        enough.store(true, Ordering::SeqCst);
        (before, file)
    });
    let all: BTreeSet<String> = acknowledged.all().into_iter().collect();
    rig.kill();
    let mut copy = restored(&file);
    is_held(&mut copy);
    let manifest: Value =
        serde_json::from_slice(&fs::read(copy.data().join("backup.json")).expect("there"))
            .expect("JSON");
    assert_eq!(manifest["left_out"], json!([]), "{manifest:#}");
    let jobs =
        json_of(copy.client(), "/api/jobs?limit=1000")["jobs"].as_array().expect("a list").clone();
    let ids: BTreeSet<String> =
        jobs.iter().map(|job| job["id"].as_str().expect("an id").to_string()).collect();
    assert_eq!(manifest["jobs"], json!(ids.len()));
    assert!(before.iter().all(|id| ids.contains(id)), "an acknowledged job is missing");
    assert!(ids.is_subset(&all), "a job that nobody submitted");
    let phases: BTreeSet<&str> = jobs.iter().filter_map(|job| job["phase"].as_str()).collect();
    assert!(phases.contains("ended") && phases.contains("queued"), "{phases:?}");
    outlive(&copy, &["adopt-data"]);
    for id in &ids {
        let job = copy.wait_ended(id);
        let kind = job["outcome"]["kind"].as_str().expect("one");
        let output = String::from_utf8(copy.output(id)).expect("text");
        // What was running was cut off by being copied, and says so; everything else is as if nothing had been.
        match kind {
            "completed" => assert_eq!(output, format!("{id}\n"), "{job:#}"),
            "interrupted" => assert!(output.is_empty() || output == format!("{id}\n"), "{job:#}"),
            other => panic!("{other}: {job:#}\n{}", copy.why(id)),
        }
        assert_eq!(job["output_truncated"], false, "{job:#}");
    }
    assert_eq!(copy.marked(), Vec::<u32>::new());
}

/// A backup that stands still in its first file, because nobody takes it: prompts make that file larger than all that can be on
/// the way.
fn standing_still(rig: &Rig) -> (Vec<u8>, impl std::io::Read) {
    let mut job = script_job("true");
    job["hold"] = json!(true);
    job["prompt"] = json!("x".repeat(1 << 20));
    for _ in 0..24 {
        rig.submit(&job);
    }
    let mut backup = rig.client().stream("/api/admin/backup", &[]).expect("begun");
    let mut archive = vec![0; 1024];
    backup.read_exact(&mut archive).expect("it comes");
    assert_eq!(code(rig.client().stream("/api/admin/backup", &[])), "backup_under_way");
    (archive, backup)
}

#[test]
fn what_is_removed_while_a_backup_is_made_is_in_it_and_what_is_begun_is_not() {
    let mut rig = Rig::new();
    rig.set("OUTLIVE_RUNNING_MAX", "1");
    rig.start();
    rig.repo();
    let removed = rig.submit_script("echo removed");
    rig.wait_ended(&removed);
    let gate = rig.make_gate("gate");
    let ending =
        rig.submit_script(&format!("echo one; read x < {}; echo two; exit 42", gate.display()));
    wait_said(&rig, &ending);
    let begun = rig.submit_script("echo once");
    let (mut archive, mut backup) = standing_still(&rig);
    rig.client().delete(&format!("/api/jobs/{removed}")).expect("removed");
    rig.open_gate("gate");
    assert_eq!(rig.wait_ended(&ending)["outcome"]["exit_code"], 42);
    rig.wait_ended(&begun);
    backup.read_to_end(&mut archive).expect("whole");
    rig.wait_away(&rig.data().join("jobs").join(&removed));
    let file = rig.path("backup.tar");
    fs::write(&file, archive).expect("written");
    let copy = restored(&file);
    assert_eq!(copy.output(&removed), b"removed\n");
    assert_eq!((copy.job(&begun)["phase"].clone(), copy.output(&begun)), (json!("queued"), vec![]));
    outlive(&copy, &["adopt-data"]);
    // Its end was on record before its directory was read.
    let ended = copy.wait_ended(&ending);
    assert_eq!(ended["outcome"]["exit_code"], 42, "{ended:#}");
    assert_eq!(copy.output(&ending), b"one\ntwo\n");
    let once = copy.wait_ended(&begun);
    assert_eq!(
        (&once["outcome"]["kind"], copy.output(&begun)),
        (&json!("completed"), b"once\n".to_vec())
    );
}
