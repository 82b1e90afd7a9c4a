//! From nothing to a running agent, at most once.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;

use outlive_core::evidence::{Lock, Seen};
use outlive_core::spec::{Ending, Proof, Reading, StopCause, VERSION};
use outlive_supervisor::{exit, read_sentinel};
use rustix::process::Signal;

use crate::fixture::{Keep, User, exited, go, is_root, open_ref, users, wait_gone};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("an_exit_code_and_a_signal_are_recorded_exactly", exact_end),
    ("what_cannot_be_launched_is_named_with_its_error_number", launch_failed),
    ("the_agent_gets_the_specs_surroundings_and_nothing_of_ours", surroundings),
    ("a_second_supervisor_finds_the_lock_or_the_start_and_leaves", second_supervisor),
    ("the_lock_dies_with_the_supervisor_though_its_agent_lives", lock_not_inherited),
    ("a_stopped_supervisor_keeps_its_lock", stopped_keeper),
    ("asking_for_the_lock_never_takes_it", probing_is_harmless),
    ("a_stop_before_the_start_means_that_nothing_runs", stop_before_start),
    ("a_launch_that_never_ran_is_voided_and_done_anew", void_and_relaunch),
    ("the_heartbeat_tells_who_keeps_whom_and_goes_on", heartbeat),
    ("a_damaged_heartbeat_is_reported_and_changes_nothing", damaged_sentinel),
    ("a_heartbeat_that_cannot_be_written_ends_nobody", sentinel_refused),
    ("orphans_of_the_agent_are_buried_while_it_runs", orphans),
    ("time_and_memory_used_are_measured", usage),
    ("a_spec_that_cannot_be_obeyed_starts_nothing", bad_spec),
];

fn proof(user: User) -> Proof {
    if user == User::Same && is_root() { Proof::Cgroup } else { Proof::BestEffort }
}

fn exact_end() {
    for &user in users() {
        for (script, ending) in [
            ("exit 42", exited(42)),
            ("exit 0", exited(0)),
            ("kill -KILL $$", Ending::Signaled(9)),
            ("ulimit -c 0; kill -SEGV $$", Ending::Signaled(11)),
        ] {
            let keep = Keep::script(user, script);
            let (outcome, empty) = keep.run();
            assert_eq!((outcome.ending, outcome.stop, outcome.oom), (ending, None, false));
            assert_eq!((empty.proof, empty.killed), (proof(user), 0));
            let left = keep.started().cgroups.into_iter().filter(|dir| fs::metadata(dir).is_ok());
            assert_eq!(left.count(), 0, "the leaf is removed");
            assert_eq!(keep.read("keeper.err"), "");
        }
    }
}

fn launch_failed() {
    for &user in users() {
        let failed = |keep: &Keep, errno, what: &str| {
            let expected = Ending::LaunchFailed { errno, what: what.to_owned() };
            assert_eq!(keep.run().0.ending, expected);
            assert_eq!(keep.start().wait().code(), Some(i32::from(exit::STARTED)));
        };
        failed(&Keep::argv(user, &["no-such-program", "x"]), 2, "no-such-program");
        failed(&Keep::argv(user, &["/no/such"]), 2, "/no/such");
        failed(&Keep::argv(user, &["/etc/passwd"]), 13, "/etc/passwd");
        let mut keep = Keep::script(user, "exit 0");
        "/no/dir".clone_into(&mut keep.spec.cwd);
        failed(&keep, 2, "/no/dir");
        let mut keep = Keep::script(user, "exit 0");
        keep.spec.stdin = Some("/no/stdin".to_owned());
        failed(&keep, 2, "/no/stdin");
        let mut keep = Keep::script(user, "exit 0");
        "/no/stdout".clone_into(&mut keep.spec.stdout);
        failed(&keep, 2, "/no/stdout");
        // A text file without an interpreter is what execvp would hand to a shell.
        let keep = Keep::argv(user, &["./text"]);
        fs::write(keep.path("text"), "touch ran\n").expect("written");
        fs::set_permissions(keep.path("text"), fs::Permissions::from_mode(0o755)).expect("mode");
        failed(&keep, 8, "./text");
        assert!(!keep.path("ran").exists(), "no shell between us and the program");
    }
}

