//! `outlive wal`: a look into a data directory from outside, whole, damaged, in use, or of a newer version; never a trace of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::rig::Rig;

/// What there is below a directory: each file's bytes, and when it was changed.
type Contents = BTreeMap<PathBuf, (Vec<u8>, i64, i64)>;

fn contents(dir: &Path) -> Contents {
    let mut found = Contents::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(path) = open.pop() {
        let data = fs::symlink_metadata(&path).expect("it is there");
        let bytes = if data.is_file() { fs::read(&path).expect("readable") } else { Vec::new() };
        if data.is_dir() {
            open.extend(fs::read_dir(&path).expect("a directory").map(|it| it.expect("it").path()));
        }
        found.insert(path, (bytes, data.mtime(), data.mtime_nsec()));
    }
    found
}

/// Runs `outlive wal`, and checks that it leaves no trace: no byte, no name, no time is another one.
fn wal(rig: &Rig, how: &str) -> (Option<i32>, String, String) {
    let before = contents(&rig.data());
    let told = wal_alone(rig, how);
    assert!(contents(&rig.data()) == before, "outlive wal {how} left a trace");
    told
}

fn wal_alone(rig: &Rig, how: &str) -> (Option<i32>, String, String) {
    let mut command = rig.command();
    let output: Output = command.args(["wal", how]).arg(rig.data()).output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn lines(told: &str) -> Vec<Value> {
    told.lines().map(|line| serde_json::from_str(line).expect("a JSON document")).collect()
}

fn of<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["line"] == kind).collect()
}

/// A data directory with two jobs that have ended, and no server.
fn with_jobs() -> (Rig, [String; 2]) {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let ids = ["true", "exit 3"].map(|script| {
        let id = rig.submit_script(script);
        rig.wait_ended(&id);
        id
    });
    rig.kill();
    (rig, ids)
}

fn segment(rig: &Rig) -> PathBuf {
    rig.data().join("wal/0000000000000001.seg")
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("readable");
    change(&mut bytes);
    fs::write(path, bytes).expect("writable");
}

/// Where in a file a text stands first.
fn find(path: &Path, text: &str) -> usize {
    let bytes = fs::read(path).expect("readable");
    bytes.windows(text.len()).position(|it| it == text.as_bytes()).expect("it is there")
}

#[test]
fn a_whole_directory_is_told_and_left_as_it_is() {
    let (rig, ids) = with_jobs();
    let (code, told, _) = wal(&rig, "--verify");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("0000000000000001.seg: segment, "), "{told}");
    assert!(told.lines().last().is_some_and(|line| line.starts_with("whole: ")), "{told}");
    let (code, told, _) = wal(&rig, "--json");
    assert_eq!(code, Some(0), "{told}");
    let lines = lines(&told);
    let records = of(&lines, "record");
    let verdict = of(&lines, "verdict")[0];
    assert_eq!(verdict["damaged"], false);
    let lsns: Vec<u64> = records.iter().map(|line| line["lsn"].as_u64().expect("lsn")).collect();
    let last = verdict["last_lsn"].as_u64().expect("lsn");
    assert_eq!(lsns, (1..=last).collect::<Vec<_>>());
    for id in ids {
        let entity = format!("job/{id}");
        let accepted = records.iter().find(|line| {
            line["entities"].as_array().expect("list").contains(&Value::from(entity.clone()))
        });
        let accepted = accepted.expect("its acceptance is a record");
        assert_eq!(accepted["events"][0]["event"], "job_accepted", "{accepted}");
        assert!(accepted["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{accepted}");
    }
}

#[test]
fn a_running_server_is_looked_into_and_notices_nothing() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let id = rig.submit_script("true");
    rig.wait_ended(&id);
    for how in ["--verify", "--json"] {
        let (code, told, noted) = wal(&rig, how);
        assert_eq!(code, Some(0), "{told}");
        assert!(
            noted.contains(&format!("a server is running on it (pid {})", rig.pid())),
            "{noted}"
        );
    }
    // Also while it writes: records on their way are never taken for lost ones.
    let ids: Vec<String> = (0..30)
        .map(|n| {
            let id = rig.submit_script("true");
            if n % 3 == 0 {
                let (code, told, _) = wal_alone(&rig, "--verify");
                assert_eq!(code, Some(0), "{told}");
            }
            id
        })
        .collect();
    for id in ids {
        rig.wait_ended(&id);
    }
}

