//! The nodes: those that were read, completed, or else two.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::object::{NodeObject, Object};
use super::resolve::exhausted;
use super::{Node, Settings};
use crate::input::{InputError, Problem, Report};
use crate::labels::Labels;
use crate::prefix::Prefix;
use crate::yaml::Position;

/// Node objects, or else the nodes that pods name; at least two when there are no Node objects.
pub(super) fn nodes(objects: &[&Object], settings: Settings, report: &mut Report) -> Vec<Node> {
    let mut given: Vec<&NodeObject> = Vec::new();
    let mut named: Vec<&str> = Vec::new();
    for object in objects {
        match object {
            Object::Node(node) => given.push(node),
            Object::Pod(pod) => named.extend(pod.spec.node.iter().map(|(name, _)| name.as_str())),
            Object::Workload(workload) => {
                named.extend(workload.template.node.iter().map(|(name, _)| name.as_str()));
            }
            Object::Namespace(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::NetworkPolicy(_)
            | Object::CiliumPolicy(_)
            | Object::CidrGroup(_)
            | Object::ClusterPolicy(_)
            | Object::Inert { .. } => {}
        }
    }
    let mut nodes: Vec<Node> = Vec::new();
    let mut internal: Vec<usize> = Vec::new();
    if given.is_empty() {
        let mut names: Vec<&str> = Vec::new();
        for name in named {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        for name in ["node-1", "node-2"] {
            if names.len() < 2 && !names.contains(&name) {
                names.push(name);
            }
        }
        if names.iter().all(|name| ["node-1", "node-2"].contains(name)) {
            names.sort_unstable();
        }
        for name in names {
            internal.push(0);
            nodes.push(Node {
                name: name.to_owned(),
                labels: Labels::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]),
                addresses: Vec::new(),
                pod_cidrs: Vec::new(),
                position: Position::built_in("default nodes"),
            });
        }
    }
    for node in given {
        internal.push(node.internal.len());
        nodes.push(Node {
            name: node.meta.name.clone(),
            labels: node.meta.labels.clone(),
            addresses: node.internal.iter().chain(&node.external).copied().collect(),
            pod_cidrs: node.pod_cidrs.clone(),
            position: node.meta.position.clone(),
        });
    }
    check_nodes(&nodes, report);
    fill_nodes(&mut nodes, &internal, settings, report);
    nodes
}

fn check_nodes(nodes: &[Node], report: &mut Report) {
    let mut addresses: BTreeMap<IpAddr, &Node> = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for &address in &node.addresses {
            if let Some(first) = addresses.insert(address, node) {
                taken(report, &node.position, "status.addresses", address, first);
            }
        }
        for &prefix in &node.pod_cidrs {
            let overlaps =
                |other: &&Node| (other.pod_cidrs.iter()).any(|old| old.covers(prefix) || prefix.covers(*old));
            if let Some(first) = nodes.iter().take(index).find(overlaps) {
                taken(report, &node.position, "spec.podCIDRs", prefix, first);
            }
        }
    }
}

fn taken(report: &mut Report, position: &Position, field: &str, what: impl ToString, first: &Node) {
    report.add(InputError::new(
        position.clone(),
        field,
        Problem::Taken { what: what.to_string(), first: first.position.clone() },
    ));
}

/// The node's number with the digits of its decimal form, as people write such addresses: 11 is `::11`.
fn digits(number: u16) -> u16 {
    u16::from_str_radix(&number.to_string(), 16).unwrap_or(number)
}

fn default_addresses(number: u16, settings: Settings) -> Option<Vec<IpAddr>> {
    let host = number.checked_add(10)?;
    let mut addresses = Vec::new();
    if settings.ipv4 {
        let [high, low] = host.to_be_bytes();
        let address = Ipv4Addr::new(192, 168, high, low);
        addresses.push(IpAddr::V4(address));
    }
    if settings.ipv6 {
        let address = Ipv6Addr::new(0xfd00, 0xc0a8, 0, 0, 0, 0, 0, digits(host));
        addresses.push(IpAddr::V6(address));
    }
    Some(addresses)
}

fn default_cidrs(number: u16, settings: Settings) -> Option<Vec<Prefix>> {
    let mut prefixes = Vec::new();
    if settings.ipv4 {
        let [high, low] = number.to_be_bytes();
        let second = 244_u8.checked_add(high)?;
        prefixes.push(Prefix::new(Ipv4Addr::new(10, second, low, 0).into(), 24)?);
    }
    if settings.ipv6 {
        let address = Ipv6Addr::new(0xfd00, 0x10, 0x244, digits(number), 0, 0, 0, 0);
        prefixes.push(Prefix::new(address.into(), 64)?);
    }
    Some(prefixes)
}

fn fill_nodes(nodes: &mut [Node], internal: &[usize], settings: Settings, report: &mut Report) {
    let mut addresses: BTreeSet<IpAddr> = nodes.iter().flat_map(|node| node.addresses.clone()).collect();
    let mut prefixes: Vec<Prefix> = nodes.iter().flat_map(|node| node.pod_cidrs.clone()).collect();
    for (index, node) in nodes.iter_mut().enumerate() {
        let from = u16::try_from(index + 1).unwrap_or(u16::MAX);
        if internal.get(index) == Some(&0) {
            let found = (from..2_000)
                .filter_map(|number| default_addresses(number, settings))
                .find(|found| found.iter().all(|address| !addresses.contains(address)));
            match found {
                Some(mut found) => {
                    addresses.extend(&found);
                    found.append(&mut node.addresses);
                    node.addresses = found;
                }
                None => exhausted(report, &node.position, "node addresses"),
            }
        }
        if node.pod_cidrs.is_empty() {
            let free = |found: &Vec<Prefix>| {
                found.iter().all(|new| !(prefixes.iter()).any(|old| old.covers(*new) || new.covers(*old)))
            };
            let found = (from..2_000).filter_map(|number| default_cidrs(number, settings)).find(free);
            match found {
                Some(found) => {
                    prefixes.extend(&found);
                    node.pod_cidrs = found;
                }
                None => exhausted(report, &node.position, "pod prefixes for nodes"),
            }
        }
    }
}
