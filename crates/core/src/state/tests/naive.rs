//! State against a naive second one: plain lists, looked through from end to end; no index, no event, no evidence, no record.
//!
//! It is written from the promise (which request is allowed where, who goes first, what is counted), and from docs/recovery.md
//! (what each sight means). It never starts anew; the State beside it does, at any time, from a checkpoint and the records after it.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::random::{Deed, deed, perform, steps};
use super::{Look, Rig, model, restored, stories, table};
use crate::engine::{Limit, SessionSign};
use crate::ids::{JobId, RepoName};
use crate::job::{Job, OutcomeKind, Phase, WaitReason, Work};
use crate::repo::{OperationKind, RepoPhase};
use crate::request::{Edit, Granted, Refusal, Request, Submission};
use crate::spec::StopCause;
use crate::state::State;
use crate::stats::{Key, Row};
use crate::task::{OnInterrupt, OnLimit, OnUnknown, Task};
use crate::time::Timestamp;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

#[derive(Debug, Clone, PartialEq)]
enum Where {
    Held,
    Queued,
    Waiting(WaitReason, Option<u64>),
    Preparing,
    Running,
    /// Its copy (else its attempt) is being stopped.
    Stopping {
        copy: bool,
        cause: StopCause,
    },
    Unknown,
    Ended(OutcomeKind),
    Removed,
}

#[derive(Debug, Clone)]
struct Try {
    session: usize,
    resume: bool,
    caretakers: u32,
    /// When its agent began (if it did) and when it ended; none while it may be alive.
    end: Option<(Option<u64>, u64, Option<SessionSign>)>,
}

#[derive(Debug, Clone)]
struct Errand {
    of: Result<String, JobId>,
    tries: u32,
    caretakers: u32,
}

#[derive(Debug, Clone)]
struct One {
    id: JobId,
    task: Task,
    key: Option<(String, String)>,
    place: Where,
    created: u64,
    ready: u64,
    slot: u64,
    ended: u64,
    removed: u64,
    /// It was over when it was removed, and so.
    was: Option<OutcomeKind>,
    /// Its removal is forgotten too.
    forgotten: bool,
    turns: u32,
    done: u32,
    /// For each session: has it a workspace.
    sessions: Vec<bool>,
    tries: Vec<Try>,
    interrupts: u32,
    limits: u32,
    waited: u64,
    /// When it left the queue and how long it had been there; when its workspace came and how long that took.
    queued_for: Vec<(u64, u64)>,
    made_in: Vec<(u64, u64)>,
}

#[derive(Debug, Clone)]
struct Source {
    name: String,
    /// Ready, or failed; none: being cloned.
    ready: Option<bool>,
}

/// How a piece of work looks: all that docs/recovery.md needs of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sight {
    /// A supervisor has it.
    Kept,
    /// It did certainly not run.
    NeverRan,
    /// It ended: exit code 0 or another end; a stop was carried out.
    Over {
        well: bool,
        stopped: bool,
    },
    /// The agent itself said that it was done.
    Said,
    /// Somebody has to look after it, or after what is left of it.
    Orphaned,
    /// Cut off by reboot or want of memory.
    CutOff,
    Late,
    /// It may have finished, and something of it is left.
    LostAndAlive,
    Lost,
    /// Cannot be judged, whatever was meant to become of it.
    Unclear,
}

fn sight(look: &Look) -> Sight {
    match look {
        Look::Alive => Sight::Kept,
        Look::Nothing | Look::NeverRan => Sight::NeverRan,
        Look::Exited(code) => Sight::Over { well: *code == 0, stopped: false },
        Look::Sign(_) | Look::Limited(_) | Look::LaunchFailed => {
            Sight::Over { well: false, stopped: false }
        }
        Look::Stopped(_) => Sight::Over { well: false, stopped: true },
        Look::ExitedTreeAlive | Look::Orphan => Sight::Orphaned,
        Look::Rebooted | Look::OutOfMemory => Sight::CutOff,
        Look::RebootedLate => Sight::Late,
        Look::SaidDone => Sight::Said,
        Look::Lost => Sight::Lost,
        Look::LostTreeAlive => Sight::LostAndAlive,
        Look::Elsewhere | Look::Damaged => Sight::Unclear,
    }
}

fn doubled(first: u64, most: u64, times: u32) -> u64 {
    first.saturating_mul(2_u64.saturating_pow(times)).min(most)
}

/// Everything, once more.
#[derive(Debug, Clone, Default)]
struct Naive {
    /// In order of acceptance; removed ones too.
    jobs: Vec<One>,
    repos: Vec<Source>,
    /// Removed repos and when.
    gone: Vec<(String, u64)>,
    works: Vec<Errand>,
    now: u64,
    /// The latest time there was.
    clock: u64,
    slots: u32,
}

