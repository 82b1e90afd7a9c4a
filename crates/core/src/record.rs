//! Bytes of the write-ahead log: file headers and frames, as `docs/formats.md` states them.
//!
//! Pure: bytes in, values out. Absent: files, segments, what a body means. Nothing here panics on any input, and nothing
//! is allocated before its length was checked against the limits (I9).

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use crate::ids::Lsn;
use crate::limits::{ENTITY_NAME_BYTES_MAX, RECORD_BODY_BYTES_MAX, RECORD_LINKS_MAX};
use crate::planted::planted;

/// The format that this code writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Length of a file header, which is one sector.
pub const FILE_HEADER_BYTES: usize = 512;
/// Every frame starts at a multiple of this.
pub const FRAME_ALIGN: usize = 8;
/// Length of the shortest frame: a mark or a seal.
pub const FRAME_BYTES_MIN: usize = 48;
/// A frame's first bytes. 0xFF occurs in no UTF-8 text, so no JSON body can look like a frame.
pub const FRAME_MAGIC: [u8; 4] = *b"\xFFOWL";

/// No lsn is higher: from any there is room to count on, and nobody lives to write so many records.
pub const LSN_MAX: Lsn = Lsn((1 << 63) - 1);

const FRAME_VERSION: u8 = 1;
const FIXED_BYTES: usize = 40;
const LINK_FIXED_BYTES: usize = 10;
const HEADER_BYTES_MAX: usize =
    padded_header(RECORD_LINKS_MAX * (LINK_FIXED_BYTES + ENTITY_NAME_BYTES_MAX));

/// What sort of thing has a state of its own and a chain of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntityKind {
    /// The server itself: its counters.
    Server,
    /// A job.
    Job,
    /// A registered repository.
    Repo,
    /// A supervised piece of our own work.
    Operation,
    /// A durable sending of a callback.
    Delivery,
    /// A row of statistics. It follows from the records of jobs, so no record names it; checkpoints do.
    Stats,
    /// A kind that a newer version knows; never one of the above (use [`EntityKind::from_byte`]).
    Other(u8),
}

impl EntityKind {
    /// The kind that this byte stands for.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Server,
            1 => Self::Job,
            2 => Self::Repo,
            3 => Self::Operation,
            4 => Self::Delivery,
            5 => Self::Stats,
            other => Self::Other(other),
        }
    }

    /// The byte that stands for this kind.
    pub fn byte(self) -> u8 {
        match self {
            Self::Server => 0,
            Self::Job => 1,
            Self::Repo => 2,
            Self::Operation => 3,
            Self::Delivery => 4,
            Self::Stats => 5,
            Self::Other(byte) => byte,
        }
    }
}

impl fmt::Display for EntityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.write_str("server"),
            Self::Job => f.write_str("job"),
            Self::Repo => f.write_str("repo"),
            Self::Operation => f.write_str("operation"),
            Self::Delivery => f.write_str("delivery"),
            Self::Stats => f.write_str("stats"),
            Self::Other(byte) => write!(f, "kind-{byte}"),
        }
    }
}

/// An entity: what records change and what damage is charged to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityKey {
    /// Its sort.
    pub kind: EntityKind,
    /// Its name among its sort; at most 255 bytes, empty where there is only one.
    pub name: String,
}

impl EntityKey {
    /// Names an entity.
    pub fn new(kind: EntityKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            return self.kind.fmt(f);
        }
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// A record's word that it changes an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The entity that is changed.
    pub entity: EntityKey,
    /// The record before this one that changed it; [`Lsn::NONE`] where the entity begins, or begins again.
    pub previous: Lsn,
}

/// One durable step of the server: what it touches, and a body that only the caller understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place; consecutive, the first is 1.
    pub lsn: Lsn,
    /// The last lsn known durable when this was written.
    pub synced_through: Lsn,
    /// The entities it changes.
    pub links: Vec<Link>,
    /// Opaque here.
    pub body: Vec<u8>,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A record.
    Record,
    /// A note that everything up to its lsn is durable; no lsn of its own.
    Mark,
    /// One entity of a checkpoint.
    Entry,
    /// The end of a checkpoint.
    End,
    /// What recovery leaves in place of a torn group: a note, never overwritten, of what was known durable by then.
    Seal,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Record),
            2 => Some(Self::Mark),
            3 => Some(Self::Entry),
            4 => Some(Self::End),
            5 => Some(Self::Seal),
            _ => None,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Record => 1,
            Self::Mark => 2,
            Self::Entry => 3,
            Self::End => 4,
            Self::Seal => 5,
        }
    }
}

