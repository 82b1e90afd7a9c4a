//! Every bound of the program, each with its reason (I9).

use core::time::Duration;

/// A repo's name is a directory name and part of URLs.
pub const REPO_NAME_BYTES_MAX: usize = 64;

/// A repo's source: a URL or a path, so `PATH_MAX` of Linux.
pub const REPO_SOURCE_BYTES_MAX: usize = 4096;

/// A prompt; larger material belongs into an upload.
pub const PROMPT_BYTES_MAX: usize = 1 << 20;

/// Prompts of one job: a conversation longer than this is better begun anew, and every turn is kept in memory.
pub const TURNS_MAX: usize = 1_000;

/// Attempts of one job over all turns: bounds what a policy may spend without a person looking.
pub const ATTEMPTS_MAX: usize = 2_000;

/// Jobs known at once, ended ones included: about 1.5 KiB each in memory, and 1 KiB more once they ran.
pub const JOBS_MAX: usize = 1_000_000;

/// All prompts kept in memory together, so that a million jobs of a megabyte are refused before they hurt.
pub const PROMPTS_BYTES_MAX: usize = 2 << 30;

/// Registered repos: each has a directory and, at most, a clone under way.
pub const REPOS_MAX: usize = 10_000;

/// Titles and groups are shown in one line.
pub const TITLE_BYTES_MAX: usize = 200;

/// An Idempotency-Key: a UUID or a hash with room to spare.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// A key outlives its job's removal by at least this, so that a client's late retry finds it.
pub const IDEMPOTENCY_KEPT: Duration = Duration::from_hours(24);

/// Environment variables of one job, and the bytes of all of them: well inside the kernel's argument limit.
pub const ENV_COUNT_MAX: usize = 200;
/// See [`ENV_COUNT_MAX`].
pub const ENV_BYTES_MAX: usize = 64 << 10;

/// Shortest and longest running time that may be asked for one attempt.
pub const TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// See [`TIMEOUT_MIN`]: a month.
pub const TIMEOUT_MAX: Duration = Duration::from_hours(30 * 24);
/// Running time of an attempt when nothing is said.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_hours(2);

/// Priorities run from 0 to this.
pub const PRIORITY_MAX: u8 = 100;
/// The priority when nothing is said.
pub const PRIORITY_DEFAULT: u8 = 50;
/// One point of priority is worth this much waiting, so nothing starves: 0 overtakes a fresh 100 after 100 minutes.
pub const PRIORITY_POINT: Duration = Duration::from_mins(1);

/// Times a job is taken up again after interruptions when nothing is said.
pub const INTERRUPTS_DEFAULT: u32 = 3;
/// The most that may be asked for.
pub const INTERRUPTS_MAX: u32 = 100;
/// Before the first renewed attempt after an interruption; doubles each time in a row.
pub const INTERRUPT_BACKOFF: Duration = Duration::from_secs(1);
/// The doubling stops here.
pub const INTERRUPT_BACKOFF_MAX: Duration = Duration::from_mins(10);

/// The longest time between two looks at the clock while something is to happen at a time of day: a clock that is set, or a machine
/// that slept, is noticed so much later at most.
pub const CLOCK_LOOK: Duration = Duration::from_secs(5);

/// Answers under way when the server is told to stop get this long: with it, a stop takes less than a second.
pub const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// Between TERM and KILL.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// Between two heartbeats of a supervisor.
pub const HEARTBEAT: Duration = Duration::from_secs(30);

/// A heartbeat is stale from this age on, when nothing is said: some beats were missed.
pub const HEARTBEAT_STALE: Duration = Duration::from_mins(2);
/// A heartbeat is dead from this age on, when nothing is said.
pub const HEARTBEAT_DEAD: Duration = Duration::from_mins(10);

/// An agent whose output has not grown for so long is noticed, when nothing is said; long builds and tests are quicker.
pub const STALL: Duration = Duration::from_mins(10);

/// A supervisor that still holds its lock this long after deadline and grace is hung and is replaced.
pub const HUNG_MARGIN: Duration = Duration::from_secs(30);

/// Caretakers started for one attempt before it is held as unknown: more than that die for a reason a person must see.
pub const CARETAKERS_MAX: u32 = 16;

/// Tries of one operation (clone, copy) before what needs it fails.
pub const OPERATION_TRIES_MAX: u32 = 3;

