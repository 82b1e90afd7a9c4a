//! Whether a pid namespace that is not ours has ended, and with it every process in it.
//!
//! Its inode number cannot tell: it may have been given away again, and a namespace that cannot be seen from here has none. Linux
//! 6.18 and later find a namespace by a handle that is never used twice, but answer "stale" also to those who may not know. So
//! an answer counts only from a process that shows, on its own namespace, that it would be told of a living one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use outlive_core::spec::NamespaceMark;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys::{self, Handle};

const OWN: &str = "/proc/self/ns/pid";

/// What this process's pid namespace can be found by later. None: this kernel has no such thing, or we may not know.
pub(crate) fn mark_own() -> Option<NamespaceMark> {
    let Handle { kind, bytes } = sys::handle_of(Path::new(OWN)).ok()?;
    Some(NamespaceMark { kind, handle: to_hex(&bytes), owner: owner(&File::open(OWN).ok()?)? })
}

/// Whether the namespace of this boot provably exists no more. False proves nothing.
pub(crate) fn has_ended(mark: &NamespaceMark) -> bool {
    let Some(bytes) = from_hex(&mark.handle) else { return false };
    let Some(me) = mark_own() else { return false };
    let Ok(own) = File::open(OWN) else { return false };
    let find =
        |bytes: &[u8], kind| sys::open_handle(own.as_fd(), &Handle { kind, bytes: bytes.to_vec() });
    // Whose privileges over the owner of the other one would not do is told of none.
    let may_know = me.owner == mark.owner
        && move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID)).is_ok();
    // And the call itself may be forbidden, or the handles of another kind.
    let is_told = me.kind == mark.kind
        && me.handle.len() == mark.handle.len()
        && from_hex(&me.handle).is_some_and(|bytes| find(&bytes, me.kind).is_ok());
    let is_stale = |error: io::Error| error.raw_os_error() == Some(libc::ESTALE);
    may_know && is_told && find(&bytes, mark.kind).is_err_and(is_stale)
}

/// Whether the namespace is certainly not the one that this process is in.
pub(crate) fn is_another(mark: &NamespaceMark) -> bool {
    let alike = |me: &NamespaceMark| me.kind == mark.kind && me.handle.len() == mark.handle.len();
    mark_own().is_some_and(|me| alike(&me) && me.handle != mark.handle)
}

/// Inode of the user namespace that owns a pid namespace.
fn owner(namespace: &File) -> Option<u64> {
    let owner = sys::owner_of_namespace(namespace.as_fd()).ok()?;
    File::from(owner).metadata().ok().map(|owner| owner.ino())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair.filter(|it| it.len() == 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespace_has_not_ended_nor_has_nonsense() {
        assert_eq!(from_hex("0fa0"), Some(vec![0x0f, 0xa0]));
        assert_eq!([from_hex("0fa"), from_hex("zz"), from_hex("ä")], [None, None, None]);
        let Some(me) = mark_own() else { return };
        assert!(!has_ended(&me) && !is_another(&me));
        let nonsense = [
            NamespaceMark { handle: "0".into(), ..me.clone() },
            NamespaceMark { handle: String::new(), ..me.clone() },
            NamespaceMark { kind: me.kind + 1, ..me.clone() },
            NamespaceMark { owner: me.owner + 1, ..me.clone() },
        ];
        assert!(nonsense.iter().all(|mark| !has_ended(mark) && !is_another(mark)));
    }
}
