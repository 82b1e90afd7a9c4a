//! Starts that fail, die, and are told of: what stands in the way is real (a directory where a file should be, a file where a directory
//! should be), and so are the deaths.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use crate::rig::{PATIENCE, Rig, signal, was_killed};

/// One question as it is, without the client's patience: the status and the body.
fn ask(rig: &Rig, path: &str, with_token: bool) -> (u16, Value) {
    send(rig, "GET", path, with_token, "").expect("answered")
}

fn send(
    rig: &Rig,
    verb: &str,
    path: &str,
    with_token: bool,
    body: &str,
) -> std::io::Result<(u16, Value)> {
    let server = rig.client().server().to_string();
    let token = fs::read_to_string(rig.data().join("token")).expect("a token");
    let token = if with_token { token.trim() } else { "none" };
    let mut stream = TcpStream::connect(&server).expect("it listens");
    let length = body.len();
    write!(
        stream,
        "{verb} {path} HTTP/1.1\r\nHost: {server}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Ok((status, serde_json::from_str(body).unwrap_or(Value::String(body.to_string()))))
}

/// Whoever sends much is heard out and then told: closing before resets the connection, and the answer is lost with it.
fn tells_who_sends_much(rig: &Rig, with_token: bool, code: &str) {
    let prompt = "x".repeat(1 << 20);
    let body = json!({ "repo": "r", "engine": "demo", "prompt": prompt }).to_string();
    for _ in 0..20 {
        let (_, problem) = send(rig, "POST", "/api/jobs", with_token, &body).expect("answered");
        assert_eq!(problem["code"], code, "{problem}");
    }
}

fn startup_log(rig: &Rig) -> Value {
    let (status, told) = ask(rig, "/api/admin/startup-log", true);
    assert_eq!(status, 200, "{told}");
    told
}

fn stage<'a>(told: &'a Value, name: &str) -> &'a Value {
    let stages = told["current"]["stages"].as_array().expect("stages");
    stages.iter().find(|stage| stage["name"] == name).expect("there is such a stage")
}

/// Asks for the startup log until it tells what is waited for.
fn wait_told(rig: &Rig, wanted: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let told = startup_log(rig);
        if wanted(&told) {
            return told;
        }
        assert!(begun.elapsed() < PATIENCE, "never told: {told:#}\n{}", rig.complaints());
        std::thread::yield_now();
    }
}

/// A data directory with a job in it, and no server; and where its only segment was put so that a directory could take its place.
fn with_storage_in_the_way() -> (Rig, String, [PathBuf; 2]) {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let id = rig.submit_script("true");
    rig.wait_ended(&id);
    rig.kill();
    let segment = rig.data().join("wal/0000000000000001.seg");
    let aside = rig.path("segment");
    crate::rig::move_aside(&segment, &aside);
    fs::create_dir(&segment).expect("a directory");
    (rig, id, [segment, aside])
}

fn put_back([segment, aside]: &[PathBuf; 2]) {
    fs::remove_dir(segment).expect("it is empty");
    crate::rig::move_aside(aside, segment);
}

#[test]
fn a_stage_that_fails_is_tried_again_while_the_api_says_that_it_recovers() {
    let (mut rig, id, way) = with_storage_in_the_way();
    rig.spawn().expect("it listens");
    let told = wait_told(&rig, |told| stage(told, "storage")["error"].is_string());
    assert_eq!(told["current"]["ready"], false, "{told:#}");
    assert_eq!(stage(&told, "state")["standing"], "waiting");
    assert_eq!(ask(&rig, "/healthz", false).0, 200);
    let (status, ready) = ask(&rig, "/readyz", false);
    assert_eq!((status, &ready["status"]), (503, &Value::from("recovering")));
    let (status, problem) = ask(&rig, "/api/jobs", true);
    assert_eq!((status, &problem["code"]), (503, &Value::from("recovering")));
    tells_who_sends_much(&rig, true, "recovering");
    let (status, problem) = ask(&rig, "/api/admin/startup-log", false);
    assert_eq!((status, &problem["code"]), (401, &Value::from("unauthorized")));
    put_back(&way);
    assert!(rig.wait_ready(), "{}", rig.complaints());
    assert_eq!(rig.job(&id)["outcome"]["kind"], "completed");
    tells_who_sends_much(&rig, false, "unauthorized");
    let told = startup_log(&rig);
    let storage = stage(&told, "storage");
    assert!(storage["attempts"].as_u64() >= Some(2) && storage["standing"] == "done", "{storage}");
}

#[test]
fn a_start_that_cannot_go_on_says_why_and_the_next_one_can() {
    let (mut rig, id, way) = with_storage_in_the_way();
    rig.spawn().expect("it listens");
    let status = rig.wait_dead();
    assert!(!status.success() && !was_killed(status), "{status}");
    let complaint = "stage storage of the startup failed 4 times";
    assert!(rig.complaints().contains(complaint), "{}", rig.complaints());
    assert!(!rig.data().join("startup.marker").exists(), "it ended in good order");
    put_back(&way);
    rig.start();
    assert_eq!(rig.job(&id)["outcome"]["kind"], "completed");
    let told = startup_log(&rig);
    let last = told["history"][0]["summary"].as_str().expect("told");
    assert!(last.starts_with("did not start: ") && last.contains(complaint), "{last}");
}

