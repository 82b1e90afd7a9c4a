//! A real server with its agents in a directory of their own. Every wait is bounded, and everything that was started is ended
//! when it is dropped.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use outlive::face::client::sse;
use outlive_core::ids::ProcessRef;
use outlive_core::record::FILE_HEADER_BYTES;
use outlive_core::spec::Started;
use outlive_supervisor::{Here, open_process, read_started, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

/// How long anything may take. Only something broken gets near it.
const PATIENCE: Duration = Duration::from_mins(2);

/// Supervisors record the end of their killed agents within this, all of them.
const GOODBYE: Duration = Duration::from_mins(3);

/// No agent lives longer than this, whatever becomes of us: its supervisor sees to it.
const AGENT_SECONDS_MAX: u32 = 1200;

/// The program that is measured: the one beside this one.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find our own program")?;
    let program = own.ancestors().nth(2).map(|dir| dir.join("outlive")).unwrap_or_default();
    let profile = if cfg!(debug_assertions) { "" } else { " --release" };
    ensure!(
        program.is_file(),
        "there is no {}: build it first, by `cargo build{profile}`",
        program.display()
    );
    Ok(program)
}

/// A data directory with the server that may be running on it.
#[derive(Debug)]
pub(crate) struct Rig {
    dir: tempfile::TempDir,
    program: PathBuf,
    running_max: usize,
    here: Here,
    server: Option<Child>,
    api: Option<Api>,
    /// The first start chooses a port; later ones have the same, as with a configured one.
    address: String,
}

/// How long a start took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StartTimes {
    /// From before fork and exec until the line `ready:` had come, in milliseconds.
    pub(crate) wall: f64,
    /// What the server says of itself, in milliseconds.
    pub(crate) ready: f64,
    /// Processor time of all its threads until then, in milliseconds: the part that other processes cannot lengthen much.
    pub(crate) cpu: f64,
}