type Answer = Result<Option<JobId>, &'static str>;

impl Naive {
    fn perform(&mut self, state: &State, deed: &Deed, now: Timestamp, slots: u32) -> Answer {
        (self.now, self.slots) = (now.0, slots);
        let answer = match deed {
            Deed::Ask(request) => match self.ask(request) {
                // A refusal changes nothing: nothing falls due by it either.
                Err(refused) => return Err(refused),
                granted => granted,
            },
            Deed::See(Work::Attempt { job, attempt }, look) => {
                self.see_attempt(job, attempt.get(), look);
                Ok(None)
            }
            Deed::See(Work::Operation { id }, look) => {
                let kind = state.operation(*id).map(|operation| operation.kind.clone());
                match kind.expect("it is under way") {
                    OperationKind::Clone { repo } => self.see_work(&Ok(repo.to_string()), look),
                    OperationKind::Copy { job } => self.see_work(&Err(job), look),
                }
                Ok(None)
            }
            Deed::Slots(_) => return Ok(None),
            Deed::Pass(_) | Deed::SetBack(_) => Ok(None),
        };
        self.fall_due();
        answer
    }

    fn find(&self, id: &JobId) -> Option<usize> {
        self.jobs.iter().position(|job| job.id == *id && job.place != Where::Removed)
    }