#[test]
fn without_a_stage_that_is_not_critical_the_rest_works_and_it_comes_back_by_itself() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    rig.kill();
    let trash = rig.data().join("trash");
    fs::remove_dir_all(&trash).expect("it is ours");
    fs::write(&trash, "in the way").expect("a file");
    rig.start();
    wait_told(&rig, |told| stage(told, "trash")["standing"] == "failed");
    let (status, ready) = ask(&rig, "/readyz", false);
    assert_eq!((status, &ready["status"]), (200, &Value::from("ready")));
    let degraded = &ready["degraded"][0];
    assert_eq!((&degraded["kind"], &degraded["resource"]), (&"stage".into(), &"trash".into()));
    for said in ["cause", "since", "remedy"] {
        assert!(degraded[said].as_str().is_some_and(|text| !text.is_empty()), "{degraded}");
    }
    let (_, metrics) = ask(&rig, "/metrics", true);
    let metrics = metrics.as_str().expect("text").to_string();
    assert!(metrics.contains("outlive_degraded{kind=\"stage\"} 1\n"), "{metrics}");
    assert!(metrics.contains("outlive_ready 1\n"), "{metrics}");
    assert_eq!(ask(&rig, "/metrics", false).0, 401, "a token always");
    let id = rig.submit_script("true");
    assert_eq!(rig.wait_ended(&id)["outcome"]["kind"], "completed");
    fs::remove_file(&trash).expect("it is there");
    let told = wait_told(&rig, |told| stage(told, "trash")["standing"] == "done");
    assert_eq!(told["current"]["degraded"].as_array().map(Vec::len), Some(0), "{told:#}");
    assert!(ask(&rig, "/metrics", true).1.as_str().expect("text").contains("kind=\"stage\"} 0\n"));
}

/// Lets three starts die in a stage.
fn three_deaths(rig: &mut Rig, point: &str) {
    rig.set("OUTLIVE_CRASH", point);
    for _ in 0..3 {
        rig.spawn();
        let status = rig.wait_dead();
        assert!(was_killed(status), "{status}: {}", rig.complaints());
    }
    rig.unset("OUTLIVE_CRASH");
}

#[test]
fn after_three_deaths_in_a_stage_that_is_not_critical_the_start_goes_on_without_it() {
    let mut rig = Rig::new();
    three_deaths(&mut rig, "startup.trash");
    rig.start();
    let told = wait_told(&rig, |told| stage(told, "trash")["standing"] == "failed");
    let degraded = told["current"]["degraded"].as_array().expect("a list");
    let trash = degraded.iter().find(|it| it["resource"] == "trash").expect("not available");
    assert_eq!(trash["cause"], "the last 3 starts died in it");
    assert!(
        told["history"][0]["summary"].as_str().is_some_and(|s| s.contains("trash")),
        "{told:#}"
    );
    assert_eq!(ask(&rig, "/readyz", false).0, 200);
    rig.kill();
    rig.start();
    wait_told(&rig, |told| stage(told, "trash")["standing"] == "done");
}

#[test]
fn after_three_deaths_in_a_critical_stage_the_start_stops_and_says_what_to_look_at() {
    let mut rig = Rig::new();
    three_deaths(&mut rig, "startup.storage");
    rig.spawn();
    let status = rig.wait_dead();
    assert!(!was_killed(status) && !status.success(), "{status}");
    let marker = rig.data().join("startup.marker");
    for said in ["the last 3 starts died in stage storage", &marker.display().to_string()] {
        assert!(rig.complaints().contains(said), "{said}: {}", rig.complaints());
    }
    // What is told to be done helps; so does a start that is tried once more, since this one ended in good order.
    rig.start();
}

#[test]
fn how_the_run_before_ended_is_told() {
    let mut rig = Rig::new();
    rig.start();
    wait_told(&rig, |told| stage(told, "trash")["standing"] == "done");
    rig.kill();
    rig.start();
    let told = startup_log(&rig);
    assert_eq!(told["current"]["previous"]["how"], "killed", "{told:#}");
    signal(rig.pid(), "-TERM");
    assert!(rig.wait_dead().success());
    rig.start();
    let told = startup_log(&rig);
    assert_eq!(told["current"]["previous"]["how"], "clean", "{told:#}");
    assert_eq!(told["history"].as_array().map(Vec::len), Some(2));
    let order: Vec<&str> = told["current"]["stages"]
        .as_array()
        .expect("stages")
        .iter()
        .filter_map(|stage| stage["name"].as_str())
        .collect();
    assert_eq!(order, ["storage", "state", "attempts", "operations", "trash"]);
}
