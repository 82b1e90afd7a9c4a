//! The clocks of a supervisor: wall time as data, boot time for everything that falls due, running time for how long somebody was idle.

use outlive_core::time::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Wall-clock time. Only ever written down, never compared.
pub(crate) fn now() -> Timestamp {
    Timestamp(millis(clock_gettime(ClockId::Realtime)))
}

/// Milliseconds since the machine booted, suspended time included. Never jumps.
pub fn boot_ms() -> u64 {
    millis(clock_gettime(ClockId::Boottime))
}

/// Milliseconds for which the machine has run: like [`boot_ms`], but it stands still while the machine is suspended.
pub(crate) fn running_ms() -> u64 {
    millis(clock_gettime(ClockId::Monotonic))
}

fn millis(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// A point on the boot-time clock as the kernel wants it.
pub(crate) fn timespec(boot_ms: u64) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(boot_ms / 1000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(boot_ms % 1000).unwrap_or(0).saturating_mul(1_000_000),
    }
}
