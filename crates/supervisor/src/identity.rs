//! Who a process is, beyond its pid (I6).

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use outlive_core::evidence::Seen;
use outlive_core::ids::ProcessRef;
use outlive_core::planted::planted;
use outlive_core::spec::{Reading, file as name};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::files::{FileError, read_spec};

/// The boot and the pid namespace that one lives in: within them pids can be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Inode of `/proc/self/ns/pid`.
    pub pid_namespace: u64,
    /// The life of the data directory, with which the mark of every process of ours begins, where there is another: what was
    /// started by the keep directories of its original is not ours. None: every keep directory that is found is ours.
    pub life: Option<String>,
}

impl Here {
    /// Looks where this process lives.
    pub fn observe() -> Result<Self, FileError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(path).map_err(FileError::at("read", path))?;
        let path = Path::new("/proc/self/ns/pid");
        let namespace = fs::metadata(path).map_err(FileError::at("look at", path))?;
        let boot_id = boot_id.trim_end().to_owned();
        Ok(Self { boot_id, pid_namespace: namespace.ino(), life: None })
    }

    /// The same in a data directory of this life.
    #[must_use]
    pub fn of_life(self, life: String) -> Self {
        Self { life: Some(life), ..self }
    }

    /// Whether what was started by a keep directory is ours, and not the original's of a copy.
    pub fn owns(&self, keep: &Path) -> bool {
        let Some(life) = &self.life else { return true };
        match read_spec(keep) {
            Reading::Valid(spec) => {
                spec.mark.strip_prefix(life.as_str()).is_some_and(|rest| rest.starts_with('/'))
            }
            Reading::Absent => !keep.join(name::STARTED).exists(),
            Reading::Damaged(_) => false,
        }
    }

    /// Whether a process named by `other` can be judged from here.
    pub fn judges(&self, other: &ProcessRef) -> bool {
        self.boot_id == other.boot_id && self.pid_namespace == other.pid_namespace
    }

    /// The full name of the process that has this pid now; none if nobody has it.
    pub fn name(&self, pid: u32) -> Option<ProcessRef> {
        let start_ticks = Stat::read(pid)?.start_ticks;
        let Self { boot_id, pid_namespace, life: _ } = self.clone();
        Some(ProcessRef { boot_id, pid_namespace, pid, start_ticks })
    }

    /// Looks for a process.
    pub fn look_for(&self, process: &ProcessRef) -> Seen {
        if self.boot_id != process.boot_id {
            return Seen::OtherBoot;
        }
        if self.pid_namespace != process.pid_namespace {
            return Seen::OtherNamespace;
        }
        let bare = planted("supervisor.pid_without_start_time");
        match Stat::read(process.pid) {
            Some(stat) if bare && stat.lives() => Seen::Alive,
            Some(stat) if stat.start_ticks == process.start_ticks && stat.lives() => Seen::Alive,
            _ => Seen::Gone,
        }
    }
}

/// This very process.
pub fn self_ref() -> Result<ProcessRef, FileError> {
    Here::observe()?.name(std::process::id()).ok_or_else(|| {
        FileError::at("read", Path::new("/proc/self/stat"))(io::Error::from(
            io::ErrorKind::NotFound,
        ))
    })
}

/// Opens a process by its full name; none if it is not here, gone for good, or another one has its pid. A zombie counts as here.
pub fn open_process(process: &ProcessRef, here: &Here) -> Option<OwnedFd> {
    if !here.judges(process) {
        return None;
    }
    open_pid(process.pid, process.start_ticks)
}

/// Opens first and compares then: the descriptor cannot come to mean another process in between.
pub(crate) fn open_pid(pid: u32, start_ticks: u64) -> Option<OwnedFd> {
    let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
    (Stat::read(pid)?.start_ticks == start_ticks).then_some(pidfd)
}

/// Sends a signal to a process that was opened. One that is gone is an error of kind `ESRCH`.
pub fn signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    Ok(pidfd_send_signal(pidfd, signal)?)
}

/// What `/proc/PID/stat` tells of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// One letter; `Z` and `X` are dead.
    pub(crate) state: char,
    /// Its parent's pid.
    pub(crate) parent: u32,
    /// How many of its threads are left.
    pub(crate) threads: u32,
    /// Clock ticks after boot at which it started.
    pub(crate) start_ticks: u64,
    /// Its wait status while it is a zombie; 0 also when we may not know.
    pub(crate) exit_code: i32,
}

impl Stat {
    /// Reads it; none if no process has this pid.
    pub(crate) fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        // The name in parentheses may hold anything, also spaces and parentheses: what counts comes after the last one.
        let end = bytes.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(bytes.get(end.checked_add(1)?..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        // Fields are counted from 1 in proc(5); two after the name are consumed.
        let threads = fields.nth(20 - 5)?.parse().ok()?;
        let start_ticks = fields.nth(22 - 21)?.parse().ok()?;
        let exit_code = fields.nth(52 - 23).and_then(|field| field.parse().ok()).unwrap_or(0);
        Some(Self { state, parent, threads, start_ticks, exit_code })
    }

    /// Not dead and not a zombie; but a process whose first thread ended before the others lives.
    pub(crate) fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x') || self.threads > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 3 7 7 0 -1 1 2 3 4 5 6 7 8 9 20 0 1 0 4242 11 12 13 14 15 16 17 18 19 20 21 22 23 24 \
                    25 26 27 28 29 30 31 32 33 34 35 36 37 38 1792\n";
        let stat = Stat::parse(text.as_bytes()).expect("parses");
        assert_eq!((stat.state, stat.parent, stat.start_ticks), ('S', 3, 4242));
    }

    #[test]
    fn a_stat_cut_anywhere_gives_nothing_or_the_truth_but_no_panic() {
        let text = fs::read("/proc/self/stat").expect("reads");
        let whole = Stat::parse(&text).expect("parses");
        for end in 0..text.len() {
            if let Some(stat) = Stat::parse(&text[..end]) {
                assert_eq!(stat.parent, whole.parent);
            }
        }
    }

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        // Proves I6: a reused pid is never taken for the process that had it.
        let here = Here::observe().expect("observes");
        let mut me = self_ref().expect("named");
        assert_eq!(here.look_for(&me), Seen::Alive);
        assert!(open_process(&me, &here).is_some());
        me.start_ticks += 1;
        assert_eq!(here.look_for(&me), Seen::Gone);
        assert!(open_process(&me, &here).is_none());
    }

    #[test]
    fn a_process_of_another_boot_or_namespace_is_not_judged() {
        let here = Here::observe().expect("observes");
        let me = self_ref().expect("named");
        let other = ProcessRef { boot_id: "other".to_owned(), ..me.clone() };
        assert_eq!(here.look_for(&other), Seen::OtherBoot);
        let other = ProcessRef { pid_namespace: 1, ..me };
        assert_eq!(here.look_for(&other), Seen::OtherNamespace);
        assert!(open_process(&other, &here).is_none());
    }
}
