//! Engine `demo`: the scripted agent inside our own binary, so that everybody can try without an account.
//!
//! Here is what it is told to do and the arithmetic of its last line, by which anybody can check its output byte for byte.
//! The agent itself, which has a world, is `demo_agent` in the server crate.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::Value;

use super::options::{Fields, as_argument};
use super::{BadOption, CommandLine, Engine, EngineOptions, Kind, Launch, Opening};
use crate::limits;
use crate::spec::Capture;

/// The hidden verb of our binary under which the agent runs.
pub const VERB: &str = "demo-agent";

pub(super) const ENGINE: Engine = Engine {
    name: "demo",
    program: None,
    capture: Capture::File,
    can_resume: true,
    chooses_session: true,
    install_hint: "",
    kind: Kind::Demo,
};

/// What the demo agent does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Lines it writes; with `until_file`, the lines after which it gives up.
    pub lines: u64,
    /// Its pause after each line, in milliseconds.
    pub line_ms: u64,
    /// What it exits with.
    pub exit_code: u8,
    /// The file, relative to its working directory, to which it appends the prompt.
    pub edit: String,
    /// It goes on until this file exists.
    pub until_file: Option<String>,
    /// A file, relative to its working directory, to which it appends a line at each start.
    pub count_starts: Option<String>,
}

impl Script {
    /// Reads a job's options.
    pub(super) fn from_options(options: &EngineOptions) -> Result<Self, BadOption> {
        let known = ["lines", "line_ms", "exit_code", "edit", "until_file", "count_starts"];
        let fields = Fields::new(ENGINE.name, &known, options)?;
        let inside = "a path inside the workspace, relative and without `..`";
        let until_file = fields.get("until_file", "a path", as_argument)?.map(String::from);
        let lines = fields.number("lines", "0 to 100000", 0..=limits::DEMO_LINES_MAX)?;
        let line_ms = fields.number("line_ms", "0 to 60000", 0..=limits::DEMO_LINE_MS_MAX)?;
        let exit_code = fields.get("exit_code", "0 to 255", |v| u8::try_from(v.as_u64()?).ok())?;
        let some_seconds = if until_file.is_some() { limits::DEMO_LINES_MAX } else { 12 };
        Ok(Self {
            lines: lines.unwrap_or(some_seconds),
            line_ms: line_ms.unwrap_or(250),
            exit_code: exit_code.unwrap_or(0),
            edit: fields.get("edit", inside, inside_path)?.unwrap_or("demo-notes.md").to_string(),
            until_file,
            count_starts: fields.get("count_starts", inside, inside_path)?.map(ToString::to_string),
        })
    }
}

/// A relative path that cannot leave where it starts (symbolic links apart: it is the agent's own workspace).
fn inside_path(value: &Value) -> Option<&str> {
    let path = as_argument(value)?;
    let inside = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    inside.then_some(path)
}

pub(super) fn command_line(launch: &Launch<'_>) -> Result<CommandLine, BadOption> {
    let script = Script::from_options(launch.options)?;
    let mut argv = Vec::from([launch.exe.to_string(), VERB.to_string()]);
    // One word each: a path that starts with a dash stays a path.
    argv.push(format!("--session={}", launch.session));
    argv.push(format!("--turn={}", launch.turn));
    argv.push(format!("--attempt={}", launch.attempt));
    argv.push(format!("--lines={}", script.lines));
    argv.push(format!("--line-ms={}", script.line_ms));
    argv.push(format!("--exit-code={}", script.exit_code));
    argv.push(format!("--edit={}", script.edit));
    argv.extend(script.until_file.map(|path| format!("--until-file={path}")));
    argv.extend(script.count_starts.map(|path| format!("--count-starts={path}")));
    if launch.opening == Opening::Resume {
        argv.push("--resume".to_string());
    }
    Ok(CommandLine { argv, stdin: Some(launch.prompt.to_string()), ..CommandLine::default() })
}

/// Counts what the demo agent writes, for its last line.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    bytes: u64,
    crc32: crc32fast::Hasher,
}

impl Tally {
    /// These bytes were written.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.crc32.update(bytes);
    }

    /// The last line, newline included. It speaks of everything before itself.
    pub fn last_line(&self) -> String {
        let crc32 = self.crc32.clone().finalize();
        format!("demo: done, wrote {} bytes before this line, crc32 {crc32:08x}\n", self.bytes)
    }
}

/// How a demo agent's output differs from what the agent says it wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the demo agent's output should end in `{expected}`, and ends in `{found}`")]
pub struct NotExact {
    /// The last line that belongs to the bytes before it.
    pub expected: String,
    /// The last line that is there, cut.
    pub found: String,
}

/// Checks the output of one finished attempt byte for byte against its own last line; gives the number of bytes before it.
pub fn check_output(output: &[u8]) -> Result<usize, NotExact> {
    let body = output.strip_suffix(b"\n").unwrap_or(output);
    let start = body.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let (before, last) = output.split_at(start);
    let mut tally = Tally::default();
    tally.add(before);
    let expected = tally.last_line();
    if last == expected.as_bytes() {
        return Ok(start);
    }
    let shown = last.get(..last.len().min(200)).unwrap_or_default();
    Err(NotExact {
        expected: expected.trim_end().to_string(),
        found: String::from_utf8_lossy(shown).trim_end().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_output_with_any_byte_changed_dropped_or_doubled_is_not_exact() {
        let mut tally = Tally::default();
        let mut output = b"1: one\n2: two\n".to_vec();
        tally.add(&output);
        output.extend(tally.last_line().bytes());
        assert_eq!(check_output(&output), Ok(14));
        for at in 0..output.len() {
            let mut changed = output.clone();
            changed[at] ^= 1;
            assert_ne!(check_output(&changed), Ok(14), "changed {at}");
            let mut dropped = output.clone();
            dropped.remove(at);
            assert!(check_output(&dropped).is_err(), "dropped {at}");
            let mut doubled = output.clone();
            doubled.insert(at, output[at]);
            assert!(check_output(&doubled).is_err(), "doubled {at}");
        }
        assert_eq!(check_output(b"").ok(), None);
    }
}
