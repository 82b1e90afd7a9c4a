//! Reading one file of frames: what is there, piece by piece, whatever its state.
//!
//! Absent: judgement. What a hole or a bad body means is decided in `recover`, over all files. Nothing here writes.

use std::path::{Path, PathBuf};

use outlive_core::file_header::{BadFileHeader, FileHeader, FileKind};
use outlive_core::ids::Lsn;
use outlive_core::record::{
    Decoded, FILE_HEADER_BYTES, FRAME_ALIGN, FRAME_MAGIC, Flaw, FrameKind, Header, claimed_len,
    decode_at,
};

use super::segment::{HEADER, NOTE, Segment, place_of_note};
use super::{Config, WalError, io_at};
use crate::truth::disk::{DiskFile, ZEROS};

/// How much is read at a time.
const CHUNK: usize = ZEROS.len();
const SECTOR: usize = 512;
const ALIGN: u64 = FRAME_ALIGN as u64;

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The record that the next one must follow.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct After {
    pub(super) lsn: Lsn,
    /// Its header's checksum, where it is known.
    pub(super) chain: Option<u32>,
}

/// What stands at some place of a file.
#[derive(Debug)]
pub(super) enum Piece {
    /// A frame whose header holds, with its body if that holds as well.
    Frame { span: Span, header: Header, body: Result<Vec<u8>, Flaw> },
    /// Neither a frame nor the zeros after the last one.
    Hole { span: Span },
}

impl Piece {
    pub(super) fn span(&self) -> Span {
        match self {
            Self::Frame { span, .. } | Self::Hole { span } => *span,
        }
    }
}

/// A part of a file in memory, moving along.
#[derive(Debug)]
pub(super) struct Window {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    /// Where frames end: before a segment's second header.
    end: u64,
    base: u64,
    buf: Vec<u8>,
    pub(super) bytes_read: u64,
}

impl Window {
    pub(super) fn new(file: Box<dyn DiskFile>, path: &Path, end: u64) -> Self {
        Self { file, path: path.to_owned(), end, base: 0, buf: Vec::new(), bytes_read: 0 }
    }

    pub(super) fn file(&self) -> &dyn DiskFile {
        &*self.file
    }

    /// Up to `want` bytes from `pos` on; fewer only at the end.
    fn at(&mut self, pos: u64, want: usize) -> Result<&[u8], WalError> {
        let have = self.base + self.buf.len() as u64;
        let until = self.end.min(pos.saturating_add(want as u64));
        if pos < self.base || until > have {
            let len = self.end.saturating_sub(pos).min(want.max(CHUNK) as u64);
            self.buf.resize(usize::try_from(len).unwrap_or(CHUNK), 0);
            self.base = pos;
            let read = read_around(&*self.file, &mut self.buf, pos);
            let read = read.map_err(io_at("read", &self.path))?;
            self.bytes_read += read as u64;
            self.buf.truncate(read);
        }
        let start = usize::try_from(pos - self.base).unwrap_or(usize::MAX);
        let rest = self.buf.get(start..).unwrap_or_default();
        Ok(rest.get(..want).unwrap_or(rest))
    }

    /// From the first to after the last byte that is not zero, at or after `pos`; in whole words.
    pub(super) fn not_zero(&mut self, mut pos: u64) -> Result<Option<Span>, WalError> {
        let mut found: Option<Span> = None;
        while pos < self.end {
            let chunk = self.at(pos, CHUNK)?;
            let len = chunk.len() as u64;
            if len == 0 {
                break;
            }
            if ZEROS.get(..chunk.len()) != Some(chunk) {
                let first = chunk.iter().position(|b| *b != 0).unwrap_or(0) as u64;
                let last = chunk.iter().rposition(|b| *b != 0).unwrap_or(0) as u64;
                let start = (pos + first) / ALIGN * ALIGN;
                let end = (pos + last + 1).next_multiple_of(ALIGN);
                found = Some(Span { start: found.map_or(start, |f| f.start), end });
            }
            pos += len;
        }
        Ok(found)
    }

