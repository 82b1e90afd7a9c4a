//! A crash, and one damaged sector in what was there: what was acknowledged is there, or named as lost, and stays so.

use std::collections::BTreeSet;
use std::path::PathBuf;

use outlive_core::ids::Lsn;

use super::{Explorer, FAULTS, Seed, Telling, Work};
use crate::truth::disk::sim::{Fault, Keep, SimDisk};
use crate::truth::wal::tests::{Machine, Model, config};
use crate::truth::wal::{Damage, Opened, Report, WalError, verify};

const SECTOR: usize = 512;

/// What is wrong with a sector.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Flipped,
    Zeros,
    Garbage,
    /// Cannot be read, and takes no writes.
    Unreadable,
}

const HARMS: [Harm; 4] = [Harm::Flipped, Harm::Zeros, Harm::Garbage, Harm::Unreadable];

/// One sector, and what is done to it.
#[derive(Debug)]
struct Hurt {
    path: PathBuf,
    sector: usize,
    harm: Harm,
    /// Which byte, where it is one.
    byte: usize,
}

impl Hurt {
    fn end(&self) -> u64 {
        ((self.sector + 1) * SECTOR) as u64
    }

    fn is_in(&self, damage: &Damage) -> bool {
        let start = (self.sector * SECTOR) as u64;
        damage.file == self.path
            && damage.offset < self.end()
            && damage.offset + damage.bytes > start
    }

    fn inflict(&self, disk: &SimDisk) {
        if matches!(self.harm, Harm::Unreadable) {
            return disk.spoil(&self.path, self.sector);
        }
        let mut bytes = disk.contents(&self.path).unwrap();
        let end = bytes.len().min((self.sector + 1) * SECTOR);
        let sector = &mut bytes[self.sector * SECTOR..end];
        match self.harm {
            Harm::Flipped => {
                let at = self.byte % sector.len();
                sector[at] ^= 0x41;
            }
            Harm::Zeros => sector.fill(0),
            Harm::Garbage => sector.fill(0xA7),
            Harm::Unreadable => {}
        }
        disk.put(&self.path, &bytes);
    }
}

/// The lsns after the checkpoint that are named as lost.
fn lost(opened: &Opened) -> BTreeSet<u64> {
    let base = opened.report.checkpoint_lsn.0;
    let named = opened.report.damage.iter().filter(|d| !d.harmless);
    named.flat_map(|d| d.lsns.start().0.max(base + 1)..=d.lsns.end().0).collect()
}

fn places(damage: &[Damage]) -> Vec<(PathBuf, u64)> {
    damage.iter().map(|d| (d.file.clone(), d.offset)).collect()
}

/// Everything acknowledged is there or named; or it is cut because the damage hit what nothing proved yet.
fn check(opened: &Opened, model: &Model, hurt: &Hurt) {
    let report = &opened.report;
    let lost = lost(opened);
    let mut there = BTreeSet::new();
    for record in &opened.records {
        let lsn = usize::try_from(record.lsn.0).unwrap();
        assert_eq!(record.body, model.records[lsn - 1].body, "record {lsn}");
        assert!(there.insert(record.lsn.0), "record {lsn} twice");
    }
    for entry in &opened.checkpoint {
        assert!(model.entries(report.checkpoint_lsn.0).contains(entry));
    }
    for lsn in report.checkpoint_lsn.0 + 1..=model.acknowledged {
        assert!(
            there.contains(&lsn) != lost.contains(&lsn) || lsn > report.last_lsn.0,
            "{lsn}: {report:?}"
        );
        if lsn > report.last_lsn.0 {
            assert!(Lsn(lsn) > report.synced_through, "{lsn} was proved: {report:?}");
            // The same damage took the last record that is proved: their bytes are told of together.
            let with_last = |damage: &Damage| {
                !damage.harmless && hurt.is_in(damage) && damage.lsns.contains(&report.last_lsn)
            };
            if report.damage.iter().any(with_last) {
                continue;
            }
            let Some((path, at)) = &report.cut_at else {
                // Zeros where the last record was, and nothing after it that speaks of it: nobody could know.
                assert!(matches!(hurt.harm, Harm::Zeros), "{lsn} is gone in silence: {report:?}");
                continue;
            };
            assert!(
                (path, *at) < (&hurt.path, hurt.end()),
                "cut at {at} of {path:?}: {hurt:?}: {report:?}"
            );
        }
    }
}

/// A start may fail for one reason only: bytes must be zeroed where the disk takes no writes.
fn refused(error: &WalError, report: &Report, hurt: &Hurt) {
    let WalError::Io { path, .. } = error else { panic!("{error}") };
    let (cut, at) =
        report.cut_at.as_ref().unwrap_or_else(|| panic!("{error}: nothing to be written"));
    assert_eq!(path, &hurt.path, "{error}");
    assert!((cut, *at) < (&hurt.path, hurt.end()), "{error}: {report:?}");
}

