//! The packets that probes are made of: written and read back byte for byte, with every length and checksum.
//!
//! Invariant: what [`Packet::write`] writes, [`Packet::read`] reads back equal; a frame with a wrong length or checksum is
//! never read. RFC 791, 8200, 9293, 768, 792, 4443, 9260.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::tunnel;
use crate::packet::crc32c;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Hop limit of packets that a host sends.
pub const HOPS: u8 = 64;

/// An Ethernet address.
pub type MacBytes = [u8; 6];

/// TCP flags.
pub mod tcp {
    /// Synchronise.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledge.
    pub const ACK: u8 = 0x10;
}

/// SCTP chunk types.
pub mod sctp {
    /// First packet of an association.
    pub const INIT: u8 = 1;
    /// Its answer.
    pub const INIT_ACK: u8 = 2;
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A TCP segment without data.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Flags.
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement.
        acknowledged: u32,
    },
    /// A UDP datagram with eight bytes of data.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Data.
        data: [u8; 8],
    },
    /// An SCTP packet with one INIT or INIT ACK chunk.
    Sctp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Verification tag.
        tag: u32,
        /// Chunk type.
        chunk: u8,
        /// Initiate tag.
        initiate: u32,
    },
    /// An ICMP or ICMPv6 message with identifier and sequence number.
    Icmp {
        /// Type.
        kind: u8,
        /// Identifier.
        id: u16,
        /// Sequence number.
        sequence: u16,
    },
}

impl Payload {
    /// IANA number.
    pub const fn protocol(&self, ipv6: bool) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp { .. } => 17,
            Self::Sctp { .. } => 132,
            Self::Icmp { .. } => {
                if ipv6 {
                    58
                } else {
                    1
                }
            }
        }
    }

    const fn len(&self) -> u16 {
        match self {
            Self::Tcp { .. } => 20,
            Self::Udp { .. } => 16,
            Self::Sctp { .. } => 32,
            Self::Icmp { .. } => 8,
        }
    }
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// What it carries.
    pub payload: Payload,
}

/// Why a frame is not one of our packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Headers do not fit into the frame, or contradict it.
    #[error("truncated or with a wrong length")]
    Length,
    /// Not IP, or a protocol that probes do not use.
    #[error("of another protocol")]
    Protocol,
    /// The IPv4 header's checksum is wrong.
    #[error("with a wrong IPv4 header checksum")]
    HeaderChecksum,
    /// The checksum of what it carries is wrong.
    #[error("with a wrong checksum")]
    Checksum,
}

impl Packet {
    /// Replaces `out` by a frame that holds the packet.
    pub fn write(&self, destination: MacBytes, source: MacBytes, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&destination);
        out.extend_from_slice(&source);
        let length = self.payload.len();
        match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                out.extend_from_slice(&[0x08, 0x00]);
                ipv4_header(from, to, self.payload.protocol(false), 0, self.hops, 0, 0x4000, length, out);
            }
            (from, to) => {
                out.extend_from_slice(&[0x86, 0xdd]);
                ipv6_header(wide(from), wide(to), self.payload.protocol(true), 0, self.hops, length, out);
            }
        }
        let start = out.len();
        self.payload.write(out);
        let at = match self.payload {
            Payload::Tcp { .. } => 16,
            Payload::Udp { .. } => 6,
            Payload::Icmp { .. } => 2,
            Payload::Sctp { .. } => {
                let sum = crc32c(out.get(start..).unwrap_or_default());
                put(out, start + 8, &sum.to_le_bytes());
                return;
            }
        };
        let sum = self.sum(out.get(start..).unwrap_or_default());
        let sum = if sum == 0 && matches!(self.payload, Payload::Udp { .. }) { 0xffff } else { sum };
        put(out, start + at, &sum.to_be_bytes());
    }

    /// The checksum over pseudo header and payload; 0 when the one inside is right.
    fn sum(&self, payload: &[u8]) -> u16 {
        let mut sum = add(0, payload);
        if self.source.is_ipv6() || !matches!(self.payload, Payload::Icmp { .. }) {
            sum = add_pseudo(sum, self.source, self.destination, self.payload.protocol(self.source.is_ipv6()), payload);
        }
        fold(sum)
    }

    /// Reads a frame back.
    ///
    /// # Errors
    /// Anything that a receiver would throw away.
    pub fn read(frame: &[u8]) -> Result<Self, Malformed> {
        let ip = Ip::read(frame)?;
        let payload = Payload::read(ip.protocol, ip.payload)?;
        let packet = Self { source: ip.source, destination: ip.destination, hops: ip.hops, payload };
        let right = match payload {
            Payload::Sctp { .. } => {
                let mut copy = [0; 32];
                copy.get_mut(..ip.payload.len()).ok_or(Malformed::Length)?.copy_from_slice(ip.payload);
                let stated = <[u8; 4]>::try_from(&copy[8..12]).map_or(0, u32::from_le_bytes);
                copy[8..12].fill(0);
                crc32c(&copy) == stated
            }
            Payload::Tcp { .. } | Payload::Udp { .. } | Payload::Icmp { .. } => packet.sum(ip.payload) == 0,
        };
        if right { Ok(packet) } else { Err(Malformed::Checksum) }
    }
}

