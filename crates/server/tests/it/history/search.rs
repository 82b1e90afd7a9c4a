//! Whether a job's history is one story: an order of all acknowledged operations, each between its question and its answer, in
//! which every answer is what the promise says (Wing and Gong's search, with a memory of where it has been).
//!
//! Between any two operations the server may do its own work: take a job from the queue, finish it. What nobody got an answer to may
//! have happened or not.

use std::collections::HashSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    Absent,
    Held,
    Queued,
    Preparing,
    Running,
    Stopping,
    Completed,
    Cancelled,
    Removed,
}

use Place::{Absent, Cancelled, Completed, Held, Preparing, Queued, Removed, Running, Stopping};

/// All that the promise needs to know of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    pub(crate) place: Place,
    pub(crate) priority: u8,
    pub(crate) turns: u8,
    done: u8,
    /// Its session has a workspace, and had an attempt.
    workspace: bool,
    launched: bool,
}

const NOBODY: Job =
    Job { place: Absent, priority: 50, turns: 1, done: 0, workspace: false, launched: false };

/// What a client asks of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Submit { held: bool },
    Start,
    Hold,
    Cancel,
    Resume,
    Retry,
    Settle,
    Edit(u8),
    Remove,
    Read,
}

/// What it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Granted,
    /// A submission's: it was there already.
    Same,
    /// Not in this phase.
    NotIn(Place),
    /// There is no such job.
    Unknown,
    WorkspaceGone,
    /// A read's: where it is, priority, turns.
    Seen(Place, u8, u8),
    /// None: the server died first.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) wish: Wish,
    pub(crate) answer: Answer,
    /// Nanoseconds since the story began.
    pub(crate) asked: u64,
    pub(crate) answered: u64,
}

impl Job {
    /// The places in which the promise grants a wish.
    fn grants(self, wish: Wish) -> bool {
        match wish {
            Wish::Submit { .. } => self.place == Absent,
            Wish::Start => self.place == Held,
            Wish::Hold => self.place == Queued,
            Wish::Edit(_) => matches!(self.place, Held | Queued),
            Wish::Cancel => {
                matches!(self.place, Held | Queued | Preparing | Running | Stopping)
            }
            Wish::Resume => matches!(self.place, Preparing | Running | Completed | Cancelled),
            Wish::Retry => matches!(self.place, Completed | Cancelled),
            Wish::Remove => matches!(self.place, Held | Queued | Completed | Cancelled),
            Wish::Settle => false,
            Wish::Read => !matches!(self.place, Absent | Removed),
        }
    }

    /// The job after a wish that was granted.
    fn after(self, wish: Wish) -> Self {
        let at = |place| Self { place, ..self };
        let over = matches!(self.place, Completed | Cancelled);
        match wish {
            Wish::Submit { held } => at(if held { Held } else { Queued }),
            Wish::Start => at(Queued),
            Wish::Hold => at(Held),
            Wish::Cancel if matches!(self.place, Held | Queued) => {
                Self { place: Cancelled, done: self.turns, ..self }
            }
            Wish::Cancel => at(Stopping),
            Wish::Resume if over => {
                Self { place: Queued, done: self.turns, turns: self.turns + 1, ..self }
            }
            Wish::Resume => Self { turns: self.turns + 1, ..self },
            // A session in which nothing ran is used again, with what it has.
            Wish::Retry if !self.launched => Self { place: Queued, done: 0, ..self },
            Wish::Retry => {
                Self { place: Queued, done: 0, workspace: false, launched: false, ..self }
            }
            Wish::Edit(priority) => Self { priority, ..self },
            Wish::Remove => at(Removed),
            Wish::Settle | Wish::Read => self,
        }
    }

    /// What the server may do by itself.
    fn by_itself(self) -> Option<Self> {
        let runs = |job: Self| Self { place: Running, workspace: true, launched: true, ..job };
        match self.place {
            Queued if self.workspace => Some(runs(self)),
            Queued => Some(Self { place: Preparing, ..self }),
            Preparing => Some(runs(self)),
            Running if self.done + 1 < self.turns => {
                Some(Self { place: Queued, done: self.done + 1, ..self })
            }
            Running => Some(Self { place: Completed, done: self.turns, ..self }),
            Stopping => Some(Self { place: Cancelled, done: self.turns, ..self }),
            Absent | Held | Completed | Cancelled | Removed => None,
        }
    }

    /// The job after the operation, if this answer can be given now.
    fn take(self, operation: &Operation) -> Option<Self> {
        let Operation { wish, answer, .. } = *operation;
        let gone =
            wish == Wish::Resume && matches!(self.place, Completed | Cancelled) && !self.workspace;
        let granted = self.grants(wish) && !gone;
        let fits = match answer {
            Answer::Granted | Answer::Nothing => return granted.then(|| self.after(wish)),
            Answer::Same => self.place != Absent,
            // A refusal names the phase, and not how the job ended.
            Answer::NotIn(Completed) => {
                matches!(self.place, Completed | Cancelled) && !self.grants(wish)
            }
            Answer::NotIn(place) => self.place == place && !self.grants(wish),
            Answer::Unknown => matches!(self.place, Absent | Removed),
            Answer::WorkspaceGone => gone,
            Answer::Seen(place, priority, turns) => {
                (self.place, self.priority, self.turns) == (place, priority, turns)
            }
        };
        fits.then_some(self)
    }
}

