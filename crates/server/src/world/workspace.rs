//! Making the two kinds of directory that jobs live on: a repo's source copy, and a job's workspace made from it.
//!
//! Each runs as an operation under a supervisor (I11), may be killed at any instant and run again (I7): a directory that exists
//! under its name is complete. Absent: locks, records, and who asked for it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::copy::{self, CopyError, MadeBy};
use super::files::FileError;
use super::git::{self, Bounds, GitError};
use super::partial;
use super::source::Source;

/// What was made, and how. Also the content of the note in its `.git` folder, so that a second run gives the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// How its files came here.
    pub made_by: MadeBy,
    /// The commit that HEAD named; none in a repository without commits.
    pub base_commit: Option<String>,
    /// The branch that HEAD names now; none when detached.
    pub branch: Option<String>,
    /// Regular files, those of `.git` included.
    pub files: u64,
    /// Their sizes together, in bytes.
    pub bytes: u64,
    /// Entries that could not be carried: sockets, devices, and what vanished meanwhile.
    pub skipped: u64,
    /// The data directory whose it is (I12).
    pub instance: String,
}

/// Why a source copy or workspace was not made. Nothing is left under its name then.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// A file could not be handled.
    #[error(transparent)]
    File(#[from] FileError),
    /// The tree could not be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Git refused.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Something that is not a finished copy of ours has that name.
    #[error("{} exists already and was not made by outlive", .0.display())]
    Occupied(PathBuf),
    /// Nothing is at that path.
    #[error("{} does not exist", .0.display())]
    NoSource(PathBuf),
    /// It is a directory or file, but git does not start there.
    #[error("{} is not the root of a git work tree", .0.display())]
    NotARoot(PathBuf),
    /// The root lies higher.
    #[error("{} is not the root of a git work tree: {} is", .0.display(), .1.display())]
    BelowRoot(PathBuf, PathBuf),
    /// A bare repository has no files to copy.
    #[error("{at} is a bare git repository: give it as file://{at}", at = .0.display())]
    Bare(PathBuf),
    /// Its `.git` points to a repository elsewhere, which a copy would go on using.
    #[error(
        "{} is a linked work tree or submodule, which cannot be copied on its own: \
         give its main repository, or a URL", .0.display()
    )]
    Linked(PathBuf),
    /// Its config sends git to work on another directory.
    #[error("{} has core.worktree set, so its files are elsewhere", .0.display())]
    WorktreeSet(PathBuf),
    /// We would copy ourselves.
    #[error("{} contains the place for its copy, {}", .0.display(), .1.display())]
    Around(PathBuf, PathBuf),
    /// A copy keeps the branch that is checked out, with all changes.
    #[error(
        "{at} has {} checked out, not {wanted}: switch there, or give it as file://{at}",
        found.as_deref().unwrap_or("no branch"), at = path.display()
    )]
    OtherBranch {
        /// The source.
        path: PathBuf,
        /// What it has.
        found: Option<String>,
        /// What was asked for.
        wanted: String,
    },
}

/// What of the data directory has to be known.
#[derive(Debug, Clone, Copy)]
pub struct Ours<'a> {
    /// Where left-overs go before they are deleted; on the same file system.
    pub trash: &'a Path,
    /// Its UUID, noted in all that is made.
    pub instance: &'a str,
}

/// Makes a repo's source copy at `dest`: a local work tree is copied whole, with everything in it; a URL is cloned by git.
/// When `dest` was already made by an earlier run, its answer is given again.
pub fn make_source_copy(
    source: &Source,
    dest: &Path,
    branch: Option<&str>,
    Ours { trash, instance }: Ours<'_>,
) -> Result<Made, MakeError> {
    // I7: a previous run may have put it in place and died before anybody heard of it.
    if let Some(made) = finished(dest)? {
        return Ok(made);
    }
    match source {
        Source::Local(path) => {
            let path = path.canonicalize().map_err(|_| MakeError::NoSource(path.clone()))?;
            check_local(&path, dest, branch)?;
            partial::build(dest, trash, |partial| {
                let copied = copy::copy_tree(&path, partial)?;
                take_borrowed_objects(&path, partial)?;
                note(partial, copied, instance)
            })
        }
        Source::Url(url) => {
            partial::build(dest, trash, |partial| clone(url, partial, branch, instance))
        }
    }
}

/// Makes a job's workspace at `dest`: the whole source copy, on the new branch `branch` at its HEAD. Index and uncommitted
/// changes stay as they are. When `dest` was already made by an earlier run, its answer is given again.
pub fn make_workspace(
    source_copy: &Path,
    dest: &Path,
    branch: &str,
    Ours { trash, instance }: Ours<'_>,
) -> Result<Made, MakeError> {
    // I7: as above.
    if let Some(made) = finished(dest)? {
        return Ok(made);
    }
    if git::git_dir(source_copy).is_none() {
        return Err(MakeError::NotARoot(source_copy.to_owned()));
    }
    partial::build(dest, trash, |partial| {
        let copied = copy::copy_tree(source_copy, partial)?;
        start_branch(&partial.join(".git"), branch)?;
        note(partial, copied, instance)
    })
}

/// What a finished directory says of itself; none if there is nothing of that name.
fn finished(dest: &Path) -> Result<Option<Made>, MakeError> {
    match std::fs::symlink_metadata(dest) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::on("examine", dest)(e).into()),
    }
    let note = std::fs::read(note_path(dest)).map_err(|_| MakeError::Occupied(dest.to_owned()))?;
    let made = serde_json::from_slice(&note).map_err(|_| MakeError::Occupied(dest.to_owned()))?;
    // The earlier run may have died before it synced the new name.
    super::files::dir_sync(dest.parent().unwrap_or(Path::new("/")))?;
    Ok(Some(made))
}