    /// What is to be known of a repo: ready, or being cloned.
    fn usable(&self, name: &str) -> Result<bool, &'static str> {
        let found = self.repos.iter().find(|repo| repo.name == name).ok_or("unknown repo")?;
        match found.ready {
            Some(true) => Ok(true),
            None => Ok(false),
            Some(false) => Err("repo unavailable"),
        }
    }

    fn all_usable(&self, task: &Task) -> Result<(), &'static str> {
        task.repos.iter().try_for_each(|name| self.usable(name.as_str()).map(drop))
    }

    // ---- what is asked -------------------------------------------------------------------------

    fn ask(&mut self, request: &Request) -> Answer {
        let (id, action) = match request {
            Request::Submit(submission) => return self.submit(submission),
            Request::AddRepo { name, .. } => return self.add_repo(name.as_str()),
            Request::RemoveRepo(name) => return self.remove_repo(name),
            // Nothing is damaged here; what is asked of a whole repo then changes nothing (repair.rs).
            Request::RepairRepo { name, .. } => return self.usable(name.as_str()).map(|_| None),
            Request::Repair { job } => (job, "repair"),
            Request::Start(id) => (id, "start"),
            Request::Hold(id) => (id, "hold"),
            Request::Cancel(id) => (id, "cancel"),
            Request::Resume { job, .. } => (job, "resume"),
            Request::Retry { job, .. } => (job, "retry"),
            Request::Edit { job, .. } => (job, "edit"),
            Request::Settle { job, .. } => (job, "settle"),
            Request::Remove { job } => (job, "remove"),
        };
        let at = self.find(id).ok_or("unknown job")?;
        if !table::promised_by_name(name_of(&self.jobs[at].place), action) {
            return Err("not allowed");
        }
        let stopping = Where::Stopping { copy: false, cause: StopCause::Cancel };
        let copying = Where::Stopping { copy: true, cause: StopCause::Cancel };
        let stops_already = [stopping, copying].contains(&self.jobs[at].place);
        match request {
            Request::Start(_) => {
                if !self.jobs[at].has_workspace() {
                    self.all_usable(&self.jobs[at].task)?;
                }
                self.release(at);
            }
            Request::Hold(_) => self.jobs[at].place = Where::Held,
            Request::Cancel(_) => self.cancel(at),
            Request::Resume { .. } => self.resume(at)?,
            Request::Retry { .. } => self.retry(at)?,
            Request::Edit { edit, .. } => self.edit(at, edit)?,
            Request::Settle { kind, .. } => {
                self.jobs[at].last_try().caretakers += 1;
                self.end(at, *kind, self.now);
            }
            _ => {
                let job = &mut self.jobs[at];
                if let Where::Ended(kind) = job.place {
                    job.was = Some(kind);
                }
                (job.place, job.removed) = (Where::Removed, self.now);
            }
        }
        let idle = matches!(request, Request::Cancel(_)) && stops_already;
        if !idle {
            self.happens();
        }
        Ok(Some(id.clone()))
    }

    fn add_repo(&mut self, name: &str) -> Answer {
        if self.repos.iter().any(|repo| repo.name == name) {
            return Err("repo exists");
        }
        self.happens();
        self.gone.retain(|(gone, _)| gone != name);
        self.repos.push(Source { name: name.to_string(), ready: None });
        self.works.push(Errand { of: Ok(name.to_string()), tries: 1, caretakers: 0 });
        Ok(None)
    }

    fn remove_repo(&mut self, name: &RepoName) -> Answer {
        let ready = self.usable(name.as_str());
        let lives = |job: &&One| !matches!(job.place, Where::Ended(_) | Where::Removed);
        let mut users = self.jobs.iter().filter(lives);
        if ready == Err("unknown repo") {
            return Err("unknown repo");
        }
        if ready == Ok(false) || users.any(|job| job.task.repos.contains(name)) {
            return Err("repo in use");
        }
        self.happens();
        self.repos.retain(|repo| repo.name != name.as_str());
        self.gone.push((name.to_string(), self.now));
        Ok(None)
    }

    fn submit(&mut self, submission: &Submission) -> Answer {
        let key = submission.idempotency.as_ref();
        let key = key.map(|it| (it.key.clone(), it.body_hash.clone()));
        if let Some((key, body)) = &key {
            let same = |job: &&One| job.key.as_ref().is_some_and(|(k, _)| k == key);
            if let Some(job) = self.jobs.iter().filter(|job| !job.forgotten).rfind(same) {
                let again = job.key.as_ref().is_some_and(|(_, b)| b == body);
                return if again { Ok(Some(job.id.clone())) } else { Err("key reused") };
            }
        }
        let mut cloning = None;
        for name in &submission.task.repos {
            if !self.usable(name.as_str())? {
                cloning = Some(name.clone());
            }
        }
        let place = match (submission.held, submission.start_after, cloning) {
            (true, _, _) => Where::Held,
            (_, Some(until), _) => Where::Waiting(WaitReason::StartTime, Some(until.0)),
            (_, _, Some(name)) => Where::Waiting(WaitReason::Repo { name }, None),
            _ => Where::Queued,
        };
        self.happens();
        self.jobs.push(One {
            id: submission.job.clone(),
            task: submission.task.clone(),
            key,
            place,
            created: self.now,
            ready: self.clock,
            slot: 0,
            ended: 0,
            removed: 0,
            was: None,
            forgotten: false,
            turns: 1,
            done: 0,
            sessions: vec![false],
            tries: vec![],
            interrupts: 0,
            limits: 0,
            waited: 0,
            queued_for: vec![],
            made_in: vec![],
        });
        Ok(Some(submission.job.clone()))
    }

    fn cancel(&mut self, at: usize) {
        let copy = match &self.jobs[at].place {
            Where::Held | Where::Queued | Where::Waiting(..) => {
                return self.end(at, OutcomeKind::Cancelled, self.now);
            }
            Where::Stopping { copy, .. } => *copy,
            place => *place == Where::Preparing,
        };
        self.jobs[at].place = Where::Stopping { copy, cause: StopCause::Cancel };
    }

    fn resume(&mut self, at: usize) -> Result<(), &'static str> {
        let job = &mut self.jobs[at];
        if job.task.engine == "command" {
            return Err("cannot resume");
        }
        let over = matches!(job.place, Where::Ended(_));
        if over && !job.has_workspace() {
            return Err("workspace gone");
        }
        if over || job.place == Where::Unknown {
            job.done = job.turns;
        }
        job.turns += 1;
        if over {
            self.again(at);
        } else if job.place == Where::Unknown {
            job.place = Where::Stopping { copy: false, cause: StopCause::Survivors };
        }
        Ok(())
    }

    fn retry(&mut self, at: usize) -> Result<(), &'static str> {
        self.all_usable(&self.jobs[at].task)?;
        let job = &mut self.jobs[at];
        if job.place == Where::Unknown {
            job.last_try().caretakers += 1;
        }
        job.begin_afresh();
        self.again(at);
        Ok(())
    }

    fn edit(&mut self, at: usize, edit: &Edit) -> Result<(), &'static str> {
        let job = &mut self.jobs[at];
        if edit.prompt.is_some() && job.place != Where::Held {
            return Err("not allowed");
        }
        job.task.priority = edit.priority.unwrap_or(job.task.priority);
        job.task.timeout_ms = edit.timeout_ms.unwrap_or(job.task.timeout_ms);
        Ok(())
    }

    /// Something is written down: time has come so far, and never goes back.
    fn happens(&mut self) {
        self.clock = self.clock.max(self.now);
    }

    // ---- what follows --------------------------------------------------------------------------

    fn queue(&mut self, at: usize) {
        self.happens();
        (self.jobs[at].place, self.jobs[at].ready) = (Where::Queued, self.clock);
    }

    /// A person says go: all its tries again.
    fn again(&mut self, at: usize) {
        let job = &mut self.jobs[at];
        (job.interrupts, job.limits, job.waited) = (0, 0, 0);
        self.queue(at);
    }

    fn release(&mut self, at: usize) {
        let job = &mut self.jobs[at];
        let by_limit = [WaitReason::UsageLimit, WaitReason::Overload];
        if let Where::Waiting(reason, Some(until)) = &job.place
            && by_limit.contains(reason)
        {
            // Let go early, it has waited less than was planned.
            job.waited = job.waited.saturating_sub(until.saturating_sub(self.now));
        }
        self.queue(at);
    }

    fn end(&mut self, at: usize, kind: OutcomeKind, when: u64) {
        self.happens();
        let job = &mut self.jobs[at];
        (job.place, job.ended, job.done) = (Where::Ended(kind), when, job.turns);
    }

    fn launch(&mut self, at: usize) {
        self.happens();
        let job = &mut self.jobs[at];
        let session = job.sessions.len() - 1;
        let own = job.tries.iter().rev().filter(|one| one.session == session);
        let signs: Vec<_> = own.map(|one| one.end.and_then(|(_, _, sign)| sign)).collect();
        let resume = match job.task.engine.as_str() {
            "demo" => !signs.is_empty(),
            "claude" => {
                let newest = signs.into_iter().flatten().next();
                newest.is_some_and(|sign| sign != SessionSign::NotFound)
            }
            _ => false,
        };
        job.tries.push(Try { session, resume, caretakers: 0, end: None });
        job.place = Where::Running;
    }

    /// Everything that time, free slots and repos bring about.
    fn fall_due(&mut self) {
        for at in 0..self.jobs.len() {
            let Where::Waiting(reason, Some(until)) = &self.jobs[at].place else { continue };
            // A pause that lies further ahead than any pause lasts was begun before the clock was set back.
            let astray =
                *reason == WaitReason::BackOff && until.saturating_sub(self.now) > 10 * MINUTE;
            if *until <= self.now || astray {
                self.release(at);
            }
        }
        for at in 0..self.jobs.len() {
            let Where::Waiting(WaitReason::Repo { name }, _) = &self.jobs[at].place else {
                continue;
            };
            match self.usable(name.as_str()) {
                Ok(true) => self.release(at),
                Ok(false) => {}
                Err(_) => self.end(at, OutcomeKind::Failed, self.now),
            }
        }
        while self.busy() < self.slots as usize {
            let Some(at) = self.line().first().copied() else { break };
            self.take_up(at);
        }
        let now = self.now;
        let old = |removed: u64| removed.saturating_add(24 * HOUR) <= now;
        let mut forgets = self.gone.iter().any(|(_, at)| old(*at));
        self.gone.retain(|(_, at)| !old(*at));
        for job in &mut self.jobs {
            if job.place == Where::Removed && !job.forgotten && old(job.removed) {
                (job.forgotten, forgets) = (true, true);
            }
        }
        if forgets {
            self.happens();
        }
    }

    /// Who is queued, the first first.
    fn line(&self) -> Vec<usize> {
        let queued = |at: &usize| self.jobs[*at].place == Where::Queued;
        let mut line: Vec<usize> = (0..self.jobs.len()).filter(queued).collect();
        // A point of priority is worth a minute of waiting; of equal ones the first accepted goes first.
        line.sort_by_key(|at| {
            let job = &self.jobs[*at];
            i128::from(job.ready) - i128::from(job.task.priority) * i128::from(MINUTE)
        });
        line
    }

    fn busy(&self) -> usize {
        let busy = |job: &&One| {
            matches!(job.place, Where::Preparing | Where::Running | Where::Stopping { .. })
        };
        self.jobs.iter().filter(busy).count()
    }

    fn take_up(&mut self, at: usize) {
        self.happens();
        let left = (self.now, self.now.saturating_sub(self.jobs[at].ready));
        let takes = |job: &mut One| {
            job.slot = left.0;
            job.queued_for.push(left);
        };
        if self.jobs[at].has_workspace() {
            takes(&mut self.jobs[at]);
            return self.launch(at);
        }
        for name in self.jobs[at].task.repos.clone() {
            match self.usable(name.as_str()) {
                Ok(true) => {}
                Ok(false) => {
                    self.jobs[at].place = Where::Waiting(WaitReason::Repo { name }, None);
                    return;
                }
                Err(_) => return self.end(at, OutcomeKind::Failed, self.now),
            }
        }
        takes(&mut self.jobs[at]);
        self.jobs[at].place = Where::Preparing;
        self.works.push(Errand { of: Err(self.jobs[at].id.clone()), tries: 1, caretakers: 0 });
    }

    // ---- what is seen --------------------------------------------------------------------------

    fn see_work(&mut self, of: &Result<String, JobId>, look: &Look) {
        // At least that somebody looked.
        self.happens();
        let at = self.works.iter().position(|work| work.of == *of).expect("it is under way");
        let job = of.as_ref().err().and_then(|id| self.find(id));
        let stopping =
            job.is_some_and(|job| matches!(self.jobs[job].place, Where::Stopping { .. }));
        let work = &mut self.works[at];
        let cared_for = work.caretakers < 16;
        let result = match sight(look) {
            Sight::Kept => return,
            Sight::NeverRan if !stopping => return,
            Sight::Orphaned | Sight::LostAndAlive if cared_for => {
                work.caretakers += 1;
                return;
            }
            Sight::Over { well: true, .. } => true,
            Sight::Over { .. } | Sight::Late | Sight::Orphaned | Sight::LostAndAlive => false,
            _ if stopping || work.tries >= 3 => false,
            _ => {
                *work = Errand { tries: work.tries + 1, caretakers: 0, ..work.clone() };
                return;
            }
        };
        self.works.remove(at);
        match (of, job) {
            (Ok(name), _) => {
                let repo = self.repos.iter_mut().find(|repo| repo.name == *name);
                repo.expect("not removed while it is cloned").ready = Some(result);
            }
            (Err(_), Some(at)) if stopping => self.end(at, OutcomeKind::Cancelled, self.now),
            (Err(_), Some(at)) if result => {
                let job = &mut self.jobs[at];
                let took = self.now.saturating_sub(job.slot);
                job.made_in.push((self.now, took));
                *job.sessions.last_mut().expect("one at least") = true;
                self.launch(at);
            }
            (Err(_), Some(at)) => self.end(at, OutcomeKind::Failed, self.now),
            (Err(_), None) => panic!("a job with a copy under way is there"),
        }
    }

    fn see_attempt(&mut self, id: &JobId, n: u32, look: &Look) {
        let Some(at) = self.find(id) else { return };
        let job = &mut self.jobs[at];
        let stop = match &job.place {
            Where::Running => None,
            Where::Stopping { copy: false, cause } => Some(*cause),
            _ => return,
        };
        if job.tries.len() != n as usize {
            return;
        }
        let holds = job.task.on_unknown == OnUnknown::Hold;
        // At least what was found.
        self.happens();
        match sight(look) {
            Sight::Kept => {}
            Sight::NeverRan if stop.is_none() => {}
            Sight::Orphaned => self.care(at, look),
            Sight::LostAndAlive if stop.is_some() || !holds => self.care(at, look),
            Sight::Unclear => self.unknown(at, look, stop.is_some()),
            Sight::Lost | Sight::LostAndAlive if stop.is_none() => self.unknown(at, look, false),
            _ => self.concluded(at, look, stop),
        }
    }

    fn care(&mut self, at: usize, look: &Look) {
        if self.jobs[at].last_try().caretakers < 16 {
            self.jobs[at].last_try().caretakers += 1;
        } else {
            self.hold_for_a_person(at, look);
        }
    }

    fn hold_for_a_person(&mut self, at: usize, look: &Look) {
        self.attempt_over(at, look, false);
        self.jobs[at].limits = 0;
        self.jobs[at].place = Where::Unknown;
    }

    fn unknown(&mut self, at: usize, look: &Look, stopping: bool) {
        let policy = match self.jobs[at].task.on_unknown {
            OnUnknown::Fail => OnInterrupt::Fail,
            OnUnknown::Resume if !stopping => OnInterrupt::Resume,
            OnUnknown::Retry if !stopping => OnInterrupt::Retry,
            OnUnknown::Hold | OnUnknown::Resume | OnUnknown::Retry => {
                return self.hold_for_a_person(at, look);
            }
        };
        self.attempt_over(at, look, false);
        self.jobs[at].limits = 0;
        self.interrupted(at, policy);
    }

    fn interrupted(&mut self, at: usize, policy: OnInterrupt) {
        let job = &mut self.jobs[at];
        if policy == OnInterrupt::Fail || job.interrupts >= job.task.max_interrupts {
            let when = job.ended_when();
            return self.end(at, OutcomeKind::Interrupted, when);
        }
        let pause = doubled(SECOND, 10 * MINUTE, job.interrupts);
        job.interrupts += 1;
        if policy == OnInterrupt::Retry {
            job.begin_afresh();
        }
        self.wait(at, WaitReason::BackOff, self.now + pause);
    }

    fn wait(&mut self, at: usize, reason: WaitReason, until: u64) {
        self.queue(at);
        self.jobs[at].place = Where::Waiting(reason, Some(until));
    }

    /// The attempt is over. What was known of its end before stays, unless the end is proved now.
    fn attempt_over(&mut self, at: usize, look: &Look, may_stay: bool) {
        self.happens();
        let sign = match look {
            Look::Sign(sign) => *sign,
            _ => SessionSign::Announced,
        };
        let evidence = look.evidence();
        let began = evidence.started.valid().map(|started| started.at.0);
        let recorded = evidence.outcome.valid().map(|outcome| outcome.at.0);
        let now = self.now;
        let end = &mut self.jobs[at].last_try().end;
        if !(may_stay && end.is_some()) {
            *end = Some((began, recorded.unwrap_or(now), Some(sign)));
        }
    }

    /// It ended, and it is known how.
    fn concluded(&mut self, at: usize, look: &Look, stop: Option<StopCause>) {
        let sight = sight(look);
        let claude = self.jobs[at].task.engine == "claude";
        let kind = match (sight, stop) {
            // An agent that closes with a word of its own, and did not, has not succeeded.
            (Sight::Over { well, stopped: false }, None | Some(StopCause::Survivors)) => {
                if well && !claude { OutcomeKind::Completed } else { OutcomeKind::Failed }
            }
            (Sight::Said, None) => OutcomeKind::Completed,
            (Sight::Late, None) => OutcomeKind::TimedOut,
            (Sight::CutOff, None) => OutcomeKind::Interrupted,
            _ => OutcomeKind::Cancelled,
        };
        let proved = matches!(sight, Sight::Over { .. }) || (sight, stop) == (Sight::Said, None);
        self.attempt_over(at, look, !proved);
        let by_limit = match look {
            Look::Limited(limit) if kind == OutcomeKind::Failed => Some(*limit),
            _ => None,
        };
        let job = &mut self.jobs[at];
        let waits_on = job.limits;
        if by_limit.is_none() {
            job.limits = 0;
        }
        let when = job.ended_when();
        if stop == Some(StopCause::Survivors) {
            self.again(at);
        } else if (sight, stop) == (Sight::CutOff, None) {
            let policy = job.task.on_interrupt;
            self.interrupted(at, policy);
        } else if kind == OutcomeKind::Failed && job.opened_wrongly() {
            self.queue(at);
        } else if let Some(limit) = by_limit {
            self.limited(at, limit, waits_on, when);
        } else if kind == OutcomeKind::Completed && job.done + 1 < job.turns {
            job.done += 1;
            self.queue(at);
        } else {
            self.end(at, kind, when);
        }
    }

    fn limited(&mut self, at: usize, limit: Limit, met: u32, when: u64) {
        let pause = |first| self.now + doubled(first, HOUR, met);
        let (reason, until) = match limit {
            Limit::Usage { resets_at: Some(resets) } => {
                (WaitReason::UsageLimit, (resets.0 + 5 * SECOND).max(pause(30 * SECOND)))
            }
            Limit::Usage { resets_at: None } => (WaitReason::UsageLimit, pause(5 * MINUTE)),
            Limit::Overload => (WaitReason::Overload, pause(30 * SECOND)),
        };
        let job = &mut self.jobs[at];
        let wait = until - self.now;
        if job.task.on_limit == OnLimit::Fail || wait + job.waited > job.task.limit_wait_ms {
            return self.end(at, OutcomeKind::Failed, when);
        }
        job.limits += 1;
        job.waited += wait;
        self.wait(at, reason, until);
    }

    // ---- what is counted -----------------------------------------------------------------------

    fn count(&self) -> BTreeMap<Key, Row> {
        let mut rows = BTreeMap::new();
        for job in &self.jobs {
            let mut on = |at: u64, change: &dyn Fn(&mut Row)| {
                let engine = Key::Engine(Some(job.task.engine.clone()));
                let own = [
                    Key::Total,
                    engine,
                    Key::Owner(Some("ann".into())),
                    Key::Day(Timestamp(at).day()),
                ];
                let repos = job.task.repos.iter().map(|name| Key::Repo(Some(name.to_string())));
                for key in own.into_iter().chain(repos) {
                    change(rows.entry(key).or_default());
                }
            };
            on(job.created, &|row| row.accepted += 1);
            let kind = match job.place {
                Where::Ended(kind) => Some(kind),
                _ => job.was,
            };
            match kind {
                Some(kind) => on(job.ended, &|row| *row.outcome(kind) += 1),
                None if job.place == Where::Removed => on(job.removed, &|row| row.removed += 1),
                None => {}
            }
            for (at, ms) in &job.queued_for {
                on(*at, &|row| row.queue_ms.add(*ms));
            }
            for (at, ms) in &job.made_in {
                on(*at, &|row| row.prepare_ms.add(*ms));
            }
            for (began, ended, _) in job.tries.iter().filter_map(|one| one.end) {
                on(ended, &|row| {
                    if let Some(began) = began {
                        row.attempts += 1;
                        row.run_ms.add(ended.saturating_sub(began));
                    }
                    row.input_tokens += 5;
                    row.output_tokens += 3;
                    row.cost_micros += 7;
                });
            }
        }
        rows
    }

    /// The next time at which something is due by itself.
    fn next_due(&self) -> Option<u64> {
        let waits = self.jobs.iter().filter_map(|job| match job.place {
            Where::Waiting(_, until) => until,
            Where::Removed if !job.forgotten => Some(job.removed.saturating_add(24 * HOUR)),
            _ => None,
        });
        waits.chain(self.gone.iter().map(|(_, at)| at.saturating_add(24 * HOUR))).min()
    }
}

