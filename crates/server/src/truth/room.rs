//! Room for new work: free space on the disk, and the write-ahead log's next segment. Without it nothing new is accepted or begun;
//! what runs goes on, and everything is as before by itself when space returns.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outlive_core::limits::{
    DISK_FILLED_BYTES_PER_MS, DISK_LOOK_MS, DISK_LOOK_MS_MAX, FROZEN_LOOK_MS, MIN_FREE_PART,
    SEGMENT_BYTES,
};
use outlive_core::time::Timestamp;
use outlive_supervisor::space;
use tokio::sync::Notify;

use crate::clock;
use crate::truth::wal::NextSegment;

/// Whether there is room. Copies see the same.
#[derive(Debug, Clone)]
pub struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// So many bytes must be free, or [`MIN_FREE_PART`] of a small disk.
    min_free_bytes: u64,
    next_segment: NextSegment,
    /// As of the last look.
    is_there: AtomicBool,
    /// The first of the looks in a row that found none.
    since: Mutex<Option<Timestamp>>,
    /// The last look found none.
    missed: Notify,
}

impl Room {
    /// Room on the disk of the data directory `root`.
    pub fn new(root: PathBuf, min_free_bytes: u64, next_segment: NextSegment) -> Self {
        let (is_there, since, missed) = (AtomicBool::new(true), Mutex::new(None), Notify::new());
        let inner = Inner { root, min_free_bytes, next_segment, is_there, since, missed };
        let room = Self(Arc::new(inner));
        room.missing();
        room
    }

    /// Whether the last look found room.
    pub fn is_there(&self) -> bool {
        self.0.is_there.load(Ordering::Acquire)
    }

    /// Looks: what is missing for new work, in words, if anything is.
    pub fn missing(&self) -> Option<String> {
        let (missing, _) = self.look();
        self.0.is_there.store(missing.is_none(), Ordering::Release);
        self.note(missing.is_some());
        if missing.is_some() {
            self.0.missed.notify_one();
        }
        missing
    }

    /// What is missing for new work, in words, and since when that is known.
    pub fn missing_since(&self) -> Option<(String, Timestamp)> {
        let missing = self.missing()?;
        Some((missing, self.note(true)?))
    }

    fn note(&self, is_missing: bool) -> Option<Timestamp> {
        let mut since = self.0.since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = is_missing.then(|| since.unwrap_or_else(clock::now));
        *since
    }

    /// What is missing, and for how long a look that found room holds good.
    fn look(&self) -> (Option<String>, Duration) {
        let inner = &*self.0;
        let root = inner.root.display();
        let mut good_ms = DISK_LOOK_MS_MAX;
        if let Ok(space) = space(&inner.root) {
            let least = inner.min_free_bytes.min(space.total_bytes / MIN_FREE_PART);
            let free = space.free_bytes;
            if free < least {
                let missing =
                    format!("the disk of {root} has {free} bytes free, and new work needs {least}");
                return (Some(missing), Duration::ZERO);
            }
            good_ms = ((free - least) / DISK_FILLED_BYTES_PER_MS).clamp(DISK_LOOK_MS, good_ms);
        }
        // A quota shows itself only here.
        let problem = inner.next_segment.problem();
        let missing = problem
            .map(|why| format!("the next segment of the write-ahead log has no room: {why}"));
        (missing, Duration::from_millis(good_ms))
    }

    /// Looks whenever the last look may hold good no longer, and says whenever there is room again.
    pub async fn watch(self, mut is_back: impl AsyncFnMut()) {
        loop {
            let was_there = self.is_there();
            let good = self.look().1;
            match self.missing() {
                None => {
                    if !was_there {
                        tracing::info!("there is room on the disk again");
                        is_back().await;
                    }
                    // Cancel safety: both may be waited for again.
                    tokio::select! {
                        () = pause(good) => {}
                        () = self.0.missed.notified() => {}
                    }
                }
                Some(missing) => {
                    if was_there {
                        tracing::warn!(%missing, "nothing new is accepted or begun");
                    }
                    pause(Duration::from_millis(FROZEN_LOOK_MS)).await;
                    self.try_next_segment();
                }
            }
        }
    }

    /// Another try is worth its writes only where the whole segment can fit.
    fn try_next_segment(&self) {
        if space(&self.0.root).is_ok_and(|space| space.free_bytes > SEGMENT_BYTES) {
            self.0.next_segment.retry();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "nobody tells when a disk has room again")]
async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
