//! Frames, read strictly: every length must fit and every checksum must be right, also inside tunnels.
//!
//! Headers are those of etherparse; VXLAN is RFC 7348, Geneve RFC 8926. Checksums: RFC 791, 9293, 768, 792, 4443, 8200; a UDP checksum of
//! zero means none over IPv4, and over IPv6 only in front of a tunnel (RFC 6935).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{LinkSlice, NetSlice, SlicedPacket, TransportSlice};
use simulator::cluster::tunnel::Protocol;

use crate::capture::Frame;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// IANA number.
const UDP: u8 = 17;

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Headers that do not fit into the frame, or contradict it.
    #[error("{0}")]
    Header(String),
    /// A checksum.
    #[error("{of} checksum {got:#06x} instead of {wanted:#06x}")]
    Checksum {
        /// Of which header.
        of: &'static str,
        /// The one that is there.
        got: u16,
        /// The right one.
        wanted: u16,
    },
    /// UDP over IPv6 without one.
    #[error("UDP over IPv6 without a checksum")]
    NoChecksum,
}

/// Ethernet addresses.
pub type Mac = [u8; 6];

/// What routers look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// IANA number of what it carries; the one behind extension headers.
    pub protocol: u8,
    /// Whether it is one of several fragments.
    pub fragment: bool,
    /// Do-not-fragment; always so over IPv6.
    pub whole: bool,
    /// Bytes from this header to the end.
    pub len: usize,
}

/// A tunnel packet: what it speaks, and what is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnelled<'a> {
    /// By the UDP port.
    pub protocol: Protocol,
    /// UDP source port.
    pub port: u16,
    /// The tunnel's own header, without options.
    pub header: [u8; 8],
    /// 24 bits.
    pub vni: u32,
    /// From its Ethernet header to the end.
    pub inner: &'a [u8],
}

/// Checksums that are right, and those that were left out as the standards allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Of IPv4 headers.
    pub headers: usize,
    /// Of TCP, UDP, ICMP.
    pub transports: usize,
    /// UDP packets without one.
    pub none: usize,
    /// Pieces of a fragmented packet, which have none of their own.
    pub fragments: usize,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.headers += other.headers;
        self.transports += other.transports;
        self.none += other.none;
        self.fragments += other.fragments;
    }
}

/// A frame whose headers fit.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    sliced: SlicedPacket<'a>,
}

