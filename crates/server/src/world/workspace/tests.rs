//! Source copies and workspaces of real repositories.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::world::copy::tests::look;
use crate::world::git::tests::{git, lively_repo, status};
use crate::world::source::parse_source;

fn ours(trash: &Path) -> Ours<'_> {
    Ours { trash, instance: "an-instance" }
}

struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temp dir");
        for name in ["mine", "repos", "jobs", "trash"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn source_copy(&self, source: &Path, branch: Option<&str>) -> Result<Made, MakeError> {
        let source = Source::Local(source.to_owned());
        make_source_copy(&source, &self.at("repos/app"), branch, ours(&self.at("trash")))
    }

    fn clone(&self, url: &str, branch: Option<&str>) -> Result<Made, MakeError> {
        let source = parse_source(url).unwrap();
        make_source_copy(&source, &self.at("repos/app"), branch, ours(&self.at("trash")))
    }

    fn workspace(&self) -> Result<Made, MakeError> {
        let (from, to) = (self.at("repos/app"), self.at("jobs/w"));
        make_workspace(&from, &to, "outlive/abc", ours(&self.at("trash")))
    }

    fn nothing_left(&self) {
        for folder in ["repos", "jobs", "trash"] {
            let names: Vec<_> = fs::read_dir(self.at(folder)).unwrap().collect();
            assert!(names.is_empty(), "{folder}: {names:?}");
        }
    }
}

// PRODUCT: workspaces carry ignored files, dependencies and the index.
#[test]
fn a_workspace_has_every_file_and_the_index_of_a_local_work_tree() {
    let room = Room::new();
    let mine = room.at("mine");
    lively_repo(&mine);
    let (head, before, seen) = (git(&mine, &["rev-parse", "HEAD"]), status(&mine), look(&mine));
    assert!(before.contains("M  src/a") && before.contains("!! deps/lib"), "{before}");

    let made = room.source_copy(&mine, Some("main")).unwrap();
    assert_eq!(made.base_commit.as_deref(), Some(head.trim()));
    let made_workspace = room.workspace().unwrap();

    assert_eq!(status(&room.at("jobs/w")), before);
    assert_eq!(status(&room.at("repos/app")), before);
    assert_eq!(look(&mine.join("src")), look(&room.at("jobs/w/src")));
    assert!(look(&mine) == seen, "the original is untouched");
    let workspace = room.at("jobs/w");
    assert_eq!(git(&workspace, &["branch", "--show-current"]), "outlive/abc\n");
    assert_eq!(git(&workspace, &["rev-parse", "outlive/abc"]), head);
    assert_eq!(git(&room.at("repos/app"), &["branch", "--list"]), "* main\n");
    assert_eq!(made_workspace.base_commit, made.base_commit);
    assert_eq!(made_workspace.branch.as_deref(), Some("outlive/abc"));
    git(&workspace, &["fsck", "--strict"]);
    git(&workspace, &["commit", "--quiet", "-a", "-m", "work"]);
    assert_eq!(git(&mine, &["rev-parse", "HEAD"]), head);
}

// Proves I7: a run after a finished one changes nothing and says the same.
#[test]
fn a_second_run_gives_the_same_answer_and_touches_nothing() {
    let room = Room::new();
    lively_repo(&room.at("mine"));
    let first = (room.source_copy(&room.at("mine"), None).unwrap(), room.workspace().unwrap());
    let seen = look(&room.at("jobs/w"));
    fs::write(room.at("mine/later"), "x").unwrap();
    let second = (room.source_copy(&room.at("mine"), None).unwrap(), room.workspace().unwrap());
    assert_eq!(first, second);
    assert_eq!(look(&room.at("jobs/w")), seen);
    assert!(!room.at("repos/app/later").exists());
}

#[test]
fn a_repository_without_commits_gets_an_unborn_branch() {
    let room = Room::new();
    git(&room.at("mine"), &["init", "--quiet"]);
    fs::write(room.at("mine/new"), "n").unwrap();
    let made = room.source_copy(&room.at("mine"), None).unwrap();
    assert_eq!((made.base_commit, made.branch.as_deref()), (None, Some("main")));
    let made = room.workspace().unwrap();
    assert_eq!((made.base_commit, made.branch.as_deref()), (None, Some("outlive/abc")));
    let workspace = room.at("jobs/w");
    git(&workspace, &["add", "new"]);
    git(&workspace, &["commit", "--quiet", "-m", "first"]);
    assert_eq!(git(&workspace, &["branch", "--show-current"]), "outlive/abc\n");
}

#[test]
fn a_detached_head_is_where_the_branch_begins() {
    let room = Room::new();
    lively_repo(&room.at("mine"));
    git(&room.at("mine"), &["checkout", "--quiet", "--detach"]);
    let made = room.source_copy(&room.at("mine"), None).unwrap();
    assert_eq!(made.branch, None);
    assert!(room.workspace().unwrap().base_commit.is_some());
}

