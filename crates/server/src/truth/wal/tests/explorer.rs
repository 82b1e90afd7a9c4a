//! The crash explorer: a generated family of small workloads, crashed and failed at every call, with everything the disk may
//! have kept; recovered, and crashed and failed again at every call of the recovery; then gone on with.
//!
//! Some 120,000 states in a plain run; a million with `OUTLIVE_LONG=1`; as many as `OUTLIVE_STATES` says. A state that fails prints
//! the seed that replays it alone: `OUTLIVE_SEED=… cargo test -p outlive --lib explorer`.

mod damaged;
mod work;

use std::collections::BTreeMap;
use std::fmt;

use self::work::{Dice, Work};
use super::{Machine, Model, config};
use crate::truth::disk::sim::{Fault, Keep, SimDisk, scramble};
use crate::truth::wal::{Inventory, Opened, verify};

/// What goes wrong at a call.
const FAULTS: [Fault; 10] = [
    Fault::CrashBefore,
    Fault::Crash,
    Fault::CrashAfter,
    Fault::Eio,
    Fault::EioInPart(1),
    Fault::EioForEver,
    Fault::Enospc,
    Fault::Short,
    Fault::Interrupted,
    Fault::EioInPart(2),
];

fn is_crash(fault: Fault) -> bool {
    matches!(fault, Fault::Crash | Fault::CrashBefore | Fault::CrashAfter)
}

fn is_survived(fault: Fault) -> bool {
    matches!(fault, Fault::Short | Fault::Interrupted)
}

/// Where in the exploration: the choice made at each level.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seed(Vec<u64>);

impl Seed {
    fn then(&self, choice: u64) -> Self {
        let mut choices = self.0.clone();
        choices.push(choice);
        Self(choices)
    }

    /// Chance that depends on the place only.
    fn dice(&self) -> Dice {
        Dice::new(self.0.iter().fold(0, |sum, choice| scramble(sum ^ scramble(*choice))))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let choices: Vec<String> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&choices.join("-"))
    }
}

/// Tells the seed if the state fails, wherever that happens.
struct Telling<'a>(&'a Seed);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("replay: OUTLIVE_SEED={} cargo test -p outlive --lib explorer", self.0);
        }
    }
}

/// How much is explored, and what was.
#[derive(Debug)]
struct Explorer {
    /// Only what lies at or below this.
    only: Option<Vec<u64>>,
    wanted: u64,
    long: bool,
    /// Disk images recovered and checked.
    states: u64,
    by_fault: BTreeMap<String, u64>,
}

impl Explorer {
    /// `share`: which part of the states is this test's, in percent.
    fn new(part: u64, share: u64) -> (Self, Seed) {
        let number =
            |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let only = std::env::var("OUTLIVE_SEED").ok();
        let only = only.map(|text| text.split('-').map(|n| n.parse().unwrap()).collect());
        let long = number("OUTLIVE_LONG") == Some(1);
        let states = number("OUTLIVE_STATES").unwrap_or(if long { 1_200_000 } else { 120_000 });
        let wanted = states * share / 100;
        (Self { only, wanted, long, states: 0, by_fault: BTreeMap::new() }, Seed(vec![part]))
    }

    fn wants(&self, seed: &Seed) -> bool {
        let on_the_way = |only: &Vec<u64>| only.iter().zip(&seed.0).all(|(a, b)| a == b);
        self.only.as_ref().is_none_or(on_the_way)
    }

    /// Whole workloads until there are enough states.
    fn explore(&mut self, part: &Seed, mut each: impl FnMut(&mut Self, &Seed, &Work)) {
        if !self.wants(part) {
            return;
        }
        let numbers = match self.only.as_ref().and_then(|only| only.get(1)) {
            Some(number) => *number..=*number,
            None => 0..=u64::MAX,
        };
        let mut workloads = 0;
        for number in numbers {
            each(self, &part.then(number), &Work::number(number));
            workloads += 1;
            if self.states >= self.wanted {
                break;
            }
        }
        println!("{} states of {workloads} workloads", self.states);
        for (fault, states) in &self.by_fault {
            println!("  {fault}: {states}");
        }
    }

    fn count(&mut self, fault: Fault) {
        self.states += 1;
        *self.by_fault.entry(format!("{fault:?}")).or_default() += 1;
    }

    /// What a disk with so many unsynced changes may have kept.
    fn keeps(&self, pending: usize, dice: &mut Dice) -> Vec<Keep> {
        let mut keeps = vec![Keep::Process, Keep::Nothing];
        if pending == 0 {
            return keeps;
        }
        keeps.push(Keep::All);
        if pending > 1 {
            let prefixes = if self.long || pending <= 3 { pending } else { 3 };
            let prefix = |i| if prefixes == pending { i } else { 1 + (i * pending) / 3 };
            keeps.extend((1..prefixes).map(prefix).map(Keep::Prefix));
            let subsets = if self.long { 6 } else { 2 };
            keeps.extend((0..subsets).map(|_| Keep::Subset(dice.below(1 << 30))));
            keeps.extend((0..subsets).map(|_| Keep::Reordered(dice.below(1 << 30))));
        }
        keeps
    }

    /// Every fault at every call of a workload.
    fn workload(&mut self, seed: &Seed, work: &Work) {
        for at in 0.. {
            let mut came = false;
            for (choice, fault) in (0..).zip(FAULTS) {
                let disk = SimDisk::default();
                disk.fail_at(at, fault);
                let mut model = Model::default();
                let seed = seed.then(at).then(choice);
                let telling = Telling(&seed);
                let ended = work.run(&disk, &mut model);
                came |= disk.calls() > at;
                model.disk_failed = !is_crash(fault);
                if is_survived(fault) {
                    // R9: these are no failures at all.
                    ended.as_ref().unwrap();
                }
                drop(telling);
                if disk.calls() > at && self.wants(&seed) {
                    self.images(&seed, work, &disk, &model, fault);
                }
            }
            if !came {
                assert!(at > 5, "the workload does something");
                break;
            }
        }
    }

