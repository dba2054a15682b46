//! Ethernet II.

use datapath_abi::{Be16, Mac};

/// Bytes of the header; VLAN tags are out of band in an skb.
pub const LEN: usize = 14;
/// EtherType of IPv4.
pub const IPV4: Be16 = Be16::new(0x0800);
/// EtherType of IPv6.
pub const IPV6: Be16 = Be16::new(0x86dd);
/// EtherType of ARP.
pub const ARP: Be16 = Be16::new(0x0806);

super::header! {
    /// Ethernet header.
    pub struct Ethernet (14, align 2) {
        /// Destination.
        pub destination: Mac,
        /// Source.
        pub source: Mac,
        /// EtherType.
        pub ethertype: Be16,
    }
}

super::header! {
    /// The two addresses alone.
    pub struct Addresses (12, align 2) {
        /// Destination.
        pub destination: Mac,
        /// Source.
        pub source: Mac,
    }
}
