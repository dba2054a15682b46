//! What decisions read and write, one narrow trait per table. Implemented by the object's maps and by the simulator's.

use core::ops::{Deref, DerefMut};

use datapath_abi::{Config, CtEntry, Direction, EventKind, FragEntry, IpEntry, PolicyEntry, PolicyKey};

use crate::facts::Facts;
use crate::family::Family;
use crate::packet::TunnelKey;

/// Owners of addresses: `ipcache4`/`ipcache6`, `cidr4`/`cidr6`.
pub trait IpTable<F: Family> {
    /// An entry, in place or as a copy.
    type Entry<'a>: Deref<Target = IpEntry>
    where
        Self: 'a;
    /// Owner of exactly this address.
    fn owner(&self, address: &F::Addr) -> Option<Self::Entry<'_>>;
    /// Owner of the longest prefix that contains this address.
    fn prefix_owner(&self, address: &F::Addr) -> Option<Self::Entry<'_>>;
}

/// Addresses of nodes, for the outer header of tunnel traffic.
pub trait NodeTable {
    /// Whether tunnel traffic may come from `key.remote`.
    fn is_node(&self, key: &TunnelKey) -> bool;
}

/// Policy of the local endpoints.
pub trait PolicyTable {
    /// The entry with the longest prefix that matches the key's fields.
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry>;
}

/// A table that has no room; the packet must not go on as if it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

/// Flows: `ct4`/`ct6`.
pub trait CtTable<F: Family> {
    /// A known flow, to read and change in place.
    type Flow<'a>: DerefMut<Target = CtEntry>
    where
        Self: 'a;
    /// The flow, if it is known.
    fn flow(&self, key: &F::CtKey) -> Option<Self::Flow<'_>>;
    /// Adds or replaces a flow.
    fn remember_flow(&self, key: &F::CtKey, entry: &CtEntry) -> Result<(), TableFull>;
}

/// Ports of fragmented datagrams: `frag4`/`frag6`.
pub trait FragTable<F: Family> {
    /// Ports of the first fragment.
    fn fragment(&self, key: &F::FragKey) -> Option<FragEntry>;
    /// Remembers the ports of a first fragment. Without room the later fragments are dropped, with their own reason.
    fn remember_fragment(&self, key: &F::FragKey, entry: &FragEntry);
}

/// Settings, clock, counters and events.
pub trait Node {
    /// Settings of this node.
    fn config(&self) -> &Config;
    /// Now, in ticks of `jiffies64`.
    fn now(&self) -> u64;
    /// Counts a packet of `bytes` bytes under a reason (0: forwarded).
    fn count(&self, direction: Direction, reason: u8, bytes: u32);
    /// Writes [`Facts::write_event`]'s event to the ring buffer; false when it has no room.
    #[must_use]
    fn emit<F: Family>(&self, facts: &Facts<F>, kind: EventKind, code: u8, verdict: i32) -> bool;
}

/// Everything a pipeline of one family needs.
pub trait Tables<F: Family>: IpTable<F> + NodeTable + PolicyTable + CtTable<F> + FragTable<F> + Node {}
impl<F: Family, T: IpTable<F> + NodeTable + PolicyTable + CtTable<F> + FragTable<F> + Node> Tables<F> for T {}
