//! What somebody who looks at a piece of work may see, as evidence.

use alloc::string::String;
use alloc::vec;

use crate::engine::{Limit, SessionSign, Usage};
use crate::evidence::{AgentResult, Evidence, Lock, Seen};
use crate::ids::{ProcessRef, SessionId};
use crate::job::Work;
use crate::request::{Findings, Report};
use crate::spec::{Ending, Outcome, Proof, Reading, Started, StopCause, TreeEmpty};
use crate::time::Timestamp;

/// One view of a piece of work.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Look {
    /// A supervisor has it.
    Alive,
    /// Nothing was ever started.
    Nothing,
    /// Its supervisor died before the gate.
    NeverRan,
    /// It exited; its tree is empty.
    Exited(i32),
    /// It exited with 1, and its output shows this of its conversation.
    Sign(SessionSign),
    /// It exited with 1, and its output says that this limit was met.
    Limited(Limit),
    /// It was stopped as it was asked to be.
    Stopped(StopCause),
    /// It exited, and tools of it still run.
    ExitedTreeAlive,
    /// The agent lives, its supervisor does not.
    Orphan,
    /// The machine was started anew.
    Rebooted,
    /// The same, after its deadline.
    RebootedLate,
    /// Out of memory.
    OutOfMemory,
    /// Gone without a word.
    Lost,
    /// Gone without a word, but for tools that still run.
    LostTreeAlive,
    /// Gone, with a good closing record.
    SaidDone,
    /// Somebody on another machine has it.
    Elsewhere,
    /// `started` cannot be read.
    Damaged,
    /// The program could not be run.
    LaunchFailed,
}

/// All of them.
pub(super) fn every() -> [Look; 22] {
    [
        Look::Alive,
        Look::Nothing,
        Look::NeverRan,
        Look::Exited(0),
        Look::Exited(42),
        Look::Sign(SessionSign::NotFound),
        Look::Sign(SessionSign::InUse),
        Look::Limited(Limit::Overload),
        Look::Limited(Limit::Usage { resets_at: None }),
        Look::Limited(Limit::Usage { resets_at: Some(Timestamp(1_500_000)) }),
        Look::Stopped(StopCause::Cancel),
        Look::ExitedTreeAlive,
        Look::Orphan,
        Look::Rebooted,
        Look::RebootedLate,
        Look::OutOfMemory,
        Look::Lost,
        Look::LostTreeAlive,
        Look::SaidDone,
        Look::Elsewhere,
        Look::Damaged,
        Look::LaunchFailed,
    ]
}

/// Where the output of every attempt begins and ends.
pub(super) const OUTPUT: [u64; 2] = [100, 10];

fn process() -> ProcessRef {
    ProcessRef { boot_id: "b".into(), pid_namespace: 1, pid: 7, start_ticks: 9 }
}

fn nothing() -> Evidence {
    Evidence {
        outcome: Reading::Absent,
        tree_empty: Reading::Absent,
        lock: Lock::Free,
        started: Reading::Absent,
        agent: Seen::NotNamed,
        oom_kill: false,
        survivors: 0,
        result: None,
        past_deadline: false,
        sentinel_damage: None,
    }
}

/// It was started, and is seen so.
fn started(agent: Seen) -> Evidence {
    let started = Started {
        version: 1,
        at: Timestamp(1),
        agent: process(),
        keeper: process(),
        cgroups: vec![],
        deadline_boot_ms: None,
        pipes: None,
        output_from: [0, 0],
        namespace: None,
        unenforced: vec![],
    };
    Evidence { started: Reading::Valid(started), agent, ..nothing() }
}

fn ended(ending: Ending, stop: Option<StopCause>) -> Evidence {
    let outcome = Outcome {
        version: 1,
        ending,
        at: Timestamp(2),
        stop,
        oom: false,
        cpu_ms: 0,
        peak_memory_bytes: 0,
        output_to: OUTPUT,
    };
    let (at, proof, output_to) = (Timestamp(3), Proof::Cgroup, OUTPUT);
    let empty = TreeEmpty { version: 1, at, proof, killed: 0, output_to };
    let (outcome, tree_empty) = (Reading::Valid(outcome), Reading::Valid(empty));
    Evidence { outcome, tree_empty, ..started(Seen::Gone) }
}

impl Look {
    /// What can be proved when it looks so.
    pub(super) fn evidence(&self) -> Evidence {
        match self {
            Self::Alive => Evidence { lock: Lock::Held(Some(process())), ..started(Seen::Alive) },
            Self::Nothing => nothing(),
            Self::NeverRan => {
                Evidence { outcome: ended(Ending::NeverRan, None).outcome, ..nothing() }
            }
            Self::Exited(code) => ended(Ending::Exited(*code), None),
            Self::Sign(_) | Self::Limited(_) => ended(Ending::Exited(1), None),
            Self::Stopped(cause) => ended(Ending::Signaled(15), Some(*cause)),
            Self::ExitedTreeAlive => Evidence {
                tree_empty: Reading::Absent,
                survivors: 1,
                ..ended(Ending::Exited(0), None)
            },
            Self::Orphan => started(Seen::Alive),
            Self::Rebooted => started(Seen::OtherBoot),
            Self::RebootedLate => Evidence { past_deadline: true, ..started(Seen::OtherBoot) },
            Self::OutOfMemory => Evidence { oom_kill: true, ..started(Seen::Gone) },
            Self::Lost => started(Seen::Gone),
            Self::LostTreeAlive => Evidence { survivors: 2, ..started(Seen::Gone) },
            Self::SaidDone => {
                let result = AgentResult { success: true, text: "done".into() };
                Evidence { result: Some(result), ..started(Seen::Gone) }
            }
            Self::Elsewhere => {
                Evidence { lock: Lock::HeldElsewhere(process()), ..started(Seen::OtherBoot) }
            }
            Self::Damaged => Evidence { started: Reading::Damaged("cut".into()), ..nothing() },
            Self::LaunchFailed => {
                ended(Ending::LaunchFailed { errno: 2, what: "claude".into() }, None)
            }
        }
    }

    /// The report of somebody who looked.
    pub(super) fn report(&self, work: Work, fresh_session: SessionId) -> Report {
        let session_sign = match self {
            Self::Sign(sign) => Some(*sign),
            _ => Some(SessionSign::Announced),
        };
        let answer = serde_json::json!({ "made_by": "reflink", "base_commit": "abc" });
        let findings = Findings {
            usage: Some(Usage { input_tokens: 5, output_tokens: 3, cost_micros: Some(7) }),
            session_sign,
            limit: match self {
                Self::Limited(limit) => Some(*limit),
                _ => None,
            },
            answer: Some(answer),
            complaint: String::new(),
            output_now: OUTPUT,
        };
        Report { work, evidence: self.evidence(), findings, fresh_session }
    }
}
