//! State: all of the server's truth, as the sum of the events in the write-ahead log.
//!
//! `decide` answers requests, `observe` takes reports from the world, `due` lets time and free slots do their work: all three
//! only say which events follow. `apply` is the one place where anything changes, live and in recovery (I3). Maps are persistent:
//! a copy of the whole State costs a few reference counts, so readers and checkpoints get one and never block the writer.

mod apply;
mod count;
mod decide;
mod due;
mod ending;
mod estimate;
pub mod history;
mod index;
mod observe;
mod persist;
mod policy;
mod rank;
pub mod repair;
mod transition;

use alloc::string::{String, ToString as _};
use alloc::sync::Arc;

use rpds::RedBlackTreeMapSync as Map;
use serde::{Deserialize, Serialize};

use crate::event::repo_entity;
use crate::ids::{JobId, Lsn, OperationId, RepoName};
use crate::job::{Job, Phase};
use crate::limits;
use crate::record::{EntityKey, EntityKind};
use crate::repo::{Operation, Repo};
use crate::stats::{Key, Stats};
use crate::time::Timestamp;

use rank::Queue;

pub use apply::IllegalEvent;
pub use persist::EntryError;

/// What the configuration and the machine lay down; not part of the write-ahead log, since a restart may change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Agents alive at once, adopted ones included; copies under way count too.
    pub running_max: u32,
    /// There is room on the disk to begin something new.
    pub has_room: bool,
    /// Nothing happens by itself: the data directory is a copy that nobody has adopted.
    pub held: bool,
}

/// All of the server's truth.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The last record applied.
    lsn: Lsn,
    /// The time of the last record: never goes back.
    clock: Timestamp,
    next_operation: u64,
    /// Starts of the server, by the last one that is known.
    starts: u64,
    /// The last record that touched the server itself.
    server_changed: Lsn,
    jobs: Map<JobId, Arc<Job>>,
    repos: Map<RepoName, Arc<Repo>>,
    operations: Map<OperationId, Arc<Operation>>,
    removed: Map<JobId, Removed>,
    removed_repos: Map<RepoName, RemovedRepo>,
    stats: Stats,
    /// Entities whose records cannot be read, and why (I10).
    unavailable: Map<EntityKey, String>,
    index: Index,
}

/// What can be computed from the rest, kept to be fast.
#[derive(Debug, Clone, Default, PartialEq)]
struct Index {
    /// Queued jobs in the order in which they get slots.
    queue: Queue,
    /// Waiting jobs by their wake time.
    timers: Map<(Timestamp, JobId), ()>,
    /// Of these, the jobs in a pause of ours.
    pauses: Map<(Timestamp, JobId), ()>,
    /// Waiting jobs by the repo they wait for, in order of acceptance.
    repo_waiters: Map<(RepoName, Lsn), JobId>,
    /// Jobs in order of acceptance.
    order: Map<Lsn, JobId>,
    /// Jobs that hold a slot.
    busy: Map<JobId, ()>,
    /// Jobs that have not ended, by repo.
    repo_users: Map<(RepoName, Lsn), ()>,
    /// The clone under way, by repo.
    clones: Map<RepoName, OperationId>,
    /// Idempotency keys by owner.
    keys: Map<(String, String), KeyUse>,
    /// Removals by the time until which they are remembered.
    expiries: Map<(Timestamp, Removal), ()>,
    prompt_bytes: usize,
}

/// Place in the queue: waiting time and priority make one number, so that order never changes while time passes.
type QueueKey = (i128, Lsn);

#[derive(Debug, Clone, PartialEq, Eq)]
struct KeyUse {
    body_hash: String,
    job: JobId,
}

/// What stays of a removed job: so that its directory goes also where the server died before, and so that its client's late
/// retry does not run it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Removed {
    changed: Lsn,
    owner: String,
    idempotency: Option<crate::job::Idempotency>,
    at: Timestamp,
}

/// What stays of a removed repo, until its name is used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RemovedRepo {
    changed: Lsn,
    at: Timestamp,
}

/// Something whose removal is on record, and whose directory may still be there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Removal {
    /// A job.
    Job(JobId),
    /// A repo.
    Repo(RepoName),
}

impl State {
    /// The last record applied.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The time of the last record.
    pub fn clock(&self) -> Timestamp {
        self.clock
    }

    /// Whether a submission with this idempotency key was accepted and is remembered.
    pub fn knows_key(&self, owner: &str, key: &str) -> bool {
        self.index.keys.contains_key(&key_of(owner, key))
    }

    /// A job.
    pub fn job(&self, id: &JobId) -> Option<&Arc<Job>> {
        self.jobs.get(id)
    }

