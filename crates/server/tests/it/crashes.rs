//! A process dies at every crash point that the sources name, and the job ends as if nothing had been.
//!
//! Clones and copies die with their servers at these points like agents do; each is done once, and none runs on unknown or is
//! left over. Proves I11.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::case::{Case, Expected, kill_all};
use crate::rig::{Rig, wait_gone};
use crate::source::crash_points;

/// Where in the life of a job the crash is armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// From the first start on an empty data directory.
    Fresh,
    /// When the repo is there: copy, launch, end.
    Launch,
    /// While the agent runs: the next start adopts it.
    Adopt,
    /// The same, with the supervisor killed too: a caretaker has to come.
    Caretake,
    /// The agent is cancelled.
    Cancel,
    /// The same, and it ignores TERM.
    CancelDeaf,
    /// A supervisor dies before the gate opens; the crash is in what follows.
    Unborn,
    /// A checkpoint after every record.
    Checkpoint,
    /// Records that fill a segment.
    Rotate,
    /// A server dies with a group written and not synced; the crash is in the next start.
    Doubtful,
    /// The same, and the group is torn.
    Torn,
}

use Variant::{
    Adopt, Cancel, CancelDeaf, Caretake, Checkpoint, Doubtful, Fresh, Launch, Rotate, Torn, Unborn,
};

/// The variants in which a point is tried, the first of which must reach it.
fn variants(point: &str) -> &'static [Variant] {
    match point {
        "wal.seal" | "wal.cut" | "wal.cut_before_sync" => &[Torn],
        "wal.rewrite" | "wal.mend_before_sync" => &[Doubtful, Torn],
        "wal.rotate" => &[Rotate],
        _ if point.starts_with("wal.checkpoint") => &[Checkpoint],
        _ if point.starts_with("wal.segment") => &[Fresh, Rotate],
        "fleet.before_stop" | "fleet.after_stop" | "supervisor.term_sent" => &[Cancel, CancelDeaf],
        "supervisor.kill_sent" => &[CancelDeaf],
        "supervisor.voiding" | "supervisor.voided" | "supervisor.child.never_ran" => &[Unborn],
        "supervisor.child.waiting" | "supervisor.child.let_go" => &[Launch],
        "serve.locked" | "serve.recovered" | "serve.ready" => &[Fresh, Adopt],
        "fleet.before_spawn" | "fleet.after_spawn" => &[Launch, Fresh, Caretake],
        "fleet.before_prepare" | "fleet.after_prepare" => &[Launch, Fresh],
        _ if point.starts_with("serve") || point.starts_with("wal") => {
            &[Launch, Fresh, Adopt, Caretake, Cancel]
        }
        "fleet.keeper_ended" => &[Launch, Fresh, Adopt, Caretake, Cancel],
        "supervisor.locked" | "supervisor.beat" => &[Launch, Fresh, Caretake],
        "supervisor.agent_ended"
        | "supervisor.output_synced"
        | "supervisor.outcome_written"
        | "supervisor.outcome_synced"
        | "supervisor.tree_empty"
        | "supervisor.tree_recorded" => &[Launch, Fresh, Caretake, Cancel],
        _ => &[Launch, Fresh],
    }
}

/// Between the end of an agent and its record: who dies here leaves only what the server holds to tell of it.
const LAST_WITNESS: &[&str] = &["supervisor.agent_ended", "supervisor.output_synced"];

#[derive(Debug, Clone)]
struct Plan {
    point: String,
    pass: u32,
    variant: Variant,
}

/// Lives at the same time: mostly they wait for disks and processes.
const THREADS: usize = 5;

