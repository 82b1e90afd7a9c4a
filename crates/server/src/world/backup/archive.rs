//! Files into a tar archive while others write them: each with the length that its header promised, whatever becomes of it meanwhile.
//!
//! Everything is read below one directory and by names that no symlink leads to, so no agent can make us read what is not there.
//! What vanishes under our hands was going to be removed; what cannot be read is noted. Absent: which files.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use outlive_core::limits;
use outlive_core::spec::SLOT_FILE_BYTES;
use rustix::fs::{AtFlags, FileType, OFlags};
use tar::{Builder, EntryType, Header};

use super::open_root;
use crate::world::files;

/// An outcome is read until it is the same twice: whoever writes it needs far less time than this takes.
const SLOT_READS_MAX: u32 = 8;

pub(super) struct Archive<W: Write> {
    root: OwnedFd,
    tar: Builder<W>,
    left_out: Vec<String>,
    unlisted: u64,
}

impl<W: Write> Archive<W> {
    /// An archive of what is below `root`, with the same names.
    pub(super) fn new(root: &Path, out: W) -> io::Result<Self> {
        let tar = Builder::new(out);
        Ok(Self { root: open_root(root)?, tar, left_out: Vec::new(), unlisted: 0 })
    }

    /// What could not be read, and why; the first of it.
    pub(super) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// How much more there was.
    pub(super) fn left_out_unlisted(&self) -> u64 {
        self.unlisted
    }

    /// Puts the end behind it.
    pub(super) fn finish(self) -> io::Result<()> {
        self.tar.into_inner()?.flush()
    }

    /// Bytes of ours, as a file that only its owner reads.
    pub(super) fn bytes(&mut self, name: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(bytes.len() as u64);
        header.set_mtime(crate::clock::now().0 / 1000);
        self.tar.append_data(&mut header, name, bytes)
    }

    /// An open file under a name.
    pub(super) fn file_as(&mut self, file: &File, name: &Path) -> io::Result<()> {
        self.opened(file, name, u64::MAX)
    }

