//! Files of a keep directory: read with suspicion, written whole.
//!
//! Absent on purpose: what is written in place (`slot`, `outcome`), and the output files (`output`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use outlive_core::spec::{
    Reading, Sentinel, Spec, Started, StopRequest, decode_json, file as name,
};
use serde::{Deserialize, Serialize};

use crate::slot;

/// The largest JSON file that is read: a spec holds an environment and arguments, which the kernel limits to less.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// How the name of a file ends that is not whole yet; it begins with a dot and the name it will have.
const TEMP_SUFFIX: &str = ".tmp";

/// What could not be done to which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Makes `map_err` short: `.map_err(FileError::at("open", path))`.
    pub(crate) fn at<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self { action, path: path.to_path_buf(), source: source.into() }
    }

    /// The error and its cause in one line.
    pub(crate) fn line(&self) -> String {
        format!("{self}: {}", self.source)
    }
}

/// Replaces a file whole: a reader sees all of the old or all of the new, also after a power cut.
///
/// On any error the old file stays and the temporary one goes.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace_file_by(path, |file| file.write_all(bytes))
}

/// The same with what `write` puts into the new file. Where that fails, the old one stays.
pub fn replace_file_by(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), FileError> {
    let temp = write_temp(path, write)?;
    #[expect(clippy::disallowed_methods, reason = "this is the function that others shall use")]
    let renamed = fs::rename(&temp, path);
    renamed.map_err(FileError::at("replace", path)).inspect_err(|_| remove_temp(&temp))?;
    sync_dir(parent(path)?)
}

/// Creates a file whole, and only if there is none of that name: an error of kind `AlreadyExists` otherwise.
///
/// By a link, because a file created in place could be found torn, and because every file system has links, where an exclusive
/// rename is not everywhere. The directory is synced by the caller.
pub(crate) fn create_whole(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let temp = write_temp(path, |file| file.write_all(bytes))?;
    crate::crash_point("supervisor.started_written");
    let linked = fs::hard_link(&temp, path).map_err(FileError::at("create", path));
    remove_temp(&temp);
    linked
}

/// Writes a new file beside `path` and syncs it. Names are unique: by pid, and by a count in this process.
fn write_temp(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<PathBuf, FileError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temp = parent(path)?.join(format!(".{name}.{}.{count}{TEMP_SUFFIX}", std::process::id()));
    let written = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let mut file = options.open(&temp)?;
        write(&mut file)?;
        file.sync_data()
    };
    written().map_err(FileError::at("write", &temp)).inspect_err(|_| remove_temp(&temp))?;
    Ok(temp)
}

fn remove_temp(temp: &Path) {
    // Left behind it does no harm: the next holder of the lock removes it.
    fs::remove_file(temp).ok();
}

/// Removes what a dead holder of the lock left of its own files. Only the lock's holder writes those, so none is in use.
pub(crate) fn remove_left_over(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let file = file.to_string_lossy();
        let stem = file.strip_prefix('.').and_then(|rest| rest.strip_suffix(TEMP_SUFFIX));
        let ours = [name::STARTED, name::SENTINEL];
        if stem.is_some_and(|stem| ours.iter().any(|name| stem.starts_with(name))) {
            remove_temp(&entry.path());
        }
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(FileError::at("sync", dir))
}

/// The directory in which a file stands.
pub(crate) fn parent(path: &Path) -> Result<&Path, FileError> {
    let here = |dir: &'_ Path| dir.as_os_str().is_empty();
    let parent = path.parent().map(|dir| if here(dir) { Path::new(".") } else { dir });
    parent.ok_or_else(|| {
        FileError::at("find the directory of", path)(io::Error::from(io::ErrorKind::InvalidInput))
    })
}

/// A value as one line of JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Only a map with odd keys could fail, and no shape of a keep directory has a map.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Reads a file of JSON. Whatever is there but cannot be read counts as damaged.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Reading<T> {
    match read_bounded(path) {
        Ok(bytes) => decode_json(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::Absent,
        Err(error) => Reading::Damaged(error.to_string()),
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > FILE_BYTES_MAX {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0).saturating_add(1));
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads what a supervisor is to run.
pub fn read_spec(dir: &Path) -> Reading<Spec> {
    read_json(&dir.join(name::SPEC))
}

/// Reads whether and as what the agent was let go.
pub fn read_started(dir: &Path) -> Reading<Started> {
    read_json(&dir.join(name::STARTED))
}

/// Reads the heartbeat.
pub fn read_sentinel(dir: &Path) -> Reading<Sentinel> {
    read_json(&dir.join(name::SENTINEL))
}

/// Reads the wish that the tree be ended.
pub fn read_stop(dir: &Path) -> Reading<StopRequest> {
    slot::read_in(&dir.join(name::STOP), 0)
}

/// Writes down the wish that the tree be ended, durably. Who keeps it obeys after [`wake`], or at its next heartbeat.
///
/// In place: what runs on a full disk can be stopped all the same. Torn it would be no wish, and whoever wished it wishes again.
pub fn write_stop(dir: &Path, request: &StopRequest) -> Result<(), FileError> {
    let path = dir.join(name::STOP);
    let made = path.exists();
    let file = slot::allocate(&path)?;
    slot::write(&file, 0, &slot::encode(request, &path)?, &path)?;
    slot::sync(&file, &path)?;
    if made { Ok(()) } else { sync_dir(dir) }
}

/// Makes the keeper of a directory look at `stop`. False: nobody keeps it.
pub fn wake(dir: &Path) -> Result<bool, FileError> {
    let path = dir.join(name::WAKE);
    let fifo =
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(&path);
    match fifo.and_then(|mut fifo| fifo.write_all(&[1])) {
        Ok(()) => Ok(true),
        // Full of earlier wake-ups: it will look.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOENT)) => Ok(false),
        Err(error) => Err(FileError::at("wake the keeper by", &path)(error)),
    }
}
