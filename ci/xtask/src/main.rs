//! Development tasks. `cargo xtask build-ebpf` compiles the eBPF object with the pinned toolchain into
//! `datapath/bytecode` (`--check` compares instead of writing); `tidy` holds up rules about the sources; `skips` compares
//! what tests skipped with what is declared; `vm` runs a command on another kernel.
#![forbid(unsafe_code)]

mod build_ebpf;
mod skips;
mod tidy;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "weir's development tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Compile the eBPF object into datapath/bytecode (needs rust-src, bpf-linker and llvm-objcopy; see ci/install.sh)
    BuildEbpf {
        /// Write nothing; fail if the committed object differs
        #[arg(long)]
        check: bool,
    },
    /// Check the rules about sources: edges between crates (ci/deps.toml), lints, sizes, invariants
    Tidy,
    /// Compare the skips in the logs of a run with ci/skips.toml
    Skips {
        /// What `cargo test -- --show-output`, and labs, printed
        #[arg(required = true)]
        logs: Vec<PathBuf>,
    },
    Vm(vm::Vm),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::BuildEbpf { check } => build_ebpf::run(check).map(|()| ExitCode::SUCCESS),
        Task::Tidy => workspace().and_then(|root| tidy::run(&root)).map(|()| ExitCode::SUCCESS),
        Task::Skips { logs } => workspace().and_then(|root| skips::run(&root, &logs)).map(|()| ExitCode::SUCCESS),
        Task::Vm(wanted) => workspace().and_then(|root| vm::run(&root, &wanted)),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn workspace() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).context("the workspace is two folders above this crate")?;
    root.canonicalize().with_context(|| format!("finding {}", root.display()))
}
