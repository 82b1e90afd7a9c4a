//! One job through whatever a test does to server and supervisors: asks again after every death, and knows at the end whether
//! the job ran once, whole and exactly.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::mpsc::channel;

use outlive::face::client::{Client, ClientError};
use outlive_core::engine::demo::check_output;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use crate::crashes::tell;
use crate::rig::{PATIENCE, Rig, git, was_killed};

/// More servers than any case may need: one that dies again and again is a failure.
const SERVERS_MAX: u32 = 8;

/// The key of the one job.
const KEY: &str = "the one job";

/// A data directory with one job on it.
pub(crate) struct Case {
    /// Where it all happens.
    pub(crate) rig: Rig,
    up: bool,
    /// Every start of the agent writes a line here.
    starts: File,
    started: usize,
    /// Servers that were found dead.
    pub(crate) deaths: u32,
    /// What the job runs.
    body: Value,
    /// Done once to the data directory when a server was found dead.
    pub(crate) at_death: Option<fn(&Rig)>,
}

impl Case {
    /// Nothing is started yet. The agent writes at a pace until it is let go, then exits with 42.
    pub(crate) fn new() -> Self {
        Self::within(Rig::new())
    }

    /// The same in a rig of the test's own.
    pub(crate) fn within(mut rig: Rig) -> Self {
        rig.set("OUTLIVE_GRACE_S", "0");
        let fifo = rig.make_gate("starts");
        let mut options = OpenOptions::new();
        // Open for both: no agent ever waits for a reader, and the end of one is not the end.
        let starts = options.read(true).write(true).custom_flags(0o4000).open(&fifo);
        let source = rig.make_repo("source");
        symlink(&fifo, source.join("starts")).expect("a link");
        git(&source, &["add", "--all"]);
        git(&source, &["commit", "--quiet", "--message=counts starts"]);
        let options = json!({
            "line_ms": 5, "exit_code": 42, "until_file": rig.path("go"), "count_starts": "starts",
        });
        let body =
            json!({ "repo": "r", "engine": "demo", "prompt": "work", "engine_options": options });
        let starts = starts.expect("a FIFO");
        Self { rig, up: false, starts, started: 0, deaths: 0, body, at_death: None }
    }

    /// The agent ignores TERM, and writes nothing.
    pub(crate) fn make_deaf(&mut self) {
        let starts = self.rig.path("starts").display().to_string();
        let gate = self.rig.make_gate("never").display().to_string();
        let script =
            format!("trap '' TERM; echo start > {starts}; while :; do read x < {gate}; done");
        self.body = json!({ "repo": "r", "engine": "command", "engine_options": { "argv": ["sh", "-c", script] } });
    }

    /// A server that listens; after deaths the next one.
    fn client(&mut self) -> Client {
        while !self.up {
            assert!(self.deaths < SERVERS_MAX, "servers die: {}", self.rig.complaints());
            self.up = true;
            if self.rig.spawn().is_none() {
                self.bury();
            }
        }
        self.rig.client().clone()
    }

    /// A server that is ready; after deaths the next one.
    pub(crate) fn ready(&mut self) {
        self.client();
        while !self.rig.wait_ready() {
            self.bury();
            self.client();
        }
    }

    /// Waits for the death of a server that stopped answering.
    fn bury(&mut self) {
        let status: ExitStatus = self.rig.wait_dead();
        assert!(was_killed(status), "{status}: {}", self.rig.complaints());
        self.up = false;
        self.deaths += 1;
        if let Some(change) = self.at_death.take() {
            change(&self.rig);
        }
    }

    /// SIGKILL from the test.
    pub(crate) fn kill_server(&mut self) {
        if self.up {
            self.rig.kill();
            self.up = false;
        }
    }

    /// Asks until somebody lives long enough to answer.
    pub(crate) fn ask<T>(
        &mut self,
        ask: impl Fn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        loop {
            let client = self.client();
            match ask(&client) {
                Err(ClientError::Unreachable { .. } | ClientError::Broken { .. }) => self.bury(),
                answer => return answer,
            }
        }
    }

