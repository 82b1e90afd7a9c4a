//! Every crash and every fault of small workloads, on a simulated disk: at every call, with everything the disk may have kept,
//! and again inside recovery.

use super::{Machine, Model, config};
use crate::truth::disk::sim::{Fault, Keep, SimDisk};
use crate::truth::wal::{Opened, WalError, open};

#[derive(Debug, Clone, Copy)]
enum Step {
    /// One group of records with bodies of these sizes.
    Group(&'static [usize]),
    /// What an idle writer does.
    Mark,
    /// The spare segment is made.
    Spare,
    Checkpoint,
    /// The process ends and the next one opens.
    Reopen,
}
use Step::{Checkpoint, Group, Mark, Reopen, Spare};

struct Workload {
    name: &'static str,
    segment: u64,
    steps: &'static [Step],
}

const WORKLOADS: &[Workload] = &[
    Workload {
        name: "append",
        segment: 2560,
        steps: &[Spare, Group(&[20]), Mark, Group(&[500]), Group(&[700]), Mark],
    },
    Workload {
        name: "groups",
        segment: 5120,
        steps: &[
            Spare,
            Group(&[300, 40, 900]),
            Group(&[10, 10, 1500, 10]),
            Mark,
            Group(&[600, 600]),
        ],
    },
    Workload {
        name: "rotate",
        segment: 3072,
        steps: &[
            Group(&[900]),
            Spare,
            Mark,
            Group(&[700, 700]),
            Mark,
            Spare,
            Group(&[100, 1200, 100]),
            Group(&[1700]),
        ],
    },
    Workload {
        name: "large",
        segment: 3072,
        steps: &[Group(&[10]), Spare, Group(&[5000]), Spare, Group(&[10, 4000]), Group(&[10])],
    },
    Workload {
        name: "checkpoint",
        segment: 3072,
        steps: &[
            Group(&[900, 300]),
            Spare,
            Checkpoint,
            Group(&[900]),
            Mark,
            Checkpoint,
            Spare,
            Group(&[1200]),
            Checkpoint,
            Group(&[300]),
        ],
    },
    Workload {
        name: "reopen",
        segment: 3072,
        steps: &[
            Group(&[600]),
            Mark,
            Reopen,
            Spare,
            Group(&[800, 900]),
            Reopen,
            Checkpoint,
            Group(&[900]),
            Reopen,
            Group(&[900]),
        ],
    },
];

/// Does the steps until one fails; a failed checkpoint or spare segment is survived.
fn run(disk: &SimDisk, work: &Workload, model: &mut Model) -> Result<(), WalError> {
    let mut machine = Machine::new(open(config(disk, work.segment))?);
    for step in work.steps {
        match step {
            Group(sizes) => machine.group(model, sizes)?,
            Mark => machine.mark()?,
            Spare => machine.spare(),
            Checkpoint => drop(machine.checkpoint(model)),
            Reopen => {
                drop(machine);
                let opened = open(config(disk, work.segment))?;
                model.check(&opened, work.name);
                machine = Machine::new(opened);
            }
        }
    }
    Ok(())
}

/// With `OUTLIVE_SWEEP=full` in the environment every prefix and many more subsets are tried (minutes, not seconds).
fn full() -> bool {
    std::env::var_os("OUTLIVE_SWEEP").is_some_and(|v| v == "full")
}

/// What a disk with so many unsynced changes may have kept.
fn keeps(pending: usize, salt: u64) -> Vec<Keep> {
    let mut keeps = vec![Keep::Process, Keep::Nothing, Keep::All];
    let step = if full() { 1 } else { pending.div_ceil(5).max(1) };
    keeps.extend((1..pending).step_by(step).map(Keep::Prefix));
    let subsets = if full() { 12 } else { 3 };
    let subsets = if pending > 1 { subsets } else { 0 };
    keeps.extend((0..subsets).map(|seed| Keep::Subset(salt << 8 | seed)));
    keeps
}

/// The same for a crash within a crash's recovery.
fn few_keeps(pending: usize, salt: u64) -> Vec<Keep> {
    if full() {
        return keeps(pending.min(3), salt);
    }
    vec![Keep::Process, Keep::Nothing, Keep::Subset(salt)]
}

/// A crash is no damage. Only a disk that failed, too, may leave bytes that mean nothing.
fn no_damage(opened: &Opened, model: &Model, context: &str) {
    let damage = &opened.report.damage;
    assert!(damage.iter().all(|d| d.harmless && model.disk_failed), "{context}: {damage:?}");
}

/// Opens after a crash and checks; then that the answer holds, whatever comes; says how many states that were.
fn check(disk: &SimDisk, work: &Workload, model: &Model, context: &str) -> u64 {
    let opened = open(config(disk, work.segment)).unwrap_or_else(|e| panic!("{context}: {e:?}"));
    let last = model.check(&opened, context);
    no_damage(&opened, model, context);
    // Proves I8: what was handed over is durable, though nothing was synced since.
    let mut model = model.clone();
    model.acknowledged = last;
    let after = disk.after(Keep::Nothing);
    let again = open(config(&after, work.segment)).unwrap();
    assert_eq!(model.check(&again, context), last, "{context}: handed over, then lost or more");
    // The same lsns are used again, with other contents; also while that is cut off, nothing of the old may come back.
    model.cut(last);
    let mut states = 5;
    for seed in 0..3 {
        let (disk, mut model) = (disk.after(Keep::Process), model.clone());
        let mut machine = Machine::open(&disk, work.segment);
        disk.fail_at(disk.calls() + 1, Fault::Crash);
        machine.group(&mut model, &[20, 500, 40]).unwrap_err();
        let opened = open(config(&disk.after(Keep::Subset(seed)), work.segment)).unwrap();
        model.check(&opened, &format!("{context}, writing again {seed}"));
        states += 1;
    }
    let mut machine = Machine::new(opened);
    machine.group(&mut model, &[30]).unwrap();
    machine.group(&mut model, &[700, 20]).unwrap();
    for keep in [Keep::Process, Keep::Nothing, Keep::All] {
        let opened = open(config(&disk.after(keep), work.segment)).unwrap();
        let context = format!("{context}, appended, {keep:?}");
        assert_eq!(model.check(&opened, &context), last + 3, "{context}");
        no_damage(&opened, &model, &context);
    }
    states
}

/// Crashes at every call of the recovery as well.
fn check_recovery(
    disk: &SimDisk,
    keep: Keep,
    work: &Workload,
    model: &Model,
    context: &str,
) -> u64 {
    let mut states = 0;
    let chosen =
        matches!(keep, Keep::Process) || matches!(keep, Keep::Subset(seed) if seed & 0xFF == 0);
    if !full() && !chosen {
        return 0;
    }
    for fault in [Fault::Crash, Fault::Eio] {
        let model =
            Model { disk_failed: fault == Fault::Eio || model.disk_failed, ..model.clone() };
        for at in 0.. {
            let disk = disk.after(keep);
            disk.fail_at(at, fault);
            if open(config(&disk, work.segment)).is_ok() {
                assert!(disk.calls() <= at, "{context}: a fault at {at} goes unnoticed");
                break;
            }
            for keep in few_keeps(disk.pending(), at) {
                let context = format!("{context}, recovery {fault:?} at {at}, {keep:?}");
                states += check(&disk.after(keep), work, &model, &context);
            }
        }
    }
    states
}

// Proves I1, I8, R1 to R3, R7, R8, R15: whatever was acknowledged is there, in order, and nothing that was not is there in part.
#[test]
fn a_crash_at_any_call_loses_nothing_acknowledged_whatever_the_disk_kept() {
    for work in WORKLOADS {
        let (mut states, mut crashes) = (0, 0);
        for at in 0.. {
            let disk = SimDisk::default();
            disk.fail_at(at, Fault::Crash);
            let mut model = Model::default();
            drop(run(&disk, work, &mut model));
            if !disk.has_crashed() {
                assert_eq!(crashes, disk.calls(), "every call was crashed at");
                break;
            }
            crashes += 1;
            for keep in keeps(disk.pending(), at) {
                let context = format!("{} crashed at {at}, {keep:?}", work.name);
                states += check(&disk.after(keep), work, &model, &context);
                states += check_recovery(&disk, keep, work, &model, &context);
            }
        }
        println!("{}: {crashes} crash points, {states} states", work.name);
        assert!(crashes > 8, "the workload does something");
    }
}

// Proves I8: after a failed write or sync nothing is retried, and the next start tells the truth.
#[test]
fn a_failed_call_anywhere_loses_nothing_acknowledged() {
    for work in WORKLOADS {
        for fault in [Fault::Eio, Fault::Enospc] {
            let (mut failed, mut states) = (0, 0);
            let disk = SimDisk::default();
            run(&disk, work, &mut Model::default()).unwrap();
            for at in 0..disk.calls() {
                let disk = SimDisk::default();
                disk.fail_at(at, fault);
                let mut model = Model { disk_failed: true, ..Model::default() };
                failed += u64::from(run(&disk, work, &mut model).is_err());
                let context = format!("{} {fault:?} at {at}", work.name);
                for keep in keeps(disk.pending(), at) {
                    let context = format!("{context}, {keep:?}");
                    states += check(&disk.after(keep), work, &model, &context);
                    if keep == Keep::Process {
                        states += check_recovery(&disk, keep, work, &model, &context);
                    }
                }
            }
            println!(
                "{} {fault:?}: {} calls, {failed} fatal, {states} states",
                work.name,
                disk.calls()
            );
            assert!(failed > 0);
        }
    }
}

// Proves R9.
#[test]
fn short_and_interrupted_writes_are_completed() {
    for work in WORKLOADS {
        for fault in [Fault::Short, Fault::Interrupted] {
            let disk = SimDisk::default();
            run(&disk, work, &mut Model::default()).unwrap();
            for at in 0..disk.calls() {
                let disk = SimDisk::default();
                disk.fail_at(at, fault);
                let mut model = Model::default();
                run(&disk, work, &mut model).unwrap();
                check(&disk.after(Keep::Nothing), work, &model, work.name);
            }
        }
    }
}
