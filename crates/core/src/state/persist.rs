//! State as checkpoint entries and back. Entries stand alone, so damage to one costs that one only (I10).

use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Removed, RemovedRepo, State};
use crate::event::{job_entity, operation_entity, repo_entity, server_entity};
use crate::ids::{JobId, Lsn, OperationId, RepoName};
use crate::job::Job;
use crate::planted::planted;
use crate::record::{EntityKey, EntityKind};
use crate::repo::{Operation, Repo};
use crate::stats::{Key, Row};
use crate::time::Timestamp;

/// An entry that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("checkpoint entry of {entity}: {problem}")]
pub struct EntryError {
    /// Whose entry.
    pub entity: String,
    /// What is wrong.
    pub problem: String,
}

#[derive(Serialize, Deserialize)]
struct Server {
    changed: Lsn,
    clock: Timestamp,
    next_operation: u64,
    starts: u64,
}

/// The body of an entry.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry<T> {
    /// All there is to know.
    Whole(T),
    /// Its records cannot be read (I10). It must stay so over every checkpoint, or it would come to life again as it once was.
    Unavailable {
        /// Why.
        reason: String,
        /// As it was last known, for people; none if nothing is known.
        last: Option<T>,
    },
}

/// What there is of a job or repo.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Standing<T, R> {
    Known(T),
    Removed(R),
}

fn stats_entity(key: &Key) -> EntityKey {
    EntityKey { kind: EntityKind::Stats, name: key.entity_name() }
}

