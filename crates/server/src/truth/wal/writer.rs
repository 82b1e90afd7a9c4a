//! Appending: group commit on one thread.
//!
//! Absent: retries. A write or a sync that fails ends the process (I8); what is on disk then is for the next start to find out.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use outlive_core::ids::Lsn;
use outlive_core::limits::{WAL_GROUP_BYTES_MAX, WAL_QUEUE_MAX};
use outlive_core::planted::planted;
use outlive_core::record::{
    FRAME_BYTES_MIN, FrameKind, Link, Position, TooLarge, encode, frame_len,
};

use super::checkpoint::Checkpointer;
use super::recover::{Log, Shared};
use super::segment::{HEADER, NOTE, Segment, Spare, place_of_note};
use super::{WalError, crash_point, io_at};

/// Something that follows from records that are durable. Only the write-ahead log's commit makes one (I1).
#[derive(Debug)]
pub struct Durable<T>(T);

impl<T> Durable<T> {
    /// Looks at it.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// Takes it out, to act on it.
    pub fn into_inner(self) -> T {
        self.0
    }

    /// What follows from it is durable as well.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Durable<U> {
        Durable(f(self.0))
    }
}

/// A record that has no place yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The entities it changes.
    pub links: Vec<Link>,
    /// Opaque here.
    pub body: Vec<u8>,
}

/// Records that belong together, and what is to be done when they are durable.
#[derive(Debug)]
pub struct Batch<T> {
    /// The first record's lsn; the others follow. All batches together leave no gap.
    pub first: Lsn,
    /// The records; none is allowed, then the payload waits for everything submitted before.
    pub records: Vec<Draft>,
    /// Handed to `on_durable`.
    pub payload: T,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// A record is over a limit; nothing of the batch was taken.
    #[error("the change is too large to be written down")]
    TooLarge(#[from] TooLarge),
    /// The write-ahead log has stopped.
    #[error("the write-ahead log has stopped")]
    Stopped,
}

/// The running write-ahead log.
#[derive(Debug)]
pub struct Wal<T> {
    sender: Option<SyncSender<Batch<T>>>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl<T: Send + 'static> Wal<T> {
    /// Starts the threads.
    ///
    /// `on_durable` gets every group's payloads in order; it runs on the write-ahead log's thread and must not block. `on_fatal` is called
    /// once, instead of going on, when a write or sync failed; [`abort`] is what a server wants there.
    pub fn start(
        log: Log,
        on_durable: impl FnMut(Durable<Vec<T>>) + Send + 'static,
        on_fatal: impl FnOnce(&WalError) + Send + 'static,
    ) -> Result<(Self, Checkpointer), WalError> {
        let (writer, shared, checkpointer) = Writer::new(log, false);
        let (sender, receiver) = sync_channel(WAL_QUEUE_MAX);
        let spare = Arc::clone(&shared);
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(body).map_err(|source| {
                let path = std::path::PathBuf::from(name);
                WalError::Io { what: "start the thread", path, source }
            })
        };
        let threads = vec![
            spawn("wal-spare", Box::new(move || spare.spare.work()))?,
            spawn("wal", Box::new(move || run(writer, &receiver, on_durable, on_fatal)))?,
        ];
        Ok((Self { sender: Some(sender), shared, threads }, checkpointer))
    }

    /// Hands a batch over; waits while [`WAL_QUEUE_MAX`] others do.
    pub fn submit(&self, batch: Batch<T>) -> Result<(), SubmitError> {
        for draft in &batch.records {
            frame_len(&draft.links, &draft.body)?;
        }
        let sender = self.sender.as_ref().ok_or(SubmitError::Stopped)?;
        sender.send(batch).map_err(|_| SubmitError::Stopped)
    }

    /// The last record that is durable.
    pub fn durable(&self) -> Lsn {
        Lsn(self.shared.durable.load(Ordering::Acquire))
    }

    /// A look at the next segment, which is made ahead of need.
    pub fn next_segment(&self) -> NextSegment {
        NextSegment(Arc::clone(&self.shared.spare))
    }
}

/// The segment after the one in use. While it is being made, that one has room yet: it is ordered when that one begins.
#[derive(Debug, Clone)]
pub struct NextSegment(pub(super) Arc<Spare>);

impl NextSegment {
    /// Why it could not be made: then new work must be refused (507).
    pub fn problem(&self) -> Option<String> {
        self.0.problem()
    }

    /// Tries again to make it, if that failed; to be called when space may have come back.
    pub fn retry(&self) {
        self.0.retry();
    }
}

impl<T> Wal<T> {
    /// Commits everything submitted, and stops.
    pub fn stop(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        drop(self.sender.take());
        // The write-ahead log's own thread is the last; it closes the spare, which lets the other one end.
        for thread in self.threads.drain(..).rev() {
            // A panic there was reported when it happened.
            drop(thread.join());
        }
    }
}

