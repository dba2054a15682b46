//! Which identity every address has, and which identities a block or a selector stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath_abi::ids::{self, Identity};

use crate::identity::{IdentityAllocator, IdentityError, Owner};
use crate::labels::{Labels, Selector};
use crate::model::{IpBlock, PeerSelector, Pod, Protocol, Resolved};
use crate::prefix::Prefix;

/// Addresses of pods that share an identity.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) identity: Identity,
    pub(super) namespace: String,
    pub(super) labels: Labels,
    pub(super) namespace_labels: Labels,
    /// Blocks that hold the addresses.
    blocks: BTreeSet<IpBlock>,
    /// Numbers of the pods' named ports.
    named: BTreeMap<(String, Protocol), BTreeSet<u16>>,
}

impl Group {
    pub(super) fn ports(&self, name: &str, protocol: Protocol) -> impl Iterator<Item = u16> + '_ {
        self.named.get(&(name.to_owned(), protocol)).into_iter().flatten().copied()
    }

    pub(super) fn is_selected(&self, home: &str, namespaces: Option<&Selector>, pods: Option<&Selector>) -> bool {
        namespaces.map_or(self.namespace == home, |selector| selector.matches(&self.namespace_labels))
            && pods.is_none_or(|selector| selector.matches(&self.labels))
    }
}

/// All peers of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    groups: Vec<Group>,
    /// Addresses of pods.
    pods: BTreeMap<IpAddr, Identity>,
    /// Addresses of nodes: node, identity on other nodes, blocks.
    nodes: BTreeMap<IpAddr, (String, Identity, BTreeSet<IpBlock>)>,
    /// Prefixes outside the cluster; those of length 0 are not here.
    prefixes: BTreeMap<Prefix, Identity>,
}

type GroupKey<'a> = (&'a str, &'a Labels);

impl Peers {
    pub(super) fn new(cluster: &Resolved, identities: &mut IdentityAllocator) -> Result<Self, IdentityError> {
        let blocks = blocks(cluster);
        let covering = |address: IpAddr| -> BTreeSet<IpBlock> {
            blocks.iter().filter(|block| block.contains(address)).cloned().collect()
        };
        let none = Labels::new();

        // Pods of the same labels, by the blocks that hold their addresses.
        let mut pods: BTreeMap<GroupKey<'_>, BTreeMap<BTreeSet<IpBlock>, Vec<(IpAddr, &Pod)>>> = BTreeMap::new();
        for pod in cluster.pods.values().filter(|pod| !pod.host_network) {
            let key = (pod.name.namespace.as_str(), &pod.labels);
            let parts = pods.entry(key).or_default();
            for &address in &pod.addresses {
                parts.entry(covering(address)).or_default().push((address, pod));
            }
        }
        let mut nodes: BTreeMap<IpAddr, (String, BTreeSet<IpBlock>)> = BTreeMap::new();
        for node in &cluster.nodes {
            for &address in &node.addresses {
                nodes.insert(address, (node.name.clone(), covering(address)));
            }
        }
        let node_sets: BTreeSet<&BTreeSet<IpBlock>> = nodes.values().map(|(_, set)| set).collect();
        let nodes_differ = node_sets.len() > 1;

        let mut wanted: BTreeSet<Owner> = BTreeSet::new();
        let mut prefixes: BTreeSet<Prefix> = BTreeSet::new();
        for block in &blocks {
            prefixes.extend(std::iter::once(&block.prefix).chain(&block.except));
        }
        prefixes.retain(|prefix| prefix.length() > 0);
        wanted.extend(prefixes.iter().map(|prefix| Owner::Prefix(*prefix)));
        if nodes_differ {
            let sets = node_sets.iter().filter(|set| !set.is_empty());
            wanted.extend(sets.map(|set| Owner::Nodes(BTreeSet::clone(set))));
        }
        let owner_of = |key: &GroupKey<'_>, set: &BTreeSet<IpBlock>, split: bool| Owner::Pods {
            namespace: key.0.to_owned(),
            labels: key.1.clone(),
            namespace_labels: cluster.namespaces.get(key.0).unwrap_or(&none).clone(),
            blocks: if split { set.clone() } else { BTreeSet::new() },
        };
        for (key, parts) in &pods {
            let split = parts.len() > 1;
            wanted.extend(parts.keys().map(|set| owner_of(key, set, split)));
        }
        identities.assign(&wanted)?;