    /// Registers the repo and waits until it is ready.
    pub(crate) fn repo(&mut self) {
        let body = json!({ "name": "r", "source": self.rig.path("source") });
        let registered = self.ask(|client| client.post("/api/repos", &body));
        if let Err(error) = registered {
            assert_eq!(error.code(), Some("repo_exists"), "{error}");
        }
        let repo = self.ask(|client| client.get("/api/repos/r?wait=true")?.json());
        assert_eq!(repo.expect("there")["phase"], "ready");
    }

    /// Submits the job under its key.
    pub(crate) fn submit(&mut self) -> String {
        let body = self.body.clone();
        let key = [("idempotency-key", KEY)];
        let job = self.ask(|client| client.post_with("/api/jobs", &body, &key)?.json());
        job.expect("accepted")["id"].as_str().expect("has an id").to_string()
    }

    /// Cancels it, if it is not over by then.
    pub(crate) fn cancel(&mut self, id: &str) {
        let path = format!("/api/jobs/{id}/cancel");
        if let Err(error) = self.ask(|client| client.post(&path, &json!({}))) {
            assert_eq!(error.code(), Some("not_allowed_in_phase"), "{error}");
        }
    }

    /// The process that died at the point it was asked to die at.
    pub(crate) fn died(&self, point: &str) -> Option<u32> {
        fs::read_to_string(self.rig.path(&format!("died.{point}"))).ok()?.parse().ok()
    }

    /// Waits until a supervisor or caretaker has attempt 1 in hand: it has beaten, and sleeps until something happens.
    ///
    /// An agent that ends while nobody is there to see it is another story, told elsewhere.
    pub(crate) fn wait_kept(&mut self, id: &str) {
        let beats = self.rig.watch_beats(id);
        while !self.rig.is_kept(id) {
            if self.server_died(beats.as_fd(), "no caretaker came") {
                self.bury();
            } else {
                rustix::io::read(&beats, &mut [0; 4096]).expect("an event");
            }
        }
    }

    /// Waits for something, or for the server's death.
    fn server_died(&mut self, something: BorrowedFd<'_>, complaint: &str) -> bool {
        self.client();
        let pid = i32::try_from(self.rig.pid()).ok().and_then(rustix::process::Pid::from_raw);
        let flags = rustix::process::PidfdFlags::empty();
        let server = rustix::process::pidfd_open(pid.expect("a pid"), flags).expect("our child");
        let mut fds = [PollFd::new(&something, PollFlags::IN), PollFd::new(&server, PollFlags::IN)];
        let patience = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
        let ready = poll(&mut fds, Some(&patience)).expect("poll");
        assert_ne!(ready, 0, "{complaint}: {}", self.rig.complaints());
        !fds[0].revents().contains(PollFlags::IN)
    }

    /// Waits until the agent says that it starts.
    pub(crate) fn wait_started(&mut self) {
        let starts = self.starts.try_clone().expect("a descriptor");
        while self.server_died(starts.as_fd(), "no agent started") {
            self.bury();
        }
        self.count_starts();
    }

    /// Starts so far.
    pub(crate) fn count_starts(&mut self) -> usize {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.starts.read(&mut buffer) {
            self.started += buffer[..count].split(|byte| *byte == b'\n').count() - 1;
        }
        self.started
    }

    /// Lets the agent finish.
    pub(crate) fn let_go(&self) {
        fs::write(self.rig.path("go"), "").expect("a file");
    }

