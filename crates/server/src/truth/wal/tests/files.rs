//! Whole files in the wrong place: swapped, doubled, old, empty, of another history. Never a panic, never silence. Proves I10.

use outlive_core::ids::Lsn;

use super::damage::nothing_is_silent;
use super::{Machine, Model, checkpoint, config, segment};
use crate::truth::disk::sim::{Keep, SimDisk, scramble};
use crate::truth::wal::{Opened, dump, open, verify};

const SEGMENT: u64 = 4096;

/// Twelve records in four segments, with a mark.
fn four() -> (SimDisk, Model) {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..12 {
        machine.group(&mut model, &[900]).unwrap();
    }
    machine.mark().unwrap();
    assert!(disk.contents(&segment(4)).is_some() && disk.contents(&segment(5)).is_none());
    (disk.after(Keep::All), model)
}

/// Opens it, twice with the same result, and goes on with it.
fn survived(disk: &SimDisk, context: &str) -> Opened {
    verify(&config(disk, SEGMENT)).unwrap();
    let opened = open(config(disk, SEGMENT)).unwrap();
    let again = open(config(&disk.after(Keep::Nothing), SEGMENT)).unwrap();
    assert_eq!(again.records, opened.records, "{context}");
    assert_eq!(again.report.last_lsn, opened.report.last_lsn, "{context}");
    assert_eq!(again.broken, opened.broken, "{context}");
    let last = again.report.last_lsn;
    let mut machine = Machine::new(again);
    let batch = crate::truth::wal::Batch { first: last.next(), ..Model::default().batch(&[10]) };
    machine.writer.add(batch, &mut Vec::new()).unwrap();
    machine.writer.commit().unwrap();
    opened
}

#[test]
fn swapped_segments_are_named_by_what_they_held() {
    for (one, other) in [(1, 2), (2, 3), (1, 4), (3, 4)] {
        let (disk, model) = four();
        let (a, b) =
            (disk.contents(&segment(one)).unwrap(), disk.contents(&segment(other)).unwrap());
        disk.put(&segment(one), &b);
        disk.put(&segment(other), &a);
        let context = format!("{one} and {other}");
        let opened = survived(&disk, &context);
        nothing_is_silent(&model, &opened, &context);
        assert!(opened.records.len() < 12 && !opened.lost.is_empty(), "{context}");
    }
}

#[test]
fn a_doubled_segment_costs_nothing_and_is_put_aside() {
    for (from, to) in [(1, 9), (4, 5), (2, 7)] {
        let (disk, model) = four();
        let bytes = disk.contents(&segment(from)).unwrap();
        disk.put(&segment(to), &bytes);
        let opened = open(config(&disk, SEGMENT)).unwrap();
        model.check(&opened, &format!("{from} as {to}"));
        let [damage] = opened.report.damage.as_slice() else { panic!("{:?}", opened.report) };
        assert!(damage.harmless && damage.file == segment(to), "{damage:?}");
        assert_eq!(disk.contents(damage.kept.as_ref().unwrap()), Some(bytes));
        assert_eq!(disk.contents(&segment(to)), None);
        let again = open(config(&disk.after(Keep::Nothing), SEGMENT)).unwrap();
        assert_eq!(again.report.damage, []);
        model.check(&again, "put aside");
    }
}

#[test]
fn an_old_segment_that_comes_back_says_nothing_new() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..6 {
        machine.group(&mut model, &[900]).unwrap();
    }
    let old = disk.contents(&segment(1)).unwrap();
    for _ in 0..2 {
        machine.checkpoint(&model).unwrap();
        machine.group(&mut model, &[900, 900, 900]).unwrap();
    }
    machine.checkpoint(&model).unwrap();
    assert_eq!(disk.contents(&segment(1)), None);
    disk.put(&segment(1), &old);
    let opened = open(config(&disk, SEGMENT)).unwrap();
    model.check(&opened, "an old segment");
    assert_eq!(opened.report.damage, []);
    // The next checkpoint clears it away.
    let mut machine = Machine::new(opened);
    machine.group(&mut model, &[30]).unwrap();
    machine.checkpoint(&model).unwrap();
    assert_eq!(disk.contents(&segment(1)), None);
}

#[test]
fn the_last_segment_as_it_once_was_is_named_where_a_checkpoint_knows_more() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[300]).unwrap();
    machine.mark().unwrap();
    let old = disk.contents(&segment(1)).unwrap();
    machine.group(&mut model, &[300, 300]).unwrap();
    machine.checkpoint(&model).unwrap();
    disk.put(&segment(1), &old);
    let opened = open(config(&disk, SEGMENT)).unwrap();
    model.check(&opened, "the checkpoint has all of it");
    let [damage] = opened.report.damage.as_slice() else { panic!("{:?}", opened.report) };
    assert!(damage.harmless && damage.file == segment(1), "{damage:?}");
    assert!(damage.what.contains("records end with 1, before the checkpoint of 3"), "{damage:?}");
    let opened = survived(&disk, "gone on with");
    assert_eq!(opened.report.last_lsn, Lsn(3));
}

