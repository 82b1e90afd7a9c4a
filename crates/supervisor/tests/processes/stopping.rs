//! Whole trees ended, by whoever has the right to ask.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use outlive_core::spec::{Capture, Ending, Limit, Proof, StopCause};

use crate::fixture::{Keep, Process, User, exited, go, is_root, open, users, wait_gone};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_stop_ends_tools_that_left_the_session_forked_twice_and_ignore_term", stop_everything),
    ("a_tree_that_obeys_term_ends_without_a_kill", gentle_stop),
    ("a_second_stop_shortens_the_grace", shorter_grace),
    ("a_stop_is_heard_at_the_next_heartbeat_when_the_fifo_is_lost", no_fifo),
    ("a_tree_that_forks_itself_away_is_caught_by_its_cgroup", hopping),
    ("the_deadline_holds_without_a_server", deadline),
    ("what_the_agent_leaves_behind_is_ended_and_counted", survivors),
    ("a_frozen_tree_is_ended_in_version_2", frozen_unified),
    ("a_frozen_tree_is_ended_in_version_1", frozen_freezer),
    ("an_out_of_memory_kill_is_told_from_other_kills", out_of_memory),
    ("a_silent_agent_is_stopped_if_it_may_not_be_silent", silent),
    ("a_frozen_agent_is_not_taken_for_a_silent_one", frozen_is_not_silent),
    ("limits_that_nothing_enforces_are_told", unenforced),
    ("a_tree_cannot_have_more_processes_than_its_limit", pids_limit),
];

