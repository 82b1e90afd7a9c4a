//! Putting things in and taking them out, and the indexes with them. Absent: why (see `apply`).

use alloc::string::String;
use alloc::sync::Arc;

use super::{KeyUse, Removal, Removed, RemovedRepo, State, expiry_of, key_of, queue_key};
use crate::event::job_entity;
use crate::ids::{JobId, OperationId, RepoName};
use crate::job::{Idempotency, Job, Phase, WaitReason};
use crate::record::{EntityKey, EntityKind};
use crate::repo::{Operation, OperationKind};

impl State {
    /// Puts a job in its new form.
    pub(super) fn put(&mut self, job: Job) {
        if let Some(old) = self.jobs.get(&job.id).cloned() {
            self.unindex(&old);
            self.index.prompt_bytes -= prompt_bytes(&old);
        } else {
            self.index.order.insert_mut(job.accepted, job.id.clone());
            if let Some(idempotency) = &job.idempotency {
                self.put_key(&job.owner, idempotency, &job.id);
            }
        }
        self.index.prompt_bytes += prompt_bytes(&job);
        self.index_job(&job);
        self.jobs.insert_mut(job.id.clone(), Arc::new(job));
    }

    /// Takes a job out; its removal and its key are remembered for a while.
    pub(super) fn take(&mut self, job: &Job) {
        self.unindex(job);
        self.jobs.remove_mut(&job.id);
        self.index.order.remove_mut(&job.accepted);
        self.index.prompt_bytes -= prompt_bytes(job);
    }

    fn put_key(&mut self, owner: &str, idempotency: &Idempotency, job: &JobId) {
        let body_hash = idempotency.body_hash.clone();
        let used = KeyUse { body_hash, job: job.clone() };
        self.index.keys.insert_mut(key_of(owner, &idempotency.key), used);
    }

    /// Keeps what stays of a removed job.
    pub(super) fn put_removed(&mut self, id: JobId, removed: Removed) {
        if let Some(idempotency) = &removed.idempotency {
            self.put_key(&removed.owner, idempotency, &id);
        }
        self.index.expiries.insert_mut((expiry_of(removed.at), Removal::Job(id.clone())), ());
        self.removed.insert_mut(id, removed);
    }

    /// Keeps what stays of a removed repo.
    pub(super) fn put_removed_repo(&mut self, name: RepoName, removed: RemovedRepo) {
        self.index.expiries.insert_mut((expiry_of(removed.at), Removal::Repo(name.clone())), ());
        self.removed_repos.insert_mut(name, removed);
    }

    /// Forgets that a job was removed; false: nothing is known of it.
    pub(super) fn forget_job(&mut self, id: &JobId) -> bool {
        let Some(removed) = self.removed.get(id).cloned() else { return false };
        if let Some(idempotency) = &removed.idempotency {
            self.index.keys.remove_mut(&key_of(&removed.owner, &idempotency.key));
        }
        self.index.expiries.remove_mut(&(expiry_of(removed.at), Removal::Job(id.clone())));
        self.removed.remove_mut(id)
    }

    /// Forgets that a repo was removed; false: nothing is known of it.
    pub(super) fn forget_repo(&mut self, name: &RepoName) -> bool {
        let Some(removed) = self.removed_repos.get(name).cloned() else { return false };
        self.index.expiries.remove_mut(&(expiry_of(removed.at), Removal::Repo(name.clone())));
        self.removed_repos.remove_mut(name)
    }

    /// Puts an operation in its new form.
    pub(super) fn put_operation(&mut self, operation: Operation) {
        self.next_operation = self.next_operation.max(operation.id.0 + 1);
        if let OperationKind::Clone { repo } = &operation.kind {
            self.index.clones.insert_mut(repo.clone(), operation.id);
        }
        self.operations.insert_mut(operation.id, Arc::new(operation));
    }