/// Where a finished source copy or workspace says what it is.
pub fn note_path(tree: &Path) -> PathBuf {
    tree.join(".git").join(std::ffi::OsStr::from_bytes(copy::NOTE.to_bytes()))
}

fn note(tree: &Path, copied: copy::Copied, instance: &str) -> Result<Made, MakeError> {
    let git_dir = tree.join(".git");
    let made = Made {
        made_by: copied.made_by,
        base_commit: git::head_commit(&git_dir)?,
        branch: git::head_branch(&git_dir)?,
        files: copied.files,
        bytes: copied.bytes,
        skipped: copied.skipped,
        instance: instance.to_string(),
    };
    let path = note_path(tree);
    let json = serde_json::to_vec(&made).map_err(|e| FileError::on("write", &path)(e))?;
    // Never through a link: the copier does not carry anything of that name, so it cannot be there.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(FileError::on("create", &path))?;
    file.write_all(&json).map_err(FileError::on("write", &path))?;
    Ok(made)
}

fn check_local(path: &Path, dest: &Path, branch: Option<&str>) -> Result<(), MakeError> {
    let Some(git_dir) = git::git_dir(path) else { return Err(not_a_root(path)) };
    let config = ["config", "--file"];
    let mut asked = git::local(&git_dir);
    asked.args(config).arg(git_dir.join("config")).args(["--get", "core.worktree"]);
    if git::maybe_line(&mut asked, "config")?.is_some() {
        return Err(MakeError::WorktreeSet(path.to_owned()));
    }
    let folder = dest.parent().unwrap_or(Path::new("/"));
    let folder = folder.canonicalize().map_err(FileError::on("find", folder))?;
    if folder.starts_with(path) {
        return Err(MakeError::Around(path.to_owned(), dest.to_owned()));
    }
    let Some(wanted) = branch else { return Ok(()) };
    let found = git::head_branch(&git_dir)?;
    if found.as_deref() == Some(wanted) {
        return Ok(());
    }
    let (path, wanted) = (path.to_owned(), wanted.to_owned());
    Err(MakeError::OtherBranch { path, found, wanted })
}

fn not_a_root(path: &Path) -> MakeError {
    if path.join(".git").symlink_metadata().is_ok() {
        return MakeError::Linked(path.to_owned());
    }
    if path.join("HEAD").is_file() && path.join("objects").is_dir() {
        return MakeError::Bare(path.to_owned());
    }
    match path.ancestors().skip(1).find(|above| git::git_dir(above).is_some()) {
        Some(root) => MakeError::BelowRoot(path.to_owned(), root.to_owned()),
        None => MakeError::NotARoot(path.to_owned()),
    }
}

/// Makes a copy independent of repositories whose objects its original borrows (`git clone --shared` and `--reference`).
fn take_borrowed_objects(source: &Path, copy: &Path) -> Result<(), MakeError> {
    let git_dir = copy.join(".git");
    let alternates = git_dir.join("objects/info/alternates");
    if alternates.symlink_metadata().is_err() {
        return Ok(());
    }
    let mut repack = git::local(&git_dir);
    // Relative entries hold from the source's own place only.
    repack.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", source.join(".git/objects"));
    repack.args(["repack", "-a", "-d", "--quiet"]);
    git::run(&mut repack, "repack", Bounds::SUPERVISED, &mut std::io::sink())?;
    // In our own unfinished copy, so not a deletion in the sense of I12.
    Ok(std::fs::remove_file(&alternates).map_err(FileError::on("remove", &alternates))?)
}

fn clone(
    url: &str,
    partial: &Path,
    branch: Option<&str>,
    instance: &str,
) -> Result<Made, MakeError> {
    let mut clone = git::network();
    clone.args(["clone", "--quiet"]);
    if let Some(branch) = branch {
        clone.arg(format!("--branch={branch}"));
    }
    clone.arg("--").arg(url).arg(partial);
    git::run(&mut clone, "clone", Bounds::SUPERVISED, &mut std::io::sink())?;
    let (files, bytes) = measure(partial)?;
    note(partial, copy::Copied { made_by: MadeBy::Clone, files, bytes, skipped: 0 }, instance)
}

fn start_branch(git_dir: &Path, branch: &str) -> Result<(), GitError> {
    let name = format!("refs/heads/{branch}");
    git::line(git::local(git_dir).args(["check-ref-format", &name]), "check-ref-format")?;
    if let Some(commit) = git::head_commit(git_dir)? {
        let args = ["update-ref", "-m", "outlive: workspace", &name, &commit];
        git::line(git::local(git_dir).args(args), "update-ref")?;
    }
    // HEAD alone is moved: `git switch` would rewrite the index, and refuses an unborn branch.
    git::line(git::local(git_dir).args(["symbolic-ref", "HEAD", &name]), "symbolic-ref").map(drop)
}

fn measure(tree: &Path) -> Result<(u64, u64), FileError> {
    let (mut files, mut bytes, mut folders) = (0, 0, vec![tree.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(FileError::on("list", &folder))? {
            let entry = entry.map_err(FileError::on("list", &folder))?;
            let metadata = entry.metadata().map_err(FileError::on("examine", entry.path()))?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.is_file() {
                files += 1;
                bytes += metadata.len();
            }
        }
    }
    Ok((files, bytes))
}

#[cfg(test)]
mod tests;
