//! Files of slots: what must be told also on a full disk is written in place, into sectors that were allocated before.
//!
//! Absent on purpose: what stands in them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use outlive_core::spec::{Reading, SLOT_BYTES, SLOT_FILE_BYTES, decode_slot, encode_slot};
use serde::{Deserialize, Serialize};

use crate::files::FileError;

/// Opens a file of slots; makes it of zeros first if need be, so that later overwriting needs no new space. Its directory is
/// synced by the caller.
pub(crate) fn allocate(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(FileError::at("open", path))?;
    let length = file.metadata().map_err(FileError::at("look at", path))?.len();
    if length < SLOT_FILE_BYTES as u64 {
        overwrite_in_place(&file);
        let rest = usize::try_from(length).map_or(0, |length| SLOT_FILE_BYTES - length);
        write(&file, length, [0; SLOT_FILE_BYTES].get(..rest).unwrap_or_default(), path)?;
        sync(&file, path)?;
    }
    Ok(file)
}

/// Asks that overwriting an empty file's bytes, once it has some, needs no new space, where that has to be asked for (btrfs). Says
/// whether it was granted.
pub fn overwrite_in_place(file: &File) -> bool {
    use rustix::fs::{IFlags, fstatfs, ioctl_getflags, ioctl_setflags};
    const BTRFS: u32 = 0x9123_683E;
    let is_btrfs = fstatfs(file).is_ok_and(|fs| u32::try_from(fs.f_type) == Ok(BTRFS));
    let ask = || ioctl_setflags(file, ioctl_getflags(file)? | IFlags::NOCOW);
    is_btrfs && ask().is_ok()
}

/// A value in the form of a slot.
pub(crate) fn encode<T: Serialize>(value: &T, path: &Path) -> Result<[u8; SLOT_BYTES], FileError> {
    encode_slot(value).map_err(io::Error::other).map_err(FileError::at("fit the slot of", path))
}

/// Writes bytes in place.
pub(crate) fn write(file: &File, offset: u64, bytes: &[u8], path: &Path) -> Result<(), FileError> {
    file.write_all_at(bytes, offset).map_err(FileError::at("write", path))
}

/// Makes them durable.
pub(crate) fn sync(file: &File, path: &Path) -> Result<(), FileError> {
    file.sync_data().map_err(FileError::at("sync", path))
}

/// Reads a slot. A file that ends before its slot does was never filled, so nothing was recorded in it.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(file: &File, offset: u64) -> Reading<T> {
    let mut slot = [0; SLOT_BYTES];
    match file.read_exact_at(&mut slot, offset) {
        Ok(()) => decode_slot(&slot),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Reading::Absent,
        Err(error) => Reading::Damaged(error.to_string()),
    }
}

/// Reads a slot of a file that may not be there.
pub(crate) fn read_in<T: for<'de> Deserialize<'de>>(path: &Path, offset: u64) -> Reading<T> {
    match File::open(path) {
        Ok(file) => read(&file, offset),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::Absent,
        Err(error) => Reading::Damaged(error.to_string()),
    }
}
