//! A keep directory with a supervisor in it, and bounded waits for what happens there.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use outlive_core::evidence::Evidence;
use outlive_core::ids::ProcessRef;
use outlive_core::spec::{
    Capture, Ending, Outcome, Reading, Spec, Started, StopCause, StopRequest, TreeEmpty, VERSION,
};
use outlive_supervisor::{Here, Holder, probe, read_slots, read_started};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Longer than anything takes; whoever waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// As whom a supervisor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// As whoever runs the tests; as root it has cgroups.
    Same,
    /// As nobody, without cgroups.
    Nobody,
}

const NOBODY: u32 = 65534;

/// Whether this kernel keeps the exit status of a process for those who hold its pidfd (Linux 6.15 and later).
pub(crate) fn keeps_exit_status() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).filter_map(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 15)
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The users as whom tests can run here.
pub(crate) fn users() -> &'static [User] {
    if is_root() { &[User::Same, User::Nobody] } else { &[User::Same] }
}

pub(crate) fn say_what_is_not_covered() {
    if !is_root() {
        println!(
            "NOT COVERED: not root, so no cgroups, no limits, no mounts; all else runs best effort"
        );
    }
    if !keeps_exit_status() {
        println!(
            "NOT COVERED: exact ends that only a pidfd can tell: this kernel forgets them (needs Linux 6.15)"
        );
    }
}

/// A keep directory, removed when its test passed.
pub(crate) struct Keep {
    pub(crate) dir: PathBuf,
    pub(crate) spec: Spec,
    pub(crate) user: User,
    /// What a server beside it holds; none: there is no server, and whoever dies takes all along.
    holder: Option<RefCell<Holder>>,
}

impl Keep {
    /// One whose agent runs this shell script in the directory itself, where `$0` is this program.
    pub(crate) fn script(user: User, script: &str) -> Self {
        let exe = std::env::current_exe().expect("this program");
        let exe = exe.to_str().expect("a plain path");
        Self::argv(user, &["sh", "-c", script, exe])
    }

    pub(crate) fn argv(user: User, argv: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outlive-test-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir(&dir).expect("a fresh directory");
        if user == User::Nobody {
            chown(&dir, Some(NOBODY), Some(NOBODY)).expect("chown");
        }
        let path = |file: &str| dir.join(file).to_str().expect("a plain path").to_owned();
        let spec = Spec {
            version: VERSION,
            mark: format!("{name}/job/1"),
            job: "abcdefgh2345".to_owned(),
            attempt: 1,
            engine: "command".to_owned(),
            argv: argv.iter().map(|&arg| arg.to_owned()).collect(),
            cwd: path(""),
            env: vec![("GIVEN".to_owned(), "by spec".to_owned())],
            env_remove: vec!["UNWANTED".to_owned()],
            stdin: None,
            stdout: path("out"),
            stderr: path("err"),
            capture: Capture::File,
            timeout_ms: None,
            grace_ms: 20_000,
            heartbeat_ms: 30_000,
            output_bytes_max: None,
            memory_bytes_max: None,
            pids_max: None,
            freeze_below_bytes: 0,
            idle_output_ms: None,
            cgroup: name,
        };
        Self { dir, spec, user, holder: None }
    }

    /// From now on a server lives beside it.
    pub(crate) fn serve(&mut self) {
        self.holder = Some(RefCell::default());
    }

    pub(crate) fn is_served(&self) -> bool {
        self.holder.is_some()
    }

    /// That server was killed, and another one came while the keeper lived.
    pub(crate) fn restart_server(&mut self) {
        let mut holder = Holder::default();
        holder.take_hold(&self.dir, &Here::observe().expect("here"));
        self.holder = Some(RefCell::new(holder));
    }

    /// Whether that server would start a caretaker for an end that nobody recorded.
    pub(crate) fn can_tell(&self) -> bool {
        let here = Here::observe().expect("here");
        let holder = self.holder.as_ref().map(RefCell::borrow_mut);
        holder.is_some_and(|mut holder| holder.can_tell(&self.probe(), &self.dir, &here))
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_default()
    }

    pub(crate) fn write_spec(&self) {
        let json = serde_json::to_vec(&self.spec).expect("a spec");
        fs::write(self.path("spec.json"), json).expect("written");
        fs::set_permissions(self.path("spec.json"), fs::Permissions::from_mode(0o644))
            .expect("readable");
    }

