//! What policies ask of peers beyond the labels that count: blocks, ports by name, other labels, nodes by labels. Only
//! what is asked tells identities apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::form::{Form, Select};
use super::rules::Direction;
use super::settings::PolicySettings;
use crate::identity::Mark;
use crate::labels::Selector;
use crate::model::{Entity, IpBlock, LabelOf, Name, Node, Pod, PortSelector, Protocol, Resolved};
use crate::prefix::Prefix;

/// The service behind which the API server is.
const API_SERVER: (&str, &str) = ("default", "kubernetes");
/// Mark of the API server's addresses.
const API_SERVER_MARK: &str = "reserved:kube-apiserver";

/// Everything that policies ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Questions {
    /// Blocks that select pods or nodes.
    pub(super) blocks: BTreeSet<IpBlock>,
    /// Prefixes outside that somebody names, also those of names and of the API server; none of length 0.
    pub(super) prefixes: BTreeSet<Prefix>,
    /// Names of ports in egress rules.
    ports: BTreeSet<(String, Protocol)>,
    /// Keys of labels that do not count.
    pub(super) keys: BTreeSet<String>,
    /// Selectors of nodes, by their text.
    nodes: BTreeMap<String, Selector>,
    /// Addresses of the API server, if a rule asks for it.
    pub(super) api_server: BTreeSet<IpAddr>,
}

impl Questions {
    pub(super) fn new<'a>(
        forms: impl Iterator<Item = &'a Form>,
        cluster: &Resolved,
        settings: &PolicySettings,
    ) -> Self {
        let mut asked = Self::default();
        for form in forms {
            for rule in &form.rules {
                for peer in rule.peers.iter().flatten() {
                    asked.select(&peer.selects, cluster, settings);
                }
                if rule.list.direction() == Direction::Egress {
                    for port in &rule.ports {
                        if let (PortSelector::Named(name), Some(protocol)) = (&port.ports, protocol(port.protocol)) {
                            asked.ports.insert((name.clone(), protocol));
                        }
                    }
                }
            }
        }
        asked
    }

    fn select(&mut self, select: &Select, cluster: &Resolved, settings: &PolicySettings) {
        match select {
            Select::Pods(question) => {
                for requirement in &question.requirements {
                    if let LabelOf::Pod(key) = &requirement.of
                        && !settings.identity_labels.counts(key)
                    {
                        self.keys.insert(key.clone());
                    }
                }
            }
            Select::Block { block, cluster: inside } => {
                if inside.pods || inside.nodes {
                    self.blocks.insert(block.clone());
                }
                let prefixes = std::iter::once(&block.prefix).chain(&block.except);
                self.prefixes.extend(prefixes.filter(|prefix| prefix.length() > 0));
            }
            Select::Entity(Entity::KubeApiserver) => self.find_api_server(cluster),
            Select::Entity(_) => {}
            Select::Nodes(selector) => {
                self.nodes.insert(selector.to_string(), selector.clone());
            }
            Select::Names(pattern) => {
                let known = settings.names.iter().filter(|(name, _)| pattern.matches(name));
                self.prefixes.extend(known.flat_map(|(_, addresses)| addresses).map(|address| Prefix::host(*address)));
            }
        }
    }

    fn find_api_server(&mut self, cluster: &Resolved) {
        let service = Name::new(API_SERVER.0, API_SERVER.1);
        let slices = cluster.slices.values().filter(|slice| slice.service.as_ref() == Some(&service));
        for endpoint in slices.flat_map(|slice| &slice.endpoints) {
            self.api_server.insert(endpoint.address);
            self.prefixes.insert(Prefix::host(endpoint.address));
        }
    }

    /// What is asked in one of two states and not in the other.
    pub(super) fn changes(&self, other: &Self) -> Changed {
        Changed {
            blocks: self.blocks.symmetric_difference(&other.blocks).cloned().collect(),
            ports: self.ports.symmetric_difference(&other.ports).cloned().collect(),
            keys: self.keys.symmetric_difference(&other.keys).cloned().collect(),
        }
    }

    fn ports_of<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = Mark> + 'a {
        pod.ports.iter().filter_map(|port| {
            let key = (port.name.clone()?, port.protocol);
            let asked = self.ports.contains(&key);
            asked.then_some(Mark::Port { name: key.0, protocol: port.protocol, number: port.port })
        })
    }

    fn labels_of<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = Mark> + 'a {
        let asked = self.keys.iter().filter_map(|key| pod.labels.get_key_value(key));
        asked.map(|(key, value)| Mark::Asked(format!("k8s:{key}={value}")))
    }

    fn blocks_of(&self, address: IpAddr) -> impl Iterator<Item = Mark> + '_ {
        self.blocks.iter().filter(move |block| block.contains(address)).cloned().map(Mark::Block)
    }

    /// Marks of a pod's address.
    pub(super) fn of_pod(&self, address: IpAddr, pod: &Pod) -> BTreeSet<Mark> {
        self.blocks_of(address).chain(self.ports_of(pod)).chain(self.labels_of(pod)).collect()
    }

    /// Marks of a node's address.
    pub(super) fn of_node(&self, address: IpAddr, node: &Node) -> BTreeSet<Mark> {
        let selectors = self.nodes.iter().filter(|(_, selector)| selector.matches(&node.labels));
        let api_server = self.api_server.contains(&address).then(api_server_mark);
        self.blocks_of(address).chain(selectors.map(|(text, _)| node_mark(text))).chain(api_server).collect()
    }
}

/// What is asked in one state and not in another.
#[derive(Clone, Debug)]
pub(super) struct Changed {
    blocks: Vec<IpBlock>,
    ports: BTreeSet<(String, Protocol)>,
    keys: BTreeSet<String>,
}

impl Changed {
    /// Whether nothing is.
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.ports.is_empty() && self.keys.is_empty()
    }

    /// Whether a pod's marks may differ.
    pub(super) fn concern(&self, pod: &Pod) -> bool {
        self.blocks.iter().any(|block| pod.addresses.iter().any(|address| block.prefix.contains(*address)))
            || self.keys.iter().any(|key| pod.labels.contains_key(key))
            || (!self.ports.is_empty()
                && pod.ports.iter().any(|port| {
                    port.name.as_ref().is_some_and(|name| self.ports.contains(&(name.clone(), port.protocol)))
                }))
    }
}

/// Mark of nodes that a selector selects.
pub(super) fn node_mark(selector: &str) -> Mark {
    Mark::Asked(format!("nodes:{selector}"))
}

/// Mark of the API server.
pub(super) fn api_server_mark() -> Mark {
    Mark::Asked(API_SERVER_MARK.to_owned())
}

/// A protocol with ports by its number.
pub(super) fn protocol(number: u8) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)
}
