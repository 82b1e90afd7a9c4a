//! Looking: everything that can be observed of a piece of work, made into one report. Takes nothing, changes nothing.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use outlive_core::engine::{self, Engine};
use outlive_core::evidence::{Evidence, Seen};
use outlive_core::job::{Attempt, Job, Work};
use outlive_core::request::{Findings, Report};
use outlive_core::spec::Reading;
use outlive_core::state::State;
use outlive_supervisor::{Here, probe};

use crate::data_dir::Paths;
use crate::world::launch::tail;

/// An operation's answer and complaint are a line each; more is noise.
const OPERATION_WORDS_BYTES: u64 = 64 << 10;

/// The signs of a conversation on standard error stand in its last lines.
const STDERR_TAIL_BYTES: u64 = 64 << 10;

/// Output is read in pieces of this size, whatever its length.
const PIECE_BYTES: usize = 256 << 10;

/// Looks at a piece of work.
pub fn look(work: &Work, state: &State, paths: &Paths, here: &Here) -> Report {
    let dir = paths.keep(work);
    let mut evidence = probe(&dir, here);
    let gone = !matches!(evidence.agent, Seen::Alive | Seen::OtherNamespace)
        && (evidence.started != Reading::Absent || evidence.outcome != Reading::Absent);
    let findings = match work {
        _ if !gone => Findings::default(),
        Work::Operation { .. } => operation_findings(&dir),
        Work::Attempt { job, attempt } => {
            let found = state.job(job).and_then(|job| Some((job, job.attempt(*attempt)?)));
            found.map_or_else(Findings::default, |(job, attempt)| {
                attempt_findings(job, attempt, paths, &mut evidence)
            })
        }
    };
    let fresh_session = crate::random::session_id();
    Report { work: work.clone(), evidence, findings, fresh_session }
}

fn operation_findings(dir: &Path) -> Findings {
    let words = |name: &str| {
        let bytes = tail(&dir.join(name), OPERATION_WORDS_BYTES).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let answer = words("stdout").lines().last().and_then(|line| serde_json::from_str(line).ok());
    Findings { answer, complaint: words("stderr"), ..Findings::default() }
}

fn attempt_findings(
    job: &Job,
    attempt: &Attempt,
    paths: &Paths,
    evidence: &mut Evidence,
) -> Findings {
    let Some(session) = job.sessions.get(attempt.session as usize) else {
        return Findings::default();
    };
    let output = paths.output(&job.id, &session.id);
    let lengths =
        output.each_ref().map(|path| path.metadata().map_or(0, |metadata| metadata.len()));
    let from = evidence.started.valid().map_or(lengths[0], |started| started.output_from[0]);
    let mut findings = Findings { output_now: lengths, ..Findings::default() };
    if let Some(engine) = engine::find(&job.task.engine) {
        let reading = read_output(engine, &output[0], from).unwrap_or_default();
        let stderr = tail(&output[1], STDERR_TAIL_BYTES).unwrap_or_default();
        let sign = engine.sign_in_stderr(&stderr).or(reading.sign);
        evidence.result = reading.result.map(|mut result| {
            let max = outlive_core::limits::RESULT_TEXT_BYTES_MAX;
            let end =
                (0..=max.min(result.text.len())).rev().find(|at| result.text.is_char_boundary(*at));
            result.text.truncate(end.unwrap_or(0));
            result
        });
        findings.usage = reading.usage;
        findings.session_sign = sign;
        findings.limit = reading.limit;
    }
    findings
}

fn read_output(
    engine: &Engine,
    path: &Path,
    from: u64,
) -> std::io::Result<outlive_core::engine::Reading> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut reader = engine.reader();
    let mut piece = vec![0; PIECE_BYTES];
    let mut items = Vec::new();
    loop {
        let got = file.read(&mut piece)?;
        if got == 0 {
            return Ok(reader.finish(&mut items));
        }
        reader.feed(piece.get(..got).unwrap_or_default(), &mut items);
        items.clear();
    }
}
