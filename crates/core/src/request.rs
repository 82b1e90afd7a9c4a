//! Requests: what is asked of State, and the refusals it may answer with.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::engine::{Limit, SessionSign, Usage};
use crate::evidence::Evidence;
use crate::ids::{JobId, RepoName, SessionId};
use crate::job::{Action, Idempotency, OutcomeKind, Work};
use crate::task::Task;
use crate::time::Timestamp;

/// What somebody asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Accept a job.
    Submit(Box<Submission>),
    /// Go now.
    Start(JobId),
    /// Don't go yet.
    Hold(JobId),
    /// Stop it.
    Cancel(JobId),
    /// One more prompt in the same session.
    Resume {
        /// The job.
        job: JobId,
        /// What is to be done.
        prompt: String,
    },
    /// Afresh, in a session of this new id.
    Retry {
        /// The job.
        job: JobId,
        /// The new conversation.
        session: SessionId,
    },
    /// Change what has not begun.
    Edit {
        /// The job.
        job: JobId,
        /// What changes.
        edit: Edit,
    },
    /// Say how it ended.
    Settle {
        /// The job.
        job: JobId,
        /// How.
        kind: OutcomeKind,
    },
    /// Forget it.
    Remove {
        /// The job.
        job: JobId,
    },
    /// Take a job up again of which records are lost.
    Repair {
        /// The job.
        job: JobId,
    },
    /// Register a repo.
    AddRepo {
        /// Its name.
        name: RepoName,
        /// Who asks.
        owner: String,
        /// Where from.
        source: String,
        /// Which branch.
        branch: Option<String>,
    },
    /// Make a repo usable again: its records are lost, or its source copy could not be made.
    RepairRepo {
        /// Its name.
        name: RepoName,
        /// Who asks.
        owner: String,
        /// Where from, where nobody knows any more.
        source: Option<String>,
        /// Which branch, if the source is given.
        branch: Option<String>,
    },
    /// Forget a repo.
    RemoveRepo(RepoName),
}

/// A job as it is asked for; ranges and names have been checked by whoever built it.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// An id that nobody has.
    pub job: JobId,
    /// A conversation id that nobody has.
    pub session: SessionId,
    /// Who asks.
    pub owner: String,
    /// What is asked for.
    pub task: Task,
    /// The first prompt.
    pub prompt: String,
    /// Not to start by itself.
    pub held: bool,
    /// To start by itself only then.
    pub start_after: Option<Timestamp>,
    /// The client's key.
    pub idempotency: Option<Idempotency>,
}

/// Changes to a job that has not begun; none = as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    /// A new priority.
    pub priority: Option<u8>,
    /// A new running time.
    pub timeout_ms: Option<u64>,
    /// A new title.
    pub title: Option<String>,
    /// A new prompt; only while held.
    pub prompt: Option<String>,
}

/// What a granted request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Granted {
    /// This job.
    Job(JobId),
    /// This job, which an earlier request with the same key had made.
    SameJob(JobId),
    /// This repo.
    Repo(RepoName),
}

/// "No, because": ordinary, typed, changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such job.
    #[error("there is no job {0}")]
    UnknownJob(String),
    /// No such repo.
    #[error("there is no repo {name}")]
    UnknownRepo {
        /// As it was asked for.
        name: String,
        /// The nearest name there is.
        nearest: Option<String>,
    },
    /// A repo of that name exists.
    #[error("a repo named {0} exists already")]
    RepoExists(String),
    /// Jobs that have not ended need it.
    #[error("repo {name} is needed by {jobs} jobs that have not ended")]
    RepoInUse {
        /// Its name.
        name: String,
        /// How many.
        jobs: usize,
    },
    /// Its source copy cannot be used.
    #[error("repository unavailable: {name}: {reason}")]
    RepoUnavailable {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// Not in this phase.
    #[error("a job that is {phase} cannot be asked to {}", .action.name())]
    NotAllowed {
        /// What was asked.
        action: Action,
        /// Where the job is.
        phase: &'static str,
        /// What may be asked.
        allowed: Vec<&'static str>,
    },
    /// The same key came with another body.
    #[error("this idempotency key was used for another request (job {0})")]
    KeyReused(String),
    /// The session's workspace is gone.
    #[error("the workspace of this job is gone")]
    WorkspaceGone,
    /// The engine has no sessions that can be continued.
    #[error("engine {0} cannot continue a session")]
    CannotResume(String),
    /// The record of its acceptance is lost.
    #[error("what job {0} was asked to do is lost")]
    TaskLost(String),
    /// The record that told where it comes from is lost.
    #[error("where repo {0} comes from is lost")]
    SourceLost(String),
    /// A bound is reached.
    #[error("{what} (limit {limit})")]
    LimitReached {
        /// What is full.
        what: &'static str,
        /// Its limit.
        limit: usize,
    },
    /// The data directory is a copy.
    #[error("this data directory does nothing until it is adopted: {0}")]
    NotAdopted(String),
    /// Its records are damaged.
    #[error("{entity} is unavailable: {reason}")]
    Unavailable {
        /// What.
        entity: String,
        /// Why, with file and offset.
        reason: String,
    },
}

/// What was seen of a piece of work: whoever looked reports it, whatever came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Of what.
    pub work: Work,
    /// What can be proved.
    pub evidence: Evidence,
    /// What its output says, once it is gone.
    pub findings: Findings,
    /// A session id for a policy that begins afresh (ids are inputs).
    pub fresh_session: SessionId,
}

/// What the output of a piece of work says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// Tokens and cost of the attempt.
    pub usage: Option<Usage>,
    /// What the attempt's output shows of its conversation.
    pub session_sign: Option<SessionSign>,
    /// A limit that made the agent give up.
    pub limit: Option<Limit>,
    /// An operation's answer, its last line.
    pub answer: Option<serde_json::Value>,
    /// An operation's complaint.
    pub complaint: String,
    /// Lengths of the output files now, for ends that no outcome tells of.
    pub output_now: [u64; 2],
}
