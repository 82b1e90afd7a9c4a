//! A job: what was asked for, where it is, and what has come of it.
//!
//! ```text
//!  held ──start──> queued <──────────────┐ requeued (policy, next turn)
//!                  │  ^ │                │
//!            waits v  │ └─copy─> preparing ──launch──> running ──> ended
//!                waiting             │                  │  │         │
//!                                    └────cancel──> stopping         │
//!                                                       │  └──> unknown ──settle──> ended
//!                  queued <──resume, retry── ended, unknown
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::engine::{SessionSign, Usage};
use crate::evidence::AgentResult;
use crate::ids::{AttemptNo, JobId, Lsn, OperationId, RepoName, SessionId};
use crate::spec::{Limit, StopCause};
use crate::task::Task;
use crate::time::Timestamp;

/// Where a job is. A variant carries what is only true in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Phase {
    /// Created, not started.
    Held,
    /// Ready; waits for a slot.
    Queued,
    /// For something outside the queue.
    Waiting {
        /// For what.
        reason: WaitReason,
        /// When it goes on by itself, if time decides.
        until: Option<Timestamp>,
    },
    /// Its workspace is being copied.
    Preparing {
        /// By this operation.
        operation: OperationId,
    },
    /// An agent is, or may be, alive.
    Running {
        /// In this attempt.
        attempt: AttemptNo,
    },
    /// A stop is being carried out.
    Stopping {
        /// Of what.
        work: Work,
        /// Why.
        cause: StopCause,
    },
    /// It cannot be proved whether it ended, or how.
    Unknown {
        /// The attempt in question.
        attempt: AttemptNo,
    },
    /// It is over.
    Ended {
        /// How.
        outcome: Outcome,
    },
}

/// Why a job waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WaitReason {
    /// A repo is not ready yet (it is being cloned).
    Repo {
        /// Which.
        name: RepoName,
    },
    /// A pause before the next attempt.
    BackOff,
    /// It was asked to start later.
    StartTime,
    /// A usage limit of its agent's account.
    UsageLimit,
    /// The model that its agent asks is overloaded.
    Overload,
}

/// A supervised piece of work with a keep directory of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// An attempt's agent.
    Attempt {
        /// Of this job.
        job: JobId,
        /// Its number.
        attempt: AttemptNo,
    },
    /// A clone or a copy.
    Operation {
        /// Its id.
        id: OperationId,
    },
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// In one word.
    pub kind: OutcomeKind,
    /// The exit code, if the main process exited.
    pub exit_code: Option<i32>,
    /// The signal, if one ended the main process.
    pub signal: Option<i32>,
    /// Whether the two above are proved.
    pub exit_status: ExitStatus,
    /// What the agent said of itself.
    pub agent_result: Option<AgentResult>,
    /// Exit status and agent contradict each other: in words.
    pub disagreement: Option<String>,
    /// Why it ended so, for people.
    pub reason: String,
}

/// The endings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// It did what was asked.
    Completed,
    /// It did not.
    Failed,
    /// Its running time was over.
    TimedOut,
    /// Somebody stopped it.
    Cancelled,
    /// The machine or its memory was taken from it, and its policy has no more tries.
    Interrupted,
}

/// Whether an exit code or signal is known for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// The kernel said so.
    Exact,
    /// Nobody could ask the kernel in time.
    Unproven,
}

/// One prompt of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// What is to be done.
    pub prompt: String,
    /// When it was given.
    pub at: Timestamp,
}

/// A conversation of a job with the workspace it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Chosen by us.
    pub id: SessionId,
    /// Its workspace, once it is ready.
    pub workspace: Option<Workspace>,
    /// Bytes of stdout and stderr of this job's earlier sessions: where this session's files stand in the job's output.
    pub output_base: [u64; 2],
    /// The first attempt of this session, once there is one.
    pub first_attempt: Option<AttemptNo>,
}

/// A job's own copy of its repo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// `reflink` or `copy`.
    pub made_by: String,
    /// The commit it was made from; none in a repo without commits.
    pub base_commit: Option<String>,
    /// `outlive/ID`.
    pub branch: String,
}