impl Rig {
    /// A server that runs so many agents at once, with the repo `r`.
    pub(crate) fn start(running_max: usize) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("outlive-figures-").tempdir()?;
        let (program, here) = (program()?, Here::observe()?);
        let address = "127.0.0.1:0".to_string();
        let mut rig = Self { dir, program, running_max, here, server: None, api: None, address };
        rig.start_again()?;
        rig.add_repo()?;
        Ok(rig)
    }

    /// A path beside the data directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path in the data directory.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.path("data").join(name)
    }

    /// SIGKILL for the server, and nobody else.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.api = None;
        if let Some(mut server) = self.server.take() {
            server.kill()?;
            server.wait()?;
        }
        Ok(())
    }

    /// Starts a server and waits until it is ready.
    pub(crate) fn start_again(&mut self) -> anyhow::Result<StartTimes> {
        let complaints = fs::File::options().create(true).append(true).open(self.path("err"))?;
        let mut command = Command::new(&self.program);
        command.args(["serve", "--listen", &self.address, "--data"]).arg(self.path("data"));
        command.env("OUTLIVE_RUNNING_MAX", self.running_max.to_string());
        command.env("OUTLIVE_MIN_FREE_BYTES", "0").env("OUTLIVE_GRACE_S", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(complaints);
        let begun = Instant::now();
        let mut child = command.spawn().context("the server cannot be started")?;
        let stdout = child.stdout.take().context("its output is not piped")?;
        let pid = child.id();
        self.server = Some(child);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        let next = |begins: &str| -> anyhow::Result<(Instant, String)> {
            let told = lines.recv_timeout(PATIENCE);
            let complaints = || fs::read_to_string(self.path("err")).unwrap_or_default();
            let (at, line) = told.with_context(|| format!("no `{begins}`: {}", complaints()))?;
            let rest = line.strip_prefix(begins).map(str::to_string);
            Ok((at, rest.with_context(|| format!("`{begins}` expected, not `{line}`"))?))
        };
        let (_, address) = next("listening on http://")?;
        let (ready, _) = next("ready: ")?;
        let cpu_ms = cpu_ms(pid)?;
        let token = fs::read_to_string(self.data("token"))?;
        let api = Api::new(&address, token.trim());
        let told = api.get("/api/admin/startup-log")?;
        self.api = Some(api);
        self.address = address;
        let ready_ms = told["current"]["ready_ms"].as_f64().context("a start that took no time")?;
        Ok(StartTimes { wall: millis(ready - begun), ready: ready_ms, cpu: cpu_ms })
    }

    /// What the running server told of its start.
    pub(crate) fn startup_log(&self) -> anyhow::Result<Value> {
        Ok(self.api()?.get("/api/admin/startup-log")?["current"].take())
    }

    /// The way to the running server.
    pub(crate) fn api(&self) -> anyhow::Result<&Api> {
        self.api.as_ref().context("no server is running")
    }

    /// The running server's pid.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.server.as_ref().context("no server is running")?.id())
    }

    fn add_repo(&self) -> anyhow::Result<()> {
        let source = self.path("source");
        fs::create_dir_all(&source)?;
        fs::write(source.join("README.md"), "# A repository\n")?;
        let steps: [&[&str]; 3] = [
            &["init", "--quiet", "--initial-branch=main"],
            &["add", "--all"],
            &["commit", "--quiet", "--message=first"],
        ];
        for step in steps {
            let mut git = Command::new("git");
            git.current_dir(&source).args(["-c", "user.name=A Figure"]);
            let status = git.args(["-c", "user.email=figure@localhost"]).args(step).status()?;
            ensure!(status.success(), "git {step:?} failed");
        }
        self.api()?.post("/api/repos", &json!({ "name": "r", "source": source }))?;
        let repo = self.api()?.get("/api/repos/r?wait=true")?;
        ensure!(repo["phase"] == "ready", "the repo is not ready: {repo}");
        Ok(())
    }

    /// Submits agents that write one byte and then do nothing, and waits until each of them has.
    pub(crate) fn run_sleepers(&self, count: usize) -> anyhow::Result<()> {
        let api = self.api()?;
        let script = format!("echo; exec sleep {AGENT_SECONDS_MAX}");
        let job = command_job(&["sh", "-c", &script]);
        let ids = (0..count).map(|_| api.submit(&job)).collect::<anyhow::Result<Vec<_>>>()?;
        for id in ids {
            api.follow(&id)?.read_exact(&mut [0]).context("an agent did not start")?;
        }
        Ok(())
    }

    /// The supervisors and agents of all attempts, as they wrote their names down.
    pub(crate) fn started(&self) -> Vec<Started> {
        let entries = |dir: PathBuf| {
            fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
        };
        let attempts = entries(self.data("jobs")).flat_map(|job| entries(job.join("attempts")));
        let all = attempts.chain(entries(self.data("operations")));
        all.filter_map(|keep| read_started(&keep).valid().cloned()).collect()
    }

    /// The supervisors of attempts that are alive.
    pub(crate) fn supervisors(&self) -> Vec<ProcessRef> {
        let alive = |started: &Started| self.open(&started.keeper).is_some();
        self.started().into_iter().filter(alive).map(|started| started.keeper).collect()
    }

    fn open(&self, process: &ProcessRef) -> Option<OwnedFd> {
        open_process(process, &self.here)
    }

    /// Ends the server, then all agents; their supervisors follow by themselves, and are ended if they do not.
    fn end_all(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        let kill = rustix::process::Signal::KILL;
        let all = self.started();
        let keepers: Vec<OwnedFd> = all.iter().filter_map(|s| self.open(&s.keeper)).collect();
        for agent in all.iter().filter_map(|started| self.open(&started.agent)) {
            // It may have ended by itself meanwhile.
            signal(agent.as_fd(), kill).ok();
        }
        let begun = Instant::now();
        let mut slow = 0;
        for keeper in keepers {
            if !wait_end(&keeper, GOODBYE.saturating_sub(begun.elapsed()))? {
                signal(keeper.as_fd(), kill).ok();
                slow += 1;
            }
        }
        ensure!(slow == 0, "{slow} supervisors did not end with their agents and were killed");
        Ok(())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Err(error) = self.end_all() {
            eprintln!("figures: cleaning up: {error:#}");
        }
    }
}

