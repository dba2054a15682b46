//! The catalogue of maps. A map whose layout or meaning changes gets a new name.

use core::mem::size_of;

use crate::{
    Addr4, Addr6, CallSlot, CidrKey4, CidrKey6, CtEntry, CtKey4, CtKey6, FragEntry, FragKey4, FragKey6, IpEntry,
    MetricsEntry, PolicyEntry, PolicyKey, metrics,
};

/// Kinds of maps in use, with the kernel's `BPF_MAP_TYPE_` numbers.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Hash table.
    Hash = 1,
    /// Programs for tail calls.
    ProgArray = 3,
    /// One array per CPU.
    PerCpuArray = 6,
    /// Hash table that drops the least recently used entry when full.
    LruHash = 9,
    /// Longest-prefix match.
    LpmTrie = 11,
    /// Ring buffer.
    RingBuf = 27,
}

/// The kernel's `BPF_F_NO_PREALLOC`: entries are allocated as they come.
pub const NO_PREALLOC: u32 = 1;

macro_rules! maps {
    ($($(#[$meta:meta])* $name:ident, $text:literal, $kind:ident, $key:expr, $value:expr, $max:expr, $flags:expr;)*) => {
        /// A map of the object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum MapId { $($(#[$meta])* $name,)* }
        impl MapId {
            /// Every map.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// Name in the object and in bpffs (at most 15 characters).
            pub const fn name(self) -> &'static str { match self { $(Self::$name => $text,)* } }
            /// Kind.
            pub const fn kind(self) -> Kind { match self { $(Self::$name => Kind::$kind,)* } }
            /// Bytes of a key.
            pub const fn key_size(self) -> usize { match self { $(Self::$name => $key,)* } }
            /// Bytes of a value (of one CPU).
            pub const fn value_size(self) -> usize { match self { $(Self::$name => $value,)* } }
            /// Entries (ring buffer: bytes) unless the settings say otherwise.
            pub const fn max_entries(self) -> u32 { match self { $(Self::$name => $max,)* } }
            /// Creation flags.
            pub const fn flags(self) -> u32 { match self { $(Self::$name => $flags,)* } }
            /// From the name.
            pub fn from_name(name: &str) -> Option<Self> { Self::ALL.iter().copied().find(|map| map.name() == name) }
        }
    };
}

maps! {
    /// IPv4 address to owner.
    Ipcache4, "ipcache4", Hash, size_of::<Addr4>(), size_of::<IpEntry>(), 512_000, NO_PREALLOC;
    /// IPv6 address to owner.
    Ipcache6, "ipcache6", Hash, size_of::<Addr6>(), size_of::<IpEntry>(), 512_000, NO_PREALLOC;
    /// IPv4 prefix to owner.
    Cidr4, "cidr4", LpmTrie, size_of::<CidrKey4>(), size_of::<IpEntry>(), 65_536, NO_PREALLOC;
    /// IPv6 prefix to owner.
    Cidr6, "cidr6", LpmTrie, size_of::<CidrKey6>(), size_of::<IpEntry>(), 65_536, NO_PREALLOC;
    /// Policy of all local endpoints.
    Policy, "policy", LpmTrie, size_of::<PolicyKey>(), size_of::<PolicyEntry>(), 1_048_576, NO_PREALLOC;
    /// IPv4 flows.
    Ct4, "ct4", LruHash, size_of::<CtKey4>(), size_of::<CtEntry>(), 524_288, 0;
    /// IPv6 flows.
    Ct6, "ct6", LruHash, size_of::<CtKey6>(), size_of::<CtEntry>(), 524_288, 0;
    /// Ports of IPv4 fragments.
    Frag4, "frag4", LruHash, size_of::<FragKey4>(), size_of::<FragEntry>(), 8_192, 0;
    /// Ports of IPv6 fragments.
    Frag6, "frag6", LruHash, size_of::<FragKey6>(), size_of::<FragEntry>(), 8_192, 0;
    /// Counters.
    Metrics, "metrics", PerCpuArray, 4, size_of::<MetricsEntry>(), metrics::COUNT, 0;
    /// Events.
    Events, "events", RingBuf, 0, 0, 1_048_576, 0;
    /// Continuations.
    Calls, "calls", ProgArray, 4, 4, CallSlot::COUNT, 0;
}
