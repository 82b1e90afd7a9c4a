//! From a planned attempt or operation to its keep directory: what a supervisor will read. Written before it is started.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use outlive_core::engine::{self, Opening};
use outlive_core::ids::{AttemptNo, OperationId};
use outlive_core::job::{Attempt, EndedBy, Job, Work};
use outlive_core::limits;
use outlive_core::repo::OperationKind;
use outlive_core::spec::{self, Capture, Spec, file};
use outlive_core::state::State;
use outlive_supervisor::{Here, replace_file};

use crate::data_dir::{Paths, make_private_dir};
use crate::world::files::dir_sync;
use crate::world::removal;

/// Why a keep directory could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The disk said no.
    #[error("cannot write {}", .path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What is to be launched is not in State any more.
    #[error("it is over already")]
    Gone,
    /// The engine refuses what the job asks of it.
    #[error("{0}")]
    Options(String),
}

/// What does not change from launch to launch.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Where everything lives.
    pub paths: Paths,
    /// The data directory's UUID.
    pub instance: String,
    /// What the marks of its processes begin with.
    pub life: String,
    /// Our own program.
    pub exe: String,
    /// Between two heartbeats.
    pub heartbeat_ms: u64,
    /// Between TERM and KILL.
    pub grace_ms: u64,
    /// Free space below which agents are frozen, or its part of a small disk; 0: never.
    pub freeze_free_bytes: u64,
    /// How long a supervisor may hold its lock past deadline and grace.
    pub hung_margin: std::time::Duration,
    /// Programs of engines that are not in `PATH`.
    pub programs: std::collections::BTreeMap<String, String>,
}

impl Surroundings {
    /// Writes the keep directory of a piece of work if it is not there, and syncs every directory on the way up (I7: again and
    /// again with the same result).
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn prepare(&self, work: &Work, state: &State, here: &Here) -> Result<PathBuf, LaunchError> {
        let dir = self.paths.keep(work);
        // One that was copied names the original's paths, and its mark: it is written anew.
        if dir.join(file::SPEC).exists() && here.owns(&dir) {
            // Whoever wrote it may have died before its name, or a name above it, was durable.
            self.sync_upwards(&dir.join(file::SPEC))?;
            return Ok(dir);
        }
        make_private_dir(&dir).map_err(on(&dir))?;
        let spec = match work {
            Work::Attempt { job, attempt } => {
                let job = state.job(job).ok_or(LaunchError::Gone)?;
                let attempt = job.attempt(*attempt).ok_or(LaunchError::Gone)?;
                self.attempt_spec(job, attempt, &dir)?
            }
            Work::Operation { id } => self.operation_spec(*id, state, &dir)?,
        };
        for output in [&spec.stdout, &spec.stderr] {
            let mut options = OpenOptions::new();
            let create = options.append(true).create(true).mode(0o600);
            drop(create.open(output).map_err(on(output))?);
        }
        let bytes = serde_json::to_vec_pretty(&spec).map_err(io::Error::from);
        let path = dir.join(file::SPEC);
        bytes
            .and_then(|bytes| replace_file(&path, &bytes).map_err(io::Error::other))
            .map_err(on(&path))?;
        self.sync_upwards(&dir)?;
        Ok(dir)
    }

    /// A directory's entry lives in the directory above it: all the way up, or a power cut could take the whole branch.
    fn sync_upwards(&self, dir: &Path) -> Result<(), LaunchError> {
        let ours = dir.ancestors().skip(1).take_while(|above| above.starts_with(self.paths.root()));
        for above in ours {
            dir_sync(above).map_err(|error| on(above)(io::Error::other(error)))?;
        }
        Ok(())
    }

