//! A server that is process 1 of a pid namespace, as in a container: everything ends with it, and the next start knows.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::case::kill_all;
use crate::crashes::tell;
use crate::rig::{Rig, signal, wait_gone};

/// A container without an init, as far as processes go.
const CONTAINER: &[&str] = &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Linux 6.18 and later tell for certain that a namespace has ended, to those who may make one.
fn can_be_proved() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let new = (numbers.next(), numbers.next()) >= (Some(6), Some(18));
    if !new {
        tell(
            "NOT COVERED: the end of a pid namespace can be proved from Linux 6.18 on; held as unknown here",
        );
    }
    new
}

/// Whether pid namespaces may be made here at all.
fn in_container(wrapper: &[&str]) -> Option<Rig> {
    let tried = Command::new("unshare").args(&CONTAINER[1..]).arg("true").output();
    if !tried.is_ok_and(|it| it.status.success()) {
        tell("NOT COVERED: servers in pid namespaces of their own: this needs root and unshare");
        return None;
    }
    let mut rig = Rig::new();
    rig.set("OUTLIVE_GRACE_S", "0");
    rig.wrap(wrapper);
    rig.start();
    rig.repo();
    Some(rig)
}

fn at_the_gate(rig: &Rig, more: &Value) -> String {
    let gate = rig.make_gate("gate").display().to_string();
    let ready = rig.make_gate("ready");
    let script = format!("echo one; echo ready > {}; read x < {gate}; exit 3", ready.display());
    let mut body = crate::rig::script_job(&script);
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let id = rig.submit(&body);
    assert_eq!(fs::read(&ready).expect("it says so"), b"ready\n");
    // What stands in a pipe ends with everything else.
    let follow = format!("/api/jobs/{id}/output?follow=true");
    let mut stream = rig.client().stream(&follow, &[]).expect("there");
    std::io::Read::read_exact(&mut stream, &mut [0; 4]).expect("comes");
    id
}

/// Process 1 of the container is killed with the wrapper, and all others by the kernel.
fn end_container(rig: &mut Rig) {
    let inside = rig.marked();
    assert!(!inside.is_empty(), "the agent is seen from outside");
    rig.kill();
    inside.into_iter().for_each(wait_gone);
}

#[test]
fn the_end_of_a_container_is_an_interruption_like_a_reboot() {
    let Some(mut rig) = in_container(CONTAINER) else { return };
    let id = at_the_gate(&rig, &json!({ "on_interrupt": "fail" }));
    end_container(&mut rig);
    rig.start();
    let why = rig.why(&id);
    if !can_be_proved() {
        assert_eq!(rig.job(&id)["phase"], "unknown", "{why}");
        return;
    }
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "interrupted", "{job:#}\n{why}");
    assert!(why.contains("(container) it ran in ended") && why.contains("row 7"), "{why}");
    assert_eq!(rig.output(&id), b"one\n");
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1));
}

/// The wrapper of a container that is still there when its test is over.
struct Container(u32);

impl Drop for Container {
    fn drop(&mut self) {
        signal(self.0, "-KILL");
    }
}

#[test]
fn a_container_that_outlives_its_server_is_not_taken_for_one_that_has_ended() {
    // Proves I6. An init of its own, which the server is not.
    let init = ["sh", "-c", "\"$@\" & wait; exec sleep 600", "init"];
    let Some(mut rig) = in_container(&[CONTAINER, &init].concat()) else { return };
    let container = Container(rig.pid());
    let id = at_the_gate(&rig, &json!({ "on_interrupt": "retry" }));
    let agents = rig.marked();
    // From inside, its pids mean nothing out here.
    kill_all(&[crate::rig::keepers_below(&rig.data()), servers_below(&rig)].concat());
    rig.forget();
    rig.wrap(&[]);
    rig.start();
    let (job, why) = (rig.job(&id), rig.why(&id));
    assert_eq!(job["phase"], "unknown", "{job:#}\n{why}");
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(rig.marked(), agents, "let alone");
    drop(container);
    agents.into_iter().for_each(wait_gone);
}

/// The servers on this data directory, as seen from here.
fn servers_below(rig: &Rig) -> Vec<u32> {
    let data = rig.data().display().to_string();
    let pids = fs::read_dir("/proc").expect("proc").filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        (words.get(1) == Some(&&b"serve"[..]) && words.contains(&data.as_bytes())).then_some(pid)
    });
    pids.collect()
}
