//! Random histories: whatever is asked, seen and waited for, in whatever order, everything of `model` holds after each step.

use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use proptest::prelude::*;

use super::{Look, Rig, State, add_repo, damage, key, looks, model, repo, restored, stories};
use crate::event::Event;
use crate::event::Transaction;
use crate::ids::JobId;
use crate::job::{OutcomeKind, Phase, Work};
use crate::request::{Edit, Granted, Refusal, Request};
use crate::task::{OnInterrupt, OnLimit, OnUnknown};
use crate::time::Timestamp;

const REPOS: [&str; 3] = ["r", "s", "t"];
const ENGINES: [&str; 3] = ["demo", "claude", "command"];

#[derive(Debug, Clone)]
pub(super) struct Wish {
    priority: u8,
    repo: usize,
    engine: usize,
    held: bool,
    later: Option<u16>,
    key: Option<u8>,
    policy: u8,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Submit(Wish),
    /// The nth job, the nth request.
    Ask(usize, usize),
    /// The nth work under way (or, now and then, one that is over), the nth look.
    See(usize, usize),
    /// The nth work under way ends well.
    Done(usize),
    Pass(u32),
    /// The clock is set back.
    SetBack(u32),
    AddRepo(usize),
    RemoveRepo(usize),
    Slots(u32),
}

fn wishes() -> impl Strategy<Value = Wish> {
    let whom = (0..=100_u8, 0..REPOS.len(), 0..ENGINES.len());
    let when = (prop::bool::weighted(0.2), prop::option::weighted(0.2, any::<u16>()));
    let rest = (prop::option::weighted(0.4, 0..4_u8), 0..12_u8);
    (whom, when, rest).prop_map(|((priority, repo, engine), (held, later), (key, policy))| Wish {
        // Few different priorities, so that many jobs share one.
        priority: priority / 50 * 50,
        repo,
        engine,
        held,
        later,
        key,
        policy,
    })
}

pub(super) fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => wishes().prop_map(Step::Submit),
        5 => (any::<usize>(), 0..9_usize).prop_map(|(job, request)| Step::Ask(job, request)),
        6 => (any::<usize>(), any::<usize>()).prop_map(|(work, look)| Step::See(work, look)),
        6 => any::<usize>().prop_map(Step::Done),
        2 => (0..200_000_u32).prop_map(Step::Pass),
        1 => Just(Step::Pass(90_000_000)),
        1 => (0..200_000_000_u32).prop_map(Step::SetBack),
        2 => (0..REPOS.len()).prop_map(Step::AddRepo),
        1 => (0..REPOS.len()).prop_map(Step::RemoveRepo),
        1 => (0..4_u32).prop_map(Step::Slots),
    ]
}

/// A step with everything chosen that it leaves open.
#[derive(Debug, Clone)]
pub(super) enum Deed {
    Ask(Request),
    See(Work, Look),
    Pass(Duration),
    SetBack(Duration),
    Slots(u32),
}

fn pick<T: Clone>(all: &[T], n: usize) -> Option<T> {
    (!all.is_empty()).then(|| all[n % all.len()].clone())
}

fn under_way(rig: &Rig) -> Vec<Work> {
    let whole = rig.state.jobs().filter(|job| rig.state.is_whole(&job.id));
    let attempts = whole.filter_map(|job| match job.phase.work(&job.id) {
        Some(work @ Work::Attempt { .. }) => Some(work),
        _ => None,
    });
    let operations = rig.state.operations().map(|operation| Work::Operation { id: operation.id });
    attempts.chain(operations).collect()
}

fn ever_launched(rig: &Rig) -> Vec<Work> {
    let attempts = rig.state.jobs().flat_map(|job| {
        let work = |n| Work::Attempt { job: job.id.clone(), attempt: n };
        job.attempts.iter().map(move |attempt| work(attempt.n)).collect::<Vec<_>>()
    });
    attempts.collect()
}