impl State {
    /// Everything, as (entity, its last lsn, body), for a checkpoint that covers [`State::lsn`].
    pub fn entries(&self) -> impl Iterator<Item = (EntityKey, Lsn, Vec<u8>)> + '_ {
        let server = Server {
            changed: self.server_changed,
            clock: self.clock,
            next_operation: self.next_operation,
            starts: self.starts,
        };
        let head = (server_entity(), self.server_changed, encode(&Entry::Whole(server)));
        let jobs = self.jobs.keys().chain(self.removed.keys()).map(job_entity);
        let repos = self.repos.keys().chain(self.removed_repos.keys()).map(repo_entity);
        let stats = self.stats.rows().map(|(key, _)| stats_entity(key));
        let operations = self.operations.keys().map(|id| operation_entity(*id));
        let readable = repos.chain(operations).chain(stats).chain(jobs);
        let readable = readable.filter(|entity| self.unavailable(entity).is_none());
        // What is lost of the server itself is made good by the new entry for it.
        let lost = self.unavailable.keys().filter(|entity| entity.kind != EntityKind::Server);
        let all = readable.chain(lost.cloned());
        let entry = |entity: EntityKey| {
            let (lsn, body) = (self.last_lsn(&entity), self.body_of(&entity));
            (entity, lsn, body)
        };
        core::iter::once(head).chain(all.map(entry))
    }

    fn body_of(&self, entity: &EntityKey) -> Vec<u8> {
        let reason = self.unavailable(entity);
        match entity.kind {
            EntityKind::Job => body(
                reason,
                JobId::parse(&entity.name).ok().and_then(|id| {
                    let removed = || self.removed.get(&id).map(Standing::Removed);
                    self.jobs.get(&id).map(|job| Standing::Known(&**job)).or_else(removed)
                }),
            ),
            EntityKind::Repo => {
                let name = RepoName::parse(&entity.name).ok();
                body(
                    reason,
                    name.and_then(|name| {
                        let removed = || self.removed_repos.get(&name).map(Standing::Removed);
                        self.repos.get(&name).map(|r| Standing::Known(&**r)).or_else(removed)
                    }),
                )
            }
            EntityKind::Stats => {
                body(reason, Key::parse(&entity.name).and_then(|key| self.stats.row(&key)))
            }
            EntityKind::Operation => {
                let id = entity.name.parse().ok().map(OperationId);
                body(reason, id.and_then(|id| self.operations.get(&id)).map(|found| &**found))
            }
            _ => body::<()>(reason, None),
        }
    }

    /// Takes one entry of a checkpoint in.
    ///
    /// # Errors
    /// The body is not what the entity's kind says. State is unchanged.
    pub fn restore(&mut self, entity: &EntityKey, body: &[u8]) -> Result<(), EntryError> {
        let lost = self.restore_body(entity, body).map_err(|problem| {
            let entity = entity.name.clone();
            EntryError { entity, problem }
        })?;
        if let Some(reason) = lost {
            self.set_unavailable(entity.clone(), reason);
        }
        Ok(())
    }

    /// Gives the reason why the entity is unavailable, if it is.
    fn restore_body(&mut self, entity: &EntityKey, body: &[u8]) -> Result<Option<String>, String> {
        let lost = match entity.kind {
            EntityKind::Server => {
                let (server, lost) = decode::<Server>(body)?;
                if let Some(server) = server {
                    self.clock = self.clock.max(server.clock);
                    self.next_operation = self.next_operation.max(server.next_operation);
                    self.starts = self.starts.max(server.starts);
                    self.server_changed = self.server_changed.max(server.changed);
                }
                lost
            }
            EntityKind::Job => {
                let (found, lost) = decode::<Standing<Job, Removed>>(body)?;
                match found {
                    Some(Standing::Known(mut job)) => {
                        if planted("state.key_forgotten") {
                            job.idempotency = None;
                        }
                        self.put(job);
                    }
                    Some(Standing::Removed(removed)) => {
                        let id = JobId::parse(&entity.name).map_err(|e| e.to_string())?;
                        self.put_removed(id, removed);
                    }
                    None => {}
                }
                lost
            }
            EntityKind::Repo => {
                let (found, lost) = decode::<Standing<Repo, RemovedRepo>>(body)?;
                match found {
                    Some(Standing::Known(repo)) => {
                        self.repos.insert_mut(repo.name.clone(), Arc::new(repo));
                    }
                    Some(Standing::Removed(removed)) => {
                        let name = RepoName::parse(&entity.name).map_err(|e| e.to_string())?;
                        self.put_removed_repo(name, removed);
                    }
                    None => {}
                }
                lost
            }
            EntityKind::Operation => {
                let (found, lost) = decode::<Operation>(body)?;
                if let Some(operation) = found {
                    self.put_operation(operation);
                }
                lost
            }
            EntityKind::Stats => {
                let (found, lost) = decode::<Row>(body)?;
                let key = Key::parse(&entity.name).ok_or("no row of statistics has this name")?;
                if let Some(row) = found {
                    self.stats.put(key, row);
                }
                lost
            }
            _ => match decode::<serde::de::IgnoredAny>(body)? {
                (None, lost) => lost,
                (Some(_), _) => return Err("a kind that this version does not know".to_string()),
            },
        };
        Ok(lost)
    }

    /// Says which record the restored entries cover.
    pub fn restored_through(&mut self, lsn: Lsn) {
        self.lsn = self.lsn.max(lsn);
    }
}

/// The bytes of what is known, or known to be lost.
fn body<T: Serialize>(reason: Option<&str>, known: Option<T>) -> Vec<u8> {
    let reason = reason.map(String::from);
    match (reason, known) {
        (None, Some(known)) => encode(&Entry::Whole(known)),
        (reason, last) => encode(&Entry::Unavailable { reason: reason.unwrap_or_default(), last }),
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // The shapes have no map with keys that are not text, so this cannot fail; an empty body would fail to decode.
    serde_json::to_vec(value).unwrap_or_default()
}

/// What is known, and why it is unavailable if it is.
fn decode<T: for<'de> Deserialize<'de>>(
    body: &[u8],
) -> Result<(Option<T>, Option<String>), String> {
    match serde_json::from_slice(body) {
        Ok(Entry::Whole(known)) => Ok((Some(known), None)),
        Ok(Entry::Unavailable { reason, last }) => Ok((last, Some(reason))),
        Err(error) => Err(error.to_string()),
    }
}
