//! Patches of real workspaces, applied again by git.

use std::fs;

use super::*;
use crate::world::copy::tests::look;
use crate::world::git::tests::{git, lively_repo};

fn patch_of(workspace: &Path, base: Option<&str>) -> Result<Vec<u8>, DiffError> {
    let scratch = tempfile::tempdir().unwrap();
    let mut patch = Vec::new();
    let done = diff(workspace, base, scratch.path(), 1 << 20, &mut patch);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing stays behind");
    done.map(|()| patch)
}

#[test]
fn the_patch_makes_the_base_into_the_workspace() {
    let room = tempfile::tempdir().unwrap();
    let (workspace, fresh) = (room.path().join("w"), room.path().join("fresh"));
    fs::create_dir(&workspace).unwrap();
    lively_repo(&workspace);
    let base = git(&workspace, &["rev-parse", "HEAD"]).trim().to_owned();
    git(&workspace, &["commit", "--quiet", "-m", "of the agent"]);
    fs::write(workspace.join("binary\n\u{fc}"), [0, 159, 146, 150, 0, 13, 10]).unwrap();
    fs::create_dir(workspace.join("nested")).unwrap();
    git(&workspace.join("nested"), &["init", "--quiet"]);
    let git_before = look(&workspace.join(".git"));

    let patch = patch_of(&workspace, Some(&base)).unwrap();

    assert_eq!(look(&workspace.join(".git")), git_before, "the repository is untouched");
    git(room.path(), &["clone", "--quiet", "w", "fresh"]);
    git(&fresh, &["reset", "--quiet", "--hard", &base]);
    fs::write(room.path().join("patch"), &patch).unwrap();
    git(&fresh, &["apply", "--binary", "../patch"]);
    for name in ["src/a", "src/b", "untracked", "binary\n\u{fc}", ".gitignore"] {
        let (theirs, ours) = (fs::read(workspace.join(name)), fs::read(fresh.join(name)));
        assert_eq!(theirs.unwrap(), ours.unwrap(), "{name}");
    }
    assert!(!fresh.join("gone").exists() && !fresh.join("deps").exists());
}

#[test]
fn without_a_base_everything_is_new_and_without_changes_nothing_is() {
    let room = tempfile::tempdir().unwrap();
    git(room.path(), &["init", "--quiet", "--object-format=sha256"]);
    fs::write(room.path().join("new"), "n\n").unwrap();
    let patch = String::from_utf8(patch_of(room.path(), None).unwrap()).unwrap();
    assert!(patch.contains("new file") && patch.contains("+n"), "{patch}");
    git(room.path(), &["add", "."]);
    git(room.path(), &["commit", "--quiet", "-m", "first"]);
    let base = git(room.path(), &["rev-parse", "HEAD"]);
    assert!(patch_of(room.path(), Some(base.trim())).unwrap().is_empty());
}

#[test]
fn a_damaged_index_does_not_hide_the_work() {
    let room = tempfile::tempdir().unwrap();
    lively_repo(room.path());
    let base = git(room.path(), &["rev-parse", "HEAD"]);
    fs::write(room.path().join(".git/index"), "damaged").unwrap();
    let patch = String::from_utf8(patch_of(room.path(), Some(base.trim())).unwrap()).unwrap();
    assert!(patch.contains("+a staged") && patch.contains("b/untracked"), "{patch}");
}

#[test]
fn a_diff_beyond_its_size_and_a_lost_base_are_clear_errors() {
    let room = tempfile::tempdir().unwrap();
    lively_repo(room.path());
    let base = git(room.path(), &["rev-parse", "HEAD"]);
    let mut patch = Vec::new();
    let scratch = tempfile::tempdir().unwrap();
    let large = diff(room.path(), Some(base.trim()), scratch.path(), 10, &mut patch).unwrap_err();
    assert_eq!(large.to_string(), "git diff gave more than 10 bytes");
    let lost = patch_of(room.path(), Some(&"1".repeat(40))).unwrap_err().to_string();
    assert!(lost.contains("bad object 1111"), "{lost}");
    let none = patch_of(scratch.path(), None).unwrap_err();
    assert!(matches!(none, DiffError::Repo(RepoError::NotARepository(_))), "{none}");
}