#[test]
fn an_empty_segment_is_named_unless_it_was_empty() {
    let blank = |bytes: &[u8]| {
        let mut header = bytes[..512].to_vec();
        header.resize(bytes.len(), 0);
        [Vec::new(), vec![0; bytes.len()], header]
    };
    for number in 1..=4 {
        let (disk, model) = four();
        for (kind, bytes) in blank(&disk.contents(&segment(number)).unwrap()).iter().enumerate() {
            let disk = disk.after(Keep::All);
            disk.put(&segment(number), bytes);
            let context = format!("segment {number}, kind {kind}");
            let opened = survived(&disk, &context);
            assert!(!opened.report.damage.is_empty(), "{context}");
            // What the last one held, nothing else tells.
            if number < 4 {
                nothing_is_silent(&model, &opened, &context);
            }
        }
    }
    // One that was made ahead of need.
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[300]).unwrap();
    machine.spare();
    for bytes in blank(&disk.contents(&segment(2)).unwrap()) {
        let disk = disk.after(Keep::All);
        disk.put(&segment(2), &bytes);
        let opened = survived(&disk, "a spare one");
        model.check(&opened, "a spare one");
        assert!(opened.report.damage.iter().all(|d| d.harmless), "{:?}", opened.report);
    }
}

/// Zeros or garbage from anywhere on to the end of a segment.
#[test]
fn a_tail_of_zeros_or_garbage_is_cut_or_named() {
    let (disk, model) = four();
    for (number, fill) in [(2, 0), (2, 1), (4, 0), (4, 1)] {
        let good = disk.contents(&segment(number)).unwrap();
        for at in (512..good.len() - 512).step_by(8) {
            let disk = disk.after(Keep::All);
            let mut bytes = good.clone();
            let end = bytes.len() - 512;
            for (offset, byte) in (at as u64..).zip(&mut bytes[at..end]) {
                *byte = if fill == 0 { 0 } else { u8::try_from(scramble(offset) >> 56).unwrap() };
            }
            disk.put(&segment(number), &bytes);
            let context = format!("segment {number} from {at} on filled with {fill}");
            let opened = open(config(&disk, SEGMENT)).unwrap();
            // Zeros where the last records were, and nothing after them that speaks of them: nobody could know.
            if (number, fill) != (4, 0) {
                nothing_is_silent(&model, &opened, &context);
            }
            for record in &opened.records {
                let index = usize::try_from(record.lsn.0 - 1).unwrap();
                assert_eq!(record.body, model.records[index].body, "{context}");
            }
        }
    }
}

#[test]
fn a_checkpoint_of_any_length_is_made_up_for() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..2 {
        machine.group(&mut model, &[200, 200]).unwrap();
        machine.checkpoint(&model).unwrap();
    }
    machine.group(&mut model, &[30]).unwrap();
    for lsn in [2, 4] {
        let good = disk.contents(&checkpoint(lsn)).unwrap();
        for len in 0..good.len() {
            let disk = disk.after(Keep::All);
            disk.put(&checkpoint(lsn), &good[..len]);
            let context = format!("checkpoint {lsn} of {len} bytes");
            let opened = open(config(&disk, SEGMENT)).unwrap();
            model.check(&opened, &context);
            assert!(opened.report.damage.iter().all(|d| d.harmless), "{context}");
            assert_eq!(opened.report.damage.is_empty(), lsn == 2, "{context}");
            assert_eq!(disk.contents(&checkpoint(lsn)).is_none(), lsn == 4, "{context}");
        }
    }
}

/// Not needed, and yet it will be removed one day.
#[test]
fn an_older_checkpoint_that_is_not_ours_is_refused_untouched() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..2 {
        machine.group(&mut model, &[100]).unwrap();
        machine.checkpoint(&model).unwrap();
    }
    for (at, what) in [(8, "Newer"), (16, "OtherInstance")] {
        let disk = disk.after(Keep::All);
        let mut bytes = disk.contents(&checkpoint(1)).unwrap();
        bytes[at] = 2;
        let check = super::basics::crc32_of(&bytes[..508]);
        bytes[508..512].copy_from_slice(&check.to_le_bytes());
        disk.put(&checkpoint(1), &bytes);
        let Err(refused) = open(config(&disk, SEGMENT)) else { panic!("{what} was opened") };
        assert!(format!("{refused:?}").starts_with(what), "{refused:?}");
        assert_eq!(disk.calls(), 0, "{what}");
        verify(&config(&disk, SEGMENT)).unwrap_err();
    }
}