    fn attempt_spec(&self, job: &Job, attempt: &Attempt, dir: &Path) -> Result<Spec, LaunchError> {
        self.mark_job_dir(job)?;
        let engine = engine::find(&job.task.engine).ok_or(LaunchError::Gone)?;
        let index = attempt.session as usize;
        let session = job.sessions.get(index).ok_or(LaunchError::Gone)?;
        let line = engine
            .command_line(&engine::Launch {
                session: &session.id,
                turn: attempt.turn,
                attempt: attempt.n,
                prompt: job.prompt(attempt.turn).unwrap_or_default(),
                model: job.task.model.as_deref(),
                options: &job.task.engine_options,
                opening: if attempt.resume { Opening::Resume } else { Opening::Fresh },
                interrupted: was_cut_off(job, attempt),
                program: self.programs.get(engine.name).map(String::as_str),
                exe: &self.exe,
            })
            .map_err(|error| LaunchError::Options(error.to_string()))?;
        let stdin = match line.stdin {
            None => None,
            Some(text) => {
                let path = dir.join("stdin");
                replace_file(&path, text.as_bytes())
                    .map_err(|error| on(&path)(io::Error::other(error)))?;
                Some(text_of(&path))
            }
        };
        let [stdout, stderr] = self.paths.output(&job.id, &session.id);
        let own = [
            ("OUTLIVE_JOB", job.id.to_string()),
            ("OUTLIVE_SESSION", session.id.to_string()),
            ("OUTLIVE_ATTEMPT", attempt.n.to_string()),
        ];
        let own = own.map(|(name, value)| (name.to_string(), value));
        let wanted = job.task.env.iter().map(|(name, value)| (name.clone(), value.clone()));
        Ok(Spec {
            mark: format!("{}/{}/{}", self.life, job.id, attempt.n),
            job: job.id.to_string(),
            attempt: attempt.n.get(),
            engine: engine.name.to_string(),
            argv: line.argv,
            cwd: text_of(&self.paths.workspace(&job.id, index)),
            env: own.into_iter().chain(line.env).chain(wanted).collect(),
            env_remove: line.env_remove,
            stdin,
            stdout: text_of(&stdout),
            stderr: text_of(&stderr),
            capture: engine.capture,
            timeout_ms: Some(job.task.timeout_ms),
            output_bytes_max: job.task.limits.output_bytes,
            memory_bytes_max: job.task.limits.memory_bytes,
            pids_max: job.task.limits.pids,
            idle_output_ms: job.task.limits.idle_output_ms,
            cgroup: format!("{}/{}-{}", short(&self.life), job.id, attempt.n),
            ..self.spec()
        })
    }

    /// Says whose directory this is, so that nothing that is not ours is ever touched (I12).
    fn mark_job_dir(&self, job: &Job) -> Result<(), LaunchError> {
        let path = self.paths.job(&job.id).join("marker.json");
        if path.exists() {
            return Ok(());
        }
        let marker = serde_json::json!({
            "version": spec::VERSION, "instance": self.instance, "job": job.id,
            "accepted": job.accepted,
        });
        replace_file(&path, marker.to_string().as_bytes())
            .map_err(|error| on(&path)(io::Error::other(error)))
    }

