//! Server-sent events. They tell levels, not edges: what a job is now, as soon as it changed; so a reader that was away misses
//! nothing that still matters, and `Last-Event-ID` (an lsn) only saves it what it knows already.

use std::convert::Infallible;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::Stream;
use outlive_core::ids::Lsn;
use outlive_core::job::Phase;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{App, Problem, show as shown};

/// Events that may wait for a slow reader; then it gets fewer and newer ones.
const EVENTS_MAX: usize = 16;

/// Changed jobs told at once to a reader of all jobs; a reader that is further behind asks for the list.
const JOBS_AT_ONCE_MAX: usize = 1000;

type Events = Sse<axum::response::sse::KeepAliveStream<ReceiverStream<Result<Event, Infallible>>>>;

fn last_seen(headers: &HeaderMap) -> Lsn {
    let id = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    Lsn(id.and_then(|id| id.parse().ok()).unwrap_or(0))
}

fn event(name: &str, lsn: Lsn, data: &Value) -> Event {
    Event::default().event(name).id(lsn.to_string()).data(data.to_string())
}

fn stream(receiver: mpsc::Receiver<Result<Event, Infallible>>) -> Events {
    fn check<T: Stream>(stream: T) -> T {
        stream
    }
    Sse::new(check(ReceiverStream::new(receiver))).keep_alive(KeepAlive::default())
}

/// One job, whole, at each of its changes; ends when it is over.
pub(super) async fn of_job(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Events, Problem> {
    let id = app.find(&id)?.id.clone();
    let mut seen = last_seen(&headers);
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    let stopping = app.stopping.clone();
    let tell = {
        let app = app.clone();
        async move {
            let mut changes = app.handle.changes();
            loop {
                let state = changes.borrow_and_update().clone();
                let Some(job) = state.job(&id) else { return };
                let over = matches!(job.phase, Phase::Ended { .. } | Phase::Unknown { .. });
                if job.changed > seen || over {
                    seen = job.changed;
                    let told = event("job", seen, &shown::job(job, &state, &app));
                    if sender.send(Ok(told)).await.is_err() || over {
                        return;
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                    () = stopping.cancelled() => return,
                }
            }
        }
    };
    app.tracker.spawn(tell);
    Ok(stream(receiver))
}

/// Every job that changed, in short.
pub(super) async fn all(State(app): State<App>, headers: HeaderMap) -> Events {
    let mut seen = last_seen(&headers);
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    let stopping = app.stopping.clone();
    let tell = {
        let app = app.clone();
        async move {
            let mut changes = app.handle.changes();
            loop {
                let state = changes.borrow_and_update().clone();
                let changed = state.jobs().filter(|job| job.changed > seen);
                let hindrance = app.hindrance();
                let jobs: Vec<Value> = changed
                    .take(JOBS_AT_ONCE_MAX)
                    .map(|job| shown::summary(job, &state, hindrance.as_deref(), app.running_max))
                    .collect();
                if state.lsn() > seen {
                    seen = state.lsn();
                    let data = serde_json::json!({
                        "lsn": seen, "queued": state.queued(), "busy": state.busy(), "jobs": jobs,
                    });
                    if sender.send(Ok(event("jobs", seen, &data))).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                    () = stopping.cancelled() => return,
                }
            }
        }
    };
    app.tracker.spawn(tell);
    stream(receiver)
}
