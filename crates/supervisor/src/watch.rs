//! What a keeper waits for: descriptors, and one timer on the boot-time clock. It wakes for these and for nothing else.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::{clock, sys};

/// The keeper's own descriptors.
#[derive(Debug)]
pub(crate) struct Watch {
    timer: OwnedFd,
    wake: Option<OwnedFd>,
    /// Readable when a child ended; only a supervisor with children has it.
    children: Option<OwnedFd>,
}

/// What happened.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent events, any of them at once")]
pub(crate) struct Happened {
    /// The main process ended.
    pub(crate) agent: bool,
    /// Somebody wrote into the FIFO.
    pub(crate) wake: bool,
    /// A child ended.
    pub(crate) children: bool,
    /// A pipe has bytes, or lost its last writer.
    pub(crate) pipes: bool,
    /// Which of the watched processes ended, in their order.
    pub(crate) watched: Vec<bool>,
}

impl Watch {
    pub(crate) fn new(wake: Option<OwnedFd>, with_children: bool) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        let children = with_children.then(sys::child_ends).transpose()?;
        Ok(Self { timer, wake, children })
    }

    /// Sleeps until something happens or `due` comes, a time on the boot-time clock.
    pub(crate) fn wait<'fd>(
        &'fd self,
        due: Option<u64>,
        agent: Option<BorrowedFd<'fd>>,
        pipes: impl Iterator<Item = BorrowedFd<'fd>>,
        watched: impl Iterator<Item = BorrowedFd<'fd>>,
    ) -> io::Result<Happened> {
        self.arm(due)?;
        let own = [Some(&self.timer), self.wake.as_ref(), self.children.as_ref()];
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(8);
        let mut add = |fd: BorrowedFd<'fd>| {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            fds.len() - 1
        };
        let own_at = own.map(|fd| fd.map(|fd| add(fd.as_fd())));
        let agent = agent.map(&mut add);
        let pipes: Vec<usize> = pipes.map(&mut add).collect();
        let watched: Vec<usize> = watched.map(&mut add).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let fired = |at: &usize| fds.get(*at).is_some_and(|fd| !fd.revents().is_empty());
        let own_fired = own_at.map(|at| at.is_some_and(|at| fired(&at)));
        for (fd, _) in own.into_iter().zip(own_fired).filter(|(_, fired)| *fired) {
            fd.into_iter().for_each(empty);
        }
        let [_, wake, children] = own_fired;
        Ok(Happened {
            agent: agent.is_some_and(|at| fired(&at)),
            wake,
            children,
            pipes: pipes.iter().any(fired),
            watched: watched.iter().map(fired).collect(),
        })
    }

    fn arm(&self, due: Option<u64>) -> io::Result<()> {
        // Zero would disarm it: what is due at boot was due long ago.
        let at = due.map_or(Timespec::default(), |due| clock::timespec(due.max(1)));
        let once = Itimerspec { it_interval: Timespec::default(), it_value: at };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}

/// Takes out what is there to read: it only said that something happened.
fn empty(fd: &OwnedFd) {
    let mut buffer = [0; 512];
    // A FIFO holds at most 64 KiB of wake-ups; whatever comes later makes it readable again.
    for _ in 0..128 {
        if !rustix::io::read(fd, &mut buffer).is_ok_and(|count| count == buffer.len()) {
            return;
        }
    }
}
