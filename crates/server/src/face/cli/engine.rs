//! `outlive engine`: the agents that jobs can use.

use std::io::Write as _;

use clap::Subcommand;
use serde_json::Value;

use super::failure::Failure;
use super::text::{NOTHING, at, clean, items, table};
use super::{Context, SUCCESS, Status, print_json};

/// Agents that jobs can use
#[derive(Debug, Subcommand)]
pub(super) enum Engine {
    /// List them, with what is missing to use them
    #[command(visible_alias = "ls")]
    List {
        /// Print the server's JSON
        #[arg(long)]
        json: bool,
    },
}

impl Engine {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let Self::List { json } = self;
        let found = context.client.get("/api/engines")?.json()?;
        if json {
            return print_json(&found);
        }
        write!(std::io::stdout(), "{}", lines(&found))?;
        Ok(SUCCESS)
    }
}

fn lines(found: &Value) -> String {
    let row = |engine: &Value| {
        let installed = engine["installed"].as_bool() == Some(true);
        let resume = engine["can_resume"].as_bool() == Some(true);
        let program = match (at(engine, "/program"), installed) {
            ("", true) => NOTHING,
            (program, true) => program,
            (_, false) => at(engine, "/install_hint"),
        };
        let yes = |yes| if yes { "yes" } else { "no" }.to_string();
        [clean(at(engine, "/name")), yes(installed), yes(resume), clean(program)]
    };
    let rows: Vec<[String; 4]> = items(found, "/engines").iter().map(row).collect();
    table(["ENGINE", "INSTALLED", "CAN RESUME", "PROGRAM"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_engine_that_is_missing_says_how_to_get_it() {
        let found = json!({ "engines": [
            { "name": "claude", "installed": false, "program": null, "can_resume": true,
              "install_hint": "npm install -g it" },
            { "name": "demo", "installed": true, "program": null, "can_resume": true },
            { "name": "x", "installed": true, "program": "/bin/x", "can_resume": false },
        ] });
        let expected = "\
ENGINE  INSTALLED  CAN RESUME  PROGRAM
claude  no         yes         npm install -g it
demo    yes        yes         -
x       yes        no          /bin/x
";
        assert_eq!(lines(&found), expected);
    }
}
