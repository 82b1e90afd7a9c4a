//! Directories handled safely: trash, syncing, and paths that must stay inside a root.
//!
//! Absent: reading or writing of our own state files (that is the disk's part) and any decision about what may be
//! deleted: callers say what, this module says how.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use outlive_core::planted::planted;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

/// A step on a file or directory that failed; the cause is its source.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb.
    pub doing: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: `.map_err(FileError::on("open", path))`.
    pub fn on<E: Into<io::Error>>(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self { doing, path, source: source.into() }
    }
}

/// Longest part of the old name kept in a trashed one: with the unique part it stays below the usual 255.
const KEPT_NAME_BYTES_MAX: usize = 200;

/// Opens a directory itself, never what a symlink points to.
pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// 16 hexadecimal digits that no other name has (64 random bits).
pub fn unique() -> io::Result<String> {
    let bits = getrandom::u64().map_err(|e| io::Error::other(e.to_string()))?;
    Ok(format!("{bits:016x}"))
}

/// Makes the entries of a directory durable: what was created, renamed or removed in it.
pub fn dir_sync(path: &Path) -> Result<(), FileError> {
    let dir = File::open(path).map_err(FileError::on("open", path))?;
    dir.sync_all().map_err(FileError::on("sync", path))
}

/// Renames within one file system, refusing to replace anything.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE) {
        // A file system without the flag: a plain rename refuses all but an empty directory.
        Err(Errno::INVAL | Errno::NOSYS) => Ok(rustix::fs::rename(from, to)?),
        done => Ok(done?),
    }
}

/// Takes something out of the way by one atomic rename into `trash_dir` (same file system), under a unique name, and
/// makes that durable. This is the commit of a deletion (I12); returns where it lies now.
pub fn trash(path: &Path, trash_dir: &Path) -> Result<PathBuf, FileError> {
    let name = path.file_name().unwrap_or_else(|| OsStr::new("unnamed")).as_bytes();
    let mut new_name = OsString::from(unique().map_err(FileError::on("name the trash of", path))?);
    new_name.push("-");
    new_name.push(OsStr::from_bytes(&name[..name.len().min(KEPT_NAME_BYTES_MAX)]));
    let place = trash_dir.join(new_name);
    if planted("files.delete_in_place") {
        let deleted = std::fs::remove_dir_all(path).or_else(|_| std::fs::remove_file(path));
        return deleted.map(|()| place).map_err(FileError::on("delete", path));
    }
    // I12: nothing is deleted in place.
    rename_new(path, &place).map_err(FileError::on("move into the trash", path))?;
    dir_sync(trash_dir)?;
    dir_sync(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    Ok(place)
}

/// What one emptying of the trash achieved.
#[derive(Debug, Default)]
pub struct Emptied {
    /// Directory entries removed, directories included.
    pub entries: u64,
    /// Bytes of the regular files removed, as allocated on disk; a hard link counts with its last name.
    pub bytes: u64,
    /// What could not be removed, and why. The rest was.
    pub failed: Vec<FileError>,
}

/// How many failures one emptying keeps; more of the same kind teach nothing.
const FAILURES_MAX: usize = 100;

/// Deletes everything in `trash_dir`, and nothing else: symlinks are removed, never followed, and mount points stay.
///
/// A directory found inside another is first renamed up into the trash itself. So depth never matters, two open
/// directories are enough, and after a crash at any point all that is left is still in the trash.
pub fn empty_trash(trash_dir: &Path) -> Result<Emptied, FileError> {
    let root = open_directory(trash_dir)?;
    let names = names_in(&root).map_err(FileError::on("list", trash_dir))?;
    Ok(remove_all(&root, trash_dir, names))
}

/// Deletes one thing that [`trash`] has moved.
pub fn delete_trashed(place: &Path) -> Result<Emptied, FileError> {
    let trash_dir = place.parent().unwrap_or(Path::new("."));
    let root = open_directory(trash_dir)?;
    let name = place.file_name().unwrap_or_default().as_bytes();
    let name =
        CString::new(name).map_err(|e| FileError::on("delete", place)(io::Error::from(e)))?;
    Ok(remove_all(&root, trash_dir, vec![name]))
}

fn open_directory(path: &Path) -> Result<OwnedFd, FileError> {
    rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(FileError::on("open", path))
}

fn remove_all(root: &OwnedFd, trash_dir: &Path, names: Vec<CString>) -> Emptied {
    let mut sweep = Sweep { root, trash_dir, names, emptied: Emptied::default() };
    while let Some(name) = sweep.names.pop() {
        let done = sweep.entry(root, &name, true);
        sweep.note(&name, done);
    }
    sweep.emptied
}

/// One emptying under way. `names` are entries of the trash itself, still to be removed.
struct Sweep<'a> {
    root: &'a OwnedFd,
    trash_dir: &'a Path,
    names: Vec<CString>,
    emptied: Emptied,
}

