//! Rules on who may know whom: crates by their manifests, rooms of the server by the paths in their code.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::{File, find, rust, word_positions};

/// All that the core may depend on: a dependency could bring it a clock or a disk.
const CORE_DEPENDENCIES: &[&str] = &["crc32fast", "rpds", "serde", "serde_json", "thiserror"];

/// What must not be in a supervisor, not even through somebody else: it has to be small and must not die of others' bugs.
const NOT_IN_A_SUPERVISOR: &[&str] = &["axum", "hyper", "mio", "rustls", "tokio", "ureq"];

/// The one file with unsafe code.
const UNSAFE_FILE: &str = "crates/supervisor/src/sys.rs";

/// The three rooms of the server.
const ROOMS: &[&str] = &["face", "truth", "world"];

/// The modules that wire the rooms together: they see all and are seen by none.
const WIRING: &[&str] = &["demo", "fuzzed", "lib", "main", "serve", "startup"];

const SERVER: &str = "crates/server/src/";

/// I4: no std, no foreign crate that was not looked at.
pub(crate) fn core(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in rust(files).filter(|file| file.path.starts_with("crates/core/src/")) {
        let code = file.production_code();
        // Planted bugs are asked for by the environment; that they are never there otherwise is a rule of its own.
        let planted = file.path == crate::planted::SWITCH;
        if !planted && !word_positions(&code, "std").is_empty() {
            complaints.push(format!("{}: the core has no std", file.path));
        }
        for attribute in ["#![no_std]", "#![forbid(unsafe_code)]"] {
            if file.path.ends_with("/lib.rs") && !code.contains(attribute) {
                complaints.push(format!("{}: {attribute} is missing", file.path));
            }
        }
    }
    let manifest = manifest(files, "crates/core/Cargo.toml");
    let found: BTreeSet<&str> = keys(&manifest, "dependencies").collect();
    let closed: BTreeSet<&str> = CORE_DEPENDENCIES.iter().copied().collect();
    for name in found.symmetric_difference(&closed) {
        complaints.push(format!(
            "crates/core/Cargo.toml: its dependencies are a closed list; {name} breaks it"
        ));
    }
    for table in ["build-dependencies", "target"] {
        if manifest.contains_key(table) {
            complaints.push(format!("crates/core/Cargo.toml: no [{table}]"));
        }
    }
    complaints
}

/// No async runtime, TLS or HTTP among all that a supervisor is made of.
pub(crate) fn supervisor(files: &[File]) -> Vec<String> {
    let lock = manifest(files, "Cargo.lock");
    let packages: BTreeMap<&str, Vec<&str>> = array(&lock, "package")
        .filter_map(|package| Some((package.get("name")?.as_str()?, dependencies_in_lock(package))))
        .collect();
    let mut seen = BTreeSet::new();
    let mut open = vec!["outlive-supervisor"];
    while let Some(name) = open.pop() {
        if seen.insert(name) {
            open.extend(packages.get(name).into_iter().flatten());
        }
    }
    let found = NOT_IN_A_SUPERVISOR.iter().filter(|name| seen.contains(**name));
    found.map(|name| format!("Cargo.lock: the supervisor has got {name}")).collect()
}

fn dependencies_in_lock(package: &toml::Value) -> Vec<&str> {
    let listed = package.get("dependencies").and_then(toml::Value::as_array);
    // A name with two versions is written `name version`.
    let name = |value| toml::Value::as_str(value)?.split(' ').next();
    listed.into_iter().flatten().filter_map(name).collect()
}

/// Unsafe code stands in one file, and the server cannot have any.
pub(crate) fn unsafe_code(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in rust(files).filter(|file| file.path != UNSAFE_FILE) {
        for at in word_positions(&file.code(), "unsafe") {
            complaints.push(format!(
                "{}:{}: unsafe code belongs into {UNSAFE_FILE}",
                file.path,
                file.line_of(at)
            ));
        }
    }
    for root in ["lib.rs", "main.rs"].map(|name| format!("{SERVER}{name}")) {
        let code = find(files, &root).map(File::code).unwrap_or_default();
        // A root without anything in it has nothing to forbid.
        let empty = ["", "fn main() {}"].contains(&code.trim());
        if !empty && !code.contains("#![forbid(unsafe_code)]") {
            complaints.push(format!("{root}: #![forbid(unsafe_code)] is missing"));
        }
    }
    complaints
}

