//! The cluster as it is wanted: objects that were read, and what a scheduler and an address manager would have filled in.
//!
//! Invariant: a [`Model`] is always whole. A change that would break it (a duplicate address, a pod on an unknown node)
//! is refused with every reason, and the model stays as it was.

mod change;
pub mod cilium;
mod expand;
pub mod names;
mod nodes;
pub mod object;
mod objects;
pub mod question;
mod read;
mod read_cilium;
mod read_cilium_peer;
mod read_cilium_port;
mod read_icmp;
mod read_pod;
mod read_policy;
mod read_service;
mod read_tiers;
mod resolve;
mod slices;
mod sources;
#[cfg(test)]
mod tests;
pub mod tiers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use cilium::{CidrGroup, CiliumPolicy};
pub use names::NamePattern;
pub use object::{
    ContainerPort, EndpointSlice, IpBlock, Name, NetworkPolicy, Object, ObjectKey, PeerSelector, PolicyPeer,
    PolicyPort, PolicyRule, PortRef, PortSelector, Protocol, Service,
};
pub use objects::Objects;
pub use question::{Entity, LabelOf, PodQuestion, Requirement};
pub use read::{read_documents, read_objects};
pub(crate) use resolve::{Holder, Resolved};
pub use sources::Sources;
pub use tiers::ClusterPolicy;

use crate::input::{InputErrors, Report};
use crate::labels::Labels;
use crate::map::Map;
use crate::prefix::Prefix;
use crate::yaml::Position;

/// Label that every namespace has, with its own name.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// How to fill in what the input leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Give IPv4 addresses to nodes and pods that have none.
    pub ipv4: bool,
    /// Give IPv6 addresses to nodes and pods that have none.
    pub ipv6: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { ipv4: true, ipv6: true }
    }
}

/// A node, complete.
///
/// What a Node object leaves open is filled in: the i-th node (from 1) has the addresses `192.168.0.(10+i)` and
/// `fd00:c0a8::(10+i)` (the digits written alike, so `::11`) and the pod prefixes `10.244.i.0/24` and
/// `fd00:10:244:i::/64` (again the digits); numbers that the input uses itself are passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Addresses: internal ones first.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of its pods' addresses.
    pub pod_cidrs: Vec<Prefix>,
    /// Where it was read.
    pub position: Position,
}

impl Node {
    /// Where tunnels to this node end: its first internal IPv4 address, or else its first address.
    pub fn underlay(&self) -> Option<IpAddr> {
        let ipv4 = self.addresses.iter().find(|address| address.is_ipv4());
        ipv4.or(self.addresses.first()).copied()
    }
}

/// A pod, complete. Pods that have finished are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: Name,
    /// Labels.
    pub labels: Labels,
    /// Node that holds it.
    pub node: String,
    /// Addresses, one per family; with `host_network` the node's.
    pub addresses: Vec<IpAddr>,
    /// Whether it is in the node's own network: then it has no identity and no policy of its own.
    pub host_network: bool,
    /// Ports that its containers declare, in order.
    pub ports: Vec<ContainerPort>,
    /// Service account.
    pub service_account: Option<String>,
    /// Whether it takes traffic from services.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Where it (or its workload) was read.
    pub position: Position,
}

/// The cluster. A copy costs nothing, and a change what it touches.
#[derive(Clone, Debug)]
pub struct Model {
    settings: Settings,
    objects: Objects,
    resolved: Arc<Resolved>,
}

impl Model {
    /// A cluster without objects (it has the two default nodes).
    ///
    /// # Errors
    /// Never, in practice: the defaults fit together.
    pub fn empty(settings: Settings) -> Result<Self, InputErrors> {
        Self::from_objects(Vec::new(), settings)
    }

