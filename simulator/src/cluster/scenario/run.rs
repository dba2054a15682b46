//! Runs a scenario's steps, and compares what came out with what was expected.

use agent_core::input::{InputError, Problem};
use agent_core::policy::Proxy;
use agent_core::{InputErrors, Model};
use datapath_abi::DropReason;
use simulator_vm::RunError;

use super::{Action, Expect, ProbeStep, Scenario, Step, Talk};
use crate::cluster::matrix::of;
use crate::cluster::probe::ProbeError;
use crate::cluster::{
    Audited, Cluster, ClusterError, Drop, EngineKind, Hop, Options, Outcome, Party, Probe, Protocol, Verdict, proxy,
};

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
    /// What came out: `allow`, `audit`, `redirect`, `drop` or `lost`.
    pub got: String,
    /// Drop reason (of `audit`: the one it would have had), the proxy, or how the packet got lost.
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
pub enum Stop {
    /// The scenario, or a step of it, is wrong.
    #[error(transparent)]
    Input(#[from] InputErrors),
    /// The cluster could not be made or changed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A fault of a program.
    #[error("a program failed: {0}")]
    Program(#[from] RunError),
    /// Captures could not be written.
    #[error("capture: {0}")]
    Capture(std::io::Error),
}

/// Runs a scenario; with `trace`, failures tell every hop. What is wrong with the input is in [`Report::error`].
pub fn run(scenario: &Scenario, options: &Options, trace: bool) -> Report {
    let mut report = Report::default();
    if let Err(stop) = all_steps(scenario, options, trace, &mut report) {
        report.error = Some(stop.to_string());
    }
    report
}

fn all_steps(scenario: &Scenario, options: &Options, trace: bool, report: &mut Report) -> Result<(), Stop> {
    let mut runner = Runner::new(scenario, options, trace)?;
    while let Some(done) = runner.step()? {
        let (Done::Probed(probed), Action::Probe(probe)) = (done.what, &done.step.action) else { continue };
        report.probes += u64::from(probe.repeat);
        report.failed += probed.wrong();
        if let Some(wrong) = probed.first_wrong {
            let failed = failed(done.number, done.step, probe, probed.probe.protocol, *wrong);
            report.failures.push(Failed { engine: options.engine, ..failed });
        }
    }
    runner.finish()
}

/// A scenario that is run step by step, for whoever does the same elsewhere and compares.
#[derive(Debug)]
pub struct Runner<'a> {
    scenario: &'a Scenario,
    cluster: Cluster,
    next: usize,
    trace: bool,
}

/// A step that was done.
#[derive(Debug)]
pub struct StepDone<'a> {
    /// The step.
    pub step: &'a Step,
    /// Its number, from 1.
    pub number: usize,
    /// What came of it.
    pub what: Done,
}

/// What came of a step.
#[derive(Debug)]
pub enum Done {
    /// The cluster's objects are others.
    Changed,
    /// So many nanoseconds passed.
    Advanced(u64),
    /// Flows were sent.
    Probed(Probed),
}

/// The flows of a step.
#[derive(Debug)]
pub struct Probed {
    /// Ends, addresses, protocol and port of every one of them.
    pub probe: Probe,
    /// What became of each, in order.
    pub outcomes: Vec<Outcome>,
    /// Whether each was as expected.
    pub met: Vec<bool>,
    /// The first that was not.
    pub first_wrong: Option<Box<Wrong>>,
}

/// A flow that ended otherwise than expected.
#[derive(Debug)]
pub struct Wrong {
    /// How it ended.
    pub got: Got,
    /// Its hops, when they were written down.
    pub trail: Vec<String>,
}

impl Probed {
    /// Flows that did not end as expected.
    pub fn wrong(&self) -> u64 {
        self.met.iter().map(|met| u64::from(!met)).sum()
    }
}

impl<'a> Runner<'a> {
    /// The cluster as it is before the first step. With `trace`, flows that end otherwise than expected tell every hop.
    ///
    /// # Errors
    /// What is wrong with the scenario's objects, or with the engine.
    pub fn new(scenario: &'a Scenario, options: &Options, trace: bool) -> Result<Self, Stop> {
        let settings = scenario.config.families();
        if !settings.ipv4 && !settings.ipv6 {
            let position = super::read::whole(&scenario.file);
            let problem = Problem::Conflict("ipv4 and ipv6 cannot both be off".to_owned());
            return Err(InputErrors(vec![InputError::new(position, "spec.config", problem)]).into());
        }
        let model = Model::from_objects(scenario.objects.clone(), settings)?;
        let options = scenario.config.options(options.clone());
        Ok(Self { scenario, cluster: Cluster::new(model, options)?, next: 0, trace })
    }