fn surroundings() {
    let script = "cat; env; ls -l /proc/self/fd; ps -o sid= -p $$; echo pid $$; grep -E 'Sig(Blk|Ign)' /proc/self/status";
    let mut keep = Keep::script(User::Same, script);
    fs::write(keep.path("prompt"), "the prompt\n").expect("written");
    keep.spec.stdin = keep.path("prompt").to_str().map(str::to_owned);
    let mut command = keep.command(&[]);
    keep.write_spec();
    command.env("OUTLIVE_TOKEN", "ours").env("INHERITED", "yes");
    assert_eq!(crate::fixture::Process::spawn(&mut command).wait().code(), Some(0));
    let out = keep.read("out");
    let has = |line: &str| out.lines().any(|it| it == line);
    assert!(has("the prompt") && has("GIVEN=by spec") && has("INHERITED=yes"), "{out}");
    assert!(has(&format!("OUTLIVE_MARK={}", keep.spec.mark)), "{out}");
    assert!(!out.contains("UNWANTED") && !out.contains("OUTLIVE_TOKEN"), "{out}");
    let fds = out.lines().filter(|line| line.contains(" -> ")).count();
    assert_eq!(fds, 4, "stdin, stdout, stderr, and the directory that ls itself reads: {out}");
    let pid = keep.started().agent.pid;
    assert!(has(&format!("pid {pid}")) && out.lines().any(|it| it.trim() == pid.to_string()));
    let signals: Vec<&str> = out.lines().filter(|line| line.starts_with("Sig")).collect();
    let hex = |line: &&str| u64::from_str_radix(line.split('\t').nth(1).expect("a mask"), 16);
    // Signals 32 and 33 belong to the C library, which lets nobody touch them.
    let unexpected = signals.iter().map(hex).map(|mask| mask.expect("a number") & !0x1_8000_0000);
    assert_eq!(unexpected.collect::<Vec<_>>(), [0, 0]);
}

fn second_supervisor() {
    // Proves I7: no attempt's agent is started twice.
    for &user in users() {
        let keep = Keep::script(user, "echo start >> starts; read x < go; exit 3");
        let gate = keep.gate();
        let first = keep.start();
        keep.wait_until("it starts", |keep| keep.read("starts") == "start\n");
        assert_eq!(keep.start().wait().code(), Some(i32::from(exit::HELD)));
        assert_eq!(keep.caretake().wait().code(), Some(i32::from(exit::HELD)));
        go(&gate);
        assert_eq!(first.wait().code(), Some(0));
        assert_eq!(keep.start().wait().code(), Some(i32::from(exit::STARTED)));
        assert_eq!(keep.caretake().wait().code(), Some(i32::from(exit::DONE)));
        assert_eq!(keep.read("starts"), "start\n");
        assert_eq!(keep.recorded().0.ending, exited(3));
    }
}

fn lock_not_inherited() {
    let keep = Keep::script(User::Same, "echo ready; read x < go");
    let gate = keep.gate();
    let keeper = keep.start();
    keep.wait_for_output("ready");
    assert!(matches!(keep.probe().lock, Lock::Held(Some(holder)) if holder.pid == keeper.pid()));
    keeper.kill();
    let evidence = keep.probe();
    assert_eq!((evidence.lock, evidence.agent), (Lock::Free, Seen::Alive));
    let agent = open_ref(&keep.started().agent);
    go(&gate);
    wait_gone(agent, "the agent");
    assert_eq!(keep.probe().agent, Seen::Gone);
}

fn stopped_keeper() {
    let keep = Keep::script(User::Same, "echo ready; read x < go");
    let gate = keep.gate();
    let keeper = keep.start();
    keep.wait_for_output("ready");
    keeper.signal(Signal::STOP);
    assert!(matches!(keep.probe().lock, Lock::Held(Some(_))));
    assert_eq!(keep.caretake().wait().code(), Some(i32::from(exit::HELD)));
    keeper.signal(Signal::CONT);
    go(&gate);
    assert_eq!(keeper.wait().code(), Some(0));
    assert_eq!(keep.probe().lock, Lock::Free);
}

fn probing_is_harmless() {
    let keep = Keep::script(User::Same, "exit 0");
    for _ in 0..3 {
        assert_eq!(keep.probe().lock, Lock::Free);
        assert!(!keep.path("keeper.lock").exists(), "asking creates nothing");
    }
    // Asked all the time while the supervisor takes it: it must not find it held by who asks.
    let keeper = keep.start();
    let pidfd = crate::fixture::open(keeper.pid()).expect("a child keeps its pid");
    let mut asked = 0_u32;
    while !crate::fixture::ended(&pidfd, std::time::Duration::ZERO) && asked < 1_000_000 {
        asked += 1;
        keep.probe();
    }
    assert_eq!(keeper.wait().code(), Some(0), "after {asked} questions");
}

fn stop_before_start() {
    for &user in users() {
        let keep = Keep::script(user, "echo start >> starts");
        keep.stop(StopCause::Cancel, 1000);
        let (outcome, empty) = keep.run();
        assert_eq!((outcome.ending, outcome.stop), (Ending::NeverRan, Some(StopCause::Cancel)));
        assert_eq!(empty.killed, 0);
        assert_eq!(keep.read("starts"), "");
    }
}

fn void_and_relaunch() {
    let keep = Keep::script(User::Same, "echo start >> starts; exit 5");
    for void in 1..=2 {
        let died = keep.start_crashing(&[], "supervisor.stop_looked_for").wait();
        assert_eq!(died.signal(), Some(9));
        wait_until_unborn_is_gone(&keep);
        assert_eq!(keep.probe().outcome.valid().expect("recorded").ending, Ending::NeverRan);
        assert!(keep.path("started").exists());
        assert_eq!(keep.path("started.void-1").exists(), void == 2);
    }
    assert_eq!(keep.run().0.ending, exited(5));
    assert!(keep.path("started.void-1").exists() && keep.path("started.void-2").exists());
    assert_eq!(keep.read("starts"), "start\n");
}

