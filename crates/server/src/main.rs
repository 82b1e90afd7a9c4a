//! One binary, many modes. The hidden ones are decided before any runtime, thread or inherited descriptor is touched.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use outlive::config::Config;
use outlive::face::cli::{self, DemoArgs, Hooks, ServeArgs};
use outlive::world::operation;
use outlive::{data_dir, demo, demo_agent, serve};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|verb| verb.to_str()) {
        Some("supervise") => outlive_supervisor::main(args),
        Some("operate") => operation::main(args),
        Some(outlive_core::engine::demo::VERB) => demo_agent::main(args),
        _ => cli::main(&Hooks { serve, demo }),
    }
}

fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    trace();
    let mut config = Config::load(args.config.as_deref(), |name| std::env::var(name).ok())?;
    if let Some(listen) = args.listen {
        config.listen_on(&listen)?;
    }
    let data = args.data.unwrap_or_else(data_dir::default_root);
    serve::serve(&data, &config)?;
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of a hook")]
fn demo(args: DemoArgs) -> anyhow::Result<ExitCode> {
    demo::play(args.engine.as_deref().unwrap_or("demo"), args.keep)?;
    Ok(ExitCode::SUCCESS)
}

/// Our own diagnostics go to standard error; `RUST_LOG` says how much of them.
fn trace() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
