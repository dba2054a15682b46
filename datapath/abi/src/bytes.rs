//! Addresses and ports in network order.
//!
//! Inside they are machine words whose memory is the network's bytes: the compiler then copies and compares them as
//! words. (Byte arrays were measured: the datapath copied IPv6 addresses byte by byte and left the 512-byte stack.)

use core::cmp::Ordering;
use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! network {
    ($(#[$meta:meta])* $name:ident, $inner:ty, $size:literal) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $name($inner);

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                self.octets().cmp(&other.octets())
            }
        }

        impl From<[u8; $size]> for $name {
            fn from(octets: [u8; $size]) -> Self {
                Self::from_octets(octets)
            }
        }

        impl From<$name> for [u8; $size] {
            fn from(value: $name) -> Self {
                value.octets()
            }
        }
    };
}

network!(
    /// IPv4 address.
    Addr4, u32, 4
);
network!(
    /// IPv6 address.
    Addr6, [u32; 4], 16
);
network!(
    /// Ethernet address.
    Mac, [u16; 3], 6
);
network!(
    /// Port, ICMP identifier or other 16-bit header field.
    Be16, u16, 2
);

impl Addr4 {
    /// 0.0.0.0.
    pub const ZERO: Self = Self(0);

    /// From its bytes, network order.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    /// Its bytes, network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// The word whose memory is the address; for comparisons, not for arithmetic.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// From the word whose memory is the address.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }
}

impl Addr6 {
    /// `::`.
    pub const ZERO: Self = Self([0; 4]);

    /// From its bytes, network order.
    #[inline(always)]
    pub const fn from_octets(b: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ])
    }

    /// Its bytes, network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] =
            [self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes(), self.0[2].to_ne_bytes(), self.0[3].to_ne_bytes()];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// The words whose memory is the address; for comparisons, not for arithmetic.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// From the words whose memory is the address.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// Whether it is `::`.
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }

    /// An IPv4 address in the first four bytes, as tables and events hold it.
    #[inline(always)]
    pub const fn from_v4(address: Addr4) -> Self {
        Self([address.0, 0, 0, 0])
    }

    /// The IPv4 address in the first four bytes.
    #[inline(always)]
    pub const fn first4(self) -> Addr4 {
        Addr4(self.0[0])
    }
}

impl Mac {
    /// From its bytes.
    #[inline(always)]
    pub const fn from_octets(b: [u8; 6]) -> Self {
        Self([u16::from_ne_bytes([b[0], b[1]]), u16::from_ne_bytes([b[2], b[3]]), u16::from_ne_bytes([b[4], b[5]])])
    }

    /// Its bytes.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 6] {
        let [a, b, c] = [self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes(), self.0[2].to_ne_bytes()];
        [a[0], a[1], b[0], b[1], c[0], c[1]]
    }

    /// Its three 16-bit words, as numbers.
    #[inline(always)]
    pub const fn words(self) -> [u16; 3] {
        [u16::from_be(self.0[0]), u16::from_be(self.0[1]), u16::from_be(self.0[2])]
    }
}

impl Be16 {
    /// Zero: no port, any port.
    pub const ZERO: Self = Self(0);

    /// From a number.
    #[inline(always)]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be())
    }

    /// The number.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From its bytes, network order.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(octets))
    }

    /// Its bytes, network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }
}

impl fmt::Debug for Addr4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::net::Ipv4Addr::from(self.octets()).fmt(f)
    }
}

impl fmt::Debug for Addr6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::net::Ipv6Addr::from(self.octets()).fmt(f)
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.octets();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Be16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
