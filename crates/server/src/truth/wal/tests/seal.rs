//! What recovery leaves in place of a torn group: the proof that damage before it is damage to what was acknowledged.

use std::collections::BTreeSet;

use outlive_core::ids::Lsn;

use super::{Machine, Model, config};
use crate::truth::disk::sim::{Fault, Keep, SimDisk, scramble};
use crate::truth::wal::segment::{NOTE, place_of_note};
use crate::truth::wal::{Opened, open};

const SEGMENT: u64 = 4096;
const FIRST: &str = "/d/wal/0000000000000001.seg";

fn again(disk: &SimDisk, keep: Keep) -> Opened {
    open(config(&disk.after(keep), SEGMENT)).unwrap()
}

fn lost(opened: &Opened) -> BTreeSet<u64> {
    let named = opened.report.damage.iter().filter(|d| !d.harmless);
    named.flat_map(|d| d.lsns.start().0..=d.lsns.end().0).collect()
}

/// Two records, the second of them damaged; and a third one after it, torn in the middle, whose header alone proves that the
/// second was acknowledged. `size` moves that header over the sectors' boundaries.
fn proved_by_a_torn_group(size: usize) -> SimDisk {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[30]).unwrap();
    machine.group(&mut model, &[size]).unwrap();
    disk.fail_at(disk.calls() + 1, Fault::Crash);
    machine.group(&mut model, &[1500]).unwrap_err();
    let disk = disk.after(Keep::All);
    let mut bytes = disk.contents(FIRST.as_ref()).unwrap();
    let find = |text: &[u8]| bytes.windows(text.len()).position(|window| window == text).unwrap();
    let (second, third) = (find(b"0:2:"), find(b"0:3:"));
    bytes[second] ^= 1;
    bytes[third + 1400] ^= 1;
    disk.put(FIRST.as_ref(), &bytes);
    disk
}

#[test]
fn a_note_has_the_first_place_where_it_lies_in_one_sector() {
    for position in (0..2048_u64).step_by(8) {
        let lies_in_one = |at: &u64| at / 512 == (at + NOTE - 1) / 512;
        let first = (position..).step_by(8).find(lies_in_one);
        assert_eq!(Some(place_of_note(position)), first, "from {position}");
    }
}

/// At every 8 bytes of a sector: no crash or failure inside recovery, and none in the group after it, makes the damage silent.
#[test]
fn damage_that_only_the_torn_group_proves_stays_named() {
    let mut states = 0;
    for size in (100..612).step_by(8) {
        let disk = proved_by_a_torn_group(size);
        let check = |opened: &Opened, what: &str| {
            assert_eq!(lost(opened), BTreeSet::from([2]), "size {size}, {what}");
            assert_eq!(opened.report.last_lsn, Lsn(2), "size {size}, {what}");
        };
        for fault in [Fault::Crash, Fault::Eio, Fault::EioInPart(size as u64)] {
            for at in 0.. {
                let disk = disk.after(Keep::All);
                disk.fail_at(at, fault);
                drop(open(config(&disk, SEGMENT)));
                if disk.calls() <= at {
                    break;
                }
                let subsets = (0..8).map(|seed| Keep::Subset(scramble(seed)));
                for keep in subsets.chain([Keep::Process, Keep::Nothing, Keep::All]) {
                    let what = format!("{fault:?} at {at} of recovery, {keep:?}");
                    let disk = disk.after(keep);
                    check(&open(config(&disk, SEGMENT)).unwrap(), &what);
                    check(&again(&disk, Keep::Nothing), &what);
                    states += 2;
                }
            }
        }
        let opened = open(config(&disk, SEGMENT)).unwrap();
        check(&opened, "recovered");
        let mut machine = Machine::new(opened);
        let mut model = Model::default();
        model.draft(10);
        model.draft(10);
        disk.fail_at(disk.calls() + 1, Fault::Crash);
        machine.group(&mut model, &[900]).unwrap_err();
        for seed in 0..16 {
            let opened = again(&disk, Keep::Subset(scramble(seed)));
            assert_eq!(lost(&opened), BTreeSet::from([2]), "size {size}, group torn, {seed}");
            states += 1;
        }
    }
    println!("{states} states");
}

