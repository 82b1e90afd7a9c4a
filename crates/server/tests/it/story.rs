//! The main story: a job outlives its server.

use std::io::{BufRead as _, BufReader};

use serde_json::json;

use crate::rig::{Rig, code, git, read_all, script_job, signal, wait_gone};

#[test]
fn a_job_runs_in_a_copy_of_its_repo_on_a_branch_of_its_own() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let id = rig.submit_script("git branch --show-current; cat README.md; echo oops >&2");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "completed", "{job:#}");
    assert_eq!(job["outcome"]["exit_code"], 0);
    assert_eq!(job["outcome"]["exit_status"], "exact");
    let expected = format!("outlive/{id}\n# A repository\n");
    assert_eq!(String::from_utf8_lossy(&rig.output(&id)), expected);
    let stderr = rig.client().get(&format!("/api/jobs/{id}/output?stream=stderr")).expect("there");
    assert_eq!(stderr.body, b"oops\n");
    let source = rig.path("source");
    assert_eq!(git(&source, &["branch", "--show-current"]), "main", "the original is untouched");
}

#[test]
fn an_agent_goes_on_while_no_server_lives_and_its_true_end_is_known_afterwards() {
    // Proves I5 and I3: nobody else was there when it ended.
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let gate = rig.make_gate("gate");
    let starts = rig.path("starts");
    let script = format!(
        "echo start >> {}; echo before; read x < {}; echo after; exit 42",
        starts.display(),
        gate.display(),
    );
    let id = rig.submit_script(&script);
    rig.wait_phase(&id, "running");
    let follow = format!("/api/jobs/{id}/output?follow=true");
    let mut first = [0; 7];
    let mut stream = rig.client().stream(&follow, &[]).expect("there");
    std::io::Read::read_exact(&mut stream, &mut first).expect("output comes as it is written");
    assert_eq!(&first, b"before\n");
    let (_, keeper) = rig.pids(&id, 1);
    rig.kill();
    rig.open_gate("gate");
    wait_gone(keeper);
    rig.start();
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["exit_code"], 42, "{job:#}");
    assert_eq!(job["outcome"]["kind"], "failed");
    assert_eq!(job["outcome"]["exit_status"], "exact");
    assert_eq!(rig.output(&id), b"before\nafter\n");
    assert_eq!(rig.count_lines("starts"), 1);
    assert!(rig.why(&id).contains("concluded"), "{}", rig.why(&id));
}

#[test]
fn a_running_agent_is_adopted_and_its_partial_output_is_there_at_once() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let gate = rig.make_gate("gate");
    let id = rig.submit_script(&format!("echo partial; read x < {}; echo rest", gate.display()));
    rig.wait_phase(&id, "running");
    let stream = rig.client().stream(&format!("/api/jobs/{id}/output?follow=true"), &[]);
    let mut first = [0; 8];
    std::io::Read::read_exact(&mut stream.expect("there"), &mut first).expect("comes");
    rig.kill();
    rig.start();
    let job = rig.job(&id);
    assert_eq!(job["phase"], "running", "{job:#}");
    assert_eq!(job["heartbeat"]["class"], "fresh", "{job:#}");
    assert_eq!(rig.output(&id), b"partial\n");
    assert!(rig.why(&id).contains("adopted"), "{}", rig.why(&id));
    let stream = rig.client().stream(&format!("/api/jobs/{id}/output?follow=true"), &[]);
    let stream = stream.expect("there");
    rig.open_gate("gate");
    assert_eq!(read_all(stream), b"partial\nrest\n");
    assert_eq!(rig.wait_ended(&id)["outcome"]["kind"], "completed");
}

