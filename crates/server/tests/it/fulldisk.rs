//! A full disk, on real file systems: nothing new is accepted, what runs is frozen before it breaks, ends are recorded all the same,
//! a server can be killed and started, and everything goes on by itself when space returns.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;

use outlive::truth::disk::RealDisk;
use outlive::truth::wal::{self, Batch, Draft, Durable, Wal};
use outlive_core::evidence::Lock;
use outlive_core::spec::Reading;
use outlive_supervisor::{Here, probe, read_freeze};
use rustix::fs::{FallocateFlags, IFlags, fallocate, ioctl_getflags};
use serde_json::{Value, json};

use crate::mount::{Kind, Mount};
use crate::rig::{PATIENCE, Rig, code, signal};

/// All the free space of a file system, taken until it is dropped.
struct Filler(PathBuf);

impl Filler {
    /// Takes it, down to the last block and, where that is possible, to the last name.
    fn new(place: &Path) -> Self {
        let dir = place.join("filler");
        fs::create_dir(&dir).expect("there is room yet");
        let big = File::create(dir.join("big")).expect("there is room yet");
        let (mut at, mut piece) = (0, 64 << 20);
        while piece >= 512 {
            match fallocate(&big, FallocateFlags::empty(), at, piece) {
                Ok(()) => at += piece,
                Err(_) => piece /= 2,
            }
        }
        // What was set aside for metadata, and the rest of what can be had by writing.
        let block = [7; 4096];
        for n in 0..10_000 {
            let small = File::create(dir.join(n.to_string()));
            if small.and_then(|small| small.write_all_at(&block, 0)).is_err() {
                break;
            }
        }
        Self(dir)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Waits until attempt 1 of a job is frozen, or thawed, by the file that says so.
fn wait_frozen(rig: &Rig, id: &str, frozen: bool) {
    let keep = rig.keep(id, 1);
    let mut inotify = inotify::Inotify::init().expect("inotify");
    inotify.watches().add(&keep, inotify::WatchMask::MODIFY).expect("watches");
    let (sender, happened) = channel();
    let at = keep.clone();
    std::thread::spawn(move || {
        let is = || match read_freeze(&at) {
            Reading::Valid(freeze) => freeze.since_boot_ms.is_some(),
            Reading::Absent | Reading::Damaged(_) => false,
        };
        while is() != frozen {
            inotify.read_events_blocking(&mut [0; 4096]).expect("events");
        }
        sender.send(())
    });
    happened.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let told = fs::read_to_string(keep.join("keeper.err")).unwrap_or_default();
        panic!("frozen = {frozen} never came: {told}\n{:#}", rig.job(id))
    });
}

/// Waits until a job's agent has said that it began, and somebody has it in hand.
fn wait_begun(rig: &Rig, id: &str) {
    let follow = format!("/api/jobs/{id}/output?follow=true");
    let mut stream = rig.client().stream(&follow, &[]).expect("there");
    let mut said = [0; 6];
    std::io::Read::read_exact(&mut stream, &mut said).expect("comes");
    assert_eq!(&said, b"begun\n");
    rig.wait_kept(id);
}

/// Waits until somebody else than `keeper` has attempt 1 in hand.
fn wait_taken_over(rig: &Rig, id: &str, keeper: u32) {
    let keep = rig.keep(id, 1);
    let mut inotify = inotify::Inotify::init().expect("inotify");
    inotify.watches().add(&keep, inotify::WatchMask::MODIFY).expect("watches");
    let (sender, happened) = channel();
    std::thread::spawn(move || {
        let here = Here::observe().expect("this boot");
        let holder = || match probe(&keep, &here).lock {
            Lock::Held(holder) => holder.map(|holder| holder.pid),
            _ => None,
        };
        while holder().is_none_or(|pid| pid == keeper) {
            inotify.read_events_blocking(&mut [0; 4096]).expect("events");
        }
        sender.send(())
    });
    happened.recv_timeout(PATIENCE).expect("somebody takes over");
}

/// The jobs of the story, by id.
struct Story {
    /// Cannot be frozen, and ends in the worst moment.
    ending: String,
    /// Frozen, and goes on writing when thawed.
    writing: String,
    /// Frozen, and cancelled in that state.
    cancelled: String,
    /// Accepted before, begun when there is room.
    waiting: String,
}

