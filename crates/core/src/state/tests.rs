//! Proof of the state machine: a rig that drives State as the server does, and a world made of evidence.
//!
//! The rig repeats the driver's rule (decide, apply, everything due, one record) and checks after every record what must always
//! hold. It has no disk: records are kept, so that they can be replayed.

mod actions;
mod damage;
mod limits_met;
mod looks;
mod model;
mod naive;
mod policies;
mod queue;
mod random;
mod removals;
mod repair;
mod repos;
mod statistics;
mod table;
mod why;

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::{IllegalEvent, Rules, State};
use crate::effect::Effect;
use crate::event::{Event, Transaction};
use crate::ids::{AttemptNo, JobId, Lsn, RepoName, SessionId};
use crate::job::{Idempotency, Job, OutcomeKind, Phase, Work};
use crate::record::EntityKey;
use crate::repo::{OperationKind, RepoPhase};
use crate::request::{Granted, Refusal, Report, Request, Submission};
use crate::task::{OnInterrupt, OnLimit, OnUnknown, Task, TaskLimits};
use crate::time::Timestamp;

use looks::Look;

/// More steps than any sane state needs to come to rest.
const STEPS_MAX: usize = 5_000;

/// How many random stories a test tells: as many as `OUTLIVE_STORIES` says, 50,000 with `OUTLIVE_LONG`, or 256.
fn stories() -> u32 {
    let wanted = std::env::var("OUTLIVE_STORIES").ok().and_then(|it| it.parse().ok());
    let short = if std::env::var_os("OUTLIVE_LONG").is_some() { 50_000 } else { 256 };
    wanted.unwrap_or(short)
}

/// One record: its events, and for each entity the record before.
struct Record {
    lsn: Lsn,
    transaction: Transaction,
    links: Vec<(EntityKey, Lsn)>,
}

/// State, its history, and the clock.
struct Rig {
    state: State,
    now: Timestamp,
    rules: Rules,
    records: Vec<Record>,
    effects: Vec<Effect>,
    made: u64,
}

impl Rig {
    fn new(running_max: u32) -> Self {
        let rules = Rules { running_max, has_room: true, held: false };
        let (records, effects) = (vec![], vec![]);
        Self {
            state: State::default(),
            now: Timestamp(1_000_000),
            rules,
            records,
            effects,
            made: 0,
        }
    }

    /// A rig with a repo `r` whose clone is done.
    fn with_repo(running_max: u32) -> Self {
        let mut rig = Self::new(running_max);
        rig.add_repo("r");
        rig.end_clone("r", &Look::Exited(0));
        rig
    }

    fn number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Ids spread over the whole alphabet, as random ones are.
    fn fresh_id(&mut self) -> JobId {
        JobId::from_random(self.number().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 4)
    }

    fn fresh_session(&mut self) -> SessionId {
        SessionId(alloc::format!("session-{}", self.number()))
    }

    fn ask(&mut self, request: Request) -> Result<Granted, Refusal> {
        let before = self.state.clone();
        match self.state.decide(request, "ann") {
            Ok((events, granted)) => {
                self.write(&events);
                Ok(granted)
            }
            Err(refusal) => {
                assert!(entries(&before) == entries(&self.state), "a refusal changes nothing");
                Err(refusal)
            }
        }
    }

    fn granted(&mut self, request: Request) {
        let told = alloc::format!("{request:?}");
        if let Err(refusal) = self.ask(request) {
            panic!("{told}: {refusal}");
        }
    }

    fn report(&mut self, report: &Report) {
        let events = self.state.observe(report, self.now);
        self.write(&events);
    }

    /// Somebody looks at a piece of work and sees this.
    fn see(&mut self, work: &Work, look: &Look) {
        let session = self.fresh_session();
        self.report(&look.report(work.clone(), session));
    }

    /// Somebody looks at the work that a job is about now.
    fn see_job(&mut self, job: &JobId, look: &Look) {
        let work = self.job(job).phase.work(job).expect("the job has work");
        self.see(&work, look);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.write(&[]);
    }

    /// As the driver does it: the events, then everything that is due, as one record.
    fn write(&mut self, events: &[Event]) {
        let lsn = self.state.lsn().next();
        let mut record = Record {
            lsn,
            transaction: Transaction { at: self.now, events: vec![] },
            links: vec![],
        };
        for event in events {
            self.apply(&mut record, event);
        }
        let mut steps = 0;
        loop {
            let due = self.state.due(self.now, self.rules);
            if due.is_empty() {
                break;
            }
            steps += 1;
            assert!(steps < STEPS_MAX, "what is due comes to rest: {due:?}");
            model::the_first_in_line_goes(&self.state, &due);
            for event in &due {
                self.apply(&mut record, event);
            }
        }
        if !record.transaction.events.is_empty() {
            assert!(self.state.clock() >= self.now, "it never goes back, whatever the clock does");
            self.records.push(record);
        }
        model::check(self);
    }

