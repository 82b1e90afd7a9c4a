//! The write-ahead log's decoders: frames, file headers, whole directories, and what its bodies mean.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outlive_core::event::{Accepted, Event, Transaction};
use outlive_core::file_header::{FileHeader, FileKind};
use outlive_core::ids::{AttemptNo, JobId, Lsn, OperationId, RepoName, SessionId};
use outlive_core::job::{Outcome, OutcomeKind, WaitReason, Work};
use outlive_core::record::{
    Decoded, EntityKey, EntityKind, FRAME_BYTES_MIN, FrameKind, Link, Position, claimed_len,
    decode_at, encode,
};
use outlive_core::repo::OperationKind;
use outlive_core::state::{Rules, State};
use outlive_core::time::Timestamp;

use crate::truth::disk::sim::SimDisk;
use crate::truth::wal::{Config, dump, open, verify};

const NONCE: u64 = 7;

/// CRC-32 (IEEE), bit by bit: a second opinion on the one that is used.
fn crc32(parts: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for byte in parts.iter().copied().flatten() {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

fn put(bytes: &mut [u8], at: usize, number: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}

fn number_at(bytes: &[u8], at: usize) -> Option<usize> {
    let found: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(found)).ok()
}

/// Makes both checksums of a frame right, so that what stands behind them is reached.
fn forge(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut forged = bytes.to_vec();
    let (header_len, body_len) = (number_at(bytes, 8)?, number_at(bytes, 12)?);
    let body = bytes.get(header_len..header_len.checked_add(body_len)?)?;
    put(&mut forged, 32, crc32(&[&NONCE.to_le_bytes(), body]));
    let covered = forged.get(..header_len.checked_sub(4)?)?;
    let header_crc = crc32(&[&NONCE.to_le_bytes(), covered]);
    put(&mut forged, header_len - 4, header_crc);
    Some(forged)
}

/// As they are, and with the right checksums.
pub(super) fn frame(bytes: &[u8]) {
    for bytes in std::iter::once(bytes.to_vec()).chain(forge(bytes)) {
        let claimed = claimed_len(&bytes);
        match decode_at(&bytes, NONCE) {
            Decoded::Frame { header, body } => {
                assert_eq!(claimed, Some(header.frame_len()));
                assert!(header.frame_len() >= FRAME_BYTES_MIN);
                let (lsn, synced_through, chain) =
                    (header.lsn, header.synced_through, header.chain);
                let position = Position { lsn, synced_through, chain };
                let mut again = Vec::new();
                let encoded = encode(&mut again, NONCE, header.kind, position, &header.links, body);
                encoded.expect("what was read is within the limits");
                let Decoded::Frame { header: back, body: body_back } = decode_at(&again, NONCE)
                else {
                    panic!("what was encoded is a frame")
                };
                assert_eq!((back.links, back.lsn, back.chain), (header.links, lsn, chain));
                assert_eq!(body_back, body);
            }
            Decoded::HeaderOnly { header, .. } => assert_eq!(claimed, Some(header.frame_len())),
            Decoded::Nothing | Decoded::Damaged(_) => {}
        }
    }
}

fn link(name: &str, previous: u64) -> Link {
    Link { entity: EntityKey::new(EntityKind::Job, name), previous: Lsn(previous) }
}

fn encoded(kind: FrameKind, position: Position, links: &[Link], body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, NONCE, kind, position, links, body).expect("within the limits");
    bytes
}

pub(super) fn frames() -> Vec<Vec<u8>> {
    let position = Position { lsn: Lsn(5), synced_through: Lsn(4), chain: 3 };
    vec![
        encoded(FrameKind::Record, position, &[link("a", 3), link("bcd", 0)], b"{\"at\":1}"),
        encoded(FrameKind::Mark, position, &[], &[]),
        encoded(FrameKind::Entry, position, &[link("a", 5)], b"{}"),
        encoded(FrameKind::End, position, &[], &[]),
        encoded(FrameKind::Seal, position, &[], &[]),
    ]
}

pub(super) fn file_header(bytes: &[u8]) {
    let mut forged = bytes.to_vec();
    if let Some(covered) = bytes.get(..508) {
        put(&mut forged, 508, crc32(&[covered]));
    }
    for bytes in [bytes, &forged] {
        for kind in [FileKind::Segment, FileKind::Checkpoint] {
            if let Ok(header) = FileHeader::decode(bytes, kind) {
                assert_eq!(FileHeader::decode(&header.encode(), kind), Ok(header));
            }
        }
    }
}

fn header(kind: FileKind, number: u64, count: u64) -> Vec<u8> {
    FileHeader { kind, instance: [1; 16], nonce: NONCE, number, count }.encode()
}

pub(super) fn file_headers() -> Vec<Vec<u8>> {
    vec![header(FileKind::Segment, 1, 4096), header(FileKind::Checkpoint, 9, 3)]
}

const SEGMENT_BYTES: usize = 4096;

