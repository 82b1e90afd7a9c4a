//! How old a heartbeat is, in classes for people and dashboards. It decides nothing: evidence does.

use core::time::Duration;

use serde::Serialize;

use crate::time::Timestamp;

/// From which ages on a heartbeat is in the later classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    /// Stale from this age on.
    pub stale: Duration,
    /// Dead from this age on.
    pub dead: Duration,
}

/// How old a heartbeat is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Younger than [`Ages::stale`].
    Fresh,
    /// Younger than [`Ages::dead`]; or from the future, which only says that a clock was set.
    Stale,
    /// Nobody beats any more, or cannot write it down.
    Dead,
}

impl Class {
    /// All of them, the freshest first.
    pub fn all() -> impl Iterator<Item = Self> {
        core::iter::successors(Some(Self::Fresh), |class| class.next())
    }

    /// The one after. A match and not a list: a new one has to find its place here.
    fn next(self) -> Option<Self> {
        match self {
            Self::Fresh => Some(Self::Stale),
            Self::Stale => Some(Self::Dead),
            Self::Dead => None,
        }
    }

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Dead => "dead",
        }
    }
}

/// A heartbeat, looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// In one word.
    pub class: Class,
    /// Its age; zero if it is from the future.
    pub age: Duration,
    /// It is from the future: the clock was set back since, or another machine's is wrong.
    pub from_the_future: bool,
}

impl Ages {
    /// Looks at a heartbeat of `at`.
    pub fn look(&self, at: Timestamp, now: Timestamp) -> Heartbeat {
        let age = now.since(at);
        let from_the_future = at > now;
        let class = if !from_the_future && age >= self.dead {
            Class::Dead
        } else if from_the_future || age >= self.stale {
            Class::Stale
        } else {
            Class::Fresh
        };
        Heartbeat { class, age, from_the_future }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const AGES: Ages = Ages { stale: Duration::from_mins(2), dead: Duration::from_mins(10) };

    #[test]
    fn the_classes_begin_exactly_at_their_ages() {
        let class = |age_ms: u64| AGES.look(Timestamp(1000), Timestamp(1000 + age_ms)).class;
        assert_eq!([0, 119_999].map(class), [Class::Fresh; 2]);
        assert_eq!([120_000, 599_999].map(class), [Class::Stale; 2]);
        assert_eq!([600_000, 30 * 24 * 3_600_000].map(class), [Class::Dead; 2]);
    }

    #[test]
    fn one_from_the_future_is_stale_however_far_and_says_so() {
        for ahead in [1, 3_600_000, 30 * 24 * 3_600_000] {
            let seen = AGES.look(Timestamp(1000 + ahead), Timestamp(1000));
            assert_eq!((seen.class, seen.from_the_future), (Class::Stale, true));
            assert_eq!(seen.age, Duration::ZERO);
        }
    }

    #[test]
    fn every_class_is_listed_once_in_order() {
        let all: Vec<Class> = Class::all().collect();
        assert!(all.is_sorted() && all.len() == 3, "{all:?}");
    }
}
