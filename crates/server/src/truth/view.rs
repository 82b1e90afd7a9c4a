//! What may be read beside State: the world as it is asked about by those who show it. Implemented where the world is.

use outlive_core::ids::{Lsn, RepoName};
use outlive_core::job::Job;
use serde::Serialize;
use tokio::sync::mpsc::Receiver;

/// A backup on its way: a tar archive of everything that was durable when it was begun.
#[derive(Debug)]
pub struct Backup {
    /// The last record in it.
    pub lsn: Lsn,
    /// How many jobs are in it.
    pub jobs: usize,
    /// The archive, piece by piece. It is whole if no piece is an error.
    pub pieces: Receiver<std::io::Result<Vec<u8>>>,
}

/// Git's view of a repo's source copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepoSight {
    /// The branch that HEAD names.
    pub branch: Option<String>,
    /// The commit that HEAD names.
    pub commit: Option<String>,
    /// It has changes that are not committed.
    pub dirty: bool,
}

/// Questions about repositories and workspaces, answered by looking. They block: ask from a thread that may.
pub trait Sight: Send + Sync {
    /// Whether a text can be the source of a repo: an absolute path or a git URL without user info.
    ///
    /// # Errors
    /// In words for people.
    fn check_source(&self, source: &str) -> Result<(), String>;

    /// A source copy.
    ///
    /// # Errors
    /// In words for people.
    fn repo(&self, name: &RepoName) -> Result<RepoSight, String>;

    /// A job's branch as a git bundle, with the commits its clone may not have.
    ///
    /// # Errors
    /// In words for people.
    fn bundle(&self, job: &Job) -> Result<Vec<u8>, String>;

    /// What a job changed, uncommitted work included, as a patch.
    ///
    /// # Errors
    /// In words for people.
    fn diff(&self, job: &Job) -> Result<Vec<u8>, String>;
}
