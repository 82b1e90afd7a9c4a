//! The command line: a client of the HTTP API, one file per verb or small family of verbs.
//!
//! Absent: what `serve` and `demo` do (they are handed in), and the hidden verbs, which are decided before this is called.

mod adopt_data;
mod ask;
mod backup;
mod ending;
mod engine;
mod failure;
mod follow;
mod give;
mod list;
mod output;
mod repo;
mod run;
mod show;
mod startup_log;
mod stats;
mod submit;
mod text;
mod wait;
mod wal;
mod why;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use self::failure::Failure;
use super::client::Client;
use super::client::target::Target;
use crate::data_dir;

/// What the command line starts but may not know.
#[derive(Debug, Clone, Copy)]
pub struct Hooks {
    /// Serves until the process is told to stop.
    pub serve: fn(ServeArgs) -> anyhow::Result<ExitCode>,
    /// Runs the demonstration.
    pub demo: fn(DemoArgs) -> anyhow::Result<ExitCode>,
}

/// What `serve` was given; absent: as the config file or the defaults say.
#[derive(Debug, Clone, Default)]
pub struct ServeArgs {
    /// The data directory.
    pub data: Option<PathBuf>,
    /// Address and port, as text.
    pub listen: Option<String>,
    /// The config file.
    pub config: Option<PathBuf>,
}

/// What `demo` was given.
#[derive(Debug, Clone, Default, Args)]
pub struct DemoArgs {
    /// Run it with this engine's real agent instead of the built-in one
    #[arg(long, value_name = "ENGINE")]
    pub engine: Option<String>,
    /// Leave the temporary directory behind
    #[arg(long)]
    pub keep: bool,
}

const FIRST_STEPS: &str = "\
First steps:
  outlive demo                                          see a job survive its server, in a minute
  outlive serve                                         start a server (in another terminal)
  outlive repo add web ~/src/web                        tell it of a repository
  outlive run --repo web \"fix the failing test\"         an agent works on a copy of it
  outlive run --repo web -- make test                   or any command does
  outlive pull last                                     its commits, as a branch in your clone

ID is a job's id, the beginning of one, or `last`.

Exit codes: `run` and `wait` exit with 0 only if the job is completed; with the agent's own code if
that is 1 to 119; 1 failed with code 0; 123 interrupted; 124 timed out; 125 unknown; 128+N killed by
signal N; 130 cancelled. Ours: 2 usage, 120 no server, 121 refused, 122 not found, 126 denied,
127 damaged data.";

/// Runs AI coding agents as jobs that outlive their server.
#[derive(Debug, Parser)]
#[command(name = "outlive", version, after_help = FIRST_STEPS)]
#[command(max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Global {
    /// The server, as HOST:PORT [default: the one that uses the data directory, else 127.0.0.1:7878]
    #[arg(long, global = true, env = "OUTLIVE_SERVER", hide_env_values = true)]
    server: Option<String>,
    /// The data directory [default: /var/lib/outlive for root, else ~/.local/state/outlive]
    #[arg(long, global = true, env = "OUTLIVE_DATA", hide_env_values = true, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// See a job survive the kill -9 of its server, every claim checked
    Demo(DemoArgs),
    /// Start the server
    #[command(
        after_help = "It may be killed at any time: starting it again is all there is to recovery."
    )]
    Serve {
        /// Address and port [default: 127.0.0.1:7878]
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
        /// The config file (TOML)
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Submit a job, follow its output, exit by its outcome
    Run(run::Run),
    /// Submit a job and print its id
    Submit(submit::Submit),
    /// List jobs, newest first
    #[command(visible_alias = "ps")]
    List(list::List),
    /// Report on a job
    Show(show::Show),
    /// Print what a job's agent wrote
    #[command(visible_alias = "logs")]
    Output(output::Output),
    /// Wait until jobs are over; exit by the first that is not completed
    Wait(wait::Wait),
    /// Tell the decisions taken about a job, with the evidence
    Why(why::Why),
    /// Print what a job changed, as a patch
    Diff(give::Diff),
    /// Fetch a job's commits into the clone you are in, as branch outlive/ID
    Pull(give::Pull),
    /// Stop jobs, with all the processes they started
    Cancel(ask::Many),
    /// Start held or waiting jobs now
    Start(ask::Many),
    /// Keep queued jobs from starting
    Hold(ask::Many),
    /// Give a job one more prompt, in the same conversation and workspace
    Resume(ask::Resume),
    /// Do jobs again, in a fresh workspace
    Retry(ask::Many),
    /// Change a job that has not begun
    Edit(ask::Edit),
    /// Say how a job ended that nobody can prove the end of
    Settle(ask::Settle),
    /// Take jobs up again of which records are lost, as their directories and what can be read tell
    Repair(ask::Many),
    /// Forget jobs and delete their workspaces
    #[command(visible_alias = "rm")]
    Remove(ask::Remove),
    /// Repositories that jobs can work on
    #[command(subcommand)]
    Repo(repo::Repo),
    /// Agents that jobs can use
    #[command(subcommand)]
    Engine(engine::Engine),
    /// What became of jobs: totals, durations, use; by engine, repo, owner and day
    Stats(stats::Stats),
    /// What the server found and did when it started
    StartupLog(startup_log::StartupLog),
    /// Write everything into a file, while the server works
    Backup(backup::Backup),
    /// Let a copied data directory, or a restored backup, go on where its original stood
    AdoptData(adopt_data::AdoptData),
    /// Look into a data directory's write-ahead log; nothing is touched
    Wal(wal::Wal),
}

