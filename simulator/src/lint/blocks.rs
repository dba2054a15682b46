//! Blocks of addresses against the addresses of the cluster.

use std::collections::BTreeSet;
use std::net::IpAddr;

use agent_core::Prefix;
use agent_core::model::{IpBlock, Model};
use agent_core::policy::PolicySettings;

use super::view::{Policy, Whom};
use super::{COVERS_ALL, COVERS_CLUSTER, COVERS_SERVICE, EMPTY_BLOCK, Findings, NO_FAMILY};

/// Addresses of the cluster's own.
struct Own {
    pods: Vec<IpAddr>,
    nodes: Vec<IpAddr>,
    pod_prefixes: BTreeSet<Prefix>,
    services: Vec<IpAddr>,
    ipv4: bool,
    ipv6: bool,
    /// CIDR rules of Cilium's policies select them too.
    selects_pods: bool,
    selects_nodes: bool,
}

pub(super) fn check(model: &Model, policies: &[Policy], settings: &PolicySettings, findings: &mut Findings) {
    let own = Own {
        pods: model.pods().values().filter(|pod| !pod.host_network).flat_map(|pod| &pod.addresses).copied().collect(),
        nodes: model.nodes().iter().flat_map(|node| &node.addresses).copied().collect(),
        pod_prefixes: model.nodes().iter().flat_map(|node| &node.pod_cidrs).copied().collect(),
        services: model.services().values().flat_map(|service| &service.cluster_addresses).copied().collect(),
        ipv4: model.uses_ipv4(),
        ipv6: model.uses_ipv6(),
        selects_pods: settings.cidrs_match_pods,
        selects_nodes: settings.cidrs_match_nodes,
    };
    for policy in policies {
        for rule in &policy.rules {
            let text = format!("{}, {}", policy.text(), rule.text());
            for peer in rule.peers.iter().flatten() {
                match &peer.whom {
                    Whom::Block { block, inside } => {
                        for (check, message) in own.look_at(block, *inside) {
                            findings.add(check, &peer.position, &text, message);
                        }
                    }
                    Whom::Groups { groups, except } => {
                        let all = model.cidr_groups().values();
                        for group in all.filter(|group| groups.selects(&group.meta.name, &group.meta.labels)) {
                            for prefix in &group.prefixes {
                                let block = IpBlock { prefix: *prefix, except: except.clone() };
                                for (check, message) in own.look_at(&block, false) {
                                    let message = format!("group {}: {message}", group.meta.name);
                                    findings.add(check, &peer.position, &text, message);
                                }
                            }
                        }
                    }
                    Whom::Pods(_) | Whom::Services(_) | Whom::Nodes(_) | Whom::Other => {}
                }
            }
        }
    }
}

impl Own {
    /// Whether CIDR rules of Cilium's policies select all of these.
    fn selects(&self, pods: usize, nodes: usize) -> bool {
        (pods == 0 || self.selects_pods) && (nodes == 0 || self.selects_nodes)
    }

    fn look_at(&self, block: &IpBlock, inside: bool) -> Vec<(super::Check, String)> {
        let mut found = Vec::new();
        if is_empty(block.prefix, &block.except) {
            return vec![(EMPTY_BLOCK, format!("the exceptions of {} leave nothing", block.prefix))];
        }
        if !(if block.prefix.is_ipv4() { self.ipv4 } else { self.ipv6 }) {
            let family = if block.prefix.is_ipv4() { "IPv4" } else { "IPv6" };
            return vec![(NO_FAMILY, format!("{}: pods of this cluster have no {family} addresses", block.prefix))];
        }
        let count = |addresses: &[IpAddr]| addresses.iter().filter(|address| block.contains(**address)).count();
        let (pods, nodes) = (count(&self.pods), count(&self.nodes));
        let prefixes: Vec<String> = (self.pod_prefixes.iter())
            .filter(|prefix| overlaps(block, **prefix))
            .take(3)
            .map(ToString::to_string)
            .collect();
        let whole = block.prefix.length() == 0;
        if pods + nodes > 0 || !prefixes.is_empty() {
            let among =
                if prefixes.is_empty() { String::new() } else { format!(" (pod addresses {})", prefixes.join(", ")) };
            let who = format!("{pods} pods and {nodes} nodes{among}");
            if inside {
                let message = format!(
                    "{block} is about {who} of this cluster too; name them in `except` if only the outside is meant"
                );
                found.push((if whole { COVERS_ALL } else { COVERS_CLUSTER }, message));
            } else if !whole && !self.selects(pods + prefixes.len(), nodes) {
                let message = format!(
                    "{block} holds {who} of this cluster, which a CIDR of a Cilium policy never selects; use endpoints or entities"
                );
                found.push((COVERS_CLUSTER, message));
            }
        }
        let services = count(&self.services);
        if services > 0 && !whole {
            let message = format!(
                "{block} holds the addresses of {services} services: policies see the pods behind a service, never its address"
            );
            found.push((COVERS_SERVICE, message));
        }
        found
    }
}

