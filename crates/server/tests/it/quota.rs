//! A quota that is used up, where the file system itself has room: `statvfs` shows nothing of it, so nothing can be refused or
//! frozen before.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::mount::{Kind, Mount, run};
use crate::rig::{Rig, script_job};

/// A subvolume with a limit of its own.
struct Limited {
    mount: Mount,
    place: PathBuf,
}

impl Limited {
    /// None, told loudly, where quotas cannot be had.
    fn new(mib: u64) -> Option<Self> {
        let mount = Mount::of(Kind::Btrfs, 256)?;
        let limited = Self { place: mount.path().join("limited"), mount };
        match limited.set_up(mib) {
            Ok(()) => Some(limited),
            Err(why) => {
                crate::crashes::tell(&format!("NOT COVERED: a quota on btrfs: {why}"));
                None
            }
        }
    }

    fn set_up(&self, mib: u64) -> Result<(), String> {
        run(Command::new("btrfs").args(["quota", "enable"]).arg(self.mount.path()))?;
        run(Command::new("btrfs").args(["subvolume", "create"]).arg(&self.place))?;
        self.limit(mib)
    }

    fn limit(&self, mib: u64) -> Result<(), String> {
        let limit = format!("{mib}M");
        run(Command::new("btrfs").args(["qgroup", "limit", &limit]).arg(&self.place))
    }

    /// Takes all that the limit leaves.
    fn use_up(&self) {
        let filler = File::create(self.place.join("filler")).expect("there is room yet");
        let (mut at, mut piece) = (0, vec![7; 1 << 20]);
        while piece.len() >= 512 {
            let written = filler.write_all_at(&piece, at).and_then(|()| filler.sync_data());
            match written {
                Ok(()) => at += piece.len() as u64,
                Err(_) => piece.truncate(piece.len() / 2),
            }
        }
    }
}

fn free_bytes(place: &Path) -> u64 {
    outlive_supervisor::space(place).expect("a file system").free_bytes
}

// Proves I5 and I8 where even what is overwritten in place needs room: the server ends, agents and their supervisors do not.
#[test]
fn a_quota_that_is_used_up_ends_the_server_and_loses_nothing() {
    let Some(limited) = Limited::new(48) else { return };
    let mut rig = Rig::with_data_below(&limited.place);
    rig.start();
    rig.repo();
    let gate = rig.make_gate("gate");
    let ending =
        rig.submit_script(&format!("echo begun; read x < {}; echo over; exit 42", gate.display()));
    let follow = format!("/api/jobs/{ending}/output?follow=true");
    let mut stream = rig.client().stream(&follow, &[]).expect("there");
    std::io::Read::read_exact(&mut stream, &mut [0; 6]).expect("comes");
    rig.wait_kept(&ending);
    let mut held = script_job("echo held");
    held["hold"] = json!(true);
    let held = rig.submit(&held);
    let pids = rig.pids(&ending, 1);
    limited.use_up();
    assert!(free_bytes(&limited.place) > 64 << 20, "the file system itself has room");
    // It cannot write down what it is asked, so it does not answer.
    let asked = rig.client().post("/api/jobs", &script_job("true"));
    assert!(asked.is_err(), "acknowledged: {asked:?}");
    let status = rig.wait_dead();
    assert!(!status.success(), "{status}");
    assert!(rig.complaints().contains("quota"), "{}", rig.complaints());
    // Its end comes in the worst moment, and its words too.
    rig.open_gate("gate");
    crate::rig::wait_gone(pids.0);
    // It starts, if btrfs has kept back the little that this takes; else it ends as before.
    let started = rig.spawn().is_some() && rig.wait_ready();
    if started {
        rig.kill();
    } else {
        rig.wait_dead();
        assert!(rig.complaints().contains("quota"), "{}", rig.complaints());
    }
    let so = if started { "came up" } else { "ended" };
    crate::crashes::tell(&format!("quota: a start under a quota that was used up {so}"));
    limited.limit(200).expect("raised");
    rig.start();
    let ended = rig.wait_ended(&ending);
    assert_eq!(
        (&ended["outcome"]["exit_code"], &ended["outcome"]["exit_status"]),
        (&json!(42), &json!("exact")),
        "{ended:#}"
    );
    assert_eq!(rig.output(&ending), b"begun\nover\n");
    rig.client().post(&format!("/api/jobs/{held}/start"), &json!({})).expect("there");
    assert_eq!(rig.wait_ended(&held)["outcome"]["kind"], "completed");
    assert_eq!(rig.output(&held), b"held\n");
}
