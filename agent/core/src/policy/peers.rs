//! Which identity every address has, and which identities a block or a selector stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath_abi::ids::{self, Identity};

use crate::identity::{IdentityAllocator, IdentityError, Mark, Owner};
use crate::labels::{Labels, Selector};
use crate::model::{IpBlock, PeerSelector, Pod, PortSelector, Protocol, Resolved};
use crate::policy::Direction;
use crate::prefix::Prefix;

/// Marks by their index in [`Peers::marks`].
type MarkSet = BTreeSet<usize>;

/// Addresses of pods that share an identity.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) identity: Identity,
    namespace: String,
    labels: Labels,
    namespace_labels: Labels,
    marks: MarkSet,
    /// Numbers of the pods' named ports.
    named: BTreeMap<(String, Protocol), BTreeSet<u16>>,
}

impl Group {
    pub(super) fn ports(&self, name: &str, protocol: Protocol) -> impl Iterator<Item = u16> + '_ {
        self.named.get(&(name.to_owned(), protocol)).into_iter().flatten().copied()
    }

    fn is_selected(&self, home: &str, namespaces: Option<&Selector>, pods: Option<&Selector>) -> bool {
        namespaces.map_or(self.namespace == home, |selector| selector.matches(&self.namespace_labels))
            && pods.is_none_or(|selector| selector.matches(&self.labels))
    }
}

/// An address of a node.
#[derive(Clone, Debug)]
struct NodeAddress {
    node: String,
    /// Identity on other nodes.
    identity: Identity,
    marks: MarkSet,
}

/// All peers of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    /// Every block and every named port that a rule in force asks for, in order.
    marks: Vec<Mark>,
    groups: Vec<Group>,
    pods: BTreeMap<IpAddr, Identity>,
    nodes: BTreeMap<IpAddr, NodeAddress>,
    /// Prefixes outside the cluster; those of length 0 are the world, not here.
    prefixes: BTreeMap<Prefix, Identity>,
}

/// Pods that have the same labels.
struct Alike<'a> {
    namespace: &'a str,
    labels: &'a Labels,
    namespace_labels: &'a Labels,
    /// Their addresses, by their marks.
    parts: BTreeMap<MarkSet, Vec<(IpAddr, &'a Pod)>>,
}

impl Alike<'_> {
    fn owner(&self, set: &MarkSet, marks: &[Mark]) -> Owner {
        Owner::Pods {
            namespace: self.namespace.to_owned(),
            labels: self.labels.clone(),
            namespace_labels: self.namespace_labels.clone(),
            marks: difference(set, self.parts.keys(), marks),
        }
    }
}

/// The marks of a set that are not in all of the sets: what tells its addresses from the others.
fn difference<'a>(set: &MarkSet, sets: impl Iterator<Item = &'a MarkSet> + Clone, marks: &[Mark]) -> BTreeSet<Mark> {
    let told = set.iter().filter(|mark| !sets.clone().all(|other| other.contains(mark)));
    told.filter_map(|&mark| marks.get(mark).cloned()).collect()
}

fn group_pods<'a>(cluster: &'a Resolved, none: &'a Labels, marks: &[Mark]) -> Vec<Alike<'a>> {
    let mut by_labels: BTreeMap<(&str, &Labels), Alike<'a>> = BTreeMap::new();
    for pod in cluster.pods.values().filter(|pod| !pod.host_network) {
        let namespace = pod.name.namespace.as_str();
        let alike = by_labels.entry((namespace, &pod.labels)).or_insert_with(|| Alike {
            namespace,
            labels: &pod.labels,
            namespace_labels: cluster.namespaces.get(namespace).unwrap_or(none),
            parts: BTreeMap::new(),
        });
        for &address in &pod.addresses {
            alike.parts.entry(marks_of(marks, address, Some(pod))).or_default().push((address, pod));
        }
    }
    by_labels.into_values().collect()
}

