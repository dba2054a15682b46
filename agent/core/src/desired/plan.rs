//! From what the maps hold to what they should hold, in an order in which every step leaves a working datapath.
//!
//! 0. Addresses of endpoints that go are nobody's: nothing is asked of their policy any more.
//! 1. New and changed policy entries, narrow ones first: what is allowed anew is allowed before anyone is told of it.
//! 2. Addresses, so that each goes from its old identity to its new one in one step: first those of their own that come
//!    or change, then prefixes that come (narrow ones first), prefixes that go (wide ones first), addresses that go.
//! 3. Policy entries that go. (Changes for which this order will not do: see [`order`](super::order).)
//! 4. The endpoints' own address entries: new ones come to life, and a changed `policy_revision` makes the flows of an
//!    endpoint ask again. Written last, after every policy change of the endpoint, or a flow could remember a verdict of
//!    the old entries under the new revision.
//!
//! A local endpoint's entry that changes otherwise (its identity, say) is written in step 2 with the old revision.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath_abi::{EndpointId, Identity, IpEntry, Mac, MapId, ids};
use datapath_maps::{MapError, MapStore};
use zerocopy::{FromBytes, IntoBytes};

use super::order::{self, Moves};
use super::{Desired, Entries, OWNED, prefix_key};
use crate::map::Map;
use crate::prefix::Prefix;

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
    /// Endpoints and directions whose policy changes behind a gate.
    gated: BTreeSet<(EndpointId, u8)>,
}

impl Plan {
    /// The changes that make one into the other.
    pub fn between(have: &Snapshot, want: &Desired) -> Self {
        let none = Entries::new();
        let pair = |map: MapId| (have.maps.get(&map).unwrap_or(&none), want.maps().get(&map).unwrap_or(&none));
        let mut steps = Steps::default();
        let mut peaks = BTreeMap::new();
        for map in OWNED {
            let (had, wanted) = pair(map);
            let mut added = 0;
            for (key, old, new) in had.diff(wanted) {
                added += usize::from(old.is_none());
                match map {
                    MapId::Policy => {}
                    MapId::Ipcache4 | MapId::Ipcache6 => steps.address(map, key, old, new),
                    MapId::Cidr4
                    | MapId::Cidr6
                    | MapId::Ct4
                    | MapId::Ct6
                    | MapId::Frag4
                    | MapId::Frag6
                    | MapId::Metrics
                    | MapId::Events
                    | MapId::Calls => steps.prefix(map, key, new),
                }
            }
            peaks.insert(map, had.len() + added);
        }
        let moves = steps.moves(&pair);
        steps.find_idle(&pair);
        let (had, wanted) = pair(MapId::Policy);
        let policy = order::order(had, wanted, &moves, &steps.idle);
        if let Some(peak) = peaks.get_mut(&MapId::Policy) {
            *peak += policy.gates;
        }
        steps.prefix_puts.sort_by_key(|op| std::cmp::Reverse(length(op.key())));
        steps.prefix_deletes.sort_by_key(|op| length(op.key()));
        let ops = [
            steps.dying,
            policy.before,
            steps.puts,
            steps.prefix_puts,
            steps.prefix_deletes,
            steps.deletes,
            policy.after,
            steps.endpoints,
        ];
        Self { ops: ops.concat(), peaks, gated: policy.gated }
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

    /// Endpoints and directions (as in `PolicyKey`) that refuse new flows while the plan runs, because no order of its
    /// steps would keep every packet to the old verdict or the new one.
    pub fn gated(&self) -> &BTreeSet<(EndpointId, u8)> {
        &self.gated
    }

    /// Most entries that a map has while the plan runs.
    pub fn peak(&self, map: MapId) -> usize {
        self.peaks.get(&map).copied().unwrap_or(0)
    }
}

/// Changes of addresses and prefixes, by when they are made.
#[derive(Default)]
struct Steps {
    /// Endpoints that go are nobody's first.
    dying: Vec<Op>,
    puts: Vec<Op>,
    prefix_puts: Vec<Op>,
    prefix_deletes: Vec<Op>,
    deletes: Vec<Op>,
    endpoints: Vec<Op>,
    /// Endpoints that come or go.
    idle: BTreeSet<EndpointId>,
    /// Addresses, with their identities before and after; without: that of their prefix.
    owners: Vec<(IpAddr, [Option<Identity>; 2])>,
    /// Prefixes that come, go, or are another identity's.
    prefixes: Vec<Prefix>,
}

impl Steps {
    fn address(&mut self, map: MapId, key: &[u8], old: Option<&Vec<u8>>, new: Option<&Vec<u8>>) {
        let entry = |bytes: Option<&Vec<u8>>| bytes.and_then(|bytes| IpEntry::read_from_bytes(bytes).ok());
        let (was, is) = (entry(old), entry(new));
        let identity = |entry: Option<IpEntry>| entry.map(|entry| entry.identity);
        if identity(was) != identity(is)
            && let Some(address) = super::dump::address(key)
        {
            self.owners.push((address, [identity(was), identity(is)]));
        }
        let goes = was.filter(|was| was.endpoint != 0 && is.is_none_or(|is| is.endpoint != was.endpoint));
        let was = match goes {
            Some(was) => {
                self.idle.insert(was.endpoint);
                let dead = IpEntry { endpoint: 0, ifindex: 0, mac: Mac::default(), policy_revision: 0, ..was };
                self.dying.push(Op::Put { map, key: key.to_vec(), value: dead.as_bytes().to_vec() });
                Some(dead)
            }
            None => was,
        };
        let Some(value) = new else {
            self.deletes.push(Op::Delete { map, key: key.to_vec() });
            return;
        };
        let put = |value: Vec<u8>| Op::Put { map, key: key.to_vec(), value };
        match late(was, is) {
            Late::No => self.puts.push(put(value.clone())),
            Late::Yes { first } => {
                if was.is_none_or(|was| was.endpoint == 0) {
                    self.idle.extend(is.map(|is| is.endpoint));
                }
                self.puts.extend(first.map(|first| put(first.as_bytes().to_vec())));
                self.endpoints.push(put(value.clone()));
            }
        }
    }

