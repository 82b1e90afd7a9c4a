//! Looking at a write-ahead log, perhaps a running server's: everything is read, nothing is touched.
//!
//! What is found is what [`super::open`] would find. Absent: what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use outlive_core::file_header::{FileHeader, FileKind};
use outlive_core::ids::Lsn;
use outlive_core::limits::WAL_LOOKS_MAX;
use outlive_core::record::{FILE_HEADER_BYTES, FrameKind, Record};

use super::checkpoint;
use super::judge::report_damage;
use super::reader::{After, Found, Piece, open_segment};
use super::survey::{Survey, named, survey};
use super::{Config, Damage, Report, WalError, io_at};
use crate::truth::disk::Disk;

/// Everything there is in a directory of a write-ahead log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// What the next start would find and do.
    pub report: Report,
    /// The segments, oldest first.
    pub segments: Vec<SegmentSeen>,
    /// The checkpoints, oldest first.
    pub checkpoints: Vec<CheckpointSeen>,
    /// Files that were being made: the next start removes them.
    pub temps: Vec<PathBuf>,
}

/// A segment as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSeen {
    /// The file.
    pub path: PathBuf,
    /// At least one copy of its header holds.
    pub readable: bool,
    /// Records whose header holds.
    pub records: u64,
    /// The first and last of them.
    pub lsns: Option<(Lsn, Lsn)>,
    /// Where the last byte that is not zero ends.
    pub used_bytes: u64,
    /// Where the room for records ends.
    pub room_bytes: u64,
    /// What earlier recoveries left in place of torn groups: where, the last record kept, and the last one known durable then.
    pub seals: Vec<(u64, Lsn, Lsn)>,
}

/// A checkpoint as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointSeen {
    /// The file.
    pub path: PathBuf,
    /// What it covers.
    pub lsn: Lsn,
    /// Entities whose state can be read.
    pub entries: usize,
    /// It has no flaw.
    pub whole: bool,
    /// The next start would begin with it.
    pub used: bool,
}

/// Reads everything, also what a checkpoint covers, and says what [`super::open`] would find. Touches nothing.
///
/// While a server writes, a record may be on its way into a segment that was read already, and look lost. It is not lost any more
/// when it is looked for again: only damage that is found twice in the same place is told.
pub fn verify(config: &Config) -> Result<Inventory, WalError> {
    let mut inventory = look(config)?;
    if !inventory.report.damage.is_empty() {
        let again = look(config)?;
        let same = |damage: &Damage| again.report.damage.contains(damage);
        inventory.report.damage.retain(same);
    }
    Ok(inventory)
}

/// Looks once; a file that was removed between two calls, as superfluous ones are, makes it begin again.
fn look(config: &Config) -> Result<Inventory, WalError> {
    let mut looked = look_through(config);
    for _ in 1..WAL_LOOKS_MAX {
        match &looked {
            Err(WalError::Io { path, source, .. })
                if source.kind() == io::ErrorKind::NotFound && *path != config.dir =>
            {
                looked = look_through(config);
            }
            _ => break,
        }
    }
    looked
}

fn look_through(config: &Config) -> Result<Inventory, WalError> {
    let mut survey = survey(config, true, false)?;
    let segments = survey.segments.iter().map(seen).collect();
    let (_, mut report) = survey.judge();
    let checkpoints = checkpoints(config, &survey, &mut report)?;
    Ok(Inventory { report, segments, checkpoints, temps: survey.temps })
}

fn seen(found: &Found) -> SegmentSeen {
    let mut seen = SegmentSeen {
        path: found.path.clone(),
        readable: found.nonce.is_some(),
        records: 0,
        lsns: None,
        used_bytes: found.pieces.last().map_or(0, |piece| piece.span().end),
        room_bytes: found.room,
        seals: Vec::new(),
    };
    for piece in &found.pieces {
        let Piece::Frame { header, span, .. } = piece else { continue };
        match header.kind {
            FrameKind::Record => {
                seen.records += 1;
                let first = seen.lsns.map_or(header.lsn, |(first, _)| first);
                seen.lsns = Some((first, header.lsn));
            }
            FrameKind::Seal => seen.seals.push((span.start, header.lsn, header.synced_through)),
            FrameKind::Mark | FrameKind::Entry | FrameKind::End => {}
        }
    }
    seen
}

/// All of them, also the older one that a start does not need; what is wrong with that one is harmless.
fn checkpoints(
    config: &Config,
    survey: &Survey,
    report: &mut Report,
) -> Result<Vec<CheckpointSeen>, WalError> {
    let used = survey.checkpoint.as_ref();
    let mut all: Vec<CheckpointSeen> = Vec::new();
    for loaded in used.into_iter().chain(&survey.rejected) {
        all.push(CheckpointSeen {
            path: loaded.path.clone(),
            lsn: loaded.lsn,
            entries: loaded.entries.len(),
            whole: loaded.flawless(),
            used: used.is_some_and(|used| used.lsn == loaded.lsn),
        });
    }
    for lsn in &survey.kept {
        if all.iter().any(|seen| seen.lsn == *lsn) {
            continue;
        }
        let loaded = checkpoint::load(config, *lsn)?;
        loaded.damage(true).for_each(|damage| report_damage(report, damage));
        let (entries, whole) = (loaded.entries.len(), loaded.flawless());
        all.push(CheckpointSeen { path: loaded.path, lsn: *lsn, entries, whole, used: false });
    }
    all.sort_by_key(|seen| seen.lsn);
    Ok(all)
}

/// Hands over every record that is there and can be read, in order, with its place, also those not known to be durable. Touches
/// nothing.
pub fn dump(config: &Config, mut each: impl FnMut(&Path, u64, Record)) -> Result<(), WalError> {
    let names = config.disk.list(&config.dir).map_err(io_at("list", &config.dir))?;
    let mut after = After::default();
    for number in names.iter().filter_map(|name| named(name, ".seg")) {
        let mut segment = match open_segment(config, number, false) {
            // A checkpoint has made it superfluous meanwhile.
            Err(WalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            opened => opened?,
        };
        segment.scan(&mut after, |_| true)?;
        for piece in segment.pieces {
            if let Piece::Frame { header, body: Ok(body), span } = piece
                && header.kind == FrameKind::Record
            {
                each(&segment.path, span.start, header.into_record(body));
            }
        }
    }
    Ok(())
}

/// Whose the files in a directory say they are: the first that can be read, for when nothing else tells.
pub fn instance_in(disk: &dyn Disk, dir: &Path) -> Option<[u8; 16]> {
    let names = disk.list(dir).ok()?;
    let kinds = [(".seg", FileKind::Segment), (".ckpt", FileKind::Checkpoint)];
    names.iter().find_map(|name| {
        let (_, kind) = kinds.into_iter().find(|(ending, _)| named(name, ending).is_some())?;
        let mut header = [0; FILE_HEADER_BYTES];
        disk.open_read(&dir.join(name)).ok()?.read_full_at(&mut header, 0).ok()?;
        Some(FileHeader::decode(&header, kind).ok()?.instance)
    })
}
