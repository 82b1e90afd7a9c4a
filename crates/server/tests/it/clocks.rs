//! The clock of the machine is set, by an hour or by a month, forth and back, under a server with jobs that run, are queued and
//! wait: no clock ends anything, nothing starts before its time, and nothing waits for ever.
//!
//! libfaketime does it, for the server and everything it starts. Time that passes is left alone, as when a clock is set.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use outlive::clock;
use outlive_core::time::Timestamp;
use serde_json::{Value, json};

use crate::case::kill_all;
use crate::crashes::tell;
use crate::rig::{Rig, script_job, wait_gone};

const HOUR: i64 = 3600;
const MONTH: i64 = 30 * 24 * HOUR;

/// Where distributions put it.
const LIBRARY: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// libfaketime 0.9.10 shifts absolute timers of every clock, also of the one that counts since boot and that nobody can set; one
/// that is shifted by a month below zero cannot even be armed. The kernel sees ours as they are.
const TRUE_TIMERS: &str = "
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>
int timerfd_settime(int fd, int flags, const struct itimerspec *to, struct itimerspec *old)
{
    return (int)syscall(SYS_timerfd_settime, fd, flags, to, old);
}
int timerfd_gettime(int fd, struct itimerspec *now) { return (int)syscall(SYS_timerfd_gettime, fd, now); }
";

fn true_timers(rig: &Rig) -> PathBuf {
    let (source, library) = (rig.path("timers.c"), rig.path("timers.so"));
    fs::write(&source, TRUE_TIMERS).expect("a file");
    let mut compiler = Command::new("cc");
    let done = compiler.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).status();
    assert!(done.expect("cc runs").success());
    library
}

/// A server whose clock can be set.
struct Clock {
    rig: Rig,
    offset: PathBuf,
    servers: Vec<u32>,
}

impl Clock {
    /// The clock is right; one job runs at a time. None: this machine lacks the library, which is told.
    fn new() -> Option<Self> {
        let Some(library) = LIBRARY.into_iter().find(|path| fs::exists(path).unwrap_or(false))
        else {
            tell("NOT COVERED: clocks that are set: libfaketime is missing (package libfaketime)");
            return None;
        };
        let mut rig = Rig::new();
        let offset = rig.path("offset");
        let preloaded = format!("{} {library}", true_timers(&rig).display());
        let settings = [
            ("LD_PRELOAD", &*preloaded),
            ("FAKETIME_TIMESTAMP_FILE", offset.to_str().expect("UTF-8")),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
            ("OUTLIVE_RUNNING_MAX", "1"),
        ];
        for (name, value) in settings {
            rig.set(name, value);
        }
        let mut clock = Self { rig, offset, servers: Vec::new() };
        clock.set(0);
        clock.start();
        clock.rig.repo();
        Some(clock)
    }

    fn start(&mut self) {
        self.rig.start();
        self.servers.push(self.rig.pid());
    }

    /// Sets the clock this many seconds off what it should be.
    fn set(&self, seconds: i64) {
        let text = format!("{seconds:+}\n");
        outlive_supervisor::replace_file(&self.offset, text.as_bytes()).expect("in one step");
    }

    /// Sets it and waits until the server has decided something by the new time: what was due by it is done.
    fn jump(&self, seconds: i64) {
        self.set(seconds);
        let mut body = script_job("true");
        body["hold"] = json!(true);
        let id = self.rig.submit(&body);
        let told = self.rig.job(&id)["created_at"].as_str().map(clock::parse);
        let told = told.expect("a time").expect("a time").0;
        let right = clock::now().0;
        let off = told.abs_diff(right.saturating_add_signed(seconds * 1000));
        assert!(off < 600_000, "the clock was not set: {told} instead of {right} {seconds:+} s");
    }

    fn submit_for(&self, at: Timestamp) -> String {
        let mut body = script_job("true");
        body["start_after"] = json!(clock::rfc3339(at));
        self.rig.submit(&body)
    }

    fn phases(&self, ids: [&str; 4]) -> [Value; 4] {
        ids.map(|id| self.rig.job(id)["phase"].clone())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // A server that is killed leaves what its library keeps there.
        for pid in &self.servers {
            for name in [format!("faketime_shm_{pid}"), format!("sem.faketime_sem_{pid}")] {
                fs::remove_file(PathBuf::from("/dev/shm").join(name)).ok();
            }
        }
    }
}