const LINES: u32 = 30_000;

fn begin(rig: &mut Rig) -> Story {
    rig.unset("OUTLIVE_MIN_FREE_BYTES");
    rig.set("OUTLIVE_RUNNING_MAX", "8");
    rig.set("OUTLIVE_FREEZE_FREE_BYTES", "0");
    rig.start();
    rig.repo();
    let gates = ["end", "write"].map(|name| rig.make_gate(name));
    let [end, write] = gates.each_ref().map(|gate| gate.display());
    let ending = rig.submit_script(&format!("echo begun; read x < {end}; exit 42"));
    wait_begun(rig, &ending);
    rig.kill();
    rig.unset("OUTLIVE_FREEZE_FREE_BYTES");
    rig.start();
    let script = format!("echo begun; read x < {write}; seq 1 {LINES}; exit 7");
    let writing = rig.submit_script(&script);
    let cancelled = rig.submit_script("echo begun; sleep 1000");
    let mut held = crate::rig::script_job("echo done");
    held["hold"] = json!(true);
    held["timeout_s"] = json!(60);
    let waiting = rig.submit(&held);
    for id in [&writing, &cancelled] {
        wait_begun(rig, id);
    }
    Story { ending, writing, cancelled, waiting }
}

/// Nothing is accepted, and it is said what is missing.
fn refuses(rig: &Rig) {
    let jobs = |rig: &Rig| rig.client().get("/api/jobs").expect("read").json().expect("JSON");
    let before = jobs(rig)["jobs"].as_array().expect("a list").len();
    let job = crate::rig::script_job("true");
    let refused = rig.client().post("/api/jobs", &job);
    assert!(refused.as_ref().expect_err("full").to_string().contains("bytes free"), "{refused:?}");
    assert_eq!(code(refused), "disk_full");
    let keyed = rig.client().post_with("/api/jobs", &job, &[("idempotency-key", "new")]);
    assert_eq!(code(keyed), "disk_full");
    let repo = json!({ "name": "other", "source": rig.path("source") });
    assert_eq!(code(rig.client().post("/api/repos", &repo)), "disk_full");
    assert_eq!(jobs(rig)["jobs"].as_array().expect("a list").len(), before);
    let ready: Value = rig.client().get("/readyz").expect("ready").json().expect("JSON");
    assert_eq!(ready["degraded"][0]["resource"], "disk", "{ready}");
}

/// What adds nothing to what is kept may be asked of a held job that was accepted before; in the queue it says what it waits for.
fn may_be_steered(rig: &Rig, id: &str) {
    let path = format!("/api/jobs/{id}");
    assert_eq!(code(rig.client().patch(&path, &json!({ "prompt": "more" }))), "disk_full");
    let edited = rig.client().patch(&path, &json!({ "priority": 60 })).expect("edited");
    assert_eq!(edited.json().expect("JSON")["priority"], 60);
    for (verb, phase) in [("start", "queued"), ("hold", "held"), ("start", "queued")] {
        let asked = rig.client().post(&format!("{path}/{verb}"), &json!({})).expect("taken");
        assert_eq!(asked.json().expect("JSON")["phase"], phase);
    }
    let list = rig.client().get("/api/jobs?phase=queued").expect("there").json().expect("JSON");
    for shown in [&rig.job(id), &list["jobs"][0]] {
        let reason = shown["waiting"]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("bytes free, and new work needs"), "{shown:#}");
    }
}

