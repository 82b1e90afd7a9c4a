//! Rules that keep the documents true: the code map, the invariants, the formats.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use crate::source::unit_tests;
use crate::tree::{File, find, functions, rust};

/// Invariants that no test cites yet. It may only shrink: one that is cited has to go from here.
pub(crate) const NOT_YET_PROVEN: &[&str] = &[];

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const FORMATS: &str = "docs/formats.md";

/// The files that decide which bytes are written.
const CODECS: &[&str] = &[
    "crates/core/src/record.rs",
    "crates/core/src/file_header.rs",
    "crates/core/src/checkpoint.rs",
    "crates/core/src/spec.rs",
];

/// The code map names every source file once, with a word on it, and none that is not there.
pub(crate) fn code_map(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut named = BTreeSet::new();
    for (path, words) in rows(&section(files, "Code map")) {
        if find(files, &path).is_none() {
            complaints
                .push(format!("{ARCHITECTURE}: the code map names {path}, which is not there"));
        }
        if words.is_empty() {
            complaints.push(format!("{ARCHITECTURE}: the code map says nothing about {path}"));
        }
        if !named.insert(path.clone()) {
            complaints.push(format!("{ARCHITECTURE}: the code map names {path} twice"));
        }
    }
    for file in files.iter().filter(|file| is_mapped(file) && !named.contains(&file.path)) {
        let words = first_sentence(&file.text);
        complaints
            .push(format!("{ARCHITECTURE}: the code map lacks | `{}` | {words} |", file.path));
    }
    complaints
}

/// All sources but tests: those stand beside what they test.
fn is_mapped(file: &File) -> bool {
    let parts: Vec<&str> = file.path.split('/').collect();
    matches!(parts.as_slice(), ["crates", _, "src", ..]) && !file.is_test()
}

/// What a file's header says first.
fn first_sentence(source: &str) -> String {
    let header = source.lines().map_while(|line| line.strip_prefix("//!"));
    let paragraph: Vec<&str> = header.map(str::trim).take_while(|line| !line.is_empty()).collect();
    let paragraph = paragraph.join(" ");
    let end = paragraph.find(". ").map_or(paragraph.len(), |at| at + 1);
    paragraph[..end].to_owned()
}

/// Paths and words of a table's rows.
fn rows(table: &str) -> Vec<(String, String)> {
    let row = |line: &str| {
        let (path, rest) = line.trim().strip_prefix("| `")?.split_once('`')?;
        let words = rest.trim_start().strip_prefix('|')?.trim_end_matches('|').trim();
        Some((path.to_owned(), words.to_owned()))
    };
    table.lines().filter_map(row).collect()
}

/// What stands under a heading of the second level.
fn section(files: &[File], heading: &str) -> String {
    let text = find(files, ARCHITECTURE).map(|file| file.text.as_str()).unwrap_or_default();
    let mut inside = false;
    let wanted = |line: &&str| {
        if let Some(title) = line.strip_prefix("## ") {
            inside = title.trim() == heading;
        }
        inside
    };
    text.lines().filter(wanted).collect::<Vec<_>>().join("\n")
}

/// Every invariant of ARCHITECTURE.md is cited by a test, save those that are known not to be.
pub(crate) fn invariants(files: &[File], not_yet: &[&str]) -> Vec<String> {
    let stated: BTreeSet<String> = stated(&section(files, "Invariants")).into_iter().collect();
    let proofs = proofs(files);
    let mut complaints = Vec::new();
    if stated.is_empty() {
        complaints.push(format!("{ARCHITECTURE}: it states no invariant (`- **I1 …`)"));
    }
    for invariant in &stated {
        let proven = proofs.contains_key(invariant);
        if proven && not_yet.contains(&invariant.as_str()) {
            complaints.push(format!("{invariant} is proven: take it out of NOT_YET_PROVEN"));
        } else if !proven && !not_yet.contains(&invariant.as_str()) {
            complaints.push(format!("{invariant}: no test says `Proves {invariant}.`"));
        }
    }
    let elsewhere = proofs.keys().map(String::as_str).chain(not_yet.iter().copied());
    for invariant in elsewhere.filter(|name| !stated.contains(*name)) {
        complaints.push(format!("{invariant}: {ARCHITECTURE} does not state it"));
    }
    complaints
}

/// The invariants that a list states: `- **I7 …`.
fn stated(section: &str) -> Vec<String> {
    let item = |line: &str| {
        let rest = line.trim_start().strip_prefix("- **")?;
        Some(cited(rest.split_whitespace().next()?).first()?.clone())
    };
    section.lines().filter_map(item).collect()
}

/// Which tests cite which invariant. A comment belongs to the function around it, else to the next one.
pub(crate) fn proofs(files: &[File]) -> BTreeMap<String, Vec<String>> {
    let mut proofs = BTreeMap::<String, Vec<String>>::new();
    for file in rust(files) {
        let (comments, functions) = (file.comments(), functions(&file.code()));
        let tests = unit_tests(&file.text);
        for (at, mark) in comments.match_indices("Proves ") {
            if !file.is_test() && !tests.iter().any(|span| span.contains(&at)) {
                continue;
            }
            let around =
                functions.iter().filter(|f| f.span.contains(&at)).min_by_key(|f| f.span.len());
            let next = || functions.iter().find(|f| f.span.start > at);
            let name = around.or_else(next).map_or("?", |f| f.name.as_str());
            let line = comments[at + mark.len()..].lines().next().unwrap_or_default();
            for invariant in cited(line.split('.').next().unwrap_or_default()) {
                proofs.entry(invariant).or_default().push(format!("{}::{name}", file.path));
            }
        }
    }
    proofs
}

