//! What is found in the directory of a write-ahead log: which checkpoint to begin with, which segments to read, and what is not to be
//! used at all.
//!
//! Absent: any change. What is to be done about it is for [`super::recover`].

use std::path::PathBuf;

use outlive_core::ids::Lsn;
use outlive_core::record::{FrameKind, Header, LSN_MAX};

use super::checkpoint::{self, Loaded};
use super::judge::{Judgement, judge, no_lsns, report_damage};
use super::reader::{After, Found, Piece, open_segment};
use super::segment::{self, HEADER, TEMP};
use super::{Config, Damage, Report, WalError, io_at};

/// The directory as it was found.
pub(super) struct Survey {
    pub(super) checkpoint: Option<Loaded>,
    /// Checkpoints that are not used because of their flaws, newest first.
    pub(super) rejected: Vec<Loaded>,
    /// The other checkpoints' lsns, the used one's among them.
    pub(super) kept: Vec<Lsn>,
    /// The newest checkpoint's lsn by its name, used or not.
    promised: Lsn,
    /// Segments that the checkpoint covers, with their first lsn; not read.
    pub(super) passed: Vec<(u64, Option<Lsn>)>,
    pub(super) segments: Vec<Found>,
    /// Segments that stand here a second time, under another name.
    pub(super) copies: Vec<Found>,
    pub(super) temps: Vec<PathBuf>,
    pub(super) next_number: u64,
    pub(super) fresh: bool,
}

/// Lsns and numbers that files are named after; the upper half would leave no room to count on.
pub(super) fn named(name: &std::ffi::OsStr, ending: &str) -> Option<u64> {
    segment::number_of(name, ending).filter(|number| *number <= LSN_MAX.0)
}

/// Reads everything that is needed, or `all` there is, without touching it.
pub(super) fn survey(config: &Config, all: bool, write: bool) -> Result<Survey, WalError> {
    let mut disowned = Vec::new();
    loop {
        let found = survey_without(config, all, write, &disowned)?;
        match found.checkpoint.as_ref().filter(|loaded| found.is_of_another_history(loaded)) {
            // Each time one checkpoint less.
            Some(loaded) => disowned.push(loaded.lsn),
            None => return Ok(found),
        }
    }
}

fn survey_without(
    config: &Config,
    all: bool,
    write: bool,
    disowned: &[Lsn],
) -> Result<Survey, WalError> {
    let names = config.disk.list(&config.dir).map_err(io_at("list", &config.dir))?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| named(name, ".seg")).collect();
    let lsns: Vec<Lsn> = names.iter().filter_map(|name| named(name, ".ckpt")).map(Lsn).collect();
    let ours = [format!(".seg{TEMP}"), format!(".ckpt{TEMP}")];
    let is_temp = |name: &&std::ffi::OsString| ours.iter().any(|end| named(name, end).is_some());
    let temps = names.iter().filter(is_temp).map(|name| config.dir.join(name)).collect();
    let mut found = Survey {
        checkpoint: None,
        rejected: Vec::new(),
        promised: lsns.iter().rfind(|lsn| !disowned.contains(lsn)).copied().unwrap_or_default(),
        passed: Vec::new(),
        segments: Vec::new(),
        copies: Vec::new(),
        temps,
        next_number: numbers.last().map_or(1, |number| number + 1),
        fresh: numbers.is_empty() && lsns.is_empty(),
        kept: lsns,
    };
    found.choose_checkpoint(config, disowned)?;
    for number in &numbers {
        found.segments.push(open_segment(config, *number, write)?);
    }
    found.set_copies_aside();
    let base = found.checkpoint.as_ref().map_or(Lsn::NONE, |c| c.lsn);
    let covered = |s: &Found| s.first.is_some_and(|first| first <= base.next());
    let start = found.segments.iter().rposition(covered).filter(|_| !all).unwrap_or(0);
    found.passed = found.segments.drain(..start).map(|s| (s.number, s.first)).collect();
    let mut after = After::default();
    for segment in &mut found.segments {
        segment.scan(&mut after, |header: &Header| header.lsn > base)?;
    }
    Ok(found)
}

impl Survey {
    /// The newest without a flaw; else the newest that has header and end.
    fn choose_checkpoint(&mut self, config: &Config, disowned: &[Lsn]) -> Result<(), WalError> {
        let mut flawed = Vec::new();
        for lsn in self.kept.iter().rev() {
            if self.checkpoint.is_some() {
                // Not needed, but to be removed one day: so it has to be ours.
                checkpoint::is_ours(config, *lsn)?;
                continue;
            }
            let mut loaded = checkpoint::load(config, *lsn)?;
            if disowned.contains(lsn) {
                loaded.disown();
            }
            if loaded.flawless() {
                self.checkpoint = Some(loaded);
                continue;
            }
            flawed.push(loaded);
        }
        if self.checkpoint.is_none()
            && let Some(good) = flawed.iter().position(|loaded| loaded.good)
        {
            self.checkpoint = Some(flawed.remove(good));
        }
        self.kept.retain(|lsn| flawed.iter().all(|loaded| loaded.lsn != *lsn));
        self.rejected = flawed;
        Ok(())
    }

