//! `weir-agent` as a function: the command line, the log, the runtime. For the binary, and for whatever runs an agent as
//! itself (a lab that is one program).

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use crate::agent::Agent;
use crate::settings::{DEFAULTS, Settings};
use crate::{Failure, cleanup, server};

/// Connects the pods of one node: reads the cluster's objects, fills the datapath's maps, makes devices, attaches programs.
///
/// Exit codes: 0 as expected, 1 something failed, 2 the settings or the call are wrong.
#[derive(Debug, Parser)]
#[command(name = "weir-agent", version)]
struct Arguments {
    /// Settings file (TOML). Without it every setting has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Writes the default settings, documented, and stops.
    #[arg(long)]
    print_config: bool,
    /// Checks the settings and whether this kernel can attach the datapath, and stops.
    #[arg(long, conflicts_with = "print_config")]
    check: bool,
    /// Removes everything that the agent has made, and stops.
    #[arg(long, conflicts_with_all = ["print_config", "check"])]
    cleanup: bool,
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.print_config {
        print!("{DEFAULTS}");
        return Ok(());
    }
    let settings = match &arguments.config {
        Some(path) => Settings::read(path).map_err(|error| Failure::input(error.to_string()))?,
        None => Settings::default().named(),
    };
    if let Some(missing) = datapath_kernel::missing_privilege() {
        return Err(Failure::input(format!("weir-agent needs root: {missing}")).into());
    }
    if arguments.check {
        let method = settings.attach.probe().context("this kernel cannot attach the datapath")?;
        println!("settings and kernel are good; programs are attached by {}", method.name());
        return Ok(());
    }
    let _lock = cleanup::lock(&settings.state)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if arguments.cleanup {
        return Ok(runtime.block_on(cleanup::cleanup(&settings))?);
    }
    runtime.block_on(async { server::serve(Agent::open(settings)?).await })?;
    Ok(())
}

/// Runs `weir-agent` with these arguments, the first of which is its name, until it ends. Call it once, from a process of
/// its own.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = Arguments::parse_from(arguments);
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEIR_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,netlink_proto=warn"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        // Whoever reads the log may go; the agent stays.
        .log_internal_errors(false)
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-agent: {error:#}");
            let input = matches!(error.downcast_ref(), Some(Failure::Input { .. }));
            ExitCode::from(if input { 2 } else { 1 })
        }
    }
}
