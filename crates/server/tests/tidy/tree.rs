//! The files of the repository, as the rules see them.

use std::fs;
use std::path::PathBuf;

use crate::source::{self, Part};

/// The whole repository, read.
#[derive(Debug)]
pub(crate) struct Repository {
    /// Where it is.
    pub(crate) root: PathBuf,
    /// Every file that is text.
    pub(crate) files: Vec<File>,
}

impl Repository {
    /// Reads it; what is not UTF-8 is left out.
    pub(crate) fn read() -> Self {
        let root = source::root();
        let read = |path: PathBuf| {
            let name = path.strip_prefix(&root).ok()?.to_str()?.to_owned();
            Some(File { path: name, text: fs::read_to_string(&path).ok()? })
        };
        let files = source::files_below(&root).into_iter().filter_map(read).collect();
        Self { root, files }
    }
}

/// One file.
#[derive(Debug, Clone)]
pub(crate) struct File {
    /// From the root of the repository, with slashes.
    pub(crate) path: String,
    /// What stands in it.
    pub(crate) text: String,
}

impl File {
    /// A made-up file.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    /// Its name ends so.
    pub(crate) fn has_extension(&self, wanted: &str) -> bool {
        self.extension() == Some(wanted)
    }

    /// What follows the last dot of its name.
    pub(crate) fn extension(&self) -> Option<&str> {
        let name = self.path.rsplit('/').next()?;
        Some(name.rsplit_once('.')?.1)
    }

    /// It is Rust.
    pub(crate) fn is_rust(&self) -> bool {
        self.has_extension("rs")
    }

    /// It belongs to a test target, or is a unit test in a file of its own (`foo/tests.rs`).
    pub(crate) fn is_test(&self) -> bool {
        source::is_test(&self.path)
    }

    /// Code without texts and comments; every byte in its place.
    pub(crate) fn code(&self) -> String {
        source::keep(&self.text, &[Part::Code])
    }

    /// Code without texts, comments and unit tests.
    pub(crate) fn production_code(&self) -> String {
        if self.is_test() { String::new() } else { source::without_unit_tests(&self.code()) }
    }

    /// Comments alone; every byte in its place.
    pub(crate) fn comments(&self) -> String {
        source::keep(&self.text, &[Part::Comment])
    }

    /// The line in which a byte stands, counted from 1.
    pub(crate) fn line_of(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|b| *b == b'\n').count() + 1
    }
}

/// The Rust files among them.
pub(crate) fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.is_rust())
}

/// A file by its path.
pub(crate) fn find<'a>(files: &'a [File], path: &str) -> Option<&'a File> {
    files.iter().find(|file| file.path == path)
}

/// Where a word stands in a text, whole.
pub(crate) fn word_positions(text: &str, word: &str) -> Vec<usize> {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(|at| !text[..*at].ends_with(part_of_word))
        .filter(|at| !text[*at + word.len()..].starts_with(part_of_word))
        .collect()
}

/// A function in a piece of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// Its first and one-past-last byte.
    pub(crate) span: std::ops::Range<usize>,
    /// Its lines.
    pub(crate) lines: usize,
}

/// Every function in code that holds neither texts nor comments.
pub(crate) fn functions(code: &str) -> Vec<Function> {
    let function = |at: usize| {
        let item = &code[at..at + source::item_length(&code[at..])];
        let rest = item.strip_prefix("fn")?.trim_start();
        let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        let span = at..at + item.len();
        // A function type (`fn(u32)`) has no name.
        (!name.is_empty()).then(|| Function {
            name: name.to_owned(),
            span,
            lines: item.lines().count(),
        })
    };
    word_positions(code, "fn").into_iter().filter_map(function).collect()
}

mod tests {
    use super::*;

    #[test]
    fn comments_texts_and_code_are_told_apart() {
        let text = "let a = \"// no\"; // yes 'x\nlet b = r#\"\"/*\"#; /* é /* */ */ let c = '\"'; fn f<'a>() {}\n";
        let file = File::new("a.rs", text);
        assert_eq!(
            file.code().split_whitespace().collect::<String>(),
            "leta=;letb=;letc=;fnf<'a>(){}"
        );
        assert_eq!(file.comments().split_whitespace().collect::<String>(), "//yes'x/*é/**/*/");
        assert_eq!(file.code().len(), text.len());
    }

    #[test]
    fn unit_tests_are_not_production_code() {
        let text = "fn a() {}\n#[cfg(test)]\nextern crate std;\n#[cfg(test)]\nmod tests { fn b() { {} } }\nfn c() {}\n";
        let names: Vec<_> = functions(&File::new("a.rs", text).production_code());
        assert_eq!(names.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn a_file_of_tests_is_known_by_its_path() {
        let is_test = |path: &str| File::new(path, "").is_test();
        assert!(is_test("crates/a/tests/it/main.rs") && is_test("crates/a/src/b/tests.rs"));
        assert!(is_test("crates/a/src/b/tests/c.rs") && !is_test("crates/a/src/b.rs"));
    }

    #[test]
    fn a_function_reaches_to_its_last_brace() {
        let found = functions("fn a(b: fn(u8)) {\n if x {\n }\n}\nfn d();\n");
        let told: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.lines)).collect();
        assert_eq!(told, [("a", 4), ("d", 1)]);
    }
}
