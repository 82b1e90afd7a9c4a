//! `outlive serve`: wires the parts together. The order of start and stop, in one readable place.
//!
//! Start: data directory → write-ahead log → State → driver → API (it answers from here on) → attempts → ready.
//! Stop: there is only one way, being killed. SIGTERM merely lets answers that are under way get out first.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outlive_core::effect::Effect;
use outlive_core::state::Removal;
use outlive_supervisor::{FileError, Here, crash_point, replace_file};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::config::Config;
use crate::data_dir::{DataDir, Paths};
use crate::face::http::{self, Tails};
use crate::startup::{self, Telling};
use crate::truth::driver::{self, Driver, Handle, Wiring};
use crate::truth::room::Room;
use crate::truth::store::Checkpoints;
use crate::truth::wal::{self, Durable, Wal};
use crate::world::fleet::Fleet;
use crate::world::launch::Surroundings;
use crate::world::sight::Eyes;

/// Answers under way at SIGTERM get this long.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// Serves until the process is told to stop.
///
/// # Errors
/// The server cannot start; the chain of causes says why.
pub fn serve(data: &Path, config: &Config) -> anyhow::Result<()> {
    let begun = Instant::now();
    abort_on_panic();
    let data = DataDir::open(data)?;
    let telling = Telling::begin(&data.paths, begun);
    crash_point("serve.locked");
    let (state, opened) = startup::recover_state(&data, &telling)?;
    crash_point("serve.recovered");
    let works = startup::under_way(&state);
    let removed = state.removals().collect();
    let Wiring { handle, outlet, effects, inputs } = driver::wire(&state);
    let (mut checkpoints, checkpoint_thread) =
        Checkpoints::new(opened.report.checkpoint_lsn, config.checkpoint_records);
    let view = handle.clone();
    let on_durable = move |group| {
        crash_point("serve.durable");
        outlet.release(group);
        checkpoints.consider(&view.view());
        crash_point("serve.released");
    };
    let (wal, checkpointer) = Wal::start(opened.log, on_durable, wal::abort)?;
    checkpoint_thread.start(checkpointer).context("cannot start a thread")?;
    let root = data.paths.root().to_path_buf();
    let room = Room::new(root, config.min_free_bytes, wal.next_segment());
    let started = telling.started(&state)?;
    let max = config.running_max;
    let driver = Driver::new(state, max, room.clone(), clock::now, wal, inputs, started);
    std::thread::Builder::new()
        .name("driver".into())
        .spawn(move || driver.run())
        .context("cannot start a thread")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let face = Face { config, data: &data, telling: &telling, handle, room };
    runtime.block_on(face.run(effects, works, removed))
}

/// A bug must not leave half a server behind: every start is a recovery, so the way on is to start again.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

/// What the asynchronous half of the server stands on.
struct Face<'a> {
    config: &'a Config,
    data: &'a DataDir,
    telling: &'a Telling,
    handle: Handle,
    room: Room,
}

