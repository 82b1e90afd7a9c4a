//! A server on a damaged data directory: what lost records is held, named and left alone, the rest runs, and a verb makes all of it
//! well without a restart (I10).

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use serde_json::{Value, json};

use crate::rig::{Rig, code};

/// A record as `outlive wal --json` prints it.
fn records(rig: &Rig) -> Vec<Value> {
    let told = cli(rig, &["wal", "--json", rig.data().to_str().expect("UTF-8")]);
    let lines = String::from_utf8(told.stdout).expect("UTF-8");
    let lines = lines.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    lines.filter(|line: &Value| line["line"] == "record").collect()
}

/// The record with an event of some name about some job or repo.
fn record_of(rig: &Rig, event: &str, whose: &str) -> Value {
    let records = records(rig);
    let is_it = |it: &Value| {
        it["event"] == event
            && [&it["job"], &it["name"]].iter().any(|name| name.as_str() == Some(whose))
    };
    let found = records
        .iter()
        .rfind(|record| record["events"].as_array().expect("events").iter().any(is_it));
    found.cloned().unwrap_or_else(|| panic!("no {event} of {whose}: {records:#?}"))
}

/// Flips a bit of a record: in its body, or in its header, so that nobody can say any more whose it is.
fn damage(record: &Value, in_header: bool) {
    let path = PathBuf::from(record["file"].as_str().expect("a file"));
    let at = usize::try_from(record["offset"].as_u64().expect("an offset")).expect("small");
    let mut bytes = fs::read(&path).expect("readable");
    let header = bytes[at + 8..at + 12].try_into().expect("four bytes");
    let body = at + usize::try_from(u32::from_le_bytes(header)).expect("small");
    bytes[if in_header { at + 20 } else { body + 9 }] ^= 1;
    fs::write(&path, bytes).expect("writable");
}

fn cli(rig: &Rig, args: &[&str]) -> Output {
    rig.command().args(args).output().expect("it runs")
}

