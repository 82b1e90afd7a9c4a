//! Opening: find what there is, judge it, make it whole, and only then hand it over.
//!
//! Every step may be cut off by a crash and is done again, with the same result, at the next start (R15). Nothing is touched before
//! every file proved to be ours and of a version known here.

use std::mem::take;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outlive_core::ids::Lsn;
use outlive_core::planted::planted;
use outlive_core::record::{FRAME_BYTES_MIN, FrameKind, Position, encode};

use super::checkpoint::Checkpointer;
use super::judge::Judgement;
use super::reader::{Found, Span};
use super::segment::{self, HEADER, Segment, Spare, TEMP};
use super::survey::{Survey, survey};
use super::{Config, Damage, Opened, Report, WalError, crash_point, io_at};
use crate::truth::disk::DiskFile;

/// What the write-ahead log's parts share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The last durable lsn.
    pub(super) durable: AtomicU64,
    /// Segments in use with the lsn that each begins with, oldest first; the last is being appended to.
    segments: Mutex<Vec<(u64, Lsn)>>,
    pub(super) spare: Arc<Spare>,
}

impl Shared {
    pub(super) fn segments(&self) -> MutexGuard<'_, Vec<(u64, Lsn)>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of an opened write-ahead log, to be started from.
#[derive(Debug)]
pub struct Log {
    pub(super) tail: Segment,
    pub(super) position: u64,
    pub(super) last: Lsn,
    /// What the mark on disk says; [`Lsn::NONE`] without one.
    pub(super) marked: Lsn,
    /// The checksum of the last record's header; 0 without one.
    pub(super) chain: u32,
    pub(super) shared: Arc<Shared>,
    pub(super) checkpointer: Checkpointer,
}

/// Opens the write-ahead log: reads it, cuts off a torn group, writes doubtful records again, and hands over what is durable then.
///
/// Refused untouched: files of another data directory or of a newer version.
pub fn open(config: Config) -> Result<Opened, WalError> {
    if matches!(config.disk.list(&config.dir), Err(e) if e.kind() == std::io::ErrorKind::NotFound) {
        config.disk.create_dir(&config.dir).map_err(io_at("create", &config.dir))?;
    }
    let mut survey = survey(&config, false, true)?;
    if survey.fresh {
        // Also where the directory is there: a crash may have come before its name was durable.
        make_dir(&config, &config.dir)?;
    }
    let (mut judgement, mut report) = survey.judge();
    for temp in &survey.temps {
        config.disk.remove(temp).map_err(io_at("remove", temp))?;
    }
    report.temp_files_removed = survey.temps.len();
    // A crash may have come between a rename and this: no segment is written into before its name is durable (R2).
    config.disk.sync_dir(&config.dir).map_err(io_at("sync", &config.dir))?;
    quarantine(&config, &survey, &mut report);
    mend(&survey.segments, &judgement)?;
    let checkpoint = survey.checkpoint.take().map(|c| c.entries).unwrap_or_default();
    let (broken, lost) = (take(&mut judgement.broken), take(&mut judgement.lost));
    let records = take(&mut judgement.records);
    let log = hand_over(config, survey, &judgement)?;
    Ok(Opened { checkpoint, records, report, broken, lost, log })
}

/// Makes a directory and its name durable.
fn make_dir(config: &Config, dir: &Path) -> Result<(), WalError> {
    config.disk.create_dir(dir).map_err(io_at("create", dir))?;
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    config.disk.sync_dir(parent).map_err(io_at("sync", parent))
}

/// Writes doubtful records again, in place; then zeroes the torn group behind its seal. Durable when it returns.
fn mend(segments: &[Found], judgement: &Judgement) -> Result<(), WalError> {
    for (index, segment) in segments.iter().enumerate() {
        let (file, path) = (segment.window.file(), &segment.path);
        let trusted = planted("wal.trusted_page_cache");
        let doubtful: Vec<Span> = here(&judgement.doubtful, index).filter(|_| !trusted).collect();
        let sealed = !planted("wal.no_seal");
        let seals: Vec<u64> = here(&judgement.seals, index).filter(|_| sealed).collect();
        for span in &doubtful {
            crash_point("wal.rewrite");
            // I8: what the page cache shows need not be on disk, and only writing it makes the next sync mean something.
            let len = usize::try_from(span.end - span.start).unwrap_or_default();
            let mut bytes = vec![0; len];
            let read = file.read_full_at(&mut bytes, span.start).map_err(io_at("read", path))?;
            let bytes = bytes.get(..read).unwrap_or_default();
            file.write_all_at(bytes, span.start).map_err(io_at("write", path))?;
        }
        for place in &seals {
            crash_point("wal.seal");
            let (lsn, synced_through) = (judgement.last, judgement.synced);
            let position = Position { lsn, synced_through, chain: 0 };
            let nonce = segment.nonce.unwrap_or_default();
            let mut seal = Vec::with_capacity(FRAME_BYTES_MIN);
            encode(&mut seal, nonce, FrameKind::Seal, position, &[], &[])?;
            file.write_all_at(&seal, *place).map_err(io_at("write", path))?;
        }
        if !doubtful.is_empty() || !seals.is_empty() {
            crash_point("wal.mend_before_sync");
            file.sync_data().map_err(io_at("sync", path))?;
        }
    }
    // Only now: until here what is to be zeroed was the proof of what the seals say.
    for (index, segment) in segments.iter().enumerate() {
        let (file, path) = (segment.window.file(), &segment.path);
        let mut zeroed = false;
        let cut = !planted("wal.no_cut");
        for span in here(&judgement.blank, index).filter(|span| cut && span.start < span.end) {
            crash_point("wal.cut");
            file.write_zeros_at(span.start, span.end).map_err(io_at("write", path))?;
            zeroed = true;
        }
        if zeroed {
            crash_point("wal.cut_before_sync");
            file.sync_data().map_err(io_at("sync", path))?;
        }
    }
    Ok(())
}

/// What of it lies in this segment.
fn here<T: Copy>(places: &[(usize, T)], index: usize) -> impl Iterator<Item = T> {
    places.iter().filter(move |(i, _)| *i == index).map(|(_, place)| *place)
}

/// Turns the mended directory into a write-ahead log that can be started.
fn hand_over(config: Config, survey: Survey, judged: &Judgement) -> Result<Log, WalError> {
    let next_lsn = judged.last.next();
    let tail = judged.tail.map(|(index, _)| index);
    let mut in_use = survey.passed;
    let mut empty = Vec::new();
    let mut active = None;
    for (index, found) in survey.segments.into_iter().enumerate() {
        if tail.is_none_or(|tail| index <= tail) {
            in_use.push((found.number, found.first));
        }
        if tail.is_some_and(|tail| index >= tail)
            && let Some(segment) = found.into_segment()
        {
            if tail == Some(index) { active = Some(segment) } else { empty.push(segment) }
        }
    }
    let mut next_number = survey.next_number;
    let tail = if let Some(segment) = active {
        segment
    } else {
        let segment = segment::make(&config, next_number, config.segment_bytes)?;
        in_use.push((next_number, Some(next_lsn)));
        next_number += 1;
        segment
    };
    empty.reverse();
    // A segment whose first lsn is not known is taken to begin where the next one does.
    let mut first = next_lsn;
    let mut segments: Vec<(u64, Lsn)> = Vec::with_capacity(in_use.len());
    for (number, known) in in_use.into_iter().rev() {
        first = known.unwrap_or(first);
        segments.push((number, first));
    }
    segments.reverse();
    let shared = Arc::new(Shared {
        durable: AtomicU64::new(judged.last.0),
        segments: Mutex::new(segments),
        spare: Spare::new(config.clone(), empty, next_number),
    });
    Ok(Log {
        tail,
        position: judged.tail.map_or(HEADER, |(_, position)| position.next_multiple_of(8)),
        last: judged.last,
        marked: if judged.marked { judged.last } else { Lsn::NONE },
        chain: judged.chain,
        checkpointer: Checkpointer::new(config, Arc::clone(&shared), survey.kept),
        shared,
    })
}

/// Keeps the bytes that could not be read. A failure to do so is not a reason not to start: it is noted with the damage.
fn quarantine(config: &Config, survey: &Survey, report: &mut Report) {
    let nothing_moves = survey.rejected.is_empty() && survey.copies.is_empty();
    if report.damage.iter().all(|damage| damage.harmless) && nothing_moves {
        return;
    }
    let made = make_dir(config, &config.quarantine).err();
    for damage in &mut report.damage {
        let moves = survey.rejected.iter().any(|loaded| loaded.path == damage.file)
            || survey.copies.iter().any(|copy| copy.path == damage.file);
        if !moves && (damage.bytes == 0 || damage.harmless) {
            continue;
        }
        let kept = match &made {
            Some(error) => Err(error.to_string()),
            None if moves => move_away(config, &damage.file),
            None => copy_away(config, damage),
        };
        match kept {
            Ok(path) => damage.kept = Some(path),
            Err(error) => damage.what = format!("{}; not kept: {error}", damage.what),
        }
    }
}

fn move_away(config: &Config, file: &Path) -> Result<PathBuf, String> {
    let to = config.quarantine.join(file.file_name().unwrap_or_default());
    let moved = config.disk.rename(file, &to).or_else(|error| {
        // Several flaws of one file: it was moved for the first of them.
        let gone = error.kind() == std::io::ErrorKind::NotFound;
        if gone { config.disk.open_read(&to).map(drop) } else { Err(error) }
    });
    moved
        .and_then(|()| config.disk.sync_dir(&config.quarantine))
        .and_then(|()| config.disk.sync_dir(&config.dir))
        .map_err(|error| error.to_string())?;
    Ok(to)
}

fn copy_away(config: &Config, damage: &Damage) -> Result<PathBuf, String> {
    let name = damage.file.file_name().unwrap_or_default().to_string_lossy();
    let to = config.quarantine.join(format!("{name}-{}+{}", damage.offset, damage.bytes));
    let copy = || -> std::io::Result<()> {
        if config.disk.open_read(&to).is_ok() {
            return Ok(());
        }
        let temp = to.with_extension(format!("{:x}{TEMP}", (config.nonce)()));
        let from = config.disk.open_read(&damage.file)?;
        let into = config.disk.create_new(&temp)?;
        copy_range(&*from, &*into, damage.offset, damage.bytes)?;
        into.sync_all()?;
        config.disk.rename(&temp, &to)?;
        config.disk.sync_dir(&config.quarantine)
    };
    copy().map(|()| to.clone()).map_err(|error| error.to_string())
}

fn copy_range(
    from: &dyn DiskFile,
    into: &dyn DiskFile,
    start: u64,
    len: u64,
) -> std::io::Result<()> {
    let mut buf = vec![0; 64 << 10];
    let mut done = 0;
    while done < len {
        let want = usize::try_from(len - done).map_or(buf.len(), |left| left.min(buf.len()));
        let read = from.read_full_at(buf.get_mut(..want).unwrap_or_default(), start + done)?;
        if read == 0 {
            break;
        }
        into.write_all_at(buf.get(..read).unwrap_or_default(), done)?;
        done += read as u64;
    }
    Ok(())
}