impl One {
    fn last_try(&mut self) -> &mut Try {
        self.tries.last_mut().expect("it was launched")
    }

    fn has_workspace(&self) -> bool {
        *self.sessions.last().expect("one at least")
    }

    fn ended_when(&self) -> u64 {
        self.tries.last().and_then(|one| one.end).map_or(0, |(_, at, _)| at)
    }

    /// A new session and workspace, all turns to be done again. A session in which nothing ran is used.
    fn begin_afresh(&mut self) {
        self.done = 0;
        let last = self.sessions.len() - 1;
        if self.tries.iter().any(|one| one.session == last) {
            self.sessions.push(false);
        }
    }

    /// The conversation was opened in the wrong way, for the first time in a row.
    fn opened_wrongly(&self) -> bool {
        let wrong = |one: &Try| {
            let sign = one.end.and_then(|(_, _, sign)| sign);
            matches!(sign, Some(SessionSign::NotFound | SessionSign::InUse))
        };
        let [before @ .., last] = self.tries.as_slice() else { return false };
        let before = before.last().filter(|before| before.session == last.session);
        wrong(last) && !before.is_some_and(wrong)
    }
}

// ---- the comparison ------------------------------------------------------------------------------

fn name_of(place: &Where) -> &'static str {
    match place {
        Where::Held => "held",
        Where::Queued => "queued",
        Where::Waiting(..) => "waiting",
        Where::Preparing => "preparing",
        Where::Running => "running",
        Where::Stopping { .. } => "stopping",
        Where::Unknown => "unknown",
        Where::Ended(_) => "ended",
        Where::Removed => "removed",
    }
}

