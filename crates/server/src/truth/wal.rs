//! The write-ahead log: what was accepted is on disk before anybody hears of it (I1, I8, I10).
//!
//! [`open`] reads a directory and makes it whole again; [`Wal::start`] then appends to it by group commit on a thread of its own;
//! [`Checkpointer`] bounds it. [`verify`] and [`dump`] only read. The format is in `docs/formats.md`.
//!
//! Absent: what a record's body means. Bodies are opaque bytes, entities are names.

mod checkpoint;
mod found;
mod inspect;
mod judge;
mod reader;
mod recover;
mod segment;
mod survey;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outlive_core::checkpoint::Entry;
use outlive_core::file_header::BadFileHeader;
use outlive_core::ids::Lsn;
use outlive_core::limits::SEGMENT_BYTES;
use outlive_core::record::{EntityKey, Record, TooLarge};
use outlive_supervisor::crash_point;

pub use self::checkpoint::Checkpointer;
pub use self::found::found;
pub use self::inspect::{CheckpointSeen, Inventory, SegmentSeen, dump, instance_in, verify};
pub use self::recover::{Log, open};
pub use self::writer::{Batch, Draft, Durable, NextSegment, SubmitError, Wal, abort};
use super::disk::Disk;

/// Where the write-ahead log lives and what it is made with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The directory `wal/`; made if it is missing.
    pub dir: PathBuf,
    /// Where bytes that could not be read are kept; made when needed.
    pub quarantine: PathBuf,
    /// The data directory's UUID; files of another are refused.
    pub instance: [u8; 16],
    /// Draws a random number, once per file.
    pub nonce: fn() -> u64,
    /// Length of a usual segment.
    pub segment_bytes: u64,
}

impl Config {
    /// With segments of the usual length.
    pub fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        quarantine: PathBuf,
        instance: [u8; 16],
        nonce: fn() -> u64,
    ) -> Self {
        Self { disk, dir, quarantine, instance, nonce, segment_bytes: SEGMENT_BYTES }
    }
}

/// Why the write-ahead log cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The system refused a call.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is another data directory's; nothing was touched.
    #[error("{} belongs to another data directory ({found:02x?})", path.display())]
    OtherInstance {
        /// The file.
        path: PathBuf,
        /// The UUID it carries.
        found: [u8; 16],
    },
    /// The file is of a newer version; nothing was touched.
    #[error("{} cannot be read by this version", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Which version it is.
        #[source]
        source: BadFileHeader,
    },
    /// A record or an entry is over a limit.
    #[error("cannot be written down")]
    TooLarge(#[from] TooLarge),
    /// Records must come in the order of their lsns, without gaps.
    #[error("record {got} was submitted where record {expected} was due")]
    OutOfOrder {
        /// The next lsn.
        expected: Lsn,
        /// The lsn that came.
        got: Lsn,
    },
    /// A checkpoint must not tell of what is not yet durable.
    #[error("a checkpoint of record {lsn} would be ahead of the log, durable up to {durable}")]
    CheckpointAhead {
        /// What the checkpoint covers.
        lsn: Lsn,
        /// What is durable.
        durable: Lsn,
    },
    /// More entities than a checkpoint may hold.
    #[error("a checkpoint of more than {0} entities")]
    TooManyEntries(u64),
}

impl WalError {
    /// Whether opening may be tried again: something could not be read, and nothing was changed. After a write or sync that failed,
    /// another try would prove nothing (I8).
    pub fn may_be_tried_again(&self) -> bool {
        matches!(self, Self::Io { what: "list" | "open" | "measure" | "read", .. })
    }

    /// With all its causes, in one line.
    fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }
}

/// Turns an I/O error into one with the call and the path.
fn io_at<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> WalError + use<'a> {
    move |source| WalError::Io { what, path: path.to_owned(), source }
}

/// A place that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// How many bytes; 0 where something is missing altogether.
    pub bytes: u64,
    /// What is wrong.
    pub what: String,
    /// The lsns concerned; empty where none is lost.
    pub lsns: RangeInclusive<Lsn>,
    /// Whose records they are; `None` where that cannot be known.
    pub entities: Option<Vec<EntityKey>>,
    /// Nothing is lost by it: it is covered by a checkpoint, or by a second copy.
    pub harmless: bool,
    /// Where the bytes are kept.
    pub kept: Option<PathBuf>,
}

/// Something of an entity cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Nothing of it counts from this record on; what came before does.
    pub since: Lsn,
    /// What is lost, and where it stood.
    pub why: String,
}

/// Records of which nobody can say whose they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub lsns: RangeInclusive<Lsn>,
    /// What is lost, and where it stood.
    pub why: String,
}

/// What [`open`] found and did, or [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The checkpoint that was used; [`Lsn::NONE`] without one.
    pub checkpoint_lsn: Lsn,
    /// The last record; the next one gets the lsn after it.
    pub last_lsn: Lsn,
    /// Known durable before anything was written again.
    pub synced_through: Lsn,
    /// Bytes of a torn last group that were cut off.
    pub cut_bytes: u64,
    /// Where they began.
    pub cut_at: Option<(PathBuf, u64)>,
    /// Doubtful records that were written again and synced.
    pub rewritten_records: usize,
    /// Everything that could not be read, up to `DAMAGE_LISTED_MAX`.
    pub damage: Vec<Damage>,
    /// How many more such places there are.
    pub damage_unlisted: usize,
    /// The write-ahead log was made new: nothing was there.
    pub created: bool,
    /// Segments read; those that the checkpoint covers are passed over.
    pub segments_read: usize,
    /// Bytes read.
    pub bytes_read: u64,
    /// Left-over temporary files that were removed.
    pub temp_files_removed: usize,
}

/// An open write-ahead log: everything in it is durable.
#[derive(Debug)]
pub struct Opened {
    /// The state of every entity as of `report.checkpoint_lsn`.
    pub checkpoint: Vec<Entry>,
    /// Every record after it that can be read, in order.
    pub records: Vec<Record>,
    /// What was found and done.
    pub report: Report,
    /// Entities that lost something, and did not begin again after that.
    pub broken: BTreeMap<EntityKey, Broken>,
    /// Records that may have been anybody's, in order.
    pub lost: Vec<Lost>,
    /// To go on with, by [`Wal::start`].
    pub log: Log,
}
