//! The tunnel device: VXLAN (RFC 7348) as the kernel's device in metadata mode writes and reads it.
//!
//! Outer UDP source port: FNV-1a over the inner addresses, protocol and first four bytes of the payload, put into the
//! kernel's default port range as `udp_flow_src_port` does. UDP checksum: zero over IPv4 when the program asked for that
//! (as weir does), computed over IPv6. Do-not-fragment is off, the identification counts up per node.

use std::net::IpAddr;

use simulator_vm::TunnelKey;

use super::frame::{self, ETHERNET, Ip, MacBytes};

/// UDP port of VXLAN.
pub const PORT: u16 = 8472;
/// The kernel's default `ip_local_port_range`.
const PORTS: (u32, u32) = (32_768, 60_999);
/// Flag of the VXLAN header: the VNI is valid.
const VNI_VALID: u8 = 0x08;
const UDP: u8 = 17;
const HEADERS: u16 = 16;
/// `BPF_F_ZERO_CSUM_TX`.
const NO_CHECKSUM: u64 = 2;

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
fn source_port(inner: &[u8]) -> u16 {
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
    let spread = u64::from(hash ^ hash << 16) * u64::from(PORTS.1 - PORTS.0);
    let port = u64::from(PORTS.0) + (spread >> 32);
    u16::try_from(port).unwrap_or(u16::MAX)
}

/// Wraps the frame in `data`; `scratch` is room to work in. `None`: too long, or the families of the ends differ.
pub fn encapsulate(data: &mut Vec<u8>, scratch: &mut Vec<u8>, key: &TunnelKey, outer: &Outer) -> Option<()> {
    let inner = u16::try_from(data.len()).ok()?;
    let length = inner.checked_add(HEADERS)?.checked_add(0)?;
    scratch.clear();
    scratch.extend_from_slice(&outer.to);
    scratch.extend_from_slice(&outer.from);
    match (outer.source, key.remote) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            length.checked_add(20)?;
            scratch.extend_from_slice(&[0x08, 0x00]);
            frame::ipv4_header(from, to, UDP, key.ttl, outer.id, 0, length, scratch);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            scratch.extend_from_slice(&[0x86, 0xdd]);
            frame::ipv6_header(from, to, UDP, key.ttl, length, scratch);
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    let start = scratch.len();
    scratch.extend_from_slice(&source_port(data).to_be_bytes());
    scratch.extend_from_slice(&PORT.to_be_bytes());
    scratch.extend_from_slice(&length.to_be_bytes());
    scratch.extend_from_slice(&[0, 0, VNI_VALID, 0, 0, 0]);
    scratch.extend_from_slice(&(key.id << 8).to_be_bytes());
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
pub fn is_for_tunnel(ip: &Ip<'_>) -> bool {
    ip.protocol == UDP && frame::word(ip.payload, 2) == Ok(PORT)
}

/// Unwraps the frame in `data`. `None`: not a VXLAN packet that a device in metadata mode takes.
pub fn decapsulate(data: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Option<TunnelKey> {
    let (source, destination, ttl, start, vni) = {
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
        }
        let &[flags, _, _, _, a, b, c, _] = udp.get(8..16)? else {
            return None;
        };
        if flags != VNI_VALID {
            return None;
        }
        let start = data.len() - udp.len() + usize::from(HEADERS);
        (ip.source, ip.destination, ip.hops, start, u32::from_be_bytes([0, a, b, c]))
    };
    let inner = data.get(start..).filter(|inner| inner.len() >= ETHERNET)?;
    scratch.clear();
    scratch.extend_from_slice(inner);
    std::mem::swap(data, scratch);
    Some(TunnelKey { id: vni, remote: source, local: Some(destination), ttl, ..TunnelKey::default() })
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
        for (source, remote) in [("192.168.0.11", "192.168.0.12"), ("fd00::11", "fd00::12")] {
            let outer = Outer { to: [6; 6], from: [8; 6], source: source.parse().unwrap(), id: 3 };
            let remote = remote.parse().unwrap();
            let key = TunnelKey { id: 0x01_2345, remote, ttl: 64, flags: 2, ..TunnelKey::default() };
            let (mut data, mut scratch) = (inner(), Vec::new());
            encapsulate(&mut data, &mut scratch, &key, &outer).unwrap();
            let got = decapsulate(&mut data, &mut scratch).unwrap();
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
        encapsulate(&mut data, &mut scratch, &key, &outer).unwrap();
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
}
