//! `/metrics`: figures for monitoring, in the text format of Prometheus. What each means is in docs/metrics.md.
//!
//! Written by hand: it is a handful of lines, and every figure is asked of State when it is wanted, so there is nothing to register.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use outlive_core::heartbeat::Class;
use outlive_core::job::Work;
use outlive_core::spec::Reading;
use outlive_core::stats::{Key, Row};

use super::App;
use super::show::{DAMAGED, heartbeat_of};
use crate::truth::degraded::Kind;

/// The phases of a job, and of one whose records are damaged.
const PHASES: [&str; 8] =
    ["held", "queued", "waiting", "preparing", "running", "stopping", "unknown", "ended"];

pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let mut text = Text::default();
    startup(&mut text, &app);
    jobs(&mut text, &app);
    heartbeats(&mut text, &app);
    let state = app.handle.view();
    text.about("outlive_running_max", "gauge", "Agents that may be alive at once.");
    text.line("outlive_running_max", "", app.running_max);
    text.about("outlive_busy", "gauge", "Slots in use: agents alive, and copies under way.");
    text.line("outlive_busy", "", state.busy());
    text.about("outlive_wal_lsn", "counter", "The last durable record.");
    text.line("outlive_wal_lsn", "", state.lsn().0);
    text.about("outlive_degraded", "gauge", "Resources that are not available.");
    let degraded = (app.degraded)();
    for kind in Kind::ALL {
        let count = degraded.iter().filter(|it| it.kind == kind).count();
        text.line("outlive_degraded", &format!("{{kind=\"{}\"}}", kind.name()), count);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.0)
}

fn startup(text: &mut Text, app: &App) {
    let told = (app.startup_log)();
    let start = &told["current"];
    text.about("outlive_ready", "gauge", "1 when every critical stage of the startup is over.");
    text.line("outlive_ready", "", u8::from((app.ready)()));
    text.about("outlive_starts_total", "counter", "Starts over the life of the data directory.");
    text.line("outlive_starts_total", "", &start["number"]);
    text.about("outlive_startup_stage_seconds", "gauge", "Duration of a stage of this startup.");
    for stage in start["stages"].as_array().into_iter().flatten() {
        let label = format!("{{stage=\"{}\"}}", stage["name"].as_str().unwrap_or_default());
        let ms = stage["duration_ms"].as_f64().unwrap_or_default();
        text.line("outlive_startup_stage_seconds", &label, ms / 1000.0);
    }
}

fn jobs(text: &mut Text, app: &App) {
    let state = app.handle.view();
    let mut phases: BTreeMap<&str, usize> = PHASES.into_iter().map(|phase| (phase, 0)).collect();
    for job in state.jobs() {
        *phases.entry(job.phase.name()).or_insert(0) += 1;
    }
    text.about("outlive_jobs", "gauge", "Jobs there are, by phase.");
    for (phase, count) in phases {
        text.line("outlive_jobs", &format!("{{phase=\"{phase}\"}}"), count);
    }
    let none = Row::default();
    let total = state.stats().row(&Key::Total).unwrap_or(&none);
    text.about("outlive_jobs_accepted_total", "counter", "Jobs ever accepted.");
    text.line("outlive_jobs_accepted_total", "", total.accepted);
    text.about("outlive_jobs_ended_total", "counter", "Jobs that ended, by outcome.");
    let outcomes = [
        ("completed", total.completed),
        ("failed", total.failed),
        ("timed_out", total.timed_out),
        ("cancelled", total.cancelled),
        ("interrupted", total.interrupted),
    ];
    for (outcome, count) in outcomes {
        text.line("outlive_jobs_ended_total", &format!("{{outcome=\"{outcome}\"}}"), count);
    }
}

/// A small file is read for each agent that may be alive: there are never more of them than slots.
fn heartbeats(text: &mut Text, app: &App) {
    let classes = Class::all().map(Class::name).chain([DAMAGED]);
    let mut counts: BTreeMap<&str, usize> = classes.map(|class| (class, 0)).collect();
    let state = app.handle.view();
    let works = state.jobs().filter_map(|job| job.phase.work(&job.id));
    for work in works.filter(|work| matches!(work, Work::Attempt { .. })) {
        let class = match heartbeat_of(&app.paths.keep(&work), app.patience) {
            Reading::Valid(heartbeat) => heartbeat.class.name(),
            Reading::Damaged(_) => DAMAGED,
            // Its supervisor is on its way to its first one.
            Reading::Absent => continue,
        };
        *counts.entry(class).or_insert(0) += 1;
    }
    text.about("outlive_jobs_heartbeat", "gauge", "Jobs with an agent, by their heartbeat.");
    for (class, count) in counts {
        text.line("outlive_jobs_heartbeat", &format!("{{class=\"{class}\"}}"), count);
    }
}

/// The text as it grows.
#[derive(Default)]
struct Text(String);

impl Text {
    fn about(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        writeln!(self.0, "{name}{labels} {value}").ok();
    }
}
