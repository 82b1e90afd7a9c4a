//! The real Claude Code as a job: its server killed in mid-answer, itself killed, resumed.

use outlive::face::client::Client;
use serde_json::{Value, json};

use crate::engine_claude::claude_program;
use crate::fake_model::FakeModel;
use crate::rig::{Rig, signal, wait_gone};

/// A rig whose agents find the real CLI in their path and our model at its address.
pub(crate) fn rig_with_claude(model: &FakeModel) -> Rig {
    let mut rig = Rig::new();
    let program = claude_program();
    let dir = program.parent().expect("a program stands in a directory");
    let path = std::env::var("PATH").unwrap_or_default();
    rig.set("PATH", format!("{}:{path}", dir.display()));
    rig.set("HOME", rig.path("home").display().to_string());
    std::fs::create_dir_all(rig.path("home")).expect("a home");
    for (name, value) in model.env() {
        rig.set(name, value);
    }
    rig
}

fn job(prompt: &str) -> Value {
    json!({ "repo": "r", "engine": "claude", "prompt": prompt })
}

fn text(client: &Client, id: &str) -> String {
    let reply = client.get(&format!("/api/jobs/{id}/output?format=text")).expect("there");
    String::from_utf8(reply.body).expect("text")
}

#[test]
fn a_server_killed_in_mid_answer_changes_nothing_for_claude() {
    let prompt = "[[tool=echo made > made.txt]] [[gate=g]] write a file";
    let told = |crash: bool| {
        let model = FakeModel::start();
        let mut rig = rig_with_claude(&model);
        rig.start();
        rig.repo();
        let id = rig.submit(&job(prompt));
        model.wait_until_held("g");
        if crash {
            rig.kill();
            rig.start();
            assert_eq!(rig.job(&id)["phase"], "running");
        }
        model.open_gate("g");
        let job = rig.wait_ended(&id);
        assert_eq!(job["outcome"]["kind"], "completed", "{job:#}");
        assert_eq!(job["outcome"]["exit_code"], 0);
        assert_eq!(job["outcome"]["disagreement"], Value::Null);
        assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1));
        assert!(job["usage"]["output_tokens"].as_u64() > Some(0), "{job:#}");
        let made = rig.data().join("jobs").join(&id).join("workspace/made.txt");
        assert_eq!(std::fs::read_to_string(made).expect("the tool ran"), "made\n");
        text(rig.client(), &id)
    };
    let (calm, crashed) = (told(false), told(true));
    assert!(calm.contains("[Bash] ") && calm.contains("DONE user_turns=1"), "{calm}");
    assert_eq!(calm, crashed);
}

#[test]
fn claude_killed_itself_is_resumed_in_its_conversation() {
    let model = FakeModel::start();
    let mut rig = rig_with_claude(&model);
    rig.start();
    rig.repo();
    let id = rig.submit(&job("first words"));
    let first = rig.wait_ended(&id);
    assert_eq!(first["outcome"]["kind"], "completed", "{first:#}");
    // The second turn is cut off: agent and supervisor die, and the server with them.
    let resume = json!({ "prompt": "[[gate=g]] second words" });
    rig.client().post(&format!("/api/jobs/{id}/resume"), &resume).expect("taken");
    model.wait_until_held("g");
    let (agent, keeper) = rig.pids(&id, 2);
    rig.kill();
    for pid in [keeper, agent] {
        signal(pid, "-KILL");
        wait_gone(pid);
    }
    rig.start();
    let held = rig.job(&id);
    assert_eq!(held["phase"], "unknown", "nothing proves how it ended: {held:#}");
    model.open_gate("g");
    let resume = json!({ "prompt": "third words" });
    rig.client().post(&format!("/api/jobs/{id}/resume"), &resume).expect("taken");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "completed", "{job:#}");
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(3), "{job:#}");
    let said = text(rig.client(), &id);
    assert!(said.contains("first=first words"), "the conversation went on: {said}");
}

#[test]
fn a_missing_cli_is_named_with_the_way_to_get_it() {
    let model = FakeModel::start();
    let mut rig = rig_with_claude(&model);
    rig.set("PATH", "/usr/bin:/bin");
    rig.start();
    rig.repo();
    let id = rig.submit(&job("anything"));
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "failed", "{job:#}");
    let reason = job["outcome"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("claude") && reason.contains("install"), "{reason}");
}
