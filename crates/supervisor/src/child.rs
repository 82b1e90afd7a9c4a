//! The forked child: behind its gate it becomes ready, then it becomes the agent, or says itself that it did not.
//!
//! Only a child that `started` names may write the outcome: so a child left over from a supervisor that died before cannot speak
//! for the agent of a later one.

use std::ffi::{CStr, CString, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use outlive_core::spec::{Ending, MARK_VARIABLE, Outcome, Spec, VERSION};

use crate::files::{self, FileError};
use crate::outcome::Slots;
use crate::{clock, crash_point, identity, sys};

/// Where programs are searched when the agent's environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";
/// What fits an outcome slot; core says so of [`Ending::LaunchFailed`].
const WHAT_BYTES_MAX: usize = 200;
/// The shell's code for "cannot be run". Nobody relies on it: the outcome says why.
const EXIT_LAUNCH_FAILED: i32 = 127;

/// What a child is born with.
#[derive(Debug)]
pub(crate) struct Birth<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) spec: &'a Spec,
    /// Its ends of the pipes for stdout and stderr, if it does not write into the files themselves.
    pub(crate) writers: Option<[OwnedFd; 2]>,
    /// What went wrong before: it cannot run, and says so in its turn.
    pub(crate) trouble: Option<Failure>,
    pub(crate) gate: OwnedFd,
}

/// Why a child did not become its program.
#[derive(Debug)]
pub(crate) struct Failure {
    errno: i32,
    what: String,
}

impl Failure {
    /// A failure to do something with a file, known by its path.
    pub(crate) fn of(error: &FileError) -> Self {
        Self::new(&error.source, error.path.to_string_lossy())
    }

    fn new(error: &io::Error, what: impl Into<String>) -> Self {
        // Without a number it is a text that the kernel would not take, such as one with a zero byte.
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        let mut what = what.into();
        what.truncate(what.floor_char_boundary(WHAT_BYTES_MAX));
        Self { errno, what }
    }
}

/// Lives the child's life.
pub(crate) fn run(birth: &Birth<'_>) -> ! {
    let ready = match &birth.trouble {
        Some(Failure { errno, what }) => Err(Failure { errno: *errno, what: what.clone() }),
        None => prepare(birth),
    };
    crash_point("supervisor.child.waiting");
    if !is_let_go(&birth.gate) {
        if is_named(birth.dir) {
            record(birth, Ending::NeverRan);
        }
        sys::exit_now(0);
    }
    crash_point("supervisor.child.let_go");
    let Failure { errno, what } = match ready {
        Ok(()) => become_agent(birth.spec),
        Err(failure) => failure,
    };
    record(birth, Ending::LaunchFailed { errno, what });
    sys::exit_now(EXIT_LAUNCH_FAILED)
}

/// Waits at the gate: a byte means go, its end means that the supervisor is no more.
fn is_let_go(gate: &OwnedFd) -> bool {
    let mut byte = [0];
    loop {
        match rustix::io::read(gate, &mut byte) {
            Err(rustix::io::Errno::INTR) => {}
            read => return read == Ok(1),
        }
    }
}

/// Whether `started` names this very process.
fn is_named(dir: &Path) -> bool {
    let started = files::read_started(dir);
    let me = identity::self_ref();
    started.valid().is_some_and(|started| me.is_ok_and(|me| me == started.agent))
}

fn record(birth: &Birth<'_>, ending: Ending) {
    let length = |path: &str| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let outcome = Outcome {
        version: VERSION,
        ending,
        at: clock::now(),
        stop: None,
        oom: false,
        cpu_ms: 0,
        peak_memory_bytes: 0,
        output_to: [length(&birth.spec.stdout), length(&birth.spec.stderr)],
    };
    // A failure is told nowhere: what stays is a gone agent without an outcome, which is the truth.
    Slots::open(birth.dir).and_then(|slots| slots.record_outcome(&outcome)).ok();
}

/// Makes this process what the agent expects of its surroundings.
fn prepare(birth: &Birth<'_>) -> Result<(), Failure> {
    let spec = birth.spec;
    let own = |error: io::Error| Failure::new(&error, "a session of its own");
    rustix::process::setsid().map_err(|error| own(error.into()))?;
    sys::reset_signals().map_err(|error| Failure::new(&error, "default signals"))?;
    let path = spec.stdin.as_deref().unwrap_or("/dev/null");
    let stdin = File::open(path).map_err(|error| Failure::new(&error, path))?;
    match &birth.writers {
        None => {
            let open = |path: &str| {
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
                file.map_err(|error| Failure::new(&error, path))
            };
            place(&stdin, &open(&spec.stdout)?, &open(&spec.stderr)?)?;
        }
        Some([stdout, stderr]) => {
            // Opened for reading too, the agent keeps its own pipe alive and can never be refused a write.
            let open = |writer: &OwnedFd| {
                let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
                let pipe = OpenOptions::new().read(true).write(true).open(&path);
                pipe.map_err(|error| Failure::new(&error, path))
            };
            place(&stdin, &open(stdout)?, &open(stderr)?)?;
        }
    }
    let cwd = spec.cwd.as_str();
    rustix::process::chdir(cwd).map_err(|error| Failure::new(&error.into(), cwd))
}

