//! IPv6 (RFC 8200).

use datapath_abi::{Addr6, Be16};

/// Bytes of the fixed header.
pub const LEN: usize = 40;
/// Offset of `hop_limit`.
pub const HOP_LIMIT: usize = 7;
/// Next header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Next header: routing.
pub const ROUTING: u8 = 43;
/// Next header: fragment.
pub const FRAGMENT: u8 = 44;
/// Next header: authentication.
pub const AUTHENTICATION: u8 = 51;
/// Next header: destination options.
pub const DESTINATION_OPTIONS: u8 = 60;

super::header! {
    /// IPv6 fixed header.
    pub struct Ipv6 (40, align 4) {
        /// Version, traffic class, flow label.
        pub version_class_flow: [u8; 4],
        /// Bytes behind this header.
        pub payload_len: Be16,
        /// Type of what follows.
        pub next_header: u8,
        /// Hops left.
        pub hop_limit: u8,
        /// Source.
        pub source: Addr6,
        /// Destination.
        pub destination: Addr6,
    }
}

/// Offset of the source.
pub const SOURCE: usize = 8;
/// Offset of the destination.
pub const DESTINATION: usize = 24;

super::header! {
    /// The fixed header before its addresses.
    pub struct Ipv6Start (8, align 4) {
        /// Version, traffic class, flow label.
        pub version_class_flow: [u8; 4],
        /// Bytes behind the fixed header.
        pub payload_len: Be16,
        /// Type of what follows.
        pub next_header: u8,
        /// Hops left.
        pub hop_limit: u8,
    }
}

super::header! {
    /// First bytes of an extension header.
    pub struct Extension (8, align 2) {
        /// Type of what follows.
        pub next_header: u8,
        /// Length in 8-byte words, the first not counted (fragment header: reserved).
        pub len: u8,
        /// Fragment header: offset and flags.
        pub fragment: Be16,
        /// Fragment header: identification.
        pub id: [u8; 4],
    }
}

/// Whether the address is link-local unicast (fe80::/10).
#[inline(always)]
pub const fn is_link_local(address: &Addr6) -> bool {
    u32::from_be(address.words()[0]) >> 22 == 0xfe80 >> 6
}

/// Whether the address is multicast (ff00::/8).
#[inline(always)]
pub const fn is_multicast(address: &Addr6) -> bool {
    u32::from_be(address.words()[0]) >> 24 == 0xff
}
