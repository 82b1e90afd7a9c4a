//! A life that goes on record: jobs accepted and removed, agents that write and end, workspaces copied, checkpoints and new segments.
//! What is said to a client is told to the record at that moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::json;

use super::device::Device;
use super::image::Record;
use crate::rig::{Rig, git, wait_gone};
use crate::syscalls::library;

/// Jobs that are only accepted; some are removed again.
const HELD: usize = 24;

/// Jobs that run.
const RUNNING: usize = 6;

/// The prompt of a held job: some so long that segments fill.
pub(super) fn prompt(n: usize) -> &'static str {
    // They are asked for at each power cut.
    static ALL: LazyLock<Vec<String>> = LazyLock::new(|| (0..HELD).map(make_prompt).collect());
    ALL.get(n).map_or("", String::as_str)
}

fn make_prompt(n: usize) -> String {
    let len = if n % 4 == 3 { 700 << 10 } else { 40 + n * 97 };
    (0..len).map(|at| char::from(b'a' + small((at * 7 + at / 26 + n) % 26))).collect()
}

fn small(n: usize) -> u8 {
    u8::try_from(n).expect("small")
}

/// What the agent of a running job writes.
pub(super) fn output(n: usize) -> &'static str {
    static ALL: LazyLock<Vec<String>> = LazyLock::new(|| (0..RUNNING).map(make_output).collect());
    ALL.get(n).map_or("", String::as_str)
}

fn make_output(n: usize) -> String {
    let mut text = String::new();
    (1..=lines(n)).for_each(|line| writeln!(text, "{line}").expect("into memory"));
    text
}

fn lines(n: usize) -> usize {
    500 + n * 9000
}

/// The files of the repository, beside what git itself keeps.
fn files() -> impl Iterator<Item = (String, Vec<u8>)> {
    (0..30).map(|n: usize| {
        let len = [0, 1, 511, 512, 5000, 70_000][n % 6];
        let bytes = (0..len).map(|at: usize| small((at * 31 + at / 251 + n) % 255 + 1));
        (format!("dir{}/file{n}", n % 5), bytes.collect())
    })
}

fn make_repo(rig: &Rig) {
    let source = rig.make_repo("source");
    for (name, bytes) in files() {
        let path = source.join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }
    git(&source, &["add", "--all"]);
    git(&source, &["commit", "--quiet", "--message=second"]);
    let body = json!({ "name": "r", "source": source });
    rig.client().post("/api/repos", &body).expect("registered");
    let repo = rig.client().get("/api/repos/r?wait=true").expect("there").json().expect("JSON");
    assert_eq!(repo["phase"], "ready", "{repo}");
}

/// Lives it. `lies`: processes whose syncs of some files do nothing.
pub(super) fn live(device: Device, lies: Option<(&str, &str)>) -> Result<(Record, Tree), String> {
    let library = library();
    let mut rig = Rig::with_data_below(device.place());
    rig.set("OUTLIVE_CHECKPOINT_RECORDS", "12");
    if let Some((lies, about)) = lies {
        rig.set("LD_PRELOAD", library.1.display().to_string());
        rig.set("FI_LIES", lies);
        rig.set("FI_ABOUT", about);
    }
    rig.start();
    make_repo(&rig);
    device.tell("ready");
    let mut running = Vec::new();
    for n in 0..HELD {
        if n % (HELD / RUNNING) == 0 {
            running.push(run(&rig, &device, running.len()));
        }
        accept(&rig, &device, n);
    }
    for id in &running {
        let ended = rig.wait_ended(id);
        device.tell(&format!("ended {id}"));
        assert_eq!(ended["outcome"]["kind"], "completed", "{ended:#}");
    }
    let keepers: Vec<u32> = running.iter().map(|id| rig.pids(id, 1).1).collect();
    keepers.into_iter().for_each(wait_gone);
    rig.kill();
    let tree = read_tree(&rig.path("source"));
    assert!(tree.len() > 50, "{tree:?}");
    drop(rig);
    Ok((device.record()?, tree))
}

fn accept(rig: &Rig, device: &Device, n: usize) {
    let body = json!({ "repo": "r", "engine": "demo", "prompt": prompt(n), "hold": true,
        "title": format!("held {n}") });
    let id = rig.submit(&body);
    device.tell(&format!("accepted {id} held {n}"));
    if n % 5 == 4 {
        device.tell(&format!("removing {id}"));
        rig.client().delete(&format!("/api/jobs/{id}")).expect("removed");
        device.tell(&format!("removed {id}"));
    }
}

fn run(rig: &Rig, device: &Device, n: usize) -> String {
    let mut body = crate::rig::script_job(&format!("seq 1 {}", lines(n)));
    body["title"] = json!(format!("running {n}"));
    let id = rig.submit(&body);
    device.tell(&format!("accepted {id} running {n}"));
    id
}

/// The files that a repository and its copies have in common, by their paths in it.
pub(super) type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Reads the work tree and git's objects. What else git keeps, a copy has in its own way.
pub(super) fn read_tree(root: &Path) -> Tree {
    let (mut tree, mut dirs) = (Tree::new(), vec![PathBuf::new()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir)).into_iter().flatten().flatten() {
            let path = dir.join(entry.file_name());
            if path.starts_with(".git") && !path.starts_with(".git/objects") {
                if path == Path::new(".git") {
                    dirs.push(path.join("objects"));
                }
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(path);
            } else {
                tree.insert(path, fs::read(entry.path()).unwrap_or_default());
            }
        }
    }
    tree
}

/// What is wrong with a copy.
pub(super) fn compare(root: &Path, tree: &Tree) -> Vec<String> {
    let found = read_tree(root);
    let wrong = tree.iter().filter(|(path, bytes)| found.get(*path) != Some(bytes));
    let told = |(path, bytes): (&PathBuf, &Vec<u8>)| {
        let found = found.get(path).map(Vec::len);
        format!("{}: {found:?} bytes are there of {}, or others", path.display(), bytes.len())
    };
    wrong.map(told).collect()
}