impl Payload {
    fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Tcp { source, destination, flags, sequence, acknowledged } => {
                out.extend_from_slice(&source.to_be_bytes());
                out.extend_from_slice(&destination.to_be_bytes());
                out.extend_from_slice(&sequence.to_be_bytes());
                out.extend_from_slice(&acknowledged.to_be_bytes());
                out.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
            Self::Udp { source, destination, data } => {
                out.extend_from_slice(&source.to_be_bytes());
                out.extend_from_slice(&destination.to_be_bytes());
                out.extend_from_slice(&[0, 16, 0, 0]);
                out.extend_from_slice(&data);
            }
            Self::Sctp { source, destination, tag, chunk, initiate } => {
                out.extend_from_slice(&source.to_be_bytes());
                out.extend_from_slice(&destination.to_be_bytes());
                out.extend_from_slice(&tag.to_be_bytes());
                out.extend_from_slice(&[0, 0, 0, 0, chunk, 0, 0, 20]);
                out.extend_from_slice(&initiate.to_be_bytes());
                // Receive window 64 KiB, ten streams each way; the first TSN is the tag, as hosts often choose it.
                out.extend_from_slice(&[0, 1, 0, 0, 0, 10, 0, 10]);
                out.extend_from_slice(&initiate.to_be_bytes());
            }
            Self::Icmp { kind, id, sequence } => {
                out.extend_from_slice(&[kind, 0, 0, 0]);
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(&sequence.to_be_bytes());
            }
        }
    }

    fn read(protocol: u8, bytes: &[u8]) -> Result<Self, Malformed> {
        let expected = |len: usize| if bytes.len() == len { Ok(()) } else { Err(Malformed::Length) };
        match protocol {
            6 => {
                expected(20)?;
                Ok(Self::Tcp {
                    source: word(bytes, 0)?,
                    destination: word(bytes, 2)?,
                    sequence: long(bytes, 4)?,
                    acknowledged: long(bytes, 8)?,
                    flags: byte(bytes, 13)?,
                })
            }
            17 => {
                expected(16)?;
                let data = bytes.get(8..16).and_then(|data| data.try_into().ok()).ok_or(Malformed::Length)?;
                Ok(Self::Udp { source: word(bytes, 0)?, destination: word(bytes, 2)?, data })
            }
            132 => {
                expected(32)?;
                Ok(Self::Sctp {
                    source: word(bytes, 0)?,
                    destination: word(bytes, 2)?,
                    tag: long(bytes, 4)?,
                    chunk: byte(bytes, 12)?,
                    initiate: long(bytes, 16)?,
                })
            }
            1 | 58 => {
                expected(8)?;
                Ok(Self::Icmp { kind: byte(bytes, 0)?, id: word(bytes, 4)?, sequence: word(bytes, 6)? })
            }
            _ => Err(Malformed::Protocol),
        }
    }
}

