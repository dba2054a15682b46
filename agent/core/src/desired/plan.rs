//! From what the maps hold to what they should hold, in an order in which every step leaves a working datapath.
//!
//! 1. New and changed policy entries, narrow ones first: what is allowed anew is allowed before anyone is told of it.
//! 2. New and changed addresses and prefixes; addresses and prefixes that go.
//! 3. Policy entries that go.
//! 4. The endpoints' own address entries: new ones come to life, and a changed `policy_revision` makes the flows of an
//!    endpoint ask again. Written last, after every policy change of the endpoint, or a flow could remember a verdict of
//!    the old entries under the new revision.
//!
//! A local endpoint's entry that changes otherwise (its identity, say) is written in step 2 with the old revision.

use std::collections::BTreeMap;

use datapath_abi::{IpEntry, MapId, PolicyKey, ids};
use datapath_maps::{MapError, MapStore};
use zerocopy::{FromBytes, IntoBytes};

use super::{Desired, Entries, OWNED};
use crate::map::Map;

/// What the maps of the control plane hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    maps: BTreeMap<MapId, Entries>,
}

impl Snapshot {
    /// Reads the maps.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(store: &dyn MapStore) -> Result<Self, MapError> {
        let mut maps = BTreeMap::new();
        for map in OWNED {
            let mut entries = store.entries(map)?;
            entries.sort_unstable();
            maps.insert(map, entries.into_iter().collect());
        }
        Ok(Self { maps })
    }

    /// Value under a key.
    pub fn get(&self, map: MapId, key: &[u8]) -> Option<&[u8]> {
        self.maps.get(&map)?.get(key).map(Vec::as_slice)
    }

    /// Number of entries of a map.
    pub fn len(&self, map: MapId) -> usize {
        self.maps.get(&map).map_or(0, Map::len)
    }

    /// Whether no map has an entry.
    pub fn is_empty(&self) -> bool {
        self.maps.values().all(Map::is_empty)
    }
}

impl From<&Desired> for Snapshot {
    /// The maps when they are as wanted.
    fn from(desired: &Desired) -> Self {
        Self { maps: desired.maps().clone() }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write an entry, new or not.
    Put {
        /// Map.
        map: MapId,
        /// Key.
        key: Vec<u8>,
        /// Value.
        value: Vec<u8>,
    },
    /// Remove an entry.
    Delete {
        /// Map.
        map: MapId,
        /// Key.
        key: Vec<u8>,
    },
}

impl Op {
    /// The map it changes.
    pub fn map(&self) -> MapId {
        match self {
            Self::Put { map, .. } | Self::Delete { map, .. } => *map,
        }
    }

    /// The key it changes.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

/// Changes in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    ops: Vec<Op>,
    /// Entries of each map while the plan runs, at most.
    peaks: BTreeMap<MapId, usize>,
}

impl Plan {
    /// The changes that make one into the other.
    pub fn between(have: &Snapshot, want: &Desired) -> Self {
        let none = Entries::new();
        let mut policy_puts = Vec::new();
        let mut puts = Vec::new();
        let mut deletes = Vec::new();
        let mut policy_deletes = Vec::new();
        let mut endpoints = Vec::new();
        let mut peaks = BTreeMap::new();
        for (&map, wanted) in want.maps() {
            let had = have.maps.get(&map).unwrap_or(&none);
            let mut added = 0;
            for (key, old, value) in had.diff(wanted) {
                let Some(value) = value else {
                    let gone = Op::Delete { map, key: key.clone() };
                    if map == MapId::Policy {
                        policy_deletes.push(gone)
                    } else {
                        deletes.push(gone)
                    }
                    continue;
                };
                added += usize::from(old.is_none());
                let put = |value: Vec<u8>| Op::Put { map, key: key.clone(), value };
                match map {
                    MapId::Policy => policy_puts.push(put(value.clone())),
                    MapId::Ipcache4 | MapId::Ipcache6 => match late(old, value) {
                        Late::No => puts.push(put(value.clone())),
                        Late::Yes { first } => {
                            puts.extend(first.map(put));
                            endpoints.push(put(value.clone()));
                        }
                    },
                    MapId::Cidr4
                    | MapId::Cidr6
                    | MapId::Ct4
                    | MapId::Ct6
                    | MapId::Frag4
                    | MapId::Frag6
                    | MapId::Metrics
                    | MapId::Events
                    | MapId::Calls => puts.push(put(value.clone())),
                }
            }
            peaks.insert(map, had.len() + added);
        }
        policy_puts.sort_by_key(|op| order(op.key()));
        policy_deletes.sort_by_key(|op| std::cmp::Reverse(order(op.key())));
        let ops = [policy_puts, puts, deletes, policy_deletes, endpoints].concat();
        Self { ops, peaks }
    }

    /// The changes, in order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Most entries that a map has while the plan runs.
    pub fn peak(&self, map: MapId) -> usize {
        self.peaks.get(&map).copied().unwrap_or(0)
    }
}

/// Order in which policy entries are written; they are removed in the reverse one. Those of an exact identity and the
/// narrow ones come first: until a wide entry is there the old ones decide, and after that nothing is missing behind it.
fn order(key: &[u8]) -> impl Ord + use<> {
    let read = PolicyKey::read_from_bytes(key).ok();
    let place = read.map(|key| (key.identity == ids::UNKNOWN, std::cmp::Reverse(key.prefix_len)));
    (place, key.to_vec())
}

/// Whether an address entry must wait for the policy.
enum Late {
    No,
    /// Yes; and what can be written before, if anything.
    Yes {
        first: Option<Vec<u8>>,
    },
}

fn late(old: Option<&Vec<u8>>, new: &[u8]) -> Late {
    let Ok(wanted) = IpEntry::read_from_bytes(new) else {
        return Late::No;
    };
    if wanted.endpoint == 0 {
        return Late::No;
    }
    let old = old.and_then(|bytes| IpEntry::read_from_bytes(bytes).ok());
    let same = |old: &IpEntry| (old.endpoint, old.ifindex, old.mac) == (wanted.endpoint, wanted.ifindex, wanted.mac);
    match old.filter(same) {
        // Another pod: alive only when its policy is complete and that of an earlier owner of the number is gone.
        None => Late::Yes { first: None },
        Some(old) if old.policy_revision == wanted.policy_revision => Late::No,
        Some(old) => {
            let early = IpEntry { policy_revision: old.policy_revision, ..wanted };
            Late::Yes { first: (early != old).then(|| early.as_bytes().to_vec()) }
        }
    }
}
