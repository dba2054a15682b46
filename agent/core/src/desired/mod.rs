//! What the maps of one node should hold: a pure function of the compiled cluster and the node's own endpoints.

mod dump;
mod plan;
mod pressure;
mod reconcile;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath_abi::{Addr4, Addr6, CidrKey4, CidrKey6, EndpointId, Identity, IpEntry, IpFlags, Mac, MapId, ids};
use zerocopy::IntoBytes;

pub use plan::{Op, Plan, Snapshot};
pub use reconcile::{Limits, ReconcileError, reconcile};

use crate::model::{Name, Node};
use crate::policy::{Compiled, Direction, PolicyKind, PolicyState, fold};
use crate::prefix::Prefix;
use crate::yaml::Position;
use pressure::Pressure;

/// Maps that the control plane writes. All others belong to the datapath.
pub const OWNED: [MapId; 5] = [MapId::Ipcache4, MapId::Ipcache6, MapId::Cidr4, MapId::Cidr6, MapId::Policy];

/// What only the node knows about one of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// The pod.
    pub pod: Name,
    /// Number of the endpoint, not 0.
    pub id: EndpointId,
    /// Host side of the pod's veth.
    pub ifindex: u32,
    /// The pod's own Ethernet address.
    pub mac: Mac,
}

/// A list of local endpoints that does not fit the cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    /// The node is not in the cluster.
    #[error("no node `{node}`")]
    UnknownNode {
        /// Its name.
        node: String,
    },
    /// The pod is not in the cluster.
    #[error("endpoint {id}: no pod `{pod}`")]
    UnknownPod {
        /// Endpoint.
        id: EndpointId,
        /// Its pod.
        pod: Name,
    },
    /// The pod is on another node.
    #[error("endpoint {id}: pod `{pod}` is on node `{node}`")]
    Elsewhere {
        /// Endpoint.
        id: EndpointId,
        /// Its pod.
        pod: Name,
        /// The pod's node.
        node: String,
    },
    /// The pod has no network of its own.
    #[error("endpoint {id}: pod `{pod}` is in its node's network")]
    HostNetwork {
        /// Endpoint.
        id: EndpointId,
        /// Its pod.
        pod: Name,
    },
    /// An endpoint, or all of a node, would have more policy entries than there is room for.
    #[error(
        "{endpoint} needs {needed} policy entries and has room for {capacity}; {kind} {policy} ({position}) makes {share} of them"
    )]
    Pressure {
        /// Whose entries.
        endpoint: String,
        /// Entries that it would have.
        needed: usize,
        /// Entries that there may be.
        capacity: usize,
        /// Kind of the policy with the most entries.
        kind: PolicyKind,
        /// Its name.
        policy: Name,
        /// Where it is written.
        position: Position,
        /// Its entries.
        share: usize,
    },
    /// A number or pod twice, or number 0.
    #[error("endpoint {id} of pod `{pod}`: number 0, or number or pod given twice")]
    Number {
        /// Endpoint.
        id: EndpointId,
        /// Its pod.
        pod: Name,
    },
}

/// Key bytes to value bytes of one map.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// The wanted contents of the maps that the control plane owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    maps: BTreeMap<MapId, Entries>,
}

impl Default for Desired {
    fn default() -> Self {
        Self { maps: OWNED.into_iter().map(|map| (map, Entries::new())).collect() }
    }
}

impl Desired {
    /// Entries of a map; none for maps that the control plane does not own.
    pub fn entries(&self, map: MapId) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.maps.get(&map).into_iter().flatten().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Number of entries of a map.
    pub fn len(&self, map: MapId) -> usize {
        self.maps.get(&map).map_or(0, BTreeMap::len)
    }

    /// Whether no map has an entry.
    pub fn is_empty(&self) -> bool {
        self.maps.values().all(BTreeMap::is_empty)
    }

    pub(crate) fn maps(&self) -> &BTreeMap<MapId, Entries> {
        &self.maps
    }

    fn put(&mut self, map: MapId, key: &[u8], value: &[u8]) {
        self.maps.entry(map).or_default().insert(key.to_vec(), value.to_vec());
    }