/// Lives one life with its crash; tells whether the crash came.
fn live(plan: &Plan) -> bool {
    let Plan { point, pass, variant } = plan;
    let mut case = Case::new();
    let mut expected = Expected::ExitedWith42;
    match variant {
        Cancel => expected = Expected::Cancelled,
        CancelDeaf => {
            case.make_deaf();
            expected = Expected::Cancelled;
        }
        Checkpoint => case.rig.set("OUTLIVE_CHECKPOINT_RECORDS", "1"),
        Torn => case.at_death = Some(tear),
        Launch | Caretake if LAST_WITNESS.contains(&&**point) => {
            expected = Expected::of_an_end_that_was_not_recorded();
        }
        _ if point.starts_with("supervisor.child.") && point != "supervisor.child.never_ran" => {
            expected = Expected::KilledBeforeItsProgram;
        }
        _ => {}
    }
    if *variant != Fresh {
        case.repo();
        case.kill_server();
    }
    let mut id = None;
    if matches!(variant, Adopt | Caretake) {
        id = Some(case.submit());
        case.wait_started();
        let (_, keeper) = case.rig.pids(id.as_ref().expect("submitted"), 1);
        if *variant == Caretake {
            kill_all(&[case.rig.pid(), keeper]);
            wait_gone(keeper);
        }
        case.kill_server();
    }
    let before = match variant {
        Unborn => "supervisor.started_synced,",
        Doubtful | Torn => "wal.after_write,",
        _ => "",
    };
    case.rig.set("OUTLIVE_CRASH", format!("{before}{point}:{pass}"));
    let once = case.rig.path("died").display().to_string();
    case.rig.set("OUTLIVE_CRASH_ONCE", once);
    let of_supervisor = point.starts_with("supervisor") && !point.contains(',');
    if of_supervisor && *variant != Fresh {
        // Among supervisors, only those of agents: operations have had their turn.
        case.rig.set("OUTLIVE_CRASH_IN", "/attempts/");
    }
    match variant {
        Fresh => case.repo(),
        Rotate => fill_a_segment(&mut case),
        Adopt => case.ready(),
        _ => {}
    }
    let id = id.unwrap_or_else(|| case.submit());
    if expected != Expected::KilledBeforeItsProgram && !matches!(variant, Adopt | Caretake) {
        case.wait_started();
    }
    if !matches!(expected, Expected::KilledBeforeItsProgram | Expected::Cancelled) {
        case.wait_kept(&id);
    }
    if expected == Expected::Cancelled {
        case.cancel(&id);
    } else {
        case.let_go();
    }
    case.wait_ended(&id);
    case.check(&id, expected);
    point.split(',').all(|point| case.died(point).is_some())
}

/// Titles and prompts until the write-ahead log has to begin a new segment.
fn fill_a_segment(case: &mut Case) {
    let prompt = "x".repeat(1 << 20);
    let body = serde_json::json!({ "repo": "r", "engine": "demo", "prompt": prompt, "hold": true });
    for n in 0..5 {
        let n = n.to_string();
        let key = [("idempotency-key", n.as_str())];
        let job = case.ask(|client| client.post_with("/api/jobs", &body, &key)?.json());
        let path = format!("/api/jobs/{}", job.expect("accepted")["id"].as_str().expect("an id"));
        if let Err(error) = case.ask(|client| client.delete(&path)) {
            assert_eq!(error.code(), Some("unknown_job"), "{error}");
        }
    }
}

/// Tears the last group of the write-ahead log as a power cut would: its last byte never reached the disk.
fn tear(rig: &Rig) {
    let segments = std::fs::read_dir(rig.data().join("wal")).expect("there").flatten();
    let written = |path: &std::path::Path| {
        let bytes = std::fs::read(path).ok()?;
        // A segment's header stands at both of its ends.
        let last = bytes.get(..bytes.len() - 512)?.iter().rposition(|byte| *byte != 0)?;
        (last >= 512).then_some(last)
    };
    let mut paths: Vec<_> = segments.map(|entry| entry.path()).collect();
    paths.sort();
    let found = paths.iter().rev().find_map(|path| Some((path, written(path)?)));
    let (path, last) = found.expect("a segment with records");
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0], last as u64).expect("written");
}

/// Runs everything on a few threads; gives back what they say, and what failed.
pub(crate) fn run_all<P: Send + Sync, T: Send>(
    plans: Vec<P>,
    run: impl Fn(&P) -> T + Sync,
) -> (Vec<(P, T)>, Vec<P>) {
    let plans = Mutex::new(VecDeque::from(plans));
    let (done, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some(plan) = lock(&plans).pop_front() else { return };
                    let lived = std::thread::scope(|one| one.spawn(|| run(&plan)).join());
                    match lived {
                        Ok(lived) => lock(&done).push((plan, lived)),
                        Err(_) => lock(&failed).push(plan),
                    }
                }
            });
        }
    });
    let (done, failed) = (std::mem::take(&mut *lock(&done)), std::mem::take(&mut *lock(&failed)));
    (done, failed)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Printed past the test harness: how much was tried is part of the result.