impl Sweep<'_> {
    fn note(&mut self, name: &CString, done: io::Result<()>) {
        let Err(e) = done else { return };
        // Not found: somebody else empties the same trash.
        if e.kind() != io::ErrorKind::NotFound && self.emptied.failed.len() < FAILURES_MAX {
            let path = self.trash_dir.join(OsStr::from_bytes(name.as_bytes()));
            self.emptied.failed.push(FileError::on("delete", path)(e));
        }
    }

    /// Removes one entry of `dir`. A directory at the top is emptied; one further down is renamed up, for later.
    fn entry(&mut self, dir: &OwnedFd, name: &CString, top: bool) -> io::Result<()> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
            self.emptied.entries += 1;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1
            {
                self.emptied.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            }
            return Ok(());
        }
        if Mode::from_raw_mode(stat.st_mode) & Mode::RWXU != Mode::RWXU {
            unlock(dir, name)?;
        }
        if top {
            return self.directory(name);
        }
        let higher = CString::new(format!("piece-{}", unique()?))?;
        rustix::fs::renameat(dir, name, self.root, &higher)?;
        self.names.push(higher);
        Ok(())
    }

    fn directory(&mut self, name: &CString) -> io::Result<()> {
        let dir = rustix::fs::openat(self.root, name, DIRECTORY, Mode::empty())?;
        for inner in names_in(&dir)? {
            let done = self.entry(&dir, &inner, false);
            self.note(&inner, done);
        }
        rustix::fs::unlinkat(self.root, name, AtFlags::REMOVEDIR)?;
        self.emptied.entries += 1;
        Ok(())
    }
}

/// Lets a directory's owner list and change it, whatever its mode forbids. By its own descriptor: never through a symlink.
fn unlock(dir: &OwnedFd, name: &CString) -> io::Result<()> {
    let flags = OFlags::PATH | DIRECTORY;
    let itself = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", itself.as_raw_fd());
    Ok(rustix::fs::chmod(path, Mode::RWXU)?)
}

/// The names in a directory, without `.` and `..`, in the order the kernel gives them.
pub(super) fn names_in(dir: impl AsFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Why a path given from outside is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Escape {
    /// It is absolute, empty, or has `..` in it.
    #[error("the path {} must be relative and without '..'", .0.display())]
    NotRelative(PathBuf),
    /// A symlink on the way leads out (or a file system without the check met any symlink).
    #[error("the path {} leads out of its folder through a symlink", .0.display())]
    LeadsOut(PathBuf),
    /// It is not there, or not readable.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Checks that `relative` exists inside `root` and stays inside, whatever symlinks there are; returns the joined path.
///
/// True at this moment only: to read, use [`open_contained`], which cannot be raced.
pub fn contained(root: &Path, relative: &Path) -> Result<PathBuf, Escape> {
    open_beneath(root, relative, OFlags::PATH)?;
    Ok(root.join(relative))
}

/// Opens `relative` for reading, inside `root` and nowhere else. May be a directory or a FIFO (opened without waiting):
/// look at its metadata before use.
pub fn open_contained(root: &Path, relative: &Path) -> Result<File, Escape> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(open_beneath(root, relative, flags)?.into())
}

fn open_beneath(root: &Path, relative: &Path, flags: OFlags) -> Result<OwnedFd, Escape> {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if relative.as_os_str().is_empty() || !relative.components().all(plain) {
        return Err(Escape::NotRelative(relative.to_owned()));
    }
    let at =
        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(FileError::on("open", root))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let opened =
        match rustix::fs::openat2(&at, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Old kernels and some containers do not have the call.
            Err(Errno::NOSYS | Errno::PERM) => open_stepwise(at, relative, flags),
            opened => opened,
        };
    match opened {
        Ok(fd) => Ok(fd),
        Err(Errno::XDEV | Errno::LOOP) => Err(Escape::LeadsOut(relative.to_owned())),
        Err(e) => Err(FileError::on("open", root.join(relative))(e).into()),
    }
}

/// Opens what is below a directory and no symlink leads to, itself included.
pub fn open_plain(root: BorrowedFd<'_>, relative: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Err(Errno::NOSYS | Errno::PERM) => {
            open_stepwise(rustix::io::fcntl_dupfd_cloexec(root, 0)?, relative, flags)
        }
        opened => opened,
    }
}

/// The same without `openat2`: name by name, refusing every symlink.
fn open_stepwise(root: OwnedFd, relative: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut at = root;
    let mut names = relative.components().peekable();
    while let Some(name) = names.next() {
        let last = names.peek().is_none();
        let step = if last { flags } else { OFlags::PATH };
        let step = step | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = rustix::fs::openat(&at, name.as_os_str(), step, Mode::empty())?;
        // O_PATH with O_NOFOLLOW opens a symlink itself.
        if FileType::from_raw_mode(rustix::fs::fstat(&at)?.st_mode) == FileType::Symlink {
            return Err(Errno::LOOP);
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests;
