//! Engine `command`: any program, as given. Its output is text, its exit code the verdict.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::Value;

use super::options::{Fields, as_argument};
use super::{BadOption, CommandLine, Engine, EngineOptions, Kind, Launch};
use crate::limits;
use crate::spec::Capture;

/// Pipes: an ordinary program may re-open `/dev/stdout` with truncation.
pub(super) const ENGINE: Engine = Engine {
    name: "command",
    program: None,
    capture: Capture::Pipe,
    can_resume: false,
    chooses_session: false,
    install_hint: "",
    kind: Kind::Command,
};

/// The argv in the options.
pub(super) fn parse(options: &EngineOptions) -> Result<Vec<String>, BadOption> {
    let rule = "a list of 1 to 1024 texts without NUL, of 64 KiB together, the program first";
    Fields::new(ENGINE.name, &["argv"], options)?.need("argv", rule, argv)
}

fn argv(value: &Value) -> Option<Vec<String>> {
    let list = value.as_array()?;
    let (program, arguments) = list.split_first()?;
    let mut argv = Vec::from([as_argument(program)?.to_string()]);
    for argument in arguments {
        // An empty argument is a legal one; an empty program is not.
        argv.push(argument.as_str().filter(|text| !text.contains('\0'))?.to_string());
    }
    let bytes: usize = argv.iter().map(|text| text.len() + 1).sum();
    let fits = argv.len() <= limits::ARGV_ELEMENTS_MAX && bytes <= limits::ARGV_BYTES_MAX;
    fits.then_some(argv)
}

pub(super) fn command_line(launch: &Launch<'_>) -> Result<CommandLine, BadOption> {
    Ok(CommandLine {
        argv: parse(launch.options)?,
        stdin: (!launch.prompt.is_empty()).then(|| launch.prompt.to_string()),
        ..CommandLine::default()
    })
}
