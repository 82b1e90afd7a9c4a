//! Where segments and the write-ahead log end, and what may stand there.

use std::path::{Path, PathBuf};

use outlive_core::ids::Lsn;

use super::damage::{damaged, nothing_is_silent};
use super::{Machine, Model, behead, checkpoint, checkpoints, config, segment};
use crate::truth::disk::Disk as _;
use crate::truth::disk::sim::{Keep, SimDisk};
use crate::truth::wal::segment::{NOTE, place_of_note};
use crate::truth::wal::{Opened, dump, open, verify};

const SEGMENT: u64 = 4096;
/// Where the room for frames ends.
const ROOM: u64 = SEGMENT - 512;

fn opened(disk: &SimDisk) -> Opened {
    open(config(disk, SEGMENT)).unwrap()
}

/// Where the last frame of a segment ends.
fn used(disk: &SimDisk, number: u64) -> u64 {
    let seen = verify(&config(disk, SEGMENT)).unwrap().segments;
    seen.iter().find(|it| it.path == segment(number)).unwrap().used_bytes
}

#[test]
fn garbage_behind_the_last_record_of_a_segment_that_is_not_the_last_costs_nothing() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..3 {
        machine.group(&mut model, &[2000]).unwrap();
    }
    let at = used(&disk, 1) + 100;
    let disk = damaged(&disk, &segment(1), |bytes| bytes[usize::try_from(at).unwrap()] = 1);
    let found = opened(&disk);
    assert_eq!(model.check(&found, "garbage"), 3);
    let told: Vec<_> = found.report.damage.iter().map(|d| (d.harmless, d.file.clone())).collect();
    assert_eq!(told, [(true, segment(1))], "{:?}", found.report);
}

#[test]
fn where_no_frame_fits_any_more_nothing_is_written_for_what_is_cut() {
    let mut met = 0;
    for size in (2900..3072).step_by(8) {
        let disk = SimDisk::default();
        let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
        machine.group(&mut model, &[size]).unwrap();
        let left = ROOM - used(&disk, 1);
        if left == 0 || left > 104 {
            continue;
        }
        met += 1;
        let disk = damaged(&disk.after(Keep::All), &segment(1), |bytes| {
            bytes[usize::try_from(ROOM - 1).unwrap()] = 1;
        });
        let found = opened(&disk);
        assert_eq!(found.report.cut_bytes, left, "{left} bytes");
        let mut machine = Machine::new(found);
        machine.group(&mut model, &[100]).unwrap();
        let again = opened(&disk.after(Keep::Nothing));
        assert_eq!(model.check(&again, &format!("{left} bytes")), 2);
        assert_eq!((again.report.damage.len(), again.report.cut_bytes), (0, 0), "{left} bytes");
    }
    assert!(met > 8, "{met}");
}

#[test]
fn a_mark_is_written_where_it_fits_before_the_end_and_in_one_sector() {
    let mut met = [0; 2];
    for size in (2400..=3008).step_by(8) {
        let disk = SimDisk::default();
        let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
        machine.group(&mut model, &[size]).unwrap();
        let end = used(&disk, 1);
        let before = disk.contents(&segment(1)).unwrap();
        machine.mark().unwrap();
        let after = disk.contents(&segment(1)).unwrap();
        let fits = end + NOTE <= ROOM && place_of_note(end) == end;
        met[usize::from(fits)] += 1;
        assert_eq!(before != after, fits, "at {end}");
        let room = usize::try_from(ROOM).unwrap();
        assert_eq!(before[room..], after[room..], "at {end}");
        let found = opened(&disk.after(Keep::All));
        assert_eq!(model.check(&found, &format!("marked at {end}")), 1);
        assert_eq!(found.log.marked, if fits { Lsn(1) } else { Lsn::NONE }, "at {end}");
    }
    assert!(met.iter().all(|count| *count > 5), "{met:?}");
}