/// Decisions kept per job: enough for the longest story told by a person. The first quarter stays, then the older ones go; how
/// many went is told. The same decision several times in a row is kept once, with a count.
pub const DECISIONS_MAX: usize = 200;

/// Text of one decision (what, and why): an agent's closing words may be long, and stand elsewhere.
pub const DECISION_BYTES_MAX: usize = 400;

/// Before a job whose agent met an overloaded model is tried again; doubles each time in a row.
pub const OVERLOAD_BACKOFF: Duration = Duration::from_secs(30);
/// Before a job whose agent met a usage limit is tried again, where nobody says when the limit ends; doubles each time in a row.
pub const USAGE_LIMIT_BACKOFF: Duration = Duration::from_mins(5);
/// Either doubling stops here: a model that is back should not find its jobs asleep for longer.
pub const LIMIT_BACKOFF_MAX: Duration = Duration::from_hours(1);
/// A job wakes this long after the time at which a usage limit is said to end: clocks differ.
pub const USAGE_LIMIT_MARGIN: Duration = Duration::from_secs(5);
/// All that a job waits for limits and overload, when nothing is said: weekly limits are the longest there are.
pub const LIMIT_WAIT_DEFAULT: Duration = Duration::from_hours(7 * 24);
/// The most that may be asked for.
pub const LIMIT_WAIT_MAX: Duration = Duration::from_hours(31 * 24);

/// A removal is remembered for this long, so that a start after a crash finishes it. As long as an idempotency key, which goes
/// with it.
pub const REMOVAL_KEPT: Duration = IDEMPOTENCY_KEPT;

/// Days with statistics of their own: a year, and the same month of the year before. Older days go; the totals keep them.
pub const STATS_DAYS_MAX: usize = 400;
/// Engines, repos and owners with statistics of their own, of each sort; all further ones are counted together. A row is some
/// 2 KiB, so all of them are a few MiB.
pub const STATS_NAMES_MAX: usize = 1000;
/// Bytes of a name that has statistics of its own; longer ones are counted with the others. Entity names end at 255.
pub const STATS_NAME_BYTES_MAX: usize = 200;

/// Closing words of an agent kept in the record; the whole text stays in its output.
pub const RESULT_TEXT_BYTES_MAX: usize = 16 << 10;

/// A reason shown to people.
pub const REASON_BYTES_MAX: usize = 2_000;

const _: () = assert!(PROMPTS_BYTES_MAX > PROMPT_BYTES_MAX);
const _: () = assert!(PRIORITY_DEFAULT <= PRIORITY_MAX);
const _: () = assert!(INTERRUPTS_DEFAULT <= INTERRUPTS_MAX);
const _: () = assert!(STATS_NAME_BYTES_MAX + 8 <= ENTITY_NAME_BYTES_MAX);
/// One line of an agent's output that is still read as a record. A model's longest answer is far below; a reader's memory
/// is bounded by it, whatever an agent writes.
pub const OUTPUT_LINE_BYTES_MAX: usize = 8 << 20;

/// What is shown of a longer line: enough to see what it was.
pub const OUTPUT_LINE_SHOWN_BYTES: usize = 4 << 10;

/// An agent's closing words as they are kept in a job's record: an answer to read, not a file. All of it is in the output.
pub const AGENT_RESULT_BYTES_MAX: usize = 16 << 10;

/// What is shown of a tool's input, in characters: one line of a terminal.
pub const TOOL_SUMMARY_CHARS_MAX: usize = 160;

/// Elements of a `command` job's argv, and the bytes of them all together: far above any sane command, and below what the
/// kernel takes (an eighth of `ulimit -s`, at least 128 KiB) with room for the environment.
pub const ARGV_ELEMENTS_MAX: usize = 1024;

/// See [`ARGV_ELEMENTS_MAX`].
pub const ARGV_BYTES_MAX: usize = 64 << 10;

/// Lines that the demo agent writes: it must end some day.
pub const DEMO_LINES_MAX: u64 = 100_000;

/// Pause of the demo agent after each line: longer would look dead.
pub const DEMO_LINE_MS_MAX: u64 = 60_000;
/// A record's body; a prompt of [`PROMPT_BYTES_MAX`] grows at most sixfold as JSON, and there is room for the rest.
pub const RECORD_BODY_BYTES_MAX: usize = 8 << 20;

