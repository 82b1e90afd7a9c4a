//! Many clients ask and read at once, of the same jobs, while their server is killed again and again; each keeps a diary of what it
//! asked, when, and what it was told. Afterwards the diaries of each job must make one story (`search`).
//!
//! A server is not only killed: its write-ahead log is held first, in the middle of a group, while everything else goes on and readers
//! read. So whatever is told or shown before it is on disk is in the diaries, and then is lost.

mod search;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use outlive::face::client::{Client, ClientError, Reply};
use serde_json::{Value, json};

use self::search::{Answer, Operation, Place, Wish, first_contradiction, is_one_story};
use crate::crashes::tell;
use crate::many::Address;
use crate::rig::{PATIENCE, Rig};

const ASKERS: usize = 4;
const READERS: usize = 2;
/// Jobs that are asked about at a time.
const JOBS: usize = 6;
/// Deaths of a server, and groups of the write-ahead log before each.
const DEATHS: usize = 6;
const DEATHS_LONG: usize = 150;
const GROUPS: usize = 30;
/// Answers that readers get while the write-ahead log is held.
const READS_WHILE_HELD: usize = 40;
/// No more is asked of a job with so many operations; what is under way then comes in addition.
const OPERATIONS_OF_A_JOB: usize = 80;
/// Reads are left out from here on, so that there is room for the rest: that makes the search weaker, and never wrong.
const READS_OF_A_JOB: usize = 60;

/// One job and everything that anybody asked of it.
struct Diary {
    key: String,
    held: bool,
    /// None: its submission was not answered yet.
    id: Option<String>,
    operations: Vec<Operation>,
}

struct Story {
    begun: Instant,
    diaries: Mutex<Vec<Diary>>,
    reads: Mutex<usize>,
    read: Condvar,
    over: AtomicBool,
    asked: AtomicUsize,
    unanswered: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the story for everybody when one of them fails.
struct Together<'a>(&'a Story);

impl Drop for Together<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.over.store(true, Ordering::Relaxed);
        }
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }
}

impl Story {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            diaries: Mutex::new(vec![]),
            reads: Mutex::new(0),
            read: Condvar::new(),
            over: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).expect("centuries")
    }

    /// Asks, and writes down what was asked and answered, and when. False: the server is gone.
    fn ask(&self, client: &Client, at: usize, wish: Wish) -> bool {
        let (id, key, held) = {
            let diaries = lock(&self.diaries);
            (diaries[at].id.clone(), diaries[at].key.clone(), diaries[at].held)
        };
        let asked = self.now();
        let told = send(client, id.as_deref().unwrap_or_default(), (&key, held), wish);
        let answered = self.now();
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut diaries = lock(&self.diaries);
        let diary = &mut diaries[at];
        let lives = !matches!(&told, Err(error) if error.is_passing());
        if !lives {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
        }
        for (wish, answer) in answers(wish, told, &mut diary.id) {
            let same = |last: &Operation| (last.wish, last.answer) == (wish, answer);
            let again = wish == Wish::Read && diary.operations.last().is_some_and(same);
            let full = wish == Wish::Read && diary.operations.len() >= READS_OF_A_JOB;
            // A read without an answer tells nothing.
            let tells = (wish, answer) != (Wish::Read, Answer::Nothing);
            if tells && !again && (!full || self.over.load(Ordering::Relaxed)) {
                diary.operations.push(Operation { wish, answer, asked, answered });
            }
        }
        lives
    }

    /// One of the last jobs that are there; of so many operations at most.
    fn choose(&self, dice: &mut Dice, operations: usize) -> Option<usize> {
        let diaries = lock(&self.diaries);
        let open =
            |at: &usize| diaries[*at].id.is_some() && diaries[*at].operations.len() < operations;
        let open: Vec<usize> = (0..diaries.len()).rev().filter(open).take(JOBS).collect();
        (!open.is_empty()).then(|| open[dice.below(open.len())])
    }

    /// Asks for everything that can be asked for, until the story is over.
    fn asker(&self, number: usize, address: &Address) {
        let _together = Together(self);
        let mut dice = Dice(number as u64);
        let (mut life, mut client) = address.after(0);
        for count in 0.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let chosen = self.choose(&mut dice, OPERATIONS_OF_A_JOB).filter(|_| dice.below(8) > 0);
            let at = chosen.unwrap_or_else(|| {
                let (key, held) = (format!("{number}-{count}"), dice.below(3) > 0);
                let mut diaries = lock(&self.diaries);
                diaries.push(Diary { key, held, id: None, operations: vec![] });
                diaries.len() - 1
            });
            let held = lock(&self.diaries)[at].held;
            let submit = Wish::Submit { held };
            let wish = match (chosen, dice.below(16)) {
                (None, _) | (_, 0) => submit,
                (_, 1..=3) => Wish::Start,
                (_, 4 | 5) => Wish::Hold,
                (_, 6 | 7) => Wish::Cancel,
                (_, 8 | 9) => Wish::Resume,
                (_, 10 | 11) => Wish::Retry,
                (_, 12) => Wish::Settle,
                (_, 13) => Wish::Remove,
                _ => Wish::Edit(u8::try_from(dice.below(101)).expect("small")),
            };
            // A submission is repeated under its key until somebody answers it.
            while !self.ask(&client, at, wish) {
                (life, client) = address.after(life);
                if wish != submit {
                    break;
                }
            }
        }
    }

    fn reader(&self, number: usize, address: &Address) {
        let _together = Together(self);
        let mut dice = Dice(1000 + number as u64);
        let (mut life, mut client) = address.after(0);
        while !self.over.load(Ordering::Relaxed) {
            let Some(at) = self.choose(&mut dice, usize::MAX) else {
                std::thread::yield_now();
                continue;
            };
            if self.ask(&client, at, Wish::Read) {
                *lock(&self.reads) += 1;
                self.read.notify_all();
            } else {
                (life, client) = address.after(life);
            }
        }
    }

    /// Waits for so many more answers to readers.
    fn wait_reads(&self, count: usize) {
        let reads = lock(&self.reads);
        let upto = *reads + count;
        let done = self.read.wait_timeout_while(reads, PATIENCE, |reads| *reads < upto);
        assert!(!done.unwrap_or_else(PoisonError::into_inner).1.timed_out(), "readers are stuck");
    }
}

