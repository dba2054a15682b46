//! Which identity every address has, and which identities a peer stands for. Kept from one state of the cluster to the
//! next: a change costs what it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use datapath_abi::ids::{self, Identity};

use super::asked::{Questions, api_server_mark, node_mark};
use super::form::{Form, FormPeer, InCluster, Select};
use super::groups::{Group, Groups, Marks, Turnover, difference};
use super::lower::PolicyKey;
use super::rules::Direction;
use super::selections::{Outside, Selections};
use super::settings::PolicySettings;
use crate::identity::{IdentityAllocator, IdentityError, Mark, Owner};
use crate::map::Map;
use crate::model::{Entity, IpBlock, Name, NamePattern, Resolved};
use crate::prefix::Prefix;

/// An address of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NodeAddress {
    node: String,
    /// Identity on other nodes.
    identity: Identity,
    marks: Marks,
}

/// All peers of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    settings: Arc<PolicySettings>,
    questions: Questions,
    groups: Groups,
    nodes: Arc<BTreeMap<IpAddr, NodeAddress>>,
    /// Owners of the nodes' identities.
    node_owners: Arc<BTreeSet<Owner>>,
    /// Prefixes outside the cluster; those of length 0 are the world, not here.
    prefixes: Map<Prefix, Identity>,
    /// Every peer that a rule names.
    selections: Selections,
    ipv4: bool,
    ipv6: bool,
}

/// What an update has changed.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerChanges {
    /// Policies with peers that stand for others now.
    pub(super) policies: BTreeSet<PolicyKey>,
    /// Identities that have come, gone or changed: nobody else's entries are others, unless the API server has moved.
    pub(super) identities: BTreeSet<Identity>,
    pub(super) api_server: bool,
    /// Nodes have changed, or which families there are: everything may have.
    pub(super) nodes: bool,
}

/// A policy that has changed: its forms before and after.
pub(super) type FormChange<'a> = (&'a PolicyKey, &'a [Arc<Form>], &'a [Arc<Form>]);

