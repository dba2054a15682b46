//! Ports of fragmented datagrams: maps `frag4` and `frag6`. The first fragment writes, the others read.

use crate::{Addr4, Addr6, Be16, shared};

shared! {
    /// Key of `frag4` (RFC 791: source, destination, protocol, identification).
    pub struct FragKey4 (16) {
        /// Source.
        pub source: Addr4,
        /// Destination.
        pub destination: Addr4,
        /// Identification, network order, in the last two bytes.
        pub id: [u8; 4],
        /// IANA number.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 3],
    }
}

shared! {
    /// Key of `frag6` (RFC 8200: source, destination, identification).
    pub struct FragKey6 (40) {
        /// Source.
        pub source: Addr6,
        /// Destination.
        pub destination: Addr6,
        /// Identification, network order.
        pub id: [u8; 4],
        /// IANA number of the payload.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 3],
    }
}

shared! {
    /// Value of `frag4` and `frag6`.
    pub struct FragEntry (16) {
        /// When the ports are forgotten, in ticks of `jiffies64`.
        pub expires: u64,
        /// Source port, or identifier as in conntrack keys.
        pub sport: Be16,
        /// Destination port.
        pub dport: Be16,
        /// ICMP type of the first fragment.
        pub icmp_type: u8,
        /// Zero.
        pub pad: [u8; 3],
    }
}
