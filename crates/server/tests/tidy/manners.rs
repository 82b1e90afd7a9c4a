//! Rules on files as such: headers, names, loose ends, what must not stand in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::tree::{File, Repository, rust, word_positions};

/// How many crash points the product has at least; raised as they come, never lowered.
pub(crate) const CRASH_POINTS_AT_LEAST: usize = 57;

/// Every file says first what it is for.
pub(crate) fn headers(files: &[File]) -> Vec<String> {
    let without = rust(files).filter(|file| !file.text.starts_with("//! "));
    without
        .map(|file| format!("{}: open with `//!`: purpose, and what is absent", file.path))
        .collect()
}

/// `foo.rs` beside `foo/`, so that a tab in an editor says which module it shows.
pub(crate) fn no_mod_rs(files: &[File]) -> Vec<String> {
    let hidden = files.iter().filter(|file| file.path.ends_with("/mod.rs"));
    hidden.map(|file| format!("{}: name it after its module", file.path)).collect()
}

/// A file that no `mod` names is never compiled, and its tests never run.
pub(crate) fn no_forgotten_files(files: &[File]) -> Vec<String> {
    let krate = |path: &str| path.split('/').take(2).collect::<Vec<_>>().join("/");
    let is_root = |file: &File| {
        let parts: Vec<&str> = file.path.split('/').collect();
        let target = matches!(parts.as_slice(), ["crates", _, "tests" | "examples" | "benches", _]);
        target || matches!(parts.as_slice(), ["crates", _, "src", "lib.rs"] | [.., "main.rs"])
    };
    let mut declared = BTreeSet::new();
    for file in rust(files) {
        let code = file.code();
        for at in word_positions(&code, "mod") {
            let module = code[at + "mod".len()..].split(';').next().unwrap_or_default();
            declared.insert((krate(&file.path), module.trim().to_owned()));
        }
    }
    let mut complaints = Vec::new();
    for file in rust(files).filter(|file| file.path.starts_with("crates/") && !is_root(file)) {
        let module = file.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
        if !declared.contains(&(krate(&file.path), module.to_owned())) {
            complaints.push(format!("{}: no `mod {module};` in its crate", file.path));
        }
    }
    complaints
}

/// No lint is silenced without a reason, no test is switched off, no note to ourselves stays.
pub(crate) fn no_loose_ends(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in rust(files) {
        let code = file.code();
        for (mark, instead) in [
            ("[allow(", "`#[expect(lint, reason = \"…\")]`"),
            (", allow(", "`#[expect(lint, reason = \"…\")]`"),
            ("[ignore", "repair the test or take it out"),
        ] {
            for (at, _) in code.match_indices(mark) {
                complaints.push(format!("{}:{}: {instead}", file.path, file.line_of(at)));
            }
        }
    }
    for file in files {
        let prose = if file.is_rust() { file.comments() } else { file.text.clone() };
        for mark in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")] {
            for at in word_positions(&prose, mark) {
                complaints.push(format!(
                    "{}:{}: do it now, or say what is so",
                    file.path,
                    file.line_of(at)
                ));
            }
        }
    }
    complaints
}

/// No path of the machine it was written on, no host from which packages were fetched.
pub(crate) fn no_machine(files: &[File]) -> Vec<String> {
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/.")];
    let hosts = [
        concat!("index.", "crates.io"),
        concat!("static.", "crates.io"),
        concat!("registry.", "npmjs.org"),
        concat!("files.", "pythonhosted.org"),
        concat!("deb.", "debian.org"),
        concat!("_auth", "Token"),
    ];
    let mut complaints = Vec::new();
    for file in files {
        for place in places {
            // Inside a longer path such a piece may well be ours; at its beginning it is a machine's.
            let starts = |at: &usize| {
                !file.text[..*at].ends_with(|c: char| c.is_alphanumeric() || "}_-.*".contains(c))
            };
            for at in file.text.match_indices(place).map(|(at, _)| at).filter(starts) {
                complaints.push(format!(
                    "{}:{}: a path of one machine",
                    file.path,
                    file.line_of(at)
                ));
            }
        }
        for host in hosts {
            for (at, _) in file.text.match_indices(host) {
                complaints.push(format!("{}:{}: a registry's host", file.path, file.line_of(at)));
            }
        }
        if file.path.contains(".cargo/config") || file.has_extension("npmrc") {
            complaints.push(format!(
                "{}: how packages are fetched is each machine's own affair",
                file.path
            ));
        }
    }
    complaints
}