    /// A directory itself; the names in it, in order. None: it is not there.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<Option<Vec<OsString>>> {
        let Some(dir) = self.open(path, OFlags::DIRECTORY) else { return Ok(None) };
        let dir = File::from(dir);
        let (metadata, names) = match (dir.metadata(), files::names_in(&dir)) {
            (Ok(metadata), Ok(names)) => (metadata, names),
            (Err(error), _) | (_, Err(error)) => {
                self.failed(path, &error);
                return Ok(None);
            }
        };
        self.tar.append_data(&mut header_of(&metadata), path, io::empty())?;
        let mut names: Vec<OsString> =
            names.into_iter().map(|name| OsString::from_vec(name.into_bytes())).collect();
        names.sort();
        Ok(Some(names))
    }

    /// A regular file, up to so many bytes; anything else of that name is passed over.
    pub(super) fn file(&mut self, path: &Path, bytes_max: u64) -> io::Result<()> {
        match self.open(path, OFlags::NONBLOCK | OFlags::NOCTTY) {
            Some(file) => self.opened(&File::from(file), path, bytes_max),
            None => Ok(()),
        }
    }

    /// A file of slots, which are written in place: none of them torn.
    pub(super) fn slots(&mut self, path: &Path) -> io::Result<()> {
        let Some(file) = self.open(path, OFlags::NONBLOCK | OFlags::NOCTTY) else { return Ok(()) };
        let file = File::from(file);
        let read = || {
            use std::os::unix::fs::FileExt as _;
            let mut bytes = vec![0; SLOT_FILE_BYTES];
            file.read_at(&mut bytes, 0).map(|got| bytes[..got].to_vec())
        };
        let mut bytes = read()?;
        for _ in 0..SLOT_READS_MAX {
            let again = read()?;
            if again == bytes {
                break;
            }
            bytes = again;
        }
        let mut header = header_of(&file.metadata()?);
        header.set_size(bytes.len() as u64);
        self.tar.append_data(&mut header, path, &*bytes)
    }

    /// All that is below a path, itself included.
    pub(super) fn tree(&mut self, path: &Path) -> io::Result<()> {
        let mut left = vec![path.to_path_buf()];
        // Bounded by what there is: directories only grow names while they are listed.
        while let Some(path) = left.pop() {
            match self.kind_of(&path) {
                None => {}
                Some(FileType::Directory) => {
                    let names = self.directory(&path)?.unwrap_or_default();
                    left.extend(names.iter().rev().map(|name| path.join(name)));
                }
                Some(FileType::RegularFile) => self.file(&path, u64::MAX)?,
                Some(FileType::Symlink) => self.symlink(&path)?,
                Some(other) => self.note(&path, &format!("it is a {other:?}")),
            }
        }
        Ok(())
    }

    fn kind_of(&mut self, path: &Path) -> Option<FileType> {
        match rustix::fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(error) => {
                self.failed(path, &error.into());
                None
            }
        }
    }

    fn symlink(&mut self, path: &Path) -> io::Result<()> {
        let target = rustix::fs::readlinkat(&self.root, path, Vec::new());
        let stat = rustix::fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW);
        let (Ok(target), Ok(stat)) = (target, stat) else { return Ok(()) };
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        self.tar.append_link(&mut header, path, OsStr::from_bytes(target.to_bytes()))
    }

    fn opened(&mut self, file: &File, name: &Path, bytes_max: u64) -> io::Result<()> {
        let metadata = match file.metadata() {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(()),
            Err(error) => {
                self.failed(name, &error);
                return Ok(());
            }
        };
        self.promised(file, name, &metadata, metadata.len().min(bytes_max))
    }

    pub(super) fn promised(
        &mut self,
        file: &File,
        name: &Path,
        metadata: &Metadata,
        bytes: u64,
    ) -> io::Result<()> {
        let mut header = header_of(metadata);
        header.set_size(bytes);
        let mut promised = Promised { file, left: bytes, missing: None };
        self.tar.append_data(&mut header, name, &mut promised)?;
        if let Some((missing, why)) = promised.missing {
            self.note(name, &format!("its last {missing} bytes are zeros here: {why}"));
        }
        Ok(())
    }

    fn open(&mut self, path: &Path, more: OFlags) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
        match files::open_plain(self.root.as_fd(), path, flags) {
            Ok(file) => Some(file),
            Err(error) => {
                self.failed(path, &error.into());
                None
            }
        }
    }

    /// What is not there any more was about to go; anything else that cannot be read is told.
    fn failed(&mut self, path: &Path, why: &io::Error) {
        if why.kind() != io::ErrorKind::NotFound {
            self.note(path, why);
        }
    }

    fn note(&mut self, path: &Path, why: &dyn std::fmt::Display) {
        if self.left_out.len() < limits::BACKUP_LEFT_OUT_MAX {
            self.left_out.push(format!("{}: {why}", path.display()));
        } else {
            self.unlisted += 1;
        }
    }
}

fn header_of(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    header
}

/// As many bytes as were promised: what has grown is cut, what has shrunk is filled with zeros.
struct Promised<'a> {
    file: &'a File,
    left: u64,
    /// How many of them are zeros, and why.
    missing: Option<(u64, String)>,
}

impl Read for Promised<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..wanted];
        if wanted == 0 {
            return Ok(0);
        }
        let got = if self.missing.is_none() { self.file.read(buffer) } else { Ok(0) };
        let got = match got {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Ok(got) if got > 0 => got,
            failed => {
                let why = failed.map_or_else(|error| error.to_string(), |_| "it shrank".into());
                self.missing.get_or_insert((self.left, why));
                buffer.fill(0);
                wanted
            }
        };
        self.left -= got as u64;
        Ok(got)
    }
}
