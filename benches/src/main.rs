//! `cargo run --release -p benches -- counts | kernel`.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use benches::kernel::{self, Load};
use benches::{counts, paths};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "benches", about = "weir's benchmarks")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Instructions and look-ups per packet, exactly
    Counts,
    /// Where the instructions of an established flow's packet go, by source line
    Profile {
        /// A path of the table
        path: String,
    },
    /// Nanoseconds per packet in the kernel, as multiples of the empty program (root)
    Kernel {
        /// Only the paths whose name contains this
        #[arg(default_value = "")]
        filter: String,
    },
    /// What the kernel's verifier says about every program (root)
    Verifier,
}

fn main() -> Result<()> {
    match Cli::parse().bench {
        Bench::Counts => print!("{}", counts::table()?),
        Bench::Profile { path } => {
            let path = paths::PATHS.iter().find(|known| known.name == path).context("no such path")?;
            for (count, line) in counts::profile(path)? {
                println!("{count:>5}  {line}");
            }
        }
        Bench::Kernel { filter } => kernel_table(&filter)?,
        Bench::Verifier => verifier()?,
    }
    Ok(())
}

fn kernel_table(filter: &str) -> Result<()> {
    println!(
        "{:<16} {:>7} {:>9} {:>6} {:>8} {:>10} {:>8}",
        "path", "flows", "policies", "floor", "net min", "net median", "multiple"
    );
    let wanted = |path: &&paths::Path| path.name.contains(filter);
    let flows = paths::PATHS.iter().map(|path| (path, [(1, 0), (1, 1000), (10_000, 0), (30_000, 0)].as_slice()));
    let verdicts = paths::VERDICTS.iter().map(|path| (path, [(1, 10), (1, 1000), (1, 10_000)].as_slice()));
    for (path, loads) in flows.chain(verdicts).filter(|(path, _)| wanted(path)) {
        for &(flows, more_policy) in loads {
            let cost = kernel::measure(path, &Load { flows, more_policy })?;
            println!(
                "{:<16} {:>7} {:>9} {:>6} {:>8} {:>10} {:>7.1}x",
                path.name,
                flows,
                more_policy,
                cost.floor,
                cost.net,
                cost.net_median,
                cost.multiple()
            );
        }
    }
    Ok(())
}

fn verifier() -> Result<()> {
    let settings = paths::settings(1000, true);
    let globals = [(datapath_abi::config::SYMBOL, zerocopy::IntoBytes::as_bytes(&settings))];
    let options = datapath_kernel::LoadOptions { globals: &globals, max_entries: Some(1024), ..Default::default() };
    let object = datapath_kernel::Loaded::open(datapath_bytecode::OBJECT, &options)?;
    println!("{:<16} {:>8} {:>10} {:>7}  stack", "program", "insns", "processed", "states");
    for program in object.programs() {
        let stats = program.stats();
        println!(
            "{:<16} {:>8} {:>10} {:>7}  {:?}",
            program.name(),
            stats.instructions,
            stats.processed,
            stats.total_states,
            stats.stack_depth
        );
    }
    Ok(())
}