/// A byte after the other, zeros at the end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Mostly a small number; sometimes one at the edge of what there is.
    fn lsn(&mut self) -> Lsn {
        match self.next() {
            255 => Lsn(u64::MAX),
            254 => Lsn(u64::MAX - 1),
            small => Lsn(u64::from(small % 32)),
        }
    }
}

/// Two segments and perhaps a checkpoint, made of frames with good checksums in any order and with any numbers: what no flipped
/// bit could make. Each frame takes seven bytes of the script.
fn build(disk: &SimDisk, dir: &Path, bytes: &[u8]) {
    let mut script = Script(bytes);
    for number in 1..=2_u64 {
        let mut segment = header(FileKind::Segment, number, SEGMENT_BYTES as u64);
        let mut chain = 0;
        for _ in 0..script.next() % 8 {
            let before = segment.len();
            let (what, lsn, synced_through) = (script.next(), script.lsn(), script.lsn());
            let (entity, previous, size) = (script.next(), script.lsn(), script.next());
            let kind = [FrameKind::Record, FrameKind::Mark, FrameKind::Seal, FrameKind::Record];
            let kind = kind[usize::from(what % 4)];
            let position =
                Position { lsn, synced_through, chain: if what & 64 == 0 { chain } else { 1 } };
            let links = [link(&format!("job{}", entity % 3), previous.0)];
            let (links, body) = match kind {
                FrameKind::Record => (&links[..], vec![b'x'; usize::from(size)]),
                _ => (&links[..0], vec![]),
            };
            let crc = encode(&mut segment, NONCE, kind, position, links, &body);
            chain = crc.expect("within the limits");
            if what & 128 != 0
                && let Some(byte) = segment.get_mut(before + usize::from(size))
            {
                *byte ^= 1;
            }
        }
        segment.truncate(SEGMENT_BYTES - 512);
        segment.resize(SEGMENT_BYTES - 512, 0);
        segment.extend(header(FileKind::Segment, number, SEGMENT_BYTES as u64));
        disk.put(&dir.join(format!("{number:016x}.seg")), &segment);
    }
    if script.next() % 2 == 1 {
        let lsn = script.lsn();
        let mut checkpoint = header(FileKind::Checkpoint, lsn.0, 1);
        let at = Position { lsn, synced_through: lsn, chain: 0 };
        checkpoint.extend(encoded(FrameKind::Entry, at, &[link("job0", lsn.0)], b"{}"));
        checkpoint.extend(encoded(FrameKind::End, at, &[], &[]));
        disk.put(&dir.join(format!("{:016x}.ckpt", lsn.0)), &checkpoint);
    }
}

/// A whole directory is read, made whole, and read again.
pub(super) fn directory(bytes: &[u8]) {
    let disk = SimDisk::default();
    let (dir, quarantine) = (PathBuf::from("/d/wal"), PathBuf::from("/d/quarantine"));
    build(&disk, &dir, bytes);
    let config = || {
        let shared = Arc::new(disk.clone());
        let config = Config::new(shared, dir.clone(), quarantine.clone(), [1; 16], || NONCE);
        Config { segment_bytes: SEGMENT_BYTES as u64, ..config }
    };
    let seen = verify(&config());
    drop(dump(&config(), |_, _, _| {}));
    let Ok(opened) = open(config()) else { return };
    seen.expect("what can be opened can be verified");
    let lsns: Vec<Lsn> = opened.records.iter().map(|record| record.lsn).collect();
    assert!(lsns.is_sorted_by(|a, b| a < b), "{lsns:?}");
    // That it finds the same again is only promised of what a writer wrote: the crash explorer's part.
    open(config()).expect("what was opened can be opened");
}

pub(super) fn directories() -> Vec<Vec<u8>> {
    vec![
        vec![2, 0, 1, 0, 0, 0, 9, 0, 2, 1, 0, 1, 20, 1, 0, 3, 2, 1, 0, 5, 0],
        vec![3, 0, 1, 0, 0, 0, 9, 1, 1, 1, 0, 0, 0, 2, 1, 1, 0, 0, 0, 1, 0, 2, 1, 0, 1, 4, 1, 1],
    ]
}

/// The first byte says which kind of entity, the next its name's length.
pub(super) fn entry(bytes: &[u8]) {
    let [kind, len, rest @ ..] = bytes else { return };
    let Some((name, body)) = rest.split_at_checked(usize::from(*len)) else { return };
    let Ok(name) = std::str::from_utf8(name) else { return };
    let entity = EntityKey::new(EntityKind::from_byte(kind % 8), name);
    let mut state = State::default();
    if state.restore(&entity, body).is_err() {
        return;
    }
    // What was read is written, and read, as the same.
    let entries = |state: &State| state.entries().collect::<Vec<_>>();
    let mut again = State::default();
    for (entity, _, body) in state.entries() {
        again.restore(&entity, &body).expect("our own bytes");
    }
    assert_eq!(entries(&again), entries(&state));
    goes_on(&state);
}

