//! A job's place in the queue, which every row of a list and every answer to a submission tells.

use std::time::Instant;

use outlive_core::event::{Accepted, Event};
use outlive_core::ids::{JobId, Lsn, RepoName, SessionId};
use outlive_core::job::Job;
use outlive_core::limits;
use outlive_core::state::State;
use outlive_core::task::{OnInterrupt, OnLimit, OnUnknown, Task, TaskLimits};
use outlive_core::time::Timestamp;

use crate::Extent;
use crate::report::{Row, Samples, Unit};

/// Places asked for, spread over the whole queue.
const ASKED: usize = 1000;

/// Measures it.
pub(crate) fn measure(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let most = extent.pick(100_000, 10_000);
    [1_000, 10_000, 100_000].into_iter().filter(|count| *count <= most).map(among).collect()
}

fn among(count: u64) -> anyhow::Result<Row> {
    let mut state = State::default();
    for n in 1..=count {
        state.apply(Lsn(n), Timestamp(n), &accepted(n)?)?;
    }
    let jobs: Vec<_> = state.jobs().cloned().collect();
    let step = (jobs.len() / ASKED).max(1);
    let mut samples = Samples::new();
    let mut checked = 0;
    for job in jobs.iter().step_by(step) {
        let begun = Instant::now();
        let place = state.queue_position(job);
        samples.push(begun.elapsed().as_secs_f64() * 1000.0);
        checked += usize::from(place == Some(expected(job)));
    }
    anyhow::ensure!(checked == samples.len(), "a place was told wrongly");
    Ok(Row::new(format!("{count} queued: the place of one"), Unit::Ms, &samples))
}

/// All have one priority, so it is the order of acceptance.
fn expected(job: &Job) -> usize {
    usize::try_from(job.accepted.0).unwrap_or(usize::MAX) - 1
}

fn accepted(n: u64) -> anyhow::Result<Event> {
    let task = Task {
        repos: vec![RepoName::parse("r")?],
        engine: "demo".to_string(),
        engine_options: serde_json::Map::new(),
        model: None,
        timeout_ms: 1000,
        priority: limits::PRIORITY_DEFAULT,
        on_interrupt: OnInterrupt::Resume,
        on_unknown: OnUnknown::Hold,
        max_interrupts: 0,
        on_limit: OnLimit::Wait,
        limit_wait_ms: 0,
        limits: TaskLimits::default(),
        env: std::collections::BTreeMap::new(),
        title: None,
        group: None,
    };
    Ok(Event::JobAccepted(Box::new(Accepted {
        job: JobId::from_random(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
        owner: "local".to_string(),
        task,
        prompt: "do it".to_string(),
        session: SessionId(n.to_string()),
        held: false,
        start_after: None,
        idempotency: None,
    })))
}
