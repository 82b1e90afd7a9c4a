//! A real server, real repositories and real agents in a directory of their own; everything waits for events, and every wait is
//! bounded. Ends what it started when dropped.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use outlive::face::client::{Client, ClientError};
use outlive_core::evidence::Lock;
use outlive_supervisor::{Here, probe, read_sentinel};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

/// How long a test waits for something that must happen. Only a broken one gets near it.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A data directory with the server that may be running on it.
pub(crate) struct Rig {
    dir: tempfile::TempDir,
    data: PathBuf,
    server: Option<Server>,
    env: BTreeMap<String, String>,
    wrapper: Vec<String>,
    program: PathBuf,
    address: Ipv4Addr,
}

struct Server {
    child: Child,
    lines: Receiver<String>,
    client: Client,
}

/// A loopback address of its own for each: a client of a server that was killed must not meet another test's server at its port.
fn next_address() -> Ipv4Addr {
    static TAKEN: AtomicU32 = AtomicU32::new(2);
    let first: u32 = Ipv4Addr::LOCALHOST.into();
    (first + TAKEN.fetch_add(1, Ordering::Relaxed)).into()
}

impl Rig {
    /// An empty data directory; no server yet.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("outlive-it-").tempdir().expect("a directory");
        Self::within(dir)
    }

    /// The same in a directory that is there already (another file system).
    pub(crate) fn below(parent: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("outlive-it-").tempdir_in(parent);
        Self::within(dir.expect("a directory"))
    }

    /// The data directory alone lies below another one; what belongs to the test does not.
    pub(crate) fn with_data_below(place: &Path) -> Self {
        let mut rig = Self::new();
        rig.data = place.join("data");
        rig
    }

    fn within(dir: tempfile::TempDir) -> Self {
        let mut rig = Self {
            data: dir.path().join("data"),
            dir,
            server: None,
            env: BTreeMap::new(),
            wrapper: Vec::new(),
            program: env!("CARGO_BIN_EXE_outlive").into(),
            address: next_address(),
        };
        rig.set("OUTLIVE_GRACE_S", "1");
        rig.set("OUTLIVE_MIN_FREE_BYTES", "0");
        rig
    }

    /// Gives the next server this variable.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.env.insert(name.to_string(), value.into());
    }

    /// Takes it away again.
    pub(crate) fn unset(&mut self, name: &str) {
        self.env.remove(name);
    }

    /// The next server is started by this program (`unshare …`).
    pub(crate) fn wrap(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(ToString::to_string).collect();
    }

    /// The next server is another copy of the program, started by this one.
    pub(crate) fn run_as(&mut self, program: PathBuf, wrapper: &[&str]) {
        self.program = program;
        self.wrap(wrapper);
    }

    /// A path beside the data directory, for the test's own files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// The program under test, ready for arguments.
    pub(crate) fn command(&self) -> Command {
        let program = &self.program;
        let mut command = match self.wrapper.split_first() {
            None => Command::new(program),
            Some((wrapper, rest)) => {
                let mut command = Command::new(wrapper);
                command.args(rest).arg(program);
                command
            }
        };
        command.env("OUTLIVE_DATA", self.data()).env_remove("OUTLIVE_SERVER").envs(&self.env);
        command
    }

    /// Starts a server and waits until it listens. It may die before: then there is no client.
    pub(crate) fn spawn(&mut self) -> Option<Client> {
        let mut command = self.command();
        let listen = format!("{}:0", self.address);
        command.args(["serve", "--listen", &listen, "--data"]).arg(self.data());
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("server.err"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.expect("a file"));
        let mut child = command.spawn().expect("the server can be started");
        let lines = lines_of(child.stdout.take().expect("piped"));
        let first = lines.recv_timeout(PATIENCE);
        let Ok(first) = first else {
            self.server = Some(Server { child, lines, client: Client::new("127.0.0.1:1", None) });
            return None;
        };
        let address = first.strip_prefix("listening on http://").expect("tells its address");
        let token = fs::read_to_string(self.data().join("token")).expect("there from the start");
        let client = Client::new(address, Some(token.trim().to_string()));
        self.server = Some(Server { child, lines, client: client.clone() });
        Some(client)
    }

    /// Starts a server and waits until it is ready.
    pub(crate) fn start(&mut self) -> Client {
        let client = self.spawn().unwrap_or_else(|| panic!("no server: {}", self.complaints()));
        let server = self.server.as_ref().expect("just started");
        let ready = server.lines.recv_timeout(PATIENCE);
        let ready = ready.unwrap_or_else(|_| panic!("not ready: {}", self.complaints()));
        assert!(ready.starts_with("ready: "), "{ready}");
        client
    }

    /// The way to the running server.
    pub(crate) fn client(&self) -> &Client {
        &self.server.as_ref().expect("a server is running").client
    }

    /// The server's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.server.as_ref().expect("a server is running").child.id()
    }

    /// Waits until the server that was spawned is ready; false if it ended before.
    pub(crate) fn wait_ready(&self) -> bool {
        let server = self.server.as_ref().expect("just spawned");
        let ready = server.lines.recv_timeout(PATIENCE);
        assert_ne!(ready, Err(std::sync::mpsc::RecvTimeoutError::Timeout), "{}", self.complaints());
        ready.is_ok()
    }

    /// Whether a server was started that nobody has ended or found dead.
    pub(crate) fn is_up(&self) -> bool {
        self.server.is_some()
    }

    /// SIGKILL, and wait until it is gone.
    pub(crate) fn kill(&mut self) {
        let mut server = self.server.take().expect("a server is running");
        server.child.kill().expect("it can be signalled");
        server.child.wait().expect("it is our child");
    }

    /// Looks no more after what was started last: a wrapper that outlives its server.
    pub(crate) fn forget(&mut self) {
        self.server = None;
    }

    /// Waits until the server has ended by itself.
    pub(crate) fn wait_dead(&mut self) -> ExitStatus {
        let server = self.server.take().expect("a server was started");
        let (sender, ended) = channel();
        let mut child = server.child;
        let pid = child.id();
        std::thread::spawn(move || sender.send(child.wait()));
        let status = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            // Nobody else has it in hand any more.
            signal(pid, "-KILL");
            panic!("server {pid} did not end: {}", self.complaints());
        });
        status.expect("it is our child")
    }

    /// What servers said on standard error.
    pub(crate) fn complaints(&self) -> String {
        fs::read_to_string(self.path("server.err")).unwrap_or_default()
    }

    /// Waits until servers have complained so, by the file's own events.
    pub(crate) fn wait_complaint(&self, words: &str) {
        let watch = inotify::Inotify::init().expect("inotify");
        let path = self.path("server.err");
        watch.watches().add(path, inotify::WatchMask::MODIFY).expect("it is there");
        while !self.complaints().contains(words) {
            let mut fds = [PollFd::new(&watch, PollFlags::IN)];
            let patience = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
            let ready = poll(&mut fds, Some(&patience)).expect("poll");
            assert_eq!(ready, 1, "never complained of: {words}: {}", self.complaints());
            rustix::io::read(&watch, &mut [0; 4096]).expect("an event");
        }
    }

    /// Makes a git repository with one commit beside the data directory.
    pub(crate) fn make_repo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("a directory");
        fs::write(path.join("README.md"), "# A repository\n").expect("a file");
        git(&path, &["init", "--quiet", "--initial-branch=main"]);
        git(&path, &["add", "--all"]);
        git(&path, &["commit", "--quiet", "--message=first"]);
        path
    }

    /// Registers the repo `r`, made on the spot, and waits until it is ready.
    pub(crate) fn repo(&self) {
        self.repo_from("r", "source");
    }

    /// The same under another name, made there.
    pub(crate) fn repo_from(&self, name: &str, source: &str) {
        let source = self.make_repo(source);
        let body = json!({ "name": name, "source": source });
        self.client().post("/api/repos", &body).expect("registered");
        let repo =
            self.client().get(&format!("/api/repos/{name}?wait=true")).expect("there").json();
        let repo = repo.expect("JSON");
        assert_eq!(repo["phase"], "ready", "{repo}");
    }

    /// Submits a `command` job on repo `r`.
    pub(crate) fn submit_script(&self, script: &str) -> String {
        self.submit(&script_job(script))
    }

    /// Submits a job and gives its id.
    pub(crate) fn submit(&self, body: &Value) -> String {
        let job = self.client().post("/api/jobs", body).expect("accepted").json().expect("JSON");
        job["id"].as_str().expect("has an id").to_string()
    }

    /// A job as it is now.
    pub(crate) fn job(&self, id: &str) -> Value {
        self.client().get(&format!("/api/jobs/{id}")).expect("there").json().expect("JSON")
    }

    /// Waits until a job is what the test wants, by the job's own events.
    pub(crate) fn wait_for(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/api/jobs/{id}/events");
        let stream = self.client().stream(&path, &[]).expect("there");
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if let Some(data) = line.strip_prefix("data: ") {
                    let job: Value = serde_json::from_str(data).expect("JSON");
                    if sender.send(job).is_err() {
                        return;
                    }
                }
            }
        });
        let mut last = Value::Null;
        loop {
            match events.recv_timeout(PATIENCE) {
                Ok(job) if wanted(&job) => return job,
                Ok(job) => last = job,
                Err(error) => panic!("never came ({error}): {last:#}\n{}", self.complaints()),
            }
        }
    }

    /// Waits until a job is in a phase.
    pub(crate) fn wait_phase(&self, id: &str, phase: &str) -> Value {
        self.wait_for(id, |job| job["phase"] == phase)
    }

    /// Waits until a job has ended.
    pub(crate) fn wait_ended(&self, id: &str) -> Value {
        self.wait_phase(id, "ended")
    }

    /// A job's whole raw output.
    pub(crate) fn output(&self, id: &str) -> Vec<u8> {
        self.client().get(&format!("/api/jobs/{id}/output")).expect("there").body
    }

    /// Why things were decided, as lines.
    pub(crate) fn why(&self, id: &str) -> String {
        let reply = self.client().get(&format!("/api/jobs/{id}/why")).expect("there").json();
        let reply = reply.expect("JSON");
        let texts = reply["decisions"].as_array().expect("a list");
        texts.iter().filter_map(|d| d["text"].as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Waits until nothing is left in a directory, by its own events.
    pub(crate) fn wait_empty(&self, dir: &Path) {
        let mut inotify = inotify::Inotify::init().expect("inotify");
        let mask = inotify::WatchMask::DELETE | inotify::WatchMask::MOVED_FROM;
        inotify.watches().add(dir, mask).expect("it is there");
        let (sender, emptied) = channel();
        let dir = dir.to_path_buf();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while fs::read_dir(&dir).expect("it is there").count() > 0 {
                inotify.read_events_blocking(&mut buffer).expect("events");
            }
            sender.send(())
        });
        emptied.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("never: {}", self.complaints()));
    }

    /// Waits until something is no longer in its directory, by the directory's own events.
    pub(crate) fn wait_away(&self, path: &Path) {
        let mut inotify = inotify::Inotify::init().expect("inotify");
        let mask = inotify::WatchMask::DELETE | inotify::WatchMask::MOVED_FROM;
        inotify.watches().add(path.parent().expect("in a directory"), mask).expect("it is there");
        let (sender, gone) = channel();
        let watched = path.to_path_buf();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while watched.exists() {
                inotify.read_events_blocking(&mut buffer).expect("events");
            }
            sender.send(())
        });
        gone.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("never: {}", self.complaints()));
    }

    /// Tells of every file that is made beside the data directory from now on.
    pub(crate) fn watch_files(&self) -> inotify::Inotify {
        let watch = inotify::Inotify::init().expect("inotify");
        watch.watches().add(self.path(""), inotify::WatchMask::CREATE).expect("watches");
        watch
    }

    /// Waits until a file is there, by what was watched since before it was made.
    pub(crate) fn wait_file(&self, watch: &inotify::Inotify, name: &str) {
        while !self.path(name).exists() {
            let mut fds = [PollFd::new(watch, PollFlags::IN)];
            let patience = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
            let ready = poll(&mut fds, Some(&patience)).expect("poll");
            assert_eq!(ready, 1, "never made: {name}: {}", self.complaints());
            rustix::io::read(watch, &mut [0; 4096]).expect("an event");
        }
    }

    /// Lines of a file that agents append to.
    pub(crate) fn count_lines(&self, name: &str) -> usize {
        fs::read_to_string(self.path(name)).unwrap_or_default().lines().count()
    }

    /// Makes a gate at which an agent waits (`read x < GATE`).
    pub(crate) fn make_gate(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let status = Command::new("mkfifo").arg(&path).status().expect("mkfifo");
        assert!(status.success());
        path
    }

    /// Waits until an agent stands at the gate, and lets it through.
    pub(crate) fn open_gate(&self, name: &str) {
        let path = self.path(name);
        let (sender, opened) = channel();
        std::thread::spawn(move || {
            // Opening for writing waits for a reader: that is the event.
            let gate = fs::OpenOptions::new().write(true).open(path);
            sender.send(gate.and_then(|mut gate| gate.write_all(b"go\n")))
        });
        let written = opened.recv_timeout(PATIENCE);
        written.unwrap_or_else(|_| panic!("nobody at {name}: {}", self.complaints())).expect("ok");
    }

    /// Processes that carry this data directory's mark, by pid.
    pub(crate) fn marked(&self) -> Vec<u32> {
        let Ok(instance) = fs::read_to_string(self.data().join("instance.json")) else {
            return Vec::new();
        };
        let instance: Value = serde_json::from_str(&instance).expect("JSON");
        let life = instance["life"].as_str().or_else(|| instance["instance"].as_str());
        let mark = format!("OUTLIVE_MARK={}/", life.expect("a UUID"));
        let pids = fs::read_dir("/proc").expect("proc").filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let carries = environ.split(|byte| *byte == 0).any(|v| v.starts_with(mark.as_bytes()));
            carries.then_some(pid)
        });
        pids.collect()
    }

    /// The keep directory of an attempt.
    pub(crate) fn keep(&self, id: &str, attempt: u32) -> PathBuf {
        self.data().join("jobs").join(id).join("attempts").join(attempt.to_string())
    }

    /// Waits until something is there, by the events of the directories on the way to it.
    fn wait_there(&self, path: &Path) {
        let mask = inotify::WatchMask::CREATE | inotify::WatchMask::MOVED_TO;
        while !path.exists() {
            let near = path.ancestors().find(|near| near.exists()).expect("the root is");
            let next = path.ancestors().take_while(|next| *next != near).last();
            let watch = inotify::Inotify::init().expect("inotify");
            watch.watches().add(near, mask).expect("it is there");
            if !next.expect("below it").exists() {
                let mut fds = [PollFd::new(&watch, PollFlags::IN)];
                let patience = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
                let ready = poll(&mut fds, Some(&patience)).expect("poll");
                assert_eq!(ready, 1, "never there: {}: {}", path.display(), self.complaints());
            }
        }
    }

    /// Tells of every heartbeat of attempt 1 from now on.
    pub(crate) fn watch_beats(&self, id: &str) -> inotify::Inotify {
        // A job is called running as soon as its launch is planned; its directory comes after that.
        self.wait_there(&self.keep(id, 1));
        let watch = inotify::Inotify::init().expect("inotify");
        watch.watches().add(self.keep(id, 1), inotify::WatchMask::MOVED_TO).expect("watches");
        watch
    }

    /// Whether a supervisor or caretaker has attempt 1 in hand: it has beaten, and sleeps until something happens.
    pub(crate) fn is_kept(&self, id: &str) -> bool {
        let keep = self.keep(id, 1);
        let here = Here::observe().expect("this boot");
        let Lock::Held(Some(holder)) = probe(&keep, &here).lock else { return false };
        let beats = read_sentinel(&keep).valid().is_some_and(|beat| beat.keeper == holder);
        beats && falls_asleep(holder.pid)
    }

    /// Waits until somebody has attempt 1 in hand.
    pub(crate) fn wait_kept(&self, id: &str) {
        let beats = self.watch_beats(id);
        while !self.is_kept(id) {
            let mut fds = [PollFd::new(&beats, PollFlags::IN)];
            let patience = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
            let ready = poll(&mut fds, Some(&patience)).expect("poll");
            assert_eq!(ready, 1, "nobody takes care: {}", self.complaints());
            rustix::io::read(&beats, &mut [0; 4096]).expect("an event");
        }
    }

    /// The pids in `started`: agent, keeper.
    pub(crate) fn pids(&self, id: &str, attempt: u32) -> (u32, u32) {
        let bytes = fs::read(self.keep(id, attempt).join("started")).expect("it was started");
        let started: Value = serde_json::from_slice(&bytes).expect("JSON");
        let pid =
            |who: &str| u32::try_from(started[who]["pid"].as_u64().expect("pid")).expect("pid");
        (pid("agent"), pid("keeper"))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            drop(server.child.kill());
            drop(server.child.wait());
        }
        // Agents outlive their server; in a test they must not outlive the test.
        let keepers = keepers_below(self.dir.path());
        let keepers = keepers.into_iter().chain(keepers_below(&self.data));
        let left: Vec<u32> = keepers.chain(self.marked()).collect();
        for pid in &left {
            drop(
                Command::new("kill")
                    .args(["-KILL", &pid.to_string()])
                    .stderr(Stdio::null())
                    .status(),
            );
        }
        if !std::thread::panicking() {
            // Killed is not gone: what they have open keeps a file system from being unmounted.
            left.into_iter().for_each(wait_gone);
        }
        if std::thread::panicking() {
            let kept = self.dir.path().display().to_string();
            self.dir.disable_cleanup(true);
            crate::crashes::tell(&format!("kept for a look: {kept}"));
        }
    }
}