fn place(stdin: &File, stdout: &File, stderr: &File) -> Result<(), Failure> {
    let place = || -> rustix::io::Result<()> {
        rustix::stdio::dup2_stdin(stdin.as_fd())?;
        rustix::stdio::dup2_stdout(stdout.as_fd())?;
        rustix::stdio::dup2_stderr(stderr.as_fd())
    };
    place().map_err(|error| Failure::new(&error.into(), "standard descriptors"))
}

/// Executes the program. Returns only to tell why that cannot be.
fn become_agent(spec: &Spec) -> Failure {
    let program = spec.argv.first().map_or("", String::as_str);
    let texts = || -> Result<_, std::ffi::NulError> {
        let argv: Result<Vec<_>, _> = spec.argv.iter().map(|text| CString::new(&**text)).collect();
        let env = environment(spec, std::env::vars_os());
        let path = env.iter().find_map(|entry| entry.strip_prefix(b"PATH="));
        let paths: Result<Vec<_>, _> =
            candidates(program, path.unwrap_or(DEFAULT_PATH)).map(CString::new).collect();
        let env: Result<Vec<_>, _> = env.iter().map(|entry| CString::new(&**entry)).collect();
        Ok((argv?, env?, paths?))
    };
    let (argv, env, paths) = match texts() {
        Ok(texts) => texts,
        Err(error) => return Failure::new(&error.into(), program),
    };
    let mut worst = io::Error::from_raw_os_error(libc::ENOENT);
    for path in paths {
        let error = sys::exec(&path, &argv, &env);
        match error.raw_os_error() {
            // A file that may not be run tells something; a directory that may not be searched tells nothing.
            Some(libc::EACCES) if is_there(&path) => worst = error,
            // Perhaps further on in the PATH.
            Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES) => {}
            _ => return Failure::new(&error, program),
        }
    }
    Failure::new(&worst, program)
}

fn is_there(path: &CStr) -> bool {
    rustix::fs::stat(path).is_ok()
}

/// Where the program may be: at its name if that has a slash, else in each directory of the search path.
fn candidates(program: &str, path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let dirs: Vec<Vec<u8>> = if program.is_empty() {
        Vec::new()
    } else if program.contains('/') {
        vec![Vec::new()]
    } else {
        let dirs = path.split(|byte| *byte == b':');
        dirs.map(|dir| if dir.is_empty() { b"./".to_vec() } else { [dir, b"/"].concat() }).collect()
    };
    let program = program.as_bytes().to_vec();
    dirs.into_iter().map(move |dir| [dir.as_slice(), &program].concat())
}

/// The agent's environment: inherited, without what is ours or unwanted; over it the spec's; and the mark.
fn environment(spec: &Spec, inherited: impl Iterator<Item = (OsString, OsString)>) -> Vec<Vec<u8>> {
    let entry = |name: &[u8], value: &[u8]| [name, b"=", value].concat();
    let is_set = |name: &[u8]| spec.env.iter().any(|(set, _)| set.as_bytes() == name);
    let is_unwanted = |name: &[u8]| spec.env_remove.iter().any(|gone| gone.as_bytes() == name);
    let kept = inherited.filter(|(name, _)| {
        let name = name.as_bytes();
        !name.starts_with(b"OUTLIVE_") && !is_set(name) && !is_unwanted(name)
    });
    let kept = kept.map(|(name, value)| entry(&name.into_vec(), &value.into_vec()));
    let set = spec.env.iter().filter(|(name, _)| name != MARK_VARIABLE);
    let set = set.map(|(name, value)| entry(name.as_bytes(), value.as_bytes()));
    let mark = entry(MARK_VARIABLE.as_bytes(), spec.mark.as_bytes());
    kept.chain(set).chain([mark]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let json = r#"{"version":1,"mark":"i/j/1","job":"j","attempt":1,"engine":"command","argv":["x"],"cwd":"/",
            "env":[["A","new"],["OUTLIVE_MARK","forged"]],"env_remove":["SECRET"],"stdin":null,"stdout":"/o","stderr":"/e",
            "capture":"file","timeout_ms":null,"grace_ms":1,"heartbeat_ms":1,"output_bytes_max":null,
            "memory_bytes_max":null,"pids_max":null,"cgroup":"c"}"#;
        serde_json::from_str(json).expect("a spec")
    }

    #[test]
    fn the_environment_loses_what_is_ours_and_carries_the_true_mark() {
        let inherited = [("A", "old"), ("B", "b"), ("SECRET", "s"), ("OUTLIVE_TOKEN", "t")];
        let inherited = inherited.map(|(name, value)| (name.into(), value.into()));
        let env = environment(&spec(), inherited.into_iter());
        let expected: Vec<Vec<u8>> =
            [&b"B=b"[..], b"A=new", b"OUTLIVE_MARK=i/j/1"].map(<[u8]>::to_vec).into();
        assert_eq!(env, expected);
    }

    #[test]
    fn a_program_is_searched_only_without_a_slash() {
        let found = |program| candidates(program, b"/a::b").collect::<Vec<_>>();
        assert_eq!(found("x"), [b"/a/x".to_vec(), b"./x".to_vec(), b"b/x".to_vec()]);
        assert_eq!(found("./x"), [b"./x".to_vec()]);
        assert!(found("").is_empty());
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let error = io::Error::from_raw_os_error(2);
        let failure = Failure::new(&error, "ä".repeat(150));
        assert_eq!(failure.what, "ä".repeat(100));
        assert_eq!(Failure::new(&error, format!("x{}", "ä".repeat(150))).what.len(), 199);
    }
}