pub(crate) fn tell(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("somebody listens");
}

// Proves I1, I3, I5 and I7: whatever dies wherever, the job runs once and its end is known exactly.
#[test]
fn a_death_at_any_crash_point_loses_nothing_and_repeats_nothing() {
    let begun = Instant::now();
    let chosen = std::env::var("CRASH_POINTS").unwrap_or_default();
    let points: Vec<String> =
        crash_points().into_keys().filter(|point| point.contains(&chosen)).collect();
    let plan = |point: &String| {
        let plan = |variant: &Variant| Plan { point: point.clone(), pass: 1, variant: *variant };
        variants(point).iter().map(plan).collect::<Vec<_>>()
    };
    let plans: Vec<Plan> = points.iter().flat_map(plan).collect();
    let tried = plans.len();
    let (lived, failed) = run_all(plans, live);
    let reached = |point: &String| lived.iter().any(|(plan, died)| *died && plan.point == *point);
    let deaths = lived.iter().filter(|(_, died)| *died).count();
    tell(&format!(
        "crashes: {} points, {tried} lives, {deaths} deaths, {} failed, {:.0} s",
        points.len(),
        failed.len(),
        begun.elapsed().as_secs_f64()
    ));
    for (plan, _) in lived.iter().filter(|(_, died)| !died) {
        tell(&format!("crashes: not reached: {} in {:?}", plan.point, plan.variant));
    }
    assert!(failed.is_empty(), "{failed:#?}");
    let missed: Vec<_> = points.iter().filter(|point| !reached(point)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

// Proves I1 and I3 at every group of the write-ahead log: each pass of a point is another moment in the life of the job.
#[test]
fn a_death_at_every_pass_through_the_log_loses_nothing_and_repeats_nothing() {
    let begun = Instant::now();
    let long = std::env::var_os("OUTLIVE_LONG").is_some();
    let points: &[&str] = if long {
        &[
            "wal.before_write",
            "wal.after_write",
            "wal.after_sync",
            "serve.durable",
            "serve.released",
            "serve.before_effects",
            "fleet.before_spawn",
            "fleet.after_spawn",
            "fleet.keeper_ended",
        ]
    } else {
        &["wal.after_write", "serve.before_effects"]
    };
    let mut deaths = 0;
    for point in points {
        // So many at once; on until a pass is no longer reached.
        for from in (1..=60).step_by(THREADS) {
            let plan = |pass| Plan { point: (*point).to_string(), pass, variant: Fresh };
            let upto = from + u32::try_from(THREADS).expect("small");
            let (lived, failed) = run_all((from..upto).map(plan).collect(), live);
            assert!(failed.is_empty(), "{failed:#?}");
            deaths += lived.iter().filter(|(_, died)| *died).count();
            if lived.iter().any(|(_, died)| !died) {
                break;
            }
            assert!(upto < 60, "{point} is passed for ever");
        }
    }
    tell(&format!(
        "crashes: {deaths} deaths at every pass, {:.0} s",
        begun.elapsed().as_secs_f64()
    ));
    assert!(deaths >= 8, "the points are hardly passed");
}

// Proves I5 and I7: nobody is left but the agent, and then the one who comes dies too.
#[test]
fn an_agent_outlives_server_and_supervisor_together_and_the_next_server_too() {
    let again = [
        "serve.locked",
        "serve.recovered",
        "wal.before_write",
        "wal.after_write",
        "wal.after_sync",
        "fleet.before_spawn",
        "fleet.after_spawn",
        "serve.ready",
    ];
    let plan = |point: &&str| Plan { point: (*point).to_string(), pass: 1, variant: Caretake };
    let mut plans: Vec<Plan> = again.iter().map(plan).collect();
    // The same again with the caretaker dying as well, each time after the server.
    let both = |point: &&str| Plan { point: format!("supervisor.locked,{point}"), ..plan(point) };
    plans.extend(again.iter().map(both));
    let count = plans.len();
    let (lived, failed) = run_all(plans, live);
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(lived.iter().filter(|(_, died)| *died).count(), count, "{lived:#?}");
}