/// Runs a verb that must go well; what it printed.
fn well(rig: &Rig, args: &[&str]) -> String {
    let output = cli(rig, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{args:?}: {out}{error}");
    out + &error
}

fn degraded(rig: &Rig) -> Vec<Value> {
    let ready = rig.client().get("/readyz").expect("ready").json().expect("JSON");
    assert_eq!(ready["status"], "ready", "{ready}");
    ready["degraded"].as_array().expect("a list").clone()
}

/// What is said to be unavailable, with its only remedy.
fn one_degraded(rig: &Rig, resource: &str) -> Value {
    let all = degraded(rig);
    let found: Vec<&Value> = all.iter().filter(|it| it["resource"] == resource).collect();
    let [found] = found.as_slice() else { panic!("{resource} in {all:#?}") };
    (*found).clone()
}

#[test]
fn a_job_that_lost_a_record_is_held_and_taken_up_by_the_verb_that_its_remedy_names() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let hurt = rig.submit_script("echo said; exit 3");
    rig.wait_ended(&hurt);
    let (begun, gate) = (rig.make_gate("begun"), rig.make_gate("gate"));
    let alive = rig.submit_script(&format!(
        "read x < {}; read x < {}; exit 5",
        begun.display(),
        gate.display()
    ));
    rig.open_gate("begun");
    rig.wait_kept(&alive);
    rig.kill();
    let record = record_of(&rig, "attempt_ended", &hurt);
    assert_eq!(record["entities"], json!([format!("job/{hurt}")]), "{record}");
    damage(&record, false);
    rig.start();

    let [told] = degraded(&rig).try_into().expect("it and nothing else");
    assert_eq!(told["resource"], format!("job/{hurt}"), "{told}");
    let cause = told["cause"].as_str().expect("a cause");
    let place = format!("{} at {}", record["file"].as_str().expect("a file"), record["offset"]);
    assert!(cause.contains(&place), "{cause}");
    let verb = format!("`outlive repair {hurt}`");
    assert!(told["remedy"].as_str().is_some_and(|it| it.starts_with(&verb)), "{told}");
    let log = well(&rig, &["startup-log"]);
    assert!(log.contains(&verb) && log.contains("kept as "), "{log}");
    let kept = fs::read_dir(rig.data().join("quarantine")).expect("there").count();
    assert_eq!(kept, 1, "the bytes are kept");

    // It is shown as it is known, and nothing is done with it.
    let job = rig.job(&hurt);
    assert_eq!((&job["phase"], &job["outcome"]), (&json!("unknown"), &Value::Null), "{job:#}");
    assert_eq!(job["actions"], json!(["repair"]), "{job:#}");
    assert!(job["unavailable"].as_str().is_some_and(|why| why.contains(&place)), "{job:#}");
    assert_eq!(rig.output(&hurt), b"said\n");
    let listed = well(&rig, &["list"]);
    assert!(listed.lines().any(|l| l.contains(&hurt) && l.contains("records lost")), "{listed}");
    let why = well(&rig, &["why", &hurt]);
    assert!(why.contains("attempt 1 launched") && why.contains(&verb), "{why}");
    let path = format!("/api/jobs/{hurt}/retry");
    assert_eq!(code(rig.client().post(&path, &json!({}))), "unavailable");
    assert_eq!(cli(&rig, &["wait", &hurt]).status.code(), Some(125), "nobody can say how it ended");

    // The rest runs.
    rig.open_gate("gate");
    assert_eq!(rig.wait_ended(&alive)["outcome"]["exit_code"], 5);
    let new = rig.submit_script("true");
    assert_eq!(rig.wait_ended(&new)["outcome"]["kind"], "completed");

    // The verb, and all is well: now, and after the next start.
    well(&rig, &["repair", &hurt]);
    assert_eq!(rig.wait_ended(&hurt)["outcome"]["exit_code"], 3, "{}", rig.why(&hurt));
    assert_eq!(degraded(&rig), [Value::Null; 0]);
    assert!(rig.why(&hurt).contains("taken up again by local"), "{}", rig.why(&hurt));
    rig.kill();
    rig.start();
    assert_eq!(degraded(&rig), [Value::Null; 0]);
    assert_eq!(rig.job(&hurt)["outcome"]["exit_code"], 3);
    well(&rig, &["remove", &hurt]);
}

