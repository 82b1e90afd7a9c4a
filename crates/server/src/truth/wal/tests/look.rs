//! A look from outside: it tells what is there, touches nothing, and is not fooled by whoever writes meanwhile.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use outlive_core::ids::Lsn;

use super::{INSTANCE, Machine, Model, config};
use crate::truth::disk::sim::{Keep, SimDisk};
use crate::truth::disk::{Disk, DiskFile};
use crate::truth::wal::{Config, WalError, dump, instance_in, open, verify};

const SEGMENT: u64 = 4096;
const FIRST: &str = "/d/wal/0000000000000001.seg";
const SECOND: &str = "/d/wal/0000000000000002.seg";

type Step = Box<dyn FnMut(&Path) + Send>;

/// A disk on which something happens just before a file is opened to be read.
struct Busy(SimDisk, Mutex<Step>);

impl std::fmt::Debug for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Disk for Busy {
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        self.0.list(dir)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir(dir)
    }
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        (self.1.lock().unwrap())(path);
        self.0.open_read(path)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.open(path)
    }
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.create_new(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
}

fn busy(disk: &SimDisk, step: impl FnMut(&Path) + Send + 'static) -> Config {
    let busy = Busy(disk.clone(), Mutex::new(Box::new(step)));
    Config { disk: Arc::new(busy), ..config(disk, SEGMENT) }
}

fn names(paths: &[PathBuf]) -> Vec<&str> {
    paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
}

#[test]
fn everything_there_is_is_told() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..3 {
        for size in [600, 900, 700] {
            machine.group(&mut model, &[size]).unwrap();
        }
        machine.checkpoint(&model).unwrap();
    }
    machine.group(&mut model, &[40]).unwrap();
    machine.spare();
    // A torn group, which the next start seals and cuts.
    disk.fail_at(disk.calls() + 1, crate::truth::disk::sim::Fault::Crash);
    machine.group(&mut model, &[300]).unwrap_err();
    let disk = disk.after(Keep::All);
    let last = disk.names().into_iter().filter(|p| p.extension() == Some("seg".as_ref()));
    let last = last.collect::<Vec<_>>();
    let tail = &last[last.len() - 2];
    let mut bytes = disk.contents(tail).unwrap();
    let torn = bytes.windows(5).position(|w| w == b"0:11:").unwrap();
    bytes[torn + 200] ^= 1;
    disk.put(tail, &bytes);
    disk.put("/d/wal/0000000000000099.ckpt.tmp".as_ref(), &[1]);

    let before = verify(&config(&disk, SEGMENT)).unwrap();
    assert_eq!(disk.calls(), 0, "touched");
    assert!(before.report.cut_bytes > 300 && before.report.damage.is_empty(), "{before:?}");
    assert_eq!(names(&before.temps), ["0000000000000099.ckpt.tmp"]);
    let checkpoints: Vec<_> = before.checkpoints.iter().map(|c| (c.lsn.0, c.entries)).collect();
    assert_eq!(checkpoints, [(6, 3), (9, 3)]);
    let states: Vec<_> = before.checkpoints.iter().map(|c| (c.whole, c.used)).collect();
    assert_eq!(states, [(true, false), (true, true)]);
    let records: u64 = before.segments.iter().map(|s| s.records).sum();
    let lsns: Vec<_> = before.segments.iter().filter_map(|s| s.lsns).collect();
    // The torn one's header holds.
    let first = lsns[0].0;
    assert_eq!((records, lsns.last().unwrap().1), (11 - first.0 + 1, Lsn(11)), "{lsns:?}");
    assert!(lsns.windows(2).all(|two| two[1].0 == two[0].1.next()), "{lsns:?}");
    let empty = before.segments.last().unwrap();
    assert_eq!((empty.lsns, empty.used_bytes, empty.room_bytes), (None, 0, SEGMENT - 512));
    assert!(before.segments.iter().all(|s| s.readable && s.seals.is_empty()));

    let opened = open(config(&disk, SEGMENT)).unwrap().report;
    assert_eq!((opened.cut_bytes, opened.last_lsn), (before.report.cut_bytes, Lsn(10)));
    let after = verify(&config(&disk, SEGMENT)).unwrap();
    assert_eq!((after.report.cut_bytes, after.temps.len()), (0, 0));
    let sealed: Vec<_> = after.segments.iter().flat_map(|s| &s.seals).collect();
    assert!(matches!(sealed.as_slice(), [(_, Lsn(10), _)]), "{sealed:?}");
}

