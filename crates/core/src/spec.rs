//! The files through which the server and a supervisor speak: shapes and codecs, no I/O.
//!
//! A *keep directory* holds all there is about one supervised process, an attempt's agent or an operation of ours:
//!
//! ```text
//! spec.json      server → supervisor   what to run
//! keeper.lock    supervisor            OFD lock for life; its text is the supervisor's ProcessRef
//! started        supervisor            the agent's ProcessRef, written before its gate opens
//! sentinel.json  supervisor            heartbeat
//! stop           one 512-byte slot     server → supervisor: the wish to end it
//! wake           FIFO                  a byte written here makes the supervisor look at `stop`
//! outcome        three 512-byte slots  how the main process ended; that its tree is empty; that it is frozen
//! ```
//!
//! docs/formats.md states the bytes.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::ProcessRef;
use crate::time::Timestamp;

/// File names in a keep directory.
pub mod file {
    /// [`super::Spec`] as JSON.
    pub const SPEC: &str = "spec.json";
    /// The supervisor's lock; its text is a [`crate::ids::ProcessRef`] as JSON.
    pub const LOCK: &str = "keeper.lock";
    /// [`super::Started`] as JSON.
    pub const STARTED: &str = "started";
    /// [`super::Sentinel`] as JSON.
    pub const SENTINEL: &str = "sentinel.json";
    /// [`super::StopRequest`] in a slot.
    pub const STOP: &str = "stop";
    /// The FIFO that wakes a supervisor.
    pub const WAKE: &str = "wake";
    /// [`super::Outcome`], [`super::TreeEmpty`] and [`super::Freeze`], a slot each.
    pub const OUTCOME: &str = "outcome";
    /// What a supervisor had to complain about, as text.
    pub const COMPLAINTS: &str = "keeper.err";
}

/// The version that this build writes into every file of a keep directory.
pub const VERSION: u32 = 1;

/// The environment variable that every process of a supervised tree carries.
pub const MARK_VARIABLE: &str = "OUTLIVE_MARK";

/// What a supervisor is to run. Holds no secret: those come by its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// [`VERSION`].
    pub version: u32,
    /// `INSTANCE/JOB/N` or `INSTANCE/operation/N`: value of [`MARK_VARIABLE`], unique over all data directories.
    pub mark: String,
    /// For people: job id, or what the operation is.
    pub job: String,
    /// The attempt's number; 0 for an operation.
    pub attempt: u32,
    /// The engine's name; `operation` for our own work.
    pub engine: String,
    /// Program and arguments, never through a shell. The program is searched in `PATH` if it has no slash.
    pub argv: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Set for the agent over the supervisor's own environment.
    pub env: Vec<(String, String)>,
    /// Taken out of the inherited environment.
    pub env_remove: Vec<String>,
    /// A file for its standard input; absent: `/dev/null`.
    pub stdin: Option<String>,
    /// Where its standard output goes, absolute; appended to.
    pub stdout: String,
    /// Where its standard error goes, absolute; appended to.
    pub stderr: String,
    /// How the output reaches those files.
    pub capture: Capture,
    /// Running time allowed, counted on the boot-time clock from the start of the agent.
    pub timeout_ms: Option<u64>,
    /// Between TERM and KILL.
    pub grace_ms: u64,
    /// Between two heartbeats.
    pub heartbeat_ms: u64,
    /// Both output files together may grow to this before the tree is stopped.
    pub output_bytes_max: Option<u64>,
    /// Memory of the whole tree, where a cgroup controller can enforce it.
    pub memory_bytes_max: Option<u64>,
    /// Processes and threads of the whole tree, where a cgroup controller can enforce it.
    pub pids_max: Option<u64>,
    /// Free space, in bytes, of the file system of its standard output below which the tree is frozen; 0: never.
    #[serde(default)]
    pub freeze_below_bytes: u64,
    /// Running time for which the output may not grow before the tree is stopped.
    #[serde(default)]
    pub idle_output_ms: Option<u64>,
    /// Name of the tree's own cgroup leaf, relative to `outlive/` below the supervisor's own cgroup.
    pub cgroup: String,
}

/// How output gets from the agent into its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    /// The agent's stdout and stderr *are* the files, opened for appending.
    File,
    /// Pipes, emptied by the supervisor: for programs that may re-open `/dev/stdout`.
    Pipe,
}

/// That the agent was let go, or may have been. Written (exclusively, synced) before the gate opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// [`VERSION`].
    pub version: u32,
    /// When.
    pub at: Timestamp,
    /// The agent's main process, still behind its gate.
    pub agent: ProcessRef,
    /// The supervisor that wrote this.
    pub keeper: ProcessRef,
    /// The leaf's directories, absolute: one in cgroup v2, or one per controller in v1. Empty: no cgroup.
    pub cgroups: Vec<String>,
    /// Deadline on the boot-time clock in milliseconds; means nothing in another boot.
    pub deadline_boot_ms: Option<u64>,
    /// Inodes of the stdout and stderr pipes with [`Capture::Pipe`], for a caretaker to find them again.
    pub pipes: Option<[u64; 2]>,
    /// Lengths of the stdout and stderr files when it started.
    pub output_from: [u64; 2],
    /// What the agent's pid namespace can be found by as long as it exists; absent where the kernel cannot.
    #[serde(default)]
    pub namespace: Option<NamespaceMark>,
    /// Limits of the spec that nothing here enforces.
    #[serde(default)]
    pub unenforced: Vec<Limit>,
}