    fn put_address(&mut self, address: IpAddr, entry: &IpEntry) {
        match address {
            IpAddr::V4(address) => {
                self.put(MapId::Ipcache4, Addr4::from_octets(address.octets()).as_bytes(), entry.as_bytes())
            }
            IpAddr::V6(address) => {
                self.put(MapId::Ipcache6, Addr6::from_octets(address.octets()).as_bytes(), entry.as_bytes())
            }
        }
    }

    fn put_prefix(&mut self, prefix: Prefix, entry: &IpEntry) {
        let prefix_len = u32::from(prefix.length());
        match prefix.address() {
            IpAddr::V4(address) => {
                let key = CidrKey4 { prefix_len, addr: Addr4::from_octets(address.octets()) };
                self.put(MapId::Cidr4, key.as_bytes(), entry.as_bytes());
            }
            IpAddr::V6(address) => {
                let key = CidrKey6 { prefix_len, addr: Addr6::from_octets(address.octets()) };
                self.put(MapId::Cidr6, key.as_bytes(), entry.as_bytes());
            }
        }
    }
}

/// The first address after a prefix's own.
fn first_address(prefix: Prefix) -> Option<IpAddr> {
    Some(match prefix.address() {
        IpAddr::V4(address) => IpAddr::V4(address.to_bits().checked_add(1)?.into()),
        IpAddr::V6(address) => IpAddr::V6(address.to_bits().checked_add(1)?.into()),
    })
}

impl Node {
    /// The gateway of its pods in each family: the first address after each pod prefix's own. It is also the source of the
    /// node's packets to pods where the node has no address of that family.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.pod_cidrs.iter().filter_map(|prefix| first_address(*prefix))
    }
}

/// An address as `IpEntry::node` holds it, with the flag that tells the family.
fn underlay(address: Option<IpAddr>) -> (Addr6, u16) {
    match address {
        None => (Addr6::default(), 0),
        Some(IpAddr::V4(address)) => (Addr6::from_v4(Addr4::from_octets(address.octets())), 0),
        Some(IpAddr::V6(address)) => (Addr6::from_octets(address.octets()), IpFlags::UNDERLAY6),
    }
}

