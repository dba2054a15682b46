//! Prints what the maps of every node should hold: `cargo run -p agent-core --example desired -- FILE.yaml...`
//! Endpoint numbers and interface indices are made up (counting from 1 and 101 on each node).

use std::io::Write as _;
use std::process::ExitCode;

use agent_core::{Compiled, IdentityAllocator, LocalEndpoint, Model, Settings};
use datapath_abi::Mac;

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    let mut files = Vec::new();
    for name in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&name)?;
        files.push((name, text));
    }
    let model = Model::parse(&files, Settings::default())?;
    let mut identities = IdentityAllocator::default();
    let compiled = Compiled::new(&model, &mut identities)?;
    for (identity, owner) in identities.iter() {
        writeln!(out, "identity {identity}: {owner}")?;
    }
    for node in model.nodes() {
        writeln!(out, "\nnode {}", node.name)?;
        let pods = model.pods().values().filter(|pod| pod.node == node.name && !pod.host_network);
        let locals: Vec<LocalEndpoint> = (1_u16..)
            .zip(pods)
            .map(|(id, pod)| LocalEndpoint {
                pod: pod.name.clone(),
                id,
                ifindex: u32::from(id) + 100,
                mac: Mac::from_octets([2, 0, 0, 0, 0, 1]),
            })
            .collect();
        for local in &locals {
            writeln!(out, "endpoint {}: {}", local.id, local.pod)?;
        }
        write!(out, "{}", compiled.desired(&node.name, &locals)?.dump(compiled.rules()))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
