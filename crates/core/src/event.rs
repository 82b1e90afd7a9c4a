//! Events: what has happened. They are what the write-ahead log holds, and State is nothing but their sum.

use alloc::boxed::Box;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{AttemptNo, JobId, OperationId, RepoName, SessionId};
use crate::job::{AttemptEnd, Idempotency, Job, Outcome, WaitReason, Work, Workspace};
use crate::record::{EntityKey, EntityKind};
use crate::repo::OperationKind;
use crate::spec::StopCause;
use crate::task::Task;
use crate::time::Timestamp;

/// The body of a record: events that happen together or not at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    /// When. Never earlier than the record before it, whatever the wall clock did.
    pub at: Timestamp,
    /// What, in order.
    pub events: Vec<Event>,
}

/// One thing that has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A server has started and now writes its first record.
    ServerStarted {
        /// Counted from 1 over the life of the data directory; starts that wrote nothing are left out.
        number: u64,
        /// The program's version.
        version: String,
        /// The machine's boot id.
        boot_id: String,
    },
    /// A repo was registered; its clone has been planned with it.
    RepoAdded {
        /// Its name.
        name: RepoName,
        /// Who registered it.
        owner: String,
        /// Where from.
        source: String,
        /// Which branch.
        branch: Option<String>,
    },
    /// Its source copy is there.
    RepoReady {
        /// Its name.
        name: RepoName,
    },
    /// Its source copy could not be made.
    RepoFailed {
        /// Its name.
        name: RepoName,
        /// Why.
        reason: String,
    },
    /// Its records were lost; a person asked for it to be taken up again, and its source copy is looked for or made.
    RepoRepaired {
        /// Its name.
        name: RepoName,
        /// Who registered it.
        owner: String,
        /// Where from.
        source: String,
        /// Which branch.
        branch: Option<String>,
    },
    /// It is forgotten.
    RepoRemoved {
        /// Its name.
        name: RepoName,
    },
    /// An operation is to be done.
    OperationPlanned {
        /// Its id.
        id: OperationId,
        /// What it does.
        kind: OperationKind,
        /// Which try of the same thing.
        tries: u32,
    },
    /// An operation is over and its tree is empty.
    OperationEnded {
        /// Its id.
        id: OperationId,
    },
    /// Records of an operation were lost, and nothing waits for it any more.
    OperationForgotten {
        /// Its id.
        id: OperationId,
    },
    /// A job was accepted.
    JobAccepted(Box<Accepted>),
    /// Records of a job were lost; a person asked for it to be taken up again as it is known now. This is all of it: what came
    /// before does not matter any more.
    JobRepaired {
        /// As it is from here on.
        job: Box<Job>,
    },
    /// It is ready: from held or waiting.
    JobReleased {
        /// The job.
        job: JobId,
    },
    /// It was taken back from the queue.
    JobHeld {
        /// The job.
        job: JobId,
    },
    /// It waits for something outside the queue.
    JobWaits {
        /// The job.
        job: JobId,
        /// For what.
        reason: WaitReason,
        /// Until when, if time decides.
        until: Option<Timestamp>,
    },
    /// Its task was changed before it began.
    JobEdited {
        /// The job.
        job: JobId,
        /// The task from now on.
        task: Box<Task>,
        /// The prompt from now on.
        prompt: Option<String>,
    },
    /// Its workspace is to be copied.
    CopyPlanned {
        /// The job.
        job: JobId,
        /// By this operation.
        operation: OperationId,
    },
    /// Its workspace is there.
    WorkspaceReady {
        /// The job.
        job: JobId,
        /// How it was made.
        workspace: Workspace,
    },
    /// Its agent is to be launched. From here on an agent may be alive.
    LaunchPlanned {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: AttemptNo,
        /// The turn it works on.
        turn: u32,
        /// It continues its session.
        resume: bool,
    },
    /// Its work is to be stopped.
    StopRequested {
        /// The job.
        job: JobId,
        /// What is stopped.
        work: Work,
        /// Why.
        cause: StopCause,
    },
    /// An attempt is over and its tree is empty, or cannot matter any more.
    AttemptEnded {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: AttemptNo,
        /// How.
        end: Box<AttemptEnd>,
    },
    /// It cannot be known how the attempt ended.
    AttemptUnknown {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: AttemptNo,
    },
    /// The turn is done; the job goes on with the next, if there is one.
    TurnDone {
        /// The job.
        job: JobId,
    },
    /// It is ready once more, for another attempt.
    JobRequeued {
        /// The job.
        job: JobId,
        /// Why.
        cause: RequeueCause,
        /// The end of the pause before it, if there is one.
        until: Option<Timestamp>,
        /// A new session and workspace, rather than the ones it has.
        afresh: Option<SessionId>,
    },
    /// It is over.
    JobEnded {
        /// The job.
        job: JobId,
        /// How.
        outcome: Box<Outcome>,
    },
    /// A prompt was added.
    TurnAdded {
        /// The job.
        job: JobId,
        /// What is to be done.
        prompt: String,
    },
    /// It is forgotten.
    JobRemoved {
        /// The job.
        job: JobId,
    },
    /// The removal of a job was long ago: its key may be used anew.
    JobForgotten {
        /// The removed job.
        job: JobId,
    },
    /// The removal of a repo was long ago.
    RepoForgotten {
        /// The removed repo.
        name: RepoName,
    },
    /// Something alive was taken over again; nothing changed but who watches.
    Adopted {
        /// What.
        work: Work,
    },
    /// A caretaker is to take over what lost its supervisor.
    CaretakerPlanned {
        /// Of what.
        work: Work,
        /// It is to end what is left of the tree.
        empty_tree: bool,
    },
    /// What was planned did certainly not run: it is launched now.
    RelaunchPlanned {
        /// What.
        work: Work,
    },
    /// Why something was decided, for `outlive why`.
    Decided {
        /// The job.
        job: JobId,
        /// What, in a few words.
        what: String,
        /// The evidence in plain words; may be empty.
        because: String,
        /// The rule; may be empty.
        rule: String,
    },
}

