//! The cluster as it is wanted: objects that were read, and what a scheduler and an address manager would have filled in.
//!
//! Invariant: a [`Model`] is always whole. A change that would break it (a duplicate address, a pod on an unknown node)
//! is refused with every reason, and the model stays as it was.

pub mod cilium;
mod expand;
pub mod names;
mod nodes;
pub mod object;
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
pub use question::{Entity, LabelOf, PodQuestion, Requirement};
pub use read::{read_documents, read_objects};
pub(crate) use resolve::Resolved;
pub use tiers::ClusterPolicy;

use crate::input::{InputErrors, Report};
use crate::labels::Labels;
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

/// The cluster.
#[derive(Clone, Debug)]
pub struct Model {
    settings: Settings,
    /// Objects in the order of their first arrival.
    objects: Vec<Object>,
    /// What was filled in for pods, so that it stays.
    placements: BTreeMap<Name, resolve::Placement>,
    resolved: Arc<resolve::Resolved>,
}

impl Model {
    /// A cluster without objects (it has the two default nodes).
    ///
    /// # Errors
    /// Never, in practice: the defaults fit together.
    pub fn empty(settings: Settings) -> Result<Self, InputErrors> {
        Self::build(settings, Vec::new(), BTreeMap::new())
    }

    /// Reads files (name, text) in the order given.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn parse(files: &[(String, String)], settings: Settings) -> Result<Self, InputErrors> {
        Self::build(settings, read_objects(files)?, BTreeMap::new())
    }

    /// A cluster of these objects.
    ///
    /// # Errors
    /// Everything that does not fit together.
    pub fn from_objects(objects: Vec<Object>, settings: Settings) -> Result<Self, InputErrors> {
        Self::build(settings, objects, BTreeMap::new())
    }

    fn build(
        settings: Settings,
        objects: Vec<Object>,
        mut placements: BTreeMap<Name, resolve::Placement>,
    ) -> Result<Self, InputErrors> {
        let mut report = Report::default();
        let resolved = resolve::resolve(&objects, settings, &mut placements, &mut report);
        report.finish(Self { settings, objects, placements, resolved: Arc::new(resolved) })
    }

    /// Adds objects; those that exist are replaced. Pods that stay keep the node and addresses they were given.
    ///
    /// # Errors
    /// Everything that does not fit; then nothing has changed.
    pub fn apply(&mut self, objects: Vec<Object>) -> Result<(), InputErrors> {
        // Policies change nothing but themselves.
        let mut resolved = Resolved::clone(&self.resolved);
        let policies_only = objects.iter().all(|object| resolved.put_policy(object));
        let had = self.objects.len();
        let undo = self.put(objects);
        if policies_only {
            self.resolved = Arc::new(resolved);
            return Ok(());
        }
        let mut report = Report::default();
        let mut placements = self.placements.clone();
        let resolved = resolve::resolve(&self.objects, self.settings, &mut placements, &mut report);
        match report.finish(resolved) {
            Ok(resolved) => {
                self.placements = placements;
                self.resolved = Arc::new(resolved);
                Ok(())
            }
            Err(errors) => {
                self.objects.truncate(had);
                for (place, object) in undo.into_iter().rev() {
                    if let Some(new) = self.objects.get_mut(place) {
                        *new = object;
                    }
                }
                Err(errors)
            }
        }
    }

    /// Adds or replaces objects; returns those that were replaced, with their places.
    fn put(&mut self, objects: Vec<Object>) -> Vec<(usize, Object)> {
        let mut replaced = Vec::new();
        let wanted: BTreeSet<ObjectKey> = objects.iter().map(Object::key).collect();
        let is_wanted = |(place, object): (usize, &Object)| {
            // Most objects are passed over without a copy of their names.
            let meta = object.meta();
            let named = wanted.iter().any(|key| key.name.name == meta.name && key.name.namespace == meta.namespace);
            let key = named.then(|| object.key()).filter(|key| wanted.contains(key));
            key.map(|key| (key, place))
        };
        let few = wanted.len() <= 8;
        let all = self.objects.iter().enumerate();
        let mut places: BTreeMap<ObjectKey, usize> = if few {
            all.filter_map(is_wanted).collect()
        } else {
            all.map(|(place, object)| (object.key(), place)).collect()
        };
        for object in objects {
            let place = *places.entry(object.key()).or_insert(self.objects.len());
            match self.objects.get_mut(place) {
                Some(old) => replaced.push((place, std::mem::replace(old, object))),
                None => self.objects.push(object),
            }
        }
        replaced
    }

    /// As [`Self::from_objects`], where an earlier run has filled in nodes and addresses of pods: they keep them.
    ///
    /// # Errors
    /// Everything that does not fit together.
    pub fn restored(
        objects: Vec<Object>,
        settings: Settings,
        kept: impl IntoIterator<Item = (Name, String, Vec<IpAddr>)>,
    ) -> Result<Self, InputErrors> {
        let kept = kept.into_iter().map(|(name, node, addresses)| (name, resolve::Placement::new(node, addresses)));
        Self::build(settings, objects, kept.collect())
    }

    /// Makes these the objects, in place of all that are there. Pods that stay keep the node and addresses they were
    /// given.
    ///
    /// # Errors
    /// Everything that does not fit together; then nothing has changed.
    pub fn replace(&mut self, objects: Vec<Object>) -> Result<(), InputErrors> {
        *self = Self::build(self.settings, objects, self.placements.clone())?;
        Ok(())
    }

    /// Removes objects by kind, namespace and name, and, as the cluster does, what is in a namespace that goes and what
    /// was made by an object that goes. Returns how many objects went.
    ///
    /// # Errors
    /// When others need them (pods on a node that goes); then nothing has changed.
    pub fn delete(&mut self, keys: &[ObjectKey]) -> Result<usize, InputErrors> {
        let (mut all, mut gone) = (self.objects.clone(), keys.iter().cloned().collect::<BTreeSet<ObjectKey>>());
        loop {
            let goes = |object: &Object| {
                let meta = object.meta();
                let namespace = || ObjectKey { kind: "Namespace", name: Name::new("", &meta.namespace) };
                let made_by_gone = |(kind, name): &(String, String)| {
                    let in_namespace = |key: &ObjectKey| key.name.namespace == meta.namespace && key.name.name == *name;
                    gone.iter().any(|key| key.kind == *kind && in_namespace(key))
                };
                gone.contains(&object.key())
                    || (!meta.namespace.is_empty() && gone.contains(&namespace()))
                    || (!meta.owners.is_empty() && meta.owners.iter().all(made_by_gone))
            };
            let (going, staying): (Vec<Object>, Vec<Object>) = all.into_iter().partition(goes);
            all = staying;
            if going.is_empty() {
                break;
            }
            gone.extend(going.iter().map(Object::key));
        }
        let removed = self.objects.len() - all.len();
        *self = Self::build(self.settings, all, self.placements.clone())?;
        Ok(removed)
    }

    /// Every object that was read.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// Pods by name.
    pub fn pods(&self) -> &BTreeMap<Name, Pod> {
        &self.resolved.pods
    }

    /// Nodes in their order.
    pub fn nodes(&self) -> &[Node] {
        &self.resolved.nodes
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.resolved.nodes.iter().find(|node| node.name == name)
    }

    /// Namespaces, also those that exist only because an object is in them, with their labels.
    pub fn namespaces(&self) -> &BTreeMap<String, Labels> {
        &self.resolved.namespaces
    }

    /// Network policies by name.
    pub fn policies(&self) -> &BTreeMap<Name, NetworkPolicy> {
        &self.resolved.policies
    }

    /// Cilium's policies by name; those of the whole cluster have no namespace.
    pub fn cilium_policies(&self) -> &BTreeMap<Name, CiliumPolicy> {
        &self.resolved.cilium_policies
    }

    /// ClusterNetworkPolicies by name.
    pub fn cluster_policies(&self) -> &BTreeMap<String, ClusterPolicy> {
        &self.resolved.cluster_policies
    }

    /// CIDR groups by name.
    pub fn cidr_groups(&self) -> &BTreeMap<String, CidrGroup> {
        &self.resolved.cidr_groups
    }

    /// Services by name, with cluster addresses filled in.
    pub fn services(&self) -> &BTreeMap<Name, Service> {
        &self.resolved.services
    }

    /// Endpoint slices by name: those that were read, and those derived for services that have none.
    pub fn endpoint_slices(&self) -> &BTreeMap<Name, EndpointSlice> {
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
