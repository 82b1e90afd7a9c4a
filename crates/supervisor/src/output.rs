//! The output files, and the pumps that fill them where the agent writes into pipes.
//!
//! With [`outlive_core::spec::Capture::File`] nothing is pumped: the agent's stdout and stderr are the files. With pipes, bytes go
//! from pipe to file inside the kernel, so that this process may die at any instant without losing one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use outlive_core::spec::Spec;
use rustix::pipe::{SpliceFlags, splice};

use crate::complain;
use crate::files::{FileError, parent, sync_dir};

/// One call moves at most this much: more than a pipe holds by default.
const MOVE_BYTES_MAX: usize = 1 << 20;
/// A copy by hand, where a file system cannot splice, is lost if we die in it: a small one.
const COPY_BYTES_MAX: usize = 4096;
/// Between two tries when the file cannot grow: at first, and at most.
const RETRY_MS: (u64, u64) = (10, 1000);

/// Both output files as the supervisor sees them.
#[derive(Debug)]
pub(crate) struct Output {
    files: [Option<File>; 2],
    pumps: [Option<Pump>; 2],
    /// Both streams go into one file: it is counted once.
    shared: bool,
}

impl Output {
    /// Opens both files, and creates them durably if need be.
    pub(crate) fn open(spec: &Spec) -> Result<Self, FileError> {
        let open = |path: &str| open_file(Path::new(path)).map(Some);
        let files = [open(&spec.stdout)?, open(&spec.stderr)?];
        Ok(Self { files, pumps: [None, None], shared: spec.stdout == spec.stderr })
    }

    /// For an agent that will not run: no file at all.
    pub(crate) fn none() -> Self {
        Self { files: [None, None], pumps: [None, None], shared: false }
    }

    /// Starts to empty a pipe (0: stdout, 1: stderr) into its file, from the file's present end on.
    pub(crate) fn pump(&mut self, stream: usize, pipe: OwnedFd) {
        let Some(Some(file)) = self.files.get(stream) else { return };
        let offset = length(Some(file));
        if let Some(slot) = self.pumps.get_mut(stream) {
            *slot = Some(Pump { pipe, offset, splices: true, unwritten: Vec::new(), stuck: None });
        }
    }

    /// Lengths of both files in bytes.
    pub(crate) fn lengths(&self) -> [u64; 2] {
        let [stdout, stderr] = &self.files;
        [length(stdout.as_ref()), length(stderr.as_ref())]
    }

    /// Bytes in both files together.
    pub(crate) fn total(&self) -> u64 {
        let [stdout, stderr] = self.lengths();
        if self.shared { stdout } else { stdout.saturating_add(stderr) }
    }

    /// Makes durable what was written.
    pub(crate) fn sync(&self) {
        for file in self.files.iter().flatten() {
            if let Err(error) = file.sync_data() {
                complain(format_args!("cannot sync an output file: {error}"));
            }
        }
    }

    /// The pipes to wait for: those that are open and whose file takes bytes.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let pumps = self.pumps.iter().flatten().filter(|pump| pump.stuck.is_none());
        pumps.map(|pump| pump.pipe.as_fd())
    }

    /// Whether anything is pumped at all.
    pub(crate) fn is_pumped(&self) -> bool {
        self.pumps.iter().any(Option::is_some)
    }

    /// When a stuck pump is to be tried again.
    pub(crate) fn retry_at(&self) -> Option<u64> {
        let stuck = self.pumps.iter().flatten().filter_map(|pump| pump.stuck.as_ref());
        stuck.map(|stuck| stuck.retry_at).min()
    }

    /// Moves what is in the pipes now, and no more: somebody may go on writing for ever. True: nothing of it is left behind.
    pub(crate) fn drain(&mut self, now: u64) -> bool {
        let mut drained = true;
        for (slot, file) in self.pumps.iter_mut().zip(&self.files) {
            let (Some(pump), Some(file)) = (slot.as_mut(), file) else { continue };
            if pump.stuck.as_ref().is_some_and(|stuck| now < stuck.retry_at) {
                drained = false;
                continue;
            }
            match pump.drain(file) {
                Ok(Flow::Moved) => pump.stuck = None,
                Ok(Flow::Closed) => *slot = None,
                Err(error) => {
                    pump.get_stuck(now, &error);
                    drained = false;
                }
            }
        }
        drained
    }

    /// Whether bytes find no way into their file: then the agent waits, and not we for it.
    pub(crate) fn is_stuck(&self) -> bool {
        self.retry_at().is_some()
    }

    /// Whether the bytes left behind wait for space, which may come, rather than for a fault that stays.
    pub(crate) fn waits_for_space(&self) -> bool {
        let stuck = self.pumps.iter().flatten().filter_map(|pump| pump.stuck.as_ref());
        let mut kinds = stuck.map(|stuck| stuck.kind);
        kinds.any(|kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

fn open_file(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = options.create(true).truncate(false).open(path);
            let file = file.map_err(FileError::at("create", path))?;
            sync_dir(parent(path)?)?;
            Ok(file)
        }
        opened => opened.map_err(FileError::at("open", path)),
    }
}

