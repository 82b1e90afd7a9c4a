//! What the pieces found on disk mean: which records stand, what is a torn group, what is damage and whose.
//!
//! Pure: it neither reads nor writes. The rules are in `docs/formats.md`, section Reading.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use outlive_core::ids::Lsn;
use outlive_core::limits::DAMAGE_LISTED_MAX;
use outlive_core::planted::planted;
use outlive_core::record::{EntityKey, FRAME_BYTES_MIN, Flaw, FrameKind, Header, Record};

use super::checkpoint::Loaded;
use super::reader::{Found, Piece, Span};
use super::segment::{HEADER, NOTE, place_of_note};
use super::{Broken, Damage, Lost, Report};

/// A place: which of the segments, and where in it.
pub(super) type Place = (usize, u64);

/// The judgement.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    pub(super) records: Vec<Record>,
    pub(super) broken: BTreeMap<EntityKey, Broken>,
    pub(super) lost: Vec<Lost>,
    pub(super) last: Lsn,
    /// Everything up to here is known to be durable.
    pub(super) synced: Lsn,
    /// Where the next record goes; `None` if no segment can take it.
    pub(super) tail: Option<Place>,
    /// The mark after the last record is there.
    pub(super) marked: bool,
    /// The last record's header's checksum; 0 if it cannot be known.
    pub(super) chain: u32,
    /// What was never acknowledged: a torn group.
    pub(super) cut: Vec<(usize, Span)>,
    /// Where a seal has to be, durable before anything is zeroed.
    pub(super) seals: Vec<Place>,
    /// What has to be zeroed: the torn group, and where an earlier try to do so may have failed.
    pub(super) blank: Vec<(usize, Span)>,
    /// Records that have to be written again.
    pub(super) doubtful: Vec<(usize, Span)>,
}

/// Adds to the report's list, as far as that goes.
pub(super) fn report_damage(report: &mut Report, damage: Damage) {
    if report.damage.len() < DAMAGE_LISTED_MAX {
        report.damage.push(damage);
    } else {
        report.damage_unlisted += 1;
    }
}

/// Which lsns are lost by a piece of damage that loses none.
pub(super) fn no_lsns() -> RangeInclusive<Lsn> {
    Lsn(1)..=Lsn(0)
}

/// Judges the scanned segments, given the checkpoint to start from and the highest lsn that any checkpoint's name tells of.
pub(super) fn judge(
    segments: &mut [Found],
    checkpoint: Option<&Loaded>,
    promised: Lsn,
    report: &mut Report,
) -> Judgement {
    let base = checkpoint.map_or(Lsn::NONE, |c| c.lsn);
    let (synced, last) = known_durable(segments, base.max(promised));
    let paths = segments.iter().map(|s| s.path.clone()).collect();
    let first_readable = segments.iter().position(|s| s.nonce.is_some());
    let mut walk = Walk {
        paths,
        report,
        base,
        expected: base.next(),
        pending: Vec::new(),
        seen: HashMap::new(),
        out: Judgement {
            last,
            synced,
            // Of the record before the next one, which need not be here.
            chain: checkpoint.map_or(0, |checkpoint| checkpoint.chain),
            tail: first_readable.map(|index| (index, HEADER)),
            ..Judgement::default()
        },
    };
    walk.start_chains(checkpoint);
    for (index, segment) in segments.iter_mut().enumerate() {
        walk.flaws(index, segment);
    }
    'all: for (index, segment) in segments.iter_mut().enumerate() {
        for piece in &mut segment.pieces {
            if !walk.piece(index, piece) {
                break 'all;
            }
        }
    }
    walk.end();
    let mut out = walk.out;
    find_cut(segments, &mut out);
    // A segment without a header can take no records: they go into the one after it.
    if let Some((index, _)) = out.tail
        && segments.get(index).is_some_and(|s| s.nonce.is_none())
    {
        let next = segments.iter().skip(index).position(|s| s.nonce.is_some());
        out.tail = next.map(|n| (index + n, HEADER));
    }
    out
}

/// The highest lsn known durable, and the last one of the write-ahead log: that, or the whole records that follow it without a gap.
fn known_durable(segments: &[Found], at_least: Lsn) -> (Lsn, Lsn) {
    let frames = || {
        segments.iter().flat_map(|s| &s.pieces).filter_map(|piece| match piece {
            Piece::Frame { header, body, .. } => Some((header, body)),
            Piece::Hole { .. } => None,
        })
    };
    let mut synced = frames().map(|(header, _)| header.synced_through).fold(at_least, Lsn::max);
    // Something stands in a segment of which nothing can be read: all before it is durable, and it may hold as many
    // records as there is room for. Their lsns are not used again.
    if let Some(segment) = segments.iter().rfind(|s| !s.pieces.is_empty())
        && segment.nonce.is_none()
    {
        let top = frames().map(|(header, _)| header.lsn).fold(synced, Lsn::max);
        synced = Lsn(top.0 + segment.room / FRAME_BYTES_MIN as u64);
    }
    let mut last = synced;
    for (header, body) in frames() {
        let whole = header.kind == FrameKind::Record && body.is_ok();
        if whole && header.lsn == last.next() {
            last = header.lsn;
        }
    }
    (synced, last)
}