impl<'a> Packet<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// Headers that do not fit.
    pub fn read(frame: &'a [u8]) -> Result<Self, Wrong> {
        let sliced = SlicedPacket::from_ethernet(frame).map_err(|error| Wrong::Header(error.to_string()))?;
        let packet = Self { sliced };
        // etherparse lets bytes follow the packet, and takes a length of zero over IPv6 for a very long one.
        if let Some(ip) = packet.ip()
            && ETHERNET + ip.len != frame.len()
        {
            return Err(Wrong::Header(format!("an IP packet of {} bytes in a frame of {}", ip.len, frame.len())));
        }
        Ok(packet)
    }

    /// Ethernet source and destination.
    #[must_use]
    pub fn macs(&self) -> Option<(Mac, Mac)> {
        match self.sliced.link.as_ref()? {
            LinkSlice::Ethernet2(ethernet) => Some((ethernet.source(), ethernet.destination())),
            LinkSlice::LinuxSll(_) | LinkSlice::EtherPayload(_) | LinkSlice::LinuxSllPayload(_) => None,
        }
    }

    /// Its headers, as etherparse has them.
    #[must_use]
    pub fn sliced(&self) -> &SlicedPacket<'a> {
        &self.sliced
    }

    /// The IP header.
    #[must_use]
    pub fn ip(&self) -> Option<Ip> {
        match self.sliced.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                Some(Ip {
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    hops: header.ttl(),
                    protocol: ip.payload_ip_number().0,
                    fragment: ip.is_payload_fragmented(),
                    whole: header.dont_fragment(),
                    len: header.total_len().into(),
                })
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                Some(Ip {
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    hops: header.hop_limit(),
                    protocol: ip.payload().ip_number.0,
                    fragment: ip.is_payload_fragmented(),
                    whole: true,
                    len: usize::from(header.payload_length()) + 40,
                })
            }
            NetSlice::Arp(_) => None,
        }
    }

    /// Source port, destination port and payload of a UDP packet.
    #[must_use]
    pub fn udp(&self) -> Option<(u16, u16, &'a [u8])> {
        match self.sliced.transport.as_ref()? {
            TransportSlice::Udp(udp) => Some((udp.source_port(), udp.destination_port(), udp.payload())),
            TransportSlice::Tcp(_)
            | TransportSlice::Icmpv4(_)
            | TransportSlice::Icmpv6(_)
            | TransportSlice::Igmp(_) => None,
        }
    }

    /// Source port, destination port and payload of a TCP segment.
    #[must_use]
    pub fn tcp(&self) -> Option<(u16, u16, &'a [u8])> {
        match self.sliced.transport.as_ref()? {
            TransportSlice::Tcp(tcp) => Some((tcp.source_port(), tcp.destination_port(), tcp.payload())),
            TransportSlice::Udp(_)
            | TransportSlice::Icmpv4(_)
            | TransportSlice::Icmpv6(_)
            | TransportSlice::Igmp(_) => None,
        }
    }

    /// Type, code, the four bytes behind the checksum, and the rest of an ICMP or ICMPv6 message.
    #[must_use]
    pub fn icmp(&self) -> Option<(u8, u8, [u8; 4], &'a [u8])> {
        match self.sliced.transport.as_ref()? {
            TransportSlice::Icmpv4(icmp) => {
                Some((icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8(), icmp.slice().get(8..).unwrap_or_default()))
            }
            TransportSlice::Icmpv6(icmp) => {
                Some((icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8(), icmp.slice().get(8..).unwrap_or_default()))
            }
            TransportSlice::Tcp(_) | TransportSlice::Udp(_) | TransportSlice::Igmp(_) => None,
        }
    }

    /// What is in the tunnel, if it is a packet of a tunnel.
    #[must_use]
    pub fn tunnelled(&self) -> Option<Tunnelled<'a>> {
        let (port, to, payload) = self.udp()?;
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.port() == to)?;
        let (&header, rest) = payload.split_first_chunk::<8>()?;
        let [first, _, _, _, a, b, c, _] = header;
        let options = match protocol {
            Protocol::Vxlan => 0,
            Protocol::Geneve => usize::from(first & 0x3f) * 4,
        };
        Some(Tunnelled { protocol, port, header, vni: u32::from_be_bytes([0, a, b, c]), inner: rest.get(options..)? })
    }

    /// Looks at every checksum, also inside the tunnel.
    ///
    /// # Errors
    /// One that is wrong, or missing where it must not; headers inside that do not fit.
    pub fn verify(&self) -> Result<Sums, Wrong> {
        let mut sums = Sums::default();
        let Some(ip) = self.ip() else { return Ok(sums) };
        if let Some(NetSlice::Ipv4(slice)) = &self.sliced.net {
            checksum("IPv4 header", Sum16BitWords::new(), slice.header().slice(), 10)?;
            sums.headers += 1;
        }
        if ip.fragment {
            sums.fragments += 1;
            return Ok(sums);
        }
        match &self.sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                transport("TCP", &ip, tcp.slice(), 16)?;
                sums.transports += 1;
            }
            Some(TransportSlice::Udp(udp)) if udp.checksum() == 0 => {
                if ip.source.is_ipv6()
                    && Protocol::ALL.into_iter().all(|protocol| protocol.port() != udp.destination_port())
                {
                    return Err(Wrong::NoChecksum);
                }
                sums.none += 1;
            }
            Some(TransportSlice::Udp(udp)) => {
                transport("UDP", &ip, udp.slice(), 6)?;
                sums.transports += 1;
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                checksum("ICMP", Sum16BitWords::new(), icmp.slice(), 2)?;
                sums.transports += 1;
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                transport("ICMPv6", &ip, icmp.slice(), 2)?;
                sums.transports += 1;
            }
            Some(TransportSlice::Igmp(_)) | None => {}
        }
        if let Some(tunnelled) = self.tunnelled() {
            sums += Packet::read(tunnelled.inner)?.verify()?;
        }
        Ok(sums)
    }
}

