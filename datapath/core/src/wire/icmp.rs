//! ICMP (RFC 792), ICMPv6 (RFC 4443), neighbour discovery (RFC 4861).

use datapath_abi::{Be16, Mac};

/// Bytes of the header that every message has.
pub const LEN: usize = 8;

/// ICMP: echo reply.
pub const ECHO_REPLY: u8 = 0;
/// ICMP: destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// ICMP unreachable code: fragmentation needed.
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// ICMP: echo request.
pub const ECHO: u8 = 8;
/// ICMP: time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// ICMP: parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;

/// ICMPv6: packet too big.
pub const PACKET_TOO_BIG6: u8 = 2;
/// ICMPv6: last of the error messages (1 to 4 are in use).
pub const LAST_ERROR6: u8 = 4;
/// ICMPv6: echo request.
pub const ECHO6: u8 = 128;
/// ICMPv6: echo reply.
pub const ECHO_REPLY6: u8 = 129;
/// ICMPv6: neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// ICMPv6: neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

super::header! {
    /// First bytes of an ICMP or ICMPv6 message.
    pub struct Icmp (8, align 2) {
        /// Type.
        pub kind: u8,
        /// Code.
        pub code: u8,
        /// Checksum.
        pub checksum: Be16,
        /// Echo: identifier.
        pub id: Be16,
        /// Echo: sequence number.
        pub sequence: Be16,
    }
}

super::header! {
    /// Neighbour solicitation or advertisement without options.
    pub struct Neighbour (24, align 2) {
        /// Type.
        pub kind: u8,
        /// Code.
        pub code: u8,
        /// Checksum.
        pub checksum: Be16,
        /// Advertisement: flags in the first byte.
        pub flags: [u8; 4],
        /// Target, not aligned to a word.
        pub target: [u8; 16],
    }
}

super::header! {
    /// Link-layer address option.
    pub struct LinkLayerOption (8, align 2) {
        /// 1 source, 2 target.
        pub kind: u8,
        /// Length in 8-byte words.
        pub len: u8,
        /// Address.
        pub mac: Mac,
    }
}

/// Advertisement flags: router, solicited, override.
pub const ADVERTISE: [u8; 4] = [0xe0, 0, 0, 0];
