//! `outlive wait`: until jobs are over.

use std::io::Write as _;

use clap::Args;

use super::failure::Failure;
use super::follow::{Follower, job};
use super::text::at;
use super::{Context, SUCCESS, Status, ending};

/// Waits until all these jobs are over, also when the server is restarted meanwhile.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outlive wait last && outlive pull last
  outlive wait abcdefghijkl bcdefghijklm

Exit code: as of `outlive run`; of several jobs, the first that is not 0, in the order given.")]
pub(super) struct Wait {
    /// The jobs
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

impl Wait {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        // All are looked up before the first is waited for: `last` means the last one now, and a slip is told at once.
        let look_up = |id: &String| job(&context.client, id);
        let jobs = self.ids.iter().map(look_up).collect::<Result<Vec<_>, _>>()?;
        let mut status = SUCCESS;
        for job in jobs {
            let job = Follower::new(&context.target).end(at(&job, "/id"))?;
            writeln!(std::io::stdout(), "{}", ending::sentence(&job))?;
            if status == SUCCESS {
                status = ending::status(&job);
            }
        }
        Ok(status)
    }
}
