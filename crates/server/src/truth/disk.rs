//! The disk as a small set of calls, so that a faulty one can be put in its place.
//!
//! Absent: policy. Which error is fatal, and what is synced when, is for the callers to say.

#[cfg(any(test, fuzzing))]
pub mod sim;

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use outlive_core::planted::planted;

/// Zeros to write or to compare with.
pub static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Calls on names. All paths are whole paths; errors are the system's own.
pub trait Disk: Send + Sync + Debug {
    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;
    /// Makes a private directory (0700); not an error if it is there.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Opens an existing file to read.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file to read and write.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Makes a private file (0600) that must not be there yet.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Renames, replacing what was there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file's name.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// Calls on one open file.
pub trait DiskFile: Send + Debug {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Reads once; may give fewer bytes than there is room for, 0 only at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes once; may take fewer bytes than given.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes contents and length durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    /// The same with all metadata (fsync), for a file just made.
    fn sync_all(&self) -> io::Result<()>;
    /// Asks that later overwriting needs no new space, where that has to be asked for; to be called on an empty file.
    ///
    /// Only a wish: the answer says whether it was granted.
    fn overwrite_in_place(&self) -> bool {
        false
    }

    /// Reads until `buf` is full or the file ends; says how much there was.
    fn read_full_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes all of `bytes`, whatever number of calls that takes.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match self.write_at(rest, offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) if planted("disk.short_write") => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes zeros over a range.
    fn write_zeros_at(&self, mut offset: u64, end: u64) -> io::Result<()> {
        while offset < end {
            let len = usize::try_from(end - offset).map_or(ZEROS.len(), |n| n.min(ZEROS.len()));
            self.write_all_at(ZEROS.get(..len).unwrap_or(&ZEROS), offset)?;
            offset += len as u64;
        }
        Ok(())
    }
}

/// The machine's own disk, by way of libc.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let names = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        match std::fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(File::open(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that may; callers sync")]
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// A file of [`RealDisk`].
#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn overwrite_in_place(&self) -> bool {
        outlive_supervisor::overwrite_in_place(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes at a time, and is interrupted every second time.
    #[derive(Debug, Default)]
    struct Stubborn(std::sync::Mutex<(Vec<u8>, u32)>);

    impl Stubborn {
        fn interrupted(&self) -> io::Result<()> {
            let mut state = self.0.lock().unwrap();
            state.1 += 1;
            if state.1.is_multiple_of(2) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        }
    }

    impl DiskFile for Stubborn {
        fn size(&self) -> io::Result<u64> {
            Ok(self.0.lock().unwrap().0.len() as u64)
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.interrupted()?;
            let state = self.0.lock().unwrap();
            let rest = &state.0[usize::try_from(offset).unwrap().min(state.0.len())..];
            let n = rest.len().min(3).min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            self.interrupted()?;
            let mut state = self.0.lock().unwrap();
            let n = bytes.len().min(3);
            state.0.truncate(usize::try_from(offset).unwrap());
            state.0.extend_from_slice(&bytes[..n]);
            Ok(n)
        }
        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
        fn sync_all(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn short_and_interrupted_calls_are_repeated_until_all_is_done() {
        let file = Stubborn::default();
        file.write_all_at(b"all of these bytes", 0).unwrap();
        let mut buf = [0; 30];
        assert_eq!(file.read_full_at(&mut buf, 0).unwrap(), 18);
        assert_eq!(&buf[..18], b"all of these bytes");
        file.write_zeros_at(18, 70_000).unwrap();
        assert_eq!(file.size().unwrap(), 70_000);
    }
}
