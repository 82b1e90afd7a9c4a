//! Checkpoints: the state of every entity in one file, so that the records before it are no longer needed.
//!
//! Absent: when to write one, and what a state is. Writing runs on the caller's thread and never touches the segment that
//! is being appended to, so it never stalls an append.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use outlive_core::checkpoint::{Entry, encode_end, entity_of};
use outlive_core::file_header::{FileHeader, FileKind};
use outlive_core::ids::Lsn;
use outlive_core::limits::CHECKPOINT_ENTRIES_MAX;
use outlive_core::planted::planted;
use outlive_core::record::{EntityKey, Flaw, FrameKind, Header};

use super::reader::{After, Piece, Span, Window, open_segment, read_header};
use super::recover::Shared;
use super::segment::{self, HEADER, TEMP};
use super::{Config, Damage, WalError, crash_point, io_at};
use crate::truth::disk::DiskFile;

/// Entries are written in pieces of about this size.
const WRITE_BYTES: usize = 256 << 10;
/// How many checkpoints are kept: one to use, and one for when that is damaged.
const KEPT: usize = 2;

pub(super) fn path(dir: &Path, lsn: Lsn) -> PathBuf {
    dir.join(format!("{:016x}.ckpt", lsn.0))
}

/// A checkpoint as it was found.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) lsn: Lsn,
    pub(super) path: PathBuf,
    /// Header and end are there.
    pub(super) good: bool,
    pub(super) entries: Vec<Entry>,
    /// Entities whose entry's header holds but whose body does not, with the entry's lsn and place.
    pub(super) broken: Vec<(EntityKey, Lsn, Span, Flaw)>,
    /// What else is wrong, and where.
    pub(super) flaws: Vec<(Span, &'static str)>,
    pub(super) bytes_read: u64,
    /// The checksum of the header of the last record that it covers; 0 if it does not tell.
    pub(super) chain: u32,
}

impl Loaded {
    pub(super) fn flawless(&self) -> bool {
        self.good && self.flaws.is_empty() && self.broken.is_empty()
    }

    /// Its records are not those that are here: it is of no use, whatever it says.
    pub(super) fn disown(&mut self) {
        let whole = Span { start: 0, end: self.bytes_read };
        self.good = false;
        self.flaws.push((whole, "the checkpoint is of another history than the records"));
    }

    /// Everything that is wrong with it. `harmless`: nothing hangs on it, for another one is used.
    pub(super) fn damage(&self, harmless: bool) -> impl Iterator<Item = Damage> {
        let damage = move |span: &Span, what: String, entities, lsns| Damage {
            file: self.path.clone(),
            offset: span.start,
            bytes: span.end - span.start,
            what,
            lsns,
            entities,
            harmless,
            kept: None,
        };
        let flaws = self.flaws.iter().map(move |(span, what)| {
            let lsns = Lsn(1)..=self.lsn;
            damage(span, (*what).to_owned(), None, lsns)
        });
        let broken = self.broken.iter().map(move |(entity, lsn, span, why)| {
            let entities = Some(vec![entity.clone()]);
            damage(span, why.to_string(), entities, *lsn..=*lsn)
        });
        flaws.chain(broken)
    }
}

/// Refuses a checkpoint of another data directory or of a newer version.
pub(super) fn is_ours(config: &Config, lsn: Lsn) -> Result<(), WalError> {
    let path = path(&config.dir, lsn);
    let file = config.disk.open_read(&path).map_err(io_at("open", &path))?;
    read_header(config, &*file, &path, 0, FileKind::Checkpoint).map(drop)
}

