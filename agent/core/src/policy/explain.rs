//! For people: how each rule of the policies that isolate a pod judges a flow, read from the policies as they are written
//! (the maps are not asked, so that the two can be compared).

use std::net::IpAddr;

use super::rules::{Direction, RuleInfo};
use super::{Compiled, L4};
use crate::model::{Name, NetworkPolicy, PeerSelector, Pod, PolicyPeer, PolicyPort, PortSelector};

/// Whether a rule's peers, or its ports, take a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The rule names none: everything matches.
    All,
    /// The first item that matches.
    Item(usize),
    /// None of the items matches.
    Nothing,
}

impl Part {
    /// Whether it takes the flow.
    pub fn matches(self) -> bool {
        self != Self::Nothing
    }

    fn of<T>(items: &[T], matches: impl Fn(&T) -> bool) -> Self {
        if items.is_empty() {
            return Self::All;
        }
        items.iter().position(matches).map_or(Self::Nothing, Self::Item)
    }
}

/// How one rule judges a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt<'a> {
    /// The rule.
    pub rule: &'a RuleInfo,
    /// Whether the other end is one of its peers (index in `from` or `to`).
    pub peer: Part,
    /// Whether protocol and port are among its ports (index in `ports`).
    pub port: Part,
}

impl Attempt<'_> {
    /// Whether the rule allows the flow.
    pub fn allows(&self) -> bool {
        self.peer.matches() && self.port.matches()
    }
}

/// A new flow between a pod and another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The other end.
    pub peer: IpAddr,
    /// IANA number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

impl Compiled {
    /// How every rule of the policies that isolate a pod in a direction judges a flow, by policy and index.
    pub fn attempts(&self, pod: &Name, direction: Direction, flow: Flow) -> Vec<Attempt<'_>> {
        let cluster = self.cluster();
        let Some(subject) = cluster.pods.get(pod) else {
            return Vec::new();
        };
        let peer_pod = self.pod_at(flow.peer);
        let named = match direction {
            Direction::Ingress => Some(subject),
            Direction::Egress => peer_pod,
        };
        let mut attempts = Vec::new();
        for compiled in self.selecting(pod, direction) {
            let Some(policy) = cluster.policies.get(&compiled.name) else {
                continue;
            };
            let rules = match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            for (rule, id) in rules.iter().zip(compiled.rule_ids(direction)) {
                let Some(info) = self.rules().get(id) else {
                    continue;
                };
                attempts.push(Attempt {
                    rule: info,
                    peer: Part::of(&rule.peers, |peer| self.is_peer(policy, peer, flow.peer, peer_pod)),
                    port: Part::of(&rule.ports, |port| is_port(port, named, flow)),
                });
            }
        }
        attempts
    }

    /// The pod that has an address of its own.
    fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let mut pods = self.cluster().pods.values().filter(|pod| !pod.host_network);
        pods.find(|pod| pod.addresses.contains(&address))
    }

    fn is_peer(&self, policy: &NetworkPolicy, peer: &PolicyPeer, address: IpAddr, pod: Option<&Pod>) -> bool {
        match &peer.selects {
            PeerSelector::Block(block) => block.contains(address),
            PeerSelector::Pods { namespaces, pods } => pod.is_some_and(|pod| {
                let home = match namespaces {
                    None => pod.name.namespace == policy.meta.namespace,
                    Some(selector) => (self.cluster().namespaces.get(&pod.name.namespace))
                        .is_some_and(|labels| selector.matches(labels)),
                };
                home && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
            }),
        }
    }
}

fn is_port(port: &PolicyPort, named: Option<&Pod>, flow: Flow) -> bool {
    let protocol = port.protocol.number();
    match &port.ports {
        PortSelector::All => L4::protocol(protocol).matches(flow.protocol, flow.port),
        PortSelector::Range(first, last) => protocol == flow.protocol && (first..=last).contains(&&flow.port),
        PortSelector::Named(name) => {
            let ports = named.into_iter().flat_map(|pod| &pod.ports);
            protocol == flow.protocol
                && ports
                    .filter(|own| own.protocol == port.protocol && own.name.as_ref() == Some(name))
                    .any(|own| own.port == flow.port)
        }
    }
}
