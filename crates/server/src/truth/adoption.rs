//! Whether this data directory is to act at all: one that was copied does nothing until somebody adopts it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Held or not. Copies see the same.
#[derive(Debug, Clone)]
pub struct Adoption(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Why it was taken for a copy when it was opened.
    copied: Option<String>,
    adopted: AtomicBool,
}

impl Adoption {
    /// `copied`: why the data directory is taken for a copy, if it is.
    pub fn new(copied: Option<String>) -> Self {
        Self(Arc::new(Inner { copied, adopted: AtomicBool::new(false) }))
    }

    /// Why nothing is done: it is a copy, and nobody has adopted it yet.
    pub fn held(&self) -> Option<&str> {
        self.0.copied.as_deref().filter(|_| !self.0.adopted.load(Ordering::Acquire))
    }

    /// From here on it acts. To be called once that is durable.
    pub fn is_adopted(&self) {
        self.0.adopted.store(true, Ordering::Release);
    }
}
