//! The same random packets and state through several engines in lockstep: any difference is shrunk and written out as
//! a scenario.
//!
//! Invariant: what is sent depends on the seed alone. A world (settings, owners of addresses, policies, flows) lasts
//! some thousand packets; packets belong to flows that go on, so that states are reached, or are broken on purpose.
//! Verdict, bytes, redirect, tunnel metadata and events are compared after every packet, map contents and counters at
//! intervals and at the end of a world.

mod generate;
mod lockstep;
mod random;
mod shrink;

use std::collections::BTreeSet;
use std::path::PathBuf;

use datapath_abi::{Config, DropReason, config};

use crate::engines::{Kind, Limits, OpenError};
use crate::scenario::Scenario;

use generate::World;
use lockstep::Lockstep;
use random::Random;

/// Packets of one world.
const WORLD: u64 = 3000;
/// Packets between two comparisons of all maps.
const SETTLE: u64 = 500;

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Packets to send.
    #[arg(long, default_value_t = 1_000_000)]
    pub packets: u64,
    /// Where the random numbers start: the same seed sends the same packets.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Engines to compare, the first with each of the others.
    #[arg(long, value_delimiter = ',', default_value = "native,rbpf-jit,checked")]
    pub engines: Vec<Kind>,
    /// Where a difference is written, as a scenario.
    #[arg(long, default_value = "fuzz-difference.toml")]
    pub out: PathBuf,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Packets sent.
    pub packets: u64,
    /// Packets to send.
    pub of: u64,
}

/// A difference between two engines.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Packets before it.
    pub after: u64,
    /// What differs.
    pub what: String,
    /// The smallest scenario found that shows it.
    pub scenario: Scenario,
    /// The same as a scenario file.
    pub text: String,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Packets sent through every engine.
    pub packets: u64,
    /// Worlds they were sent in.
    pub worlds: u64,
    /// Packets that were not dropped.
    pub forwarded: u64,
    /// Reasons of those that were.
    pub reasons: BTreeSet<DropReason>,
    /// The first difference; nothing is sent after it.
    pub difference: Option<Difference>,
}

/// Why it could not run.
#[derive(Debug, thiserror::Error)]
pub enum FuzzError {
    /// An engine that is not available.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// One engine has nothing to be compared with.
    #[error("--engines needs at least two engines")]
    TooFew,
    /// The difference could not be written.
    #[error("{file}: {reason}")]
    Write {
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
}

/// Settings of a world: few, because every one is an object to load.
fn settings(choice: u64) -> Config {
    let base = crate::scenario::settings();
    let flags = match choice % 4 {
        0 => base.flags,
        1 => base.flags | config::DUAL_STACK | config::GENEVE,
        2 => base.flags & !config::TUNNEL | config::HOST_POLICY,
        _ => base.flags & !(config::REDIRECT_PEER | config::VERDICT_EVENTS) | config::DUAL_STACK | config::HOST_POLICY,
    };
    // Once in a while nobody has written the settings.
    let magic = if choice % 64 == 60 { 0 } else { base.magic };
    Config { flags, magic, ..base }
}

/// Sends the packets; stops at the first difference, which is in the outcome and in the file of the options.
///
/// # Errors
/// [`FuzzError`].
pub fn run(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Outcome, FuzzError> {
    if options.engines.len() < 2 {
        return Err(FuzzError::TooFew);
    }
    let mut engines = Lockstep::new(&options.engines, Limits { max_entries: Some(16_384), cpus: 1 });
    let outcome = send(options, &mut engines, progress)?;
    if let Some(difference) = &outcome.difference {
        std::fs::write(&options.out, &difference.text)
            .map_err(|reason| FuzzError::Write { file: options.out.clone(), reason })?;
    }
    Ok(outcome)
}

fn send(options: &Options, engines: &mut Lockstep, progress: &mut dyn FnMut(Progress)) -> Result<Outcome, FuzzError> {
    let mut outcome = Outcome::default();
    let kernel = options.engines.contains(&Kind::Kernel);
    while outcome.packets < options.packets {
        let mut random = Random::new(options.seed, outcome.worlds);
        let settings = settings(random.next());
        let mut world = World::new(&settings, kernel, &mut random);
        let mut scenario = world.scenario(options.seed, outcome.worlds, &mut random);
        outcome.worlds += 1;
        engines.begin(&scenario)?;
        let mut now_ns = scenario.now_ns;
        let packets = WORLD.min(options.packets - outcome.packets);
        for number in 1..=packets {
            let step = world.step(&mut random);
            now_ns += step.advance_ns;
            let mut difference = engines.step(&step, now_ns, &mut outcome);
            scenario.steps.push(step);
            if difference.is_none() && (number % SETTLE == 0 || number == packets) {
                difference = engines.settle();
            }
            outcome.packets += 1;
            if let Some(what) = difference {
                let after = outcome.packets;
                let scenario = shrink::shrink(scenario, engines)?;
                let text = crate::scenario::to_toml(&scenario);
                outcome.difference = Some(Difference { after, what, scenario, text });
                return Ok(outcome);
            }
        }
        progress(Progress { packets: outcome.packets, of: options.packets });
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests;