    /// All jobs, in order of their ids.
    pub fn jobs(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.jobs.values()
    }

    /// All jobs, newest first, starting below an lsn of acceptance.
    pub fn newest_first(&self, below: Option<Lsn>) -> impl Iterator<Item = &Arc<Job>> {
        let end = below.unwrap_or(Lsn(u64::MAX));
        self.index.order.range(..end).rev().filter_map(|(_, id)| self.jobs.get(id))
    }

    /// A repo.
    pub fn repo(&self, name: &RepoName) -> Option<&Arc<Repo>> {
        self.repos.get(name)
    }

    /// All repos by name.
    pub fn repos(&self) -> impl Iterator<Item = &Arc<Repo>> {
        self.repos.values()
    }

    /// An operation under way.
    pub fn operation(&self, id: OperationId) -> Option<&Arc<Operation>> {
        self.operations.get(&id)
    }

    /// All operations under way.
    pub fn operations(&self) -> impl Iterator<Item = &Arc<Operation>> {
        self.operations.values()
    }

    /// How many jobs are queued.
    pub fn queued(&self) -> usize {
        self.index.queue.size()
    }

    /// How many jobs hold a slot.
    pub fn busy(&self) -> usize {
        self.index.busy.size()
    }

    /// How many jobs are ahead of a queued job.
    pub fn queue_position(&self, job: &Job) -> Option<usize> {
        let queued = job.phase == Phase::Queued && self.is_whole(&job.id);
        queued.then(|| self.index.queue.rank(queue_key(job)))
    }

    /// Where a job is, for people and programs: what is known of one whose records are lost may be long out of date.
    pub fn phase_name(&self, job: &Job) -> &'static str {
        if self.is_whole(&job.id) { job.phase.name() } else { "unknown" }
    }

    /// Starts of the server, this one included as soon as its first record is written.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// What was removed not long ago. A name that is used again is not among it.
    pub fn removals(&self) -> impl Iterator<Item = Removal> + '_ {
        let jobs = self.removed.keys().cloned().map(Removal::Job);
        // Where records after a removal are lost, the name may have been used again.
        let whole = |name: &&RepoName| self.unavailable(&repo_entity(name)).is_none();
        jobs.chain(self.removed_repos.keys().filter(whole).cloned().map(Removal::Repo))
    }

    /// Why an entity is unavailable, if it is.
    pub fn unavailable(&self, entity: &EntityKey) -> Option<&str> {
        self.unavailable.get(entity).map(String::as_str)
    }

    /// All unavailable entities with the reason.
    pub fn all_unavailable(&self) -> impl Iterator<Item = (&EntityKey, &String)> {
        self.unavailable.iter()
    }

    /// The last record that touched an entity: the link of the next one. None where it is not known: it begins, or begins again.
    pub fn last_lsn(&self, entity: &EntityKey) -> Lsn {
        if self.unavailable.contains_key(entity) {
            return Lsn::NONE;
        }
        let found = match entity.kind {
            EntityKind::Job => JobId::parse(&entity.name).ok().and_then(|id| {
                let removed = || self.removed.get(&id).map(|removed| removed.changed);
                self.jobs.get(&id).map(|job| job.changed).or_else(removed)
            }),
            EntityKind::Repo => RepoName::parse(&entity.name).ok().and_then(|name| {
                let removed = || self.removed_repos.get(&name).map(|removed| removed.changed);
                self.repos.get(&name).map(|repo| repo.changed).or_else(removed)
            }),
            EntityKind::Operation => {
                let id = entity.name.parse().ok().map(OperationId);
                id.and_then(|id| self.operations.get(&id)).map(|operation| operation.changed)
            }
            EntityKind::Server => Some(self.server_changed),
            EntityKind::Stats => {
                Key::parse(&entity.name).and_then(|key| self.stats.row(&key)).map(|row| row.changed)
            }
            EntityKind::Delivery | EntityKind::Other(_) => None,
        };
        found.unwrap_or(Lsn::NONE)
    }
}

/// Older and more urgent first; equal ones in order of acceptance.
fn queue_key(job: &Job) -> QueueKey {
    let worth = i128::from(job.task.priority) * i128::from(limits::PRIORITY_POINT.as_secs()) * 1000;
    (i128::from(job.ready_at.0) - worth, job.accepted)
}

/// Until when a removal is remembered.
fn expiry_of(removed_at: Timestamp) -> Timestamp {
    removed_at.after(limits::REMOVAL_KEPT)
}

/// The holder of an idempotency key, as the index keeps it.
fn key_of(owner: &str, key: &str) -> (String, String) {
    (owner.to_string(), key.to_string())
}

#[cfg(test)]
mod tests;
