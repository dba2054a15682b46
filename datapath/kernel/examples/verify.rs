//! What the kernel's verifier says about each program of an object: `verify [object.o] [--instrument]`, as root.

use datapath_abi::config::{Config, SYMBOL};
use datapath_kernel::{KernelError, LoadOptions, Loaded};
use zerocopy::IntoBytes;

fn main() -> Result<(), KernelError> {
    let config = Config::with_defaults(250);
    let globals: [(&str, &[u8]); 1] = [(SYMBOL, config.as_bytes())];
    let mut options = LoadOptions { max_entries: Some(1024), globals: &globals, ..LoadOptions::default() };
    let mut file = None;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--instrument" => options.instrument = true,
            path => file = Some(path.to_owned()),
        }
    }
    let bytes = match &file {
        None => datapath_bytecode::OBJECT.to_vec(),
        Some(path) => std::fs::read(path)
            .map_err(|error| KernelError::Object { step: "read", reason: format!("{path}: {error}") })?,
    };
    println!("{:<16} {:>6} {:>9} {:>7} {:>7}  stack", "program", "slots", "processed", "states", "peak");
    for (name, result) in Loaded::verify(&bytes, &options)? {
        match result {
            Ok(stats) => println!(
                "{name:<16} {:>6} {:>9} {:>7} {:>7}  {:?}",
                stats.instructions, stats.processed, stats.total_states, stats.peak_states, stats.stack_depth
            ),
            Err(error) => println!("{name:<16} {error}"),
        }
    }
    Ok(())
}
