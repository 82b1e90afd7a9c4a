//! Tests of the write-ahead log: a model of what must be there, and what they share.

mod basics;
mod damage;
mod ends;
mod explorer;
mod files;
mod look;
mod real;
mod refused;
mod seal;
mod wide;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outlive_core::checkpoint::Entry;
use outlive_core::ids::Lsn;
use outlive_core::record::{EntityKey, EntityKind, Link, Record};

use super::writer::Writer;
use super::{Batch, Checkpointer, Config, Draft, Opened, WalError, open};
use crate::truth::disk::sim::{SimDisk, scramble};

const INSTANCE: [u8; 16] = [0x11; 16];

fn nonce() -> u64 {
    static DRAWN: AtomicU64 = AtomicU64::new(1);
    scramble(DRAWN.fetch_add(1, Ordering::Relaxed))
}

fn config(disk: &SimDisk, segment_bytes: u64) -> Config {
    let (dir, quarantine) = (PathBuf::from("/d/wal"), PathBuf::from("/d/quarantine"));
    let disk = Arc::new(disk.clone());
    Config { segment_bytes, ..Config::new(disk, dir, quarantine, INSTANCE, nonce) }
}

fn segment(number: u64) -> PathBuf {
    PathBuf::from(format!("/d/wal/{number:016x}.seg"))
}

fn checkpoint(lsn: u64) -> PathBuf {
    PathBuf::from(format!("/d/wal/{lsn:016x}.ckpt"))
}

/// The checkpoints that are in use, oldest first.
fn checkpoints(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.names().into_iter().filter(|path| path.starts_with("/d/wal"));
    names.filter(|path| path.extension() == Some("ckpt".as_ref())).collect()
}

/// Takes a segment both copies of its header.
fn behead(bytes: &mut [u8]) {
    let copy = bytes.len() - 512;
    bytes[..512].fill(0);
    bytes[copy..].fill(0);
}

fn job(n: u64) -> EntityKey {
    EntityKey::new(EntityKind::Job, format!("job{n}"))
}

/// What was submitted, and how much of it was acknowledged.
#[derive(Debug, Clone, Default)]
struct Model {
    records: Vec<Record>,
    acknowledged: u64,
    /// Makes records written after a crash differ from the lost ones with the same lsn.
    generation: u64,
    /// A call failed, so that what is shown need not be what is on disk.
    disk_failed: bool,
}

impl Model {
    fn last(&self) -> u64 {
        self.records.len() as u64
    }

    fn last_of(&self, entity: &EntityKey, through: u64) -> Option<&Record> {
        let records = self.records.iter().rev().filter(|record| record.lsn.0 <= through);
        records.into_iter().find(|r| r.links.iter().any(|link| link.entity == *entity))
    }

    /// A record over one or two of three jobs, with a body of about `size` bytes.
    fn draft(&mut self, size: usize) -> Draft {
        let lsn = self.last() + 1;
        let mut names = vec![lsn % 3];
        if lsn.is_multiple_of(4) {
            names.push((lsn + 1) % 3);
        }
        let links = names.into_iter().map(job).map(|entity| {
            let previous = self.last_of(&entity, u64::MAX).map_or(Lsn::NONE, |r| r.lsn);
            Link { entity, previous }
        });
        let links: Vec<_> = links.collect();
        let mut body = format!("{}:{lsn}:", self.generation).into_bytes();
        body.extend((body.len()..size).map(|i| b'a' + u8::try_from(i % 26).unwrap()));
        let record = Record { lsn: Lsn(lsn), synced_through: Lsn::NONE, links, body };
        self.records.push(record.clone());
        Draft { links: record.links, body: record.body }
    }

    fn batch(&mut self, sizes: &[usize]) -> Batch<u64> {
        let first = Lsn(self.last() + 1);
        let records: Vec<_> = sizes.iter().map(|size| self.draft(*size)).collect();
        Batch { first, records, payload: self.last() }
    }

    /// Every job's state as of `through`.
    fn entries(&self, through: u64) -> Vec<Entry> {
        let entry = |entity: EntityKey| {
            let record = self.last_of(&entity, through)?;
            Some(Entry { entity, lsn: record.lsn, body: record.body.clone() })
        };
        (0..3).map(job).filter_map(entry).collect()
    }

    /// What was opened must be this model's past, in order, with everything acknowledged; says up to where.
    fn check(&self, opened: &Opened, context: &str) -> u64 {
        let last = opened.report.last_lsn.0;
        assert!(last >= self.acknowledged, "{context}: {last} of {} acked", self.acknowledged);
        assert!(last <= self.last(), "{context}: {last} of {} submitted", self.last());
        let base = opened.report.checkpoint_lsn.0;
        assert_eq!(opened.checkpoint, self.entries(base), "{context}");
        let lsns: Vec<u64> = opened.records.iter().map(|record| record.lsn.0).collect();
        assert_eq!(lsns, (base + 1..=last).collect::<Vec<_>>(), "{context}");
        for record in &opened.records {
            let index = usize::try_from(record.lsn.0 - 1).unwrap();
            assert_eq!(record.body, self.records[index].body, "{context}: record {}", record.lsn);
            assert_eq!(record.links, self.records[index].links, "{context}: record {}", record.lsn);
        }
        assert_eq!(opened.broken, BTreeMap::new(), "{context}");
        last
    }

    /// Forgets what a crash took.
    fn cut(&mut self, last: u64) {
        self.records.truncate(usize::try_from(last).unwrap());
        self.acknowledged = last;
        self.generation += 1;
    }
}

/// The write-ahead log without threads.
struct Machine {
    writer: Writer,
    checkpointer: Checkpointer,
    shared: Arc<super::recover::Shared>,
}

impl Machine {
    fn new(opened: Opened) -> Self {
        let (writer, shared, checkpointer) = Writer::new(opened.log, true);
        Self { writer, checkpointer, shared }
    }

    fn open(disk: &SimDisk, segment_bytes: u64) -> Self {
        Self::new(open(config(disk, segment_bytes)).unwrap())
    }

    /// Commits a group as one batch.
    fn group(&mut self, model: &mut Model, sizes: &[usize]) -> Result<(), WalError> {
        let batch = model.batch(sizes);
        self.writer.add(batch, &mut Vec::new())?;
        self.writer.commit()?;
        model.acknowledged = model.last();
        Ok(())
    }

    fn mark(&mut self) -> Result<(), WalError> {
        self.writer.mark()
    }

    fn checkpoint(&self, model: &Model) -> Result<(), WalError> {
        let lsn = model.acknowledged;
        self.checkpointer.write(Lsn(lsn), model.entries(lsn).into_iter())
    }

    fn spare(&self) {
        self.shared.spare.make_if_wanted();
    }
}
