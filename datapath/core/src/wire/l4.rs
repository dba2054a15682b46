//! TCP (RFC 9293), UDP (RFC 768), SCTP (RFC 9260): what a filter needs of them.

use datapath_abi::Be16;

/// IANA number of ICMP.
pub const ICMP: u8 = 1;
/// IANA number of TCP.
pub const TCP: u8 = 6;
/// IANA number of UDP.
pub const UDP: u8 = 17;
/// IANA number of ICMPv6.
pub const ICMP6: u8 = 58;
/// IANA number of SCTP.
pub const SCTP: u8 = 132;

/// Offset of the flags in a TCP header.
pub const TCP_FLAGS: usize = 13;
/// TCP flag.
pub const FIN: u8 = 1;
/// TCP flag.
pub const SYN: u8 = 2;
/// TCP flag.
pub const RST: u8 = 4;
/// TCP flag.
pub const ACK: u8 = 16;

/// Bytes of a TCP header without options.
pub const TCP_LEN: u32 = 20;
/// Bytes of a UDP header.
pub const UDP_LEN: u32 = 8;
/// Bytes of an SCTP common header.
pub const SCTP_LEN: u32 = 12;

super::header! {
    /// The ports, first in TCP, UDP and SCTP alike.
    pub struct Ports (4, align 4) {
        /// Source.
        pub source: Be16,
        /// Destination.
        pub destination: Be16,
    }
}
