//! The story on file systems that can share blocks, where this machine lets us make them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::crashes::tell;
use crate::rig::Rig;

/// A file system in a file, mounted until it is dropped.
struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    /// `None`, told loudly, where it cannot be had.
    fn new(kind: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        let file = fs::File::create(&image).expect("a file");
        file.set_len(400 << 20).expect("a sparse file");
        let made = run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
        let place = dir.path().join("fs");
        fs::create_dir(&place).expect("a directory");
        let mounted = made
            .and_then(|()| run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&place)));
        if let Err(why) = mounted {
            tell(&format!("NOT COVERED: a loop mount of {kind}: {why}"));
            return None;
        }
        Some(Self { dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("fs")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(why) = run(Command::new("umount").arg(self.path())) {
            tell(&format!("left mounted: {}: {why}", self.path().display()));
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_string();
    output.status.success().then_some(()).ok_or(complaint)
}

fn outlive_on(place: &Path) {
    let mut rig = Rig::below(place);
    rig.start();
    rig.repo();
    let gate = rig.make_gate("gate");
    let script =
        format!("cat README.md; echo more >> README.md; read x < {}; exit 42", gate.display());
    let id = rig.submit_script(&script);
    let follow = format!("/api/jobs/{id}/output?follow=true");
    let mut stream = rig.client().stream(&follow, &[]).expect("there");
    std::io::Read::read_exact(&mut stream, &mut [0; 5]).expect("comes");
    let (_, keeper) = rig.pids(&id, 1);
    rig.kill();
    rig.open_gate("gate");
    crate::rig::wait_gone(keeper);
    rig.start();
    let job = rig.wait_ended(&id);
    assert_eq!(job["outcome"]["exit_code"], 42, "{job:#}");
    assert_eq!(job["workspace"]["made_by"], "reflink", "{job:#}");
    assert_eq!(rig.output(&id), b"# A repository\n");
    assert_eq!(fs::read(rig.path("source/README.md")).expect("there"), b"# A repository\n");
}

#[test]
fn on_btrfs_a_job_outlives_its_server_in_a_workspace_that_shares_its_blocks() {
    if let Some(mount) = Mount::new("btrfs") {
        outlive_on(&mount.path());
    }
}

#[test]
fn on_xfs_a_job_outlives_its_server_in_a_workspace_that_shares_its_blocks() {
    if let Some(mount) = Mount::new("xfs") {
        outlive_on(&mount.path());
    }
}
