//! `weir-sim`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    simulator::commands::main()
}