fn send(
    client: &Client,
    id: &str,
    (key, held): (&str, bool),
    wish: Wish,
) -> Result<Reply, ClientError> {
    let path = |action: &str| format!("/api/jobs/{id}{action}");
    let nothing = json!({});
    match wish {
        Wish::Submit { .. } => {
            let options = json!({ "lines": 1 });
            let body = json!({
                "repo": "r", "engine": "demo", "prompt": "x", "hold": held, "engine_options": options,
            });
            client.post_with("/api/jobs", &body, &[("idempotency-key", key)])
        }
        Wish::Start => client.post(&path("/start"), &nothing),
        Wish::Hold => client.post(&path("/hold"), &nothing),
        Wish::Cancel => client.post(&path("/cancel"), &nothing),
        Wish::Resume => client.post(&path("/resume"), &json!({ "prompt": "more" })),
        Wish::Retry => client.post(&path("/retry"), &nothing),
        Wish::Settle => client.post(&path("/settle"), &json!({ "as": "failed" })),
        Wish::Edit(priority) => client.patch(&path(""), &json!({ "priority": priority })),
        Wish::Remove => client.delete(&path("")),
        Wish::Read => client.get(&path("")),
    }
}

/// What an answer says of the wish, and what else it shows of the job.
fn answers(
    wish: Wish,
    told: Result<Reply, ClientError>,
    id: &mut Option<String>,
) -> Vec<(Wish, Answer)> {
    let reply = match told {
        Ok(reply) => reply,
        Err(error) if error.is_passing() => return vec![(wish, Answer::Nothing)],
        Err(error) => return refused(wish, &error),
    };
    let job = reply.json().unwrap_or_default();
    if let (Wish::Submit { .. }, Some(given)) = (wish, job["id"].as_str()) {
        assert!(id.as_deref().is_none_or(|id| id == given), "two jobs under one key");
        *id = Some(given.to_string());
    }
    let granted = if reply.status == 200 && matches!(wish, Wish::Submit { .. }) {
        (wish, Answer::Same)
    } else {
        (wish, Answer::Granted)
    };
    match wish {
        Wish::Remove => vec![granted],
        Wish::Read => vec![(wish, seen(&job))],
        _ => vec![granted, (Wish::Read, seen(&job))],
    }
}

fn refused(wish: Wish, error: &ClientError) -> Vec<(Wish, Answer)> {
    let ClientError::Problem { body, .. } = error else { panic!("{error}") };
    match error.code() {
        Some("not_allowed_in_phase") => {
            vec![(wish, Answer::NotIn(place_of(&body["phase"], &Value::Null)))]
        }
        // It was granted and the job removed before the answer showed it, or it was gone before.
        Some("unknown_job") if wish != Wish::Read => {
            vec![(wish, Answer::Nothing), (Wish::Read, Answer::Unknown)]
        }
        Some("unknown_job") => vec![(wish, Answer::Unknown)],
        Some("workspace_gone") => vec![(wish, Answer::WorkspaceGone)],
        _ => panic!("{wish:?}: {error}"),
    }
}

