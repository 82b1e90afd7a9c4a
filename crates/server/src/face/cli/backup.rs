//! `outlive backup`: everything of a running server in one file.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use outlive_supervisor::replace_file_by;
use serde_json::Value;
use tar::Archive;

use super::failure::Failure;
use super::text::number;
use super::{Context, SUCCESS, Status};

/// What is passed on at once.
const PIECE_BYTES: usize = 256 << 10;

/// The archive's last file: without it, it is not whole.
const LAST: &str = "instance.json";

/// Its contents, in short.
const MANIFEST: &str = "backup.json";

/// Writes everything that the server knows, jobs, their outputs and workspaces, repositories, into a tar archive. The server
/// works on meanwhile. Secrets are not in it: neither the token, nor what agents have in their environment.
#[derive(Debug, Args)]
#[command(after_help = "\
Restore it into an empty directory, and start a server there:
  mkdir DIR && tar -xpf FILE -C DIR && outlive serve --data DIR
It holds everything until `outlive --data DIR adopt-data`, so that nothing runs twice.")]
pub(super) struct Backup {
    /// The file, written whole or not at all; `-` for standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Backup {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let mut archive = context.client.stream("/api/admin/backup", &[])?;
        if self.file == Path::new("-") {
            return pass_on(&mut archive, &mut io::stdout().lock());
        }
        let manifest = write(&self.file, &mut archive)?;
        let count = |name: &str| number(&manifest, name).unwrap_or(0);
        let bytes = self.file.metadata().map_or(0, |metadata| metadata.len());
        writeln!(
            io::stdout(),
            "{}: {} jobs and {} repos as of record {}, {bytes} bytes",
            self.file.display(),
            count("/jobs"),
            count("/repos"),
            count("/lsn"),
        )?;
        let listed = manifest["left_out"].as_array().map_or(0, |list| list.len() as u64);
        let left_out = listed + count("/left_out_unlisted");
        if left_out > 0 {
            super::note(&format!(
                "warning: {left_out} files could not be read, or not whole: {MANIFEST} in it names them"
            ));
        }
        Ok(SUCCESS)
    }
}

/// Whoever takes it sees by its last file whether it is whole; here the status says so.
fn pass_on(archive: &mut impl Read, out: &mut impl Write) -> Result<Status, Failure> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let got = archive.read(&mut piece).map_err(|source| {
            let what = "the backup was cut off: what was written of it is none".to_string();
            Failure::Local { what, source }
        })?;
        if got == 0 {
            out.flush()?;
            return Ok(SUCCESS);
        }
        out.write_all(&piece[..got])?;
    }
}

/// Only what was read back to its end gets the name.
fn write(path: &Path, archive: &mut impl Read) -> Result<Value, Failure> {
    let mut manifest = Value::Null;
    let written = replace_file_by(path, |file| {
        io::copy(archive, file)?;
        manifest = read_back(file)?;
        Ok(())
    });
    written.map_err(|error| Failure::Local {
        what: format!("no backup was made: cannot {} {}", error.action, error.path.display()),
        source: error.source,
    })?;
    Ok(manifest)
}

/// The manifest, if the archive is whole.
fn read_back(file: &mut File) -> io::Result<Value> {
    file.rewind()?;
    let (mut manifest, mut last) = (Value::Null, PathBuf::new());
    for entry in Archive::new(file).entries_with_seek()? {
        let entry = entry?;
        last = entry.path()?.into_owned();
        if last == Path::new(MANIFEST) {
            manifest = serde_json::from_reader(entry)?;
        }
    }
    if last != Path::new(LAST) || manifest.is_null() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is not whole"));
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive with these files, each with the bytes `{}`.
    fn archive(names: &[&str]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            archive.append_data(&mut header, name, &b"{}"[..]).expect("into memory");
        }
        archive.into_inner().expect("into memory")
    }

    #[test]
    fn only_a_whole_archive_takes_the_place_of_the_file_that_was_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("backup.tar");
        std::fs::write(&path, "old").expect("written");
        let whole = archive(&["jobs/x", MANIFEST, LAST]);
        let cut = |at: usize| &whole[..at];
        let without = [archive(&["jobs/x", MANIFEST]), archive(&[MANIFEST, LAST, "x"]), vec![]];
        let broken = [cut(100), cut(700), cut(1700), &without[0], &without[1], &without[2]];
        for (number, bytes) in broken.into_iter().enumerate() {
            let failure = write(&path, &mut &*bytes).expect_err("not whole");
            assert_eq!(failure.status(), 1, "{number}: {failure}");
            assert_eq!(std::fs::read(&path).expect("there"), b"old", "{number}");
            assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1, "{number}");
        }
        write(&path, &mut &*whole).expect("whole");
        assert_eq!(std::fs::read(&path).expect("there"), whole);
    }
}
