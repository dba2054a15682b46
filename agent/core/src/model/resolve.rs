//! Fills in what a scheduler and address managers would: nodes, the pods of workloads, their nodes and addresses.
//!
//! Invariant: the result depends on the objects, their order and earlier placements only. What was given to a pod stays
//! with it until it is gone; then it is free again.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::cilium::{CidrGroup, CiliumPolicy};
use super::object::{EndpointSlice, Name, NetworkPolicy, Object, PodObject, Service, ServiceType};
use super::tiers::ClusterPolicy;
use super::{NAMESPACE_NAME, Node, Pod, Settings, expand, nodes, slices};
use crate::input::{InputError, Problem, Report};
use crate::labels::Labels;
use crate::map::Map;
use crate::prefix::Prefix;
use crate::yaml::Position;

/// What was filled in for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) node: String,
    /// None: they are its own.
    pub(super) addresses: Vec<IpAddr>,
}

impl Placement {
    pub(super) fn new(node: String, addresses: Vec<IpAddr>) -> Self {
        Self { node, addresses }
    }
}

/// The complete cluster. What a change leaves alone is shared with the cluster before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) pods: Map<Name, Pod>,
    pub(crate) nodes: Arc<Vec<Node>>,
    pub(crate) namespaces: Map<String, Labels>,
    pub(crate) policies: Map<Name, NetworkPolicy>,
    /// Those of the whole cluster have no namespace.
    pub(crate) cilium_policies: Map<Name, CiliumPolicy>,
    pub(crate) cluster_policies: Map<String, ClusterPolicy>,
    pub(crate) cidr_groups: Map<String, CidrGroup>,
    pub(crate) services: Map<Name, Service>,
    pub(crate) slices: Map<Name, EndpointSlice>,
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
    /// Who has an address: nodes, and pods with a network of their own.
    pub(crate) holders: Map<IpAddr, Holder>,
    pub(super) books: Books,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Node(String),
    Pod(Name),
}

/// What is kept so that a change costs what it touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Books {
    /// What was filled in for pods, so that it stays.
    pub(super) placements: Map<Name, Placement>,
    /// Objects in each namespace.
    pub(super) in_namespace: Map<String, usize>,
    /// Pods and workloads that somebody (namespace, kind, name) has made.
    pub(super) made: Map<(String, String, String), usize>,
    /// Pods' addresses of IPv4 and IPv6.
    pub(super) families: [usize; 2],
    /// Slices that were derived, by service.
    pub(super) derived: Map<Name, Vec<Name>>,
}

pub(super) fn resolve(
    objects: &[&Object],
    settings: Settings,
    placements: Map<Name, Placement>,
    report: &mut Report,
) -> Resolved {
    let mut resolved = Resolved { books: Books { placements, ..Books::default() }, ..Resolved::default() };
    namespaces(objects, &mut resolved);
    let nodes = nodes::nodes(objects, settings, report);
    for node in &nodes {
        let own = node.addresses.iter().map(|address| (*address, Holder::Node(node.name.clone())));
        resolved.holders.extend(own);
    }
    resolved.nodes = Arc::new(nodes);
    let wanted = expand::wanted_pods(objects, &resolved.nodes, &mut resolved.books.made, report);
    pods(&wanted, &mut resolved, report);
    resolved.find_families();
    for object in objects {
        match object {
            Object::NetworkPolicy(_) | Object::CiliumPolicy(_) | Object::ClusterPolicy(_) | Object::CidrGroup(_) => {
                resolved.put_policy(object);
            }
            Object::EndpointSlice(slice) => {
                resolved.slices.insert(slice.meta.full_name(), slice.clone());
            }
            Object::Namespace(_)
            | Object::Node(_)
            | Object::Pod(_)
            | Object::Workload(_)
            | Object::Service(_)
            | Object::Inert { .. } => {}
        }
    }
    let services = objects.iter().filter_map(|object| if let Object::Service(own) = object { Some(own) } else { None });
    resolved.services = cluster_addresses(&services.collect::<Vec<_>>(), (resolved.ipv4, resolved.ipv6), report);
    slices::derive_all(&mut resolved);
    resolved
}

impl Resolved {
    /// A node by its name.
    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Pods of a namespace, in order.
    pub(crate) fn pods_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Pod> {
        let all = self.pods.range_from(&Name::new(namespace, "")).map(|(_, pod)| pod);
        all.take_while(move |pod| pod.name.namespace == namespace)
    }