/// What follows the tail and is neither seal nor mark was never acknowledged.
///
/// It may hold the only proof (`synced_through`) that damage before it is damage to what was acknowledged. So it is zeroed only
/// behind a seal that says the same, and the next record goes behind that.
fn find_cut(segments: &[Found], out: &mut Judgement) {
    let Some((tail, position)) = out.tail else { return };
    for (index, segment) in segments.iter().enumerate().skip(tail) {
        if segment.nonce.is_none() {
            continue;
        }
        let from = if index == tail { position } else { HEADER };
        let end = End::of(segment, from, out.last);
        if index == tail {
            (out.tail, out.marked) = (Some((index, end.open)), end.marked);
        }
        if end.torn {
            out.cut.push((index, Span { start: end.open, end: end.dirty }));
        }
        if end.torn || (end.sealed && !end.marked) {
            let seal = place_of_note(from);
            let behind = seal + NOTE;
            out.marked = false;
            if behind > segment.room {
                // No frame fits there, so there is no proof to keep.
                out.blank.push((index, Span { start: from, end: end.dirty }));
                continue;
            }
            out.seals.push((index, seal));
            out.blank.push((index, Span { start: from, end: seal }));
            out.blank.push((index, Span { start: behind, end: end.dirty.max(behind) }));
            out.tail = Some((index, behind));
        }
    }
}

/// The end of a segment in which no record follows any more.
struct End {
    /// The seal of an earlier recovery is there.
    sealed: bool,
    /// Behind that, or else behind the last record.
    open: u64,
    /// There is more than a mark.
    torn: bool,
    /// A mark was written after a sync succeeded: then all before it is durable, and what follows it is on disk as it is shown.
    marked: bool,
    /// Where that which has to be zeroed ends.
    dirty: u64,
}

impl End {
    fn of(segment: &Found, from: u64, last: Lsn) -> Self {
        let after: Vec<&Piece> = segment.pieces.iter().filter(|p| p.span().start >= from).collect();
        let is = |piece: &&Piece, wanted: FrameKind, at: u64| match piece {
            Piece::Frame { header, span, .. } => header.kind == wanted && span.start == at,
            Piece::Hole { .. } => false,
        };
        let seal = place_of_note(from);
        let sealed = after.first().is_some_and(|piece| is(piece, FrameKind::Seal, seal));
        let open = if sealed { seal + NOTE } else { from };
        let (torn, marked) = match after.get(usize::from(sealed)..).unwrap_or_default() {
            [] => (false, false),
            [Piece::Frame { header, span, .. }]
                if header.kind == FrameKind::Mark && span.start == open =>
            {
                (false, header.lsn == last)
            }
            _ => (true, false),
        };
        let any_seal = after.iter().any(|piece| is(piece, FrameKind::Seal, piece.span().start));
        // Where there is a seal, something was zeroed. Zeros that are shown need not be on disk: then zeroing failed, and
        // nothing tells how far it was to go.
        let dirty =
            if any_seal { segment.room } else { after.last().map_or(open, |p| p.span().end) };
        Self { sealed, open, torn, marked, dirty }
    }
}

struct Walk<'a> {
    paths: Vec<PathBuf>,
    report: &'a mut Report,
    base: Lsn,
    /// The lsn that is due.
    expected: Lsn,
    /// Holes of which it is not yet known what they mean.
    pending: Vec<(usize, Span)>,
    /// The last lsn of every entity.
    seen: HashMap<EntityKey, Lsn>,
    out: Judgement,
}

