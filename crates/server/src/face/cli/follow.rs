//! Staying with a job: its output and its end, over restarts of the server.
//!
//! The job needs no server, so a follower needs one only now and then: when the answer breaks off, it looks for the server
//! again and goes on at the byte where it was.

use std::io::{Read as _, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::ending::is_over;
use super::failure::Failure;
use super::note;
use super::text::at;
use crate::face::client::target::{PATIENCE, Patience, Target};
use crate::face::client::{Client, ClientError, escape, sse};

/// Read and written in pieces of at most this size.
const PIECE_BYTES: usize = 64 << 10;

/// An answer that lasted this long came from a server that works; one that breaks off at once, again and again, does not.
const STEADY: Duration = Duration::from_secs(1);

/// Which output, in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Standard output as text for people.
    Text,
    /// Standard output byte for byte.
    Raw,
    /// Standard error; it has no other form.
    Stderr,
}

impl Form {
    fn path(self, id: &str, follow: bool) -> String {
        let (stream, format) = match self {
            Self::Text => ("stdout", "text"),
            Self::Raw => ("stdout", "raw"),
            Self::Stderr => ("stderr", "raw"),
        };
        let id = escape(id);
        format!("/api/jobs/{id}/output?stream={stream}&format={format}&follow={follow}")
    }
}

/// The job of that id, beginning of an id, or `last`.
pub(super) fn job(client: &Client, id: &str) -> Result<Value, ClientError> {
    client.get(&format!("/api/jobs/{}", escape(id)))?.json()
}

/// Writes what there is of a job's output.
pub(super) fn output_so_far(
    client: &Client,
    id: &str,
    form: Form,
    sink: &mut impl Write,
) -> Result<(), Failure> {
    Copy { at: 0 }.copy(client, &form.path(id, false), form, sink, &mut Contact::default())
}

/// One who stays with a job of a server that was met already.
pub(super) struct Follower<'a> {
    target: &'a Target,
    patience: Patience,
    /// A person shall hear of a server that is away, once.
    tell: bool,
}

impl<'a> Follower<'a> {
    /// Tells when the server is away.
    pub(super) fn new(target: &'a Target) -> Self {
        Self { target, patience: Patience::new(PATIENCE), tell: true }
    }

    /// Waits in silence.
    pub(super) fn quiet(target: &'a Target) -> Self {
        Self { tell: false, ..Self::new(target) }
    }

    /// Writes a job's output until the job is over; gives the job. `id` is a full one: `last` might be another after a restart.
    pub(super) fn output(
        &mut self,
        id: &str,
        form: Form,
        sink: &mut impl Write,
    ) -> Result<Value, Failure> {
        let path = form.path(id, true);
        let mut copy = Copy { at: 0 };
        self.persist(|client, contact| copy.until_over(client, id, (&path, form), sink, contact))
    }

    /// Waits until a job is over; gives it.
    pub(super) fn end(&mut self, id: &str) -> Result<Value, Failure> {
        self.persist(|client, contact| await_job(client, id, contact, is_over))
    }

    /// Does a step again, with the server as it is to be found then, as long as it fails only because the server is away.
    /// Only a server that stays away for long, or never works for long, exhausts the patience.
    pub(super) fn persist<T>(
        &mut self,
        mut step: impl FnMut(&Client, &mut Contact) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut away = false;
        loop {
            let mut contact = Contact::default();
            let outcome = step(&self.target.client(), &mut contact);
            if contact.was_good() {
                self.patience.renew();
            }
            let failure = match outcome {
                Err(Failure::Client(error)) if error.is_passing() => Failure::Client(error),
                other => return other,
            };
            if !self.patience.pause() {
                return Err(failure);
            }
            if self.tell && !std::mem::replace(&mut away, true) {
                self.tell = false;
                note("the server is away; the job needs none and goes on: waiting for the server");
            }
        }
    }
}

/// What a step saw of the server.
#[derive(Debug, Default)]
pub(super) struct Contact {
    answered: Option<Instant>,
    progressed: bool,
}

impl Contact {
    /// It answers, and what is asked for is on its way.
    pub(super) fn answered(&mut self) {
        self.answered = Some(Instant::now());
    }

    fn was_good(&self) -> bool {
        self.progressed || self.answered.is_some_and(|answered| answered.elapsed() >= STEADY)
    }
}

/// Output on its way to somebody, and how far it has come.
struct Copy {
    at: u64,
}

impl Copy {
    fn until_over(
        &mut self,
        client: &Client,
        id: &str,
        (path, form): (&str, Form),
        sink: &mut impl Write,
        contact: &mut Contact,
    ) -> Result<Value, Failure> {
        loop {
            self.copy(client, path, form, sink, contact)?;
            let job = job(client, id)?;
            if is_over(&job) {
                return Ok(job);
            }
            if at(&job, "/phase") != "held" {
                return Err(broken(client, "the output ended before the job").into());
            }
            note(&format!("job {id} is held; `outlive start {id}` lets it go"));
            let goes_on = |job: &Value| at(job, "/phase") != "held";
            await_job(client, id, contact, goes_on)?;
        }
    }

    /// Writes from where it is to the end of the answer.
    fn copy(
        &mut self,
        client: &Client,
        path: &str,
        form: Form,
        sink: &mut impl Write,
        contact: &mut Contact,
    ) -> Result<(), Failure> {
        let range = format!("bytes={}-", self.at);
        // A byte of text is not a byte of the file. But the same bytes always give the same text.
        let ranged = self.at > 0 && form != Form::Text;
        let headers = [("range", range.as_str())];
        let mut answer = match client.stream(path, if ranged { &headers } else { &[] }) {
            Ok(answer) => answer,
            // The file is shorter than it was; the job tells whether more can come.
            Err(ClientError::Problem { status: 416, .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        contact.answered();
        let mut known = if answer.status == 206 { 0 } else { self.at };
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let got = answer.read(&mut piece).map_err(|error| broken(client, error))?;
            if got == 0 {
                return Ok(());
            }
            let skipped = usize::try_from(known).unwrap_or(usize::MAX).min(got);
            known -= skipped as u64;
            let new = piece.get(skipped..got).unwrap_or_default();
            if !new.is_empty() {
                sink.write_all(new)?;
                sink.flush()?;
                self.at += new.len() as u64;
                contact.progressed = true;
            }
        }
    }
}

/// Waits for a job to be as wanted. The server tells how it is now, first, and then every change.
fn await_job(
    client: &Client,
    id: &str,
    contact: &mut Contact,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value, Failure> {
    let path = format!("/api/jobs/{}/events", escape(id));
    let answer = client.stream(&path, &[])?;
    contact.answered();
    for event in sse::events(answer) {
        let event = event.map_err(|error| broken(client, error))?;
        if event.name == "job" {
            let job = serde_json::from_str(&event.data).map_err(|error| broken(client, error))?;
            if wanted(&job) {
                return Ok(job);
            }
        }
    }
    Err(broken(client, "the events ended before the job").into())
}

fn broken(
    client: &Client,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ClientError {
    ClientError::Broken { server: client.server().to_string(), source: source.into() }
}

#[cfg(test)]
mod tests;