/// Reads a checkpoint, whatever its state.
pub(super) fn load(config: &Config, lsn: Lsn) -> Result<Loaded, WalError> {
    let path = path(&config.dir, lsn);
    let file = config.disk.open_read(&path).map_err(io_at("open", &path))?;
    let size = file.size().map_err(io_at("measure", &path))?;
    let header = read_header(config, &*file, &path, 0, FileKind::Checkpoint)?;
    let whole = Span { start: 0, end: size };
    let mut loaded = Loaded {
        lsn,
        path: path.clone(),
        good: false,
        entries: Vec::new(),
        broken: Vec::new(),
        flaws: Vec::new(),
        bytes_read: 0,
        chain: 0,
    };
    let known = |h: &FileHeader| h.number == lsn.0 && h.count <= CHECKPOINT_ENTRIES_MAX;
    let Some(header) = header.filter(known) else {
        loaded.flaws.push((whole, "the checkpoint's header is damaged"));
        return Ok(loaded);
    };
    let mut window = Window::new(file, &path, size);
    let accept = |h: &Header, _: After| match h.kind {
        FrameKind::Entry => h.lsn <= lsn && entity_of(h).is_some(),
        FrameKind::End => h.lsn == lsn,
        FrameKind::Record | FrameKind::Mark | FrameKind::Seal => false,
    };
    let mut after = After::default();
    let pieces = window.pieces(header.nonce, &mut after, accept, |_| true)?;
    loaded.bytes_read = window.bytes_read;
    for piece in pieces {
        loaded.take(piece);
    }
    if !loaded.good {
        loaded.flaws.push((whole, "the checkpoint has no end"));
    }
    let seen = (loaded.entries.len() + loaded.broken.len()) as u64;
    if seen != header.count && loaded.flaws.is_empty() {
        loaded.flaws.push((whole, "the checkpoint lacks entries"));
    }
    Ok(loaded)
}

impl Loaded {
    fn take(&mut self, piece: Piece) {
        match piece {
            Piece::Hole { span } => {
                self.flaws.push((span, "an entry of the checkpoint is damaged"));
            }
            Piece::Frame { header, .. } if header.kind == FrameKind::End => {
                (self.good, self.chain) = (true, header.chain);
            }
            Piece::Frame { header, body: Ok(body), .. } => {
                self.entries.extend(Entry::from_frame(&header, &body));
            }
            Piece::Frame { header, body: Err(why), span } => {
                let entity = entity_of(&header).cloned();
                self.broken.extend(entity.map(|entity| (entity, header.lsn, span, why)));
            }
        }
    }
}

/// Writes a whole checkpoint into a new file, and syncs it. `chain` is the checksum of the header of record `lsn`, 0 where there is
/// none.
pub(super) fn write_file(
    config: &Config,
    temp: &Path,
    (lsn, chain): (Lsn, u32),
    entries: impl Iterator<Item = Entry>,
) -> Result<(), WalError> {
    let file = config.disk.create_new(temp).map_err(io_at("create", temp))?;
    let nonce = (config.nonce)();
    let (mut buf, mut at, mut count) = (Vec::new(), HEADER, 0);
    let flush = |buf: &mut Vec<u8>, at: &mut u64, file: &dyn DiskFile| {
        file.write_all_at(buf, *at).map_err(io_at("write", temp))?;
        *at += buf.len() as u64;
        buf.clear();
        Ok::<_, WalError>(())
    };
    for entry in entries {
        count += 1;
        if count > CHECKPOINT_ENTRIES_MAX {
            return Err(WalError::TooManyEntries(CHECKPOINT_ENTRIES_MAX));
        }
        entry.encode(&mut buf, nonce)?;
        if buf.len() >= WRITE_BYTES {
            flush(&mut buf, &mut at, &*file)?;
        }
    }
    encode_end(&mut buf, nonce, lsn, chain);
    flush(&mut buf, &mut at, &*file)?;
    let kind = FileKind::Checkpoint;
    let header = FileHeader { kind, instance: config.instance, nonce, number: lsn.0, count };
    file.write_all_at(&header.encode(), 0).map_err(io_at("write", temp))?;
    if planted("wal.no_temp_sync") {
        return Ok(());
    }
    // R3: never renamed before it is synced.
    file.sync_all().map_err(io_at("sync", temp))
}

/// Writes checkpoints and removes what they make superfluous. Cheap to clone; one at a time writes.
#[derive(Debug, Clone)]
pub struct Checkpointer {
    config: Config,
    shared: Arc<Shared>,
    /// The checkpoints on disk, oldest first.
    kept: Arc<Mutex<Vec<Lsn>>>,
}

