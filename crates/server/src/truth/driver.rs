//! The driver: the one writer of State (I2). Input → decide → apply to the speculative State → commit → reply, view, effects.
//!
//! It runs on a thread of its own. Whatever it hands out, a reply, the published view, an effect, travels inside the payload of
//! a commit and leaves only as [`Durable`] (I1), so nothing can be told or done before it is on disk. A commit that fails ends
//! the process (I8), so the speculative State never has to be rolled back.

use std::sync::Arc;

use outlive_core::effect::Effect;
use outlive_core::event::{Event, Transaction};
use outlive_core::ids::Lsn;
use outlive_core::record::Link;
use outlive_core::request::{Granted, Refusal, Report, Request};
use outlive_core::state::{Rules, State};
use outlive_core::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use crate::truth::adoption::Adoption;
use crate::truth::room::Room;
use crate::truth::wal::{Batch, Draft, Durable, Wal};

/// Inputs that may wait for the driver. Beyond it whoever asks waits, so a flood slows its senders and nobody else.
const INPUTS_MAX: usize = 1024;

/// Inputs decided on before their records are handed over together: keeps a group small beside a segment.
const BATCH_MAX: usize = 256;

/// Things that came due and are written into one record: the rest follows in the next.
const DUE_PER_RECORD_MAX: usize = 128;

type Answer = Result<Granted, Refusal>;

/// What the driver is told.
#[derive(Debug)]
enum Input {
    Ask { request: Box<Request>, by: String, reply: oneshot::Sender<Answer> },
    Report { report: Box<Report>, seen: oneshot::Sender<()> },
    Tick,
}

/// What leaves once a group is durable.
#[derive(Debug)]
pub struct Commit {
    state: Arc<State>,
    effects: Vec<Effect>,
    replies: Vec<Reply>,
}

/// An answer that waits until what it tells of is durable.
#[derive(Debug)]
enum Reply {
    Answer(oneshot::Sender<Answer>, Answer),
    Seen(oneshot::Sender<()>),
}

/// Where to ask and what to read.
#[derive(Debug, Clone)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
    view: watch::Receiver<Arc<State>>,
}

/// The driver has ended, and the process is ending with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server is stopping")]
pub struct Stopping;

impl Handle {
    /// Asks in somebody's name, and waits until the answer is durable.
    ///
    /// # Errors
    /// The server is stopping.
    pub async fn ask(&self, request: Request, by: &str) -> Result<Answer, Stopping> {
        let (reply, answer) = oneshot::channel();
        let (request, by) = (Box::new(request), by.to_string());
        self.inputs.send(Input::Ask { request, by, reply }).await.map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// Says what was seen, and waits until what follows from it is durable.
    ///
    /// # Errors
    /// The server is stopping.
    pub async fn report(&self, report: Report) -> Result<(), Stopping> {
        let (seen, done) = oneshot::channel();
        let report = Box::new(report);
        self.inputs.send(Input::Report { report, seen }).await.map_err(|_| Stopping)?;
        done.await.map_err(|_| Stopping)
    }

    /// Lets what is due by time happen.
    ///
    /// # Errors
    /// The server is stopping.
    pub async fn tick(&self) -> Result<(), Stopping> {
        self.inputs.send(Input::Tick).await.map_err(|_| Stopping)
    }

    /// The State as of the last durable record.
    pub fn view(&self) -> Arc<State> {
        self.view.borrow().clone()
    }

    /// The view as a channel: tells when it changes.
    pub fn changes(&self) -> watch::Receiver<Arc<State>> {
        self.view.clone()
    }
}

/// Where the durable goes: gives view, effects and replies away, in this order. Runs on the WAL's thread and never blocks.
#[derive(Debug)]
pub struct Outlet {
    view: watch::Sender<Arc<State>>,
    effects: mpsc::UnboundedSender<Durable<Vec<Effect>>>,
}

impl Outlet {
    /// Lets a durable group out.
    pub fn release(&self, group: Durable<Vec<Commit>>) {
        let mut replies = Vec::new();
        let mut last = None;
        let effects = group.map(|commits| {
            let mut effects = Vec::new();
            for commit in commits {
                effects.extend(commit.effects);
                replies.extend(commit.replies);
                last = Some(commit.state);
            }
            effects
        });
        if let Some(state) = last {
            self.view.send_replace(state);
        }
        if !effects.get().is_empty() {
            // Nobody left to perform them means that the process is ending; they are found again at the next start.
            drop(self.effects.send(effects));
        }
        for reply in replies {
            // A caller that went away does not want its answer.
            match reply {
                Reply::Answer(sender, answer) => drop(sender.send(answer)),
                Reply::Seen(sender) => drop(sender.send(())),
            }
        }
    }
}

/// The channels between driver, readers and the world.
#[derive(Debug)]
pub struct Wiring {
    /// For everybody.
    pub handle: Handle,
    /// For the WAL.
    pub outlet: Outlet,
    /// For the world: bounded by the work there is, since every effect belongs to a job or repo.
    pub effects: mpsc::UnboundedReceiver<Durable<Vec<Effect>>>,
    /// For the driver.
    pub inputs: Inputs,
}

/// The receiving end of what the driver is told.
#[derive(Debug)]
pub struct Inputs(mpsc::Receiver<Input>);

/// Makes the channels around a recovered State.
pub fn wire(state: &State) -> Wiring {
    let (sender, inputs) = mpsc::channel(INPUTS_MAX);
    let (view_sender, view) = watch::channel(Arc::new(state.clone()));
    let (effect_sender, effects) = mpsc::unbounded_channel();
    let handle = Handle { inputs: sender, view };
    let outlet = Outlet { view: view_sender, effects: effect_sender };
    Wiring { handle, outlet, effects, inputs: Inputs(inputs) }
}

/// On what terms things happen, besides what State says.
#[derive(Debug)]
pub struct Terms {
    /// Agents alive at once.
    pub running_max: u32,
    /// Whether there is room to begin something new.
    pub room: Room,
    /// Whether anything is to happen at all.
    pub adoption: Adoption,
}

impl Terms {
    fn rules(&self) -> Rules {
        let (running_max, has_room) = (self.running_max, self.room.is_there());
        Rules { running_max, has_room, held: self.adoption.held().is_some() }
    }
}

/// Owner of State and of the way into the WAL.
pub struct Driver {
    state: State,
    terms: Terms,
    clock: fn() -> Timestamp,
    wal: Wal<Commit>,
    inputs: mpsc::Receiver<Input>,
    /// That this server has started: it stands first in its first record, so it costs no write of its own.
    started: Option<Event>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("lsn", &self.state.lsn()).finish_non_exhaustive()
    }
}

