//! The supervisor with real processes, real files and real SIGKILL.
//!
//! This program is the supervisor when it is called as one, and else the tests: the standard harness would have threads where a
//! supervisor must have none. Every wait is for an event and bounded.

#![expect(clippy::print_stdout, reason = "this program is its own test harness")]

mod crashes;
mod fixture;
mod launching;
mod outputs;
mod stopping;
mod survival;

use std::process::ExitCode;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.peek().is_some_and(|arg| arg == "supervise") {
        return outlive_supervisor::main(args.skip(1));
    }
    if args.peek().is_some_and(|arg| arg == "hog") {
        return stopping::hog();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tests =
        [launching::TESTS, outputs::TESTS, stopping::TESTS, survival::TESTS, crashes::TESTS];
    let tests: Vec<Test> = tests.concat();
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    // Agents whose supervisor was killed come to us: so a test decides when such a one is buried.
    let me = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(me)).expect("a subreaper");
    fixture::say_what_is_not_covered();
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let mut failed = 0_u32;
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(*part)) {
            continue;
        }
        let start = std::time::Instant::now();
        let passed = std::panic::catch_unwind(test).is_ok();
        failed += u32::from(!passed);
        let verdict = if passed { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({} ms)", start.elapsed().as_millis());
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