#[test]
fn a_last_segment_without_its_header_takes_no_records_and_neither_does_the_one_before_it() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..4 {
        machine.group(&mut model, &[1400]).unwrap();
    }
    machine.spare();
    let before = disk.contents(&segment(1)).unwrap();
    let disk = damaged(&disk.after(Keep::All), &segment(2), |bytes| behead(bytes));
    let found = opened(&disk);
    nothing_is_silent(&model, &found, "headless");
    assert_eq!(found.records.len(), 2, "{:?}", found.report);
    let last = found.report.last_lsn;
    let mut machine = Machine::new(found);
    model.records.resize(usize::try_from(last.0).unwrap(), model.records[0].clone());
    machine.group(&mut model, &[50]).unwrap();
    assert_eq!(disk.contents(&segment(1)), Some(before), "it stays as it is");
    let again = opened(&disk.after(Keep::Nothing));
    assert_eq!((again.report.last_lsn, again.records.len()), (last.next(), 3));
}

#[test]
fn behind_a_seal_a_mark_is_seen_and_the_next_start_has_nothing_to_do() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[30]).unwrap();
    let torn = usize::try_from(used(&disk, 1)).unwrap() + 100;
    let disk = damaged(&disk.after(Keep::All), &segment(1), |bytes| bytes[torn] = 1);
    let found = opened(&disk);
    assert!(found.report.cut_bytes > 0, "{:?}", found.report);
    Machine::new(found).mark().unwrap();
    let disk = disk.after(Keep::All);
    let calls = |keep| {
        let disk = disk.after(keep);
        let found = opened(&disk);
        let report = &found.report;
        assert_eq!((report.cut_bytes, report.rewritten_records, report.last_lsn), (0, 0, Lsn(1)));
        assert_eq!(found.log.marked, Lsn(1));
        disk.calls()
    };
    assert_eq!(calls(Keep::All), 1, "the directory's names are made durable, and no more");
}

#[test]
fn what_stands_between_the_last_record_and_a_seal_is_seen() {
    let mut met = 0;
    for size in (8..520).step_by(8) {
        let disk = SimDisk::default();
        let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
        machine.group(&mut model, &[size]).unwrap();
        let end = used(&disk, 1);
        if place_of_note(end) == end {
            continue;
        }
        met += 1;
        let at = usize::try_from(end).unwrap();
        let disk = damaged(&disk.after(Keep::All), &segment(1), |bytes| bytes[at + 100] = 1);
        assert!(opened(&disk).report.cut_bytes > 0, "the seal stands now");
        assert_eq!(opened(&disk).report.cut_bytes, 0);
        let disk = damaged(&disk.after(Keep::All), &segment(1), |bytes| bytes[at] = 1);
        let found = opened(&disk);
        assert!(found.report.cut_bytes > 0, "{size}: {:?}", found.report);
        assert_eq!(model.check(&found, "behind the gap"), 1);
    }
    assert!(met > 3, "{met}");
}

#[test]
fn a_header_copy_of_another_life_is_told_of() {
    let [disk, other] = [1, 2].map(|_| {
        let disk = SimDisk::default();
        Machine::open(&disk, SEGMENT).group(&mut Model::default(), &[100]).unwrap();
        disk.after(Keep::All)
    });
    let copy = usize::try_from(ROOM).unwrap();
    let foreign = other.contents(&segment(1)).unwrap()[copy..].to_vec();
    let disk = damaged(&disk, &segment(1), |bytes| bytes[copy..].copy_from_slice(&foreign));
    let report = opened(&disk).report;
    let told: Vec<_> = report.damage.iter().map(|d| (d.harmless, d.offset)).collect();
    assert_eq!((told, report.last_lsn), (vec![(true, ROOM)], Lsn(1)), "{:?}", report.damage);
}

#[test]
fn where_records_are_missing_there_is_nothing_to_keep() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..4 {
        machine.group(&mut model, &[1400]).unwrap();
    }
    disk.remove(&segment(1)).unwrap();
    let found = opened(&disk);
    nothing_is_silent(&model, &found, "without the first");
    let told: Vec<_> = found.report.damage.iter().map(|d| (d.bytes, d.kept.clone())).collect();
    assert_eq!(told, [(0, None)], "{:?}", found.report);
}

