//! For people: how each rule of the policies that are about a pod judges a flow, read from the policies as they are
//! written (the maps are not asked, so that the two can be compared).

use std::net::IpAddr;

use super::Compiled;
use super::asked::protocol;
use super::form::{FormPort, Select};
use super::rules::{Direction, RuleInfo};
use crate::model::question::{Asked, DEFAULT_SERVICE_ACCOUNT};
use crate::model::{Entity, Name, Node, Pod, PortSelector};

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
}

/// How one rule judges a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt<'a> {
    /// The rule.
    pub rule: &'a RuleInfo,
    /// Whether the other end is one of its peers (index in `from` or `to`; Cilium's lists of peers count as one).
    pub peer: Part,
    /// Whether protocol and port are among its ports (index in `ports` or `toPorts`).
    pub port: Part,
}

impl Attempt<'_> {
    /// Whether the rule matches the flow: then its [`RuleInfo::action`] is what it says.
    pub fn matches(&self) -> bool {
        self.peer.matches() && self.port.matches()
    }

    /// Whether the rule allows the flow.
    pub fn allows(&self) -> bool {
        self.matches() && self.rule.action == super::form::RuleAction::Allow
    }
}

/// A new flow between a pod and another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The other end.
    pub peer: IpAddr,
    /// IANA number.
    pub protocol: u8,
    /// Destination port, or the type of ICMP.
    pub port: u16,
}

/// Who has an address.
#[derive(Clone, Copy)]
struct Who<'a> {
    address: IpAddr,
    pod: Option<&'a Pod>,
    node: Option<&'a Node>,
    /// It is the subject's own node.
    own_node: bool,
}

impl Compiled {
    /// How every rule of the policies that are about a pod in a direction judges a flow, by policy and index.
    pub fn attempts(&self, pod: &Name, direction: Direction, flow: Flow) -> Vec<Attempt<'_>> {
        let cluster = self.cluster();
        let Some(subject) = cluster.pods.get(pod) else {
            return Vec::new();
        };
        let node = cluster.nodes.iter().find(|node| node.addresses.contains(&flow.peer));
        let own_node = node.is_some_and(|node| node.name == subject.node);
        let who = Who { address: flow.peer, pod: self.pod_at(flow.peer), node, own_node };
        let named = match direction {
            Direction::Ingress => Some(subject),
            Direction::Egress => who.pod,
        };
        let mut attempts = Vec::new();
        for policy in self.about(pod) {
            for (rule, id) in policy.rules(direction) {
                let Some(info) = self.rules().get(id) else {
                    continue;
                };
                let mut peer = Part::Nothing;
                match &rule.peers {
                    None => peer = Part::All,
                    Some(peers) => {
                        if let Some(found) = peers.iter().find(|peer| self.is_peer(&peer.selects, who)) {
                            peer = Part::Item(found.item);
                        }
                    }
                }
                let found = rule.ports.iter().find(|port| is_port(port, named, flow));
                let port = match found {
                    _ if rule.ports.is_empty() => Part::All,
                    Some(port) => Part::Item(port.item),
                    None => Part::Nothing,
                };
                attempts.push(Attempt { rule: info, peer, port });
            }
        }
        attempts
    }

    /// The pod that has an address of its own.
    fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let mut pods = self.cluster().pods.values().filter(|pod| !pod.host_network);
        pods.find(|pod| pod.addresses.contains(&address))
    }

    fn is_peer(&self, select: &Select, who: Who<'_>) -> bool {
        let outside = who.pod.is_none() && who.node.is_none();
        match select {
            Select::Pods(question) => who.pod.is_some_and(|pod| {
                let none = crate::labels::Labels::new();
                question.matches(&Asked {
                    namespace: &pod.name.namespace,
                    labels: &pod.labels,
                    namespace_labels: self.cluster().namespaces.get(&pod.name.namespace).unwrap_or(&none),
                    service_account: pod.service_account.as_deref().unwrap_or(DEFAULT_SERVICE_ACCOUNT),
                    cluster: &self.settings().cluster,
                })
            }),
            Select::Block { block, cluster } => {
                let inside = (who.pod.is_some() && cluster.pods) || (who.node.is_some() && cluster.nodes);
                (outside || inside) && block.contains(who.address)
            }
            Select::Nodes(selector) => who.node.is_some_and(|node| selector.matches(&node.labels)),
            Select::Names(pattern) => {
                let has = |(name, addresses): (&String, &std::collections::BTreeSet<IpAddr>)| {
                    pattern.matches(name) && addresses.contains(&who.address)
                };
                outside && self.settings().names.iter().any(has)
            }
            Select::Entity(entity) => match entity {
                Entity::All => true,
                Entity::World => outside,
                Entity::WorldIpv4 => outside && who.address.is_ipv4(),
                Entity::WorldIpv6 => outside && who.address.is_ipv6(),
                Entity::Cluster => !outside,
                Entity::Host => who.own_node,
                Entity::RemoteNode => who.node.is_some() && !who.own_node,
                Entity::KubeApiserver => self.is_api_server(who.address),
                Entity::Init | Entity::Ingress | Entity::Unmanaged | Entity::Health | Entity::None => false,
            },
        }
    }

    fn is_api_server(&self, address: IpAddr) -> bool {
        let service = Name::new("default", "kubernetes");
        let mut slices = self.cluster().slices.values().filter(|slice| slice.service.as_ref() == Some(&service));
        slices.any(|slice| slice.endpoints.iter().any(|endpoint| endpoint.address == address))
    }
}

fn is_port(port: &FormPort, named: Option<&Pod>, flow: Flow) -> bool {
    port.protocol == flow.protocol
        && match &port.ports {
            PortSelector::All => true,
            PortSelector::Range(first, last) => (first..=last).contains(&&flow.port),
            PortSelector::Named(name) => named.into_iter().flat_map(|pod| &pod.ports).any(|own| {
                own.name.as_ref() == Some(name)
                    && Some(own.protocol) == protocol(port.protocol)
                    && own.port == flow.port
            }),
        }
}
