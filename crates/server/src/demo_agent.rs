//! The built-in agent behind engine `demo`: it writes lines at a pace, edits a file, and says exactly what it wrote.
//!
//! It is an agent like any other: it knows nothing of the server, of attempts directories or of recovery. What it can be
//! told to do is `outlive_core::engine::demo::Script`; its last line can be checked by `check_output` there.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use outlive_core::engine::demo::{Tally, VERB};
use outlive_core::limits;

/// Exit code when its output, its file or its input failed, as sysexits has it for input/output errors.
const EXIT_IO: u8 = 74;
/// Exit code when the file it waited for never came.
const EXIT_GAVE_UP: u8 = 75;

#[derive(Debug, Parser)]
#[command(name = VERB, no_binary_name = true)]
struct Order {
    #[arg(long)]
    session: String,
    #[arg(long)]
    turn: u32,
    #[arg(long)]
    attempt: u32,
    #[arg(long)]
    lines: u64,
    #[arg(long)]
    line_ms: u64,
    #[arg(long)]
    exit_code: u8,
    #[arg(long)]
    edit: PathBuf,
    #[arg(long)]
    until_file: Option<PathBuf>,
    #[arg(long)]
    count_starts: Option<PathBuf>,
    #[arg(long)]
    resume: bool,
}

/// What went wrong with one of its files.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", .path.display())]
struct Trouble {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Runs the agent; `args` are those after the verb. The prompt is read from standard input.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let order = match Order::try_parse_from(args) {
        Ok(order) => order,
        Err(error) => {
            complain(&error);
            return ExitCode::from(2);
        }
    };
    match run(&order, Path::new("."), io::stdin().lock(), io::stdout().lock()) {
        Ok(code) => ExitCode::from(code),
        Err(trouble) => {
            complain(&format!("{trouble}: {}", trouble.source));
            ExitCode::from(EXIT_IO)
        }
    }
}

/// A complaint that cannot be written has nowhere else to go.
fn complain(what: &dyn std::fmt::Display) {
    writeln!(io::stderr(), "demo: {what}").ok();
}

fn run(order: &Order, dir: &Path, input: impl Read, output: impl Write) -> Result<u8, Trouble> {
    if let Some(path) = &order.count_starts {
        let line = format!("attempt {} pid {}\n", order.attempt, std::process::id());
        append(&dir.join(path), &line)?;
    }
    let mut prompt = String::new();
    input
        // The engine may have put some words before the prompt.
        .take(2 * limits::PROMPT_BYTES_MAX as u64)
        .read_to_string(&mut prompt)
        .map_err(|source| trouble("cannot read the prompt from", "standard input", source))?;
    let mut paper = Paper { output, tally: Tally::default() };
    let (turn, attempt) = (order.turn, order.attempt);
    let how = if order.resume { "resumed" } else { "new" };
    let came = work(order, dir, &mut paper, |n| {
        format!("{n}: turn {turn}, attempt {attempt}, {how} session {}\n", order.session)
    })?;
    append(
        &dir.join(&order.edit),
        &format!("turn {turn}, attempt {attempt}: {}\n", prompt.trim()),
    )?;
    paper.write(&format!("demo: edited {}\n", order.edit.display()))?;
    if !came {
        paper.write("demo: gave up waiting\n")?;
    }
    let last = paper.tally.last_line();
    paper.write(&last)?;
    Ok(if came { order.exit_code } else { EXIT_GAVE_UP })
}

/// Writes the lines; false if it was to wait for a file that never came.
fn work(
    order: &Order,
    dir: &Path,
    paper: &mut Paper<impl Write>,
    line: impl Fn(u64) -> String,
) -> Result<bool, Trouble> {
    for n in 1..=order.lines {
        paper.write(&line(n))?;
        pause(order.line_ms);
        if order.until_file.as_ref().is_some_and(|path| dir.join(path).exists()) {
            return Ok(true);
        }
    }
    Ok(order.until_file.is_none())
}

/// Standard output with its bytes counted. Each line is one write, as agents do it.
struct Paper<W> {
    output: W,
    tally: Tally,
}

impl<W: Write> Paper<W> {
    fn write(&mut self, line: &str) -> Result<(), Trouble> {
        self.tally.add(line.as_bytes());
        let written = self.output.write_all(line.as_bytes()).and_then(|()| self.output.flush());
        written.map_err(|source| trouble("cannot write to", "standard output", source))
    }
}