/// Two checkpoints, of the first three records and of all five.
fn two_checkpoints() -> (SimDisk, Model, [PathBuf; 2]) {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for n in 1..=5 {
        machine.group(&mut model, &[100]).unwrap();
        if n == 3 || n == 5 {
            machine.checkpoint(&model).unwrap();
        }
    }
    (disk.after(Keep::All), model, [checkpoint(3), checkpoint(5)])
}

// What the name of a checkpoint says was durable, though nothing of it and of the records can be read.
#[test]
fn records_that_only_the_name_of_a_checkpoint_tells_of_are_missed() {
    let (disk, model, [_, newest]) = two_checkpoints();
    let mut places = Vec::new();
    dump(&config(&disk, SEGMENT), |_, at, _| places.push(usize::try_from(at).unwrap())).unwrap();
    let disk = damaged(&disk, &newest, |bytes| bytes.fill(0));
    let room = usize::try_from(ROOM).unwrap();
    let disk = damaged(&disk, &segment(1), |bytes| bytes[places[3]..room].fill(0));
    let found = opened(&disk);
    nothing_is_silent(&model, &found, "gone");
    assert_eq!((found.report.last_lsn, found.report.cut_bytes), (Lsn(5), 0), "{:?}", found.report);
}

#[test]
fn a_checkpoint_under_another_name_is_not_used_nor_entries_of_what_it_does_not_cover() {
    let (disk, model, [older, newest]) = two_checkpoints();
    let bytes = disk.contents(&older).unwrap();
    disk.put(&newest, &bytes);
    let report = opened(&disk).report;
    assert_eq!(report.checkpoint_lsn, Lsn(3));
    let told = report.damage.iter().find(|damage| damage.file == newest).unwrap();
    assert_eq!(told.what, "the checkpoint's header is damaged");
    let disk = SimDisk::default();
    let (mut machine, mut later) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut later, &[100; 5]).unwrap();
    machine.checkpointer.write(Lsn(3), model.entries(5).into_iter()).unwrap();
    let found = opened(&disk);
    assert!(found.checkpoint.iter().all(|entry| entry.lsn <= Lsn(3)), "{:?}", found.checkpoint);
    assert!(found.report.damage.iter().any(|damage| !damage.harmless), "{:?}", found.report);
}

#[test]
fn a_checkpoint_with_two_flaws_is_put_aside_once_and_kept_for_both() {
    let (disk, model, [_, newest]) = two_checkpoints();
    let bodies = model.entries(5).into_iter().map(|entry| entry.body);
    let disk = damaged(&disk, &newest, |bytes| {
        for body in bodies.take(2) {
            let at = bytes.windows(body.len()).position(|window| window == body).unwrap();
            bytes[at] ^= 1;
        }
    });
    let report = opened(&disk).report;
    let kept: Vec<_> = report.damage.iter().map(|damage| damage.kept.is_some()).collect();
    assert_eq!(kept, [true, true], "{:?}", report.damage);
    assert_eq!(checkpoints(&disk), [checkpoint(3)]);
    let size: u64 = disk.names().iter().map(|it| disk.contents(it).unwrap().len() as u64).sum();
    assert!((size / 4..size * 2).contains(&report.bytes_read), "{} of {size}", report.bytes_read);
}

#[test]
fn the_chain_goes_on_behind_a_checkpoint_that_covers_everything() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[100]).unwrap();
    let chain = opened(&disk.after(Keep::All)).log.chain;
    machine.checkpoint(&model).unwrap();
    let with_records = disk.after(Keep::All);
    assert_ne!(chain, 0);
    assert_eq!(opened(&with_records).log.chain, chain);
    // Without its record, the checkpoint alone tells.
    let headless = damaged(&with_records, Path::new(&segment(1)), |bytes| bytes[512..].fill(0));
    assert_eq!(opened(&headless).log.chain, chain);
}