/// The IP header of a frame, as far as routing needs it.
#[derive(Clone, Copy, Debug)]
pub struct Ip<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Type of service, or traffic class.
    pub class: u8,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// IANA number of what follows.
    pub protocol: u8,
    /// What follows.
    pub payload: &'a [u8],
}

impl<'a> Ip<'a> {
    /// Reads the header of an Ethernet frame. Options and extension headers are not read.
    ///
    /// # Errors
    /// What a host would not take as IP.
    pub fn read(frame: &'a [u8]) -> Result<Self, Malformed> {
        let ip = frame.get(ETHERNET..).ok_or(Malformed::Length)?;
        match word(frame, 12)? {
            0x0800 => {
                let header = ip.get(..20).ok_or(Malformed::Length)?;
                if byte(header, 0)? != 0x45 || usize::from(word(header, 2)?) != ip.len() {
                    return Err(Malformed::Length);
                }
                if fold(add(0, header)) != 0 {
                    return Err(Malformed::HeaderChecksum);
                }
                Ok(Self {
                    source: IpAddr::V4(Ipv4Addr::from_bits(long(header, 12)?)),
                    destination: IpAddr::V4(Ipv4Addr::from_bits(long(header, 16)?)),
                    class: byte(header, 1)?,
                    hops: byte(header, 8)?,
                    protocol: byte(header, 9)?,
                    payload: ip.get(20..).ok_or(Malformed::Length)?,
                })
            }
            0x86dd => {
                let header = ip.get(..40).ok_or(Malformed::Length)?;
                if byte(header, 0)? >> 4 != 6 || usize::from(word(header, 4)?) != ip.len() - 40 {
                    return Err(Malformed::Length);
                }
                let address = |at: usize| -> Result<IpAddr, Malformed> {
                    let bytes = header.get(at..at + 16).ok_or(Malformed::Length)?;
                    let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| Malformed::Length)?;
                    Ok(IpAddr::V6(Ipv6Addr::from(bytes)))
                };
                Ok(Self {
                    source: address(8)?,
                    destination: address(24)?,
                    class: byte(header, 0)? << 4 | byte(header, 1)? >> 4,
                    hops: byte(header, 7)?,
                    protocol: byte(header, 6)?,
                    payload: ip.get(40..).ok_or(Malformed::Length)?,
                })
            }
            _ => Err(Malformed::Protocol),
        }
    }
}

/// Appends an IPv4 header without options, checksum included. `payload` is the number of bytes after it.
#[expect(clippy::too_many_arguments, reason = "the fields of the header, in one call")]
pub fn ipv4_header(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    class: u8,
    ttl: u8,
    id: u16,
    flags: u16,
    payload: u16,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    out.extend_from_slice(&[0x45, class]);
    out.extend_from_slice(&payload.saturating_add(20).to_be_bytes());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&[ttl, protocol, 0, 0]);
    out.extend_from_slice(&from.octets());
    out.extend_from_slice(&to.octets());
    let sum = fold(add(0, out.get(start..).unwrap_or_default()));
    put(out, start + 10, &sum.to_be_bytes());
}

/// Appends an IPv6 header.
pub fn ipv6_header(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, class: u8, hops: u8, payload: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x60 | class >> 4, class << 4, 0, 0]);
    out.extend_from_slice(&payload.to_be_bytes());
    out.extend_from_slice(&[protocol, hops]);
    out.extend_from_slice(&from.octets());
    out.extend_from_slice(&to.octets());
}

/// Type of service or traffic class of a frame; `None`: no IP.
pub fn class(frame: &[u8]) -> Option<u8> {
    match word(frame, 12).ok()? {
        0x0800 => frame.get(ETHERNET + 1).copied(),
        0x86dd => word(frame, ETHERNET).ok().and_then(|start| u8::try_from(start >> 4 & 0xff).ok()),
        _ => None,
    }
}

