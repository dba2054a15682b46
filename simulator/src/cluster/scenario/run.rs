//! Runs a scenario's steps, and compares what came out with what was expected.

use agent_core::input::{InputError, Problem};
use agent_core::{InputErrors, Model, Settings};
use datapath_abi::DropReason;
use simulator_vm::RunError;

use super::{Action, Expect, ProbeStep, Scenario, Step, Talk};
use crate::cluster::matrix::of;
use crate::cluster::probe::ProbeError;
use crate::cluster::{Cluster, ClusterError, EngineKind, Hop, Options, Outcome, Party, Protocol};

/// What a scenario said.
#[derive(Debug, Default)]
pub struct Report {
    /// Flows sent.
    pub probes: u64,
    /// Flows that did not end as expected.
    pub failed: u64,
    /// The first failure of each step.
    pub failures: Vec<Failed>,
    /// Why the scenario could not be run to its end.
    pub error: Option<String>,
}

/// A probe that ended otherwise than expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Number of the step, from 1.
    pub step: usize,
    /// Where the step is written.
    pub at_line: String,
    /// Sender.
    pub from: String,
    /// Receiver.
    pub to: String,
    /// Protocol.
    pub protocol: &'static str,
    /// Port, if it has one.
    pub port: Option<u16>,
    /// What should have come out.
    pub expected: String,
    /// What came out.
    pub got: String,
    /// Drop reason, or how the packet got lost.
    pub reason: Option<String>,
    /// Where: `ingress` or `egress`.
    pub at: Option<String>,
    /// Engine of the nodes.
    pub engine: EngineKind,
    /// Every hop, when they were written down.
    pub trail: Vec<String>,
}

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Input(#[from] InputErrors),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("a program failed: {0}")]
    Program(#[from] RunError),
    #[error("capture: {0}")]
    Capture(std::io::Error),
}

/// Runs a scenario; with `trace`, failures tell every hop. What is wrong with the input is in [`Report::error`].
pub fn run(scenario: &Scenario, options: &Options, trace: bool) -> Report {
    let mut report = Report::default();
    if let Err(stop) = steps(scenario, options, trace, &mut report) {
        report.error = Some(stop.to_string());
    }
    report
}

fn steps(scenario: &Scenario, options: &Options, trace: bool, report: &mut Report) -> Result<(), Stop> {
    let settings = Settings { ipv4: scenario.config.ipv4, ipv6: scenario.config.ipv6 };
    if !settings.ipv4 && !settings.ipv6 {
        let position = super::read::whole(&scenario.file);
        let problem = Problem::Conflict("ipv4 and ipv6 cannot both be off".to_owned());
        return Err(InputErrors(vec![InputError::new(position, "spec.config", problem)]).into());
    }
    let model = Model::from_objects(scenario.objects.clone(), settings)?;
    let options = Options { tunnel: scenario.config.tunnel, ..options.clone() };
    let engine = options.engine;
    let mut cluster = Cluster::new(model, options)?;
    for (index, step) in scenario.steps.iter().enumerate() {
        match &step.action {
            Action::Apply(objects) => cluster.apply(objects.clone())?,
            Action::Delete(keys) => {
                for key in keys {
                    if cluster.delete(std::slice::from_ref(key))? == 0 {
                        return Err(wrong(step, "delete", format!("no {key} to delete")).into());
                    }
                }
            }
            Action::Advance(ns) => cluster.advance(*ns),
            Action::Probe(probe) => {
                let failed = probe_step(&mut cluster, index + 1, step, probe, trace, report)?;
                report.failures.extend(failed.map(|failed| Failed { engine, ..failed }));
            }
        }
    }
    cluster.finish_captures().map_err(Stop::Capture)
}

fn wrong(step: &Step, field: &str, what: String) -> InputErrors {
    InputErrors(vec![InputError::new(step.position.clone(), field, Problem::Conflict(what))])
}

fn probe_step(
    cluster: &mut Cluster,
    number: usize,
    step: &Step,
    probe: &ProbeStep,
    trace: bool,
    report: &mut Report,
) -> Result<Option<Failed>, Stop> {
    let protocol = protocol(cluster, probe).map_err(|what| wrong(step, "probe.port", what))?;
    let resolved = cluster
        .probe_between(&probe.from, &probe.to, protocol, probe.family)
        .map_err(|error: ProbeError| wrong(step, "probe", error.to_string()))?;
    let resolved = crate::cluster::Probe { source_port: probe.source_port, ..resolved };
    let mut first = None;
    for _ in 0..probe.repeat {
        if trace {
            cluster.start_trail();
        }
        let outcome = cluster.probe(&resolved)?;
        let trail = cluster.take_trail();
        report.probes += 1;
        if !meets(&outcome, &probe.expect) {
            report.failed += 1;
            if first.is_none() {
                let trail = trail.iter().map(|hop| hop_line(cluster, hop)).collect();
                first = Some(Failed { trail, ..failed(number, step, probe, protocol, &outcome) });
            }
        }
    }
    Ok(first)
}

fn hop_line(cluster: &Cluster, hop: &Hop) -> String {
    let node = hop.node.and_then(|node| cluster.nodes().get(node)).map_or("outside", |node| node.name.as_str());
    let hook = hop.hook.map_or("", datapath_abi::Hook::name);
    format!("{node} {} {hook}: {} | {}", hop.place, hop.before, hop.verdict)
}

/// The protocol with its port's number.
fn protocol(cluster: &Cluster, probe: &ProbeStep) -> Result<Protocol, String> {
    match &probe.talk {
        Talk::Known(protocol) => Ok(*protocol),
        Talk::Named(kind, name) => {
            let Party::Pod(pod) = &probe.to else {
                return Err(format!("`{name}`: only pods have named ports"));
            };
            let pod = cluster.model().pods().get(pod).ok_or_else(|| format!("no pod `{pod}`"))?;
            let port = pod.ports.iter().find(|port| port.protocol == *kind && port.name.as_ref() == Some(name));
            port.map(|port| of(*kind, port.port)).ok_or_else(|| format!("`{}` has no {kind} port `{name}`", pod.name))
        }
    }
}

fn meets(outcome: &Outcome, expect: &Expect) -> bool {
    match (expect, outcome) {
        (Expect::Allow, Outcome::Allowed) | (Expect::Deny, Outcome::Dropped { .. } | Outcome::Lost { .. }) => true,
        (Expect::Drop { reason, at }, Outcome::Dropped { drop, .. }) => {
            drop.reason == Some(*reason) && at.as_ref().is_none_or(|at| at == drop.at() || at == drop.hook.name())
        }
        (Expect::Allow | Expect::Deny | Expect::Drop { .. }, _) => false,
    }
}

fn failed(number: usize, step: &Step, probe: &ProbeStep, protocol: Protocol, outcome: &Outcome) -> Failed {
    let expected = match &probe.expect {
        Expect::Allow => "allow".to_owned(),
        Expect::Deny => "deny".to_owned(),
        Expect::Drop { reason, at: None } => format!("drop {}", reason.name()),
        Expect::Drop { reason, at: Some(at) } => format!("drop {} at {at}", reason.name()),
    };
    let (got, reason, at) = match outcome {
        Outcome::Allowed => ("allow", None, None),
        Outcome::Dropped { drop, .. } => {
            ("drop", drop.reason.map(|reason| DropReason::name(reason).to_owned()), Some(drop.at().to_owned()))
        }
        Outcome::Lost { lost, .. } => ("lost", Some(lost.to_string()), None),
    };
    Failed {
        step: number,
        at_line: step.position.to_string(),
        from: probe.from.to_string(),
        to: probe.to.to_string(),
        protocol: protocol.name(),
        port: protocol.port(),
        expected,
        got: got.to_owned(),
        reason,
        at,
        engine: EngineKind::default(),
        trail: Vec::new(),
    }
}
