//! Power cuts on real file systems: every write and flush that reached the disk is on record, and so is every acknowledgement, in
//! one order. Then the power is cut anywhere in it: what was flushed is there, of what was not any part may be.

mod check;
mod device;
mod failing;
mod image;
mod life;

use std::time::Instant;

use self::check::Findings;
use self::device::Device;
use self::image::Record;
use self::life::Tree;
use crate::crashes::tell;
use crate::mount::{Kind, Mount};

/// Power cuts that a short check tries on each file system; a long one (`OUTLIVE_LONG=1`) tries all there are.
const SHORT: usize = 60;

/// Power cuts within which a planted bug must be found.
const CONTROL: usize = 300;

/// Each time that one of so many is opened by a real server, and not by the functions it consists of.
const SERVED: usize = 12;

/// A life on record; `None`, told loudly, where that cannot be had.
fn record(kind: Kind, lies: Option<(&str, &str)>) -> Option<(Record, Tree)> {
    match Device::new(kind, &[]).and_then(|device| life::live(device, lies)) {
        Ok(record) => Some(record),
        Err(why) => {
            tell(&format!("NOT COVERED: power cuts on {}: {why}", kind.name()));
            None
        }
    }
}

/// Cuts the power at so many moments; gives back how many there were, and what was wrong after each.
fn cut(life: &(Record, Tree), count: usize, mut enough: impl FnMut(&Findings) -> bool) -> usize {
    let (record, tree) = life;
    let mut states = record.states(count);
    let mut tried = 0;
    while let Some(state) = states.next() {
        tried += 1;
        let dir = state.write();
        let (disk, place) = (dir.path().join("disk"), dir.path().join("fs"));
        let mounted = Mount::on(record.kind, &disk, &place, "loop");
        let mounted = mounted.unwrap_or_else(|why| panic!("{}: {why}", state.name()));
        let findings = check::check(mounted.path(), &state.told(), tree, tried % SERVED == 0);
        // Another test's child between fork and exec may hold a file of it for a moment yet.
        drop(mounted);
        let findings = findings.named(&state.name());
        if enough(&findings) {
            break;
        }
    }
    tried
}

// Proves I1, I7, I8 and I10 on a real file system.
fn nothing_acknowledged_is_lost_on(kind: Kind) {
    let begun = Instant::now();
    let Some(life) = record(kind, None) else { return };
    let record = &life.0;
    let recorded = begun.elapsed().as_secs_f64();
    let long = std::env::var_os("OUTLIVE_LONG").is_some();
    let mut bad = Vec::new();
    let tried = cut(&life, if long { usize::MAX } else { SHORT }, |findings| {
        bad.extend(findings.all());
        bad.len() > 20
    });
    tell(&format!(
        "blocks: {}: {} writes, {} flushes, {} acknowledgements, {tried} power cuts, {} wrong, {recorded:.0} + {:.0} s",
        kind.name(),
        record.writes(),
        record.flushes(),
        record.acknowledgements(),
        bad.len(),
        begun.elapsed().as_secs_f64() - recorded
    ));
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(tried >= SHORT, "only {tried} power cuts were tried");
}

#[test]
fn on_ext4_a_power_cut_loses_nothing_that_was_acknowledged() {
    nothing_acknowledged_is_lost_on(Kind::Ext4);
}

#[test]
fn on_xfs_a_power_cut_loses_nothing_that_was_acknowledged() {
    nothing_acknowledged_is_lost_on(Kind::Xfs);
}

#[test]
fn on_btrfs_a_power_cut_loses_nothing_that_was_acknowledged() {
    nothing_acknowledged_is_lost_on(Kind::Btrfs);
}

/// The test of the test: where syncs do nothing, each kind of loss is found.
fn lies_are_found(kind: Kind, lies: &str, about: &str, wanted: &[&str]) {
    let Some(life) = record(kind, Some((lies, about))) else { return };
    let mut missing: Vec<&str> = wanted.to_vec();
    let tried = cut(&life, CONTROL, |findings| {
        missing.retain(|subject| findings.of(subject).is_empty());
        missing.is_empty()
    });
    let name = kind.name();
    tell(&format!("blocks: {name}: {lies} does not sync {about}: found after {tried} power cuts"));
    assert!(missing.is_empty(), "{name}: never found in {tried} cuts: {missing:?}");
}

#[test]
fn a_server_that_does_not_sync_is_found_out_on_every_file_system() {
    for kind in Kind::ON_BLOCKS {
        lies_are_found(kind, "serve", "/wal/", &["log"]);
        lies_are_found(kind, "serve,supervise", ".json.", &["files"]);
    }
}

#[test]
fn a_supervisor_and_a_copy_that_do_not_sync_are_found_out_on_every_file_system() {
    for kind in Kind::ON_BLOCKS {
        lies_are_found(kind, "supervise,operate", ".output,.partial-", &["output", "workspace"]);
    }
}
