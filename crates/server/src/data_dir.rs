//! The data directory: where everything lives, whose it is, and that one server at a time has it.

mod origin;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlive_core::ids::{JobId, OperationId, RepoName, SessionId};
use outlive_core::job::Work;
use outlive_core::planted::planted;
use outlive_supervisor::{FileError, Here, replace_file};
use serde::{Deserialize, Serialize};

use self::origin::Origin;

/// The format version of everything below the data directory.
const FORMAT_VERSION: u32 = 1;

/// A killed server's lock falls when the kernel is done with it; waiting this long covers the worst exit seen.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The disk said no.
    #[error("cannot use {}", .path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another server has it.
    #[error("{} is in use by another server ({holder})", .path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// What its lock says of the holder.
        holder: String,
    },
    /// A later version made it.
    #[error("{} was made by a newer version (format {found}, this program knows {FORMAT_VERSION}): nothing was touched", .path.display())]
    Newer {
        /// The data directory.
        path: PathBuf,
        /// Its format version.
        found: u32,
    },
    /// Its identity cannot be read.
    #[error("{} cannot be read: {problem}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Paths in files and arguments are text.
    #[error("the path of the data directory is not UTF-8: {}", .0.display())]
    NotText(PathBuf),
}

/// Whose data this is; marks everything outside that we may touch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The data directory's own UUID.
    pub instance: String,
    /// `/etc/machine-id` when it was made, or adopted.
    pub machine: String,
    /// The format of everything below it.
    pub format_version: u32,
    /// Which file `server.lock` was then: a copy's is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What the marks of its processes begin with, if it was adopted: those of its original begin otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<String>,
    /// It stands in a backup, and tells of which state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
}

impl Instance {
    /// What the marks of its processes begin with.
    pub fn life(&self) -> &str {
        self.life.as_deref().unwrap_or(&self.instance)
    }

    /// As it is written into a backup of the state told.
    #[must_use]
    pub fn in_backup(&self, state: String) -> Self {
        Self { place: None, life: None, backup: Some(state), ..self.clone() }
    }

    /// Why it cannot be the one that was made, or adopted, here.
    fn is_copied(&self, here: &Origin) -> Option<String> {
        if let Some(state) = &self.backup {
            return Some(format!("it was restored from a backup ({state})"));
        }
        let (made, found) = (&self.machine, &here.machine);
        if made != found && !made.is_empty() && !found.is_empty() {
            return Some(format!(
                "it was copied from another machine (machine id {made}, this one has {found})"
            ));
        }
        let elsewhere = self.place.as_ref().is_some_and(|place| *place != here.place);
        elsewhere.then(|| {
            let (made, found) = (self.place.as_deref().unwrap_or_default(), &here.place);
            format!("its server.lock is not the file it was when the data directory was made ({made}, now {found}), \
                     so it was copied or restored")
        })
    }

    /// The same data, as what is here and nowhere else.
    fn adopted(&self, here: &Origin) -> Self {
        Self {
            machine: here.machine.clone(),
            place: Some(here.place.clone()),
            life: Some(new_uuid()),
            backup: None,
            ..self.clone()
        }
    }
}

/// An opened data directory. While it lives, no other server can open it.
#[derive(Debug)]
pub struct DataDir {
    /// Its path, absolute.
    pub paths: Paths,
    /// Whose it is; as it will be once it is adopted, if it is a copy.
    pub instance: Instance,
    /// Why it is taken for a copy that nobody has adopted, if it is. Then it must be left as it is.
    pub copied: Option<String>,
    /// This is its first start.
    pub created: bool,
    _lock: File,
}