    /// What stands at `pos`, where a frame may start.
    fn decode(&mut self, pos: u64, nonce: u64) -> Result<Decoded<'_>, WalError> {
        let want = claimed_len(self.at(pos, 16)?).unwrap_or(16);
        Ok(decode_at(self.at(pos, want)?, nonce))
    }

    /// The next place from `pos` on where an accepted header stands.
    fn find_header(
        &mut self,
        mut pos: u64,
        nonce: u64,
        accept: impl Fn(&Header) -> bool,
    ) -> Result<Option<u64>, WalError> {
        while pos < self.end {
            let chunk = self.at(pos, CHUNK)?;
            let words = chunk.chunks_exact(FRAME_ALIGN);
            let Some(index) = words.clone().position(|word| word.starts_with(&FRAME_MAGIC)) else {
                let step = words.len().max(1) * FRAME_ALIGN;
                pos += step as u64;
                continue;
            };
            pos += (index * FRAME_ALIGN) as u64;
            if let Decoded::Frame { header, .. } | Decoded::HeaderOnly { header, .. } =
                self.decode(pos, nonce)?
                && accept(&header)
            {
                return Ok(Some(pos));
            }
            pos += ALIGN;
        }
        Ok(None)
    }

    /// Recovery left zeros before a seal, to keep that within one sector.
    fn is_seal_after_zeros(&mut self, pos: u64, seal: u64, nonce: u64) -> Result<bool, WalError> {
        let gap = self.at(pos, usize::try_from(seal - pos).unwrap_or(0))?;
        let zeros = gap.iter().all(|byte| *byte == 0);
        let found = self.decode(seal, nonce)?;
        Ok(zeros
            && matches!(found, Decoded::Frame { header, .. } if header.kind == FrameKind::Seal))
    }

    /// Everything from the file's header to the end. `accept` says whether a header may stand where it was found, given what was
    /// accepted before it, which is `after` at first; bodies are kept of those that `wanted` names.
    pub(super) fn pieces(
        &mut self,
        nonce: u64,
        after: &mut After,
        accept: impl Fn(&Header, After) -> bool,
        wanted: impl Fn(&Header) -> bool,
    ) -> Result<Vec<Piece>, WalError> {
        let (mut pieces, mut pos) = (Vec::new(), HEADER);
        // Where the last byte that is not zero ends; looked for once, at the first place that is no frame.
        let mut dirty_end = None;
        while pos < self.end {
            let last = *after;
            let accept = |header: &Header| accept(header, last);
            let (header, body) = match self.decode(pos, nonce)? {
                Decoded::Frame { header, body } if accept(&header) => {
                    let body = if wanted(&header) { body.to_vec() } else { Vec::new() };
                    (header, Ok(body))
                }
                Decoded::HeaderOnly { header, why } if accept(&header) => (header, Err(why)),
                _ => {
                    let end = match dirty_end {
                        Some(end) => end,
                        None => self.not_zero(pos)?.map_or(pos, |dirty| dirty.end),
                    };
                    dirty_end = Some(end);
                    if pos >= end {
                        break;
                    }
                    let next = self.find_header(pos, nonce, accept)?;
                    if let Some(seal) = next.filter(|seal| *seal == place_of_note(pos))
                        && self.is_seal_after_zeros(pos, seal, nonce)?
                    {
                        pos = seal;
                        continue;
                    }
                    let span = Span { start: pos, end: next.unwrap_or(end) };
                    pieces.push(Piece::Hole { span });
                    let Some(next) = next else { break };
                    pos = next;
                    continue;
                }
            };
            let end = self.end.min(pos + header.frame_len() as u64);
            if header.kind == FrameKind::Record {
                *after = After { lsn: header.lsn, chain: Some(header.crc) };
            } else if header.synced_through > after.lsn {
                // After lost records it tells their lsn, but not their checksum.
                *after = After { lsn: header.synced_through, chain: None };
            }
            pieces.push(Piece::Frame { span: Span { start: pos, end }, header, body });
            pos = end;
        }
        Ok(pieces)
    }
}

