//! From the write-ahead log to State and, from time to time, into a checkpoint.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use outlive_core::checkpoint::Entry;
use outlive_core::event::Transaction;
use outlive_core::ids::Lsn;
use outlive_core::record::Record;
use outlive_core::state::State;

use crate::data_dir::{Instance, Paths};
use crate::truth::disk::RealDisk;
use crate::truth::wal::{Checkpointer, Config, Opened};

/// How the write-ahead log of a data directory is opened.
pub fn log_config(paths: &Paths, instance: &Instance) -> Config {
    let instance = uuid::Uuid::parse_str(&instance.instance).unwrap_or_default();
    let nonce = || u64::from_le_bytes(crate::random::bytes());
    let (disk, quarantine) = (Arc::new(RealDisk), paths.quarantine());
    Config::new(disk, paths.wal(), quarantine, *instance.as_bytes(), nonce)
}

/// What replaying found wrong, for the startup log.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Events applied.
    pub events: u64,
    /// Entities that became unavailable, with the reason.
    pub unavailable: Vec<(String, String)>,
}

/// Sums up a checkpoint and the records after it. Damage makes the entities concerned unavailable, and nothing else (I10): what is
/// known of them from before it stays, for people to see.
pub fn replay(opened: &Opened, state: &mut State) -> Replayed {
    let mut replayed = Replayed::default();
    let Opened { checkpoint, records, report, broken, .. } = opened;
    let mut broken: Vec<_> = broken.iter().collect();
    broken.sort_by_key(|(_, broken)| broken.since);
    let mut broken = broken.into_iter().peekable();
    for entry in checkpoint {
        if state.unavailable(&entry.entity).is_some() {
            continue;
        }
        if let Err(error) = state.restore(&entry.entity, &entry.body) {
            lose(state, &mut replayed, entry.entity.clone(), error.to_string());
        }
    }
    state.restored_through(report.checkpoint_lsn);
    for record in records {
        while let Some((entity, it)) = broken.next_if(|(_, it)| it.since <= record.lsn) {
            lose(state, &mut replayed, entity.clone(), it.why.clone());
        }
        replay_record(record, state, &mut replayed);
    }
    for (entity, it) in broken {
        lose(state, &mut replayed, entity.clone(), it.why.clone());
    }
    // Also past records of which nothing could be applied.
    state.restored_through(report.last_lsn);
    replayed
}

fn replay_record(record: &Record, state: &mut State, replayed: &mut Replayed) {
    let transaction: Transaction = match serde_json::from_slice(&record.body) {
        Ok(transaction) => transaction,
        Err(error) => {
            for link in &record.links {
                let reason = format!("record {} cannot be understood: {error}", record.lsn);
                lose(state, replayed, link.entity.clone(), reason);
            }
            return;
        }
    };
    for event in &transaction.events {
        let entity = event.entity();
        if state.unavailable(&entity).is_some() && !event.begins_again() {
            continue;
        }
        match state.apply(record.lsn, transaction.at, event) {
            // I3: the same apply; what it would have done to the world is found out by looking at the world.
            Ok(_) => replayed.events += 1,
            Err(illegal) => {
                lose(state, replayed, entity, format!("record {}: {illegal}", record.lsn));
            }
        }
    }
}

fn lose(
    state: &mut State,
    replayed: &mut Replayed,
    entity: outlive_core::record::EntityKey,
    reason: String,
) {
    replayed.unavailable.push((entity.to_string(), reason.clone()));
    state.set_unavailable(entity, reason);
}

/// Decides when a checkpoint is due, from copies of State that are durable already.
#[derive(Debug)]
pub struct Checkpoints {
    sender: SyncSender<Arc<State>>,
    last: Lsn,
    records: u64,
}

/// A checkpoint thread to be: it waits for the write-ahead log to give it its [`Checkpointer`].
#[derive(Debug)]
pub struct CheckpointThread(Receiver<Arc<State>>);

impl Checkpoints {
    /// Both ends. `last` is what the newest checkpoint covers; the next one is due so many records after it.
    pub fn new(last: Lsn, records: u64) -> (Self, CheckpointThread) {
        // One may wait while one is written; a third would only be an older copy of the same State.
        let (sender, states) = sync_channel::<Arc<State>>(1);
        (Self { sender, last, records }, CheckpointThread(states))
    }

    /// Is told of every durable State; has a checkpoint written when one is due.
    pub fn consider(&mut self, state: &Arc<State>) {
        if state.lsn().0 >= self.last.0.saturating_add(self.records)
            && self.sender.try_send(state.clone()).is_ok()
        {
            self.last = state.lsn();
        }
    }
}

impl CheckpointThread {
    /// Writes checkpoints on a thread of its own, beside the write-ahead log's, so that appending never waits for one. It ends after
    /// its [`Checkpoints`], which nobody has to wait for.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(self, checkpointer: Checkpointer) -> std::io::Result<JoinHandle<()>> {
        let write_all = move || {
            for state in self.0 {
                write(&checkpointer, &state);
            }
        };
        thread::Builder::new().name("checkpoint".into()).spawn(write_all)
    }
}

fn write(checkpointer: &Checkpointer, state: &State) {
    let entries = state.entries().map(|(entity, lsn, body)| Entry { entity, lsn, body });
    if let Err(error) = checkpointer.write(state.lsn(), entries) {
        // The records are all still there; the next one is tried after as many records again.
        tracing::warn!(%error, "no checkpoint was written");
    }
}

#[cfg(test)]
mod tests;
