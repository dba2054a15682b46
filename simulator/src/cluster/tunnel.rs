//! The tunnel device: VXLAN (RFC 7348) or Geneve (RFC 8926), as the kernel's devices in metadata mode write and read it.
//!
//! | | VXLAN | Geneve |
//! |---|---|---|
//! | UDP port | 8472 | 6081 |
//! | outer source port | from the default `ip_local_port_range` | from 1 to 65534 |
//! | header written | flags 0x08, VNI | version 0, no options, protocol 0x6558, VNI |
//! | not taken | any reserved bit set | another version or protocol; options longer than the packet |
//! | options | | passed over; control messages and critical options are the datapath's to refuse |
//! | UDP checksum of zero over IPv6 | not taken | taken |
//!
//! Outer source port: FNV-1a over the inner addresses, protocol and first four bytes of the payload, put into the range as
//! `udp_flow_src_port` does. UDP checksum: zero over IPv4 when the program asked for that (as weir does), computed over
//! IPv6. Do-not-fragment is off, the identification counts up per node. ECN goes out and comes in by RFC 6040 ([`ecn`]).

use std::net::IpAddr;

pub use simulator_vm::TunnelKey;

use super::ecn;
use super::frame::{self, ETHERNET, Ip, MacBytes};

const UDP: u8 = 17;
/// Bytes of the outer UDP header and the tunnel's own, without options.
const HEADERS: usize = 16;
/// `BPF_F_ZERO_CSUM_TX`.
const NO_CHECKSUM: u64 = 2;

/// What tunnels between nodes speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 7348.
    #[default]
    Vxlan,
    /// RFC 8926.
    Geneve,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Vxlan, Self::Geneve];

    /// As settings have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
        }
    }

    /// From a setting.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// UDP port.
    pub const fn port(self) -> u16 {
        match self {
            Self::Vxlan => 8472,
            Self::Geneve => 6081,
        }
    }

    /// Source ports that the kernel's device uses: first, and first that it does not.
    const fn ports(self) -> (u32, u32) {
        match self {
            Self::Vxlan => (32_768, 60_999),
            Self::Geneve => (1, 65_535),
        }
    }

    /// The tunnel's own header.
    fn header(self, vni: u32) -> [u8; 8] {
        let [_, a, b, c] = vni.to_be_bytes();
        match self {
            Self::Vxlan => [0x08, 0, 0, 0, a, b, c, 0],
            Self::Geneve => [0, 0, 0x65, 0x58, a, b, c, 0],
        }
    }

    /// VNI and the length of options, of a header that the kernel's device takes.
    fn read(self, header: [u8; 8]) -> Option<(u32, usize)> {
        let [first, second, third, fourth, a, b, c, last] = header;
        let options = match self {
            Self::Vxlan if [first, second, third, fourth, last] == [0x08, 0, 0, 0, 0] => 0,
            Self::Geneve if first >> 6 == 0 && [third, fourth] == [0x65, 0x58] => usize::from(first & 0x3f) * 4,
            Self::Vxlan | Self::Geneve => return None,
        };
        Some((u32::from_be_bytes([0, a, b, c]), options))
    }
}

/// What the tunnel's outer headers need besides the key.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Ethernet destination: next hop on the underlay.
    pub to: MacBytes,
    /// Ethernet source.
    pub from: MacBytes,
    /// Own underlay address.
    pub source: IpAddr,
    /// IPv4 identification.
    pub id: u16,
}

/// The outer source port of an inner frame.
fn source_port(protocol: Protocol, inner: &[u8]) -> u16 {
    let mut hash: u32 = 0x811c_9dc5;
    let mut mix = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    };
    if let Ok(ip) = Ip::read(inner) {
        for address in [ip.source, ip.destination] {
            match address {
                IpAddr::V4(address) => mix(&address.octets()),
                IpAddr::V6(address) => mix(&address.octets()),
            }
        }
        mix(&[ip.protocol]);
        if ip.protocol != 1 && ip.protocol != 58 {
            mix(ip.payload.get(..4).unwrap_or_default());
        }
    }
    let (first, end) = protocol.ports();
    let spread = u64::from(hash ^ hash << 16) * u64::from(end - first);
    let port = u64::from(first) + (spread >> 32);
    u16::try_from(port).unwrap_or(u16::MAX)
}