/// One launch of a job's agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Counted from 1 over the whole job.
    pub n: AttemptNo,
    /// The turn it works on, counted from 1.
    pub turn: u32,
    /// Which of the job's sessions, counted from 0.
    pub session: u32,
    /// It continues its session, rather than begin it.
    pub resume: bool,
    /// When its launch was decided.
    pub planned_at: Timestamp,
    /// Caretakers started for it so far.
    pub caretakers: u32,
    /// How it ended; none while it may be alive.
    pub end: Option<AttemptEnd>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptEnd {
    /// In one word.
    pub ended_by: EndedBy,
    /// When its agent was let go.
    pub started_at: Option<Timestamp>,
    /// When its agent ended.
    pub ended_at: Timestamp,
    /// Exit code, signal, agent's result, and what follows from them.
    pub outcome: Outcome,
    /// Lengths of the session's output files at its start.
    pub output_from: [u64; 2],
    /// Lengths of the session's output files at its end.
    pub output_to: [u64; 2],
    /// Tokens and cost, as far as the agent tells.
    pub usage: Option<Usage>,
    /// Processor time of the tree in milliseconds.
    pub cpu_ms: u64,
    /// Highest memory use.
    pub peak_memory_bytes: u64,
    /// The tree was seen empty without a cgroup's proof.
    pub best_effort: bool,
    /// Limits that nothing enforced.
    pub unenforced: Vec<Limit>,
    /// What its output showed of its conversation.
    pub session_sign: Option<SessionSign>,
}

/// What an attempt ended by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// Its main process exited.
    Exit,
    /// A signal.
    Signal,
    /// The program could not be run.
    LaunchFailed,
    /// It was stopped before it ran.
    NeverRan,
    /// By the agent's own result record; the exit status is unproven.
    ResultRecord,
    /// Reboot, or out of memory.
    Interruption,
    /// Its agent gave up at a usage limit.
    UsageLimit,
    /// Its agent gave up on an overloaded model.
    Overload,
    /// Cannot be proved.
    Unknown,
}

/// A decision taken about a job: the evidence, the rule and where it stands in the write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The record that carries it; of several in a row, the first.
    pub lsn: Lsn,
    /// When; of several in a row, the first.
    pub at: Timestamp,
    /// The start of the server that took it, counted from 1; 0: before starts were counted.
    pub start: u64,
    /// In a few words.
    pub what: String,
    /// The evidence in plain words; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub because: String,
    /// The rule that made evidence a decision; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// It was taken so often in a row, each time by a record of its own.
    pub times: u32,
}

/// Everything known of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Who submitted it.
    pub owner: String,
    /// The record of its acceptance: its place in the order of all jobs.
    pub accepted: Lsn,
    /// The last record that touched it.
    pub changed: Lsn,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it became ready last: its place in the queue. Never before what became ready earlier, though the clock be set back.
    pub ready_at: Timestamp,
    /// When it took a slot last.
    pub slot_at: Option<Timestamp>,
    /// When it ended: its agent's end where that ended it. None while it has not.
    pub ended_at: Option<Timestamp>,
    /// What was asked for.
    pub task: Task,
    /// Where it is.
    pub phase: Phase,
    /// Its prompts.
    pub turns: Vec<Turn>,
    /// How many of its turns are done.
    pub turns_done: u32,
    /// Its conversations; the last is the current one.
    pub sessions: Vec<Session>,
    /// Its launches.
    pub attempts: Vec<Attempt>,
    /// Interruptions taken up since a person last said: go.
    pub interrupts: u32,
    /// Limits and overloads met in a row.
    pub limits_met: u32,
    /// What it has waited for limits and overload since a person last said: go; in milliseconds.
    pub limit_waited_ms: u64,
    /// What was decided about it, oldest first.
    pub decisions: Vec<Decision>,
    /// Decisions that are no longer kept; they were taken after the first quarter of those that are.
    pub decisions_dropped: u32,
    /// The client's key and the hash of its request.
    pub idempotency: Option<Idempotency>,
}

/// A client's key for one submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// As the client sent it.
    pub key: String,
    /// Hash of the request's body.
    pub body_hash: String,
}

/// What a person may ask of a job, as far as its phase decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Go now.
    Start,
    /// Don't go yet.
    Hold,
    /// Change priority, timeout, title; while held, the rest too.
    Edit,
    /// Add a file.
    Upload,
    /// Stop it.
    Cancel,
    /// One more prompt in the same session.
    Resume,
    /// Afresh.
    Retry,
    /// Say how it ended.
    Settle,
    /// Forget it.
    Remove,
    /// Take it up again though records of it are lost. No phase allows that: it is for jobs of which nobody knows the phase.
    Repair,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Hold,
        Self::Edit,
        Self::Upload,
        Self::Cancel,
        Self::Resume,
        Self::Retry,
        Self::Settle,
        Self::Remove,
        Self::Repair,
    ];

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Hold => "hold",
            Self::Edit => "edit",
            Self::Upload => "upload",
            Self::Cancel => "cancel",
            Self::Resume => "resume",
            Self::Retry => "retry",
            Self::Settle => "settle",
            Self::Remove => "remove",
            Self::Repair => "repair",
        }
    }
}

