//! Disks that fail in earnest: one refuses a write behind a page cache that shows it all the same, and one is gone from one moment
//! to the next.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

use outlive::face::client::Client;
use serde_json::{Value, json};

use super::check::{Findings, recover};
use super::device::Device;
use crate::crashes::tell;
use crate::mount::{Kind, Mount, make, output, run};
use crate::rig::{PATIENCE, Rig};

/// How far behind the end of the write-ahead log the disk is bad: some records fit before it.
const AHEAD: u64 = 24 << 10;

fn held(n: usize) -> Value {
    json!({ "repo": "r", "engine": "demo", "prompt": "p".repeat(1500), "hold": true,
        "title": format!("held {n}") })
}

/// The segment that is written to, and where its next record goes.
fn end_of_log(data: &Path) -> (PathBuf, u64) {
    let mut segments: Vec<PathBuf> =
        fs::read_dir(data.join("wal")).expect("there").flatten().map(|it| it.path()).collect();
    segments.sort();
    let end = |path: &PathBuf| {
        let bytes = fs::read(path).expect("it can be read");
        // A segment's header stands at both of its ends.
        bytes[512..bytes.len() - 512].iter().rposition(|byte| *byte != 0).map(|at| at as u64 + 512)
    };
    segments.into_iter().rev().find_map(|path| Some((path.clone(), end(&path)?))).expect("records")
}

/// The disk's sector where a byte of a file is.
fn sector_of(file: &Path, offset: u64) -> Result<u64, String> {
    let told = output(Command::new("filefrag").args(["-b512", "-v"]).arg(file))?;
    let extents = told.lines().filter_map(|line| {
        let numbers = line.replace([':', '.'], " ");
        let numbers: Vec<u64> =
            numbers.split_whitespace().map_while(|it| it.parse().ok()).collect();
        // Number, first and last in the file, first and last on the disk.
        (numbers.len() >= 5).then(|| (numbers[1], numbers[2], numbers[3]))
    });
    let wanted = offset / 512;
    let mut found = extents.filter(|(from, to, _)| (*from..=*to).contains(&wanted));
    let (from, _, on_disk) = found.next().ok_or_else(|| format!("no extent in: {told}"))?;
    Ok(on_disk + wanted - from)
}

/// Submits until the server is gone; the ids that were acknowledged.
fn submit_all(client: &Client) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..500 {
        match client.post("/api/jobs", &held(n)) {
            Ok(job) => {
                let job: Value = job.json().expect("JSON");
                ids.push(job["id"].as_str().expect("an id").to_string());
            }
            // Nobody is there any more, or will be.
            Err(error) if matches!(error.code(), None | Some("stopping")) => return ids,
            Err(error) => panic!("refused: {error}"),
        }
    }
    panic!("the disk took everything: {} jobs", ids.len());
}

/// The jobs in the write-ahead log below `place`.
fn jobs_of(place: &Path) -> BTreeSet<String> {
    let mut findings = Findings::default();
    let state = recover(&place.join("data"), &mut findings);
    assert!(findings.all().next().is_none(), "{findings:?}");
    state.expect("it can be recovered").jobs().map(|job| job.id.to_string()).collect()
}

fn all_there(acknowledged: &[String], found: &BTreeSet<String>) {
    let lost: Vec<_> = acknowledged.iter().filter(|id| !found.contains(*id)).collect();
    assert!(lost.is_empty(), "lost: {lost:?} of {}", acknowledged.len());
}

