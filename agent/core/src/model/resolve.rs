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
use crate::prefix::Prefix;
use crate::yaml::Position;

/// What was filled in for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    node: String,
    addresses: Vec<IpAddr>,
}

impl Placement {
    pub(super) fn new(node: String, addresses: Vec<IpAddr>) -> Self {
        Self { node, addresses }
    }
}

/// The complete cluster. What a change leaves alone is shared with the cluster before it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resolved {
    pub(crate) pods: Arc<BTreeMap<Name, Pod>>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) namespaces: Arc<BTreeMap<String, Labels>>,
    pub(crate) policies: BTreeMap<Name, NetworkPolicy>,
    /// Those of the whole cluster have no namespace.
    pub(crate) cilium_policies: BTreeMap<Name, CiliumPolicy>,
    pub(crate) cluster_policies: BTreeMap<String, ClusterPolicy>,
    pub(crate) cidr_groups: BTreeMap<String, CidrGroup>,
    pub(crate) services: Arc<BTreeMap<Name, Service>>,
    pub(crate) slices: Arc<BTreeMap<Name, EndpointSlice>>,
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
}

pub(super) fn resolve(
    objects: &[Object],
    settings: Settings,
    placements: &mut BTreeMap<Name, Placement>,
    report: &mut Report,
) -> Resolved {
    let mut resolved = Resolved::default();
    namespaces(objects, Arc::make_mut(&mut resolved.namespaces));
    resolved.nodes = nodes::nodes(objects, settings, report);
    let wanted = expand::wanted_pods(objects, &resolved.nodes, report);
    pods(&wanted, &mut resolved, placements, report);
    let addresses = || {
        let of_pods = resolved.pods.values().flat_map(|pod| pod.addresses.iter());
        let of_nodes = resolved.nodes.iter().flat_map(|node| &node.pod_cidrs);
        of_pods.map(IpAddr::is_ipv4).chain(of_nodes.map(|prefix| prefix.is_ipv4()))
    };
    resolved.ipv4 = addresses().any(|ipv4| ipv4);
    resolved.ipv6 = addresses().any(|ipv4| !ipv4);
    for object in objects {
        match object {
            Object::NetworkPolicy(_) | Object::CiliumPolicy(_) | Object::ClusterPolicy(_) | Object::CidrGroup(_) => {
                resolved.put_policy(object);
            }
            Object::Service(service) => {
                let name = service.meta.full_name();
                Arc::make_mut(&mut resolved.services).insert(name, service.clone());
            }
            Object::EndpointSlice(slice) => {
                Arc::make_mut(&mut resolved.slices).insert(slice.meta.full_name(), slice.clone());
            }
            Object::Namespace(_) | Object::Node(_) | Object::Pod(_) | Object::Workload(_) | Object::Inert { .. } => {}
        }
    }
    cluster_addresses(objects, &mut resolved, report);
    let slices = Arc::make_mut(&mut resolved.slices);
    slices::derive(&resolved.services, &resolved.pods, &resolved.nodes, slices);
    resolved
}

impl Resolved {
    /// Adds or replaces a policy or a CIDR group. `false`: it is something else, or brings a namespace that is not there,
    /// and everything has to be resolved anew.
    pub(super) fn put_policy(&mut self, object: &Object) -> bool {
        let name = object.meta().full_name();
        let known = name.namespace.is_empty() || self.namespaces.contains_key(&name.namespace);
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
            | Object::Inert { .. } => return false,
        }
        known
    }
}

fn namespaces(objects: &[Object], namespaces: &mut BTreeMap<String, Labels>) {
    for object in objects {
        let meta = object.meta();
        if let Object::Namespace(meta) = object {
            namespaces.insert(meta.name.clone(), meta.labels.clone());
        } else if !meta.namespace.is_empty() {
            namespaces.entry(meta.namespace.clone()).or_default();
        }
    }
    for (name, labels) in namespaces {
        labels.insert(NAMESPACE_NAME.to_owned(), name.clone());
    }
}

