//! The marker of a startup that is under way: found at the next start, it tells in which stages this one died.
//!
//! It has to survive the death of a process, not a power cut, so nothing is synced for it; it is written in place by a single call, so
//! that no kill can tear it. One that cannot be read still tells that a start was under way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Length of the file: far more than a marker needs, and little enough to be written at once.
const BYTES: usize = 2048;

/// What is known of a start that is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    /// The file's format.
    pub(super) version: u32,
    /// The start's number.
    pub(super) number: u64,
    /// When it began (RFC 3339).
    pub(super) started_at: String,
    /// In which boot.
    pub(super) boot_id: String,
    /// Stages that are over.
    pub(super) completed: BTreeSet<String>,
    /// Stages that are being worked on.
    pub(super) current: BTreeSet<String>,
    /// How many starts in a row, before this one, died in a stage.
    pub(super) deaths: BTreeMap<String, u32>,
}

impl Marker {
    /// The deaths of stages as the next start must count them: a stage that this one did not die in begins anew.
    pub(super) fn deaths_with_this_one(&self) -> BTreeMap<String, u32> {
        let count = |stage: &String| self.deaths.get(stage).copied().unwrap_or(0).saturating_add(1);
        self.current.iter().map(|stage| (stage.clone(), count(stage))).collect()
    }
}

/// What an earlier start left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// It came to its end.
    Nothing,
    /// It did not.
    Marker(Marker),
    /// It did not, and what it wrote cannot be read.
    Unreadable,
}

/// Reads the marker of an earlier start.
pub(super) fn find(path: &Path) -> Found {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_or(Found::Unreadable, Found::Marker),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
        Err(_) => Found::Unreadable,
    }
}

/// The marker of this start, kept on disk as it changes.
#[derive(Debug)]
pub(super) struct Marking {
    path: PathBuf,
    file: Option<File>,
    pub(super) marker: Marker,
}

impl Marking {
    /// Writes it for the first time. Without room for it the start goes on all the same.
    pub(super) fn begin(path: PathBuf, marker: Marker) -> Self {
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.inspect_err(|error| warn(&path, error)).ok();
        let mut marking = Self { path, file, marker };
        marking.write();
        marking
    }

    /// A stage begins.
    pub(super) fn begins(&mut self, stage: &str) {
        self.marker.current.insert(stage.to_string());
        self.write();
    }

    /// A stage is over.
    pub(super) fn is_over(&mut self, stage: &str) {
        self.marker.current.remove(stage);
        self.marker.completed.insert(stage.to_string());
        self.write();
    }

    /// The start is over, or ends in good order.
    pub(super) fn remove(&mut self) {
        if self.file.take().is_some()
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn(&self.path, &error);
        }
    }

    fn write(&mut self) {
        let Some(file) = &self.file else { return };
        let mut text = serde_json::to_vec(&self.marker).unwrap_or_default();
        text.resize(text.len().max(BYTES), b' ');
        if let Err(error) = file.write_all_at(&text, 0) {
            warn(&self.path, &error);
        }
    }
}

fn warn(path: &Path, error: &io::Error) {
    tracing::warn!(%error, path = %path.display(), "should this start die, the next one will not know in which stage");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(path: &Path) -> Marking {
        let deaths = BTreeMap::from([("state".to_string(), 2), ("storage".to_string(), 1)]);
        Marking::begin(path.to_path_buf(), Marker { number: 3, deaths, ..Marker::default() })
    }

    #[test]
    fn the_next_start_finds_where_this_one_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("marker");
        assert_eq!(find(&path), Found::Nothing);
        let mut marking = begun(&path);
        marking.begins("storage");
        marking.is_over("storage");
        marking.begins("state");
        let Found::Marker(found) = find(&path) else { panic!("{:?}", find(&path)) };
        assert_eq!(found, marking.marker);
        assert_eq!(found.deaths_with_this_one(), BTreeMap::from([("state".to_string(), 3)]));
        marking.remove();
        assert_eq!(find(&path), Found::Nothing);
    }

    #[test]
    fn a_marker_that_cannot_be_read_still_tells_that_a_start_was_under_way() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("marker");
        fs::write(&path, "").expect("a file");
        assert_eq!(find(&path), Found::Unreadable);
        begun(&path);
        assert!(matches!(find(&path), Found::Marker(_)), "and is written over");
    }
}
