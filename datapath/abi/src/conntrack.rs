//! Connection tracking: maps `ct4` and `ct6`, one entry per flow and node.
//!
//! The key holds the two ends in a fixed order (the numerically smaller end, compared as the bytes lie in memory, is
//! `lo`), so one look-up finds a flow from either direction; the entry says which end opened it. Both endpoints of a
//! flow between two pods of one node share the entry: it remembers separately whether the client's egress and the
//! server's ingress policy accepted the flow, and a packet counts as a reply only where its own side accepted.

use crate::{Addr4, Addr6, Be16, flags, shared};

shared! {
    /// Key of `ct4`.
    pub struct CtKey4 (16) {
        /// Smaller end: address.
        pub lo: Addr4,
        /// Larger end: address.
        pub hi: Addr4,
        /// Smaller end: port. ICMP echo: identifier at the end that asks, 0 at the end that answers.
        pub lo_port: Be16,
        /// Larger end: port.
        pub hi_port: Be16,
        /// IANA number.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 3],
    }
}

shared! {
    /// Key of `ct6`.
    pub struct CtKey6 (40) {
        /// Smaller end: address.
        pub lo: Addr6,
        /// Larger end: address.
        pub hi: Addr6,
        /// Smaller end: port. ICMP echo: identifier at the end that asks, 0 at the end that answers.
        pub lo_port: Be16,
        /// Larger end: port.
        pub hi_port: Be16,
        /// IANA number.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 3],
    }
}

shared! {
    /// What one side's policy said about the flow, and under which circumstances: under others it is asked again.
    pub struct CtSide (12) {
        /// `IpEntry::policy_revision` of the endpoint at that time.
        pub revision: u32,
        /// Identity of the peer at that time.
        pub identity: u32,
        /// Rule that allowed it; 0 = none.
        pub rule: u32,
    }
}

shared! {
    /// Value of `ct4` and `ct6`. Of 64 bytes: with its key and the kernel's 48 bytes, an entry of `ct4` is then two cache
    /// lines, never three.
    pub struct CtEntry (64) {
        /// When the flow is forgotten, in ticks of `jiffies64`.
        pub expires: u64,
        /// Low 32 bits of the tick of the last trace event for packets of the client.
        pub client_report: u32,
        /// The same for packets of the server.
        pub server_report: u32,
        /// The client's egress policy; valid with [`CtFlags::EGRESS`].
        pub egress: CtSide,
        /// The server's ingress policy; valid with [`CtFlags::INGRESS`].
        pub ingress: CtSide,
        /// [`CtFlags`].
        pub flags: CtFlags,
        /// TCP flags the client has sent.
        pub client_tcp: u8,
        /// TCP flags the server has sent.
        pub server_tcp: u8,
        /// Zero.
        pub pad: [u8; 20],
    }
}

flags! {
    /// Bits of [`CtEntry::flags`].
    pub struct CtFlags(u16) {
        /// The client is the key's `lo` end.
        CLIENT_LO = 1;
        /// The client's egress policy accepted the flow on this node.
        EGRESS = 2;
        /// The server's ingress policy accepted the flow on this node.
        INGRESS = 4;
        /// The client has closed (FIN or RST).
        CLIENT_CLOSING = 8;
        /// The server has closed (FIN or RST).
        SERVER_CLOSING = 16;
        /// A TCP segment without SYN was seen.
        SEEN_NON_SYN = 32;
    }
}
