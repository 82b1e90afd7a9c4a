//! On a real disk, with real processes that are really killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use outlive_core::ids::Lsn;

use super::{INSTANCE, Machine, Model, nonce};
use crate::truth::disk::RealDisk;
use crate::truth::wal::{Config, Durable, Wal, abort, open, verify};

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let name = format!("outlive-wal-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn config(dir: &Path, segment_bytes: Option<u64>) -> Config {
    let (wal, quarantine) = (dir.join("wal"), dir.join("quarantine"));
    let config = Config::new(Arc::new(RealDisk), wal, quarantine, INSTANCE, nonce);
    Config { segment_bytes: segment_bytes.unwrap_or(config.segment_bytes), ..config }
}

const CHILD: &str = "OUTLIVE_TEST_WAL_DIR";
const CHILD_SEGMENT: u64 = 8192;

/// The process that is killed: appends and writes checkpoints, saying on stdout what is durable.
#[test]
fn child_process_that_is_killed_by_the_tests_beside() {
    let Some(dir) = std::env::var_os(CHILD) else {
        println!("does nothing unless started by the test below");
        return;
    };
    let opened = open(config(Path::new(&dir), Some(CHILD_SEGMENT))).unwrap();
    let mut model = Model::default();
    while model.last() < opened.report.last_lsn.0 {
        model.draft(600);
    }
    let (sender, receiver) = channel();
    let on_durable = move |group: Durable<Vec<u64>>| {
        for lsn in group.into_inner() {
            println!("\ndurable {lsn}");
            sender.send(lsn).unwrap();
        }
    };
    let (wal, checkpointer) = Wal::start(opened.log, on_durable, abort).unwrap();
    for n in 0..60 {
        wal.submit(model.batch(&[600])).unwrap();
        let lsn = receiver.recv().unwrap();
        if n % 25 == 24 {
            checkpointer.write(Lsn(lsn), model.entries(lsn).into_iter()).unwrap();
        }
    }
}

/// Runs the child; says what it acknowledged and whether it was killed.
fn child(dir: &Path, crash: &str) -> (u64, bool) {
    let name = "truth::wal::tests::real::child_process_that_is_killed_by_the_tests_beside";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, dir)
        .env("OUTLIVE_CRASH", crash)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let durable = lines.filter_map(|line| line.strip_prefix("durable ")?.parse().ok());
    let acknowledged = durable.last().unwrap_or(0);
    let status = child.wait().unwrap();
    assert!(status.success() || status.signal() == Some(9), "{crash}: {status}");
    (acknowledged, status.signal() == Some(9))
}

fn check(dir: &Path, acknowledged: u64, context: &str) -> u64 {
    let mut model = Model::default();
    while model.last() < 200 {
        model.draft(600);
    }
    model.acknowledged = acknowledged;
    let opened = open(config(dir, Some(CHILD_SEGMENT))).unwrap();
    assert_eq!(opened.report.damage, [], "{context}");
    model.check(&opened, context)
}

// Proves I1, R15: SIGKILL at every crash point of the write-ahead log, a real process on a real disk.
#[test]
fn a_process_killed_at_any_crash_point_loses_nothing_acknowledged() {
    if !cfg!(debug_assertions) {
        println!("not covered: crash points are in debug builds only");
        return;
    }
    let points = [
        ("wal.before_write:30", 0),
        ("wal.after_write:30", 0),
        ("wal.after_sync:30", 0),
        ("wal.rotate:2", 0),
        ("wal.segment_before_rename", 0),
        ("wal.segment_before_rename:3", 0),
        ("wal.segment_after_rename", 0),
        ("wal.segment_after_rename:3", 0),
        ("wal.checkpoint_before_rename", 0),
        ("wal.checkpoint_after_rename:2", 0),
        ("wal.checkpoint_after_sync:2", 0),
        ("wal.seal", 100),
        ("wal.cut", 100),
        ("wal.cut_before_sync", 100),
        ("wal.rewrite", 100),
        ("wal.mend_before_sync", 100),
    ];
    for (crash, garbage) in points {
        let dir = Dir::new(&crash.replace(['.', ':'], "-"));
        let mut acknowledged = 0;
        if garbage > 0 {
            // A torn group, as a power cut leaves it.
            acknowledged = child(&dir.0, "").0;
            tear(&dir.0);
        }
        let (more, killed) = child(&dir.0, crash);
        assert!(killed, "{crash} was never reached");
        acknowledged = acknowledged.max(more);
        let last = check(&dir.0, acknowledged, crash);
        // The next process goes on from there.
        let (more, killed) = child(&dir.0, "");
        assert!(!killed && more == last + 60, "{crash}: {more} after {last}");
        check(&dir.0, more, crash);
        println!("{crash}: {acknowledged} acknowledged, {last} there");
    }
}

