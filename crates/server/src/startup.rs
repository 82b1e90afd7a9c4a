//! Startup: from the data directory to a server that knows what is alive. Every start is a recovery; there is no other.
//!
//! Its stages and what each waits for are a table; core orders them and says what becomes of one that fails; they are carried out
//! here, side by side where they may be, and the startup log tells of each as it happens.

pub mod lost;
pub mod recover;
pub mod told;

mod marker;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use outlive_core::limits;
use outlive_core::retry::backoff;
use outlive_core::startup_plan::{Next, Plan, Stage};

use self::told::{Report, Telling};

/// What a start is made of. Locks, waiting queues of more than one repo, orphans, callbacks and sidecars will be stages when they are
/// there to be recovered. The critical ones come first, so that none is blamed for a death in another beside it.
pub const STAGES: &[Stage] = &[
    Stage { name: STORAGE, depends_on: &[], critical: true },
    Stage { name: STATE, depends_on: &[STORAGE], critical: true },
    Stage { name: ATTEMPTS, depends_on: &[STATE], critical: true },
    Stage { name: OPERATIONS, depends_on: &[ATTEMPTS], critical: false },
    Stage { name: TRASH, depends_on: &[ATTEMPTS], critical: false },
];

/// The stages that do something with the world: a copied data directory has them when it is adopted.
pub fn held() -> Vec<Stage> {
    STAGES.iter().filter(|stage| ![STORAGE, STATE].contains(&stage.name)).copied().collect()
}

/// The write-ahead log is opened and made whole.
pub const STORAGE: &str = "storage";
/// State is summed up; from here on the API answers everything.
pub const STATE: &str = "state";
/// Everything that was under way is looked at and judged.
pub const ATTEMPTS: &str = "attempts";
/// Directories of our own work that is over are cleared away.
pub const OPERATIONS: &str = "operations";
/// Deletions that an earlier server died over go on.
pub const TRASH: &str = "trash";

/// Why a try of a stage failed.
#[derive(Debug)]
pub struct Failure {
    /// With all its causes, in one line.
    pub cause: String,
    /// Trying again cannot help.
    pub is_final: bool,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { cause: format!("{error:#}"), is_final: false }
    }
}

impl Failure {
    /// One that will be the same the next time.
    pub fn for_good(error: anyhow::Error) -> Self {
        Self { is_final: true, ..Self::from(error) }
    }
}

/// The start cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A stage failed to the last.
    #[error("stage {stage} of the startup failed{}: {cause}", times(*tries))]
    Failed {
        /// Which.
        stage: &'static str,
        /// How often it was tried.
        tries: u32,
        /// Why its last try failed.
        cause: String,
    },
    /// Too many starts in a row died in a stage.
    #[error(
        "the last {deaths} starts died in stage {stage} of the startup, and so would this one. \
         Look at what they said last; to have it tried again, remove {marker}"
    )]
    Deadly {
        /// Which.
        stage: &'static str,
        /// How many.
        deaths: u32,
        /// Where that is written.
        marker: String,
    },
}

fn times(tries: u32) -> String {
    if tries == 1 { String::new() } else { format!(" {tries} times") }
}

/// Carries out a plan: every stage as soon as it may begin, and `ready` when no critical one is left. Gives back the stages that the start went on without and that are worth
/// another try later.
///
/// # Errors
/// A stage without which the server cannot work has failed, or would be the death of this start as of those before.
pub async fn run<Performing>(
    plan: &Plan,
    telling: &Telling,
    perform: impl Fn(&'static str) -> Performing,
    ready: impl Fn(),
) -> Result<Vec<Stage>, StartError>
where
    Performing: Future<Output = Result<Report, Failure>>,
{
    let (mut begun, mut over) = (BTreeSet::new(), BTreeSet::new());
    let mut running = FuturesUnordered::new();
    let mut left = Vec::new();
    loop {
        let next: Vec<Stage> = plan.next(&begun, &over).collect();
        for stage in next {
            begun.insert(stage.name);
            running.push(carry_out(stage, telling, &perform));
        }
        let Some(done) = running.next().await else { return Ok(left) };
        let (stage, again) = done?;
        let was_ready = plan.is_ready(&over);
        over.insert(stage.name);
        if !was_ready && plan.is_ready(&over) {
            telling.is_ready_now();
            ready();
        }
        left.extend(again.then_some(stage));
    }
}

/// One stage, with all its tries. Gives back whether it is worth another one later.
async fn carry_out<Performing>(
    stage: Stage,
    telling: &Telling,
    perform: impl Fn(&'static str) -> Performing,
) -> Result<(Stage, bool), StartError>
where
    Performing: Future<Output = Result<Report, Failure>>,
{
    let deaths = telling.deaths(stage.name);
    match stage.after_deaths(deaths) {
        Next::Try(_) => {}
        Next::Without => {
            let cause = format!("the last {deaths} starts died in it");
            telling.goes_without(stage.name, cause, "the next start tries it again");
            return Ok((stage, false));
        }
        Next::Stop => {
            let marker = telling.marker_path();
            return Err(StartError::Deadly { stage: stage.name, deaths, marker });
        }
    }
    let mut failures = 0;
    loop {
        telling.begins(stage.name);
        let failure = match perform(stage.name).await {
            Ok(report) => {
                telling.succeeds(stage.name, report);
                return Ok((stage, false));
            }
            Err(failure) => failure,
        };
        failures += 1;
        let Failure { cause, is_final } = failure;
        tracing::error!(stage = stage.name, failures, %cause, "a stage of the startup failed");
        telling.fails(stage.name, cause.clone());
        let next = if is_final { stage.given_up() } else { stage.after_failures(failures) };
        match next {
            Next::Try(pause) => wait(pause).await,
            Next::Stop => {
                return Err(StartError::Failed { stage: stage.name, tries: failures, cause });
            }
            Next::Without => {
                telling.goes_without(stage.name, cause, remedy());
                return Ok((stage, true));
            }
        }
    }
}

fn remedy() -> &'static str {
    "remove the cause: it is tried again within a minute"
}

/// Goes on trying what the start went on without, until all of it is there.
pub async fn catch_up<Performing>(
    mut left: Vec<Stage>,
    telling: &Telling,
    perform: impl Fn(&'static str) -> Performing,
) where
    Performing: Future<Output = Result<Report, Failure>>,
{
    for failures in limits::STAGE_TRIES_MAX.. {
        if left.is_empty() {
            return;
        }
        wait(backoff(limits::STAGE_PAUSE, limits::STAGE_AGAIN_MAX, failures.saturating_sub(1)))
            .await;
        left = once_more(left, telling, &perform).await;
    }
}

/// Tries stages once more, one after the other. Gives back those that failed.
pub async fn once_more<Performing>(
    stages: Vec<Stage>,
    telling: &Telling,
    perform: impl Fn(&'static str) -> Performing,
) -> Vec<Stage>
where
    Performing: Future<Output = Result<Report, Failure>>,
{
    let mut left = Vec::new();
    for stage in stages {
        telling.begins(stage.name);
        match perform(stage.name).await {
            Ok(report) => telling.succeeds(stage.name, report),
            Err(failure) => {
                telling.fails(stage.name, failure.cause.clone());
                telling.goes_without(stage.name, failure.cause, remedy());
                left.push(stage);
            }
        }
    }
    left
}

#[expect(clippy::disallowed_methods, reason = "nobody tells when what failed would succeed")]
async fn wait(pause: Duration) {
    tokio::time::sleep(pause).await;
}