#[test]
fn a_submodule_comes_along_and_works_in_the_copy() {
    let room = Room::new();
    fs::create_dir(room.at("lib")).unwrap();
    lively_repo(&room.at("lib"));
    let mine = room.at("mine");
    git(&mine, &["init", "--quiet"]);
    let lib = room.at("lib");
    git(&mine, &["submodule", "--quiet", "add", lib.to_str().unwrap(), "sub"]);
    git(&mine, &["commit", "--quiet", "-m", "with submodule"]);
    room.source_copy(&mine, None).unwrap();
    room.workspace().unwrap();
    let sub = room.at("jobs/w/sub");
    assert_eq!(fs::read(sub.join("src/b")).unwrap(), b"b\n");
    let top = git(&sub, &["rev-parse", "--show-toplevel"]);
    assert_eq!(Path::new(top.trim()), sub.canonicalize().unwrap());
    assert_eq!(status(&room.at("jobs/w")), "");
}

#[test]
fn borrowed_objects_become_the_copys_own() {
    let room = Room::new();
    let lender = room.at("lender");
    fs::create_dir(&lender).unwrap();
    lively_repo(&lender);
    fs::remove_dir(room.at("mine")).unwrap();
    git(room.dir.path(), &["clone", "--quiet", "--shared", "lender", "mine"]);
    fs::write(room.at("mine/src/b"), "staged only\n").unwrap();
    git(&room.at("mine"), &["add", "src/b"]);
    room.source_copy(&room.at("mine"), None).unwrap();
    fs::remove_dir_all(&lender).unwrap();
    git(&room.at("repos/app"), &["fsck", "--strict"]);
    assert_eq!(git(&room.at("repos/app"), &["show", ":src/b"]), "staged only\n");
}

#[test]
fn a_url_is_cloned_by_git() {
    let room = Room::new();
    lively_repo(&room.at("mine"));
    git(&room.at("mine"), &["branch", "other"]);
    let url = format!("file://{}", room.at("mine").display());
    let made = room.clone(&url, Some("other")).unwrap();
    assert_eq!((made.made_by, made.branch.as_deref()), (MadeBy::Clone, Some("other")));
    assert!(made.files > 5 && made.bytes > 0);
    assert_eq!(status(&room.at("repos/app")), "");
    assert!(!room.at("repos/app/deps").exists());
    assert_eq!(room.clone(&url, Some("other")).unwrap(), made);
    room.workspace().unwrap();
}

#[test]
fn sources_that_cannot_be_copied_are_named_with_a_way_out() {
    let room = Room::new();
    let mine = room.at("mine");
    let refused = |source: &Path| room.source_copy(source, None).unwrap_err().to_string();
    assert!(refused(&room.at("missing")).ends_with("missing does not exist"));
    assert!(refused(&mine).ends_with("mine is not the root of a git work tree"));
    lively_repo(&mine);
    let below = refused(&mine.join("src"));
    assert!(below.contains("src is not the root of a git work tree: "), "{below}");
    git(room.dir.path(), &["clone", "--quiet", "--bare", "mine", "bare"]);
    let bare = refused(&room.at("bare"));
    assert!(bare.contains("is a bare git repository: give it as file:///"), "{bare}");
    git(&mine, &["worktree", "add", "--quiet", "../linked"]);
    assert!(refused(&room.at("linked")).contains("is a linked work tree or submodule"));
    let other = room.source_copy(&mine, Some("other")).unwrap_err().to_string();
    assert!(other.contains("has main checked out, not other: switch there"), "{other}");
    git(&mine, &["config", "core.worktree", "/somewhere"]);
    assert!(refused(&mine).contains("has core.worktree set"));
    room.nothing_left();
}

#[test]
fn a_source_around_our_own_directories_is_refused() {
    let room = Room::new();
    lively_repo(room.dir.path());
    let error = room.source_copy(room.dir.path(), None).unwrap_err();
    assert!(matches!(error, MakeError::Around(..)), "{error}");
    room.nothing_left();
}

#[test]
fn a_failed_clone_says_why_and_leaves_nothing() {
    let room = Room::new();
    let missing = format!("file://{}", room.at("missing").display());
    let error = room.clone(&missing, None).unwrap_err().to_string();
    assert!(error.contains("git clone failed: ") && error.contains("missing"), "{error}");
    assert!(!error.contains('\n'), "{error}");
    lively_repo(&room.at("mine"));
    let url = format!("file://{}", room.at("mine").display());
    let error = room.clone(&url, Some("nope")).unwrap_err().to_string();
    assert!(error.contains("Remote branch nope not found"), "{error}");
    let error = room.clone("http://127.0.0.1:1/app", None).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1"), "{error}");
    room.nothing_left();
}

