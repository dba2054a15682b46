//! The tables of `datapath-core` over plain-memory maps, and the packet over a byte buffer.
//!
//! Invariant: every operation does to the maps what the object's helpers do: the same look-ups touch the same LRU
//! entries, changes of a flow land in its slot, refused updates are refused for the same reasons.

use std::cell::RefCell;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};

use datapath_abi::{
    Addr4, Addr6, CidrKey4, CidrKey6, Config, CtEntry, CtKey4, CtKey6, Direction, Event, EventKind, FragEntry,
    FragKey4, FragKey6, IpEntry, IpFlags, MapId, MetricsEntry, PolicyEntry, PolicyKey, metrics_index,
};
use datapath_core::tables::{CtTable, FragTable, IpTable, Node, NodeTable, PolicyTable, TableFull};
use datapath_core::{Facts, Family, Packet, TunnelKey, V4, V6};
use datapath_maps::{MemoryMap, MemoryMaps, UpdateMode};
use simulator_vm::{Env, Faults, Skb};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `BPF_F_TUNINFO_IPV6`.
const UNDERLAY6: u64 = 1;
/// `BPF_F_ZERO_CSUM_TX`.
const ZERO_CHECKSUM: u64 = 2;

/// One node's maps during one run.
pub(super) struct Tables<'a> {
    /// The maps, in catalogue order.
    pub(super) maps: &'a RefCell<MemoryMaps>,
    /// Settings.
    pub(super) config: &'a Config,
    /// Clock, CPU and faults.
    pub(super) env: &'a Env,
    /// `jiffies64`.
    pub(super) now: u64,
}

impl Tables<'_> {
    fn with<T>(&self, map: MapId, work: impl FnOnce(&mut MemoryMap) -> Option<T>) -> Option<T> {
        let mut maps = self.maps.borrow_mut();
        work(maps.get_mut(map as usize)?)
    }

    /// Slot and copy of the entry that a program's look-up finds.
    fn get<V: FromBytes>(&self, map: MapId, key: &[u8]) -> Option<(u32, V)> {
        self.with(map, |map| {
            let slot = map.find(key)?;
            let range = map.value_range(slot, self.env.cpu);
            Some((slot, V::read_from_bytes(map.values().get(range)?).ok()?))
        })
    }

    fn set(&self, map: MapId, key: &[u8], value: &[u8]) -> Result<(), TableFull> {
        if self.env.faults.map_update {
            return Err(TableFull);
        }
        let cpu = self.env.cpu;
        self.with(map, |map| map.insert(key, value, UpdateMode::Any, cpu).ok()).map(|_| ()).ok_or(TableFull)
    }
}

/// A copy of an entry that programs only read.
#[derive(Clone, Copy)]
pub(super) struct Copied<V>(V);

impl<V> Deref for Copied<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.0
    }
}

/// A flow: what is changed here is in the map as soon as this is dropped.
pub(super) struct Flow<'a> {
    maps: &'a RefCell<MemoryMaps>,
    map: MapId,
    slot: u32,
    entry: CtEntry,
    changed: bool,
}

impl Deref for Flow<'_> {
    type Target = CtEntry;

    fn deref(&self) -> &CtEntry {
        &self.entry
    }
}

impl DerefMut for Flow<'_> {
    fn deref_mut(&mut self) -> &mut CtEntry {
        self.changed = true;
        &mut self.entry
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        let mut maps = self.maps.borrow_mut();
        if let (true, Some(map)) = (self.changed, maps.get_mut(self.map as usize)) {
            let range = map.value_range(self.slot, 0);
            if let Some(bytes) = map.values_mut().get_mut(range) {
                bytes.copy_from_slice(self.entry.as_bytes());
            }
        }
    }
}

macro_rules! family {
    ($family:ty, $addr:ty, $cidr:ident, $bits:literal, $ct_key:ty, $frag_key:ty, $ipcache:ident, $lpm:ident, $ct:ident, $frag:ident) => {
        impl IpTable<$family> for Tables<'_> {
            type Entry<'b>
                = Copied<IpEntry>
            where
                Self: 'b;

            fn owner(&self, address: &$addr) -> Option<Copied<IpEntry>> {
                self.get(MapId::$ipcache, address.as_bytes()).map(|(_, entry)| Copied(entry))
            }

            fn prefix_owner(&self, address: &$addr) -> Option<Copied<IpEntry>> {
                let key = $cidr { prefix_len: $bits, addr: *address };
                self.get(MapId::$lpm, key.as_bytes()).map(|(_, entry)| Copied(entry))
            }
        }

        impl CtTable<$family> for Tables<'_> {
            type Flow<'b>
                = Flow<'b>
            where
                Self: 'b;

            fn flow(&self, key: &$ct_key) -> Option<Flow<'_>> {
                let (slot, entry) = self.get(MapId::$ct, key.as_bytes())?;
                Some(Flow { maps: self.maps, map: MapId::$ct, slot, entry, changed: false })
            }

            fn remember_flow(&self, key: &$ct_key, entry: &CtEntry) -> Result<(), TableFull> {
                self.set(MapId::$ct, key.as_bytes(), entry.as_bytes())
            }
        }

        impl FragTable<$family> for Tables<'_> {
            fn fragment(&self, key: &$frag_key) -> Option<FragEntry> {
                self.get(MapId::$frag, key.as_bytes()).map(|(_, entry)| entry)
            }

            fn remember_fragment(&self, key: &$frag_key, entry: &FragEntry) {
                // As in the object: later fragments find nothing and are dropped under their own reason.
                let _ = self.set(MapId::$frag, key.as_bytes(), entry.as_bytes());
            }
        }
    };
}

