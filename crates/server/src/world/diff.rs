//! What a job changed: everything in its workspace against its base commit, untracked files included, as a binary patch.
//!
//! The agent may be at work meanwhile, and its repository config may be hostile. So git runs in a throw-away repository of ours
//! that borrows the workspace's objects: the workspace's index, objects and refs are not written, its config is not obeyed
//! (but for `HARMLESS`). Absent: ignored files.

use std::io::Write;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::files::{self, FileError};
use super::git::{self, Bounds, GitError};
use super::repos::{self, RepoError};

/// Settings of the workspace's own config that say how files compare, and cannot name a program.
const HARMLESS: &str =
    r"^(core\.(autocrlf|eol|filemode|symlinks|ignorecase)|extensions\.objectformat)$";
/// A person waits for it.
const TIME_MAX: Duration = Duration::from_mins(2);

/// Why there is no diff.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// The workspace's repository is not usable.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// Git refused, or the patch is larger than allowed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The throw-away repository could not be made.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Writes to `sink` what differs in `workspace` from `base_commit` (none: from nothing), as `git apply --binary` reads it.
/// `scratch` is a folder of ours for short-lived files. After an error `sink` may hold a part.
pub fn diff(
    workspace: &Path,
    base_commit: Option<&str>,
    scratch: &Path,
    bytes_max: u64,
    sink: &mut dyn Write,
) -> Result<(), DiffError> {
    let shadow = Shadow::new(workspace, scratch)?;
    let base = match base_commit {
        Some(commit) => commit.to_owned(),
        // The empty tree, in the repository's own kind of hash.
        None => {
            git::line(shadow.git().args(["hash-object", "-t", "tree", "/dev/null"]), "hash-object")?
        }
    };
    shadow.add_untracked(&base)?;
    let mut diff = shadow.git();
    diff.args(["-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false", "diff", "--binary"]);
    diff.args(["--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules=none"]);
    diff.args([&base, "--"]);
    let bounds = Bounds { time: Some(TIME_MAX), bytes: bytes_max };
    Ok(git::run(&mut diff, "diff", bounds, sink)?)
}

/// A repository of ours for one question, removed when dropped.
struct Shadow<'a> {
    dir: PathBuf,
    workspace: &'a Path,
    objects: PathBuf,
}

impl<'a> Shadow<'a> {
    fn new(workspace: &'a Path, scratch: &Path) -> Result<Self, DiffError> {
        let theirs = repos::own_git_dir(workspace)?;
        let unique = files::unique().map_err(FileError::on("name a folder in", scratch))?;
        let dir = scratch.join(format!("diff-{unique}"));
        let shadow = Self { dir, workspace, objects: theirs.join("objects") };
        for folder in ["objects", "refs", "info"] {
            let path = shadow.dir.join(folder);
            let mut builder = std::fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(&path);
            made.map_err(FileError::on("create", path))?;
        }
        shadow.write("HEAD", b"ref: refs/heads/none\n")?;
        shadow.write("config", &config(&theirs)?)?;
        for name in ["index", "info/exclude", "info/attributes"] {
            shadow.borrow(&theirs, name)?;
        }
        Ok(shadow)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        let path = self.dir.join(name);
        std::fs::write(&path, bytes).map_err(FileError::on("write", path))
    }

    /// Copies a file of the workspace's repository, if it has it; never what a link there points to outside.
    fn borrow(&self, theirs: &Path, name: &str) -> Result<(), FileError> {
        let Ok(mut from) = files::open_contained(theirs, Path::new(name)) else { return Ok(()) };
        if !from.metadata().is_ok_and(|m| m.is_file()) {
            return Ok(());
        }
        let path = self.dir.join(name);
        let mut to = std::fs::File::create(&path).map_err(FileError::on("create", &path))?;
        std::io::copy(&mut from, &mut to).map_err(FileError::on("write", path)).map(drop)
    }

    fn git(&self) -> Command {
        let mut git = git::local(&self.dir);
        git.current_dir(self.workspace).arg("--work-tree=.");
        git.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", &self.objects);
        git
    }

    /// Makes our index name the untracked files too, without storing their content.
    fn add_untracked(&self, base: &str) -> Result<(), DiffError> {
        let add = || {
            let mut add = self.git();
            add.args(["add", "--intent-to-add", "--ignore-errors", "--", "."]);
            let bounds = Bounds { time: Some(TIME_MAX), ..Bounds::SHORT };
            match git::run(&mut add, "add", bounds, &mut std::io::sink()) {
                // Some file could not be added (a nested repository without commits, say); the others were.
                Err(GitError::Failed { code: Some(1), .. }) => Ok(()),
                added => added,
            }
        };
        if add().is_ok() {
            return Ok(());
        }
        // Their index is damaged or of a kind that needs more files: make one from the base.
        self.write("index", b"")?;
        git::line(self.git().args(["read-tree", base]), "read-tree")?;
        Ok(add()?)
    }
}

impl Drop for Shadow<'_> {
    fn drop(&mut self) {
        // Private to this question, never anybody's data: not a deletion in the sense of I12. What stays is the sweep's.
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// A config for the shadow, with what is harmless of theirs.
fn config(theirs: &Path) -> Result<Vec<u8>, DiffError> {
    let mut asked = git::local(theirs);
    // Of this very file, without what it includes.
    asked.args(["config", "--file"]).arg(theirs.join("config"));
    asked.args(["--no-includes", "--get-regexp", HARMLESS]);
    let found = git::maybe_line(&mut asked, "config")?.unwrap_or_default();
    let mut config = String::from("[core]\n\trepositoryformatversion = 1\n\tbare = false\n");
    for (name, value) in found.lines().filter_map(|line| line.split_once(' ')) {
        // One plain word, so that it cannot begin another setting.
        if let Some((section, key)) = name.split_once('.')
            && value.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            config.extend(["[", section, "]\n\t", key, " = ", value, "\n"]);
        }
    }
    Ok(config.into_bytes())
}

#[cfg(test)]
mod tests;