// Proves I5 and the contract of a full disk.
fn lives_through_a_full_disk(kind: Kind) {
    let Some(mount) = Mount::new(kind) else { return };
    let mut rig = Rig::with_data_below(mount.path());
    let story = begin(&mut rig);
    let pids = rig.pids(&story.writing, 1);
    let filler = Filler::new(mount.path());
    for id in [&story.writing, &story.cancelled] {
        wait_frozen(&rig, id, true);
        // It is recorded before it is done; when the supervisor rests, it is done.
        rig.wait_kept(id);
    }
    let told = rig.job(&story.writing);
    let reason = told["frozen"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("it goes on when"), "{told:#}");
    // It stands at its gate and does not notice that it is open.
    let gate = rig.path("write");
    let opening = std::thread::spawn(move || fs::write(gate, "go\n"));
    refuses(&rig);
    may_be_steered(&rig, &story.waiting);
    // Its end is recorded where no new space is needed.
    rig.open_gate("end");
    let ended = rig.wait_ended(&story.ending);
    assert_eq!(ended["outcome"]["exit_code"], 42, "{ended:#}");
    // Started on a full disk: everything can be read, nobody is touched.
    rig.kill();
    rig.start();
    refuses(&rig);
    assert_eq!(rig.job(&story.ending)["outcome"]["exit_code"], 42);
    assert_eq!(rig.output(&story.ending), b"begun\n");
    let job = rig.job(&story.writing);
    assert_eq!((&job["phase"], rig.pids(&story.writing, 1)), (&json!("running"), pids), "{job:#}");
    assert!(job["frozen"].is_object(), "{job:#}");
    assert_eq!(rig.output(&story.writing), b"begun\n", "a frozen agent went on");
    rig.client().post(&format!("/api/jobs/{}/cancel", story.cancelled), &json!({})).expect("taken");
    let cancelled = rig.wait_ended(&story.cancelled);
    assert_eq!(cancelled["outcome"]["kind"], "cancelled", "{cancelled:#}");
    assert_eq!(rig.job(&story.waiting)["phase"], "queued");
    // Space returns, and nobody does anything.
    drop(filler);
    opening.join().expect("no panic").expect("it is a gate");
    goes_on(&rig, &story);
}

/// Everything is as if nothing had been.
fn goes_on(rig: &Rig, story: &Story) {
    let written = rig.wait_ended(&story.writing);
    assert_eq!(written["outcome"]["exit_code"], 7, "{written:#}");
    let mut expected = "begun\n".to_string();
    (1..=LINES).for_each(|n| writeln!(expected, "{n}").expect("into memory"));
    assert!(rig.output(&story.writing) == expected.into_bytes(), "other bytes");
    let waited = rig.wait_ended(&story.waiting);
    assert_eq!(
        (&waited["outcome"]["kind"], &waited["waiting"]),
        (&json!("completed"), &json!(null))
    );
    let new = rig.submit_script("echo new");
    assert_eq!(rig.wait_ended(&new)["outcome"]["kind"], "completed");
    assert_eq!(rig.output(&new), b"new\n");
}

#[test]
fn a_full_tmpfs_breaks_nothing() {
    lives_through_a_full_disk(Kind::Tmpfs);
}

#[test]
fn a_full_ext4_breaks_nothing() {
    lives_through_a_full_disk(Kind::Ext4);
}

#[test]
fn a_full_xfs_breaks_nothing() {
    lives_through_a_full_disk(Kind::Xfs);
}

#[test]
fn a_full_btrfs_breaks_nothing() {
    lives_through_a_full_disk(Kind::Btrfs);
}

#[test]
fn a_full_btrfs_without_copy_on_write_breaks_nothing() {
    lives_through_a_full_disk(Kind::BtrfsNodatacow);
}

#[test]
fn on_btrfs_segments_and_slots_are_overwritten_in_place() {
    let Some(mount) = Mount::new(Kind::Btrfs) else { return };
    let mut rig = Rig::with_data_below(mount.path());
    rig.start();
    rig.repo();
    let id = rig.submit_script("true");
    rig.wait_ended(&id);
    let segments = fs::read_dir(rig.data().join("wal")).expect("there").flatten();
    let keep = rig.keep(&id, 1);
    let files = segments.map(|entry| entry.path()).chain([keep.join("outcome"), keep.join("stop")]);
    let files: Vec<PathBuf> = files.collect();
    assert!(files.len() >= 4, "{files:?}");
    for path in files {
        let flags = ioctl_getflags(File::open(&path).expect("there")).expect("flags");
        assert!(flags.contains(IFlags::NOCOW), "{}", path.display());
    }
}