    fn operation_spec(
        &self,
        id: OperationId,
        state: &State,
        dir: &Path,
    ) -> Result<Spec, LaunchError> {
        let operation = state.operation(id).ok_or(LaunchError::Gone)?;
        let mut argv = vec![self.exe.clone(), "operate".to_string()];
        match &operation.kind {
            OperationKind::Clone { repo } => {
                let repo = state.repo(repo).ok_or(LaunchError::Gone)?;
                if operation.tries == 1 {
                    // Left over from a removed repo of the same name: it must not be taken for what is to be made.
                    removal::repo(&self.paths, &self.instance, &repo.name)
                        .map_err(on(self.paths.repo(&repo.name)))?;
                }
                argv.extend(["clone".into(), repo.source.clone()]);
                argv.push(text_of(&self.paths.repo(&repo.name)));
                argv.extend(repo.branch.iter().map(|branch| format!("--branch={branch}")));
            }
            OperationKind::Copy { job } => {
                let job = state.job(job).ok_or(LaunchError::Gone)?;
                let repo = job.task.repos.first().ok_or(LaunchError::Gone)?;
                let job_dir = self.paths.job(&job.id);
                make_private_dir(&job_dir).map_err(on(&job_dir))?;
                self.mark_job_dir(job)?;
                let session = job.sessions.len().saturating_sub(1);
                argv.extend(["copy".into(), text_of(&self.paths.repo(repo))]);
                argv.push(text_of(&self.paths.workspace(&job.id, session)));
                argv.push(format!("--branch=outlive/{}", job.id));
                self.sync_upwards(&job_dir.join("workspace"))?;
            }
        }
        argv.push(format!("--trash={}", text_of(&self.paths.trash())));
        argv.push(format!("--instance={}", self.instance));
        Ok(Spec {
            mark: format!("{}/operation/{id}", self.life),
            job: format!("operation {id}"),
            attempt: 0,
            engine: "operation".to_string(),
            argv,
            cwd: text_of(self.paths.root()),
            stdout: text_of(&dir.join("stdout")),
            stderr: text_of(&dir.join("stderr")),
            capture: Capture::File,
            cgroup: format!("{}/operation-{id}", short(&self.life)),
            ..self.spec()
        })
    }

    /// When a tree on the data directory's disk is to be frozen.
    fn freeze_below(&self) -> u64 {
        let part = |space: outlive_supervisor::Space| space.total_bytes / limits::FREEZE_FREE_PART;
        let part = outlive_supervisor::space(self.paths.root()).map_or(u64::MAX, part);
        self.freeze_free_bytes.min(part)
    }

    /// What all specs have in common.
    fn spec(&self) -> Spec {
        Spec {
            version: spec::VERSION,
            mark: String::new(),
            job: String::new(),
            attempt: 0,
            engine: String::new(),
            argv: vec![],
            cwd: String::new(),
            env: vec![],
            env_remove: vec![],
            stdin: None,
            stdout: String::new(),
            stderr: String::new(),
            capture: Capture::File,
            timeout_ms: None,
            grace_ms: self.grace_ms,
            heartbeat_ms: self.heartbeat_ms,
            output_bytes_max: None,
            memory_bytes_max: None,
            pids_max: None,
            freeze_below_bytes: self.freeze_below(),
            idle_output_ms: None,
            cgroup: String::new(),
        }
    }
}

/// An earlier attempt at the same turn in the same session was cut off, so part of it may be done.
fn was_cut_off(job: &Job, attempt: &Attempt) -> bool {
    let before = |n: AttemptNo| n < attempt.n;
    job.attempts.iter().filter(|other| before(other.n)).any(|other| {
        let cut = matches!(
            other.end.as_ref().map(|end| end.ended_by),
            Some(
                EndedBy::Interruption | EndedBy::Unknown | EndedBy::UsageLimit | EndedBy::Overload
            )
        );
        other.turn == attempt.turn && other.session == attempt.session && cut
    })
}

fn on(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> LaunchError {
    let path = path.as_ref().to_path_buf();
    move |source| LaunchError::Io { path, source }
}

/// Paths below the data directory are text: it refuses to open where they are not.
fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn short(life: &str) -> &str {
    life.get(..8).unwrap_or(life)
}

/// Removes what a keep directory's process left in the trash way: used for operations that are over.
///
/// # Errors
/// As the disk says; what could not be moved stays and is found again at the next start.
pub fn discard(dir: &Path, trash: &Path) -> io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let place = crate::world::files::trash(dir, trash).map_err(io::Error::other)?;
    crate::world::files::delete_trashed(&place).map(|_| ()).map_err(io::Error::other)
}

/// Reads a file's last bytes.
///
/// # Errors
/// As the disk says.
pub fn tail(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(bytes)))?;
    let mut tail = Vec::new();
    file.take(bytes).read_to_end(&mut tail)?;
    Ok(tail)
}

const _: () = assert!(limits::STOP_GRACE.as_secs() > 0);