fn where_is(job: &Job) -> Where {
    match &job.phase {
        Phase::Held => Where::Held,
        Phase::Queued => Where::Queued,
        Phase::Waiting { reason, until } => {
            Where::Waiting(reason.clone(), until.map(|until| until.0))
        }
        Phase::Preparing { .. } => Where::Preparing,
        Phase::Running { .. } => Where::Running,
        Phase::Stopping { work, cause } => {
            Where::Stopping { copy: matches!(work, Work::Operation { .. }), cause: *cause }
        }
        Phase::Unknown { .. } => Where::Unknown,
        Phase::Ended { outcome } => Where::Ended(outcome.kind),
    }
}

fn answer_of(answer: Option<Result<Granted, Refusal>>) -> Answer {
    Ok(match answer {
        None | Some(Ok(Granted::Repo(_))) => None,
        Some(Ok(Granted::Job(id) | Granted::SameJob(id))) => Some(id),
        Some(Err(refusal)) => {
            return Err(match refusal {
                Refusal::UnknownJob(_) => "unknown job",
                Refusal::UnknownRepo { .. } => "unknown repo",
                Refusal::RepoExists(_) => "repo exists",
                Refusal::RepoInUse { .. } => "repo in use",
                Refusal::RepoUnavailable { .. } => "repo unavailable",
                Refusal::NotAllowed { .. } => "not allowed",
                Refusal::KeyReused(_) => "key reused",
                Refusal::WorkspaceGone => "workspace gone",
                Refusal::CannotResume(_) => "cannot resume",
                Refusal::TaskLost(_) => "task lost",
                Refusal::SourceLost(_) => "source lost",
                Refusal::LimitReached { .. } => "limit reached",
                Refusal::Unavailable { .. } => "unavailable",
                Refusal::NotAdopted(_) => "not adopted",
            });
        }
    })
}

