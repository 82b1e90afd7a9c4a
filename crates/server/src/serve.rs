//! `outlive serve`: wires the parts together. The order of start and stop, in one readable place.
//!
//! Start: data directory → API (it answers from here on, at first that the server is recovering) → write-ahead log → State → driver →
//! the whole API → attempts → ready → the rest (`startup`).
//! Stop: there is only one way, being killed. SIGTERM merely lets answers that are under way get out first, whatever the start is at.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outlive_core::effect::Effect;
use outlive_core::job::Work;
use outlive_core::planted::planted;
use outlive_core::startup_plan::{Plan, Stage};
use outlive_core::state::{Removal, State};
use outlive_supervisor::{Here, crash_point, replace_file};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::config::Config;
use crate::data_dir::{DataDir, Paths};
use crate::face::http::{self, Door, Tails};
use crate::startup::told::{Report, Telling};
use crate::startup::{self, Failure, recover};
use crate::truth::adoption::Adoption;
use crate::truth::degraded::Degraded;
use crate::truth::driver::{self, Driver, Handle, Terms, Wiring};
use crate::truth::room::Room;
use crate::truth::store::Checkpoints;
use crate::truth::wal::{self, Durable, Opened, Wal};
use crate::world::backup::Source;
use crate::world::fleet::Fleet;
use crate::world::launch::Surroundings;
use crate::world::sight::Eyes;

mod waking;

use self::waking::{tell_address, tick, watch_room};

/// What is left of a second for the note that the end was asked for.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Serves until the process is told to stop.
///
/// # Errors
/// The server cannot start; the chain of causes says why.
pub fn serve(data: &Path, config: &Config) -> anyhow::Result<()> {
    let begun = Instant::now();
    abort_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let stopping = obey_signals(&runtime, config.stop_patience + LAST_WORDS)?;
    let data = DataDir::open(data)?;
    runtime.block_on(run(data, config, begun, stopping))
}

async fn run(
    data: DataDir,
    config: &Config,
    begun: Instant,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let plan = Plan::new(startup::STAGES)?;
    let here = data.here().context("cannot tell which boot this is")?;
    let telling = Telling::begin(&data.paths, &plan, here.boot_id.clone(), begun);
    crash_point("serve.locked");
    let server = Arc::new(Server::new(data, config, here, telling.clone(), stopping));
    // Cancel safety: a start that is told to end is as good as one that was killed there.
    let started = tokio::select! {
        started = server.start(&plan) => started,
        () = server.stopping.cancelled() => server.end().await,
    };
    if let Err(error) = &started {
        telling.ends(Some(format!("did not start: {error:#}")));
    }
    let left = started?;
    telling.is_complete();
    server.tracker.spawn(server.clone().catch_up(left));
    server.stopping.cancelled().await;
    server.end().await
}

/// From here on SIGTERM and SIGINT end us with 0. What this gives tells when one came; whoever has answers to give may end us sooner
/// than the patience is over, and nobody later: neither a start that is under way nor a client that does not read.
#[expect(clippy::disallowed_methods, reason = "the patience of a stop is a time")]
fn obey_signals(
    runtime: &tokio::runtime::Runtime,
    patience: Duration,
) -> std::io::Result<CancellationToken> {
    let context = runtime.enter();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    drop(context);
    let stopping = CancellationToken::new();
    let tell = stopping.clone();
    runtime.spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tell.cancel();
        tokio::time::sleep(patience).await;
        end();
    });
    Ok(stopping)
}

/// I5: agents need no server. Ending here is the same as being killed, only later.
#[expect(clippy::exit, reason = "tasks that watch agents never end by themselves")]
fn end() -> ! {
    std::process::exit(0)
}

/// A bug must not leave half a server behind: every start is a recovery, so the way on is to start again.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

/// The server, as it comes to be.
struct Server {
    config: Config,
    data: DataDir,
    here: Here,
    telling: Telling,
    tracker: TaskTracker,
    /// A stop was asked for.
    stopping: CancellationToken,
    /// Every answer is out, and no more are given.
    served: CancellationToken,
    /// From stage storage to stage state.
    opened: Mutex<Option<Opened>>,
    /// A copied data directory does nothing before it is over.
    adoption: Adoption,
    /// One adopts at a time.
    adopting: tokio::sync::Mutex<()>,
    /// Where it listens, and the way in.
    door: OnceLock<(SocketAddr, Door)>,
    /// From stage state on.
    working: OnceLock<Working>,
}