/// Looks at every checksum of a frame, open ones written first.
///
/// # Errors
/// As [`Packet::read`] and [`Packet::verify`].
pub fn verify(frame: &Frame) -> Result<Sums, Wrong> {
    Packet::read(&frame.completed())?.verify()
}

fn equal(of: &'static str, got: u16, wanted: u16) -> Result<(), Wrong> {
    if got == wanted { Ok(()) } else { Err(Wrong::Checksum { of, got, wanted }) }
}

/// A checksum that covers the addresses too.
fn transport(of: &'static str, ip: &Ip, bytes: &[u8], at: usize) -> Result<(), Wrong> {
    let mut sum = Sum16BitWords::new();
    sum = match (ip.source, ip.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => sum.add_slice(&from.octets()).add_slice(&to.octets()),
        (from, to) => sum.add_slice(&wide(from).octets()).add_slice(&wide(to).octets()),
    };
    let len = u32::try_from(bytes.len()).map_err(|_| Wrong::Header(format!("{of} of {} bytes", bytes.len())))?;
    sum = sum.add_slice(&len.to_be_bytes()).add_2bytes([0, ip.protocol]);
    checksum(of, sum, bytes, at)
}

fn wide(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::to_ipv6_mapped(&address),
        IpAddr::V6(address) => address,
    }
}

/// The checksum at `at` of `bytes`, whose sum begins with what is given.
fn checksum(of: &'static str, begun: Sum16BitWords, bytes: &[u8], at: usize) -> Result<(), Wrong> {
    let (before, rest) = bytes.split_at_checked(at).ok_or_else(|| Wrong::Header(format!("{of} without a checksum")))?;
    let (there, after) = rest.split_at_checked(2).ok_or_else(|| Wrong::Header(format!("{of} without a checksum")))?;
    let wanted = begun.add_slice(before).add_slice(after).ones_complement().to_be();
    let got = there.iter().fold(0, |value, byte| value << 8 | u16::from(*byte));
    // A UDP checksum that is computed to be zero is sent as all ones, and Linux does so for every protocol.
    if (got, wanted) == (u16::MAX, 0) { Ok(()) } else { equal(of, got, wanted) }
}

