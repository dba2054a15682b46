//! What decisions read and write, one narrow trait per table. Implemented by the object's maps and by the simulator's.

use datapath_abi::{Config, CtEntry, Direction, Event, FragEntry, IpEntry, PolicyEntry, PolicyKey};

use crate::family::Family;
use crate::packet::TunnelKey;

/// Owners of addresses: `ipcache4`/`ipcache6`, `cidr4`/`cidr6`.
pub trait IpTable<F: Family> {
    /// Owner of exactly this address.
    fn owner(&self, address: &F::Addr) -> Option<IpEntry>;
    /// Owner of the longest prefix that contains this address.
    fn prefix_owner(&self, address: &F::Addr) -> Option<IpEntry>;
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
    /// Lets `f` read and change the flow in place, if it is known.
    fn with_flow<R>(&mut self, key: &F::CtKey, f: impl FnOnce(&mut CtEntry) -> R) -> Option<R>;
    /// Adds or replaces a flow.
    fn remember_flow(&mut self, key: &F::CtKey, entry: &CtEntry) -> Result<(), TableFull>;
}

/// Ports of fragmented datagrams: `frag4`/`frag6`.
pub trait FragTable<F: Family> {
    /// Ports of the first fragment.
    fn fragment(&self, key: &F::FragKey) -> Option<FragEntry>;
    /// Remembers the ports of a first fragment. Without room the later fragments are dropped, with their own reason.
    fn remember_fragment(&mut self, key: &F::FragKey, entry: &FragEntry);
}

/// Settings, clock, counters and events.
pub trait Node {
    /// Settings of this node.
    fn config(&self) -> &Config;
    /// Now, in ticks of `jiffies64`.
    fn now(&self) -> u64;
    /// Counts a packet of `bytes` bytes under a reason (0: forwarded).
    fn count(&mut self, direction: Direction, reason: u8, bytes: u32);
    /// Reports an event; lost (and counted by the reader) when the ring buffer has no room.
    fn emit(&mut self, event: &Event);
}

/// Everything a pipeline of one family needs.
pub trait Tables<F: Family>:
    IpTable<F> + NodeTable + PolicyTable + CtTable<F> + FragTable<F> + Node
{
}
impl<F: Family, T: IpTable<F> + NodeTable + PolicyTable + CtTable<F> + FragTable<F> + Node>
    Tables<F> for T
{
}
