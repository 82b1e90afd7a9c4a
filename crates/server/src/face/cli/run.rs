//! `outlive run`: submit, follow, exit by the outcome.

use std::io::IsTerminal as _;
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;

use super::failure::Failure;
use super::follow::{Follower, Form};
use super::submit::Task;
use super::text::at;
use super::{Context, Status, ending, note};
use crate::face::client::target::Target;

/// The job is over, so the rest of its standard error is on its way.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Submits a job, follows its output, and exits by its outcome. The job goes on if this program, or the server, does not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outlive run --repo web \"fix the failing test\"
  outlive run --repo web --prompt-file task.md --timeout 30m
  git diff | outlive run --repo web -                   the prompt from standard input
  outlive run --repo web -- sh -c 'make test'           a command instead of an agent

Exit code: 0 only if the job is completed; the agent's own code if that is 1 to 119; 1 failed with
code 0; 123 interrupted; 124 timed out; 125 unknown; 128+N killed by signal N; 130 cancelled.")]
pub(super) struct Run {
    #[command(flatten)]
    task: Task,
}

impl Run {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let job = self.task.submit(context, false)?;
        let id = at(&job, "/id").to_string();
        note(&format!("job {id}: goes on if you leave; `outlive output -f {id}` comes back to it"));
        let errors = follow_stderr(context.target.clone(), id.clone());
        let mut out = std::io::stdout().lock();
        let job = Follower::new(&context.target).output(&id, Form::Text, &mut out)?;
        errors.last_words();
        note(&ending::sentence(&job));
        if std::io::stderr().is_terminal() {
            note(&format!("see `outlive diff {id}`, `outlive pull {id}`, `outlive show {id}`"));
        }
        Ok(ending::status(&job))
    }
}

/// Carries the agent's standard error to ours, on a thread that ends with the program.
fn follow_stderr(target: Target, id: String) -> Errors {
    let (alive, over) = mpsc::channel();
    std::thread::spawn(move || {
        // Dropped when the thread ends, whatever ends it.
        let _alive: mpsc::Sender<()> = alive;
        let mut errors = std::io::stderr();
        // What fails here fails for the output too, and is told there.
        drop(Follower::quiet(&target).output(&id, Form::Stderr, &mut errors));
    });
    Errors { over }
}

/// A thread that carries standard error. Nothing is ever sent: its end closes the channel.
struct Errors {
    over: mpsc::Receiver<()>,
}

impl Errors {
    /// Waits for the rest, but not for ever: the outcome matters more.
    fn last_words(self) {
        if self.over.recv_timeout(LAST_WORDS) == Err(mpsc::RecvTimeoutError::Timeout) {
            note("some of its standard error may be missing here: see `outlive output --stderr`");
        }
    }
}