/// A frame's header, proved by its CRC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: FrameKind,
    /// Its lsn, or the one it speaks of.
    pub lsn: Lsn,
    /// The last lsn known durable when it was written.
    pub synced_through: Lsn,
    /// The entities it touches.
    pub links: Vec<Link>,
    /// The checksum of the header before it, as its writer knew it; 0 where there was none.
    pub chain: u32,
    /// Its own checksum.
    pub crc: u32,
    body_at: usize,
    body_len: usize,
    body_crc: u32,
}

impl Header {
    /// From this frame's start to the next one's, in bytes.
    pub fn frame_len(&self) -> usize {
        (self.body_at + self.body_len).next_multiple_of(FRAME_ALIGN)
    }

    /// Joins it with its body to a record.
    pub fn into_record(self, body: Vec<u8>) -> Record {
        Record { lsn: self.lsn, synced_through: self.synced_through, links: self.links, body }
    }
}

/// What is wrong with some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The bytes do not start with a frame's magic.
    #[error("no frame starts here")]
    NotAFrame,
    /// A length or count is over its limit, or contradicts another.
    #[error("the header's lengths are impossible")]
    Lengths,
    /// The bytes end before the frame does.
    #[error("the frame is cut short")]
    CutShort,
    /// The header's CRC, or the rules inside it, do not hold.
    #[error("the header's checksum is wrong")]
    Header,
    /// The body's CRC does not hold.
    #[error("the body's checksum is wrong")]
    Body,
}

/// What stands at a place where a frame could start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A whole frame.
    Frame {
        /// Its header.
        header: Header,
        /// Its body.
        body: &'a [u8],
    },
    /// The header holds, the body does not: it is known who lost something.
    HeaderOnly {
        /// Its header.
        header: Header,
        /// What is wrong with the body.
        why: Flaw,
    },
    /// Zeros.
    Nothing,
    /// Neither zeros nor a header that holds.
    Damaged(Flaw),
}

/// Why a record cannot be written down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// The body is over [`RECORD_BODY_BYTES_MAX`].
    #[error("a record's body of {0} bytes is over the limit of {RECORD_BODY_BYTES_MAX}")]
    Body(usize),
    /// There are more links than [`RECORD_LINKS_MAX`].
    #[error("a record that touches {0} entities is over the limit of {RECORD_LINKS_MAX}")]
    Links(usize),
    /// A name is over [`ENTITY_NAME_BYTES_MAX`].
    #[error("an entity's name of {0} bytes is over the limit of {ENTITY_NAME_BYTES_MAX}")]
    Name(usize),
}

/// The length of the frame that these links and this body make, after checking every limit.
pub fn frame_len(links: &[Link], body: &[u8]) -> Result<usize, TooLarge> {
    if body.len() > RECORD_BODY_BYTES_MAX {
        return Err(TooLarge::Body(body.len()));
    }
    if links.len() > RECORD_LINKS_MAX {
        return Err(TooLarge::Links(links.len()));
    }
    if let Some(link) = links.iter().find(|l| l.entity.name.len() > ENTITY_NAME_BYTES_MAX) {
        return Err(TooLarge::Name(link.entity.name.len()));
    }
    Ok((header_len(links) + body.len()).next_multiple_of(FRAME_ALIGN))
}

fn header_len(links: &[Link]) -> usize {
    let names: usize = links.iter().map(|l| LINK_FIXED_BYTES + l.entity.name.len()).sum();
    padded_header(names)
}

/// A header's length with links of so many bytes: its checksum ends it.
const fn padded_header(links: usize) -> usize {
    (FIXED_BYTES + links + 4).next_multiple_of(FRAME_ALIGN)
}

/// Where a frame stands among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Its lsn, or the one it speaks of.
    pub lsn: Lsn,
    /// The last lsn known durable.
    pub synced_through: Lsn,
    /// [`Header::crc`] of the record before; 0 without one.
    pub chain: u32,
}