/// Overwrites the mark after the last record with rubbish.
fn tear(dir: &Path) {
    use std::os::unix::fs::FileExt as _;
    let mut found = 0;
    for entry in std::fs::read_dir(dir.join("wal")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() != Some("seg".as_ref()) {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let room = &bytes[512..bytes.len() - 512];
        let end = 512 + room.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        let mark = bytes[..end].windows(6).rposition(|w| w == b"\xFFOWL\x01\x02");
        if let Some(at) = mark.filter(|at| end - at <= 48 && at + 100 < bytes.len() - 512) {
            file.write_all_at(&[0xAB; 90], at as u64).unwrap();
            found += 1;
        } else if end > 512 && end + 100 < bytes.len() - 512 {
            file.write_all_at(&[0xAB; 90], end.next_multiple_of(8) as u64).unwrap();
            found += 1;
        }
    }
    assert!(found > 0);
}

#[test]
fn files_are_private_and_of_the_promised_length() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = Dir::new("private");
    let mut machine = Machine::new(open(config(&dir.0, None)).unwrap());
    machine.group(&mut Model::default(), &[10]).unwrap();
    let wal = dir.0.join("wal");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&wal), 0o700);
    let segment = wal.join("0000000000000001.seg");
    assert_eq!(mode(&segment), 0o600);
    assert_eq!(std::fs::metadata(&segment).unwrap().len(), 4 << 20);
}

#[test]
fn a_directory_can_be_verified_without_leave_to_write() {
    let dir = Dir::new("verify");
    let mut machine = Machine::new(open(config(&dir.0, Some(8192))).unwrap());
    let mut model = Model::default();
    (0..30).for_each(|_| machine.group(&mut model, &[600]).unwrap());
    let stamps = || {
        let entries = std::fs::read_dir(dir.0.join("wal")).unwrap().map(Result::unwrap);
        entries.map(|e| (e.path(), e.metadata().unwrap().modified().unwrap())).collect::<Vec<_>>()
    };
    let before = stamps();
    let report = verify(&config(&dir.0, Some(8192))).unwrap().report;
    assert_eq!((report.last_lsn, report.damage.len()), (Lsn(30), 0));
    assert_eq!(stamps(), before);
}

/// Figures to look at; asserts nothing about time.
#[test]
fn figures_of_this_disk_are_printed() {
    let dir = Dir::new("figures");
    let (sender, receiver) = channel();
    let start = |config| {
        let sender = sender.clone();
        let on_durable = move |group: Durable<Vec<u64>>| {
            group.into_inner().into_iter().for_each(|n| sender.send(n).unwrap());
        };
        Wal::start(open(config).unwrap().log, on_durable, abort).unwrap().0
    };
    let mut model = Model::default();
    let began = Instant::now();
    let wal = start(config(&dir.0, None));
    let fresh = began.elapsed();
    let mut times: Vec<_> = (0..105)
        .map(|_| {
            let began = Instant::now();
            wal.submit(model.batch(&[600])).unwrap();
            receiver.recv().unwrap();
            began.elapsed()
        })
        .collect();
    times.sort();
    wal.stop();
    let mut opens: Vec<_> = (0..9)
        .map(|_| {
            let began = Instant::now();
            let opened = open(config(&dir.0, None)).unwrap();
            assert_eq!(opened.records.len(), 105);
            (began.elapsed(), opened.report.rewritten_records)
        })
        .collect();
    opens.sort();
    let wal = start(config(&dir.0, None));
    let began = Instant::now();
    for _ in 0..5000 {
        wal.submit(model.batch(&[600])).unwrap();
    }
    let last = receiver.iter().take(5000).last();
    let many = began.elapsed();
    assert_eq!(last, Some(5105));
    drop(wal);
    let mut out = std::io::stdout();
    writeln!(
        out,
        "fresh log {fresh:?}; one by one p50 {:?} p99 {:?}; open with 105 records {:?} (rewritten {}); 5000 piled up in {many:?}",
        times[52], times[103], opens[4].0, opens[4].1
    )
    .unwrap();
}
