//! ARP for IPv4 over Ethernet (RFC 826).

use datapath_abi::{Be16, Mac};

/// `operation`: request.
pub const REQUEST: Be16 = Be16::new(1);
/// `operation`: reply.
pub const REPLY: Be16 = Be16::new(2);
/// `hardware`: Ethernet.
pub const ETHERNET: Be16 = Be16::new(1);

super::header! {
    /// ARP packet. Addresses are not aligned here, so they are plain bytes.
    pub struct Arp (28, align 2) {
        /// Hardware type.
        pub hardware: Be16,
        /// Protocol type: an EtherType.
        pub protocol: Be16,
        /// Length of a hardware address.
        pub hardware_len: u8,
        /// Length of a protocol address.
        pub protocol_len: u8,
        /// Request or reply.
        pub operation: Be16,
        /// Sender's Ethernet address.
        pub sender_mac: Mac,
        /// Sender's IPv4 address.
        pub sender: [u8; 4],
        /// Target's Ethernet address.
        pub target_mac: Mac,
        /// Target's IPv4 address.
        pub target: [u8; 4],
    }
}
