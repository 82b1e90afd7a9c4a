//! `outlive output`: what a job's agent wrote.

use clap::Args;

use super::failure::Failure;
use super::follow::{Follower, Form, job, output_so_far};
use super::text::at;
use super::{Context, SUCCESS, Status};

/// Prints what a job's agent wrote, over all its attempts; also while it runs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outlive output last                   what there is so far
  outlive output -f last                and what comes, until the job is over
  outlive output --raw last > bytes     byte for byte as the agent wrote it")]
pub(super) struct Output {
    /// The job
    #[arg(value_name = "ID")]
    id: String,
    /// Go on until the job is over, also when the server is restarted meanwhile
    #[arg(short, long)]
    follow: bool,
    /// Byte for byte, not as text for people
    #[arg(long)]
    raw: bool,
    /// What it wrote to standard error
    #[arg(long)]
    stderr: bool,
}

impl Output {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let form = match (self.stderr, self.raw) {
            (true, _) => Form::Stderr,
            (false, true) => Form::Raw,
            (false, false) => Form::Text,
        };
        let job = job(&context.client, &self.id)?;
        let id = at(&job, "/id");
        let mut out = std::io::stdout().lock();
        if self.follow {
            Follower::new(&context.target).output(id, form, &mut out)?;
        } else {
            output_so_far(&context.client, id, form, &mut out)?;
        }
        Ok(SUCCESS)
    }
}
