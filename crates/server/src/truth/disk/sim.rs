//! A disk in memory that can lose what was not synced, and fail at any call. For tests.
//!
//! It is as hostile as a disk may be: unsynced writes survive a power cut in any subset of 512-byte sectors, unsynced names in any
//! subset as well, and a failed sync forgets what it should have written while reading shows it still.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile};

const SECTOR: usize = 512;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The machine or process stops in the middle of the call; nothing works from then on.
    Crash,
    /// The same, told apart from it.
    PowerCut,
    /// It stops before the call does anything.
    CrashBefore,
    /// It stops when the call has done all it should, but has not said so.
    CrashAfter,
    /// The call fails; a failed sync loses the data for good.
    Eio,
    /// The call fails; of what a failed sync should have written a part is on disk, the rest is lost for good.
    EioInPart(u64),
    /// This call and every later one fails.
    EioForEver,
    /// The call fails; of a write, half is done, in whole sectors.
    Enospc,
    /// A write does only half and says so.
    Short,
    /// A write is interrupted before anything is done.
    Interrupted,
}

/// Which unsynced changes survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All, and what the page cache shows: only the process died.
    Process,
    /// None.
    Nothing,
    /// All.
    All,
    /// The first so many, in the order they were made.
    Prefix(usize),
    /// Each by the toss of a coin.
    Subset(u64),
    /// Every sector at some moment of its own, and names by the toss of a coin: written back in any order.
    Reordered(u64),
}

#[derive(Debug, Clone)]
enum Change {
    Bytes { file: usize, offset: usize, bytes: Vec<u8> },
    Add { path: PathBuf, file: usize },
    Drop { path: PathBuf },
    Dir { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, file: usize },
}

#[derive(Debug, Clone, Default)]
struct Image {
    /// Shared until written to, for images are copied often.
    files: Vec<Arc<Vec<u8>>>,
    names: BTreeMap<PathBuf, usize>,
    dirs: BTreeSet<PathBuf>,
}

impl Image {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Bytes { file, offset, bytes } => {
                let contents = Arc::make_mut(&mut self.files[*file]);
                let end = offset + bytes.len();
                if contents.len() < end {
                    contents.resize(end, 0);
                }
                contents[*offset..end].copy_from_slice(bytes);
            }
            Change::Add { path, file } => {
                self.names.insert(path.clone(), *file);
            }
            Change::Drop { path } => {
                self.names.remove(path);
            }
            Change::Dir { path } => {
                self.dirs.insert(path.clone());
            }
            Change::Rename { from, to, file } => {
                if self.names.get(from) == Some(file) {
                    self.names.remove(from);
                }
                self.names.insert(to.clone(), *file);
            }
        }
    }
}

#[derive(Debug, Default, Clone)]
struct World {
    /// What a power cut leaves at least.
    durable: Image,
    /// What the running system shows.
    shown: Image,
    pending: Vec<Change>,
    calls: u64,
    faults: Vec<(u64, Fault)>,
    /// The last fault that came.
    came: Option<Fault>,
    crashed: bool,
    /// Sectors that cannot be read and take no writes.
    bad: BTreeSet<(usize, usize)>,
}

/// The disk; clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<World>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: usize,
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("a disk in memory is no larger than memory")
}

