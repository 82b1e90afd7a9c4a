//! The copier: a whole directory tree, faithfully, by reflink where the file system can.
//!
//! Carried: folders, files, symlinks (as they are, also dangling), FIFOs, hard links within the tree, modes, times,
//! `user.*` attributes, holes of sparse files, and owners where we may set them. Skipped and counted: sockets and devices,
//! and what vanishes while we copy. Crosses mount points, as `cp -a` does. Absent: ACLs and `security.*` attributes, any
//! syncing (the caller syncs the whole file system once), and what a repo or a workspace is, but for [`NOT_COPIED`].

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::files::{DIRECTORY, FileError, names_in};

/// Entries of the top-level `.git` that must not go into a copy: locks of a git that works in the original, the links to
/// work trees elsewhere (a `git worktree remove` in the copy would delete the original's), and our own note.
pub const NOT_COPIED: [&CStr; 4] = [c"index.lock", c"HEAD.lock", c"worktrees", NOTE];

/// Our note in the `.git` folder of every copy: how it was made.
pub const NOTE: &CStr = c"outlive.json";

/// Two descriptors are open per level; the usual limit for a process is 1024.
pub const DEPTH_MAX: usize = 400;

/// How files came into a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MadeBy {
    /// Blocks shared with the source until one of both changes.
    Reflink,
    /// Byte for byte.
    Copy,
    /// By git, from a URL.
    Clone,
}

/// What one copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// [`MadeBy::Reflink`] if every file with content was shared.
    pub made_by: MadeBy,
    /// Regular files, each name counted.
    pub files: u64,
    /// Their sizes together, in bytes.
    pub bytes: u64,
    /// Sockets, devices, and what vanished or changed its kind meanwhile.
    pub skipped: u64,
}

/// Why a tree could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A step failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Deeper than [`DEPTH_MAX`].
    #[error("{} lies more than {DEPTH_MAX} folders deep", .0.display())]
    TooDeep(PathBuf),
    /// Part of the git repository itself vanished: a git command changed it meanwhile, so the copy may lack objects.
    #[error("{} vanished while it was copied: another git command is at work there", .0.display())]
    RepositoryChanged(PathBuf),
}

/// Copies the directory `source` to `dest`, which must not exist. On failure a part of it is left at `dest`.
pub fn copy_tree(source: &Path, dest: &Path) -> Result<Copied, CopyError> {
    // The root alone may be given as a symlink.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from =
        rustix::fs::open(source, flags, Mode::empty()).map_err(FileError::on("open", source))?;
    rustix::fs::mkdir(dest, Mode::RWXU).map_err(FileError::on("create", dest))?;
    let to =
        rustix::fs::open(dest, DIRECTORY, Mode::empty()).map_err(FileError::on("open", dest))?;
    let stat = rustix::fs::fstat(&from).map_err(FileError::on("examine", source))?;
    let names = names_in(&from).map_err(FileError::on("list", source))?;
    let root = rustix::io::fcntl_dupfd_cloexec(&to, 0).map_err(FileError::on("open", dest))?;
    let done = Copied { made_by: MadeBy::Copy, files: 0, bytes: 0, skipped: 0 };
    let mut copier = Copier {
        source,
        root,
        path: PathBuf::new(),
        reflink: true,
        shared: 0,
        links: HashMap::new(),
        done,
    };
    copier.walk(Folder { from, to, stat, names, place: Place::Top })?;
    if copier.reflink && copier.shared > 0 {
        copier.done.made_by = MadeBy::Reflink;
    }
    Ok(copier.done)
}

/// Where a folder lies, as far as git's own files need care.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    Git,
    InGit,
    Tree,
}

/// A folder being filled; `names` are still to do.
struct Folder {
    from: OwnedFd,
    to: OwnedFd,
    stat: Stat,
    names: Vec<CString>,
    place: Place,
}

struct Copier<'a> {
    source: &'a Path,
    root: OwnedFd,
    /// Of the entry at hand, relative to the root.
    path: PathBuf,
    reflink: bool,
    shared: u64,
    /// First name in the copy of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    done: Copied,
}

