//! Bytes to layers.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Arp, Defaults, Ethernet, Extension, ExtensionKind, Fragment, Icmp, Ipv4, Ipv6, Layer, Neighbour, Sctp};
use super::{Tcp, Udp, encode, ethertype};

/// The layers of a frame. Fields that say what would be computed are left out; a frame that no layers describe exactly
/// is one layer of bytes.
#[must_use]
pub fn from_bytes(frame: &[u8], defaults: &Defaults) -> Vec<Layer> {
    let mut layers = Vec::new();
    if dissect(frame, &mut layers).is_some() && encode::simplify(&mut layers, defaults) == frame {
        if let Some(Layer::Ethernet(Ethernet { source: None, destination: None, ethertype: None })) = layers.first()
            && layers.len() > 1
            && !matches!(layers.get(1), Some(Layer::Bytes(_) | Layer::Cut(_) | Layer::Trailer(_)))
        {
            layers.remove(0);
        }
        return layers;
    }
    vec![Layer::Bytes(frame.to_vec())]
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn dissect(frame: &[u8], layers: &mut Vec<Layer>) -> Option<()> {
    let kind = half(frame, 12)?;
    layers.push(Layer::Ethernet(Ethernet {
        destination: Some(array(frame, 0)?),
        source: Some(array(frame, 6)?),
        ethertype: Some(kind),
    }));
    let rest = frame.get(14..)?;
    let known = match kind {
        ethertype::ARP => arp(rest, layers),
        ethertype::IPV4 => ipv4(rest, layers, true),
        ethertype::IPV6 => ipv6(rest, layers, true),
        _ => None,
    };
    if known.is_none() {
        layers.truncate(1);
        bytes(rest, layers);
    }
    Some(())
}

fn bytes(rest: &[u8], layers: &mut Vec<Layer>) {
    if !rest.is_empty() {
        layers.push(Layer::Bytes(rest.to_vec()));
    }
}

fn arp(rest: &[u8], layers: &mut Vec<Layer>) -> Option<()> {
    layers.push(Layer::Arp(Arp {
        hardware: half(rest, 0)?,
        protocol: half(rest, 2)?,
        hardware_len: *rest.get(4)?,
        protocol_len: *rest.get(5)?,
        operation: half(rest, 6)?,
        sender_mac: Some(array(rest, 8)?),
        sender: Ipv4Addr::from(array::<4>(rest, 14)?),
        target_mac: Some(array(rest, 18)?),
        target: Ipv4Addr::from(array::<4>(rest, 24)?),
    }));
    let trailer = rest.get(28..)?;
    if !trailer.is_empty() {
        layers.push(Layer::Trailer(trailer.to_vec()));
    }
    Some(())
}

/// `outer`: what is behind the stated length is a trailer.
fn ipv4(rest: &[u8], layers: &mut Vec<Layer>, outer: bool) -> Option<()> {
    let first = *rest.first()?;
    let stated = usize::from(first & 0xf) * 4;
    let header = if stated >= 20 && stated <= rest.len() { stated } else { 20 };
    let total = half(rest, 2)?;
    let fragment = half(rest, 6)?;
    let parts = fragment & 0x3fff;
    let id = half(rest, 4)?;
    let protocol = *rest.get(9)?;
    layers.push(Layer::Ipv4(Ipv4 {
        source: Ipv4Addr::from(array::<4>(rest, 12)?),
        destination: Ipv4Addr::from(array::<4>(rest, 16)?),
        ttl: *rest.get(8)?,
        tos: *rest.get(1)?,
        id: if parts == 0 { id } else { 0 },
        dont_fragment: fragment & 0x4000 != 0,
        version: first >> 4,
        ihl: Some(first & 0xf),
        total_len: Some(total),
        protocol: Some(protocol),
        checksum: half(rest, 10),
        options: rest.get(20..header)?.to_vec(),
    }));
    if parts != 0 {
        layers.push(Layer::Fragment(Fragment {
            id: u32::from(id),
            offset: (fragment & 0x1fff) << 3,
            more: fragment & 0x2000 != 0,
            next: None,
        }));
    }
    let end = Some(usize::from(total)).filter(|end| outer && (header..=rest.len()).contains(end));
    let end = end.unwrap_or(rest.len());
    let payload = rest.get(header..end)?;
    upper(payload, if parts & 0x1fff == 0 { protocol } else { 59 }, layers);
    if end < rest.len() {
        layers.push(Layer::Trailer(rest.get(end..)?.to_vec()));
    }
    Some(())
}

fn ipv6(rest: &[u8], layers: &mut Vec<Layer>, outer: bool) -> Option<()> {
    let first = word(rest, 0)?;
    let stated = half(rest, 4)?;
    let mut next = *rest.get(6)?;
    let [version, class, ..] = [first >> 28, first >> 20 & 0xff].map(|value| u8::try_from(value).unwrap_or(0));
    layers.push(Layer::Ipv6(Ipv6 {
        source: Ipv6Addr::from(array::<16>(rest, 8)?),
        destination: Ipv6Addr::from(array::<16>(rest, 24)?),
        hop_limit: *rest.get(7)?,
        class,
        flow: first & 0xf_ffff,
        version,
        payload_len: Some(stated),
        next: Some(next),
    }));
    let end = Some(usize::from(stated) + 40).filter(|end| outer && *end <= rest.len()).unwrap_or(rest.len());
    let mut payload = rest.get(40..end)?;
    loop {
        if next == 44 {
            let (Some(offset), Some(id), Some(0)) = (half(payload, 2), word(payload, 4), payload.get(1).copied())
            else {
                break;
            };
            if offset & 6 != 0 {
                break;
            }
            next = *payload.first()?;
            layers.push(Layer::Fragment(Fragment {
                id,
                offset: offset & 0xfff8,
                more: offset & 1 != 0,
                next: Some(next),
            }));
            payload = payload.get(8..)?;
            if offset & 0xfff8 != 0 {
                next = 59;
                break;
            }
            continue;
        }
        let (Some(kind), Some(len)) = (ExtensionKind::from_number(next), payload.get(1).copied()) else {
            break;
        };
        let Some(data) = payload.get(2..kind.bytes(len)) else {
            break;
        };
        next = *payload.first()?;
        layers.push(Layer::Extension(Extension { kind, next: Some(next), len: Some(len), data: data.to_vec() }));
        payload = payload.get(kind.bytes(len)..)?;
    }
    upper(payload, next, layers);
    if end < rest.len() {
        layers.push(Layer::Trailer(rest.get(end..)?.to_vec()));
    }
    Some(())
}

fn upper(payload: &[u8], protocol: u8, layers: &mut Vec<Layer>) {
    let before = layers.len();
    let known = match protocol {
        6 => tcp(payload, layers),
        17 => udp(payload, layers),
        132 => sctp(payload, layers),
        1 => icmp(payload, false, layers),
        58 => icmp(payload, true, layers),
        _ => None,
    };
    if known.is_none() {
        layers.truncate(before);
        bytes(payload, layers);
    }
}

fn tcp(payload: &[u8], layers: &mut Vec<Layer>) -> Option<()> {
    let place = *payload.get(12)?;
    // The reserved bits have no words here.
    if place & 0xf != 0 {
        return None;
    }
    let stated = usize::from(place >> 4) * 4;
    let header = if stated >= 20 && stated <= payload.len() { stated } else { 20 };
    layers.push(Layer::Tcp(Tcp {
        source: half(payload, 0)?,
        destination: half(payload, 2)?,
        flags: *payload.get(13)?,
        sequence: word(payload, 4)?,
        acknowledgement: word(payload, 8)?,
        window: half(payload, 14)?,
        urgent: half(payload, 18)?,
        words: Some(place >> 4),
        checksum: half(payload, 16),
        options: payload.get(20..header)?.to_vec(),
    }));
    bytes(payload.get(header..)?, layers);
    Some(())
}

fn udp(payload: &[u8], layers: &mut Vec<Layer>) -> Option<()> {
    layers.push(Layer::Udp(Udp {
        source: half(payload, 0)?,
        destination: half(payload, 2)?,
        len: Some(half(payload, 4)?),
        checksum: Some(half(payload, 6)?),
    }));
    bytes(payload.get(8..)?, layers);
    Some(())
}

fn sctp(payload: &[u8], layers: &mut Vec<Layer>) -> Option<()> {
    layers.push(Layer::Sctp(Sctp {
        source: half(payload, 0)?,
        destination: half(payload, 2)?,
        tag: word(payload, 4)?,
        checksum: Some(u32::from_le_bytes(array(payload, 8)?)),
    }));
    bytes(payload.get(12..)?, layers);
    Some(())
}

fn icmp(payload: &[u8], v6: bool, layers: &mut Vec<Layer>) -> Option<()> {
    let message = Icmp {
        v6,
        kind: *payload.first()?,
        code: *payload.get(1)?,
        rest: array(payload, 4)?,
        checksum: half(payload, 2),
    };
    if v6 && neighbour(payload, &message, layers).is_some() {
        return Some(());
    }
    layers.push(Layer::Icmp(message));
    let rest = payload.get(8..)?;
    let before = layers.len();
    let quoted = match rest.first() {
        Some(first) if message.is_error() && first >> 4 == 4 => ipv4(rest, layers, false),
        Some(first) if message.is_error() && first >> 4 == 6 => ipv6(rest, layers, false),
        _ => None,
    };
    if quoted.is_none() {
        layers.truncate(before);
        bytes(rest, layers);
    }
    Some(())
}

fn neighbour(payload: &[u8], message: &Icmp, layers: &mut Vec<Layer>) -> Option<()> {
    let (advertisement, option) = match message.kind {
        135 => (false, 1),
        136 => (true, 2),
        _ => return None,
    };
    let target = Ipv6Addr::from(array::<16>(payload, 8)?);
    let rest = payload.get(24..)?;
    let link_layer = if rest.starts_with(&[option, 1]) { array(rest, 2) } else { None };
    layers.push(Layer::Neighbour(Neighbour {
        advertisement,
        code: message.code,
        flags: message.rest,
        target,
        link_layer,
        checksum: message.checksum,
    }));
    bytes(rest.get(if link_layer.is_some() { 8 } else { 0 }..)?, layers);
    Some(())
}