#[test]
fn an_agent_outlives_its_supervisor_too() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let gate = rig.make_gate("gate");
    let id = rig.submit_script(&format!("echo one; read x < {}; echo two; exit 7", gate.display()));
    rig.wait_phase(&id, "running");
    let stream = rig.client().stream(&format!("/api/jobs/{id}/output?follow=true"), &[]);
    let mut first = [0; 4];
    std::io::Read::read_exact(&mut stream.expect("there"), &mut first).expect("comes");
    let (_, keeper) = rig.pids(&id, 1);
    signal(keeper, "-KILL");
    // As soon as it is planned, not when it is in place: what the agent writes in between stays in the pipe, which the server holds.
    rig.wait_for(&id, |job| job["attempts"][0]["caretakers"] == 1);
    rig.open_gate("gate");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["exit_code"], 7, "{job:#}\n{}", rig.why(&id));
    assert_eq!(job["outcome"]["exit_status"], "exact");
    assert_eq!(rig.output(&id), b"one\ntwo\n");
}

#[test]
fn a_cancel_ends_the_whole_tree() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let gate = rig.make_gate("gate");
    let script = format!(
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; (sleep 600 &) ; echo ready > {}; sleep 600' & \
         sleep 600",
        gate.display()
    );
    let id = rig.submit_script(&script);
    let ready = std::fs::read(rig.path("gate")).expect("the agent says so");
    assert_eq!(ready, b"ready\n");
    assert!(rig.marked().len() >= 3, "{:?}", rig.marked());
    rig.client().post(&format!("/api/jobs/{id}/cancel"), &json!({})).expect("accepted");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "cancelled", "{job:#}");
    assert_eq!(rig.marked(), Vec::<u32>::new());
}

#[test]
fn the_same_key_is_the_same_job_and_another_body_is_refused() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let body = script_job("true");
    let key = [("Idempotency-Key", "k1")];
    let first = rig.client().post_with("/api/jobs", &body, &key).expect("accepted");
    rig.kill();
    rig.start();
    let second = rig.client().post_with("/api/jobs", &body, &key).expect("known");
    assert_eq!((first.status, second.status), (201, 200));
    let id = |reply: &outlive::face::client::Reply| reply.json().expect("JSON")["id"].clone();
    assert_eq!(id(&first), id(&second));
    let other = script_job("false");
    let refused = rig.client().post_with("/api/jobs", &other, &key);
    assert_eq!(code(refused), "idempotency_key_reused");
}

#[test]
fn two_servers_never_share_a_data_directory() {
    // Proves I2.
    let mut rig = Rig::new();
    rig.start();
    let mut second = rig.command();
    second.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(rig.data());
    let pipe = std::process::Stdio::piped;
    let mut second = second.stdout(pipe()).stderr(pipe()).spawn().expect("runs");
    let mut listens = String::new();
    let mut said = BufReader::new(second.stdout.as_mut().expect("piped"));
    said.read_line(&mut listens).expect("its word or its end");
    if !listens.is_empty() {
        // It would live for ever.
        second.kill().expect("it can be signalled");
    }
    assert_eq!(listens, "", "two servers in one data directory");
    let output = second.wait_with_output().expect("ends");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("pid {}", rig.pid())), "{said}");
}

#[test]
fn followers_may_come_and_go_while_the_output_grows() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let stop = rig.path("stop").display().to_string();
    let script = format!("while [ ! -e {stop} ]; do echo line; done");
    let id = rig.submit_script(&script);
    rig.wait_phase(&id, "running");
    let follow = format!("/api/jobs/{id}/output?follow=true");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (client, follow) = (rig.client().clone(), &follow);
            scope.spawn(move || {
                for _ in 0..50 {
                    let mut stream = client.stream(follow, &[]).expect("there");
                    std::io::Read::read_exact(&mut stream, &mut [0; 5]).expect("it grows");
                }
            });
        }
    });
    std::fs::write(rig.path("stop"), "").expect("a file");
    assert_eq!(rig.wait_ended(&id)["outcome"]["kind"], "completed");
}

#[test]
fn a_deletion_that_was_cut_off_goes_on_at_the_next_start() {
    // Proves I12.
    let mut rig = Rig::new();
    rig.start();
    rig.kill();
    let (trash, scratch) = (rig.data().join("trash"), rig.data().join("scratch"));
    std::fs::create_dir_all(trash.join("half/deleted")).expect("a directory");
    std::fs::write(scratch.join("of a question"), "").expect("a file");
    rig.start();
    rig.wait_empty(&trash);
    assert_eq!(std::fs::read_dir(scratch).expect("made anew").count(), 0);
}
