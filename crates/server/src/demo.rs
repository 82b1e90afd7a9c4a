//! `outlive demo`: the promise, kept before your eyes. A real server on a real repository, killed -9 under real agents, and
//! every claim checked. It is a client of the server like any other, and holds no part of it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use outlive_core::engine::demo::check_output;
use serde_json::{Value, json};

use crate::face::client::Client;

/// Jobs queued behind the two that run: as many as the project that Outlive descends from proved its recovery with.
const QUEUED: usize = 105;

/// What that project needed to recover them, in milliseconds.
const ORIGINAL_MS: f64 = 23.0;

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_mins(2);

/// Plays the story with the `engine` in the leading part (`demo`, or a real CLI that is installed).
///
/// # Errors
/// A claim that did not hold, or a step that failed.
pub fn play(engine: &str, keep: bool) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("outlive-demo-{}", std::process::id()));
    let mut stage = Stage { dir, server: None, keep, began: Instant::now() };
    let played = stage.play(engine);
    if played.is_ok() {
        line("All claims checked. Next, with a repository of your own:");
        line("  outlive serve &");
        line(
            "  outlive repo add mine /path/to/repo && outlive run --repo mine --engine demo 'say hello'",
        );
    }
    played
}

/// The directory of the story and the server in it; takes everything away again, also when the story fails.
struct Stage {
    dir: PathBuf,
    server: Option<Child>,
    keep: bool,
    began: Instant,
}

/// The two agents of the story, as their jobs.
struct Cast {
    worker: String,
    leaver: String,
}

impl Stage {
    fn tell(&self, text: &str) {
        let at = self.began.elapsed().as_secs_f64();
        line(&format!("{at:6.2}s  {text}"));
    }

    fn play(&mut self, engine: &str) -> anyhow::Result<()> {
        fs::create_dir_all(&self.dir)?;
        self.make_repo()?;
        let client = self.start()?;
        let repo = json!({ "name": "demo", "source": self.dir.join("repo") });
        client.post("/api/repos", &repo)?;
        let repo = client.get("/api/repos/demo?wait=true")?.json()?;
        ensure!(repo["phase"] == "ready", "the repository was not taken: {repo}");
        let cast = self.submit(&client, engine)?;
        let before = self.watch_them_work(&client, &cast)?;
        self.kill()?;
        self.show_survivors(&cast)?;
        let ended_by = self.work_goes_on(&cast, engine)?;
        let client = self.restart()?;
        self.check_recovery(&client, &cast, &before, &ended_by)?;
        self.finish(&client, &cast, engine, &before)?;
        self.check_nothing_lost(&client)
    }

    fn make_repo(&self) -> anyhow::Result<()> {
        let repo = self.dir.join("repo");
        fs::create_dir_all(repo.join("src"))?;
        fs::write(repo.join("README.md"), "# A repository made for this demonstration\n")?;
        fs::write(repo.join("src/hello.txt"), "hello\n")?;
        for args in [
            &["init", "--quiet", "--initial-branch=main"][..],
            &["add", "--all"],
            &[
                "-c",
                "user.name=Demo",
                "-c",
                "user.email=demo@localhost",
                "commit",
                "--quiet",
                "-m",
                "first",
            ],
        ] {
            let status = Command::new("git").current_dir(&repo).args(args).status();
            ensure!(
                status.context("git is needed for this: is it installed?")?.success(),
                "git failed"
            );
        }
        self.tell(&format!("made a git repository in {}", repo.display()));
        Ok(())
    }

