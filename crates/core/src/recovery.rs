//! From evidence to verdict: who decides after a crash, and after every end of a supervisor (I3).
//!
//! One pure function over everything that can be observed. The rows are those of the design, first match wins. Clocks decide
//! nothing here, save that an attempt of an earlier boot was past its deadline.

use alloc::format;
use alloc::string::{String, ToString as _};

use crate::evidence::{AgentResult, Evidence, Lock, Seen};
use crate::planted::planted;
use crate::spec::{Ending, Outcome, Reading, StopCause};

/// What the job, or operation, was meant to do when the evidence was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Go on.
    Running,
    /// Stop, for this cause.
    Stopping(StopCause),
}

/// What follows from the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is over, and the kernel said how.
    Conclude(Outcome),
    /// It is over, and only the agent itself said how.
    ConcludeByResult(AgentResult),
    /// A living supervisor has it: watch; stop again if it was to be stopped.
    Adopt,
    /// It lost its supervisor: start a caretaker.
    Caretake {
        /// What is left of its tree has to be ended first.
        empty_tree: bool,
    },
    /// It did certainly not run: launch it.
    Launch,
    /// It was to be stopped, and it did not run or is gone.
    Cancelled,
    /// It was past its deadline when the machine went down.
    TimedOut,
    /// It was cut off by something that is not its own doing.
    Interrupted(Interruption),
    /// It may have finished or not.
    Unknown,
}

/// What cut it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// The machine started anew.
    Reboot,
    /// The pid namespace that it ran in ended, as a container does.
    NamespaceEnded,
    /// It ran in the data directory that ours is a copy of.
    Copied,
    /// The kernel killed for want of memory.
    OutOfMemory,
}

/// A verdict with the row that gave it and the facts behind it, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What follows.
    pub verdict: Verdict,
    /// The row of the table in docs/recovery.md, from 1.
    pub row: u8,
    /// The evidence in plain words.
    pub because: String,
}

/// Judges. Total: every combination of evidence has exactly one answer.
pub fn judge(evidence: &Evidence, intent: Intent) -> Judgement {
    let stopping = matches!(intent, Intent::Stopping(_));
    row_1_outcome(evidence, stopping)
        .or_else(|| row_2_and_3_lock(evidence))
        .or_else(|| row_4_never_ran(evidence, stopping))
        .or_else(|| row_5_agent_alive(evidence))
        .or_else(|| rows_6_to_9_agent_gone(evidence, intent))
        .unwrap_or_else(|| row_10(evidence))
}

fn judgement(row: u8, verdict: Verdict, because: impl Into<String>) -> Judgement {
    Judgement { verdict, row, because: because.into() }
}

/// Row 1: the outcome slot is valid. Survivors of the tree are stopped before anything follows.
fn row_1_outcome(evidence: &Evidence, stopping: bool) -> Option<Judgement> {
    let outcome = evidence.outcome.valid()?;
    let held = !matches!(evidence.lock, Lock::Free);
    let swept = matches!(evidence.agent, Seen::OtherBoot | Seen::NamespaceEnded | Seen::Original);
    let over = evidence.tree_empty.valid().is_some() || swept || planted("recovery.no_tree_wait");
    let told = describe_ending(&outcome.ending);
    if outcome.ending == Ending::NeverRan && !held {
        return Some(if stopping || outcome.stop.is_some() {
            judgement(1, Verdict::Cancelled, "stopped before its agent was let go")
        } else {
            judgement(1, Verdict::Launch, "its supervisor died before it let the agent go")
        });
    }
    Some(if over {
        judgement(1, Verdict::Conclude(outcome.clone()), format!("outcome recorded: {told}"))
    } else if matches!(evidence.lock, Lock::Held(_)) {
        judgement(2, Verdict::Adopt, format!("{told}; its supervisor is ending what is left"))
    } else if matches!(evidence.lock, Lock::Free) {
        let empty_tree = Verdict::Caretake { empty_tree: true };
        judgement(1, empty_tree, format!("{told}; nobody has seen its tree empty yet"))
    } else {
        judgement(3, Verdict::Unknown, format!("{told}; its lock cannot be judged from here"))
    })
}

fn describe_ending(ending: &Ending) -> String {
    match ending {
        Ending::Exited(code) => format!("exited with {code}"),
        Ending::Signaled(signal) => format!("ended by signal {signal}"),
        Ending::LaunchFailed { errno, what } => format!("could not run {what} (errno {errno})"),
        Ending::NeverRan => "never ran".to_string(),
    }
}

