//! Evidence: what can be proved of one supervised process at one moment.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::ids::ProcessRef;
use crate::spec::{Outcome, Reading, Started, TreeEmpty};

/// Everything observed in and around one keep directory. Made by looking, never by remembering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// First slot of the outcome file.
    pub outcome: Reading<Outcome>,
    /// Second slot of the outcome file.
    pub tree_empty: Reading<TreeEmpty>,
    /// The supervisor's lock.
    pub lock: Lock,
    /// The note that the gate was about to open.
    pub started: Reading<Started>,
    /// The agent's main process, as named in `started`.
    pub agent: Seen,
    /// The kernel counted an out-of-memory kill in the tree's cgroup.
    pub oom_kill: bool,
    /// Processes of the tree that are alive, the main process not counted.
    pub survivors: u32,
    /// The agent's own final result record, from its output.
    pub result: Option<AgentResult>,
    /// The boot-time clock is past the deadline in `started` (same boot), or the wall clock past it (other boot).
    pub past_deadline: bool,
    /// Why `sentinel.json` cannot be read, if it cannot. Never decides anything.
    pub sentinel_damage: Option<String>,
}

impl Evidence {
    /// Something of it may be alive: nothing here may be touched.
    pub fn may_be_alive(&self) -> bool {
        let agent = match self.agent {
            Seen::Gone | Seen::OtherBoot | Seen::NamespaceEnded | Seen::Original => false,
            Seen::NotNamed => self.started != Reading::Absent,
            Seen::Alive | Seen::OtherNamespace => true,
        };
        agent || self.lock != Lock::Free || self.survivors > 0
    }
}

/// The keeper.lock of a keep directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// Nobody holds it.
    Free,
    /// Held, and its text names a process of this boot and pid namespace, or does not say.
    Held(Option<ProcessRef>),
    /// Held, and its text names a process of another boot or pid namespace (shared storage).
    HeldElsewhere(ProcessRef),
    /// It cannot be asked; why.
    Unreadable(String),
}

/// A process, looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// Nothing names it (`started` is absent or damaged).
    NotNamed,
    /// It is alive.
    Alive,
    /// It is certainly gone: same boot and namespace, no such process, a later one with its pid, or a zombie.
    Gone,
    /// It belongs to another boot, so it is gone with it.
    OtherBoot,
    /// It belongs to another pid namespace of this boot: cannot be judged from here.
    OtherNamespace,
    /// It belonged to another pid namespace of this boot that provably exists no more, so it is gone with it.
    NamespaceEnded,
    /// It ran by the original of what is a copied data directory: whatever has become of it, it is not ours.
    Original,
}

/// What the agent itself said about its end, in its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentResult {
    /// It says it succeeded.
    pub success: bool,
    /// Its closing words, cut to a limit.
    pub text: String,
}