/// Writes the type of service or traffic class of a frame; nothing where there is no IP.
pub fn set_class(frame: &mut [u8], class: u8) {
    match word(frame, 12) {
        Ok(0x0800) => {
            put(frame, ETHERNET + 1, &[class]);
            put(frame, ETHERNET + 10, &[0, 0]);
            let sum = fold(add(0, frame.get(ETHERNET..ETHERNET + 20).unwrap_or_default()));
            put(frame, ETHERNET + 10, &sum.to_be_bytes());
        }
        Ok(0x86dd) => {
            let start = word(frame, ETHERNET).unwrap_or(0) & 0xf00f | u16::from(class) << 4;
            put(frame, ETHERNET, &start.to_be_bytes());
        }
        Ok(_) | Err(_) => {}
    }
}

/// Takes one hop off, as a router does. `None`: nothing is left, or it is no IP.
#[must_use]
pub fn forward(frame: &mut [u8]) -> Option<()> {
    match word(frame, 12).ok()? {
        0x0800 => {
            let hops = frame.get_mut(22)?;
            if *hops <= 1 {
                return None;
            }
            *hops -= 1;
            put(frame, 24, &[0, 0]);
            let sum = fold(add(0, frame.get(ETHERNET..ETHERNET + 20)?));
            put(frame, 24, &sum.to_be_bytes());
            Some(())
        }
        0x86dd => {
            let hops = frame.get_mut(21)?;
            if *hops <= 1 {
                return None;
            }
            *hops -= 1;
            Some(())
        }
        _ => None,
    }
}

/// Sets both Ethernet addresses.
pub fn set_macs(frame: &mut [u8], destination: MacBytes, source: MacBytes) {
    put(frame, 0, &destination);
    put(frame, 6, &source);
}

/// Overwrites bytes; what does not fit is left alone.
pub fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = frame.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn wide(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, Malformed> {
    bytes.get(at).copied().ok_or(Malformed::Length)
}

/// Two bytes in network order.
///
/// # Errors
/// When they are not there.
pub fn word(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    let bytes = bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).ok_or(Malformed::Length)?;
    Ok(u16::from_be_bytes(bytes))
}

fn long(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).ok_or(Malformed::Length)?;
    Ok(u32::from_be_bytes(bytes))
}

/// Adds bytes as 16-bit words to a checksum (RFC 1071).
pub fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    for four in &mut words {
        sum += <[u8; 4]>::try_from(four).map_or(0, |four| u64::from(u32::from_be_bytes(four)));
    }
    let mut rest = [0; 4];
    for (to, from) in rest.iter_mut().zip(words.remainder()) {
        *to = *from;
    }
    sum + u64::from(u32::from_be_bytes(rest))
}

/// Adds the pseudo header of what `payload` is carried in.
pub fn add_pseudo(sum: u64, source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> u64 {
    let sum = match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => add(add(sum, &from.octets()), &to.octets()),
        (from, to) => add(add(sum, &wide(from).octets()), &wide(to).octets()),
    };
    sum + u64::from(protocol) + u64::try_from(payload.len()).unwrap_or(u64::MAX)
}