fn marks_of(marks: &[Mark], address: IpAddr, pod: Option<&Pod>) -> MarkSet {
    let has = |mark: &Mark| match mark {
        Mark::Block(block) => block.contains(address),
        Mark::Port { name, protocol, number } => pod.is_some_and(|pod| {
            let mut ports = pod.ports.iter();
            ports.any(|port| (port.protocol, port.port) == (*protocol, *number) && port.name.as_ref() == Some(name))
        }),
    };
    marks.iter().enumerate().filter(|(_, mark)| has(mark)).map(|(index, _)| index).collect()
}

impl Peers {
    pub(super) fn new(cluster: &Resolved, identities: &mut IdentityAllocator) -> Result<Self, IdentityError> {
        let blocks = blocks(cluster);
        let marks: Vec<Mark> = asked_marks(cluster, &blocks).into_iter().collect();
        let none = Labels::new();
        let alike = group_pods(cluster, &none, &marks);
        let mut nodes = Vec::new();
        for node in &cluster.nodes {
            for &address in &node.addresses {
                nodes.push((address, node, marks_of(&marks, address, None)));
            }
        }
        let node_sets: BTreeSet<&MarkSet> = nodes.iter().map(|(_, _, set)| set).collect();
        let node_owner = |set: &MarkSet| {
            let differ = node_sets.len() > 1;
            differ.then(|| Owner::Nodes(difference(set, node_sets.iter().copied(), &marks)))
        };
        let prefixes: BTreeSet<Prefix> = (blocks.iter())
            .flat_map(|block| std::iter::once(&block.prefix).chain(&block.except))
            .filter(|prefix| prefix.length() > 0)
            .copied()
            .collect();

        let mut wanted: BTreeSet<Owner> = prefixes.iter().copied().map(Owner::Prefix).collect();
        wanted.extend(nodes.iter().filter_map(|(_, _, set)| node_owner(set)));
        wanted.extend(alike.iter().flat_map(|alike| alike.parts.keys().map(|set| alike.owner(set, &marks))));
        identities.assign(&wanted)?;
        let number = |owner: &Owner| identities.number(owner).unwrap_or(ids::UNMANAGED);

        let mut peers = Self::default();
        for alike in &alike {
            for (set, members) in &alike.parts {
                let identity = number(&alike.owner(set, &marks));
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
                    namespace: alike.namespace.to_owned(),
                    labels: alike.labels.clone(),
                    namespace_labels: alike.namespace_labels.clone(),
                    marks: set.clone(),
                    named,
                });
            }
        }
        for (address, node, set) in &nodes {
            let identity = node_owner(set).map_or(ids::REMOTE_NODE, |owner| number(&owner));
            let node = NodeAddress { node: node.name.clone(), identity, marks: set.clone() };
            peers.nodes.insert(*address, node);
        }
        peers.prefixes = prefixes.into_iter().map(|prefix| (prefix, number(&Owner::Prefix(prefix)))).collect();
        peers.marks = marks;
        Ok(peers)
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(super) fn prefixes(&self) -> &BTreeMap<Prefix, Identity> {
        &self.prefixes
    }

    pub(super) fn addresses<'a>(&'a self, node: &'a str) -> impl Iterator<Item = (IpAddr, Identity)> + 'a {
        let nodes = self.nodes.iter().map(move |(address, owner)| (*address, owner.seen_from(node)));
        self.pods.iter().map(|(address, identity)| (*address, *identity)).chain(nodes)
    }

    pub(super) fn identity(&self, cluster: &Resolved, node: &str, address: IpAddr) -> Identity {
        if let Some(owner) = self.nodes.get(&address) {
            return owner.seen_from(node);
        }
        if let Some(identity) = self.pods.get(&address) {
            return *identity;
        }
        let longest = (self.prefixes.iter())
            .filter(|(prefix, _)| prefix.contains(address))
            .max_by_key(|(prefix, _)| prefix.length());
        longest.map_or_else(|| world(cluster, address.is_ipv4()), |(_, identity)| *identity)
    }

    fn mark(&self, block: &IpBlock) -> Option<usize> {
        self.marks.binary_search(&Mark::Block(block.clone())).ok()
    }

    /// Identities that a peer of a policy in namespace `home` stands for, nodes aside.
    pub(super) fn select(&self, cluster: &Resolved, home: &str, peer: &PeerSelector, found: &mut BTreeSet<Identity>) {
        match peer {
            PeerSelector::Pods { namespaces, pods } => {
                let (namespaces, pods) = (namespaces.as_ref(), pods.as_ref());
                let selected = self.groups.iter().filter(|group| group.is_selected(home, namespaces, pods));
                found.extend(selected.map(|group| group.identity));
            }
            PeerSelector::Block(block) => {
                if let Some(index) = self.mark(block) {
                    let groups = self.groups.iter().filter(|group| group.marks.contains(&index));
                    found.extend(groups.map(|group| group.identity));
                }
                let inside = (self.prefixes.iter()).filter(|(prefix, _)| {
                    block.prefix.covers(**prefix) && !block.except.iter().any(|hole| hole.covers(**prefix))
                });
                found.extend(inside.map(|(_, identity)| *identity));
                let ipv4 = block.prefix.is_ipv4();
                if block.prefix.length() == 0 && (if ipv4 { cluster.ipv4 } else { cluster.ipv6 }) {
                    found.insert(world(cluster, ipv4));
                }
            }
        }
    }

    /// Identities of the nodes in a block, as `node` sees them.
    pub(super) fn select_nodes(
        &self,
        node: &str,
        block: &IpBlock,
        direction: Direction,
        found: &mut BTreeSet<Identity>,
    ) {
        let Some(index) = self.mark(block) else {
            return;
        };
        for owner in self.nodes.values().filter(|owner| owner.marks.contains(&index)) {
            let own = owner.node == node;
            match direction {
                // The own node reaches its pods without any rule.
                Direction::Ingress if own => {}
                // Directly, or through the tunnel.
                Direction::Ingress => found.extend([owner.identity, ids::REMOTE_NODE]),
                Direction::Egress => {
                    found.insert(owner.seen_from(node));
                }
            }
        }
    }
}