impl DataDir {
    /// Opens, and makes if need be, the data directory, as its only server.
    ///
    /// # Errors
    /// See [`DataDirError`]; in every case but `Io` nothing was changed.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| DataDirError::Io { path, source }
        };
        make_private_dir(path).map_err(at(path))?;
        let root = fs::canonicalize(path).map_err(at(path))?;
        if root.to_str().is_none() {
            return Err(DataDirError::NotText(root));
        }
        let paths = Paths { root };
        let lock = take_lock(&paths)?;
        let here = Origin::observe(&lock).map_err(at(&paths.root.join("server.lock")))?;
        let (instance, created) = read_or_make_instance(&paths, &here)?;
        let copied = instance.is_copied(&here);
        let instance = if copied.is_some() { instance.adopted(&here) } else { instance };
        for dir in [paths.wal(), paths.jobs(), paths.repos(), paths.operations()] {
            make_private_dir(&dir).map_err(at(&dir))?;
        }
        for dir in [paths.trash(), paths.quarantine()] {
            if let Err(error) = make_private_dir(&dir) {
                // What needs it says so when it does; most of a server works without.
                tracing::warn!(%error, dir = %dir.display(), "cannot be made");
            }
        }
        Ok(Self { paths, instance, copied, created, _lock: lock })
    }

    /// The boot and pid namespace we are in, and whose processes are ours.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn here(&self) -> Result<Here, FileError> {
        let here = Here::observe()?;
        Ok(match &self.instance.life {
            Some(life) => here.of_life(life.clone()),
            None => here,
        })
    }

    /// Makes a copy one of its own, durably: from the next start on it is as any other.
    ///
    /// # Errors
    /// It could not be written down, and is a copy still.
    pub fn adopt(&self) -> Result<(), DataDirError> {
        self.instance.write(&self.paths)
    }
}

/// Makes a directory, with those above it, that only its owner can enter.
///
/// # Errors
/// As the disk says.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn take_lock(paths: &Paths) -> Result<File, DataDirError> {
    let path = paths.root.join("server.lock");
    let at = |source| DataDirError::Io { path: path.clone(), source };
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(at)?;
    wait_for_lock(&file, &path, paths)?;
    // The lock counts, its text is for people: a full disk does not keep a server down. Of one length, so that it goes over the
    // last one's and needs no new space.
    let text = format!("{:<20}\n", format!("pid {}", std::process::id()));
    if let Err(error) = file.write_all(text.as_bytes()) {
        tracing::warn!(%error, "the lock does not tell whose it is");
    }
    Ok(file)
}

/// Blocks in the kernel on a thread of its own, so that nothing polls; gives up after [`LOCK_PATIENCE`].
fn wait_for_lock(file: &File, path: &Path, paths: &Paths) -> Result<(), DataDirError> {
    let at = |source| DataDirError::Io { path: path.to_path_buf(), source };
    if file.try_lock().is_ok() || planted("data_dir.no_lock") {
        return Ok(());
    }
    let other = file.try_clone().map_err(at)?;
    let (done, locked) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(other.lock()));
    if let Ok(result) = locked.recv_timeout(LOCK_PATIENCE) {
        return result.map_err(at);
    }
    let holder = fs::read_to_string(path).unwrap_or_default().trim().to_string();
    Err(DataDirError::InUse { path: paths.root.clone(), holder })
}

impl Instance {
    fn write(&self, paths: &Paths) -> Result<(), DataDirError> {
        let path = paths.instance();
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        let written = bytes.and_then(|b| replace_file(&path, &b).map_err(io::Error::other));
        written.map_err(|source| DataDirError::Io { path, source })
    }
}

/// Whose data a directory holds; touches nothing.
///
/// # Errors
/// See [`DataDirError`]; where there is no data directory, `Io` says that nothing was found.
pub fn read_instance(paths: &Paths) -> Result<Instance, DataDirError> {
    let path = paths.instance();
    let bytes =
        fs::read(&path).map_err(|source| DataDirError::Io { path: path.clone(), source })?;
    let damaged = |problem: String| DataDirError::Damaged { path: path.clone(), problem };
    let instance: Instance = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if instance.format_version > FORMAT_VERSION {
        let found = instance.format_version;
        return Err(DataDirError::Newer { path: paths.root.clone(), found });
    }
    Ok(instance)
}

fn read_or_make_instance(paths: &Paths, here: &Origin) -> Result<(Instance, bool), DataDirError> {
    match read_instance(paths) {
        Ok(instance) if instance.place.is_some() || instance.backup.is_some() => {
            Ok((instance, false))
        }
        Ok(instance) => {
            // Made by a version that did not write it down: it is taken to be where it was.
            let instance = Instance { place: Some(here.place.clone()), ..instance };
            if instance.is_copied(here).is_none()
                && let Err(error) = instance.write(paths)
            {
                tracing::warn!(%error, "not written down where it is; tried again at the next start");
            }
            Ok((instance, false))
        }
        Err(DataDirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let instance = Instance {
                instance: new_uuid(),
                machine: here.machine.clone(),
                format_version: FORMAT_VERSION,
                place: Some(here.place.clone()),
                life: None,
                backup: None,
            };
            instance.write(paths)?;
            Ok((instance, true))
        }
        Err(error) => Err(error),
    }
}

