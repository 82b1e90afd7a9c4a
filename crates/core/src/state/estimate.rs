//! When a queued job will probably start, by what jobs before it took.

use core::time::Duration;

use super::State;
use crate::job::Job;
use crate::stats::{Key, Row};
use crate::time::Timestamp;

impl State {
    /// The time at which a queued job will probably get a slot; none if it is not queued, or nothing has ended yet to judge by.
    ///
    /// A slot is held for a workspace and an agent's run; with the mean of both, one of `running_max` slots becomes free every
    /// so many seconds, and each job ahead takes one. Only a guess: nothing is decided by it.
    pub fn estimated_start(
        &self,
        job: &Job,
        now: Timestamp,
        running_max: u32,
    ) -> Option<Timestamp> {
        let ahead = self.queue_position(job)? as u64;
        let slots = u64::from(running_max.max(1));
        let free = slots.saturating_sub(self.busy() as u64);
        if ahead < free {
            return Some(now);
        }
        let each_ms = held_for_ms(self.stats.row(&Key::Total)?)?;
        let turns = ahead - free + 1;
        Some(now.after(Duration::from_millis(each_ms.saturating_mul(turns) / slots)))
    }
}

/// How long a slot is held, on average.
fn held_for_ms(row: &Row) -> Option<u64> {
    Some(row.run_ms.mean()?.saturating_add(row.prepare_ms.mean().unwrap_or(0)))
}
