//! Clearing away: what is over, removed or left behind goes into the trash, and from there.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use outlive_core::ids::{JobId, OperationId, RepoName};
use outlive_core::state::Removal;
use outlive_supervisor::{crash_point, probe};

use super::{Fleet, Inner};
use crate::data_dir::make_private_dir;
use crate::world::launch::{Surroundings, discard};
use crate::world::{files, removal};

impl Fleet {
    /// Clears away the directories of operations that are over: a crash may have come between their end and that. Gives back how
    /// many there were.
    ///
    /// # Errors
    /// As the disk says; what could be cleared away is.
    pub async fn clear_operations(&self) -> anyhow::Result<u64> {
        let inner = self.0.clone();
        self.0.tracker.spawn_blocking(move || inner.clear_operations()).await?
    }

    /// Carries out the removals that an earlier server may have died over. Before the API answers, since names may be used anew.
    pub fn clear_removed(&self, removed: Vec<Removal>) {
        let mut jobs = Vec::new();
        for removal in removed {
            match removal {
                Removal::Job(id) => jobs.push(id),
                Removal::Repo(name) => self.clear_repo(&name),
            }
        }
        if !jobs.is_empty() {
            self.clear_jobs(jobs);
        }
    }

    /// In its turn, not beside: the next order may be to make a repo of the same name.
    pub(super) fn clear_repo(&self, name: &RepoName) {
        before_discard();
        let Surroundings { paths, instance, .. } = &self.0.surroundings;
        self.delete(name.as_str(), removal::repo(paths, instance, name));
    }

    /// Ids are never used again, so this may take its time.
    pub(super) fn clear_jobs(&self, jobs: Vec<JobId>) {
        let fleet = self.clone();
        let clear = move || {
            before_discard();
            for id in jobs {
                let Surroundings { paths, instance, .. } = &fleet.0.surroundings;
                fleet.delete(id.as_str(), removal::job(paths, instance, &id));
            }
        };
        let (tracker, still) = (self.0.tracker.clone(), self.0.still.clone());
        self.0.tracker.spawn(async move {
            let _nobody_needs_them = still.write().await;
            // It ends with the process at the latest, and the next start does the rest.
            drop(tracker.spawn_blocking(clear).await);
        });
    }

    /// What stands in the trash is deleted already; now it goes.
    fn delete(&self, what: &str, moved: std::io::Result<Option<PathBuf>>) {
        match moved {
            Ok(None) => {}
            Ok(Some(place)) => {
                self.0.tracker.spawn_blocking(move || drop(files::delete_trashed(&place)));
            }
            Err(error) => {
                tracing::warn!(%error, what, "not deleted; tried again at the next start");
            }
        }
    }

    /// Moves away what questions left behind that an earlier server died over, and makes room for new ones.
    ///
    /// # Errors
    /// As the disk says.
    pub fn renew_scratch(&self) -> std::io::Result<()> {
        let paths = &self.0.surroundings.paths;
        if paths.scratch().exists() {
            files::trash(&paths.scratch(), &paths.trash()).map_err(std::io::Error::other)?;
        }
        self.make_scratch()
    }

    /// Makes room for questions if there is none.
    ///
    /// # Errors
    /// As the disk says.
    pub fn make_scratch(&self) -> std::io::Result<()> {
        make_private_dir(&self.0.surroundings.paths.scratch())
    }

    /// Goes on with deletions that an earlier server died over: what stands in the trash is deleted already, only not yet gone.
    /// Gives back how many bytes that freed.
    ///
    /// # Errors
    /// As the disk says; what could be deleted is.
    pub async fn empty_trash(&self) -> anyhow::Result<files::Emptied> {
        let trash = self.0.surroundings.paths.trash();
        let emptied = self.0.tracker.spawn_blocking(move || {
            crash_point("startup.trash");
            make_private_dir(&trash).with_context(|| trash.display().to_string())?;
            anyhow::Ok(files::empty_trash(&trash)?)
        });
        emptied.await?
    }

    pub(super) fn discard(&self, dir: PathBuf) {
        let trash = self.0.surroundings.paths.trash();
        self.0.tracker.spawn_blocking(move || {
            before_discard();
            if let Err(error) = discard(&dir, &trash) {
                tracing::warn!(%error, dir = %dir.display(), "not deleted; tried again at the next start");
            }
        });
    }
}

/// What is over or removed is on record as such, and still in its place.
fn before_discard() {
    crash_point("fleet.before_discard");
}

impl Inner {
    fn clear_operations(&self) -> anyhow::Result<u64> {
        let paths = &self.surroundings.paths;
        let place = paths.operations();
        let entries = fs::read_dir(&place).with_context(|| place.display().to_string())?;
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        crash_point("startup.operations");
        // The names first: whatever has a directory was in State before, and is gone from it now only if it is over.
        let state = self.handle.view();
        let ids = names.iter().filter_map(|name| name.to_str()?.parse().ok().map(OperationId));
        let over = ids.filter(|id| state.operation(*id).is_none()).map(|id| paths.operation(id));
        // Where records were lost it may be alive all the same.
        let over = over.filter(|dir| !probe(dir, &self.here).may_be_alive());
        let (mut cleared, mut problem) = (0, None);
        for dir in over {
            match discard(&dir, &paths.trash()) {
                Ok(()) => cleared += 1,
                Err(error) => problem = Some(error),
            }
        }
        problem.map_or(Ok(cleared), |error| Err(error.into()))
    }
}