    /// Waits until the job is over, or held as unknown, over all deaths.
    pub(crate) fn wait_ended(&mut self, id: &str) -> Value {
        let path = format!("/api/jobs/{id}/events");
        loop {
            let stream = self.ask(|client| client.stream(&path, &[])).expect("there");
            let (sender, ended) = channel();
            std::thread::spawn(move || {
                let lines = BufReader::new(stream).lines().map_while(Result::ok);
                let jobs = lines
                    .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
                sender.send(jobs.last())
            });
            let last: Option<Value> = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                let job = self.rig.job(id);
                panic!("never ended: {job:#}\n{}\n{}", self.rig.why(id), self.rig.complaints())
            });
            match last {
                Some(job) if job["phase"] == "ended" => return job,
                Some(job) if job["phase"] == "unknown" => return job,
                _ => self.bury(),
            }
        }
    }

    /// One more start, and then everything must be as it was told, nothing left over.
    pub(crate) fn check(&mut self, id: &str, expected: Expected) {
        self.kill_server();
        if self.rig.spawn().is_none() {
            // The asked-for death may come as late as here.
            self.bury();
        }
        if self.rig.is_up() {
            self.rig.kill();
        }
        self.rig.unset("OUTLIVE_CRASH");
        self.rig.start();
        self.up = true;
        let job = self.rig.job(id);
        let why = self.rig.why(id);
        let outcome = &job["outcome"];
        if expected == Expected::Unprovable && job["phase"] == "unknown" {
            assert!(why.contains("row 9"), "{why}");
        } else {
            assert_eq!(job["phase"], "ended", "{job:#}\n{why}");
            let exact = outcome["exit_status"] == "exact";
            assert!(exact || expected == Expected::Cancelled, "{job:#}\n{why}");
        }
        let attempts = job["attempts"].as_array().map_or(0, Vec::len);
        match expected {
            Expected::ExitedWith42 => {
                assert_eq!(outcome["exit_code"], 42, "{outcome}\n{why}");
                let output = self.rig.output(id);
                let exact = check_output(&output);
                assert!(exact.is_ok(), "{exact:?}: {}\n{why}", String::from_utf8_lossy(&output));
                assert_eq!(self.count_starts(), 1, "{why}");
            }
            Expected::Unprovable => {
                let told = outcome["exit_code"] == 42 || job["phase"] == "unknown";
                assert!(told, "{outcome}\n{why}");
                let output = self.rig.output(id);
                let exact = check_output(&output);
                assert!(exact.is_ok(), "{exact:?}: {}\n{why}", String::from_utf8_lossy(&output));
                assert_eq!(self.count_starts(), 1, "{why}");
            }
            Expected::Cancelled => {
                assert_eq!(outcome["kind"], "cancelled", "{outcome}\n{why}");
                assert_eq!(self.count_starts(), 1, "{why}");
            }
            Expected::KilledBeforeItsProgram => {
                assert_eq!(outcome["signal"], 9, "{outcome}\n{why}");
                assert_eq!(self.count_starts(), 0, "{why}");
            }
        }
        assert_eq!(attempts, 1, "{why}");
        let jobs = self.rig.client().get("/api/jobs").expect("there").json().expect("JSON");
        assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1), "{jobs:#}");
        assert_eq!(self.rig.marked(), Vec::<u32>::new(), "{why}");
        let left: Vec<_> =
            fs::read_dir(self.rig.data().join("operations")).expect("there").collect();
        assert!(left.is_empty(), "{left:?}");
        let keeps = fs::read_dir(self.rig.data().join("jobs").join(id).join("attempts"));
        assert_eq!(keeps.expect("there").count(), 1);
    }
}

/// How the one job must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Exit code 42, every byte of its output there, started once.
    ExitedWith42,
    /// The same, or held as unknown and never run again: the last who saw it end died, and this kernel keeps no exit status.
    Unprovable,
    /// Cancelled.
    Cancelled,
    /// Its process was killed while it was still ours.
    KilledBeforeItsProgram,
}

impl Expected {
    /// Of an agent whose supervisor dies between the agent's end and the record of it, while a server lives.
    pub(crate) fn of_an_end_that_was_not_recorded() -> Self {
        if keeps_exit_status() { Self::ExitedWith42 } else { Self::Unprovable }
    }
}

/// Whether this kernel keeps the exit status of a process for those who hold its pidfd (Linux 6.15 and later). If not, says so.
pub(crate) fn keeps_exit_status() -> bool {
    static KEEPS: OnceLock<bool> = OnceLock::new();
    *KEEPS.get_or_init(|| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let keeps = (numbers.next(), numbers.next()) >= (Some(6), Some(15));
        if !keeps {
            tell(&format!(
                "NOT COVERED: exact ends whose supervisor died over them: Linux {} forgets them (needs 6.15)",
                release.trim()
            ));
        }
        keeps
    })
}

/// Sends SIGKILL to several processes at once.
pub(crate) fn kill_all(pids: &[u32]) {
    let pids = pids.iter().map(ToString::to_string);
    let status = Command::new("kill").arg("-KILL").args(pids).status().expect("kill runs");
    assert!(status.success());
}