/// The server that has a data directory, as its lock tells; found out without touching the lock.
pub fn holder(paths: &Paths) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let path = paths.root.join("server.lock");
    let lock = fs::metadata(&path).ok()?;
    let (major, minor) = (rustix::fs::major(lock.dev()), rustix::fs::minor(lock.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", lock.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let held = locks.lines().any(|line| line.split_whitespace().any(|word| word == file));
    held.then(|| fs::read_to_string(&path).unwrap_or_default().trim().to_string())
}

fn new_uuid() -> String {
    uuid::Builder::from_random_bytes(crate::random::bytes()).into_uuid().to_string()
}

/// The data directory when none is named: `/var/lib/outlive` for root, else `outlive` in the user's own state directory.
pub fn default_root() -> PathBuf {
    let system = PathBuf::from("/var/lib/outlive");
    if rustix::process::geteuid().is_root() {
        return system;
    }
    // The XDG rules: a relative path there is to be ignored.
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let state = state.or_else(|| std::env::home_dir().map(|home| home.join(".local/state")));
    state.map_or(system, |state| state.join("outlive"))
}

/// Where everything lives. The one place that knows the names.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// The names below a data directory, without opening it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The data directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whose data this is.
    pub fn instance(&self) -> PathBuf {
        self.root.join("instance.json")
    }

    /// The write-ahead log's directory.
    pub fn wal(&self) -> PathBuf {
        self.root.join("wal")
    }

    /// Bytes that could not be read, kept.
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// What is being deleted.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Short-lived files of questions under way.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// The token of this machine's users.
    pub fn token(&self) -> PathBuf {
        self.root.join("token")
    }

    /// Where a running server says how it is reached.
    pub fn address(&self) -> PathBuf {
        self.root.join("address")
    }

    /// The report of this and the last starts.
    pub fn startup_log(&self) -> PathBuf {
        self.root.join("startup-log.json")
    }

    /// The marker of a start that is under way.
    pub fn startup_marker(&self) -> PathBuf {
        self.root.join("startup.marker")
    }

    /// All jobs' directories.
    pub fn jobs(&self) -> PathBuf {
        self.root.join("jobs")
    }

    /// All source copies.
    pub fn repos(&self) -> PathBuf {
        self.root.join("repos")
    }

    /// All operations' keep directories.
    pub fn operations(&self) -> PathBuf {
        self.root.join("operations")
    }

    /// A job's directory.
    pub fn job(&self, id: &JobId) -> PathBuf {
        self.jobs().join(id.as_str())
    }

    /// The keep directories of a job's attempts.
    pub fn attempts(&self, id: &JobId) -> PathBuf {
        self.job(id).join("attempts")
    }

    /// A repo's source copy.
    pub fn repo(&self, name: &RepoName) -> PathBuf {
        self.repos().join(name.as_str())
    }

    /// The workspace of a job's session, counted from 0.
    pub fn workspace(&self, id: &JobId, session: usize) -> PathBuf {
        let name =
            if session == 0 { "workspace".into() } else { format!("workspace-{}", session + 1) };
        self.job(id).join(name)
    }

    /// A session's two output files: stdout, stderr.
    pub fn output(&self, id: &JobId, session: &SessionId) -> [PathBuf; 2] {
        let file = |kind: &str| self.job(id).join(format!("{session}.{kind}"));
        [file("output"), file("stderr")]
    }

    /// An operation's keep directory.
    pub fn operation(&self, id: OperationId) -> PathBuf {
        self.operations().join(id.to_string())
    }

    /// The keep directory of a piece of work.
    pub fn keep(&self, work: &Work) -> PathBuf {
        match work {
            Work::Attempt { job, attempt } => self.attempts(job).join(attempt.to_string()),
            Work::Operation { id } => self.operation(*id),
        }
    }
}