/// The seal says what was proved, not what the page cache shows: a record that only that had is not missed when it is gone.
#[test]
fn a_seal_claims_nothing_that_only_the_page_cache_held() {
    for size in (100..612).step_by(56) {
        let disk = SimDisk::default();
        let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
        machine.group(&mut model, &[30]).unwrap();
        // Half of the group is written, then there is no space: nothing of it is on disk, and the page cache shows a whole record and a torn one.
        disk.fail_at(disk.calls(), Fault::Enospc);
        machine.group(&mut model, &[size, size + 600]).unwrap_err();
        for at in 0.. {
            let disk = disk.after(Keep::Process);
            disk.fail_at(at, Fault::Crash);
            drop(open(config(&disk, SEGMENT)));
            if disk.calls() <= at {
                break;
            }
            for seed in 0..32 {
                let opened = again(&disk, Keep::Subset(scramble(seed)));
                assert_eq!(opened.report.damage, [], "size {size}, crash at {at}, {seed}");
                assert!(opened.report.last_lsn >= Lsn(1));
            }
        }
    }
}

#[test]
fn where_nothing_is_zeroed_nothing_but_doubtful_records_is_written() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[30]).unwrap();
    machine.group(&mut model, &[600]).unwrap();
    let disk = disk.after(Keep::Nothing);
    let opened = again(&disk, Keep::Nothing);
    assert_eq!((opened.report.rewritten_records, opened.report.cut_bytes), (1, 0));
    let before = disk.contents(FIRST.as_ref());
    drop(open(config(&disk, SEGMENT)).unwrap());
    assert_eq!(disk.calls(), 3, "the directory's sync, one record, its sync");
    assert_eq!(disk.contents(FIRST.as_ref()), before);
}

/// Zeros that were written, but whose sync failed, are in the page cache only; the records below them must not come back between later ones.
#[test]
fn what_a_failed_cut_left_behind_hides_no_later_record() {
    let (mut failed, mut rotated) = (0, 0);
    for at in 0..12 {
        let disk = SimDisk::default();
        let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
        machine.spare();
        machine.group(&mut model, &[30]).unwrap();
        // A group of several records whose first one is torn; the others are whole, and could pass for later ones.
        disk.fail_at(disk.calls() + 1, Fault::Crash);
        machine.group(&mut model, &[600, 100, 100, 100, 100]).unwrap_err();
        let disk = disk.after(Keep::All);
        let mut bytes = disk.contents(FIRST.as_ref()).unwrap();
        let torn = bytes.windows(4).position(|window| window == b"0:2:").unwrap();
        bytes[torn + 300] ^= 1;
        disk.put(FIRST.as_ref(), &bytes);
        model.cut(1);
        disk.fail_at(at, Fault::Eio);
        failed += u64::from(open(config(&disk, SEGMENT)).is_err());
        // The next process of the same boot.
        let mut machine = Machine::new(open(config(&disk.after(Keep::Process), SEGMENT)).unwrap());
        drop(machine.group(&mut model, &[30]));
        let disk = disk.after(Keep::Process);
        model.cut(1);
        let mut machine = Machine::open(&disk, SEGMENT);
        machine.spare();
        for size in [200, 2600, 30, 30] {
            machine.group(&mut model, &[size]).unwrap();
        }
        rotated += u64::from(format!("{:?}", machine.writer).contains("0000000000000002.seg"));
        let opened = again(&disk, Keep::Nothing);
        model.check(&opened, &format!("EIO at {at}"));
        assert_eq!(opened.report.last_lsn, Lsn(5), "EIO at {at}");
        assert_eq!(opened.report.damage, [], "EIO at {at}");
    }
    assert!(failed > 3 && rotated == 12, "{failed} recoveries failed, {rotated} changed segments");
}

/// A record that once followed another one with its predecessor's lsn is not taken for its successor.
#[test]
fn a_stale_record_does_not_follow_one_that_was_written_in_place_of_its_predecessor() {
    let both = |generation: u64| {
        let disk = SimDisk::default();
        let nonce = || 7;
        let config = crate::truth::wal::Config { nonce, ..config(&disk, SEGMENT) };
        let mut machine = Machine::new(open(config).unwrap());
        let mut model = Model { generation, ..Model::default() };
        machine.group(&mut model, &[100]).unwrap();
        machine.group(&mut model, &[100]).unwrap();
        disk
    };
    let (old, new) = (both(0), both(1));
    let mut bytes = old.contents(FIRST.as_ref()).unwrap();
    let body = bytes.windows(4).position(|window| window == b"0:2:").unwrap();
    let magic = outlive_core::record::FRAME_MAGIC;
    let second = bytes[..body].windows(4).rposition(|window| window == magic).unwrap();
    bytes[..second].copy_from_slice(&new.contents(FIRST.as_ref()).unwrap()[..second]);
    new.put(FIRST.as_ref(), &bytes);
    let opened = again(&new, Keep::Process);
    assert_eq!(opened.report.last_lsn, Lsn(1), "the second was never written after this first");
    assert!(opened.report.cut_bytes > 0);
}
