//! Starts after a kill -9: with many queued jobs, and with many agents to be adopted.

use serde_json::Value;

use crate::Extent;
use crate::memory;
use crate::report::{Row, Samples, Unit};
use crate::rig::{Rig, command_job};

/// What the server that this one descends from took for 105 queued jobs.
const ORIGINAL_MS: f64 = 23.0;

/// Clients that fill the queue.
const FILLERS: usize = 32;

/// Process start → ready, with one agent that is adopted and all other jobs queued behind it.
pub(crate) fn with_queue(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let mut rows = few(extent)?;
    rows.extend(many("10,000", 10_000, extent.pick(11, 2))?);
    Ok(rows)
}

/// The same with 100,000, most of them in a checkpoint.
pub(crate) fn with_long_queue(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let (name, count) = extent.pick(("100,000", 100_000), ("1,000", 1000));
    many(name, count, extent.pick(7, 2))
}

fn few(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let restarts = restart(&mut queue(105)?, extent.pick(25, 3))?;
    let Restarts { ready, wall, .. } = &restarts;
    let ratio = ORIGINAL_MS / ready.median();
    let beside = format!("the original: {ORIGINAL_MS:.0} ms, {ratio:.1} × as long");
    let row = Row::new("105 queued: start → ready", Unit::Ms, ready).beside(beside);
    let mut rows = vec![
        row.goal(Unit::Ms, ready, 5.0),
        Row::new("105 queued: exec → line `ready:`", Unit::Ms, wall),
    ];
    rows.extend(restarts.stages());
    Ok(rows)
}

fn many(name: &str, count: usize, times: usize) -> anyhow::Result<Vec<Row>> {
    let restarts = restart(&mut queue(count)?, times)?;
    let Restarts { ready, wall, .. } = &restarts;
    let mut rows = vec![
        Row::new(format!("{name} queued: start → ready"), Unit::Ms, ready),
        Row::new(format!("{name} queued: exec → line `ready:`"), Unit::Ms, wall),
    ];
    rows.extend(restarts.stages());
    Ok(rows)
}

/// Process start → 100 running agents adopted.
pub(crate) fn with_agents(extent: Extent) -> anyhow::Result<Vec<Row>> {
    adopted(extent.pick(100, 10), extent.pick(15, 3), Some(300.0))
}

/// The same with 1,000: with their supervisors 2,000 processes.
pub(crate) fn with_many_agents(extent: Extent) -> anyhow::Result<Vec<Row>> {
    adopted(extent.pick(1000, 50), extent.pick(7, 2), None)
}

fn adopted(agents: usize, times: usize, goal_ms: Option<f64>) -> anyhow::Result<Vec<Row>> {
    let mut rig = Rig::start(agents)?;
    rig.run_sleepers(agents)?;
    let restarts = restart(&mut rig, times)?;
    let adopted = restarts.last["stages"][2]["counts"]["adopted"].as_u64().unwrap_or(0);
    let Restarts { ready, wall, .. } = &restarts;
    let what = format!("{agents} running: start → all adopted, ready");
    let row = Row::new(what, Unit::Ms, ready).beside(format!("adopted: {adopted}"));
    let row = match goal_ms {
        Some(goal) => row.goal(Unit::Ms, ready, goal),
        None => row,
    };
    let mut rows = vec![row, Row::new("exec → line `ready:`", Unit::Ms, wall)];
    rows.extend(restarts.stages());
    let pss = memory::pss(&rig.supervisors())?;
    let all_alive = format!("{} supervisors alive", pss.len());
    rows.push(Row::new("supervisor, PSS", Unit::KiB, &pss).beside(all_alive));
    Ok(rows)
}

/// One job that runs, and all others behind it.
fn queue(count: usize) -> anyhow::Result<Rig> {
    let rig = Rig::start(1)?;
    rig.run_sleepers(1)?;
    let job = command_job(&["true"]);
    let api = rig.api()?;
    std::thread::scope(|scope| {
        let fillers = FILLERS.min(count);
        let threads: Vec<_> = (0..fillers)
            .map(|number| {
                let (api, job) = (api.apart(), &job);
                let share = count / fillers + usize::from(number < count % fillers);
                scope.spawn(move || (0..share).try_for_each(|_| api.submit(job).map(drop)))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a client has died")))
        })
    })?;
    Ok(rig)
}

/// What several starts took.
struct Restarts {
    ready: Samples,
    wall: Samples,
    cpu: Samples,
    stages: Vec<(String, Samples)>,
    last: Value,
}

impl Restarts {
    fn stages(&self) -> impl Iterator<Item = Row> {
        let cpu = Row::new("processor time until then, all threads", Unit::Ms, &self.cpu);
        let stages = self.stages.iter().map(|(name, samples)| {
            let records = self.last["stages"][0]["counts"]["records"].as_u64().unwrap_or(0);
            let beside =
                if name == "storage" { format!("{records} records") } else { String::new() };
            Row::new(format!("of this: {name}"), Unit::Ms, samples).beside(beside)
        });
        std::iter::once(cpu).chain(stages)
    }
}

/// Kills the server and starts it again, several times.
fn restart(rig: &mut Rig, times: usize) -> anyhow::Result<Restarts> {
    let [ready, wall, cpu] = [const { Samples::new() }; 3];
    let mut restarts = Restarts { ready, wall, cpu, stages: Vec::new(), last: Value::Null };
    for _ in 0..times {
        rig.kill()?;
        let took = rig.start_again()?;
        restarts.ready.push(took.ready);
        restarts.wall.push(took.wall);
        restarts.cpu.push(took.cpu);
        restarts.last = rig.startup_log()?;
        let stages = restarts.last["stages"].as_array().into_iter().flatten();
        for (index, stage) in stages.enumerate() {
            let name = stage["name"].as_str().unwrap_or_default();
            if restarts.stages.len() == index {
                restarts.stages.push((name.to_string(), Samples::new()));
            }
            if let Some((_, samples)) = restarts.stages.get_mut(index) {
                samples.push(stage["duration_ms"].as_f64().unwrap_or(0.0));
            }
        }
    }
    Ok(restarts)
}
