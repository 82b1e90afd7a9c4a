//! The keep directory taken in possession: detached from the world, locked, judged fit for a launch.
//!
//! At most once (I7): the lock keeps out a second supervisor of today, `started` one of tomorrow. Only an agent that certainly did
//! not run, by the word of its own process, is launched anew.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use outlive_core::ids::ProcessRef;
use outlive_core::planted::planted;
use outlive_core::spec::{Ending, Outcome, Reading, Spec, VERSION, file as name};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::files::{self, FileError};
use crate::identity::Here;
use crate::mailbox::Mailbox;
use crate::outcome::Slots;
use crate::{Leave, crash_point, identity, sys};

/// More than a name in a lock file needs.
const LOCK_TEXT_BYTES: usize = 512;

/// What a process says that it gives to a supervisor or caretaker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Gifts {
    /// See [`Given::pipes`].
    pub(crate) pipes: bool,
    /// See [`Given::mailbox`].
    pub(crate) mailbox: bool,
}

/// What whoever started us has given us in place of our standard descriptors, and holds too, so that it outlives us.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// Pipes for the agent's stdout and stderr: our own stdout and stderr.
    pipes: Option<[OwnedFd; 2]>,
    /// Where the agent is left before it runs, or comes from: our own stdin.
    pub(crate) mailbox: Option<Mailbox>,
}

impl Given {
    fn take(gifts: Gifts) -> io::Result<Self> {
        let mailbox = gifts.mailbox.then(|| Mailbox::given(rustix::stdio::stdin()));
        Ok(Self { pipes: take_pipes(gifts.pipes)?, mailbox: mailbox.transpose()?.flatten() })
    }

    /// Ends of both pipes for reading, and their inodes.
    pub(crate) fn open(&self) -> io::Result<Option<[(OwnedFd, u64); 2]>> {
        let Some([stdout, stderr]) = &self.pipes else { return Ok(None) };
        let open = |given: &OwnedFd| {
            let path = format!("/proc/self/fd/{}", given.as_raw_fd());
            let pipe = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
            let inode = rustix::fs::fstat(&pipe)?.st_ino;
            Ok::<_, io::Error>((OwnedFd::from(pipe), inode))
        };
        Ok(Some([open(stdout)?, open(stderr)?]))
    }

    /// Ends that can be written to: without one until the agent has its own, a pipe would look as if its writer had gone.
    pub(crate) fn writers(&self) -> io::Result<Option<[OwnedFd; 2]>> {
        let Some([stdout, stderr]) = &self.pipes else { return Ok(None) };
        let open = |given: &OwnedFd| {
            let path = format!("/proc/self/fd/{}", given.as_raw_fd());
            OpenOptions::new().read(true).write(true).open(path).map(OwnedFd::from)
        };
        Ok(Some([open(stdout)?, open(stderr)?]))
    }
}

fn take_pipes(given: bool) -> io::Result<Option<[OwnedFd; 2]>> {
    let is_pipe = |fd: BorrowedFd<'_>| {
        rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo())
    };
    let own = [rustix::stdio::stdout(), rustix::stdio::stderr()];
    if !given || !own.iter().all(|fd| is_pipe(*fd)) {
        return Ok(None);
    }
    let [stdout, stderr] = own.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3));
    Ok(Some([stdout?, stderr?]))
}

/// Makes this process nobody's: own session, no foreign descriptor, directory or signal that could end it by accident.
pub(crate) fn detach(dir: &Path, gifts: Gifts) -> Result<Given, FileError> {
    sys::close_inherited().map_err(FileError::at("close what was inherited for", dir))?;
    let given = Given::take(gifts).map_err(FileError::at("take what is given for", dir))?;
    // It fails for the leader of a process group, who then is alone in it.
    rustix::process::setsid().ok();
    for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGXFSZ] {
        sys::ignore_signal(signal);
    }
    let null = Path::new("/dev/null");
    let nothing = File::options().read(true).write(true).open(null);
    let nothing = nothing.map_err(FileError::at("open", null))?;
    rustix::stdio::dup2_stdin(&nothing).map_err(FileError::at("use", null))?;
    rustix::stdio::dup2_stdout(&nothing).map_err(FileError::at("use", null))?;
    let path = dir.join(name::COMPLAINTS);
    let complaints = File::options().append(true).create(true).mode(0o600).open(&path);
    let complaints = complaints.map_err(FileError::at("open", &path))?;
    rustix::stdio::dup2_stderr(&complaints).map_err(FileError::at("use", &path))?;
    let root = Path::new("/");
    rustix::process::chdir(root).map_err(FileError::at("enter", root))?;
    Ok(given)
}

