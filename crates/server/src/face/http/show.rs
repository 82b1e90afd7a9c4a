//! Jobs and repos as the API shows them: shapes of their own, so that the inside can change.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use outlive_core::engine::Usage;
use outlive_core::event::job_entity;
use outlive_core::evidence::Seen;
use outlive_core::heartbeat::Heartbeat;
use outlive_core::ids::RepoName;
use outlive_core::job::{Action, Attempt, AttemptEnd, Job, Outcome, Phase, Work};
use outlive_core::record::EntityKind;
use outlive_core::repo::{Repo, RepoPhase};
use outlive_core::spec::{Freeze, Limit, Reading, Started};
use outlive_core::state::State;
use outlive_core::state::history::reason_in_words;
use outlive_core::time::Timestamp;
use serde_json::{Value, json};

use super::App;
use crate::clock::{self, rfc3339};
use crate::data_dir::Paths;
use crate::face::http::Patience;

/// The class of a heartbeat that cannot be read.
pub(super) const DAMAGED: &str = "damaged";

/// A job in a list: without its prompts.
pub(super) fn summary(
    job: &Job,
    state: &State,
    hindrance: Option<&str>,
    running_max: u32,
) -> Value {
    let unavailable = state.unavailable(&job_entity(&job.id));
    let outcome = match &job.phase {
        Phase::Ended { outcome } if unavailable.is_none() => Some(outcome_kind(outcome)),
        _ => None,
    };
    // While nothing begins, nobody knows when something will.
    let estimate = state.estimated_start(job, clock::now(), running_max);
    let estimate = estimate.filter(|_| hindrance.is_none());
    json!({
        "id": job.id, "owner": job.owner, "title": job.task.title, "group": job.task.group,
        "phase": state.phase_name(job), "outcome": outcome, "unavailable": unavailable,
        "waiting": waiting(&job.phase, hindrance), "queue_position": state.queue_position(job),
        "estimated_start": estimate.map(rfc3339),
        "priority": job.task.priority, "repos": job.task.repos, "engine": job.task.engine,
        "attempts": job.attempts.len(), "turn": shown_turn(job),
        "created_at": rfc3339(job.created_at), "started_at": started_at(job),
        "ended_at": job.ended_at.map(rfc3339), "lsn": job.changed,
        "actions": state.actions(job).map(Action::name).collect::<Vec<_>>(),
    })
}

/// A job, whole.
pub(super) fn job(job: &Arc<Job>, state: &State, app: &App) -> Value {
    let paths = &app.paths;
    let hindrance = app.hindrance();
    let mut shown = summary(job, state, hindrance.as_deref(), app.running_max);
    let session = job.session();
    let live = live_attempt(job, app);
    let started_at = started_at(job).or_else(|| live.started_at.map(rfc3339));
    let more = json!({
        "timeout_s": job.task.timeout_ms / 1000,
        "engine_options": job.task.engine_options, "model": job.task.model,
        "on_interrupt": job.task.on_interrupt, "on_unknown": job.task.on_unknown,
        "max_interrupts": job.task.max_interrupts, "interrupts": job.interrupts,
        "on_limit": job.task.on_limit, "limit_wait_max_s": seconds(job.task.limit_wait_ms),
        "limit_waited_s": seconds(job.limit_waited_ms), "started_at": started_at,
        "session": session.map(|session| &session.id),
        "prompt": job.prompt(shown_turn(job)),
        "turns": job.turns.iter().enumerate().map(|(index, turn)| json!({
            "n": index + 1, "prompt": turn.prompt, "at": rfc3339(turn.at),
        })).collect::<Vec<_>>(),
        "attempts": job.attempts.iter().map(|a| attempt(job, a, &live)).collect::<Vec<_>>(),
        "outcome": match &job.phase {
            Phase::Ended { outcome: how } if shown["unavailable"].is_null() => outcome(how),
            _ => Value::Null,
        },
        "usage": usage(job), "resources": resources(job),
        "limits": job_limits(job),
        "heartbeat": live.heartbeat, "stalled": live.stalled, "evidence": live.evidence,
        "frozen": live.frozen,
        "output_bytes": output_bytes(job, paths), "output_truncated": truncated(job, paths),
        "workspace": session.and_then(|session| session.workspace.as_ref()).map(|made| json!({
            "path": paths.workspace(&job.id, job.sessions.len().saturating_sub(1)),
            "made_by": made.made_by, "base_commit": made.base_commit, "branch": made.branch,
        })),
        "callbacks": [], "sidecars": [],
        "degraded": degraded(job, state, &live.unenforced),
    });
    if let (Value::Object(shown), Value::Object(more)) = (&mut shown, more) {
        shown.extend(more);
    }
    shown
}

