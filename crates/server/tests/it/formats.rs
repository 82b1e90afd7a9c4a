//! Files of every version that was ever written open for ever.
//!
//! `tests/fixtures/vN.txt` holds a small data directory of format version N: the bytes that version wrote, row by row, without rows of
//! zeros. `vN.json` says what is in it. Both are written once, by the program of that version, and never again:
//!
//! ```text
//! OUTLIVE_WRITE_FIXTURES=1 cargo test -p outlive --test it -- formats
//! ```

mod written;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outlive::data_dir::{DataDir, DataDirError, Instance, Paths, read_instance};
use outlive::startup::told::StartupLog;
use outlive::truth::disk::RealDisk;
use outlive::truth::store::replay;
use outlive::truth::wal::{Config, WalError, dump, open};
use outlive_core::record::FORMAT_VERSION;
use outlive_core::spec::Reading;
use outlive_core::state::State;
use outlive_supervisor::{
    read_freeze, read_sentinel, read_slots, read_spec, read_started, read_stop,
};
use serde_json::{Value, json};

/// Bytes of a row in a fixture.
const ROW: usize = 32;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A directory as text: each file's name and length, then its rows that are not all zeros.
fn as_text(dir: &Path) -> String {
    let mut names: Vec<PathBuf> = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { open.push(path) } else { names.push(path) }
        }
    }
    names.sort();
    let mut text = String::new();
    for path in names {
        let bytes = fs::read(&path).expect("readable");
        let name = path.strip_prefix(dir).expect("below it").display();
        writeln!(text, "file {name} {}", bytes.len()).expect("a string");
        for (index, row) in bytes.chunks(ROW).enumerate() {
            if row.iter().any(|byte| *byte != 0) {
                write!(text, "{:x} ", index * ROW).expect("a string");
                for byte in row {
                    write!(text, "{byte:02x}").expect("a string");
                }
                text.push('\n');
            }
        }
    }
    text
}

/// The directory that a text describes.
fn from_text(text: &str, dir: &Path) {
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut current = PathBuf::new();
    for line in text.lines() {
        if let Some((name, len)) = line.strip_prefix("file ").and_then(|it| it.rsplit_once(' ')) {
            current = dir.join(name);
            files.insert(current.clone(), vec![0; len.parse().expect("a length")]);
            continue;
        }
        let (at, hex) = line.split_once(' ').expect("a row");
        let at = usize::from_str_radix(at, 16).expect("an offset");
        let file = files.get_mut(&current).expect("named before its rows");
        for (index, byte) in hex.as_bytes().chunks(2).enumerate() {
            let byte = std::str::from_utf8(byte).expect("hexadecimal");
            file[at + index] = u8::from_str_radix(byte, 16).expect("hexadecimal");
        }
    }
    for (path, bytes) in files {
        fs::create_dir_all(path.parent().expect("in a directory")).expect("a directory");
        fs::write(path, bytes).expect("written");
    }
}

fn wal_of(paths: &Paths) -> Config {
    let Instance { instance, .. } = read_instance(paths).expect("readable");
    let instance = *uuid::Uuid::parse_str(&instance).expect("a UUID").as_bytes();
    Config::new(Arc::new(RealDisk), paths.wal(), paths.quarantine(), instance, || 7)
}

/// Everything that a data directory says, as this version understands it.
fn rendering(paths: &Paths) -> Value {
    let instance = read_instance(paths).expect("readable");
    let mut records = Vec::new();
    dump(&wal_of(paths), |_, _, record| {
        let body: Value = serde_json::from_slice(&record.body).expect("JSON");
        records.push(json!({ "lsn": record.lsn, "body": body }));
    })
    .expect("readable");
    let opened = open(wal_of(paths)).expect("it opens");
    assert_eq!((&opened.report.damage, opened.report.cut_bytes), (&Vec::new(), 0));
    let mut state = State::default();
    let replayed = replay(&opened, &mut state);
    assert_eq!(replayed.unavailable, []);
    let entries: BTreeMap<String, Value> = state
        .entries()
        .map(|(entity, _, body)| (entity.to_string(), serde_json::from_slice(&body).expect("JSON")))
        .collect();
    let log = fs::read(paths.startup_log()).expect("readable");
    let log: StartupLog = serde_json::from_slice(&log).expect("a startup log");
    let keep = paths.jobs().join("abcdefghijkl/attempts/1");
    let marker = fs::read(paths.jobs().join("abcdefghijkl/marker.json")).expect("readable");
    let marker: Value = serde_json::from_slice(&marker).expect("JSON");
    let (outcome, tree_empty) = read_slots(&keep);
    json!({
        "instance": instance, "records": records, "checkpoint": opened.report.checkpoint_lsn,
        "last_lsn": opened.report.last_lsn, "state": entries, "startup_log": log,
        "marker": marker,
        "spec": valid(read_spec(&keep)), "started": valid(read_started(&keep)),
        "sentinel": valid(read_sentinel(&keep)), "stop": valid(read_stop(&keep)),
        "outcome": valid(outcome), "tree_empty": valid(tree_empty),
        "freeze": valid(read_freeze(&keep)),
    })
}

