//! Engines: what there is to know about each agent CLI, as data and small pure functions.
//!
//! An engine says how its agent is called for a first turn and for a resume, and what the agent's output means. Nothing is
//! run or read from disk here, and no command line ever passes a shell: a prompt reaches the agent on standard input.

mod claude;
mod command;
pub mod demo;
mod options;
mod read;
mod verdict;

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use crate::ids::{AttemptNo, SessionId};
use crate::spec::Capture;

pub use options::{BadOption, EngineOptions, nearest};
pub use read::{Item, Limit, Reader, Reading, SessionSign, Usage};
pub use verdict::{Verdict, verdict};

/// The adaptor for one agent CLI.
#[derive(Debug, PartialEq, Eq)]
pub struct Engine {
    /// As jobs name it.
    pub name: &'static str,
    /// The program that must be installed, as found in `PATH`; `None`: the job names it, or it is built in.
    pub program: Option<&'static str>,
    /// How its output reaches the files.
    pub capture: Capture,
    /// A later attempt or turn can go on in the same conversation.
    pub can_resume: bool,
    /// The agent takes our session id as its own.
    pub chooses_session: bool,
    /// What to do where the program is missing; empty if it cannot be.
    pub install_hint: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Command,
    Demo,
    Claude,
}

/// Every engine, in the order in which they are listed.
pub fn all() -> &'static [Engine] {
    &[claude::ENGINE, command::ENGINE, demo::ENGINE]
}

/// The engine of that name.
pub fn find(name: &str) -> Option<&'static Engine> {
    all().iter().find(|engine| engine.name == name)
}

/// How a conversation is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A new one, under our session id where the agent takes it.
    Fresh,
    /// The one that is there.
    Resume,
}

/// The agent closed a run in this conversation, and now does not know it: a fresh one would silently forget what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent no longer has the conversation of this session")]
pub struct ConversationLost;

/// One launch of an agent.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The conversation.
    pub session: &'a SessionId,
    /// The job's turn, counted from 1.
    pub turn: u32,
    /// The job's attempt.
    pub attempt: AttemptNo,
    /// What this turn asks for; may be empty where the engine does not need one.
    pub prompt: &'a str,
    /// The model that was asked for.
    pub model: Option<&'a str>,
    /// The job's `engine_options`.
    pub options: &'a EngineOptions,
    /// See [`Engine::opening`].
    pub opening: Opening,
    /// An earlier attempt at this very turn, in this workspace, did not come to its end.
    pub interrupted: bool,
    /// Where the agent's program is, if not the one in `PATH`.
    pub program: Option<&'a str>,
    /// Our own binary, absolute, for the built-in agent.
    pub exe: &'a str,
}

/// How the agent is called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    /// Program and arguments; the program is searched in `PATH` if it has no slash.
    pub argv: Vec<String>,
    /// Set for the agent. What a job sets itself comes after these and wins.
    pub env: Vec<(String, String)>,
    /// Taken out of the inherited environment.
    pub env_remove: Vec<String>,
    /// The whole of its standard input, to be put into a file (never a pipe: a pipe would need a living writer); `None`:
    /// `/dev/null`.
    pub stdin: Option<String>,
}

impl Engine {
    /// A job without a prompt makes no sense for it.
    pub fn needs_prompt(&self) -> bool {
        self.kind != Kind::Command
    }

    /// A job may choose the model.
    pub fn takes_model(&self) -> bool {
        self.kind == Kind::Claude
    }

    /// Its agent closes with a record of its own about success, so an ending without one proves nothing good.
    pub fn writes_result(&self) -> bool {
        self.kind == Kind::Claude
    }

    /// Whether a job may have these options; the error is for whoever submitted it.
    pub fn validate_options(&self, options: &EngineOptions) -> Result<(), BadOption> {
        match self.kind {
            Kind::Command => command::parse(options).map(|_| ()),
            Kind::Demo => demo::Script::from_options(options).map(|_| ()),
            Kind::Claude => claude::parse(options).map(|_| ()),
        }
    }

    /// How the agent is called. Fails only for options that [`Engine::validate_options`] refuses.
    pub fn command_line(&self, launch: &Launch<'_>) -> Result<CommandLine, BadOption> {
        match self.kind {
            Kind::Command => command::command_line(launch),
            Kind::Demo => demo::command_line(launch),
            Kind::Claude => claude::command_line(launch),
        }
    }

    /// Whether the next attempt opens a new conversation or goes on in the one that is there. `earlier` is what each earlier
    /// attempt *in the same session* showed, the newest first.
    ///
    /// An agent killed early has announced its session and not stored it, though the model may have answered; an agent that
    /// stored it refuses to open it anew. Neither can be known beforehand, so the newest sign is followed, and a wrong
    /// guess costs an attempt that ends at once, without having asked the model ([`Reading::not_opened`]), and leaves the
    /// sign that puts it right.
    pub fn opening(
        &self,
        earlier: impl Iterator<Item = Option<SessionSign>>,
    ) -> Result<Opening, ConversationLost> {
        let mut earlier = earlier.peekable();
        if !self.can_resume || earlier.peek().is_none() {
            return Ok(Opening::Fresh);
        }
        if self.kind == Kind::Demo {
            // It keeps no conversation, so any can be resumed.
            return Ok(Opening::Resume);
        }
        match earlier.by_ref().flatten().next() {
            Some(SessionSign::Announced | SessionSign::Closed | SessionSign::InUse) => {
                Ok(Opening::Resume)
            }
            Some(SessionSign::NotFound)
                if earlier.flatten().any(|sign| sign == SessionSign::Closed) =>
            {
                Err(ConversationLost)
            }
            Some(SessionSign::NotFound) | None => Ok(Opening::Fresh),
        }
    }
}

/// What an agent is told about a turn that was cut off. The prompt is repeated: it may have been killed before it had stored
/// it; and in a fresh conversation too, for its tools may have done something before.
fn prompt_after_interruption(prompt: &str) -> String {
    let mut text = "You were interrupted while working on the request below, and part of it may be done already. \
        Look at what is there, do not do it twice, and finish the request.\n\n"
        .to_string();
    text.push_str(prompt);
    text
}

#[cfg(test)]
mod tests;
