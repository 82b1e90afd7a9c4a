//! A small data directory as this version writes it: every event, every file, nothing of the machine it is made on.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use outlive::data_dir::{Instance, Paths};
use outlive::startup::told::{Stage, Standing, Start, StartupLog};
use outlive::truth::disk::RealDisk;
use outlive::truth::wal::{Batch, Config, Draft, Durable, Wal, abort, open};
use outlive_core::checkpoint::Entry;
use outlive_core::event::{Event, Transaction};
use outlive_core::record::Link;
use outlive_core::spec::{
    self, Freeze, Outcome, SLOT_FILE_BYTES, Sentinel, Spec, Started, StopRequest, TreeEmpty,
    encode_slot,
};
use outlive_core::state::State;
use outlive_core::time::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const INSTANCE: &str = "11111111-2222-4333-8444-555555555555";
/// Small, so that a change of segment is in it too.
const SEGMENT_BYTES: u64 = 8192;

/// One after the other, so that files are the same whenever they are made.
fn nonce() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static DRAWN: AtomicU64 = AtomicU64::new(0x1000);
    DRAWN.fetch_add(1, Ordering::Relaxed)
}

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("as the shape is now")
}

/// Makes all of it.
pub(super) fn write(dir: &Path) {
    let paths = Paths::new(dir);
    let instance = Instance {
        instance: INSTANCE.to_string(),
        machine: "00000000000000000000000000000000".to_string(),
        format_version: 1,
        place: Some("inode 7".to_string()),
        life: Some("11111111-2222-4333-8444-666666666666".to_string()),
        backup: None,
    };
    put(&dir.join("instance.json"), &serde_json::to_vec_pretty(&instance).expect("JSON"));
    put(&paths.startup_log(), &serde_json::to_vec_pretty(&startup_log()).expect("JSON"));
    let job = paths.jobs().join("abcdefghijkl");
    let marker =
        json!({ "version": 1, "instance": INSTANCE, "job": "abcdefghijkl", "accepted": 3 });
    put(&job.join("marker.json"), marker.to_string().as_bytes());
    put(&job.join("session-1.output"), b"what the agent wrote\n");
    keep_directory(&job.join("attempts/1"));
    write_ahead_log(&paths);
}

fn put(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("in a directory")).expect("a directory");
    fs::write(path, bytes).expect("written");
}

fn startup_log() -> StartupLog {
    let stage = |name: &str, order| Stage {
        name: name.to_string(),
        order,
        critical: true,
        standing: Standing::Done,
        attempts: 1,
        counts: [("records".to_string(), 7)].into(),
        notes: vec!["a torn last group was cut: 40 bytes".to_string()],
        ..Stage::default()
    };
    let current = Start {
        number: 2,
        started_at: "2026-01-02T03:04:05.006Z".to_string(),
        version: "0.1.0".to_string(),
        boot_id: "boot".to_string(),
        ready: true,
        ready_ms: Some(4.5),
        stages: vec![stage("storage", 1), stage("state", 2)],
        summary: "1 jobs recovered".to_string(),
        ..Start::default()
    };
    StartupLog { current: current.clone(), history: vec![Start { number: 1, ..current }] }
}

fn process(pid: u32) -> Value {
    json!({ "boot_id": "boot", "pid_namespace": 4_026_531_836_u64, "pid": pid, "start_ticks": 99 })
}

