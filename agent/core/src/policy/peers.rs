//! Which identity every address has, and which identities a peer stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath_abi::ids::{self, Identity};

use super::asked::{Questions, api_server_mark, node_mark};
use super::form::{InCluster, Select};
use super::rules::Direction;
use super::settings::PolicySettings;
use crate::identity::{IdentityAllocator, IdentityError, Mark, Owner};
use crate::labels::Labels;
use crate::model::question::{Asked, DEFAULT_SERVICE_ACCOUNT, SERVICE_ACCOUNT};
use crate::model::{Entity, IpBlock, NamePattern, Pod, PodQuestion, Protocol, Resolved};
use crate::prefix::Prefix;

/// Marks by their index in [`Peers::marks`].
type MarkSet = BTreeSet<usize>;

/// Addresses of pods that share an identity.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) identity: Identity,
    namespace: String,
    /// Labels that count, those that are asked for, and the service account.
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

    fn asked<'a>(&'a self, cluster: &'a str) -> Asked<'a> {
        Asked {
            namespace: &self.namespace,
            labels: &self.labels,
            namespace_labels: &self.namespace_labels,
            service_account: self.labels.get(SERVICE_ACCOUNT).map_or(DEFAULT_SERVICE_ACCOUNT, String::as_str),
            cluster,
        }
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
    settings: PolicySettings,
    questions: Questions,
    /// Everything that tells addresses apart, in order.
    marks: Vec<Mark>,
    groups: Vec<Group>,
    pods: BTreeMap<IpAddr, Identity>,
    nodes: BTreeMap<IpAddr, NodeAddress>,
    /// Prefixes outside the cluster; those of length 0 are the world, not here.
    prefixes: BTreeMap<Prefix, Identity>,
    ipv4: bool,
    ipv6: bool,
}

/// Pods that have the same labels.
struct Alike<'a> {
    namespace: &'a str,
    labels: Labels,
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

/// The labels of a pod that make its identity.
pub(super) fn counted(pod: &Pod, settings: &PolicySettings) -> Labels {
    let own = pod.labels.iter().filter(|(key, _)| settings.identity_labels.counts(key));
    let mut labels: Labels = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    if let Some(account) = &pod.service_account {
        labels.insert(SERVICE_ACCOUNT.to_owned(), account.clone());
    }
    labels
}

fn group_pods<'a>(
    cluster: &'a Resolved,
    none: &'a Labels,
    questions: &Questions,
    settings: &PolicySettings,
    index: &impl Fn(Mark) -> Option<usize>,
) -> Vec<Alike<'a>> {
    let mut by_labels: BTreeMap<(&str, Labels), Alike<'a>> = BTreeMap::new();
    for pod in cluster.pods.values().filter(|pod| !pod.host_network) {
        let namespace = pod.name.namespace.as_str();
        let labels = counted(pod, settings);
        let alike = by_labels.entry((namespace, labels)).or_insert_with_key(|(_, labels)| Alike {
            namespace,
            labels: labels.clone(),
            namespace_labels: cluster.namespaces.get(namespace).unwrap_or(none),
            parts: BTreeMap::new(),
        });
        for &address in &pod.addresses {
            let marks = questions.of_pod(address, pod).filter_map(index).collect();
            alike.parts.entry(marks).or_default().push((address, pod));
        }
    }
    by_labels.into_values().collect()
}

impl Peers {
    pub(super) fn new(
        cluster: &Resolved,
        questions: Questions,
        settings: &PolicySettings,
        identities: &mut IdentityAllocator,
    ) -> Result<Self, IdentityError> {
        let marks = questions.marks(cluster);
        let index = |mark: Mark| marks.binary_search(&mark).ok();
        let none = Labels::new();
        let alike = group_pods(cluster, &none, &questions, settings, &index);
        let mut nodes = Vec::new();
        for node in &cluster.nodes {
            for &address in &node.addresses {
                let set: MarkSet = questions.of_node(address, node).filter_map(index).collect();
                nodes.push((address, node, set));
            }
        }
        let node_sets: BTreeSet<&MarkSet> = nodes.iter().map(|(_, _, set)| set).collect();
        let node_owner = |set: &MarkSet| {
            let differ = node_sets.len() > 1;
            differ.then(|| Owner::Nodes(difference(set, node_sets.iter().copied(), &marks)))
        };
        let mut wanted: BTreeSet<Owner> = questions.prefixes.iter().copied().map(Owner::Prefix).collect();
        wanted.extend(nodes.iter().filter_map(|(_, _, set)| node_owner(set)));
        wanted.extend(alike.iter().flat_map(|alike| alike.parts.keys().map(|set| alike.owner(set, &marks))));
        identities.assign(&wanted)?;
        let number = |owner: &Owner| identities.number(owner).unwrap_or(ids::UNMANAGED);

        let (ipv4, ipv6) = (cluster.ipv4, cluster.ipv6);
        let mut peers = Self { settings: settings.clone(), ipv4, ipv6, ..Self::default() };
        for alike in &alike {
            for (set, members) in &alike.parts {
                peers.add_group(alike, set, members, number(&alike.owner(set, &marks)), &questions);
            }
        }
        for (address, node, set) in &nodes {
            let identity = node_owner(set).map_or(ids::REMOTE_NODE, |owner| number(&owner));
            let node = NodeAddress { node: node.name.clone(), identity, marks: set.clone() };
            peers.nodes.insert(*address, node);
        }
        peers.prefixes = questions.prefixes.iter().map(|prefix| (*prefix, number(&Owner::Prefix(*prefix)))).collect();
        peers.marks = marks;
        peers.questions = questions;
        Ok(peers)
    }