fn submission(rig: &mut Rig, wish: &Wish) -> Request {
    let mut submission = rig.submission();
    submission.held = wish.held;
    submission.start_after = wish.later.map(|ms| rig.now.after(Duration::from_millis(ms.into())));
    submission.idempotency =
        wish.key.map(|n| key(["a", "b"][usize::from(n % 2)], ["1", "2"][usize::from(n / 2)]));
    let task = &mut submission.task;
    task.priority = wish.priority;
    task.repos = vec![repo(REPOS[wish.repo])];
    if wish.policy == 11 {
        task.repos.push(repo(REPOS[(wish.repo + 1) % REPOS.len()]));
    }
    task.engine = ENGINES[wish.engine].into();
    task.max_interrupts = u32::from(wish.policy % 3);
    let interrupts = [OnInterrupt::Resume, OnInterrupt::Retry, OnInterrupt::Fail];
    task.on_interrupt = interrupts[usize::from(wish.policy % 3)];
    if wish.policy == 10 {
        task.on_limit = OnLimit::Fail;
    }
    let unknowns = [OnUnknown::Hold, OnUnknown::Resume, OnUnknown::Retry, OnUnknown::Fail];
    task.on_unknown = unknowns[usize::from(wish.policy % 4)];
    Request::Submit(submission.into())
}

fn request(rig: &mut Rig, job: JobId, request: usize) -> Request {
    let edit = |priority, prompt: Option<&str>| {
        let prompt = prompt.map(Into::into);
        Edit { priority, timeout_ms: Some(5), title: None, prompt }
    };
    match request {
        0 => Request::Start(job),
        1 => Request::Hold(job),
        2 => Request::Cancel(job),
        3 | 8 => Request::Resume { job, prompt: "more of it".into() },
        4 => Request::Retry { job, session: rig.fresh_session() },
        5 => Request::Edit { job, edit: edit(Some(100), None) },
        6 => Request::Settle { job, kind: OutcomeKind::Failed },
        _ if rig.made.is_multiple_of(2) => {
            Request::Edit { job, edit: edit(None, Some("other words")) }
        }
        _ => Request::Remove { job },
    }
}

/// Chooses what a step leaves open; none where there is nothing to choose from.
pub(super) fn deed(rig: &mut Rig, step: &Step) -> Option<Deed> {
    Some(match step {
        Step::Submit(wish) => Deed::Ask(submission(rig, wish)),
        Step::Ask(job, what) => {
            let jobs: Vec<JobId> = rig.state.jobs().map(|job| job.id.clone()).collect();
            let job = pick(&jobs, *job)?;
            Deed::Ask(request(rig, job, *what))
        }
        Step::See(work, look) => {
            let works = if look % 7 == 0 { ever_launched(rig) } else { under_way(rig) };
            Deed::See(pick(&works, *work)?, pick(&looks::every(), *look)?)
        }
        Step::Done(work) => Deed::See(pick(&under_way(rig), *work)?, Look::Exited(0)),
        Step::Pass(ms) => Deed::Pass(Duration::from_millis((*ms).into())),
        Step::SetBack(ms) => Deed::SetBack(Duration::from_millis((*ms).into())),
        Step::AddRepo(n) => Deed::Ask(add_repo(REPOS[*n])),
        Step::RemoveRepo(n) => Deed::Ask(Request::RemoveRepo(repo(REPOS[*n]))),
        Step::Slots(max) => Deed::Slots(*max),
    })
}

/// Does it; the answer, where one was asked for. That a refusal changes nothing is checked by the rig.
pub(super) fn perform(rig: &mut Rig, deed: &Deed) -> Option<Result<Granted, Refusal>> {
    match deed {
        Deed::Ask(request) => return Some(rig.ask(request.clone())),
        Deed::See(work, look) => rig.see(work, look),
        Deed::Pass(time) => rig.pass(*time),
        Deed::SetBack(time) => {
            let back = u64::try_from(time.as_millis()).expect("days");
            rig.now = Timestamp(rig.now.0.saturating_sub(back));
            rig.pass(Duration::ZERO);
        }
        Deed::Slots(max) => rig.rules.running_max = *max,
    }
    None
}

/// Slots are taken only while there are free ones.
fn step(rig: &mut Rig, step: &Step) {
    let (before, records) = (rig.state.busy(), rig.records.len());
    if let Some(deed) = deed(rig, step) {
        drop(perform(rig, &deed));
    }
    // What a person asks of survivors (resume of what is unknown) takes a slot beside the others: they are alive anyway.
    let resumed = usize::from(matches!(step, Step::Ask(..)));
    let limit = before.max(rig.rules.running_max as usize) + resumed;
    assert!(rig.state.busy() <= limit, "{} slots are taken", rig.state.busy());
    assert!(rig.records.len() <= records + 1);
}