/// Appends a frame to `out`; gives its header's checksum, for the next one to name.
pub fn encode(
    out: &mut Vec<u8>,
    nonce: u64,
    kind: FrameKind,
    position: Position,
    links: &[Link],
    body: &[u8],
) -> Result<u32, TooLarge> {
    const CHECKED: &str = "checked against its limit by frame_len";
    let len = frame_len(links, body)?;
    let start = out.len();
    let header_len = header_len(links);
    out.extend_from_slice(&FRAME_MAGIC);
    out.extend_from_slice(&[FRAME_VERSION, kind.byte()]);
    out.extend_from_slice(&u16::try_from(links.len()).expect(CHECKED).to_le_bytes());
    out.extend_from_slice(&u32::try_from(header_len).expect(CHECKED).to_le_bytes());
    out.extend_from_slice(&u32::try_from(body.len()).expect(CHECKED).to_le_bytes());
    out.extend_from_slice(&position.lsn.0.to_le_bytes());
    out.extend_from_slice(&position.synced_through.0.to_le_bytes());
    out.extend_from_slice(&crc(nonce, body).to_le_bytes());
    out.extend_from_slice(&position.chain.to_le_bytes());
    for link in links {
        out.push(link.entity.kind.byte());
        out.push(u8::try_from(link.entity.name.len()).expect(CHECKED));
        out.extend_from_slice(&link.previous.0.to_le_bytes());
        out.extend_from_slice(link.entity.name.as_bytes());
    }
    out.resize(start + header_len - 4, 0);
    let check = crc(nonce, out.get(start..).unwrap_or_default());
    out.extend_from_slice(&check.to_le_bytes());
    out.extend_from_slice(body);
    out.resize(start + len, 0);
    Ok(check)
}

/// How many bytes the frame that seems to start here wants to be decoded; unproved, but within the limits.
///
/// `None` where no frame starts.
pub fn claimed_len(bytes: &[u8]) -> Option<usize> {
    let (header_len, body_len) = lengths(bytes).ok()?;
    Some((header_len + body_len).next_multiple_of(FRAME_ALIGN))
}

fn lengths(bytes: &[u8]) -> Result<(usize, usize), Flaw> {
    let magic = bytes.get(..4).ok_or(Flaw::CutShort)?;
    if magic != FRAME_MAGIC {
        return Err(Flaw::NotAFrame);
    }
    let header_len = u32_at(bytes, 8).ok_or(Flaw::CutShort)? as usize;
    let body_len = u32_at(bytes, 12).ok_or(Flaw::CutShort)? as usize;
    // I9: bounds before anything is read or allocated by these lengths.
    let good = (FRAME_BYTES_MIN..=HEADER_BYTES_MAX).contains(&header_len)
        && header_len.is_multiple_of(FRAME_ALIGN)
        && body_len <= RECORD_BODY_BYTES_MAX;
    if good || planted("record.no_bounds") {
        Ok((header_len, body_len))
    } else {
        Err(Flaw::Lengths)
    }
}

/// Says what stands at the start of `bytes`, which should reach as far as [`claimed_len`] asks, if the file does.
pub fn decode_at(bytes: &[u8], nonce: u64) -> Decoded<'_> {
    if bytes.iter().take(FRAME_ALIGN).all(|b| *b == 0) {
        return Decoded::Nothing;
    }
    let header = match decode_header(bytes, nonce) {
        Ok(header) => header,
        Err(flaw) => return Decoded::Damaged(flaw),
    };
    let Some(body) = bytes.get(header.body_at..header.body_at + header.body_len) else {
        return Decoded::HeaderOnly { header, why: Flaw::CutShort };
    };
    if crc(nonce, body) == header.body_crc || planted("record.no_crc") {
        Decoded::Frame { header, body }
    } else {
        Decoded::HeaderOnly { header, why: Flaw::Body }
    }
}

