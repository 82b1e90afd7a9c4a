//! Reading an agent's output: bytes in, in pieces of any size; text for people and a [`Reading`] for the verdict out.
//!
//! One reader serves both the live text and the end of an attempt, so they cannot disagree. Its memory is bounded by one line.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Engine, Kind, claude};
use crate::evidence::AgentResult;
use crate::limits;
use crate::time::Timestamp;

/// A piece of what an agent put out, as far as people want to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Bytes that are text already, newlines included; not always UTF-8.
    Raw(Vec<u8>),
    /// The agent speaks.
    Text(String),
    /// It uses a tool.
    ToolUse {
        /// The tool.
        name: String,
        /// What for, in one short line; may be empty.
        summary: String,
    },
    /// Something that its user should know.
    Note(String),
    /// It ended, and says it failed.
    Error(String),
}

impl Item {
    /// Adds it to a text as people read it, each item on a line of its own.
    pub fn write_to(&self, text: &mut Vec<u8>) {
        match self {
            Self::Raw(bytes) => text.extend(bytes),
            Self::Text(words) => line(text, words),
            Self::ToolUse { name, summary } => line(text, format!("[{name}] {summary}").trim_end()),
            Self::Note(words) => line(text, &format!("({words})")),
            Self::Error(words) => line(text, &format!("error: {words}")),
        }
    }
}

fn line(text: &mut Vec<u8>, words: &str) {
    text.extend(words.bytes());
    if !words.ends_with('\n') {
        text.push(b'\n');
    }
}

/// What an attempt's output shows of its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionSign {
    /// The agent announced the session. It stores it some time later: killed soon after its first answer, it had not.
    Announced,
    /// The agent closed a run in it, so it is stored.
    Closed,
    /// It was to be resumed, and the agent does not know it.
    NotFound,
    /// It was to be opened anew, and the agent has it already.
    InUse,
}

/// What a run used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens that the model read, those from its cache included.
    pub input_tokens: u64,
    /// Tokens that the model wrote.
    pub output_tokens: u64,
    /// The agent's own estimate of the cost of this run, in millionths of a US dollar; `None`: it gave none.
    pub cost_micros: Option<u64>,
}

/// What made an agent give up that is not its own doing, and passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Its account has used up what it may use for now.
    Usage {
        /// When it may go on; none: the agent did not say.
        resets_at: Option<Timestamp>,
    },
    /// The model has too much to do.
    Overload,
}

/// What the output of one attempt says of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// The agent's own closing record. A record that was followed by more work was not the closing one.
    pub result: Option<AgentResult>,
    /// What it used, as far as it said.
    pub usage: Option<Usage>,
    /// The agent's own id of the conversation.
    pub session: Option<String>,
    /// How its conversation stands.
    pub sign: Option<SessionSign>,
    /// Its closing record says that a limit made it give up.
    pub limit: Option<Limit>,
    /// Its account is refused until then, as far as it was told.
    pub refused_until: Option<Timestamp>,
}

impl Reading {
    /// The conversation could not be opened in the way that was tried, so the model was not asked and nothing was done. The
    /// next attempt, opened as [`Engine::opening`] says, is still the same try.
    pub fn not_opened(&self) -> bool {
        matches!(self.sign, Some(SessionSign::NotFound | SessionSign::InUse))
    }
}

/// Reads the standard output of one attempt.
#[derive(Debug)]
pub struct Reader {
    kind: Kind,
    /// The beginning of a line that is not complete yet.
    held: Vec<u8>,
    /// The rest of an over-long line is being dropped.
    dropping: bool,
    reading: Reading,
}

impl Engine {
    /// A reader that stands at the beginning of an attempt's output.
    pub fn reader(&self) -> Reader {
        Reader { kind: self.kind, held: Vec::new(), dropping: false, reading: Reading::default() }
    }

    /// Takes from an attempt's standard error what it shows of the conversation. Its last 64 KiB are plenty.
    pub fn sign_in_stderr(&self, stderr: &[u8]) -> Option<SessionSign> {
        match self.kind {
            Kind::Command | Kind::Demo => None,
            Kind::Claude => claude::sign_in_stderr(&String::from_utf8_lossy(stderr)),
        }
    }
}

impl Reader {
    /// Takes the next bytes and appends what is complete to `items`. An incomplete last line is held back. (Programs whose
    /// output is text are passed through at once.)
    pub fn feed(&mut self, bytes: &[u8], items: &mut Vec<Item>) {
        if self.kind != Kind::Claude {
            if !bytes.is_empty() {
                items.push(Item::Raw(bytes.to_vec()));
            }
            return;
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                None => self.hold(piece, items),
                Some(end) => {
                    self.hold(end, items);
                    if !core::mem::take(&mut self.dropping) {
                        let line = core::mem::take(&mut self.held);
                        claude::read_line(&line, &mut self.reading, items);
                    }
                }
            }
        }
    }

    /// The attempt's output ends here: gives out what was held back, and what it all said. The next attempt's output needs a
    /// reader of its own, for a kill may have torn the last line.
    pub fn finish(mut self, items: &mut Vec<Item>) -> Reading {
        if !self.held.is_empty() {
            claude::read_last_line(&self.held, &mut self.reading, items);
        }
        self.reading
    }

    /// What the output said so far.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.held.capacity()
    }

    /// Holds the beginning of a line, and gives it up where it grows too long.
    fn hold(&mut self, piece: &[u8], items: &mut Vec<Item>) {
        if self.dropping {
            return;
        }
        if self.held.len() + piece.len() <= limits::OUTPUT_LINE_BYTES_MAX {
            self.held.extend(piece);
            return;
        }
        self.held.extend(piece.iter().take(limits::OUTPUT_LINE_SHOWN_BYTES));
        let mut shown = core::mem::take(&mut self.held);
        shown.truncate(limits::OUTPUT_LINE_SHOWN_BYTES);
        let most = limits::OUTPUT_LINE_BYTES_MAX;
        shown.extend(format!(" [cut: a line of more than {most} bytes]\n").bytes());
        items.push(Item::Raw(shown));
        self.dropping = true;
    }
}