/// Wraps the frame in `data`; `scratch` is room to work in. `None`: too long, or the families of the ends differ.
pub fn encapsulate(
    protocol: Protocol,
    data: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    key: &TunnelKey,
    outer: &Outer,
) -> Option<()> {
    let length = u16::try_from(data.len() + HEADERS).ok()?;
    let class = ecn::outside(key.tos, frame::class(data));
    scratch.clear();
    scratch.extend_from_slice(&outer.to);
    scratch.extend_from_slice(&outer.from);
    match (outer.source, key.remote) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            length.checked_add(20)?;
            scratch.extend_from_slice(&[0x08, 0x00]);
            frame::ipv4_header(from, to, UDP, class, key.ttl, outer.id, 0, length, scratch);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            scratch.extend_from_slice(&[0x86, 0xdd]);
            frame::ipv6_header(from, to, UDP, class, key.ttl, length, scratch);
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    let start = scratch.len();
    scratch.extend_from_slice(&source_port(protocol, data).to_be_bytes());
    scratch.extend_from_slice(&protocol.port().to_be_bytes());
    scratch.extend_from_slice(&length.to_be_bytes());
    scratch.extend_from_slice(&[0, 0]);
    scratch.extend_from_slice(&protocol.header(key.id));
    scratch.extend_from_slice(data);
    if key.flags & NO_CHECKSUM == 0 || key.remote.is_ipv6() {
        let payload = scratch.get(start..)?;
        let sum = frame::add_pseudo(frame::add(0, payload), outer.source, key.remote, UDP, payload);
        let sum = match frame::fold(sum) {
            0 => 0xffff,
            sum => sum,
        };
        frame::put(scratch, start + 6, &sum.to_be_bytes());
    }
    std::mem::swap(data, scratch);
    Some(())
}

/// Whether a packet is for the tunnel device: UDP to its port.
pub fn is_for_tunnel(protocol: Protocol, ip: &Ip<'_>) -> bool {
    ip.protocol == UDP && frame::word(ip.payload, 2) == Ok(protocol.port())
}

/// What a packet of either tunnel holds: its VNI and the frame inside.
pub fn look<'a>(ip: &Ip<'a>) -> Option<(Protocol, u32, &'a [u8])> {
    let protocol = Protocol::ALL.into_iter().find(|protocol| is_for_tunnel(*protocol, ip))?;
    let (vni, options) = protocol.read(*ip.payload.get(8..)?.first_chunk()?)?;
    Some((protocol, vni, ip.payload.get(HEADERS + options..)?))
}