fn compare(naive: &Naive, state: &State) {
    let there: Vec<&One> = naive.jobs.iter().filter(|job| job.place != Where::Removed).collect();
    let ids: Vec<&JobId> = state.newest_first(None).map(|job| &job.id).collect();
    assert_eq!(ids, there.iter().rev().map(|job| &job.id).collect::<Vec<_>>());
    for one in &there {
        let job = state.job(&one.id).expect("it is there");
        let told = (where_is(job), job.task.priority, job.turns.len(), job.turns_done);
        assert_eq!(told, (one.place.clone(), one.task.priority, one.turns as usize, one.done));
        let told = (job.interrupts, job.limits_met, job.limit_waited_ms);
        assert_eq!(told, (one.interrupts, one.limits, one.waited), "{:?}", one.place);
        let has: Vec<bool> = job.sessions.iter().map(|s| s.workspace.is_some()).collect();
        assert_eq!(has, one.sessions);
        let tries = job.attempts.iter().map(|attempt| {
            let end = attempt.end.as_ref();
            let end = end.map(|end| (end.started_at.map(|at| at.0), end.ended_at.0));
            (attempt.session as usize, attempt.resume, attempt.caretakers, end)
        });
        let naive = one.tries.iter().map(|one| {
            let end = one.end.map(|(began, ended, _)| (began, ended));
            (one.session, one.resume, one.caretakers, end)
        });
        assert_eq!(tries.collect::<Vec<_>>(), naive.collect::<Vec<_>>());
        if matches!(one.place, Where::Ended(_)) {
            assert_eq!(job.ended_at.map(|at| at.0), Some(one.ended));
        }
    }
    let line = naive.line();
    let queue: Vec<&JobId> = state.index.queue.iter().map(|(_, id)| id).collect();
    assert_eq!(queue, line.iter().map(|at| &naive.jobs[*at].id).collect::<Vec<_>>());
    for (ahead, id) in queue.into_iter().enumerate() {
        assert_eq!(state.queue_position(state.job(id).expect("queued")), Some(ahead));
    }
    assert_eq!((state.busy(), state.queued()), (naive.busy(), line.len()));
    assert_eq!(state.next_due().map(|at| at.0), naive.next_due());
    let mut repos: Vec<_> = naive.repos.iter().map(|r| (r.name.clone(), r.ready)).collect();
    repos.sort();
    let of_state = state.repos().map(|repo| {
        let ready = match repo.phase {
            RepoPhase::Ready => Some(true),
            RepoPhase::Cloning => None,
            RepoPhase::Unavailable { .. } => Some(false),
        };
        (repo.name.to_string(), ready)
    });
    assert_eq!(of_state.collect::<Vec<_>>(), repos);
    assert_eq!(state.operations().count(), naive.works.len());
    for key in ["a", "b"] {
        let used = |job: &One| !job.forgotten && job.key.as_ref().is_some_and(|(k, _)| k == key);
        assert_eq!(state.knows_key("ann", key), naive.jobs.iter().any(used), "key {key}");
    }
    let removed = naive.jobs.iter().filter(|job| job.place == Where::Removed && !job.forgotten);
    assert_eq!(state.removals().count(), removed.count() + naive.gone.len());
    compare_counts(naive.count(), state);
}

