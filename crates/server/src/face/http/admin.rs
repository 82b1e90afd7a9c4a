//! The server about itself: alive, ready, how it started, and which engines it can run.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use outlive_core::engine;
use serde_json::{Value, json};

use super::{App, Problem};

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(app): State<App>) -> (StatusCode, Json<Value>) {
    let ready = (app.ready)();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let told = if ready { "ready" } else { "recovering" };
    (status, Json(json!({ "status": told, "degraded": (app.degraded)() })))
}

pub(super) async fn startup_log(State(app): State<App>) -> Json<Value> {
    Json((app.startup_log)())
}

/// Makes a copied data directory one of its own. Asking again does no harm.
pub(super) async fn adopt_data(State(app): State<App>) -> Result<Json<Value>, Problem> {
    let adopted = (app.adopt)().await.map_err(|error| Problem::broken(format!("{error:#}")))?;
    let summary = (app.startup_log)()["current"]["summary"].clone();
    Ok(Json(json!({ "adopted": adopted, "summary": summary })))
}

pub(super) async fn engines(State(app): State<App>) -> Json<Value> {
    let engines: Vec<Value> = engine::all()
        .iter()
        .map(|engine| {
            let named = app.programs.get(engine.name).map(String::as_str).or(engine.program);
            let found = named.map(find_program);
            json!({
                "name": engine.name, "can_resume": engine.can_resume,
                "program": found.clone().flatten().map(|path| path.display().to_string()),
                "installed": found.is_none_or(|found| found.is_some()),
                "install_hint": engine.install_hint,
            })
        })
        .collect();
    Json(json!({ "engines": engines }))
}

/// Where a program is, as exec would find it.
fn find_program(name: &str) -> Option<PathBuf> {
    let runs = |path: &Path| {
        path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| runs(path));
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).map(|dir| dir.join(name)).find(|path| runs(path))
}