/// Every crate takes the workspace's lints, and no second clippy.toml hides the first.
pub(crate) fn lints(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.path.starts_with("crates/") && file.path.ends_with("/Cargo.toml"))
    {
        let inherited =
            manifest(files, &file.path).get("lints").and_then(|l| l.get("workspace")?.as_bool());
        if inherited != Some(true) {
            complaints.push(format!("{}: [lints] workspace = true", file.path));
        }
    }
    for file in
        files.iter().filter(|file| file.path.ends_with("clippy.toml") && file.path != "clippy.toml")
    {
        complaints.push(format!(
            "{}: clippy does not merge; this one would hide the one at the root",
            file.path
        ));
    }
    complaints
}

/// The arrows between the rooms: face to truth, world to truth, and nothing else.
pub(crate) fn rooms(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in rust(files) {
        let Some(module) = file.path.strip_prefix(SERVER) else { continue };
        let module = module.trim_end_matches(".rs");
        let room = module.split('/').next().unwrap_or(module);
        for seen in modules_named(&file.code()) {
            if !may_see(room, &seen) {
                complaints.push(format!("{}: {room} must not know {seen}", file.path));
            }
        }
        let depth = module.split('/').count();
        if !WIRING.contains(&room) && longest_super_chain(&file.production_code()) >= depth {
            complaints.push(format!("{}: `super` leaves its room; write `crate::…`", file.path));
        }
        if room == "lib" && file.code().contains("pub use") {
            complaints.push(format!("{}: a re-export hides who knows whom", file.path));
        }
    }
    complaints
}

fn may_see(from: &str, to: &str) -> bool {
    let closed = ROOMS.contains(&to) || WIRING.contains(&to) || to == "*" || to == "self";
    WIRING.contains(&from)
        || from == to
        || !closed
        || (["face", "world"].contains(&from) && to == "truth")
}

/// The modules that follow `crate::` in code, groups in braces included.
fn modules_named(code: &str) -> BTreeSet<String> {
    let starts = word_positions(code, "crate").into_iter();
    let paths = starts.filter_map(|at| code[at + "crate".len()..].trim_start().strip_prefix("::"));
    paths.flat_map(|path| heads(path.trim_start())).collect()
}

/// The first names of a use tree: `a::b` gives a, `{a, b::{c, d}}` gives a and b.
fn heads(tree: &str) -> Vec<String> {
    let name = |text: &str| {
        let text = text.trim_start();
        let end =
            text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(text.len());
        text[..end].to_owned()
    };
    let Some(group) = tree.strip_prefix('{') else { return vec![name(tree)] };
    let mut found = vec![name(group)];
    let mut depth = 1_usize;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => found.push(name(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn longest_super_chain(code: &str) -> usize {
    let compact: String = code
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace(" ::", "::")
        .replace(":: ", "::");
    let chains = compact.match_indices("super::").map(|(at, _)| {
        let mut rest = &compact[at..];
        let mut length = 0;
        while let Some(after) = rest.strip_prefix("super::") {
            length += 1;
            rest = after;
        }
        length
    });
    chains.max().unwrap_or(0)
}

fn manifest(files: &[File], path: &str) -> toml::Table {
    let text = find(files, path).map(|file| file.text.as_str()).unwrap_or_default();
    text.parse().unwrap_or_default()
}

fn keys<'a>(manifest: &'a toml::Table, table: &str) -> impl Iterator<Item = &'a str> {
    manifest
        .get(table)
        .and_then(toml::Value::as_table)
        .into_iter()
        .flatten()
        .map(|(key, _)| key.as_str())
}

fn array<'a>(manifest: &'a toml::Table, name: &str) -> impl Iterator<Item = &'a toml::Value> {
    manifest.get(name).and_then(toml::Value::as_array).into_iter().flatten()
}

mod tests {
    use super::*;

    const CORE_MANIFEST: &str = "[dependencies]\nserde.workspace = true\nserde_json = \"1\"\nthiserror = \"2\"\ncrc32fast = \"1\"\nrpds = \"1\"\n";

    fn core_of(code: &str, more: &str) -> usize {
        let lib = File::new(
            "crates/core/src/lib.rs",
            &format!("#![no_std]\n#![forbid(unsafe_code)]\n{code}"),
        );
        core(&[lib, File::new("crates/core/Cargo.toml", &format!("{CORE_MANIFEST}{more}"))]).len()
    }