/// The checksum of a sum.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// A frame as one line of text, tunnels unwrapped.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a>(pub &'a [u8]);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = match Ip::read(self.0) {
            Ok(ip) => ip,
            Err(error) => return write!(f, "{} bytes {error}", self.0.len()),
        };
        let (family, hops) = if ip.source.is_ipv4() { ("ipv4", "ttl") } else { ("ipv6", "hop") };
        write!(f, "{family} {} > {} {hops} {}", ip.source, ip.destination, ip.hops)?;
        if let Some((protocol, vni, inner)) = tunnel::look(&ip) {
            let source = word(ip.payload, 0).unwrap_or(0);
            write!(f, " / udp {source} > {} / {} vni {vni} / ", protocol.port(), protocol.name())?;
            return Line(inner).fmt(f);
        }
        match Payload::read(ip.protocol, ip.payload) {
            Ok(Payload::Tcp { source, destination, flags, .. }) => {
                write!(f, " / tcp {source} > {destination}")?;
                for (bit, name) in [(tcp::SYN, "syn"), (tcp::RST, "rst"), (tcp::ACK, "ack")] {
                    if flags & bit != 0 {
                        write!(f, " {name}")?;
                    }
                }
                Ok(())
            }
            Ok(Payload::Udp { source, destination, .. }) => write!(f, " / udp {source} > {destination}"),
            Ok(Payload::Sctp { source, destination, chunk, .. }) => {
                let name = if chunk == sctp::INIT { "init" } else { "init-ack" };
                write!(f, " / sctp {source} > {destination} {name}")
            }
            Ok(Payload::Icmp { kind, id, sequence }) => {
                let name = if ip.source.is_ipv4() { "icmp" } else { "icmp6" };
                match kind {
                    8 | 128 => write!(f, " / {name} echo id {id} seq {sequence}"),
                    0 | 129 => write!(f, " / {name} echo-reply id {id} seq {sequence}"),
                    _ => write!(f, " / {name} type {kind}"),
                }
            }
            Err(_) => write!(f, " / protocol {}, {} bytes", ip.protocol, ip.payload.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets() -> Vec<Packet> {
        let ends: [(IpAddr, IpAddr); 2] = [
            ("10.244.1.2".parse().unwrap(), "10.244.2.3".parse().unwrap()),
            ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()),
        ];
        let payloads = [
            Payload::Tcp { source: 40_000, destination: 80, flags: tcp::SYN, sequence: 7, acknowledged: 0 },
            Payload::Udp { source: 40_000, destination: 53, data: *b"question" },
            Payload::Sctp { source: 40_000, destination: 3868, tag: 0, chunk: sctp::INIT, initiate: 99 },
            Payload::Icmp { kind: 8, id: 5, sequence: 1 },
        ];
        let mut all = Vec::new();
        for (source, destination) in ends {
            for payload in payloads {
                all.push(Packet { source, destination, hops: 64, payload });
            }
        }
        all
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut frame = Vec::new();
        for packet in packets() {
            packet.write([2; 6], [4; 6], &mut frame);
            assert_eq!(Packet::read(&frame), Ok(packet));
        }
    }

    #[test]
    fn any_flipped_bit_behind_the_ethernet_header_is_noticed() {
        let mut frame = Vec::new();
        for packet in packets() {
            packet.write([2; 6], [4; 6], &mut frame);
            for at in ETHERNET..frame.len() {
                for bit in 0..8 {
                    // Traffic class and flow label of IPv6: under no checksum, and of no meaning here.
                    if packet.source.is_ipv6() && (15..18).contains(&at) || (at == 14 && bit < 4) {
                        continue;
                    }
                    frame[at] ^= 1 << bit;
                    assert_ne!(Packet::read(&frame), Ok(packet), "byte {at} bit {bit} of {packet:?}");
                    frame[at] ^= 1 << bit;
                }
            }
        }
    }

    #[test]
    fn checksums_are_those_of_the_standards() {
        // RFC 1071, section 3.
        assert_eq!(fold(add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), !0xddf2);
    }

    #[test]
    fn forwarding_takes_a_hop_off_and_keeps_the_checksum_right() {
        let mut frame = Vec::new();
        for packet in packets() {
            packet.write([2; 6], [4; 6], &mut frame);
            forward(&mut frame).unwrap();
            assert_eq!(Packet::read(&frame).map(|packet| packet.hops), Ok(63));
        }
        let last = Packet { hops: 1, ..packets()[0] };
        last.write([2; 6], [4; 6], &mut frame);
        assert_eq!(forward(&mut frame), None);
    }

    #[test]
    fn a_frame_reads_as_one_line() {
        let mut frame = Vec::new();
        packets()[0].write([2; 6], [4; 6], &mut frame);
        assert_eq!(Line(&frame).to_string(), "ipv4 10.244.1.2 > 10.244.2.3 ttl 64 / tcp 40000 > 80 syn");
    }
}
