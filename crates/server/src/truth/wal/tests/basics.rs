//! What the write-ahead log promises when nothing goes wrong, and how it refuses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::channel;

use outlive_core::ids::Lsn;
use outlive_core::limits::RECORD_BODY_BYTES_MAX;

use super::{INSTANCE, Machine, Model, config};
use crate::truth::disk::RealDisk;
use crate::truth::disk::sim::{Fault, Keep, SimDisk};
use crate::truth::wal::{
    Batch, Config, Draft, Durable, NextSegment, SubmitError, Wal, WalError, dump, found, open,
    verify,
};

const SEGMENT: u64 = 8192;

/// A running write-ahead log that reports every durable payload.
fn start(disk: &SimDisk) -> (Wal<u64>, std::sync::mpsc::Receiver<u64>) {
    let (sender, receiver) = channel();
    let log = open(config(disk, SEGMENT)).unwrap().log;
    let on_durable = move |group: Durable<Vec<u64>>| {
        group.into_inner().into_iter().for_each(|n| sender.send(n).unwrap());
    };
    let (wal, _) = Wal::start(log, on_durable, |e| panic!("{e}")).unwrap();
    (wal, receiver)
}

#[test]
fn an_empty_directory_becomes_a_fresh_log() {
    let disk = SimDisk::default();
    let opened = open(config(&disk, SEGMENT)).unwrap();
    assert!(opened.report.created);
    assert_eq!((opened.report.last_lsn, opened.records.len()), (Lsn::NONE, 0));
    let opened = open(config(&disk.after(Keep::Nothing), SEGMENT)).unwrap();
    assert!(!opened.report.created);
}

#[test]
fn a_log_that_begins_with_a_state_has_it_and_goes_on_after_it() {
    for records in [0, 1, 200] {
        let disk = SimDisk::default();
        let mut model = Model::default();
        drop(model.batch(&vec![30; records]));
        let lsn = Lsn(model.last());
        let made = found(&config(&disk, SEGMENT), lsn, model.entries(lsn.0).into_iter());
        assert_eq!(made.unwrap().len(), if records == 0 { 1 } else { 2 });
        model.acknowledged = model.last();
        let opened = open(config(&disk.after(Keep::All), SEGMENT)).unwrap();
        assert!(opened.report.damage.is_empty() && !opened.report.created, "{:?}", opened.report);
        assert_eq!(model.check(&opened, "founded"), lsn.0);
        let mut machine = Machine::new(opened);
        // The short segment first, then usual ones.
        for _ in 0..40 {
            machine.group(&mut model, &[3000]).unwrap();
        }
    }
}

// Proves I1: what comes out of on_durable is on disk, and in the order it was submitted.
#[test]
fn batches_become_durable_in_order_and_in_groups() {
    let disk = SimDisk::default();
    let (wal, durable) = start(&disk);
    let mut model = Model::default();
    for n in 1..=200 {
        wal.submit(model.batch(&[n])).unwrap();
        if n % 50 == 0 {
            let got: Vec<u64> = durable.iter().take(50).collect();
            assert_eq!(got, (n as u64 - 49..=n as u64).collect::<Vec<_>>());
            model.acknowledged = n as u64;
            let opened = open(config(&disk.after(Keep::Nothing), SEGMENT)).unwrap();
            model.check(&opened, "durable");
        }
    }
    assert_eq!(wal.durable(), Lsn(200));
    wal.stop();
    model.check(&open(config(&disk.after(Keep::Nothing), SEGMENT)).unwrap(), "stopped");
}

#[test]
fn whoever_stops_it_or_lets_it_go_waits_for_everything_submitted() {
    for stop in [Wal::stop, drop::<Wal<u64>>] {
        let (wal, durable) = start(&SimDisk::default());
        let mut model = Model::default();
        for n in 1..=50 {
            wal.submit(model.batch(&[n])).unwrap();
        }
        stop(wal);
        assert_eq!(durable.try_iter().count(), 50);
    }
}

#[test]
fn a_batch_without_records_waits_for_those_before_it() {
    let disk = SimDisk::default();
    let (wal, durable) = start(&disk);
    let mut model = Model::default();
    wal.submit(model.batch(&[5])).unwrap();
    wal.submit(Batch { first: Lsn::NONE, records: Vec::new(), payload: 77 }).unwrap();
    assert_eq!(durable.iter().take(2).collect::<Vec<_>>(), [1, 77]);
    assert_eq!(open(config(&disk.after(Keep::Nothing), SEGMENT)).unwrap().records.len(), 1);
}

#[test]
fn a_record_over_a_limit_is_refused_before_it_is_queued() {
    let (wal, _durable) = start(&SimDisk::default());
    let records = vec![Draft { links: Vec::new(), body: vec![0; RECORD_BODY_BYTES_MAX + 1] }];
    let refused = wal.submit(Batch { first: Lsn(1), records, payload: 0 });
    assert!(matches!(refused, Err(SubmitError::TooLarge(_))));
}