/// Whether a part of the prefix is in the block.
fn overlaps(block: &IpBlock, prefix: Prefix) -> bool {
    let common = if block.prefix.covers(prefix) {
        prefix
    } else if prefix.covers(block.prefix) {
        block.prefix
    } else {
        return false;
    };
    !is_empty(common, &block.except)
}

/// Whether exceptions leave nothing of a prefix.
fn is_empty(prefix: Prefix, except: &BTreeSet<Prefix>) -> bool {
    if except.iter().any(|hole| hole.covers(prefix)) {
        return true;
    }
    // Only where there are holes inside can both halves be empty.
    if !except.iter().any(|hole| prefix.covers(*hole)) {
        return false;
    }
    halves(prefix).is_some_and(|halves| halves.into_iter().all(|half| is_empty(half, except)))
}

fn halves(prefix: Prefix) -> Option<[Prefix; 2]> {
    let length = prefix.length().checked_add(1)?;
    let low = Prefix::new(prefix.address(), length)?;
    let high = match prefix.address() {
        IpAddr::V4(address) => {
            IpAddr::V4((address.to_bits() | 1_u32.checked_shl(32_u32.checked_sub(u32::from(length))?)?).into())
        }
        IpAddr::V6(address) => {
            IpAddr::V6((address.to_bits() | 1_u128.checked_shl(128_u32.checked_sub(u32::from(length))?)?).into())
        }
    };
    Some([low, Prefix::new(high, length)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> BTreeSet<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn exceptions_may_leave_nothing() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        assert!(is_empty(prefix("10.0.0.0/8"), &set(&["10.0.0.0/9", "10.128.0.0/9"])));
        assert!(is_empty(prefix("10.0.0.0/31"), &set(&["10.0.0.0/32", "10.0.0.1/32"])));
        assert!(is_empty(prefix("fd00::/127"), &set(&["fd00::/128", "fd00::1/128"])));
        assert!(!is_empty(prefix("10.0.0.0/8"), &set(&["10.0.0.0/9", "10.192.0.0/10"])));
        assert!(!is_empty(prefix("0.0.0.0/0"), &set(&["10.0.0.0/8"])));
        assert!(!is_empty(prefix("10.0.0.0/8"), &set(&[])));
    }

    #[test]
    fn a_block_overlaps_where_its_exceptions_leave_something() {
        let block = |text: &str, except: &[&str]| IpBlock { prefix: text.parse().unwrap(), except: set(except) };
        let pods: Prefix = "10.244.0.0/16".parse().unwrap();
        assert!(overlaps(&block("10.0.0.0/8", &[]), pods) && overlaps(&block("10.244.3.0/24", &[]), pods));
        assert!(!overlaps(&block("10.0.0.0/8", &["10.244.0.0/16"]), pods));
        assert!(overlaps(&block("10.0.0.0/8", &["10.244.0.0/17"]), pods));
        assert!(!overlaps(&block("192.168.0.0/16", &[]), pods));
    }
}