fn decode_header(bytes: &[u8], nonce: u64) -> Result<Header, Flaw> {
    let (header_len, body_len) = lengths(bytes)?;
    let bytes = bytes.get(..header_len).ok_or(Flaw::CutShort)?;
    let (covered, check) = bytes.split_at(header_len - 4);
    let check = u32_at(check, 0).ok_or(Flaw::Header)?;
    if check != crc(nonce, covered) {
        return Err(Flaw::Header);
    }
    let kind = bytes.get(5).copied().and_then(FrameKind::from_byte).ok_or(Flaw::Header)?;
    if bytes.get(4) != Some(&FRAME_VERSION) {
        return Err(Flaw::Header);
    }
    let lsn_at = |at| u64_at(bytes, at).map(Lsn).filter(|lsn| *lsn <= LSN_MAX).ok_or(Flaw::Header);
    let count = usize::from(u16_at(bytes, 6).ok_or(Flaw::Header)?);
    let links = covered.get(FIXED_BYTES..).ok_or(Flaw::Header)?;
    Ok(Header {
        kind,
        lsn: lsn_at(16)?,
        synced_through: lsn_at(24)?,
        links: decode_links(links, count).ok_or(Flaw::Header)?,
        chain: u32_at(bytes, 36).ok_or(Flaw::Header)?,
        crc: check,
        body_at: header_len,
        body_len,
        body_crc: u32_at(bytes, 32).ok_or(Flaw::Header)?,
    })
}

fn decode_links(mut bytes: &[u8], count: usize) -> Option<Vec<Link>> {
    if count > RECORD_LINKS_MAX {
        return None;
    }
    let mut links = Vec::with_capacity(count);
    for _ in 0..count {
        let name_len = usize::from(*bytes.get(1)?);
        let previous = Lsn(u64_at(bytes, 2)?);
        let name = bytes.get(LINK_FIXED_BYTES..LINK_FIXED_BYTES + name_len)?;
        let name = core::str::from_utf8(name).ok()?.to_string();
        let entity = EntityKey { kind: EntityKind::from_byte(*bytes.first()?), name };
        links.push(Link { entity, previous });
        bytes = bytes.get(LINK_FIXED_BYTES + name_len..)?;
    }
    Some(links)
}

