//! The system calls that no safe wrapper offers: the only unsafe code of the program.
//!
//! Absent on purpose: any decision. Each function is one call and the translation of its answer.

use std::ffi::{CStr, CString, c_int, c_short};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::{mem, ptr};

use outlive_core::spec::Ending;
use rustix::process::Pid;

/// Takes the write lock of the open file description; false when another one holds it.
pub(crate) fn take_lock(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut range = whole_file();
    // SAFETY: F_OFD_SETLK reads one `flock`, which lives until the call returns.
    let answer = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw mut range) };
    match checked(answer) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether another open file description holds a lock. Takes none.
pub(crate) fn is_locked(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut range = whole_file();
    // SAFETY: F_OFD_GETLK reads and writes one `flock`, which lives until the call returns.
    let answer = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) };
    checked(answer)?;
    Ok(range.l_type != short(libc::F_UNLCK))
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: short(libc::F_WRLCK),
        l_whence: short(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn short(constant: c_int) -> c_short {
    c_short::try_from(constant).expect("the constants of flock are made for its fields")
}

/// Who one is after [`fork`].
#[derive(Debug)]
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one, told the new one's pid.
    Parent(Pid),
}

/// Splits the process in two. Refuses if it has more than one thread.
pub(crate) fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with threads must not fork"));
    }
    // SAFETY: the only thread of the process is this one, so the child finds every lock and the heap in a whole state.
    let answer = unsafe { libc::fork() };
    Ok(match Pid::from_raw(checked(answer)?) {
        None => Fork::Child,
        Some(pid) => Fork::Parent(pid),
    })
}

/// Becomes another program. Returns only to tell why not.
pub(crate) fn exec(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let argv = pointers(argv);
    let env = pointers(env);
    // SAFETY: both lists end with a null pointer, and all texts end with a zero byte and outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// Ends the process at once: nothing flushed, no destructor run. For a child that did not become its program.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: always sound; it does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from 3 on. To be called before this process has opened any itself.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: nothing in this process owns a descriptor yet, so none can be closed under its owner.
    let answer = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    checked(answer).map(drop)
}

/// Ignores a signal.
pub(crate) fn ignore_signal(signal: c_int) {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Gives every signal its default effect and blocks none, as a new program expects it.
pub(crate) fn reset_signals() -> io::Result<()> {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours; numbers that cannot be set are refused without effect.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    set_mask(libc::SIG_SETMASK, &[])
}

/// A descriptor that becomes readable when a child ends; the signal itself is blocked.
pub(crate) fn child_ends() -> io::Result<OwnedFd> {
    set_mask(libc::SIG_BLOCK, &[libc::SIGCHLD])?;
    let set = signal_set(&[libc::SIGCHLD]);
    // SAFETY: the set is initialised and outlives the call.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    let fd = checked(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_mask(how: c_int, signals: &[c_int]) -> io::Result<()> {
    let set = signal_set(signals);
    // SAFETY: the set is initialised and outlives the call; no old set is asked for.
    let answer = unsafe { libc::sigprocmask(how, &raw const set, ptr::null_mut()) };
    checked(answer).map(drop)
}

fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: a set is plain integers, for which zeros are a value.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a set of our own.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in signals {
        // SAFETY: the pointer is to an initialised set of our own.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

/// A child that has ended and is not reaped yet.
#[derive(Debug)]
pub(crate) struct EndedChild {
    /// Its pid, its own until it is reaped.
    pub(crate) pid: Pid,
    /// How it ended.
    pub(crate) ending: Ending,
    /// User and system time of it and of the children it waited for, in microseconds.
    pub(crate) cpu_us: u64,
    /// Largest memory of it or of one of those, in bytes.
    pub(crate) peak_bytes: u64,
}

/// Looks for an ended child (that of the pidfd, or any) and leaves it unreaped.
pub(crate) fn peek_ended(pidfd: Option<BorrowedFd<'_>>) -> io::Result<Option<EndedChild>> {
    let (kind, id) = match pidfd {
        Some(fd) => (libc::P_PIDFD, fd.as_raw_fd()),
        None => (libc::P_ALL, 0),
    };
    // SAFETY: plain integers and pointers, for which zeros are a value.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    // SAFETY: plain integers, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let (info_at, usage_at) = (&raw mut info, &raw mut usage);
    // SAFETY: both structures outlive the call. The libc wrapper lacks the last argument, so it is called by number.
    let answer = unsafe { libc::syscall(libc::SYS_waitid, kind, id, info_at, options, usage_at) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled the child part of the structure, or left it zero.
    let pid = unsafe { info.si_pid() };
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    // SAFETY: waitid found a child, so it filled that part.
    let status = unsafe { info.si_status() };
    let exited = info.si_code == libc::CLD_EXITED;
    let ending = if exited { Ending::Exited(status) } else { Ending::Signaled(status) };
    let cpu_us = micros(usage.ru_utime).saturating_add(micros(usage.ru_stime));
    let peak_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024);
    Ok(Some(EndedChild { pid, ending, cpu_us, peak_bytes }))
}

fn micros(time: libc::timeval) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(time.tv_usec).unwrap_or(0))
}