impl Walk<'_> {
    fn path(&self, index: usize) -> PathBuf {
        self.paths.get(index).cloned().unwrap_or_default()
    }

    fn start_chains(&mut self, checkpoint: Option<&Loaded>) {
        let Some(checkpoint) = checkpoint else { return };
        let file = checkpoint.path.display();
        for entry in &checkpoint.entries {
            self.seen.insert(entry.entity.clone(), entry.lsn);
        }
        for (entity, lsn, span, why) in &checkpoint.broken {
            self.seen.insert(entity.clone(), *lsn);
            let why = format!("its state in {file} at {} cannot be read: {why}", span.start);
            self.out.broken.insert(entity.clone(), Broken { since: Lsn::NONE, why });
        }
        for (span, what) in &checkpoint.flaws {
            let why = format!("{what}: {file} at {}", span.start);
            self.out.lost.push(Lost { lsns: Lsn(1)..=checkpoint.lsn, why });
        }
    }

    fn flaws(&mut self, index: usize, segment: &Found) {
        for (offset, what) in &segment.flaws {
            let damage = Damage {
                file: self.path(index),
                offset: *offset,
                bytes: HEADER,
                what: (*what).to_owned(),
                lsns: no_lsns(),
                entities: Some(Vec::new()),
                // What is lost where both copies are bad is reported as lost records.
                harmless: true,
                kept: None,
            };
            report_damage(self.report, damage);
        }
    }

    /// Takes the next piece; false when it and everything after it is to be cut.
    fn piece(&mut self, index: usize, piece: &mut Piece) -> bool {
        let (span, header, body) = match piece {
            Piece::Hole { span } => {
                self.pending.push((index, *span));
                return true;
            }
            Piece::Frame { span, header, body } => (*span, header, body),
        };
        if header.kind != FrameKind::Record {
            if header.synced_through >= self.expected {
                self.lost(header.synced_through, (index, span.start));
                self.out.tail = Some((index, span.start));
            }
            return true;
        }
        if header.lsn > self.out.last {
            return false;
        }
        let before_base = header.lsn <= self.base;
        if !before_base && header.lsn > self.expected {
            self.lost(Lsn(header.lsn.0 - 1), (index, span.start));
        }
        self.out.tail = Some((index, span.end));
        if header.lsn >= self.base {
            self.out.chain = header.crc;
        }
        self.harmless();
        if before_base {
            return true;
        }
        self.expected = header.lsn.next();
        self.follow(index, span, header);
        match body {
            Ok(body) => {
                if header.lsn > self.out.synced {
                    self.out.doubtful.push((index, span));
                }
                let body = std::mem::take(body);
                self.out.records.push(header.clone().into_record(body));
            }
            Err(why) => {
                let why = *why;
                self.unreadable(index, span, header, why);
            }
        }
        true
    }

    /// Everything from the lsn that is due up to `through` is lost, in the pending holes or, without any, at `place`.
    fn lost(&mut self, through: Lsn, place: Place) {
        let lsns = self.expected..=through;
        let at = self.pending.first().map_or(place, |(index, span)| (*index, span.start));
        let (first, file) = (self.expected, self.path(at.0));
        let why = format!(
            "records {first} to {through} in {} at {} cannot be read",
            file.display(),
            at.1
        );
        self.out.lost.push(Lost { lsns: lsns.clone(), why });
        let mut places = std::mem::take(&mut self.pending);
        let missing = places.is_empty();
        if missing {
            places.push((place.0, Span { start: place.1, end: place.1 }));
        }
        for (index, span) in places {
            let what = if missing { "records are missing" } else { "records cannot be read" };
            self.damage(index, span, what.to_owned(), lsns.clone(), None, false);
        }
        (self.expected, self.out.chain) = (through.next(), 0);
    }

    /// Nothing is missing: the pending holes cost nothing.
    fn harmless(&mut self) {
        for (index, span) in std::mem::take(&mut self.pending) {
            let what = "unreadable bytes where nothing is missing".to_owned();
            self.damage(index, span, what, no_lsns(), Some(Vec::new()), true);
        }
    }

    fn unreadable(&mut self, index: usize, span: Span, header: &Header, why: Flaw) {
        let entities: Vec<_> = header.links.iter().map(|link| link.entity.clone()).collect();
        if planted("wal.silent_damage") {
            return;
        }
        let file = self.path(index);
        for entity in &entities {
            let why = format!(
                "record {} in {} at {} cannot be read: {why}",
                header.lsn,
                file.display(),
                span.start
            );
            let since = header.lsn;
            self.out.broken.entry(entity.clone()).or_insert(Broken { since, why });
        }
        let lsns = header.lsn..=header.lsn;
        self.damage(index, span, why.to_string(), lsns, Some(entities), false);
    }

    fn damage(
        &mut self,
        index: usize,
        span: Span,
        what: String,
        lsns: RangeInclusive<Lsn>,
        entities: Option<Vec<EntityKey>>,
        harmless: bool,
    ) {
        let (file, offset, bytes) = (self.path(index), span.start, span.end - span.start);
        let damage = Damage { file, offset, bytes, what, lsns, entities, harmless, kept: None };
        report_damage(self.report, damage);
    }

    /// Each entity's records must follow one another.
    fn follow(&mut self, index: usize, span: Span, header: &Header) {
        for link in &header.links {
            let seen = self.seen.insert(link.entity.clone(), header.lsn).unwrap_or(Lsn::NONE);
            if link.previous == Lsn::NONE {
                // It begins, or begins again with all there is to know of it: what was lost before does not matter any more.
                self.out.broken.remove(&link.entity);
            } else if link.previous != seen {
                let why = format!(
                    "record {} in {} at {} follows its record {}, which cannot be read",
                    header.lsn,
                    self.path(index).display(),
                    span.start,
                    link.previous
                );
                let since = header.lsn;
                self.out.broken.entry(link.entity.clone()).or_insert(Broken { since, why });
            }
        }
    }

    /// No more pieces that stand: what is durable and was not found is lost; other holes are the torn group.
    fn end(&mut self) {
        if self.expected <= self.out.last {
            if let Some((index, span)) = self.pending.last() {
                self.out.tail = Some((*index, span.end));
            }
            let place = self.out.tail.unwrap_or_default();
            self.lost(self.out.last, place);
        }
    }
}