/// Whether a process ended in time.
fn wait_end(process: &OwnedFd, patience: Duration) -> anyhow::Result<bool> {
    let timeout = Timespec::try_from(patience)?;
    Ok(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout))? == 1)
}

/// A `command` job on the repo `r`.
pub(crate) fn command_job(argv: &[&str]) -> Value {
    json!({
        "repo": "r", "engine": "command", "engine_options": { "argv": argv },
        "timeout_s": AGENT_SECONDS_MAX,
    })
}

/// A client that keeps its connection, as a program does that submits much. A copy has connections of its own.
#[derive(Debug)]
pub(crate) struct Api {
    agent: ureq::Agent,
    base: String,
    token: String,
}

impl Api {
    fn new(address: &str, token: &str) -> Self {
        let config = ureq::Agent::config_builder().proxy(None).timeout_global(Some(PATIENCE));
        let agent = config.http_status_as_error(false).build().into();
        Self { agent, base: format!("http://{address}"), token: format!("Bearer {token}") }
    }

    /// The same with a connection of its own, which is not there yet.
    pub(crate) fn apart(&self) -> Self {
        let token = self.token.strip_prefix("Bearer ").unwrap_or_default();
        Self::new(self.base.strip_prefix("http://").unwrap_or_default(), token)
    }

    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_reader(self.open(path)?)?)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.agent.post(format!("{}{path}", self.base));
        let request = request.header("authorization", &self.token);
        let answer = request.header("content-type", "application/json").send(body.to_string())?;
        Ok(serde_json::from_reader(good(path, answer)?)?)
    }

    /// An answer that is read as it comes.
    pub(crate) fn open(&self, path: &str) -> anyhow::Result<impl Read + use<>> {
        let request = self.agent.get(format!("{}{path}", self.base));
        good(path, request.header("authorization", &self.token).call()?)
    }

    /// Submits a job and gives its id.
    pub(crate) fn submit(&self, job: &Value) -> anyhow::Result<String> {
        let job = self.post("/api/jobs", job)?;
        Ok(job["id"].as_str().context("a job without id")?.to_string())
    }

    /// A job's output as it comes.
    pub(crate) fn follow(&self, id: &str) -> anyhow::Result<impl Read + use<>> {
        self.open(&format!("/api/jobs/{id}/output?follow=true"))
    }

    /// Waits for the event that says that a job has ended.
    pub(crate) fn wait_ended(&self, id: &str) -> anyhow::Result<Value> {
        for event in sse::events(self.open(&format!("/api/jobs/{id}/events"))?) {
            let job: Value = serde_json::from_str(&event?.data)?;
            if job["phase"] == "ended" {
                return Ok(job);
            }
        }
        bail!("the events of job {id} ended before it did")
    }
}

fn good(
    path: &str,
    answer: ureq::http::Response<ureq::Body>,
) -> anyhow::Result<ureq::BodyReader<'static>> {
    let status = answer.status();
    let mut reader = answer.into_body().into_reader();
    if !status.is_success() {
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        bail!("{path}: {status}: {text}");
    }
    Ok(reader)
}

/// The wall clock in nanoseconds: the one that agents can read, too.
pub(crate) fn now_ns() -> i128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

/// Nanoseconds between two times, as milliseconds.
pub(crate) fn between_ms(from: i128, to: i128) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of minutes are exact enough")]
    let us = ((to - from) / 1000) as f64;
    us / 1000.0
}

/// A duration in milliseconds.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Processor time of all threads that live, in milliseconds.
fn cpu_ms(pid: u32) -> anyhow::Result<f64> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let nanos = text.split(' ').next().context("an empty schedstat")?.parse()?;
        sum += Duration::from_nanos(nanos);
    }
    Ok(millis(sum))
}

/// The bytes of all segments of the write-ahead log that hold anything: they are filled with zeros before they are used, and end
/// with a copy of their header.
pub(crate) fn wal_bytes(wal: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(wal)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            let bytes = fs::read(path)?;
            let bytes =
                bytes.get(..bytes.len().saturating_sub(FILE_HEADER_BYTES)).unwrap_or_default();
            sum += bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        }
    }
    Ok(sum)
}