/// A kernel's own name for a namespace, never given twice in a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceMark {
    /// Which form the handle has.
    pub kind: i32,
    /// The handle, in hexadecimal.
    pub handle: String,
    /// Inode of the user namespace that owns it: only who has all power there may look for it.
    pub owner: u64,
}

/// A limit that needs a cgroup controller to be enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// [`Spec::memory_bytes_max`].
    Memory,
    /// [`Spec::pids_max`].
    Pids,
}

/// The heartbeat. Tells people and dashboards; evidence weighs more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sentinel {
    /// [`VERSION`].
    pub version: u32,
    /// Job id, or what the operation is.
    pub job: String,
    /// The attempt's number; 0 for an operation.
    pub attempt: u32,
    /// The engine's name.
    pub engine: String,
    /// Host name.
    pub host: String,
    /// The supervisor or caretaker that beats.
    pub keeper: ProcessRef,
    /// The agent's main process.
    pub agent: ProcessRef,
    /// When it beat.
    pub at: Timestamp,
}

/// Why a tree is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// Somebody asked.
    Cancel,
    /// Its running time is over.
    Timeout,
    /// It wrote more than it may.
    OutputLimit,
    /// It wrote nothing for longer than it may.
    IdleOutput,
    /// Its main process is gone, and what is left of its tree has to go before anything follows.
    Survivors,
}

/// The server's wish that a tree be ended. Durable: a supervisor born later obeys it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// [`VERSION`].
    pub version: u32,
    /// Why.
    pub cause: StopCause,
    /// Between TERM and KILL.
    pub grace_ms: u64,
}

/// How the main process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// It never became the program: errno, and what could not be run.
    LaunchFailed {
        /// The error number of the failed step.
        errno: i32,
        /// The program or directory, cut to 200 bytes.
        what: String,
    },
    /// The gate never opened: the program did certainly not run.
    NeverRan,
}

/// First slot of the outcome file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// [`VERSION`].
    pub version: u32,
    /// How.
    pub ending: Ending,
    /// When, as seen by whoever recorded it.
    pub at: Timestamp,
    /// Why it was being stopped, if it was.
    pub stop: Option<StopCause>,
    /// The kernel killed in its cgroup for want of memory.
    pub oom: bool,
    /// User and system time of the whole tree in milliseconds, as far as it was seen.
    pub cpu_ms: u64,
    /// Highest memory use: of the tree if the cgroup tells, else of its largest process.
    pub peak_memory_bytes: u64,
    /// Lengths of the stdout and stderr files, synced before this was written.
    pub output_to: [u64; 2],
}

/// How it is known that nothing of a tree is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Its cgroup is empty: nothing can hide.
    Cgroup,
    /// Neither a descendant nor a carrier of its mark was found: a program that wipes its environment could hide.
    BestEffort,
}

/// Second slot of the outcome file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEmpty {
    /// [`VERSION`].
    pub version: u32,
    /// When.
    pub at: Timestamp,
    /// How it is known.
    pub proof: Proof,
    /// How many processes had to be killed after the main process was gone.
    pub killed: u32,
    /// Lengths of the stdout and stderr files when nothing could write to them any more.
    pub output_to: [u64; 2],
}

/// Third slot of the outcome file: whether the tree is frozen because its disk is nearly full, and for how long it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// [`VERSION`].
    pub version: u32,
    /// When it was last frozen or thawed.
    pub at: Timestamp,
    /// Since when it is frozen, on the boot-time clock in milliseconds; absent: it runs.
    pub since_boot_ms: Option<u64>,
    /// How long it was frozen before that, in milliseconds.
    pub total_ms: u64,
    /// How much space was free then, in bytes.
    pub free_bytes: u64,
    /// It is thawed when so much is free, in bytes.
    pub thaw_bytes: u64,
}

impl Freeze {
    /// How long it was frozen until `now_boot_ms`, all in all, in milliseconds: its running time is longer by that.
    pub fn paused_ms(&self, now_boot_ms: u64) -> u64 {
        let now = self.since_boot_ms.map_or(0, |since| now_boot_ms.saturating_sub(since));
        self.total_ms.saturating_add(now)
    }
}

/// Size of one slot: what every disk writes whole.
pub const SLOT_BYTES: usize = 512;

/// Size of a file of slots. Some file systems keep a shorter file in their own tables and never overwrite it in place.
pub const SLOT_FILE_BYTES: usize = 4096;