// Proves I10: named with file, offset and whose it is.
#[test]
fn damage_is_named_with_its_place_and_whose_it_is() {
    let (rig, [id, _]) = with_jobs();
    let path = segment(&rig);
    let at = find(&path, "job_accepted");
    change(&path, |bytes| bytes[at] ^= 1);
    let (code, told, _) = wal(&rig, "--verify");
    assert_eq!(code, Some(127), "{told}");
    let damage = told.lines().find(|line| line.starts_with('!')).expect("named");
    assert!(damage.contains(&format!("{} at byte ", path.display())), "{damage}");
    assert!(damage.contains(&format!("job/{id}")) && damage.contains(" is lost"), "{damage}");
    assert!(told.lines().last().is_some_and(|l| l.starts_with("damaged: 1 place")), "{told}");
    let (code, told, _) = wal(&rig, "--json");
    assert_eq!(code, Some(127));
    let lines = lines(&told);
    let damage = of(&lines, "damage");
    let [damage] = damage.as_slice() else { panic!("{told}") };
    let entities = damage["entities"].as_array().expect("a list");
    assert!(entities.contains(&Value::from(format!("job/{id}"))), "{damage}");
    let offset = damage["offset"].as_u64().expect("a place");
    assert!(offset < at as u64 && at as u64 - offset < 1024, "{damage}");
    let lost = damage["first_lsn"].as_u64().expect("an lsn");
    let there = of(&lines, "record").iter().any(|line| line["lsn"] == lost);
    assert!(!there, "what cannot be read is not made up");
}

#[test]
fn a_torn_group_is_no_damage() {
    let (rig, _) = with_jobs();
    let path = segment(&rig);
    let (_, told, _) = wal(&rig, "--json");
    let all = lines(&told);
    let used = of(&all, "segment")[0]["used_bytes"].as_u64().expect("bytes");
    let used = usize::try_from(used).expect("small");
    change(&path, |bytes| bytes[used..used + 300].fill(0x55));
    let (code, told, _) = wal(&rig, "--verify");
    assert_eq!(code, Some(0), "{told}");
    let torn = told.lines().find(|line| line.contains("a torn last group of ")).expect("told");
    assert!(torn.ends_with("the next start cuts it"), "{torn}");
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
fn a_newer_version_is_refused_by_name_and_untouched() {
    let (mut rig, _) = with_jobs();
    let path = segment(&rig);
    let old = fs::read(&path).expect("readable");
    change(&path, |bytes| {
        bytes[8] = 2;
        let check = crc32(&bytes[..508]).to_le_bytes();
        bytes[508..512].copy_from_slice(&check);
    });
    for how in ["--verify", "--json"] {
        let (code, _, error) = wal(&rig, how);
        assert_eq!(code, Some(121), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("format version 2 is newer than 1"), "{error}");
    }
    // Nor does a server touch it: it says so and ends.
    let untouched = fs::read(&path).expect("readable");
    rig.spawn().expect("it listens");
    assert!(!rig.wait_dead().success());
    assert!(rig.complaints().contains("format version 2 is newer"), "{}", rig.complaints());
    assert_eq!(fs::read(&path).expect("readable"), untouched);
    fs::write(&path, old).expect("writable");
    let instance = rig.data().join("instance.json");
    let text = fs::read_to_string(&instance).expect("readable");
    let newer = text.replace("\"format_version\": 1", "\"format_version\": 2");
    assert_ne!(newer, text);
    fs::write(&instance, newer).expect("writable");
    let (code, _, error) = wal(&rig, "--verify");
    assert_eq!(code, Some(121), "{error}");
    assert!(error.contains("made by a newer version (format 2"), "{error}");
}

#[test]
fn a_directory_whose_name_is_damaged_is_looked_into_all_the_same() {
    let (rig, _) = with_jobs();
    let instance = rig.data().join("instance.json");
    let good = fs::read(&instance).expect("readable");
    fs::write(&instance, "{").expect("writable");
    let (code, told, _) = wal(&rig, "--verify");
    assert_eq!(code, Some(127), "{told}");
    assert!(told.contains("instance.json cannot be read"), "{told}");
    assert!(told.lines().last().is_some_and(|l| l.starts_with("damaged: 1 place")), "{told}");
    let (code, told, _) = wal(&rig, "--json");
    assert_eq!(code, Some(127));
    assert!(of(&lines(&told), "record").len() > 5, "{told}");
    fs::write(&instance, good).expect("writable");
}

#[test]
fn where_no_data_directory_is_nothing_is_made() {
    let rig = Rig::new();
    let mut command = rig.command();
    let output = command.args(["wal", "--verify"]).arg(rig.path("none")).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("none/instance.json") && error.contains("No such file"), "{error}");
    assert!(!rig.path("none").exists());
}
