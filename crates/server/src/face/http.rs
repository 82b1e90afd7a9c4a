//! The HTTP API. Reads come from the published view, changes go to the driver; nothing here knows how either does it.

mod admin;
mod backup;
mod body;
mod door;
mod events;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
mod guard;
mod jobs;
mod metrics;
mod output;
mod problem;
mod repos;
mod show;
mod stats;
mod submit;
mod tail;
mod why;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use outlive_core::ids::JobId;
use outlive_core::job::Job;
use outlive_core::request::{Granted, Request};
use outlive_supervisor::Here;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::data_dir::Paths;
use crate::truth::adoption::Adoption;
use crate::truth::degraded::Degraded;
use crate::truth::driver::Handle;
use crate::truth::view::{Backup, Sight};

pub use door::Door;
pub use problem::Problem;
pub use tail::Tails;

/// A prompt of the largest size, escaped in the worst way, with room for the other fields.
const BODY_BYTES_MAX: usize = 8 << 20;

/// What the API stands on.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// See [`Parts::adopt`].
pub type Adopt = Box<dyn Fn() -> BoxFuture<'static, anyhow::Result<bool>> + Send + Sync>;

/// The parts of [`App`].
pub struct Parts {
    /// The way to the driver, and the view.
    pub handle: Handle,
    /// Repositories and workspaces, looked at.
    pub sight: Arc<dyn Sight>,
    /// Where output files are.
    pub paths: Paths,
    /// What every caller must show.
    pub token: String,
    /// Tells when an output file grows.
    pub tails: Tails,
    /// The startup log, as JSON.
    pub startup_log: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Every stage of the startup without which the server cannot work is over.
    pub ready: Box<dyn Fn() -> bool + Send + Sync>,
    /// What is not available.
    pub degraded: Box<dyn Fn() -> Vec<Degraded> + Send + Sync>,
    /// What is missing for new work, in words, while nothing new is accepted.
    pub disk_full: Box<dyn Fn() -> Option<String> + Send + Sync>,
    /// Whether anything is done at all.
    pub adoption: Adoption,
    /// Adopts a copied data directory; whether there was anything to do.
    pub adopt: Adopt,
    /// Begins a backup of what is durable now.
    pub backup: Box<dyn Fn() -> BoxFuture<'static, Backup> + Send + Sync>,
    /// Held while one is made: one at a time.
    pub backing_up: Arc<Mutex<()>>,
    /// Which processes can be looked for from here.
    pub here: Here,
    /// Programs of engines that are not in `PATH`.
    pub programs: std::collections::BTreeMap<String, String>,
    /// From when on a silent supervisor or agent is noticed.
    pub patience: Patience,
    /// How many agents run at once, for estimates.
    pub running_max: u32,
    /// All that a job waits for limits, when it says nothing itself.
    pub limit_wait: Duration,
    /// Every task that outlives its request.
    pub tracker: TaskTracker,
    /// The server is stopping: long answers end.
    pub stopping: CancellationToken,
}

/// From when on silence is noticed. It never decides anything.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Of supervisors.
    pub heartbeat_ages: outlive_core::heartbeat::Ages,
    /// Of agents: time without output.
    pub stall: std::time::Duration,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("paths", &self.0.paths).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl std::ops::Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// All routes, behind a [`Door`].
pub fn router(parts: Parts) -> Router {
    let app = App(Arc::new(parts));
    let api = Router::new()
        .route("/jobs", post(jobs::submit).get(jobs::list))
        .route("/jobs/{id}", get(jobs::show).patch(jobs::edit).delete(jobs::remove))
        .route("/jobs/{id}/start", post(jobs::start))
        .route("/jobs/{id}/hold", post(jobs::hold))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/jobs/{id}/resume", post(jobs::resume))
        .route("/jobs/{id}/retry", post(jobs::retry))
        .route("/jobs/{id}/settle", post(jobs::settle))
        .route("/jobs/{id}/repair", post(jobs::repair))
        .route("/jobs/{id}/why", get(jobs::why))
        .route("/jobs/{id}/output", get(output::get))
        .route("/jobs/{id}/events", get(events::of_job))
        .route("/jobs/{id}/bundle", get(repos::bundle))
        .route("/jobs/{id}/diff", get(repos::diff))
        .route("/events", get(events::all))
        .route("/repos", post(repos::add).get(repos::list))
        .route("/repos/{name}", get(repos::show).delete(repos::remove))
        .route("/repos/{name}/repair", post(repos::repair))
        .route("/stats", get(stats::stats))
        .route("/engines", get(admin::engines))
        .route("/admin/startup-log", get(admin::startup_log))
        .route("/admin/backup", get(backup::get))
        .route("/admin/adopt-data", post(admin::adopt_data))
        .fallback(no_such_path)
        .layer(middleware::from_fn_with_state(app.clone(), guard::token));
    let metrics = get(metrics::metrics);
    let metrics = metrics.layer(middleware::from_fn_with_state(app.clone(), guard::token));
    Router::new()
        .nest("/api", api)
        .route("/healthz", get(admin::healthz))
        .route("/readyz", get(admin::readyz))
        .route("/metrics", metrics)
        .fallback(no_such_path)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

async fn no_such_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_such_path", "there is nothing at this path")
}

/// Whoever asks; one token, one owner, in this version.
pub(crate) const OWNER: &str = "local";

impl App {
    /// Finds a job by its id, an unambiguous beginning of it, or `last`.
    fn find(&self, text: &str) -> Result<Arc<Job>, Problem> {
        let state = self.handle.view();
        if let Ok(id) = JobId::parse(text)
            && let Some(job) = state.job(&id)
        {
            return Ok(job.clone());
        }
        if text == "last" {
            let mut own = state.newest_first(None).filter(|job| job.owner == OWNER);
            return own.next().cloned().ok_or_else(|| unknown(text));
        }
        let found: Vec<_> = state.jobs().filter(|job| job.id.as_str().starts_with(text)).collect();
        match found.as_slice() {
            [job] if !text.is_empty() => Ok(Arc::clone(job)),
            [] | [_] => Err(unknown(text)),
            several => {
                let ids: Vec<&str> = several.iter().take(5).map(|job| job.id.as_str()).collect();
                let detail = format!("{} jobs have an id that begins with {text}", several.len());
                Err(Problem::new(StatusCode::CONFLICT, "ambiguous_id", detail)
                    .hint(format!("give more of the id: {}", ids.join(", "))))
            }
        }
    }

    /// Why nothing that is queued begins now, if that is so.
    fn hindrance(&self) -> Option<String> {
        let copy = self.adoption.held().map(|why| format!("`outlive adopt-data`: {why}"));
        copy.or_else(|| (self.disk_full)().map(|missing| format!("room: {missing}")))
    }

    /// Refuses what adds to what is kept (new work, another prompt) while the disk is nearly full, before anything is accepted. What
    /// only steers (start, hold, cancel, settle, remove, an edit without a prompt) needs a few hundred bytes in a segment that is
    /// there, and is how people get out of that state: it is never refused for it.
    fn need_room(&self) -> Result<(), Problem> {
        let refuse = |missing| {
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", missing)
                .hint("free some space; what was accepted goes on by itself then")
        };
        (self.disk_full)().map_or(Ok(()), |missing| Err(refuse(missing)))
    }

    /// Asks the driver; the answer is durable.
    async fn ask(&self, request: Request) -> Result<Granted, Problem> {
        Ok(self.handle.ask(request, OWNER).await??)
    }
}

fn unknown(text: &str) -> Problem {
    outlive_core::request::Refusal::UnknownJob(text.to_string()).into()
}
