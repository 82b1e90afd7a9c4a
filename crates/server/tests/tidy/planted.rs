//! Rules on planted bugs: none is in the program that people get, and each has a test that is there.

use std::collections::BTreeSet;

use crate::source::{Part, keep, without_unit_tests};
use crate::tree::{File, find, rust, word_positions};

/// The file that says whether a bug is planted.
pub(crate) const SWITCH: &str = "crates/core/src/planted.rs";

const SCRIPT: &str = "scripts/planted";

/// A bug in the code has a line in the script and the reverse, and the line's test exists; no feature is on by itself.
pub(crate) fn planted(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    let listed = lines(files);
    let mut names = BTreeSet::new();
    for file in rust(files).filter(|file| !file.is_test() && file.path != SWITCH) {
        for name in names_in(&file.text) {
            if !listed.iter().any(|(bug, _)| *bug == name) {
                complaints.push(format!("{}: {SCRIPT} lacks the bug {name}", file.path));
            }
            if !names.insert(name.clone()) {
                complaints.push(format!("{}: the bug {name} is planted twice", file.path));
            }
        }
    }
    for (bug, test) in &listed {
        if !names.contains(bug) {
            complaints.push(format!("{SCRIPT}: nobody plants {bug}"));
        }
        let name = test.rsplit("::").next().unwrap_or(test);
        if !rust(files).any(|file| !word_positions(&file.text, name).is_empty()) {
            complaints.push(format!("{SCRIPT}: there is no test {test}"));
        }
    }
    for file in files.iter().filter(|file| file.path.ends_with("Cargo.toml")) {
        let manifest: toml::Table = file.text.parse().unwrap_or_default();
        let features = manifest.get("features").and_then(toml::Value::as_table);
        for feature in features.into_iter().flatten().map(|(name, _)| name) {
            if feature != "planted" || file.path != "crates/core/Cargo.toml" {
                complaints.push(format!("{}: no feature {feature}", file.path));
            }
        }
    }
    let switch = find(files, SWITCH).map(File::code).unwrap_or_default();
    if !switch.contains("pub const fn planted(_bug: &str) -> bool {\n    false\n}") {
        complaints.push(format!("{SWITCH}: without the feature nothing is planted"));
    }
    complaints
}

/// The bugs that production code asks for.
fn names_in(source: &str) -> Vec<String> {
    let code = keep(&without_unit_tests(source), &[Part::Code, Part::Text]);
    let calls = code.split("planted(\"").skip(1);
    calls.filter_map(|rest| Some(rest.split('"').next()?.to_owned())).collect()
}

/// Bugs and tests of the script's table: `BUG|INVARIANT|TARGET|TEST`.
fn lines(files: &[File]) -> Vec<(String, String)> {
    let text = find(files, SCRIPT).map(|file| file.text.as_str()).unwrap_or_default();
    let explorer = text.lines().find_map(|line| line.trim().strip_prefix("explorer="));
    let row = |line: &str| match line.split('|').collect::<Vec<_>>().as_slice() {
        [bug, invariant, _, test] if invariant.starts_with('I') && !bug.contains(' ') => {
            Some(((*bug).to_owned(), test.replace("$explorer", explorer.unwrap_or_default())))
        }
        _ => None,
    };
    text.lines().filter_map(row).collect()
}

mod tests {
    use super::*;

    #[test]
    fn a_bug_without_a_line_a_line_without_a_bug_and_a_test_that_is_gone_are_found() {
        let switch =
            File::new(SWITCH, "pub const fn planted(_bug: &str) -> bool {\n    false\n}\n");
        let test = File::new("crates/a/tests/b.rs", "#[test]\nfn it_holds() {}\n");
        let check = |code: &str, lines: &str| {
            let code = File::new("crates/a/src/c.rs", code);
            planted(&[switch.clone(), test.clone(), code, File::new(SCRIPT, lines)]).len()
        };
        let (code, line) = ("fn f() { planted(\"a.b\") }", "a.b|I1|--lib|x::it_holds\n");
        assert_eq!(check(code, line), 0);
        assert_eq!(check(code, ""), 1);
        assert_eq!(check("", line), 1);
        assert_eq!(check(code, "a.b|I1|--lib|x::it_held\n"), 1);
        assert_eq!(check("fn f() { planted(\"a.b\") || planted(\"a.b\") }", line), 1);
        let feature = File::new("crates/a/Cargo.toml", "[features]\nplanted = []\n");
        assert_eq!(planted(&[switch.clone(), feature]).len(), 1);
        assert_eq!(planted(&[]).len(), 1);
    }
}
