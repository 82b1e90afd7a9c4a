//! The fleet: every supervisor that is, or should be, alive. Performs effects and reports what it sees; decides nothing.
//!
//! Each piece of work has one task that does its orders in turn and waits for the end of its supervisor. The end itself proves
//! nothing: it makes the task look, and the report goes to the driver, which judges (I3). The tasks hold no state that matters:
//! all of them may be lost at any instant and are made anew from State and the disk.

mod clearing;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outlive_core::effect::Effect;
use outlive_core::evidence::{Evidence, Lock, Seen};
use outlive_core::job::Work;
use outlive_core::limits;
use outlive_core::retry::backoff;
use outlive_core::spec::{Reading, StopCause, StopRequest, VERSION};
use outlive_supervisor::{
    Here, Holder, boot_ms, crash_point, exit, open_process, probe, read_started, wake, write_stop,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, mpsc};
use tokio_util::task::TaskTracker;

use crate::truth::driver::Handle;
use crate::truth::wal::Durable;
use crate::world::launch::Surroundings;
use crate::world::look::look;

/// Orders for one piece of work that wait for each other: launch, stop, release, and a few repeated by recovery.
const ORDERS_MAX: usize = 64;

/// Pause before a supervisor is followed by another when it got nowhere, or could not be started: doubles from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A lock that is held by somebody who has not written its name yet is looked at again after this.
const NAMELESS: Duration = Duration::from_millis(50);

/// A pid namespace that may be ending is looked at so often, with this pause in between, before it counts as one that lives.
const ENDING_LOOKS: u32 = 40;
/// See [`ENDING_LOOKS`].
const ENDING: Duration = Duration::from_millis(50);

/// Performs effects.
#[derive(Debug, Clone)]
pub struct Fleet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    surroundings: Surroundings,
    here: Here,
    handle: Handle,
    tracker: TaskTracker,
    tasks: Mutex<BTreeMap<Work, mpsc::Sender<Order>>>,
    /// Read by whoever needs jobs' directories to stay; written by whoever clears them away.
    still: Arc<RwLock<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Launch,
    Watch,
    Caretake { empty_tree: bool },
    Stop(StopCause),
}

impl Fleet {
    /// A fleet of which nothing is known yet.
    pub fn new(
        surroundings: Surroundings,
        here: Here,
        handle: Handle,
        tracker: TaskTracker,
    ) -> Self {
        let (tasks, still) = (Mutex::new(BTreeMap::new()), Arc::default());
        Self(Arc::new(Inner { surroundings, here, handle, tracker, tasks, still }))
    }

    /// As long as this is held, no job's directory is cleared away, whatever is removed.
    pub async fn keep_still(&self) -> OwnedRwLockReadGuard<()> {
        self.0.still.clone().read_owned().await
    }

    /// Performs effects in their order, each work's on its own task. Only what is durable can get here (I1).
    pub fn perform(&self, effects: Durable<Vec<Effect>>) {
        for effect in effects.into_inner() {
            match effect {
                Effect::Launch { work } => self.order(&work, Order::Launch),
                Effect::Watch { work } => self.order(&work, Order::Watch),
                Effect::Caretake { work, empty_tree } => {
                    self.order(&work, Order::Caretake { empty_tree });
                }
                Effect::Stop { work, cause } => self.order(&work, Order::Stop(cause)),
                Effect::Release { work } => {
                    let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
                    drop(tasks.remove(&work));
                }
                Effect::TrashJob { job } => self.clear_jobs(vec![job]),
                Effect::TrashRepo { name } => self.clear_repo(&name),
                Effect::TrashOperation { id } => {
                    self.discard(self.0.surroundings.paths.operation(id));
                }
            }
        }
    }

    /// Looks at a piece of work and reports; done once what follows from it is durable.
    pub fn look_and_report(&self, work: Work) -> impl Future<Output = ()> + use<> {
        let inner = self.0.clone();
        let task = self.0.tracker.spawn(async move { inner.report(work).await });
        async move { drop(task.await) }
    }

    fn order(&self, work: &Work, order: Order) {
        let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = tasks.entry(work.clone()).or_insert_with(|| {
            let (sender, orders) = mpsc::channel(ORDERS_MAX);
            let task = WorkTask {
                inner: self.0.clone(),
                work: work.clone(),
                keeper: None,
                holder: Holder::default(),
                failures: 0,
                again: None,
                unspawned: 0,
            };
            self.0.tracker.spawn(task.run(orders));
            sender
        });
        if sender.try_send(order).is_err() {
            tracing::error!(?work, ?order, "too many orders at once; the next start will find out");
        }
    }
}

/// Who is started for a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Launches it.
    Supervisor,
    /// Takes it over.
    Caretaker,
}

/// A supervisor or caretaker that is waited for.
enum Keeper {
    Child(tokio::process::Child),
    Other(AsyncFd<OwnedFd>),
}

