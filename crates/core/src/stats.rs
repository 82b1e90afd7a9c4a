//! Statistics: what has become of jobs, counted, in total and by engine, repo, owner and day.
//!
//! They are part of State and change only by `apply`, so they are as exact over crashes as the jobs themselves. A job counts with
//! the outcome it has now: one that is taken up again is taken out until it ends once more. Bounded: so many names of a sort, so
//! many days, and histograms of a fixed number of buckets.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;

use rpds::RedBlackTreeMapSync as Map;
use serde::{Deserialize, Serialize};

use crate::ids::Lsn;
use crate::job::OutcomeKind;
use crate::limits;
use crate::time::Day;

/// Whose statistics. In the names, none stands for all that have no row of their own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Everybody's.
    Total,
    /// An engine's.
    Engine(Option<String>),
    /// A repo's.
    Repo(Option<String>),
    /// An owner's.
    Owner(Option<String>),
    /// A day's.
    Day(Day),
}

impl Key {
    /// Its name as an entity: `total`, `engine/NAME`, `repo/NAME`, `owner/NAME`, `day/YYYY-MM-DD`; without `/NAME`: the others.
    pub fn entity_name(&self) -> String {
        match self {
            Self::Total => "total".to_owned(),
            Self::Engine(name) => named("engine", name.as_deref()),
            Self::Repo(name) => named("repo", name.as_deref()),
            Self::Owner(name) => named("owner", name.as_deref()),
            Self::Day(day) => format!("day/{day}"),
        }
    }

    /// Reads what [`Key::entity_name`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (sort, name) = match text.split_once('/') {
            Some((sort, name)) => (sort, Some(name)),
            None => (text, None),
        };
        let owned = || name.map(String::from);
        Some(match (sort, name) {
            ("total", None) => Self::Total,
            ("engine", _) => Self::Engine(owned()),
            ("repo", _) => Self::Repo(owned()),
            ("owner", _) => Self::Owner(owned()),
            ("day", Some(day)) => Self::Day(Day::parse(day)?),
            _ => return None,
        })
    }

    /// The key of all that have no row of their own; none where there is no such thing.
    fn others(&self) -> Option<Self> {
        match self {
            Self::Engine(_) => Some(Self::Engine(None)),
            Self::Repo(_) => Some(Self::Repo(None)),
            Self::Owner(_) => Some(Self::Owner(None)),
            Self::Total | Self::Day(_) => None,
        }
    }

    /// Index of its sort among those with names, and the name.
    fn name(&self) -> Option<(usize, &str)> {
        match self {
            Self::Engine(name) => Some((0, name.as_deref()?)),
            Self::Repo(name) => Some((1, name.as_deref()?)),
            Self::Owner(name) => Some((2, name.as_deref()?)),
            Self::Total | Self::Day(_) => None,
        }
    }
}

fn named(sort: &str, name: Option<&str>) -> String {
    name.map_or_else(|| sort.to_string(), |name| format!("{sort}/{name}"))
}

/// One row: everything that is counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The last record that changed it.
    pub changed: Lsn,
    /// Jobs accepted.
    pub accepted: u64,
    /// Jobs removed before they ended.
    pub removed: u64,
    /// Jobs that are, or were when they were removed, ended as completed.
    pub completed: u64,
    /// The same as failed.
    pub failed: u64,
    /// The same as timed out.
    pub timed_out: u64,
    /// The same as cancelled.
    pub cancelled: u64,
    /// The same as interrupted.
    pub interrupted: u64,
    /// Attempts that ended and whose agent ran.
    pub attempts: u64,
    /// From ready to a slot, in milliseconds.
    pub queue_ms: Spread,
    /// From a slot to a workspace, in milliseconds.
    pub prepare_ms: Spread,
    /// From an agent's start to its end, in milliseconds.
    pub run_ms: Spread,
    /// Highest memory use of an attempt.
    pub peak_memory_bytes: Spread,
    /// Processor time of all attempts, in milliseconds.
    pub cpu_ms: u64,
    /// Tokens read by models.
    pub input_tokens: u64,
    /// Tokens written by models.
    pub output_tokens: u64,
    /// As agents estimate it, in millionths of a US dollar.
    pub cost_micros: u64,
}

impl Row {
    /// The counter of an outcome.
    pub fn outcome(&mut self, kind: OutcomeKind) -> &mut u64 {
        match kind {
            OutcomeKind::Completed => &mut self.completed,
            OutcomeKind::Failed => &mut self.failed,
            OutcomeKind::TimedOut => &mut self.timed_out,
            OutcomeKind::Cancelled => &mut self.cancelled,
            OutcomeKind::Interrupted => &mut self.interrupted,
        }
    }