    fn apply(&mut self, record: &mut Record, event: &Event) {
        let entity = event.entity();
        if !record.links.iter().any(|(linked, _)| *linked == entity) {
            let previous = self.state.last_lsn(&entity);
            record.links.push((entity, previous));
        }
        match self.state.apply(record.lsn, self.now, event) {
            Ok(effects) => self.effects.extend(effects),
            Err(illegal) => panic!("decided against its own table: {illegal}"),
        }
        record.transaction.events.push(event.clone());
    }

    fn job(&self, id: &JobId) -> &Job {
        self.state.job(id).expect("the job is there")
    }

    fn phase(&self, id: &JobId) -> &'static str {
        self.job(id).phase.name()
    }

    fn outcome(&self, id: &JobId) -> (OutcomeKind, String) {
        match &self.job(id).phase {
            Phase::Ended { outcome } => (outcome.kind, outcome.reason.clone()),
            other => panic!("not ended: {other:?}"),
        }
    }

    /// Submits what [`Rig::submission`] makes, changed.
    fn submit_with(&mut self, change: impl FnOnce(&mut Submission)) -> JobId {
        let mut submission = self.submission();
        change(&mut submission);
        let id = submission.job.clone();
        self.granted(Request::Submit(submission.into()));
        id
    }

    fn submit(&mut self) -> JobId {
        self.submit_with(|_| {})
    }

    /// A `demo` job on repo `r`.
    fn submission(&mut self) -> Submission {
        Submission {
            job: self.fresh_id(),
            session: self.fresh_session(),
            owner: "ann".into(),
            task: task(),
            prompt: "do it".into(),
            held: false,
            start_after: None,
            idempotency: None,
        }
    }

    /// A job whose first attempt runs.
    fn running_with(&mut self, change: impl FnOnce(&mut Submission)) -> JobId {
        let id = self.submit_with(change);
        assert_eq!(self.phase(&id), "preparing");
        self.see_job(&id, &Look::Exited(0));
        assert_eq!(self.phase(&id), "running");
        id
    }

    fn running(&mut self) -> JobId {
        self.running_with(|_| {})
    }

    fn add_repo(&mut self, name: &str) {
        self.granted(add_repo(name));
    }

    fn end_clone(&mut self, name: &str, look: &Look) {
        let work = self.clone_of(name);
        self.see(&work, look);
    }

    fn clone_of(&self, name: &str) -> Work {
        let wanted = OperationKind::Clone { repo: repo(name) };
        let found = self.state.operations().find(|operation| operation.kind == wanted);
        Work::Operation { id: found.expect("a clone is under way").id }
    }

    /// How often the agent of an attempt was asked to be launched.
    fn launches(&self, job: &JobId, attempt: u32) -> usize {
        let work = Work::Attempt { job: job.clone(), attempt: attempt_no(attempt) };
        let launch = Effect::Launch { work };
        self.effects.iter().filter(|effect| **effect == launch).count()
    }

    fn last_effects(&mut self) -> Vec<Effect> {
        core::mem::take(&mut self.effects)
    }
}

fn task() -> Task {
    Task {
        repos: vec![repo("r")],
        engine: "demo".into(),
        engine_options: crate::engine::EngineOptions::default(),
        model: None,
        timeout_ms: 60_000,
        priority: 50,
        on_interrupt: OnInterrupt::Resume,
        on_unknown: OnUnknown::Hold,
        max_interrupts: 3,
        on_limit: OnLimit::Wait,
        limit_wait_ms: 3_600_000,
        limits: TaskLimits::default(),
        env: BTreeMap::new(),
        title: None,
        group: None,
    }
}

fn repo(name: &str) -> RepoName {
    RepoName::parse(name).expect("a good name")
}

fn add_repo(name: &str) -> Request {
    let (name, owner, source) = (repo(name), "ann".to_string(), "/src".to_string());
    Request::AddRepo { name, owner, source, branch: None }
}

fn attempt_no(n: u32) -> AttemptNo {
    AttemptNo::new(n).expect("counted from 1")
}

fn key(key: &str, body: &str) -> Idempotency {
    Idempotency { key: key.into(), body_hash: body.into() }
}

/// All of State in comparable form.
fn entries(state: &State) -> Vec<(EntityKey, Lsn, Vec<u8>)> {
    state.entries().collect()
}

/// A State made of checkpoint entries.
fn restored(state: &State) -> State {
    let mut other = State::default();
    for (entity, _, body) in state.entries() {
        other.restore(&entity, &body).expect("our own entry");
    }
    other.restored_through(state.lsn());
    other
}

/// A State made of records.
fn replayed(records: &[Record]) -> Result<State, IllegalEvent> {
    let mut state = State::default();
    for record in records {
        for event in &record.transaction.events {
            state.apply(record.lsn, record.transaction.at, event)?;
        }
    }
    Ok(state)
}

/// Whether a repo's clone is done.
fn is_ready(state: &State, name: &str) -> bool {
    state.repo(&repo(name)).is_some_and(|repo| repo.phase == RepoPhase::Ready)
}
