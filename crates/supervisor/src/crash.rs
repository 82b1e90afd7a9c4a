//! Named points at which a test can let a process die. Compiled to nothing in release builds.

/// Every crash point of this crate, in the order in which a launch meets them.
pub const CRASH_POINTS: &[&str] = &[
    "supervisor.spec_read",
    "supervisor.forked",
    "supervisor.locked",
    "supervisor.voiding",
    "supervisor.voided",
    "supervisor.slots_ready",
    "supervisor.posted",
    "supervisor.joined",
    "supervisor.started_written",
    "supervisor.started_linked",
    "supervisor.started_synced",
    "supervisor.stop_looked_for",
    "supervisor.gate_opened",
    "supervisor.child.waiting",
    "supervisor.child.let_go",
    "supervisor.beat",
    "supervisor.term_sent",
    "supervisor.kill_sent",
    "supervisor.agent_ended",
    "supervisor.output_synced",
    "supervisor.slot_written",
    "supervisor.outcome_synced",
    "supervisor.reaped",
    "supervisor.tree_empty",
    "supervisor.tree_recorded",
];

/// Lets the process die by SIGKILL if the environment asks for it here.
///
/// - `OUTLIVE_CRASH`: the points, separated by commas, each as `name`, or `name:N` for its Nth pass in a process.
/// - `OUTLIVE_CRASH_IN`: only in processes that have this text in one of their arguments.
/// - `OUTLIVE_CRASH_ONCE`: only if `THIS.name` can be created, exclusively: so exactly one process dies there, once, and whoever
///   asked can see that it did, and with which pid.
/// - `OUTLIVE_CRASH_HOLD`: the thread stops here for ever instead, and the others go on: as if the disk did not answer.
#[cfg(debug_assertions)]
pub fn crash_point(name: &'static str) {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};
    static PASSES: Mutex<BTreeMap<&str, u32>> = Mutex::new(BTreeMap::new());

    assert!(!name.starts_with("supervisor.") || CRASH_POINTS.contains(&name), "unlisted: {name}");
    let Ok(asked) = std::env::var("OUTLIVE_CRASH") else { return };
    let mut asked = asked.split(',').map(|one| one.split_once(':').unwrap_or((one, "1")));
    let Some((_, pass)) = asked.find(|(wanted, _)| *wanted == name) else { return };
    let passed = {
        let mut passes = PASSES.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = passes.entry(name).or_insert(0);
        *passed = passed.saturating_add(1);
        *passed
    };
    if pass.parse() == Ok(passed) && is_meant() && is_first(name) {
        while std::env::var_os("OUTLIVE_CRASH_HOLD").is_some() {
            std::thread::park();
        }
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL)
            .expect("a process may kill itself");
    }
}

#[cfg(debug_assertions)]
fn is_meant() -> bool {
    let Ok(text) = std::env::var("OUTLIVE_CRASH_IN") else { return true };
    std::env::args_os().any(|argument| argument.to_string_lossy().contains(&text))
}

#[cfg(debug_assertions)]
fn is_first(name: &str) -> bool {
    use std::io::Write as _;
    let Some(mut once) = std::env::var_os("OUTLIVE_CRASH_ONCE") else { return true };
    once.push(".");
    once.push(name);
    let created = std::fs::File::create_new(once);
    created.is_ok_and(|mut file| write!(file, "{}", std::process::id()).is_ok())
}

/// Nothing, in release builds.
#[cfg(not(debug_assertions))]
#[inline]
pub fn crash_point(_name: &'static str) {}