    /// Jobs that ended, whatever the outcome.
    pub fn ended(&self) -> u64 {
        [self.completed, self.failed, self.timed_out, self.cancelled, self.interrupted]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// How values are spread: exact count, sum and highest; quantiles by a histogram.
///
/// Below 16 every value has a bucket of its own; from there on each doubling has eight buckets of equal width, and a quantile is
/// given as the middle of its bucket: at most 1/16 (6.25 %) beside the true one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// How many values.
    pub count: u64,
    /// All of them together.
    pub sum: u64,
    /// The highest there has ever been.
    pub max: u64,
    /// Bucket and how many values are in it, in order; at most 496.
    buckets: Vec<(u16, u64)>,
}

impl Spread {
    /// Adds a value.
    pub fn add(&mut self, value: u64) {
        let bucket = bucket_of(value);
        match self.buckets.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => {
                if let Some((_, count)) = self.buckets.get_mut(at) {
                    *count = count.saturating_add(1);
                }
            }
            Err(at) => self.buckets.insert(at, (bucket, 1)),
        }
        self.count = self.count.saturating_add(1);
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// Takes a value out that was added before.
    pub fn take(&mut self, value: u64) {
        let bucket = bucket_of(value);
        let Ok(at) = self.buckets.binary_search_by_key(&bucket, |(bucket, _)| *bucket) else {
            return;
        };
        let Some((_, count)) = self.buckets.get_mut(at) else { return };
        *count -= 1;
        if *count == 0 {
            self.buckets.remove(at);
        }
        self.count = self.count.saturating_sub(1);
        self.sum = self.sum.saturating_sub(value);
    }

    /// The mean; none where there are no values.
    pub fn mean(&self) -> Option<u64> {
        self.sum.checked_div(self.count)
    }

    /// The value that so many of a hundred do not exceed, to within 6.25 %; none where there are no values.
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let total: u64 = self.buckets.iter().map(|(_, count)| *count).sum();
        let wanted = (u128::from(total) * u128::from(percent)).div_ceil(100).max(1);
        let mut seen = 0_u128;
        let (bucket, _) = self.buckets.iter().find(|(_, count)| {
            seen += u128::from(*count);
            seen >= wanted
        })?;
        Some(middle_of(*bucket).min(self.max))
    }
}

/// Below this every value has a bucket of its own.
const EXACT: u64 = 16;
/// Buckets of one doubling.
const STEPS: u64 = 8;

fn bucket_of(value: u64) -> u16 {
    let bucket = if value < EXACT {
        value
    } else {
        let doublings = u64::from(value.ilog2());
        let step = (value >> (doublings - 3)) & (STEPS - 1);
        EXACT + (doublings - 4) * STEPS + step
    };
    u16::try_from(bucket).unwrap_or(u16::MAX)
}

fn middle_of(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    let Some(above) = bucket.checked_sub(EXACT) else { return bucket };
    let shift = (above / STEPS + 1).min(60);
    let lowest = (STEPS + above % STEPS) << shift;
    lowest + (1 << shift) / 2
}

/// All rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    rows: Map<Key, Arc<Row>>,
    /// How many rows each sort of names has, and how many days there are.
    names: [usize; 3],
    days: usize,
}

impl Stats {
    /// A row.
    pub fn row(&self, key: &Key) -> Option<&Row> {
        self.rows.get(key).map(|row| &**row)
    }

    /// All rows: the total, engines, repos and owners by name (the others first), days.
    pub fn rows(&self) -> impl Iterator<Item = (&Key, &Row)> {
        self.rows.iter().map(|(key, row)| (key, &**row))
    }

    /// Puts a row as it is, from a checkpoint.
    pub(crate) fn put(&mut self, key: Key, row: Row) {
        if !self.rows.contains_key(&key) {
            if let Key::Day(_) = key {
                self.days += 1;
            } else if let Some(count) = key.name().and_then(|(sort, _)| self.names.get_mut(sort)) {
                *count += 1;
            }
        }
        self.rows.insert_mut(key, Arc::new(row));
    }

    /// Changes the row of a key, made if there is none and there is room; else that of the others.
    pub(crate) fn change(&mut self, lsn: Lsn, key: Key, change: impl FnOnce(&mut Row)) {
        let Some(key) = self.place(key) else { return };
        if !self.rows.contains_key(&key) {
            self.put(key.clone(), Row::default());
        }
        if let Some(row) = self.rows.get_mut(&key) {
            // Copied only where somebody else holds this state: not while records are read at a start.
            let row = Arc::make_mut(row);
            change(row);
            row.changed = lsn;
        }
    }

    /// The row under which a key is counted. A name that has one keeps it for ever, and one that had no room never gets one: so
    /// what was added under a key is taken out under the same.
    fn place(&mut self, key: Key) -> Option<Key> {
        if self.rows.contains_key(&key) {
            return Some(key);
        }
        if let Key::Day(_) = key {
            return self.room_for_day(&key).then_some(key);
        }
        let Some((sort, name)) = key.name() else { return Some(key) };
        let full = self.names.get(sort).is_none_or(|count| *count >= limits::STATS_NAMES_MAX);
        if full || name.len() > limits::STATS_NAME_BYTES_MAX { key.others() } else { Some(key) }
    }

    /// Makes room for a new day by forgetting the oldest; false: it is older than all of them.
    fn room_for_day(&mut self, day: &Key) -> bool {
        if self.days < limits::STATS_DAYS_MAX {
            return true;
        }
        let first = self.rows.range(Key::Day(Day(0))..).next().map(|(key, _)| key.clone());
        let Some(oldest) = first.filter(|oldest| oldest < day) else { return false };
        self.rows.remove_mut(&oldest);
        self.days -= 1;
        true
    }
}

#[cfg(test)]
mod tests;
