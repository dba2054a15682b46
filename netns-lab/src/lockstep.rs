//! One step in lockstep: what the simulator said, what the kernel does, what the scenario expects, on one line.

use std::fmt::{self, Write as _};

use anyhow::{Context as _, Result};
use simulator::cluster::probe::Place as SimPlace;
use simulator::cluster::scenario::{Action, Probed, StepDone};
use simulator::cluster::{Cluster, Party, Probe};

use crate::lab::Finished;
use crate::place::Place;
use crate::prober::{Ask, Prober, Seen, Simulated};
use crate::world::World;

/// Name of a node by its number in the simulator.
pub(crate) fn node_name(cluster: &Cluster, node: usize) -> String {
    cluster.nodes().get(node).map(|node| node.name.clone()).unwrap_or_default()
}

/// The probes of a step on the kernel, each compared with the simulator's.
pub(crate) fn probe_step(
    world: &mut World,
    prober: &mut Prober,
    cluster: &Cluster,
    done: &StepDone<'_>,
    probed: &Probed,
    finished: &mut Finished,
) -> Result<()> {
    let Action::Probe(step) = &done.step.action else { return Ok(()) };
    let mut same: u64 = 0;
    for (outcome, met) in probed.outcomes.iter().zip(&probed.met) {
        let simulated = Simulated::new(outcome, |node| node_name(cluster, node));
        let seen = one(world, prober, cluster, &probed.probe, &simulated)
            .with_context(|| format!("{}: {} to {}", done.step.position, step.from, step.to))?;
        finished.probes += 1;
        let expected = step.expect.to_string();
        let good = simulated.is(&seen) && *met;
        let line = Line {
            from: &step.from,
            to: &step.to,
            probe: &probed.probe,
            simulated: &simulated,
            seen: &seen,
            expected: &expected,
        };
        same += u64::from(good);
        if !good {
            finished.differences.push(format!("{}: {line}", done.step.position));
            // Of many flows of a step the first that differs says what is wrong.
            break;
        }
        if same == u64::try_from(probed.outcomes.len()).unwrap_or(u64::MAX) {
            note(finished, &line, true, same);
        }
    }
    Ok(())
}

/// What is printed of a probe.
pub(crate) struct Line<'a> {
    pub(crate) from: &'a Party,
    pub(crate) to: &'a Party,
    pub(crate) probe: &'a Probe,
    pub(crate) simulated: &'a Simulated,
    pub(crate) seen: &'a Seen,
    pub(crate) expected: &'a str,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.probe.source.is_ipv6() { " IPv6" } else { "" };
        write!(
            f,
            "{} → {} {}{family} | simulator: {} | kernel: {} | expected: {}",
            self.from, self.to, self.probe.protocol, self.simulated.0, self.seen, self.expected
        )
    }
}

/// Notes a probe that was done so many times with the same answers, good or not.
pub(crate) fn note(finished: &mut Finished, line: &Line<'_>, good: bool, times: u64) {
    if !good {
        finished.differences.push(line.to_string());
        return;
    }
    let mut text = line.to_string();
    if times > 1 {
        let _ = write!(text, " | {times} times");
    }
    finished.lines.push(text);
}

/// One probe on the kernel.
pub(crate) fn one(
    world: &mut World,
    prober: &mut Prober,
    cluster: &Cluster,
    probe: &Probe,
    simulated: &Simulated,
) -> Result<Seen> {
    for (place, address) in [(probe.from, probe.source), (probe.to, probe.destination)] {
        if place == SimPlace::World {
            world.outside_with(address)?;
        }
    }
    let from = place_of(world, cluster, probe.from)?;
    let to = place_of(world, cluster, probe.to)?;
    let silence = matches!(simulated.0, Seen::Silent { .. });
    prober.probe(Ask { probe, from, to, silence }, world.watch())
}

fn place_of<'a>(world: &'a World, cluster: &Cluster, place: SimPlace) -> Result<&'a Place> {
    match place {
        SimPlace::World => Ok(world.outside()),
        SimPlace::Node(node) => world.node(&node_name(cluster, node)),
        SimPlace::Pod(nic) => {
            let nic = cluster.nics().get(nic).context("a pod that the simulator does not have")?;
            world.pod(&nic.name.to_string())
        }
    }
}
