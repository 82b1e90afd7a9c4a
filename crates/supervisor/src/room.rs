//! Room on the disk: a tree whose disk is nearly full is frozen before one of its writes can fail, and thawed when space returns.
//!
//! No server is needed for it (I5). It is looked at as rarely as may be: a disk with much room cannot be full soon. Frozen time is
//! not running time, so the deadline waits. Where there is no cgroup nothing can be frozen, and writes fail as anywhere.

use std::io;
use std::path::{Path, PathBuf};

use outlive_core::limits::{DISK_FILLED_BYTES_PER_MS, DISK_LOOK_MS, FROZEN_LOOK_MS, THAW_FACTOR};
use outlive_core::spec::{Freeze, Reading, Spec, VERSION};

use crate::cgroup::Leaf;
use crate::outcome::Slots;
use crate::{clock, complain};

/// The space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What can still be written without privileges, in bytes.
    pub free_bytes: u64,
    /// All of it, in bytes.
    pub total_bytes: u64,
}

/// How much room is left where a path lies. A file system without a bound of its own (it says that it has no blocks at all) has
/// room without end.
///
/// # Errors
/// As the system says.
pub fn space(path: &Path) -> io::Result<Space> {
    let found = rustix::fs::statvfs(path)?;
    if found.f_blocks == 0 {
        return Ok(Space { free_bytes: u64::MAX, total_bytes: u64::MAX });
    }
    Ok(Space {
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

/// The room of one tree.
#[derive(Debug)]
pub(crate) struct Room {
    /// A path on the disk that the tree's output goes to.
    path: PathBuf,
    /// Below so many free bytes the tree is frozen.
    least: u64,
    /// The longest time between two looks.
    longest_ms: u64,
    /// When to look; none: never.
    look_at: Option<u64>,
    /// As recorded.
    freeze: Freeze,
}

impl Room {
    /// As an earlier keeper of the tree left it, if there was one.
    pub(crate) fn new(spec: &Spec, slots: &Slots, leaf: &Leaf) -> Self {
        let least = spec.freeze_below_bytes;
        let new = Freeze {
            version: VERSION,
            at: clock::now(),
            since_boot_ms: None,
            total_ms: 0,
            free_bytes: 0,
            thaw_bytes: least.saturating_mul(THAW_FACTOR),
        };
        let freeze = match slots.freeze() {
            Reading::Valid(freeze) => freeze,
            Reading::Absent | Reading::Damaged(_) => new,
        };
        let longest_ms = spec.heartbeat_ms.max(DISK_LOOK_MS);
        let look_at = (least > 0 && leaf.has_freezer()).then_some(0);
        Self { path: spec.stdout.clone().into(), least, longest_ms, look_at, freeze }
    }

    /// When [`Room::look`] is due, on the boot-time clock.
    pub(crate) fn look_at(&self) -> Option<u64> {
        self.look_at
    }

    /// A deadline, later by the time for which the tree was frozen; none while it is.
    pub(crate) fn deadline(&self, deadline: Option<u64>) -> Option<u64> {
        let deadline = deadline.filter(|_| self.freeze.since_boot_ms.is_none());
        deadline.map(|deadline| deadline.saturating_add(self.freeze.total_ms))
    }

    /// Looks how much is free, and freezes or thaws accordingly.
    pub(crate) fn look(&mut self, now: u64, leaf: &Leaf, slots: &Slots) {
        let free = match space(&self.path) {
            Ok(space) => space.free_bytes,
            Err(error) => {
                complain(format_args!("cannot tell how much space is free: {error}"));
                self.look_at = Some(now.saturating_add(self.longest_ms));
                return;
            }
        };
        if self.freeze.since_boot_ms.is_some() && free >= self.freeze.thaw_bytes {
            self.thaw(now, leaf, slots);
        } else if self.freeze.since_boot_ms.is_some() {
            // Again: whoever froze it first may have died before the kernel was told.
            leaf.freeze();
        } else if free < self.least {
            self.freeze.since_boot_ms = Some(now);
            self.freeze.free_bytes = free;
            // Recorded first: nobody must find it frozen and not know why.
            self.record(slots);
            leaf.freeze();
        }
        let wait_ms = if self.freeze.since_boot_ms.is_some() {
            FROZEN_LOOK_MS
        } else {
            let spare_ms = free.saturating_sub(self.least) / DISK_FILLED_BYTES_PER_MS;
            spare_ms.clamp(DISK_LOOK_MS, self.longest_ms)
        };
        self.look_at = Some(now.saturating_add(wait_ms));
    }

    /// Lets it run, whatever is free, if it was frozen here.
    pub(crate) fn thaw(&mut self, now: u64, leaf: &Leaf, slots: &Slots) {
        if self.freeze.since_boot_ms.is_none() {
            return;
        }
        leaf.thaw();
        self.freeze.total_ms = self.freeze.paused_ms(now);
        self.freeze.since_boot_ms = None;
        self.record(slots);
    }

    fn record(&mut self, slots: &Slots) {
        self.freeze.at = clock::now();
        if let Err(error) = slots.record_freeze(&self.freeze) {
            complain(format_args!("{}", error.line()));
        }
    }
}