fn dead() -> io::Error {
    io::Error::other("the machine has stopped")
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

/// A random number that depends on nothing but its seed (splitmix64).
pub fn scramble(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl SimDisk {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the call number `at` (counted from 0, those that change something) go wrong.
    pub fn fail_at(&self, at: u64, fault: Fault) {
        self.world().faults.push((at, fault));
    }

    /// How many calls that change something there were.
    pub fn calls(&self) -> u64 {
        self.world().calls
    }

    /// Whether a planned crash came.
    pub fn has_crashed(&self) -> bool {
        self.world().crashed
    }

    /// The last planned fault that came.
    pub fn came(&self) -> Option<Fault> {
        self.world().came
    }

    /// How many unsynced changes there are to keep or lose.
    pub fn pending(&self) -> usize {
        self.world().pending.len()
    }

    /// The disk as the next start finds it; this one stays as it is.
    #[must_use]
    pub fn after(&self, keep: Keep) -> Self {
        let mut world = self.world().clone();
        world.lose(keep);
        (world.calls, world.faults, world.came) = (0, Vec::new(), None);
        Self(Arc::new(Mutex::new(world)))
    }

    /// Goes on from what is left, with the plans and counts that there are.
    pub fn restart(&self, keep: Keep) {
        self.world().lose(keep);
    }

    /// Makes a file's sector unreadable and unwritable.
    pub fn spoil(&self, path: &Path, sector: usize) {
        let mut world = self.world();
        let file = world.shown.names[path];
        world.bad.insert((file, sector));
    }

    /// A file's bytes as they are read.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let world = self.world();
        Some(Vec::clone(&world.shown.files[*world.shown.names.get(path)?]))
    }

    /// Puts bytes there, durably.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let mut world = self.world();
        let file = world.durable.files.len();
        for image in [0, 1] {
            let world = &mut *world;
            let image = if image == 0 { &mut world.durable } else { &mut world.shown };
            image.files.push(Arc::new(bytes.to_vec()));
            image.names.insert(path.to_owned(), file);
            image.dirs.extend(path.parent().map(Path::to_owned));
        }
    }

    /// The names of all files.
    pub fn names(&self) -> Vec<PathBuf> {
        self.world().shown.names.keys().cloned().collect()
    }
}

impl World {
    fn lose(&mut self, keep: Keep) {
        self.crashed = false;
        if keep == Keep::Process {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        let mut image = self.durable.clone();
        for (i, change) in pending.iter().enumerate() {
            let coin = |seed: u64| scramble(seed ^ (i as u64) << 32) & 1 == 1;
            let kept = match keep {
                Keep::Process | Keep::All => true,
                Keep::Nothing => false,
                Keep::Prefix(n) => i < n,
                Keep::Subset(seed) => coin(seed),
                Keep::Reordered(seed) => match change {
                    Change::Bytes { file, offset, .. } => {
                        let sector = (*file as u64) << 32 | (*offset / SECTOR) as u64;
                        let until = scramble(seed ^ scramble(sector)) % (pending.len() as u64 + 1);
                        (i as u64) < until
                    }
                    _ => coin(seed),
                },
            };
            if kept {
                image.apply(change);
            }
        }
        // A directory that is gone takes its files along.
        let Image { names, dirs, .. } = &mut image;
        names.retain(|path, _| path.parent().is_some_and(|dir| dirs.contains(dir)));
        self.durable = image.clone();
        self.shown = image;
    }

    fn alive(&self) -> io::Result<()> {
        if self.crashed { Err(dead()) } else { Ok(()) }
    }

    /// Counts a call; says what goes wrong with it, if anything.
    fn call(&mut self) -> io::Result<Option<Fault>> {
        self.alive()?;
        let now = self.calls;
        self.calls += 1;
        let due =
            |(at, fault): &&(u64, Fault)| *at == now || (*fault == Fault::EioForEver && *at < now);
        let fault = self.faults.iter().find(due).map(|(_, fault)| *fault);
        self.came = fault.or(self.came);
        if fault == Some(Fault::CrashBefore) {
            self.crashed = true;
            return Err(dead());
        }
        Ok(fault)
    }

    fn change(&mut self, change: Change) {
        self.shown.apply(&change);
        self.pending.push(change);
    }

    /// A call that changes names.
    fn name_call(&mut self, change: Change) -> io::Result<()> {
        match self.call()? {
            Some(Fault::Crash | Fault::PowerCut | Fault::CrashBefore | Fault::CrashAfter) => {
                self.change(change);
                self.crashed = true;
                Err(dead())
            }
            Some(Fault::Eio | Fault::EioInPart(_) | Fault::EioForEver) => Err(eio()),
            Some(Fault::Enospc) => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::Short | Fault::Interrupted) | None => {
                self.change(change);
                Ok(())
            }
        }
    }

    fn write(&mut self, file: usize, mut bytes: &[u8], mut offset: usize) {
        while !bytes.is_empty() {
            let room = SECTOR - offset % SECTOR;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.change(Change::Bytes { file, offset, bytes: now.to_vec() });
            (bytes, offset) = (rest, offset + now.len());
        }
    }