    /// The command that is a supervisor, or with `--caretake` a caretaker.
    pub(crate) fn command(&self, flags: &[&str]) -> Command {
        let exe = "/proc/self/exe";
        let mut command = match (&self.holder, flags) {
            (None, flags) => {
                let mut command = Command::new(exe);
                command.arg("supervise").args(flags).arg(&self.dir);
                command
            }
            (Some(holder), []) => holder.borrow_mut().supervisor(exe, &self.dir),
            (Some(holder), _) => {
                let here = Here::observe().expect("here");
                holder.borrow_mut().caretaker(exe, &self.dir, &here)
            }
        };
        command.env("UNWANTED", "1");
        if self.user == User::Nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    pub(crate) fn start(&self) -> Process {
        self.write_spec();
        Process::spawn(&mut self.command(&[]))
    }

    pub(crate) fn caretake(&self) -> Process {
        Process::spawn(&mut self.command(&["--caretake"]))
    }

    /// Starts a supervisor that dies at a crash point, in itself or in its child.
    pub(crate) fn start_crashing(&self, flags: &[&str], point: &str) -> Process {
        self.write_spec();
        Process::spawn(self.command(flags).env("OUTLIVE_CRASH", point))
    }

    /// Runs the supervisor to its end and expects everything recorded.
    pub(crate) fn run(&self) -> (Outcome, TreeEmpty) {
        assert_eq!(self.start().wait().code(), Some(0), "{}", self.read("keeper.err"));
        self.recorded()
    }

    pub(crate) fn recorded(&self) -> (Outcome, TreeEmpty) {
        match read_slots(&self.dir) {
            (Reading::Valid(outcome), Reading::Valid(empty)) => (outcome, empty),
            other => panic!("not recorded: {other:?}; {}", self.read("keeper.err")),
        }
    }

    pub(crate) fn probe(&self) -> Evidence {
        probe(&self.dir, &Here::observe().expect("here"))
    }

    pub(crate) fn started(&self) -> Started {
        match read_started(&self.dir) {
            Reading::Valid(started) => started,
            other => panic!("not started: {other:?}; {}", self.read("keeper.err")),
        }
    }

    /// Whether the last heartbeat is this process's.
    pub(crate) fn beaten_by(&self, process: &Process) -> bool {
        let sentinel = outlive_supervisor::read_sentinel(&self.dir);
        sentinel.valid().is_some_and(|it| it.keeper.pid == process.pid())
    }

    /// Waits until its keeper has beaten so many times more: each time it has taken in all that had happened before.
    pub(crate) fn wait_beats(&self, count: u32) {
        let at = |keep: &Self| outlive_supervisor::read_sentinel(&keep.dir).valid().map(|it| it.at);
        for _ in 0..count {
            let before = at(self);
            self.wait_until("a heartbeat", |keep| at(keep).is_some_and(|now| Some(now) != before));
        }
    }

    /// Waits until a condition on the directory's files holds.
    pub(crate) fn wait_until(&self, what: &str, holds: impl FnMut(&Self) -> bool) {
        wait_for_files(&self.dir, what, self, holds);
    }

    /// Waits until the agent wrote a line that starts so into its output.
    pub(crate) fn wait_for_output(&self, line: &str) {
        let said = |keep: &Self| keep.read("out").lines().any(|it| it.starts_with(line));
        self.wait_until(&format!("the agent says {line}"), said);
    }

    pub(crate) fn stop(&self, cause: StopCause, grace_ms: u64) {
        let request = StopRequest { version: VERSION, cause, grace_ms };
        outlive_supervisor::write_stop(&self.dir, &request).expect("written");
        if self.user == User::Nobody {
            chown(self.path("stop"), Some(NOBODY), Some(NOBODY)).expect("chown");
        }
    }

    /// Asks a living keeper to end the tree.
    pub(crate) fn stop_now(&self, grace_ms: u64) {
        self.stop(StopCause::Cancel, grace_ms);
        assert!(outlive_supervisor::wake(&self.dir).expect("woken"), "somebody keeps it");
    }

    /// A FIFO on which the agent waits by `read x < go`; to be held as long as it may wait.
    pub(crate) fn gate(&self) -> File {
        let path = self.fifo("go");
        OpenOptions::new().read(true).write(true).open(path).expect("opens")
    }

    /// A FIFO that nobody holds yet: whoever opens it waits for the other side.
    pub(crate) fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let mode = rustix::fs::Mode::from(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a FIFO");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("open to all");
        path
    }

    /// Every process of the machine that carries this keep directory's mark.
    pub(crate) fn marked(&self) -> Vec<u32> {
        let mark = format!("OUTLIVE_MARK={}", self.spec.mark).into_bytes();
        let pids = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|entry| entry == mark)
        })
        .collect()
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("kept for a look: {}", self.dir.display());
            for pid in self.marked() {
                if let Some(process) = open(pid) {
                    pidfd_send_signal(&process, Signal::KILL).ok();
                }
            }
        } else {
            fs::remove_dir_all(&self.dir).expect("removed");
        }
    }
}