/// Tools of the worst kind: own session, forked twice, without the mark, deaf to TERM. Each says its pid when it is ready.
pub(crate) const STUBBORN: &str = "
    deaf='trap \"\" TERM HUP INT; echo $$ >> pids; while :; do sleep 1000; done'
    setsid sh -c \"$deaf\" &
    (setsid sh -c \"$deaf\" & exit 0)
    (env -i PATH=$PATH setsid sh -c \"$deaf\" & exit 0)
    while [ $(wc -l < pids 2>/dev/null || echo 0) -lt 3 ]; do sleep 0.02; done
";

fn tools(keep: &Keep) -> Vec<std::os::fd::OwnedFd> {
    let pids: Vec<u32> = keep.read("pids").lines().map(|pid| pid.parse().expect("a pid")).collect();
    pids.into_iter().map(|pid| open(pid).expect("it lives")).collect()
}

fn assert_gone(keep: &Keep, tools: Vec<std::os::fd::OwnedFd>) {
    for tool in tools {
        assert!(crate::fixture::ended(&tool, Duration::ZERO), "every tool is dead already");
    }
    assert_eq!(keep.marked(), Vec::<u32>::new());
}

fn stop_everything() {
    for &user in users() {
        let script = format!("{STUBBORN} echo ready; trap '' TERM; while :; do sleep 1000; done");
        let keep = Keep::script(user, &script);
        let keeper = keep.start();
        keep.wait_for_output("ready");
        let tools = tools(&keep);
        assert_eq!(tools.len(), 3);
        assert!(keep.probe().survivors >= u32::from(user == User::Same && is_root()) * 3);
        keep.stop_now(150);
        assert_eq!(keeper.wait().code(), Some(0));
        assert_gone(&keep, tools);
        let (outcome, empty) = keep.recorded();
        assert_eq!((outcome.ending, outcome.stop), (Ending::Signaled(9), Some(StopCause::Cancel)));
        let cgroup = user == User::Same && is_root();
        assert_eq!(empty.proof, if cgroup { Proof::Cgroup } else { Proof::BestEffort });
    }
}

fn gentle_stop() {
    let script =
        "trap 'echo cleaned; exit 6' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let keep = Keep::script(User::Same, script);
    let keeper = keep.start();
    keep.wait_for_output("ready");
    keep.stop_now(20_000);
    assert_eq!(keeper.wait().code(), Some(0));
    let (outcome, empty) = keep.recorded();
    assert_eq!((outcome.ending, outcome.stop), (exited(6), Some(StopCause::Cancel)));
    assert_eq!((keep.read("out").as_str(), empty.killed), ("ready\ncleaned\n", 0));
}

fn shorter_grace() {
    let keep =
        Keep::script(User::Same, "trap 'echo deaf' TERM; echo ready; while :; do sleep 1000; done");
    let keeper = keep.start();
    keep.wait_for_output("ready");
    let start = Instant::now();
    keep.stop_now(600_000);
    keep.wait_for_output("deaf");
    keep.stop_now(50);
    assert_eq!(keeper.wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_mins(1));
    assert_eq!(keep.recorded().0.ending, Ending::Signaled(9));
}

fn deadline() {
    // Proves I5: nobody but the supervisor is there to hold the deadline.
    for &user in users() {
        let mut keep = Keep::script(user, "trap '' TERM; echo ready; while :; do sleep 1000; done");
        keep.spec.timeout_ms = Some(400);
        keep.spec.grace_ms = 100;
        let start = Instant::now();
        let (outcome, _) = keep.run();
        assert!(start.elapsed() >= Duration::from_millis(500));
        assert_eq!((outcome.ending, outcome.stop), (Ending::Signaled(9), Some(StopCause::Timeout)));
        assert!(keep.probe().past_deadline && keep.marked().is_empty());
    }
}

fn survivors() {
    for &user in users() {
        let mut keep = Keep::script(user, &format!("{STUBBORN} read x < go; echo last; exit 8"));
        keep.spec.grace_ms = 100;
        let gate = keep.gate();
        let keeper = keep.start();
        keep.wait_until("tools are ready", |keep| keep.read("pids").lines().count() == 3);
        let tools = tools(&keep);
        go(&gate);
        assert_eq!(keeper.wait().code(), Some(0));
        assert_gone(&keep, tools);
        let (outcome, empty) = keep.recorded();
        assert_eq!((outcome.ending, outcome.stop), (exited(8), None));
        assert!(empty.killed >= 3, "{empty:?}");
    }
}

fn no_fifo() {
    let mut keep = Keep::script(User::Same, "echo ready; exec sleep 1000");
    keep.spec.heartbeat_ms = 60;
    fs::write(keep.path("wake"), "not a FIFO").expect("in the way");
    let keeper = keep.start();
    keep.wait_for_output("ready");
    keep.stop(StopCause::Cancel, 20_000);
    assert_eq!(keeper.wait().code(), Some(0));
    assert_eq!(keep.recorded().0.ending, Ending::Signaled(15));
    assert!(keep.read("keeper.err").contains("not a FIFO"));
}

fn hopping() {
    if !is_root() {
        println!("NOT COVERED: a tree that forks faster than it can be looked at (needs a cgroup)");
        return;
    }
    // Each process lives a moment, in a session and with an environment of its own, and leaves another behind it.
    let hop = "trap '' TERM; setsid env -i sh hop & sleep 0.01";
    let keep = Keep::script(User::Same, "sh hop & sh hop & echo ready; exec sleep 1000");
    fs::write(keep.path("hop"), hop).expect("written");
    let keeper = keep.start();
    keep.wait_for_output("ready");
    keep.stop_now(300);
    assert_eq!(keeper.wait().code(), Some(0));
    assert_eq!(keep.probe().survivors, 0);
    let (_, empty) = keep.recorded();
    assert_eq!(empty.proof, Proof::Cgroup);
    let hops = fs::read_dir("/proc").expect("/proc").flatten().filter(|entry| {
        let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        cwd == keep.dir
    });
    assert_eq!(hops.count(), 0, "nothing works in its directory any more");
}

fn leaf(keep: &Keep, file: &str) -> Option<std::path::PathBuf> {
    let dirs = keep.started().cgroups;
    dirs.iter().map(|dir| std::path::Path::new(dir).join(file)).find(|path| path.exists())
}

/// What freezes a tree by hand: the file, what to write to freeze, and what to thaw.
pub(crate) fn freezers(keep: &Keep) -> Vec<(std::path::PathBuf, &'static str, &'static str)> {
    let all = [("cgroup.freeze", "1", "0"), ("freezer.state", "FROZEN", "THAWED")];
    all.into_iter().filter_map(|(file, on, off)| Some((leaf(keep, file)?, on, off))).collect()
}

fn frozen_unified() {
    let keep = Keep::script(User::Same, "echo ready; while :; do sleep 1000; done");
    let keeper = keep.start();
    keep.wait_for_output("ready");
    if let Some(freeze) = leaf(&keep, "cgroup.freeze") {
        fs::write(freeze, "1").expect("frozen");
    } else {
        println!("NOT COVERED: no version 2 leaf to freeze");
    }
    keep.stop_now(100);
    assert_eq!(keeper.wait().code(), Some(0));
    assert!(keep.marked().is_empty());
}

fn frozen_freezer() {
    let unified = "/sys/fs/cgroup/unified";
    if !is_root() || !std::path::Path::new("/sys/fs/cgroup/freezer").exists() {
        println!("NOT COVERED: no version 1 freezer");
        return;
    }
    for script in
        ["echo ready; while :; do sleep 1000; done", &format!("{STUBBORN} echo ready; sleep 1000")]
    {
        let keep = Keep::script(User::Same, script);
        keep.write_spec();
        // Its own view of the machine, in which version 2 is not mounted.
        let hide = format!("umount {unified} 2>/dev/null; exec \"$0\" supervise \"$1\"");
        let mut command = Command::new("unshare");
        let exe = std::env::current_exe().expect("this program");
        command.args(["-m", "sh", "-c", &hide]).arg(exe).arg(&keep.dir);
        let keeper = Process::spawn(&mut command);
        keep.wait_for_output("ready");
        assert!(leaf(&keep, "cgroup.kill").is_none(), "version 2 is out of sight");
        let state = leaf(&keep, "freezer.state").expect("a freezer leaf");
        fs::write(&state, "FROZEN").expect("frozen");
        keep.stop_now(100);
        assert_eq!(keeper.wait().code(), Some(0));
        assert!(keep.marked().is_empty() && !state.exists());
        assert_eq!(keep.recorded().1.proof, Proof::Cgroup);
    }
}

/// Takes memory until it is killed, or 1 GiB.
pub(crate) fn hog() -> ExitCode {
    let mut taken = Vec::new();
    for _ in 0..1024 {
        taken.push(vec![1_u8; 1 << 20]);
    }
    ExitCode::from(u8::try_from(taken.len() / 1024).unwrap_or(0))
}

fn out_of_memory() {
    let mut keep = Keep::script(User::Same, "\"$0\" hog; echo hog $?; exit 1");
    keep.spec.memory_bytes_max = Some(64 << 20);
    if !is_root() {
        println!("NOT COVERED: memory limits");
        return;
    }
    let (outcome, _) = keep.run();
    assert_eq!(keep.read("out"), "hog 137\n");
    assert!(outcome.oom, "{outcome:?}");
    assert!((32 << 20..=64 << 20).contains(&outcome.peak_memory_bytes), "{outcome:?}");
    let keep = Keep::script(User::Same, "kill -KILL $$");
    assert!(!keep.run().0.oom);
}

fn silent() {
    for &user in users() {
        for capture in [Capture::File, Capture::Pipe] {
            let mut keep = Keep::script(user, "echo one; exec sleep 1000");
            keep.spec.capture = capture;
            keep.spec.idle_output_ms = Some(200);
            let (outcome, _) = keep.run();
            assert_eq!(outcome.stop, Some(StopCause::IdleOutput), "{outcome:?}");
            assert_eq!((outcome.ending, keep.read("out")), (Ending::Signaled(15), "one\n".into()));
        }
    }
}

fn frozen_is_not_silent() {
    let mut keep = Keep::script(User::Same, "echo ready; read x < go; echo done; exit 5");
    keep.spec.capture = Capture::Pipe;
    keep.spec.idle_output_ms = Some(3000);
    keep.spec.heartbeat_ms = 500;
    let gate = keep.gate();
    let keeper = keep.start();
    keep.wait_for_output("ready");
    let freezers = freezers(&keep);
    if freezers.is_empty() {
        println!("NOT COVERED: nothing to freeze with");
        keep.stop_now(0);
        keeper.wait();
        return;
    }
    for (file, on, _) in &freezers {
        fs::write(file, on).expect("frozen");
    }
    // Longer than it may be silent; and then it does not have to wait for us.
    keep.wait_beats(8);
    go(&gate);
    for (file, _, off) in &freezers {
        fs::write(file, off).expect("thawed");
    }
    assert_eq!(keeper.wait().code(), Some(0));
    let (outcome, _) = keep.recorded();
    assert_eq!((outcome.ending, outcome.stop), (exited(5), None));
    assert_eq!(keep.read("out"), "ready\ndone\n");
}

fn unenforced() {
    for &user in users() {
        let mut keep = Keep::script(user, "echo ready; read x < go");
        keep.spec.memory_bytes_max = Some(1 << 30);
        keep.spec.pids_max = Some(1000);
        let gate = keep.gate();
        let keeper = keep.start();
        keep.wait_for_output("ready");
        let holds = |file, number: &str| {
            let text = leaf(&keep, file).map(|path| fs::read_to_string(path).expect("reads"));
            text.is_some_and(|text| text.trim() == number)
        };
        let memory =
            holds("memory.max", "1073741824") || holds("memory.limit_in_bytes", "1073741824");
        let missing = [(Limit::Memory, memory), (Limit::Pids, holds("pids.max", "1000"))];
        let missing = missing.into_iter().filter(|(_, held)| !held).map(|(limit, _)| limit);
        assert_eq!(keep.started().unenforced, missing.collect::<Vec<_>>());
        if user == User::Nobody {
            assert_eq!(keep.started().unenforced, [Limit::Memory, Limit::Pids]);
        }
        go(&gate);
        assert_eq!(keeper.wait().code(), Some(0));
    }
    let keep = Keep::script(User::Same, "exit 0");
    keep.run();
    assert!(keep.started().unenforced.is_empty(), "what was not asked for is not missed");
}

fn pids_limit() {
    if !is_root() {
        println!("NOT COVERED: process limits");
        return;
    }
    let mut keep =
        Keep::script(User::Same, "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo made");
    keep.spec.pids_max = Some(4);
    keep.spec.grace_ms = 100;
    let (outcome, _) = keep.run();
    assert!(keep.read("err").to_lowercase().contains("fork"), "{}", keep.read("err"));
    assert_ne!(outcome.ending, exited(0));
    let spare = open(std::process::id()).expect("we live");
    assert!(!crate::fixture::ended(&spare, Duration::ZERO));
    wait_gone(open(keep.started().agent.pid).unwrap_or_else(dead), "the agent");
}

/// A descriptor that is ready at once, as that of a dead process is.
fn dead() -> std::os::fd::OwnedFd {
    fs::File::open("/dev/null").expect("opens").into()
}
