//! A job's `engine_options`: what may be in them, and what a person is told who got one wrong.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use serde_json::Value;

/// `engine_options` of a job, as submitted. Each engine knows its own.
pub type EngineOptions = serde_json::Map<String, Value>;

/// An option that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOption {
    /// The engine has no such option.
    #[error("engine `{engine}` has no option `{option}`{}", did_you_mean(*.nearest))]
    Unknown {
        /// The engine.
        engine: &'static str,
        /// As it was spelt.
        option: String,
        /// The option that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The engine cannot do without it.
    #[error("engine `{engine}` needs the option `{option}`: {rule}")]
    Missing {
        /// The engine.
        engine: &'static str,
        /// The option.
        option: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// It has a value that it cannot have.
    #[error("option `{option}` of engine `{engine}` must be {rule}")]
    Value {
        /// The engine.
        engine: &'static str,
        /// The option.
        option: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

fn did_you_mean(nearest: Option<&'static str>) -> String {
    nearest.map(|name| alloc::format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// Options, read by their names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    engine: &'static str,
    options: &'a EngineOptions,
}

impl<'a> Fields<'a> {
    /// Refuses every option that is not known.
    pub(super) fn new(
        engine: &'static str,
        known: &[&'static str],
        options: &'a EngineOptions,
    ) -> Result<Self, BadOption> {
        match options.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(Self { engine, options }),
            Some(key) => Err(BadOption::Unknown {
                engine,
                option: key.clone(),
                nearest: nearest(key, known),
            }),
        }
    }

    /// An option that some rule makes a `T` of.
    pub(super) fn get<T>(
        self,
        option: &'static str,
        rule: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, BadOption> {
        let Some(value) = self.options.get(option) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(BadOption::Value { engine: self.engine, option, rule }),
        }
    }

    /// The same, and it must be there.
    pub(super) fn need<T>(
        self,
        option: &'static str,
        rule: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, BadOption> {
        let missing = BadOption::Missing { engine: self.engine, option, rule };
        self.get(option, rule, read)?.ok_or(missing)
    }

    /// A whole number within bounds.
    pub(super) fn number(
        self,
        option: &'static str,
        rule: &'static str,
        bounds: RangeInclusive<u64>,
    ) -> Result<Option<u64>, BadOption> {
        self.get(option, rule, |value| value.as_u64().filter(|n| bounds.contains(n)))
    }
}

/// A text that a process can be given: an argument, a path. A NUL would cut it short.
pub(super) fn as_argument(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty() && !text.contains('\0'))
}

/// The known name that somebody probably meant; `None` if nothing is near.
pub fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let near = |candidate: &&'static str| {
        let distance = distance(name, candidate);
        (distance <= 2.max(candidate.len() / 3)).then_some((distance, *candidate))
    };
    known.iter().filter_map(near).min().map(|(_, candidate)| candidate)
}

/// Edits from one text to the other: a character inserted, dropped or replaced. (Levenshtein; long texts are far from all.)
fn distance(from: &str, to: &str) -> usize {
    if from.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, b) in row.iter_mut().skip(1).zip(to.bytes()) {
            let replaced = diagonal + usize::from(a != b);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_single_edits() {
        for (from, to, edits) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "", 2),
            ("kitten", "sitting", 3),
            ("argv", "arg", 1),
        ] {
            assert_eq!(distance(from, to), edits, "{from} {to}");
        }
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_it_is_near() {
        let known = ["argv", "lines", "line_ms"];
        assert_eq!(nearest("arg", &known), Some("argv"));
        assert_eq!(nearest("line", &known), Some("lines"));
        assert_eq!(nearest("linems", &known), Some("line_ms"));
        assert_eq!(nearest("temperature", &known), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), &known), None);
    }
}
