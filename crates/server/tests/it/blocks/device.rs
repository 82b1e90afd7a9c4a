//! A disk of which everything is on record: qemu's storage daemon keeps the record, FUSE shows the disk as a file, and a loop device
//! makes a block device of that. The disk can also be made to fail.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use super::image::{Image, Record};
use crate::mount::{Kind, Mount, make, output, run};
use crate::rig::wait_gone;

/// Beyond the file system there is room for acknowledgements: they stand in the same order as its writes.
const ACKNOWLEDGED_MIB: u64 = 2;

/// The disk.
pub(super) struct Device {
    pub(super) kind: Kind,
    // In the order in which they have to go.
    mount: Option<Mount>,
    node: Loop,
    daemon: Daemon,
    told: File,
    mib: u64,
    base: Image,
    dir: tempfile::TempDir,
}

/// What of a disk fails: a write that touches this sector, once for each time it is named.
pub(super) type BadSectors<'a> = &'a [u64];

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn words(error: std::io::Error) -> String {
    error.to_string()
}

impl Device {
    /// A disk with a new file system, mounted.
    pub(super) fn new(kind: Kind, bad: BadSectors<'_>) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(words)?;
        let mib = if kind == Kind::Ext4 { 128 } else { kind.mib() };
        let disk = File::create(dir.path().join("disk")).map_err(words)?;
        disk.set_len((mib + ACKNOWLEDGED_MIB) << 20).map_err(words)?;
        make(kind, &dir.path().join("disk"), mib)?;
        Self::over(kind, dir, mib, bad)
    }

    /// The same disk once more, mounted, with other bad sectors.
    pub(super) fn again(self, bad: BadSectors<'_>) -> Result<Self, String> {
        let Self { kind, mount, node, daemon, told, mib, base: _, dir } = self;
        mount.map_or(Ok(()), Mount::unmount)?;
        drop((told, node, daemon));
        Self::over(kind, dir, mib, bad)
    }

    fn over(
        kind: Kind,
        dir: tempfile::TempDir,
        mib: u64,
        bad: BadSectors<'_>,
    ) -> Result<Self, String> {
        let path = |name: &str| dir.path().join(name);
        let base = Image::read(&path("disk"));
        // It grows with what is written.
        File::create(path("record")).and_then(|log| log.set_len(4 << 30)).map_err(words)?;
        File::create(path("export")).map_err(words)?;
        let daemon = Daemon::start(dir.path(), bad)?;
        let told = File::options().write(true).open(path("export")).map_err(words)?;
        let node = Loop::over(&path("export"))?;
        let mount = Some(Mount::on(kind, &node.0, &path("fs"), "rw")?);
        Ok(Self { kind, mount, node, daemon, told, mib, base, dir })
    }

    /// Where it is mounted.
    pub(super) fn place(&self) -> &Path {
        self.mount.as_ref().expect("mounted while it lives").path()
    }

    /// The disk itself, as a file: what has reached it, whatever caches show.
    pub(super) fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Puts an acknowledgement on record.
    pub(super) fn tell(&self, what: &str) {
        let mut sector = what.as_bytes().to_vec();
        sector.resize(512, b' ');
        let place = self.beyond() * 512;
        self.told.write_all_at(&sector, place).expect("the daemon takes it");
    }

    /// The first sector for acknowledgements.
    fn beyond(&self) -> u64 {
        (self.mib + 1) << 11
    }

    /// Ends the recording.
    pub(super) fn record(mut self) -> Result<Record, String> {
        self.mount.take().map_or(Ok(()), Mount::unmount)?;
        let (kind, beyond, mib) = (self.kind, self.beyond(), self.mib + ACKNOWLEDGED_MIB);
        let Self { node, daemon, base, dir, .. } = self;
        drop((node, daemon));
        let record = Record::read(kind, base, mib, beyond, &dir.path().join("record"));
        drop(dir);
        Ok(record)
    }
}

/// A loop device, given back when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Result<Self, String> {
        Ok(Self(output(Command::new("losetup").args(["--find", "--show"]).arg(file))?.into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(why) = run(Command::new("losetup").arg("--detach").arg(&self.0)) {
            crate::crashes::tell(&format!("left attached: {why}"));
        }
    }
}

/// The storage daemon, ended when dropped.
struct Daemon {
    pid: u32,
}

impl Daemon {
    fn start(dir: &Path, bad: BadSectors<'_>) -> Result<Self, String> {
        let at = |name: &str| dir.join(name).display().to_string();
        let mut disk = "driver=raw,node-name=disk,file=file".to_string();
        if !bad.is_empty() {
            disk = "driver=blkdebug,node-name=disk,image=file".to_string();
        }
        for (n, sector) in bad.iter().enumerate() {
            let rule = [
                ("event", "none".to_string()),
                ("iotype", "write".to_string()),
                ("errno", "5".to_string()),
                ("once", "on".to_string()),
                ("immediately", "on".to_string()),
                ("sector", sector.to_string()),
            ];
            disk.extend(rule.map(|(key, value)| format!(",inject-error.{n}.{key}={value}")));
        }
        let export = "type=fuse,id=export,node-name=recorded,writable=on";
        let nodes = [
            format!("driver=file,node-name=file,filename={}", at("disk")),
            disk,
            format!("driver=file,node-name=log,filename={}", at("record")),
            "driver=blklogwrites,node-name=recorded,file=disk,log=log".to_string(),
        ];
        let mut command = Command::new("qemu-storage-daemon");
        for node in &nodes {
            command.args(["--blockdev", node]);
        }
        command.arg("--export").arg(format!("{export},mountpoint={}", at("export")));
        // It is ours to use when this returns.
        command.args(["--daemonize", "--pidfile"]).arg(at("pid"));
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let status = command.stdin(std::process::Stdio::null()).status();
        let status = status.map_err(|error| format!("qemu-storage-daemon: {error}"))?;
        let pid = fs::read_to_string(dir.join("pid")).unwrap_or_default();
        match pid.trim().parse() {
            Ok(pid) if status.success() => Ok(Self { pid }),
            _ => Err(format!("{command:?}: {status}")),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).expect("a pid");
        // Gone by itself would be a finding; what follows says so.
        kill_process(pid, Signal::TERM).ok();
        wait_gone(self.pid);
    }
}