fn length(file: Option<&File>) -> u64 {
    file.and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len())
}

/// One pipe on its way into one file.
#[derive(Debug)]
struct Pump {
    pipe: OwnedFd,
    /// Where the next byte goes.
    offset: u64,
    /// The file system can take pages from a pipe.
    splices: bool,
    /// Read by hand and not written yet.
    unwritten: Vec<u8>,
    stuck: Option<Stuck>,
}

#[derive(Debug)]
struct Stuck {
    kind: io::ErrorKind,
    retry_at: u64,
    wait_ms: u64,
}

enum Flow {
    /// What was there is in the file.
    Moved,
    /// Nobody can write into the pipe any more, and it is empty.
    Closed,
}

impl Pump {
    fn drain(&mut self, file: &File) -> io::Result<Flow> {
        let mut left = rustix::io::ioctl_fionread(&self.pipe)?;
        loop {
            let moved = match self.move_some(file) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flow::Moved),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                moved => moved?,
            };
            if moved == 0 {
                return Ok(Flow::Closed);
            }
            left = left.saturating_sub(moved);
            if left == 0 {
                return Ok(Flow::Moved);
            }
        }
    }

    fn move_some(&mut self, file: &File) -> io::Result<u64> {
        if !self.splices {
            return self.copy_some(file);
        }
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let to = Some(&mut self.offset);
        match splice(&self.pipe, None, file, to, MOVE_BYTES_MAX, flags) {
            Ok(moved) => Ok(moved as u64),
            Err(rustix::io::Errno::INVAL) => {
                self.splices = false;
                self.copy_some(file)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What has been read and not written is kept, and goes first at the next try.
    fn copy_some(&mut self, file: &File) -> io::Result<u64> {
        if self.unwritten.is_empty() {
            let mut buffer = [0; COPY_BYTES_MAX];
            let count = rustix::io::read(&self.pipe, &mut buffer)?;
            self.unwritten.extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
        file.write_all_at(&self.unwritten, self.offset)?;
        let count = self.unwritten.len() as u64;
        self.offset = self.offset.saturating_add(count);
        self.unwritten.clear();
        Ok(count)
    }

    fn get_stuck(&mut self, now: u64, error: &io::Error) {
        let (first, most) = RETRY_MS;
        let wait_ms = self.stuck.as_ref().map(|stuck| stuck.wait_ms.saturating_mul(2).min(most));
        if wait_ms.is_none() {
            complain(format_args!("cannot write output, the agent waits: {error}"));
        }
        let wait_ms = wait_ms.unwrap_or(first);
        let retry_at = now.saturating_add(wait_ms);
        self.stuck = Some(Stuck { kind: error.kind(), retry_at, wait_ms });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pump_into(file: &File) -> (Pump, OwnedFd) {
        let flags = rustix::pipe::PipeFlags::NONBLOCK;
        let (pipe, writer) = rustix::pipe::pipe_with(flags).expect("pipe");
        let offset = length(Some(file));
        (Pump { pipe, offset, splices: true, unwritten: Vec::new(), stuck: None }, writer)
    }

    fn temp_file(name: &str, append: bool) -> (File, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("outlive-{name}-{}", std::process::id()));
        let file = OpenOptions::new().append(append).write(true).create(true).open(&path);
        (file.expect("opens"), path)
    }

    #[test]
    fn a_file_that_cannot_be_spliced_into_gets_the_same_bytes() {
        // Files opened for appending refuse splice with EINVAL, as some file systems do.
        for append in [false, true] {
            let (file, path) = temp_file("splice", append);
            let (mut pump, writer) = pump_into(&file);
            let bytes: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).take(60_000).collect();
            assert_eq!(rustix::io::write(&writer, &bytes).expect("fits"), bytes.len());
            assert!(matches!(pump.drain(&file), Ok(Flow::Moved)));
            assert_eq!(pump.splices, !append);
            drop(writer);
            assert!(matches!(pump.drain(&file), Ok(Flow::Closed)));
            assert_eq!(std::fs::read(&path).expect("reads"), bytes);
            std::fs::remove_file(path).expect("removes");
        }
    }

    #[test]
    fn a_full_disk_loses_no_byte_of_either_way() {
        // /dev/full refuses every write with ENOSPC. A real small file system is tried in the process tests.
        let full = OpenOptions::new().write(true).open("/dev/full").expect("opens");
        let (file, path) = temp_file("full", false);
        let (mut pump, writer) = pump_into(&file);
        pump.splices = false;
        rustix::io::write(&writer, b"precious").expect("fits");
        let error = pump.drain(&full).err().expect("refused");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        pump.get_stuck(100, &error);
        assert_eq!(pump.stuck.as_ref().map(|stuck| stuck.retry_at), Some(110));
        assert!(matches!(pump.drain(&file), Ok(Flow::Moved | Flow::Closed)));
        assert_eq!(std::fs::read(&path).expect("reads"), b"precious");
        std::fs::remove_file(path).expect("removes");
    }
}
