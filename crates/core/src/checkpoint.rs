//! A checkpoint's bytes: the state of every entity, each in a frame of its own, so that damage costs one entity only.
//!
//! Absent: files, and what an entity's state means. The frames are those of [`crate::record`].

use alloc::vec;
use alloc::vec::Vec;

use crate::ids::Lsn;
use crate::record::{EntityKey, FrameKind, Header, Link, Position, TooLarge, encode};

/// One entity in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose state this is.
    pub entity: EntityKey,
    /// The last record that changed it; its next record names this one as the previous.
    pub lsn: Lsn,
    /// The state; opaque here.
    pub body: Vec<u8>,
}

impl Entry {
    /// Appends its frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>, nonce: u64) -> Result<(), TooLarge> {
        let link = vec![Link { entity: self.entity.clone(), previous: self.lsn }];
        encode(out, nonce, FrameKind::Entry, at(self.lsn), &link, &self.body).map(drop)
    }

    /// The entry that a whole frame is; `None` for a frame of another kind.
    pub fn from_frame(header: &Header, body: &[u8]) -> Option<Self> {
        let entity = entity_of(header)?.clone();
        Some(Self { entity, lsn: header.lsn, body: body.to_vec() })
    }
}

/// The entity that an entry's header speaks of; `None` for a frame of another kind.
pub fn entity_of(header: &Header) -> Option<&EntityKey> {
    match (header.kind, header.links.as_slice()) {
        (FrameKind::Entry, [link]) if link.previous == header.lsn => Some(&link.entity),
        _ => None,
    }
}

/// Appends the frame that ends a checkpoint of everything up to `lsn`. `chain` is [`Header::crc`] of that record, 0 where it is not
/// known: it tells whether the records that follow are of the same history.
pub fn encode_end(out: &mut Vec<u8>, nonce: u64, lsn: Lsn, chain: u32) {
    let position = Position { chain, ..at(lsn) };
    encode(out, nonce, FrameKind::End, position, &[], &[]).expect("no links and no body");
}

/// A checkpoint's frames stand each for itself.
fn at(lsn: Lsn) -> Position {
    Position { lsn, synced_through: lsn, chain: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Decoded, EntityKind, decode_at};

    #[test]
    fn an_entry_is_read_back() {
        let entity = EntityKey::new(EntityKind::Job, "abc");
        let entry = Entry { entity, lsn: Lsn(4), body: b"state".to_vec() };
        let mut out = Vec::new();
        entry.encode(&mut out, 3).unwrap();
        let Decoded::Frame { header, body } = decode_at(&out, 3) else { panic!("no frame") };
        assert_eq!(Entry::from_frame(&header, body), Some(entry));
    }

    #[test]
    fn an_entry_whose_link_is_not_its_own_lsn_is_none() {
        let entity = EntityKey::new(EntityKind::Job, "abc");
        for (previous, good) in [(4, true), (3, false)] {
            let links = [Link { entity: entity.clone(), previous: Lsn(previous) }];
            let mut out = Vec::new();
            encode(&mut out, 3, FrameKind::Entry, at(Lsn(4)), &links, b"state").unwrap();
            let Decoded::Frame { header, .. } = decode_at(&out, 3) else { panic!("no frame") };
            assert_eq!(entity_of(&header).is_some(), good);
        }
    }

    #[test]
    fn the_end_is_no_entry() {
        let mut out = Vec::new();
        encode_end(&mut out, 3, Lsn(9), 7);
        let Decoded::Frame { header, body } = decode_at(&out, 3) else { panic!("no frame") };
        assert_eq!((header.kind, header.lsn, header.chain), (FrameKind::End, Lsn(9), 7));
        assert_eq!(Entry::from_frame(&header, body), None);
    }
}