    /// The cluster as it is now.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Does the next step; `None`: there is none.
    ///
    /// # Errors
    /// What is wrong with the step, or a fault of a program.
    pub fn step(&mut self) -> Result<Option<StepDone<'a>>, Stop> {
        let Some(step) = self.scenario.steps.get(self.next) else {
            return Ok(None);
        };
        self.next += 1;
        let what = match &step.action {
            Action::Apply(objects) => {
                self.cluster.apply(objects.clone())?;
                Done::Changed
            }
            Action::Delete(keys) => {
                for key in keys {
                    if self.cluster.delete(std::slice::from_ref(key))? == 0 {
                        return Err(wrong(step, "delete", format!("no {key} to delete")).into());
                    }
                }
                Done::Changed
            }
            Action::Advance(ns) => {
                self.cluster.advance(*ns);
                Done::Advanced(*ns)
            }
            Action::Probe(probe) => Done::Probed(self.probe(step, probe)?),
        };
        Ok(Some(StepDone { step, number: self.next, what }))
    }

    fn probe(&mut self, step: &Step, probe: &ProbeStep) -> Result<Probed, Stop> {
        let cluster = &mut self.cluster;
        let protocol = protocol(cluster, probe).map_err(|what| wrong(step, "probe.port", what))?;
        let resolved = cluster
            .probe_between(&probe.from, &probe.to, protocol, probe.family)
            .map_err(|error: ProbeError| wrong(step, "probe", error.to_string()))?;
        let resolved = Probe { source_port: probe.source_port, ..resolved };
        let mut probed = Probed { probe: resolved, outcomes: Vec::new(), met: Vec::new(), first_wrong: None };
        for _ in 0..probe.repeat {
            if self.trace {
                cluster.start_trail();
            }
            let outcome = cluster.probe(&resolved)?;
            let trail = cluster.take_trail();
            let got = Got::new(cluster, outcome, protocol);
            let met = meets(&got, &probe.expect);
            if !met && probed.first_wrong.is_none() {
                let trail = trail.iter().map(|hop| hop_line(cluster, hop)).collect();
                probed.first_wrong = Some(Box::new(Wrong { got, trail }));
            }
            probed.outcomes.push(outcome);
            probed.met.push(met);
        }
        Ok(probed)
    }

    /// Ends captures.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn finish(mut self) -> Result<(), Stop> {
        self.cluster.finish_captures().map_err(Stop::Capture)
    }
}

fn wrong(step: &Step, field: &str, what: String) -> InputErrors {
    InputErrors(vec![InputError::new(step.position.clone(), field, Problem::Conflict(what))])
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

/// What came of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// What became of its packets.
    pub outcome: Outcome,
    /// The same in one word.
    pub verdict: Verdict,
    /// What a policy that only audits would have done with it.
    pub audited: Option<Audited>,
    /// Of a redirect: the proxies that the rule asks for.
    pub proxies: Vec<Proxy>,
}

impl Got {
    fn new(cluster: &Cluster, outcome: Outcome, protocol: Protocol) -> Self {
        let verdict = cluster.verdict(&outcome);
        let proxies = cluster.proxies_of(&outcome, protocol);
        Self { outcome, verdict, audited: cluster.audited(), proxies }
    }
}

/// Whether what came out is what a step expects.
pub fn meets(got: &Got, expect: &Expect) -> bool {
    let here =
        |drop: &Drop, at: &Option<String>| at.as_ref().is_none_or(|at| at == drop.at() || at == drop.hook.name());
    match expect {
        Expect::Allow => got.outcome.allowed(),
        Expect::Deny => got.verdict == Verdict::Deny,
        Expect::Drop { reason, at } => match &got.outcome {
            Outcome::Dropped { drop, .. } => drop.reason == Some(*reason) && here(drop, at),
            Outcome::Allowed | Outcome::Lost { .. } => false,
        },
        Expect::Redirect { proxy, at } => {
            let known = proxy.is_none_or(|proxy| got.proxies.contains(&proxy));
            got.outcome.redirected().is_some_and(|drop| known && here(drop, at))
        }
        Expect::Audit { reason, at } => {
            got.outcome.allowed()
                && got.audited.is_some_and(|audited| {
                    (reason.is_none() || audited.reason == *reason) && at.is_none_or(|at| at == audited.direction)
                })
        }
    }
}

fn failed(number: usize, step: &Step, probe: &ProbeStep, protocol: Protocol, wrong: Wrong) -> Failed {
    let got = &wrong.got;
    let (word, reason, at) = match (&got.outcome, got.audited) {
        (Outcome::Allowed, None) => ("allow", None, None),
        (Outcome::Allowed, Some(audited)) => {
            let reason = audited.reason.map(|reason| reason.name().to_owned());
            ("audit", reason, Some(audited.direction.to_string()))
        }
        (Outcome::Dropped { drop, .. }, _) if got.verdict == Verdict::Redirect => {
            let proxies: Vec<&str> = got.proxies.iter().map(|own| proxy::name(*own)).collect();
            let reason = (!proxies.is_empty()).then(|| proxies.join(","));
            ("redirect", reason, Some(drop.at().to_owned()))
        }
        (Outcome::Dropped { drop, .. }, _) => {
            ("drop", drop.reason.map(|reason| DropReason::name(reason).to_owned()), Some(drop.at().to_owned()))
        }
        (Outcome::Lost { lost, .. }, _) => ("lost", Some(lost.to_string()), None),
    };
    Failed {
        step: number,
        at_line: step.position.to_string(),
        from: probe.from.to_string(),
        to: probe.to.to_string(),
        protocol: protocol.name(),
        port: protocol.port(),
        expected: probe.expect.to_string(),
        got: word.to_owned(),
        reason,
        at,
        engine: EngineKind::default(),
        trail: wrong.trail,
    }
}
