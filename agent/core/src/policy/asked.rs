//! What policies ask of peers beyond the labels that count: blocks, ports by name, other labels, nodes by labels. Only
//! what is asked tells identities apart.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::form::{Form, Select};
use super::rules::Direction;
use super::settings::PolicySettings;
use crate::identity::Mark;
use crate::labels::Selector;
use crate::map::Map;
use crate::model::{Entity, Holder, IpBlock, LabelOf, Name, Node, Pod, PortSelector, Protocol, Resolved};
use crate::prefix::Prefix;

/// The service behind which the API server is.
const API_SERVER: (&str, &str) = ("default", "kubernetes");
/// Mark of the API server's addresses.
const API_SERVER_MARK: &str = "reserved:kube-apiserver";

/// Things that several rules may ask for, with their number.
type Counted<T> = Map<T, usize>;

/// Everything that policies ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Questions {
    /// Blocks that select pods or nodes.
    pub(super) blocks: Counted<IpBlock>,
    /// Prefixes outside that somebody names, also those of names and of the API server; none of length 0.
    pub(super) prefixes: Counted<Prefix>,
    /// Names of ports in egress rules.
    ports: Counted<(String, Protocol)>,
    /// Keys of labels that do not count.
    pub(super) keys: Counted<String>,
    /// Selectors of nodes, by their text.
    pub(super) nodes: Counted<(String, Selector)>,
    /// Peers that are the API server.
    api_server_asked: usize,
    /// Addresses of the API server, if a rule asks for it.
    pub(super) api_server: BTreeSet<IpAddr>,
}

fn add<T: Ord + Clone>(counted: &mut Counted<T>, item: &T, more: bool) {
    match counted.get_mut(item) {
        Some(count) if more => *count += 1,
        Some(count) if *count > 1 => *count -= 1,
        Some(_) => {
            counted.remove(item);
        }
        None if more => {
            counted.insert(item.clone(), 1);
        }
        None => {}
    }
}

/// What is in one of two and not in the other.
fn one_sided<'a, T: Ord>(old: &'a Counted<T>, new: &'a Counted<T>) -> impl Iterator<Item = &'a T> {
    old.diff(new).filter(|(_, was, is)| was.is_some() != is.is_some()).map(|(item, _, _)| item)
}

impl Questions {
    /// Adds what a form asks, or takes it away.
    pub(super) fn count(&mut self, form: &Form, settings: &PolicySettings, more: bool) {
        for rule in &form.rules {
            for peer in rule.peers.iter().flatten() {
                self.select(&peer.selects, settings, more);
            }
            if rule.list.direction() == Direction::Egress {
                for port in &rule.ports {
                    if let (PortSelector::Named(name), Some(protocol)) = (&port.ports, protocol(port.protocol)) {
                        add(&mut self.ports, &(name.clone(), protocol), more);
                    }
                }
            }
        }
    }

    fn select(&mut self, select: &Select, settings: &PolicySettings, more: bool) {
        match select {
            Select::Pods(question) => {
                for requirement in &question.requirements {
                    if let LabelOf::Pod(key) = &requirement.of
                        && !settings.identity_labels.counts(key)
                    {
                        add(&mut self.keys, key, more);
                    }
                }
            }
            Select::Block { block, cluster: inside } => {
                if inside.pods || inside.nodes {
                    add(&mut self.blocks, block, more);
                }
                for prefix in std::iter::once(&block.prefix).chain(&block.except).filter(|own| own.length() > 0) {
                    add(&mut self.prefixes, prefix, more);
                }
            }
            Select::Entity(Entity::KubeApiserver) => {
                self.api_server_asked = if more { self.api_server_asked + 1 } else { self.api_server_asked - 1 };
            }
            Select::Entity(_) => {}
            Select::Nodes(selector) => add(&mut self.nodes, &(selector.to_string(), selector.clone()), more),
            Select::Names(pattern) => {
                let known = settings.names.iter().filter(|(name, _)| pattern.matches(name));
                for address in known.flat_map(|(_, addresses)| addresses) {
                    add(&mut self.prefixes, &Prefix::host(*address), more);
                }
            }
        }
    }