#[test]
fn a_record_of_any_size_gets_a_segment_that_holds_it() {
    for size in (6800..7800).step_by(8) {
        let disk = SimDisk::default();
        let (mut machine, mut model) = (Machine::open(&disk, 4096), Model::default());
        let open = || open(config(&disk.after(Keep::All), 4096)).unwrap();
        for size in [100, size, 100] {
            machine.group(&mut model, &[size]).unwrap();
        }
        assert_eq!(model.check(&open(), &format!("{size} bytes")), 3);
    }
}

#[test]
fn a_gap_in_the_lsns_is_fatal() {
    let disk = SimDisk::default();
    let mut machine = Machine::open(&disk, SEGMENT);
    let batch = Batch { first: Lsn(2), ..Model::default().batch(&[1]) };
    let refused = machine.writer.add(batch, &mut Vec::new());
    assert!(matches!(refused, Err(WalError::OutOfOrder { .. })));
}

// Proves I8: a start that met a refused write or sync does not try again by itself.
#[test]
fn only_an_opening_that_changed_nothing_may_be_tried_again() {
    let mut refused = 0;
    for at in 0..60 {
        let disk = SimDisk::default();
        let mut machine = Machine::open(&disk, SEGMENT);
        machine.group(&mut Model::default(), &[100, 200]).unwrap();
        disk.fail_at(disk.calls() + at, Fault::Eio);
        if let Err(error) = open(config(&disk, SEGMENT)) {
            assert!(!error.may_be_tried_again(), "call {at}: {error}");
            refused += 1;
        }
    }
    assert!(refused > 1, "{refused}");
    let dir = tempfile::tempdir().unwrap();
    let (wal, quarantine) = (dir.path().join("wal"), dir.path().join("quarantine"));
    std::fs::write(&wal, "no directory").unwrap();
    let unreadable = open(Config::new(Arc::new(RealDisk), wal, quarantine, INSTANCE, || 7));
    let error = unreadable.unwrap_err();
    assert!(error.may_be_tried_again(), "{error}");
}

// Proves I8: the hook is called, exactly once, at whichever call of the write-ahead log's thread the disk fails; and everything acknowledged is there.
#[test]
fn a_failed_disk_stops_the_log_and_loses_nothing_acknowledged() {
    let mut fatal = 0;
    for at in 0..60 {
        let disk = SimDisk::default();
        let log = open(config(&disk, 4096)).unwrap().log;
        disk.fail_at(disk.calls() + at, Fault::Eio);
        let (acknowledge, acknowledged) = channel();
        let (fail, failed) = channel();
        let on_durable = move |group: Durable<Vec<u64>>| {
            group.into_inner().into_iter().for_each(|n| acknowledge.send(n).unwrap());
        };
        let on_fatal = move |error: &WalError| fail.send(error.to_string()).unwrap();
        let (wal, _) = Wal::start(log, on_durable, on_fatal).unwrap();
        let mut model = Model::default();
        for _ in 0..20 {
            if wal.submit(model.batch(&[900])).is_err() {
                break;
            }
        }
        drop(wal);
        model.acknowledged = acknowledged.iter().last().unwrap_or(0);
        let errors: Vec<String> = failed.iter().collect();
        assert!(errors.len() <= 1);
        assert!(!errors.is_empty() || model.acknowledged == 20, "call {at}");
        fatal += errors.len();
        for keep in [Keep::Process, Keep::Nothing, Keep::All, Keep::Subset(at)] {
            let opened = open(config(&disk.after(keep), 4096)).unwrap();
            model.check(&opened, &format!("call {at} failed, {keep:?}"));
        }
    }
    println!("{fatal} of 60 failures were fatal, the others hit the making of a spare segment");
    assert!(fatal > 20);
}

#[test]
fn the_next_segment_is_ready_unless_space_is_short_and_then_by_itself_when_asked_again() {
    let disk = SimDisk::default();
    let machine = Machine::open(&disk, SEGMENT);
    disk.fail_at(disk.calls() + 2, Fault::Enospc);
    machine.spare();
    let next = NextSegment(Arc::clone(&machine.shared.spare));
    let problem = next.problem().unwrap();
    assert!(problem.starts_with("cannot write /d/wal/0000000000000002.seg.tmp: "), "{problem}");
    assert!(disk.names().iter().all(|n| n.extension() != Some("tmp".as_ref())));
    machine.spare();
    assert!(next.problem().is_some(), "not by itself");
    next.retry();
    machine.spare();
    assert_eq!(next.problem(), None);
}

#[test]
fn a_change_of_segment_needs_no_file_operation_once_the_next_is_ready() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, 4096), Model::default());
    machine.group(&mut model, &[2500]).unwrap();
    machine.spare();
    let before = disk.calls();
    machine.group(&mut model, &[2500]).unwrap();
    assert_eq!(disk.calls() - before, 2, "a write and a sync");
}

#[test]
fn an_idle_writer_marks_once_and_the_next_start_has_nothing_to_write_again() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[100]).unwrap();
    let before = disk.calls();
    machine.mark().unwrap();
    machine.mark().unwrap();
    assert_eq!(disk.calls() - before, 1);
    let killed = disk.after(Keep::Process);
    let opened = open(config(&killed, SEGMENT)).unwrap();
    assert_eq!((opened.report.rewritten_records, opened.report.synced_through), (0, Lsn(1)));
    assert_eq!(killed.calls(), 1, "only the directory is synced");
    let opened = open(config(&disk.after(Keep::Nothing), SEGMENT)).unwrap();
    assert_eq!(opened.report.rewritten_records, 1, "a power cut took the mark");
}

