//! The one place where the time is asked.

use std::time::{SystemTime, UNIX_EPOCH};

use outlive_core::time::Timestamp;

/// The wall clock.
#[expect(clippy::disallowed_methods, reason = "this is the one clock")]
pub fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// A file's time as ours; one before 1970 is 1970.
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// RFC 3339 in UTC with milliseconds, as the API shows times.
pub fn rfc3339(at: Timestamp) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| format!("{millis} ms"), |time| format!("{time:.3}"))
}

/// Reads an RFC 3339 time.
///
/// # Errors
/// It is not one, or lies before 1970.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    let time: jiff::Timestamp = text.parse().map_err(|e: jiff::Error| e.to_string())?;
    u64::try_from(time.as_millisecond()).map(Timestamp).map_err(|_| "before 1970".to_string())
}