/// A packet of UDP through the tunnel, or not: for what is only counted.
#[must_use]
pub fn is_tunnel(frame: &[u8]) -> bool {
    Packet::read(frame)
        .is_ok_and(|packet| packet.ip().is_some_and(|ip| ip.protocol == UDP) && packet.tunnelled().is_some())
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::capture::{Checksum, Way};

    fn frames() -> Vec<Vec<u8>> {
        let (from, to) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let v4 = || PacketBuilder::ethernet2(from, to).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let mut six = [0xfd; 16];
        six[15] = 2;
        let v6 = || PacketBuilder::ethernet2(from, to).ipv6([0xfd; 16], six, 64);
        let mut frames = Vec::new();
        for len in [0, 1, 7, 100, 1400] {
            let payload: Vec<u8> = (1..=255).cycle().take(len).collect();
            let mut all = vec![Vec::new(); 6];
            v4().tcp(40_000, 80, 1, 512).write(&mut all[0], &payload).unwrap();
            v6().tcp(40_000, 80, 1, 512).write(&mut all[1], &payload).unwrap();
            v4().udp(40_000, 53).write(&mut all[2], &payload).unwrap();
            v6().udp(40_000, 53).write(&mut all[3], &payload).unwrap();
            v4().icmpv4_echo_request(1, 2).write(&mut all[4], &payload).unwrap();
            v6().icmpv6_echo_request(1, 2).write(&mut all[5], &payload).unwrap();
            frames.extend(all);
        }
        frames
    }

    /// A frame inside VXLAN over IPv4, without an outer checksum.
    fn wrapped(inner: &[u8], vni: u32) -> Vec<u8> {
        let mut payload = vec![8, 0, 0, 0];
        payload.extend_from_slice(&(vni << 8).to_be_bytes());
        payload.extend_from_slice(inner);
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([4; 6], [6; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        builder.udp(50_000, Protocol::Vxlan.port()).write(&mut frame, &payload).unwrap();
        frame[40..42].fill(0);
        frame
    }

    #[test]
    fn right_checksums_are_right() {
        for frame in frames() {
            let sums = Packet::read(&frame).unwrap().verify().unwrap();
            assert_eq!(sums.transports, 1, "{frame:02x?}");
            let inside = Packet::read(&wrapped(&frame, 256)).unwrap().verify().unwrap();
            assert_eq!((inside.transports, inside.none, inside.headers), (1, 1, sums.headers + 1));
        }
    }

    #[test]
    fn any_flipped_bit_that_a_checksum_covers_is_noticed() {
        let mut looked = 0;
        for frame in frames().into_iter().filter(|frame| frame.len() < 200) {
            let right = Packet::read(&frame).unwrap().verify().unwrap();
            for outside in [false, true] {
                let mut bytes = if outside { frame.clone() } else { wrapped(&frame, 7) };
                let start = bytes.len() - frame.len();
                let v6 = frame[12] == 0x86;
                for at in start + 14..bytes.len() {
                    for bit in 0..8 {
                        // Version, class, flow label and hop limit of IPv6 are under no checksum.
                        if v6 && (at < start + 18 || at == start + 21) {
                            continue;
                        }
                        bytes[at] ^= 1 << bit;
                        let verdict = Packet::read(&bytes).and_then(|packet| packet.verify());
                        let right = if outside { right } else { Sums { headers: right.headers + 1, none: 1, ..right } };
                        assert_ne!(verdict, Ok(right), "byte {at} bit {bit} of {bytes:02x?}");
                        bytes[at] ^= 1 << bit;
                        looked += 1;
                    }
                }
            }
        }
        assert!(looked > 20_000, "{looked}");
    }

    #[test]
    fn an_open_checksum_is_right_if_the_sum_of_the_pseudo_header_is() {
        for frame in frames() {
            let Some((start, offset)) = (match frame[23] {
                _ if frame[12] == 0x86 => None,
                6 => Some((34, 16)),
                17 => Some((34, 6)),
                _ => None,
            }) else {
                continue;
            };
            let mut bytes = frame.clone();
            let len = u16::try_from(frame.len() - 34).unwrap();
            let sum = Sum16BitWords::new()
                .add_slice(&frame[26..34])
                .add_2bytes([0, frame[23]])
                .add_2bytes(len.to_be_bytes())
                .ones_complement();
            bytes[start + offset..start + offset + 2].copy_from_slice(&(!sum).to_ne_bytes());
            let checksum = Checksum::Open { start, offset };
            let mut open = Frame { at_ns: 0, way: Way::Out, checksum, segments: None, bytes };
            assert_eq!(verify(&open).unwrap().transports, 1);
            assert!(Packet::read(&open.bytes).unwrap().verify().is_err());
            open.bytes[start + offset] ^= 1;
            assert!(verify(&open).is_err());
        }
    }

    #[test]
    fn a_tunnel_packet_says_its_number_and_what_is_inside() {
        let inner = &frames()[0];
        let frame = wrapped(inner, 0x0001_2345);
        let packet = Packet::read(&frame).unwrap();
        let found = packet.tunnelled().unwrap();
        assert_eq!((found.protocol, found.port, found.vni), (Protocol::Vxlan, 50_000, 0x0001_2345));
        assert_eq!((found.header, found.inner), ([8, 0, 0, 0, 1, 0x23, 0x45, 0], inner.as_slice()));
        assert!(is_tunnel(&frame) && !is_tunnel(inner));
    }
}
