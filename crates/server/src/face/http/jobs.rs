//! Jobs: submit, list, show, and what may be asked of them.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use outlive_core::ids::{JobId, Lsn};
use outlive_core::job::{Action, Job, OutcomeKind, Phase};
use outlive_core::request::{Edit, Granted, Refusal, Request};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::read;
use super::problem::Problem;
use super::{App, OWNER, show as shown, submit as submission, why};

/// Jobs of one page when nothing is said, and at most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

pub(super) async fn submit(
    State(app): State<App>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let key = submission::parse_key(headers.get("idempotency-key"), &body)?;
    let raw: submission::Raw = read(&headers, &body, submission::FIELDS)?;
    let submission = raw.parse(key, OWNER, app.limit_wait)?;
    // A key that is known gets its job even on a full disk: nothing is accepted for it.
    let key = submission.idempotency.as_ref();
    if !key.is_some_and(|it| app.handle.view().knows_key(OWNER, &it.key)) {
        app.need_room()?;
    }
    let answer = app.handle.ask(Request::Submit(Box::new(submission)), OWNER).await?;
    let granted = answer.map_err(|refusal| with_nearest_repo(&app, refusal))?;
    let status = match granted {
        Granted::SameJob(_) => StatusCode::OK,
        Granted::Job(_) | Granted::Repo(_) => StatusCode::CREATED,
    };
    let (Granted::Job(id) | Granted::SameJob(id)) = granted else {
        return Err(Problem::broken("a submission was answered with a repo"));
    };
    let location = [(header::LOCATION, format!("/api/jobs/{id}"))];
    let body = match app.handle.view().job(&id) {
        Some(job) => shown::job(job, &app.handle.view(), &app),
        // Removed meanwhile, or by an earlier request with the same key.
        None => json!({ "id": id, "phase": "removed" }),
    };
    Ok((status, location, Json(body)).into_response())
}

/// Tells a person who misspelt a repo's name which one was probably meant.
fn with_nearest_repo(app: &App, refusal: Refusal) -> Refusal {
    let Refusal::UnknownRepo { name, .. } = refusal else { return refusal };
    let state = app.handle.view();
    let names = state.repos().map(|repo| repo.name.to_string());
    let near = names.map(|other| (strsim::damerau_levenshtein(&name, &other), other)).min();
    let nearest = near.filter(|(distance, _)| *distance <= 2).map(|(_, other)| other);
    Refusal::UnknownRepo { name, nearest }
}

/// What a list may be asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    phase: Option<String>,
    outcome: Option<String>,
    repo: Option<String>,
    engine: Option<String>,
    group: Option<String>,
    q: Option<String>,
    limit: Option<usize>,
    cursor: Option<u64>,
}

impl Filter {
    fn takes(&self, job: &Job, state: &outlive_core::state::State) -> bool {
        let is = |wanted: &Option<String>, value: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| value == Some(wanted))
        };
        let phase = state.phase_name(job);
        let outcome = match &job.phase {
            Phase::Ended { outcome } if phase == "ended" => Some(outcome_name(outcome.kind)),
            _ => None,
        };
        let text = self.q.as_deref().is_none_or(|q| {
            let title = job.task.title.as_deref().unwrap_or_default();
            title.contains(q) || job.turns.iter().any(|turn| turn.prompt.contains(q))
        });
        text && is(&self.phase, Some(phase))
            && is(&self.outcome, outcome)
            && is(&self.engine, Some(&job.task.engine))
            && is(&self.group, job.task.group.as_deref())
            && self.repo.as_deref().is_none_or(|r| job.task.repos.iter().any(|n| n.as_str() == r))
    }
}

/// An outcome's name in the API.
pub(super) fn outcome_name(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Completed => "completed",
        OutcomeKind::Failed => "failed",
        OutcomeKind::TimedOut => "timed_out",
        OutcomeKind::Cancelled => "cancelled",
        OutcomeKind::Interrupted => "interrupted",
    }
}

pub(super) async fn list(
    State(app): State<App>,
    filter: Result<Query<Filter>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(filter) = filter.map_err(|e| Problem::bad("bad_query", e.body_text()))?;
    let limit = filter.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let state = app.handle.view();
    let mut found =
        state.newest_first(filter.cursor.map(Lsn)).filter(|job| filter.takes(job, &state));
    let page: Vec<&Arc<Job>> = found.by_ref().take(limit).collect();
    let next = found.next().and(page.last()).map(|job| job.accepted);
    let hindrance = app.hindrance();
    let shown =
        |job: &&Arc<Job>| shown::summary(job, &state, hindrance.as_deref(), app.running_max);
    let jobs: Vec<Value> = page.iter().map(shown).collect();
    Ok(Json(json!({
        "jobs": jobs, "next_cursor": next,
        "queued": state.queued(), "busy": state.busy(), "hindrance": hindrance,
    })))
}

pub(super) async fn show(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let job = app.find(&id)?;
    Ok(Json(shown::job(&job, &app.handle.view(), &app)))
}

pub(super) async fn why(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let job = app.find(&id)?;
    Ok(Json(why::story(&job, &app.handle.view())))
}

/// Asks and shows what has become of the job.
async fn ask_and_show(app: &App, id: JobId, request: Request) -> Result<Json<Value>, Problem> {
    app.ask(request).await?;
    let state = app.handle.view();
    let job = state.job(&id).ok_or_else(|| super::unknown(id.as_str()))?;
    Ok(Json(shown::job(job, &state, app)))
}

