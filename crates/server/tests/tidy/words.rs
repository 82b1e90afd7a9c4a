//! Rules on words: one word, one thing.

use crate::tree::{File, rust};

/// A word that means nothing by itself, and the words before it that give it a meaning.
struct Banned {
    word: &'static str,
    allowed_after: &'static [&'static str],
    instead: &'static str,
}

const BANNED: &[Banned] = &[
    Banned {
        word: "log",
        allowed_after: &["write-ahead", "startup", "block", "git", "change"],
        instead: "write-ahead log, startup log, output or trace",
    },
    Banned {
        word: "snapshot",
        allowed_after: &["btrfs", "subvolume"],
        instead: "checkpoint (of the write-ahead log) or copy (of a workspace)",
    },
];

/// No banned word in comments and documents. Code spans and code blocks are free: they name things as they are.
pub(crate) fn banned(files: &[File]) -> Vec<String> {
    let comments = rust(files).map(|file| (file, file.comments()));
    let documents = files.iter().filter(|file| file.has_extension("md"));
    let prose = comments.chain(documents.map(|file| (file, file.text.clone())));
    prose.flat_map(|(file, text)| banned_in(&file.path, &text)).collect()
}

fn banned_in(path: &str, prose: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut before = String::new();
    let mut in_block = false;
    for (number, line) in prose.lines().enumerate() {
        let line = line.trim_start().trim_start_matches(['/', '!', '*']).trim_start();
        if line.starts_with("```") {
            in_block = !in_block;
        }
        if in_block || line.is_empty() {
            continue;
        }
        for word in without_code_spans(line).split_whitespace() {
            let word = word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
            let word = word.strip_suffix("'s").unwrap_or(&word);
            let found = BANNED.iter().find(|banned| banned.word == word);
            if let Some(banned) = found.filter(|b| !b.allowed_after.contains(&before.as_str())) {
                let Banned { word, instead, .. } = banned;
                complaints.push(format!("{path}:{}: \"{word}\" alone; say {instead}", number + 1));
            }
            if !word.is_empty() {
                word.clone_into(&mut before);
            }
        }
    }
    complaints
}

/// Every second stretch between back-ticks is code.
fn without_code_spans(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join(" code ")
}

mod tests {
    use super::*;

    fn complaints(comment: &str) -> usize {
        banned(&[File::new("a.rs", comment)]).len()
    }

    #[test]
    fn a_banned_word_is_found_in_comments_alone() {
        assert_eq!(complaints("// Written to the Log.\nlet log = 1;\n"), 1);
        assert_eq!(complaints("/// The log's end, a `log`.\n"), 1);
        assert_eq!(complaints("//! Takes a snapshot.\n"), 1);
        assert_eq!(complaints("let text = \"the log\";\n"), 0);
    }

    #[test]
    fn a_banned_word_with_a_meaning_is_free_also_over_a_line_end() {
        assert_eq!(
            complaints("//! The write-ahead\n//! log, the startup log and a startup-log.\n"),
            0
        );
        assert_eq!(complaints("//! ```text\n//! log\n//! ```\n"), 0);
        let document = File::new("a.md", "See CHANGELOG.md, `log`.\n\n```\nlog\n```\nThe log.\n");
        assert_eq!(
            banned(&[document]),
            ["a.md:6: \"log\" alone; say write-ahead log, startup log, output or trace"]
        );
    }
}
