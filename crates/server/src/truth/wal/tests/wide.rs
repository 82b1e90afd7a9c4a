//! Segments much wider than what is read at a time: nothing depends on where the pieces of reading meet.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::damage::{damaged, names, nothing_is_silent};
use super::{Machine, Model, behead, config};
use crate::truth::disk::DiskFile;
use crate::truth::disk::sim::{Keep, SimDisk};
use crate::truth::wal::reader::read_around;
use crate::truth::wal::{Opened, dump, open, verify};

/// Six and a half times as wide.
const SEGMENT: u64 = 416 << 10;
const FIRST: &str = "/d/wal/0000000000000001.seg";

/// Records that lie across the places where reading stops, and small ones beside them, in one segment; with a mark, all of them are
/// known to be durable, and no damage is taken for a torn group.
fn wide(mark: bool) -> (SimDisk, Model) {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    // Behind the last there is room for a mark in one sector.
    for size in [60_000, 10, 70_000, 64 << 10, 5000, 30, 40_000, 40] {
        machine.group(&mut model, &[size]).unwrap();
    }
    if mark {
        machine.mark().unwrap();
    }
    (disk, model)
}

fn opened(disk: &SimDisk) -> Opened {
    open(config(disk, SEGMENT)).unwrap()
}

/// Where each record begins, and where the last one ends; without a mark.
fn places() -> (Vec<u64>, u64) {
    let disk = &wide(false).0;
    let mut places = Vec::new();
    dump(&config(disk, SEGMENT), |_, at, _| places.push(at)).unwrap();
    let seen = verify(&config(disk, SEGMENT)).unwrap().segments;
    (places, seen[0].used_bytes)
}

#[test]
fn records_are_read_wherever_they_lie() {
    let (disk, model) = wide(false);
    let found = opened(&disk);
    assert_eq!(model.check(&found, "wide"), 8);
    assert!(found.report.damage.is_empty() && found.report.cut_bytes == 0, "{:?}", found.report);
}

#[test]
fn damage_costs_the_record_that_it_is_in_wherever_that_lies() {
    let ((disk, model), (places, end)) = (wide(true), places());
    let first = Path::new(FIRST);
    let len = usize::try_from(SEGMENT).unwrap();
    let ends = places.iter().skip(1).copied().chain([end]);
    for (n, (start, end)) in places.iter().copied().zip(ends).enumerate() {
        // Its header, and the last byte of its body; padding may come after that.
        for at in [start + 9, end - 8] {
            let at = usize::try_from(at).unwrap();
            let disk = damaged(&disk, first, |bytes| bytes[at] ^= 0x41);
            let found = opened(&disk);
            nothing_is_silent(&model, &found, &format!("record {} at {at}", n + 1));
            assert_eq!(found.records.len(), 7, "record {}: {:?}", n + 1, found.report);
            assert!(names(&found, first, at, len), "{:?}", found.report);
            let place = found.report.damage.iter().map(|d| (d.offset, d.offset + d.bytes));
            assert_eq!(place.collect::<Vec<_>>(), [(start, end)], "record {}", n + 1);
            // What could not be read is kept, to the byte.
            let kept = found.report.damage[0].kept.as_deref().unwrap();
            let span = [start, end].map(|at| usize::try_from(at).unwrap());
            let damaged = disk.contents(first).unwrap()[span[0]..span[1]].to_vec();
            assert_eq!(disk.contents(kept), Some(damaged), "record {}", n + 1);
        }
    }
}

/// A file whose third sector cannot be read; what a wide read of it meets, and one of a sector alone.
#[derive(Debug)]
struct Worn {
    bytes: Vec<u8>,
    wide: Errno,
    alone: Errno,
}

impl DiskFile for Worn {
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap().min(self.bytes.len());
        let end = self.bytes.len().min(start + buf.len());
        if start < 1536 && end > 1024 {
            return Err(if buf.len() > 512 { self.wide } else { self.alone }.into());
        }
        buf[..end - start].copy_from_slice(&self.bytes[start..end]);
        Ok(end - start)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(Errno::ROFS.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn around_an_unreadable_sector_everything_is_read_and_other_refusals_are_told() {
    let bytes: Vec<u8> = (0..2300).map(|n: u32| (n % 251) as u8).collect();
    for (len, wanted) in [(2300, 2300), (4096, 2300), (2048, 2048)] {
        let mut buf = vec![0; len];
        let worn = Worn { bytes: bytes.clone(), wide: Errno::IO, alone: Errno::IO };
        let read = read_around(&worn, &mut buf, 0).unwrap();
        assert_eq!(read, wanted, "of {len}");
        assert!(buf[..1024] == bytes[..1024] && buf[1536..read] == bytes[1536..read], "of {len}");
        assert!(buf[1024..1536].iter().all(|byte| *byte == buf[1024]), "of {len}");
    }
    for (wide, alone) in [(Errno::ACCESS, Errno::IO), (Errno::IO, Errno::ACCESS)] {
        let worn = Worn { bytes: bytes.clone(), wide, alone };
        let refused = read_around(&worn, &mut [0; 2300], 0).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}

#[test]
fn an_unreadable_sector_costs_the_record_that_it_is_in_wherever_that_lies() {
    let ((disk, model), (places, _)) = (wide(true), places());
    for (n, start) in places.iter().enumerate().filter(|(n, _)| model.records[*n].body.len() > 4096)
    {
        let disk = disk.after(Keep::All);
        let sector = usize::try_from(start / 512).unwrap() + 3;
        disk.spoil(Path::new(FIRST), sector);
        let found = opened(&disk);
        nothing_is_silent(&model, &found, &format!("record {}", n + 1));
        assert_eq!(found.records.len(), 7, "record {}: {:?}", n + 1, found.report);
        assert!(found.records.iter().all(|record| record.lsn.0 != n as u64 + 1));
    }
}

#[test]
fn what_follows_the_last_record_is_cut_up_to_its_last_byte_and_no_further() {
    let ((disk, model), (_, end)) = (wide(false), places());
    let room = SEGMENT - 512;
    for dirty in [
        vec![end],
        vec![end + 9],
        vec![end + 70_001],
        vec![room - 1],
        vec![end + 3, room - 8],
        vec![end + 65_536, end + 100_000],
    ] {
        let disk = damaged(&disk, Path::new(FIRST), |bytes| {
            for at in &dirty {
                bytes[usize::try_from(*at).unwrap()] = 0x41;
            }
        });
        let found = opened(&disk);
        assert_eq!(model.check(&found, &format!("{dirty:?}")), 8);
        let last = dirty.last().map(|at| (at + 1).next_multiple_of(8)).unwrap();
        assert_eq!(found.report.cut_at, Some((PathBuf::from(FIRST), end)), "{dirty:?}");
        assert_eq!(found.report.cut_bytes, last - end, "{dirty:?}");
    }
}

#[test]
fn without_its_header_a_segment_is_named_from_its_first_byte_to_its_last() {
    let ((disk, model), (places, end)) = (wide(false), places());
    let disk = damaged(&disk, Path::new(FIRST), |bytes| behead(bytes));
    let found = opened(&disk);
    nothing_is_silent(&model, &found, "headless");
    let named = found.report.damage.iter().filter(|d| !d.harmless && d.bytes > 512);
    let place: Vec<_> = named.map(|d| (d.offset, d.offset + d.bytes)).collect();
    assert_eq!(place, [(places[0], end)], "{:?}", found.report);
}