    /// Reads files (name, text) in the order given.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn parse(files: &[(String, String)], settings: Settings) -> Result<Self, InputErrors> {
        Self::from_objects(read_objects(files)?, settings)
    }

    /// A cluster of these objects.
    ///
    /// # Errors
    /// Everything that does not fit together.
    pub fn from_objects(objects: Vec<Object>, settings: Settings) -> Result<Self, InputErrors> {
        Self::restored(objects, settings, [])
    }

    /// As [`Self::from_objects`], where an earlier run has filled in nodes and addresses of pods: they keep them.
    ///
    /// # Errors
    /// Everything that does not fit together.
    pub fn restored(
        objects: impl IntoIterator<Item: Into<Arc<Object>>>,
        settings: Settings,
        kept: impl IntoIterator<Item = (Name, String, Vec<IpAddr>)>,
    ) -> Result<Self, InputErrors> {
        let mut report = Report::default();
        let objects = Objects::of(objects.into_iter().map(Into::into).collect(), &mut report);
        let kept = kept.into_iter().map(|(name, node, addresses)| (name, resolve::Placement::new(node, addresses)));
        Self::build(settings, objects, kept.collect(), report)
    }

    /// Everything anew. `report`: what is wrong already.
    fn build(
        settings: Settings,
        objects: Objects,
        placements: Map<Name, resolve::Placement>,
        mut report: Report,
    ) -> Result<Self, InputErrors> {
        let resolved = resolve::resolve(&objects.iter().collect::<Vec<_>>(), settings, placements, &mut report);
        report.finish(Self { settings, objects, resolved: Arc::new(resolved) })
    }

    /// With other objects.
    fn change(&mut self, objects: Objects, changes: &[objects::Changed], moved: bool) -> Result<(), InputErrors> {
        let known = (!moved).then(|| change::apply(&self.resolved, &objects, changes, self.settings)).flatten();
        *self = match known {
            Some(resolved) => Self { settings: self.settings, objects, resolved: Arc::new(resolved) },
            None => {
                let placements = self.resolved.books.placements.clone();
                Self::build(self.settings, objects, placements, Report::default())?
            }
        };
        Ok(())
    }

    /// Adds objects; those that exist are replaced. Pods that stay keep the node and addresses they were given.
    ///
    /// # Errors
    /// Everything that does not fit; then nothing has changed.
    pub fn apply(&mut self, objects: impl IntoIterator<Item: Into<Arc<Object>>>) -> Result<(), InputErrors> {
        let mut all = self.objects.clone();
        let mut changes: BTreeMap<ObjectKey, objects::Changed> = BTreeMap::new();
        for object in objects {
            let object = object.into();
            let (key, change) = (object.key(), all.put(object));
            // Of several of one name the last one counts.
            match changes.get_mut(&key) {
                Some(earlier) => earlier.new = change.new,
                None => {
                    changes.insert(key, change);
                }
            }
        }
        let mut changes: Vec<objects::Changed> =
            changes.into_values().filter(|change| change.old != change.new).collect();
        all.sort(&mut changes);
        self.change(all, &changes, false)
    }

    /// Makes these the objects, in place of all that are there. Pods that stay keep the node and addresses they were
    /// given.
    ///
    /// # Errors
    /// Everything that does not fit together; then nothing has changed.
    pub fn replace(&mut self, objects: impl IntoIterator<Item: Into<Arc<Object>>>) -> Result<(), InputErrors> {
        let mut all = self.objects.clone();
        let mut report = Report::default();
        let (mut changes, moved) = all.replace(objects.into_iter().map(Into::into).collect(), &mut report);
        report.finish(())?;
        all.sort(&mut changes);
        self.change(all, &changes, moved)
    }

    /// Removes objects by kind, namespace and name, and, as the cluster does, what is in a namespace that goes and what
    /// was made by an object that goes. Returns how many objects went.
    ///
    /// # Errors
    /// When others need them (pods on a node that goes); then nothing has changed.
    pub fn delete(&mut self, keys: &[ObjectKey]) -> Result<usize, InputErrors> {
        let mut all = self.objects.clone();
        let mut gone: BTreeSet<ObjectKey> = keys.iter().cloned().collect();
        let mut changes: Vec<objects::Changed> = gone.iter().filter_map(|key| all.remove(key)).collect();
        loop {
            let in_gone_namespace = |namespace: &str| {
                !namespace.is_empty() && gone.contains(&ObjectKey { kind: "Namespace", name: Name::new("", namespace) })
            };
            let namespaces_go = gone.iter().any(|key| key.kind == "Namespace");
            let goes = |object: &&Object| {
                let meta = object.meta();
                let made_by_gone = |(kind, name): &(String, String)| {
                    let in_namespace = |key: &ObjectKey| key.name.namespace == meta.namespace && key.name.name == *name;
                    gone.iter().any(|key| key.kind == *kind && in_namespace(key))
                };
                (namespaces_go && in_gone_namespace(&meta.namespace))
                    || (!meta.owners.is_empty() && meta.owners.iter().all(made_by_gone))
            };
            let going: Vec<ObjectKey> = all.iter().filter(goes).map(Object::key).collect();
            if going.is_empty() {
                break;
            }
            changes.extend(going.iter().filter_map(|key| all.remove(key)));
            gone.extend(going);
        }
        let removed = changes.len();
        self.change(all, &changes, false)?;
        Ok(removed)
    }

    /// Every object that was read, in order.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Pods by name.
    pub fn pods(&self) -> &Map<Name, Pod> {
        &self.resolved.pods
    }

    /// Nodes in their order.
    pub fn nodes(&self) -> &[Node] {
        &self.resolved.nodes
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.resolved.node(name)
    }

    /// Who has an address: a pod with a network of its own (namespace and name), or a node (name alone).
    pub fn holder(&self, address: IpAddr) -> Option<Name> {
        self.resolved.holders.get(&address).map(|holder| match holder {
            Holder::Node(node) => Name::new("", node),
            Holder::Pod(pod) => pod.clone(),
        })
    }

    /// Namespaces, also those that exist only because an object is in them, with their labels.
    pub fn namespaces(&self) -> &Map<String, Labels> {
        &self.resolved.namespaces
    }

    /// Network policies by name.
    pub fn policies(&self) -> &Map<Name, NetworkPolicy> {
        &self.resolved.policies
    }

    /// Cilium's policies by name; those of the whole cluster have no namespace.
    pub fn cilium_policies(&self) -> &Map<Name, CiliumPolicy> {
        &self.resolved.cilium_policies
    }

    /// ClusterNetworkPolicies by name.
    pub fn cluster_policies(&self) -> &Map<String, ClusterPolicy> {
        &self.resolved.cluster_policies
    }

    /// CIDR groups by name.
    pub fn cidr_groups(&self) -> &Map<String, CidrGroup> {
        &self.resolved.cidr_groups
    }

    /// Services by name, with cluster addresses filled in.
    pub fn services(&self) -> &Map<Name, Service> {
        &self.resolved.services
    }

    /// Endpoint slices by name: those that were read, and those derived for services that have none.
    pub fn endpoint_slices(&self) -> &Map<Name, EndpointSlice> {
        &self.resolved.slices
    }

    /// What is complete, to be kept beside the model.
    pub(crate) fn resolved(&self) -> Arc<Resolved> {
        Arc::clone(&self.resolved)
    }

    /// Whether both families are in use: then "world" is one identity per family, and the node's settings must say so
    /// (`datapath_abi::config::DUAL_STACK`).
    pub fn dual_stack(&self) -> bool {
        self.uses_ipv4() && self.uses_ipv6()
    }

    /// Whether nodes' pods have IPv4 addresses.
    pub fn uses_ipv4(&self) -> bool {
        self.resolved.ipv4
    }

    /// Whether nodes' pods have IPv6 addresses.
    pub fn uses_ipv6(&self) -> bool {
        self.resolved.ipv6
    }
}
