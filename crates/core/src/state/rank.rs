//! The queue, in which any job's place can be told without counting all that stand before it.
//!
//! The order is cut into chunks. Which keys begin one is decided by the keys alone (a hash of each), never by what happened
//! before: so a queue read from a checkpoint is cut like the one that was written, and can be compared with it.

use rpds::RedBlackTreeMapSync as Map;

use super::QueueKey;
use crate::ids::JobId;

/// One key of so many begins a chunk. A place is counted in steps of chunks, then of jobs: at 100,000 queued some 200 of the
/// former and 256 of the latter.
const CHUNK: u64 = 512;

/// Queued jobs in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Queue {
    jobs: Map<QueueKey, JobId>,
    /// The keys that begin a chunk, and how many jobs are in it. What stands before the first is in `head`.
    chunks: Map<QueueKey, usize>,
    head: usize,
}

fn begins_chunk(key: QueueKey) -> bool {
    // Fibonacci hashing: lsns that follow each other are spread evenly.
    key.1.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & (CHUNK - 1) == 0
}

impl Queue {
    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&QueueKey, &JobId)> {
        self.jobs.iter()
    }

    /// How many.
    pub(super) fn size(&self) -> usize {
        self.jobs.size()
    }

    /// Puts a job in its place.
    pub(super) fn insert(&mut self, key: QueueKey, job: JobId) {
        if self.jobs.contains_key(&key) {
            return;
        }
        self.jobs.insert_mut(key, job);
        if begins_chunk(key) {
            // What stood behind it in an older chunk is now in its own.
            let next = self.chunks.range(key..).next().map(|(next, _)| *next);
            let own = match next {
                Some(next) => self.jobs.range(key..next).count(),
                None => self.jobs.range(key..).count(),
            };
            self.change_chunk_before(key, |count| count + 1 - own);
            self.chunks.insert_mut(key, own);
        } else {
            self.change_chunk_before(key, |count| count + 1);
        }
    }

    /// Takes a job out.
    pub(super) fn remove(&mut self, key: QueueKey) {
        if !self.jobs.remove_mut(&key) {
            return;
        }
        match self.chunks.get(&key).copied() {
            Some(own) => {
                self.chunks.remove_mut(&key);
                self.change_chunk_before(key, |count| count + own - 1);
            }
            None => self.change_chunk_before(key, |count| count - 1),
        }
    }

    /// How many stand before a key.
    pub(super) fn rank(&self, key: QueueKey) -> usize {
        let mut before = self.chunks.range(..=key).rev();
        let Some((begin, _)) = before.next() else { return self.jobs.range(..key).count() };
        let chunks: usize = before.map(|(_, count)| *count).sum();
        self.head + chunks + self.jobs.range(*begin..key).count()
    }

    fn change_chunk_before(&mut self, key: QueueKey, change: impl FnOnce(usize) -> usize) {
        let found = self.chunks.range(..key).next_back().map(|(begin, count)| (*begin, *count));
        match found {
            Some((begin, count)) => self.chunks.insert_mut(begin, change(count)),
            None => self.head = change(self.head),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::Lsn;

    fn job(n: u64) -> JobId {
        JobId::from_random(n)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_place_is_what_counting_says_however_the_queue_came_about(
            changes in prop::collection::vec((0..3_i128, 0..3000_u64, prop::bool::weighted(0.8)), 1..4000),
        ) {
            let mut queue = Queue::default();
            for (urgency, lsn, add) in changes {
                let key = (urgency, Lsn(lsn));
                if add { queue.insert(key, job(lsn)) } else { queue.remove(key) }
            }
            let mut again = Queue::default();
            for (key, job) in queue.iter().collect::<alloc::vec::Vec<_>>().into_iter().rev() {
                again.insert(*key, job.clone());
            }
            prop_assert!(again == queue, "the same jobs, the same queue");
            for (place, (key, _)) in queue.iter().enumerate() {
                prop_assert_eq!(queue.rank(*key), place);
            }
            prop_assert_eq!(queue.rank((9, Lsn(0))), queue.size());
        }
    }
}
