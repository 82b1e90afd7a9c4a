//! File systems of our own, mounted until they are dropped. Where one cannot be had, that is told loudly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::crashes::tell;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tmpfs,
    Ext4,
    Xfs,
    Btrfs,
    /// Btrfs that never copies on write.
    BtrfsNodatacow,
}

impl Kind {
    /// Those that live on a block device and differ in how they write to it.
    pub(crate) const ON_BLOCKS: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs | Self::BtrfsNodatacow => "btrfs",
        }
    }

    /// A small one: its own tools refuse a smaller one.
    pub(crate) fn mib(self) -> u64 {
        match self {
            Self::Tmpfs | Self::Ext4 => 64,
            Self::Xfs => 300,
            Self::Btrfs | Self::BtrfsNodatacow => 128,
        }
    }

    fn options(self) -> &'static str {
        match self {
            // A copy of a file system has its UUID too.
            Self::Xfs => "nouuid",
            Self::BtrfsNodatacow => "nodatacow",
            Self::Tmpfs | Self::Ext4 | Self::Btrfs => "defaults",
        }
    }
}

/// Makes a file system of this kind in the first `mib` of a file or device.
pub(crate) fn make(kind: Kind, on: &Path, mib: u64) -> Result<(), String> {
    let mut command = Command::new(format!("mkfs.{}", kind.name()));
    match kind {
        Kind::Ext4 => command.args(["-qF", "-b", "4096"]).arg(on).arg(format!("{mib}M")),
        Kind::Xfs => command.args(["-qf", "-d"]).arg(format!("size={mib}m")).arg(on),
        Kind::Btrfs | Kind::BtrfsNodatacow => {
            command.args(["-qf", "-b"]).arg(format!("{mib}M")).arg(on)
        }
        Kind::Tmpfs => return Ok(()),
    };
    run(&mut command)
}

/// A mounted file system.
#[derive(Debug)]
pub(crate) struct Mount {
    place: PathBuf,
    is_mounted: bool,
    /// Where it was made, if we made that too; goes after it.
    dir: Option<tempfile::TempDir>,
}

impl Mount {
    /// A new one; `None`, told loudly, where it cannot be had.
    pub(crate) fn new(kind: Kind) -> Option<Self> {
        Self::of(kind, kind.mib())
    }

    /// A new one of this size.
    pub(crate) fn of(kind: Kind, mib: u64) -> Option<Self> {
        match Self::try_new(kind, mib) {
            Ok(mount) => Some(mount),
            Err(why) => {
                tell(&format!("NOT COVERED: a mount of {}: {why}", kind.name()));
                None
            }
        }
    }

    fn try_new(kind: Kind, mib: u64) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, place) = (dir.path().join("image"), dir.path().join("fs"));
        if kind == Kind::Tmpfs {
            fs::create_dir(&place).map_err(|error| error.to_string())?;
            let size = format!("size={mib}m");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&place))?;
            return Ok(Self { place, is_mounted: true, dir: Some(dir) });
        }
        let file = fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(mib << 20).map_err(|error| error.to_string())?;
        make(kind, &image, mib)?;
        let mut mount = Self::on(kind, &image, &place, "loop")?;
        mount.dir = Some(dir);
        Ok(mount)
    }

    /// Mounts what is in a file or on a device at `place`, which is made.
    pub(crate) fn on(kind: Kind, what: &Path, place: &Path, more: &str) -> Result<Self, String> {
        fs::create_dir_all(place).map_err(|error| error.to_string())?;
        let options = format!("{},{more}", kind.options());
        run(Command::new("mount").args(["-t", kind.name(), "-o", &options]).arg(what).arg(place))?;
        Ok(Self { place: place.to_path_buf(), is_mounted: true, dir: None })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.place
    }

    /// The file that it is in, where it was made by [`Mount::new`].
    pub(crate) fn image(&self) -> PathBuf {
        self.place.with_file_name("image")
    }

    /// Unmounts it now: everything is on its device then.
    pub(crate) fn unmount(mut self) -> Result<(), String> {
        run(Command::new("umount").arg(&self.place))?;
        self.is_mounted = false;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.is_mounted {
            return;
        }
        // Killed processes may need a moment to let go; it is gone from sight at once, and altogether when they are.
        let gone = run(Command::new("umount").arg("--lazy").arg(&self.place));
        if let Err(why) = gone {
            tell(&format!("left mounted: {}: {why}", self.place.display()));
        }
    }
}

/// Runs a command; its complaint if it fails.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    output(command).map(drop)
}

/// Runs a command; what it said.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}