// Proves I8: the disk refuses a write so many times; first the server's, then that of its recovery.
fn no_sync_is_tried_again(kind: Kind, times: usize) -> Result<(), String> {
    // In this order, so that whatever happens the server goes before its disk.
    let mut device = Device::new(kind, &[])?;
    let mut rig = Rig::with_data_below(device.place());
    rig.start();
    rig.repo();
    rig.kill();
    let (segment, end) = end_of_log(&rig.data());
    let at = (end + AHEAD) / 512 * 512;
    let sector = sector_of(&segment, at)?;
    device = device.again(&vec![sector; times])?;
    let client = rig.start();
    let mut acknowledged = submit_all(&client);
    let status = rig.wait_dead();
    assert_eq!(status.signal(), Some(6), "{kind:?}: {status}: {}", rig.complaints());
    assert!(rig.complaints().contains("write-ahead log failed"), "{}", rig.complaints());
    assert!(acknowledged.len() > 3, "{acknowledged:?}");
    // The trap is set: what a reader sees is not what is on the disk.
    let (mut seen, mut there) = ([0; 512], [0; 512]);
    File::open(&segment).and_then(|it| it.read_exact_at(&mut seen, at)).expect("read");
    File::open(device.disk())
        .and_then(|it| it.read_exact_at(&mut there, sector * 512))
        .expect("read");
    assert_ne!(seen, there, "{kind:?}: the page cache tells the truth");
    for _ in 1..times {
        rig.spawn();
        let status = rig.wait_dead();
        assert!(!status.success(), "{status}");
        let complaints = rig.complaints();
        assert!(complaints.contains("stage storage of the startup failed: "), "{complaints}");
    }
    let client = rig.start();
    acknowledged.push(rig.submit(&held(1000)));
    let shown = client.get("/api/jobs?limit=500").expect("there").json().expect("JSON");
    let shown = shown["jobs"].as_array().expect("a list").iter();
    acknowledged.extend(shown.map(|job| job["id"].as_str().expect("an id").to_string()));
    rig.kill();
    // The power is cut: only what has reached the disk is left.
    let dir = tempfile::tempdir().expect("a directory");
    let (copy, place) = (dir.path().join("disk"), dir.path().join("fs"));
    fs::copy(device.disk(), &copy).expect("a copy");
    let mounted = Mount::on(kind, &copy, &place, "loop")?;
    all_there(&acknowledged, &jobs_of(mounted.path()));
    drop((mounted, rig, device));
    Ok(())
}

fn no_recovery_is_fooled_on(kind: Kind) {
    for times in [1, 2] {
        if let Err(why) = no_sync_is_tried_again(kind, times) {
            tell(&format!("NOT COVERED: a disk that refuses a write, {}: {why}", kind.name()));
        }
    }
}

#[test]
fn on_ext4_a_refused_write_ends_the_server_and_fools_no_recovery() {
    no_recovery_is_fooled_on(Kind::Ext4);
}

#[test]
fn on_xfs_a_refused_write_ends_the_server_and_fools_no_recovery() {
    no_recovery_is_fooled_on(Kind::Xfs);
}

/// Submits until the server is gone, and says each acknowledgement at once.
fn submit_in_background(client: Client) -> Receiver<String> {
    let (sender, acknowledged) = channel();
    std::thread::spawn(move || {
        for n in 0..5000 {
            let answer = client.post("/api/jobs", &held(n));
            let Some(job) = answer.ok().and_then(|it| it.json().ok()) else { return };
            let id = job["id"].as_str().expect("an id").to_string();
            if sender.send(id).is_err() {
                return;
            }
        }
    });
    acknowledged
}

/// The file system is shut down under the server after so many acknowledgements: nothing that is in memory reaches the disk any more.
fn gone_after(kind: Kind, count: usize) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("a directory");
    let (disk, place) = (dir.path().join("disk"), dir.path().join("fs"));
    File::create(&disk).and_then(|it| it.set_len(kind.mib() << 20)).expect("a sparse file");
    make(kind, &disk, kind.mib())?;
    let mounted = Mount::on(kind, &disk, &place, "loop")?;
    let mut rig = Rig::with_data_below(&place);
    let client = rig.start();
    rig.repo();
    let told = submit_in_background(client);
    let mut acknowledged = Vec::new();
    while acknowledged.len() < count {
        acknowledged.push(told.recv_timeout(PATIENCE).expect("it is taken"));
    }
    // What is acknowledged from here on may be a word of a disk that is gone already.
    run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&place))?;
    let status = rig.wait_dead();
    assert_eq!(status.signal(), Some(6), "{kind:?}: {status}: {}", rig.complaints());
    mounted.unmount()?;
    let mounted = Mount::on(kind, &disk, &place, "loop")?;
    all_there(&acknowledged, &jobs_of(mounted.path()));
    drop((rig, mounted));
    Ok(())
}

fn a_disk_that_is_gone_loses_nothing(kind: Kind) {
    let rounds = crate::rig::long_or_short(150, 5);
    for round in 0..rounds {
        if let Err(why) = gone_after(kind, 3 + round % 50) {
            tell(&format!("NOT COVERED: the shutdown of a mounted {}: {why}", kind.name()));
            return;
        }
    }
    tell(&format!("blocks: {}: shut down {rounds} times under a server", kind.name()));
}

#[test]
fn an_ext4_that_is_gone_at_once_loses_nothing_that_was_acknowledged() {
    a_disk_that_is_gone_loses_nothing(Kind::Ext4);
}

#[test]
fn an_xfs_that_is_gone_at_once_loses_nothing_that_was_acknowledged() {
    a_disk_that_is_gone_loses_nothing(Kind::Xfs);
}
