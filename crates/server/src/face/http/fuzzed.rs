//! What a stranger may send, read as the API reads it: for fuzzers, since the readers themselves are nobody's business.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Query;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use outlive_core::limits;

use super::{jobs, output, repos, submit};

/// A request's body, as every request that has one would read it.
pub fn body(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = Bytes::copy_from_slice(bytes);
    let key = HeaderValue::from_bytes(bytes.get(..bytes.len().min(300)).unwrap_or_default());
    let key = submit::parse_key(key.as_ref().ok(), bytes).ok().flatten();
    if let Ok(raw) = super::body::read::<submit::Raw>(&headers, &body, submit::FIELDS)
        && let Ok(submission) = raw.parse(key, "local", Duration::from_secs(1))
    {
        let task = &submission.task;
        assert!(task.priority <= limits::PRIORITY_MAX && task.repos.len() == 1);
        let timeout = Duration::from_millis(task.timeout_ms);
        assert!(timeout >= limits::TIMEOUT_MIN && timeout <= limits::TIMEOUT_MAX);
        assert!(submission.prompt.len() <= limits::PROMPT_BYTES_MAX);
        // What was accepted is written down, and read again as the same.
        let text = serde_json::to_vec(task).expect("no odd keys");
        let back: outlive_core::task::Task = serde_json::from_slice(&text).expect("our own bytes");
        assert_eq!(back, *task);
    }
    jobs::read_any(&headers, &body);
    repos::read_any(&headers, &body);
}

/// A request's query.
pub fn query(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from([b"/x?", bytes].concat()) else { return };
    drop(Query::<jobs::Filter>::try_from_uri(&uri));
    drop(Query::<jobs::RemoveQuery>::try_from_uri(&uri));
    drop(Query::<output::Asked>::try_from_uri(&uri));
}

/// A `Range` header for an output of as many bytes as the first one says.
pub fn range(bytes: &[u8]) {
    let [total, text @ ..] = bytes else { return };
    let total = u64::from(*total);
    let Ok(text) = HeaderValue::from_bytes(text) else { return };
    if let Ok((from, to)) = output::parse_range(text.to_str().unwrap_or_default(), total) {
        assert!(from <= total && to.is_none_or(|to| to > from), "{from} to {to:?} of {total}");
    }
}