    #[test]
    fn a_core_with_std_or_a_new_dependency_is_refused() {
        assert_eq!(
            core_of("#[cfg(test)]\nextern crate std;\n", "[dev-dependencies]\nproptest = \"1\"\n"),
            0
        );
        assert_eq!(core_of("extern crate std;\n", ""), 1);
        assert_eq!(core_of("", "tokio = \"1\"\n"), 1);
        assert_eq!(core_of("", "[build-dependencies]\ncc = \"1\"\n"), 1);
        assert_eq!(
            core(&[File::new("crates/core/src/lib.rs", "")]).len(),
            2 + CORE_DEPENDENCIES.len()
        );
    }

    #[test]
    fn a_runtime_in_the_supervisor_is_found_behind_others() {
        let lock = |inner: &str| {
            let text = format!(
                "[[package]]\nname = \"outlive-supervisor\"\ndependencies = [\"a 1.0.0\"]\n\
                 [[package]]\nname = \"a\"\ndependencies = [\"{inner}\"]\n[[package]]\nname = \"tokio\"\n"
            );
            supervisor(&[File::new("Cargo.lock", &text)]).len()
        };
        assert_eq!(lock("libc"), 0);
        assert_eq!(lock("tokio"), 1);
    }

    #[test]
    fn unsafe_code_is_found_wherever_it_does_not_belong() {
        let found = |path: &str, code: &str| unsafe_code(&[File::new(path, code)]).len();
        assert_eq!(found(UNSAFE_FILE, "unsafe { f() }"), 0);
        assert_eq!(found("crates/supervisor/src/keeper.rs", "unsafe { f() }"), 1);
        assert_eq!(found("crates/supervisor/src/keeper.rs", "// unsafe\n#![deny(unsafe_code)]"), 0);
        assert_eq!(found("crates/server/src/lib.rs", "//! Empty.\n"), 0);
        assert_eq!(found("crates/server/src/lib.rs", "pub mod truth;\n"), 1);
        assert_eq!(
            found("crates/server/src/main.rs", "#![forbid(unsafe_code)]\nfn main() { run() }\n"),
            0
        );
    }

    #[test]
    fn a_crate_without_lints_and_a_second_clippy_toml_are_found() {
        let good = File::new("crates/a/Cargo.toml", "[lints]\nworkspace = true\n");
        let bad = File::new("crates/a/Cargo.toml", "[lints]\n");
        assert_eq!(lints(&[good, File::new("clippy.toml", "")]).len(), 0);
        assert_eq!(lints(&[bad, File::new("crates/a/clippy.toml", "")]).len(), 2);
    }

    fn edges(path: &str, code: &str) -> usize {
        rooms(&[File::new(&format!("{SERVER}{path}"), code)]).len()
    }

    #[test]
    fn face_and_world_may_know_truth_and_not_each_other() {
        assert_eq!(edges("face/http.rs", "use crate::truth::driver;"), 0);
        assert_eq!(edges("world/fleet.rs", "use crate::{truth::{driver, view}, clock};"), 0);
        assert_eq!(edges("face/http.rs", "use crate::{truth::view, world::fleet};"), 1);
        assert_eq!(edges("world/fleet.rs", "fn f() { crate::face::http::g() }"), 1);
        assert_eq!(edges("truth/wal/writer.rs", "use crate::world::disk;"), 1);
        assert_eq!(edges("truth.rs", "use crate::startup;"), 1);
        assert_eq!(edges("face/cli.rs", "use crate::*;"), 1);
        assert_eq!(edges("clock.rs", "use crate::truth::disk;"), 1);
        assert_eq!(edges("serve.rs", "use crate::{face, truth, world};"), 0);
    }

    #[test]
    fn a_super_that_leaves_the_room_is_found() {
        assert_eq!(edges("truth/wal/writer.rs", "use super::super::disk;"), 0);
        assert_eq!(edges("truth/wal/writer.rs", "use super::super::super::face;"), 1);
        assert_eq!(edges("truth.rs", "#[cfg(test)]\nmod tests { use super::*; }"), 0);
        assert_eq!(edges("lib.rs", "pub use face::http;"), 1);
    }
}
