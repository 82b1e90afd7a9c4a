//! A backup: everything that one State tells of, as a tar archive that is written while the server works.
//!
//! The records are one checkpoint of that State, so the archive has one lsn. Of the files it takes what State knows: an attempt that
//! was planned later is not in it, an output file ends where State, or the outcome beside it, says. Absent: where the archive goes,
//! and restoring, which is `tar -x` into an empty directory. docs/backup.md says what is in it, for people.

mod archive;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use outlive_core::checkpoint::Entry;
use outlive_core::ids::AttemptNo;
use outlive_core::job::{Job, Work};
use outlive_core::repo::{Repo, RepoPhase};
use outlive_core::spec::file as keep_file;
use outlive_core::state::State;
use outlive_supervisor::read_slots;
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use self::archive::Archive;
use crate::clock;
use crate::data_dir::{Instance, Paths};
use crate::truth::driver::Handle;
use crate::truth::view::Backup;
use crate::truth::wal;
use crate::world::files;
use crate::world::fleet::Fleet;
use crate::world::workspace::note_path;

/// So much travels at once, and so many pieces may wait for a slow reader.
const PIECE_BYTES: usize = 256 << 10;
/// See [`PIECE_BYTES`].
const PIECES_MAX: usize = 4;

/// The manifest's name in the archive.
pub const MANIFEST: &str = "backup.json";

/// What backups are made from.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where everything lives.
    pub paths: Paths,
    /// Whose it is.
    pub instance: Instance,
    /// State, as of the moment of asking.
    pub handle: Handle,
    /// Whoever clears away waits for us.
    pub fleet: Fleet,
    /// Carries the writing.
    pub tracker: TaskTracker,
}

impl Source {
    /// Begins a backup of what is durable now.
    pub async fn begin(self) -> Backup {
        // First: a job that State knows keeps its directory until the archive is written.
        let still = self.fleet.keep_still().await;
        let state = self.handle.view();
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let (lsn, jobs) = (state.lsn(), state.jobs().count());
        let tracker = self.tracker.clone();
        tracker.spawn_blocking(move || {
            self.write_to(&state, &sender);
            drop(still);
        });
        Backup { lsn, jobs, pieces }
    }

    fn write_to(&self, state: &State, sender: &mpsc::Sender<io::Result<Vec<u8>>>) {
        let out = Pieces { sender: sender.clone(), piece: Vec::with_capacity(PIECE_BYTES) };
        if let Err(error) = self.write(state, out) {
            tracing::warn!(%error, "a backup was not finished");
            // A reader that went away knows already.
            drop(sender.blocking_send(Err(error)));
        }
    }