fn keep_directory(keep: &Path) {
    let spec: Spec = of(json!({
        "version": 1, "mark": format!("{INSTANCE}/abcdefghijkl/1"), "job": "abcdefghijkl", "attempt": 1,
        "engine": "command", "argv": ["sh", "-c", "true"], "cwd": "/data/jobs/abcdefghijkl/workspace",
        "env": [["OUTLIVE_JOB", "abcdefghijkl"]], "env_remove": ["SECRET"], "stdin": null,
        "stdout": "/data/jobs/abcdefghijkl/session-1.output",
        "stderr": "/data/jobs/abcdefghijkl/session-1.stderr", "capture": "pipe",
        "timeout_ms": 7_200_000, "grace_ms": 10_000, "heartbeat_ms": 30_000,
        "output_bytes_max": 1_000_000, "memory_bytes_max": 2_000_000, "pids_max": 50,
        "freeze_below_bytes": 1000, "idle_output_ms": 60_000, "cgroup": "11111111/abcdefghijkl-1",
    }));
    put(&keep.join("spec.json"), &serde_json::to_vec_pretty(&spec).expect("JSON"));
    let started: Started = of(json!({
        "version": 1, "at": 1_000_000, "agent": process(41), "keeper": process(40),
        "cgroups": ["/sys/fs/cgroup/outlive/11111111/abcdefghijkl-1"], "deadline_boot_ms": 8_000_000,
        "pipes": [10, 11], "output_from": [0, 0],
        "namespace": { "kind": 241, "handle": "00ff", "owner": 4_026_531_837_u64 }, "unenforced": ["memory"],
    }));
    put(&keep.join("started"), &serde_json::to_vec(&started).expect("JSON"));
    let sentinel: Sentinel = of(json!({
        "version": 1, "job": "abcdefghijkl", "attempt": 1, "engine": "command", "host": "host",
        "keeper": process(40), "agent": process(41), "at": 1_030_000,
    }));
    put(&keep.join("sentinel.json"), &serde_json::to_vec(&sentinel).expect("JSON"));
    put(&keep.join("keeper.lock"), process(40).to_string().as_bytes());
    let stop: StopRequest = of(json!({ "version": 1, "cause": "cancel", "grace_ms": 10_000 }));
    put(&keep.join("stop"), &slots(&[(0, encode_slot(&stop).expect("fits"))]));
    let outcome: Outcome = of(json!({
        "version": 1, "ending": { "exited": 42 }, "at": 1_060_000, "stop": "timeout", "oom": false,
        "cpu_ms": 12, "peak_memory_bytes": 4096, "output_to": [21, 0],
    }));
    let empty: TreeEmpty = of(json!({
        "version": 1, "at": 1_060_001, "proof": "cgroup", "killed": 1, "output_to": [21, 0],
    }));
    let freeze: Freeze = of(json!({
        "version": 1, "at": 1_050_000, "since_boot_ms": null, "total_ms": 5, "free_bytes": 100, "thaw_bytes": 200,
    }));
    let told = slots(&[
        (spec::OUTCOME_SLOT_OFFSET, encode_slot(&outcome).expect("fits")),
        (spec::TREE_SLOT_OFFSET, encode_slot(&empty).expect("fits")),
        (spec::FREEZE_SLOT_OFFSET, encode_slot(&freeze).expect("fits")),
    ]);
    put(&keep.join("outcome"), &told);
}

fn slots(slots: &[(u64, [u8; spec::SLOT_BYTES])]) -> Vec<u8> {
    let mut file = vec![0; SLOT_FILE_BYTES];
    for (offset, slot) in slots {
        let at = usize::try_from(*offset).expect("small");
        file[at..at + slot.len()].copy_from_slice(slot);
    }
    file
}

/// Appends every record, with a checkpoint after the fourth and the seventh.
fn write_ahead_log(paths: &Paths) {
    let instance = *uuid::Uuid::parse_str(INSTANCE).expect("a UUID").as_bytes();
    let config = Config::new(Arc::new(RealDisk), paths.wal(), paths.quarantine(), instance, nonce);
    let config = Config { segment_bytes: SEGMENT_BYTES, ..config };
    let (sender, durable) = channel();
    let on_durable = move |group: Durable<Vec<()>>| {
        group.into_inner().into_iter().for_each(|()| sender.send(()).expect("somebody waits"));
    };
    let (wal, checkpointer) =
        Wal::start(open(config).expect("new").log, on_durable, abort).expect("starts");
    let mut state = State::default();
    for (number, events) in (0_u64..).zip(records()) {
        let events: Vec<Event> = events.into_iter().map(of).collect();
        let transaction = Transaction { at: Timestamp(1_000_000 + number * 1000), events };
        let lsn = state.lsn().next();
        let mut links: Vec<Link> = Vec::new();
        for event in &transaction.events {
            let entity = event.entity();
            if !links.iter().any(|link| link.entity == entity) {
                links.push(Link { previous: state.last_lsn(&entity), entity });
            }
            state.apply(lsn, transaction.at, event).expect("it fits");
        }
        let body = serde_json::to_vec(&transaction).expect("JSON");
        let records = vec![Draft { links, body }];
        wal.submit(Batch { first: lsn, records, payload: () }).expect("taken");
        durable.recv().expect("durable");
        if [4, 7].contains(&lsn.0) {
            let entries = state.entries().map(|(entity, lsn, body)| Entry { entity, lsn, body });
            checkpointer.write(lsn, entries).expect("written");
        }
    }
    wal.stop();
}

