//! The first bytes of a segment or checkpoint: whose file it is, and the number that its frames are checked with.

use alloc::vec::Vec;

use crate::record::{FILE_HEADER_BYTES, FORMAT_VERSION, plain_crc, u32_at, u64_at};

/// What a file of the write-ahead log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A segment.
    Segment,
    /// A checkpoint.
    Checkpoint,
}

impl FileKind {
    fn magic(self) -> [u8; 8] {
        match self {
            Self::Segment => *b"OUTLVSEG",
            Self::Checkpoint => *b"OUTLVCKP",
        }
    }
}

/// The first sector of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// What the file is.
    pub kind: FileKind,
    /// The data directory it belongs to.
    pub instance: [u8; 16],
    /// Seeds every checksum of the file's frames.
    pub nonce: u64,
    /// A segment's number, or a checkpoint's lsn.
    pub number: u64,
    /// A segment's length in bytes, or a checkpoint's count of entries.
    pub count: u64,
}

/// Why a sector is not the file header that was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFileHeader {
    /// Magic or checksum is wrong, or it is cut short.
    #[error("the file header's checksum is wrong")]
    Damaged,
    /// Whole, but written by a newer version.
    #[error("format version {0} is newer than {FORMAT_VERSION}, the newest that is known here")]
    Newer(u32),
}

impl FileHeader {
    /// Its 512 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FILE_HEADER_BYTES);
        out.extend_from_slice(&self.kind.magic());
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.instance);
        for number in [self.nonce, self.number, self.count] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.resize(FILE_HEADER_BYTES - 4, 0);
        let check = plain_crc(&out);
        out.extend_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a header of the wanted kind.
    pub fn decode(bytes: &[u8], kind: FileKind) -> Result<Self, BadFileHeader> {
        let read = || {
            let covered = bytes.get(..FILE_HEADER_BYTES - 4)?;
            let good = covered.starts_with(&kind.magic())
                && u32_at(bytes, FILE_HEADER_BYTES - 4) == Some(plain_crc(covered));
            let version = u32_at(bytes, 8).filter(|_| good)?;
            let instance = bytes.get(16..32)?.try_into().ok()?;
            let nonce = u64_at(bytes, 32)?;
            let (number, count) = (u64_at(bytes, 40)?, u64_at(bytes, 48)?);
            Some((version, Self { kind, instance, nonce, number, count }))
        };
        let (version, header) = read().ok_or(BadFileHeader::Damaged)?;
        if version > FORMAT_VERSION { Err(BadFileHeader::Newer(version)) } else { Ok(header) }
    }
}
