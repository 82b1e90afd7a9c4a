//! Reading and carrying real repositories.

use std::fs;

use super::*;
use crate::world::git::tests::{git, lively_repo, status};

#[test]
fn the_state_of_a_repo_is_branch_commit_and_dirt() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path();
    assert!(matches!(state(path), Err(RepoError::NotARepository(_))));
    git(path, &["init", "--quiet"]);
    let clean = RepoState { branch: Some("main".into()), commit: None, dirty: false };
    assert_eq!(state(path).unwrap(), clean);
    lively_repo(path);
    let index = fs::read(path.join(".git/index")).unwrap();
    let commit = git(path, &["rev-parse", "HEAD"]).trim().to_owned();
    let seen = state(path).unwrap();
    assert_eq!(seen, RepoState { branch: Some("main".into()), commit: Some(commit), dirty: true });
    assert_eq!(fs::read(path.join(".git/index")).unwrap(), index, "looking changes nothing");
    git(path, &["add", "."]);
    git(path, &["commit", "--quiet", "-m", "all"]);
    git(path, &["checkout", "--quiet", "--detach"]);
    let seen = state(path).unwrap();
    assert_eq!((seen.branch, seen.dirty), (None, false));
}

#[test]
fn a_hostile_config_starts_nothing() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("w");
    fs::create_dir(&path).unwrap();
    lively_repo(&path);
    let touch = format!("touch {}", room.path().join("ran").display());
    for key in
        ["core.fsmonitor", "diff.external", "core.pager", "core.sshCommand", "diff.x.command"]
    {
        git(&path, &["config", key, &touch]);
    }
    git(&path, &["config", "filter.x.clean", &touch]);
    git(&path, &["config", "diff.x.textconv", &touch]);
    fs::write(path.join(".gitattributes"), "* diff=x filter=x\n").unwrap();
    let mut written = Vec::new();
    crate::world::diff::diff(&path, Some("HEAD~0"), room.path(), 1 << 20, &mut written)
        .unwrap_err();
    let base = fs::read_to_string(path.join(".git/refs/heads/main")).unwrap();
    crate::world::diff::diff(&path, Some(base.trim()), room.path(), 1 << 20, &mut written).unwrap();
    bundle(&path, "main", None, 1 << 20, &mut std::io::sink()).unwrap();
    assert!(!room.path().join("ran").exists());
}

#[test]
fn a_bundle_carries_the_branch_into_another_clone() {
    let room = tempfile::tempdir().unwrap();
    let at = |name: &str| room.path().join(name);
    fs::create_dir(at("w")).unwrap();
    lively_repo(&at("w"));
    git(room.path(), &["clone", "--quiet", "w", "mine"]);
    let base = git(&at("w"), &["rev-parse", "HEAD"]).trim().to_owned();
    git(&at("w"), &["symbolic-ref", "HEAD", "refs/heads/outlive/abc"]);
    git(&at("w"), &["branch", "outlive/abc", &base]);
    let pack = |since: Option<&str>, name: &str| {
        let mut file = fs::File::create(at(name)).unwrap();
        bundle(&at("w"), "outlive/abc", since, 1 << 20, &mut file)
    };
    assert!(matches!(pack(Some(&base), "b0"), Err(RepoError::NothingNew { .. })));
    git(&at("w"), &["commit", "--quiet", "-a", "-m", "work"]);
    let before = status(&at("w"));
    for (since, name) in [(None, "whole"), (Some(base.as_str()), "new")] {
        pack(since, name).unwrap();
        fetch_bundle(&at("mine"), &at(name), "outlive/abc").unwrap();
        let tip = git(&at("w"), &["rev-parse", "HEAD"]);
        assert_eq!(git(&at("mine"), &["rev-parse", "outlive/abc"]), tip);
        git(&at("w"), &["commit", "--quiet", "--allow-empty", "-m", "more"]);
    }
    assert_eq!(status(&at("w")), before);
    assert_eq!(git(&at("mine"), &["branch", "--show-current"]), "main\n");
}

#[test]
fn a_bundle_that_cannot_be_is_a_clear_error() {
    let room = tempfile::tempdir().unwrap();
    lively_repo(room.path());
    let mut bytes = Vec::new();
    let missing = bundle(room.path(), "nope", None, 1 << 20, &mut bytes).unwrap_err();
    assert!(missing.to_string().ends_with("has no branch nope"), "{missing}");
    let large = bundle(room.path(), "main", None, 10, &mut bytes).unwrap_err();
    assert!(matches!(large, RepoError::Git(GitError::TooLarge { limit: 10, .. })), "{large}");
    let torn = room.path().join("torn");
    fs::write(&torn, "# v2 git bundle\nnonsense").unwrap();
    let refused = fetch_bundle(room.path(), &torn, "outlive/abc").unwrap_err();
    assert!(refused.to_string().starts_with("git fetch failed: "), "{refused}");
}