/// Nothing in a text that a reader cannot see: control characters, marks of direction, spaces without width.
pub(crate) fn only_visible_characters(files: &[File]) -> Vec<String> {
    const TEXTS: &[&str] = &[
        "rs",
        "md",
        "toml",
        "sh",
        "yml",
        "yaml",
        "json",
        "html",
        "css",
        "js",
        "py",
        "lock",
        "gitignore",
    ];
    let invisible = |c: char| match c {
        '\n' | '\t' => false,
        '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}' => true,
        c => c.is_control(),
    };
    let mut complaints = Vec::new();
    for file in files.iter().filter(|f| f.extension().is_none_or(|e| TEXTS.contains(&e))) {
        for (at, c) in file.text.char_indices().filter(|(_, c)| invisible(*c)) {
            let code = u32::from(c);
            complaints.push(format!(
                "{}:{}: U+{code:04X}; write it as an escape",
                file.path,
                file.line_of(at)
            ));
        }
    }
    complaints
}

/// No merge was left half done.
pub(crate) fn no_conflict_markers(files: &[File]) -> Vec<String> {
    // A line of `=` alone underlines a title in some texts; what stands before and after it does not.
    let marks = ["<<<<<<< ", ">>>>>>> "];
    let mut complaints = Vec::new();
    for file in files {
        for (n, line) in (1..).zip(file.text.lines()) {
            if marks.iter().any(|mark| line.starts_with(mark)) {
                complaints.push(format!("{}:{n}: a merge was left half done", file.path));
            }
        }
    }
    complaints
}

/// What begins with `#!` can be run, and what can be run by name begins so.
pub(crate) fn scripts(repository: &Repository) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in &repository.files {
        let script = file.text.starts_with("#!") && !file.is_rust();
        let named = file.has_extension("sh") || ["check", ".ci/run"].contains(&file.path.as_str());
        let mode =
            fs::metadata(repository.root.join(&file.path)).map_or(0, |m| m.permissions().mode());
        if named && !script {
            complaints.push(format!("{}: its first line names no interpreter", file.path));
        }
        if (named || script) && mode & 0o111 != 0o111 {
            complaints.push(format!("{}: chmod +x", file.path));
        }
    }
    complaints
}

/// A crash point is known by its name alone, so no two may share one.
pub(crate) fn crash_points(points: &BTreeMap<String, Vec<String>>, at_least: usize) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, places) in points.iter().filter(|(_, places)| places.len() > 1) {
        complaints.push(format!("crash point {name} stands in {}", places.join(" and ")));
    }
    if points.len() < at_least {
        complaints.push(format!("{} crash points, there were {at_least}", points.len()));
    }
    complaints
}

mod tests {
    use super::*;
    use crate::source::crash_points_in;

    fn in_file(path: &str, text: &str, rule: fn(&[File]) -> Vec<String>) -> usize {
        rule(&[File::new(path, text)]).len()
    }

    #[test]
    fn a_header_is_wanted() {
        assert_eq!(in_file("a.rs", "//! It does.\n", headers), 0);
        assert_eq!(in_file("a.rs", "// It does.\n", headers), 1);
        assert_eq!(in_file("a.py", "", headers), 0);
    }

    #[test]
    fn a_mod_rs_is_refused() {
        assert_eq!(in_file("src/a/mod.rs", "", no_mod_rs), 1);
        assert_eq!(in_file("src/a/nomod.rs", "", no_mod_rs), 0);
    }

    #[test]
    fn a_file_that_nobody_declares_is_forgotten() {
        let root = File::new("crates/a/tests/it/main.rs", "mod b;\n// mod c;\n");
        let part = |name: &str| File::new(&format!("crates/a/tests/it/{name}.rs"), "");
        assert_eq!(no_forgotten_files(&[root.clone(), part("b")]).len(), 0);
        assert_eq!(no_forgotten_files(&[root.clone(), part("c")]).len(), 1);
        let elsewhere = File::new("crates/d/src/b.rs", "");
        assert_eq!(no_forgotten_files(&[root, elsewhere]).len(), 1);
    }

