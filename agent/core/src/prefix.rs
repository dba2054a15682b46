//! Address prefixes (CIDR), in canonical form: the bits after the prefix are zero.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A prefix of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// Text that is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a CIDR, as 10.9.8.0/24 or 2001:db8::/64")]
pub struct PrefixError;

impl Prefix {
    /// A prefix; bits after `length` are cleared. `None` when `length` is too long for the family.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(address) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or_default();
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or_default();
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Self { address, length })
    }

    /// The prefix that holds one address only.
    pub fn host(address: IpAddr) -> Self {
        let length = if address.is_ipv4() { 32 } else { 128 };
        Self { address, length }
    }

    /// First address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Bits that count.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether it is an IPv4 prefix.
    pub fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether an address lies inside.
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && Self::new(address, self.length).is_some_and(|prefix| prefix == self)
    }

    /// Whether all of another prefix lies inside (a prefix is inside itself).
    pub fn covers(self, other: Self) -> bool {
        other.length >= self.length && self.contains(other.address)
    }

    /// The address at an offset from the first, if it is inside.
    pub fn nth(self, offset: u64) -> Option<IpAddr> {
        let address = match self.address {
            IpAddr::V4(first) => {
                let bits = first.to_bits().checked_add(u32::try_from(offset).ok()?)?;
                IpAddr::V4(Ipv4Addr::from_bits(bits))
            }
            IpAddr::V6(first) => {
                let bits = first.to_bits().checked_add(u128::from(offset))?;
                IpAddr::V6(Ipv6Addr::from_bits(bits))
            }
        };
        self.contains(address).then_some(address)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = text.split_once('/').ok_or(PrefixError)?;
        if length.is_empty() || length.len() > 3 || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PrefixError);
        }
        let address: IpAddr = address.parse().map_err(|_| PrefixError)?;
        let length: u8 = length.parse().map_err(|_| PrefixError)?;
        Self::new(address, length).ok_or(PrefixError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(prefix("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(prefix("2001:db8::1/32").to_string(), "2001:db8::/32");
        assert_eq!(prefix("1.2.3.4/0").to_string(), "0.0.0.0/0");
        assert_eq!(prefix("::1/0").to_string(), "::/0");
    }

    #[test]
    fn only_prefixes_are_prefixes() {
        for text in ["10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/+8", "010.0.0.0/8", "/8", "a/8"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn families_never_contain_each_other() {
        assert!(!prefix("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(!prefix("::/0").contains("1.2.3.4".parse().unwrap()));
        assert!(prefix("10.0.0.0/8").covers(prefix("10.1.0.0/16")));
        assert!(!prefix("10.1.0.0/16").covers(prefix("10.0.0.0/8")));
    }

    #[test]
    fn nth_stays_inside() {
        assert_eq!(prefix("10.0.0.0/30").nth(3), Some("10.0.0.3".parse().unwrap()));
        assert_eq!(prefix("10.0.0.0/30").nth(4), None);
        assert_eq!(prefix("255.255.255.255/32").nth(1), None);
    }
}
