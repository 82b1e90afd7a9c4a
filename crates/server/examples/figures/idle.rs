//! Wake-ups of processes that have nothing to do. Each one keeps a processor from sleeping, so there should be none but those
//! that are due.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use outlive_core::limits::HEARTBEAT;

use crate::Extent;
use crate::machine::field;
use crate::report::{Row, Samples, Unit};
use crate::rig::Rig;

/// Measures it.
pub(crate) fn measure(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let window = extent.pick(Duration::from_secs(20), Duration::from_secs(5));
    let agents = extent.pick(100, 10);
    let mut rig = Rig::start(agents)?;
    let mut rows = vec![server(&rig, "server, no jobs", window)?];
    rig.run_sleepers(agents)?;
    rig.kill()?;
    rig.start_again()?;
    rows.push(server(&rig, &format!("server, {agents} agents adopted"), window)?);
    // As long as from one heartbeat to the next, so that each of them is due once.
    rows.extend(supervisors(&rig, extent.pick(HEARTBEAT, window))?);
    Ok(rows)
}

fn server(rig: &Rig, what: &str, window: Duration) -> anyhow::Result<Row> {
    let pid = rig.pid()?;
    // What the start has left to do is not idleness; its helping threads end ten seconds later.
    pass(Duration::from_secs(12));
    let before = switches(pid)?;
    let begun = Instant::now();
    pass(window);
    let woken = per_minute(woken_since(&before, &switches(pid)?), begun.elapsed());
    let samples = Samples::from_iter([woken]);
    let row = Row::new(format!("{what}: wake-ups a minute"), Unit::Count, &samples);
    Ok(row.beside("due: none").goal(Unit::Count, &samples, 1.0))
}

/// All of them in the same window; a heartbeat is a few switches, since it writes and syncs a file.
fn supervisors(rig: &Rig, window: Duration) -> anyhow::Result<Vec<Row>> {
    let pids: Vec<u32> = rig.supervisors().iter().map(|supervisor| supervisor.pid).collect();
    let count = || pids.iter().map(|pid| switches(*pid)).collect::<anyhow::Result<Vec<_>>>();
    let (before, beats_before) = (count()?, beats(rig)?);
    let begun = Instant::now();
    pass(window);
    let (after, beats_after) = (count()?, beats(rig)?);
    let elapsed = begun.elapsed();
    let both = before.iter().zip(&after);
    let deltas: Vec<f64> = both.map(|(before, after)| woken_since(before, after)).collect();
    let beaten = beats_before.iter().zip(&beats_after).filter(|(a, b)| a != b).count();
    let quiet: Samples = deltas.iter().filter(|woken| **woken == 0.0).copied().collect();
    let rates: Samples = deltas.iter().map(|woken| per_minute(*woken, elapsed)).collect();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let each = deltas.iter().sum::<f64>() / (beaten.max(1)) as f64;
    let per_beat = Samples::from_iter([each]);
    let name = format!("supervisor: wake-ups a minute, {} of them", pids.len());
    let told = format!("{} of {} not once in {} s", quiet.len(), pids.len(), elapsed.as_secs());
    Ok(vec![
        Row::new(name, Unit::Count, &rates).beside(told),
        Row::new("supervisor: wake-ups for each heartbeat due", Unit::Count, &per_beat)
            .beside(format!("{beaten} heartbeats, one in 30 s each")),
    ])
}

/// How often each thread of a process went to sleep, which is as often as it woke.
type Switches = BTreeMap<OsString, f64>;

fn switches(pid: u32) -> anyhow::Result<Switches> {
    let mut switches = Switches::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        let count = field(task.path().join("status"), "voluntary_ctxt_switches");
        // A thread that ended meanwhile has none.
        if let Some(count) = count {
            switches.insert(task.file_name(), count.parse()?);
        }
    }
    Ok(switches)
}

/// Wake-ups between two looks. A thread that ended woke once at least.
fn woken_since(before: &Switches, after: &Switches) -> f64 {
    let ended = before.keys().filter(|task| !after.contains_key(*task)).map(|_| 1.0);
    let lived = after.iter().map(|(task, count)| count - before.get(task).unwrap_or(&0.0));
    ended.chain(lived).sum()
}

/// When each supervisor has beaten last.
fn beats(rig: &Rig) -> anyhow::Result<Vec<SystemTime>> {
    let mut beats = Vec::new();
    for job in fs::read_dir(rig.data("jobs"))? {
        let sentinel: PathBuf = job?.path().join("attempts/1/sentinel.json");
        beats.push(sentinel.metadata()?.modified()?);
    }
    Ok(beats)
}

fn per_minute(count: f64, window: Duration) -> f64 {
    count * 60.0 / window.as_secs_f64()
}

#[expect(clippy::disallowed_methods, reason = "to be idle is what is measured")]
fn pass(window: Duration) {
    std::thread::sleep(window);
}