/// What there is once State is summed up.
struct Working {
    handle: Handle,
    fleet: Fleet,
    /// What was under way.
    works: Vec<Work>,
}

impl Server {
    fn new(
        data: DataDir,
        config: &Config,
        here: Here,
        telling: Telling,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            config: config.clone(),
            adoption: Adoption::new(data.copied.clone()),
            adopting: tokio::sync::Mutex::new(()),
            data,
            here,
            telling,
            tracker: TaskTracker::new(),
            stopping,
            served: CancellationToken::new(),
            opened: Mutex::new(None),
            door: OnceLock::new(),
            working: OnceLock::new(),
        }
    }

    /// Gives back the stages that it went on without.
    async fn start(self: &Arc<Self>, plan: &Plan) -> anyhow::Result<Vec<Stage>> {
        self.listen().await?;
        let ready = || {
            say(&format!("ready: {}", self.telling.read().current.summary));
            crash_point("serve.ready");
        };
        let perform = |stage| self.clone().perform(stage);
        Ok(startup::run(plan, &self.telling, perform, ready).await?)
    }

    /// One try of a stage.
    async fn perform(self: Arc<Self>, stage: &'static str) -> Result<Report, Failure> {
        match stage {
            startup::STORAGE => self.storage().await,
            startup::STATE => self.state().await.map_err(Failure::for_good),
            _ if self.adoption.held().is_some() => Ok(Report::held()),
            startup::ATTEMPTS => {
                let Working { handle, fleet, works } = self.working();
                Ok(recover::attempts(handle, fleet, works).await)
            }
            startup::OPERATIONS => {
                let cleared = self.working().fleet.clear_operations().await?;
                Ok(Report::of([("cleared", cleared)]))
            }
            startup::TRASH => Ok(recover::trash(&self.working().fleet).await?),
            unknown => Err(Failure::for_good(anyhow::anyhow!("there is no stage {unknown}"))),
        }
    }

    async fn storage(&self) -> Result<Report, Failure> {
        let (paths, instance) = (self.data.paths.clone(), self.data.instance.clone());
        let opening = self.tracker.spawn_blocking(move || recover::storage(&paths, &instance));
        let opened = opening.await.map_err(anyhow::Error::from)?.map_err(|error| {
            let is_final = !error.may_be_tried_again() && !planted("storage.tried_again");
            Failure { is_final, ..Failure::from(anyhow::Error::from(error)) }
        })?;
        let report = recover::told_of_storage(&opened);
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        Ok(report)
    }

    async fn state(self: &Arc<Self>) -> anyhow::Result<Report> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        let opened = opened.context("stage storage has not opened the write-ahead log")?;
        let (paths, instance) = (self.data.paths.clone(), self.data.instance.clone());
        let replaying = self.tracker.spawn_blocking(move || {
            let (state, replayed) = recover::state(&opened, &paths, &instance, http::OWNER);
            (state, replayed, opened)
        });
        let (state, replayed, opened) = replaying.await?;
        crash_point("serve.recovered");
        let since = clock::rfc3339(clock::now());
        if let Some(why) = self.adoption.held() {
            self.telling.finds_degraded(Degraded::copy(why.to_string(), since.clone()));
        }
        for lost in Degraded::all_lost(&state, &[], &since) {
            self.telling.finds_degraded(lost);
        }
        let report = recover::told_of_state(&state, &replayed);
        self.set_to_work(state, opened)?;
        Ok(report)
    }

    /// Makes the driver, and opens the door to it.
    fn set_to_work(self: &Arc<Self>, state: State, opened: Opened) -> anyhow::Result<()> {
        let works = recover::under_way(&state);
        let removed: Vec<Removal> = state.removals().collect();
        let Wiring { handle, outlet, effects, inputs } = driver::wire(&state);
        let (mut checkpoints, checkpoint_thread) =
            Checkpoints::new(opened.report.checkpoint_lsn, self.config.checkpoint_records);
        let view = handle.clone();
        let on_durable = move |group| {
            crash_point("serve.durable");
            outlet.release(group);
            checkpoints.consider(&view.view());
            crash_point("serve.released");
        };
        let (wal, checkpointer) = Wal::start(opened.log, on_durable, wal::abort)?;
        checkpoint_thread.start(checkpointer).context("cannot start a thread")?;
        let root = self.data.paths.root().to_path_buf();
        let room = Room::new(root, self.config.min_free_bytes, wal.next_segment());
        let started = self.telling.started(&state);
        let running_max = self.config.running_max;
        let terms = Terms { running_max, room: room.clone(), adoption: self.adoption.clone() };
        let driver = Driver::new(state, terms, clock::now, wal, inputs, started);
        std::thread::Builder::new()
            .name("driver".into())
            .spawn(move || driver.run())
            .context("cannot start a thread")?;
        let fleet = self.fleet(&handle)?;
        let is_held = self.adoption.held().is_some();
        let scratch = if is_held { fleet.make_scratch() } else { fleet.renew_scratch() };
        if let Err(error) = scratch {
            // Questions that need it are answered with an error; a full disk must not keep the server down.
            tracing::warn!(%error, "the scratch directory was not made anew");
        }
        self.tracker.spawn(perform(effects, fleet.clone()));
        if !is_held {
            fleet.clear_removed(removed);
        }
        self.tracker.spawn(tick(handle.clone()));
        let (address, door) = self.door.get().context("nobody listens")?;
        self.tracker.spawn(watch_room(&room, &self.data.paths, *address, &handle, &fleet));
        door.open(http::router(self.parts(&handle, &fleet, room)?));
        drop(self.working.set(Working { handle, fleet, works }));
        Ok(())
    }

    /// Makes a copied data directory one of its own, durably, and does what its start has left undone.
    async fn adopt(self: Arc<Self>) -> anyhow::Result<bool> {
        let _one_at_a_time = self.adopting.lock().await;
        let fleet = &self.working.get().context("the server is recovering")?.fleet;
        if self.adoption.held().is_none() {
            return Ok(false);
        }
        let server = self.clone();
        self.tracker.spawn_blocking(move || server.data.adopt()).await??;
        self.adoption.is_adopted();
        fleet.clear_removed(self.working().handle.view().removals().collect());
        let perform = |stage| self.clone().perform(stage);
        let left = startup::once_more(startup::held(), &self.telling, perform).await;
        self.telling.is_adopted();
        self.tracker.spawn(self.clone().catch_up(left));
        Ok(true)
    }

    /// Goes on with stages that were left out.
    async fn catch_up(self: Arc<Self>, left: Vec<Stage>) {
        startup::catch_up(left, &self.telling, |stage| self.clone().perform(stage)).await;
        self.telling.is_complete();
    }

    fn working(&self) -> &Working {
        self.working.get().expect("whatever depends on stage state comes after it")
    }

    /// Lets answers that are under way get out, notes that the end was asked for, and ends the process.
    async fn end(&self) -> ! {
        // What is answered is durable, so nothing else is waited for: watching agents never ends by itself.
        if self.door.get().is_some() {
            drop(tokio::time::timeout(self.config.stop_patience, self.served.cancelled()).await);
        }
        self.telling.ends(None);
        end()
    }

    fn fleet(&self, handle: &Handle) -> anyhow::Result<Fleet> {
        let exe = std::env::current_exe().context("cannot find our own program")?;
        let surroundings = Surroundings {
            paths: self.data.paths.clone(),
            instance: self.data.instance.instance.clone(),
            life: self.data.instance.life().to_string(),
            exe: exe.to_str().context("the path of our own program is not UTF-8")?.to_string(),
            heartbeat_ms: millis(self.config.heartbeat),
            grace_ms: millis(self.config.grace),
            freeze_free_bytes: self.config.freeze_free_bytes,
            hung_margin: self.config.hung_margin,
            programs: self.config.programs.clone(),
        };
        Ok(Fleet::new(surroundings, self.here.clone(), handle.clone(), self.tracker.clone()))
    }

    /// Answers from here on.
    async fn listen(&self) -> anyhow::Result<()> {
        let address = self.config.listen;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let address: SocketAddr = listener.local_addr()?;
        let token = read_or_make_token(&self.data.paths)?;
        let telling = self.telling.clone();
        let door = Door::new(token, Box::new(move || serde_json::json!(telling.read())));
        let (router, stop) = (door.router(), self.stopping.clone());
        let graceful = async move { stop.cancelled().await };
        let over = self.served.clone();
        self.tracker.spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(graceful).await;
            if let Err(error) = served {
                tracing::error!(%error, "the API has ended");
            }
            over.cancel();
        });
        drop(self.door.set((address, door)));
        if let Err(error) = tell_address(&self.data.paths, address) {
            tracing::warn!(%error, "the address is not told; tried again when there is room");
        }
        say(&format!("listening on http://{address}"));
        Ok(())
    }

    fn parts(
        self: &Arc<Self>,
        handle: &Handle,
        fleet: &Fleet,
        room: Room,
    ) -> anyhow::Result<http::Parts> {
        let paths = self.data.paths.clone();
        let token = read_or_make_token(&paths)?;
        let telling = || self.telling.clone();
        let (log, ready, found) = (telling(), telling(), telling());
        let (view, space) = (handle.clone(), room.clone());
        let adopting = self.clone();
        let backing_up = Source {
            paths: paths.clone(),
            instance: self.data.instance.clone(),
            handle: handle.clone(),
            fleet: fleet.clone(),
            tracker: self.tracker.clone(),
        };
        Ok(http::Parts {
            handle: handle.clone(),
            sight: Arc::new(Eyes { paths: paths.clone() }),
            token,
            tails: Tails::start(&self.tracker).context("cannot watch files")?,
            startup_log: Box::new(move || serde_json::json!(log.read())),
            ready: Box::new(move || ready.is_ready()),
            degraded: Box::new(move || degraded(&found, &view.view(), &space)),
            disk_full: Box::new(move || room.missing()),
            adoption: self.adoption.clone(),
            adopt: Box::new(move || Box::pin(adopting.clone().adopt())),
            backup: Box::new(move || Box::pin(backing_up.clone().begin())),
            backing_up: Arc::default(),
            here: self.here.clone(),
            programs: self.config.programs.clone(),
            patience: http::Patience {
                heartbeat_ages: self.config.heartbeat_ages,
                stall: self.config.stall,
            },
            running_max: self.config.running_max,
            limit_wait: self.config.limit_wait,
            tracker: self.tracker.clone(),
            stopping: self.stopping.clone(),
            paths,
        })
    }
}

