//! The command line as such: every verb can be read, and the help says what a newcomer needs.

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_promised_verb_can_be_read() {
    for line in [
        "demo --engine claude --keep",
        "serve --data /d --listen 127.0.0.1:0 --config /c",
        "run --repo web fix",
        "submit --repo web --json fix",
        "list --phase running -q text --json",
        "ps",
        "show abc --json",
        "output abc -f --raw --stderr",
        "logs abc -f",
        "wait abc def",
        "why abc --json",
        "cancel abc def",
        "cancel --group g",
        "start abc",
        "hold abc",
        "resume abc more",
        "retry abc",
        "edit abc --priority 9 --timeout 30m",
        "settle abc --as failed",
        "remove --force abc def",
        "rm --group g",
        "pull abc",
        "diff abc",
        "repo add web . --branch main",
        "repo list --json",
        "repo show web",
        "repo remove web",
        "repo repair web",
        "repo repair web --source . --branch main",
        "repair abc def",
        "engine list --json",
        "startup-log --json",
        "wal --verify /d",
        "wal --json /d",
        "--server 127.0.0.1:1 list",
        "list --server 127.0.0.1:1 --data /d",
    ] {
        let words = ["outlive"].into_iter().chain(line.split(' '));
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn lines_that_make_no_sense_are_usage_errors() {
    for line in [
        "",
        "lst",
        "run fix",
        "wait",
        "cancel",
        "cancel abc --group g",
        "settle abc --as cancelled",
        "settle abc",
        "edit abc",
        "resume abc",
        "show",
        "repo",
        "wal /d",
        "wal --verify",
    ] {
        let words = ["outlive"].into_iter().chain(line.split(' ').filter(|word| !word.is_empty()));
        let error = Cli::try_parse_from(words).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn the_help_names_the_first_steps_and_the_exit_codes() {
    let help = Cli::command().render_long_help().to_string();
    for word in ["outlive demo", "outlive repo add", "`last`", "124 timed out", "OUTLIVE_SERVER"] {
        assert!(help.contains(word), "{word} in {help}");
    }
    assert!(!help.contains("supervise"), "hidden verbs stay hidden");
}