impl Peers {
    /// Brings everything up to date, from the cluster that it was made of. `forms`: before and after, of the policies that
    /// have changed.
    pub(super) fn update(
        &mut self,
        (old, new): (&Resolved, &Resolved),
        changed_pods: &BTreeSet<Name>,
        forms: &[FormChange<'_>],
        identities: &mut IdentityAllocator,
        from_scratch: bool,
    ) -> Result<PeerChanges, IdentityError> {
        let settings = Arc::clone(&self.settings);
        let mut questions = self.questions.clone();
        for (_, was, is) in forms {
            was.iter().for_each(|form| questions.count(form, &settings, false));
            is.iter().for_each(|form| questions.count(form, &settings, true));
        }
        questions.find_api_server(new);
        let mut turnover = Turnover::default();
        self.groups.regroup((old, &self.questions), (new, &questions), changed_pods, &settings);
        self.groups.turnover(new, &mut turnover);
        let same_nodes = Arc::ptr_eq(&old.nodes, &new.nodes) && self.questions.ask_the_same_of_nodes(&questions);
        let nodes = (!same_nodes || from_scratch).then(|| node_marks(new, &questions));
        let owners = nodes.as_ref().map(node_owners);
        if let Some(owners) = &owners {
            turnover.removed.extend(self.node_owners.difference(owners).cloned());
            turnover.added.extend(owners.difference(&self.node_owners).cloned());
        }
        let prefixes = self.questions.changed_prefixes(&questions);
        for prefix in &prefixes {
            let side =
                if questions.prefixes.contains_key(prefix) { &mut turnover.added } else { &mut turnover.removed };
            side.insert(Owner::Prefix(*prefix));
        }
        if from_scratch {
            identities.assign(&turnover.added)?;
        } else {
            identities.change(&turnover.added, &turnover.removed)?;
        }
        let number = |owner: &Owner| identities.number(owner).unwrap_or(ids::UNMANAGED);
        let turned = self.groups.settle(new, &questions, identities);
        let mut outside = Outside { prefixes: Vec::new(), all: (self.ipv4, self.ipv6) != (new.ipv4, new.ipv6) };
        (self.ipv4, self.ipv6) = (new.ipv4, new.ipv6);
        if let Some(owners) = owners {
            self.node_owners = Arc::new(owners);
        }
        if let Some(nodes) = nodes.map(|nodes| number_nodes(nodes, &number)).filter(|nodes| *nodes != *self.nodes) {
            self.nodes = Arc::new(nodes);
            outside.all = true;
        }
        let mut changes = PeerChanges { nodes: outside.all, ..PeerChanges::default() };
        for prefix in prefixes {
            if questions.prefixes.contains_key(&prefix) {
                let identity = number(&Owner::Prefix(prefix));
                self.prefixes.insert(prefix, identity);
                outside.prefixes.push((prefix, identity, true));
            } else if let Some(identity) = self.prefixes.remove(&prefix) {
                outside.prefixes.push((prefix, identity, false));
            }
        }
        changes.api_server = questions.api_server != self.questions.api_server;
        outside.all |= changes.api_server;
        changes.identities.extend(turned.iter().map(|turned| turned.identity));
        changes.identities.extend(outside.prefixes.iter().map(|(_, identity, _)| *identity));
        self.questions = questions;
        let mut selections = std::mem::take(&mut self.selections);
        let policies = selections.update(self, forms, &turned, &outside);
        self.selections = selections;
        Ok(PeerChanges { policies, ..changes })
    }

    pub(super) fn with(settings: PolicySettings) -> Self {
        Self { settings: Arc::new(settings), ..Self::default() }
    }

    pub(super) fn settings(&self) -> &PolicySettings {
        &self.settings
    }

    pub(super) fn group(&self, identity: Identity) -> Option<&Group> {
        self.groups.get(identity)
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = (Identity, &Group)> {
        self.groups.iter()
    }

    /// Groups that can have to do with a question about pods.
    pub(super) fn candidates<'a>(&'a self, homes: Option<&'a BTreeSet<String>>) -> Vec<(Identity, &'a Group)> {
        match homes {
            Some(homes) => homes.iter().flat_map(|home| self.groups.of_namespace(home)).collect(),
            None => self.groups.iter().collect(),
        }
    }

    pub(super) fn prefixes(&self) -> &Map<Prefix, Identity> {
        &self.prefixes
    }

    pub(super) fn pod_addresses(&self) -> &Map<IpAddr, Identity> {
        self.groups.addresses()
    }

    pub(super) fn addresses<'a>(&'a self, node: &'a str) -> impl Iterator<Item = (IpAddr, Identity)> + 'a {
        let nodes = self.nodes.iter().map(move |(address, owner)| (*address, owner.seen_from(node)));
        self.groups.addresses().iter().map(|(address, identity)| (*address, *identity)).chain(nodes)
    }

    pub(super) fn identity(&self, node: &str, address: IpAddr) -> Identity {
        if let Some(owner) = self.nodes.get(&address) {
            return owner.seen_from(node);
        }
        if let Some(identity) = self.groups.addresses().get(&address) {
            return *identity;
        }
        let longest = (self.prefixes.iter())
            .filter(|(prefix, _)| prefix.contains(address))
            .max_by_key(|(prefix, _)| prefix.length());
        longest.map_or_else(|| self.world(address.is_ipv4()), |(_, identity)| *identity)
    }

    /// Whether somebody is a peer whoever he is.
    pub(super) fn is_everybody(&self, peers: &[FormPeer]) -> bool {
        let all = |ipv4: bool| {
            peers.iter().any(|peer| match &peer.selects {
                Select::Block { block, cluster: InCluster { pods: true, nodes: true } } => {
                    block.prefix.is_ipv4() == ipv4 && block.prefix.length() == 0 && block.except.is_empty()
                }
                Select::Entity(entity) => *entity == Entity::All,
                Select::Block { .. } | Select::Pods(_) | Select::Nodes(_) | Select::Names(_) => false,
            })
        };
        !peers.is_empty() && (all(true) || !self.ipv4) && (all(false) || !self.ipv6)
    }

    /// Adds the identities that a peer stands for, nodes by address or label aside; of those `only`, if they are given.
    pub(super) fn select(&self, select: &Select, only: Option<&BTreeSet<Identity>>, found: &mut BTreeSet<Identity>) {
        self.selections.of(select, only, found);
    }

    /// Whether a peer takes the pods of a group.
    pub(super) fn takes(&self, select: &Select, group: &Group) -> bool {
        match select {
            Select::Pods(question) => question.matches(&group.asked(&self.settings.cluster)),
            Select::Block { block, cluster } => cluster.pods && group.marks.contains(&Mark::Block(block.clone())),
            Select::Entity(entity) => *entity == Entity::Cluster,
            Select::Nodes(_) | Select::Names(_) => false,
        }
    }

    /// Whom a peer stands for besides pods.
    pub(super) fn select_others(&self, select: &Select) -> BTreeSet<Identity> {
        match select {
            Select::Block { block, .. } => self.select_block(block),
            Select::Entity(entity) => self.select_entity(*entity),
            Select::Names(pattern) => self.select_names(pattern),
            Select::Pods(_) | Select::Nodes(_) => BTreeSet::new(),
        }
    }

    fn select_block(&self, block: &IpBlock) -> BTreeSet<Identity> {
        let inside = self.prefixes.range_from(&block.prefix);
        let inside = inside.take_while(|(prefix, _)| block.prefix.contains(prefix.address()));
        let inside = inside.filter(|(prefix, _)| selects(block, **prefix));
        let mut found: BTreeSet<Identity> = inside.map(|(_, identity)| *identity).collect();
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
                let others = [ids::HOST, ids::UNMANAGED, ids::HEALTH, ids::INIT, ids::INGRESS];
                self.select_entity(Entity::RemoteNode).into_iter().chain(others).collect()
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
        for owner in self.nodes.values().filter(|owner| owner.marks.contains(&mark)) {
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

/// Whether a block selects a prefix outside.
pub(super) fn selects(block: &IpBlock, prefix: Prefix) -> bool {
    block.prefix.covers(prefix) && !block.except.iter().any(|hole| hole.covers(prefix))
}

impl NodeAddress {
    fn seen_from(&self, node: &str) -> Identity {
        if self.node == node { ids::HOST } else { self.identity }
    }
}

/// A node's name and the marks of its addresses.
type MarkedNodes = BTreeMap<IpAddr, (String, Marks)>;

fn node_marks(cluster: &Resolved, questions: &Questions) -> MarkedNodes {
    let mut nodes = MarkedNodes::new();
    for node in cluster.nodes.iter() {
        let marked = node.addresses.iter().map(|address| (*address, questions.of_node(*address, node)));
        nodes.extend(marked.map(|(address, marks)| (address, (node.name.clone(), marks))));
    }
    nodes
}

/// Where nodes differ in their marks, each set of marks has an owner.
fn node_owners(nodes: &MarkedNodes) -> BTreeSet<Owner> {
    let sets: BTreeSet<&Marks> = nodes.values().map(|(_, marks)| marks).collect();
    let owners = sets.iter().map(|set| Owner::Nodes(difference(set, sets.iter().copied())));
    if sets.len() > 1 { owners.collect() } else { BTreeSet::new() }
}

fn number_nodes(nodes: MarkedNodes, number: &impl Fn(&Owner) -> Identity) -> BTreeMap<IpAddr, NodeAddress> {
    let sets: BTreeSet<Marks> = nodes.values().map(|(_, marks)| marks.clone()).collect();
    let identities: BTreeMap<&Marks, Identity> = (sets.iter())
        .map(|set| {
            let owner = || Owner::Nodes(difference(set, sets.iter()));
            (set, if sets.len() > 1 { number(&owner()) } else { ids::REMOTE_NODE })
        })
        .collect();
    nodes
        .into_iter()
        .map(|(address, (node, marks))| {
            let identity = identities.get(&marks).copied().unwrap_or(ids::REMOTE_NODE);
            (address, NodeAddress { node, identity, marks })
        })
        .collect()
}
