//! A write-ahead log made new, that begins with a state instead of with nothing: what stands in a backup for all the records before.

use std::path::PathBuf;

use outlive_core::checkpoint::Entry;
use outlive_core::ids::Lsn;

use super::{Config, WalError, checkpoint, io_at, segment};

/// Long enough for the first records; the next one has the usual length. A backup need not carry megabytes of zeros.
const SEGMENT_BYTES: u64 = 64 << 10;

/// Makes it in a directory that must not be there yet; gives its files. The next record has the lsn after `lsn`.
///
/// # Errors
/// As the disk says, or a limit; what was made stays then.
pub fn found(
    config: &Config,
    lsn: Lsn,
    entries: impl Iterator<Item = Entry>,
) -> Result<Vec<PathBuf>, WalError> {
    config.disk.create_dir(&config.dir).map_err(io_at("create", &config.dir))?;
    let mut made = Vec::new();
    if lsn != Lsn::NONE {
        let path = checkpoint::path(&config.dir, lsn);
        checkpoint::write_file(config, &path, (lsn, 0), entries)?;
        made.push(path);
    }
    made.push(segment::make(config, 1, SEGMENT_BYTES)?.path);
    Ok(made)
}