// Proves I10 and I7: its directory and its processes are kept, and nothing is started a second time.
#[test]
fn a_job_whose_acceptance_cannot_be_read_keeps_its_directory_and_its_processes() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let over = rig.submit_script("true");
    rig.wait_ended(&over);
    let mut body = crate::rig::script_job("true");
    body["hold"] = json!(true);
    let before = rig.submit(&body);
    let (begun, gate, starts) = (rig.make_gate("begun"), rig.make_gate("gate"), rig.path("starts"));
    let script = format!(
        "echo begun; echo x >> {}; read x < {}; read x < {}; exit 7",
        starts.display(),
        begun.display(),
        gate.display()
    );
    let hurt = rig.submit_script(&script);
    rig.open_gate("begun");
    rig.wait_kept(&hurt);
    let after = rig.submit(&body);
    let (agent, _) = rig.pids(&hurt, 1);
    rig.kill();
    let record = {
        let records = records(&rig);
        let accepts = |it: &Value| it["event"] == "job_accepted" && it["job"] == hurt.as_str();
        let found = records
            .into_iter()
            .find(|record| record["events"].as_array().expect("events").iter().any(accepts));
        found.expect("it was accepted")
    };
    damage(&record, true);
    rig.start();

    let told = one_degraded(&rig, &format!("job/{hurt}"));
    let verb = format!("`outlive repair {hurt}`");
    assert!(told["remedy"].as_str().is_some_and(|it| it.starts_with(&verb)), "{told}");
    assert!(fs::metadata(format!("/proc/{agent}")).is_ok(), "its agent lives");
    let job = rig.job(&hurt);
    assert_eq!((&job["phase"], &job["engine"]), (&json!("unknown"), &json!("command")), "{job:#}");
    assert_eq!(job["evidence"]["agent_pid"], agent, "{job:#}");
    assert_eq!(rig.output(&hurt), b"begun\n");
    // Whoever may have been meant by the lost record is held as well, and nobody else.
    let doubtful = one_degraded(&rig, &format!("job/{before}"));
    assert!(
        doubtful["cause"].as_str().is_some_and(|it| it.contains("nothing proves")),
        "{doubtful}"
    );
    let resources: Vec<Value> = degraded(&rig).iter().map(|it| it["resource"].clone()).collect();
    assert_eq!(resources.len(), 2, "{resources:?}");
    assert_eq!(rig.job(&over)["outcome"]["kind"], "completed");
    assert_eq!(rig.job(&after)["phase"], "held");
    well(&rig, &["start", &after]);
    assert_eq!(rig.wait_ended(&after)["outcome"]["kind"], "completed");

    well(&rig, &["repair", &hurt, &before]);
    assert_eq!(rig.wait_phase(&hurt, "running")["evidence"]["agent"], "alive");
    assert_eq!(rig.job(&before)["phase"], "held");
    assert_eq!(degraded(&rig), [Value::Null; 0]);
    rig.open_gate("gate");
    assert_eq!(rig.wait_ended(&hurt)["outcome"]["exit_code"], 7, "{}", rig.why(&hurt));
    assert_eq!(rig.count_lines("starts"), 1, "it ran once");
    let retry = rig.client().post(&format!("/api/jobs/{hurt}/retry"), &json!({}));
    assert_eq!(code(retry), "task_lost");
    well(&rig, &["start", &before]);
    assert_eq!(rig.wait_ended(&before)["outcome"]["kind"], "completed");
    well(&rig, &["remove", &hurt]);
    rig.kill();
    rig.start();
    assert_eq!(degraded(&rig), [Value::Null; 0]);
}

#[test]
fn a_repo_that_lost_a_record_is_made_usable_again_by_the_verb_that_its_remedy_names() {
    for in_header in [false, true] {
        let mut rig = Rig::new();
        rig.start();
        rig.repo();
        rig.repo_from("other", "other-source");
        rig.kill();
        damage(&record_of(&rig, "repo_added", "r"), in_header);
        rig.start();
        let told = one_degraded(&rig, "repo/r");
        assert!(
            told["remedy"].as_str().is_some_and(|it| it.starts_with("`outlive repo repair r`")),
            "{told}"
        );
        let listed = well(&rig, &["repo", "list"]);
        assert!(listed.contains("unavailable: "), "{listed}");
        let refused = rig.client().post("/api/jobs", &crate::rig::script_job("true"));
        assert_eq!(code(refused), "repository_unavailable");
        let mut body = crate::rig::script_job("true");
        body["repo"] = json!("other");
        let job = rig.submit(&body);
        assert_eq!(rig.wait_ended(&job)["outcome"]["kind"], "completed");
        // Nobody knows any more where it comes from.
        let alone = cli(&rig, &["repo", "repair", "r"]);
        let error = String::from_utf8_lossy(&alone.stderr).into_owned();
        assert_eq!(alone.status.code(), Some(121), "{error}");
        assert!(error.contains("--source"), "{error}");
        let source = rig.path("source");
        well(&rig, &["repo", "repair", "r", "--source", source.to_str().expect("UTF-8")]);
        assert_eq!(degraded(&rig), [Value::Null; 0]);
        let job = rig.submit_script("true");
        assert_eq!(rig.wait_ended(&job)["outcome"]["kind"], "completed");
        rig.kill();
        rig.start();
        assert_eq!(degraded(&rig), [Value::Null; 0]);
    }
}