/// What every verb of a client stands on.
struct Context {
    target: Target,
    client: Client,
}

/// The exit code of a verb: one of ours, or one that a job's outcome gives.
type Status = u8;

/// All went well.
const SUCCESS: Status = 0;

/// Reads the command line, does it, and tells what went wrong.
pub fn main(hooks: &Hooks) -> ExitCode {
    if std::env::args_os().len() <= 1 {
        // Clap would not count this as "no arguments" where the environment gives some.
        note(&Cli::command().render_help().to_string());
        return ExitCode::from(crate::exit_code::ExitCode::Usage as Status);
    }
    match Cli::try_parse() {
        Ok(cli) => dispatch(cli, hooks),
        Err(error) => {
            // Help and version come this way too. Who does not read them does not miss them.
            drop(error.print());
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

fn dispatch(cli: Cli, hooks: &Hooks) -> ExitCode {
    let data = cli.global.data.filter(|data| !data.as_os_str().is_empty());
    let hooked = match cli.verb {
        Verb::Serve { listen, config } => (hooks.serve)(ServeArgs { data, listen, config }),
        Verb::Demo(args) => (hooks.demo)(args),
        verb => {
            let data = data.unwrap_or_else(data_dir::default_root);
            let token = std::env::var("OUTLIVE_TOKEN").ok();
            let target = Target::new(cli.global.server, token, data);
            let context = Context { client: target.client(), target };
            return match client_verb(verb, &context) {
                Ok(status) => ExitCode::from(status),
                Err(failure) => give_up(&failure),
            };
        }
    };
    hooked.unwrap_or_else(|error| give_up(&Failure::Hook(error)))
}

fn client_verb(verb: Verb, context: &Context) -> Result<Status, Failure> {
    match verb {
        Verb::Run(verb) => verb.run(context),
        Verb::Submit(verb) => verb.run(context),
        Verb::List(verb) => verb.run(context),
        Verb::Show(verb) => verb.run(context),
        Verb::Output(verb) => verb.run(context),
        Verb::Wait(verb) => verb.run(context),
        Verb::Why(verb) => verb.run(context),
        Verb::Diff(verb) => verb.run(context),
        Verb::Pull(verb) => verb.run(context),
        Verb::Cancel(jobs) => jobs.run(context, ask::Action::Cancel),
        Verb::Start(jobs) => jobs.run(context, ask::Action::Start),
        Verb::Hold(jobs) => jobs.run(context, ask::Action::Hold),
        Verb::Retry(jobs) => jobs.run(context, ask::Action::Retry),
        Verb::Repair(jobs) => jobs.run(context, ask::Action::Repair),
        Verb::Resume(verb) => verb.run(context),
        Verb::Edit(verb) => verb.run(context),
        Verb::Settle(verb) => verb.run(context),
        Verb::Remove(verb) => verb.run(context),
        Verb::Repo(verb) => verb.run(context),
        Verb::Engine(verb) => verb.run(context),
        Verb::Stats(verb) => verb.run(context),
        Verb::StartupLog(verb) => verb.run(context),
        Verb::Backup(verb) => verb.run(context),
        Verb::AdoptData(verb) => verb.run(context),
        Verb::Wal(verb) => verb.run(),
        Verb::Serve { .. } | Verb::Demo(_) => Ok(SUCCESS),
    }
}

fn give_up(failure: &Failure) -> ExitCode {
    let told = failure.told();
    if !told.is_empty() {
        note(&told);
    }
    ExitCode::from(failure.status())
}

/// Tells a person something beside the output; if nobody can hear it, nothing is lost.
fn note(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Prints an answer of the server as it is.
fn print_json(value: &serde_json::Value) -> Result<Status, Failure> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(SUCCESS)
}

#[cfg(test)]
mod tests;