impl Compiled {
    /// What the maps of a node should hold, given its endpoints.
    ///
    /// # Errors
    /// When the endpoints do not fit the cluster.
    pub fn desired(&self, node: &str, locals: &[LocalEndpoint]) -> Result<Desired, DesiredError> {
        let cluster = self.cluster();
        let own = (cluster.nodes.iter().find(|own| own.name == node))
            .ok_or_else(|| DesiredError::UnknownNode { node: node.to_owned() })?;
        let locals = self.check_locals(node, locals)?;
        let mut desired = Desired::default();
        let mut revisions: BTreeMap<&Name, u32> = BTreeMap::new();
        let mut pressure = Pressure::default();
        for local in locals.values() {
            let states = Direction::ALL.map(|direction| self.state(&local.pod, direction));
            pressure.check(self, local.pod.to_string(), &states)?;
            revisions.insert(&local.pod, put_policy(local.id, &states, &mut desired));
        }
        let host = self.host_states(node);
        let host_revision = match &host {
            None => 0,
            Some(states) => {
                pressure.check(self, format!("node/{node}"), states)?;
                put_policy(ids::HOST_ENDPOINT, states, &mut desired)
            }
        };
        pressure.finish(self, node)?;
        // Written first: where an object has the same address, it is the object's.
        for other in cluster.nodes.iter() {
            let local = other.name == own.name;
            let (holder, family) = underlay(other.underlay().filter(|_| !local));
            let flags = if local { IpFlags::LOCAL_HOST | IpFlags::NODE } else { IpFlags::NODE };
            let identity = if local { ids::HOST } else { ids::REMOTE_NODE };
            for address in other.gateways() {
                let mut entry =
                    IpEntry { identity, node: holder, flags: IpFlags(flags | family), ..IpEntry::default() };
                if local && host.is_some() {
                    // The node is the same by whichever of its addresses it is reached.
                    (entry.endpoint, entry.policy_revision) = (ids::HOST_ENDPOINT, host_revision);
                }
                desired.put_address(address, &entry);
            }
        }
        let by_name: BTreeMap<&str, &Node> = cluster.nodes.iter().map(|node| (node.name.as_str(), node)).collect();
        for pod in cluster.pods.values().filter(|pod| !pod.host_network) {
            let local = locals.get(&pod.name);
            // A pod of this node that has no endpoint (yet) cannot be reached at all, least of all through the tunnel.
            let reachable = local.is_some() || pod.node != own.name;
            let holder = by_name.get(pod.node.as_str()).filter(|_| reachable);
            let (holder, flags) = underlay(holder.and_then(|node| node.underlay()));
            for &address in &pod.addresses {
                let entry = IpEntry {
                    identity: self.identity(node, address),
                    ifindex: local.map_or(0, |local| local.ifindex),
                    policy_revision: revisions.get(&pod.name).copied().unwrap_or(0),
                    node: holder,
                    endpoint: local.map_or(0, |local| local.id),
                    flags: IpFlags(flags | IpFlags::POD),
                    mac: local.map_or(Mac::default(), |local| local.mac),
                    pad: [0; 2],
                };
                desired.put_address(address, &entry);
            }
        }
        for other in cluster.nodes.iter() {
            let local = other.name == own.name;
            let flags = if local { IpFlags::LOCAL_HOST | IpFlags::NODE } else { IpFlags::NODE };
            for &address in &other.addresses {
                let mut entry =
                    IpEntry { identity: self.identity(node, address), flags: IpFlags(flags), ..IpEntry::default() };
                if local && host.is_some() {
                    (entry.endpoint, entry.policy_revision) = (ids::HOST_ENDPOINT, host_revision);
                }
                desired.put_address(address, &entry);
            }
        }
        for (prefix, identity) in self.prefixes() {
            desired.put_prefix(*prefix, &prefix_entry(*identity));
        }
        Ok(desired)
    }

    fn check_locals<'a>(
        &self,
        node: &str,
        locals: &'a [LocalEndpoint],
    ) -> Result<BTreeMap<&'a Name, &'a LocalEndpoint>, DesiredError> {
        let mut checked = BTreeMap::new();
        let mut numbers = BTreeSet::new();
        for local in locals {
            let (id, pod) = (local.id, local.pod.clone());
            match self.cluster().pods.get(&local.pod) {
                None => return Err(DesiredError::UnknownPod { id, pod }),
                Some(found) if found.node != node => {
                    return Err(DesiredError::Elsewhere { id, pod, node: found.node.clone() });
                }
                Some(found) if found.host_network => return Err(DesiredError::HostNetwork { id, pod }),
                Some(_) => {}
            }
            if id == 0 || !numbers.insert(id) || checked.insert(&local.pod, local).is_some() {
                return Err(DesiredError::Number { id, pod });
            }
        }
        Ok(checked)
    }

    /// The node's own policy, if there is any about it and it is in force.
    fn host_states(&self, node: &str) -> Option<[PolicyState; 2]> {
        let wanted = self.settings().host_firewall && self.has_host_policy(node);
        wanted.then(|| Direction::ALL.map(|direction| self.host_state(node, direction)))
    }
}

/// Adds an endpoint's policy entries; returns their revision: a hash of them, never 0.
fn put_policy(endpoint: EndpointId, states: &[PolicyState; 2], desired: &mut Desired) -> u32 {
    let mut all = Vec::new();
    for (state, direction) in states.iter().zip(Direction::ALL) {
        for (key, entry) in state.map_entries(endpoint, direction) {
            all.extend_from_slice(key.as_bytes());
            all.extend_from_slice(entry.as_bytes());
            desired.put(MapId::Policy, key.as_bytes(), entry.as_bytes());
        }
    }
    fold(&all).max(1)
}

fn prefix_entry(identity: Identity) -> IpEntry {
    IpEntry { identity, ..IpEntry::default() }
}