/// The same data directory, gone on with in two ways.
fn histories() -> [(SimDisk, Model); 2] {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[100]).unwrap();
    machine.checkpoint(&model).unwrap();
    drop(machine);
    [0, 7].map(|generation| {
        let disk = disk.after(Keep::All);
        let mut machine = Machine::open(&disk, SEGMENT);
        let mut model = Model { generation, ..model.clone() };
        for n in 0..4 {
            machine.group(&mut model, &[100 + n]).unwrap();
        }
        (disk, model)
    })
}

#[test]
fn a_checkpoint_of_another_history_is_found_out_and_not_used() {
    // Of the last record, so that its header is looked at; or of one before that, so that the next one's link is.
    for through in [5, 4, 3] {
        let [(disk, model), (other, other_model)] = histories();
        let machine = Machine::open(&other, SEGMENT);
        let entries = other_model.entries(through);
        machine.checkpointer.write(Lsn(through), entries.into_iter()).unwrap();
        let bytes = other.contents(&checkpoint(through)).unwrap();
        // At home it is as good as any.
        let home = open(config(&other, SEGMENT)).unwrap();
        assert_eq!((home.report.checkpoint_lsn, home.report.damage.len()), (Lsn(through), 0));
        disk.put(&checkpoint(through), &bytes);
        let found = verify(&config(&disk, SEGMENT)).unwrap().report.damage;
        let disowned = found.iter().find(|d| d.what.contains("another history"));
        let len = disowned.map(|damage| damage.bytes);
        assert!(len.is_some_and(|len| (1..=bytes.len() as u64).contains(&len)), "{found:?}");
        let opened = open(config(&disk, SEGMENT)).unwrap();
        model.check(&opened, &format!("through {through}"));
        assert_eq!(opened.report.checkpoint_lsn, Lsn(1));
        let kept = opened.report.damage.iter().find_map(|damage| damage.kept.clone());
        assert_eq!(disk.contents(&kept.unwrap()), Some(bytes));
        assert_eq!(open(config(&disk, SEGMENT)).unwrap().report.damage, []);
    }
}

#[test]
fn a_checkpoint_of_another_history_is_found_out_also_where_its_last_record_is_damaged() {
    let [(disk, _), (other, other_model)] = histories();
    let machine = Machine::open(&other, SEGMENT);
    machine.checkpointer.write(Lsn(4), other_model.entries(4).into_iter()).unwrap();
    disk.put(&checkpoint(4), &other.contents(&checkpoint(4)).unwrap());
    let mut places = Vec::new();
    dump(&config(&disk, SEGMENT), |path, at, _| places.push((path.to_owned(), at))).unwrap();
    let (path, at) = &places[3];
    let mut bytes = disk.contents(path).unwrap();
    bytes[usize::try_from(*at).unwrap() + 9] ^= 1;
    disk.put(path, &bytes);
    let opened = open(config(&disk, SEGMENT)).unwrap();
    assert_eq!(opened.report.checkpoint_lsn, Lsn(1), "{:?}", opened.report);
}

#[test]
fn a_checkpoint_that_knows_more_than_the_records_is_named() {
    let [(disk, _), (other, mut other_model)] = histories();
    let mut machine = Machine::open(&other, SEGMENT);
    machine.group(&mut other_model, &[100, 100]).unwrap();
    machine.checkpoint(&other_model).unwrap();
    disk.put(&checkpoint(7), &other.contents(&checkpoint(7)).unwrap());
    let opened = open(config(&disk, SEGMENT)).unwrap();
    assert_eq!(opened.report.checkpoint_lsn, Lsn(7));
    let [damage] = opened.report.damage.as_slice() else { panic!("{:?}", opened.report) };
    assert!(damage.what.contains("records end with 5, before the checkpoint of 7"), "{damage:?}");
}

#[test]
fn a_checkpoint_of_a_version_that_did_not_tell_its_history_is_used() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[100]).unwrap();
    machine.checkpoint(&model).unwrap();
    machine.group(&mut model, &[100]).unwrap();
    let path = checkpoint(1);
    let mut bytes = disk.contents(&path).unwrap();
    let nonce = u64::from_le_bytes(bytes[32..40].try_into().unwrap());
    let end = bytes.len() - 48;
    assert_ne!(bytes[end + 36..end + 40], [0; 4], "it tells");
    let mut frame = Vec::new();
    outlive_core::checkpoint::encode_end(&mut frame, nonce, Lsn(1), 0);
    bytes[end..].copy_from_slice(&frame);
    disk.put(&path, &bytes);
    let opened = open(config(&disk, SEGMENT)).unwrap();
    model.check(&opened, "no history told");
    assert_eq!((opened.report.checkpoint_lsn, opened.report.damage.len()), (Lsn(1), 0));
    assert!(disk.contents(&path).is_some(), "and stays where it is");
}