#[expect(clippy::disallowed_methods, reason = "an agent that takes its time is what this is")]
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn append(path: &Path, text: &str) -> Result<(), Trouble> {
    let open = OpenOptions::new().create(true).append(true).open(path);
    open.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| trouble("cannot append to", path, source))
}

fn trouble(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Trouble {
    Trouble { doing, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::num::NonZeroU32;

    use outlive_core::engine::demo::check_output;
    use outlive_core::engine::{CommandLine, Launch, Opening, find};
    use outlive_core::ids::SessionId;
    use serde_json::json;

    use super::*;

    /// A directory that goes with the test.
    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("outlive-demo-{}", uuid::Uuid::new_v4()));
            fs::create_dir(&dir).expect("a new directory");
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn command_line(options: &serde_json::Value, opening: Opening) -> CommandLine {
        let launch = Launch {
            session: &SessionId("s".into()),
            turn: 2,
            attempt: NonZeroU32::new(3).expect("not zero"),
            prompt: "write a poem\n",
            model: None,
            options: options.as_object().expect("an object"),
            opening,
            interrupted: false,
            program: None,
            exe: "outlive",
        };
        find("demo").expect("known").command_line(&launch).expect("good options")
    }

    /// Runs it as its engine would have it called.
    fn perform(dir: &Path, options: &serde_json::Value, opening: Opening) -> (u8, String) {
        let line = command_line(options, opening);
        assert_eq!(line.argv[..2], ["outlive", VERB]);
        let order = Order::try_parse_from(&line.argv[2..]).expect("its own words");
        let mut output = Vec::new();
        let stdin = line.stdin.expect("a prompt");
        let code = run(&order, dir, stdin.as_bytes(), &mut output).expect("no trouble");
        (code, String::from_utf8(output).expect("UTF-8"))
    }

    #[test]
    fn it_writes_its_lines_edits_its_file_and_says_exactly_what_it_wrote() {
        let dir = Dir::new();
        let options = json!({"lines": 2, "line_ms": 0, "exit_code": 42, "edit": "a.md",
            "count_starts": "-starts"});
        let (code, output) = perform(&dir.0, &options, Opening::Fresh);
        assert_eq!(code, 42);
        let start = "1: turn 2, attempt 3, new session s\n2: turn 2, attempt 3, new session s\n\
            demo: edited a.md\ndemo: done, wrote 90 bytes before this line, crc32 ";
        assert!(output.starts_with(start), "{output}");
        assert_eq!(check_output(output.as_bytes()), Ok(90));
        let (_, output) = perform(&dir.0, &options, Opening::Resume);
        assert!(output.contains("resumed session s"), "{output}");
        let edited = fs::read_to_string(dir.0.join("a.md")).expect("edited");
        assert_eq!(edited, "turn 2, attempt 3: write a poem\n".repeat(2));
        let starts = fs::read_to_string(dir.0.join("-starts")).expect("counted");
        assert_eq!(starts.lines().count(), 2);
    }

    #[test]
    fn it_goes_on_until_a_file_is_there_and_gives_up_in_the_end() {
        let dir = Dir::new();
        let options = json!({"lines": 3, "line_ms": 0, "until_file": "go"});
        let (code, output) = perform(&dir.0, &options, Opening::Fresh);
        assert_eq!(code, EXIT_GAVE_UP);
        assert!(output.contains("\n3: ") && output.contains("gave up"), "{output}");
        assert_eq!(check_output(output.as_bytes()).ok(), output.trim().rfind('\n').map(|n| n + 1));
        fs::write(dir.0.join("go"), "").expect("written");
        let (code, output) = perform(&dir.0, &options, Opening::Fresh);
        assert_eq!(code, 0);
        assert!(output.contains("1: ") && !output.contains("2: "), "{output}");
    }

    #[test]
    fn a_file_that_cannot_be_edited_is_named() {
        let line = command_line(&json!({"lines": 0, "edit": "no/such/place"}), Opening::Fresh);
        let order = Order::try_parse_from(&line.argv[2..]).expect("its own words");
        let dir = Dir::new();
        let trouble = run(&order, &dir.0, &b""[..], Vec::new()).expect_err("no such directory");
        assert!(trouble.to_string().ends_with("no/such/place"), "{trouble}");
    }

    #[test]
    fn unknown_words_are_a_usage_error() {
        assert_eq!(main([OsString::from("--what")].into_iter()), ExitCode::from(2));
    }
}
