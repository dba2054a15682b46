//! Whose address is it?

use datapath_abi::{Addr6, Identity, IpEntry, IpFlags, Mac};

use crate::family::Family;
use crate::tables::{IpTable, Node};

/// An address that nobody in the cluster owns.
#[inline(always)]
const fn nobody(identity: Identity) -> IpEntry {
    IpEntry {
        identity,
        ifindex: 0,
        policy_revision: 0,
        node: Addr6([0; 16]),
        endpoint: 0,
        flags: IpFlags(0),
        mac: Mac([0; 6]),
        pad: [0; 2],
    }
}

/// Owner of an address: exact, else longest prefix, else the world.
#[inline(always)]
pub fn resolve<F: Family, T: IpTable<F> + Node>(tables: &T, address: &F::Addr) -> IpEntry {
    if let Some(entry) = tables.owner(address) {
        return entry;
    }
    beyond(tables, address)
}

/// Owner of an address that no exact entry knows.
#[inline(always)]
pub fn beyond<F: Family, T: IpTable<F> + Node>(tables: &T, address: &F::Addr) -> IpEntry {
    match tables.prefix_owner(address) {
        Some(entry) => entry,
        None => nobody(F::world(tables.config())),
    }
}
