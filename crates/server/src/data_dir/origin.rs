//! Whether a data directory is where it was made. A copy, or a restored backup, must not act beside its original.
//!
//! A copy has all its original's files, byte for byte, so only what cannot be copied tells: the machine, and when the file
//! `server.lock` came to be, which whoever copies it makes anew. It is made once and never replaced, so it is the same through
//! restarts, reboots, and moves within a file system. Absent: copies of whole disks, which have even that
//! (docs/design/0010-a-copy-does-nothing.md says why nothing more is compared).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::SystemTime;

use rustix::fs::{fstatfs, fstatvfs};

/// `BTRFS_SUPER_MAGIC`.
const BTRFS: u64 = 0x9123_683E;

/// What tells a data directory from a copy of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    /// `/etc/machine-id`; empty where there is none.
    pub(super) machine: String,
    /// Which file the lock is.
    pub(super) place: String,
}

impl Origin {
    /// Looks at this machine and at an opened lock file.
    pub(super) fn observe(lock: &File) -> io::Result<Self> {
        let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Ok(Self { machine: machine.trim().to_string(), place: place_of(lock)? })
    }
}

fn place_of(lock: &File) -> io::Result<String> {
    let metadata = lock.metadata()?;
    let place = match metadata.created() {
        Ok(born) => {
            // Before 1970 only where a clock was wrong; then any number does, if it is always the same.
            let since = born.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            format!("born {}.{:09}", since.as_secs(), since.subsec_nanos())
        }
        // A file system that does not tell: the number may be another file's elsewhere, but hardly a copy's.
        Err(_) => format!("inode {}", metadata.ino()),
    };
    // A copy of a whole subvolume has everything of its original but this; elsewhere this may change with the name of a disk.
    if u64::try_from(fstatfs(lock)?.f_type).is_ok_and(|kind| kind == BTRFS) {
        return Ok(format!("{place} subvolume {:016x}", fstatvfs(lock)?.f_fsid));
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::{DataDir, Instance};

    #[test]
    fn a_copy_beside_its_original_is_another_place_and_a_renamed_one_is_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let place = |name: &str| {
            place_of(&File::open(path(name)).expect("there")).expect("can be looked at")
        };
        std::fs::write(path("original"), "").expect("written");
        let original = place("original");
        let mut copy = std::process::Command::new("cp");
        copy.arg("-a").args([path("original"), path("copy")]);
        assert!(copy.status().expect("cp runs").success());
        assert_ne!(place("copy"), original);
        std::fs::write(path("original"), "more").expect("written");
        #[expect(clippy::disallowed_methods, reason = "nothing here has to survive a power cut")]
        std::fs::rename(path("original"), path("moved")).expect("moved");
        assert_eq!(place("moved"), original);
    }

    fn made_at(machine: &str, place: &str) -> Instance {
        Instance {
            instance: "uuid".into(),
            machine: machine.into(),
            format_version: 1,
            place: Some(place.into()),
            life: None,
            backup: None,
        }
    }

    #[test]
    fn another_machine_another_file_and_a_backup_are_copies_and_nothing_else_is() {
        let here = |machine: &str| Origin { machine: machine.into(), place: "p".into() };
        let told = |instance: &Instance, machine: &str| instance.is_copied(&here(machine));
        let made = made_at("m", "p");
        assert_eq!(told(&made, "m"), None);
        assert!(told(&made, "other").is_some_and(|why| why.contains("another machine")));
        // A machine without an id says nothing.
        assert_eq!((told(&made, ""), told(&made_at("", "p"), "m")), (None, None));
        assert!(told(&made_at("m", "q"), "m").is_some_and(|why| why.contains("server.lock")));
        let backup = made.in_backup("of today".into());
        assert!(told(&backup, "m").is_some_and(|why| why.contains("backup (of today)")));
        for copied in [made_at("n", "q"), backup] {
            let adopted = copied.adopted(&here("m"));
            assert_eq!(told(&adopted, "m"), None);
            assert!(adopted.instance == made.instance && adopted.life() != made.life());
        }
    }

    #[test]
    fn a_data_directory_knows_itself_and_is_known_by_others_from_its_copies() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let copied = |name: &str| DataDir::open(&path(name)).expect("opens").copied;
        assert_eq!((copied("data"), copied("data")), (None, None));
        let mut copy = std::process::Command::new("cp");
        copy.arg("-a").args([path("data"), path("copy")]);
        assert!(copy.status().expect("cp runs").success());
        assert!(copied("copy").is_some() && copied("copy").is_some(), "as often as it is asked");
        DataDir::open(&path("copy")).expect("opens").adopt().expect("adopted");
        assert_eq!((copied("copy"), copied("data")), (None, None));
        // One of a version that wrote less: it is where it was, and a copy of it from now on is one.
        let old = r#"{"instance":"x","machine":"","format_version":1}"#;
        std::fs::write(path("data/instance.json"), old).expect("written");
        assert_eq!(copied("data"), None);
        let told = std::fs::read_to_string(path("data/instance.json")).expect("there");
        assert!(told.contains("place"), "{told}");
    }
}
