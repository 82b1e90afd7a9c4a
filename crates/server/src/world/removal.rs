//! Taking the directories of removed jobs and repos away: one rename into the trash, which is the commit (I12).
//!
//! The removal is on record before, and is carried out after; a server that dies in between finds it in State at its next
//! start. Only what bears this data directory's own marker is touched. Absent: who decides that something is removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use outlive_core::ids::{JobId, RepoName};
use outlive_core::planted::planted;
use serde_json::Value;

use crate::data_dir::Paths;
use crate::world::files::trash;
use crate::world::workspace::note_path;

/// Moves a job's directory into the trash; where it lies there, if there was one and it is ours.
///
/// # Errors
/// As the disk says; tried again at the next start.
pub fn job(paths: &Paths, instance: &str, id: &JobId) -> io::Result<Option<PathBuf>> {
    let dir = paths.job(id);
    take(&dir, &dir.join("marker.json"), paths, instance)
}

/// Moves a repo's source copy into the trash; where it lies there, if there was one and it is ours.
///
/// # Errors
/// As the disk says; tried again at the next start.
pub fn repo(paths: &Paths, instance: &str, name: &RepoName) -> io::Result<Option<PathBuf>> {
    let dir = paths.repo(name);
    take(&dir, &note_path(&dir), paths, instance)
}

fn take(dir: &Path, marker: &Path, paths: &Paths, instance: &str) -> io::Result<Option<PathBuf>> {
    match fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let marker: Option<Value> =
        fs::read(marker).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    // I12: whatever stands here without our marker is somebody else's.
    let ours = marker.as_ref().and_then(|marker| marker["instance"].as_str()) == Some(instance);
    if !ours && !planted("files.foreign_marker") {
        tracing::warn!(dir = %dir.display(), "left alone: it does not bear our marker");
        return Ok(None);
    }
    trash(dir, &paths.trash()).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory with a job's directory in it that says whose it is.
    fn with_job(marker: &str) -> (tempfile::TempDir, Paths, JobId) {
        let dir = tempfile::tempdir().expect("a directory");
        let paths = Paths::new(dir.path());
        let id = JobId::from_random(7);
        fs::create_dir_all(paths.job(&id)).expect("made");
        fs::create_dir_all(paths.trash()).expect("made");
        fs::write(paths.job(&id).join("marker.json"), marker).expect("written");
        (dir, paths, id)
    }

    #[test]
    fn what_is_ours_goes_into_the_trash_once() {
        let (_dir, paths, id) = with_job(r#"{"instance":"we"}"#);
        let place = job(&paths, "we", &id).expect("moved").expect("it was there");
        assert!(place.starts_with(paths.trash()) && place.join("marker.json").exists());
        assert!(!paths.job(&id).exists());
        assert_eq!(job(&paths, "we", &id).expect("again"), None);
    }

    // Proves I12: nothing is touched without our own marker, nor through a link.
    #[test]
    fn what_is_not_ours_is_left_alone() {
        for marker in [r#"{"instance":"they"}"#, "{}", "", "nonsense"] {
            let (_dir, paths, id) = with_job(marker);
            assert_eq!(job(&paths, "we", &id).expect("looked at"), None, "{marker}");
            assert!(paths.job(&id).join("marker.json").exists());
        }
        let (_dir, paths, id) = with_job(r#"{"instance":"we"}"#);
        let link = JobId::from_random(8);
        std::os::unix::fs::symlink(paths.job(&id), paths.job(&link)).expect("a link");
        assert_eq!(job(&paths, "we", &link).expect("looked at"), None);
        assert!(paths.job(&link).exists());
    }
}