    /// The last record that it covers, or the one after it, is another one here.
    fn is_of_another_history(&self, loaded: &Loaded) -> bool {
        let headers =
            self.segments.iter().flat_map(|s| &s.pieces).filter_map(|piece| match piece {
                Piece::Frame { header, .. } if header.kind == FrameKind::Record => Some(header),
                Piece::Frame { .. } | Piece::Hole { .. } => None,
            });
        let mut here = headers.filter_map(|header| match header.lsn {
            lsn if lsn == loaded.lsn => Some(header.crc),
            // 0: what was before it is lost.
            lsn if lsn == loaded.lsn.next() => Some(header.chain).filter(|chain| *chain != 0),
            _ => None,
        });
        loaded.chain != 0 && here.any(|chain| chain != loaded.chain)
    }

    /// A segment that somebody copied within the directory holds nothing that the first one does not.
    fn set_copies_aside(&mut self) {
        let known: Vec<_> = self.segments.iter().map(|s| Some((s.number, s.nonce?))).collect();
        let is_copy = |found: &mut Found| found.other.is_some() && known.contains(&found.other);
        self.copies = self.segments.extract_if(.., is_copy).collect();
    }

    fn report_copies(&self, report: &mut Report) {
        for copy in &self.copies {
            let number = copy.other.map_or(0, |(number, _)| number);
            let damage = Damage {
                file: copy.path.clone(),
                offset: 0,
                bytes: copy.room.saturating_add(HEADER),
                what: format!("a second copy of segment {number:016x}"),
                lsns: no_lsns(),
                entities: Some(Vec::new()),
                harmless: true,
                kept: None,
            };
            report_damage(report, damage);
        }
    }

    /// Records end before the checkpoint does: nothing is missing, but somebody has mixed files of two times.
    fn report_end_before_checkpoint(&self, report: &mut Report) {
        let Some(loaded) = &self.checkpoint else { return };
        let mut last = None;
        for (segment, piece) in
            self.segments.iter().flat_map(|s| s.pieces.iter().map(move |p| (s, p)))
        {
            if let Piece::Frame { header, span, .. } = piece
                && header.kind == FrameKind::Record
            {
                last = Some((segment, span.end, header.lsn));
            }
        }
        if let Some((segment, offset, lsn)) = last.filter(|(_, _, lsn)| *lsn < loaded.lsn) {
            let what = format!("records end with {lsn}, before the checkpoint of {}", loaded.lsn);
            let damage = Damage {
                file: segment.path.clone(),
                offset,
                bytes: 0,
                what,
                lsns: no_lsns(),
                entities: Some(Vec::new()),
                harmless: true,
                kept: None,
            };
            report_damage(report, damage);
        }
    }

    fn report_checkpoints(&self, report: &mut Report) {
        let used = self.checkpoint.iter().map(|loaded| (loaded, false));
        let rejected = self.rejected.iter().map(|loaded| (loaded, true));
        for (loaded, harmless) in used.chain(rejected) {
            report.bytes_read += loaded.bytes_read;
            // What another checkpoint and longer records do not make up for is reported as lost records.
            loaded.damage(harmless).for_each(|damage| report_damage(report, damage));
        }
    }

    pub(super) fn judge(&mut self) -> (Judgement, Report) {
        let mut report = Report::default();
        self.report_checkpoints(&mut report);
        self.report_copies(&mut report);
        self.report_end_before_checkpoint(&mut report);
        let base = self.checkpoint.as_ref();
        let judgement = judge(&mut self.segments, base, self.promised, &mut report);
        if self.segments.is_empty() && !self.fresh {
            let file = base.map(|c| c.path.clone()).unwrap_or_default();
            let what = "no segment is there".to_owned();
            let (lsns, entities, kept) = (no_lsns(), None, None);
            let (offset, bytes, harmless) = (0, 0, false);
            let damage = Damage { file, offset, bytes, what, lsns, entities, harmless, kept };
            report_damage(&mut report, damage);
        }
        report.checkpoint_lsn = base.map_or(Lsn::NONE, |c| c.lsn);
        report.last_lsn = judgement.last;
        report.synced_through = judgement.synced;
        report.created = self.fresh;
        report.segments_read = self.segments.len();
        report.bytes_read += self.segments.iter().map(|s| s.window.bytes_read).sum::<u64>();
        report.rewritten_records = judgement.doubtful.len();
        report.cut_bytes = judgement.cut.iter().map(|(_, span)| span.end - span.start).sum();
        report.cut_at = judgement
            .cut
            .first()
            .and_then(|(index, span)| Some((self.segments.get(*index)?.path.clone(), span.start)));
        (judgement, report)
    }
}
