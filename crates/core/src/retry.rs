//! Back-off as a pure function: the one that everything uses.

use core::time::Duration;

/// The pause before try number `before + 1`: doubles from the first to the longest.
pub fn backoff(first: Duration, longest: Duration, before: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(before)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_limit() {
        let pause = |before| backoff(Duration::from_secs(1), Duration::from_mins(10), before);
        let pauses = [0, 1, 2, 30, u32::MAX].map(|n| pause(n).as_secs());
        assert_eq!(pauses, [1, 2, 4, 600, 600]);
    }
}