/// Whatever State was read, everything can be asked of it.
fn goes_on(state: &State) {
    let rules = Rules { running_max: 2, has_room: true, held: false };
    for now in [0, 1 << 40, u64::MAX] {
        drop(state.due(Timestamp(now), rules));
        for job in state.jobs() {
            black_box(state.estimated_start(job, Timestamp(now), 2));
        }
    }
    black_box(state.next_due());
    for job in state.jobs() {
        black_box((state.queue_position(job), state.actions(job).count(), job.session()));
    }
}

fn entry_bytes(entity: &EntityKey, body: &[u8]) -> Vec<u8> {
    let len = u8::try_from(entity.name.len()).expect("a short name");
    [&[entity.kind.byte(), len], entity.name.as_bytes(), body].concat()
}

pub(super) fn entries() -> Vec<Vec<u8>> {
    let state = lived();
    state.entries().map(|(entity, _, body)| entry_bytes(&entity, &body)).collect()
}

/// Every event that can be read is applied: it happens, or it cannot have happened; it never panics.
pub(super) fn transaction(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<Transaction>(bytes) else { return };
    let text = serde_json::to_vec(&read).expect("no odd keys");
    let back: Transaction = serde_json::from_slice(&text).expect("our own bytes");
    assert_eq!(back, read);
    let mut state = lived();
    for event in &read.events {
        let before = state.clone();
        if state.apply(before.lsn().next(), read.at, event).is_err() {
            assert_eq!(state.lsn(), before.lsn(), "what cannot have happened changes nothing");
        }
    }
    goes_on(&state);
}

fn job() -> JobId {
    JobId::from_random(5)
}

fn story() -> Vec<Event> {
    let task = serde_json::from_value(serde_json::json!({
        "repos": ["r"], "engine": "demo", "engine_options": {}, "model": null, "timeout_ms": 60_000,
        "priority": 50, "on_interrupt": "resume", "on_unknown": "hold", "max_interrupts": 3,
        "on_limit": "wait", "limit_wait_ms": 1000, "limits": {}, "env": {}, "title": null, "group": "g",
    }));
    let repo = RepoName::parse("r").expect("a good name");
    let (copy, clone) = (OperationId(2), OperationId(1));
    let attempt = AttemptNo::MIN;
    let work = || Work::Attempt { job: job(), attempt };
    let accepted = Accepted {
        job: job(),
        owner: "local".into(),
        task: task.expect("a task"),
        prompt: "do it".into(),
        session: SessionId("s".into()),
        held: false,
        start_after: None,
        idempotency: None,
    };
    let outcome = Outcome {
        kind: OutcomeKind::Failed,
        exit_code: None,
        signal: None,
        exit_status: outlive_core::job::ExitStatus::Unproven,
        agent_result: None,
        disagreement: None,
        reason: "x".into(),
    };
    vec![
        Event::ServerStarted { number: 1, version: "1".into(), boot_id: "b".into() },
        Event::RepoAdded {
            name: repo.clone(),
            owner: "local".into(),
            source: "/s".into(),
            branch: None,
        },
        Event::OperationPlanned {
            id: clone,
            kind: OperationKind::Clone { repo: repo.clone() },
            tries: 1,
        },
        Event::OperationEnded { id: clone },
        Event::RepoReady { name: repo.clone() },
        Event::JobAccepted(Box::new(accepted)),
        Event::JobWaits { job: job(), reason: WaitReason::Repo { name: repo }, until: None },
        Event::JobReleased { job: job() },
        Event::CopyPlanned { job: job(), operation: copy },
        Event::OperationPlanned { id: copy, kind: OperationKind::Copy { job: job() }, tries: 1 },
        Event::WorkspaceReady {
            job: job(),
            workspace: outlive_core::job::Workspace {
                made_by: "copy".into(),
                base_commit: None,
                branch: "b".into(),
            },
        },
        Event::LaunchPlanned { job: job(), attempt, turn: 1, resume: false },
        Event::CaretakerPlanned { work: work(), empty_tree: true },
        Event::Adopted { work: work() },
        Event::TurnAdded { job: job(), prompt: "more".into() },
        Event::StopRequested {
            job: job(),
            work: work(),
            cause: outlive_core::spec::StopCause::Cancel,
        },
        Event::AttemptUnknown { job: job(), attempt },
        Event::JobEnded { job: job(), outcome: Box::new(outcome) },
        Event::JobRemoved { job: job() },
    ]
}

/// A State in which something of every kind is there.
fn lived() -> State {
    let mut state = State::default();
    for event in story().iter().take(15) {
        let lsn = state.lsn().next();
        state.apply(lsn, Timestamp(1_000_000), event).expect("it is a story");
    }
    state
}

pub(super) fn transactions() -> Vec<Vec<u8>> {
    let one = |event: Event| Transaction { at: Timestamp(2_000_000), events: vec![event] };
    let all = Transaction { at: Timestamp(2_000_000), events: story() };
    let records = story().into_iter().map(one).chain([all]);
    records.map(|record| serde_json::to_vec(&record).expect("no odd keys")).collect()
}
