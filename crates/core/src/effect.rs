//! Effects: what the world is to be made to do, once the event that asks for it is durable. Every one may be repeated (I7).

use crate::ids::{JobId, OperationId, RepoName};
use crate::job::Work;
use crate::spec::StopCause;

/// One thing to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write the keep directory if it is not there, start a supervisor, watch it.
    Launch {
        /// What.
        work: Work,
    },
    /// Watch a supervisor that is alive.
    Watch {
        /// Of what.
        work: Work,
    },
    /// Start a caretaker and watch it.
    Caretake {
        /// Of what.
        work: Work,
        /// First ask for the end of the tree.
        empty_tree: bool,
    },
    /// Write the stop request and wake the supervisor.
    Stop {
        /// Of what.
        work: Work,
        /// Why.
        cause: StopCause,
    },
    /// Stop watching: it is over.
    Release {
        /// What.
        work: Work,
    },
    /// Move a job's directory to the trash.
    TrashJob {
        /// Which.
        job: JobId,
    },
    /// Move a repo's source copy to the trash.
    TrashRepo {
        /// Which.
        name: RepoName,
    },
    /// Move an operation's keep directory to the trash.
    TrashOperation {
        /// Which.
        id: OperationId,
    },
}