impl Copier<'_> {
    /// With a stack of its own: depth costs descriptors, not call frames.
    fn walk(&mut self, top: Folder) -> Result<(), CopyError> {
        let mut stack = vec![top];
        while let Some(folder) = stack.last_mut() {
            let Some(name) = folder.names.pop() else {
                dress(&folder.to, &folder.from, &folder.stat)
                    .map_err(self.failed("set the attributes of"))?;
                stack.pop();
                self.path.pop();
                continue;
            };
            if folder.place == Place::Git && NOT_COPIED.contains(&name.as_c_str()) {
                continue;
            }
            self.path.push(OsStr::from_bytes(name.as_bytes()));
            let place = folder.place;
            match self.entry(folder, &name) {
                Ok(Some(_)) if stack.len() == DEPTH_MAX => return Err(self.too_deep()),
                // Its path stays until it is filled.
                Ok(Some(inner)) => stack.push(inner),
                Ok(None) => _ = self.path.pop(),
                Err(Trouble::Vanished) => {
                    self.vanished(place, &name)?;
                    self.path.pop();
                }
                Err(Trouble::Failed(e)) => return Err(self.failed("copy")(e).into()),
            }
        }
        Ok(())
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> FileError + use<> {
        FileError::on(doing, self.source.join(&self.path))
    }

    fn too_deep(&self) -> CopyError {
        CopyError::TooDeep(self.source.join(&self.path))
    }

    fn vanished(&mut self, place: Place, name: &CStr) -> Result<(), CopyError> {
        let name = name.to_bytes();
        let passing = name.starts_with(b"tmp_") || name.ends_with(b".lock");
        if matches!(place, Place::Git | Place::InGit) && !passing {
            return Err(CopyError::RepositoryChanged(self.source.join(&self.path)));
        }
        self.done.skipped += 1;
        Ok(())
    }

    /// Copies one entry; a folder is made and handed back to be filled.
    fn entry(&mut self, folder: &Folder, name: &CStr) -> Result<Option<Folder>, Trouble> {
        let itself = AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(&folder.from, name, itself).map_err(Trouble::at_source)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return open_folder(folder, name).map(Some),
            FileType::RegularFile => self.file(folder, name, &stat)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&folder.from, name, Vec::new())
                    .map_err(Trouble::at_source)?;
                rustix::fs::symlinkat(&target, &folder.to, name)?;
                dress_by_name(&folder.to, name, &stat)?;
            }
            FileType::Fifo => {
                rustix::fs::mkfifoat(&folder.to, name, Mode::RUSR | Mode::WUSR)?;
                rustix::fs::chmodat(&folder.to, name, permissions(&stat), AtFlags::empty())?;
                dress_by_name(&folder.to, name, &stat)?;
            }
            _ => self.done.skipped += 1,
        }
        Ok(None)
    }

    fn file(&mut self, folder: &Folder, name: &CStr, stat: &Stat) -> Result<(), Trouble> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let identity = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&identity)
            && rustix::fs::linkat(&self.root, first, &folder.to, name, AtFlags::empty()).is_ok()
        {
            self.done.files += 1;
            self.done.bytes += size;
            return Ok(());
        }
        // Not blocking: it may have become a FIFO since.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = rustix::fs::openat(&folder.from, name, flags, Mode::empty())
            .map_err(Trouble::at_source)?;
        let from = File::from(from);
        let stat = rustix::fs::fstat(&from)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Trouble::Vanished);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let to = File::from(rustix::fs::openat(&folder.to, name, flags, mode)?);
        self.content(&from, &to, &stat)?;
        dress(&to, &from, &stat)?;
        if stat.st_nlink > 1 {
            self.links.insert(identity, self.path.clone());
        }
        self.done.files += 1;
        self.done.bytes += size;
        Ok(())
    }

    fn content(&mut self, from: &File, to: &File, stat: &Stat) -> io::Result<()> {
        if stat.st_size == 0 {
            return Ok(());
        }
        if self.reflink {
            if rustix::fs::ioctl_ficlone(to, from).is_ok() {
                self.shared += 1;
                return Ok(());
            }
            // Whatever the reason (no such feature, another file system): the plain copy tells if it is a real trouble.
            self.reflink = false;
        }
        if stat.st_blocks.saturating_mul(512) < stat.st_size {
            return copy_sparse(from, to, stat);
        }
        io::copy(&mut &*from, &mut &*to)?;
        Ok(())
    }
}