/// Where a job is shown to be. Which end it was is not told with a refusal.
fn place_of(phase: &Value, outcome: &Value) -> Place {
    match (phase.as_str().unwrap_or_default(), outcome.as_str()) {
        ("held", _) => Place::Held,
        ("queued", _) => Place::Queued,
        ("preparing", _) => Place::Preparing,
        ("running", _) => Place::Running,
        ("stopping", _) => Place::Stopping,
        ("ended", None | Some("completed")) => Place::Completed,
        ("ended", Some("cancelled")) => Place::Cancelled,
        _ => panic!("no job here can be {phase} {outcome}"),
    }
}

fn seen(job: &Value) -> Answer {
    if job["phase"] == "removed" {
        return Answer::Unknown;
    }
    let place = place_of(&job["phase"], &job["outcome"]["kind"]);
    let small = |n: Option<u64>| u8::try_from(n.expect("a number")).expect("a small one");
    let turns = job["turns"].as_array().map(|turns| turns.len() as u64);
    Answer::Seen(place, small(job["priority"].as_u64()), small(turns))
}

/// Servers that live for some groups of the write-ahead log, are held there, read from, and killed; and a last one that lives on.
fn lives(rig: &mut Rig, story: &Story, address: &Address, deaths: usize) {
    let _together = Together(story);
    let points = ["wal.before_write", "wal.after_write", "wal.after_sync", "serve.durable"];
    for death in 0..deaths {
        let point = points[death % points.len()];
        let once = rig.path(&format!("held-{death}"));
        rig.set("OUTLIVE_CRASH", format!("{point}:{}", GROUPS + death));
        rig.set("OUTLIVE_CRASH_ONCE", once.display().to_string());
        let watch = rig.watch_files();
        address.set(rig.start());
        rig.wait_file(&watch, &format!("held-{death}.{point}"));
        story.wait_reads(READS_WHILE_HELD);
        rig.kill();
    }
    rig.unset("OUTLIVE_CRASH");
    address.set(rig.start());
    story.wait_reads(READS_WHILE_HELD);
    story.over.store(true, Ordering::Relaxed);
}

fn told(diary: &Diary, contradiction: &[Operation]) -> String {
    let mut text = format!("no order explains job {:?}:\n", diary.id);
    for it in contradiction {
        let (asked, answered) = (it.asked / 1000, it.answered / 1000);
        writeln!(text, "  {asked:>9} to {answered:>9} us: {:?} -> {:?}", it.wish, it.answer)
            .expect("memory");
    }
    text
}

// Proves I1 and I3: what anybody was told or shown stays so, over every death of the server.
#[test]
fn what_clients_were_told_by_servers_that_were_killed_is_one_story_for_each_job() {
    let long = std::env::var_os("OUTLIVE_LONG").is_some();
    let deaths = if long { DEATHS_LONG } else { DEATHS };
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    rig.kill();
    rig.set("OUTLIVE_RUNNING_MAX", "2");
    rig.set("OUTLIVE_CRASH_HOLD", "1");
    rig.set("OUTLIVE_CHECKPOINT_RECORDS", "40");
    let (story, address) = (Story::new(), Address::default());
    std::thread::scope(|scope| {
        for number in 0..ASKERS {
            let (story, address) = (&story, &address);
            scope.spawn(move || story.asker(number, address));
        }
        for number in 0..READERS {
            let (story, address) = (&story, &address);
            scope.spawn(move || story.reader(number, address));
        }
        lives(&mut rig, &story, &address, deaths);
    });
    let all = lock(&story.diaries).len();
    for at in 0..all {
        if lock(&story.diaries)[at].id.is_some() {
            assert!(story.ask(rig.client(), at, Wish::Read), "the last server lives");
        }
    }
    let mut diaries = std::mem::take(&mut *lock(&story.diaries));
    let lived = story.begun.elapsed().as_secs_f64();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for diary in &mut diaries {
        diary.operations.sort_by_key(|operation| operation.asked);
        for operation in &diary.operations {
            *kinds.entry(name_of(operation)).or_default() += 1;
        }
        let operations = &diary.operations;
        assert!(is_one_story(operations), "{}", told(diary, first_contradiction(operations)));
    }
    let count: usize = diaries.iter().map(|diary| diary.operations.len()).sum();
    let (asked, unanswered) = (story.asked.into_inner(), story.unanswered.into_inner());
    tell(&format!(
        "history: {asked} requests ({unanswered} unanswered), {count} operations in the diaries of {all} jobs, {deaths} deaths; \
         {kinds:?}; lived {lived:.1} s, searched {:.1} s",
        story.begun.elapsed().as_secs_f64() - lived
    ));
    assert!(unanswered >= deaths && count > 100, "hardly anything was asked");
}

/// For the figures: what it came to.
fn name_of(operation: &Operation) -> &'static str {
    match operation.answer {
        Answer::Granted => "granted",
        Answer::Same => "same",
        Answer::NotIn(_) | Answer::WorkspaceGone => "refused",
        Answer::Unknown => "unknown",
        Answer::Seen(..) => "seen",
        Answer::Nothing => "unanswered",
    }
}
