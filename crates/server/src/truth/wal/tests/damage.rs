//! Damaged bytes: never a panic, never silence, never more lost than was damaged. Proves I10.

use std::path::{Path, PathBuf};

use outlive_core::ids::Lsn;
use outlive_core::limits::DAMAGE_LISTED_MAX;
use outlive_core::record::EntityKey;

use super::{Machine, Model, checkpoints, config, job};
use crate::truth::disk::sim::{Keep, SimDisk};
use crate::truth::wal::{Opened, dump, open, verify};

const SEGMENT: u64 = 4096;
const FIRST: &str = "/d/wal/0000000000000001.seg";

/// Eight records in two segments, with a mark at the end or without.
fn small(mark: bool) -> (SimDisk, Model) {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for size in [40, 300, 700, 20, 900, 600, 500, 30] {
        machine.group(&mut model, &[size]).unwrap();
    }
    if mark {
        machine.mark().unwrap();
    }
    (disk.after(Keep::All), model)
}

pub(super) fn damaged(disk: &SimDisk, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> SimDisk {
    let disk = disk.after(Keep::All);
    let mut bytes = disk.contents(path).unwrap();
    change(&mut bytes);
    disk.put(path, &bytes);
    disk
}

/// Each record is right or named as lost, by its lsn and by its entities where they can be known.
pub(super) fn nothing_is_silent(model: &Model, opened: &Opened, context: &str) {
    let report = &opened.report;
    let mut got = opened.records.iter().map(|record| record.lsn.0).collect::<Vec<_>>();
    got.dedup();
    assert_eq!(got.len(), opened.records.len(), "{context}");
    for record in &opened.records {
        let expected = &model.records[usize::try_from(record.lsn.0 - 1).unwrap()];
        assert_eq!((&record.body, &record.links), (&expected.body, &expected.links), "{context}");
    }
    for expected in model.records.iter().filter(|r| r.lsn > report.checkpoint_lsn) {
        let here = got.contains(&expected.lsn.0);
        let named = report.damage.iter().any(|d| !d.harmless && d.lsns.contains(&expected.lsn));
        let cut = report.cut_bytes > 0 && expected.lsn > report.last_lsn;
        assert!(here || named || cut, "{context}: {} is silently gone: {report:?}", expected.lsn);
        assert!(!(here && (named || cut)), "{context}: {} is there and lost", expected.lsn);
    }
}

/// Whether damage that costs something is told of that byte of the file, by a stretch that lies in it.
pub(super) fn names(opened: &Opened, path: &Path, at: usize, len: usize) -> bool {
    let hurt = opened.report.damage.iter().filter(|d| !d.harmless && d.file == path);
    let mut places = hurt.map(|damage| damage.offset..damage.offset + damage.bytes);
    places.any(|place| place.contains(&(at as u64)) && place.end <= len as u64)
}

#[test]
fn every_byte_flipped_is_survived_and_never_silent() {
    for mark in [true, false] {
        let (disk, model) = small(mark);
        let (mut named, mut cut, mut unhurt) = (0, 0, 0);
        for path in disk.names().into_iter().filter(|p| p.extension() == Some("seg".as_ref())) {
            let len = disk.contents(&path).unwrap().len();
            for at in 0..len {
                let context = format!("{} byte {at}, mark {mark}", path.display());
                let disk = damaged(&disk, &path, |bytes| bytes[at] ^= 0x41);
                verify(&config(&disk, SEGMENT)).unwrap();
                let opened = open(config(&disk, SEGMENT)).unwrap();
                nothing_is_silent(&model, &opened, &context);
                let lost = 8 - opened.records.len();
                assert!(lost <= 1, "{context}: one byte costs one record, not {lost}");
                let hurt = opened.report.damage.iter().any(|d| !d.harmless);
                assert!(!hurt || names(&opened, &path, at, len), "{context}: {:?}", opened.report);
                named += u64::from(hurt);
                cut += u64::from(!hurt && lost == 1);
                unhurt += u64::from(lost == 0);
                assert!(
                    lost == 0 || hurt || (!mark && opened.report.last_lsn == Lsn(7)),
                    "{context}"
                );
                // R15: the next start says the same, and goes on.
                let mut again = open(config(&disk, SEGMENT)).unwrap();
                assert_eq!(again.records, opened.records, "{context}");
                assert_eq!(again.broken, opened.broken, "{context}");
                again.records.clear();
                let mut model = model.clone();
                model.records.truncate(usize::try_from(again.report.last_lsn.0).unwrap());
                Machine::new(again).group(&mut model, &[10]).unwrap();
                let after = open(config(&disk.after(Keep::Nothing), SEGMENT)).unwrap();
                assert_eq!(after.records.len(), opened.records.len() + 1, "{context}");
            }
        }
        println!("mark {mark}: {named} named, {cut} cut as torn, {unhurt} without loss");
        // With the mark the last acknowledged group is known as such, and damage to it is named.
        assert_eq!(mark, cut == 0);
    }
}

#[test]
fn every_truncation_is_survived_and_never_silent() {
    let (disk, model) = small(true);
    for path in disk.names().into_iter().filter(|p| p.extension() == Some("seg".as_ref())) {
        for len in 0..disk.contents(&path).unwrap().len() {
            let disk = damaged(&disk, &path, |bytes| bytes.truncate(len));
            let opened = open(config(&disk, SEGMENT)).unwrap();
            let report = &opened.report;
            let last = path.to_str() != Some(FIRST);
            // What the end of the last file held cannot be known from the rest, but that it lost its end is said.
            if !last {
                nothing_is_silent(&model, &opened, &format!("{} cut to {len}", path.display()));
            }
            assert!(!report.damage.is_empty(), "{} cut to {len}", path.display());
        }
    }
}

#[test]
fn every_damaged_sector_or_page_is_survived_and_never_silent() {
    let (disk, model) = small(true);
    for path in disk.names().into_iter().filter(|p| p.extension() == Some("seg".as_ref())) {
        for size in [512, 1024, 4096] {
            for fill in [0, 0xFF] {
                for at in (0..4096).step_by(size) {
                    let disk = damaged(&disk, &path, |bytes| bytes[at..at + size].fill(fill));
                    let opened = open(config(&disk, SEGMENT)).unwrap();
                    let context = format!("{} {at}+{size} filled with {fill}", path.display());
                    // A last segment overwritten whole with zeros, header and all, tells of nothing: that is the only loss unnamed.
                    let blank = size == 4096 && path.to_str() != Some(FIRST);
                    if blank {
                        assert!(!opened.report.damage.is_empty(), "{context}");
                    } else {
                        nothing_is_silent(&model, &opened, &context);
                    }
                }
            }
        }
    }
}

fn at_body(disk: &SimDisk, path: &Path, text: &[u8]) -> usize {
    let bytes = disk.contents(path).unwrap();
    bytes.windows(text.len()).position(|window| window == text).unwrap()
}

#[test]
fn a_damaged_body_names_its_entities_and_its_bytes_are_kept() {
    let (disk, _) = small(true);
    let at = at_body(&disk, FIRST.as_ref(), b"0:4:");
    let disk = damaged(&disk, FIRST.as_ref(), |bytes| bytes[at] ^= 1);
    let opened = open(config(&disk, SEGMENT)).unwrap();
    let [damage] = opened.report.damage.as_slice() else { panic!("{:?}", opened.report) };
    assert_eq!((damage.lsns.clone(), &damage.file), (Lsn(4)..=Lsn(4), &PathBuf::from(FIRST)));
    assert_eq!(damage.entities, Some(vec![job(1), job(2)]));
    let broken: Vec<&EntityKey> = opened.broken.keys().collect();
    assert_eq!(broken, [&job(1), &job(2)]);
    assert!(opened.broken[&job(1)].why.contains(FIRST));
    let kept = disk.contents(damage.kept.as_ref().unwrap()).unwrap();
    let start = usize::try_from(damage.offset).unwrap();
    assert_eq!(kept, disk.contents(FIRST.as_ref()).unwrap()[start..start + kept.len()]);
    assert_eq!(kept.len() as u64, damage.bytes);
}

#[test]
fn a_damaged_header_names_the_lsns_and_the_chains_name_who_lost_something() {
    let (disk, _) = small(true);
    let body = at_body(&disk, FIRST.as_ref(), b"0:2:");
    let disk = damaged(&disk, FIRST.as_ref(), |bytes| bytes[body - 30] ^= 1);
    let opened = open(config(&disk, SEGMENT)).unwrap();
    let [damage] = opened.report.damage.as_slice() else { panic!("{:?}", opened.report) };
    assert_eq!((damage.lsns.clone(), damage.entities.clone()), (Lsn(2)..=Lsn(2), None));
    // Record 4 or 5 follows record 2 in the chain of job2, and only in that.
    assert_eq!(opened.broken.keys().collect::<Vec<_>>(), [&job(2)]);
    assert_eq!(opened.records.len(), 7);
}

#[test]
fn a_segment_that_is_gone_is_named_by_its_lsns() {
    let (disk, model) = small(true);
    let gone = disk.after(Keep::All);
    crate::truth::disk::Disk::remove(&gone, FIRST.as_ref()).unwrap();
    let opened = open(config(&gone, SEGMENT)).unwrap();
    nothing_is_silent(&model, &opened, "first segment gone");
    assert_eq!(opened.broken.len(), 3);
}

#[test]
fn a_last_segment_without_any_header_is_kept_and_its_lsns_are_not_used_again() {
    let (disk, model) = small(true);
    let path = disk.names().into_iter().rfind(|p| p.extension() == Some("seg".as_ref())).unwrap();
    let disk = damaged(&disk, &path, |bytes| {
        let end = bytes.len() - 512;
        bytes[9] ^= 1;
        bytes[end] ^= 1;
    });
    let before = disk.contents(&path);
    let opened = open(config(&disk, SEGMENT)).unwrap();
    nothing_is_silent(&model, &opened, "no header");
    assert!(opened.report.last_lsn > Lsn(8));
    let last = opened.report.last_lsn;
    let mut machine = Machine::new(opened);
    let batch = crate::truth::wal::Batch { first: last.next(), ..model.clone().batch(&[10]) };
    machine.writer.add(batch, &mut Vec::new()).unwrap();
    machine.writer.commit().unwrap();
    assert_eq!(disk.contents(&path), before);
    let opened = open(config(&disk.after(Keep::Nothing), SEGMENT)).unwrap();
    assert_eq!(opened.report.last_lsn, last.next());
}

#[test]
fn a_damaged_entry_of_the_only_checkpoint_costs_that_entity_only() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..6 {
        machine.group(&mut model, &[100]).unwrap();
    }
    machine.checkpoint(&model).unwrap();
    machine.group(&mut model, &[100]).unwrap();
    let path = checkpoints(&disk).remove(0);
    let good = disk.contents(&path).unwrap();
    for at in 0..good.len() {
        let disk = damaged(&disk, &path, |bytes| bytes[at] ^= 0x10);
        let opened = open(config(&disk, SEGMENT)).unwrap();
        if opened.report.checkpoint_lsn == Lsn::NONE {
            // Header or end damaged: the records from the beginning on are all there.
            model.check(&opened, &format!("byte {at}"));
            continue;
        }
        let lost = 3 - opened.checkpoint.len();
        assert!(lost <= 1, "byte {at}");
        let hurt = opened.report.damage.iter().any(|d| !d.harmless);
        assert!(lost == 0 || hurt && names(&opened, &path, at, good.len()), "byte {at}");
        assert!(opened.checkpoint.iter().all(|e| model.entries(6).contains(e)), "byte {at}");
        assert_eq!(opened.records.len(), 1, "byte {at}");
    }
}