        let number = |owner: &Owner| identities.number(owner).unwrap_or(ids::UNMANAGED);
        let mut peers = Self::default();
        for (key, parts) in &pods {
            for (set, members) in parts {
                let identity = number(&owner_of(key, set, parts.len() > 1));
                let mut named: BTreeMap<(String, Protocol), BTreeSet<u16>> = BTreeMap::new();
                for (address, pod) in members {
                    peers.pods.insert(*address, identity);
                    for port in &pod.ports {
                        if let Some(name) = &port.name {
                            named.entry((name.clone(), port.protocol)).or_default().insert(port.port);
                        }
                    }
                }
                peers.groups.push(Group {
                    identity,
                    namespace: key.0.to_owned(),
                    labels: key.1.clone(),
                    namespace_labels: cluster.namespaces.get(key.0).unwrap_or(&none).clone(),
                    blocks: set.clone(),
                    named,
                });
            }
        }
        for (address, (node, set)) in nodes {
            let identity =
                if nodes_differ && !set.is_empty() { number(&Owner::Nodes(set.clone())) } else { ids::REMOTE_NODE };
            peers.nodes.insert(address, (node, identity, set));
        }
        peers.prefixes = prefixes.into_iter().map(|prefix| (prefix, number(&Owner::Prefix(prefix)))).collect();
        Ok(peers)
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(super) fn prefixes(&self) -> &BTreeMap<Prefix, Identity> {
        &self.prefixes
    }

    pub(super) fn addresses<'a>(
        &'a self,
        _cluster: &'a Resolved,
        node: &'a str,
    ) -> impl Iterator<Item = (IpAddr, Identity)> + 'a {
        let nodes = self
            .nodes
            .iter()
            .map(move |(address, (owner, identity, _))| (*address, if owner == node { ids::HOST } else { *identity }));
        self.pods.iter().map(|(address, identity)| (*address, *identity)).chain(nodes)
    }

    pub(super) fn identity(&self, cluster: &Resolved, node: &str, address: IpAddr) -> Identity {
        if let Some((owner, identity, _)) = self.nodes.get(&address) {
            return if owner == node { ids::HOST } else { *identity };
        }
        if let Some(identity) = self.pods.get(&address) {
            return *identity;
        }
        let longest = (self.prefixes.iter())
            .filter(|(prefix, _)| prefix.contains(address))
            .max_by_key(|(prefix, _)| prefix.length());
        match longest {
            Some((_, identity)) => *identity,
            None => world(cluster, address.is_ipv4()),
        }
    }

    /// Identities that a peer of a policy in namespace `home` stands for, nodes aside.
    pub(super) fn select(&self, cluster: &Resolved, home: &str, peer: &PeerSelector, found: &mut BTreeSet<Identity>) {
        match peer {
            PeerSelector::Pods { namespaces, pods } => {
                let selected =
                    self.groups.iter().filter(|group| group.is_selected(home, namespaces.as_ref(), pods.as_ref()));
                found.extend(selected.map(|group| group.identity));
            }
            PeerSelector::Block(block) => {
                let groups = self.groups.iter().filter(|group| group.blocks.contains(block));
                found.extend(groups.map(|group| group.identity));
                let inside = (self.prefixes.iter()).filter(|(prefix, _)| {
                    block.prefix.covers(**prefix) && !block.except.iter().any(|hole| hole.covers(**prefix))
                });
                found.extend(inside.map(|(_, identity)| *identity));
                if block.prefix.length() == 0 {
                    found.insert(world(cluster, block.prefix.is_ipv4()));
                }
            }
        }
    }

    /// Identities of nodes in a block, as node `node` sees them: all of them in any case, `HOST` with `own`, and with
    /// `tunnel` the identity that remote nodes have in the tunnel.
    pub(super) fn select_nodes(
        &self,
        node: &str,
        block: &IpBlock,
        own: bool,
        tunnel: bool,
        found: &mut BTreeSet<Identity>,
    ) {
        for (owner, identity, blocks) in self.nodes.values() {
            if !blocks.contains(block) {
                continue;
            }
            if owner == node {
                found.extend(own.then_some(ids::HOST));
            } else {
                found.insert(*identity);
                found.extend(tunnel.then_some(ids::REMOTE_NODE));
            }
        }
    }
}

/// Every block that a rule in force names.
fn blocks(cluster: &Resolved) -> BTreeSet<IpBlock> {
    let rules = cluster.policies.values().flat_map(super::used_rules);
    let peers = rules.flat_map(|rule| &rule.peers);
    peers
        .filter_map(|peer| match &peer.selects {
            PeerSelector::Block(block) => Some(block.clone()),
            PeerSelector::Pods { .. } => None,
        })
        .collect()
}

/// Identity of everything that nobody else owns.
fn world(cluster: &Resolved, ipv4: bool) -> Identity {
    match (cluster.ipv4 && cluster.ipv6, ipv4) {
        (false, _) => ids::WORLD,
        (true, true) => ids::WORLD_IPV4,
        (true, false) => ids::WORLD_IPV6,
    }
}

/// Whether a set of blocks holds every address that exists in the cluster's families.
pub(super) fn cover_everything<'a>(cluster: &Resolved, blocks: impl Iterator<Item = &'a IpBlock>) -> bool {
    let mut ipv4 = !cluster.ipv4;
    let mut ipv6 = !cluster.ipv6;
    for block in blocks.filter(|block| block.prefix.length() == 0 && block.except.is_empty()) {
        if block.prefix.is_ipv4() {
            ipv4 = true;
        } else {
            ipv6 = true;
        }
    }
    ipv4 && ipv6
}
