//! The project's own figures: real servers, real supervisors and agents, on this machine, printed beside what they are to be
//! compared with. `docs/performance.md` says what each figure means.
//!
//! Absent: assertions. A busy machine makes every time longer, so a test of times would fail for reasons of its own.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints figures")]

mod agents;
mod idle;
mod machine;
mod memory;
mod place;
mod report;
mod rig;
mod start;
mod submit;

use std::process::ExitCode;

use anyhow::bail;

use report::Row;

/// How much is measured: everything, or just enough to see that it works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    quick: bool,
}

impl Extent {
    /// The first, or with `--quick` the second.
    pub(crate) fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

type Measure = fn(Extent) -> anyhow::Result<Vec<Row>>;

/// All figures by the name under which they are asked for, in the order in which they are printed.
const FIGURES: &[(&str, Measure)] = &[
    ("submit", submit::measure),
    ("first-byte", agents::first_byte),
    ("end", agents::end),
    ("start", start::with_queue),
    ("start-100k", start::with_long_queue),
    ("adopt", start::with_agents),
    ("adopt-1k", start::with_many_agents),
    ("memory", memory::measure),
    ("idle", idle::measure),
    ("place", place::measure),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("figures: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let (quick, names): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument == "--quick");
    let extent = Extent { quick: !quick.is_empty() };
    let known: Vec<&str> = FIGURES.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        let known = known.join(", ");
        bail!("there is no figure `{unknown}`; usage: figures [NAME...] [--quick], with {known}");
    }
    let program = rig::program()?;
    let before = machine::load();
    println!("{}", machine::describe(&program, before.as_deref()));
    for (name, measure) in FIGURES {
        if names.is_empty() || names.iter().any(|asked| asked == name) {
            eprintln!("measuring: {name}");
            let rows = measure(extent)?;
            println!("\n{}", report::table(name, &rows));
        }
    }
    println!("\nLoad at the end: {}.", machine::load().unwrap_or_else(|| "unknown".to_string()));
    Ok(())
}
