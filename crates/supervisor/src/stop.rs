//! How a tree is ended: TERM, grace, KILL, and again until nothing of it is left.
//!
//! A small machine, moved by the keeper's loop: it never waits itself. It never gives up either: a process that the kernel cannot
//! end yet is looked at again, ever more rarely, and complained of.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use outlive_core::spec::Proof;

use crate::complain;
use crate::tree::{Member, Tree};

/// Between two looks at processes that were killed and do not die: at first, and at most.
const AGAIN_MS: (u64, u64) = (100, 10_000);

/// A tree that is being ended.
#[derive(Debug)]
pub(crate) struct Ending {
    /// When grace is over, on the boot-time clock.
    kill_at: u64,
    killing: bool,
    /// What was found at the last look and lives still.
    watched: Vec<(Member, OwnedFd)>,
    /// When to look again though nothing happened, and how long to wait after that.
    again: Option<u64>,
    again_ms: u64,
    /// Something happened: look now.
    look: bool,
    /// How many looks in a row found nothing.
    quiet: u8,
    /// Who was asked by TERM, and who was killed.
    asked: BTreeSet<Member>,
    struck: BTreeSet<Member>,
    /// How many of those when the main process was gone.
    killed: u32,
}

impl Ending {
    /// Asks the whole tree to end.
    pub(crate) fn begin(tree: &Tree, now: u64, grace_ms: u64) -> Self {
        let mut ending = Self {
            kill_at: now.saturating_add(grace_ms),
            killing: false,
            watched: Tree::open(&tree.members()),
            again: None,
            again_ms: AGAIN_MS.0,
            look: false,
            quiet: 0,
            asked: BTreeSet::new(),
            struck: BTreeSet::new(),
            killed: 0,
        };
        ending.ask(tree);
        crate::crash_point("supervisor.term_sent");
        ending
    }

    /// Asks those who were not asked before: a program may take a second TERM for an order to hurry.
    fn ask(&mut self, tree: &Tree) {
        let asked = &mut self.asked;
        let new = self.watched.iter().filter(|(member, _)| asked.insert(*member));
        tree.terminate(new.map(|(_, pidfd)| pidfd));
    }

    /// Shortens the grace that is left; never lengthens it.
    pub(crate) fn hasten(&mut self, now: u64, grace_ms: u64) {
        self.kill_at = self.kill_at.min(now.saturating_add(grace_ms));
    }

    /// The main process is gone: whoever is left now works for nobody, and is asked too if it was born since.
    pub(crate) fn main_is_gone(&mut self, now: u64, grace_ms: u64) {
        self.hasten(now, grace_ms);
        self.look = true;
    }

    /// How many had to be killed after the main process was gone.
    pub(crate) fn killed(&self) -> u32 {
        self.killed
    }

    /// When [`Ending::step`] is due though no watched process ended.
    pub(crate) fn due(&self) -> Option<u64> {
        let kill_at = (!self.killing).then_some(self.kill_at);
        kill_at.into_iter().chain(self.again).min()
    }

    /// The processes whose end is waited for, in the order that [`Ending::ended`] means.
    pub(crate) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.watched.iter().map(|(_, pidfd)| pidfd.as_fd())
    }

    /// Notes which of the watched processes ended.
    pub(crate) fn ended(&mut self, ended: &[bool]) {
        let mut ended = ended.iter();
        self.watched.retain(|_| !ended.next().is_some_and(|ended| *ended));
    }

    /// Does what is due. True: nothing of the tree is left.
    pub(crate) fn step(&mut self, tree: &Tree, now: u64, main_gone: bool) -> bool {
        if !self.killing && now >= self.kill_at {
            self.killing = true;
            self.look = true;
        }
        let due = self.again.is_some_and(|again| now >= again);
        if !(self.look || due || self.watched.is_empty()) {
            return false;
        }
        self.look = false;
        self.again = None;
        loop {
            let members = tree.members();
            if !members.is_empty() || tree.leaf.is_populated() {
                self.quiet = 0;
                self.strike(tree, &members, now, main_gone);
                return false;
            }
            self.quiet = self.quiet.saturating_add(1);
            // One look at a list of processes may miss one that is just being born; the cgroup misses none.
            if self.quiet >= if tree.proof() == Proof::Cgroup { 1 } else { 2 } {
                self.watched.clear();
                return true;
            }
        }
    }

    fn strike(&mut self, tree: &Tree, members: &[Member], now: u64, main_gone: bool) {
        self.watched = Tree::open(members);
        if self.killing {
            tree.kill(&self.watched);
            crate::crash_point("supervisor.kill_sent");
            for member in members {
                if self.struck.insert(*member) && main_gone {
                    self.killed = self.killed.saturating_add(1);
                }
            }
        } else if main_gone {
            self.ask(tree);
        }
        if self.killing || self.watched.is_empty() {
            self.again = Some(now.saturating_add(self.again_ms));
            self.again_ms = self.again_ms.saturating_mul(2).min(AGAIN_MS.1);
            if self.again_ms == AGAIN_MS.1 {
                let count = members.len();
                complain(format_args!("{count} processes of the tree were killed and do not die"));
            }
        }
    }
}