fn crc(nonce: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&nonce.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

pub(crate) fn plain_crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::file_header::{BadFileHeader, FileHeader, FileKind};

    fn some_links() -> impl Strategy<Value = Vec<Link>> {
        let link =
            (any::<u8>(), "[a-zé]{0,20}", any::<u64>()).prop_map(|(kind, name, previous)| {
                let entity = EntityKey::new(EntityKind::from_byte(kind), name);
                Link { entity, previous: Lsn(previous) }
            });
        prop::collection::vec(link, 0..6)
    }

    fn some_record() -> impl Strategy<Value = Record> {
        let body = prop::collection::vec(any::<u8>(), 0..200);
        let lsn = || 0..=LSN_MAX.0;
        (lsn(), lsn(), some_links(), body).prop_map(|(lsn, synced, links, body)| Record {
            lsn: Lsn(lsn),
            synced_through: Lsn(synced),
            links,
            body,
        })
    }

    fn bytes_of(record: &Record, nonce: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let (lsn, synced_through) = (record.lsn, record.synced_through);
        let position = Position { lsn, synced_through, chain: 7 };
        encode(&mut out, nonce, FrameKind::Record, position, &record.links, &record.body).unwrap();
        out
    }

    /// The record that these bytes give, if a whole one.
    fn whole(bytes: &[u8], nonce: u64) -> Option<Record> {
        match decode_at(bytes, nonce) {
            Decoded::Frame { header, body } => Some(header.into_record(body.to_vec())),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(record in some_record(), nonce: u64) {
            let bytes = bytes_of(&record, nonce);
            prop_assert_eq!(claimed_len(&bytes), Some(bytes.len()));
            prop_assert_eq!(frame_len(&record.links, &record.body), Ok(bytes.len()));
            let header = decode_header(&bytes, nonce).unwrap();
            prop_assert_eq!(header.frame_len(), bytes.len());
            prop_assert_eq!(whole(&bytes, nonce), Some(record));
        }

        // Proves I10 at the level of bytes: no truncation gives a wrong record.
        #[test]
        fn a_truncated_frame_is_never_a_wrong_record(record in some_record(), nonce: u64) {
            let bytes = bytes_of(&record, nonce);
            for len in 0..bytes.len() {
                let got = whole(&bytes[..len], nonce);
                // Only the padding after the body may be missing.
                prop_assert!(got.is_none() || (got == Some(record.clone()) && bytes.len() - len < 8));
            }
        }

        // Proves I10 at the level of bytes: no flipped bits in one byte give a wrong record.
        #[test]
        fn a_flipped_byte_is_never_a_wrong_record(record in some_record(), nonce: u64, flip in 1..=255u8) {
            let good = bytes_of(&record, nonce);
            for at in 0..good.len() {
                let mut bytes = good.clone();
                bytes[at] ^= flip;
                let got = whole(&bytes, nonce);
                prop_assert!(got.is_none() || got == Some(record.clone()));
                if let Decoded::HeaderOnly { header, .. } = decode_at(&bytes, nonce) {
                    prop_assert_eq!(&header.links, &record.links);
                }
            }
        }

        #[test]
        fn bytes_of_another_nonce_never_pass(record in some_record(), nonce: u64, other: u64) {
            prop_assume!(nonce != other);
            let bytes = bytes_of(&record, nonce);
            let got = decode_at(&bytes, other);
            prop_assert!(matches!(got, Decoded::Damaged(Flaw::Header)));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), nonce: u64) {
            prop_assert_eq!(whole(&bytes, nonce), None);
            // The same behind a plausible start.
            let magic = FRAME_MAGIC.iter().copied().zip(bytes.iter_mut());
            magic.for_each(|(from, to)| *to = from);
            prop_assert_eq!(whole(&bytes, nonce), None);
            let header = FileHeader::decode(&bytes, FileKind::Segment);
            prop_assert_eq!(header, Err(BadFileHeader::Damaged));
        }
    }

    #[test]
    fn impossible_lengths_are_refused_before_anything_is_allocated() {
        // Proves I9.
        let claimed = |header: usize, body: usize| {
            let lengths = [header, body].map(|len| u32::try_from(len).unwrap().to_le_bytes());
            let bytes =
                [&FRAME_MAGIC, &[0; 4], &lengths[0], &lengths[1]].map(|it| &it[..]).concat();
            if claimed_len(&bytes).is_none() {
                assert_eq!(decode_at(&bytes, 0), Decoded::Damaged(Flaw::Lengths));
            }
            claimed_len(&bytes)
        };
        let longest = frame_len(&largest_links(), &[]).unwrap();
        assert_eq!(claimed(FRAME_BYTES_MIN, 0), Some(FRAME_BYTES_MIN));
        let largest = longest + RECORD_BODY_BYTES_MAX.next_multiple_of(FRAME_ALIGN);
        assert_eq!(claimed(longest, RECORD_BODY_BYTES_MAX), Some(largest));
        let all_ones = u32::MAX as usize;
        for header in [0, FRAME_BYTES_MIN - 8, FRAME_BYTES_MIN + 4, longest + 8, all_ones] {
            assert_eq!(claimed(header, 0), None, "a header of {header} bytes");
        }
        for body in [RECORD_BODY_BYTES_MAX + 1, all_ones] {
            assert_eq!(claimed(FRAME_BYTES_MIN, body), None, "a body of {body} bytes");
        }
    }

    #[test]
    fn an_lsn_from_which_nobody_could_count_on_is_damage() {
        for (lsn, synced_through) in [(1 << 63, 1), (u64::MAX, 1), (1, 1 << 63), (1, u64::MAX)] {
            let (lsn, synced_through) = (Lsn(lsn), Lsn(synced_through));
            let record = Record { lsn, synced_through, links: vec![], body: vec![] };
            let bytes = bytes_of(&record, 3);
            assert_eq!(decode_at(&bytes, 3), Decoded::Damaged(Flaw::Header), "{record:?}");
        }
    }

    #[test]
    fn a_record_over_a_limit_is_refused() {
        let body = vec![0; RECORD_BODY_BYTES_MAX + 1];
        assert_eq!(frame_len(&[], &body), Err(TooLarge::Body(body.len())));
        let link = Link { entity: EntityKey::new(EntityKind::Job, "a"), previous: Lsn::NONE };
        let links = vec![link.clone(); RECORD_LINKS_MAX + 1];
        assert_eq!(frame_len(&links, &[]), Err(TooLarge::Links(links.len())));
        let name = "n".repeat(ENTITY_NAME_BYTES_MAX + 1);
        let long = Link { entity: EntityKey::new(EntityKind::Job, name), ..link };
        assert_eq!(frame_len(&[long], &[]), Err(TooLarge::Name(256)));
    }

    fn largest_links() -> Vec<Link> {
        let entity = EntityKey::new(EntityKind::Repo, "n".repeat(ENTITY_NAME_BYTES_MAX));
        vec![Link { entity, previous: Lsn(u64::MAX) }; RECORD_LINKS_MAX]
    }

    #[test]
    fn the_largest_record_is_accepted_and_read_back() {
        let links = largest_links();
        let body = vec![0xA5; RECORD_BODY_BYTES_MAX];
        let record = Record { lsn: Lsn(7), synced_through: Lsn(6), links, body };
        assert_eq!(whole(&bytes_of(&record, 1), 1), Some(record));
    }

    #[test]
    fn zeros_are_nothing_and_other_bytes_are_damage() {
        assert_eq!(decode_at(&[0; 64], 1), Decoded::Nothing);
        assert_eq!(decode_at(&[7; 64], 1), Decoded::Damaged(Flaw::NotAFrame));
        let last = |byte| [0, 0, 0, 0, 0, 0, 0, byte];
        assert_eq!(decode_at(&last(1), 1), Decoded::Damaged(Flaw::NotAFrame));
    }

    #[test]
    fn each_kind_of_frame_is_read_as_itself_and_no_other_byte_is_one() {
        use FrameKind::{End, Entry, Mark, Record, Seal};
        for kind in [Record, Mark, Entry, End, Seal] {
            assert_eq!(FrameKind::from_byte(kind.byte()), Some(kind));
        }
        assert_eq!((0..=255).filter_map(FrameKind::from_byte).count(), 5);
    }

    #[test]
    fn an_entity_is_named_by_its_sort_and_its_name() {
        let all = (0..=6).map(|byte| EntityKey::new(EntityKind::from_byte(byte), "a").to_string());
        let named =
            ["server/a", "job/a", "repo/a", "operation/a", "delivery/a", "stats/a", "kind-6/a"];
        assert_eq!(all.collect::<Vec<_>>(), named);
        assert_eq!(EntityKey::new(EntityKind::Server, "").to_string(), "server");
    }

    #[test]
    fn a_file_header_is_read_back_and_no_flipped_byte_passes() {
        let kind = FileKind::Checkpoint;
        let header = FileHeader { kind, instance: [7; 16], nonce: 1, number: 2, count: 3 };
        let bytes = header.encode();
        assert_eq!(bytes.len(), FILE_HEADER_BYTES);
        assert_eq!(FileHeader::decode(&bytes, kind), Ok(header));
        assert_eq!(FileHeader::decode(&bytes, FileKind::Segment), Err(BadFileHeader::Damaged));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert_eq!(FileHeader::decode(&bad, kind), Err(BadFileHeader::Damaged), "byte {at}");
        }
    }

    #[test]
    fn a_file_header_of_a_newer_version_is_told_from_damage() {
        let kind = FileKind::Segment;
        let header = FileHeader { kind, instance: [7; 16], nonce: 1, number: 2, count: 3 };
        let mut bytes = header.encode();
        bytes[8] = 2;
        let check = plain_crc(&bytes[..508]).to_le_bytes();
        bytes[508..].copy_from_slice(&check);
        assert_eq!(FileHeader::decode(&bytes, kind), Err(BadFileHeader::Newer(2)));
    }

    #[test]
    fn the_bytes_of_version_1_do_not_change() {
        let links = [Link { entity: EntityKey::new(EntityKind::Job, "ab"), previous: Lsn(3) }];
        let mut out = Vec::new();
        let position = Position { lsn: Lsn(5), synced_through: Lsn(4), chain: 0 };
        encode(&mut out, 9, FrameKind::Record, position, &links, b"{}").unwrap();
        let fixed: [u8; 64] = *b"\xFFOWL\x01\x01\x01\0\x38\0\0\0\x02\0\0\0\
            \x05\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x00\xEE\xE0\xFD\0\0\0\0\
            \x01\x02\x03\0\0\0\0\0\0\0ab\xDA\xE0\x8F\xB4{}\0\0\0\0\0\0";
        assert_eq!(out, fixed);
    }
}