fn valid<T: serde::Serialize + std::fmt::Debug>(reading: Reading<T>) -> Value {
    match reading {
        Reading::Valid(value) => json!(value),
        other => panic!("{other:?}"),
    }
}

/// What an older version said is all there; a newer one may say more.
fn says(expected: &Value, found: &Value, at: &str) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (name, value) in expected {
                let there = found.get(name).unwrap_or_else(|| panic!("{at}/{name} is gone"));
                says(value, there, &format!("{at}/{name}"));
            }
        }
        (Value::Array(expected), Value::Array(found)) => {
            assert_eq!(expected.len(), found.len(), "{at}");
            for (index, (value, there)) in expected.iter().zip(found).enumerate() {
                says(value, there, &format!("{at}/{index}"));
            }
        }
        _ => assert_eq!(expected, found, "{at}"),
    }
}

/// A fixture's directory, made anew.
fn unpacked(version: u32) -> (tempfile::TempDir, Paths) {
    let text = fs::read_to_string(fixtures().join(format!("v{version}.txt")));
    let dir = tempfile::tempdir().expect("a directory");
    from_text(&text.expect("every version has one"), dir.path());
    let paths = Paths::new(dir.path());
    (dir, paths)
}

#[test]
fn files_of_every_version_are_read_and_mean_what_they_meant() {
    if std::env::var_os("OUTLIVE_WRITE_FIXTURES").is_some() {
        write_fixture();
    }
    for version in 1..=FORMAT_VERSION {
        let (_dir, paths) = unpacked(version);
        let expected = fs::read(fixtures().join(format!("v{version}.json"))).expect("there");
        let expected: Value = serde_json::from_slice(&expected).expect("JSON");
        says(&expected, &rendering(&paths), &format!("v{version}"));
    }
}

/// Writes the fixture of this version, unless there is one: what was written once stays as it is.
fn write_fixture() {
    let text = fixtures().join(format!("v{FORMAT_VERSION}.txt"));
    if text.exists() {
        crate::crashes::tell(&format!("{} is there already and stays as it is", text.display()));
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    written::write(dir.path());
    fs::create_dir_all(fixtures()).expect("a directory");
    fs::write(&text, as_text(dir.path())).expect("written");
    let told = serde_json::to_vec_pretty(&rendering(&Paths::new(dir.path()))).expect("JSON");
    fs::write(text.with_extension("json"), told).expect("written");
}

#[test]
fn the_writer_of_fixtures_writes_every_event_there_is() {
    let dir = tempfile::tempdir().expect("a directory");
    written::write(dir.path());
    let mut seen: Vec<String> = Vec::new();
    dump(&wal_of(&Paths::new(dir.path())), |_, _, record| {
        let body: Value = serde_json::from_slice(&record.body).expect("JSON");
        let events = body["events"].as_array().expect("events").clone();
        seen.extend(events.iter().map(|it| it["event"].as_str().expect("a name").to_string()));
    })
    .expect("readable");
    // As serde tells when it is asked for one that there is not.
    let error = serde_json::from_value::<outlive_core::event::Event>(json!({ "event": "none" }));
    let error = error.expect_err("there is none").to_string();
    let all: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
    assert!(all.len() > 25, "{error}");
    for name in all {
        assert!(seen.iter().any(|it| it == name), "no {name} among {seen:?}");
    }
}

/// CRC-32 (IEEE), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 }
        })
    })
}

#[test]
fn files_of_a_newer_version_are_refused_untouched() {
    for name in ["wal/0000000000000001.seg", "wal/0000000000000004.ckpt"] {
        let (dir, paths) = unpacked(FORMAT_VERSION);
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).expect("it is in the fixture");
        bytes[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
        let check = crc32(&bytes[..508]).to_le_bytes();
        bytes[508..512].copy_from_slice(&check);
        fs::write(&path, bytes).expect("written");
        let before = as_text(dir.path());
        let Err(refused) = open(wal_of(&paths)) else { panic!("{name} was opened") };
        assert!(
            matches!(&refused, WalError::Newer { path: named, .. } if *named == path),
            "{refused}"
        );
        assert_eq!(as_text(dir.path()), before, "{name}");
    }
    let (dir, paths) = unpacked(FORMAT_VERSION);
    let path = dir.path().join("instance.json");
    let text = fs::read_to_string(&path).expect("readable");
    let version = |version: u32| format!("\"format_version\": {version}");
    fs::write(&path, text.replace(&version(FORMAT_VERSION), &version(FORMAT_VERSION + 1)))
        .expect("ok");
    let before = as_text(dir.path());
    assert!(matches!(read_instance(&paths), Err(DataDirError::Newer { .. })));
    assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Newer { .. })));
    fs::remove_file(dir.path().join("server.lock")).expect("who asks holds the lock first");
    assert_eq!(as_text(dir.path()), before);
    let keep = paths.jobs().join("abcdefghijkl/attempts/1");
    let path = keep.join("started");
    let newer =
        fs::read_to_string(&path).expect("readable").replace("\"version\":1", "\"version\":2");
    fs::write(&path, newer).expect("written");
    assert!(matches!(read_started(&keep), Reading::Damaged(why) if why.contains("newer than 1")));
}
