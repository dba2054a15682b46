//! What the maps of one node should hold: a pure function of the compiled cluster and the node's own endpoints.

mod dump;
mod node;
mod order;
mod plan;
mod pressure;
mod reconcile;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath_abi::{Addr4, Addr6, CidrKey4, CidrKey6, EndpointId, Identity, IpEntry, IpFlags, Mac, MapId, PolicyEntry};
use zerocopy::{FromBytes, IntoBytes};

pub use node::NodeMaps;
pub use plan::{Op, Plan, Snapshot};
pub use reconcile::{Limits, ReconcileError, reconcile, reconcile_known};

use crate::map::Map;
use crate::model::{Name, Node};
use crate::policy::{Compiled, Direction, PolicyKind, PolicyState, RuleId};
use crate::prefix::Prefix;
use crate::yaml::Position;

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
pub type Entries = Map<Vec<u8>, Vec<u8>>;

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
        self.maps.get(&map).into_iter().flat_map(Map::iter).map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Number of entries of a map.
    pub fn len(&self, map: MapId) -> usize {
        self.maps.get(&map).map_or(0, Map::len)
    }

    /// Whether no map has an entry.
    pub fn is_empty(&self) -> bool {
        self.maps.values().all(Map::is_empty)
    }

    pub(crate) fn maps(&self) -> &BTreeMap<MapId, Entries> {
        &self.maps
    }

    /// The value under a key.
    fn get(&self, map: MapId, key: &[u8]) -> Option<&[u8]> {
        self.maps.get(&map)?.get(key).map(Vec::as_slice)
    }

    /// How many policy entries each rule has.
    pub(crate) fn rules(&self) -> BTreeMap<RuleId, usize> {
        let mut rules = BTreeMap::new();
        for (_, value) in self.entries(MapId::Policy) {
            if let Ok(entry) = PolicyEntry::read_from_bytes(value) {
                *rules.entry(entry.rule).or_default() += 1;
            }
        }
        rules
    }

    /// Writes or removes an entry; what is as it should be stays shared with copies.
    fn set(&mut self, map: MapId, key: &[u8], value: Option<&[u8]>) {
        let Some(entries) = self.maps.get_mut(&map) else { return };
        match value {
            Some(value) if entries.get(key).map(Vec::as_slice) != Some(value) => {
                entries.insert(key.to_vec(), value.to_vec());
            }
            Some(_) => {}
            None => {
                entries.remove(key);
            }
        }
    }

    fn set_address(&mut self, address: IpAddr, entry: Option<&IpEntry>) {
        let entry = entry.map(IpEntry::as_bytes);
        match address {
            IpAddr::V4(address) => self.set(MapId::Ipcache4, Addr4::from_octets(address.octets()).as_bytes(), entry),
            IpAddr::V6(address) => self.set(MapId::Ipcache6, Addr6::from_octets(address.octets()).as_bytes(), entry),
        }
    }

    fn set_prefix(&mut self, prefix: Prefix, entry: Option<&IpEntry>) {
        let map = if prefix.is_ipv4() { MapId::Cidr4 } else { MapId::Cidr6 };
        self.set(map, &prefix_key(prefix), entry.map(IpEntry::as_bytes));
    }
}

/// A prefix's key in `cidr4` or `cidr6`.
fn prefix_key(prefix: Prefix) -> Vec<u8> {
    let prefix_len = u32::from(prefix.length());
    match prefix.address() {
        IpAddr::V4(address) => CidrKey4 { prefix_len, addr: Addr4::from_octets(address.octets()) }.as_bytes().to_vec(),
        IpAddr::V6(address) => CidrKey6 { prefix_len, addr: Addr6::from_octets(address.octets()) }.as_bytes().to_vec(),
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
        Ok(NodeMaps::new(self, node, locals)?.desired().clone())
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

fn prefix_entry(identity: Identity) -> IpEntry {
    IpEntry { identity, ..IpEntry::default() }
}
