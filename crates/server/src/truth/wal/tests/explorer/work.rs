//! The generated family of workloads: each number is one, and always the same one.

use outlive_core::ids::Lsn;

use super::super::{Machine, Model, config};
use crate::truth::disk::sim::{Fault, Keep, SimDisk, scramble};
use crate::truth::wal::{Opened, WalError, open};

/// One step of a workload.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// One group of records with bodies of these sizes.
    Group(Vec<usize>),
    /// What an idle writer does.
    Mark,
    /// The next segment is made ahead of need.
    Spare,
    /// A checkpoint of what is durable.
    Checkpoint,
    /// The process ends and the next one opens.
    Reopen,
    /// The power is cut at the write (0) or the sync (1) of such a group; the next process opens what was kept.
    Torn(Vec<usize>, u64, Keep),
}

/// A workload.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) segment: u64,
    pub(super) steps: Vec<Step>,
}

/// Numbers drawn one after the other from a seed.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(scramble(seed))
    }

    /// The next number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = scramble(self.0);
        self.0 % bound
    }

    fn size(&mut self) -> usize {
        // Small, near the end of a sector, some sectors, and now and then more than a segment takes.
        let size = match self.below(10) {
            0..4 => self.below(60),
            4..6 => 380 + self.below(90),
            6..8 => 500 + self.below(600),
            8 => 1000 + self.below(900),
            _ => 900 + self.below(3) * 1500,
        };
        usize::try_from(size).unwrap()
    }

    fn sizes(&mut self) -> Vec<usize> {
        (0..=self.below(3)).map(|_| self.size()).collect()
    }
}

impl Work {
    /// The workload of this number.
    pub(super) fn number(number: u64) -> Self {
        let mut dice = Dice::new(number);
        let segment = 2048 + 512 * dice.below(5);
        let steps = (0..4 + dice.below(5)).map(|_| match dice.below(16) {
            0..6 => Step::Group(dice.sizes()),
            6..8 => Step::Mark,
            8..10 => Step::Spare,
            10..12 => Step::Checkpoint,
            12 => Step::Reopen,
            _ => {
                let (sizes, call, seed) = (dice.sizes(), dice.below(2), dice.below(1 << 20));
                let keep = match dice.below(4) {
                    0 => Keep::Nothing,
                    1 => Keep::Subset(seed),
                    _ => Keep::Reordered(seed),
                };
                Step::Torn(sizes, call, keep)
            }
        });
        Self { segment, steps: steps.collect() }
    }

    pub(super) fn open(&self, disk: &SimDisk) -> Result<Opened, WalError> {
        open(config(disk, self.segment))
    }

    /// Does the steps until one fails; a failed checkpoint or spare segment is survived, as the server does.
    pub(super) fn run(&self, disk: &SimDisk, model: &mut Model) -> Result<(), WalError> {
        let mut machine = Machine::new(self.open(disk)?);
        for step in &self.steps {
            match step {
                Step::Group(sizes) => machine.group(model, sizes)?,
                Step::Mark => machine.mark()?,
                Step::Spare => machine.spare(),
                Step::Checkpoint => {
                    // R12: one of what is not yet durable is refused.
                    let ahead = Lsn(model.acknowledged + 1);
                    let refused = machine.checkpointer.write(ahead, std::iter::empty());
                    assert!(matches!(refused, Err(WalError::CheckpointAhead { .. })));
                    drop(machine.checkpoint(model));
                }
                Step::Reopen => {
                    drop(machine);
                    machine = self.next(disk, model)?;
                }
                Step::Torn(sizes, call, keep) => {
                    disk.fail_at(disk.calls() + call, Fault::PowerCut);
                    let torn = machine.group(model, sizes);
                    if disk.came() != Some(Fault::PowerCut) || torn.is_ok() {
                        // Another fault was there first, or a rotation took the calls.
                        torn?;
                        continue;
                    }
                    disk.restart(*keep);
                    machine = self.next(disk, model)?;
                }
            }
        }
        Ok(())
    }

    fn next(&self, disk: &SimDisk, model: &mut Model) -> Result<Machine, WalError> {
        let opened = self.open(disk)?;
        let last = model.check(&opened, "in the workload");
        model.cut(last);
        Ok(Machine::new(opened))
    }
}