/// Everything that is under way ends, until nothing is.
fn to_the_end(rig: &mut Rig) {
    rig.rules.running_max = 2;
    // However far the clock was set back, every start time comes.
    rig.pass(Duration::from_hours(365 * 24));
    for _ in 0..2_000 {
        rig.pass(Duration::from_mins(10));
        let works = under_way(rig);
        if works.is_empty() {
            break;
        }
        for work in works {
            rig.see(&work, &Look::Exited(0));
        }
    }
    for job in rig.state.jobs().filter(|job| rig.state.is_whole(&job.id)) {
        let rests = matches!(job.phase, Phase::Held | Phase::Unknown { .. } | Phase::Ended { .. });
        assert!(rests, "{} is left {:?}", job.id, job.phase);
        assert!(job.attempts.iter().all(|attempt| attempt.end.is_some()));
    }
    assert_eq!((rig.state.busy(), rig.state.queued(), rig.state.operations().count()), (0, 0, 0));
}

/// A server that starts anew after every step: records read back from their bytes, and now and then a checkpoint.
#[derive(Default)]
struct Shadow {
    state: State,
    records: usize,
}

impl Shadow {
    fn follow(&mut self, rig: &Rig) {
        for record in &rig.records[self.records..] {
            let bytes = serde_json::to_vec(&record.transaction).expect("no odd keys");
            let back: Transaction = serde_json::from_slice(&bytes).expect("our own bytes");
            for event in &back.events {
                self.state.apply(record.lsn, back.at, event).expect("it was lived");
            }
        }
        self.records = rig.records.len();
        if self.records.is_multiple_of(5) {
            self.state = restored(&self.state);
        }
        assert!(model::same(&self.state, &rig.state), "starting anew gives another state");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: stories(), failure_persistence: None, ..ProptestConfig::default() })]

    // Proves I3 and I7 over random histories, and that nothing is left undone at their end.
    #[test]
    fn whatever_happens_replay_is_life_and_everything_comes_to_an_end(
        story in prop::collection::vec(steps(), 1..70),
    ) {
        let mut rig = Rig::new(2);
        rig.add_repo("r");
        rig.end_clone("r", &Look::Exited(0));
        let mut shadow = Shadow::default();
        for each in &story {
            step(&mut rig, each);
            shadow.follow(&rig);
        }
        model::check_history(&rig);
        to_the_end(&mut rig);
        model::check_history(&rig);
    }

    // Proves I10 over random histories: whatever is damaged, nothing more happens to it, and everything else comes to an end.
    #[test]
    fn whatever_is_damaged_the_rest_goes_on(
        before in prop::collection::vec(steps(), 1..40),
        which in any::<usize>(),
        gone in any::<bool>(),
        after in prop::collection::vec(steps(), 1..40),
    ) {
        let mut rig = Rig::new(2);
        rig.add_repo("r");
        rig.end_clone("r", &Look::Exited(0));
        for each in &before {
            step(&mut rig, each);
        }
        // The first entry is the server's own, which every checkpoint makes anew.
        let entities: Vec<_> = rig.state.entries().skip(1).map(|(entity, ..)| entity).collect();
        let Some(damaged) = pick(&entities, which) else { return Ok(()) };
        if gone {
            rig.state = damage::without(&rig.state, &damaged);
        } else {
            rig.state.set_unavailable(damaged.clone(), "damaged".into());
        }
        let known = rig.records.len();
        for each in &after {
            step(&mut rig, each);
            prop_assert!(model::same(&restored(&rig.state), &rig.state));
        }
        to_the_end(&mut rig);
        let later = rig.records[known..].iter().flat_map(|record| &record.transaction.events);
        // An operation is forgotten when nobody needs it; a removed job stays removed whatever is lost of it.
        let later = later.filter(|event| {
            !matches!(event, Event::OperationForgotten { .. } | Event::JobForgotten { .. })
        });
        for event in later {
            prop_assert_ne!(event.entity(), damaged.clone());
        }
    }
}