// Proves I5: the supervisor is killed while its tree is frozen, and the caretaker knows what it finds.
#[test]
fn a_frozen_agent_whose_supervisor_is_killed_is_thawed_by_its_caretaker_and_has_its_time() {
    let Some(mount) = Mount::new(Kind::Tmpfs) else { return };
    let mut rig = Rig::with_data_below(mount.path());
    let gate = rig.path("gate");
    rig.start();
    rig.repo();
    rig.make_gate("gate");
    let mut job =
        crate::rig::script_job(&format!("echo begun; read x < {}; exit 5", gate.display()));
    // Longer than it may run, it is frozen: what stands still does not use up its time.
    job["timeout_s"] = json!(2);
    let id = rig.submit(&job);
    wait_begun(&rig, &id);
    let filler = Filler::new(mount.path());
    wait_frozen(&rig, &id, true);
    let (_, keeper) = rig.pids(&id, 1);
    let deadline = outlive_supervisor::read_started(&rig.keep(&id, 1));
    let deadline = deadline.valid().and_then(|it| it.deadline_boot_ms).expect("it has one");
    signal(keeper, "-KILL");
    wait_taken_over(&rig, &id, keeper);
    wait_until_boot_ms(deadline);
    let job = rig.job(&id);
    assert_eq!(job["phase"], "running", "{job:#}");
    drop(filler);
    wait_frozen(&rig, &id, false);
    rig.open_gate("gate");
    let ended = rig.wait_ended(&id);
    assert_eq!(ended["outcome"]["exit_code"], 5, "{ended:#}");
}

/// Waits for a moment on the boot-time clock.
fn wait_until_boot_ms(at: u64) {
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::empty()).expect("a timer");
    let at = i64::try_from(at + 1).expect("a time");
    let it_value = Timespec { tv_sec: at / 1000, tv_nsec: at % 1000 * 1_000_000 };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
    timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &once).expect("set");
    rustix::io::read(&timer, &mut [0; 8]).expect("it comes");
}

fn log_config(place: &Path) -> wal::Config {
    let (dir, quarantine) = (place.join("wal"), place.join("quarantine"));
    let nonce = || u64::from_le_bytes(outlive::random::bytes());
    let config = wal::Config::new(Arc::new(RealDisk), dir, quarantine, [3; 16], nonce);
    wal::Config { segment_bytes: 64 << 10, ..config }
}

// Proves I8 on a disk that is full in earnest: what was acknowledged stays, and the next start needs no new space.
fn the_log_ends_and_opens_on_a_full(kind: Kind) {
    let Some(mount) = Mount::new(kind) else { return };
    let mut filler = None;
    let mut acknowledged = 0;
    for round in 0..3 {
        let opened = wal::open(log_config(mount.path())).expect("opens");
        assert!(opened.report.last_lsn.0 >= acknowledged, "{kind:?}, round {round}");
        assert!(opened.report.damage.is_empty(), "{:?}", opened.report);
        let mut next = opened.report.last_lsn.next();
        let (durable, told) = channel();
        let (fatal, ended) = channel();
        let on_durable = move |group: Durable<Vec<u64>>| {
            group.into_inner().into_iter().for_each(|lsn| durable.send(lsn).expect("heard"));
        };
        let on_fatal = move |error: &wal::WalError| drop(fatal.send(format!("{error:?}")));
        let (log, _) = Wal::start(opened.log, on_durable, on_fatal).expect("starts");
        filler.get_or_insert_with(|| Filler::new(mount.path()));
        loop {
            let draft = Draft { links: vec![], body: vec![b'x'; 3000] };
            let batch = Batch { first: next, records: vec![draft], payload: next.0 };
            if log.submit(batch).is_err() {
                break;
            }
            let Ok(lsn) = told.recv() else { break };
            assert_eq!(lsn, next.0);
            (acknowledged, next) = (lsn, next.next());
            assert!(next.0 < 1000, "{kind:?}: the disk is not full");
        }
        let why = ended.recv_timeout(PATIENCE).expect("it ended for a reason");
        assert!(why.contains("StorageFull"), "{why}");
    }
    assert!(acknowledged > 20, "{kind:?}: {acknowledged}");
    drop(filler);
    let opened = wal::open(log_config(mount.path())).expect("opens");
    assert!(opened.report.last_lsn.0 >= acknowledged);
}

#[test]
fn a_log_that_finds_no_space_ends_and_opens_again_without_any() {
    for kind in [Kind::Tmpfs, Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::BtrfsNodatacow] {
        the_log_ends_and_opens_on_a_full(kind);
    }
}
