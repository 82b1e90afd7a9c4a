//! What comes over the network, and names that people type.

use std::fmt::Write as _;

use outlive_core::ids::{JobId, RepoName};
use outlive_core::stats::Key;
use outlive_core::time::Day;

use crate::clock;
use crate::face::client::sse;
use crate::face::http::fuzzed as http;
use crate::world::source::parse_source;

pub(super) fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(id) = JobId::parse(text) {
        assert_eq!(id.as_str(), text);
    }
    if let Ok(name) = RepoName::parse(text) {
        // It becomes the name of a directory.
        assert!(name.as_str() == text && !text.contains('/') && !text.starts_with('.'));
    }
    if let Some(day) = Day::parse(text) {
        assert_eq!(Day::parse(&day.to_string()), Some(day));
    }
    if let Some(key) = Key::parse(text) {
        assert_eq!(Key::parse(&key.entity_name()), Some(key));
    }
    if let Ok(time) = clock::parse(text) {
        assert_eq!(clock::parse(&clock::rfc3339(time)), Ok(time));
    }
    drop(parse_source(text));
}

pub(super) fn some_names() -> Vec<Vec<u8>> {
    let all = [
        "abcdefghij27",
        "my-repo.2",
        "2026-11-28",
        "day/2026-11-28",
        "engine/claude",
        "total",
        "2026-11-28T18:00:00.123Z",
        "https://user@host.example:80/a/b.git",
        "git@host:a/b",
        "/srv/git/a",
    ];
    all.map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(super) fn body(bytes: &[u8]) {
    http::body(bytes);
}

pub(super) fn bodies() -> Vec<Vec<u8>> {
    let all = [
        r#"{"repo":"r","prompt":"do it","engine":"demo","engine_options":{"lines":3},"timeout_s":60,"priority":50}"#,
        r#"{"repos":["r"],"prompt":"x","model":"m","on_interrupt":"resume","on_unknown":"hold","max_interrupts":3,"hold":true}"#,
        r#"{"repo":"r","engine":"command","engine_options":{"argv":["sh","-c","true"]},"env":{"A":"b"},"title":"t","group":"g"}"#,
        r#"{"repo":"r","prompt":"x","limits":{"memory_bytes":1,"pids":2,"output_bytes":3,"idle_output_s":4.5},"limit_wait_max_s":1}"#,
        r#"{"repo":"r","prompt":"x","start_after":"2026-11-28T18:00:00Z","on_limit":"fail","sidecars":[],"callbacks":[]}"#,
        r#"{"prompt":"more"}"#,
        r#"{"as":"completed"}"#,
        r#"{"priority":7,"timeout_s":1.5,"title":"t","prompt":"p"}"#,
        r#"{"name":"r","source":"/srv/git/a","branch":"main"}"#,
    ];
    all.map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(super) fn query(bytes: &[u8]) {
    http::query(bytes);
}

pub(super) fn queries() -> Vec<Vec<u8>> {
    let all = [
        "phase=running&outcome=failed&repo=r&engine=demo&group=g&q=a%20b&limit=10&cursor=99",
        "stream=stderr&follow=true&format=text",
        "force=true",
        "limit=18446744073709551615",
    ];
    all.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// The first byte says how long the output is.
pub(super) fn range(bytes: &[u8]) {
    http::range(bytes);
}

pub(super) fn ranges() -> Vec<Vec<u8>> {
    let all =
        ["dbytes=0-0", "dbytes=10-", "dbytes=-30", "\0bytes=0-", "zbytes=5-18446744073709551614"];
    all.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Every line ends an event at most, and cutting the stream never makes one that was not there.
pub(super) fn events(bytes: &[u8]) {
    let read = |bytes: &[u8]| -> Vec<sse::Event> {
        sse::events(bytes).map(|event| event.expect("memory does not fail")).collect()
    };
    let all = read(bytes);
    assert!(all.len() <= bytes.iter().filter(|byte| **byte == b'\n').count());
    let part = read(&bytes[..bytes.len() / 2]);
    assert!(all.starts_with(&part));
    // Written as the server writes them, they are read as the same.
    let mut text = String::new();
    for event in &all {
        let data = event.data.replace('\n', "\ndata: ");
        write!(text, "event: {}\nid: {}\ndata: {data}\n\n", event.name, event.id).expect("memory");
    }
    if !text.contains('\r') {
        assert_eq!(read(text.as_bytes()), all);
    }
}

pub(super) fn event_streams() -> Vec<Vec<u8>> {
    let all = [
        ": hello\n\nevent: job\nid: 7\ndata: {\"a\":1}\n\ndata:x\r\ndata: y\r\n\r\n",
        "event: job\ndata: 1\n\nretry: 5\nfuture: x\ndata: 2\n\ndata\n\n",
    ];
    all.map(|text| text.as_bytes().to_vec()).to_vec()
}