fn compare_counts(mut rows: BTreeMap<Key, Row>, state: &State) {
    for (key, _) in state.stats.rows() {
        rows.entry(key.clone()).or_default();
    }
    for (key, naive) in rows {
        let row = state.stats.row(&key).cloned().unwrap_or_default();
        let told = |row: &Row| {
            let spreads = [&row.queue_ms, &row.prepare_ms, &row.run_ms].map(|s| (s.count, s.sum));
            let ended = [row.completed, row.failed, row.timed_out, row.cancelled, row.interrupted];
            let spent = [row.input_tokens, row.output_tokens, row.cost_micros];
            (row.accepted, row.removed, ended, row.attempts, spreads, spent)
        };
        assert_eq!(told(&row), told(&naive), "{}", key.entity_name());
    }
}

/// The server starts anew: a checkpoint of some moment, and the records after it.
fn start_anew(rig: &mut Rig, which: usize) {
    let cut = which % (rig.records.len() + 1);
    let early = super::replayed(&rig.records[..cut]).expect("it was lived");
    let mut state = restored(&early);
    for record in &rig.records[cut..] {
        for event in &record.transaction.events {
            state.apply(record.lsn, record.transaction.at, event).expect("it was lived");
        }
    }
    rig.state = state;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: stories(), failure_persistence: None, ..ProptestConfig::default() })]

    // Proves I3: whatever is asked, seen and waited for, and however often the server starts anew, State is what the promise says.
    #[test]
    fn state_is_what_a_naive_reading_of_the_promise_makes_of_the_same_story(
        story in prop::collection::vec((steps(), prop::option::weighted(0.15, any::<usize>())), 1..90),
    ) {
        let mut rig = Rig::new(2);
        let mut naive = Naive { clock: 0, ..Naive::default() };
        let first = ["r"].map(super::add_repo).map(Deed::Ask);
        let mut told = |rig: &mut Rig, each: &Deed| {
            let before = rig.state.clone();
            let answer = answer_of(perform(rig, each));
            let naive_answer = naive.perform(&before, each, rig.now, rig.rules.running_max);
            assert_eq!(answer, naive_answer, "{each:?}");
            compare(&naive, &rig.state);
        };
        for each in &first {
            told(&mut rig, each);
        }
        let clone = Deed::See(rig.clone_of("r"), Look::Exited(0));
        told(&mut rig, &clone);
        for (step, anew) in &story {
            if let Some(each) = deed(&mut rig, step) {
                told(&mut rig, &each);
            }
            if let Some(which) = anew {
                start_anew(&mut rig, *which);
            }
        }
        model::check_history(&rig);
    }
}