    fn start(&mut self) -> anyhow::Result<Client> {
        let data = self.dir.join("data");
        let mut server = Command::new(std::env::current_exe()?)
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(&data)
            .env("OUTLIVE_RUNNING_MAX", "2")
            .env("OUTLIVE_MIN_FREE_BYTES", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = server.stdout.take().context("the server has no output")?;
        self.server = Some(server);
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let address = lines.find_map(|l| l.strip_prefix("listening on http://").map(String::from));
        let address = address.context("the server did not start")?;
        lines
            .find(|line| line.starts_with("ready: "))
            .context("the server did not become ready")?;
        let token = fs::read_to_string(data.join("token"))?.trim().to_string();
        Ok(Client::new(address, Some(token)))
    }

    fn pid(&self) -> u32 {
        self.server.as_ref().map_or(0, Child::id)
    }

    fn submit(&self, client: &Client, engine: &str) -> anyhow::Result<Cast> {
        self.tell(&format!("started a server (pid {}), two agents at a time", self.pid()));
        let signal = |name: &str| self.dir.join(name);
        let leading = if engine == "demo" {
            json!({
                "repo": "demo", "engine": "demo", "prompt": "work on through the crash",
                "title": "goes on", "engine_options": {
                    "until_file": signal("finish"), "line_ms": 20, "count_starts": "starts.txt" },
            })
        } else {
            json!({
                "repo": "demo", "engine": engine, "title": "goes on",
                "prompt": "Read README.md, then write HELLO.md with a greeting in ten languages, one per line.",
            })
        };
        let leaver = json!({
            "repo": "demo", "engine": "demo", "prompt": "end while nobody looks", "title": "exits 42",
            "engine_options": { "until_file": signal("leave"), "line_ms": 20, "exit_code": 42 },
        });
        let cast = Cast { worker: post(client, &leading)?, leaver: post(client, &leaver)? };
        let queued = json!({
            "repo": "demo", "engine": "demo", "prompt": "wait for your turn",
            "engine_options": { "lines": 1, "line_ms": 0 },
        });
        for _ in 0..QUEUED {
            post(client, &queued)?;
        }
        self.tell(&format!(
            "submitted 2 + {QUEUED} jobs; each is on disk before it is acknowledged"
        ));
        Ok(cast)
    }

    /// Waits until both agents have written something; gives what the first has written so far.
    fn watch_them_work(&self, client: &Client, cast: &Cast) -> anyhow::Result<Vec<u8>> {
        let mut seen = Vec::new();
        for id in [&cast.leaver, &cast.worker] {
            let path = format!("/api/jobs/{id}/output?follow=true");
            let mut stream = client.stream(&path, &[])?;
            let mut piece = [0; 4096];
            seen.clear();
            while seen.len() < 100 {
                let got = stream.read(&mut piece)?;
                ensure!(got > 0, "job {id} ended before it was looked at");
                seen.extend(piece.get(..got).unwrap_or_default());
            }
        }
        self.tell(&format!("both agents work; {} bytes of output so far", seen.len()));
        Ok(seen)
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        let mut server = self.server.take().context("no server")?;
        let pid = server.id();
        server.kill()?;
        server.wait()?;
        self.tell(&format!("kill -9 {pid}: the server is gone"));
        Ok(())
    }

    fn keep_dir(&self, id: &str) -> PathBuf {
        self.dir.join("data/jobs").join(id).join("attempts/1")
    }

    fn show_survivors(&self, cast: &Cast) -> anyhow::Result<()> {
        self.tell("what is still alive:");
        for id in [&cast.worker, &cast.leaver] {
            let started: Value =
                serde_json::from_slice(&fs::read(self.keep_dir(id).join("started"))?)?;
            let pid = started["agent"]["pid"].to_string();
            let ps =
                Command::new("ps").args(["-o", "pid=,ppid=,etime=,args=", "-p", &pid]).output();
            let shown = match ps {
                Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_string(),
                Err(_) => fs::read_to_string(format!("/proc/{pid}/cmdline"))?.replace('\0', " "),
            };
            ensure!(!shown.is_empty(), "claim failed: the agent of job {id} did not survive");
            self.tell(&format!("    {}", shown.chars().take(110).collect::<String>()));
        }
        Ok(())
    }

    /// While no server lives: one agent writes on, the other ends. Gives the time by which it had ended.
    fn work_goes_on(&self, cast: &Cast, engine: &str) -> anyhow::Result<String> {
        if engine == "demo" {
            let path = self.output_file(&cast.worker)?;
            let before = fs::metadata(&path)?.len();
            wait_until("the output to grow", || Ok(fs::metadata(&path)?.len() > before))?;
            let after = fs::metadata(&path)?.len();
            self.tell(&format!("no server lives, and the output grows: {before} -> {after} bytes"));
        }
        fs::write(self.dir.join("leave"), "")?;
        let outcome = self.keep_dir(&cast.leaver).join("outcome");
        // Slot 2 is the last thing a supervisor writes.
        wait_until("the second agent to end", || {
            Ok(fs::read(&outcome)?.get(512).is_some_and(|byte| *byte != 0))
        })?;
        self.tell("the other agent has ended meanwhile; nobody was there to see it");
        Ok(crate::clock::rfc3339(crate::clock::now()))
    }

    fn output_file(&self, id: &str) -> anyhow::Result<PathBuf> {
        let entries = fs::read_dir(self.dir.join("data/jobs").join(id))?;
        let mut files = entries.filter_map(Result::ok).map(|entry| entry.path());
        files.find(|path| path.extension().is_some_and(|e| e == "output")).context("no output file")
    }

    fn restart(&mut self) -> anyhow::Result<Client> {
        let client = self.start()?;
        let told = client.get("/api/admin/startup-log")?.json()?;
        let ms = told["current"]["ready_ms"].as_f64().context("the startup log has no time")?;
        let pid = self.pid();
        self.tell(&format!(
            "started again (pid {pid}): ready in {ms:.1} ms (the original: {ORIGINAL_MS:.0} ms for {QUEUED} jobs)"
        ));
        Ok(client)
    }

    fn check_recovery(
        &self,
        client: &Client,
        cast: &Cast,
        before: &[u8],
        ended_by: &str,
    ) -> anyhow::Result<()> {
        let worker = job(client, &cast.worker)?;
        let adopted = worker["attempts"].as_array().is_some_and(|a| a.len() == 1);
        ensure!(adopted, "claim failed: the first job was started twice: {worker}");
        self.claim(
            "the first agent was re-adopted, not started again",
            worker["phase"] == "running" || worker["phase"] == "ended",
        )?;
        let bytes = client.get(&format!("/api/jobs/{}/output", cast.worker))?.body;
        self.claim(
            &format!(
                "its partial output is there at once: {} bytes, the first {} as seen before",
                bytes.len(),
                before.len()
            ),
            bytes.starts_with(before),
        )?;
        let leaver = job(client, &cast.leaver)?;
        let end = leaver["attempts"][0]["ended_at"].as_str().unwrap_or_default().to_string();
        self.claim(
            &format!("the second is concluded with its true end: exit code 42 at {end}"),
            leaver["outcome"]["exit_code"] == 42
                && leaver["outcome"]["exit_status"] == "exact"
                && end.as_str() <= ended_by,
        )?;
        let list = client.get("/api/jobs?limit=1000")?.json()?;
        let total = list["jobs"].as_array().map_or(0, Vec::len);
        self.claim(&format!("all {total} jobs are known"), total == QUEUED + 2)?;
        self.startup_log(client)
    }

    fn claim(&self, text: &str, holds: bool) -> anyhow::Result<()> {
        if !holds {
            bail!("claim failed: {text}");
        }
        self.tell(&format!("  ok  {text}"));
        Ok(())
    }

    fn startup_log(&self, client: &Client) -> anyhow::Result<()> {
        let told = client.get("/api/admin/startup-log")?.json()?;
        let stages = told["current"]["stages"].as_array().cloned().unwrap_or_default();
        for stage in stages {
            let counts = stage["counts"].as_object().cloned().unwrap_or_default();
            let counts: Vec<String> = counts
                .iter()
                .filter(|(_, count)| **count != 0)
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            let name = stage["name"].as_str().unwrap_or_default();
            let ms = stage["duration_ms"].as_f64().unwrap_or_default();
            self.tell(&format!("    stage {name:<9} {ms:6.2} ms  {}", counts.join(", ")));
        }
        self.tell(&format!("    {}", told["current"]["summary"].as_str().unwrap_or_default()));
        Ok(())
    }

    fn finish(
        &self,
        client: &Client,
        cast: &Cast,
        engine: &str,
        before: &[u8],
    ) -> anyhow::Result<()> {
        fs::write(self.dir.join("finish"), "")?;
        let worker = wait_over(client, &cast.worker)?;
        let output = client.get(&format!("/api/jobs/{}/output", cast.worker))?.body;
        let completed = worker["outcome"]["kind"] == "completed";
        self.claim(
            &format!("the first agent completed: {}", worker["outcome"]["reason"]),
            completed,
        )?;
        if engine != "demo" {
            return self.claim(
                &format!(
                    "{} bytes of output, what was seen before the crash unchanged",
                    output.len()
                ),
                output.starts_with(before),
            );
        }
        let checked =
            check_output(&output).context("claim failed: the output is not byte-exact")?;
        self.claim(&format!("its output is byte-exact: {checked} bytes and their checksum, as the agent says it wrote them"), true)?;
        let starts = self.dir.join("data/jobs").join(&cast.worker).join("workspace/starts.txt");
        let starts = fs::read_to_string(starts)?.lines().count();
        self.claim(&format!("it counted its own starts: {starts}"), starts == 1)
    }

    fn check_nothing_lost(&self, client: &Client) -> anyhow::Result<()> {
        let mut open: Vec<String> = ids(&client.get("/api/jobs?limit=1000")?.json()?, |_| true);
        while let Some(id) = open.pop() {
            wait_over(client, &id)?;
        }
        let list = client.get("/api/jobs?limit=1000&outcome=completed")?.json()?;
        let once = ids(&list, |job| job["attempts"] == 1).len();
        self.claim(
            &format!("{once} jobs completed with one attempt each; none lost, none twice"),
            once == QUEUED + 1,
        )
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            drop(server.kill());
            drop(server.wait());
        }
        // Agents of a story that failed half-way end by these, and their supervisors with them.
        drop(fs::write(self.dir.join("finish"), ""));
        drop(fs::write(self.dir.join("leave"), ""));
        if self.keep {
            line(&format!("kept: {}", self.dir.display()));
        } else {
            drop(fs::remove_dir_all(&self.dir));
        }
        drop(std::io::stdout().flush());
    }
}

