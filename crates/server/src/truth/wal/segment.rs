//! One segment: its name, its making, and the spare one that is made ahead of need.
//!
//! Absent: frames. What goes into a segment is the writer's business, what is found in one the reader's.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use outlive_core::file_header::{FileHeader, FileKind};
use outlive_core::planted::planted;
use outlive_core::record::{FILE_HEADER_BYTES, FRAME_BYTES_MIN};

use super::{Config, WalError, crash_point, io_at};
use crate::truth::disk::DiskFile;

/// Where frames begin, and how much the header's copy takes at the end.
pub(super) const HEADER: u64 = FILE_HEADER_BYTES as u64;

/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// How long a mark or a seal is.
pub(super) const NOTE: u64 = FRAME_BYTES_MIN as u64;

/// The first place from `position` on where a mark or a seal lies within one sector, and so is there or not, never torn.
pub(super) fn place_of_note(position: u64) -> u64 {
    let whole = position / SECTOR == (position + NOTE - 1) / SECTOR;
    if whole { position } else { position.next_multiple_of(SECTOR) }
}

/// The ending of files being made.
pub(super) const TEMP: &str = ".tmp";

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.seg"))
}

/// The number in a file name like `0000000000000001.seg`; `None` for any other name.
pub(super) fn number_of(name: &std::ffi::OsStr, ending: &str) -> Option<u64> {
    let digits = name.to_str()?.strip_suffix(ending)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    // Only the one way of writing it.
    (format!("{number:016x}") == digits).then_some(number)
}

/// A segment that records can be written into.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn DiskFile>,
    pub(super) nonce: u64,
    /// Where the room for frames ends.
    pub(super) end: u64,
}

/// Makes a segment of at least `bytes`, full of zeros, durable under its name.
pub(super) fn make(config: &Config, number: u64, bytes: u64) -> Result<Segment, WalError> {
    let temp = config.dir.join(format!("{number:016x}.seg{TEMP}"));
    let made = fill(config, number, bytes, &temp);
    if made.is_err() {
        // Space may be short: do not keep what is of no use. The first error is the one that counts.
        drop(config.disk.remove(&temp));
    }
    let (file, nonce) = made?;
    let path = path(&config.dir, number);
    // R2: file synced, renamed, directory synced, all before the first record.
    crash_point("wal.segment_before_rename");
    config.disk.rename(&temp, &path).map_err(io_at("rename into place", &path))?;
    crash_point("wal.segment_after_rename");
    if !planted("wal.no_dir_sync") {
        config.disk.sync_dir(&config.dir).map_err(io_at("sync", &config.dir))?;
    }
    Ok(Segment { number, path, file, nonce, end: bytes - HEADER })
}

fn fill(
    config: &Config,
    number: u64,
    bytes: u64,
    temp: &Path,
) -> Result<(Box<dyn DiskFile>, u64), WalError> {
    let file = config.disk.create_new(temp).map_err(io_at("create", temp))?;
    file.overwrite_in_place();
    let nonce = (config.nonce)();
    let kind = FileKind::Segment;
    let header = FileHeader { kind, instance: config.instance, nonce, number, count: bytes };
    let header = header.encode();
    file.write_all_at(&header, 0)
        .and_then(|()| file.write_zeros_at(HEADER, bytes - HEADER))
        .and_then(|()| file.write_all_at(&header, bytes - HEADER))
        .map_err(io_at("write", temp))?;
    file.sync_all().map_err(io_at("sync", temp))?;
    Ok((file, nonce))
}

/// The next segment, made ahead so that a change of segment costs no file operation.
#[derive(Debug)]
pub(super) struct Spare {
    config: Config,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
enum State {
    /// To be made.
    Wanted { number: u64, bytes: u64 },
    /// Being made; by one thread only.
    Making,
    /// Made and durable, the first one last; the one to be made after them gets the number `next`.
    Ready { segments: Vec<Segment>, next: u64 },
    /// Could not be made: tried again when it is asked for.
    Failed { number: u64, bytes: u64, error: WalError },
    /// Nobody needs it any more.
    Closed,
}

impl Spare {
    /// `found` are the empty segments that are there, the first one last.
    pub(super) fn new(config: Config, found: Vec<Segment>, next_number: u64) -> Arc<Self> {
        let bytes = config.segment_bytes;
        let state = if found.is_empty() {
            State::Wanted { number: next_number, bytes }
        } else {
            State::Ready { segments: found, next: next_number }
        };
        Arc::new(Self { config, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why there is none, if it could not be made.
    pub(super) fn problem(&self) -> Option<String> {
        match &*self.lock() {
            State::Failed { error, .. } => Some(error.in_full()),
            State::Wanted { .. } | State::Making | State::Ready { .. } | State::Closed => None,
        }
    }

    /// Asks for another try after a failed one (space may have come back).
    pub(super) fn retry(&self) {
        let mut state = self.lock();
        if let State::Failed { number, bytes, .. } = *state {
            *state = State::Wanted { number, bytes };
            self.changed.notify_all();
        }
    }

    pub(super) fn close(&self) {
        *self.lock() = State::Closed;
        self.changed.notify_all();
    }

    /// Makes the next one if one is wanted; says whether there will be more to do.
    pub(super) fn make_if_wanted(&self) -> bool {
        let (number, bytes) = {
            let mut state = self.lock();
            let State::Wanted { number, bytes } = *state else {
                return !matches!(*state, State::Closed);
            };
            *state = State::Making;
            (number, bytes)
        };
        let made = make(&self.config, number, bytes);
        let mut state = self.lock();
        if matches!(*state, State::Closed) {
            return false;
        }
        *state = match made {
            Ok(segment) => State::Ready { segments: vec![segment], next: number + 1 },
            Err(error) => State::Failed { number, bytes, error },
        };
        self.changed.notify_all();
        true
    }

    /// The body of the thread that makes spare segments; ends when closed.
    pub(super) fn work(&self) {
        while self.make_if_wanted() {
            let idle = |state: &mut State| !matches!(state, State::Wanted { .. } | State::Closed);
            let waited = self.changed.wait_while(self.lock(), idle);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Takes the next segment, waiting for it to be made if need be, and orders the one after it.
    ///
    /// If it has less room than `frame` bytes, the caller asks again; the one after it will have. `inline`: there is no other thread.
    pub(super) fn take(&self, frame: u64, inline: bool) -> Result<Segment, WalError> {
        // One new try after a failure, no more: then the disk is full indeed.
        self.retry();
        if inline {
            self.make_if_wanted();
        }
        let waiting = |state: &mut State| matches!(state, State::Wanted { .. } | State::Making);
        let mut state =
            self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Closed) {
            State::Ready { mut segments, next } => {
                let segment = segments.pop().expect("never kept empty");
                let fits = HEADER + frame <= segment.end;
                if segments.is_empty() {
                    let needed = (frame + 2 * HEADER).next_multiple_of(4096);
                    let usual = self.config.segment_bytes;
                    let bytes = if fits { usual } else { usual.max(needed) };
                    *state = State::Wanted { number: next, bytes };
                } else {
                    *state = State::Ready { segments, next };
                }
                self.changed.notify_all();
                Ok(segment)
            }
            State::Failed { error, .. } => Err(error),
            State::Wanted { .. } | State::Making | State::Closed => {
                unreachable!("only the writer closes it, and it takes no more then")
            }
        }
    }
}
