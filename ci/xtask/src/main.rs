//! Development tasks. `cargo xtask build-ebpf` compiles the eBPF object with the pinned toolchain and commits the
//! result to `datapath/bytecode`; `--check` compares instead of writing.
#![forbid(unsafe_code)]

mod build_ebpf;

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
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::BuildEbpf { check } => build_ebpf::run(check),
    }
}