pub(crate) fn keepers_below(dir: &Path) -> Vec<u32> {
    let needle = dir.to_string_lossy().into_owned();
    let pids = fs::read_dir("/proc").expect("proc").filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        (line.contains("supervise\0") && line.contains(&needle)).then_some(pid)
    });
    pids.collect()
}

/// How much is tried: all of it with `OUTLIVE_LONG=1`, else what a check has time for.
pub(crate) fn long_or_short<T>(long: T, short: T) -> T {
    if std::env::var_os("OUTLIVE_LONG").is_some() { long } else { short }
}

/// A `command` job on repo `r` that runs a shell script.
pub(crate) fn script_job(script: &str) -> Value {
    json!({ "repo": "r", "engine": "command", "engine_options": { "argv": ["sh", "-c", script] } })
}

pub(crate) fn lines_of(stdout: std::process::ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Runs git with an identity of its own.
pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    let identity = ["-c", "user.name=A Tester", "-c", "user.email=tester@localhost"];
    let mut command = Command::new("git");
    let output = command.current_dir(dir).args(identity).args(args).output().expect("git runs");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "git {args:?}: {complaint}");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// Moves a file to another place on the same file system.
#[expect(clippy::disallowed_methods, reason = "nothing here has to survive a power cut")]
pub(crate) fn move_aside(from: &Path, to: &Path) {
    fs::rename(from, to).expect("moved");
}