#[test]
fn a_flawed_newest_checkpoint_is_made_up_for_by_the_one_before() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..3 {
        machine.group(&mut model, &[300, 300]).unwrap();
        machine.checkpoint(&model).unwrap();
    }
    let path = checkpoints(&disk).pop().unwrap();
    for at in 0..disk.contents(&path).unwrap().len() {
        let disk = damaged(&disk, &path, |bytes| bytes[at] ^= 0x10);
        let opened = open(config(&disk, SEGMENT)).unwrap();
        model.check(&opened, &format!("byte {at}"));
        assert!(opened.report.damage.iter().all(|d| d.harmless), "byte {at}");
    }
}

#[test]
fn a_flawed_checkpoint_is_put_aside_and_the_others_are_kept_and_removed_as_ever() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    let mut step = |machine: &mut Machine| {
        machine.group(&mut model, &[100]).unwrap();
        machine.checkpoint(&model).unwrap();
    };
    (0..2).for_each(|_| step(&mut machine));
    let before = checkpoints(&disk);
    let disk = damaged(&disk, &before[1], |bytes| bytes[700] ^= 1);
    let mut machine = Machine::open(&disk, SEGMENT);
    assert_eq!(checkpoints(&disk), before[..1]);
    step(&mut machine);
    assert_eq!(checkpoints(&disk).len(), 2);
    (0..2).for_each(|_| step(&mut machine));
    let last = checkpoints(&disk);
    assert!(last.len() == 2 && last.iter().all(|path| !before.contains(path)), "{last:?}");
}