/// Why an entry was not copied.
enum Trouble {
    /// In the source it is not there any more, or no longer of the kind it was.
    Vanished,
    /// Anything else, and everything on the side of the copy.
    Failed(io::Error),
}

impl Trouble {
    fn at_source(e: Errno) -> Self {
        match e {
            Errno::NOENT | Errno::LOOP | Errno::NOTDIR => Self::Vanished,
            e => Self::Failed(e.into()),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        Self::Failed(e)
    }
}

impl From<Errno> for Trouble {
    fn from(e: Errno) -> Self {
        Self::Failed(e.into())
    }
}

fn open_folder(parent: &Folder, name: &CStr) -> Result<Folder, Trouble> {
    let from = rustix::fs::openat(&parent.from, name, DIRECTORY, Mode::empty())
        .map_err(Trouble::at_source)?;
    let stat = rustix::fs::fstat(&from)?;
    let mut names = names_in(&from)?;
    rustix::fs::mkdirat(&parent.to, name, Mode::RWXU)?;
    let to = rustix::fs::openat(&parent.to, name, DIRECTORY, Mode::empty())?;
    let place = match parent.place {
        Place::Top if name == c".git" => Place::Git,
        Place::Git | Place::InGit => Place::InGit,
        _ => Place::Tree,
    };
    if place == Place::Git {
        // Objects last (names are taken from the end): so every ref that is copied has its objects copied after it.
        names.sort_by_key(|name| name.as_c_str() != c"objects");
    }
    Ok(Folder { from, to, stat, names, place })
}

fn copy_sparse(from: &File, to: &File, stat: &Stat) -> io::Result<()> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    to.set_len(size)?;
    let mut end = 0;
    loop {
        let data = match rustix::fs::seek(from, SeekFrom::Data(end)) {
            Ok(found) => found,
            // No data after this point.
            Err(Errno::NXIO) => return Ok(()),
            // A file system that cannot tell: all of it is data.
            Err(_) => end,
        };
        end = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(size);
        if end <= data {
            return Ok(());
        }
        rustix::fs::seek(from, SeekFrom::Start(data))?;
        rustix::fs::seek(to, SeekFrom::Start(data))?;
        io::copy(&mut io::Read::take(from, end - data), &mut &*to)?;
    }
}

/// Gives a file or folder the owner, `user.*` attributes, mode and times of its original; times last, as the rest changes them.
fn dress(
    to: &impl std::os::fd::AsFd,
    from: &impl std::os::fd::AsFd,
    stat: &Stat,
) -> io::Result<()> {
    copy_attributes(to, from)?;
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let mut mode = permissions(stat);
    if rustix::fs::fchown(to, Some(owner), Some(group)).is_err() {
        // It is ours then, and must not run as us because it ran as its owner.
        mode -= Mode::SUID | Mode::SGID;
    }
    rustix::fs::fchmod(to, mode)?;
    Ok(rustix::fs::futimens(to, &times(stat))?)
}

fn dress_by_name(dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let itself = AtFlags::SYMLINK_NOFOLLOW;
    // Only root may; anybody else keeps what he made as his own.
    match rustix::fs::chownat(dir, name, Some(owner), Some(group), itself) {
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(rustix::fs::utimensat(dir, name, &times(stat), itself)?)
}

/// The bound of the kernel for a list of attribute names and for one value.
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

fn copy_attributes(to: &impl std::os::fd::AsFd, from: &impl std::os::fd::AsFd) -> io::Result<()> {
    // Most files have none, and some file systems know none at all.
    if rustix::fs::flistxattr_query(from).unwrap_or(0) == 0 {
        return Ok(());
    }
    let mut list = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = rustix::fs::flistxattr(from, &mut list[..])?;
    for name in list[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !name.to_bytes().starts_with(b"user.") {
            continue;
        }
        let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // The destination's file system does not keep such attributes.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn permissions(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec },
    }
}

#[cfg(test)]
pub(crate) mod tests;