/// A keep directory whose lock this process holds.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) dir: PathBuf,
    /// Held for life: the kernel lets go of it when this process ends, whatever ends it.
    pub(crate) lock: File,
    pub(crate) here: Here,
    pub(crate) me: ProcessRef,
}

/// Takes the lock and writes this process's name into it.
pub(crate) fn claim(dir: &Path) -> Result<Claim, Leave> {
    let path = dir.join(name::LOCK);
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(FileError::at("open", &path))?;
    if !sys::take_lock(lock.as_fd()).map_err(FileError::at("lock", &path))? {
        return Err(Leave::Held);
    }
    let here = Here::observe()?;
    let me = identity::self_ref()?;
    // Of one length, so that it goes over the last one's and needs no new space.
    let mut text = files::json(&me);
    text.resize(LOCK_TEXT_BYTES.max(text.len()), b' ');
    // The lock counts, its text is for people: a full disk does not stop a caretaker.
    if let Err(error) = lock.write_all_at(&text, 0) {
        crate::complain(format_args!("cannot write {}: {error}", path.display()));
    }
    crash_point("supervisor.locked");
    files::remove_left_over(dir);
    Ok(Claim { dir: dir.to_path_buf(), lock, here, me })
}

/// Leaves if the agent was let go before, or may have been. If it certainly never ran, makes the directory as new.
pub(crate) fn void_if_never_ran(dir: &Path, slots: &Slots) -> Result<(), Leave> {
    let path = dir.join(name::STARTED);
    let named = fs::symlink_metadata(&path).is_ok();
    match slots.outcome() {
        Reading::Valid(Outcome { ending: Ending::NeverRan, .. }) => {}
        // Nobody was ever named: whatever a damaged slot meant to say, it was not an agent's end.
        Reading::Absent | Reading::Damaged(_) if !named => {}
        _ if planted("supervisor.second_launch") => {}
        Reading::Absent | Reading::Valid(_) | Reading::Damaged(_) => return Err(Leave::Started),
    }
    crash_point("supervisor.voiding");
    // The name goes first: without it, an outcome that says "never ran" still says the truth.
    if named {
        let aside = (1..u32::MAX).map(|k| dir.join(format!("{}.void-{k}", name::STARTED)));
        let free = aside.into_iter().find(|path| fs::symlink_metadata(path).is_err());
        let free = free.unwrap_or_else(|| dir.join("started.void"));
        #[expect(clippy::disallowed_methods, reason = "moves a whole file aside; synced below")]
        fs::rename(&path, free).map_err(FileError::at("set aside", &path))?;
        files::sync_dir(dir)?;
    }
    crash_point("supervisor.voided");
    if slots.outcome() != Reading::Absent {
        slots.clear()?;
    }
    Ok(())
}

/// Reads the spec, or says why it cannot be obeyed.
pub(crate) fn read_spec(dir: &Path) -> Result<Spec, FileError> {
    let why = match files::read_spec(dir) {
        Reading::Valid(spec) if spec.version == VERSION && !spec.argv.is_empty() => {
            return Ok(spec);
        }
        Reading::Valid(spec) if spec.version != VERSION => {
            format!("its version is {}, not {VERSION}", spec.version)
        }
        Reading::Valid(_) => "it names no program".to_owned(),
        Reading::Absent => "there is none".to_owned(),
        Reading::Damaged(why) => why,
    };
    Err(FileError::at("obey", &dir.join(name::SPEC))(io::Error::other(why)))
}

/// Opens the FIFO, for reading and writing so that it never ends. None is no catastrophe: each heartbeat looks for a stop too.
pub(crate) fn open_wake(dir: &Path) -> Option<OwnedFd> {
    let path = dir.join(name::WAKE);
    let open = || -> io::Result<File> {
        match mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let mut options = OpenOptions::new();
        let fifo = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fifo)?.st_mode);
        if kind == FileType::Fifo { Ok(fifo) } else { Err(io::Error::other("not a FIFO")) }
    };
    let complain = |error: &io::Error| {
        crate::complain(format_args!("cannot be woken by {}: {error}", path.display()));
    };
    open().inspect_err(complain).ok().map(OwnedFd::from)
}