impl Keeper {
    /// Waits for its end; says with which code it left, as far as that can be known.
    async fn ended(&mut self) -> Option<i32> {
        match self {
            Self::Child(child) => child.wait().await.ok()?.code(),
            Self::Other(pidfd) => {
                drop(pidfd.readable().await);
                None
            }
        }
    }
}

impl Inner {
    async fn report(self: Arc<Self>, work: Work) {
        for left in (0..ENDING_LOOKS).rev() {
            let (inner, work) = (self.clone(), work.clone());
            let looked = self.tracker.spawn_blocking(move || {
                let state = inner.handle.view();
                look(&work, &state, &inner.surroundings.paths, &inner.here)
            });
            let Ok(report) = looked.await else { return };
            if left > 0 && may_just_be_ending(&report.evidence) {
                pause(ENDING).await;
                continue;
            }
            // No driver: the process is ending, and the next start looks again.
            self.handle.report(report).await.ok();
            return;
        }
    }
}

/// Its pid namespace may have lost its last process just now: then it exists a moment longer.
fn may_just_be_ending(evidence: &Evidence) -> bool {
    let findable = evidence.started.valid().is_some_and(|started| started.namespace.is_some());
    findable && evidence.agent == Seen::OtherNamespace && evidence.lock == Lock::Free
}

struct WorkTask {
    inner: Arc<Inner>,
    work: Work,
    keeper: Option<Keeper>,
    holder: Holder,
    /// Supervisors in a row that left without having got anywhere.
    failures: u32,
    /// Who could not even be started, and when that is tried again.
    again: Option<(Instant, Role)>,
    /// How often in a row that was.
    unspawned: u32,
}

