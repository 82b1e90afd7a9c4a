//! From a command line to a submission, and how often it is sent.

use clap::Parser as _;

use super::*;
use crate::face::cli::{Cli, Verb};
use crate::face::client::Client;
use crate::face::client::target::Target;
use crate::face::client::tests::{answer, nobody, peer};

fn body(line: &[&str]) -> Result<Value, String> {
    let words = ["outlive", "submit", "--repo", "web"].into_iter().chain(line.iter().copied());
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    let Verb::Submit(submit) = cli.verb else { return Err("another verb".to_string()) };
    submit.task.into_body(submit.hold).map_err(|failure| failure.told())
}

#[test]
fn a_prompt_alone_makes_the_smallest_submission() {
    assert_eq!(body(&["do it"]), Ok(json!({ "repo": "web", "prompt": "do it" })));
}

#[test]
fn every_flag_becomes_its_field() {
    let line = [
        "--engine",
        "demo",
        "--timeout",
        "30m",
        "--idle-output",
        "10m",
        "--priority",
        "7",
        "--model",
        "big",
        "--env",
        "A=b=c",
        "--env",
        "B=",
        "--option",
        "lines=3",
        "--option",
        "word=hi",
        "--on-interrupt",
        "retry",
        "--on-unknown",
        "fail",
        "--after",
        "2026-12-31T08:00:00Z",
        "--title",
        "T",
        "--group",
        "G",
        "--hold",
        "go",
    ];
    let expected = json!({
        "repo": "web", "engine": "demo", "engine_options": { "lines": 3, "word": "hi" },
        "prompt": "go", "timeout_s": 1800, "limits": { "idle_output_s": 600 }, "priority": 7, "model": "big",
        "env": { "A": "b=c", "B": "" }, "on_interrupt": "retry", "on_unknown": "fail",
        "start_after": "2026-12-31T08:00:00.000Z", "title": "T", "group": "G", "hold": true,
    });
    assert_eq!(body(&line), Ok(expected));
}

#[test]
fn a_command_after_two_dashes_implies_its_engine() {
    let argv = json!(["sh", "-c", "make test"]);
    let expected = json!({
        "repo": "web", "engine": "command", "engine_options": { "argv": argv },
    });
    assert_eq!(body(&["--", "sh", "-c", "make test"]), Ok(expected.clone()));
    assert_eq!(body(&["--engine", "command", "--", "sh", "-c", "make test"]), Ok(expected));
    let with_input = body(&["input", "--", "cat", "--", "-"]).expect("a body");
    assert_eq!(with_input["prompt"], "input");
    assert_eq!(with_input["engine_options"]["argv"], json!(["cat", "--", "-"]));
    let told = body(&["--engine", "claude", "--", "make"]).expect_err("no command for claude");
    assert!(told.contains("takes no command"), "{told}");
}

#[test]
fn nonsense_is_refused_before_anything_is_sent() {
    for (line, word) in [
        (vec![], "nothing to do"),
        (vec!["x", "--timeout", "soon"], "write 90s"),
        (vec!["x", "--env", "A"], "NAME=VALUE"),
        (vec!["x", "--env", "=b"], "NAME=VALUE"),
        (vec!["x", "--after", "tomorrow"], "is no time"),
        (vec!["x", "--on-interrupt", "hold"], "possible values"),
        (vec!["x", "--prompt-file", "y"], "cannot be used with"),
        (vec!["--prompt-file", "/nonexistent/file"], "cannot read /nonexistent/file"),
        (vec!["x", "--priority", "-1"], "unexpected argument"),
        (vec!["x", "y"], "unexpected argument"),
    ] {
        let told = body(&line).expect_err("nonsense");
        assert!(told.contains(word), "{line:?}: {told}");
    }
}

#[test]
fn a_start_time_may_be_a_length_of_time_from_now() {
    let before = clock::now();
    let at = clock::parse(&parse_start("2h").expect("a time")).expect("RFC 3339");
    let two_hours = 7_200_000;
    assert!((before.0 + two_hours..=clock::now().0 + two_hours).contains(&at.0));
}

#[test]
fn a_timeout_may_be_less_than_whole_seconds() {
    assert_eq!(seconds(Duration::from_millis(1500)), json!(1.5));
    assert_eq!(seconds(Duration::from_secs(90)), json!(90));
}

fn context(server: &str) -> Context {
    let target = Target::new(Some(server.to_string()), None, PathBuf::from("/nonexistent"));
    Context { client: Client::new(server, None), target }
}

#[test]
fn a_submission_that_broke_off_is_sent_again_with_the_same_key_and_body() {
    let stopping = r#"{"code":"stopping","detail":"the server is stopping"}"#;
    let (server, asked) = peer(vec![
        String::new(),
        answer("503 Service Unavailable", "", stopping),
        answer("201 Created", "", r#"{"id":"abc"}"#),
    ]);
    let job = post(&context(&server), &json!({ "repo": "web" }), "key-1").expect("accepted");
    assert_eq!(job["id"], "abc");
    let asked: Vec<String> = asked.iter().collect();
    assert_eq!(asked.len(), 3);
    assert!(asked[0].contains("\r\nidempotency-key: key-1\r\n"), "{}", asked[0]);
    assert!(asked.iter().all(|request| *request == asked[0]));
}

#[test]
fn a_submission_is_not_sent_for_ever_and_not_at_all_without_a_server() {
    let accepted = answer("201 Created", "", r#"{"id":"abc"}"#);
    let (server, _asked) = peer(vec![String::new(), String::new(), String::new(), accepted]);
    let failure = post(&context(&server), &json!({}), "k").expect_err("broken thrice");
    assert_eq!(failure.status(), 120);
    assert_eq!(post(&context(&nobody()), &json!({}), "k").expect_err("nobody").status(), 120);
    let full = r#"{"code":"disk_full","detail":"full"}"#;
    let (server, asked) = peer(vec![answer("507 Insufficient Storage", "", full)]);
    let failure = post(&context(&server), &json!({}), "k").expect_err("refused");
    assert_eq!((failure.status(), asked.iter().count()), (121, 1));
}

#[test]
fn keys_are_new_each_time() {
    assert_ne!(new_key(), new_key());
    assert_eq!(new_key().len(), 36);
}
