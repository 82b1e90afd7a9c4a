//! Back-off as a pure function.

use core::time::Duration;

use crate::limits;

/// The pause before try number `before + 1`: doubles, up to a limit.
pub fn backoff(before: u32) -> Duration {
    let factor = 2_u32.saturating_pow(before);
    limits::INTERRUPT_BACKOFF.saturating_mul(factor).min(limits::INTERRUPT_BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_limit() {
        let pauses = [0, 1, 2, 30, u32::MAX].map(|n| backoff(n).as_secs());
        assert_eq!(pauses, [1, 2, 4, 600, 600]);
    }
}