impl Checkpointer {
    pub(super) fn new(config: Config, shared: Arc<Shared>, mut kept: Vec<Lsn>) -> Self {
        kept.sort();
        Self { config, shared, kept: Arc::new(Mutex::new(kept)) }
    }

    /// Writes the state as of `lsn`, then removes checkpoints and segments that are no longer needed.
    ///
    /// Nothing is done if there is one as new already. On an error the old ones stay as they are.
    pub fn write(&self, lsn: Lsn, entries: impl Iterator<Item = Entry>) -> Result<(), WalError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let durable = Lsn(self.shared.durable.load(Ordering::Acquire));
        // R12: never ahead of what is durable, or a crash would leave a state that no record leads to.
        if lsn > durable && !planted("wal.checkpoint_ahead") {
            return Err(WalError::CheckpointAhead { lsn, durable });
        }
        if kept.last().is_some_and(|newest| *newest >= lsn) || lsn == Lsn::NONE {
            return Ok(());
        }
        let path = path(&self.config.dir, lsn);
        let temp = path.with_extension(format!("ckpt{TEMP}"));
        let covered = self.chain_at(lsn).map(|chain| (lsn, chain));
        let written = covered.and_then(|it| write_file(&self.config, &temp, it, entries));
        let result = written.and_then(|()| self.put(&temp, &path));
        if let Err(error) = result {
            // It is of no use; the first error is the one that counts.
            drop(self.config.disk.remove(&temp));
            return Err(error);
        }
        kept.push(lsn);
        self.remove_superfluous(&mut kept)
    }

    /// The checksum of a durable record's header, as it stands in its segment; 0 if it is no longer there.
    fn chain_at(&self, lsn: Lsn) -> Result<u32, WalError> {
        let number = {
            let segments = self.shared.segments();
            segments.iter().rfind(|(_, first)| *first <= lsn).map(|(number, _)| *number)
        };
        let Some(number) = number else { return Ok(0) };
        let mut segment = open_segment(&self.config, number, false)?;
        segment.scan(&mut After::default(), |_| false)?;
        let header = segment.pieces.iter().find_map(|piece| match piece {
            Piece::Frame { header, .. } if header.kind == FrameKind::Record => {
                Some(header).filter(|header| header.lsn == lsn)
            }
            Piece::Frame { .. } | Piece::Hole { .. } => None,
        });
        Ok(header.map_or(0, |header| header.crc))
    }

    fn put(&self, temp: &Path, path: &Path) -> Result<(), WalError> {
        crash_point("wal.checkpoint_before_rename");
        self.config.disk.rename(temp, path).map_err(io_at("rename into place", path))?;
        crash_point("wal.checkpoint_after_rename");
        self.config.disk.sync_dir(&self.config.dir).map_err(io_at("sync", &self.config.dir))?;
        crash_point("wal.checkpoint_after_sync");
        Ok(())
    }

    /// Keeps the newest checkpoints, and every segment with a record after the older of them.
    fn remove_superfluous(&self, kept: &mut Vec<Lsn>) -> Result<(), WalError> {
        let remove = |path: &Path| match self.config.disk.remove(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_at("remove", path)(e)),
            _ => Ok(()),
        };
        while kept.len() > KEPT {
            remove(&path(&self.config.dir, kept.remove(0)))?;
        }
        // Before there are two, the records from the beginning on are the second way.
        let Some(base) = kept.first().copied().filter(|_| kept.len() == KEPT) else {
            return Ok(());
        };
        // The last in the list is the one being appended to, and is never removed. The list is not held while files are removed:
        // that takes time, and a change of segment needs it. Only this removes from it, and the writer adds at its end.
        let superfluous: Vec<u64> = {
            let segments = self.shared.segments();
            let pairs = segments.iter().zip(segments.iter().skip(1));
            pairs.take_while(|(_, next)| next.1 <= base.next()).map(|(this, _)| this.0).collect()
        };
        for number in superfluous {
            remove(&segment::path(&self.config.dir, number))?;
            self.shared.segments().remove(0);
        }
        Ok(())
    }
}
