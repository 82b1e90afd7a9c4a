//! The data directory: where everything lives, whose it is, and that one server at a time has it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlive_core::ids::{JobId, OperationId, RepoName, SessionId};
use outlive_core::job::Work;
use outlive_core::planted::planted;
use outlive_supervisor::replace_file;
use serde::{Deserialize, Serialize};

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
    /// `/etc/machine-id` when it was made.
    pub machine: String,
    /// The format of everything below it.
    pub format_version: u32,
}

/// An opened data directory. While it lives, no other server can open it.
#[derive(Debug)]
pub struct DataDir {
    /// Its path, absolute.
    pub paths: Paths,
    /// Whose it is.
    pub instance: Instance,
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
        let (instance, created) = read_or_make_instance(&paths)?;
        for dir in [paths.wal(), paths.jobs(), paths.repos(), paths.operations()] {
            make_private_dir(&dir).map_err(at(&dir))?;
        }
        for dir in [paths.trash(), paths.quarantine()] {
            if let Err(error) = make_private_dir(&dir) {
                // What needs it says so when it does; most of a server works without.
                tracing::warn!(%error, dir = %dir.display(), "cannot be made");
            }
        }
        Ok(Self { paths, instance, created, _lock: lock })
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

/// Whose data a directory holds; touches nothing.
///
/// # Errors
/// See [`DataDirError`]; where there is no data directory, `Io` says that nothing was found.
pub fn read_instance(paths: &Paths) -> Result<Instance, DataDirError> {
    let path = paths.root.join("instance.json");
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

fn read_or_make_instance(paths: &Paths) -> Result<(Instance, bool), DataDirError> {
    let path = paths.root.join("instance.json");
    let at = |source| DataDirError::Io { path: path.clone(), source };
    match read_instance(paths) {
        Ok(instance) => Ok((instance, false)),
        Err(DataDirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let instance = Instance {
                instance: uuid::Builder::from_random_bytes(crate::random::bytes())
                    .into_uuid()
                    .to_string(),
                machine: machine_id(),
                format_version: FORMAT_VERSION,
            };
            let bytes =
                serde_json::to_vec_pretty(&instance).map_err(io::Error::from).map_err(at)?;
            replace_file(&path, &bytes).map_err(|error| at(io::Error::other(error)))?;
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

fn machine_id() -> String {
    fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_string()
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
            Work::Attempt { job, attempt } => {
                self.job(job).join("attempts").join(attempt.to_string())
            }
            Work::Operation { id } => self.operation(*id),
        }
    }
}