/// Where in the outcome file the [`Outcome`] stands.
pub const OUTCOME_SLOT_OFFSET: u64 = 0;

/// Where in the outcome file the [`TreeEmpty`] stands.
pub const TREE_SLOT_OFFSET: u64 = 512;

/// Where in the outcome file the [`Freeze`] stands.
pub const FREEZE_SLOT_OFFSET: u64 = 1024;

/// A slot's content does not fit; nothing that this module builds can be that long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes do not fit a slot of 512")]
pub struct SlotOverflow {
    /// How long the content was.
    pub bytes: usize,
}

/// Writes a value into the form of a slot: `CRC32-in-hex JSON newline`, filled with spaces.
pub fn encode_slot<T: Serialize>(value: &T) -> Result<[u8; SLOT_BYTES], SlotOverflow> {
    // The shapes above have no map with odd keys, so this cannot fail; an empty text would fail to decode.
    let json = serde_json::to_string(value).unwrap_or_default();
    let text = alloc::format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
    let mut slot = [b' '; SLOT_BYTES];
    let Some(head) = slot.get_mut(..text.len()) else {
        return Err(SlotOverflow { bytes: text.len() });
    };
    head.copy_from_slice(text.as_bytes());
    Ok(slot)
}

/// What a file or slot told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<T> {
    /// There is none (or a slot still filled with zeros).
    Absent,
    /// It is whole.
    Valid(T),
    /// It is there and cannot be trusted; why.
    Damaged(String),
}

impl<T> Reading<T> {
    /// The value, if it is whole.
    pub fn valid(&self) -> Option<&T> {
        match self {
            Self::Valid(value) => Some(value),
            Self::Absent | Self::Damaged(_) => None,
        }
    }
}

/// Reads a slot back.
pub fn decode_slot<T: for<'de> Deserialize<'de>>(slot: &[u8]) -> Reading<T> {
    if slot.iter().all(|byte| *byte == 0) {
        return Reading::Absent;
    }
    let parsed = core::str::from_utf8(slot).ok().and_then(|text| {
        let (crc, rest) = text.split_once(' ')?;
        let (json, _) = rest.split_once('\n')?;
        let crc = u32::from_str_radix(crc, 16).ok()?;
        (crc == crc32fast::hash(json.as_bytes())).then_some(json)
    });
    match parsed {
        Some(json) => decode_json(json.as_bytes()),
        None => Reading::Damaged("slot with a wrong checksum".to_string()),
    }
}

/// All that is asked of a file before anything else.
#[derive(Deserialize)]
struct Versioned {
    #[serde(default)]
    version: u32,
}

/// Reads one of the JSON files back; an empty file counts as damaged, and so does a newer version's: who knows what it means.
pub fn decode_json<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Reading<T> {
    if let Ok(Versioned { version }) = serde_json::from_slice(bytes)
        && version > VERSION
    {
        let newer = alloc::format!(
            "version {version} is newer than {VERSION}, the newest that is known here"
        );
        return Reading::Damaged(newer);
    }
    match serde_json::from_slice(bytes) {
        Ok(value) => Reading::Valid(value),
        Err(error) => Reading::Damaged(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            version: VERSION,
            ending: Ending::LaunchFailed { errno: 2, what: "x".repeat(200) },
            at: Timestamp(u64::MAX),
            stop: Some(StopCause::OutputLimit),
            oom: true,
            cpu_ms: u64::MAX,
            peak_memory_bytes: u64::MAX,
            output_to: [u64::MAX; 2],
        }
    }

    #[test]
    fn the_longest_outcome_fits_its_slot_and_comes_back() {
        let slot = encode_slot(&outcome()).expect("fits");
        assert_eq!(decode_slot(&slot), Reading::Valid(outcome()));
    }

    #[test]
    fn a_slot_with_any_byte_flipped_is_damaged_or_unchanged_in_meaning() {
        let slot = encode_slot(&outcome()).expect("fits");
        for at in 0..SLOT_BYTES {
            let mut damaged = slot;
            damaged[at] ^= 0x01;
            match decode_slot::<Outcome>(&damaged) {
                Reading::Damaged(_) => {}
                // Only the filling after the newline carries no meaning.
                other => assert_eq!(other, Reading::Valid(outcome()), "byte {at}"),
            }
        }
    }

    #[test]
    fn what_a_newer_version_wrote_is_not_taken_for_ours() {
        let newer = Outcome { version: VERSION + 1, ..outcome() };
        let slot = encode_slot(&newer).expect("fits");
        let Reading::Damaged(why) = decode_slot::<Outcome>(&slot) else { panic!("read") };
        assert_eq!(why, "version 2 is newer than 1, the newest that is known here");
    }

    #[test]
    fn a_slot_of_zeros_is_absent() {
        assert_eq!(decode_slot::<Outcome>(&[0; SLOT_BYTES]), Reading::Absent);
    }
}
