//! Command lines, options, and how a conversation is opened.

use std::string::{String, ToString};
use std::vec::Vec;

use serde_json::json;

use crate::engine::{
    BadOption, CommandLine, ConversationLost, EngineOptions, Launch, Opening, SessionSign, all,
    find,
};
use crate::ids::{AttemptNo, SessionId};

fn options(value: serde_json::Value) -> EngineOptions {
    match value {
        serde_json::Value::Object(map) => map,
        _ => panic!("options are an object"),
    }
}

fn line(
    engine: &str,
    given: serde_json::Value,
    change: impl FnOnce(&mut Launch<'_>),
) -> Result<CommandLine, BadOption> {
    let given = options(given);
    let session = SessionId("5e551011-0000-4000-8000-000000000001".to_string());
    let mut launch = Launch {
        session: &session,
        turn: 1,
        attempt: AttemptNo::MIN,
        prompt: "do `it`; $(rm -rf /)",
        model: None,
        options: &given,
        opening: Opening::Fresh,
        interrupted: false,
        program: None,
        exe: "/opt/outlive",
    };
    change(&mut launch);
    find(engine).expect("known").command_line(&launch)
}

const FIXED: &str = "-p --output-format stream-json --verbose --dangerously-skip-permissions";
const ID: &str = "5e551011-0000-4000-8000-000000000001";

#[test]
fn claude_is_called_as_was_tried_with_the_real_one() {
    let got = line("claude", json!({}), |_| ()).expect("good options");
    assert_eq!(got.argv.join(" "), std::format!("claude {FIXED} --session-id {ID}"));
    let env = [("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"), ("IS_SANDBOX", "1")];
    assert_eq!(got.env, env.map(|(k, v)| (k.to_string(), v.to_string())));
    assert_eq!(got.env_remove, ["CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT"]);
    assert_eq!(got.stdin.as_deref(), Some("do `it`; $(rm -rf /)"));

    let got = line("claude", json!({"config_dir": "/c"}), |launch| {
        launch.opening = Opening::Resume;
        launch.model = Some("--oops");
        launch.program = Some("/opt/claude");
    })
    .expect("good options");
    assert_eq!(
        got.argv.join(" "),
        std::format!("/opt/claude {FIXED} --model=--oops --resume {ID}")
    );
    assert_eq!(got.env.last(), Some(&("CLAUDE_CONFIG_DIR".to_string(), "/c".to_string())));
    assert_eq!(got.stdin.as_deref(), Some("do `it`; $(rm -rf /)"), "a follow-up is not changed");
}

#[test]
fn an_interrupted_turn_gets_its_prompt_again_and_is_told_so() {
    for opening in [Opening::Resume, Opening::Fresh] {
        let got = line("claude", json!({}), |launch| {
            launch.opening = opening;
            launch.interrupted = true;
        });
        let stdin = got.expect("good options").stdin.expect("has a prompt");
        assert!(stdin.starts_with("You were interrupted"), "{opening:?}");
        assert!(stdin.ends_with("do `it`; $(rm -rf /)"), "{opening:?}");
    }
}

#[test]
fn a_prompt_never_becomes_an_argument() {
    for engine in all() {
        let given = if engine.name == "command" { json!({"argv": ["true"]}) } else { json!({}) };
        let got = line(engine.name, given, |_| ()).expect("good options");
        assert!(got.argv.iter().all(|word| !word.contains("$(rm")), "{}", engine.name);
        assert!(got.stdin.is_some_and(|text| text.contains("$(rm")), "{}", engine.name);
    }
}

#[test]
fn a_command_is_run_as_given_and_reads_nothing_without_a_prompt() {
    let given = json!({"argv": ["sh", "-c", "echo \"$1\"", "sh", "a b", ""]});
    let got = line("command", given, |launch| launch.prompt = "").expect("good options");
    assert_eq!(got.argv, ["sh", "-c", "echo \"$1\"", "sh", "a b", ""]);
    assert_eq!(got.stdin, None);
}

#[test]
fn the_demo_agent_is_our_own_binary() {
    let got = line("demo", json!({"lines": 3, "until_file": "-x"}), |launch| {
        launch.opening = Opening::Resume;
    });
    let got = got.expect("good options");
    assert_eq!(got.argv.first().map(String::as_str), Some("/opt/outlive"));
    let words = ["demo-agent", "--lines=3", "--until-file=-x", "--resume"];
    assert!(words.iter().all(|word| got.argv.iter().any(|arg| arg == word)), "{:?}", got.argv);
}

#[test]
fn a_bad_option_is_refused_by_name() {
    let long: Vec<String> = std::vec!["x".to_string(); 1025];
    for (engine, given, message) in [
        ("command", json!({}), "engine `command` needs the option `argv`"),
        ("command", json!({"argv": []}), "option `argv` of engine `command` must be a list"),
        ("command", json!({"argv": "ls"}), "must be a list"),
        ("command", json!({"argv": [""]}), "must be a list"),
        ("command", json!({"argv": ["ls", 1]}), "must be a list"),
        ("command", json!({"argv": ["ls", "a\u{0}b"]}), "must be a list"),
        ("command", json!({"argv": long}), "must be a list"),
        ("command", json!({"argv": ["x".repeat(65536)]}), "must be a list"),
        ("command", json!({"arg": ["ls"]}), "no option `arg`; did you mean `argv`?"),
        ("claude", json!({"temperature": 1}), "engine `claude` has no option `temperature`"),
        ("claude", json!({"configdir": "/x"}), "did you mean `config_dir`?"),
        ("claude", json!({"config_dir": "x"}), "must be an absolute path"),
        ("demo", json!({"lines": 100_001}), "must be 0 to 100000"),
        ("demo", json!({"lines": -1}), "must be 0 to 100000"),
        ("demo", json!({"line_ms": 1.5}), "must be 0 to 60000"),
        ("demo", json!({"exit_code": 256}), "must be 0 to 255"),
        ("demo", json!({"edit": "../x"}), "must be a path inside the workspace"),
        ("demo", json!({"edit": "/x"}), "must be a path inside the workspace"),
        ("demo", json!({"count_starts": "a/../../x"}), "must be a path inside the workspace"),
        ("demo", json!({"until_file": ""}), "must be a path"),
    ] {
        let error = line(engine, given.clone(), |_| ()).expect_err("refused").to_string();
        assert!(error.contains(message), "{engine} {given}: {error}");
        let validated = find(engine).expect("known").validate_options(&options(given));
        assert_eq!(validated.expect_err("refused").to_string(), error);
    }
}

#[test]
fn engines_are_found_by_name_alone() {
    for engine in all() {
        assert_eq!(find(engine.name).map(|e| e.name), Some(engine.name));
        assert_eq!(engine.program.is_some(), !engine.install_hint.is_empty(), "{}", engine.name);
    }
    assert!(find("Claude").is_none() && find("").is_none());
}

#[test]
fn a_conversation_is_opened_by_the_newest_sign_of_it() {
    use SessionSign::{Announced, Closed, InUse, NotFound};
    let (fresh, resume) = (Ok(Opening::Fresh), Ok(Opening::Resume));
    // The newest first.
    for (earlier, expected) in [
        (&[][..], fresh),
        (&[None], fresh),
        (&[None, None], fresh),
        (&[Some(Announced)], resume),
        (&[Some(Closed)], resume),
        (&[Some(InUse)], resume),
        (&[None, Some(Closed)], resume),
        (&[Some(NotFound)], fresh),
        (&[Some(NotFound), Some(Announced)], fresh),
        (&[Some(Announced), Some(NotFound), Some(Announced)], resume),
        (&[None, Some(NotFound), Some(Announced)], fresh),
        (&[Some(NotFound), Some(Closed)], Err(ConversationLost)),
        (&[Some(NotFound), None, Some(Announced), Some(Closed)], Err(ConversationLost)),
    ] {
        let claude = find("claude").expect("known");
        assert_eq!(claude.opening(earlier.iter().copied()), expected, "{earlier:?}");
        let command = find("command").expect("known");
        assert_eq!(command.opening(earlier.iter().copied()), fresh, "{earlier:?}");
    }
    let demo = find("demo").expect("known");
    assert_eq!(demo.opening([].into_iter()), fresh);
    assert_eq!(demo.opening([None].into_iter()), resume);
}