#[expect(clippy::print_stdout, reason = "telling a story is what this verb is for")]
fn line(text: &str) {
    println!("{text}");
}

fn post(client: &Client, body: &Value) -> anyhow::Result<String> {
    let job = client.post("/api/jobs", body)?.json()?;
    Ok(job["id"].as_str().context("a job without an id")?.to_string())
}

fn job(client: &Client, id: &str) -> anyhow::Result<Value> {
    Ok(client.get(&format!("/api/jobs/{id}"))?.json()?)
}

fn ids(list: &Value, wanted: impl Fn(&Value) -> bool) -> Vec<String> {
    let jobs = list["jobs"].as_array().cloned().unwrap_or_default();
    jobs.iter()
        .filter(|job| wanted(job))
        .filter_map(|job| job["id"].as_str())
        .map(String::from)
        .collect()
}

/// Follows a job's events until it is over.
fn wait_over(client: &Client, id: &str) -> anyhow::Result<Value> {
    let stream = client.stream(&format!("/api/jobs/{id}/events"), &[])?;
    let mut last = Value::Null;
    for line in BufReader::new(stream).lines() {
        if let Some(data) = line?.strip_prefix("data: ") {
            last = serde_json::from_str(data)?;
        }
    }
    ensure!(last["phase"] == "ended", "job {id} did not end: {last}");
    Ok(last)
}

/// Waits for something in the file system while there is no server to ask.
#[expect(
    clippy::disallowed_methods,
    reason = "without a server nobody tells; a story may look at the clock"
)]
fn wait_until(what: &str, done: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !done()? {
        ensure!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