/// Reads as much as there is; what the disk cannot give is filled with bytes that pass no checksum.
pub(super) fn read_around(file: &dyn DiskFile, buf: &mut [u8], pos: u64) -> std::io::Result<usize> {
    const UNREADABLE: u8 = 0xEE;
    let is_medium =
        |e: &std::io::Error| e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    match file.read_full_at(buf, pos) {
        // I10: a bad sector is damage like any other; around it everything is still read.
        Err(e) if is_medium(&e) => {}
        other => return other,
    }
    let mut done = 0;
    for sector in buf.chunks_mut(SECTOR) {
        match file.read_full_at(sector, pos + done as u64) {
            Ok(n) if n < sector.len() => return Ok(done + n),
            Ok(n) => done += n,
            Err(e) if is_medium(&e) => {
                sector.fill(UNREADABLE);
                done += sector.len();
            }
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// One segment as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) window: Window,
    /// `None`: neither copy of the header holds, so nothing in it can be read.
    pub(super) nonce: Option<u64>,
    /// Where the room for frames ends.
    pub(super) room: u64,
    /// Its header holds, and says that it is this segment, with this nonce, and not the one that its name says.
    pub(super) other: Option<(u64, u64)>,
    /// What is wrong with the file apart from its frames, and where.
    pub(super) flaws: Vec<(u64, &'static str)>,
    /// The first frame's lsn, where it is a whole record.
    pub(super) first: Option<Lsn>,
    pub(super) pieces: Vec<Piece>,
}

/// Opens a segment and reads its headers and its first frame's.
pub(super) fn open_segment(config: &Config, number: u64, write: bool) -> Result<Found, WalError> {
    let path = super::segment::path(&config.dir, number);
    let disk = &config.disk;
    let file = if write { disk.open(&path) } else { disk.open_read(&path) };
    let file = file.map_err(io_at("open", &path))?;
    let size = file.size().map_err(io_at("measure", &path))?;
    let copy_at = size.saturating_sub(HEADER);
    let header = read_header(config, &*file, &path, 0, FileKind::Segment)?;
    let copy = read_header(config, &*file, &path, copy_at, FileKind::Segment)?;
    let mine = |header: &FileHeader| header.number == number;
    let other = header.or(copy).filter(|header| !mine(header)).map(|h| (h.number, h.nonce));
    let (header, copy) = (header.filter(mine), copy.filter(mine));
    let mut flaws = Vec::new();
    if header.is_none() {
        flaws.push((0, "the segment's header is damaged"));
    }
    if copy != header || copy.is_none() {
        flaws.push((copy_at, "the copy of the segment's header is damaged or missing"));
    }
    let header = header.or(copy);
    let room = header.map_or(copy_at, |h| h.count.saturating_sub(HEADER));
    // A file that lost its end is read to its end.
    let end = room.min(size);
    let nonce = header.map(|h| h.nonce);
    if nonce.is_some() && end < room {
        flaws.push((end, "the segment lost its end"));
    }
    let mut window = Window::new(file, &path, end);
    let first = nonce.map(|nonce| first_lsn(&mut window, nonce)).transpose()?.flatten();
    Ok(Found { number, path, window, nonce, room, other, flaws, first, pieces: Vec::new() })
}

/// The first record's lsn, where its header holds; or what the seal tells that stands in its place.
fn first_lsn(window: &mut Window, nonce: u64) -> Result<Option<Lsn>, WalError> {
    let mut sealed = None;
    for place in [HEADER, HEADER + NOTE] {
        let (Decoded::Frame { header, .. } | Decoded::HeaderOnly { header, .. }) =
            window.decode(place, nonce)?
        else {
            break;
        };
        match header.kind {
            FrameKind::Record => return Ok(Some(header.lsn)),
            FrameKind::Seal => sealed = Some(header.lsn.next()),
            FrameKind::Mark | FrameKind::Entry | FrameKind::End => break,
        }
    }
    Ok(sealed)
}

impl Found {
    /// Reads its frames; `after` is what came before it, and then what was last in it.
    pub(super) fn scan(
        &mut self,
        after: &mut After,
        wanted: impl Fn(&Header) -> bool,
    ) -> Result<(), WalError> {
        let accept = |header: &Header, last: After| match header.kind {
            FrameKind::Record => {
                // What once followed another record with this lsn does not follow this one.
                let stale = header.lsn == last.lsn.next()
                    && last.chain.is_some_and(|chain| chain != header.chain);
                header.lsn > last.lsn && header.synced_through < header.lsn && !stale
            }
            FrameKind::Mark => header.lsn >= last.lsn && header.synced_through == header.lsn,
            // What it proves may be older than the record before it.
            FrameKind::Seal => header.synced_through <= header.lsn,
            FrameKind::Entry | FrameKind::End => false,
        };
        self.pieces = match self.nonce {
            Some(nonce) => self.window.pieces(nonce, after, accept, wanted)?,
            // Without its header no frame of it can be known.
            None => {
                self.window.not_zero(HEADER)?.map(|span| Piece::Hole { span }).into_iter().collect()
            }
        };
        Ok(())
    }

    /// To be written into; `None` if its header cannot be read.
    pub(super) fn into_segment(self) -> Option<Segment> {
        let (number, path, nonce) = (self.number, self.path, self.nonce?);
        Some(Segment { number, path, nonce, file: self.window.file, end: self.room })
    }
}

/// Reads a file header; `None` if it is damaged, an error if it is not ours to touch.
pub(super) fn read_header(
    config: &Config,
    file: &dyn DiskFile,
    path: &Path,
    at: u64,
    kind: FileKind,
) -> Result<Option<FileHeader>, WalError> {
    let mut sector = [0; FILE_HEADER_BYTES];
    let read = read_around(file, &mut sector, at).map_err(io_at("read", path))?;
    match FileHeader::decode(sector.get(..read).unwrap_or_default(), kind) {
        Ok(header) if header.instance == config.instance => Ok(Some(header)),
        Ok(header) => {
            Err(WalError::OtherInstance { path: path.to_owned(), found: header.instance })
        }
        Err(source @ BadFileHeader::Newer(_)) => {
            Err(WalError::Newer { path: path.to_owned(), source })
        }
        Err(BadFileHeader::Damaged) => Ok(None),
    }
}
