//! Repos: register, list, show, forget; and what a job's workspace has to give back.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use outlive_core::ids::RepoName;
use outlive_core::job::Job;
use outlive_core::limits;
use outlive_core::repo::RepoPhase;
use outlive_core::request::{Refusal, Request};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::read;
use super::problem::Problem;
use super::{App, OWNER, show as shown};

#[derive(Debug, Deserialize)]
struct AddBody {
    name: String,
    source: String,
    branch: Option<String>,
}

fn name_of(text: &str) -> Result<RepoName, Problem> {
    RepoName::parse(text)
        .map_err(|e| Problem::bad("bad_field", format!("`name` {}", e.rule)).with("field", "name"))
}

pub(super) async fn add(
    State(app): State<App>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let asked: AddBody = read(&headers, &body, &["name", "source", "branch"])?;
    let name = name_of(&asked.name)?;
    check_origin(&app, Some(&asked.source), asked.branch.as_deref())?;
    app.need_room()?;
    let (source, branch, owner) = (asked.source, asked.branch, OWNER.to_string());
    app.ask(Request::AddRepo { name: name.clone(), owner, source, branch }).await?;
    let state = app.handle.view();
    let repo = state.repo(&name).map(|repo| shown::repo(repo, &state));
    Ok((StatusCode::CREATED, Json(repo)).into_response())
}

fn check_origin(app: &App, source: Option<&str>, branch: Option<&str>) -> Result<(), Problem> {
    if source.is_some_and(|source| source.len() > limits::REPO_SOURCE_BYTES_MAX) {
        return Err(Problem::bad("bad_source", "`source` is too long"));
    }
    source
        .map_or(Ok(()), |source| app.sight.check_source(source))
        .map_err(|why| Problem::bad("bad_source", why).with("field", "source"))?;
    let bad_branch = |branch: &str| {
        branch.is_empty() || branch.starts_with('-') || branch.contains(['\0', ' ', '\n'])
    };
    if branch.is_some_and(bad_branch) {
        return Err(Problem::bad("bad_field", "`branch` is no branch name"));
    }
    Ok(())
}

#[derive(Debug, Default, Deserialize)]
struct RepairBody {
    source: Option<String>,
    branch: Option<String>,
}

/// Makes a repo usable again; where nobody knows any more where it comes from, the body tells.
pub(super) async fn repair(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let asked = match body.len() {
        0 => RepairBody::default(),
        _ => read(&headers, &body, &["source", "branch"])?,
    };
    let RepairBody { source, branch } = asked;
    check_origin(&app, source.as_deref(), branch.as_deref())?;
    app.need_room()?;
    let (name, owner) = (name_of(&name)?, OWNER.to_string());
    app.ask(Request::RepairRepo { name: name.clone(), owner, source, branch }).await?;
    let state = app.handle.view();
    Ok(Json(state.repo(&name).map_or(Value::Null, |repo| shown::repo(repo, &state))))
}

pub(super) async fn list(State(app): State<App>) -> Json<Value> {
    let state = app.handle.view();
    let mut repos: Vec<Value> = state.repos().map(|repo| shown::repo(repo, &state)).collect();
    repos.extend(shown::lost_repos(&state));
    Json(json!({ "repos": repos }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowQuery {
    /// Answer only when it is no longer being cloned.
    #[serde(default)]
    wait: bool,
}

pub(super) async fn show(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Result<Query<ShowQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(query) = query.map_err(|e| Problem::bad("bad_query", e.body_text()))?;
    let name = name_of(&name)?;
    if query.wait {
        let mut changes = app.handle.changes();
        let settled = |state: &Arc<outlive_core::state::State>| {
            let phase = state.repo(&name).map(|repo| &repo.phase);
            !matches!(phase, Some(RepoPhase::Cloning)) || state.usable(&name).is_err()
        };
        tokio::select! {
            waited = changes.wait_for(settled) => {
                waited.map_err(|_| crate::truth::driver::Stopping)?;
            }
            () = app.stopping.cancelled() => return Err(crate::truth::driver::Stopping.into()),
        }
    }
    let state = app.handle.view();
    let unknown = Refusal::UnknownRepo { name: name.to_string(), nearest: None };
    let Some(repo) = state.repo(&name) else {
        let lost = shown::lost_repos(&state).into_iter().find(|lost| lost["name"] == name.as_str());
        return Ok(Json(lost.ok_or(unknown)?));
    };
    let mut shown = shown::repo(repo, &state);
    if repo.phase == RepoPhase::Ready && state.usable(&name).is_ok() {
        let sight = app.sight.clone();
        let seen = blocking(&app, move || sight.repo(&name)).await?;
        shown["git"] = match seen {
            Ok(sight) => json!(sight),
            Err(problem) => json!({ "problem": problem }),
        };
    }
    Ok(Json(shown))
}

pub(super) async fn remove(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    app.ask(Request::RemoveRepo(name_of(&name)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    app.tracker.spawn_blocking(work).await.map_err(|error| Problem::broken(error.to_string()))
}

/// The job, if it has a workspace to look into.
fn with_workspace(app: &App, id: &str) -> Result<Arc<Job>, Problem> {
    let job = app.find(id)?;
    let made = job.session().is_some_and(|session| session.workspace.is_some());
    if made { Ok(job) } else { Err(no_workspace()) }
}

fn no_workspace() -> Problem {
    Problem::new(StatusCode::CONFLICT, "no_workspace", "this job has no workspace yet")
}

pub(super) async fn bundle(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let job = with_workspace(&app, &id)?;
    let sight = app.sight.clone();
    let bundle = blocking(&app, move || sight.bundle(&job)).await?;
    let bytes = bundle.map_err(|why| Problem::new(StatusCode::CONFLICT, "no_bundle", why))?;
    Ok(([(header::CONTENT_TYPE, "application/x-git-bundle")], bytes).into_response())
}

pub(super) async fn diff(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let job = with_workspace(&app, &id)?;
    let sight = app.sight.clone();
    let diff = blocking(&app, move || sight.diff(&job)).await?;
    let bytes = diff.map_err(|why| Problem::new(StatusCode::CONFLICT, "no_diff", why))?;
    Ok(([(header::CONTENT_TYPE, "text/x-diff; charset=utf-8")], bytes).into_response())
}

/// Reads a body as the registration of a repo would; for fuzzers.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any(headers: &HeaderMap, body: &Bytes) {
    drop(read::<AddBody>(headers, body, &["name", "source", "branch"]));
}