    /// Which families are in use.
    pub(super) fn find_families(&mut self) {
        let of_nodes = |ipv4| self.nodes.iter().flat_map(|node| &node.pod_cidrs).any(|own| own.is_ipv4() == ipv4);
        let [ipv4, ipv6] = self.books.families.map(|addresses| addresses > 0);
        (self.ipv4, self.ipv6) = (ipv4 || of_nodes(true), ipv6 || of_nodes(false));
    }

    /// Adds or replaces a policy or a CIDR group.
    pub(super) fn put_policy(&mut self, object: &Object) {
        let name = object.meta().full_name();
        match object {
            Object::NetworkPolicy(policy) => {
                self.policies.insert(name, policy.clone());
            }
            Object::CiliumPolicy(policy) => {
                self.cilium_policies.insert(name, policy.clone());
            }
            Object::ClusterPolicy(policy) => {
                self.cluster_policies.insert(name.name, policy.clone());
            }
            Object::CidrGroup(group) => {
                self.cidr_groups.insert(name.name, group.clone());
            }
            Object::Namespace(_)
            | Object::Node(_)
            | Object::Pod(_)
            | Object::Workload(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::Inert { .. } => {}
        }
    }

    /// Removes a policy or a CIDR group.
    pub(super) fn remove_policy(&mut self, object: &Object) {
        let name = object.meta().full_name();
        match object {
            Object::NetworkPolicy(_) => {
                self.policies.remove(&name);
            }
            Object::CiliumPolicy(_) => {
                self.cilium_policies.remove(&name);
            }
            Object::ClusterPolicy(_) => {
                self.cluster_policies.remove(&name.name);
            }
            Object::CidrGroup(_) => {
                self.cidr_groups.remove(&name.name);
            }
            Object::Namespace(_)
            | Object::Node(_)
            | Object::Pod(_)
            | Object::Workload(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::Inert { .. } => {}
        }
    }

    /// Adds a pod; its addresses are nobody else's.
    pub(super) fn add_pod(&mut self, pod: &PodObject, home: &Node, addresses: Vec<IpAddr>) {
        let name = pod.meta.full_name();
        for address in &addresses {
            let [ipv4, ipv6] = &mut self.books.families;
            *(if address.is_ipv4() { ipv4 } else { ipv6 }) += 1;
            if !pod.spec.host_network {
                self.holders.insert(*address, Holder::Pod(name.clone()));
            }
        }
        let filled = !pod.spec.host_network && pod.addresses.is_empty();
        let given = if filled { addresses.clone() } else { Vec::new() };
        self.books.placements.insert(name.clone(), Placement::new(home.name.clone(), given));
        self.pods.insert(
            name.clone(),
            Pod {
                name,
                labels: pod.meta.labels.clone(),
                node: home.name.clone(),
                addresses,
                host_network: pod.spec.host_network,
                ports: pod.spec.ports.clone(),
                service_account: pod.spec.service_account.clone(),
                ready: pod.ready,
                terminating: pod.meta.terminating,
                position: pod.meta.position.clone(),
            },
        );
    }

    /// Removes a pod; where it was placed is not forgotten.
    pub(super) fn remove_pod(&mut self, name: &Name) -> Option<Pod> {
        let gone = self.pods.remove(name)?;
        for address in &gone.addresses {
            let [ipv4, ipv6] = &mut self.books.families;
            *(if address.is_ipv4() { ipv4 } else { ipv6 }) -= 1;
            if !gone.host_network {
                self.holders.remove(address);
            }
        }
        Some(gone)
    }
}

fn namespaces(objects: &[&Object], resolved: &mut Resolved) {
    for object in objects {
        let meta = object.meta();
        if let Object::Namespace(meta) = object {
            resolved.namespaces.insert(meta.name.clone(), labels_of(&meta.name, Some(&meta.labels)));
        } else if let Some(count) = resolved.books.in_namespace.get_or_default(&meta.namespace) {
            *count += 1;
        }
    }
    resolved.books.in_namespace.remove("");
    for namespace in resolved.books.in_namespace.keys() {
        if !resolved.namespaces.contains_key(namespace) {
            resolved.namespaces.insert(namespace.clone(), labels_of(namespace, None));
        }
    }
}

/// Labels of a namespace, with those that its object has, if there is one.
pub(super) fn labels_of(namespace: &str, written: Option<&Labels>) -> Labels {
    let mut labels = written.cloned().unwrap_or_default();
    labels.insert(NAMESPACE_NAME.to_owned(), namespace.to_owned());
    labels
}

fn pods(wanted: &[Cow<'_, PodObject>], resolved: &mut Resolved, report: &mut Report) {
    let names: BTreeSet<Name> = wanted.iter().map(|pod| pod.meta.full_name()).collect();
    let placements = std::mem::take(&mut resolved.books.placements);
    let placements: Map<Name, Placement> = placements
        .iter()
        .filter(|(name, _)| names.contains(name))
        .map(|(name, own)| (name.clone(), own.clone()))
        .collect();
    let nodes = Arc::clone(&resolved.nodes);
    let homes = schedule(wanted, &nodes, &placements, report);
    let mut taken = given_addresses(wanted, &nodes, report);
    // What pods have already goes first: a new pod must not take it.
    let mut kept: BTreeMap<Name, Vec<IpAddr>> = BTreeMap::new();
    for (pod, home) in wanted.iter().zip(&homes) {
        let name = pod.meta.full_name();
        let Some(old) = placements.get(&name) else {
            continue;
        };
        if home.is_some_and(|home| keeps(pod, home, old)) && !old.addresses.iter().any(|own| taken.contains(own)) {
            taken.extend(&old.addresses);
            kept.insert(name, old.addresses.clone());
        }
    }
    let mut free: BTreeMap<Prefix, u64> = BTreeMap::new();
    resolved.books.placements = placements;
    for (pod, home) in wanted.iter().zip(&homes) {
        let Some(home) = home else { continue };
        let name = pod.meta.full_name();
        let addresses = match own_addresses(pod, home).or_else(|| kept.remove(&name)) {
            Some(addresses) => addresses,
            None => {
                let mut addresses = Vec::new();
                for prefix in &home.pod_cidrs {
                    let next = free.entry(*prefix).or_insert(FIRST_POD);
                    match next_free(*prefix, next, |address| taken.insert(address)) {
                        Some(address) => addresses.push(address),
                        None => {
                            let what = format!("pod addresses in {prefix} of node `{}`", home.name);
                            exhausted(report, &pod.meta.position, &what);
                        }
                    }
                }
                addresses
            }
        };
        resolved.add_pod(pod, home, addresses);
    }
}

/// Addresses that a pod has by itself: its node's, or what the input says.
pub(super) fn own_addresses(pod: &PodObject, home: &Node) -> Option<Vec<IpAddr>> {
    if pod.spec.host_network {
        return Some(one_per_family(&home.addresses));
    }
    (!pod.addresses.is_empty()).then(|| pod.addresses.iter().map(|(address, _)| *address).collect())
}

/// Whether a pod keeps what it was given, if nobody else has it.
pub(super) fn keeps(pod: &PodObject, home: &Node, old: &Placement) -> bool {
    pod.addresses.is_empty() && !pod.spec.host_network && home.name == old.node && !old.addresses.is_empty()
}

/// The node of every pod: its own, the one it had, or the next in turn.
fn schedule<'a>(
    wanted: &[Cow<'_, PodObject>],
    nodes: &'a [Node],
    placements: &Map<Name, Placement>,
    report: &mut Report,
) -> Vec<Option<&'a Node>> {
    let by_name: BTreeMap<&str, &Node> = nodes.iter().map(|node| (node.name.as_str(), node)).collect();
    let find = |name: &str| by_name.get(name).copied();
    let mut turn = 0;
    let mut homes = Vec::with_capacity(wanted.len());
    for pod in wanted {
        let home = match &pod.spec.node {
            Some((name, position)) => {
                let home = find(name);
                if home.is_none() {
                    report.add(InputError::new(
                        position.clone(),
                        "spec.nodeName",
                        Problem::NotFound {
                            what: "node",
                            name: name.clone(),
                            known: nodes.iter().map(|node| node.name.clone()).collect(),
                        },
                    ));
                }
                home
            }
            None => {
                let had = placements.get(&pod.meta.full_name());
                let had = had.and_then(|placement| find(&placement.node));
                let next = nodes.get(turn % nodes.len().max(1));
                turn += 1;
                had.or(next)
            }
        };
        homes.push(home);
    }
    homes
}

/// Addresses that the input gives to pods, and those of nodes.
fn given_addresses(wanted: &[Cow<'_, PodObject>], nodes: &[Node], report: &mut Report) -> BTreeSet<IpAddr> {
    let mut owners: BTreeMap<IpAddr, (String, &Position)> = BTreeMap::new();
    for node in nodes {
        for &address in &node.addresses {
            let owner = (format!("of node `{}`", node.name), &node.position);
            owners.insert(address, owner);
        }
    }
    for pod in wanted.iter().filter(|pod| !pod.spec.host_network) {
        for (address, position) in &pod.addresses {
            let owner = (format!("of pod `{}`", pod.meta.full_name()), position);
            if let Some((who, first)) = owners.insert(*address, owner) {
                report.add(InputError::new(
                    position.clone(),
                    "status.podIPs",
                    Problem::Taken { what: format!("address {address} {who}"), first: first.clone() },
                ));
            }
        }
    }
    owners.into_keys().collect()
}

/// Where addresses of pods begin in their prefix: the first two are the network and the gateway.
pub(super) const FIRST_POD: u64 = 2;

/// The lowest free address from an offset on. IPv4's last is never given out.
pub(super) fn next_free(prefix: Prefix, next: &mut u64, mut take: impl FnMut(IpAddr) -> bool) -> Option<IpAddr> {
    loop {
        let address = prefix.nth(*next)?;
        *next += 1;
        if prefix.is_ipv4() && prefix.nth(*next).is_none() {
            return None;
        }
        if take(address) {
            return Some(address);
        }
    }
}

fn one_per_family(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let ipv4 = addresses.iter().find(|address| address.is_ipv4());
    let ipv6 = addresses.iter().find(|address| address.is_ipv6());
    ipv4.into_iter().chain(ipv6).copied().collect()
}

/// Services in order; those without an address have the next ones of `10.96.0.0/16` and `fd00:10:96::/112`. The first
/// address of each is left to the API server, as everywhere.
pub(super) fn cluster_addresses(
    services: &[&Service],
    (uses_ipv4, uses_ipv6): (bool, bool),
    report: &mut Report,
) -> Map<Name, Service> {
    let pools = [
        Prefix::new(Ipv4Addr::new(10, 96, 0, 0).into(), 16),
        Prefix::new(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0).into(), 112),
    ];
    let mut taken = BTreeMap::new();
    for service in services {
        for &address in &service.cluster_addresses {
            if let Some(first) = taken.insert(address, &service.meta.position) {
                report.add(InputError::new(
                    service.meta.position.clone(),
                    "spec.clusterIPs",
                    Problem::Taken { what: format!("address {address}"), first: Position::clone(first) },
                ));
            }
        }
    }
    let mut taken: BTreeSet<IpAddr> = taken.into_keys().collect();
    let mut next = [FIRST_POD; 2];
    let mut all = Map::new();
    for &written in services {
        let mut service = written.clone();
        let wanted =
            !service.headless && service.kind != ServiceType::ExternalName && service.cluster_addresses.is_empty();
        let first_is_ipv4 = service.families.first().copied().unwrap_or(uses_ipv4);
        let both = service.dual_stack || service.families.len() > 1;
        for ipv4 in [first_is_ipv4, !first_is_ipv4] {
            let in_use = if ipv4 { uses_ipv4 } else { uses_ipv6 };
            if !wanted || !in_use || (ipv4 != first_is_ipv4 && !both) {
                continue;
            }
            let [next4, next6] = &mut next;
            let ([Some(pool4), Some(pool6)], next) = (pools, if ipv4 { next4 } else { next6 }) else {
                continue;
            };
            let pool = if ipv4 { pool4 } else { pool6 };
            match next_free(pool, next, |address| taken.insert(address)) {
                Some(address) => service.cluster_addresses.push(address),
                None => exhausted(report, &service.meta.position, "service addresses"),
            }
        }
        all.insert(service.meta.full_name(), service);
    }
    all
}

pub(super) fn exhausted(report: &mut Report, position: &Position, what: &str) {
    let what = what.to_owned();
    report.add(InputError::new(position.clone(), "", Problem::Exhausted { what }));
}