pub(super) async fn start(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = app.find(&id)?.id.clone();
    ask_and_show(&app, id.clone(), Request::Start(id)).await
}

pub(super) async fn hold(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = app.find(&id)?.id.clone();
    ask_and_show(&app, id.clone(), Request::Hold(id)).await
}

pub(super) async fn cancel(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = app.find(&id)?.id.clone();
    ask_and_show(&app, id.clone(), Request::Cancel(id)).await
}

pub(super) async fn retry(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = app.find(&id)?.id.clone();
    app.need_room()?;
    let session = crate::random::session_id();
    ask_and_show(&app, id.clone(), Request::Retry { job: id, session }).await
}

/// Takes a job up again of which records are lost.
pub(super) async fn repair(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = app.find(&id)?.id.clone();
    ask_and_show(&app, id.clone(), Request::Repair { job: id }).await
}

#[derive(Debug, Deserialize)]
struct ResumeBody {
    prompt: Option<String>,
}

pub(super) async fn resume(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let asked: ResumeBody = read(&headers, &body, &["prompt"])?;
    let job = app.find(&id)?;
    let engine = engine_of(&job)?;
    let prompt = submission::parse_prompt(asked.prompt, engine)?;
    app.need_room()?;
    let id = job.id.clone();
    ask_and_show(&app, id.clone(), Request::Resume { job: id, prompt }).await
}

/// A newer version's job, or one of which nobody knows any more what it was, has none.
fn engine_of(job: &Job) -> Result<&'static outlive_core::engine::Engine, Problem> {
    let engine = &job.task.engine;
    let unknown = || Refusal::CannotResume(engine.clone()).into();
    outlive_core::engine::find(engine).ok_or_else(unknown)
}

#[derive(Debug, Deserialize)]
struct SettleBody {
    #[serde(rename = "as")]
    kind: OutcomeKind,
}

pub(super) async fn settle(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let asked: SettleBody = read(&headers, &body, &["as"])?;
    let allowed = [OutcomeKind::Completed, OutcomeKind::Failed, OutcomeKind::Interrupted];
    if !allowed.contains(&asked.kind) {
        let detail = "`as` must be completed, failed or interrupted";
        return Err(Problem::bad("bad_field", detail).with("field", "as"));
    }
    let id = app.find(&id)?.id.clone();
    ask_and_show(&app, id.clone(), Request::Settle { job: id, kind: asked.kind }).await
}

#[derive(Debug, Deserialize)]
struct EditBody {
    priority: Option<u64>,
    timeout_s: Option<f64>,
    title: Option<String>,
    prompt: Option<String>,
}

pub(super) async fn edit(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let asked: EditBody = read(&headers, &body, &["priority", "timeout_s", "title", "prompt"])?;
    let priority = asked.priority.map(|p| submission::parse_priority(Some(p))).transpose()?;
    let timeout_ms = asked.timeout_s.map(|s| submission::parse_timeout(Some(s))).transpose()?;
    let title = submission::parse_line("title", asked.title)?;
    let job = app.find(&id)?;
    let engine = engine_of(&job)?;
    let prompt = asked.prompt.map(|p| submission::parse_prompt(Some(p), engine)).transpose()?;
    if prompt.is_some() {
        app.need_room()?;
    }
    let edit = Edit { priority, timeout_ms, title, prompt };
    ask_and_show(&app, job.id.clone(), Request::Edit { job: job.id.clone(), edit }).await
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

pub(super) async fn remove(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Result<Query<RemoveQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<StatusCode, Problem> {
    let Query(query) = query.map_err(|e| Problem::bad("bad_query", e.body_text()))?;
    let id = app.find(&id)?.id.clone();
    if query.force {
        cancel_and_wait(&app, &id).await?;
    }
    app.ask(Request::Remove { job: id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Cancels a job that is alive, and waits until it is over.
async fn cancel_and_wait(app: &App, id: &JobId) -> Result<(), Problem> {
    let mut changes = app.handle.changes();
    let allows =
        |app: &App, action| app.handle.view().job(id).is_some_and(|job| job.phase.allows(action));
    if allows(app, Action::Remove) || !allows(app, Action::Cancel) {
        return Ok(());
    }
    match app.ask(Request::Cancel(id.clone())).await {
        Ok(_) => {}
        Err(_) if allows(app, Action::Remove) => return Ok(()),
        Err(problem) => return Err(problem),
    }
    let gone_or_over = |state: &Arc<outlive_core::state::State>| {
        state.job(id).is_none_or(|job| !job.phase.allows(Action::Cancel))
    };
    changes.wait_for(gone_or_over).await.map_err(|_| crate::truth::driver::Stopping)?;
    Ok(())
}

/// Reads a body as each request about a job would; for fuzzers.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any(headers: &HeaderMap, body: &Bytes) {
    drop(read::<ResumeBody>(headers, body, &["prompt"]));
    drop(read::<SettleBody>(headers, body, &["as"]));
    let known = ["priority", "timeout_s", "title", "prompt"];
    let Ok(asked) = read::<EditBody>(headers, body, &known) else { return };
    drop(submission::parse_priority(asked.priority));
    drop(submission::parse_timeout(asked.timeout_s));
}
