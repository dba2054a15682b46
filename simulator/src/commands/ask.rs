//! Asking for whole matrices: ports, threads, progress.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;

use agent_core::Model;
use agent_core::model::PortSelector;
use agent_core::model::cilium::{CiliumPort, CiliumSubject};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Failure;
use crate::cluster::matrix::{Answer, Question, endpoints, endpoints_with_nodes};
use crate::cluster::{EngineKind, Party, Protocol};

/// From so many probes on, it pays to ask several clusters at once, and to show progress.
const MANY: usize = 20_000;

/// Asks with as many threads as make sense, and shows progress on a terminal.
///
/// # Errors
/// Clusters that cannot be made; faults of programs.
pub fn ask(question: Question<'_>, title: &'static str) -> Result<Answer, Failure> {
    let options = question.options;
    let plan = question.plan();
    let probes = plan.probes();
    let alone = options.pcap.is_some() || options.engine == EngineKind::Kernel || probes < MANY;
    let threads = if alone { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    let bar = progress(probes, title);
    let answer = plan.ask(threads, &|cells| bar.inc(u64::try_from(cells).unwrap_or(0)))?;
    bar.finish_and_clear();
    Ok(answer)
}

fn progress(probes: usize, title: &'static str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() && probes > MANY {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(u64::try_from(probes).ok(), target);
    if let Ok(style) = ProgressStyle::with_template("{msg}{bar:40} {human_pos}/{human_len} probes, {eta} left") {
        bar.set_style(style);
    }
    bar.with_message(title)
}

/// Who sends and receives: nodes too, if that is asked for, or policies are about nodes.
pub fn parties(models: &[&Model], nodes: bool) -> Vec<Party> {
    let about_nodes = |model: &&Model| {
        let mut specs = model.cilium_policies().values().flat_map(|policy| &policy.specs);
        specs.any(|spec| matches!(spec.subject, CiliumSubject::Nodes(_)))
    };
    let nodes = nodes || models.iter().any(about_nodes);
    models.last().map(|model| if nodes { endpoints_with_nodes(model) } else { endpoints(model) }).unwrap_or_default()
}

/// Each port once, in the order given.
pub fn once(mut ports: Vec<Protocol>) -> Vec<Protocol> {
    let mut seen = BTreeSet::new();
    ports.retain(|port| seen.insert(*port));
    ports
}

/// Ports that policies name by number: the ends of their ranges; ICMP, if they name types of it.
pub fn ports_of_policies(model: &Model) -> BTreeSet<Protocol> {
    let mut found = BTreeSet::new();
    for policy in model.policies().values() {
        for port in policy.ingress.iter().chain(&policy.egress).flat_map(|rule| &rule.ports) {
            add(port.protocol.number(), &port.ports, &mut found);
        }
    }
    for spec in model.cilium_policies().values().flat_map(|policy| &policy.specs) {
        for list in [&spec.ingress, &spec.ingress_deny, &spec.egress, &spec.egress_deny] {
            for CiliumPort { protocols, ports, .. } in list.iter().flat_map(|rule| &rule.ports) {
                protocols.iter().for_each(|protocol| add(*protocol, ports, &mut found));
            }
        }
    }
    for policy in model.cluster_policies().values() {
        for port in policy.ingress.iter().chain(&policy.egress).flat_map(|rule| &rule.ports) {
            port.protocols.iter().for_each(|protocol| add(*protocol, &port.ports, &mut found));
        }
    }
    found
}

fn add(protocol: u8, ports: &PortSelector, found: &mut BTreeSet<Protocol>) {
    let PortSelector::Range(first, last) = ports else { return };
    for port in [*first, *last] {
        match protocol {
            1 | 58 => {
                found.insert(Protocol::Icmp(None));
            }
            6 if port != 0 => {
                found.insert(Protocol::Tcp(port));
            }
            17 if port != 0 => {
                found.insert(Protocol::Udp(port));
            }
            132 if port != 0 => {
                found.insert(Protocol::Sctp(port));
            }
            _ => {}
        }
    }
}