family!(V4, Addr4, CidrKey4, 32, CtKey4, FragKey4, Ipcache4, Cidr4, Ct4, Frag4);
family!(V6, Addr6, CidrKey6, 128, CtKey6, FragKey6, Ipcache6, Cidr6, Ct6, Frag6);

impl NodeTable for Tables<'_> {
    fn is_node(&self, key: &TunnelKey) -> bool {
        let owner = if key.underlay6 {
            IpTable::<V6>::owner(self, &key.remote)
        } else {
            IpTable::<V4>::owner(self, &key.remote.first4())
        };
        owner.is_some_and(|entry| entry.flags.has(IpFlags::NODE))
    }
}

impl PolicyTable for Tables<'_> {
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.get(MapId::Policy, key.as_bytes()).map(|(_, entry)| entry)
    }
}

impl Node for Tables<'_> {
    fn config(&self) -> &Config {
        self.config
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn count(&self, direction: Direction, reason: u8, bytes: u32) {
        let index = metrics_index(direction, reason);
        self.with(MapId::Metrics, |map| {
            let slot = map.find(&index.to_ne_bytes())?;
            let range = map.value_range(slot, self.env.cpu);
            let counter = MetricsEntry::mut_from_bytes(map.values_mut().get_mut(range)?).ok()?;
            counter.packets += 1;
            counter.bytes += u64::from(bytes);
            Some(())
        });
    }

    fn emit<F: Family>(&self, facts: &Facts<F>, kind: EventKind, code: u8, verdict: i32) -> bool {
        if self.env.faults.ring_full {
            return false;
        }
        let mut event = Event::default();
        facts.write_event(&mut event, kind, code, verdict);
        let bytes = event.as_bytes();
        let written = self.with(MapId::Events, |map| {
            let record = map.ring_reserve(u32::try_from(bytes.len()).ok()?)?;
            map.values_mut().get_mut(record.offset..record.offset + bytes.len())?.copy_from_slice(bytes);
            map.ring_submit(record.offset);
            Some(())
        });
        written.is_some()
    }
}

/// The packet: readable up to what was pulled, like an skb's linear part.
pub(super) struct Frame<'a> {
    pub(super) skb: &'a mut Skb,
    /// Bytes that loads and stores may touch.
    pub(super) readable: usize,
    /// Helpers that fail.
    pub(super) faults: &'a Faults,
    /// Tunnel metadata that was set.
    pub(super) tunnel_key: Option<simulator_vm::TunnelKey>,
}

impl Packet for Frame<'_> {
    fn len(&self) -> u32 {
        u32::try_from(self.skb.data.len()).unwrap_or(u32::MAX)
    }

    fn pull(&mut self, len: u32) {
        if !self.faults.packet_memory {
            let wanted = usize::try_from(len).unwrap_or(usize::MAX).min(self.skb.data.len());
            self.readable = self.readable.max(wanted);
        }
    }

    fn load<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        let end = offset.checked_add(size_of::<T>()).filter(|end| *end <= self.readable)?;
        T::read_from_bytes(self.skb.data.get(offset..end)?).ok()
    }

    fn store<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()> {
        let end = offset.checked_add(size_of::<T>()).filter(|end| *end <= self.readable)?;
        self.skb.data.get_mut(offset..end)?.copy_from_slice(value.as_bytes());
        Some(())
    }

    fn ifindex(&self) -> u32 {
        self.skb.ifindex
    }

    fn mark(&self) -> u32 {
        self.skb.mark
    }

    fn tunnel_key(&self) -> Option<TunnelKey> {
        if self.faults.get_tunnel_key {
            return None;
        }
        let key = self.skb.tunnel_key?;
        Some(match key.remote {
            IpAddr::V4(address) => {
                TunnelKey { id: key.id, remote: Addr6::from_v4(Addr4::from_octets(address.octets())), underlay6: false }
            }
            IpAddr::V6(address) => {
                TunnelKey { id: key.id, remote: Addr6::from_octets(address.octets()), underlay6: true }
            }
        })
    }

    fn set_tunnel_key(&mut self, identity: u32, to: &IpEntry) -> Option<()> {
        if self.faults.set_tunnel_key {
            return None;
        }
        let underlay6 = to.flags.has(IpFlags::UNDERLAY6);
        self.tunnel_key = Some(simulator_vm::TunnelKey {
            id: identity,
            remote: if underlay6 { to.node.octets().into() } else { to.node.first4().octets().into() },
            ttl: 64,
            flags: if underlay6 { UNDERLAY6 } else { ZERO_CHECKSUM },
            ..simulator_vm::TunnelKey::default()
        });
        Some(())
    }
}
