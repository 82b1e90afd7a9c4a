//! Looking at a keep directory and its processes from outside: nothing is changed, no lock is taken.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use outlive_core::evidence::{Evidence, Lock, Seen};
use outlive_core::ids::ProcessRef;
use outlive_core::spec::{Reading, Started, decode_json, file as name};
use outlive_core::time::Timestamp;

use crate::cgroup::Leaf;
use crate::files::{read_sentinel, read_spec, read_started};
use crate::identity::Here;
use crate::tree::{self, Table};
use crate::{clock, namespace, outcome, sys};

/// A name in a lock file is far shorter.
const LOCK_TEXT_BYTES_MAX: u64 = 4096;

/// Gathers all that can be proved of a keep directory now; all but the agent's own `result`, which stands in its output.
///
/// `survivors` is counted in the cgroup leaf. Where there is none, all processes of the machine are looked through for the mark,
/// but only when nobody keeps the tree and its main process is gone: before that nothing depends on the number, which stays 0.
pub fn probe(dir: &Path, me: &Here) -> Evidence {
    if !me.owns(dir) {
        return of_the_original(dir);
    }
    // The lock is asked first: a keeper that ends in between has recorded its outcome before it let go.
    let lock = ask_lock(dir, me);
    let started = read_started(dir);
    let (outcome, tree_empty) = outcome::read_slots(dir);
    let named = started.valid();
    let agent = named.map_or(Seen::NotNamed, |started| look_for(started, me));
    let leaf = named
        .filter(|started| me.boot_id == started.agent.boot_id)
        .map_or_else(Leaf::default, |started| Leaf::reopen(&started.cgroups));
    let kept = lock != Lock::Free || agent != Seen::Gone;
    Evidence {
        survivors: named.map_or(0, |started| survivors(dir, started, me, &leaf, kept)),
        oom_kill: leaf.oom_kills() > 0,
        past_deadline: named.is_some_and(|started| is_past_deadline(dir, started, me)),
        sentinel_damage: match read_sentinel(dir) {
            Reading::Damaged(why) => Some(why),
            Reading::Absent | Reading::Valid(_) => None,
        },
        outcome,
        tree_empty,
        lock,
        started,
        agent,
        result: None,
    }
}

/// What can be read in a copied keep directory. Processes that it names, and locks on files of the same names, are the original's:
/// nobody looks for them, so nobody takes them over or ends them.
fn of_the_original(dir: &Path) -> Evidence {
    let (outcome, tree_empty) = outcome::read_slots(dir);
    let started = read_started(dir);
    Evidence {
        agent: if started.valid().is_some() { Seen::Original } else { Seen::NotNamed },
        outcome,
        tree_empty,
        lock: Lock::Free,
        started,
        oom_kill: false,
        survivors: 0,
        result: None,
        // How long it has run there nobody knows here.
        past_deadline: false,
        sentinel_damage: None,
    }
}

fn look_for(started: &Started, me: &Here) -> Seen {
    let seen = me.look_for(&started.agent);
    let Some(mark) = &started.namespace else { return seen };
    let ended = match seen {
        Seen::OtherNamespace => namespace::has_ended(mark),
        // It has the number of ours and is another one: then the number was given away again.
        Seen::Gone => namespace::is_another(mark),
        Seen::NotNamed | Seen::Alive | Seen::OtherBoot | Seen::NamespaceEnded | Seen::Original => {
            false
        }
    };
    if ended { Seen::NamespaceEnded } else { seen }
}

fn ask_lock(dir: &Path, me: &Here) -> Lock {
    let path = dir.join(name::LOCK);
    let asked = || -> io::Result<Lock> {
        // For writing too, because a write lock is asked for; but nothing is written.
        let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
        if !sys::is_locked(file.as_fd())? {
            return Ok(Lock::Free);
        }
        let mut text = Vec::new();
        file.by_ref().take(LOCK_TEXT_BYTES_MAX).read_to_end(&mut text)?;
        let holder: Reading<ProcessRef> = decode_json(&text);
        Ok(match holder {
            Reading::Valid(holder) if !me.judges(&holder) => Lock::HeldElsewhere(holder),
            Reading::Valid(holder) => Lock::Held(Some(holder)),
            Reading::Absent | Reading::Damaged(_) => Lock::Held(None),
        })
    };
    match asked() {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Lock::Free,
        Err(error) => Lock::Unreadable(error.to_string()),
    }
}

fn survivors(dir: &Path, started: &Started, me: &Here, leaf: &Leaf, kept: bool) -> u32 {
    if !me.judges(&started.agent) {
        return 0;
    }
    let mut found: BTreeMap<u32, u64> = tree::in_leaf(leaf);
    if started.cgroups.is_empty()
        && !kept
        && let Reading::Valid(spec) = read_spec(dir)
    {
        Table::read().add_marked(&tree::mark_entry(&spec.mark), &mut found);
    }
    found.remove(&started.agent.pid);
    u32::try_from(found.len()).unwrap_or(u32::MAX)
}

fn is_past_deadline(dir: &Path, started: &Started, me: &Here) -> bool {
    let Some(deadline) = started.deadline_boot_ms else { return false };
    let freeze = outcome::read_freeze(dir);
    let freeze = freeze.valid();
    if me.boot_id == started.agent.boot_id {
        let now = clock::boot_ms();
        let paused = freeze.map_or(0, |freeze| freeze.paused_ms(now));
        return now >= deadline.saturating_add(paused);
    }
    // The boot-time clock began anew: only wall time is left to say how long ago it started. One that was frozen then had
    // time left when the machine went down.
    if freeze.is_some_and(|freeze| freeze.since_boot_ms.is_some()) {
        return false;
    }
    let paused = freeze.map_or(0, |freeze| freeze.total_ms);
    let spec = read_spec(dir);
    let timeout = spec.valid().and_then(|spec| spec.timeout_ms);
    let end = |timeout| Timestamp(started.at.0.saturating_add(timeout).saturating_add(paused));
    timeout.is_some_and(|timeout| clock::now() >= end(timeout))
}
