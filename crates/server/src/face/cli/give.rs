//! `outlive diff` and `outlive pull`: what a job has to give back.
//!
//! Absent: merging. A branch appears in the user's clone; what becomes of it is the user's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use super::failure::Failure;
use super::follow::job;
use super::text::at;
use super::{Context, SUCCESS, Status};
use crate::face::client::{ClientError, escape};

/// Prints what a job changed in its workspace, committed or not, as a patch.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outlive diff last | less
  outlive diff last | git apply")]
pub(super) struct Diff {
    /// The job
    #[arg(value_name = "ID")]
    id: String,
}

impl Diff {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        let reply = context.client.get(&format!("/api/jobs/{}/diff", escape(&self.id)))?;
        let mut out = io::stdout().lock();
        out.write_all(&reply.body)?;
        out.flush()?;
        Ok(SUCCESS)
    }
}

/// Fetches a job's commits into the clone you are in, as branch outlive/ID. Nothing else in your clone changes.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cd ~/src/web && outlive pull last && git merge outlive/…

Commits only: what the agent changed and did not commit is in `outlive diff`.")]
pub(super) struct Pull {
    /// The job
    #[arg(value_name = "ID")]
    id: String,
}

impl Pull {
    pub(super) fn run(self, context: &Context) -> Result<Status, Failure> {
        check_clone()?;
        let job = job(&context.client, &self.id)?;
        let id = at(&job, "/id");
        let path = format!("/api/jobs/{}/bundle", escape(id));
        let reply = context.client.get(&path).map_err(|error| nothing_to_pull(error, id))?;
        let mut bundle = Temporary::create()?;
        bundle.fill(&reply.body)?;
        let branch = format!("outlive/{id}");
        fetch(Path::new("."), &bundle.path, &branch)?;
        writeln!(
            io::stdout(),
            "branch {branch} is here: `git log -p HEAD..{branch}` shows it, `git merge {branch}` takes it"
        )?;
        Ok(SUCCESS)
    }
}

/// A job without commits is told where its work is.
fn nothing_to_pull(error: ClientError, id: &str) -> Failure {
    match error {
        ClientError::Problem { code, detail, hint: None, .. } if code == "no_bundle" => {
            let hint = format!("what is changed and not committed is in `outlive diff {id}`");
            Failure::Client(ClientError::Problem {
                status: 409,
                code,
                detail,
                hint: Some(hint),
                body: Box::default(),
            })
        }
        error => error.into(),
    }
}

fn check_clone() -> Result<(), Failure> {
    let mut git = Command::new("git");
    git.args(["rev-parse", "--git-dir"]).stdout(Stdio::null()).stderr(Stdio::null());
    if run(&mut git)? {
        return Ok(());
    }
    Err(Failure::Usage {
        detail: "you are not inside a git repository".to_string(),
        hint: "go to your clone of the job's repository and pull there".to_string(),
    })
}

/// Takes a branch out of a bundle; an existing one is only moved forward.
fn fetch(clone: &Path, bundle: &Path, branch: &str) -> Result<(), Failure> {
    let mut git = Command::new("git");
    git.arg("-C").arg(clone);
    git.args(["fetch", "--quiet", "--no-tags", "--no-recurse-submodules"]).arg(bundle);
    git.arg(format!("refs/heads/{branch}:refs/heads/{branch}")).stdout(Stdio::null());
    if run(&mut git)? {
        return Ok(());
    }
    Err(Failure::Bad {
        detail: format!("git did not take {branch}: see above"),
        hint: "if it misses commits, bring this clone up to date first; if the branch is in the way, rename it"
            .to_string(),
    })
}

fn run(git: &mut Command) -> Result<bool, Failure> {
    let status = git.stdin(Stdio::null()).status();
    let status = status.map_err(|source| Failure::Local {
        what: "cannot run git: is it installed?".to_string(),
        source,
    })?;
    Ok(status.success())
}

/// A file of our own among everybody's temporary files; gone when it is no longer needed.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create() -> Result<Self, Failure> {
        let random = u64::from_le_bytes(crate::random::bytes());
        let path = std::env::temp_dir().join(format!("outlive-{random:016x}.bundle"));
        // Never one that is there already, nor where a link of somebody else's points to.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        match file {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => {
                Err(Failure::Local { what: format!("cannot make {}", path.display()), source })
            }
        }
    }

    fn fill(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.file.write_all(bytes);
        let what = || format!("cannot write {}", self.path.display());
        written.map_err(|source| Failure::Local { what: what(), source })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What stays behind is the temporary directory's to clear.
        drop(fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_temporary_file_is_private_and_goes_away() {
        let mut file = Temporary::create().expect("created");
        file.fill(b"x").expect("written");
        let path = file.path.clone();
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!((fs::read(&path).expect("there"), mode & 0o777), (b"x".to_vec(), 0o600));
        drop(file);
        assert!(!path.exists());
    }

    /// Runs git in a repository, away from this machine's configuration; gives what it prints.
    fn git(dir: &Path, args: &[&str]) -> String {
        let mut git = Command::new("git");
        git.arg("-C").arg(dir).args(["-c", "user.name=T", "-c", "user.email=t@example.com"]);
        git.args(args).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        let output = git.output().expect("git runs");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_string()
    }

    #[test]
    fn a_branch_out_of_a_bundle_appears_beside_what_is_checked_out_and_moves_only_forward() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [job, clone, bundle] = ["job", "clone", "bundle"].map(|name| dir.path().join(name));
        git(dir.path(), &["init", "--quiet", "job"]);
        git(&job, &["commit", "--quiet", "--allow-empty", "-m", "base"]);
        git(dir.path(), &["clone", "--quiet", "job", "clone"]);
        let before = git(&clone, &["rev-parse", "HEAD"]);
        git(&job, &["checkout", "--quiet", "-b", "outlive/abc"]);
        let bundled = |message: &str| {
            git(&job, &["commit", "--quiet", "--allow-empty", "-m", message]);
            let path = bundle.to_str().expect("UTF-8");
            git(&job, &["bundle", "create", "--quiet", path, "outlive/abc", &format!("^{before}")]);
            git(&job, &["rev-parse", "HEAD"])
        };
        for message in ["first", "second"] {
            let made = bundled(message);
            fetch(&clone, &bundle, "outlive/abc").expect("fetched");
            assert_eq!(git(&clone, &["rev-parse", "outlive/abc"]), made);
        }
        assert_eq!(git(&clone, &["rev-parse", "HEAD"]), before);
        git(&job, &["reset", "--quiet", "--hard", &before]);
        bundled("another");
        let kept = git(&clone, &["rev-parse", "outlive/abc"]);
        assert_eq!(fetch(&clone, &bundle, "outlive/abc").expect_err("not forward").status(), 1);
        assert_eq!(git(&clone, &["rev-parse", "outlive/abc"]), kept);
    }

    #[test]
    fn a_job_without_commits_is_told_where_its_work_is() {
        let problem = |hint: Option<&str>| ClientError::Problem {
            status: 409,
            code: "no_bundle".to_string(),
            detail: "nothing new".to_string(),
            hint: hint.map(str::to_string),
            body: Box::default(),
        };
        let told = nothing_to_pull(problem(None), "abc").told();
        assert!(told.contains("nothing new") && told.contains("`outlive diff abc`"), "{told}");
        assert!(nothing_to_pull(problem(Some("own")), "abc").told().ends_with("hint: own"));
    }
}