#[test]
fn what_does_not_fit_into_the_list_of_damage_is_counted() {
    const ROOMY: u64 = 1 << 20;
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, ROOMY), Model::default());
    machine.group(&mut model, &[10; DAMAGE_LISTED_MAX + 4]).unwrap();
    machine.mark().unwrap();
    let mut bodies = Vec::new();
    dump(&config(&disk, ROOMY), |_, at, record| bodies.push((at, record.body))).unwrap();
    assert_eq!(bodies.len(), model.records.len());
    let first = Path::new(FIRST);
    for over in [0, 3] {
        let disk = damaged(&disk, first, |bytes| {
            for (at, body) in bodies.iter().take(DAMAGE_LISTED_MAX + over) {
                let frame = &mut bytes[usize::try_from(*at).unwrap()..];
                let body = frame.windows(body.len()).position(|window| window == body).unwrap();
                frame[body] ^= 1;
            }
        });
        let report = open(config(&disk, ROOMY)).unwrap().report;
        let told = (report.damage.len(), report.damage_unlisted);
        assert_eq!(told, (DAMAGE_LISTED_MAX, over));
    }
}

#[test]
fn garbage_of_any_kind_in_a_segment_never_panics() {
    let (disk, model) = small(false);
    for seed in 0..300u64 {
        let disk = damaged(&disk, FIRST.as_ref(), |bytes| {
            for i in 0..20u64 {
                let random = crate::truth::disk::sim::scramble(seed << 8 | i);
                let at = usize::try_from(random % (bytes.len() as u64 - 1100)).unwrap() + 512;
                bytes[at] = u8::try_from(random >> 56).unwrap();
            }
        });
        let opened = open(config(&disk, SEGMENT)).unwrap();
        nothing_is_silent(&model, &opened, &format!("seed {seed}"));
    }
}
