//! Text for people: tables, times, sizes; and durations as people write them.
//!
//! Absent: colour, and the width of wide characters.

use std::time::Duration;

use outlive_core::time::Timestamp;
use serde_json::Value;

use crate::clock;

/// What is there instead of nothing.
pub(super) const NOTHING: &str = "-";

/// One line without anything that could move the cursor: what an agent or a stranger wrote goes through here.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The first line, cut to this many characters.
pub(super) fn short(text: &str, chars_max: usize) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    let cut = line.chars().count() > chars_max || text.trim().lines().nth(1).is_some();
    let kept: String = clean(line).chars().take(chars_max).collect();
    if cut { format!("{kept}…") } else { kept }
}

/// Columns, as wide as what stands in them; no line ends in spaces. A header of empty cells is left out.
pub(super) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  "));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    let header = header.map(str::to_string);
    let header = Some(&header).filter(|header| header.iter().any(|cell| !cell.is_empty()));
    header.into_iter().chain(rows).map(line).collect()
}

/// A text in a JSON document, by pointer; empty if there is none.
pub(super) fn at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A number in a JSON document.
pub(super) fn number(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer).and_then(Value::as_u64)
}

/// A list in a JSON document; empty if there is none.
pub(super) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A time, as far away as it is: `3m ago`, `in 2h`.
pub(super) fn ago(time: &str, now: Timestamp) -> String {
    let Ok(at) = clock::parse(time) else {
        return if time.is_empty() { NOTHING.to_string() } else { clean(time) };
    };
    if at > now {
        return format!("in {}", rough(at.0 - now.0));
    }
    format!("{} ago", rough(now.0 - at.0))
}

fn rough(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Between two times, if both are known.
pub(super) fn between(from: &str, to: &str) -> Option<String> {
    let (from, to) = (clock::parse(from).ok()?, clock::parse(to).ok()?);
    Some(exact(Duration::from_millis(to.0.saturating_sub(from.0))))
}

/// A length of time, as exact as anybody wants it.
pub(super) fn exact(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds}.{} s", duration.subsec_millis() / 100),
        60..3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// A number of bytes.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
pub(super) fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} bytes");
    }
    let mut scaled = count as f64 / 1024.0;
    let mut unit = "KiB";
    for next in ["MiB", "GiB", "TiB"] {
        if scaled >= 1024.0 {
            scaled /= 1024.0;
            unit = next;
        }
    }
    format!("{scaled:.1} {unit}")
}

/// Reads `90s`, `30m`, `1h30m`, `2d`, `1.5h` or plain seconds.
///
/// # Errors
/// It is none of these, for the person who wrote it.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad =
        || format!("`{text}` is no length of time: write 90s, 30m, 1h30m, 2d or plain seconds");
    if let Some(seconds) = decimal(text) {
        return Duration::try_from_secs_f64(seconds).map_err(|_| bad());
    }
    let mut rest = text;
    let mut seconds = 0.0;
    let mut least_unit = f64::INFINITY;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
        let (value, after) = rest.split_at(digits);
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (name, after) = after.split_at(end);
        let unit = match name {
            "ms" => 0.001,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(bad()),
        };
        // `30m1h` is more likely a slip than a wish.
        if unit >= least_unit {
            return Err(bad());
        }
        least_unit = unit;
        seconds += decimal(value).ok_or_else(bad)? * unit;
        rest = after;
    }
    if text.is_empty() {
        Err(bad())
    } else {
        Duration::try_from_secs_f64(seconds).map_err(|_| bad())
    }
}

/// Digits with at most one point; not what else counts as a float (`inf`, `1e9`, `-1`).
fn decimal(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("90s", 90_000),
            ("30m", 1_800_000),
            ("2h", 7_200_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("90", 90_000),
            ("0.5", 500),
            ("5min", 300_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_examples() {
        for text in [
            "", "m", "5x", "-5s", "5 m", "1e9", "inf", "nan", "30m1h", "1h1h", "1h30", ".",
            "1.2.3s",
        ] {
            let why = parse_duration(text).expect_err(text);
            assert!(why.contains("write 90s"), "{why}");
        }
        for unit in ["", "d"] {
            let endless = "9".repeat(40) + unit;
            assert!(parse_duration(&endless).expect_err("too long").contains("write 90s"));
        }
    }

    #[test]
    fn a_table_is_as_wide_as_what_stands_in_it_and_ends_no_line_in_spaces() {
        let row = |cells: [&str; 3]| cells.map(str::to_string);
        let rows = [row(["a", "länger", "x"]), row(["abc", "", ""])];
        assert_eq!(table(["ID", "B", "C"], &rows), "ID   B       C\na    länger  x\nabc\n");
        assert_eq!(table(["", ""], &[["a".to_string(), "b".to_string()]]), "a  b\n");
        assert_eq!(table(["ID"], &[]), "ID\n");
    }

    #[test]
    fn times_are_told_as_far_away_as_they_are() {
        let now = clock::parse("2026-01-02T03:04:05Z").expect("a time");
        for (time, told) in [
            ("2026-01-02T03:04:05.000Z", "0s ago"),
            ("2026-01-02T03:03:06.000Z", "59s ago"),
            ("2026-01-02T03:02:05.000Z", "2m ago"),
            ("2026-01-01T03:04:05.000Z", "24h ago"),
            ("2025-12-30T03:04:05.000Z", "3d ago"),
            ("2026-01-02T03:09:05.000Z", "in 5m"),
            ("", "-"),
            ("soon", "soon"),
        ] {
            assert_eq!(ago(time, now), told, "{time}");
        }
        assert_eq!(
            between("2026-01-02T03:04:05.000Z", "2026-01-02T03:04:08.250Z").as_deref(),
            Some("3.2 s")
        );
        assert_eq!(between("", "2026-01-02T03:04:08.250Z"), None);
    }

    #[test]
    fn lengths_and_sizes_are_rounded_for_people() {
        let told = [0, 999, 59_999, 125_000, 3_720_000].map(|ms| exact(Duration::from_millis(ms)));
        assert_eq!(told, ["0 ms", "999 ms", "59.9 s", "2m 05s", "1h 02m"]);
        let told = [0, 509, 1024, 1_572_864, 3 << 30, 5 << 50].map(bytes);
        assert_eq!(told, ["0 bytes", "509 bytes", "1.0 KiB", "1.5 MiB", "3.0 GiB", "5120.0 TiB"]);
    }

    #[test]
    fn a_strangers_text_is_one_clean_line() {
        assert_eq!(clean("a\u{1b}[31mb\nc"), "a [31mb c");
        assert_eq!(short("  one two\nthree", 20), "one two…");
        assert_eq!(short("onetwothree", 3), "one…");
        assert_eq!(short("one", 3), "one");
    }
}
