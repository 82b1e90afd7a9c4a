//! A mailbox: two ends between which processes are handed on, each by its full name together with its pidfd.
//!
//! Through one the server learns of an agent before its gate opens, and hands it to a caretaker. A letter lies in the kernel until it
//! is taken or the end that it was sent to is closed, whatever becomes of its sender; and a pidfd that was opened in time tells how
//! its process ended, also after somebody else has buried it.
//!
//! Absent on purpose: waiting. Letters are looked for when there is a reason to.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use outlive_core::ids::ProcessRef;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::files;

/// A letter is a [`ProcessRef`] as JSON: a boot id and three numbers.
const LETTER_BYTES_MAX: usize = 512;

/// How many letters are looked at in one go. One is written for each time that an agent is born for a keep directory, and one that
/// never ran is rare.
const LETTERS_MAX: u32 = 256;

/// One of the two ends.
#[derive(Debug)]
pub(crate) struct Mailbox(OwnedFd);

impl Mailbox {
    /// Makes both ends; neither is inherited by accident.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(one), Self(other)))
    }

    /// The end that this process was given as a descriptor; none if it can be no end.
    pub(crate) fn given(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        if !rustix::net::sockopt::socket_type(fd).is_ok_and(|it| it == SocketType::SEQPACKET) {
            return Ok(None);
        }
        Ok(Some(Self(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)))
    }

    /// Leaves a process for whoever has the other end. Fails rather than wait.
    pub(crate) fn post(&self, process: &ProcessRef, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        let text = files::json(process);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let pidfds = [pidfd];
        if !control.push(SendAncillaryMessage::ScmRights(&pidfds)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        sendmsg(&self.0, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Takes out all letters there are, and gives the pidfd of this very process if one of them brought it. What cannot be read is
    /// thrown away, and does not hide what lies behind it.
    pub(crate) fn take(&self, process: &ProcessRef) -> Option<OwnedFd> {
        let mut found = None;
        for _ in 0..LETTERS_MAX {
            match self.next() {
                Ok(Some((named, pidfd))) if named == *process => found = Some(pidfd),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        found
    }

    /// The next letter. None: it was no letter of ours, or there will be none any more, which look the same here.
    fn next(&self) -> io::Result<Option<(ProcessRef, OwnedFd)>> {
        let mut text = [0; LETTER_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let got = recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        let pidfd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut pidfds) => pidfds.next(),
            _ => None,
        });
        let named = serde_json::from_slice(text.get(..got).unwrap_or_default()).ok();
        Ok(named.zip(pidfd))
    }
}

impl From<Mailbox> for OwnedFd {
    fn from(mailbox: Mailbox) -> Self {
        mailbox.0
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::identity::{self, Here};

    fn me() -> (ProcessRef, OwnedFd) {
        let me = identity::self_ref().expect("named");
        let pidfd = identity::open_process(&me, &Here::observe().expect("here")).expect("alive");
        (me, pidfd)
    }

    fn other(process: &ProcessRef) -> ProcessRef {
        ProcessRef { start_ticks: process.start_ticks + 1, ..process.clone() }
    }

    #[test]
    fn a_letter_outlives_its_sender_and_is_found_among_others() {
        let (me, pidfd) = me();
        let (ours, theirs) = Mailbox::pair().expect("a pair");
        theirs.post(&other(&me), pidfd.as_fd()).expect("posted");
        theirs.post(&me, pidfd.as_fd()).expect("posted");
        theirs.post(&other(&me), pidfd.as_fd()).expect("posted");
        drop(theirs);
        let taken = ours.take(&me).expect("it is there");
        let alive = identity::signal(taken.as_fd(), rustix::process::Signal::CONT);
        assert!(alive.is_ok(), "it is the very process: {alive:?}");
        assert!(ours.take(&me).is_none(), "taken is taken");
    }

    #[test]
    fn what_is_no_letter_does_not_hide_one() {
        let (me, pidfd) = me();
        let (ours, theirs) = Mailbox::pair().expect("a pair");
        let name = files::json(&me);
        let pieces: [&[u8]; 4] = [b"", b"nonsense", &name, &[b' '; 2 * LETTER_BYTES_MAX]];
        for piece in pieces {
            // A name without a descriptor is none either.
            rustix::net::send(&theirs.0, piece, SendFlags::NOSIGNAL).expect("sent");
        }
        theirs.post(&me, pidfd.as_fd()).expect("posted");
        assert!(ours.take(&me).is_some());
    }

    #[test]
    fn an_empty_mailbox_and_one_without_another_end_have_no_letter() {
        let (me, pidfd) = me();
        let (ours, theirs) = Mailbox::pair().expect("a pair");
        assert!(ours.take(&me).is_none());
        drop(theirs);
        assert!(ours.take(&me).is_none());
        assert!(ours.post(&me, pidfd.as_fd()).is_err(), "nobody would ever read it");
    }
}