/// Why a job is ready once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequeueCause {
    /// A person asked for it: it has all its tries again.
    Asked,
    /// An interruption: one of its tries is used up.
    Interruption,
    /// Its agent met a usage limit.
    UsageLimit,
    /// Its agent met an overloaded model.
    Overload,
    /// The conversation was opened in the wrong way and nothing was done: still the same try.
    Reopened,
}

/// A job at its acceptance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its name.
    pub job: JobId,
    /// Who submitted it.
    pub owner: String,
    /// What was asked for.
    pub task: Task,
    /// The first prompt.
    pub prompt: String,
    /// Its conversation.
    pub session: SessionId,
    /// It is not to start by itself.
    pub held: bool,
    /// It is to start by itself only then.
    pub start_after: Option<Timestamp>,
    /// The client's key.
    pub idempotency: Option<Idempotency>,
}

/// The entity of what belongs to the server as a whole.
pub fn server_entity() -> EntityKey {
    EntityKey { kind: EntityKind::Server, name: "server".to_string() }
}

/// The entity of a job.
pub fn job_entity(id: &JobId) -> EntityKey {
    EntityKey { kind: EntityKind::Job, name: id.to_string() }
}

/// The entity of a repo.
pub fn repo_entity(name: &RepoName) -> EntityKey {
    EntityKey { kind: EntityKind::Repo, name: name.to_string() }
}

/// The entity of an operation.
pub fn operation_entity(id: OperationId) -> EntityKey {
    EntityKey { kind: EntityKind::Operation, name: id.to_string() }
}

fn work_entity(work: &Work) -> EntityKey {
    match work {
        Work::Attempt { job, .. } => job_entity(job),
        Work::Operation { id } => operation_entity(*id),
    }
}

impl Event {
    /// It says all there is to know of its entity, so that lost records before it do not matter any more.
    pub fn begins_again(&self) -> bool {
        matches!(
            self,
            Self::ServerStarted { .. }
                | Self::RepoRepaired { .. }
                | Self::RepoRemoved { .. }
                | Self::OperationForgotten { .. }
                | Self::JobRepaired { .. }
                | Self::JobRemoved { .. }
        )
    }

    /// The entity whose history this belongs to. Each event has exactly one, so damage can be contained (I10).
    pub fn entity(&self) -> EntityKey {
        match self {
            Self::ServerStarted { .. } => server_entity(),
            Self::RepoAdded { name, .. }
            | Self::RepoRepaired { name, .. }
            | Self::RepoForgotten { name }
            | Self::RepoReady { name }
            | Self::RepoFailed { name, .. }
            | Self::RepoRemoved { name } => repo_entity(name),
            Self::OperationPlanned { id, .. }
            | Self::OperationEnded { id }
            | Self::OperationForgotten { id } => operation_entity(*id),
            Self::JobAccepted(accepted) => job_entity(&accepted.job),
            Self::JobRepaired { job } => job_entity(&job.id),
            Self::JobReleased { job }
            | Self::JobHeld { job }
            | Self::JobWaits { job, .. }
            | Self::JobEdited { job, .. }
            | Self::CopyPlanned { job, .. }
            | Self::WorkspaceReady { job, .. }
            | Self::LaunchPlanned { job, .. }
            | Self::StopRequested { job, .. }
            | Self::AttemptEnded { job, .. }
            | Self::AttemptUnknown { job, .. }
            | Self::TurnDone { job }
            | Self::JobRequeued { job, .. }
            | Self::JobEnded { job, .. }
            | Self::TurnAdded { job, .. }
            | Self::JobRemoved { job }
            | Self::JobForgotten { job }
            | Self::Decided { job, .. } => job_entity(job),
            Self::Adopted { work }
            | Self::CaretakerPlanned { work, .. }
            | Self::RelaunchPlanned { work } => work_entity(work),
        }
    }
}