    #[test]
    fn loose_ends_are_found_in_code_but_not_in_texts() {
        assert_eq!(in_file("a.rs", "#[allow(dead_code)]\n", no_loose_ends), 1);
        assert_eq!(in_file("a.rs", "#![allow(dead_code)]\n", no_loose_ends), 1);
        assert_eq!(in_file("a.rs", "#[cfg_attr(unix, allow(dead_code))]\n", no_loose_ends), 1);
        assert_eq!(in_file("a.rs", "#[ignore = \"slow\"]\n", no_loose_ends), 1);
        assert_eq!(
            in_file("a.rs", "#[expect(dead_code)]\nlet a = \"#[ignore]\";\n", no_loose_ends),
            0
        );
        assert_eq!(in_file("a.rs", concat!("// TO", "DO later\n"), no_loose_ends), 1);
        assert_eq!(in_file("a.md", concat!("FIX", "ME\n"), no_loose_ends), 1);
    }

    #[test]
    fn a_path_of_a_machine_is_found_and_ours_are_not() {
        assert_eq!(in_file("a.rs", concat!("\"/wo", "rk/x\""), no_machine), 1);
        assert_eq!(in_file("a.rs", concat!("\"{dir}/wo", "rk/x\""), no_machine), 0);
        assert_eq!(in_file("a.toml", concat!("https://index.", "crates.io/"), no_machine), 1);
        assert_eq!(in_file(".cargo/config.toml", "", no_machine), 1);
    }

    #[test]
    fn an_invisible_character_is_found() {
        assert_eq!(in_file("a.rs", "let a = 'é'; // …\n\t", only_visible_characters), 0);
        for bad in ["\r\n", "\u{1b}", "\u{85}", "\u{202e}", "\u{feff}"] {
            assert_eq!(in_file("a.md", bad, only_visible_characters), 1, "{bad:?}");
        }
    }

    #[test]
    fn a_merge_left_half_done_is_found() {
        let text = "a\n<<<<<<< HEAD\nb\n=======\nc\n>>>>>>> d\n";
        assert_eq!(in_file("a.md", text, no_conflict_markers), 2);
        assert_eq!(in_file("a.md", "Title\n=======\n a << b >> c\n", no_conflict_markers), 0);
    }

    #[test]
    fn a_script_that_cannot_be_run_is_found() {
        let root = std::env::temp_dir().join(format!("outlive-tidy-{}", std::process::id()));
        fs::create_dir_all(&root).expect("a directory");
        fs::write(root.join("a.sh"), "#!/bin/sh\n").expect("a file");
        let repository =
            |text| Repository { root: root.clone(), files: vec![File::new("a.sh", text)] };
        assert_eq!(scripts(&repository("#!/bin/sh\n")).len(), 1);
        fs::set_permissions(root.join("a.sh"), fs::Permissions::from_mode(0o755)).expect("chmod");
        assert_eq!(scripts(&repository("#!/bin/sh\n")).len(), 0);
        assert_eq!(scripts(&repository("echo\n")).len(), 1);
        fs::remove_dir_all(&root).expect("our own directory");
    }

    #[test]
    fn crash_points_are_collected_from_production_code() {
        let source = "fn a() { crash_point(\"wal.a\"); crash_point!(\n  \"wal.b\"); } // crash_point(\"no\")\n\
                      fn crash_point(name: &str) {}\n#[cfg(test)]\nmod tests { fn b() { crash_point(\"no\"); } }\n";
        assert_eq!(crash_points_in(source), ["wal.a", "wal.b"]);
    }

    #[test]
    fn a_crash_point_named_twice_and_one_that_went_away_are_found() {
        let places = |n: usize| vec!["a.rs".to_owned(); n];
        let points = BTreeMap::from([("a".to_owned(), places(1)), ("b".to_owned(), places(2))]);
        assert_eq!(crash_points(&points, 2).len(), 1);
        assert_eq!(crash_points(&points, 3).len(), 2);
    }
}