/// Unwraps the frame in `data`. `None`: not a packet that a device in metadata mode takes.
pub fn decapsulate(protocol: Protocol, data: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Option<TunnelKey> {
    let (key, inside) = {
        let ip = Ip::read(data).ok()?;
        let udp = ip.payload;
        if usize::from(frame::word(udp, 4).ok()?) != udp.len() {
            return None;
        }
        if frame::word(udp, 6).ok()? != 0 {
            let sum = frame::add_pseudo(frame::add(0, udp), ip.source, ip.destination, UDP, udp);
            if frame::fold(sum) != 0 {
                return None;
            }
        } else if ip.source.is_ipv6() && protocol == Protocol::Vxlan {
            return None;
        }
        let (_, id, inner) = look(&ip)?;
        if inner.len() < ETHERNET {
            return None;
        }
        scratch.clear();
        scratch.extend_from_slice(inner);
        let key = TunnelKey {
            id,
            remote: ip.source,
            local: Some(ip.destination),
            ttl: ip.hops,
            tos: ip.class,
            ..TunnelKey::default()
        };
        (key, ecn::inside(ip.class, frame::class(scratch)))
    };
    if let Some(class) = inside? {
        frame::set_class(scratch, class);
    }
    std::mem::swap(data, scratch);
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Packet, Payload, tcp};
    use super::*;

    fn inner() -> Vec<u8> {
        let mut frame = Vec::new();
        let payload = Payload::Tcp { source: 40_000, destination: 80, flags: tcp::SYN, sequence: 1, acknowledged: 0 };
        let (source, destination) = ("10.244.1.2".parse().unwrap(), "10.244.2.2".parse().unwrap());
        Packet { source, destination, hops: 64, payload }.write([2; 6], [4; 6], &mut frame);
        frame
    }

    #[test]
    fn what_goes_in_comes_out_with_identity_and_sender() {
        let ends = [("192.168.0.11", "192.168.0.12"), ("fd00::11", "fd00::12")];
        for (protocol, (source, remote)) in Protocol::ALL.into_iter().flat_map(|p| ends.map(|ends| (p, ends))) {
            let outer = Outer { to: [6; 6], from: [8; 6], source: source.parse().unwrap(), id: 3 };
            let remote = remote.parse().unwrap();
            let key = TunnelKey { id: 0x01_2345, remote, ttl: 64, flags: 2, ..TunnelKey::default() };
            let (mut data, mut scratch) = (inner(), Vec::new());
            encapsulate(protocol, &mut data, &mut scratch, &key, &outer).unwrap();
            let got = decapsulate(protocol, &mut data, &mut scratch).unwrap();
            assert_eq!((got.id, got.remote, got.local), (0x01_2345, outer.source, Some(remote)));
            assert_eq!(data, inner());
        }
    }

    #[test]
    fn the_bytes_on_the_wire_are_those_of_rfc_7348() {
        let outer = Outer { to: [6; 6], from: [8; 6], source: "192.168.0.11".parse().unwrap(), id: 0x0102 };
        let remote = "192.168.0.12".parse().unwrap();
        let key = TunnelKey { id: 256, remote, ttl: 64, flags: 2, ..TunnelKey::default() };
        let (mut data, mut scratch) = (inner(), Vec::new());
        encapsulate(Protocol::Vxlan, &mut data, &mut scratch, &key, &outer).unwrap();
        assert_eq!(data.len(), 54 + 50);
        // Length 90, identification 0x0102, no flags, TTL 64, UDP.
        assert_eq!(data[14..24], [0x45, 0, 0, 90, 1, 2, 0, 0, 64, 17]);
        assert_eq!(data[26..34], [192, 168, 0, 11, 192, 168, 0, 12]);
        // Port 8472, length 70, no checksum; VXLAN with VNI 256.
        assert_eq!(data[36..50], [0x21, 0x18, 0, 70, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(data[50..], inner());
        let port = u16::from_be_bytes([data[34], data[35]]);
        assert!((32_768..61_000).contains(&port));
    }

    #[test]
    fn the_bytes_on_the_wire_are_those_of_rfc_8926() {
        let outer = Outer { to: [6; 6], from: [8; 6], source: "192.168.0.11".parse().unwrap(), id: 1 };
        let remote = "192.168.0.12".parse().unwrap();
        let key = TunnelKey { id: 256, remote, ttl: 64, flags: 2, ..TunnelKey::default() };
        let (mut data, mut scratch) = (inner(), Vec::new());
        encapsulate(Protocol::Geneve, &mut data, &mut scratch, &key, &outer).unwrap();
        // Port 6081, length 70, no checksum; version 0, no options, no flags, Ethernet inside, VNI 256.
        assert_eq!(data[36..50], [0x17, 0xc1, 0, 70, 0, 0, 0, 0, 0x65, 0x58, 0, 1, 0, 0]);
        assert_eq!(data[50..], inner());
    }

    /// A packet of a tunnel, from its own header on.
    fn wrapped(protocol: Protocol, header: &[u8], class: u8, inner: &[u8]) -> Vec<u8> {
        let udp_len = u16::try_from(8 + header.len() + inner.len()).unwrap();
        let mut frame = vec![6, 6, 6, 6, 6, 6, 8, 8, 8, 8, 8, 8, 8, 0];
        let (from, to) = ("192.168.0.12".parse().unwrap(), "192.168.0.11".parse().unwrap());
        frame::ipv4_header(from, to, UDP, class, 64, 1, 0, udp_len, &mut frame);
        frame.extend([0xc0, 0]);
        frame.extend(protocol.port().to_be_bytes());
        frame.extend(udp_len.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(header);
        frame.extend(inner);
        frame
    }

    fn taken(protocol: Protocol, header: &[u8], class: u8, inner: &[u8]) -> Option<(u32, Vec<u8>)> {
        let (mut data, mut scratch) = (wrapped(protocol, header, class, inner), Vec::new());
        decapsulate(protocol, &mut data, &mut scratch).map(|key| (key.id, data))
    }

    #[test]
    fn options_of_geneve_are_passed_over_and_headers_that_are_not_geneve_are_not_taken() {
        let take = |header: &[u8]| taken(Protocol::Geneve, header, 0, &inner());
        assert_eq!(take(&[0, 0, 0x65, 0x58, 0, 1, 0, 0]), Some((256, inner())));
        let option = [2, 0, 0x65, 0x58, 0, 1, 0, 0, 0x01, 0x4b, 0x01, 1, 9, 9, 9, 9];
        assert_eq!(take(&option), Some((256, inner())));
        // Reserved bits are ignored (RFC 8926, 3.4).
        assert_eq!(take(&[0, 0x3f, 0x65, 0x58, 0, 1, 0, 7]), Some((256, inner())));
        assert_eq!(take(&[0x40, 0, 0x65, 0x58, 0, 1, 0, 0]), None, "another version");
        assert_eq!(take(&[0, 0, 0x08, 0x00, 0, 1, 0, 0]), None, "not Ethernet inside");
        assert_eq!(take(&[0x3f, 0, 0x65, 0x58, 0, 1, 0, 0]), None, "options longer than the packet");
    }

    #[test]
    fn vxlan_with_reserved_bits_is_not_taken_as_the_kernel_does_not() {
        let take = |header: &[u8]| taken(Protocol::Vxlan, header, 0, &inner());
        assert_eq!(take(&[8, 0, 0, 0, 0, 1, 0, 0]), Some((256, inner())));
        assert_eq!(take(&[0x0c, 0, 0, 0, 0, 1, 0, 0]), None);
        assert_eq!(take(&[8, 0, 0, 1, 0, 1, 0, 0]), None);
        assert_eq!(take(&[8, 0, 0, 0, 0, 1, 0, 1]), None);
    }

    #[test]
    fn congestion_outside_reaches_the_ends_or_costs_the_packet() {
        let header = [8, 0, 0, 0, 0, 1, 0, 0];
        let mut able = inner();
        frame::set_class(&mut able, 2);
        let got = taken(Protocol::Vxlan, &header, 3, &able).unwrap().1;
        assert_eq!(frame::class(&got), Some(3));
        assert!(Packet::read(&got).is_ok(), "the header's checksum is right");
        assert_eq!(taken(Protocol::Vxlan, &header, 3, &inner()), None);
    }
}
