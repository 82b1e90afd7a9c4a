//! Building something beside its place, and putting it there whole: a directory that exists is complete.
//!
//! Absent: what is built.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::files::{self, FileError};

/// Between the name of what is being built and 16 hexadecimal digits.
const MIDDLE: &[u8] = b".partial-";

/// Builds the directory `dest` so that it is there whole or not at all, whenever we are killed.
///
/// `fill` makes a new path, `.NAME.partial-UNIQUE` in the same folder (a leading dot, so that no repo or job can have that
/// name). Then everything is synced, renamed to `dest`, and the folder synced. Left-overs of an earlier run, and what a failing
/// `fill` leaves, go through `trash` (I12). The earlier run must be provably dead; `dest` must not exist.
pub fn build<T, E: From<FileError>>(
    dest: &Path,
    trash: &Path,
    fill: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    clear(dest, trash)?;
    let partial = new_name(dest)?;
    let built = fill(&partial).and_then(|value| {
        publish(&partial, dest)?;
        Ok(value)
    });
    if built.is_err() {
        // The error to report is the first one; what stays here is cleared by the next run.
        drop(discard(&partial, trash));
    }
    built
}

fn folder(dest: &Path) -> &Path {
    dest.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn prefix(dest: &Path) -> Vec<u8> {
    [b".", dest.file_name().unwrap_or_default().as_bytes(), MIDDLE].concat()
}

fn new_name(dest: &Path) -> Result<PathBuf, FileError> {
    let unique = files::unique().map_err(FileError::on("name the parts of", dest))?;
    let name = [prefix(dest), unique.into_bytes()].concat();
    Ok(folder(dest).join(OsString::from_vec(name)))
}

/// Moves what earlier runs left behind out of the way, then deletes it.
fn clear(dest: &Path, trash: &Path) -> Result<(), FileError> {
    let (folder, prefix) = (folder(dest), prefix(dest));
    for entry in std::fs::read_dir(folder).map_err(FileError::on("list", folder))? {
        let name = entry.map_err(FileError::on("list", folder))?.file_name();
        // Exactly ours: the rest of `.a.partial-b.partial-0123456789abcdef` is not 16 digits for `a`.
        let rest = name.as_bytes().strip_prefix(&prefix[..]).unwrap_or_default();
        if rest.len() == 16 && rest.iter().all(u8::is_ascii_hexdigit) {
            discard(&folder.join(name), trash)?;
        }
    }
    Ok(())
}

fn discard(partial: &Path, trash: &Path) -> Result<(), FileError> {
    if !partial.try_exists().map_err(FileError::on("examine", partial))? {
        return Ok(());
    }
    let place = files::trash(partial, trash)?;
    // What cannot be deleted now stays in the trash, for the sweep.
    files::delete_trashed(&place).map(drop)
}

fn publish(partial: &Path, dest: &Path) -> Result<(), FileError> {
    let opened = File::open(partial).map_err(FileError::on("open", partial))?;
    // One sync for all: a directory with that name must never be less than complete, also after a power cut.
    rustix::fs::syncfs(&opened).map_err(FileError::on("sync the file system of", partial))?;
    files::rename_new(partial, dest).map_err(FileError::on("put in place", dest))?;
    files::dir_sync(folder(dest))
}

#[cfg(test)]
mod tests;
