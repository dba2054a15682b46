//! Geneve (RFC 8926): what must be looked at before the kernel's device unwraps a packet, because its metadata mode does
//! not. An endpoint must not forward a control message, and must not take a packet with an option that it is required to
//! understand; weir understands none. Other options are passed over by the device.

use datapath_abi::Be16;

/// `flags`: a control message ("O").
pub const CONTROL: u8 = 0x80;
/// `flags`: options that must be understood ("C").
pub const CRITICAL: u8 = 0x40;

super::header! {
    /// UDP header and the first bytes of Geneve's.
    pub struct UdpGeneve (12, align 4) {
        /// Source port.
        pub source: Be16,
        /// Destination port.
        pub destination: Be16,
        /// UDP: length.
        pub len: Be16,
        /// UDP: checksum.
        pub checksum: Be16,
        /// Version in the upper two bits, length of the options in words of four bytes.
        pub version_len: u8,
        /// [`CONTROL`], [`CRITICAL`], reserved.
        pub flags: u8,
        /// EtherType of what is inside.
        pub protocol: Be16,
    }
}