impl<T> Drop for Wal<T> {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Prints the error and ends the process at once (I8).
#[expect(clippy::print_stderr, reason = "the last words of a process whose log failed")]
pub fn abort(error: &WalError) {
    eprintln!("outlive: the write-ahead log failed and the server stops: {}", error.in_full());
    std::process::abort();
}

fn run<T>(
    mut writer: Writer,
    receiver: &Receiver<Batch<T>>,
    mut on_durable: impl FnMut(Durable<Vec<T>>),
    on_fatal: impl FnOnce(&WalError),
) {
    let result = serve(&mut writer, receiver, &mut on_durable);
    writer.shared.spare.close();
    if let Err(error) = result {
        on_fatal(&error);
    }
}

fn serve<T>(
    writer: &mut Writer,
    receiver: &Receiver<Batch<T>>,
    on_durable: &mut impl FnMut(Durable<Vec<T>>),
) -> Result<(), WalError> {
    loop {
        let first = match receiver.try_recv() {
            Ok(batch) => batch,
            Err(TryRecvError::Disconnected) => return writer.mark(),
            Err(TryRecvError::Empty) => {
                writer.mark()?;
                let Ok(batch) = receiver.recv() else { return Ok(()) };
                batch
            }
        };
        let mut payloads = Vec::new();
        writer.add(first, &mut payloads)?;
        // Everything that gathered while the last group was being synced.
        while writer.group.len() < WAL_GROUP_BYTES_MAX {
            let Ok(batch) = receiver.try_recv() else { break };
            writer.add(batch, &mut payloads)?;
        }
        if planted("wal.early_ack") {
            on_durable(Durable(std::mem::take(&mut payloads)));
        }
        writer.commit()?;
        // I1: the one place where something becomes durable.
        on_durable(Durable(payloads));
    }
}

/// The end of the write-ahead log, without threads.
pub(super) struct Writer {
    shared: Arc<Shared>,
    segment: Segment,
    /// Where in the segment the group will go.
    position: u64,
    /// Encoded records that are not yet written.
    group: Vec<u8>,
    /// The last lsn in `group`, or else the last durable one.
    last: Lsn,
    synced: Lsn,
    marked: Lsn,
    /// The checksum of the last record's header.
    chain: u32,
    /// No other thread makes spare segments.
    inline: bool,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writer at {} of {}", self.position, self.segment.path.display())
    }
}

impl Writer {
    pub(super) fn new(log: Log, inline: bool) -> (Self, Arc<Shared>, Checkpointer) {
        let shared = log.shared;
        let (last, checkpointer) = (log.last, log.checkpointer);
        let writer = Self {
            shared: Arc::clone(&shared),
            segment: log.tail,
            position: log.position,
            group: Vec::new(),
            last,
            synced: last,
            marked: log.marked,
            chain: log.chain,
            inline,
        };
        (writer, shared, checkpointer)
    }

    /// Adds a batch to the group.
    pub(super) fn add<T>(
        &mut self,
        batch: Batch<T>,
        payloads: &mut Vec<T>,
    ) -> Result<(), WalError> {
        let due = self.last.next();
        if batch.first != due && !batch.records.is_empty() {
            return Err(WalError::OutOfOrder { expected: due, got: batch.first });
        }
        for draft in &batch.records {
            self.add_record(draft)?;
        }
        payloads.push(batch.payload);
        Ok(())
    }

    fn add_record(&mut self, draft: &Draft) -> Result<(), WalError> {
        let len = frame_len(&draft.links, &draft.body)? as u64;
        if self.position + self.group.len() as u64 + len > self.segment.end {
            self.rotate(len)?;
        }
        let (lsn, nonce) = (self.last.next(), self.segment.nonce);
        let position = Position { lsn, synced_through: self.synced, chain: self.chain };
        let (links, body) = (&draft.links, &draft.body);
        self.chain = encode(&mut self.group, nonce, FrameKind::Record, position, links, body)?;
        self.last = lsn;
        Ok(())
    }

    /// Goes on to a segment with room for `frame` bytes. All before it is made durable first: a record in a segment says so of all earlier ones.
    fn rotate(&mut self, frame: u64) -> Result<(), WalError> {
        if !planted("wal.rotate_before_durable") {
            self.commit()?;
        }
        crash_point("wal.rotate");
        loop {
            self.segment = self.shared.spare.take(frame, self.inline)?;
            self.position = HEADER;
            let info = (self.segment.number, self.last.next());
            self.shared.segments().push(info);
            if HEADER + frame <= self.segment.end {
                return Ok(());
            }
        }
    }

    /// Writes the group and makes it durable.
    pub(super) fn commit(&mut self) -> Result<(), WalError> {
        if self.group.is_empty() {
            return Ok(());
        }
        crash_point("wal.before_write");
        let path = &self.segment.path;
        let written = self.segment.file.write_all_at(&self.group, self.position);
        written.map_err(io_at("write", path))?;
        crash_point("wal.after_write");
        self.sync().map_err(io_at("sync", path))?;
        crash_point("wal.after_sync");
        self.position += self.group.len() as u64;
        self.group.clear();
        // One very large group must not hold its memory for ever.
        self.group.shrink_to(WAL_GROUP_BYTES_MAX);
        self.synced = self.last;
        self.shared.durable.store(self.last.0, Ordering::Release);
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        if planted("wal.no_sync") {
            return Ok(());
        }
        // I8: once.
        let synced = self.segment.file.sync_data();
        if planted("wal.retry_after_eio") {
            synced.or_else(|_| self.segment.file.sync_data())
        } else {
            synced
        }
    }

    /// Notes, without sync, that everything is durable; the next record goes over the note.
    pub(super) fn mark(&mut self) -> Result<(), WalError> {
        let whole = place_of_note(self.position) == self.position;
        if self.marked == self.synced || !whole || self.position + NOTE > self.segment.end {
            return Ok(());
        }
        let mut frame = Vec::with_capacity(FRAME_BYTES_MIN);
        let (lsn, chain) = (self.synced, self.chain);
        let position = Position { lsn, synced_through: lsn, chain };
        encode(&mut frame, self.segment.nonce, FrameKind::Mark, position, &[], &[])?;
        let path = &self.segment.path;
        let written = self.segment.file.write_all_at(&frame, self.position);
        written.map_err(io_at("write", path))?;
        self.marked = self.synced;
        Ok(())
    }
}
