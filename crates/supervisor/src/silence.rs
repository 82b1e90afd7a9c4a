//! How long an agent has written nothing while it could have, for those who want it stopped then.
//!
//! Counted in looks. What lies between two looks counts if the output did not grow and the agent could have written: not while it is
//! frozen, by whomever, not while its bytes find no room, and not while the machine is suspended. So a stop may come up to a look
//! late; it never comes early.

use outlive_core::spec::Spec;

use crate::clock;

/// Looks in the time allowed: what is counted too late is at most one of these parts of it.
const LOOKS: u64 = 8;
/// Between two looks: at least and at most.
const LOOK_MS: (u64, u64) = (20, 30_000);

/// The silence of one agent.
#[derive(Debug)]
pub(crate) struct Silence {
    most_ms: u64,
    silent_ms: u64,
    /// Of both output files, at the last look.
    bytes: u64,
    /// At the last look it could not write.
    held_up: bool,
    /// The last look, on the clock that stands still while the machine is suspended.
    looked_at: u64,
    /// The next look, on the boot-time clock like everything that falls due.
    look_at: u64,
}

impl Silence {
    /// For an agent whose silence is bounded, from now on.
    pub(crate) fn new(spec: &Spec, bytes: u64) -> Option<Self> {
        let most_ms = spec.idle_output_ms?;
        let looked_at = clock::running_ms();
        Some(Self { most_ms, silent_ms: 0, bytes, held_up: false, looked_at, look_at: 0 })
    }

    /// When [`Silence::look`] is due.
    pub(crate) fn look_at(&self) -> u64 {
        self.look_at
    }

    /// Takes in how things stand. True: it has been silent for too long.
    pub(crate) fn look(&mut self, now: u64, bytes: u64, held_up: bool) -> bool {
        self.count(clock::running_ms(), bytes, held_up);
        let (least, most) = LOOK_MS;
        let step = (self.most_ms / LOOKS).clamp(least, most);
        let left = self.most_ms.saturating_sub(self.silent_ms).max(1);
        self.look_at = now.saturating_add(step.min(left));
        self.silent_ms >= self.most_ms
    }

    fn count(&mut self, running_ms: u64, bytes: u64, held_up: bool) {
        let since = running_ms.saturating_sub(self.looked_at);
        if bytes != self.bytes {
            self.silent_ms = 0;
        } else if !held_up && !self.held_up {
            self.silent_ms = self.silent_ms.saturating_add(since);
        }
        (self.looked_at, self.bytes, self.held_up) = (running_ms, bytes, held_up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence() -> Silence {
        Silence { most_ms: 100, silent_ms: 0, bytes: 5, held_up: false, looked_at: 0, look_at: 0 }
    }

    #[test]
    fn only_silence_while_it_could_write_is_counted() {
        let mut silence = silence();
        silence.count(40, 5, false);
        assert_eq!(silence.silent_ms, 40);
        // Frozen at one end of the time between two looks: perhaps all of it.
        silence.count(90, 5, true);
        silence.count(5000, 5, true);
        silence.count(5010, 5, false);
        assert_eq!(silence.silent_ms, 40);
        silence.count(5020, 5, false);
        assert_eq!(silence.silent_ms, 50);
    }

    #[test]
    fn a_byte_more_or_less_begins_anew() {
        let mut silence = silence();
        silence.count(90, 5, false);
        silence.count(95, 6, false);
        assert_eq!(silence.silent_ms, 0);
        silence.count(150, 6, false);
        silence.count(160, 2, true);
        assert_eq!(silence.silent_ms, 0);
    }
}