#[expect(clippy::cast_precision_loss, reason = "a time for display")]
pub(super) fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a sum of money for display")]
pub(super) fn micros_to_usd(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn ends(job: &Job) -> impl Iterator<Item = &AttemptEnd> {
    job.attempts.iter().filter_map(|attempt| attempt.end.as_ref())
}

/// What all attempts used together; null while no agent has told.
fn usage(job: &Job) -> Value {
    let told = ends(job).filter_map(|end| end.usage);
    let sum = told.reduce(|sum, usage| Usage {
        input_tokens: sum.input_tokens.saturating_add(usage.input_tokens),
        output_tokens: sum.output_tokens.saturating_add(usage.output_tokens),
        cost_micros: match (sum.cost_micros, usage.cost_micros) {
            (None, None) => None,
            (one, other) => Some(one.unwrap_or(0).saturating_add(other.unwrap_or(0))),
        },
    });
    sum.map_or(Value::Null, |usage| {
        json!({
            "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens,
            "cost_usd": usage.cost_micros.map(micros_to_usd),
        })
    })
}

/// Processor time of all attempts, and the highest memory use of any; null before the first has ended.
fn resources(job: &Job) -> Value {
    let peak = ends(job).map(|end| end.peak_memory_bytes).max();
    let cpu_ms = ends(job).fold(0, |sum: u64, end| sum.saturating_add(end.cpu_ms));
    peak.map_or(Value::Null, |peak| json!({ "cpu_s": seconds(cpu_ms), "peak_memory_bytes": peak }))
}

/// The turn under way, or the last one.
fn shown_turn(job: &Job) -> u32 {
    let turns = u32::try_from(job.turns.len()).unwrap_or(u32::MAX);
    job.current_turn().min(turns)
}

fn outcome_kind(outcome: &Outcome) -> Value {
    json!(outcome.kind)
}

fn outcome(outcome: &Outcome) -> Value {
    json!({
        "kind": outcome.kind, "exit_code": outcome.exit_code, "signal": outcome.signal,
        "exit_status": outcome.exit_status, "agent_result": outcome.agent_result,
        "disagreement": outcome.disagreement, "reason": outcome.reason,
    })
}

/// What a job waits for besides its turn. `hindrance`: why nothing that is queued begins.
fn waiting(phase: &Phase, hindrance: Option<&str>) -> Value {
    match (phase, hindrance) {
        (Phase::Waiting { reason, until }, _) => {
            json!({ "reason": reason_in_words(reason), "until": until.map(rfc3339) })
        }
        (Phase::Queued, Some(reason)) => json!({ "reason": reason, "until": null }),
        _ => Value::Null,
    }
}

fn attempt(job: &Job, attempt: &Attempt, live: &Live) -> Value {
    let session = job.sessions.get(attempt.session as usize);
    let base = session.map_or([0, 0], |session| session.output_base);
    let end = attempt.end.as_ref();
    let current = || live.started_at.filter(|_| end.is_none());
    json!({
        "n": attempt.n, "turn": attempt.turn, "resume": attempt.resume,
        "session": session.map(|session| &session.id),
        "planned_at": rfc3339(attempt.planned_at), "caretakers": attempt.caretakers,
        "started_at": end.and_then(|end| end.started_at).or_else(current).map(rfc3339),
        "ended_at": end.map(|end| rfc3339(end.ended_at)),
        "ended_by": end.map(|end| end.ended_by),
        "output_from": end.map(|end| base[0] + end.output_from[0]),
        "output_to": end.map(|end| base[0] + end.output_to[0]),
        "outcome": end.map(|end| outcome(&end.outcome)),
        "cpu_ms": end.map(|end| end.cpu_ms),
        "peak_memory_bytes": end.map(|end| end.peak_memory_bytes),
        "tree_stop": end.map(|end| if end.best_effort { "best_effort" } else { "proved" }),
    })
}

fn started_at(job: &Job) -> Option<String> {
    ends(job).find_map(|end| end.started_at).map(rfc3339)
}

#[derive(Default)]
struct Live {
    started_at: Option<Timestamp>,
    heartbeat: Value,
    stalled: Value,
    evidence: Value,
    frozen: Value,
    unenforced: Vec<Limit>,
}

/// What can be seen of the attempt that is, or may be, alive.
fn live_attempt(job: &Job, app: &App) -> Live {
    let Some(work) = job.phase.work(&job.id) else { return Live::default() };
    let (paths, patience) = (&app.paths, app.patience);
    let dir = paths.keep(&work);
    let evidence = outlive_supervisor::probe(&dir, &app.here);
    let heartbeat = match heartbeat_of(&dir, patience) {
        Reading::Valid(seen) => heartbeat(seen),
        Reading::Absent => Value::Null,
        Reading::Damaged(why) => json!({ "class": DAMAGED, "problem": why }),
    };
    let started = evidence.started.valid();
    let started_at = started.filter(|_| work_is_attempt(&work)).map(|started| started.at);
    let running = started.filter(|_| evidence.agent == Seen::Alive && work_is_attempt(&work));
    let stalled = running.map_or(Value::Null, |started| stalled(job, started, paths, patience));
    let agent = match evidence.agent {
        Seen::NotNamed => "not started",
        Seen::Alive => "alive",
        Seen::Gone => "gone",
        Seen::OtherBoot => "of another boot",
        Seen::OtherNamespace => "of another pid namespace",
        Seen::NamespaceEnded => "of a pid namespace that has ended",
        Seen::Original => "of the data directory that this one is a copy of",
    };
    let unenforced = started.map_or_else(Vec::new, |started| started.unenforced.clone());
    let evidence = json!({
        "agent": agent, "agent_pid": started.map(|started| started.agent.pid),
        "keeper_pid": started.map(|started| started.keeper.pid),
        "started_at": started.map(|started| rfc3339(started.at)),
        "cgroups": started.map(|started| &started.cgroups),
        "survivors": evidence.survivors,
    });
    let freeze = outlive_supervisor::read_freeze(&dir);
    let frozen = freeze.valid().map_or(Value::Null, frozen);
    // Frozen it cannot write, and says so.
    let stalled = if frozen.is_null() { stalled } else { Value::Null };
    Live { started_at, heartbeat, stalled, evidence, frozen, unenforced }
}

/// That it stands still because its disk is nearly full.
fn frozen(freeze: &Freeze) -> Value {
    if freeze.since_boot_ms.is_none() {
        return Value::Null;
    }
    let (free, thaw) = (freeze.free_bytes, freeze.thaw_bytes);
    let reason = format!("its disk had {free} bytes free; it goes on when {thaw} are free");
    json!({ "since": rfc3339(freeze.at), "reason": reason })
}

fn work_is_attempt(work: &Work) -> bool {
    match work {
        Work::Attempt { .. } => true,
        Work::Operation { .. } => false,
    }
}

/// The last heartbeat of who keeps a piece of work, looked at now.
pub(super) fn heartbeat_of(keep: &Path, patience: Patience) -> Reading<Heartbeat> {
    match outlive_supervisor::read_sentinel(keep) {
        Reading::Valid(sentinel) => {
            Reading::Valid(patience.heartbeat_ages.look(sentinel.at, clock::now()))
        }
        Reading::Absent => Reading::Absent,
        Reading::Damaged(why) => Reading::Damaged(why),
    }
}

fn heartbeat(seen: Heartbeat) -> Value {
    let warning = seen.from_the_future.then_some("it is from the future: a clock was set");
    json!({ "class": seen.class, "age_s": seen.age.as_secs(), "warning": warning })
}

/// A notice that the output has not grown for long. Nothing follows from it.
fn stalled(job: &Job, started: &Started, paths: &Paths, patience: Patience) -> Value {
    let Some(session) = job.session() else { return Value::Null };
    let files = paths.output(&job.id, &session.id);
    let grown = files.iter().filter_map(|path| path.metadata().ok()?.modified().ok());
    let since = grown.map(clock::timestamp).chain([started.at]).max().unwrap_or(started.at);
    let age = clock::now().since(since);
    if age < patience.stall {
        return Value::Null;
    }
    json!({ "since": rfc3339(since), "for_s": age.as_secs() })
}

fn job_limits(job: &Job) -> Value {
    let limits = &job.task.limits;
    json!({
        "memory_bytes": limits.memory_bytes, "pids": limits.pids,
        "output_bytes": limits.output_bytes,
        "idle_output_s": limits.idle_output_ms.map(|millis| millis / 1000),
    })
}

fn output_bytes(job: &Job, paths: &Paths) -> u64 {
    job.session().map_or(0, |session| {
        let [stdout, _] = paths.output(&job.id, &session.id);
        session.output_base[0] + stdout.metadata().map_or(0, |metadata| metadata.len())
    })
}

/// An output file is shorter than its attempt's end says it was.
fn truncated(job: &Job, paths: &Paths) -> bool {
    job.attempts.iter().any(|attempt| {
        let session = job.sessions.get(attempt.session as usize);
        session.zip(attempt.end.as_ref()).is_some_and(|(session, end)| {
            let files = paths.output(&job.id, &session.id);
            let len = |path: &Path| path.metadata().map_or(0, |data| data.len());
            len(&files[0]) < end.output_to[0] || len(&files[1]) < end.output_to[1]
        })
    })
}

/// What of it is damaged, and what it asked for and does not get, or not whole.
fn degraded(job: &Job, state: &State, unenforced_now: &[Limit]) -> Vec<String> {
    let damaged = state.unavailable(&job_entity(&job.id));
    let damaged = damaged.map(|why| format!("its records cannot be read: {why}"));
    // Whoever has a workspace, or has ended, needs no repo any more.
    let needs_repo = !matches!(job.phase, Phase::Ended { .. })
        && job.session().is_none_or(|session| session.workspace.is_none());
    let repos = job.task.repos.iter().filter(|_| needs_repo);
    let repos = repos.filter_map(|name| match state.usable(name) {
        Ok(()) => None,
        Err(why) => Some(format!("repository unavailable: {name}: {why}")),
    });
    let best_effort = ends(job).any(|end| end.best_effort);
    let best_effort =
        best_effort.then_some("no cgroup: its process tree was ended as far as it could be found");
    let unenforced: BTreeSet<&'static str> = ends(job)
        .flat_map(|end| &end.unenforced)
        .chain(unenforced_now)
        .map(|limit| match limit {
            Limit::Memory => {
                "its memory limit is not enforced: no memory controller can be written here"
            }
            Limit::Pids => {
                "its limit of processes is not enforced: no pids controller can be written here"
            }
        })
        .collect();
    let notes = best_effort.into_iter().chain(unenforced).map(str::to_string);
    damaged.into_iter().chain(repos).chain(notes).collect()
}

/// A repo.
pub(super) fn repo(repo: &Repo, state: &State) -> Value {
    let (phase, reason) = match &repo.phase {
        _ if state.usable(&repo.name).is_err() => ("unavailable", state.usable(&repo.name).err()),
        RepoPhase::Cloning => ("cloning", None),
        RepoPhase::Ready => ("ready", None),
        RepoPhase::Unavailable { reason } => ("unavailable", Some(reason.clone())),
    };
    json!({
        "name": repo.name, "source": repo.source, "branch": repo.branch, "owner": repo.owner,
        "phase": phase, "reason": reason, "created_at": rfc3339(repo.created_at),
    })
}

/// Repos of which nothing is left but that they are there.
pub(super) fn lost_repos(state: &State) -> Vec<Value> {
    let lost = state.all_unavailable().filter(|(entity, _)| entity.kind == EntityKind::Repo);
    let lost = lost.filter(|(entity, _)| {
        RepoName::parse(&entity.name).is_ok_and(|name| state.repo(&name).is_none())
    });
    let lost = lost.map(|(entity, why)| {
        json!({
            "name": entity.name, "source": Value::Null, "branch": Value::Null,
            "owner": Value::Null, "phase": "unavailable", "reason": why, "created_at": Value::Null,
        })
    });
    lost.collect()
}
