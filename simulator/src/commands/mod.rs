//! The command line of `weir-sim`.
//!
//! Exit codes: 0 as expected, 1 a check failed or a verdict differs, 2 the input or the call is wrong.

mod ask;
mod diff;
mod explain;
mod files;
mod fuzz;
mod lint;
mod matrix;
mod run;
mod settings;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use datapath_abi::Config;

use crate::cluster::matrix::AskError;
use crate::cluster::{ClusterError, EngineError, EngineKind, Protocol};
use crate::engines::{self, Kind, Limits, OpenError};

/// weir's network in one process: many nodes, the bytecode of production, no root.
#[derive(Debug, Parser)]
#[command(
    name = "weir-sim",
    version,
    about,
    after_help = "Exit codes: 0 as expected, 1 a check failed, 2 wrong input."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs scenarios: objects, steps and what must come out.
    Run(run::Args),
    /// Who reaches whom: every pod and the world, to every pod, by real packets through every hop's bytecode.
    Matrix(matrix::Args),
    /// Why a connection works or not: hop by hop, and the rule that decided.
    Explain(explain::Args),
    /// What changes from one version to another: every verdict, and the rule that changes it.
    Diff(diff::Args),
    /// What is probably not meant: selectors that match nothing, rules that never decide, denies by accident, and more.
    Lint(lint::Args),
    /// Random packets and state through several engines; any difference is written out as a scenario.
    Fuzz(fuzz::Args),
    /// Writes a completion script for a shell.
    #[command(hide = true)]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Which engines run a scenario.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineChoice {
    /// rbpf: for clusters its machine code where there is that lane, else its interpreter.
    #[default]
    Rbpf,
    /// weir's own interpreter, with exact memory checks.
    Checked,
    /// The datapath's decisions compiled for this machine, without bytecode.
    Native,
    /// The running kernel's test-run (Linux, root).
    Kernel,
    /// Each of them, one after the other; the kernel only where this process may use it.
    All,
}

impl EngineChoice {
    /// Engines for clusters.
    fn kinds(self) -> Vec<EngineKind> {
        match self {
            Self::Rbpf => vec![EngineKind::Rbpf],
            Self::Checked => vec![EngineKind::Checked],
            Self::Native => vec![EngineKind::Native],
            Self::Kernel => vec![EngineKind::Kernel],
            Self::All => {
                let mut kinds = vec![EngineKind::Rbpf, EngineKind::Checked, EngineKind::Native];
                if kernel_opens() {
                    kinds.push(EngineKind::Kernel);
                }
                kinds
            }
        }
    }

    /// Engines for single packets.
    fn packet_kinds(self) -> Vec<Kind> {
        match self {
            Self::Rbpf => vec![Kind::Rbpf],
            Self::Checked => vec![Kind::Checked],
            Self::Native => vec![Kind::Native],
            Self::Kernel => vec![Kind::Kernel],
            Self::All => {
                let opens = |kind: &Kind| engines::open(*kind, &Config::with_defaults(250), Limits::SMALL).is_ok();
                Kind::ALL.iter().copied().filter(opens).collect()
            }
        }
    }
}

/// Whether this process may use the kernel's test-run; if not, says so once.
fn kernel_opens() -> bool {
    match engines::open(Kind::Kernel, &Config::with_defaults(250), Limits::SMALL) {
        Ok(_) => true,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "skip: {error}");
            false
        }
    }
}

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The input or the call is wrong: exit code 2.
    #[error("{0}")]
    Input(String),
    /// Something that should work does not: exit code 1.
    #[error("{0}")]
    Broken(String),
    /// Output could not be written.
    #[error("output: {0}")]
    Output(#[from] std::io::Error),
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Input(_)
            | ClusterError::Identity(_)
            | ClusterError::Endpoints(_)
            | ClusterError::Capture(_)
            | ClusterError::Desired(_)
            | ClusterError::Reconcile { .. } => Self::Input(error.to_string()),
            ClusterError::Engine(EngineError::Open(OpenError::Privilege { .. })) => Self::Input(error.to_string()),
            ClusterError::Engine(_) => Self::Broken(error.to_string()),
        }
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Cluster(error) => error.into(),
            AskError::Run(error) => error.into(),
        }
    }
}

impl From<simulator_vm::RunError> for Failure {
    fn from(error: simulator_vm::RunError) -> Self {
        Self::Broken(format!("a program failed: {error}"))
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Matrix(args) => matrix::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "weir-sim", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    match result {
        Ok(code) => code,
        // Who reads the output has seen enough.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "{failure}");
            match failure {
                Failure::Input(_) | Failure::Output(_) => ExitCode::from(2),
                Failure::Broken(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// One line of JSON.
fn to_json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::Output(error.into()))
}

/// `80/TCP`, `53/udp`, `ICMP`, `8/ICMP`.
pub(crate) fn parse_port(text: &str) -> Result<Protocol, String> {
    let wrong = || "must be PORT/PROTOCOL with TCP, UDP or SCTP, or ICMP, or TYPE/ICMP".to_owned();
    if text.eq_ignore_ascii_case("icmp") {
        return Ok(Protocol::Icmp(None));
    }
    let (number, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let number: u16 = number.parse().map_err(|_| wrong())?;
    match protocol.to_ascii_uppercase().as_str() {
        "ICMP" => Ok(Protocol::Icmp(Some(u8::try_from(number).map_err(|_| wrong())?))),
        "TCP" if number != 0 => Ok(Protocol::Tcp(number)),
        "UDP" if number != 0 => Ok(Protocol::Udp(number)),
        "SCTP" if number != 0 => Ok(Protocol::Sctp(number)),
        _ => Err(wrong()),
    }
}
