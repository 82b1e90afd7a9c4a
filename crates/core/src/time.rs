//! Time as an input: the core is told what time it is and never asks.

use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

/// Wall-clock time in milliseconds after 1970-01-01T00:00:00Z.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This long after; stays at the largest time rather than overflow.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// How long after `earlier` this is; zero when it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Timestamp {
    /// The day on which it is, in UTC.
    pub fn day(self) -> Day {
        Day(u32::try_from(self.0 / DAY_MS).unwrap_or(u32::MAX).min(Day::MAX.0))
    }
}

/// RFC 3339, in UTC, with milliseconds.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0 % DAY_MS;
        let (h, m, s, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
        write!(f, "{}T{h:02}:{m:02}:{s:02}.{ms:03}Z", self.day())
    }
}

const DAY_MS: u64 = 86_400_000;

/// A calendar day in UTC, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub u32);

impl Day {
    /// 9999-12-31: later ones could not be written with four digits.
    pub const MAX: Self = Self(2_932_896);

    /// Reads `YYYY-MM-DD`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let mut part = |digits: usize| -> Option<u32> {
            let part = parts.next()?;
            let good = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit());
            part.parse().ok().filter(|_| good)
        };
        let (year, month, day) = (part(4)?, part(2)?, part(2)?);
        let found = Self(days_before(year, month)?.checked_add(day.checked_sub(1)?)?);
        // A day that the month does not have is another day.
        (found.date() == (year, month, day)).then_some(found)
    }

    /// Year, month and day of the month.
    fn date(self) -> (u32, u32, u32) {
        // Years that begin in March have their leap day at the end; 400 of them have always the same length.
        let shifted = self.0 + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        (year + era * 400 + u32::from(month <= 2), month, day)
    }
}

/// Days from 1970-01-01 to the first of a month.
fn days_before(year: u32, month: u32) -> Option<u32> {
    let year = year.checked_sub(u32::from(month <= 2))?;
    let (era, of_era) = (year / 400, year % 400);
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5;
    (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use super::*;

    #[test]
    fn times_are_told_as_a_calendar_has_them() {
        let told = |ms| Timestamp(ms).to_string();
        assert_eq!(told(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(told(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(told(1_795_867_391_007), "2026-11-28T12:03:11.007Z");
        assert!(told(u64::MAX).starts_with("9999-12-31T"));
    }

    #[test]
    fn every_day_is_read_as_it_is_written_and_no_other_text_is_a_day() {
        for day in (0..=Day::MAX.0).step_by(97).chain(0..4000).chain([Day::MAX.0]) {
            assert_eq!(Day::parse(&Day(day).to_string()), Some(Day(day)));
        }
        for text in [
            "",
            "2026-02-29",
            "1969-12-31",
            "2026-13-01",
            "2026-00-10",
            "2026-1-01",
            "2026-01-00",
            "+026-01-01",
            "2026-01-011",
        ] {
            assert_eq!(Day::parse(text), None, "{text}");
        }
    }
}
