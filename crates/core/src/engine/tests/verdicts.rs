//! Every way to end × every closing record. Failed runs once passed for completed here; never again.

use std::string::ToString;

use crate::engine::{find, verdict};
use crate::evidence::AgentResult;
use crate::spec::Ending;

fn record(success: bool) -> AgentResult {
    let text = if success { "all done" } else { "\nAPI Error: 500\nmore" };
    AgentResult { success, text: text.to_string() }
}

fn endings() -> [(&'static str, Option<Ending>); 7] {
    [
        ("exit code 0", Some(Ending::Exited(0))),
        ("exit code 1", Some(Ending::Exited(1))),
        ("exit code 42", Some(Ending::Exited(42))),
        ("killed by signal 9 (SIGKILL)", Some(Ending::Signaled(9))),
        (
            "cannot run `claude`: no such file or directory (errno 2)",
            Some(Ending::LaunchFailed { errno: 2, what: "claude".to_string() }),
        ),
        ("the agent was never started", Some(Ending::NeverRan)),
        ("exit status unproven", None),
    ]
}

#[test]
fn success_needs_the_exit_code_and_the_closing_record() {
    for engine in ["claude", "command", "demo"].map(|name| find(name).expect("known")) {
        for (how, ending) in endings() {
            for result in [None, Some(true), Some(false)] {
                let closing = result.map(record);
                let got = verdict(engine, ending.as_ref(), closing.as_ref());
                let case = std::format!("{} {how} {result:?}: {got:?}", engine.name);
                let zero = ending == Some(Ending::Exited(0));
                let success = match result {
                    Some(good) => good && (zero || ending.is_none()),
                    None => zero && engine.name != "claude",
                };
                assert_eq!(got.success, success, "{case}");
                let disagree = match result {
                    Some(true) => !zero && ending.is_some(),
                    Some(false) => zero,
                    None => zero && engine.name == "claude",
                };
                assert_eq!(got.disagreement.is_some(), disagree, "{case}");
                let both_told = got.disagreement.is_none_or(|text| text.contains(how));
                assert!(both_told, "{case}");
                let reason = if result == Some(false) { "API Error: 500" } else { how };
                assert!(got.reason.starts_with(reason), "{case}");
            }
        }
    }
}

#[test]
fn a_missing_program_comes_with_the_way_to_install_it() {
    let ending = Ending::LaunchFailed { errno: 2, what: "claude".to_string() };
    let reason = |name, ending| verdict(find(name).expect("known"), Some(ending), None).reason;
    assert!(reason("claude", &ending).contains("npm install"));
    assert!(!reason("command", &ending).contains("install"));
    let ending = Ending::LaunchFailed { errno: 13, what: "claude".to_string() };
    assert!(!reason("claude", &ending).contains("install"));
}
