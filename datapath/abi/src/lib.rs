//! Everything that crosses the kernel boundary, declared once: keys and values of maps, settings, events, numbers.
//!
//! Invariant: every type here is `repr(C)`, has no hidden padding and the same layout in the eBPF object, the agent and
//! the simulator. `layout.golden` records name, offset and size of every field; a test compares it.
//!
//! Addresses and ports are byte arrays in network order, wrapped in types that carry the alignment the datapath needs
//! for single-instruction loads. Other numbers are in host order (the object is built for little-endian machines).
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod bytes;
pub mod calls;
pub mod config;
pub mod conntrack;
pub mod drop_reason;
pub mod events;
pub mod fragment;
pub mod ids;
pub mod ipcache;
pub mod maps;
pub mod metrics;
pub mod policy;

pub use bytes::{Addr4, Addr6, Be16, Mac};
pub use calls::{CallSlot, Hook};
pub use config::Config;
pub use conntrack::{CtEntry, CtFlags, CtKey4, CtKey6, CtSide};
pub use drop_reason::DropReason;
pub use events::{Event, EventKind, MatchType, TracePoint};
pub use fragment::{FragEntry, FragKey4, FragKey6};
pub use ids::{EndpointId, Identity};
pub use ipcache::{CidrKey4, CidrKey6, IpEntry, IpFlags};
pub use maps::MapId;
pub use metrics::{Direction, MetricsEntry, metrics_index};
pub use policy::{PolicyEntry, PolicyFlags, PolicyKey};

/// Declares a type that is shared across the kernel boundary, with its size checked at compile time.
macro_rules! shared {
    ($(#[$meta:meta])* pub struct $name:ident ($size:literal) { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        impl $name {
            /// Name, offset and size in bytes of every field, in order: what `layout.golden` records.
            pub const FIELDS: &'static [(&'static str, usize, usize)] = &[
                $((stringify!($field), core::mem::offset_of!($name, $field), $crate::size_of_field(|value: &$name| &value.$field)),)*
            ];
        }
    };
}
pub(crate) use shared;

/// Declares the bits of a field.
macro_rules! flags {
    ($(#[$meta:meta])* pub struct $name:ident($type:ty) { $($(#[$bit_meta:meta])* $bit:ident = $value:literal;)* }) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
        pub struct $name(pub $type);

        impl $name {
            $($(#[$bit_meta])* pub const $bit: $type = $value;)*

            /// Whether all bits of `mask` are set.
            #[inline(always)]
            pub const fn has(self, mask: $type) -> bool {
                self.0 & mask == mask
            }
        }
    };
}
pub(crate) use flags;

/// Size in bytes of what `_get` points at.
#[doc(hidden)]
pub const fn size_of_field<S, F>(_get: fn(&S) -> &F) -> usize {
    core::mem::size_of::<F>()
}
