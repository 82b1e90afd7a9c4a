//! The two ends of an agent's life as its client sees them: from accepted to the first byte, from its exit to "ended".

use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::Extent;
use crate::report::{Row, Samples, Unit};
use crate::rig::{Rig, between_ms, command_job, now_ns};

/// An agent that says what time it is, in nanoseconds, and ends.
const AGENT: [&str; 2] = ["date", "+%s%N"];

/// From the acknowledgement of a submission until the first byte of its agent has come.
pub(crate) fn first_byte(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let rig = Rig::start(4)?;
    let api = rig.api()?;
    let job = command_job(&AGENT);
    let [mut bare, mut written, mut first, mut copied, mut launched, mut told] =
        [const { Samples::new() }; 6];
    for _ in 0..extent.pick(100, 10) {
        bare.push(fork_exec_pipe()?);
        let id = api.submit(&job)?;
        let accepted = now_ns();
        let mut output = api.follow(&id)?;
        let mut text = vec![0];
        output.read_exact(&mut text).context("no first byte")?;
        let came = now_ns();
        output.read_to_end(&mut text)?;
        let said = stamp(&text)?;
        let job = api.wait_ended(&id)?;
        let planned = job["attempts"][0]["planned_at"].as_str().unwrap_or_default();
        let planned = outlive::clock::parse(planned).map_err(anyhow::Error::msg)?;
        let planned = i128::from(planned.0) * 1_000_000;
        first.push(between_ms(accepted, came));
        written.push(between_ms(accepted, said));
        copied.push(between_ms(accepted, planned).max(0.0));
        launched.push(between_ms(planned, said).max(0.0));
        told.push(between_ms(said, came));
    }
    let what = "fork, exec, pipe";
    let row = |name: &str, samples: &Samples| Row::new(name, Unit::Ms, samples);
    Ok(vec![
        row("bare: fork, exec, pipe, first byte", &bare),
        row("accepted → first byte at the client", &first).times(what, Unit::Ms, &first, &bare),
        row("accepted → the agent writes it", &written).times(what, Unit::Ms, &written, &bare),
        row("of this: workspace copied, launch planned (to 1 ms)", &copied),
        row("of this: launch planned → the agent writes", &launched),
        row("written → at the client", &told),
    ])
}

/// From the agent's last words until its client is told that the job has ended.
pub(crate) fn end(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let rig = Rig::start(4)?;
    let api = rig.api()?;
    let job = command_job(&AGENT);
    let [mut told, mut recorded] = [const { Samples::new() }; 2];
    for _ in 0..extent.pick(100, 10) {
        let id = api.submit(&job)?;
        let job = api.wait_ended(&id)?;
        let came = now_ns();
        let mut text = Vec::new();
        api.open(&format!("/api/jobs/{id}/output"))?.read_to_end(&mut text)?;
        let said = stamp(&text)?;
        let ended = job["attempts"][0]["ended_at"].as_str().context("an attempt without end")?;
        let ended = outlive::clock::parse(ended).map_err(anyhow::Error::msg)?;
        told.push(between_ms(said, came));
        recorded.push(between_ms(said, i128::from(ended.0) * 1_000_000).max(0.0));
    }
    Ok(vec![
        Row::new("agent's last words → ended, at the client", Unit::Ms, &told).goal(
            Unit::Ms,
            &told,
            50.0,
        ),
        Row::new("agent's last words → its end as recorded (to 1 ms)", Unit::Ms, &recorded),
    ])
}

/// What the kernel and the agent alone take.
fn fork_exec_pipe() -> anyhow::Result<f64> {
    let begun = now_ns();
    let [program, argument] = AGENT;
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdout = child.stdout.take().context("not piped")?;
    stdout.read_exact(&mut [0])?;
    let took = between_ms(begun, now_ns());
    child.wait()?;
    Ok(took)
}

fn stamp(text: &[u8]) -> anyhow::Result<i128> {
    let text = std::str::from_utf8(text)?.trim();
    text.parse().with_context(|| format!("the agent did not tell the time but `{text}`"))
}