#[test]
fn a_branch_name_that_git_forbids_leaves_nothing() {
    let room = Room::new();
    lively_repo(&room.at("mine"));
    room.source_copy(&room.at("mine"), None).unwrap();
    let (from, to) = (room.at("repos/app"), room.at("jobs/w"));
    let error = make_workspace(&from, &to, "outlive/..", ours(&room.at("trash"))).unwrap_err();
    assert!(error.to_string().contains("check-ref-format"), "{error}");
    assert_eq!(fs::read_dir(room.at("jobs")).unwrap().count(), 0);
}

#[test]
fn something_else_under_the_name_is_never_touched() {
    let room = Room::new();
    lively_repo(&room.at("mine"));
    fs::create_dir(room.at("repos/app")).unwrap();
    let error = room.source_copy(&room.at("mine"), None).unwrap_err();
    assert!(matches!(error, MakeError::Occupied(_)), "{error}");
    assert!(room.at("repos/app").is_dir());
}

#[test]
fn a_planted_link_in_the_place_of_our_note_is_not_written_through() {
    let room = Room::new();
    lively_repo(&room.at("mine"));
    fs::write(room.at("precious"), "precious").unwrap();
    symlink(room.at("precious"), room.at("mine/.git/outlive.json")).unwrap();
    room.source_copy(&room.at("mine"), None).unwrap();
    assert_eq!(fs::read(room.at("precious")).unwrap(), b"precious");
}

#[test]
fn hooks_of_the_source_do_not_run() {
    let room = Room::new();
    lively_repo(&room.at("mine"));
    let hook = room.at("mine/.git/hooks/reference-transaction");
    fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", room.at("ran").display())).unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    room.source_copy(&room.at("mine"), None).unwrap();
    room.workspace().unwrap();
    assert!(!room.at("ran").exists());
    assert!(room.at("jobs/w/.git/hooks/reference-transaction").exists());
}

const MOUNTED: &str = "OUTLIVE_TEST_MOUNTED";

/// Runs itself again in a mount namespace of its own, so that no mount outlives the test.
#[test]
fn on_btrfs_and_xfs_a_workspace_shares_its_blocks_until_written() {
    if let Some(kind) = std::env::var_os(MOUNTED) {
        return on_mounted(&kind.to_string_lossy());
    }
    let this =
        "world::workspace::tests::on_btrfs_and_xfs_a_workspace_shares_its_blocks_until_written";
    for (kind, tool) in [("btrfs", "/usr/sbin/mkfs.btrfs"), ("xfs", "/usr/sbin/mkfs.xfs")] {
        let can = rustix::process::geteuid().is_root()
            && Path::new(tool).exists()
            && Path::new("/dev/loop-control").exists();
        if !can {
            println!("not covered here: reflink on {kind} (needs root, loop devices and {tool})");
            continue;
        }
        let child = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", this, "--nocapture"])
            .env(MOUNTED, kind)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&child.stdout);
        print!("{told}");
        let complaint = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{kind}: {told}{complaint}");
    }
}

fn on_mounted(kind: &str) {
    let outer = tempfile::tempdir().unwrap();
    let (image, place) = (outer.path().join("image"), outer.path().join("place"));
    fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
    fs::create_dir(&place).unwrap();
    let done = |program: &str, args: &[&std::ffi::OsStr]| {
        std::process::Command::new(program).args(args).status().is_ok_and(|s| s.success())
    };
    assert!(done(&format!("/usr/sbin/mkfs.{kind}"), &["-q".as_ref(), image.as_ref()]));
    if !done("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), place.as_ref()]) {
        println!("not covered here: reflink on {kind} (it cannot be mounted)");
        return;
    }
    for name in ["mine", "repos", "trash"] {
        fs::create_dir(place.join(name)).unwrap();
    }
    lively_repo(&place.join("mine"));
    let (mine, app, trash) = (place.join("mine"), place.join("repos/app"), place.join("trash"));
    let before = status(&mine);
    let made = make_source_copy(&Source::Local(mine.clone()), &app, None, ours(&trash)).unwrap();
    assert_eq!(made.made_by, MadeBy::Reflink);
    let workspace = place.join("repos/w");
    assert_eq!(
        make_workspace(&app, &workspace, "outlive/a", ours(&trash)).unwrap().made_by,
        made.made_by
    );
    assert_eq!(status(&workspace), before);
    fs::write(workspace.join("src/b"), "B").unwrap();
    assert_eq!(fs::read(app.join("src/b")).unwrap(), b"b changed\n");
    // Over the edge of the file system, where nothing can be shared, it is a plain copy and says so.
    let out = outer.path().join("out");
    let made = make_workspace(&app, &out, "outlive/a", ours(outer.path())).unwrap();
    assert_eq!(made.made_by, MadeBy::Copy);
    assert!(done("umount", &[place.as_ref()]));
}