/// The invariants in a text like `I1, I3 and I12`.
fn cited(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    let number = |word: &&str| word.strip_prefix('I').is_some_and(|n| n.parse::<u32>().is_ok());
    words.filter(number).map(str::to_owned).collect()
}

/// The hash that docs/formats.md carries is that of the codecs; once the document exists.
pub(crate) fn formats(files: &[File]) -> Vec<String> {
    let Some(document) = find(files, FORMATS) else { return Vec::new() };
    let carried =
        document.text.split("<!-- codec-hash: ").nth(1).and_then(|rest| rest.split(" -->").next());
    let actual = codec_hash(files);
    if carried == Some(&actual) {
        return Vec::new();
    }
    vec![format!(
        "{FORMATS}: a codec has changed. Read {FORMATS} again, make it true, then write <!-- codec-hash: {actual} -->"
    )]
}

/// A hash of the codecs' production code; comments and layout do not count.
fn codec_hash(files: &[File]) -> String {
    let mut hash = Sha256::new();
    for file in CODECS.iter().filter_map(|path| find(files, path)) {
        let code = crate::source::without_unit_tests(&file.text);
        let code =
            crate::source::keep(&code, &[crate::source::Part::Code, crate::source::Part::Text]);
        hash.update(code.split_whitespace().collect::<String>());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let first = digest.first_chunk::<8>().expect("a SHA-256 has 32 bytes");
    format!("{:016x}", u64::from_be_bytes(*first))
}

mod tests {
    use super::*;

    fn architecture(text: &str) -> File {
        File::new(ARCHITECTURE, text)
    }

    #[test]
    fn the_code_map_must_name_what_is_there_and_nothing_else() {
        let source = File::new("crates/a/src/b.rs", "//! It is\n//! b. It is not c.\n");
        let map = |rows: &str| {
            code_map(&[
                source.clone(),
                architecture(&format!("## Code map\n{rows}\n## More\n| `c` | d |\n")),
            ])
        };
        assert_eq!(map("| `crates/a/src/b.rs` | B. |"), [""; 0]);
        assert_eq!(
            map(""),
            ["ARCHITECTURE.md: the code map lacks | `crates/a/src/b.rs` | It is b. |"]
        );
        assert_eq!(map("| `crates/a/src/b.rs` | |").len(), 1);
        assert_eq!(map("| `crates/a/src/b.rs` | B. |\n| `crates/a/src/c.rs` | C. |").len(), 1);
        assert_eq!(map("| `crates/a/src/b.rs` | B. |\n| `crates/a/src/b.rs` | B. |").len(), 1);
    }

    #[test]
    fn an_invariant_needs_a_citation_in_a_test() {
        let stated = architecture("## Invariants\n- **I1 One.** Text on I2.\n- **I2 Two.**\n");
        let check = |path: &str, code: &str, not_yet: &[&str]| {
            invariants(&[stated.clone(), File::new(path, code)], not_yet).len()
        };
        assert_eq!(check("tests/a.rs", "// Proves I1 and I2.\nfn a() {}", &[]), 0);
        assert_eq!(check("tests/a.rs", "// Proves I1. I2 is another.\nfn a() {}", &[]), 1);
        assert_eq!(check("src/a.rs", "// Proves I1, I2.\nfn a() {}", &[]), 2);
        assert_eq!(
            check("src/a.rs", "#[cfg(test)]\nmod t { // Proves I1, I2.\nfn a() {} }", &[]),
            0
        );
        assert_eq!(check("tests/a.rs", "const A: &str = \"Proves I1, I2.\";", &[]), 2);
    }

    #[test]
    fn the_list_of_the_unproven_can_only_shrink() {
        let files = [
            architecture("## Invariants\n- **I1 One.**\n"),
            File::new("tests/a.rs", "// Proves I1.\nfn a() {}"),
        ];
        assert_eq!(invariants(&files, &[]).len(), 0);
        assert_eq!(invariants(&files, &["I1"]).len(), 1);
        assert_eq!(invariants(&files, &["I2"]).len(), 1);
        assert_eq!(invariants(&files[..1], &["I1"]).len(), 0);
    }

    #[test]
    fn a_citation_belongs_to_the_function_around_it_or_after_it() {
        let file = File::new(
            "tests/a.rs",
            "// Proves I1.\n#[test]\nfn a() {\n // Proves I2.\n}\nfn b() {}\n",
        );
        let proofs = proofs(&[file]);
        assert_eq!(proofs["I1"], ["tests/a.rs::a"]);
        assert_eq!(proofs["I2"], ["tests/a.rs::a"]);
    }

    #[test]
    fn a_changed_codec_makes_the_formats_stale() {
        let files = |code: &str, hash: &str| {
            [
                File::new(CODECS[0], code),
                File::new(FORMATS, &format!("<!-- codec-hash: {hash} -->\n")),
            ]
        };
        let hash = codec_hash(&files("fn a() {}", ""));
        assert_eq!(formats(&files("fn a() {}", &hash)), [""; 0]);
        assert_eq!(formats(&files("// Why.\nfn a() {\n}\n", &hash)), [""; 0]);
        assert_eq!(formats(&files("fn b() {}", &hash)).len(), 1);
        assert_eq!(formats(&files("fn b() {}", &hash)[..1]), [""; 0]);
    }
}
