//! Repositories and workspaces as they are asked about: looks, and changes nothing.

use outlive_core::ids::RepoName;
use outlive_core::job::{Job, Workspace};

use crate::data_dir::Paths;
use crate::truth::view::{RepoSight, Sight};
use crate::world::{diff, repos, source};

/// A bundle or a patch larger than this is fetched with git from the workspace itself.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Looks below a data directory.
#[derive(Debug, Clone)]
pub struct Eyes {
    /// Where everything lives.
    pub paths: Paths,
}

impl Eyes {
    fn workspace<'a>(&self, job: &'a Job) -> Result<(std::path::PathBuf, &'a Workspace), String> {
        let index = job.sessions.len().saturating_sub(1);
        let made = job.session().and_then(|session| session.workspace.as_ref());
        let made = made.ok_or("this job has no workspace yet")?;
        Ok((self.paths.workspace(&job.id, index), made))
    }
}

fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Sight for Eyes {
    fn check_source(&self, text: &str) -> Result<(), String> {
        source::parse_source(text).map(|_| ()).map_err(|error| words(&error))
    }

    fn repo(&self, name: &RepoName) -> Result<RepoSight, String> {
        let state = repos::state(&self.paths.repo(name)).map_err(|error| words(&error))?;
        Ok(RepoSight { branch: state.branch, commit: state.commit, dirty: state.dirty })
    }

    fn bundle(&self, job: &Job) -> Result<Vec<u8>, String> {
        let (path, made) = self.workspace(job)?;
        let since = made.base_commit.as_deref();
        let mut bytes = Vec::new();
        repos::bundle(&path, &made.branch, since, ANSWER_BYTES_MAX, &mut bytes)
            .map_err(|error| words(&error))?;
        Ok(bytes)
    }

    fn diff(&self, job: &Job) -> Result<Vec<u8>, String> {
        let (path, made) = self.workspace(job)?;
        let (base, scratch) = (made.base_commit.as_deref(), self.paths.scratch());
        let mut bytes = Vec::new();
        diff::diff(&path, base, &scratch, ANSWER_BYTES_MAX, &mut bytes)
            .map_err(|error| words(&error))?;
        Ok(bytes)
    }
}