#[test]
fn flaws_of_a_checkpoint_that_nothing_hangs_on_are_told_as_harmless() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..2 {
        machine.group(&mut model, &[300]).unwrap();
        machine.checkpoint(&model).unwrap();
    }
    let checkpoints: Vec<_> =
        disk.names().into_iter().filter(|p| p.extension() == Some("ckpt".as_ref())).collect();
    for (path, used) in checkpoints.iter().zip([2, 1]) {
        let disk = disk.after(Keep::All);
        let mut bytes = disk.contents(path).unwrap();
        let end = bytes.len() - 20;
        bytes[end] ^= 1;
        disk.put(path, &bytes);
        let found = verify(&config(&disk, SEGMENT)).unwrap();
        let damage = &found.report.damage;
        assert!(!damage.is_empty(), "{}", path.display());
        assert!(damage.iter().all(|d| d.file == *path && d.harmless), "{damage:?}");
        let seen: Vec<_> = found.checkpoints.iter().map(|c| (c.lsn.0, c.whole, c.used)).collect();
        assert_eq!(seen, [(1, used == 1, used == 1), (2, used == 2, used == 2)]);
    }
}

/// Records that were not there yet when the first segment was read are not lost ones.
#[test]
fn what_is_written_meanwhile_is_not_taken_for_damage() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[900]).unwrap();
    machine.spare();
    let mut steps = 0;
    let config = busy(&disk, move |path| {
        if path == Path::new(SECOND) {
            steps += 1;
            if steps == 1 {
                for _ in 0..3 {
                    machine.group(&mut model, &[900]).unwrap();
                }
            }
        }
    });
    let found = verify(&config).unwrap();
    assert_eq!(found.report.damage, []);
}

#[test]
fn damage_is_told_though_somebody_writes_meanwhile() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    machine.group(&mut model, &[300]).unwrap();
    machine.group(&mut model, &[300]).unwrap();
    machine.spare();
    let mut bytes = disk.contents(FIRST.as_ref()).unwrap();
    let body = bytes.windows(4).position(|w| w == b"0:1:").unwrap();
    bytes[body] ^= 1;
    disk.put(FIRST.as_ref(), &bytes);
    let config = busy(&disk, move |_| machine.group(&mut model, &[10]).unwrap());
    let found = verify(&config).unwrap();
    let [damage] = found.report.damage.as_slice() else { panic!("{:?}", found.report) };
    assert_eq!((damage.file.as_path(), damage.lsns.clone()), (Path::new(FIRST), Lsn(1)..=Lsn(1)));
}

/// A checkpoint makes segments superfluous, and they go under the look: then it is taken anew.
#[test]
fn a_file_that_goes_away_meanwhile_is_no_error() {
    let disk = SimDisk::default();
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    for _ in 0..4 {
        machine.group(&mut model, &[900, 900, 900]).unwrap();
    }
    machine.checkpoint(&model).unwrap();
    machine.group(&mut model, &[900]).unwrap();
    let records = |config: &Config| {
        let mut lsns = Vec::new();
        dump(config, |_, _, record| lsns.push(record.lsn.0)).unwrap();
        lsns
    };
    let whole = records(&config(&disk, SEGMENT));
    assert_eq!(whole, (1..=13).collect::<Vec<_>>());
    let vanishing = || {
        let disk = disk.after(Keep::All);
        let world = disk.clone();
        busy(&disk, move |path| {
            if path == Path::new(FIRST) {
                drop(world.remove(path));
            }
        })
    };
    let found = verify(&vanishing()).unwrap();
    assert_eq!((found.report.damage, found.report.last_lsn), (vec![], Lsn(13)));
    let left = records(&vanishing());
    assert!(!left.is_empty() && whole.ends_with(&left) && left != whole, "{left:?}");
    let missing = Config { dir: PathBuf::from("/nowhere"), ..config(&disk, SEGMENT) };
    assert!(matches!(verify(&missing), Err(WalError::Io { what: "list", .. })));
}

#[test]
fn files_tell_whose_they_are_when_nothing_else_does() {
    let disk = SimDisk::default();
    assert_eq!(instance_in(&disk, Path::new("/d/wal")), None);
    let (mut machine, mut model) = (Machine::open(&disk, SEGMENT), Model::default());
    assert_eq!(instance_in(&disk, Path::new("/d/wal")), Some(INSTANCE));
    machine.group(&mut model, &[30]).unwrap();
    machine.checkpoint(&model).unwrap();
    disk.put(FIRST.as_ref(), &[0; 4096]);
    assert_eq!(instance_in(&disk, Path::new("/d/wal")), Some(INSTANCE), "the checkpoint tells");
}