/// What a batch has gathered so far.
struct Gathered {
    first: Lsn,
    records: Vec<Draft>,
    effects: Vec<Effect>,
    replies: Vec<Reply>,
}

impl Driver {
    /// Puts the driver together; [`Driver::run`] makes it go.
    pub fn new(
        state: State,
        terms: Terms,
        clock: fn() -> Timestamp,
        wal: Wal<Commit>,
        inputs: Inputs,
        started: Event,
    ) -> Self {
        let started = Some(started);
        Self { state, terms, clock, wal, inputs: inputs.0, started }
    }

    /// Works until every handle is gone.
    pub fn run(mut self) {
        while let Some(input) = self.inputs.blocking_recv() {
            let first = self.state.lsn().next();
            let mut gathered =
                Gathered { first, records: vec![], effects: vec![], replies: vec![] };
            self.take(input, &mut gathered);
            for _ in 1..BATCH_MAX {
                let Ok(next) = self.inputs.try_recv() else { break };
                self.take(next, &mut gathered);
            }
            self.hand_over(gathered);
        }
    }

    fn hand_over(&self, gathered: Gathered) {
        let Gathered { first, records, effects, replies } = gathered;
        let state = Arc::new(self.state.clone());
        let payload = Commit { state, effects, replies };
        if let Err(error) = self.wal.submit(Batch { first, records, payload }) {
            // I8: what was applied cannot be written down, and there is no way back.
            panic!("the write-ahead log took no record: {error}");
        }
    }

    fn take(&mut self, input: Input, gathered: &mut Gathered) {
        let now = (self.clock)();
        let events = match input {
            Input::Tick => Vec::new(),
            Input::Report { report, seen } => {
                gathered.replies.push(Reply::Seen(seen));
                self.state.observe(&report, now)
            }
            Input::Ask { request, by, reply } => {
                let held = self.terms.adoption.held();
                let held = held.filter(|_| !self.state.is_about_what_has_not_begun(&request));
                let decided = match held {
                    Some(why) => Err(Refusal::NotAdopted(why.to_string())),
                    None => self.state.decide(*request, &by),
                };
                let (answer, events) = match decided {
                    Ok((events, granted)) => (Ok(granted), events),
                    Err(refusal) => (Err(refusal), Vec::new()),
                };
                gathered.replies.push(Reply::Answer(reply, answer));
                events
            }
        };
        self.write_down(events, now, gathered);
    }

    /// Makes records of events and of everything that comes due with them.
    fn write_down(&mut self, mut events: Vec<Event>, now: Timestamp, gathered: &mut Gathered) {
        let rules = self.terms.rules();
        loop {
            let lsn = self.state.lsn().next();
            let mut links: Vec<Link> = Vec::new();
            let mut transaction = Transaction { at: now, events: Vec::new() };
            if self.started.is_some()
                && !(events.is_empty() && self.state.due(now, rules).is_empty())
            {
                let started: Vec<Event> = self.started.take().into_iter().collect();
                self.apply_all(lsn, &started, &mut transaction, &mut links, gathered);
            }
            self.apply_all(lsn, &events, &mut transaction, &mut links, gathered);
            let mut more = false;
            for count in 0.. {
                let due = self.state.due(now, rules);
                more = count == DUE_PER_RECORD_MAX && !due.is_empty();
                if due.is_empty() || more {
                    break;
                }
                self.apply_all(lsn, &due, &mut transaction, &mut links, gathered);
            }
            if !transaction.events.is_empty() {
                let body = serde_json::to_vec(&transaction)
                    .expect("events have no maps with keys that are not text");
                gathered.records.push(Draft { links, body });
            }
            if !more {
                return;
            }
            events = Vec::new();
        }
    }

    /// Applies events that were decided on this very State; that one of them does not fit is a bug, and going on would be worse.
    fn apply_all(
        &mut self,
        lsn: Lsn,
        events: &[Event],
        transaction: &mut Transaction,
        links: &mut Vec<Link>,
        gathered: &mut Gathered,
    ) {
        for event in events {
            let entity = event.entity();
            if !links.iter().any(|link| link.entity == entity) {
                let previous = self.state.last_lsn(&entity);
                links.push(Link { entity, previous });
            }
            match self.state.apply(lsn, transaction.at, event) {
                Ok(effects) => gathered.effects.extend(effects),
                Err(illegal) => panic!("decided against its own table: {illegal}"),
            }
            transaction.events.push(event.clone());
        }
    }
}
