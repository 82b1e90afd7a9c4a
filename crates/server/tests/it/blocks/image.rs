//! The record of a disk, and the disks that a power cut may leave.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::mount::Kind;

const SECTOR: usize = 512;
const BLOCK: usize = 4096;
const BLOCK_BYTES: u64 = 4096;

/// The sectors at which btrfs has its superblock and its copy. A mount reads the first alone, so a disk that tears it takes the file
/// system away: btrfs relies on these 4 KiB being written whole, and nothing above it can do better.
const BTRFS_SUPERBLOCKS: [u64; 2] = [128, 131_072];

/// A disk's contents; what is not there is zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct Image(BTreeMap<u64, Box<[u8; BLOCK]>>);

impl Image {
    /// Reads a sparse file.
    pub(super) fn read(path: &Path) -> Self {
        let file = File::open(path).expect("it is there");
        let len = file.metadata().expect("it is there").len();
        let mut image = Self::default();
        let mut at = 0;
        let mut piece = vec![0; 256 * BLOCK];
        while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            at = data / BLOCK_BYTES * BLOCK_BYTES;
            let got = file.read_at(&mut piece, at).expect("it can be read");
            for (n, block) in piece[..got].chunks_exact(BLOCK).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    let block: [u8; BLOCK] = block.try_into().expect("a block");
                    image.0.insert(at / BLOCK_BYTES + n as u64, Box::new(block));
                }
            }
            at += got as u64;
            if got == 0 || at >= len {
                break;
            }
        }
        image
    }

    fn write(&mut self, sector: u64, data: &[u8]) {
        for (n, bytes) in data.chunks(SECTOR).enumerate() {
            let sector = sector + n as u64;
            let block = self.0.entry(sector / 8).or_insert_with(|| Box::new([0; BLOCK]));
            let at = usize::try_from(sector % 8).expect("small") * SECTOR;
            block[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn write_to(&self, file: &File) {
        let mut run: (u64, Vec<u8>) = (0, Vec::new());
        for (at, block) in &self.0 {
            if run.0 + (run.1.len() / BLOCK) as u64 != *at || run.1.len() > 1 << 20 {
                file.write_all_at(&run.1, run.0 * BLOCK_BYTES).expect("written");
                run = (*at, Vec::new());
            }
            run.1.extend_from_slice(&block[..]);
        }
        file.write_all_at(&run.1, run.0 * BLOCK_BYTES).expect("written");
    }
}

/// What a power cut leaves of a write that was not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtCut {
    /// Nothing, all of it, or its first sectors.
    Any,
    /// Nothing or all of it.
    Whole,
    /// All of it: it was a write through the disk's cache.
    Kept,
}

/// What reached the disk.
#[derive(Debug)]
struct Entry {
    sector: u64,
    data: Vec<u8>,
    /// Everything before it is safe then.
    flush: bool,
    at_cut: AtCut,
    /// It is an acknowledgement.
    told: bool,
}

/// All of it, in order.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) kind: Kind,
    base: Image,
    mib: u64,
    entries: Vec<Entry>,
}

impl Record {
    /// Reads a record in the format of dm-log-writes.
    pub(super) fn read(kind: Kind, base: Image, mib: u64, beyond: u64, path: &Path) -> Self {
        const MAGIC: u64 = 0x006a_7366_7773_6872;
        let file = File::open(path).expect("it is there");
        let number = |at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).expect("it can be read");
            u64::from_le_bytes(bytes)
        };
        assert_eq!(number(0), MAGIC, "no record of writes");
        let mut entries = Vec::new();
        let mut at = SECTOR as u64;
        loop {
            let (sector, sectors, flags) = (number(at), number(at + 8), number(at + 16));
            if (sector, sectors, flags) == (0, 0, 0) {
                break;
            }
            at += SECTOR as u64;
            let discard = flags & 4 != 0;
            let len = if discard { 0 } else { sectors * SECTOR as u64 };
            let mut data = vec![0; usize::try_from(len).expect("fits")];
            file.read_exact_at(&mut data, at).expect("it can be read");
            at += len;
            let at_cut = if flags & 2 != 0 {
                AtCut::Kept
            } else if kind == Kind::Btrfs && BTRFS_SUPERBLOCKS.contains(&sector) {
                AtCut::Whole
            } else {
                AtCut::Any
            };
            let (flush, told) = (flags & 1 != 0, sector >= beyond);
            entries.push(Entry { sector, data, flush, at_cut, told });
        }
        Self { kind, base, mib, entries }
    }

    pub(super) fn writes(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.data.is_empty() && !entry.told).count()
    }

    pub(super) fn flushes(&self) -> usize {
        self.entries.iter().filter(|entry| entry.flush).count()
    }

    pub(super) fn acknowledgements(&self) -> usize {
        self.entries.iter().filter(|entry| entry.told).count()
    }

    /// Power cuts, about `count` of them, all over the record, just before and after each flush and acknowledgement; of what was not flushed
    /// nothing is kept, everything, a beginning, and anything.
    pub(super) fn states(&self, count: usize) -> States<'_> {
        let first = self.entries.iter().position(|entry| entry.told).unwrap_or(0);
        let marks = (first..self.entries.len()).filter(|at| {
            let entry = &self.entries[*at];
            entry.flush || entry.told
        });
        let mut cuts: Vec<usize> = marks.flat_map(|at| [at, at + 1]).collect();
        cuts.dedup();
        let wanted = count.div_ceil(Keep::ALL.len()).min(cuts.len()).max(1);
        let chosen = (0..wanted).map(|n| cuts[n * cuts.len() / wanted]).collect();
        States { record: self, cuts: chosen, next: 0, safe: self.base.clone(), safe_upto: 0 }
    }
}

