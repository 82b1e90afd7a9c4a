//! Usage limits and overload, with the real Claude Code: its job waits, visibly, over deaths of the server, and goes on.

use serde_json::{Value, json};

use crate::claude::rig_with_claude;
use crate::fake_model::{FakeModel, RESETS_AT};
use crate::rig::Rig;

fn subscriber(model: &FakeModel) -> Rig {
    let mut rig = rig_with_claude(model);
    rig.set("CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-none");
    rig.unset("ANTHROPIC_API_KEY");
    rig.start();
    rig.repo();
    rig
}

fn job(prompt: &str, more: &Value) -> Value {
    let mut body = json!({ "repo": "r", "engine": "claude", "prompt": prompt });
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

fn post(rig: &Rig, id: &str, action: &str) {
    let path = format!("/api/jobs/{id}/{action}");
    rig.client().post(&path, &json!({})).expect("taken");
}

#[test]
fn a_usage_limit_that_ends_too_late_fails_the_job_with_the_time_at_which_it_ends() {
    let model = FakeModel::start();
    let rig = subscriber(&model);
    let id = rig.submit(&job("[[limited=429:never]] work", &json!({})));
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "failed", "{job:#}");
    assert_eq!(job["attempts"][0]["ended_by"], "usage_limit", "{job:#}");
    let reason = job["outcome"]["reason"].as_str().unwrap_or_default();
    let until = outlive_core::time::Timestamp((RESETS_AT + 5) * 1000).to_string();
    assert!(reason.contains(&format!("it would have to wait until {until}")), "{reason}");
}

#[test]
fn an_overloaded_model_is_waited_for_over_deaths_of_the_server_and_the_same_turn_goes_on() {
    let model = FakeModel::start();
    let mut rig = subscriber(&model);
    let id = rig.submit(&job("[[limited=529:open]] first words", &json!({})));
    let waits = rig.wait_phase(&id, "waiting");
    assert_eq!(waits["waiting"]["reason"], "the model is overloaded", "{waits:#}");
    assert!(waits["waiting"]["until"].is_string(), "{waits:#}");
    assert_eq!(waits["attempts"][0]["ended_by"], "overload", "{waits:#}");
    for _ in 0..2 {
        rig.kill();
        rig.start();
        assert_eq!(rig.job(&id)["waiting"], waits["waiting"], "it waits on as it did");
    }
    model.open_gate("open");
    post(&rig, &id, "start");
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "completed", "{job:#}");
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(2), "{job:#}");
    assert_eq!((&job["attempts"][1]["turn"], &job["interrupts"]), (&json!(1), &json!(0)));
    assert_eq!(job["attempts"][1]["session"], job["attempts"][0]["session"]);
    let why = rig.why(&id);
    assert!(why.contains("its agent met an overloaded model until "), "{why}");
}

#[test]
fn who_is_not_to_wait_for_limits_fails_at_once() {
    let model = FakeModel::start();
    let rig = subscriber(&model);
    let id = rig.submit(&job("[[limited=529:never]] work", &json!({ "on_limit": "fail" })));
    let ended = rig.wait_ended(&id);
    assert_eq!(ended["outcome"]["kind"], "failed", "{ended:#}");
    let reason = ended["outcome"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("529") && reason.ends_with("(on_limit = fail)"), "{reason}");
    // What the fields may be is checked before anything is accepted.
    for (field, value) in [
        ("on_limit", json!("hope")),
        ("limit_wait_max_s", json!(-1)),
        ("limit_wait_max_s", json!(40 * 86_400)),
    ] {
        let refused = rig.client().post("/api/jobs", &job("x", &json!({ field: value })));
        let refused = refused.expect_err("refused");
        let told = refused.to_string();
        assert!(told.contains(field) || told.contains("`wait` or `fail`"), "{told}");
    }
}