/// Whether there is such an order. Operations in the order of their questions.
pub(crate) fn is_one_story(operations: &[Operation]) -> bool {
    assert!(operations.len() <= 128, "a mask has 128 bits");
    assert!(operations.is_sorted_by_key(|operation| operation.asked));
    let must = |operation: &Operation| operation.answer != Answer::Nothing;
    let wanted = (0..operations.len()).filter(|n| must(&operations[*n]));
    let wanted = wanted.fold(0_u128, |mask, n| mask | 1 << n);
    let mut seen = HashSet::new();
    let mut open = vec![(0_u128, NOBODY)];
    while let Some((done, job)) = open.pop() {
        if done & wanted == wanted {
            return true;
        }
        if !seen.insert((done, job)) {
            continue;
        }
        // Whatever was answered before another was asked comes before it.
        let left = || operations.iter().enumerate().filter(|(n, _)| done >> n & 1 == 0);
        let first_answer = left().filter(|(_, it)| must(it)).map(|(_, it)| it.answered).min();
        for (n, operation) in left() {
            if first_answer.is_some_and(|first| operation.asked > first) {
                break;
            }
            open.extend(job.take(operation).map(|after| (done | 1 << n, after)));
        }
        open.extend(job.by_itself().map(|after| (done, after)));
    }
    false
}

/// The shortest beginning that is no story any more: where to look.
pub(crate) fn first_contradiction(operations: &[Operation]) -> &[Operation] {
    let upto = (1..=operations.len()).find(|upto| !is_one_story(&operations[..*upto]));
    &operations[..upto.unwrap_or(0)]
}

/// Operations one after the other, each answered before the next is asked.
fn in_turn(all: &[(Wish, Answer)]) -> Vec<Operation> {
    let numbered = (0..).step_by(10).zip(all);
    let one = |(asked, (wish, answer)): (u64, &(Wish, Answer))| Operation {
        wish: *wish,
        answer: *answer,
        asked,
        answered: asked + 5,
    };
    numbered.map(one).collect()
}

const SUBMITTED: (Wish, Answer) = (Wish::Submit { held: true }, Answer::Granted);

#[test]
fn a_story_in_which_everything_follows_is_one() {
    let told = [
        SUBMITTED,
        (Wish::Edit(70), Answer::Granted),
        (Wish::Read, Answer::Seen(Held, 70, 1)),
        (Wish::Start, Answer::Granted),
        (Wish::Start, Answer::NotIn(Running)),
        (Wish::Resume, Answer::Granted),
        (Wish::Read, Answer::Seen(Running, 70, 2)),
        (Wish::Cancel, Answer::Granted),
        (Wish::Cancel, Answer::NotIn(Completed)),
        (Wish::Retry, Answer::Granted),
        (Wish::Read, Answer::Seen(Completed, 70, 2)),
        (Wish::Remove, Answer::Granted),
        (Wish::Read, Answer::Unknown),
        (Wish::Submit { held: true }, Answer::Same),
    ];
    assert!(is_one_story(&in_turn(&told)));
}

#[test]
fn what_was_lost_told_too_early_or_done_twice_is_found() {
    let started = (Wish::Start, Answer::Granted);
    let contradictions: [&[(Wish, Answer)]; 9] = [
        &[SUBMITTED, (Wish::Read, Answer::Unknown)],
        &[SUBMITTED, SUBMITTED],
        &[SUBMITTED, (Wish::Edit(70), Answer::Granted), (Wish::Read, Answer::Seen(Held, 50, 1))],
        // A cancel that was lost.
        &[
            SUBMITTED,
            started,
            (Wish::Cancel, Answer::Granted),
            (Wish::Read, Answer::Seen(Completed, 50, 1)),
        ],
        // A read of what was not durable yet, and then was not there.
        &[
            SUBMITTED,
            (Wish::Start, Answer::Nothing),
            (Wish::Read, Answer::Seen(Queued, 50, 1)),
            (Wish::Read, Answer::Seen(Held, 50, 1)),
        ],
        &[
            SUBMITTED,
            started,
            (Wish::Resume, Answer::Granted),
            (Wish::Read, Answer::Seen(Completed, 50, 1)),
        ],
        &[SUBMITTED, (Wish::Remove, Answer::Granted), (Wish::Start, Answer::Granted)],
        &[SUBMITTED, (Wish::Settle, Answer::Granted)],
        &[SUBMITTED, (Wish::Cancel, Answer::Granted), (Wish::Resume, Answer::Granted)],
    ];
    for told in contradictions {
        assert!(!is_one_story(&in_turn(told)), "{told:?}");
        assert_eq!(first_contradiction(&in_turn(told)), in_turn(told));
    }
}

#[test]
fn what_overlaps_may_come_in_any_order_and_what_nobody_answered_may_have_happened() {
    let mut told = in_turn(&[
        SUBMITTED,
        (Wish::Read, Answer::Seen(Held, 50, 1)),
        (Wish::Edit(70), Answer::Granted),
        (Wish::Read, Answer::Seen(Held, 50, 1)),
    ]);
    assert!(!is_one_story(&told));
    // The edit had not been answered yet when the read was asked.
    told[2].answered = 32;
    assert!(is_one_story(&told));
    for seen in [50, 70] {
        let read = (Wish::Read, Answer::Seen(Held, seen, 1));
        assert!(is_one_story(&in_turn(&[SUBMITTED, (Wish::Edit(70), Answer::Nothing), read])));
    }
}