/// What a disk kept of what was not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Nothing,
    All,
    /// The writes up to one of them, which may be torn.
    Beginning,
    /// Any of the writes, in any order; the last may be torn.
    Any,
}

impl Keep {
    const ALL: [Self; 4] = [Self::Nothing, Self::All, Self::Beginning, Self::Any];
}

/// The power cuts of a record, one after the other.
pub(super) struct States<'a> {
    record: &'a Record,
    cuts: Vec<usize>,
    next: usize,
    safe: Image,
    safe_upto: usize,
}

/// A disk after a power cut.
pub(super) struct State<'a> {
    record: &'a Record,
    image: Image,
    cut: usize,
    keep: Keep,
}

impl<'a> States<'a> {
    pub(super) fn next(&mut self) -> Option<State<'a>> {
        let keep = Keep::ALL[self.next % Keep::ALL.len()];
        let cut = *self.cuts.get(self.next / Keep::ALL.len())?;
        self.next += 1;
        let before = &self.record.entries[..cut];
        let safe = before.iter().rposition(|entry| entry.flush).map_or(0, |at| at + 1);
        for entry in &before[self.safe_upto..safe.max(self.safe_upto)] {
            self.safe.write(entry.sector, &entry.data);
        }
        self.safe_upto = self.safe_upto.max(safe);
        let mut image = self.safe.clone();
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15 ^ cut as u64);
        keep_some(&mut image, &before[safe..], keep, &mut chance);
        Some(State { record: self.record, image, cut, keep })
    }
}

/// Adds to a disk what it kept of writes that were not flushed. The last of them may be torn at a sector.
fn keep_some(image: &mut Image, writes: &[Entry], keep: Keep, chance: &mut Chance) {
    let upto = chance.below(writes.len() as u64 + 1);
    for (at, entry) in (0..).zip(writes) {
        let kept = match keep {
            Keep::Nothing => false,
            Keep::All => true,
            Keep::Beginning => at < upto,
            Keep::Any => chance.below(2) == 1,
        };
        let last = at + 1 == if keep == Keep::Beginning { upto } else { writes.len() as u64 };
        if kept && last && keep != Keep::All && entry.at_cut == AtCut::Any {
            let sectors = chance.below((entry.data.len() / SECTOR) as u64 + 1);
            let torn = usize::try_from(sectors).expect("fits") * SECTOR;
            image.write(entry.sector, &entry.data[..torn]);
        } else if kept || entry.at_cut == AtCut::Kept {
            image.write(entry.sector, &entry.data);
        }
    }
}

/// Xorshift: the same cut always leaves the same disk.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}

impl State<'_> {
    /// Enough to find it again.
    pub(super) fn name(&self) -> String {
        let (cut, all) = (self.cut, self.record.entries.len());
        format!("{} cut at {cut} of {all}, {:?} kept", self.record.kind.name(), self.keep)
    }

    /// What had been acknowledged.
    pub(super) fn told(&self) -> Vec<String> {
        let told = self.record.entries[..self.cut].iter().filter(|entry| entry.told);
        told.map(|entry| String::from_utf8_lossy(&entry.data).trim().to_string()).collect()
    }

    /// The disk as a file, in memory where that can be had.
    pub(super) fn write(&self) -> tempfile::TempDir {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("outlive-disk-").tempdir_in(dir);
        let dir = dir.expect("a directory");
        let file = File::create(dir.path().join("disk")).expect("a file");
        file.set_len(self.record.mib << 20).expect("a sparse file");
        self.image.write_to(&file);
        dir
    }
}
