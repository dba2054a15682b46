//! Packet scenarios: one behaviour of one hook. Map state and packets in; verdict, packet, counters, events and map
//! changes out, the same on every engine.
//!
//! Invariant: what a step does not mention must not change. Short files come from these rules alone:
//! - verdict `drop REASON`: that reason's counter and one drop event. Any other: only `forwarded` counters, no drop event.
//! - `packet`: as it was sent; a delivered one has a hop less and the Ethernet addresses of gateway and pod.
//! - `counters` and `events`, where given, are complete. `ct` and `frag` list every entry that changed.
//! - `ifindex`: the interface of the pod that sends or receives; else that of the hook's device.

mod build;
mod file;
mod report;
mod run;
mod state;
mod verdict;
mod words;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use datapath_abi::{CallSlot, Config, Direction, Hook, MapId};
use simulator_vm::{Faults, Skb};

pub use report::{Failure, Report};
pub use run::{EngineSet, run};
pub use state::{Clock, FlowText, FragText, Write, key_text, value_text};
pub use verdict::{EventText, Verdict, event_text};
pub use words::TextError;
pub use write::to_toml;

pub(crate) use build::settings;
pub(crate) use run::{counters, tables};

use crate::packet::Defaults;

/// A file that is no scenario. The text is one line: file, line, what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It cannot be read.
    #[error("{file}: {reason}")]
    Read {
        /// The file.
        file: String,
        /// What the system says.
        reason: std::io::Error,
    },
    /// A line of it is wrong.
    #[error("{file}:{line}: {message}")]
    Line {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        message: String,
    },
}

/// One file.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name, for messages and for running it alone.
    pub file: String,
    /// What it shows.
    pub title: String,
    /// Where the expectation comes from.
    pub source: String,
    /// Settings of the node.
    pub config: Config,
    /// The clock at the first step, nanoseconds, before its `advance`.
    pub now_ns: u64,
    /// What the maps hold.
    pub writes: Vec<Write>,
    /// Slots of the call table that are empty.
    pub missing_calls: Vec<CallSlot>,
    /// Steps in order.
    pub steps: Vec<Step>,
}

/// One packet at one hook.
#[derive(Clone, Debug)]
pub struct Step {
    /// Line of the file.
    pub line: usize,
    /// What it shows, in the author's words.
    pub note: String,
    /// Where the packet is.
    pub hook: Hook,
    /// The packet.
    pub skb: Skb,
    /// Ethernet addresses it has unless its text says otherwise.
    pub defaults: Defaults,
    /// Time that passes before it, nanoseconds.
    pub advance_ns: u64,
    /// What user space writes before it.
    pub writes: Vec<Write>,
    /// What user space deletes before it.
    pub deletes: Vec<(MapId, Vec<u8>)>,
    /// Helpers that fail.
    pub faults: Faults,
    /// What is expected; `None`: only that the engines agree.
    pub expect: Option<Expect>,
}

/// What a step is expected to do.
#[derive(Clone, Debug)]
pub struct Expect {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Packets by counter; `None`: what follows from the verdict.
    pub counters: Option<BTreeMap<(Direction, u8), u64>>,
    /// Events in order; `None`: what follows from the verdict.
    pub events: Option<Vec<EventText>>,
    /// Flows that are created or change.
    pub ct: Vec<FlowText>,
    /// Fragmented datagrams that are created or change.
    pub frag: Vec<FragText>,
}

/// Reads one file.
///
/// # Errors
/// [`ScenarioError`].
pub fn load(path: &Path) -> Result<Scenario, ScenarioError> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, &file),
        Err(reason) => Err(ScenarioError::Read { file, reason }),
    }
}

/// Reads the text of one file.
///
/// # Errors
/// [`ScenarioError::Line`].
pub fn parse(text: &str, file: &str) -> Result<Scenario, ScenarioError> {
    build::scenario(text, file)
}

/// All `.toml` files under a folder, sorted; a file stands for itself.
///
/// # Errors
/// A folder that cannot be read.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, ScenarioError> {
    let mut found = Vec::new();
    collect(path, &mut found).map_err(|reason| ScenarioError::Read { file: path.display().to_string(), reason })?;
    found.sort();
    Ok(found)
}

fn collect(path: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !path.is_dir() {
        found.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?.path();
        if entry.is_dir() || entry.extension().is_some_and(|extension| extension == "toml") {
            collect(&entry, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