impl Phase {
    /// Its name in the API.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Queued => "queued",
            Self::Waiting { .. } => "waiting",
            Self::Preparing { .. } => "preparing",
            Self::Running { .. } => "running",
            Self::Stopping { .. } => "stopping",
            Self::Unknown { .. } => "unknown",
            Self::Ended { .. } => "ended",
        }
    }

    /// Whether this may be asked in this phase: the table of the product's promise.
    pub fn allows(&self, action: Action) -> bool {
        use Action::{Cancel, Edit, Hold, Remove, Resume, Retry, Settle, Start, Upload};
        match self {
            Self::Held => matches!(action, Start | Edit | Upload | Cancel | Remove),
            Self::Queued => matches!(action, Edit | Hold | Cancel | Remove),
            Self::Waiting { .. } => matches!(action, Start | Edit | Hold | Cancel | Remove),
            Self::Preparing { .. } | Self::Running { .. } => matches!(action, Cancel | Resume),
            Self::Stopping { .. } => matches!(action, Cancel),
            Self::Unknown { .. } => matches!(action, Settle | Resume | Retry),
            Self::Ended { .. } => matches!(action, Resume | Retry | Remove | Upload),
        }
    }

    /// The supervised work of this phase, if there is any.
    pub fn work(&self, job: &JobId) -> Option<Work> {
        match self {
            Self::Preparing { operation } => Some(Work::Operation { id: *operation }),
            Self::Running { attempt } => {
                Some(Work::Attempt { job: job.clone(), attempt: *attempt })
            }
            Self::Stopping { work, .. } => Some(work.clone()),
            Self::Held
            | Self::Queued
            | Self::Waiting { .. }
            | Self::Unknown { .. }
            | Self::Ended { .. } => None,
        }
    }
}

impl Job {
    /// The current conversation.
    pub fn session(&self) -> Option<&Session> {
        self.sessions.last()
    }

    /// It is known what it was asked to do, and on which repo: not so where the record of its acceptance is lost.
    pub fn has_task(&self) -> bool {
        !self.task.repos.is_empty()
    }

    /// The attempt of that number.
    pub fn attempt(&self, n: AttemptNo) -> Option<&Attempt> {
        self.attempts.get(n.get() as usize - 1)
    }

    /// The turn that is next or under way, counted from 1.
    pub fn current_turn(&self) -> u32 {
        self.turns_done + 1
    }

    /// The prompt of a turn, counted from 1.
    pub fn prompt(&self, turn: u32) -> Option<&str> {
        let index = usize::try_from(turn).ok()?.checked_sub(1)?;
        self.turns.get(index).map(|turn| turn.prompt.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the product's promise, written a second time, as the promise writes it.
    const TABLE: [(&str, &[&str]); 8] = [
        ("held", &["start", "edit", "upload", "cancel", "remove"]),
        ("queued", &["edit", "hold", "cancel", "remove"]),
        ("waiting", &["edit", "hold", "cancel", "remove", "start"]),
        ("preparing", &["cancel", "resume"]),
        ("running", &["cancel", "resume"]),
        ("stopping", &["cancel"]),
        ("unknown", &["settle", "resume", "retry"]),
        ("ended", &["resume", "retry", "remove", "upload"]),
    ];

    fn phases() -> [Phase; 8] {
        let attempt = AttemptNo::MIN;
        let outcome = Outcome {
            kind: OutcomeKind::Completed,
            exit_code: Some(0),
            signal: None,
            exit_status: ExitStatus::Exact,
            agent_result: None,
            disagreement: None,
            reason: String::new(),
        };
        [
            Phase::Held,
            Phase::Queued,
            Phase::Waiting { reason: WaitReason::BackOff, until: None },
            Phase::Preparing { operation: OperationId(1) },
            Phase::Running { attempt },
            Phase::Stopping {
                work: Work::Operation { id: OperationId(1) },
                cause: StopCause::Cancel,
            },
            Phase::Unknown { attempt },
            Phase::Ended { outcome },
        ]
    }

    /// A match and not a list: who adds an action is told by the compiler that it needs a place, here and in [`Action::ALL`].
    fn place(action: Action) -> usize {
        match action {
            Action::Start => 0,
            Action::Hold => 1,
            Action::Edit => 2,
            Action::Upload => 3,
            Action::Cancel => 4,
            Action::Resume => 5,
            Action::Retry => 6,
            Action::Settle => 7,
            Action::Remove => 8,
            Action::Repair => 9,
        }
    }

    #[test]
    fn all_actions_are_listed_in_their_places() {
        let places: Vec<usize> = Action::ALL.into_iter().map(place).collect();
        assert_eq!(places, (0..=place(Action::Repair)).collect::<Vec<_>>());
    }

    #[test]
    fn every_phase_allows_exactly_what_the_promise_says() {
        for (phase, (name, allowed)) in phases().iter().zip(TABLE) {
            assert_eq!(phase.name(), name);
            for action in Action::ALL {
                let promised = allowed.contains(&action.name());
                assert_eq!(phase.allows(action), promised, "{name} and {}", action.name());
            }
        }
    }
}
