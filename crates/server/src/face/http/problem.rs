//! The one map from "no" to HTTP: problem documents by RFC 9457 with stable codes.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use outlive_core::request::Refusal;
use serde_json::{Map, Value, json};

use crate::truth::driver::Stopping;

/// A refusal or failure as a client sees it.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    more: Map<String, Value>,
}

impl Problem {
    /// A problem with a stable code for programs and a sentence for people.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), more: Map::new() }
    }

    /// The request makes no sense.
    pub fn bad(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// Something broke on our side; the cause goes into the trace.
    pub fn broken(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// Adds a member for programs.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_string(), value.into());
        self
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        self.with("hint", hint.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": format!("urn:outlive:problem:{}", self.code),
            "title": self.status.canonical_reason().unwrap_or("Problem"),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
        });
        if let Value::Object(body) = &mut body {
            body.extend(self.more);
        }
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (self.status, kind, body.to_string()).into_response()
    }
}

impl From<Stopping> for Problem {
    fn from(stopping: Stopping) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", stopping.to_string())
            .hint("ask again: nothing was changed, or your Idempotency-Key will tell")
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, text.clone());
        match refusal {
            Refusal::UnknownJob(_) => Self::new(StatusCode::NOT_FOUND, "unknown_job", text)
                .hint("`outlive list` shows the jobs there are"),
            Refusal::UnknownRepo { nearest, .. } => {
                let problem = Self::new(StatusCode::NOT_FOUND, "unknown_repo", text.clone());
                problem.hint(nearest.map_or_else(
                    || "register it with `outlive repo add NAME SOURCE`".to_string(),
                    |nearest| format!("did you mean `{nearest}`?"),
                ))
            }
            Refusal::RepoExists(_) => conflict("repo_exists"),
            Refusal::RepoInUse { .. } => conflict("repo_in_use")
                .hint("wait for its jobs to end, or cancel them, and ask again"),
            Refusal::RepoUnavailable { name, .. } => conflict("repository_unavailable")
                .hint(format!("`outlive repo repair {name}` makes it usable again")),
            Refusal::NotAllowed { phase, allowed, .. } => {
                let hint = if allowed.is_empty() {
                    "nothing can be asked of it now".to_string()
                } else {
                    format!("now it can be asked to: {}", allowed.join(", "))
                };
                conflict("not_allowed_in_phase").hint(hint).with("phase", phase)
            }
            Refusal::KeyReused(job) => conflict("idempotency_key_reused").with("job", job),
            Refusal::WorkspaceGone => {
                conflict("workspace_gone").hint("`retry` makes a fresh workspace")
            }
            Refusal::CannotResume(_) => conflict("cannot_resume").hint("`retry` begins afresh"),
            Refusal::TaskLost(_) => conflict("task_lost").hint(
                "its output and its workspace are there; submit it anew if it has to be done",
            ),
            Refusal::SourceLost(name) => conflict("source_lost").hint(format!(
                "say where it comes from: `outlive repo repair {name} --source SOURCE`"
            )),
            Refusal::LimitReached { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "limit_reached", text)
            }
            Refusal::NotAdopted(_) => conflict("not_adopted").hint(
                "if its original does not run any more: `outlive adopt-data`, and everything goes on; \
                 what has not begun can be held, edited or cancelled before",
            ),
            Refusal::Unavailable { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text).hint(
                    "some of its records are lost; its files and processes are left alone: \
                     `outlive repair` takes it up again",
                )
            }
        }
    }
}