    /// Looks for the API server, if somebody asks for it.
    pub(super) fn find_api_server(&mut self, cluster: &Resolved) {
        let service = Name::new(API_SERVER.0, API_SERVER.1);
        let own = cluster.slices.range_from(&Name::new(API_SERVER.0, ""));
        let own = own.map(|(_, slice)| slice).take_while(|slice| slice.meta.namespace == API_SERVER.0);
        let own = own.filter(|slice| self.api_server_asked > 0 && slice.service.as_ref() == Some(&service));
        let found: BTreeSet<IpAddr> = own.flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address).collect();
        let before = std::mem::replace(&mut self.api_server, found);
        for (addresses, more) in [(before, false), (self.api_server.clone(), true)] {
            for address in addresses {
                add(&mut self.prefixes, &Prefix::host(address), more);
            }
        }
    }

    /// What is asked in one of two states and not in the other.
    pub(super) fn changes(&self, other: &Self) -> Changed {
        Changed {
            blocks: one_sided(&self.blocks, &other.blocks).cloned().collect(),
            ports: one_sided(&self.ports, &other.ports).cloned().collect(),
            keys: one_sided(&self.keys, &other.keys).cloned().collect(),
        }
    }

    /// Prefixes that are named in one of two states and not in the other.
    pub(super) fn changed_prefixes(&self, other: &Self) -> Vec<Prefix> {
        one_sided(&self.prefixes, &other.prefixes).copied().collect()
    }

    /// Whether nodes' addresses have the same marks in both.
    pub(super) fn ask_the_same_of_nodes(&self, other: &Self) -> bool {
        one_sided(&self.blocks, &other.blocks).next().is_none()
            && one_sided(&self.nodes, &other.nodes).next().is_none()
            && self.api_server == other.api_server
    }

    fn ports_of<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = Mark> + 'a {
        pod.ports.iter().filter_map(|port| {
            let key = (port.name.clone()?, port.protocol);
            let asked = self.ports.contains_key(&key);
            asked.then_some(Mark::Port { name: key.0, protocol: port.protocol, number: port.port })
        })
    }

    fn labels_of<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = Mark> + 'a {
        let asked = self.keys.keys().filter_map(|key| pod.labels.get_key_value(key));
        asked.map(|(key, value)| Mark::Asked(format!("k8s:{key}={value}")))
    }

    fn blocks_of(&self, address: IpAddr) -> impl Iterator<Item = Mark> + '_ {
        self.blocks.keys().filter(move |block| block.contains(address)).cloned().map(Mark::Block)
    }

    /// Marks of a pod's address.
    pub(super) fn of_pod(&self, address: IpAddr, pod: &Pod) -> BTreeSet<Mark> {
        self.blocks_of(address).chain(self.ports_of(pod)).chain(self.labels_of(pod)).collect()
    }

    /// Marks of a node's address.
    pub(super) fn of_node(&self, address: IpAddr, node: &Node) -> BTreeSet<Mark> {
        let selectors = self.nodes.keys().filter(|(_, selector)| selector.matches(&node.labels));
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
    /// Pods whose marks may differ.
    pub(super) fn concerned<'a>(&self, cluster: &'a Resolved) -> BTreeSet<&'a Name> {
        let mut concerned = BTreeSet::new();
        for block in &self.blocks {
            let inside = cluster.holders.range_from(&block.prefix.address());
            let inside = inside.take_while(|(address, _)| block.prefix.contains(**address));
            concerned.extend(inside.filter_map(|(_, holder)| match holder {
                Holder::Pod(pod) => Some(pod),
                Holder::Node(_) => None,
            }));
        }
        if !self.keys.is_empty() || !self.ports.is_empty() {
            let all = cluster.pods.values().filter(|pod| !pod.host_network && self.concern(pod));
            concerned.extend(all.map(|pod| &pod.name));
        }
        concerned
    }

    fn concern(&self, pod: &Pod) -> bool {
        let named = |name: &String, protocol| self.ports.contains(&(name.clone(), protocol));
        self.keys.iter().any(|key| pod.labels.contains_key(key))
            || (!self.ports.is_empty()
                && pod.ports.iter().any(|port| port.name.as_ref().is_some_and(|name| named(name, port.protocol))))
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