impl WorkTask {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let hung = self.hung_after();
            let again = self.again;
            // Cancel safety: receiving, waiting for a process and a timer lose nothing when dropped.
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                code = async {
                    match &mut self.keeper {
                        Some(keeper) => keeper.ended().await,
                        None => std::future::pending().await,
                    }
                } => {
                    crash_point("fleet.keeper_ended");
                    self.keeper = None;
                    self.after_keeper(code).await;
                }
                () = pause(hung), if self.keeper.is_some() => self.replace_hung(),
                Some(role) = when(again) => self.start_keeper(role),
            }
        }
    }

    async fn obey(&mut self, order: Order) {
        let keep = self.inner.surroundings.paths.keep(&self.work);
        match order {
            // Whoever took care of it here would find, and end, the processes of the original.
            Order::Caretake { .. } | Order::Stop(_) if !self.inner.here.owns(&keep) => {
                self.report().await;
            }
            Order::Launch => self.launch().await,
            Order::Watch => self.watch().await,
            Order::Caretake { empty_tree } => {
                if empty_tree {
                    self.write_stop(StopCause::Survivors).await;
                }
                self.start_keeper(Role::Caretaker);
            }
            Order::Stop(cause) => {
                crash_point("fleet.before_stop");
                self.write_stop(cause).await;
                crash_point("fleet.after_stop");
                if self.keeper.is_none() {
                    self.report().await;
                }
            }
        }
    }

    async fn launch(&mut self) {
        let (inner, work) = (self.inner.clone(), self.work.clone());
        let state = inner.handle.view();
        crash_point("fleet.before_prepare");
        let prepared = self
            .inner
            .tracker
            .spawn_blocking(move || inner.surroundings.prepare(&work, &state, &inner.here))
            .await;
        crash_point("fleet.after_prepare");
        match prepared {
            Ok(Ok(_)) => self.start_keeper(Role::Supervisor),
            Ok(Err(error)) => {
                tracing::error!(work = ?self.work, error = %chain(&error), "cannot be launched now");
                self.launch_later().await;
            }
            Err(_) => {}
        }
    }

    /// A disk that is full now may have room later, and a process table too; what was accepted is not given up for it. There is
    /// no bound but the pause: each time is one small record, and a person sees the same decision counted in `why`.
    async fn launch_later(&mut self) {
        pause(growing(self.unspawned)).await;
        self.unspawned = self.unspawned.saturating_add(1);
        self.report().await;
    }

    /// Starts a supervisor or caretaker. A machine without room for one more process, or a program that is just being replaced, has
    /// it later.
    fn start_keeper(&mut self, role: Role) {
        self.again = None;
        let dir = self.inner.surroundings.paths.keep(&self.work);
        let exe = &self.inner.surroundings.exe;
        let command = match role {
            Role::Supervisor => self.holder.supervisor(exe, &dir),
            Role::Caretaker => self.holder.caretaker(exe, &dir, &self.inner.here),
        };
        crash_point("fleet.before_spawn");
        match tokio::process::Command::from(command).spawn() {
            Ok(child) => {
                crash_point("fleet.after_spawn");
                self.keeper = Some(Keeper::Child(child));
                self.unspawned = 0;
            }
            Err(error) => {
                let pause = growing(self.unspawned);
                let work = &self.work;
                tracing::error!(%error, ?work, ?pause, "cannot start a supervisor; tried again");
                self.unspawned += 1;
                self.again = Some((Instant::now() + pause, role));
            }
        }
    }

    /// A supervisor is gone. If it left its agent's end unrecorded, and what is held here can still tell of it, a caretaker does
    /// so first; and one that got nowhere is not followed by the next at once, so that no fault can make a storm of processes.
    async fn after_keeper(&mut self, code: Option<i32>) {
        let dir = self.inner.surroundings.paths.keep(&self.work);
        let evidence = probe(&dir, &self.inner.here);
        let over = evidence.tree_empty.valid().is_some();
        if over {
            self.failures = 0;
        } else {
            if let Some(before) = self.failures.checked_sub(1) {
                pause(growing(before)).await;
            }
            self.failures += 1;
        }
        let told = over || code == Some(exit::UNPROVEN.into());
        let again = !told && self.failures <= limits::CARETAKERS_MAX;
        if again && self.holder.can_tell(&evidence, &dir, &self.inner.here) {
            return self.start_keeper(Role::Caretaker);
        }
        self.report().await;
    }

    async fn watch(&mut self) {
        if self.keeper.is_some() {
            return;
        }
        let dir = self.inner.surroundings.paths.keep(&self.work);
        let lock = probe(&dir, &self.inner.here).lock;
        let process = match lock {
            Lock::Held(Some(process)) => process,
            Lock::Held(None) => {
                pause(NAMELESS).await;
                return self.report().await;
            }
            _ => return self.report().await,
        };
        let pidfd = open_process(&process, &self.inner.here);
        #[expect(
            deprecated,
            reason = "an OwnedFd is its descriptor: the unsoundness needs a type that lies about it"
        )]
        let pidfd = pidfd.and_then(|pidfd| AsyncFd::new(pidfd).ok());
        self.holder.take_hold(&dir, &self.inner.here);
        match pidfd {
            Some(pidfd) => self.keeper = Some(Keeper::Other(pidfd)),
            None => self.report().await,
        }
    }

    async fn write_stop(&self, cause: StopCause) {
        let dir = self.inner.surroundings.paths.keep(&self.work);
        let grace_ms = self.inner.surroundings.grace_ms;
        let request = StopRequest { version: VERSION, cause, grace_ms };
        let written = self.inner.tracker.spawn_blocking(move || {
            if !dir.exists() {
                return Ok(());
            }
            write_stop(&dir, &request).and_then(|()| wake(&dir).map(|_| ()))
        });
        if let Ok(Err(error)) = written.await {
            tracing::error!(work = ?self.work, %error, "the wish to stop could not be passed on");
        }
    }

    async fn report(&self) {
        self.inner.clone().report(self.work.clone()).await;
    }

    /// How long a supervisor may still hold its lock before it counts as hung.
    fn hung_after(&self) -> Duration {
        if self.keeper.is_none() {
            return Duration::MAX;
        }
        let dir = self.inner.surroundings.paths.keep(&self.work);
        let Reading::Valid(started) = read_started(&dir) else {
            // Its deadline is not known before `started` is written, and nobody tells when that is: looked for again then.
            return self.inner.surroundings.hung_margin;
        };
        let grace = Duration::from_millis(self.inner.surroundings.grace_ms);
        started.deadline_boot_ms.map_or(limits::TIMEOUT_MAX, |deadline| {
            let left = Duration::from_millis(deadline.saturating_sub(boot_ms()));
            left + grace + self.inner.surroundings.hung_margin
        })
    }

    /// A supervisor that holds its lock past deadline and grace is ended, and its end makes the table start a caretaker.
    fn replace_hung(&mut self) {
        let dir = self.inner.surroundings.paths.keep(&self.work);
        let evidence = probe(&dir, &self.inner.here);
        let Lock::Held(Some(process)) = evidence.lock else { return };
        if !evidence.past_deadline {
            return;
        }
        tracing::warn!(work = ?self.work, pid = process.pid, "a hung supervisor is replaced");
        if let Some(pidfd) = open_process(&process, &self.inner.here) {
            use std::os::fd::AsFd as _;
            let kill = rustix::process::Signal::KILL;
            if let Err(error) = outlive_supervisor::signal(pidfd.as_fd(), kill) {
                tracing::error!(%error, "a hung supervisor could not be ended");
            }
        }
    }
}

/// A pause that doubles with each failure, from the first to the longest.
fn growing(failures: u32) -> Duration {
    backoff(FIRST_PAUSE, LONGEST_PAUSE, failures)
}

/// Waits for a time, if there is one, and gives back what is to be done then.
async fn when<T>(due: Option<(Instant, T)>) -> Option<T> {
    let (at, what) = due?;
    pause(at.saturating_duration_since(Instant::now())).await;
    Some(what)
}

#[expect(clippy::disallowed_methods, reason = "a deadline of a supervisor is time itself")]
async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