impl Face<'_> {
    async fn run(
        &self,
        effects: mpsc::UnboundedReceiver<Durable<Vec<Effect>>>,
        works: Vec<outlive_core::job::Work>,
        removed: Vec<Removal>,
    ) -> anyhow::Result<()> {
        // Before anything that may need it; a signal that comes earlier ends us the plain way, which is as good.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let tracker = TaskTracker::new();
        let stopping = CancellationToken::new();
        let fleet = self.fleet(&tracker)?;
        let router = http::router(self.parts(&tracker, &stopping)?);
        if let Err(error) = fleet.renew_scratch() {
            // Questions that need it are answered with an error; a full disk must not keep the server down.
            tracing::warn!(%error, "the scratch directory was not made anew");
        }
        let listener = self.listen().await?;
        tracker.spawn(perform(effects, fleet.clone()));
        fleet.clear_removed(removed);
        tracker.spawn(tick(self.handle.clone()));
        tracker.spawn(self.watch_room(listener.local_addr()?, &fleet));
        let stop = stopping.clone();
        let graceful = async move { stop.cancelled().await };
        tracker.spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(graceful).await;
            if let Err(error) = served {
                tracing::error!(%error, "the API has ended");
            }
        });
        startup::recover_attempts(&self.handle, &fleet, works, self.telling).await;
        fleet.empty_trash();
        say(&format!("ready: {}", self.telling.read().current.summary));
        crash_point("serve.ready");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
        tracker.close();
        // Watching agents never ends by itself; only answers are waited for, and not long.
        drop(tokio::time::timeout(STOP_PATIENCE, self.answers_out(&tracker)).await);
        // I5: agents need no server. Ending here is the same as being killed, only later.
        std::process::exit(0)
    }

    /// Every answer that was under way is out when the write-ahead log has nothing more to make durable.
    async fn answers_out(&self, tracker: &TaskTracker) {
        // No driver: the process is ending already.
        self.handle.tick().await.ok();
        tracker.wait().await;
    }

    fn fleet(&self, tracker: &TaskTracker) -> anyhow::Result<Fleet> {
        let exe = std::env::current_exe().context("cannot find our own program")?;
        let surroundings = Surroundings {
            paths: self.data.paths.clone(),
            instance: self.data.instance.instance.clone(),
            exe: exe.to_str().context("the path of our own program is not UTF-8")?.to_string(),
            heartbeat_ms: millis(self.config.heartbeat),
            grace_ms: millis(self.config.grace),
            freeze_free_bytes: self.config.freeze_free_bytes,
            hung_margin: self.config.hung_margin,
            programs: self.config.programs.clone(),
        };
        let here = Here::observe().context("cannot tell which boot this is")?;
        Ok(Fleet::new(surroundings, here, self.handle.clone(), tracker.clone()))
    }

    async fn listen(&self) -> anyhow::Result<TcpListener> {
        let address = self.config.listen;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let address: SocketAddr = listener.local_addr()?;
        if let Err(error) = tell_address(&self.data.paths, address) {
            tracing::warn!(%error, "the address is not told; tried again when there is room");
        }
        say(&format!("listening on http://{address}"));
        Ok(listener)
    }

    /// Goes on with what waited for room whenever there is room again.
    fn watch_room(&self, address: SocketAddr, fleet: &Fleet) -> impl Future<Output = ()> + use<> {
        let (room, handle) = (self.room.clone(), self.handle.clone());
        let (paths, fleet) = (self.data.paths.clone(), fleet.clone());
        room.watch(async move || {
            // Each was warned of when it failed first, and has its next try when room returns the next time.
            tell_address(&paths, address).ok();
            fleet.make_scratch().ok();
            handle.tick().await.ok();
        })
    }

    fn parts(
        &self,
        tracker: &TaskTracker,
        stopping: &CancellationToken,
    ) -> anyhow::Result<http::Parts> {
        let paths = self.data.paths.clone();
        let token = read_or_make_token(&paths)?;
        let (telling, ready) = (self.telling.clone(), self.telling.clone());
        let room = self.room.clone();
        Ok(http::Parts {
            handle: self.handle.clone(),
            sight: Arc::new(Eyes { paths: paths.clone() }),
            token,
            tails: Tails::start(tracker).context("cannot watch files")?,
            startup_log: Box::new(move || serde_json::json!(telling.read())),
            ready: Box::new(move || startup::is_ready(&ready)),
            disk_full: Box::new(move || room.missing()),
            programs: self.config.programs.clone(),
            patience: http::Patience {
                heartbeat_ages: self.config.heartbeat_ages,
                stall: self.config.stall,
            },
            running_max: self.config.running_max,
            limit_wait: self.config.limit_wait,
            tracker: tracker.clone(),
            stopping: stopping.clone(),
            paths,
        })
    }
}

/// Writes down how the server is reached. It seldom changes, and what is not written needs no syncs on the way to ready.
fn tell_address(paths: &Paths, address: SocketAddr) -> Result<(), FileError> {
    let (path, told) = (paths.address(), format!("{address}\n"));
    if std::fs::read(&path).ok().as_deref() == Some(told.as_bytes()) {
        return Ok(());
    }
    replace_file(&path, told.as_bytes())
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

/// Wakes the driver when something is due by time alone, and not otherwise.
#[expect(clippy::disallowed_methods, reason = "this is where due times become events")]
async fn tick(handle: Handle) {
    let mut changes = handle.changes();
    loop {
        let due = changes.borrow_and_update().next_due();
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep(due.since(clock::now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {
                if handle.tick().await.is_err() {
                    return;
                }
                // What was due is done with the next change; without one, nothing was due yet by the driver's clock.
                if changes.changed().await.is_err() {
                    return;
                }
            }
            changed = changes.changed() => if changed.is_err() { return },
        }
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
