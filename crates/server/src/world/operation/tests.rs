//! Real runs as processes of their own, killed for real: the test program starts itself again as the operation.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use inotify::{Inotify, WatchMask};

use super::*;
use crate::world::git::tests::{git, lively_repo, status};

const ARGS: &str = "OUTLIVE_TEST_OPERATE";

/// In the child: the operation. Otherwise a test of its own.
#[test]
fn a_wrong_command_line_has_exit_code_2() {
    let Some(args) = std::env::var_os(ARGS) else {
        for args in [vec!["nonsense"], vec!["copy", "/a", "/b"]] {
            assert_eq!(format!("{:?}", main(args.into_iter().map(OsString::from))), two());
        }
        return;
    };
    let args = args.into_string().unwrap();
    let code = main(args.split('\u{1f}').map(OsString::from));
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
}

fn two() -> String {
    format!("{:?}", ExitCode::from(2))
}

fn start(args: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "world::operation::tests::a_wrong_command_line_has_exit_code_2",
            "--nocapture",
        ])
        .env(ARGS, args.join("\u{1f}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The answer of a finished run, or its first line on standard error.
fn answer(output: &Output) -> Result<serde_json::Value, String> {
    let told = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        // The test program's own words stand before and after.
        let line = told.lines().find_map(|line| line.find('{').map(|at| &line[at..]));
        return Ok(serde_json::from_str(line.expect("a line of JSON")).unwrap());
    }
    Err(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned())
}

struct Room {
    dir: tempfile::TempDir,
}

const FOLDERS: usize = 40;

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["mine", "repos", "jobs", "trash"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let room = Self { dir };
        lively_repo(&room.at("mine"));
        for n in 0..FOLDERS {
            let folder = room.at(&format!("mine/deps/{n}"));
            fs::create_dir(&folder).unwrap();
            for m in 0..40 {
                fs::write(folder.join(m.to_string()), "x".repeat(5000)).unwrap();
            }
        }
        room
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn text(&self, path: &str) -> String {
        self.at(path).to_str().unwrap().to_owned()
    }

    fn clone(&self, source: &str) -> Child {
        start(&[
            "clone",
            source,
            &self.text("repos/app"),
            "--trash",
            &self.text("trash"),
            "--instance=i",
        ])
    }

    fn copy(&self) -> Child {
        let (from, to, trash) = (self.text("repos/app"), self.text("jobs/w"), self.text("trash"));
        start(&["copy", &from, &to, "--branch", "outlive/abc", "--trash", &trash, "--instance=i"])
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let names = fs::read_dir(self.at(folder)).unwrap();
        names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// Returns when something of a name that `wanted` accepts has come into `folder`; none if `folder` is not there any more.
fn wait_for(folder: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mut inotify = Inotify::init().unwrap();
    inotify.watches().add(folder, WatchMask::CREATE | WatchMask::MOVED_TO).ok()?;
    let mut buffer = [0; 4096];
    loop {
        let mut there = fs::read_dir(folder).ok()?.flatten();
        if let Some(found) = there.find(|e| wanted(&e.file_name().to_string_lossy())) {
            return Some(found.path());
        }
        inotify.read_events_blocking(&mut buffer).unwrap();
    }
}

/// The parts of a new run, not what an earlier one left.
fn wait_for_parts(folder: &Path, earlier: &[String]) -> PathBuf {
    let new = |name: &str| name.contains(".partial-") && !earlier.iter().any(|e| e == name);
    wait_for(folder, new).expect("the folder stays")
}

/// SIGKILL, and its end waited for.
fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

// Proves I7 and I12 for operations: killed anywhere, run again, right in the end, nothing left over.
#[test]
fn a_copy_killed_at_any_stage_is_right_after_the_next_run() {
    let room = Room::new();
    let source = answer(&room.clone(&room.text("mine")).wait_with_output().unwrap()).unwrap();
    assert_eq!(source["branch"], "main");
    let before = status(&room.at("repos/app"));
    let mut half_way = 0;
    for stage in ["", "src", "deps", ".git", "deps/7", ".git/refs", ".git/outlive.json"] {
        let earlier = room.names("jobs");
        let child = room.copy();
        let partial = wait_for_parts(&room.at("jobs"), &earlier);
        let mut steps = stage.split('/').filter(|step| !step.is_empty());
        steps.try_fold(partial, |at, step| wait_for(&at, |name| name == step));
        kill(child);
        assert_eq!(room.names("jobs").len(), 1, "what the run before left is gone: {stage}");
        if room.at("jobs/w").exists() {
            // On a busy machine it may have been faster than we: then it is whole.
            assert_eq!(status(&room.at("jobs/w")), before, "{stage}");
            fs::remove_dir_all(room.at("jobs/w")).unwrap();
        } else {
            half_way += 1;
        }
    }
    assert!(half_way > 0, "at least one kill hit a copy under way");

    // And once more just after the rename, before the answer was read.
    let child = room.copy();
    wait_for(&room.at("jobs"), |name| name == "w");
    kill(child);
    let made = answer(&room.copy().wait_with_output().unwrap()).unwrap();
    assert_eq!(made["base_commit"], source["base_commit"]);
    assert_eq!(made["branch"], "outlive/abc");
    assert_eq!(made["made_by"], source["made_by"]);
    assert_eq!(room.names("jobs"), ["w"]);
    assert!(room.names("trash").is_empty());
    assert_eq!(status(&room.at("jobs/w")), before);
    git(&room.at("jobs/w"), &["fsck", "--strict"]);
}

// Proves I7 and I12, as above.
#[test]
fn a_clone_killed_half_way_is_right_after_the_next_run() {
    let room = Room::new();
    for source in [room.text("mine"), format!("file://{}", room.text("mine"))] {
        let child = room.clone(&source);
        let partial = wait_for_parts(&room.at("repos"), &[]);
        wait_for(&partial, |name| name == ".git");
        // A real supervisor ends the tree; here git must not go on beside the next run.
        kill(child);
        end_git_in(&partial);
        assert_eq!(room.names("repos").len(), 1);
        let made = answer(&room.clone(&source).wait_with_output().unwrap()).unwrap();
        assert_eq!(made["branch"], "main");
        assert_eq!(room.names("repos"), ["app"]);
        assert!(room.names("trash").is_empty());
        git(&room.at("repos/app"), &["fsck", "--strict"]);
        fs::remove_dir_all(room.at("repos/app")).unwrap();
    }
}

/// Ends the git that was started for `partial`, with its helpers, and waits until they are gone.
fn end_git_in(partial: &Path) {
    use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
    let partial = partial.to_str().unwrap();
    let leader = processes().find(|(_, _, line)| line.contains(partial) && line.starts_with("git"));
    // `run` gives it a group of its own.
    let Some((leader, group, _)) = leader else { return };
    assert_eq!(leader, group);
    let members: Vec<_> = processes().filter(|(_, of, _)| *of == group).collect();
    let pidfds: Vec<_> = members
        .iter()
        .filter_map(|(pid, _, _)| pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok())
        .collect();
    kill_process_group(Pid::from_raw(group).unwrap(), Signal::KILL).ok();
    for pidfd in &pidfds {
        let mut gone = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut gone, None).unwrap();
    }
}

/// Pid, process group and command line of every process.
fn processes() -> impl Iterator<Item = (i32, i32, String)> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // After the name in brackets: state, parent, group.
        let group = stat.rsplit(')').next()?.split_whitespace().nth(2)?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, group, String::from_utf8_lossy(&line).into_owned()))
    })
}

#[test]
fn a_failure_is_one_line_with_its_cause() {
    let room = Room::new();
    let refused = |source: &str| answer(&room.clone(source).wait_with_output().unwrap());
    let line = refused("/nonexistent/place").unwrap_err();
    assert_eq!(line, "/nonexistent/place does not exist");
    let line = refused("https://user:hunter2@example.org/x").unwrap_err();
    assert!(line.contains("must not contain a user name") && !line.contains("hunter2"), "{line}");
    let line = answer(&room.copy().wait_with_output().unwrap()).unwrap_err();
    assert!(line.ends_with("app is not the root of a git work tree"), "{line}");
    fs::remove_dir(room.at("trash")).unwrap();
    fs::create_dir_all(room.at("repos/.app.partial-0123456789abcdef")).unwrap();
    let line = refused(&room.text("mine")).unwrap_err();
    assert!(
        line.starts_with("cannot move into the trash ") && line.contains("No such file"),
        "{line}"
    );
}