#[test]
fn checkpoints_bound_the_log_and_two_are_kept_with_their_records() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, 4096), Model::default());
    for n in 0..100 {
        machine.group(&mut model, &[400]).unwrap();
        if n % 10 == 9 {
            machine.checkpoint(&model).unwrap();
        }
    }
    let names = disk.names();
    let count =
        |ending: &str| names.iter().filter(|n| n.extension() == Some(ending.as_ref())).count();
    assert_eq!(count("ckpt"), 2);
    assert!(count("seg") <= 6, "{names:?}");
    assert_eq!(count("tmp"), 0);
    let opened = open(config(&disk.after(Keep::Nothing), 4096)).unwrap();
    assert_eq!(opened.report.checkpoint_lsn, Lsn(100));
    model.check(&opened, "newest");
    assert!(opened.report.segments_read <= 2, "what the checkpoint covers is not read");
    // The one before leads to the same end.
    let newest = names.iter().rfind(|n| n.extension() == Some("ckpt".as_ref())).unwrap();
    let bytes = disk.contents(newest).unwrap();
    disk.put(newest, &bytes[..bytes.len() - 8]);
    let opened = open(config(&disk, 4096)).unwrap();
    assert_eq!(opened.report.checkpoint_lsn, Lsn(90));
    model.check(&opened, "the one before");
    assert!(disk.contents(newest).is_none(), "moved into quarantine");
}

// Proves R12.
#[test]
fn a_checkpoint_ahead_of_the_durable_records_is_refused() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[10]).unwrap();
    let ahead = machine.checkpointer.write(Lsn(2), std::iter::empty());
    assert!(matches!(ahead, Err(WalError::CheckpointAhead { .. })));
    machine.checkpoint(&model).unwrap();
    let calls = disk.calls();
    machine.checkpoint(&model).unwrap();
    assert_eq!(disk.calls(), calls, "there is one as new already");
}

#[test]
fn files_of_another_instance_or_a_newer_version_are_refused_untouched() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[10]).unwrap();
    disk.put("/d/wal/0000000000000009.seg.tmp".as_ref(), &[1]);
    let before = disk.after(Keep::All);
    let other = Config { instance: [0x22; 16], ..config(&before, SEGMENT) };
    let refused = open(other).unwrap_err();
    assert!(matches!(refused, WalError::OtherInstance { found: INSTANCE, .. }), "{refused}");
    let path = "/d/wal/0000000000000001.seg".as_ref();
    let mut bytes = before.contents(path).unwrap();
    bytes[8] = 2;
    let check = crc32_of(&bytes[..508]);
    bytes[508..512].copy_from_slice(&check.to_le_bytes());
    before.put(path, &bytes);
    let refused = open(config(&before, SEGMENT)).unwrap_err();
    assert!(matches!(refused, WalError::Newer { .. }), "{refused}");
    assert_eq!(before.calls(), 0, "untouched");
}

/// CRC-32 (IEEE), bit by bit: a second opinion on the one that is used.
pub(super) fn crc32_of(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 }
        })
    })
}

#[test]
fn left_over_temporary_files_are_removed_and_others_are_not() {
    let disk = SimDisk::default();
    Machine::open(&disk, SEGMENT);
    for name in ["0000000000000009.seg.tmp", "0000000000000003.ckpt.tmp", "notes.tmp", "x.seg"] {
        disk.put(&std::path::Path::new("/d/wal").join(name), &[1]);
    }
    assert_eq!(open(config(&disk, SEGMENT)).unwrap().report.temp_files_removed, 2);
    let names = disk.names();
    assert!(names.contains(&"/d/wal/notes.tmp".into()) && names.contains(&"/d/wal/x.seg".into()));
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn verify_and_dump_touch_nothing_and_agree_with_open() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, 4096), Model::default());
    for _ in 0..8 {
        machine.group(&mut model, &[700, 100]).unwrap();
    }
    machine.checkpoint(&model).unwrap();
    machine.group(&mut model, &[50]).unwrap();
    let disk = disk.after(Keep::Process);
    let report = verify(&config(&disk, 4096)).unwrap().report;
    let mut dumped = BTreeMap::new();
    dump(&config(&disk, 4096), |_, _, record| drop(dumped.insert(record.lsn.0, record.body)))
        .unwrap();
    assert_eq!(disk.calls(), 0);
    let expected: BTreeMap<_, _> =
        model.records.iter().map(|r| (r.lsn.0, r.body.clone())).collect();
    assert_eq!(dumped, expected);
    let opened = open(config(&disk, 4096)).unwrap().report;
    assert_eq!((report.last_lsn, report.checkpoint_lsn), (opened.last_lsn, opened.checkpoint_lsn));
    assert!(report.segments_read >= opened.segments_read && report.damage.is_empty());
}
