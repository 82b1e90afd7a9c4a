//! Reading our own sources: where they are, what in them is code, and which crash points they name.
//!
//! Shared by the test targets that look at the code itself; each brings it in by `#[path]`, so every function here must be
//! of use to all of them. No grammar: comments, texts and braces are all that is told apart.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// Every crash point that the product names, with the places that name it. The crash sweep kills at each of them.
pub(crate) fn crash_points() -> BTreeMap<String, Vec<String>> {
    let mut points = BTreeMap::<String, Vec<String>>::new();
    for name in ["core", "supervisor", "server"] {
        for path in files_below(&root().join("crates").join(name).join("src")) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let place = path.strip_prefix(root()).expect("below the root").display().to_string();
            if is_test(&place) {
                continue;
            }
            for point in crash_points_in(&text) {
                points.entry(point).or_default().push(place.clone());
            }
        }
    }
    points
}

/// The names in `crash_point("name")` and `crash_point!("name")` outside comments and unit tests.
pub(crate) fn crash_points_in(source: &str) -> Vec<String> {
    let code = keep(&without_unit_tests(source), &[Part::Code, Part::Text]);
    let calls = code.split("crash_point").skip(1);
    calls
        .filter_map(|rest| {
            let rest = rest.strip_prefix('!').unwrap_or(rest).strip_prefix('(')?;
            let name = rest.trim_start().strip_prefix('"')?;
            Some(name.split('"').next()?.to_owned())
        })
        .collect()
}

/// A file below a `tests` directory, or the `tests.rs` of a module: never part of the product.
pub(crate) fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs")
}

/// Every file below a directory, sorted; build directories (they carry a cache tag) and git's own left out.
pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let ours = !["target", ".git"].iter().any(|name| path.ends_with(name))
                && !path.join("CACHEDIR.TAG").exists();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && ours => open.push(path),
                Ok(kind) if kind.is_file() && ours => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

/// What a stretch of source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Neither of the others; quotes and comment marks do not count.
    Code,
    /// The inside of a string or character, its quotes included.
    Text,
    /// A comment, its marks included.
    Comment,
}

/// The source with everything but the wanted parts turned into blanks; every byte stays in its place.
pub(crate) fn keep(source: &str, wanted: &[Part]) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut rest = source;
    let mut before = ' ';
    while !rest.is_empty() {
        let (part, length) = next_part(rest, before);
        let (piece, after) = rest.split_at(length);
        if wanted.contains(&part) {
            kept.push_str(piece);
        } else {
            kept.extend(piece.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }));
        }
        before = piece.chars().next_back().unwrap_or(' ');
        rest = after;
    }
    kept
}

/// The part that `rest` begins with, and its length in bytes; code comes a character at a time.
fn next_part(rest: &str, before: char) -> (Part, usize) {
    let all = rest.len();
    if rest.starts_with("//") {
        return (Part::Comment, rest.find('\n').unwrap_or(all));
    }
    if rest.starts_with("/*") {
        return (Part::Comment, block_comment(rest));
    }
    let in_a_word = before.is_alphanumeric() || before == '_';
    let prefix =
        if in_a_word { 0 } else { rest.len() - rest.trim_start_matches(['b', 'c', 'r']).len() };
    let (head, tail) = rest.split_at(prefix);
    let hashes = tail.len() - tail.trim_start_matches('#').len();
    if head.ends_with('r') && tail[hashes..].starts_with('"') {
        let close = format!("\"{}", "#".repeat(hashes));
        let inside = prefix + hashes + 1;
        return (
            Part::Text,
            rest[inside..].find(&close).map_or(all, |at| inside + at + close.len()),
        );
    }
    if tail.starts_with('"') {
        return (Part::Text, prefix + quoted(tail, '"'));
    }
    if tail.starts_with('\'') && is_character(tail) {
        return (Part::Text, prefix + quoted(tail, '\''));
    }
    (Part::Code, rest.chars().next().map_or(all, char::len_utf8))
}

/// Tells `'a'` and `'\n'` from a lifetime.
fn is_character(rest: &str) -> bool {
    let mut chars = rest.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

/// Length of a quoted text, both quotes included.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Length of a block comment; they nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The source without what stands under `#[cfg(test)]`.
pub(crate) fn without_unit_tests(source: &str) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut from = 0;
    for test in unit_tests(source) {
        kept.push_str(&source[from..test.start]);
        from = test.end;
    }
    kept + &source[from..]
}

/// Where the items under `#[cfg(test)]` stand, in bytes.
pub(crate) fn unit_tests(source: &str) -> Vec<Range<usize>> {
    let code = keep(source, &[Part::Code]);
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find("#[cfg(test)]") {
        let start = from + at;
        from = start + item_length(&code[start..]);
        found.push(start..from);
    }
    found
}

/// Length of an item in bytes: to its closing brace, or to its semicolon if that comes first. Wants code alone.
pub(crate) fn item_length(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}