fn outcome(kind: &str) -> Value {
    json!({
        "kind": kind, "exit_code": 42, "signal": null, "exit_status": "exact",
        "agent_result": { "success": false, "text": "no" }, "disagreement": "it says otherwise", "reason": "why",
    })
}

fn attempt_end(by: &str) -> Value {
    json!({
        "ended_by": by, "started_at": 1_000_100, "ended_at": 1_000_900, "outcome": outcome("failed"),
        "output_from": [0, 0], "output_to": [21, 0],
        "usage": { "input_tokens": 5, "output_tokens": 6, "cost_micros": 7 }, "cpu_ms": 12,
        "peak_memory_bytes": 4096, "best_effort": true, "unenforced": ["pids"], "session_sign": "announced",
    })
}

fn task() -> Value {
    json!({
        "repos": ["web"], "engine": "command", "engine_options": { "argv": ["sh", "-c", "true"] },
        "model": null, "timeout_ms": 7_200_000, "priority": 60, "on_interrupt": "fail", "on_unknown": "hold",
        "max_interrupts": 3, "on_limit": "wait", "limit_wait_ms": 1000,
        "limits": { "memory_bytes": 1, "pids": 2, "output_bytes": 3, "idle_output_ms": 4 },
        "env": { "K": "V" }, "title": "a title", "group": "g",
    })
}

fn accepted(job: &str, held: bool, start_after: Option<u64>) -> Value {
    json!({
        "event": "job_accepted", "job": job, "owner": "local", "task": task(), "prompt": "do it",
        "session": format!("session-{job}"), "held": held, "start_after": start_after,
        "idempotency": { "key": format!("key-{job}"), "body_hash": "hash" },
    })
}

const A: &str = "abcdefghijkl";
const B: &str = "bbbbbbbbbbbb";
const C: &str = "cccccccccccc";

fn event(name: &str, mut rest: Value) -> Value {
    rest["event"] = name.into();
    rest
}

fn job(name: &str, job: &str) -> Value {
    event(name, json!({ "job": job }))
}

fn repo(name: &str, repo: &str) -> Value {
    event(name, json!({ "name": repo }))
}

fn registered(name: &str, repo: &str) -> Value {
    event(name, json!({ "name": repo, "owner": "local", "source": "/src", "branch": "main" }))
}

fn operation(id: u64, kind: &Value) -> Value {
    event("operation_planned", json!({ "id": id, "kind": kind, "tries": 1 }))
}

fn ended(id: u64) -> Value {
    event("operation_ended", json!({ "id": id }))
}

fn attempt(n: u32) -> Value {
    json!({ "attempt": { "job": A, "attempt": n } })
}

fn launch(n: u32, turn: u32) -> Value {
    event("launch_planned", json!({ "job": A, "attempt": n, "turn": turn, "resume": n > 1 }))
}

fn end(n: u32, by: &str) -> Value {
    event("attempt_ended", json!({ "job": A, "attempt": n, "end": attempt_end(by) }))
}

/// Every event there is, in an order in which they can have happened.
fn records() -> Vec<Vec<Value>> {
    [begun(), gone_on()].concat()
}