/// The entities one record may touch: a shared fetch that lets many jobs go on touches each of them.
pub const RECORD_LINKS_MAX: usize = 4096;

/// An entity's name: its length is one byte in the frame, and file names are no longer.
pub const ENTITY_NAME_BYTES_MAX: usize = 255;

/// Entities in a checkpoint; at about 1 KiB each, what fits into a machine's memory.
pub const CHECKPOINT_ENTRIES_MAX: u64 = 1 << 24;

/// A segment of the write-ahead log: small enough to be read in a millisecond at start, large enough for some thousand records.
pub const SEGMENT_BYTES: u64 = 4 << 20;

/// Batches waiting for the write-ahead log's thread; more than this many callers wait in turn.
pub const WAL_QUEUE_MAX: usize = 1024;

/// One group commit stops gathering beyond this, so that the first in it does not wait for ever.
pub const WAL_GROUP_BYTES_MAX: usize = 4 << 20;

/// Damaged places that a report lists one by one; a destroyed disk must not fill the memory. The rest is counted.
pub const DAMAGE_LISTED_MAX: usize = 1000;

/// Looks at a write-ahead log that a server is writing, when a file goes away under the look: each is one checkpoint later.
pub const WAL_LOOKS_MAX: u32 = 8;

/// What lost records is listed one by one up to this; a destroyed disk must not make a start slow, nor an answer long.
pub const LOST_LISTED_MAX: usize = 1000;

/// A job that is taken up again is written down whole; with this it fits into a record beside what else happens.
pub const REPAIRED_JOB_BYTES_MAX: usize = RECORD_BODY_BYTES_MAX / 2;

/// Nothing new is accepted when less than this is free: room for what runs, and for some workspaces.
pub const MIN_FREE_BYTES: u64 = 1 << 30;

/// On a small disk the bound is this part of it instead: a bound in bytes could never be met there.
pub const MIN_FREE_PART: u64 = 20;

/// On a small disk a tree is frozen at this part of it instead.
pub const FREEZE_FREE_PART: u64 = 80;

/// A tree is frozen when less than this is free on its disk: enough for what is written until the next look at the rate below.
pub const FREEZE_FREE_BYTES: u64 = 256 << 20;

/// A frozen tree is thawed when this many times as much is free, so that it is not frozen again at once.
pub const THAW_FACTOR: u64 = 2;

/// No disk is filled faster, in bytes per millisecond (1 GiB a second): tells how long a look at its free space holds good.
pub const DISK_FILLED_BYTES_PER_MS: u64 = 1 << 20;

/// Between two looks at a disk's free space when it is close to the edge, in milliseconds.
pub const DISK_LOOK_MS: u64 = 200;

/// Between two looks of who waits for space to return, in milliseconds: nobody tells when that is.
pub const FROZEN_LOOK_MS: u64 = 1000;

/// The longest time between two looks of the server at its disk's free space, in milliseconds.
pub const DISK_LOOK_MS_MAX: u64 = 30_000;

const _: () = assert!(MIN_FREE_BYTES >= FREEZE_FREE_BYTES * THAW_FACTOR);
const _: () = assert!(MIN_FREE_PART * THAW_FACTOR <= FREEZE_FREE_PART);
const _: () = assert!(FREEZE_FREE_BYTES > DISK_FILLED_BYTES_PER_MS * DISK_LOOK_MS);

/// Tries of a startup's stage in one start, with pauses of 1, 2 and 4 seconds between: what is only busy is free again by then.
pub const STAGE_TRIES_MAX: u32 = 4;

/// Before the second try of a stage; doubles up to [`STAGE_PAUSE_MAX`].
pub const STAGE_PAUSE: Duration = Duration::from_secs(1);
/// See [`STAGE_PAUSE`].
pub const STAGE_PAUSE_MAX: Duration = Duration::from_secs(4);

/// Starts in a row that died in the same stage: one more would hardly do better, and a server that restarts for ever looks alive.
pub const STAGE_DEATHS_MAX: u32 = 3;

/// The longest pause between two tries of a stage that the server has gone on without.
pub const STAGE_AGAIN_MAX: Duration = Duration::from_mins(1);

/// Files that a backup could not read and names, one by one: a person looks at the first few, and of the rest the number is enough.
pub const BACKUP_LEFT_OUT_MAX: usize = 1000;