/// `struct pidfd_info` in its first published form; later kernels accept it too.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl = 0xC040_FF0B;

/// The wait status of a process that is gone, if this kernel keeps it with the pidfd (6.15 and later).
pub(crate) fn kept_wait_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request's number carries the size of this very structure, which outlives the call.
    let answer = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (answer == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// Reads a wait status as the kernel encodes it.
pub(crate) fn decode_wait_status(status: i32) -> Ending {
    if libc::WIFEXITED(status) {
        Ending::Exited(libc::WEXITSTATUS(status))
    } else {
        Ending::Signaled(libc::WTERMSIG(status))
    }
}

/// What a kernel object that has a path can be found by, as long as it exists. Never used twice in a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) kind: i32,
    pub(crate) bytes: Vec<u8>,
}

const HANDLE_BYTES_MAX: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    length: libc::c_uint,
    kind: c_int,
    bytes: [u8; HANDLE_BYTES_MAX],
}

/// The handle of what a path leads to. Fails where there are none.
pub(crate) fn handle_of(path: &Path) -> io::Result<Handle> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let length = libc::c_uint::try_from(HANDLE_BYTES_MAX).map_err(io::Error::other)?;
    let mut raw = RawHandle { length, kind: 0, bytes: [0; HANDLE_BYTES_MAX] };
    let (mut mount, at) = (0, (&raw mut raw).cast());
    let follow = libc::AT_SYMLINK_FOLLOW;
    // SAFETY: the path ends with a zero byte; the handle has the room that its first field tells; all outlive the call.
    let answer = unsafe {
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), at, &raw mut mount, follow)
    };
    checked(answer)?;
    let length = usize::try_from(raw.length).unwrap_or(0);
    let bytes = raw.bytes.get(..length).unwrap_or_default().to_vec();
    Ok(Handle { kind: raw.kind, bytes })
}

/// Opens what a handle names; `near` is anything open on the same file system.
pub(crate) fn open_handle(near: BorrowedFd<'_>, handle: &Handle) -> io::Result<OwnedFd> {
    let mut raw = RawHandle { length: 0, kind: handle.kind, bytes: [0; HANDLE_BYTES_MAX] };
    let room = raw.bytes.get_mut(..handle.bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
    room.copy_from_slice(&handle.bytes);
    raw.length = libc::c_uint::try_from(handle.bytes.len()).map_err(io::Error::other)?;
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the handle has as many bytes as its first field tells, and outlives the call.
    let answer = unsafe { libc::open_by_handle_at(near.as_raw_fd(), (&raw mut raw).cast(), flags) };
    let fd = checked(answer)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `_IO(0xb7, 0x1)`.
const NS_GET_USERNS: libc::Ioctl = 0xB701;

/// The user namespace that owns a namespace.
pub(crate) fn owner_of_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument; it gives a new descriptor.
    let fd = checked(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(answer: c_int) -> io::Result<c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_number_carries_the_size_of_the_structure() {
        let size = u32::try_from(size_of::<PidfdInfo>()).expect("small");
        let number = (3 << 30) | (size << 16) | (0xFF << 8) | 0x0B;
        assert_eq!(u64::from(number), PIDFD_GET_INFO);
    }

    #[test]
    fn wait_statuses_are_read_as_the_kernel_means_them() {
        assert_eq!(decode_wait_status(0x700), Ending::Exited(7));
        assert_eq!(decode_wait_status(0x9), Ending::Signaled(9));
        assert_eq!(decode_wait_status(0x8b), Ending::Signaled(11));
    }
}