pub(crate) fn go(mut gate: &File) {
    gate.write_all(b"go\n").expect("written");
}

/// A process that this test started.
pub(crate) struct Process {
    child: Child,
    pidfd: OwnedFd,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let child = command.spawn().expect("spawned");
        let pidfd = open(child.id()).expect("a child keeps its pid");
        Self { child, pidfd }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn wait(mut self) -> ExitStatus {
        assert!(ended(&self.pidfd, PATIENCE), "process {} does not end", self.pid());
        self.child.wait().expect("waited")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.pidfd, signal).expect("signalled");
    }

    /// Kills it by SIGKILL and waits until it is gone.
    pub(crate) fn kill(self) {
        self.signal(Signal::KILL);
        assert_eq!(self.wait().signal(), Some(9));
    }
}

/// Buries a dead process that came to this one, the subreaper of all tests.
pub(crate) fn bury(process: &ProcessRef) {
    let pid = Pid::from_raw(i32::try_from(process.pid).expect("a pid")).expect("not 0");
    wait_gone(open_ref(process), "who is to be buried");
    let buried = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
    assert!(buried.expect("an orphan of ours").is_some());
}

/// Waits for all orphans that came to this process, and buries them.
pub(crate) fn bury_orphans() {
    let children = format!("/proc/self/task/{}/children", std::process::id());
    let children = fs::read_to_string(children).expect("listed");
    for pid in children.split_ascii_whitespace() {
        let pid: u32 = pid.parse().expect("a pid");
        wait_gone(open(pid).expect("a child keeps its pid"), "an orphan");
        let raw = Pid::from_raw(i32::try_from(pid).expect("a pid"));
        rustix::process::waitpid(raw, rustix::process::WaitOptions::NOHANG).expect("a child");
    }
}

pub(crate) fn open(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"))?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Opens the agent's main process.
pub(crate) fn open_ref(process: &ProcessRef) -> OwnedFd {
    let here = Here::observe().expect("here");
    outlive_supervisor::open_process(process, &here).expect("it is there")
}

/// Waits until an opened process ended; false when the time is over.
pub(crate) fn ended(pidfd: impl AsFd, patience: Duration) -> bool {
    ready(pidfd, patience)
}

fn ready(fd: impl AsFd, patience: Duration) -> bool {
    let timeout = Timespec::try_from(patience).expect("short");
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).expect("polled") > 0
}

pub(crate) fn wait_gone(pidfd: impl AsFd, what: &str) {
    assert!(ended(pidfd, PATIENCE), "{what} does not end");
}

/// Waits for changes in a directory until a condition holds.
pub(crate) fn wait_for_files<T>(
    dir: &Path,
    what: &str,
    subject: &T,
    mut holds: impl FnMut(&T) -> bool,
) {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
    let watch = watch.expect("inotify");
    let events = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::CLOSE_WRITE;
    inotify::add_watch(&watch, dir, events).expect("watched");
    let start = Instant::now();
    let mut buffer = [0; 4096];
    while !holds(subject) {
        let left = PATIENCE.saturating_sub(start.elapsed());
        assert!(!left.is_zero() && ready(&watch, left), "waited in vain: {what}");
        rustix::io::read(&watch, &mut buffer).expect("read");
    }
}

pub(crate) fn exited(code: i32) -> Ending {
    Ending::Exited(code)
}