    /// Everything that the disk may have kept.
    fn images(&mut self, seed: &Seed, work: &Work, disk: &SimDisk, model: &Model, fault: Fault) {
        let mut dice = seed.dice();
        let keeps = self.keeps(disk.pending(), &mut dice);
        let deep = dice.below(3 * keeps.len() as u64);
        for (choice, keep) in (0..).zip(keeps) {
            let seed = seed.then(choice);
            if !self.wants(&seed) {
                continue;
            }
            self.check(&seed, work, &disk.after(keep), model, fault);
            // A failed call leaves a page cache that is not what is on disk: the hardest to recover from.
            let doubtful = keep == Keep::Process && !is_crash(fault) && !is_survived(fault);
            if choice == deep || doubtful {
                self.recovery(&seed, work, disk, keep, model);
            }
        }
    }

    /// Faults at every call of a recovery: all of them by turns.
    fn recovery(&mut self, seed: &Seed, work: &Work, disk: &SimDisk, keep: Keep, model: &Model) {
        let mut dice = seed.dice();
        for at in 0.. {
            let mut calls = 0;
            let first = dice.below(FAULTS.len() as u64);
            for turn in 0..2 {
                let choice = (first + 5 * turn) % FAULTS.len() as u64;
                let fault = FAULTS[usize::try_from(choice).unwrap()];
                let seed = seed.then(at).then(choice);
                let _telling = Telling(&seed);
                let disk = disk.after(keep);
                disk.fail_at(at, fault);
                let opened = work.open(&disk);
                calls = disk.calls();
                if calls <= at {
                    break;
                }
                assert!(opened.is_err() || is_survived(fault), "a fault goes unnoticed");
                let disk_failed = model.disk_failed || !is_crash(fault);
                let model = Model { disk_failed, ..model.clone() };
                let mut dice = seed.dice();
                let keeps = self.keeps(disk.pending(), &mut dice);
                let choice = dice.below(keeps.len() as u64);
                let seed = seed.then(choice);
                if self.wants(&seed) {
                    let disk = disk.after(keeps[usize::try_from(choice).unwrap()]);
                    self.check(&seed, work, &disk, &model, fault);
                }
            }
            if calls <= at {
                break;
            }
        }
    }

    /// Recovers, and holds recovery to its promises.
    fn check(&mut self, seed: &Seed, work: &Work, disk: &SimDisk, model: &Model, fault: Fault) {
        let _telling = Telling(seed);
        let mut dice = seed.dice();
        self.count(fault);
        // Nothing can be verified where nothing is.
        let seen = (dice.below(4) == 0).then(|| verify(&config(disk, work.segment)).ok());
        let opened = work.open(disk).unwrap();
        if let Some(Inventory { report, .. }) = seen.flatten() {
            assert_eq!(report.last_lsn, opened.report.last_lsn);
            assert_eq!(report.cut_bytes, opened.report.cut_bytes);
        }
        let last = model.check(&opened, "recovered");
        no_damage(&opened, model);
        // Proves I8: what was handed over is durable, though nothing was synced since.
        let mut model = model.clone();
        model.acknowledged = last;
        let lost = disk.after(if dice.below(2) == 0 { Keep::Nothing } else { Keep::Process });
        let again = work.open(&lost).unwrap();
        assert_eq!(model.check(&again, "recovered twice"), last, "handed over, then lost or more");
        assert_eq!(again.report.cut_bytes, 0, "what was cut is gone");
        self.count(fault);
        // The same lsns are used again, with other contents: nothing of the old may come back between them.
        model.cut(last);
        let mut machine = Machine::new(opened);
        if dice.below(2) == 0 {
            disk.fail_at(disk.calls() + dice.below(3), Fault::Crash);
            let sizes = [20, usize::try_from(dice.below(900)).unwrap(), 40];
            drop(machine.group(&mut model, &sizes));
            drop(machine.mark());
            let seed = dice.below(1 << 30);
            let keep = if dice.below(2) == 0 { Keep::Reordered(seed) } else { Keep::Subset(seed) };
            let opened = work.open(&disk.after(keep)).unwrap();
            model.check(&opened, "a group torn after recovery");
            no_damage(&opened, &model);
            self.count(fault);
            return;
        }
        machine.group(&mut model, &[30]).unwrap();
        machine.group(&mut model, &[700, 20]).unwrap();
        let keep = if dice.below(2) == 0 { Keep::Nothing } else { Keep::Process };
        let opened = work.open(&disk.after(keep)).unwrap();
        assert_eq!(model.check(&opened, "appended"), last + 3);
        no_damage(&opened, &model);
        self.count(fault);
    }
}

/// A crash is no damage. Only a disk that failed, too, may leave bytes that mean nothing.
fn no_damage(opened: &Opened, model: &Model) {
    let damage = &opened.report.damage;
    assert!(damage.iter().all(|d| d.harmless && model.disk_failed), "{damage:?}");
}

// Proves I1, I8, R1 to R3, R7 to R9, R15: whatever was acknowledged is there, in order, and nothing that was not is there in part.
#[test]
fn a_crash_or_fault_at_any_call_loses_nothing_acknowledged_whatever_the_disk_kept() {
    let (mut explorer, part) = Explorer::new(0, 75);
    explorer.explore(&part, Explorer::workload);
    assert!(explorer.only.is_some() || explorer.states >= explorer.wanted);
}