/// A job whose agent counts its starts and stands at a gate.
fn at_the_gate(rig: &Rig, more: Value) -> String {
    let (starts, here, gate) = (rig.path("starts"), rig.make_gate("here"), rig.make_gate("gate"));
    let script = format!(
        "echo start >> {}; echo before; echo here > {}; read x < {}; echo after",
        starts.display(),
        here.display(),
        gate.display()
    );
    let mut body = script_job(&script);
    let Value::Object(more) = more else { panic!("not an object") };
    body.as_object_mut().expect("an object").extend(more);
    let id = rig.submit(&body);
    assert_eq!(fs::read(rig.path("here")).expect("it says so"), b"here\n");
    id
}

fn set_by(seconds: i64) {
    let Some(mut clock) = Clock::new() else { return };
    let running = at_the_gate(&clock.rig, json!({}));
    let agent = clock.rig.pids(&running, 1);
    let queued = clock.rig.submit_script("true");
    let now = clock::now();
    let soon = clock.submit_for(now.after(Duration::from_mins(30)));
    let later = clock.submit_for(now.after(Duration::from_hours(60 * 24)));
    let all = [&*running, &*queued, &*soon, &*later];
    assert_eq!(clock.phases(all), ["running", "queued", "waiting", "waiting"]);

    clock.jump(seconds);
    let soon_is = if seconds > 0 { "queued" } else { "waiting" };
    let expected = ["running", "queued", soon_is, "waiting"];
    assert_eq!(clock.phases(all), expected, "set by {seconds:+} s");
    clock.rig.kill();
    clock.start();
    clock.jump(seconds);
    assert_eq!(clock.phases(all), expected, "started {seconds:+} s off");
    clock.jump(0);
    assert_eq!(clock.phases(all), expected, "set right again after {seconds:+} s");
    assert_eq!(clock.rig.pids(&running, 1), agent, "nobody was replaced");

    clock.rig.open_gate("gate");
    let job = clock.rig.wait_ended(&running);
    let outcome = &job["outcome"];
    assert_eq!((&outcome["kind"], &outcome["exit_status"]), (&json!("completed"), &json!("exact")));
    assert_eq!(clock.rig.output(&running), b"before\nafter\n");
    assert_eq!(clock.rig.wait_ended(&queued)["outcome"]["kind"], "completed");
    // Nobody asks the server for anything now: it looks at the clock by itself.
    clock.set(seconds.max(HOUR));
    assert_eq!(clock.rig.wait_ended(&soon)["outcome"]["kind"], "completed");
    assert_eq!(clock.rig.job(&later)["phase"], "waiting", "a start time is what a person said");
    clock.rig.client().post(&format!("/api/jobs/{later}/cancel"), &json!({})).expect("it waits");
    assert_eq!(clock.rig.wait_ended(&later)["outcome"]["kind"], "cancelled");
    assert_eq!(clock.rig.count_lines("starts"), 1);
    assert_eq!(clock.rig.marked(), Vec::<u32>::new());
}

#[test]
fn a_clock_that_is_set_forth_by_an_hour_ends_nothing_and_lets_nothing_wait_for_ever() {
    set_by(HOUR);
}

#[test]
fn a_clock_that_is_set_back_by_an_hour_ends_nothing_and_lets_nothing_wait_for_ever() {
    set_by(-HOUR);
}

#[test]
fn a_clock_that_is_set_forth_by_a_month_ends_nothing_and_lets_nothing_wait_for_ever() {
    set_by(MONTH);
}

#[test]
fn a_clock_that_is_set_back_by_a_month_ends_nothing_and_lets_nothing_wait_for_ever() {
    set_by(-MONTH);
}

#[test]
fn a_pause_that_began_while_the_clock_was_a_month_ahead_ends_when_it_is_set_right() {
    let Some(mut clock) = Clock::new() else { return };
    let id = at_the_gate(&clock.rig, json!({ "on_unknown": "retry" }));
    clock.rig.wait_kept(&id);
    let (agent, keeper) = clock.rig.pids(&id, 1);
    clock.rig.kill();
    kill_all(&[keeper, agent]);
    [keeper, agent].into_iter().for_each(wait_gone);
    clock.set(MONTH);
    clock.start();
    clock.rig.wait_for(&id, |job| job["phase"] == "waiting" || job["attempts"][1].is_object());
    clock.set(0);
    // Nobody asks: it looks at the clock by itself.
    assert_eq!(fs::read(clock.rig.path("here")).expect("it says so"), b"here\n");
    clock.rig.open_gate("gate");
    let job = clock.rig.wait_ended(&id);
    assert_eq!(job["outcome"]["kind"], "completed", "{job:#}");
    assert_eq!(clock.rig.count_lines("starts"), 2);
}