fn begun() -> Vec<Vec<Value>> {
    let workspace = json!({ "made_by": "reflink", "base_commit": "abc", "branch": "outlive/a" });
    let decided =
        json!({ "job": A, "what": "attempt 1: adopted", "because": "it lives", "rule": "row 2" });
    let clone_of = |repo: &str| json!({ "kind": "clone", "repo": repo });
    vec![
        vec![
            event("server_started", json!({ "number": 1, "version": "0.1.0", "boot_id": "boot" })),
            registered("repo_added", "web"),
            operation(1, &clone_of("web")),
        ],
        vec![
            ended(1),
            repo("repo_ready", "web"),
            registered("repo_added", "bad"),
            operation(2, &clone_of("bad")),
        ],
        vec![
            accepted(A, false, None),
            event("copy_planned", json!({ "job": A, "operation": 3 })),
            operation(3, &json!({ "kind": "copy", "job": A })),
            ended(2),
            event("repo_failed", json!({ "name": "bad", "reason": "no such path" })),
        ],
        vec![
            ended(3),
            event("workspace_ready", json!({ "job": A, "workspace": workspace })),
            launch(1, 1),
            event("decided", decided),
            event("adopted", json!({ "work": attempt(1) })),
            event("relaunch_planned", json!({ "work": attempt(1) })),
        ],
    ]
}

fn gone_on() -> Vec<Vec<Value>> {
    let requeued = json!({ "job": A, "cause": "interruption", "until": 1_009_000, "afresh": null });
    let stop = event("stop_requested", json!({ "job": A, "work": attempt(3), "cause": "cancel" }));
    let waits = json!({ "job": B, "reason": { "kind": "repo", "name": "web" }, "until": null });
    let over = event("job_ended", json!({ "job": A, "outcome": outcome("cancelled") }));
    vec![
        vec![
            event("caretaker_planned", json!({ "work": attempt(1), "empty_tree": true })),
            event("turn_added", json!({ "job": A, "prompt": "and more" })),
            end(1, "exit"),
            job("turn_done", A),
            launch(2, 2),
            end(2, "interruption"),
            event("job_requeued", requeued),
            job("job_released", A),
            launch(3, 2),
        ],
        vec![accepted(B, true, None), job("job_released", B), event("job_waits", waits)],
        vec![
            job("job_held", B),
            event("job_edited", json!({ "job": B, "task": task(), "prompt": "rather this" })),
            accepted(C, false, Some(2_000_000)),
        ],
        vec![stop, end(3, "unknown"), event("attempt_unknown", json!({ "job": A, "attempt": 3 }))],
        vec![over, job("job_removed", C), repo("repo_removed", "bad")],
        vec![
            job("job_forgotten", C),
            repo("repo_forgotten", "bad"),
            registered("repo_repaired", "web"),
        ],
        vec![
            event("operation_forgotten", json!({ "id": 9 })),
            event("job_repaired", json!({ "job": repaired() })),
        ],
    ]
}

/// A job as a checkpoint, or a repair, has it.
fn repaired() -> Value {
    json!({
        "id": "dddddddddddd", "owner": "local", "accepted": 2, "changed": 2, "created_at": 1_000_000,
        "ready_at": 1_000_000, "slot_at": 1_000_001, "ended_at": null, "task": task(),
        "phase": { "name": "running", "attempt": 1 }, "turns": [{ "prompt": "do it", "at": 1_000_000 }],
        "turns_done": 0,
        "sessions": [{ "id": "session-d", "workspace": null, "output_base": [0, 0], "first_attempt": 1 }],
        "attempts": [{
            "n": 1, "turn": 1, "session": 0, "resume": false, "planned_at": 1_000_001, "caretakers": 1, "end": null,
        }],
        "interrupts": 1, "limits_met": 1, "limit_waited_ms": 5,
        "decisions": [{
            "lsn": 2, "at": 1_000_000, "start": 1, "what": "queued", "because": "b", "rule": "r", "times": 2,
        }],
        "decisions_dropped": 1, "idempotency": { "key": "key-d", "body_hash": "hash" },
    })
}
