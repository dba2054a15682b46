//! Byte arrays in network order, with the alignment that lets a load or a compare be one instruction.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! network_bytes {
    ($(#[$meta:meta])* $name:ident, $size:literal, $align:literal) => {
        $(#[$meta])*
        #[repr(C, align($align))]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $name(pub [u8; $size]);
    };
}

network_bytes!(
    /// IPv4 address, network order.
    Addr4, 4, 4
);
network_bytes!(
    /// IPv6 address, network order.
    Addr6, 16, 4
);
network_bytes!(
    /// Ethernet address.
    Mac, 6, 2
);
network_bytes!(
    /// Port, ICMP identifier or other 16-bit header field, network order.
    Be16, 2, 2
);

impl Be16 {
    /// Zero: no port, any port.
    pub const ZERO: Self = Self([0, 0]);

    /// From a number in host order.
    #[inline(always)]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be_bytes())
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

impl Addr4 {
    /// The address as the number its bytes make in host memory; for comparisons, not for arithmetic.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        u32::from_ne_bytes(self.0)
    }
}

impl Addr6 {
    /// The address as four numbers as they lie in host memory; for comparisons, not for arithmetic.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        let b = self.0;
        [
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ]
    }
}