/// Rows 2 and 3: somebody holds the lock.
fn row_2_and_3_lock(evidence: &Evidence) -> Option<Judgement> {
    match &evidence.lock {
        Lock::Free => None,
        Lock::Held(keeper) => {
            let who = keeper.as_ref().map_or_else(String::new, |k| format!(" by pid {}", k.pid));
            Some(judgement(2, Verdict::Adopt, format!("keeper.lock is held{who}, same boot")))
        }
        Lock::HeldElsewhere(keeper) => {
            let because = format!("keeper.lock is held from another machine (pid {})", keeper.pid);
            Some(judgement(3, Verdict::Unknown, because))
        }
        Lock::Unreadable(why) => {
            Some(judgement(10, Verdict::Unknown, format!("keeper.lock cannot be asked: {why}")))
        }
    }
}

/// Row 4: no `started`, so the gate never opened.
fn row_4_never_ran(evidence: &Evidence, stopping: bool) -> Option<Judgement> {
    let nothing = evidence.started == Reading::Absent && evidence.outcome == Reading::Absent;
    nothing.then(|| {
        let because = "its lock is free and it was never started";
        judgement(4, if stopping { Verdict::Cancelled } else { Verdict::Launch }, because)
    })
}

/// Row 5: the agent lives without its supervisor.
fn row_5_agent_alive(evidence: &Evidence) -> Option<Judgement> {
    (evidence.agent == Seen::Alive).then(|| {
        let pid = evidence.started.valid().map_or(0, |started| started.agent.pid);
        let because = format!("its supervisor is gone and its agent (pid {pid}) is alive");
        judgement(5, Verdict::Caretake { empty_tree: false }, because)
    })
}

/// Rows 6 to 9: the agent was let go and is gone.
fn rows_6_to_9_agent_gone(evidence: &Evidence, intent: Intent) -> Option<Judgement> {
    // Everything at once, by what took away the ground it stood on.
    let swept = match evidence.agent {
        Seen::Gone => None,
        Seen::OtherBoot => Some((Interruption::Reboot, "the machine was started anew")),
        Seen::NamespaceEnded => {
            Some((Interruption::NamespaceEnded, "the pid namespace (container) it ran in ended"))
        }
        Seen::Original => Some((
            Interruption::Copied,
            "it was started in the data directory that this one is a copy of, which was made",
        )),
        Seen::NotNamed | Seen::Alive | Seen::OtherNamespace => return None,
    };
    let stopping = matches!(intent, Intent::Stopping(_));
    let left = swept.is_none() && evidence.survivors > 0 && evidence.tree_empty.valid().is_none();
    let certain = evidence.result.is_some() || evidence.oom_kill || stopping;
    if left && certain {
        let because = format!("its agent is gone, {} of its processes are not", evidence.survivors);
        return Some(judgement(6, Verdict::Caretake { empty_tree: true }, because));
    }
    if let Intent::Stopping(cause) = intent {
        let row = if swept.is_some() { 7 } else { 9 };
        let verdict =
            if cause == StopCause::Timeout { Verdict::TimedOut } else { Verdict::Cancelled };
        return Some(judgement(row, verdict, "it was being stopped and its agent is gone"));
    }
    if let Some(result) = &evidence.result {
        let verdict = Verdict::ConcludeByResult(result.clone());
        return Some(judgement(6, verdict, "its agent is gone and left its own final result"));
    }
    if let Some((interruption, what)) = swept {
        return Some(if evidence.past_deadline {
            judgement(7, Verdict::TimedOut, format!("{what}, after its deadline"))
        } else {
            judgement(7, Verdict::Interrupted(interruption), format!("{what} while it ran"))
        });
    }
    if evidence.oom_kill {
        let because =
            "its agent is gone and the kernel counted an out-of-memory kill in its cgroup";
        return Some(judgement(8, Verdict::Interrupted(Interruption::OutOfMemory), because));
    }
    let because = "its agent is gone, and nothing tells how it ended";
    let guess = planted("recovery.run_on_a_guess");
    Some(judgement(9, if guess { Verdict::Launch } else { Verdict::Unknown }, because))
}

/// Row 10: what is left cannot be read, or contradicts itself.
fn row_10(evidence: &Evidence) -> Judgement {
    let because = match (&evidence.started, &evidence.outcome) {
        (Reading::Damaged(why), _) => format!("`started` cannot be read: {why}"),
        (_, Reading::Damaged(why)) => format!("`outcome` cannot be read: {why}"),
        _ if evidence.agent == Seen::OtherNamespace => {
            "it was started in another pid namespace, which cannot be judged from here".to_string()
        }
        _ => "its files contradict each other".to_string(),
    };
    judgement(10, Verdict::Unknown, because)
}

#[cfg(test)]
mod tests;
