//! Every combination of evidence, against the table as the design writes it. Proves I3 (its verdict half) and I6.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;
use std::println;

use super::*;
use crate::ids::ProcessRef;
use crate::spec::{Proof, Started, TreeEmpty};
use crate::time::Timestamp;

fn process() -> ProcessRef {
    ProcessRef { boot_id: "b".into(), pid_namespace: 1, pid: 7, start_ticks: 9 }
}

fn started() -> Started {
    Started {
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
    }
}

fn outcome(ending: Ending, stop: Option<StopCause>) -> Outcome {
    Outcome {
        version: 1,
        ending,
        at: Timestamp(2),
        stop,
        oom: false,
        cpu_ms: 0,
        peak_memory_bytes: 0,
        output_to: [0, 0],
    }
}

fn readings<T: Clone>(values: &[T]) -> Vec<Reading<T>> {
    let mut all = vec![Reading::Absent, Reading::Damaged("x".into())];
    all.extend(values.iter().cloned().map(Reading::Valid));
    all
}

/// The world of all evidence: every value that can change a verdict.
fn every_evidence() -> Vec<Evidence> {
    let outcomes = readings(&[
        outcome(Ending::Exited(42), None),
        outcome(Ending::NeverRan, None),
        outcome(Ending::NeverRan, Some(StopCause::Cancel)),
    ]);
    let empty = TreeEmpty {
        version: 1,
        at: Timestamp(3),
        proof: Proof::Cgroup,
        killed: 0,
        output_to: [0, 0],
    };
    let locks = [
        Lock::Free,
        Lock::Held(Some(process())),
        Lock::HeldElsewhere(process()),
        Lock::Unreadable(String::new()),
    ];
    let agents = [
        Seen::NotNamed,
        Seen::Alive,
        Seen::Gone,
        Seen::OtherBoot,
        Seen::OtherNamespace,
        Seen::NamespaceEnded,
        Seen::Original,
    ];
    let results = [None, Some(AgentResult { success: true, text: String::new() })];
    let mut all = Vec::new();
    for outcome in &outcomes {
        for tree_empty in readings(&[empty]) {
            for lock in &locks {
                for started in readings(&[started()]) {
                    for agent in agents {
                        for result in &results {
                            for bits in 0..8_u32 {
                                all.push(Evidence {
                                    outcome: outcome.clone(),
                                    tree_empty: tree_empty.clone(),
                                    lock: lock.clone(),
                                    started: started.clone(),
                                    agent,
                                    oom_kill: bits & 1 != 0,
                                    survivors: (bits >> 1) & 1,
                                    result: result.clone(),
                                    past_deadline: bits & 4 != 0,
                                    sentinel_damage: None,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
    all
}

const INTENTS: [Intent; 3] =
    [Intent::Running, Intent::Stopping(StopCause::Cancel), Intent::Stopping(StopCause::Timeout)];

/// The table written a second time, row by row, as the design has it; deliberately without the helpers above.
fn expected(e: &Evidence, intent: Intent) -> Verdict {
    let stopping = intent != Intent::Running;
    let emptied = matches!(e.tree_empty, Reading::Valid(_));
    let swept = matches!(e.agent, Seen::OtherBoot | Seen::NamespaceEnded | Seen::Original);
    let gone = swept || e.agent == Seen::Gone;
    let survivors = e.agent == Seen::Gone && e.survivors > 0 && !emptied;
    match (&e.outcome, &e.lock) {
        (Reading::Valid(o), Lock::Free) if o.ending == Ending::NeverRan => {
            if stopping || o.stop.is_some() { Verdict::Cancelled } else { Verdict::Launch }
        }
        (Reading::Valid(o), _) if emptied || swept => Verdict::Conclude(o.clone()),
        (Reading::Valid(_), Lock::Free) => Verdict::Caretake { empty_tree: true },
        (_, Lock::Held(_)) => Verdict::Adopt,
        (_, Lock::HeldElsewhere(_) | Lock::Unreadable(_)) => Verdict::Unknown,
        (Reading::Absent, Lock::Free) if matches!(e.started, Reading::Absent) => {
            if stopping {
                Verdict::Cancelled
            } else {
                Verdict::Launch
            }
        }
        _ if e.agent == Seen::Alive => Verdict::Caretake { empty_tree: false },
        _ if !gone => Verdict::Unknown,
        _ if survivors && (stopping || e.result.is_some() || e.oom_kill) => {
            Verdict::Caretake { empty_tree: true }
        }
        _ if intent == Intent::Stopping(StopCause::Timeout) => Verdict::TimedOut,
        _ if stopping => Verdict::Cancelled,
        _ if e.result.is_some() => {
            Verdict::ConcludeByResult(AgentResult { success: true, text: String::new() })
        }
        _ if swept && e.past_deadline => Verdict::TimedOut,
        _ if e.agent == Seen::OtherBoot => Verdict::Interrupted(Interruption::Reboot),
        _ if e.agent == Seen::Original => Verdict::Interrupted(Interruption::Copied),
        _ if swept => Verdict::Interrupted(Interruption::NamespaceEnded),
        _ if e.oom_kill => Verdict::Interrupted(Interruption::OutOfMemory),
        _ => Verdict::Unknown,
    }
}

#[test]
fn every_combination_of_evidence_gets_the_verdict_of_the_table() {
    let all = every_evidence();
    for evidence in &all {
        for intent in INTENTS {
            let got = judge(evidence, intent);
            assert_eq!(got.verdict, expected(evidence, intent), "{evidence:?} {intent:?} {got:?}");
            assert!((1..=10).contains(&got.row) && !got.because.is_empty());
        }
    }
    println!("{} combinations judged", all.len() * INTENTS.len());
}

#[test]
fn nothing_alive_or_doubtful_is_ever_launched_again() {
    // Proves I7: Launch is only said where the agent certainly did not run.
    for evidence in every_evidence() {
        for intent in INTENTS {
            if judge(&evidence, intent).verdict == Verdict::Launch {
                assert_eq!(evidence.lock, Lock::Free);
                let never = evidence.outcome.valid().map(|o| &o.ending) == Some(&Ending::NeverRan);
                assert!(never || evidence.started == Reading::Absent, "{evidence:?}");
                assert_eq!(intent, Intent::Running);
            }
        }
    }
}

#[test]
fn a_damaged_sentinel_never_changes_a_verdict() {
    for evidence in every_evidence() {
        let damaged = Evidence { sentinel_damage: Some("cut off".into()), ..evidence.clone() };
        for intent in INTENTS {
            assert_eq!(judge(&evidence, intent), judge(&damaged, intent));
        }
    }
}

#[test]
fn a_cancel_accepted_before_a_crash_is_one_after_it_whatever_died() {
    for evidence in every_evidence() {
        let judged = judge(&evidence, Intent::Stopping(StopCause::Cancel)).verdict;
        assert!(!matches!(judged, Verdict::Launch | Verdict::Interrupted(_)), "{evidence:?}");
    }
}

#[test]
fn whoever_cannot_be_judged_is_told_what_is_in_the_way() {
    let mut told = BTreeSet::new();
    for evidence in every_evidence() {
        let judged = judge(&evidence, Intent::Running);
        if judged.row != 10 || matches!(evidence.lock, Lock::Unreadable(_)) {
            continue;
        }
        let because = judged.because.as_str();
        let started = matches!(evidence.started, Reading::Damaged(_));
        let outcome = matches!(evidence.outcome, Reading::Damaged(_)) && !started;
        let elsewhere = evidence.agent == Seen::OtherNamespace && !started && !outcome;
        let words = ["`started`", "`outcome`", "another pid namespace"];
        let said = words.map(|word| because.contains(word));
        assert_eq!(said, [started, outcome, elsewhere], "{because}: {evidence:?}");
        told.insert(judged.because);
    }
    assert!(told.len() >= 4, "{told:?}");
}
