//! Whose address is it?

use core::ops::Deref;

use datapath_abi::{Identity, IpEntry};

use crate::family::Family;
use crate::tables::{IpTable, Node};

/// The owner of an address: an entry of the tables, or the world.
#[derive(Clone, Copy, Debug)]
pub struct Owner<E> {
    entry: Option<E>,
    world: Identity,
}

impl<E: Deref<Target = IpEntry>> Owner<E> {
    /// Its entry; the world has none.
    #[inline(always)]
    pub fn entry(&self) -> Option<&IpEntry> {
        self.entry.as_deref()
    }

    /// Its identity.
    #[inline(always)]
    pub fn identity(&self) -> Identity {
        match &self.entry {
            Some(entry) => entry.identity,
            None => self.world,
        }
    }

    /// Whether any bit of `mask` is set in its flags.
    #[inline(always)]
    pub fn has_any(&self, mask: u16) -> bool {
        match &self.entry {
            Some(entry) => entry.flags.0 & mask != 0,
            None => false,
        }
    }
}

/// Owner of an address: exact, else longest prefix, else the world.
#[inline(always)]
pub fn resolve<'a, F: Family, T: IpTable<F> + Node>(tables: &'a T, address: &F::Addr) -> Owner<T::Entry<'a>> {
    let entry = match tables.owner(address) {
        Some(entry) => Some(entry),
        None => tables.prefix_owner(address),
    };
    Owner { entry, world: F::world(tables.config()) }
}
