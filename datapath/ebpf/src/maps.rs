//! The maps, declared from the catalogue of `datapath-abi`, and the few helpers that work on them.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr::NonNull;

use aya_ebpf::bindings::bpf_map_def;
use aya_ebpf::helpers::generated as helpers;
use datapath_abi::MapId;

/// One map. The kernel replaces its address by the map itself when it loads a program.
#[repr(transparent)]
pub struct Map(UnsafeCell<bpf_map_def>);

// SAFETY: the definition is never read or written by a program; the kernel's maps do their own locking.
unsafe impl Sync for Map {}

impl Map {
    const fn of(id: MapId) -> Self {
        Self(UnsafeCell::new(bpf_map_def {
            type_: id.kind() as u32,
            key_size: id.key_size() as u32,
            value_size: id.value_size() as u32,
            max_entries: id.max_entries(),
            map_flags: id.flags(),
            id: 0,
            pinning: 0,
        }))
    }

    /// The map as helpers take it.
    #[inline(always)]
    pub fn raw(&self) -> *mut c_void {
        self.0.get().cast()
    }

    /// The value of `key`, in the map's own memory.
    #[inline(always)]
    pub fn get<K, V>(&self, key: &K) -> Option<NonNull<V>> {
        // SAFETY: key and value types are those of the catalogue; the kernel checks their sizes against the map's.
        let value = unsafe { helpers::bpf_map_lookup_elem(self.raw(), core::ptr::from_ref(key).cast()) };
        NonNull::new(value.cast())
    }

    /// Adds or replaces; false when the map refuses.
    #[inline(always)]
    pub fn set<K, V>(&self, key: &K, value: &V) -> bool {
        // SAFETY: as for `get`.
        let code = unsafe {
            helpers::bpf_map_update_elem(
                self.raw(),
                core::ptr::from_ref(key).cast(),
                core::ptr::from_ref(value).cast(),
                0,
            )
        };
        code == 0
    }
}

macro_rules! declare {
    ($($name:ident, $symbol:literal, $id:ident;)*) => {
        $(
            #[unsafe(link_section = "maps")]
            #[unsafe(export_name = $symbol)]
            pub static $name: Map = Map::of(MapId::$id);
        )*
    };
}

declare! {
    IPCACHE4, "ipcache4", Ipcache4;
    IPCACHE6, "ipcache6", Ipcache6;
    CIDR4, "cidr4", Cidr4;
    CIDR6, "cidr6", Cidr6;
    POLICY, "policy", Policy;
    CT4, "ct4", Ct4;
    CT6, "ct6", Ct6;
    FRAG4, "frag4", Frag4;
    FRAG6, "frag6", Frag6;
    METRICS, "metrics", Metrics;
    EVENTS, "events", Events;
    CALLS, "calls", Calls;
}
