//! The outcome file: two slots, written in place, allocated before they are needed, so that a full disk cannot lose an end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use outlive_core::spec::{
    OUTCOME_SLOT_OFFSET, Outcome, Reading, SLOT_BYTES, TREE_SLOT_OFFSET, TreeEmpty, decode_slot,
    encode_slot, file as name,
};
use serde::{Deserialize, Serialize};

use crate::crash_point;
use crate::files::FileError;

/// The open outcome file of a keep directory.
#[derive(Debug)]
pub(crate) struct Slots {
    file: File,
    path: PathBuf,
}

impl Slots {
    /// Opens it, and creates and fills it with zeros first if need be. The directory is synced by the caller.
    pub(crate) fn open(dir: &Path) -> Result<Self, FileError> {
        let path = dir.join(name::OUTCOME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(FileError::at("open", &path))?;
        let slots = Self { file, path };
        let length = slots.file.metadata().map_err(FileError::at("look at", &slots.path))?.len();
        if length < 2 * SLOT_BYTES as u64 {
            slots.clear()?;
        }
        Ok(slots)
    }

    /// Fills both slots with zeros: nothing is known to have ended.
    pub(crate) fn clear(&self) -> Result<(), FileError> {
        self.put(0, &[0; 2 * SLOT_BYTES])
    }

    /// How the main process ended.
    pub(crate) fn outcome(&self) -> Reading<Outcome> {
        read_slot(&self.file, OUTCOME_SLOT_OFFSET)
    }

    /// That nothing of the tree is left.
    pub(crate) fn tree_empty(&self) -> Reading<TreeEmpty> {
        read_slot(&self.file, TREE_SLOT_OFFSET)
    }

    /// Records how the main process ended.
    pub(crate) fn record_outcome(&self, outcome: &Outcome) -> Result<(), FileError> {
        self.record(OUTCOME_SLOT_OFFSET, outcome)
    }

    /// Records that nothing of the tree is left.
    pub(crate) fn record_tree_empty(&self, empty: &TreeEmpty) -> Result<(), FileError> {
        self.record(TREE_SLOT_OFFSET, empty)
    }

    fn record<T: Serialize>(&self, offset: u64, value: &T) -> Result<(), FileError> {
        let slot = encode_slot(value)
            .map_err(io::Error::other)
            .map_err(FileError::at("fit the slot of", &self.path))?;
        self.put(offset, &slot)
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all_at(bytes, offset).map_err(FileError::at("write", &self.path))?;
        crash_point("supervisor.slot_written");
        self.file.sync_data().map_err(FileError::at("sync", &self.path))
    }
}

/// Reads both slots of a keep directory, without changing anything.
pub fn read_slots(dir: &Path) -> (Reading<Outcome>, Reading<TreeEmpty>) {
    match File::open(dir.join(name::OUTCOME)) {
        Ok(file) => (read_slot(&file, OUTCOME_SLOT_OFFSET), read_slot(&file, TREE_SLOT_OFFSET)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Reading::Absent, Reading::Absent),
        Err(error) => (Reading::Damaged(error.to_string()), Reading::Damaged(error.to_string())),
    }
}

/// A file that ends before its slot does was never filled, so nothing was recorded in it.
fn read_slot<T: for<'de> Deserialize<'de>>(file: &File, offset: u64) -> Reading<T> {
    let mut slot = [0; SLOT_BYTES];
    match file.read_exact_at(&mut slot, offset) {
        Ok(()) => decode_slot(&slot),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Reading::Absent,
        Err(error) => Reading::Damaged(error.to_string()),
    }
}