    fn prefix(&mut self, map: MapId, key: &[u8], new: Option<&Vec<u8>>) {
        self.prefixes.extend(read_prefix(key));
        match new {
            Some(value) => self.prefix_puts.push(Op::Put { map, key: key.to_vec(), value: value.clone() }),
            None => self.prefix_deletes.push(Op::Delete { map, key: key.to_vec() }),
        }
    }

    /// Who has come or gone with one address and stays with another one is not idle.
    fn find_idle<'a>(&mut self, pair: &impl Fn(MapId) -> (&'a Entries, &'a Entries)) {
        let endpoint = |value: &Vec<u8>| IpEntry::read_from_bytes(value).map_or(0, |entry| entry.endpoint);
        for (had, wanted) in [MapId::Ipcache4, MapId::Ipcache6].map(pair) {
            if self.idle.is_empty() {
                return;
            }
            for (key, value) in wanted {
                let id = endpoint(value);
                if self.idle.contains(&id) && had.get(key).is_some_and(|had| endpoint(had) == id) {
                    self.idle.remove(&id);
                }
            }
        }
    }

    /// Identities between which addresses move.
    fn moves<'a>(&self, pair: &impl Fn(MapId) -> (&'a Entries, &'a Entries)) -> Moves {
        let mut moves = Moves::new();
        let owners = |address: IpAddr, length: u8| {
            let (had, wanted) = pair(if address.is_ipv4() { MapId::Cidr4 } else { MapId::Cidr6 });
            [had, wanted].map(|prefixes| owners_of(prefixes, address, length))
        };
        for (address, known) in &self.owners {
            let of_prefix = owners(*address, if address.is_ipv4() { 32 } else { 128 });
            let [old, new] = [0, 1].map(|side: usize| {
                let known: Option<Identity> = known.get(side).copied().flatten();
                known.map_or_else(|| of_prefix.get(side).cloned().unwrap_or_default(), |known| vec![known])
            });
            moves.extend(old.iter().flat_map(|old| new.iter().map(|new| (*old, *new))));
        }
        for prefix in &self.prefixes {
            let [old, new] = owners(prefix.address(), prefix.length());
            moves.extend(old.iter().flat_map(|old| new.iter().map(|new| (*old, *new))));
        }
        moves.retain(|(old, new)| old != new);
        moves
    }
}

/// Who owns a prefix that is no longer one of its own: the longest that holds it, or one of the worlds.
fn owners_of(prefixes: &Entries, address: IpAddr, length: u8) -> Vec<Identity> {
    let own = (0..=length).rev().find_map(|length| {
        let value = prefixes.get(&prefix_key(Prefix::new(address, length)?))?;
        Some(IpEntry::read_from_bytes(value).ok()?.identity)
    });
    own.map_or_else(|| vec![ids::WORLD, ids::WORLD_IPV4, ids::WORLD_IPV6], |own| vec![own])
}

/// Bits of a prefix, from its key.
fn length(key: &[u8]) -> u32 {
    key.first_chunk::<4>().map_or(0, |length| u32::from_ne_bytes(*length))
}

fn read_prefix(key: &[u8]) -> Option<Prefix> {
    let (_, address) = key.split_first_chunk::<4>()?;
    Prefix::new(super::dump::address(address)?, u8::try_from(length(key)).ok()?)
}

/// Whether an address entry must wait for the policy.
enum Late {
    No,
    /// Yes; and what can be written before, if anything.
    Yes {
        first: Option<IpEntry>,
    },
}

fn late(old: Option<IpEntry>, new: Option<IpEntry>) -> Late {
    let Some(wanted) = new.filter(|wanted| wanted.endpoint != 0) else {
        return Late::No;
    };
    let Some(old) = old else {
        // Known at once, as somebody whom others may or may not reach; alive only when its policy is complete.
        let first = IpEntry { identity: wanted.identity, flags: wanted.flags, ..IpEntry::default() };
        return Late::Yes { first: Some(first) };
    };
    let same = (old.endpoint, old.ifindex, old.mac) == (wanted.endpoint, wanted.ifindex, wanted.mac);
    if same && old.policy_revision == wanted.policy_revision {
        return Late::No;
    }
    let early = if same {
        IpEntry { policy_revision: old.policy_revision, ..wanted }
    } else {
        // Another pod, or another device: alive only when its policy is complete and that of an earlier owner of the
        // number is gone. (An earlier owner of the address is gone already.)
        IpEntry { identity: wanted.identity, ..old }
    };
    Late::Yes { first: (early != old).then_some(early) }
}
