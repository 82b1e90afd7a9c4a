//! Engine `claude`: Claude Code, driven without a terminal.
//!
//! Its output is one JSON object per line. What is relied on was seen with 2.1.197 and 2.1.330: the order of keys differs
//! between versions, fields come and go, `"subtype":"success"` appears in records of failures. So each line is parsed for the
//! few fields that matter, anything else in it may have any shape, and lines of an unknown kind are passed over.

mod line;
mod shape;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::options::{Fields, as_argument};
use super::{BadOption, CommandLine, Engine, EngineOptions, Kind, Launch, Opening, SessionSign};
use crate::spec::Capture;

pub(super) use line::{read_last_line, read_line};

/// Files: it only ever writes to its descriptors, and so loses nothing to anybody's death.
pub(super) const ENGINE: Engine = Engine {
    name: "claude",
    program: Some("claude"),
    capture: Capture::File,
    can_resume: true,
    chooses_session: true,
    install_hint: "npm install -g @anthropic-ai/claude-code, then log in once by running `claude`",
    kind: Kind::Claude,
};

/// The directory of its configuration and transcripts, if a job has one of its own.
pub(super) fn parse(options: &EngineOptions) -> Result<Option<&str>, BadOption> {
    Fields::new(ENGINE.name, &["config_dir"], options)?.get("config_dir", "an absolute path", |v| {
        as_argument(v).filter(|path| path.starts_with('/'))
    })
}

pub(super) fn command_line(launch: &Launch<'_>) -> Result<CommandLine, BadOption> {
    let config_dir = parse(launch.options)?;
    let program = launch.program.unwrap_or("claude");
    // Print mode; `stream-json` is refused without `--verbose`. Nobody is there to be asked for permission.
    let fixed = ["-p", "--output-format", "stream-json", "--verbose"];
    let mut argv: Vec<String> = [program].iter().chain(&fixed).map(ToString::to_string).collect();
    argv.push("--dangerously-skip-permissions".to_string());
    // One word: whatever the name is, it cannot become an option of its own.
    argv.extend(launch.model.map(|model| format!("--model={model}")));
    argv.push(match launch.opening {
        Opening::Fresh => "--session-id".to_string(),
        Opening::Resume => "--resume".to_string(),
    });
    argv.push(launch.session.to_string());
    let mut env = Vec::from([
        // Else it also speaks to hosts that have nothing to do with the job, and asks the model for a title.
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC".to_string(), "1".to_string()),
        // Else it refuses to run as root without asking.
        ("IS_SANDBOX".to_string(), "1".to_string()),
    ]);
    env.extend(config_dir.map(|dir| ("CLAUDE_CONFIG_DIR".to_string(), dir.to_string())));
    // A server started from inside an agent must not make its own agents believe that they are that agent's children.
    let env_remove = ["CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT"].map(ToString::to_string).to_vec();
    let stdin = if launch.interrupted {
        super::prompt_after_interruption(launch.prompt)
    } else {
        launch.prompt.to_string()
    };
    Ok(CommandLine { argv, env, env_remove, stdin: Some(stdin) })
}

/// The two refusals that are (also, or only) told on standard error.
pub(super) fn sign_in_stderr(stderr: &str) -> Option<SessionSign> {
    stderr.lines().rev().find_map(|line| {
        let in_use = line.contains("Session ID") && line.contains("is already in use");
        in_use.then_some(SessionSign::InUse).or_else(|| sign_in_error(line))
    })
}

fn sign_in_error(error: &str) -> Option<SessionSign> {
    error.contains("No conversation found").then_some(SessionSign::NotFound)
}
