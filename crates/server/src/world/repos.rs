//! Reading repositories, and carrying a job's branch to a person's own clone.
//!
//! Read-only towards source copies and workspaces, bounded in time and size; no locks of git's own are taken. Absent: making
//! them (workspace.rs) and what changed in them (diff.rs).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::git::{self, Bounds, GitError};

/// What `git` says of a source copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoState {
    /// The branch that HEAD names; none when detached.
    pub branch: Option<String>,
    /// The commit that HEAD names; none before the first commit.
    pub commit: Option<String>,
    /// There are changes that are not committed, or files that git does not know and does not ignore.
    pub dirty: bool,
}

/// Why a repository gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// There is no repository of its own.
    #[error("{} is not the root of a git work tree", .0.display())]
    NotARepository(PathBuf),
    /// Git refused, or a bound was reached.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The branch is not there (any more).
    #[error("{} has no branch {branch}", path.display())]
    NoBranch {
        /// The workspace.
        path: PathBuf,
        /// The branch asked for.
        branch: String,
    },
    /// The branch has no commits of its own, so there is nothing to carry.
    #[error("the branch {branch} has no commits beyond its base")]
    NothingNew {
        /// The branch asked for.
        branch: String,
    },
}

/// How many bytes of `git status` are read before "dirty" is answer enough.
const STATUS_BYTES_MAX: u64 = 64 << 10;
/// A bundle of a large repository takes a while; longer than this and something is wrong.
const BUNDLE_TIME_MAX: Duration = Duration::from_mins(10);

/// Reads the state of the work tree at `path`.
pub fn state(path: &Path) -> Result<RepoState, RepoError> {
    let git_dir = own_git_dir(path)?;
    let branch = git::head_branch(&git_dir)?;
    let commit = git::head_commit(&git_dir)?;
    let mut status = git::local(&git_dir);
    status.current_dir(path).arg("--work-tree=.").args(["status", "--porcelain", "-z"]);
    let bounds = Bounds { bytes: STATUS_BYTES_MAX, ..Bounds::SHORT };
    let mut lines = Vec::new();
    let dirty = match git::run(&mut status, "status", bounds, &mut lines) {
        Ok(()) => !lines.is_empty(),
        Err(GitError::TooLarge { .. }) => true,
        Err(e) => return Err(e.into()),
    };
    Ok(RepoState { branch, commit, dirty })
}

/// Writes a git bundle of `branch` to `sink`: all of its history, or only what is not in the commit `since`. Commits only:
/// uncommitted work is what [`super::diff::diff`] shows. Nothing has been written when `NoBranch` or `NothingNew` comes back;
/// after other errors `sink` may hold a part, which git refuses to read.
pub fn bundle(
    workspace: &Path,
    branch: &str,
    since: Option<&str>,
    bytes_max: u64,
    sink: &mut dyn Write,
) -> Result<(), RepoError> {
    let git_dir = own_git_dir(workspace)?;
    let name = format!("refs/heads/{branch}");
    let verify = ["rev-parse", "--quiet", "--verify", &name];
    if git::maybe_line(git::local(&git_dir).args(verify), "rev-parse")?.is_none() {
        let (path, branch) = (workspace.to_owned(), branch.to_owned());
        return Err(RepoError::NoBranch { path, branch });
    }
    let without = since.map(|commit| format!("^{commit}"));
    let mut any = git::local(&git_dir);
    any.args(["rev-list", "--max-count=1", &name]).args(&without).arg("--");
    if git::line(&mut any, "rev-list")?.is_empty() {
        return Err(RepoError::NothingNew { branch: branch.to_owned() });
    }
    let mut create = git::local(&git_dir);
    create.args(["bundle", "create", "--quiet", "-", &name]).args(&without);
    let bounds = Bounds { time: Some(BUNDLE_TIME_MAX), bytes: bytes_max };
    Ok(git::run(&mut create, "bundle", bounds, sink)?)
}

/// Takes `branch` out of a bundle file into the clone at `clone_dir` (any folder inside it), under the same name. An existing
/// branch is moved forward only; one that is checked out is refused by git.
pub fn fetch_bundle(clone_dir: &Path, bundle: &Path, branch: &str) -> Result<(), GitError> {
    let bundle = std::path::absolute(bundle)
        .map_err(|source| GitError::Output { verb: "fetch".to_owned(), source })?;
    let mut fetch = git::network();
    fetch.arg("-C").arg(clone_dir).args(["fetch", "--quiet", "--no-tags"]).arg(bundle);
    fetch.arg(format!("refs/heads/{branch}:refs/heads/{branch}"));
    let bounds = Bounds { time: Some(BUNDLE_TIME_MAX), ..Bounds::SHORT };
    git::run(&mut fetch, "fetch", bounds, &mut std::io::sink())
}

pub(super) fn own_git_dir(path: &Path) -> Result<PathBuf, RepoError> {
    git::git_dir(path).ok_or_else(|| RepoError::NotARepository(path.to_owned()))
}

#[cfg(test)]
mod tests;