/// What is not available now: what the start found, as far as it still is so, and what has come since.
fn degraded(telling: &Telling, state: &State, room: &Room) -> Vec<Degraded> {
    let start = telling.read().current;
    let lost = Degraded::all_lost(state, &start.degraded, &start.started_at);
    let others = start.degraded.into_iter().filter(|it| !it.is_of_records());
    let mut degraded: Vec<Degraded> = others.chain(lost).collect();
    let disk = room.missing_since();
    degraded.extend(disk.map(|(cause, since)| Degraded::disk(cause, clock::rfc3339(since))));
    degraded
}

/// Tells whoever started the server; that nobody listens any more is no reason to stop.
fn say(line: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stdout(), "{line}"));
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The world's end of the driver's effects.
async fn perform(mut effects: mpsc::UnboundedReceiver<Durable<Vec<Effect>>>, fleet: Fleet) {
    while let Some(effects) = effects.recv().await {
        crash_point("serve.before_effects");
        fleet.perform(effects);
    }
}

fn read_or_make_token(paths: &Paths) -> anyhow::Result<String> {
    let path = paths.token();
    match std::fs::read_to_string(&path) {
        Ok(token) if !token.trim().is_empty() => Ok(token.trim().to_string()),
        Ok(_) => anyhow::bail!("{} is empty: remove it to have a new one made", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let token = crate::random::token();
            replace_file(&path, format!("{token}\n").as_bytes())?;
            Ok(token)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