fn pods(
    wanted: &[Cow<'_, PodObject>],
    resolved: &mut Resolved,
    placements: &mut BTreeMap<Name, Placement>,
    report: &mut Report,
) {
    let names: BTreeSet<(&str, &str)> =
        wanted.iter().map(|pod| (pod.meta.namespace.as_str(), pod.meta.name.as_str())).collect();
    placements.retain(|name, _| names.contains(&(name.namespace.as_str(), name.name.as_str())));
    let homes = schedule(wanted, &resolved.nodes, placements, report);
    let mut taken = given_addresses(wanted, &resolved.nodes, report);
    // What pods have already goes first: a new pod must not take it.
    let mut kept: BTreeMap<Name, Vec<IpAddr>> = BTreeMap::new();
    for (pod, home) in wanted.iter().zip(&homes) {
        let name = pod.meta.full_name();
        let Some(old) = placements.get(&name) else {
            continue;
        };
        let usable = pod.addresses.is_empty()
            && !pod.spec.host_network
            && home.is_some_and(|home| home.name == old.node)
            && old.addresses.iter().all(|address| !taken.contains(address));
        if usable {
            taken.extend(&old.addresses);
            kept.insert(name, old.addresses.clone());
        }
    }
    let mut free: BTreeMap<Prefix, u64> = BTreeMap::new();
    for (pod, home) in wanted.iter().zip(&homes) {
        let Some(home) = home else { continue };
        let name = pod.meta.full_name();
        let addresses = if pod.spec.host_network {
            one_per_family(&home.addresses)
        } else if !pod.addresses.is_empty() {
            pod.addresses.iter().map(|(address, _)| *address).collect()
        } else if let Some(addresses) = kept.remove(&name) {
            addresses
        } else {
            let mut addresses = Vec::new();
            for prefix in &home.pod_cidrs {
                let next = free.entry(*prefix).or_insert(2);
                match next_free(*prefix, next, &mut taken) {
                    Some(address) => addresses.push(address),
                    None => {
                        let what = format!("pod addresses in {prefix} of node `{}`", home.name);
                        exhausted(report, &pod.meta.position, &what);
                    }
                }
            }
            addresses
        };
        if !pod.spec.host_network && pod.addresses.is_empty() {
            let placement = Placement { node: home.name.clone(), addresses: addresses.clone() };
            placements.insert(name.clone(), placement);
        } else {
            placements.insert(name.clone(), Placement { node: home.name.clone(), addresses: Vec::new() });
        }
        Arc::make_mut(&mut resolved.pods).insert(
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
}

/// The node of every pod: its own, the one it had, or the next in turn.
fn schedule<'a>(
    wanted: &[Cow<'_, PodObject>],
    nodes: &'a [Node],
    placements: &BTreeMap<Name, Placement>,
    report: &mut Report,
) -> Vec<Option<&'a Node>> {
    let find = |name: &str| nodes.iter().find(|node| node.name == name);
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

/// The lowest free address from an offset on. The first two (network and gateway) and IPv4's last are never given out.
fn next_free(prefix: Prefix, next: &mut u64, taken: &mut BTreeSet<IpAddr>) -> Option<IpAddr> {
    loop {
        let address = prefix.nth(*next)?;
        *next += 1;
        if prefix.is_ipv4() && prefix.nth(*next).is_none() {
            return None;
        }
        if taken.insert(address) {
            return Some(address);
        }
    }
}

fn one_per_family(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let ipv4 = addresses.iter().find(|address| address.is_ipv4());
    let ipv6 = addresses.iter().find(|address| address.is_ipv6());
    ipv4.into_iter().chain(ipv6).copied().collect()
}

/// Gives services without an address the next ones of `10.96.0.0/16` and `fd00:10:96::/112`. The first address of each is
/// left to the API server, as everywhere.
fn cluster_addresses(objects: &[Object], resolved: &mut Resolved, report: &mut Report) {
    let pools = [
        Prefix::new(Ipv4Addr::new(10, 96, 0, 0).into(), 16),
        Prefix::new(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0).into(), 112),
    ];
    let mut taken = BTreeMap::new();
    for object in objects {
        let Object::Service(service) = object else {
            continue;
        };
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
    let mut next = [2, 2];
    for object in objects {
        let Object::Service(service) = object else {
            continue;
        };
        let wanted =
            !service.headless && service.kind != ServiceType::ExternalName && service.cluster_addresses.is_empty();
        let Some(service) = Arc::make_mut(&mut resolved.services).get_mut(&service.meta.full_name()) else {
            continue;
        };
        if !wanted {
            continue;
        }
        let first_is_ipv4 = service.families.first().copied().unwrap_or(resolved.ipv4);
        let both = service.dual_stack || service.families.len() > 1;
        for ipv4 in [first_is_ipv4, !first_is_ipv4] {
            let in_use = if ipv4 { resolved.ipv4 } else { resolved.ipv6 };
            if !in_use || (ipv4 != first_is_ipv4 && !both) {
                continue;
            }
            let [next4, next6] = &mut next;
            let ([Some(pool4), Some(pool6)], next) = (pools, if ipv4 { next4 } else { next6 }) else {
                continue;
            };
            let pool = if ipv4 { pool4 } else { pool6 };
            match next_free(pool, next, &mut taken) {
                Some(address) => service.cluster_addresses.push(address),
                None => exhausted(report, &service.meta.position, "service addresses"),
            }
        }
    }
}

pub(super) fn exhausted(report: &mut Report, position: &Position, what: &str) {
    let what = what.to_owned();
    report.add(InputError::new(position.clone(), "", Problem::Exhausted { what }));
}