    fn add_group(
        &mut self,
        alike: &Alike<'_>,
        set: &MarkSet,
        members: &[(IpAddr, &Pod)],
        identity: Identity,
        questions: &Questions,
    ) {
        let mut named: BTreeMap<(String, Protocol), BTreeSet<u16>> = BTreeMap::new();
        let mut labels = alike.labels.clone();
        for (address, pod) in members {
            self.pods.insert(*address, identity);
            for port in &pod.ports {
                if let Some(name) = &port.name {
                    named.entry((name.clone(), port.protocol)).or_default().insert(port.port);
                }
            }
        }
        // All members have the same values of what is asked for.
        if let Some((_, pod)) = members.first() {
            let asked = questions.keys.iter().filter_map(|key| pod.labels.get_key_value(key));
            labels.extend(asked.map(|(key, value)| (key.clone(), value.clone())));
        }
        self.groups.push(Group {
            identity,
            namespace: alike.namespace.to_owned(),
            labels,
            namespace_labels: alike.namespace_labels.clone(),
            marks: set.clone(),
            named,
        });
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

    pub(super) fn identity(&self, node: &str, address: IpAddr) -> Identity {
        if let Some(owner) = self.nodes.get(&address) {
            return owner.seen_from(node);
        }
        if let Some(identity) = self.pods.get(&address) {
            return *identity;
        }
        let longest = (self.prefixes.iter())
            .filter(|(prefix, _)| prefix.contains(address))
            .max_by_key(|(prefix, _)| prefix.length());
        longest.map_or_else(|| self.world(address.is_ipv4()), |(_, identity)| *identity)
    }

    fn has(&self, marks: &MarkSet, mark: &Mark) -> bool {
        self.marks.binary_search(mark).is_ok_and(|index| marks.contains(&index))
    }

    /// Whether somebody is a peer whoever he is.
    pub(super) fn is_everybody(&self, selects: &[Select]) -> bool {
        let all = |ipv4: bool| {
            selects.iter().any(|select| match select {
                Select::Block { block, cluster: InCluster { pods: true, nodes: true } } => {
                    block.prefix.is_ipv4() == ipv4 && block.prefix.length() == 0 && block.except.is_empty()
                }
                Select::Entity(entity) => *entity == Entity::All,
                Select::Block { .. } | Select::Pods(_) | Select::Nodes(_) | Select::Names(_) => false,
            })
        };
        !selects.is_empty() && (all(true) || !self.ipv4) && (all(false) || !self.ipv6)
    }

    /// Identities that a peer stands for, nodes aside: those depend on who looks.
    pub(super) fn select(&self, select: &Select) -> BTreeSet<Identity> {
        match select {
            Select::Pods(question) => self.select_pods(question),
            Select::Block { block, cluster } => self.select_block(block, *cluster),
            Select::Entity(entity) => self.select_entity(*entity),
            Select::Nodes(_) => BTreeSet::new(),
            Select::Names(pattern) => self.select_names(pattern),
        }
    }

    fn select_pods(&self, question: &PodQuestion) -> BTreeSet<Identity> {
        let meant = self.groups.iter().filter(|group| question.matches(&group.asked(&self.settings.cluster)));
        meant.map(|group| group.identity).collect()
    }

    fn select_block(&self, block: &IpBlock, cluster: InCluster) -> BTreeSet<Identity> {
        let mut found = BTreeSet::new();
        if cluster.pods {
            let mark = Mark::Block(block.clone());
            let groups = self.groups.iter().filter(|group| self.has(&group.marks, &mark));
            found.extend(groups.map(|group| group.identity));
        }
        let inside = (self.prefixes.iter()).filter(|(prefix, _)| {
            block.prefix.covers(**prefix) && !block.except.iter().any(|hole| hole.covers(**prefix))
        });
        found.extend(inside.map(|(_, identity)| *identity));
        let ipv4 = block.prefix.is_ipv4();
        if block.prefix.length() == 0 && self.uses(ipv4) && !block.except.contains(&block.prefix) {
            found.insert(self.world(ipv4));
        }
        found
    }

    fn select_entity(&self, entity: Entity) -> BTreeSet<Identity> {
        let world = |family: bool| {
            let prefixes = self.prefixes.iter().filter(move |(prefix, _)| prefix.is_ipv4() == family);
            let prefixes = prefixes.map(|(_, identity)| *identity);
            prefixes.chain(self.uses(family).then(|| self.world(family))).collect::<BTreeSet<_>>()
        };
        match entity {
            Entity::All => BTreeSet::from([ids::UNKNOWN]),
            Entity::None => BTreeSet::new(),
            Entity::World => world(true).into_iter().chain(world(false)).collect(),
            Entity::WorldIpv4 => world(true),
            Entity::WorldIpv6 => world(false),
            Entity::Host => BTreeSet::from([ids::HOST]),
            Entity::Init => BTreeSet::from([ids::INIT]),
            Entity::Ingress => BTreeSet::from([ids::INGRESS]),
            Entity::Unmanaged => BTreeSet::from([ids::UNMANAGED]),
            Entity::Health => BTreeSet::from([ids::HEALTH]),
            Entity::RemoteNode => {
                let nodes = self.nodes.values().map(|owner| owner.identity);
                nodes.chain([ids::REMOTE_NODE, ids::KUBE_APISERVER]).collect()
            }
            Entity::Cluster => {
                let pods = self.groups.iter().map(|group| group.identity);
                let others = [ids::HOST, ids::UNMANAGED, ids::HEALTH, ids::INIT, ids::INGRESS];
                pods.chain(self.select_entity(Entity::RemoteNode)).chain(others).collect()
            }
            Entity::KubeApiserver => {
                let outside = self.questions.api_server.iter().filter(|address| !self.nodes.contains_key(address));
                let outside = outside.filter_map(|address| self.prefixes.get(&Prefix::host(*address)));
                outside.copied().chain([ids::KUBE_APISERVER]).collect()
            }
        }
    }

    fn select_names(&self, pattern: &NamePattern) -> BTreeSet<Identity> {
        let known = self.settings.names.iter().filter(|(name, _)| pattern.matches(name));
        let addresses = known.flat_map(|(_, addresses)| addresses);
        addresses.filter_map(|address| self.prefixes.get(&Prefix::host(*address)).copied()).collect()
    }

    /// Identities of the nodes that a peer stands for, as `node` sees them.
    pub(super) fn select_nodes(
        &self,
        node: &str,
        select: &Select,
        direction: Direction,
        found: &mut BTreeSet<Identity>,
    ) {
        let (mark, by_address) = match select {
            Select::Block { block, cluster: InCluster { nodes: true, .. } } => (Mark::Block(block.clone()), true),
            Select::Nodes(selector) => (node_mark(&selector.to_string()), false),
            Select::Entity(Entity::KubeApiserver) => (api_server_mark(), false),
            Select::Block { .. } | Select::Pods(_) | Select::Entity(_) | Select::Names(_) => return,
        };
        for owner in self.nodes.values().filter(|owner| self.has(&owner.marks, &mark)) {
            match direction {
                // Directly, or through the tunnel from an address that is not known as the node's.
                Direction::Ingress if by_address && owner.node != node => {
                    found.extend([owner.identity, ids::REMOTE_NODE]);
                }
                Direction::Ingress | Direction::Egress => {
                    found.insert(owner.seen_from(node));
                }
            }
        }
    }

    fn uses(&self, ipv4: bool) -> bool {
        if ipv4 { self.ipv4 } else { self.ipv6 }
    }

    /// Identity of everything that nobody else owns.
    fn world(&self, ipv4: bool) -> Identity {
        match (self.ipv4 && self.ipv6, ipv4) {
            (false, _) => ids::WORLD,
            (true, true) => ids::WORLD_IPV4,
            (true, false) => ids::WORLD_IPV6,
        }
    }
}

impl NodeAddress {
    fn seen_from(&self, node: &str) -> Identity {
        if self.node == node { ids::HOST } else { self.identity }
    }
}