/// That the process died by SIGKILL, and not in another way.
pub(crate) fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}

/// Sends a signal to a process that a test looks after.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([name, &pid.to_string()]).status().expect("kill runs");
    assert!(status.success(), "kill {name} {pid}");
}

/// Waits until a process is gone (or a zombie), by its pidfd.
pub(crate) fn wait_gone(pid: u32) {
    let Some(raw) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return;
    };
    let Ok(fd) = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let patience = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
    let ready = poll(&mut fds, Some(&patience)).expect("poll");
    assert_eq!(ready, 1, "process {pid} is still there");
}

/// The stable code of a problem.
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    let error = result.expect_err("refused");
    error.code().map_or_else(|| panic!("not a problem: {error}"), str::to_string)
}

/// Reads everything a stream gives until it ends.
pub(crate) fn read_all(mut stream: impl std::io::Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("a whole answer");
    bytes
}

/// Whether a busy process comes to rest; false if it dies instead. What it does until then are a few calls to the disk.
fn falls_asleep(pid: u32) -> bool {
    let begun = std::time::Instant::now();
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        match stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()) {
            Some('S') => return true,
            None | Some('Z' | 'X') => return false,
            Some(_) => std::thread::yield_now(),
        }
        assert!(begun.elapsed() < PATIENCE, "process {pid} never rests: {stat}");
    }
}
