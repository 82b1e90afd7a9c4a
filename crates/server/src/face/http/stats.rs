//! Statistics as the API shows them.

use axum::Json;
use axum::extract::State;
use outlive_core::record::EntityKind;
use outlive_core::stats::{Key, Row, Spread};
use serde_json::{Map, Value, json};

use super::App;

pub(super) async fn stats(State(app): State<App>) -> Json<Value> {
    let state = app.handle.view();
    let [mut engines, mut repos, mut owners, mut days] = [(); 4].map(|()| Map::new());
    for (key, row) in state.stats().rows() {
        let (map, name) = match key {
            Key::Total => continue,
            Key::Engine(name) => (&mut engines, name.clone()),
            Key::Repo(name) => (&mut repos, name.clone()),
            Key::Owner(name) => (&mut owners, name.clone()),
            Key::Day(day) => (&mut days, Some(day.to_string())),
        };
        // No name begins with a parenthesis but an owner's might; a row of its own would still be the later one.
        map.insert(name.unwrap_or_else(|| "(others)".to_string()), shown(row));
    }
    let total = state.stats().row(&Key::Total).map_or_else(|| shown(&Row::default()), shown);
    // What is damaged may be missing from the sums: never in silence.
    let incomplete = state
        .all_unavailable()
        .filter(|(entity, _)| matches!(entity.kind, EntityKind::Stats | EntityKind::Job));
    let incomplete =
        incomplete.map(|(entity, why)| json!({ "what": entity.to_string(), "why": why }));
    Json(json!({
        "total": total, "engines": engines, "repos": repos, "owners": owners, "days": days,
        "queued": state.queued(), "busy": state.busy(), "running_max": app.running_max,
        "incomplete": incomplete.collect::<Vec<_>>(), "lsn": state.lsn(),
    }))
}

fn shown(row: &Row) -> Value {
    json!({
        "jobs": {
            "accepted": row.accepted, "ended": row.ended(), "removed": row.removed,
            "completed": row.completed, "failed": row.failed, "timed_out": row.timed_out,
            "cancelled": row.cancelled, "interrupted": row.interrupted,
        },
        "attempts": row.attempts,
        "queue_s": spread(&row.queue_ms, seconds),
        "prepare_s": spread(&row.prepare_ms, seconds),
        "run_s": spread(&row.run_ms, seconds),
        "peak_memory_bytes": spread(&row.peak_memory_bytes, Value::from),
        "cpu_s": seconds(row.cpu_ms),
        "usage": {
            "input_tokens": row.input_tokens, "output_tokens": row.output_tokens,
            "cost_usd": super::show::micros_to_usd(row.cost_micros),
        },
    })
}

fn spread(spread: &Spread, show: fn(u64) -> Value) -> Value {
    let told = |value: Option<u64>| value.map_or(Value::Null, show);
    json!({
        "count": spread.count, "mean": told(spread.mean()), "p50": told(spread.percentile(50)),
        "p90": told(spread.percentile(90)), "max": told((spread.count > 0).then_some(spread.max)),
    })
}

fn seconds(millis: u64) -> Value {
    super::show::seconds(millis).into()
}