impl Explorer {
    /// One sector after the other, at some of the workload's crashes.
    pub(super) fn damaged(&mut self, seed: &Seed, work: &Work) {
        let whole = SimDisk::default();
        work.run(&whole, &mut Model::default()).unwrap();
        let mut dice = seed.dice();
        let tries = if self.long { 12 } else { 4 };
        for at in (0..tries).map(|_| dice.below(whole.calls())).collect::<BTreeSet<_>>() {
            let fault = if dice.below(2) == 0 { Fault::Crash } else { Fault::CrashAfter };
            let disk = SimDisk::default();
            disk.fail_at(at, fault);
            let mut model = Model::default();
            drop(work.run(&disk, &mut model));
            // What the page cache holds hides damage to the disk: so after a power cut.
            let keep = match dice.below(4) {
                0 => Keep::Nothing,
                1 => Keep::All,
                _ => Keep::Reordered(dice.below(1 << 30)),
            };
            let disk = disk.after(keep);
            for (file, path) in (0..).zip(disk.names()) {
                if path.extension() == Some("tmp".as_ref()) || !path.starts_with("/d/wal") {
                    continue;
                }
                let sectors = disk.contents(&path).unwrap().len().div_ceil(SECTOR);
                for sector in 0..sectors {
                    let byte = usize::try_from(dice.below(SECTOR as u64)).unwrap();
                    for (choice, harm) in (0..).zip(HARMS) {
                        let seed = seed.then(at).then(file).then(sector as u64).then(choice);
                        if self.wants(&seed) {
                            let disk = disk.after(Keep::Process);
                            let hurt = Hurt { path: path.clone(), sector, harm, byte };
                            hurt.inflict(&disk);
                            self.hurt(&seed, work, &disk, &model, &hurt);
                        }
                    }
                }
            }
        }
    }

    fn hurt(&mut self, seed: &Seed, work: &Work, disk: &SimDisk, model: &Model, hurt: &Hurt) {
        let _telling = Telling(seed);
        let before = disk.after(Keep::Process);
        let opened = match work.open(disk) {
            Ok(opened) => opened,
            Err(error) => {
                return refused(&error, &verify(&config(disk, work.segment)).unwrap().report, hurt);
            }
        };
        check(&opened, model, hurt);
        self.count(Fault::Crash);
        // What was lost stays lost, and what was there stays there, whatever comes.
        let same = |again: &Opened, what: &str| {
            assert_eq!(again.report.last_lsn, opened.report.last_lsn, "{what}");
            assert_eq!(lost(again), lost(&opened), "{what}");
            assert_eq!(again.records, opened.records, "{what}");
            assert_eq!(
                again.broken.keys().collect::<Vec<_>>(),
                opened.broken.keys().collect::<Vec<_>>(),
                "{what}"
            );
        };
        for keep in [Keep::Nothing, Keep::Process] {
            let again = work.open(&disk.after(keep)).unwrap();
            // A checkpoint that was of no use was moved away, and no longer complained of.
            same(&again, "recovered twice");
            self.count(Fault::Crash);
        }
        self.hurt_again(seed, work, &before, &same);
        let mut machine = Machine::new(work.open(disk).unwrap());
        let first = opened.report.last_lsn.next();
        let mut later = Model::default();
        let batch = crate::truth::wal::Batch { first, ..later.batch(&[40]) };
        machine.writer.add(batch, &mut Vec::new()).unwrap();
        machine.writer.commit().unwrap();
        let again = work.open(&disk.after(Keep::Nothing)).unwrap();
        assert_eq!(again.report.last_lsn, first, "gone on with");
        assert_eq!(lost(&again), lost(&opened), "gone on with: {:?}", places(&again.report.damage));
        assert_eq!(again.records.len(), opened.records.len() + 1);
        self.count(Fault::Crash);
    }

    /// Crashes and faults in the recovery from damage.
    fn hurt_again(
        &mut self,
        seed: &Seed,
        work: &Work,
        before: &SimDisk,
        same: &impl Fn(&Opened, &str),
    ) {
        let mut dice = seed.dice();
        for at in 0.. {
            let fault = FAULTS[usize::try_from(dice.below(7)).unwrap()];
            let disk = before.after(Keep::Process);
            disk.fail_at(at, fault);
            // Where the fault hit the keeping of a copy, it is a start all the same.
            drop(work.open(&disk));
            if disk.calls() <= at {
                break;
            }
            let keep = Keep::Reordered(dice.below(1 << 30));
            for keep in [Keep::Process, keep] {
                let again = work.open(&disk.after(keep)).unwrap();
                same(&again, &format!("recovery: {fault:?} at {at}, {keep:?}"));
                self.count(fault);
            }
        }
    }
}

// Proves I10: one damaged sector never makes acknowledged records vanish in silence, also not through the crashes around it.
#[test]
fn a_damaged_sector_beside_a_crash_is_named_and_stays_named() {
    let (mut explorer, part) = Explorer::new(1, 25);
    explorer.explore(&part, Explorer::damaged);
    assert!(explorer.only.is_some() || explorer.states >= explorer.wanted);
}
