//! `sudo -E cargo run -p netns-lab`: every lab, or those that are named.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // The agents of a lab are this program too.
    netns_lab::node::be_agent().unwrap_or_else(netns_lab::command::main)
}
