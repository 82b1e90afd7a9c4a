//! A task: what was asked for in a job.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::engine::EngineOptions;
use crate::ids::RepoName;

/// What was asked for; never changes, save by *edit* while the job has not begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The repos it works on.
    pub repos: Vec<RepoName>,
    /// The engine's name.
    pub engine: String,
    /// What only that engine understands.
    pub engine_options: EngineOptions,
    /// The model, where the engine has a choice.
    pub model: Option<String>,
    /// Running time of each attempt, in milliseconds.
    pub timeout_ms: u64,
    /// 0 to 100, higher first.
    pub priority: u8,
    /// What follows an interruption.
    pub on_interrupt: OnInterrupt,
    /// What follows when it cannot be known how an attempt ended.
    pub on_unknown: OnUnknown,
    /// Times it is taken up again after interruptions.
    pub max_interrupts: u32,
    /// What follows when its agent met a usage limit or an overloaded model.
    pub on_limit: OnLimit,
    /// All that it may wait for limits and overload, in milliseconds.
    pub limit_wait_ms: u64,
    /// Bounds of its processes and output.
    pub limits: TaskLimits,
    /// Environment of its agent, over the server's.
    pub env: BTreeMap<String, String>,
    /// For people.
    pub title: Option<String>,
    /// For acting on several at once.
    pub group: Option<String>,
}

/// Bounds of one attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLimits {
    /// Memory of the tree.
    pub memory_bytes: Option<u64>,
    /// Processes and threads of the tree.
    pub pids: Option<u64>,
    /// Standard output and error together.
    pub output_bytes: Option<u64>,
    /// Running time without output, in milliseconds.
    pub idle_output_ms: Option<u64>,
}

/// What follows an interruption (reboot, out of memory).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInterrupt {
    /// Continue the CLI's own session in the same workspace.
    Resume,
    /// Begin afresh: new workspace, new session.
    Retry,
    /// End as interrupted.
    Fail,
}

/// What follows when it cannot be known how an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// Wait for a person.
    Hold,
    /// As [`OnInterrupt::Resume`].
    Resume,
    /// As [`OnInterrupt::Retry`].
    Retry,
    /// End as interrupted.
    Fail,
}

/// What follows when an agent was stopped by a usage limit of its account or by an overloaded model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLimit {
    /// Wait until it may go on, and go on with the same turn.
    Wait,
    /// End as failed.
    Fail,
}
