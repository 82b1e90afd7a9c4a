//! Many clients, many jobs, and a server that is killed among them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use outlive::face::client::Client;
use serde_json::{Value, json};

use crate::crashes::tell;
use crate::rig::{PATIENCE, Rig, long_or_short};

const JOBS: usize = 1000;
const CLIENTS: usize = 32;
const KILLS: usize = 5;

/// Where the server is now, for clients that look for it.
#[derive(Default)]
pub(crate) struct Address {
    client: Mutex<(u32, Option<Client>)>,
    changed: Condvar,
}

impl Address {
    pub(crate) fn set(&self, client: Client) {
        let mut now = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        *now = (now.0 + 1, Some(client));
        self.changed.notify_all();
    }

    /// The server after the one that stopped answering.
    pub(crate) fn after(&self, last: u32) -> (u32, Client) {
        let now = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = self.changed.wait_timeout_while(now, PATIENCE, |now| now.0 <= last);
        let (now, late) = newer.unwrap_or_else(PoisonError::into_inner);
        assert!(!late.timed_out(), "no new server");
        (now.0, now.1.clone().expect("set"))
    }
}

/// One client: submits its share, each job until it is acknowledged; under its key it may ask as often as it likes.
fn submit_share(
    share: usize,
    address: &Address,
    acknowledged: &AtomicUsize,
) -> Vec<(String, String)> {
    let (mut number, mut client) = address.after(0);
    let body = json!({ "repo": "r", "engine": "command", "engine_options": { "argv": ["true"] } });
    let mut ids = Vec::new();
    for job in (share..JOBS).step_by(CLIENTS) {
        let key = format!("job-{job}");
        let id = loop {
            match client.post_with("/api/jobs", &body, &[("idempotency-key", &key)]) {
                Ok(reply) => {
                    break reply.json().expect("JSON")["id"].as_str().expect("an id").to_string();
                }
                Err(error) if error.is_passing() => (number, client) = address.after(number),
                Err(error) => panic!("{error}"),
            }
        };
        acknowledged.fetch_add(1, Ordering::SeqCst);
        ids.push((key, id));
    }
    ids
}

/// Every job there is, by id.
fn all_jobs(client: &Client) -> BTreeMap<String, Value> {
    let mut jobs = BTreeMap::new();
    let mut cursor = String::new();
    for _ in 0..=JOBS {
        let page = client.get(&format!("/api/jobs?limit=200{cursor}")).expect("there").json();
        let page = page.expect("JSON");
        for job in page["jobs"].as_array().expect("a list") {
            jobs.insert(job["id"].as_str().expect("an id").to_string(), job.clone());
        }
        match page["next_cursor"].as_u64() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return jobs,
        }
    }
    panic!("pages without end");
}

// Proves I1 and I7: what was acknowledged is there, and asking twice is asking once.
#[test]
fn a_thousand_jobs_of_many_clients_each_end_once_over_five_deaths_of_the_server() {
    let begun = Instant::now();
    let mut rig = Rig::new();
    rig.set("OUTLIVE_RUNNING_MAX", "8");
    rig.start();
    rig.repo();
    let address = Address::default();
    let acknowledged = AtomicUsize::new(0);
    address.set(rig.client().clone());
    let told: Vec<(String, String)> = std::thread::scope(|scope| {
        let share = |share| {
            let (address, acknowledged) = (&address, &acknowledged);
            scope.spawn(move || submit_share(share, address, acknowledged))
        };
        let clients: Vec<_> = (0..CLIENTS).map(share).collect();
        for kill in 1..=KILLS {
            // Not at a time but at a count: so it is always among the submissions.
            let wanted = JOBS * kill / (KILLS + 1) + kill * 7 % 13;
            let since = Instant::now();
            while acknowledged.load(Ordering::SeqCst) < wanted {
                assert!(since.elapsed() < PATIENCE, "stuck: {}", rig.complaints());
                std::thread::yield_now();
            }
            rig.kill();
            address.set(rig.start());
        }
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    });
    let submitted = begun.elapsed();
    let ids: BTreeSet<&String> = told.iter().map(|(_, id)| id).collect();
    assert_eq!((told.len(), ids.len()), (JOBS, JOBS), "a key made two jobs, or two keys one");
    for id in &ids {
        rig.wait_ended(id);
    }
    let jobs = all_jobs(rig.client());
    assert_eq!(jobs.keys().collect::<BTreeSet<_>>(), ids, "exactly what was acknowledged");
    for (id, job) in &jobs {
        assert_eq!(
            (&job["outcome"], &job["attempts"]),
            (&json!("completed"), &json!(1)),
            "{id}: {job}"
        );
    }
    assert_eq!(rig.marked(), Vec::<u32>::new());
    tell(&format!(
        "many: {JOBS} jobs of {CLIENTS} clients over {KILLS} deaths: submitted in {:.1} s, ended in {:.1} s",
        submitted.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    ));
}

