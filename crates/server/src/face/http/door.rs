//! The door: answers from the first moment. Until State is there it says that the server is recovering, and how far it is; then it
//! leads to the whole API.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Json, Response};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{Problem, guard};

/// A door. Copies lead to the same place.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    token: String,
    startup_log: Box<dyn Fn() -> Value + Send + Sync>,
    /// What is behind it, once there is something.
    whole: OnceLock<Router>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("open", &self.0.whole.get().is_some()).finish_non_exhaustive()
    }
}

impl Door {
    /// A closed one. It knows the token and can show the startup log as JSON.
    pub fn new(token: String, startup_log: Box<dyn Fn() -> Value + Send + Sync>) -> Self {
        Self(Arc::new(Inner { token, startup_log, whole: OnceLock::new() }))
    }

    /// Opens it, for good.
    pub fn open(&self, whole: Router) {
        // A second time changes nothing: what is behind is there already.
        drop(self.0.whole.set(whole));
    }

    /// To be served.
    pub fn router(&self) -> Router {
        let through = Router::new().fallback(through).with_state(self.clone());
        through.layer(middleware::from_fn(guard::origin))
    }

    async fn while_recovering(&self, request: Request) -> Response {
        let answer = self.what_can_be_said(&request);
        guard::hear_out(request).await;
        answer
    }

    fn what_can_be_said(&self, request: &Request) -> Response {
        match request.uri().path() {
            "/healthz" => "ok\n".into_response(),
            "/readyz" => {
                let told = json!({ "status": "recovering", "degraded": [] });
                (StatusCode::SERVICE_UNAVAILABLE, Json(told)).into_response()
            }
            "/api/admin/startup-log" => match guard::check(request.headers(), &self.0.token) {
                Ok(()) => Json((self.0.startup_log)()).into_response(),
                Err(problem) => problem.into_response(),
            },
            _ => recovering(),
        }
    }
}

async fn through(State(door): State<Door>, request: Request) -> Response {
    match door.0.whole.get() {
        // Its error type has no values.
        Some(whole) => whole.clone().oneshot(request).await.unwrap_or_else(|never| match never {}),
        None => door.while_recovering(request).await,
    }
}

fn recovering() -> Response<Body> {
    let detail = "the server is recovering, and nothing was done yet";
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "recovering", detail)
        .hint("ask again in a moment; `outlive startup-log` shows how far it is");
    ([(header::RETRY_AFTER, "1")], problem).into_response()
}