    /// A sync of those changes that `mine` names; `forgets`: what a failed one should have written is lost.
    fn sync(&mut self, forgets: bool, mine: impl Fn(&Change) -> bool) -> io::Result<()> {
        let fault = self.call()?;
        if matches!(fault, Some(Fault::Crash | Fault::PowerCut)) {
            self.crashed = true;
            return Err(dead());
        }
        let planned = match fault {
            Some(Fault::Eio | Fault::EioForEver | Fault::Enospc) => Some(None),
            Some(Fault::EioInPart(seed)) => Some(Some(seed)),
            _ => None,
        };
        let refused = |change: &Change| match change {
            Change::Bytes { file, offset, .. } => self.bad.contains(&(*file, offset / SECTOR)),
            _ => false,
        };
        let refuses = self.pending.iter().any(|change| mine(change) && refused(change));
        let failed = planned.or(refuses.then_some(None));
        if failed.is_some() && !forgets {
            return Err(eio());
        }
        let pending = std::mem::take(&mut self.pending);
        let (done, rest): (Vec<_>, Vec<_>) = pending.into_iter().partition(mine);
        self.pending = rest;
        for (i, change) in (0u64..).zip(&done) {
            let kept = match failed {
                None => true,
                Some(None) => false,
                Some(Some(seed)) => scramble(seed ^ i << 32) & 1 == 1,
            };
            if kept {
                self.durable.apply(change);
            }
        }
        if failed.is_some() {
            return Err(eio());
        }
        if fault == Some(Fault::CrashAfter) {
            self.crashed = true;
            return Err(dead());
        }
        Ok(())
    }
}

impl Disk for SimDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let world = self.world();
        world.alive()?;
        if !world.shown.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = world.shown.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_owned())).collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.world();
        if world.shown.dirs.contains(dir) {
            return Ok(());
        }
        world.name_call(Change::Dir { path: dir.to_owned() })
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let world = self.world();
        world.alive()?;
        let file = *world.shown.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), file }))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut world = self.world();
        if world.shown.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = world.shown.files.len();
        world.shown.files.push(Arc::default());
        world.durable.files.push(Arc::default());
        world.name_call(Change::Add { path: path.to_owned(), file })?;
        Ok(Box::new(SimFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        let file = *world.shown.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        world.name_call(Change::Rename { from: from.to_owned(), to: to.to_owned(), file })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        if !world.shown.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.name_call(Change::Drop { path: path.to_owned() })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // A journal that cannot be written keeps what it has.
        self.world().sync(false, |change| match change {
            Change::Bytes { .. } => false,
            Change::Add { path, .. }
            | Change::Drop { path }
            | Change::Dir { path }
            | Change::Rename { to: path, .. } => path.parent() == Some(dir),
        })
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        let world = self.disk.world();
        world.alive()?;
        Ok(world.shown.files[self.file].len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = self.disk.world();
        world.alive()?;
        let contents = &world.shown.files[self.file];
        let sectors = place(offset) / SECTOR..=(place(offset) + buf.len().max(1) - 1) / SECTOR;
        if sectors.into_iter().any(|sector| world.bad.contains(&(self.file, sector))) {
            return Err(eio());
        }
        let start = place(offset).min(contents.len());
        let n = buf.len().min(contents.len() - start);
        buf[..n].copy_from_slice(&contents[start..start + n]);
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut world = self.disk.world();
        let offset = place(offset);
        let half = bytes.get(..bytes.len().div_ceil(2)).unwrap_or_default();
        match world.call()? {
            Some(Fault::Crash | Fault::PowerCut | Fault::CrashBefore | Fault::CrashAfter) => {
                world.write(self.file, bytes, offset);
                world.crashed = true;
                Err(dead())
            }
            Some(Fault::Eio | Fault::EioInPart(_) | Fault::EioForEver) => Err(eio()),
            Some(Fault::Enospc) => {
                // Never a part of a sector, as everywhere here.
                let end = (offset + half.len()) / SECTOR * SECTOR;
                let whole = half.get(..end.saturating_sub(offset)).unwrap_or_default();
                world.write(self.file, whole, offset);
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(Fault::Short) => {
                world.write(self.file, half, offset);
                Ok(half.len())
            }
            Some(Fault::Interrupted) => Err(io::ErrorKind::Interrupted.into()),
            None => {
                world.write(self.file, bytes, offset);
                Ok(bytes.len())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let file = self.file;
        let mine = |change: &Change| matches!(change, Change::Bytes { file: f, .. } if *f == file);
        // The pages count as clean after a failure, and the disk does not have them.
        self.disk.world().sync(true, mine)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}