// Proves I5, I6 and I7: all are adopted, none is started again, and each ends as itself.
#[test]
fn a_start_adopts_all_agents_each_once_and_exactly() {
    let agents = long_or_short(200, 50);
    let mut rig = Rig::new();
    rig.set("OUTLIVE_RUNNING_MAX", agents.to_string());
    rig.start();
    rig.repo();
    let (starts, here, gate) = (rig.path("starts"), rig.make_gate("here"), rig.make_gate("gate"));
    // Open for both: nobody waits for the other end.
    let both = |path| OpenOptions::new().read(true).write(true).open(path).expect("a pipe");
    let (mut gate, here) = (both(&gate), both(&here));
    let (sender, said) = channel();
    std::thread::spawn(move || {
        BufReader::new(here).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let submit = |n: usize| {
        // Every tenth writes all the time.
        let idle = if n.is_multiple_of(10) {
            format!("while [ ! -e {} ]; do echo tick; sleep 0.1; done", rig.path("go").display())
        } else {
            format!("read x < {}", rig.path("gate").display())
        };
        let (starts, here) = (starts.display(), rig.path("here").display().to_string());
        let script = format!("echo {n} >> {starts}; echo {n}; echo {n} > {here}; {idle}; exit {n}");
        rig.submit(&crate::rig::script_job(&script))
    };
    let ids: Vec<String> = (0..agents).map(submit).collect();
    for _ in 0..agents {
        said.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("silent: {}", rig.complaints()));
    }
    let pids = |rig: &Rig| ids.iter().map(|id| rig.pids(id, 1)).collect::<Vec<_>>();
    let before = pids(&rig);
    rig.kill();
    let client = rig.start();
    let log = client.get("/api/admin/startup-log").expect("there").json().expect("JSON");
    let summary = log["current"]["summary"].as_str().expect("a sentence");
    assert!(summary.contains(&format!("{agents} agents re-adopted")), "{log:#}");
    assert!(all_jobs(&client).values().all(|job| job["phase"] == "running"));
    assert_eq!(pids(&rig), before, "every agent and every supervisor is the one it was");
    std::fs::write(rig.path("go"), "").expect("a file");
    gate.write_all(&vec![b'\n'; agents]).expect("a pipe holds that much");
    for (n, id) in ids.iter().enumerate() {
        let outcome = rig.wait_ended(id)["outcome"].clone();
        let got = (&outcome["exit_code"], &outcome["exit_status"]);
        assert_eq!(got, (&json!(n), &json!("exact")), "{id}: {outcome:#}");
        let output = String::from_utf8(rig.output(id)).expect("text");
        let ticks = output.strip_prefix(&format!("{n}\n")).expect("its own words");
        assert_eq!(ticks, "tick\n".repeat(ticks.len() / 5));
        assert_eq!(ticks.is_empty(), !n.is_multiple_of(10));
    }
    assert_eq!(rig.count_lines("starts"), agents, "none was started twice");
    assert_eq!(rig.marked(), Vec::<u32>::new());
    tell(&format!("many: {agents} agents: {summary}"));
}