    /// Takes an operation out.
    pub(super) fn take_operation(&mut self, id: OperationId) {
        let found = self.operations.get(&id).cloned();
        if let Some(OperationKind::Clone { repo }) = found.as_ref().map(|found| &found.kind) {
            self.index.clones.remove_mut(repo);
        }
        self.operations.remove_mut(&id);
    }

    /// Marks an entity whose records cannot be read (I10): its bytes and processes are left alone. Nothing is due for it any
    /// more, it holds no slot, and nothing that is seen of it counts: what its lost records said, nobody knows.
    pub fn set_unavailable(&mut self, entity: EntityKey, reason: String) {
        match entity.kind {
            EntityKind::Job => {
                let id = JobId::parse(&entity.name).ok();
                if id.as_ref().is_some_and(|id| self.removed.contains_key(id)) {
                    // Ids are never used again: whatever else is lost, it stays removed.
                    return;
                }
                if let Some(job) = id.as_ref().and_then(|id| self.jobs.get(id)).cloned() {
                    self.unindex(&job);
                    self.index_users(&job);
                }
            }
            EntityKind::Repo => {
                if let Ok(name) = RepoName::parse(&entity.name)
                    && let Some(removed) = self.removed_repos.get(&name)
                {
                    self.index.expiries.remove_mut(&(expiry_of(removed.at), Removal::Repo(name)));
                }
            }
            EntityKind::Operation => {
                if let Ok(id) = entity.name.parse() {
                    self.take_operation(OperationId(id));
                }
            }
            _ => {}
        }
        self.unavailable.insert_mut(entity, reason);
    }

    /// Whether a job's records are all there.
    pub(super) fn is_whole(&self, id: &JobId) -> bool {
        self.unavailable.is_empty() || !self.unavailable.contains_key(&job_entity(id))
    }

    fn index_job(&mut self, job: &Job) {
        let id = || job.id.clone();
        match &job.phase {
            Phase::Queued => self.index.queue.insert(queue_key(job), id()),
            Phase::Waiting { reason, until } => {
                if let Some(until) = until {
                    self.index.timers.insert_mut((*until, id()), ());
                }
                if let (WaitReason::BackOff, Some(until)) = (reason, until) {
                    self.index.pauses.insert_mut((*until, id()), ());
                }
                if let WaitReason::Repo { name } = reason {
                    self.index.repo_waiters.insert_mut((name.clone(), job.accepted), id());
                }
            }
            Phase::Preparing { .. } | Phase::Running { .. } | Phase::Stopping { .. } => {
                self.index.busy.insert_mut(id(), ());
            }
            Phase::Held | Phase::Unknown { .. } | Phase::Ended { .. } => {}
        }
        self.index_users(job);
    }

    fn index_users(&mut self, job: &Job) {
        if !matches!(job.phase, Phase::Ended { .. }) {
            for repo in &job.task.repos {
                self.index.repo_users.insert_mut((repo.clone(), job.accepted), ());
            }
        }
    }

    fn unindex(&mut self, job: &Job) {
        match &job.phase {
            Phase::Queued => {
                self.index.queue.remove(queue_key(job));
            }
            Phase::Waiting { reason, until } => {
                if let Some(until) = until {
                    self.index.timers.remove_mut(&(*until, job.id.clone()));
                }
                if let (WaitReason::BackOff, Some(until)) = (reason, until) {
                    self.index.pauses.remove_mut(&(*until, job.id.clone()));
                }
                if let WaitReason::Repo { name } = reason {
                    self.index.repo_waiters.remove_mut(&(name.clone(), job.accepted));
                }
            }
            _ => {
                self.index.busy.remove_mut(&job.id);
            }
        }
        for repo in &job.task.repos {
            self.index.repo_users.remove_mut(&(repo.clone(), job.accepted));
        }
    }
}

fn prompt_bytes(job: &Job) -> usize {
    job.turns.iter().map(|turn| turn.prompt.len()).sum()
}
