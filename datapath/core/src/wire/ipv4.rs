//! IPv4 (RFC 791).

use datapath_abi::{Addr4, Be16};

/// Bytes of the header without options.
pub const LEN: usize = 20;
/// Offset of `ttl`, with `protocol` behind it.
pub const TTL: usize = 8;
/// `fragment`: more fragments follow, as the bytes lie in memory.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// `fragment`: offset in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

super::header! {
    /// IPv4 header without options.
    pub struct Ipv4 (20, align 4) {
        /// Version in the high half, header length in words in the low half.
        pub version_ihl: u8,
        /// Type of service.
        pub tos: u8,
        /// Length of header and payload.
        pub total_len: Be16,
        /// Identification.
        pub id: Be16,
        /// Flags and fragment offset.
        pub fragment: Be16,
        /// Hops left.
        pub ttl: u8,
        /// IANA number of the payload.
        pub protocol: u8,
        /// Header checksum.
        pub checksum: Be16,
        /// Source.
        pub source: Addr4,
        /// Destination.
        pub destination: Addr4,
    }
}