fn wait_until_unborn_is_gone(keep: &Keep) {
    let here = outlive_supervisor::Here::observe().expect("here");
    if let Some(agent) = outlive_supervisor::open_process(&keep.started().agent, &here) {
        wait_gone(agent, "the child behind the gate");
    }
}

fn heartbeat() {
    let mut keep = Keep::script(User::Same, "echo ready; read x < go");
    keep.spec.heartbeat_ms = 60;
    let gate = keep.gate();
    let keeper = keep.start();
    let beat = |keep: &Keep| read_sentinel(&keep.dir).valid().cloned();
    keep.wait_until("a first beat", |keep| beat(keep).is_some());
    let first = beat(&keep).expect("just seen");
    keep.wait_until("a later beat", |keep| beat(keep).is_some_and(|it| it.at > first.at));
    assert_eq!((first.version, first.attempt), (VERSION, 1));
    assert_eq!((first.job.as_str(), first.engine.as_str()), ("abcdefgh2345", "command"));
    assert_eq!(first.host, fs::read_to_string("/proc/sys/kernel/hostname").expect("a host").trim());
    assert_eq!(first.keeper.pid, keeper.pid());
    assert_eq!(first.agent, keep.started().agent);
    assert!(matches!(keep.probe().lock, Lock::Held(Some(holder)) if holder == first.keeper));
    go(&gate);
    assert_eq!(keeper.wait().code(), Some(0));
    assert!(!has_temp_files(&keep));
}

fn damaged_sentinel() {
    let keep = Keep::script(User::Same, "echo ready; read x < go");
    let gate = keep.gate();
    let keeper = keep.start();
    keep.wait_until("a beat", |keep| keep.path("sentinel.json").exists());
    fs::write(keep.path("sentinel.json"), "{\"version\":1,").expect("damaged");
    let evidence = keep.probe();
    assert!(evidence.sentinel_damage.is_some_and(|why| why.contains("EOF")));
    assert!(matches!(evidence.lock, Lock::Held(Some(_))) && evidence.agent == Seen::Alive);
    go(&gate);
    assert_eq!(keeper.wait().code(), Some(0));
    assert_eq!(keep.recorded().0.ending, exited(0));
}

fn bad_spec() {
    let keep = Keep::script(User::Same, "exit 0");
    for (bytes, why) in [("{", "EOF"), ("", "EOF"), ("[]", "invalid")] {
        fs::write(keep.path("spec.json"), bytes).expect("written");
        let ended = crate::fixture::Process::spawn(&mut keep.command(&[])).wait();
        assert_eq!(ended.code(), Some(i32::from(exit::FAILED)));
        assert!(keep.read("keeper.err").contains(why), "{}", keep.read("keeper.err"));
        assert_eq!(keep.probe().started, Reading::Absent);
    }
    assert_eq!(keep.run().0.ending, exited(0), "with a good spec it starts after all");
}

fn sentinel_refused() {
    let mut keep = Keep::script(User::Same, "echo ready; read x < go; exit 2");
    keep.spec.heartbeat_ms = 60;
    fs::create_dir(keep.path("sentinel.json")).expect("in the way");
    let gate = keep.gate();
    let keeper = keep.start();
    keep.wait_for_output("ready");
    keep.wait_until("it complains", |keep| keep.read("keeper.err").contains("sentinel.json"));
    assert!(keep.probe().sentinel_damage.is_some());
    go(&gate);
    assert_eq!(keeper.wait().code(), Some(0));
    assert_eq!(keep.recorded().0.ending, exited(2));
    assert_eq!(keep.read("keeper.err").lines().count(), 1, "said once");
    assert!(!has_temp_files(&keep));
}

fn has_temp_files(keep: &Keep) -> bool {
    let mut entries = fs::read_dir(&keep.dir).expect("listed").flatten();
    entries.any(|it| it.file_name().to_string_lossy().starts_with('.'))
}

fn orphans() {
    let mut keep =
        Keep::script(User::Same, "(sh -c 'echo $$ > orphan' &); echo ready; read x < go");
    keep.spec.heartbeat_ms = 60;
    let gate = keep.gate();
    let keeper = keep.start();
    keep.wait_until("an orphan is named", |keep| keep.read("orphan").ends_with('\n'));
    let stat = format!("/proc/{}/stat", keep.read("orphan").trim());
    keep.wait_until("it is buried", |_| !fs::exists(&stat).expect("asked"));
    assert_eq!(keep.probe().agent, Seen::Alive);
    go(&gate);
    assert_eq!(keeper.wait().code(), Some(0));
}

fn usage() {
    for &user in users() {
        let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let (outcome, _) = Keep::script(user, script).run();
        assert!((20..20_000).contains(&outcome.cpu_ms), "{outcome:?}");
        assert!((100_000..100_000_000).contains(&outcome.peak_memory_bytes), "{outcome:?}");
    }
}
