//! Git with a cleaned environment and bounded answers.

use super::*;

/// A real git for tests, apart from the config of whoever runs them; returns standard output, panics on failure.
pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    let mut command = clean();
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    command.args(["-c", "user.name=T", "-c", "user.email=t@example.org"]);
    command.args(["-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always"]);
    let output = command.current_dir(dir).args(args).output().expect("git is installed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?} in {}: {complaint}", dir.display());
    String::from_utf8(output.stdout).expect("text")
}

/// A work tree with a commit, ignored and untracked files, staged and unstaged changes, and a symlink.
pub(crate) fn lively_repo(dir: &Path) {
    std::fs::create_dir_all(dir.join("src")).unwrap();
    git(dir, &["init", "--quiet"]);
    for (name, text) in
        [(".gitignore", "deps/\n"), ("src/a", "a\n"), ("src/b", "b\n"), ("gone", "gone\n")]
    {
        std::fs::write(dir.join(name), text).unwrap();
    }
    std::os::unix::fs::symlink("src/a", dir.join("link")).unwrap();
    git(dir, &["add", "."]);
    git(dir, &["commit", "--quiet", "-m", "first"]);
    std::fs::write(dir.join("src/a"), "a staged\n").unwrap();
    git(dir, &["add", "src/a"]);
    std::fs::write(dir.join("src/b"), "b changed\n").unwrap();
    std::fs::write(dir.join("untracked"), "u\n").unwrap();
    std::fs::remove_file(dir.join("gone")).unwrap();
    std::fs::create_dir(dir.join("deps")).unwrap();
    std::fs::write(dir.join("deps/lib"), "ignored, but needed\n").unwrap();
}

/// What git says of the state of all files, ignored ones included.
pub(crate) fn status(dir: &Path) -> String {
    git(dir, &["status", "--porcelain", "--ignored", "--untracked-files=all"])
}

fn shell(script: &str, time: Duration, bytes: u64) -> (Result<(), GitError>, Vec<u8>) {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    let mut said = Vec::new();
    let bounds = Bounds { time: Some(time), bytes };
    (run(&mut command, "test", bounds, &mut said), said)
}

const LONG: Duration = Duration::from_mins(1);

#[test]
fn output_of_any_size_on_both_pipes_is_passed_on() {
    let script = "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; exec >&- 2>&-; true";
    let (ended, said) = shell(script, LONG, 300_000);
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!(said.len(), 300_000);
}

#[test]
fn a_command_beyond_its_time_or_size_is_ended_with_its_helpers() {
    let (ended, _) = shell("sleep 1000 & sleep 1000", Duration::from_millis(50), 10);
    assert!(matches!(ended, Err(GitError::TooSlow { .. })), "{ended:?}");
    // Its output closed, the process itself still there.
    let (ended, _) = shell("exec >&- 2>&-; sleep 1000", Duration::from_millis(50), 10);
    assert!(matches!(ended, Err(GitError::TooSlow { .. })), "{ended:?}");
    let (ended, said) = shell("head -c 11 /dev/zero; sleep 1000", LONG, 10);
    assert!(matches!(ended, Err(GitError::TooLarge { limit: 10, .. })), "{ended:?}");
    assert!(said.len() <= 10);
}

#[test]
fn a_failure_is_told_in_one_line() {
    let script = "echo 'hint: no' >&2; echo 'Cloning into x' >&2; echo 'fatal: bad' >&2; echo ' and worse' >&2; exit 3";
    let (ended, _) = shell(script, LONG, 10);
    assert_eq!(ended.unwrap_err().to_string(), "git test failed: bad; and worse");
    let (ended, _) = shell("kill -9 $$", LONG, 10);
    assert!(matches!(&ended, Err(GitError::Failed { code: None, .. })), "{ended:?}");
    assert!(reason(&"x".repeat(9999)).len() < REASON_BYTES_MAX + 10);
    let missing = run(&mut Command::new("/nonexistent/git"), "x", Bounds::SHORT, &mut io::sink());
    assert!(matches!(missing, Err(GitError::NotStarted(_))), "{missing:?}");
}

#[test]
fn a_head_that_names_a_lost_commit_is_an_error_and_not_an_empty_repository() {
    let room = tempfile::tempdir().unwrap();
    git(room.path(), &["init", "--quiet"]);
    let dir = git_dir(room.path()).expect("a repository");
    assert_eq!(head_commit(&dir).unwrap(), None);
    std::fs::write(dir.join("refs/heads/main"), "1234567890123456789012345678901234567890\n")
        .unwrap();
    let error = head_commit(&dir).unwrap_err().to_string();
    assert!(error.contains("HEAD names 1234567890"), "{error}");
}
