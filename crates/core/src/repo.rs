//! A registered repository, and the supervised work we do for repos and jobs.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::ids::{JobId, Lsn, OperationId, RepoName};
use crate::time::Timestamp;

/// Everything known of a repo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repo {
    /// Its name.
    pub name: RepoName,
    /// Who registered it.
    pub owner: String,
    /// A URL or an absolute path.
    pub source: String,
    /// The branch to check out; none: the source's own.
    pub branch: Option<String>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// The last record that touched it.
    pub changed: Lsn,
    /// Whether jobs can use it.
    pub phase: RepoPhase,
}

/// Where a repo is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum RepoPhase {
    /// Its source copy is being made.
    Cloning,
    /// Its source copy is there.
    Ready,
    /// Its source copy could not be made.
    Unavailable {
        /// Why, for people.
        reason: String,
    },
}

/// A supervised piece of our own work. It may be repeated from the start at any time (I7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its name.
    pub id: OperationId,
    /// What it does.
    pub kind: OperationKind,
    /// Which try this is, from 1.
    pub tries: u32,
    /// The last record that touched it.
    pub changed: Lsn,
    /// When it was planned.
    pub planned_at: Timestamp,
    /// Caretakers started for it so far.
    pub caretakers: u32,
}

/// What an operation does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OperationKind {
    /// Makes a repo's source copy.
    Clone {
        /// Of this repo.
        repo: RepoName,
    },
    /// Makes a job's workspace.
    Copy {
        /// For this job.
        job: JobId,
    },
}
