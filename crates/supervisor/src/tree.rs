//! All processes of one supervised tree: found, opened, signalled.
//!
//! Three nets, always all three: the cgroup leaf, descent from the supervisor (a subreaper, so orphans come to it), and the mark
//! in the environment. The first cannot be slipped through; without it the proof is best effort.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use outlive_core::spec::{MARK_VARIABLE, Proof};
use rustix::process::Signal;

use crate::cgroup::Leaf;
use crate::identity::{self, Stat};

/// How many members are opened at once; further ones are found again when these are dead.
const OPEN_MAX: usize = 256;

/// A supervised tree.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Its cgroup leaf; may be without directories.
    pub(crate) leaf: Leaf,
    /// The environment entry that its processes carry.
    mark: Vec<u8>,
    /// The process from which it descends.
    root: Option<Member>,
    /// It was given a leaf when it started.
    had_leaf: bool,
}

/// A process of the tree, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
}

impl Tree {
    /// The tree with this mark; `root` is its subreaper, or its main process.
    pub(crate) fn new(leaf: Leaf, had_leaf: bool, mark: &str, root: Option<Member>) -> Self {
        Self { leaf, mark: mark_entry(mark), root, had_leaf }
    }

    /// How much an empty answer of [`Tree::members`] proves.
    pub(crate) fn proof(&self) -> Proof {
        if self.had_leaf { Proof::Cgroup } else { Proof::BestEffort }
    }

    /// All that live now, this process not counted.
    pub(crate) fn members(&self) -> Vec<Member> {
        let mut found = in_leaf(&self.leaf);
        let table = Table::read();
        if let Some(root) = self.root {
            table.add_descendants(root, &mut found);
        }
        table.add_marked(&self.mark, &mut found);
        found.remove(&std::process::id());
        found.into_iter().map(|(pid, start_ticks)| Member { pid, start_ticks }).collect()
    }

    /// Opens members; those that are gone by now are left out.
    pub(crate) fn open(members: &[Member]) -> Vec<(Member, OwnedFd)> {
        let open =
            |member: &Member| Some((*member, identity::open_pid(member.pid, member.start_ticks)?));
        members.iter().take(OPEN_MAX).filter_map(open).collect()
    }

    /// Asks opened members to end. Whoever is frozen is thawed, else it could not obey.
    pub(crate) fn terminate<'a>(&self, opened: impl Iterator<Item = &'a OwnedFd>) {
        send(opened, Signal::TERM);
        self.leaf.thaw();
    }

    /// Ends the whole leaf at one stroke if possible, and opened members in any case.
    pub(crate) fn kill(&self, opened: &[(Member, OwnedFd)]) {
        if !self.leaf.kill() {
            // Frozen they cannot fork while they are being killed; the signal reaches them when thawed.
            self.leaf.freeze();
            let late = in_leaf(&self.leaf);
            let late = late.into_iter().map(|(pid, start_ticks)| Member { pid, start_ticks });
            let late = Self::open(&late.collect::<Vec<_>>());
            send(late.iter().map(|(_, pidfd)| pidfd), Signal::KILL);
        }
        send(opened.iter().map(|(_, pidfd)| pidfd), Signal::KILL);
        self.leaf.thaw();
    }
}

fn send<'a>(opened: impl Iterator<Item = &'a OwnedFd>, signal: Signal) {
    for pidfd in opened {
        // It fails when the process is gone, which is what is wanted, or not ours to signal, which the next look will show.
        identity::signal(pidfd.as_fd(), signal).ok();
    }
}

/// `NAME=value`, as an environment holds it.
pub(crate) fn mark_entry(mark: &str) -> Vec<u8> {
    format!("{MARK_VARIABLE}={mark}").into_bytes()
}

/// Live members of a leaf by pid, with their start times.
///
/// Listed twice, looked at in between: a pid that came into other hands after the first listing is not in the second.
pub(crate) fn in_leaf(leaf: &Leaf) -> BTreeMap<u32, u64> {
    let first = leaf.pids();
    let mut found: BTreeMap<u32, u64> = first.into_iter().filter_map(living).collect();
    if !found.is_empty() {
        let second = leaf.pids();
        found.retain(|pid, _| second.binary_search(pid).is_ok());
    }
    found
}

fn living(pid: u32) -> Option<(u32, u64)> {
    let stat = Stat::read(pid)?;
    stat.lives().then_some((pid, stat.start_ticks))
}

/// All living processes of the machine, at one moment.
#[derive(Debug)]
pub(crate) struct Table(Vec<(u32, Stat)>);

impl Table {
    pub(crate) fn read() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let stats = pids.filter_map(|pid: u32| Some((pid, Stat::read(pid)?)));
        Self(stats.filter(|(_, stat)| stat.lives()).collect())
    }

    /// Adds all that descend from `root`, if that very process is still there.
    pub(crate) fn add_descendants(&self, root: Member, found: &mut BTreeMap<u32, u64>) {
        let is_root =
            |(pid, stat): &(u32, Stat)| *pid == root.pid && stat.start_ticks == root.start_ticks;
        if !self.0.iter().any(is_root) {
            return;
        }
        let mut seen = BTreeSet::from([root.pid]);
        let mut frontier = vec![root.pid];
        // Bounded by the table: each pid joins the frontier once.
        while let Some(parent) = frontier.pop() {
            for (pid, stat) in self.0.iter().filter(|(_, stat)| stat.parent == parent) {
                if seen.insert(*pid) {
                    found.insert(*pid, stat.start_ticks);
                    frontier.push(*pid);
                }
            }
        }
    }

    /// Adds all that carry the mark and were not found before.
    pub(crate) fn add_marked(&self, mark: &[u8], found: &mut BTreeMap<u32, u64>) {
        for (pid, stat) in &self.0 {
            if !found.contains_key(pid) && carries(*pid, mark) {
                found.insert(*pid, stat.start_ticks);
            }
        }
    }
}

/// Whether a process's environment holds this entry. One that we may not read is none of ours.
fn carries(pid: u32, mark: &[u8]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descent_is_followed_over_generations_and_stops_at_strangers() {
        let stat = |parent| Stat { state: 'S', parent, threads: 1, start_ticks: 9, exit_code: 0 };
        let table =
            Table(vec![(5, stat(4)), (4, stat(3)), (3, stat(5)), (8, stat(7)), (7, stat(1))]);
        let mut found = BTreeMap::new();
        table.add_descendants(Member { pid: 3, start_ticks: 9 }, &mut found);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [4, 5]);
        found.clear();
        table.add_descendants(Member { pid: 3, start_ticks: 8 }, &mut found);
        assert!(found.is_empty(), "a later process with the root's pid has no tree of ours");
    }
}
