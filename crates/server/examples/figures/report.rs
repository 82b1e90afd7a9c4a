//! From measured values to a table that can be read on a terminal and pasted into a document.

use std::fmt::Write as _;

/// What a value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Milliseconds.
    Ms,
    /// Events per second.
    PerSecond,
    /// Kibibytes.
    KiB,
    /// A plain number.
    Count,
}

impl Unit {
    /// A value with as many digits as can be believed.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Ms if value < 10.0 => format!("{value:.2} ms"),
            Self::Ms => format!("{value:.1} ms"),
            Self::PerSecond => format!("{value:.0} /s"),
            Self::KiB => format!("{value:.0} KiB"),
            Self::Count => format!("{value:.1}"),
        }
    }
}

/// Values of one kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds one.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds several.
    pub(crate) fn extend(&mut self, values: impl IntoIterator<Item = f64>) {
        self.0.extend(values);
    }

    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// 99 of 100 are at most this; of fewer than 100 it is the largest.
    fn p99(&self) -> f64 {
        self.at(0.99)
    }

    /// By nearest rank, so that what is printed was measured.
    fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 values")]
        let rank = (share * sorted.len() as f64).ceil();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and the number of values"
        )]
        let index = (rank as usize).saturating_sub(1);
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// One line of a table.
#[derive(Debug)]
pub(crate) struct Row {
    cells: [String; 6],
}

impl Row {
    /// A figure without a goal and without anything beside it.
    pub(crate) fn new(what: impl Into<String>, unit: Unit, samples: &Samples) -> Self {
        let (median, p99) = (unit.show(samples.median()), unit.show(samples.p99()));
        let count = samples.0.len().to_string();
        Self { cells: [what.into(), count, median, p99, String::new(), String::new()] }
    }

    /// With what it is to be compared.
    pub(crate) fn beside(mut self, text: impl Into<String>) -> Self {
        self.cells[4] = text.into();
        self
    }

    /// How many times the median of another thing it takes.
    pub(crate) fn times(self, what: &str, unit: Unit, own: &Samples, other: &Samples) -> Self {
        let ratio = own.median() / other.median();
        self.beside(format!("{ratio:.1} × {what} ({})", unit.show(other.median())))
    }

    /// The goal: the median stays below it.
    pub(crate) fn goal(mut self, unit: Unit, samples: &Samples, below: f64) -> Self {
        let met = if samples.median() < below { "met" } else { "MISSED" };
        self.cells[5] = format!("< {}: {met}", unit.show(below));
        self
    }
}

/// A table in Markdown whose columns are aligned.
pub(crate) fn table(name: &str, rows: &[Row]) -> String {
    let head = [name, "n", "median", "p99", "beside", "goal"].map(str::to_string);
    let all: Vec<&[String; 6]> =
        std::iter::once(&head).chain(rows.iter().map(|row| &row.cells)).collect();
    let widths: [usize; 6] = std::array::from_fn(|column| {
        all.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for (number, cells) in all.into_iter().enumerate() {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        // Writing into a text cannot fail.
        writeln!(text, "| {} |", padded.join(" | ")).ok();
        if number == 0 {
            let lines: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            writeln!(text, "| {} |", lines.join(" | ")).ok();
        }
    }
    text.trim_end().to_string()
}
