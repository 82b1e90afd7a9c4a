//! The outcome file: three slots, written in place, allocated before they are needed, so that a full disk cannot lose an end.

use std::fs::File;
use std::path::{Path, PathBuf};

use outlive_core::spec::{
    FREEZE_SLOT_OFFSET, Freeze, OUTCOME_SLOT_OFFSET, Outcome, Reading, SLOT_BYTES,
    TREE_SLOT_OFFSET, TreeEmpty, file as name,
};
use serde::Serialize;

use crate::crash_point;
use crate::files::FileError;
use crate::slot;

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
        Ok(Self { file: slot::allocate(&path)?, path })
    }

    /// Fills all slots with zeros: nothing is known to have ended.
    pub(crate) fn clear(&self) -> Result<(), FileError> {
        self.put(0, &[0; 3 * SLOT_BYTES])
    }

    /// How the main process ended.
    pub(crate) fn outcome(&self) -> Reading<Outcome> {
        slot::read(&self.file, OUTCOME_SLOT_OFFSET)
    }

    /// That nothing of the tree is left.
    pub(crate) fn tree_empty(&self) -> Reading<TreeEmpty> {
        slot::read(&self.file, TREE_SLOT_OFFSET)
    }

    /// Records how the main process ended.
    pub(crate) fn record_outcome(&self, outcome: &Outcome) -> Result<(), FileError> {
        self.record(OUTCOME_SLOT_OFFSET, outcome)
    }

    /// Records that nothing of the tree is left.
    pub(crate) fn record_tree_empty(&self, empty: &TreeEmpty) -> Result<(), FileError> {
        self.record(TREE_SLOT_OFFSET, empty)
    }

    /// Whether it is frozen, and for how long it was.
    pub(crate) fn freeze(&self) -> Reading<Freeze> {
        slot::read(&self.file, FREEZE_SLOT_OFFSET)
    }

    /// Records that it is frozen, or thawed.
    pub(crate) fn record_freeze(&self, freeze: &Freeze) -> Result<(), FileError> {
        self.record(FREEZE_SLOT_OFFSET, freeze)
    }

    fn record<T: Serialize>(&self, offset: u64, value: &T) -> Result<(), FileError> {
        self.put(offset, &slot::encode(value, &self.path)?)
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        slot::write(&self.file, offset, bytes, &self.path)?;
        crash_point("supervisor.slot_written");
        slot::sync(&self.file, &self.path)
    }
}

/// Reads both slots about a tree's end, without changing anything.
pub fn read_slots(dir: &Path) -> (Reading<Outcome>, Reading<TreeEmpty>) {
    let path = dir.join(name::OUTCOME);
    (slot::read_in(&path, OUTCOME_SLOT_OFFSET), slot::read_in(&path, TREE_SLOT_OFFSET))
}

/// Reads whether a tree is frozen because its disk is nearly full.
pub fn read_freeze(dir: &Path) -> Reading<Freeze> {
    slot::read_in(&dir.join(name::OUTCOME), FREEZE_SLOT_OFFSET)
}
