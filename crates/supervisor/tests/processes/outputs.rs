//! Every byte that the agent wrote, and none but those.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use outlive_core::spec::{Capture, StopCause};

use crate::fixture::{Keep, User, exited, go, is_root, users};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("output_into_files_is_byte_exact_and_appended", files_exact),
    ("output_through_pipes_is_byte_exact_even_for_tee_dev_stderr", pipes_exact),
    ("output_of_an_agent_that_is_late_to_open_its_pipes_is_not_lost", late_agent),
    ("both_streams_into_one_file_lose_nothing", one_file),
    ("output_over_its_limit_ends_the_tree", output_limit),
    ("a_full_disk_makes_the_agent_wait_and_loses_nothing", full_disk),
    ("a_full_disk_does_not_lose_the_outcome", full_keep_directory),
];

/// What `seq 1 N` writes.
pub(crate) fn seq(to: u32) -> String {
    (1..=to).fold(String::new(), |text, n| text + &n.to_string() + "\n")
}

fn files_exact() {
    for &user in users() {
        let keep = Keep::script(user, "seq 1 1600000; seq 1 1000 >&2; exit 9");
        fs::write(keep.path("out"), "earlier\n").expect("written");
        if user == User::Nobody {
            std::os::unix::fs::chown(keep.path("out"), Some(65534), None).expect("chown");
        }
        let (outcome, empty) = keep.run();
        let (out, err) = (format!("earlier\n{}", seq(1_600_000)), seq(1000));
        assert!(out.len() > 10 << 20 && keep.read("out") == out && keep.read("err") == err);
        assert_eq!(keep.started().output_from, [8, 0]);
        assert_eq!(outcome.output_to, [out.len() as u64, err.len() as u64]);
        assert_eq!(empty.output_to, outcome.output_to);
        assert_eq!(outcome.ending, exited(9));
    }
}

fn pipes_exact() {
    for &user in users() {
        let mut keep = Keep::script(user, "seq 1 1600000 | tee /dev/stderr; echo end; exit 9");
        keep.spec.capture = Capture::Pipe;
        let (outcome, _) = keep.run();
        let (err, out) = (seq(1_600_000), format!("{}end\n", seq(1_600_000)));
        assert!(keep.read("out") == out && keep.read("err") == err);
        assert_eq!(outcome.output_to, [out.len() as u64, err.len() as u64]);
        assert_eq!(outcome.ending, exited(9));
    }
}

fn late_agent() {
    let mut keep = Keep::script(User::Same, "seq 1 1000; seq 1 9 >&2; exit 3");
    keep.serve();
    keep.spec.capture = Capture::Pipe;
    keep.spec.heartbeat_ms = 50;
    // Its child opens standard input first, and waits there: the pipes have no writer of its own while the supervisor watches them.
    let late = keep.fifo("late");
    keep.spec.stdin = late.to_str().map(str::to_owned);
    let keeper = keep.start();
    keep.wait_beats(3);
    drop(fs::OpenOptions::new().write(true).open(&late).expect("somebody waits there"));
    assert_eq!(keeper.wait().code(), Some(0), "{}", keep.read("keeper.err"));
    assert_eq!(keep.recorded().0.ending, exited(3));
    assert!(keep.read("out") == seq(1000) && keep.read("err") == seq(9), "{}", keep.read("out"));
}

fn one_file() {
    for capture in [Capture::File, Capture::Pipe] {
        let script =
            "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
        let mut keep = Keep::script(User::Same, script);
        keep.spec.capture = capture;
        keep.spec.stderr.clone_from(&keep.spec.stdout);
        keep.run();
        let expected: String =
            (0..2000).fold(String::new(), |text, n: u32| text + &format!("out {n}\nerr {n}\n"));
        assert!(keep.read("out") == expected, "{capture:?}");
    }
}

fn output_limit() {
    for capture in [Capture::File, Capture::Pipe] {
        let mut keep = Keep::script(
            User::Same,
            "read x < go; while :; do echo 0123456789012345678901234567890123456789; done",
        );
        keep.spec.capture = capture;
        keep.spec.output_bytes_max = Some(50_000);
        let gate = keep.gate();
        let keeper = keep.start();
        go(&gate);
        assert_eq!(keeper.wait().code(), Some(0));
        let (outcome, _) = keep.recorded();
        assert_eq!(outcome.stop, Some(StopCause::OutputLimit));
        assert!(outcome.output_to[0] > 50_000 && keep.marked().is_empty());
    }
}

fn full_disk() {
    if !is_root() {
        println!("NOT COVERED: a full disk (needs a mount)");
        return;
    }
    let mut keep = Keep::script(User::Same, "seq 1 200000; exit 4");
    fs::create_dir(keep.path("small")).expect("made");
    mount(&keep.path("small"), "size=64k");
    keep.spec.capture = Capture::Pipe;
    keep.path("small/out").to_str().expect("plain").clone_into(&mut keep.spec.stdout);
    let keeper = keep.start();
    keep.wait_until("it complains", |keep| keep.read("keeper.err").contains("No space left"));
    assert_eq!(keep.probe().agent, outlive_core::evidence::Seen::Alive);
    mount(&keep.path("small"), "remount,size=8m");
    let code = keeper.wait().code();
    let out = keep.read("small/out");
    unmount(&keep.path("small"));
    assert_eq!(code, Some(0));
    assert!(out == seq(200_000) && keep.recorded().0.ending == exited(4));
}

fn full_keep_directory() {
    if !is_root() {
        println!("NOT COVERED: a full disk (needs a mount)");
        return;
    }
    let keep = Keep::script(User::Same, "echo ready; read x < /proc/self/fd/0; exit 4");
    mount(&keep.dir, "size=256k");
    let mut keep = keep;
    keep.spec.heartbeat_ms = 60;
    let gate = keep.gate();
    keep.spec.stdin = keep.path("go").to_str().map(str::to_owned);
    let keeper = keep.start();
    keep.wait_for_output("ready");
    let mut full = std::fs::File::create(keep.path("fill")).expect("created");
    let filled = (0..1000).find_map(|_| full.write_all(&[1; 4096]).err()).expect("it is small");
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    // Heartbeats fail from here on, which harms nobody; the complaint about it finds no room either.
    go(&gate);
    let code = keeper.wait().code();
    let recorded = outlive_supervisor::read_slots(&keep.dir);
    drop((full, gate));
    unmount(&keep.dir);
    assert_eq!(code, Some(0));
    assert_eq!(recorded.0.valid().expect("recorded").ending, exited(4));
    assert!(recorded.1.valid().is_some());
}

fn mount(at: &Path, options: &str) {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at);
    assert!(command.status().expect("mount").success());
}

fn unmount(at: &Path) {
    assert!(Command::new("umount").arg(at).status().expect("umount").success());
}
