//! Wakes whoever follows an output file when it grows. One inotify instance for the whole server (the kernel allows few).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::StreamExt as _;
use inotify::{Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

/// All files that are followed now.
#[derive(Clone)]
pub struct Tails(Arc<Inner>);

struct Inner {
    watches: Mutex<Watches>,
    followed: Mutex<HashMap<WatchDescriptor, Weak<Growth>>>,
}

/// One file that is followed; the watch ends with the last follower.
struct Growth {
    notify: Notify,
    descriptor: WatchDescriptor,
    tails: Weak<Inner>,
}

/// A follower of one file.
pub(super) struct Tail(Arc<Growth>);

impl std::fmt::Debug for Tails {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tails").finish_non_exhaustive()
    }
}

impl Inner {
    /// Wakes whom an event concerns.
    fn wake(&self, descriptor: &WatchDescriptor) {
        for growth in self.concerned(descriptor) {
            growth.notify.notify_waiters();
        }
    }

    /// Who is to be woken by an event: the followers of that file; all of them when the queue overflowed, or when the file is not
    /// followed any more. They are handed out of the lock, for the last of them may let go of its file, which takes the lock.
    fn concerned(&self, descriptor: &WatchDescriptor) -> Vec<Arc<Growth>> {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        match followed.get(descriptor).and_then(Weak::upgrade) {
            Some(growth) => vec![growth],
            None => followed.values().filter_map(Weak::upgrade).collect(),
        }
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        let Some(tails) = self.tails.upgrade() else { return };
        let mut followed = tails.followed.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have begun to follow the file anew meanwhile; inotify gives one descriptor per file.
        if followed.get(&self.descriptor).is_some_and(|other| other.strong_count() == 0) {
            followed.remove(&self.descriptor);
            let mut watches = tails.watches.lock().unwrap_or_else(PoisonError::into_inner);
            // A file that is gone has taken its watch with it.
            drop(watches.remove(self.descriptor.clone()));
        }
    }
}

impl Tails {
    /// Starts the one reader of inotify's events.
    ///
    /// # Errors
    /// The kernel gives no inotify instance.
    pub fn start(tracker: &TaskTracker) -> std::io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = Mutex::new(inotify.watches());
        let inner = Arc::new(Inner { watches, followed: Mutex::new(HashMap::new()) });
        let mut events = inotify.into_event_stream(vec![0; 4096])?;
        let tails = inner.clone();
        tracker.spawn(async move {
            while let Some(event) = events.next().await {
                let Ok(event) = event else { continue };
                tails.wake(&event.wd);
            }
        });
        Ok(Self(inner))
    }

    /// Follows a file, or the directory in which it will appear.
    pub(super) fn follow(&self, path: &Path) -> std::io::Result<Tail> {
        let mask = WatchMask::MODIFY | WatchMask::CREATE;
        let there: PathBuf =
            path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_path_buf();
        let mut followed = self.0.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut watches = self.0.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = watches.add(there, mask)?;
        if let Some(growth) = followed.get(&descriptor).and_then(Weak::upgrade) {
            return Ok(Tail(growth));
        }
        let tails = Arc::downgrade(&self.0);
        let growth = Growth { notify: Notify::new(), descriptor: descriptor.clone(), tails };
        let growth = Arc::new(growth);
        followed.insert(descriptor, Arc::downgrade(&growth));
        Ok(Tail(growth))
    }
}

impl Tail {
    /// To be made before looking at the file, awaited after: what grew in between is not missed.
    pub(super) fn grown(&self) -> impl Future<Output = ()> + '_ {
        let mut notified = Box::pin(self.0.notify.notified());
        notified.as_mut().enable();
        notified
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::{Context, Wake, Waker};
    use std::time::Duration;

    use super::*;

    /// Whoever is woken lets go of another file, as a connection that ends does.
    struct LetGo(Mutex<Option<Tail>>);

    impl Wake for LetGo {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    #[tokio::test]
    async fn whoever_is_woken_may_let_go_of_a_file_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let tails = Tails::start(&TaskTracker::new()).expect("inotify");
        let follow = |name: &str| {
            std::fs::write(dir.path().join(name), "").expect("a file");
            tails.follow(&dir.path().join(name)).expect("followed")
        };
        let (one, other) = (follow("one"), follow("other"));
        let nobodys = follow("third").0.descriptor.clone();
        let (sender, woken) = mpsc::channel();
        // A thread of its own: what hangs must not hang the test.
        std::thread::spawn(move || {
            let mut grown = Box::pin(one.grown());
            let waker: Waker = Arc::new(LetGo(Mutex::new(Some(other)))).into();
            let before = grown.as_mut().poll(&mut Context::from_waker(&waker));
            tails.0.wake(&nobodys);
            let after = grown.as_mut().poll(&mut Context::from_waker(&waker));
            sender.send((before.is_pending(), after.is_ready()))
        });
        assert_eq!(woken.recv_timeout(Duration::from_secs(30)), Ok((true, true)));
    }
}
