//! The tables of `datapath-core` over the object's maps.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use aya_ebpf::helpers::generated as helpers;
use datapath_abi::{
    Addr4, Addr6, CidrKey4, CidrKey6, Config, CtEntry, CtKey4, CtKey6, Direction, Event, EventKind, FragEntry,
    FragKey4, FragKey6, IpEntry, IpFlags, MetricsEntry, PolicyEntry, PolicyKey, metrics_index,
};
use datapath_core::tables::{CtTable, FragTable, IpTable, Node, NodeTable, PolicyTable, TableFull};
use datapath_core::{Facts, Family, TunnelKey, V4, V6};

use crate::maps;

/// Settings; the loader writes them before the kernel sees the object.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata")]
static CONFIG: Config = Config { magic: 0, flags: 0, ..Config::with_defaults(0) };

/// The object's maps and settings.
pub struct Maps {
    config: &'static Config,
}

impl Maps {
    #[inline(always)]
    pub fn new() -> Self {
        // Opaque to the compiler: what it sees in the source is not what will be there.
        Self { config: core::hint::black_box(&CONFIG) }
    }
}

/// A value in its map's own memory. It stays valid until the program ends. Another CPU may change a flow at the same
/// time; each field is one load or store, and any mix of two packets' fields is a state that one of them could have left.
/// Other values are replaced whole by user space, never changed in place.
#[derive(Clone, Copy)]
pub struct Value<V>(NonNull<V>);

impl<V> Deref for Value<V> {
    type Target = V;

    #[inline(always)]
    fn deref(&self) -> &V {
        // SAFETY: see the type.
        unsafe { self.0.as_ref() }
    }
}

impl<V> DerefMut for Value<V> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut V {
        // SAFETY: see the type.
        unsafe { self.0.as_mut() }
    }
}

macro_rules! family {
    ($family:ty, $addr:ty, $cidr:ident, $bits:literal, $ct_key:ty, $frag_key:ty, $ipcache:ident, $lpm:ident, $ct:ident, $frag:ident) => {
        impl IpTable<$family> for Maps {
            type Entry<'a> = Value<IpEntry>;

            #[inline(always)]
            fn owner(&self, address: &$addr) -> Option<Value<IpEntry>> {
                maps::$ipcache.get(address).map(Value)
            }

            #[inline(always)]
            fn prefix_owner(&self, address: &$addr) -> Option<Value<IpEntry>> {
                maps::$lpm.get(&$cidr { prefix_len: $bits, addr: *address }).map(Value)
            }
        }

        impl CtTable<$family> for Maps {
            type Flow<'a> = Value<CtEntry>;

            #[inline(always)]
            fn flow(&self, key: &$ct_key) -> Option<Value<CtEntry>> {
                maps::$ct.get(key).map(Value)
            }

            #[inline(always)]
            fn remember_flow(&self, key: &$ct_key, entry: &CtEntry) -> Result<(), TableFull> {
                if maps::$ct.set(key, entry) { Ok(()) } else { Err(TableFull) }
            }
        }

        impl FragTable<$family> for Maps {
            #[inline(always)]
            fn fragment(&self, key: &$frag_key) -> Option<FragEntry> {
                let entry = maps::$frag.get::<$frag_key, FragEntry>(key)?;
                // SAFETY: as above.
                Some(unsafe { entry.read() })
            }

            #[inline(always)]
            fn remember_fragment(&self, key: &$frag_key, entry: &FragEntry) {
                // Refused: later fragments find nothing and are dropped under their own reason.
                let _ = maps::$frag.set(key, entry);
            }
        }
    };
}

family!(V4, Addr4, CidrKey4, 32, CtKey4, FragKey4, IPCACHE4, CIDR4, CT4, FRAG4);
family!(V6, Addr6, CidrKey6, 128, CtKey6, FragKey6, IPCACHE6, CIDR6, CT6, FRAG6);

impl NodeTable for Maps {
    #[inline(always)]
    fn is_node(&self, key: &TunnelKey) -> bool {
        let owner = if key.underlay6 {
            IpTable::<V6>::owner(self, &key.remote)
        } else {
            IpTable::<V4>::owner(self, &key.remote.first4())
        };
        owner.is_some_and(|entry| entry.flags.has(IpFlags::NODE))
    }
}

impl PolicyTable for Maps {
    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        let entry = maps::POLICY.get::<PolicyKey, PolicyEntry>(key)?;
        // SAFETY: a value of this map; user space replaces values, it does not change them in place.
        Some(unsafe { entry.read() })
    }
}

impl Node for Maps {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { helpers::bpf_jiffies64() }
    }

    #[inline(always)]
    fn count(&self, direction: Direction, reason: u8, bytes: u32) {
        if let Some(mut counter) = maps::METRICS.get::<u32, MetricsEntry>(&metrics_index(direction, reason)) {
            // SAFETY: this CPU's own counter.
            let counter = unsafe { counter.as_mut() };
            counter.packets += 1;
            counter.bytes += u64::from(bytes);
        }
    }

    #[inline(always)]
    fn emit<F: Family>(&self, facts: &Facts<F>, kind: EventKind, code: u8, verdict: i32) -> bool {
        write_event(facts, kind, code, verdict)
    }
}

/// Inlined, though a subprogram would be smaller: verifiers before Linux 6.5 take every number of a program with subprograms
/// for one that matters, and then follow so many states that the larger programs reach their limit.
#[inline(always)]
fn write_event<F: Family>(facts: &Facts<F>, kind: EventKind, code: u8, verdict: i32) -> bool {
    // SAFETY: the map is a ring buffer.
    let record = unsafe { helpers::bpf_ringbuf_reserve(maps::EVENTS.raw(), size_of::<Event>() as u64, 0) };
    if record.is_null() {
        return false;
    }
    // SAFETY: the record has room for one event, 8-byte aligned, and any bytes are an event.
    let event = unsafe { &mut *record.cast::<Event>() };
    facts.write_event(event, kind, code, verdict);
    // SAFETY: the record was reserved above and is submitted once.
    unsafe { helpers::bpf_ringbuf_submit(record, 0) };
    true
}