    fn write(&self, state: &State, out: impl Write) -> io::Result<()> {
        let inside = Paths::new("");
        let mut archive = Archive::new(self.paths.root(), out)?;
        self.records(state, &inside, &mut archive)?;
        for job in state.jobs() {
            self.job(job, &inside, &mut archive)?;
        }
        let ready: Vec<&Arc<Repo>> =
            state.repos().filter(|repo| repo.phase == RepoPhase::Ready).collect();
        for repo in &ready {
            self.repo(repo, &inside, &mut archive)?;
        }
        archive.tree(&inside.quarantine())?;
        let (taken_at, lsn) = (clock::rfc3339(clock::now()), state.lsn());
        let manifest = json!({
            "version": 1, "made_by": env!("CARGO_PKG_VERSION"), "taken_at": taken_at, "lsn": lsn,
            "jobs": state.jobs().count(), "repos": ready.len(),
            "left_out": archive.left_out(), "left_out_unlisted": archive.left_out_unlisted(),
        });
        archive.bytes(Path::new(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
        // Last: without it nothing opens as a data directory, so half an archive is never taken for a whole one.
        let instance = self.instance.in_backup(format!("taken at {taken_at} as of record {lsn}"));
        archive.bytes(&inside.instance(), &serde_json::to_vec_pretty(&instance)?)?;
        archive.finish()
    }

    /// The write-ahead log of the backup: made in the scratch directory, and from there into the archive.
    fn records(
        &self,
        state: &State,
        inside: &Paths,
        archive: &mut Archive<impl Write>,
    ) -> io::Result<()> {
        let place = self.paths.scratch().join(format!("backup-{}", files::unique()?));
        let config = crate::truth::store::log_config(&self.paths, &self.instance);
        let config = wal::Config { dir: place.clone(), ..config };
        let entries = state.entries().map(|(entity, lsn, body)| Entry { entity, lsn, body });
        let made = wal::found(&config, state.lsn(), entries).map_err(io::Error::other);
        let taken = made.and_then(|made| {
            made.iter().try_for_each(|path| {
                let name = path.file_name().unwrap_or_default();
                archive.file_as(&File::open(path)?, &inside.wal().join(name))
            })
        });
        // A left-over of ours, gone at the next start if not now.
        drop(std::fs::remove_dir_all(&place));
        taken
    }

    fn job(&self, job: &Job, inside: &Paths, archive: &mut Archive<impl Write>) -> io::Result<()> {
        let dir = inside.job(&job.id);
        let Some(names) = archive.directory(&dir)? else { return Ok(()) };
        // Before the output: an outcome that says N bytes never stands beside a file with fewer.
        let attempts = inside.attempts(&job.id);
        let mut started = BTreeSet::new();
        if archive.directory(&attempts)?.is_some() {
            for attempt in &job.attempts {
                if keep(job, attempt.n, inside, archive)? {
                    started.insert(attempt.n);
                }
            }
        }
        for path in names.iter().map(|name| dir.join(name)).filter(|path| *path != attempts) {
            match self.part(job, &path, &started, inside) {
                Part::Later => {}
                Part::Output(bytes) => archive.file(&path, bytes)?,
                Part::Whole => archive.tree(&path)?,
            }
        }
        Ok(())
    }

    /// What of a job's directory State knows.
    fn part(&self, job: &Job, path: &Path, started: &BTreeSet<AttemptNo>, inside: &Paths) -> Part {
        for (index, session) in job.sessions.iter().enumerate() {
            if *path == inside.workspace(&job.id, index) {
                let made = session.workspace.is_some();
                return if made { Part::Whole } else { Part::Later };
            }
            let outputs = inside.output(&job.id, &session.id);
            if let Some(stream) = outputs.iter().position(|output| output == path) {
                return Part::Output(self.output_bytes(job, index, stream, started));
            }
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let of_a_session = name.starts_with("workspace")
            || [".output", ".stderr"].iter().any(|ending| name.ends_with(ending));
        if of_a_session || is_temporary(&*name) { Part::Later } else { Part::Whole }
    }

    /// Where the output of a session ends that the archive knows of: an attempt that had not started when its keep directory was read
    /// will be launched from there, so what it has written meanwhile must not stand there already.
    fn output_bytes(
        &self,
        job: &Job,
        session: usize,
        stream: usize,
        started: &BTreeSet<AttemptNo>,
    ) -> u64 {
        let ours = job.attempts.iter().rev().filter(|attempt| attempt.session as usize == session);
        let mut known = ours.filter(|attempt| started.contains(&attempt.n));
        let Some(attempt) = known.next() else { return 0 };
        let at = |lengths: [u64; 2]| lengths.get(stream).copied();
        let known = if let Some(end) = &attempt.end {
            at(end.output_to)
        } else {
            let work = Work::Attempt { job: job.id.clone(), attempt: attempt.n };
            let (_, tree_empty) = read_slots(&self.paths.keep(&work));
            tree_empty.valid().and_then(|empty| at(empty.output_to))
        };
        known.unwrap_or(u64::MAX)
    }

    /// A source copy changes only under its lock, and goes only when it is removed.
    fn repo(
        &self,
        repo: &Repo,
        inside: &Paths,
        archive: &mut Archive<impl Write>,
    ) -> io::Result<()> {
        let dir = inside.repo(&repo.name);
        let note = note_path(&self.paths.repo(&repo.name));
        let before = std::fs::read(&note);
        archive.tree(&dir)?;
        if before.is_ok() && std::fs::read(&note).ok() == before.ok() {
            return Ok(());
        }
        let name = &repo.name;
        Err(io::Error::other(format!(
            "repo {name} was removed while the backup was made: ask again"
        )))
    }
}

/// A keep directory; whether its agent was let go.
fn keep(
    job: &Job,
    attempt: AttemptNo,
    inside: &Paths,
    archive: &mut Archive<impl Write>,
) -> io::Result<bool> {
    let dir = inside.keep(&Work::Attempt { job: job.id.clone(), attempt });
    let Some(names) = archive.directory(&dir)? else { return Ok(false) };
    // First: where an outcome is, all that came before it is too.
    archive.slots(&dir.join(keep_file::OUTCOME))?;
    let others = names.iter().filter(|name| *name != keep_file::OUTCOME && !is_temporary(name));
    others.map(|name| dir.join(name)).try_for_each(|path| archive.file(&path, u64::MAX))?;
    Ok(names.iter().any(|name| name == keep_file::STARTED))
}

/// A part of a job's directory.
enum Part {
    /// It came after the State that is backed up.
    Later,
    /// An output file, up to there.
    Output(u64),
    /// All of it.
    Whole,
}

/// Something that is being made, and has no name yet.
fn is_temporary(name: impl AsRef<std::ffi::OsStr>) -> bool {
    name.as_ref().as_encoded_bytes().starts_with(b".")
}

/// The archive on its way to whoever asked for it.
struct Pieces {
    sender: mpsc::Sender<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes it any more");
        self.sender.blocking_send(Ok(piece)).map_err(gone)
    }
}

/// Opens the directory that everything is read below.
fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests;
