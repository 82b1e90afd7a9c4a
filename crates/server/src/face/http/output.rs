//! How an output byte reaches a client: from the files that agents write, by offset, also while they grow.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use outlive_core::engine::{self, Engine, Reader};
use outlive_core::ids::JobId;
use outlive_core::job::{Job, Phase};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::problem::Problem;
use super::tail::Tail;
use super::{App, unknown};

/// Read and sent in pieces of this size.
const PIECE_BYTES: usize = 64 << 10;

/// Pieces that may wait for a slow client; then reading waits too.
const PIECES_MAX: usize = 4;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    #[serde(default)]
    stream: Stream,
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    format: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stream {
    #[default]
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Raw,
    Text,
}

pub(super) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(asked) = asked.map_err(|e| Problem::bad("bad_query", e.body_text()))?;
    let job = app.find(&id)?;
    let total = Files::of(&app, &job, asked.stream).len();
    let range = match (headers.get(header::RANGE), asked.format) {
        (None, _) => None,
        (Some(range), Format::Raw) => Some(parse_range(range.to_str().unwrap_or_default(), total)?),
        (Some(_), Format::Text) => {
            return Err(Problem::bad("bad_range", "a range of bytes is a range of raw bytes"));
        }
    };
    let (from, to) = range.unwrap_or((0, None));
    let text = (asked.format == Format::Text && asked.stream == Stream::Stdout)
        .then(|| engine::find(&job.task.engine))
        .flatten();
    let end = if asked.follow { to } else { Some(to.unwrap_or(total).min(total)) };
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let mut copy = Copy {
        app: app.clone(),
        job: job.id.clone(),
        stream: asked.stream,
        at: from,
        end,
        text: text.map(|engine| Text { engine, reader: engine.reader(), attempts_done: 0 }),
        sender,
    };
    app.tracker.spawn(async move { copy.run().await });
    respond(range.is_some(), (from, end, total), asked.follow || text.is_some(), pieces)
}

type Pieces = mpsc::Receiver<Result<Bytes, std::io::Error>>;

fn respond(
    partial: bool,
    (from, end, total): (u64, Option<u64>, u64),
    open: bool,
    pieces: Pieces,
) -> Result<Response, Problem> {
    let mut response = Response::builder().header(header::CONTENT_TYPE, "application/octet-stream");
    response = response.header(header::ACCEPT_RANGES, "bytes");
    if partial {
        let last = end.unwrap_or(total).max(1) - 1;
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {from}-{last}/{total}"));
    }
    if let (Some(end), false) = (end, open) {
        response = response.header(header::CONTENT_LENGTH, end.saturating_sub(from));
    }
    response
        .body(Body::from_stream(ReceiverStream::new(pieces)))
        .map_err(|error| Problem::broken(error.to_string()))
}

/// Reads `bytes=A-B`, `bytes=A-` or `bytes=-N`: the first byte and the one after the last.
pub(super) fn parse_range(text: &str, total: u64) -> Result<(u64, Option<u64>), Problem> {
    let bad = || {
        let status = StatusCode::RANGE_NOT_SATISFIABLE;
        Problem::new(status, "bad_range", format!("`{text}` is no range of {total} bytes"))
    };
    let (from, to) = text.strip_prefix("bytes=").and_then(|r| r.split_once('-')).ok_or_else(bad)?;
    match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) if from <= to && from <= total => Ok((from, Some(to.saturating_add(1)))),
        (Ok(from), Err(_)) if to.is_empty() && from <= total => Ok((from, None)),
        (Err(_), Ok(last)) if from.is_empty() => Ok((total.saturating_sub(last), None)),
        _ => Err(bad()),
    }
}

/// The files that make one stream of a job's output, one per session, and where each begins in the whole.
struct Files(Vec<(u64, PathBuf)>);

impl Files {
    fn of(app: &App, job: &Job, stream: Stream) -> Self {
        let index = usize::from(stream == Stream::Stderr);
        let file = |session: &outlive_core::job::Session| {
            let [stdout, stderr] = app.paths.output(&job.id, &session.id);
            let path = if index == 0 { stdout } else { stderr };
            (session.output_base[index], path)
        };
        Self(job.sessions.iter().map(file).collect())
    }

    fn len(&self) -> u64 {
        self.0.last().map_or(0, |(base, path)| base + path.metadata().map_or(0, |data| data.len()))
    }

    /// The file that holds a byte, where in it, and how far it goes.
    fn at(&self, at: u64) -> Option<(&PathBuf, u64, Option<u64>)> {
        let index = self.0.iter().rposition(|(base, _)| *base <= at)?;
        let (base, path) = self.0.get(index)?;
        let next = self.0.get(index + 1).map(|(next, _)| *next - at);
        Some((path, at - base, next))
    }
}

/// Text for people, made of raw output: one reader per attempt, since a kill can tear the last line.
struct Text {
    engine: &'static Engine,
    reader: Reader,
    attempts_done: usize,
}

/// One answer on its way.
struct Copy {
    app: App,
    job: JobId,
    stream: Stream,
    at: u64,
    end: Option<u64>,
    text: Option<Text>,
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
}

/// The client is gone, or everything is sent.
struct Over;

impl Copy {
    async fn run(&mut self) {
        let stopping = self.app.stopping.clone();
        // A follower's answer would never be over; what has an end is given whole.
        let follows = self.end.is_none();
        // A failed read ends the answer as a broken one, so that no client takes it for whole.
        let outcome = tokio::select! {
            outcome = self.copy() => outcome,
            () = stopping.cancelled(), if follows => Err(std::io::Error::other("the server is stopping")),
        };
        if let Err(error) = outcome {
            drop(self.sender.send(Err(error)).await);
        }
    }

