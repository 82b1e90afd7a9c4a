//! Checkpoints that do not fit into one piece, and calls that the disk refuses where that need not be the end.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Machine, Model, checkpoints, config};
use crate::truth::disk::sim::{Fault, Keep, SimDisk};
use crate::truth::disk::{Disk, DiskFile};
use crate::truth::wal::{Config, WalError, dump, open, verify};

const SEGMENT: u64 = 1 << 20;

/// So many checkpoints after each other, of three entries with bodies of this size.
fn written(disk: &SimDisk, count: usize, size: usize) -> (Machine, Model) {
    let (mut machine, mut model) = (Machine::open(disk, SEGMENT), Model::default());
    for _ in 0..count {
        machine.group(&mut model, &[size, size, size]).unwrap();
        machine.checkpoint(&model).unwrap();
    }
    (machine, model)
}

#[test]
fn a_checkpoint_that_is_written_in_pieces_is_read_as_it_was() {
    let disk = SimDisk::default();
    let (_, model) = written(&disk, 1, 200 << 10);
    let opened = open(config(&disk.after(Keep::Nothing), SEGMENT)).unwrap();
    assert_eq!((opened.report.checkpoint_lsn.0, opened.checkpoint.len()), (3, 3));
    assert_eq!(model.check(&opened, "in pieces"), 3);
    assert!(opened.report.damage.is_empty(), "{:?}", opened.report);
}

#[test]
fn a_checkpoint_that_is_gone_already_is_not_missed_and_one_that_stays_is_told_of() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = written(&disk, 2, 100);
    disk.remove(&checkpoints(&disk)[0]).unwrap();
    machine.group(&mut model, &[100]).unwrap();
    machine.checkpoint(&model).unwrap();
    assert_eq!(checkpoints(&disk).len(), 2);
    let mut told = 0;
    for at in 0..20 {
        let disk = SimDisk::default();
        let (mut machine, mut model) = written(&disk, 2, 100);
        machine.group(&mut model, &[100]).unwrap();
        disk.fail_at(disk.calls() + at, Fault::Eio);
        match machine.checkpoint(&model) {
            Err(WalError::Io { what: "remove", path, .. }) => {
                assert_eq!(path, checkpoints(&disk)[0]);
                assert_eq!(checkpoints(&disk).len(), 3, "the new one is there all the same");
                told += 1;
            }
            Err(error) => assert!(checkpoints(&disk).len() >= 2, "{error}"),
            Ok(()) => {}
        }
    }
    assert_eq!(told, 1);
}

/// A disk that refuses to open or list one path so many times.
#[derive(Debug)]
struct Refusing {
    disk: SimDisk,
    path: PathBuf,
    kind: ErrorKind,
    times: AtomicUsize,
}

impl Refusing {
    fn refuse(&self, path: &Path) -> io::Result<()> {
        let left = |times: usize| times.checked_sub(1);
        let refused = path == self.path
            && self.times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok();
        if refused { Err(self.kind.into()) } else { Ok(()) }
    }
}

impl Disk for Refusing {
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        self.refuse(dir)?;
        self.disk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir(dir)
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.refuse(path)?;
        self.disk.open_read(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.refuse(path)?;
        self.disk.open(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create_new(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

// A server removes what a checkpoint covers while somebody looks; anything else that is refused is told.
#[test]
fn who_looks_beside_a_server_looks_again_where_a_file_went_away() {
    let disk = SimDisk::default();
    let (_, model) = written(&disk, 2, 100);
    let refusing = |path: &Path, kind: ErrorKind, times: usize| {
        let (path, times) = (path.to_owned(), AtomicUsize::new(times));
        let refusing = Refusing { disk: disk.clone(), path, kind, times };
        Config { disk: Arc::new(refusing), ..config(&disk, SEGMENT) }
    };
    let file = checkpoints(&disk).pop().unwrap();
    let seen = verify(&refusing(&file, ErrorKind::NotFound, 1)).unwrap();
    assert_eq!(seen.report.last_lsn.0, model.last());
    let dir = config(&disk, SEGMENT).dir;
    for (path, kind, times) in [
        (&file, ErrorKind::NotFound, usize::MAX),
        (&file, ErrorKind::PermissionDenied, 1),
        (&dir, ErrorKind::NotFound, 1),
    ] {
        let refused = verify(&refusing(path, kind, times)).unwrap_err();
        let told = matches!(&refused, WalError::Io { source, .. } if source.kind() == kind);
        assert!(told, "{refused}");
    }
    let segment = disk.names().into_iter().find(|it| it.extension() == Some("seg".as_ref()));
    let dumped = |kind: ErrorKind| {
        let mut count = 0;
        dump(&refusing(segment.as_deref().unwrap(), kind, 1), |_, _, _| count += 1).map(|()| count)
    };
    assert_eq!(dumped(ErrorKind::NotFound).unwrap(), 0, "its records are covered");
    let refused = dumped(ErrorKind::PermissionDenied).unwrap_err();
    assert!(matches!(refused, WalError::Io { what: "open", .. }), "{refused}");
}
