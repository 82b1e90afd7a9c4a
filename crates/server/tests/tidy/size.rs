//! Rules on size: what does not fit into a head does not belong into one file.

use crate::source::unit_tests;
use crate::tree::{File, functions, rust};

/// Lines of production code in one file. Good ones have 150 to 300.
const FILE_LINES_MAX: usize = 500;

/// Lines of one test, comments and blank lines counted. Of production functions clippy takes care (`clippy.toml`).
const TEST_FUNCTION_LINES_MAX: usize = 120;

/// No file is too long; unit tests and test targets do not count.
pub(crate) fn files(files: &[File]) -> Vec<String> {
    let too_long = |file: &File| {
        let in_tests: usize =
            unit_tests(&file.text).into_iter().map(|span| file.text[span].lines().count()).sum();
        let lines = file.text.lines().count() - in_tests;
        (lines > FILE_LINES_MAX).then(|| {
            format!(
                "{}: {lines} production lines, at most {FILE_LINES_MAX}; cut it in two",
                file.path
            )
        })
    };
    rust(files).filter(|file| !file.is_test()).filter_map(too_long).collect()
}

/// No test is too long.
pub(crate) fn test_functions(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in rust(files) {
        let tests = unit_tests(&file.text);
        for function in functions(&file.code()) {
            let tested =
                file.is_test() || tests.iter().any(|span| span.contains(&function.span.start));
            if tested && function.lines > TEST_FUNCTION_LINES_MAX {
                let line = file.line_of(function.span.start);
                complaints.push(format!(
                    "{}:{line}: {} has {} lines, at most {TEST_FUNCTION_LINES_MAX}; give its steps names",
                    file.path, function.name, function.lines
                ));
            }
        }
    }
    complaints
}

mod tests {
    use super::*;

    #[test]
    fn production_lines_are_limited_and_tests_are_not_counted() {
        let lines = "//\n".repeat(498);
        let fits = format!("{lines}fn a() {{}}\n#[cfg(test)]\nmod tests {{\n\n\n}}\n");
        assert_eq!(files(&[File::new("src/a.rs", &fits)]), [""; 0]);
        let long = format!("//\n//\n{fits}");
        assert_eq!(files(&[File::new("src/a.rs", &long)]).len(), 1);
        assert_eq!(files(&[File::new("tests/a.rs", &long)]).len(), 0);
    }

    #[test]
    fn only_functions_of_tests_are_measured() {
        let long = format!("fn a() {{\n{}}}\n", "\n".repeat(119));
        assert_eq!(test_functions(&[File::new("tests/a.rs", &long)]).len(), 1);
        assert_eq!(test_functions(&[File::new("src/a.rs", &long)]).len(), 0);
        let unit = format!("#[cfg(test)]\nmod tests {{\n{long}}}\n");
        assert_eq!(test_functions(&[File::new("src/a.rs", &unit)]).len(), 1);
    }
}