impl NodeAddress {
    fn seen_from(&self, node: &str) -> Identity {
        if self.node == node { ids::HOST } else { self.identity }
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

/// What pods and nodes have to be told apart by: the blocks, and what the ports that egress rules name are on pods.
fn asked_marks(cluster: &Resolved, blocks: &BTreeSet<IpBlock>) -> BTreeSet<Mark> {
    let egress = cluster.policies.values().filter(|policy| policy.isolates_egress).flat_map(|policy| &policy.egress);
    let mut names: BTreeSet<(&str, Protocol)> = BTreeSet::new();
    for port in egress.flat_map(|rule| &rule.ports) {
        if let PortSelector::Named(name) = &port.ports {
            names.insert((name, port.protocol));
        }
    }
    let mut marks: BTreeSet<Mark> = blocks.iter().cloned().map(Mark::Block).collect();
    for port in cluster.pods.values().flat_map(|pod| &pod.ports) {
        if let Some(name) = &port.name
            && names.contains(&(name, port.protocol))
        {
            marks.insert(Mark::Port { name: name.clone(), protocol: port.protocol, number: port.port });
        }
    }
    marks
}

/// Identity of everything that nobody else owns.
fn world(cluster: &Resolved, ipv4: bool) -> Identity {
    match (cluster.ipv4 && cluster.ipv6, ipv4) {
        (false, _) => ids::WORLD,
        (true, true) => ids::WORLD_IPV4,
        (true, false) => ids::WORLD_IPV6,
    }
}

/// Whether blocks hold every address that exists in the cluster's families.
pub(super) fn cover_everything(cluster: &Resolved, blocks: &[IpBlock]) -> bool {
    let all = |ipv4: bool| {
        let whole = |block: &IpBlock| block.prefix.length() == 0 && block.except.is_empty();
        blocks.iter().any(|block| block.prefix.is_ipv4() == ipv4 && whole(block))
    };
    !blocks.is_empty() && (all(true) || !cluster.ipv4) && (all(false) || !cluster.ipv6)
}
