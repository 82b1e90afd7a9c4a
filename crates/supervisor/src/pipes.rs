//! The pipes of an agent's output, found again in the processes that hold them.
//!
//! What is written into a pipe lives as long as anybody holds it: the agent and its tools, the supervisor, and whoever keeps a
//! [`HeldOutput`].

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use outlive_core::evidence::Seen;
use outlive_core::ids::ProcessRef;
use outlive_core::spec::Started;

use crate::files::read_started;
use crate::identity::Here;

/// An agent's pipes held open by somebody who neither reads nor writes.
///
/// With it the output of an agent that ended in the very moment in which its supervisor was killed is not lost: a caretaker started
/// by the holder finds the pipes there. To be dropped when the outcome is recorded.
#[derive(Debug)]
pub(crate) struct HeldOutput {
    _pipes: BTreeMap<u64, OwnedFd>,
}

/// Holds the pipes of a keep directory's agent. None if it has none (its output goes into files), or they cannot be found.
pub(crate) fn hold_output(dir: &Path, here: &Here) -> Option<HeldOutput> {
    let started = read_started(dir).valid().cloned()?;
    let holders = [&started.keeper, &started.agent].map(|holder| alive(holder, here));
    let pipes = find(&started, holders.into_iter().flatten());
    (!pipes.is_empty()).then_some(HeldOutput { _pipes: pipes })
}

/// The pid of a process, if it is alive and can be judged.
pub(crate) fn alive(process: &ProcessRef, here: &Here) -> Option<u32> {
    (here.look_for(process) == Seen::Alive).then_some(process.pid)
}

/// Opens the pipes of `started` for reading, each by its inode, from the first of these processes that has it.
pub(crate) fn find(
    started: &Started,
    holders: impl Iterator<Item = u32>,
) -> BTreeMap<u64, OwnedFd> {
    let mut found = BTreeMap::new();
    let Some(wanted) = started.pipes else { return found };
    for pid in holders {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let missing = wanted.into_iter().filter(|inode| !found.contains_key(inode));
            if let Some((inode, pipe)) = missing.into_iter().find_map(|inode| open(&path, inode)) {
                found.insert(inode, pipe);
            }
        }
    }
    found
}

fn open(path: &Path, inode: u64) -> Option<(u64, OwnedFd)> {
    let target = fs::read_link(path).ok()?;
    if target.as_os_str() != format!("pipe:[{inode}]").as_str() {
        return None;
    }
    let pipe = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    // The descriptor may have come to mean another file since its name was read.
    let is_it = |pipe: &File| pipe.metadata().is_ok_and(|pipe| pipe.ino() == inode);
    pipe.ok().filter(is_it).map(|pipe| (inode, pipe.into()))
}