    async fn copy(&mut self) -> std::io::Result<()> {
        let mut changes = self.app.handle.changes();
        loop {
            let job = changes.borrow_and_update().job(&self.job).cloned();
            let Some(job) = job else { return Err(std::io::Error::other(unknown_text(&self.job))) };
            let files = Files::of(&self.app, &job, self.stream);
            let tail = self.follow(&files)?;
            let grown = tail.as_ref().map(Tail::grown);
            if let Err(Over) = self.send_what_is_there(&files).await? {
                return Ok(());
            }
            if self.end.is_some_and(|end| self.at >= end) || is_over(&job) {
                return self.finish(&job).await;
            }
            tokio::select! {
                () = async { match grown { Some(grown) => grown.await, None => std::future::pending().await } } => {}
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
                () = self.sender.closed() => return Ok(()),
            }
        }
    }

    fn follow(&self, files: &Files) -> std::io::Result<Option<Tail>> {
        match (self.end, files.at(self.at)) {
            (None, Some((path, _, _))) => self.app.tails.follow(path).map(Some),
            _ => Ok(None),
        }
    }

    /// Sends from `at` to the end of what is there now.
    async fn send_what_is_there(&mut self, files: &Files) -> std::io::Result<Result<(), Over>> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let left = self.end.map_or(u64::MAX, |end| end.saturating_sub(self.at));
            let Some((path, offset, room)) = files.at(self.at) else { return Ok(Ok(())) };
            let most = left.min(room.unwrap_or(u64::MAX)).min(PIECE_BYTES as u64);
            let most = usize::try_from(most).unwrap_or(PIECE_BYTES);
            let got = match tokio::fs::File::open(path).await {
                Ok(mut file) => {
                    file.seek(SeekFrom::Start(offset)).await?;
                    file.read(piece.get_mut(..most).unwrap_or_default()).await?
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
            if got == 0 {
                return Ok(Ok(()));
            }
            let bytes = piece.get(..got).unwrap_or_default().to_vec();
            if self.send(bytes).await.is_err() {
                return Ok(Err(Over));
            }
        }
    }

    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), Over> {
        let from = self.at;
        self.at += bytes.len() as u64;
        let ends = attempt_ends(self.app.handle.view().job(&self.job));
        let out = match &mut self.text {
            None => bytes,
            Some(text) => text.render(&bytes, from, &ends),
        };
        if out.is_empty() {
            return Ok(());
        }
        self.sender.send(Ok(out.into())).await.map_err(|_| Over)
    }

    /// Gives out what the last reader held back.
    async fn finish(&mut self, _job: &Arc<Job>) -> std::io::Result<()> {
        if let Some(text) = self.text.take() {
            let mut items = Vec::new();
            text.reader.finish(&mut items);
            let mut out = Vec::new();
            for item in &items {
                item.write_to(&mut out);
            }
            if !out.is_empty() {
                drop(self.sender.send(Ok(out.into())).await);
            }
        }
        Ok(())
    }
}

fn unknown_text(id: &JobId) -> String {
    drop(unknown(id.as_str()));
    format!("job {id} was removed")
}

/// Where finished attempts end in the job's whole stdout, in order.
fn attempt_ends(job: Option<&Arc<Job>>) -> Vec<u64> {
    let Some(job) = job else { return Vec::new() };
    let end = |attempt: &outlive_core::job::Attempt| {
        let base = job.sessions.get(attempt.session as usize)?.output_base[0];
        Some(base + attempt.end.as_ref()?.output_to[0])
    };
    job.attempts.iter().map_while(end).collect()
}

impl Text {
    /// Reads the next bytes, which stand at `from`. An attempt's end closes its reader: what follows is another attempt's.
    fn render(&mut self, bytes: &[u8], mut from: u64, ends: &[u64]) -> Vec<u8> {
        let mut items = Vec::new();
        let mut rest = bytes;
        while let Some(end) = ends.get(self.attempts_done).copied() {
            let here = usize::try_from(end.saturating_sub(from)).unwrap_or(usize::MAX);
            if here >= rest.len() {
                break;
            }
            let (mine, others) = rest.split_at(here);
            self.reader.feed(mine, &mut items);
            let next = self.engine.reader();
            std::mem::replace(&mut self.reader, next).finish(&mut items);
            self.attempts_done += 1;
            from += here as u64;
            rest = others;
        }
        self.reader.feed(rest, &mut items);
        let mut out = Vec::new();
        for item in &items {
            item.write_to(&mut out);
        }
        out
    }
}

/// Nothing more will come by itself.
fn is_over(job: &Job) -> bool {
    matches!(job.phase, Phase::Ended { .. } | Phase::Unknown { .. } | Phase::Held)
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges_are_read_as_http_means_them() {
        let range = |text| parse_range(text, 100).ok();
        assert_eq!(range("bytes=0-0"), Some((0, Some(1))));
        assert_eq!(range("bytes=10-"), Some((10, None)));
        assert_eq!(range("bytes=100-"), Some((100, None)));
        assert_eq!(range("bytes=-30"), Some((70, None)));
        assert_eq!(range("bytes=0-18446744073709551615"), Some((0, Some(u64::MAX))));
        for bad in ["bytes=5-4", "bytes=101-", "lines=1-2", "bytes=x-y", ""] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
