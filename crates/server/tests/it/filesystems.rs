//! The story on file systems that can share blocks, where this machine lets us make them.

use std::fs;
use std::path::Path;

use crate::mount::{Kind, Mount};
use crate::rig::Rig;

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
    if let Some(mount) = Mount::of(Kind::Btrfs, 400) {
        outlive_on(mount.path());
    }
}

#[test]
fn on_xfs_a_job_outlives_its_server_in_a_workspace_that_shares_its_blocks() {
    if let Some(mount) = Mount::of(Kind::Xfs, 400) {
        outlive_on(mount.path());
    }
}
