//! SIGTERM and SIGINT: nothing new is accepted, what is under way is answered, the server exits with 0, and no agent notices.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc::channel;

use crate::rig::{PATIENCE, Rig, script_job, signal};

/// Longer than any test waits: a server that ends nevertheless ended because all was answered.
const FOR_EVER_MS: &str = "3600000";

fn started() -> Rig {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    rig
}

/// The server ends, and says that all is well.
fn wait_stopped(rig: &mut Rig) {
    let status = rig.wait_dead();
    assert_eq!(status.code(), Some(0), "{status}: {}", rig.complaints());
}

/// A connection of the test's own, for what no client would do.
fn connect(rig: &Rig) -> TcpStream {
    let address = fs::read_to_string(rig.data().join("address")).expect("told");
    let stream = TcpStream::connect(address.trim()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// The head of a request with a body of so many bytes.
fn head(rig: &Rig, path: &str, length: usize) -> String {
    let token = fs::read_to_string(rig.data().join("token")).expect("there");
    let token = token.trim();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// A request whose handler waits for its body: the server has asked for it.
fn half_asked(rig: &Rig, path: &str, length: usize) -> TcpStream {
    let mut stream = connect(rig);
    stream.write_all(head(rig, path, length).as_bytes()).expect("sent");
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).expect("an answer");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

/// A job whose agent has spoken and stands at a gate.
fn at_the_gate(rig: &Rig) -> String {
    let here = rig.make_gate("here");
    let gate = rig.make_gate("gate");
    let (here, gate) = (here.display(), gate.display());
    let id =
        rig.submit_script(&format!("echo before; echo here > {here}; read x < {gate}; echo after"));
    assert_eq!(fs::read(rig.path("here")).expect("it says so"), b"here\n");
    id
}

/// Waits until somebody reads a pipe, and leaves the reader waiting.
fn hold(pipe: &Path) -> fs::File {
    let (sender, opened) = channel();
    let pipe = pipe.to_path_buf();
    // Opening for writing waits for a reader: that is the event.
    std::thread::spawn(move || sender.send(fs::OpenOptions::new().write(true).open(pipe)));
    opened.recv_timeout(PATIENCE).expect("somebody reads it").expect("a pipe")
}

#[test]
fn agents_notice_nothing_of_a_stop_and_followers_do_not_hold_it_up() {
    for name in ["-TERM", "-INT"] {
        let mut rig = started();
        rig.kill();
        rig.set("OUTLIVE_STOP_PATIENCE_MS", FOR_EVER_MS);
        rig.start();
        let id = at_the_gate(&rig);
        let pids = rig.pids(&id, 1);
        let path = format!("/api/jobs/{id}/events");
        let mut events = BufReader::new(rig.client().stream(&path, &[]).expect("there"));
        let mut every = BufReader::new(rig.client().stream("/api/events", &[]).expect("there"));
        let path = format!("/api/jobs/{id}/output?follow=true");
        let mut output = BufReader::new(rig.client().stream(&path, &[]).expect("there"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, "before\n");
        signal(rig.pid(), name);
        // Events tell levels: a stream of them is whole wherever it ends. Output is not, and its reader is told so.
        let mut told = String::new();
        events.read_to_string(&mut told).expect("a whole answer");
        assert!(told.contains("\"phase\":\"running\"") && told.ends_with("\n\n"), "{told}");
        every.read_to_string(&mut told).expect("a whole answer");
        output.read_to_string(&mut told).expect_err("the job is not over, so its output is not");
        wait_stopped(&mut rig);
        let client = rig.start();
        let log = client.get("/api/admin/startup-log").expect("there").json().expect("JSON");
        assert!(
            log["current"]["summary"].as_str().is_some_and(|s| s.contains("1 agent re-adopted")),
            "{log}"
        );
        assert_eq!((rig.job(&id)["phase"].as_str(), rig.pids(&id, 1)), (Some("running"), pids));
        rig.open_gate("gate");
        let job = rig.wait_ended(&id);
        assert_eq!(job["outcome"]["kind"], "completed", "{job:#}");
        assert_eq!(job["outcome"]["exit_status"], "exact", "{job:#}");
        assert_eq!(rig.output(&id), b"before\nafter\n");
    }
}

#[test]
fn what_was_asked_before_a_stop_is_answered_and_durable_and_nothing_is_accepted_after_it() {
    let mut rig = started();
    rig.kill();
    rig.set("OUTLIVE_STOP_PATIENCE_MS", FOR_EVER_MS);
    rig.start();
    let body = script_job("true").to_string();
    let mut stream = half_asked(&rig, "/api/jobs", body.len());
    let mut events = rig.client().stream("/api/events", &[]).expect("there");
    let client = rig.client().clone();
    signal(rig.pid(), "-TERM");
    // That a stream of events ends is how one sees that the stop has begun.
    events.read_to_end(&mut Vec::new()).expect("a whole answer");
    let refused = loop {
        // The listener goes in the same moment, on another thread.
        match client.get("/healthz") {
            Err(refused) => break refused,
            Ok(_) => std::thread::yield_now(),
        }
    };
    assert!(refused.is_passing(), "{refused}");
    stream.write_all(body.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("a whole answer");
    let (head, json) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 201"), "{answer}");
    let accepted: serde_json::Value = serde_json::from_str(json).expect("JSON");
    wait_stopped(&mut rig);
    rig.start();
    let job = rig.wait_ended(accepted["id"].as_str().expect("an id"));
    assert_eq!(job["outcome"]["kind"], "completed", "{job:#}");
}

#[test]
fn an_output_that_is_being_read_is_given_whole() {
    const BYTES: usize = 32 << 20;
    let mut rig = started();
    rig.kill();
    rig.set("OUTLIVE_STOP_PATIENCE_MS", FOR_EVER_MS);
    rig.start();
    let id = rig.submit_script(&format!("head -c {BYTES} /dev/zero"));
    rig.wait_ended(&id);
    // Far more than sockets hold: the server is in the middle of it.
    let path = format!("/api/jobs/{id}/output");
    let mut output = rig.client().stream(&path, &[]).expect("there");
    let mut first = [1];
    output.read_exact(&mut first).expect("it has begun");
    let mut events = rig.client().stream("/api/events", &[]).expect("there");
    signal(rig.pid(), "-TERM");
    events.read_to_end(&mut Vec::new()).expect("a whole answer");
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).expect("a whole answer");
    assert_eq!(rest.len() + 1, BYTES);
    wait_stopped(&mut rig);
}

#[test]
fn a_client_that_is_stuck_does_not_hold_up_a_stop() {
    let mut rig = started();
    // One never sends what it announced, one never reads what it asked for, one says nothing at all.
    let never_sends = half_asked(&rig, "/api/jobs", 1000);
    let id = rig.submit_script("head -c 33554432 /dev/zero");
    rig.wait_ended(&id);
    let path = format!("/api/jobs/{id}/output?follow=true");
    let mut never_reads = rig.client().stream(&path, &[]).expect("there");
    never_reads.read_exact(&mut [0]).expect("it has begun");
    let silent = connect(&rig);
    signal(rig.pid(), "-TERM");
    wait_stopped(&mut rig);
    drop((never_sends, never_reads, silent));
}

#[test]
fn a_stop_is_obeyed_while_a_start_is_still_under_way() {
    // Whatever a start does before it listens: here it stands at its startup log.
    let mut rig = started();
    let id = at_the_gate(&rig);
    let agent = rig.pids(&id, 1);
    rig.kill();
    let log = rig.data().join("startup-log.json");
    let kept = fs::read(&log).expect("there");
    fs::remove_file(&log).expect("there");
    assert!(std::process::Command::new("mkfifo").arg(&log).status().expect("runs").success());
    let mut server = rig.command();
    let mut child = server.args(["serve", "--listen", "127.0.0.1:0"]).spawn().expect("starts");
    let held = hold(&log);
    signal(child.id(), "-TERM");
    let status = child.wait().expect("our child");
    drop(held);
    assert_eq!(status.code(), Some(0));
    fs::remove_file(&log).expect("there");
    fs::write(&log, kept).expect("as it was");
    rig.start();
    assert_eq!((rig.job(&id)["phase"].as_str(), rig.pids(&id, 1)), (Some("running"), agent));
}

#[test]
fn a_stop_is_obeyed_while_what_was_under_way_is_being_looked_at() {
    let mut rig = started();
    let id = at_the_gate(&rig);
    let agent = rig.pids(&id, 1);
    rig.wait_kept(&id);
    rig.kill();
    let beat = rig.keep(&id, 1).join("sentinel.json");
    let kept = fs::read(&beat).expect("there");
    fs::remove_file(&beat).expect("there");
    assert!(std::process::Command::new("mkfifo").arg(&beat).status().expect("runs").success());
    rig.spawn().expect("it answers from the first moment");
    let held = hold(&beat);
    let refused = rig.client().get("/readyz");
    signal(rig.pid(), "-TERM");
    wait_stopped(&mut rig);
    drop(held);
    assert!(refused.is_err(), "not ready: {refused:?}");
    fs::remove_file(&beat).expect("there");
    fs::write(&beat, kept).expect("as it was");
    rig.start();
    assert_eq!((rig.job(&id)["phase"].as_str(), rig.pids(&id, 1)), (Some("running"), agent));
}
