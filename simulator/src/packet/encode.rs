//! Layers to bytes, from the innermost out: lengths and checksums are known when their header is written.

use super::{Arp, Defaults, Ethernet, Extension, Fragment, Icmp, Ipv4, Ipv6, Layer, Neighbour, Sctp, Tcp, Udp};
use super::{ExtensionKind, checksum, ethertype};

/// The frame that these layers describe.
#[must_use]
pub fn to_bytes(layers: &[Layer], defaults: &Defaults) -> Vec<u8> {
    let mut layers = layers.to_vec();
    Encoder { defaults, simplify: false }.frame(&mut layers)
}

/// Drops every stated field that says what would be computed anyway. Returns the frame.
pub(super) fn simplify(layers: &mut [Layer], defaults: &Defaults) -> Vec<u8> {
    Encoder { defaults, simplify: true }.frame(layers)
}

struct Encoder<'a> {
    defaults: &'a Defaults,
    simplify: bool,
}

/// Where a layer is.
struct Place {
    /// Protocol number of the layer behind it.
    next: u8,
    /// Sum input of the nearest IP header before it: both addresses, and whether it is IPv6.
    addresses: Vec<u8>,
    /// The frame's own addresses.
    frame: Ethernet,
    /// An IPv4 header: the fragment layer behind it.
    fragment: Option<Fragment>,
    /// A fragment layer: the header before it is IPv4.
    behind_ipv4: bool,
}

fn low16(value: usize) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or(u16::MAX)
}

fn low8(value: usize) -> u8 {
    u8::try_from(value & 0xff).unwrap_or(u8::MAX)
}

/// Number of the protocol a layer is; `None` for what has none.
fn number(layer: &Layer) -> Option<u8> {
    match layer {
        Layer::Tcp(_) => Some(6),
        Layer::Udp(_) => Some(17),
        Layer::Sctp(_) => Some(132),
        Layer::Icmp(icmp) => Some(if icmp.v6 { 58 } else { 1 }),
        Layer::Neighbour(_) => Some(58),
        Layer::Fragment(_) => Some(44),
        Layer::Extension(extension) => Some(extension.kind.number()),
        Layer::Ipv4(_) => Some(4),
        Layer::Ipv6(_) => Some(41),
        Layer::Ethernet(_) | Layer::Arp(_) | Layer::Bytes(_) | Layer::Trailer(_) | Layer::Cut(_) => None,
    }
}

fn place(layers: &[Layer], at: usize) -> Place {
    let mut addresses = Vec::new();
    for layer in layers.iter().take(at) {
        match layer {
            Layer::Ipv4(ip) => addresses = [ip.source.octets(), ip.destination.octets()].concat(),
            Layer::Ipv6(ip) => addresses = [ip.source.octets(), ip.destination.octets()].concat(),
            Layer::Ethernet(_)
            | Layer::Arp(_)
            | Layer::Fragment(_)
            | Layer::Extension(_)
            | Layer::Tcp(_)
            | Layer::Udp(_)
            | Layer::Sctp(_)
            | Layer::Icmp(_)
            | Layer::Neighbour(_)
            | Layer::Bytes(_)
            | Layer::Trailer(_)
            | Layer::Cut(_) => {}
        }
    }
    let is_ipv4 = |layer: Option<&Layer>| matches!(layer, Some(Layer::Ipv4(_)));
    let mut behind = layers.get(at + 1);
    let mut fragment = None;
    if let (true, Some(Layer::Fragment(part))) = (is_ipv4(layers.get(at)), behind) {
        fragment = Some(*part);
        behind = layers.get(at + 2);
    }
    let frame = match layers.first() {
        Some(Layer::Ethernet(ethernet)) => *ethernet,
        _ => Ethernet::default(),
    };
    Place {
        next: behind.and_then(number).unwrap_or(59),
        addresses,
        frame,
        fragment,
        behind_ipv4: at.checked_sub(1).is_some_and(|before| is_ipv4(layers.get(before))),
    }
}

impl Encoder<'_> {
    /// The stated value, or the computed one; when simplifying, a stated one that equals it is dropped.
    fn auto<T: Copy + PartialEq>(&self, stated: &mut Option<T>, computed: T) -> T {
        let value = stated.unwrap_or(computed);
        if self.simplify && value == computed {
            *stated = None;
        }
        value
    }

    fn frame(&self, layers: &mut [Layer]) -> Vec<u8> {
        let mut inner = Vec::new();
        let mut trailer = Vec::new();
        let mut cut = None;
        for at in (0..layers.len()).rev() {
            let place = place(layers, at);
            inner = match &mut layers[at] {
                Layer::Ethernet(ethernet) => {
                    let next = ethertype_of(place.next);
                    self.ethernet(ethernet, next, inner)
                }
                Layer::Arp(arp) => self.arp(arp, &place, inner),
                Layer::Ipv4(ip) => self.ipv4(ip, &place, inner),
                Layer::Ipv6(ip) => self.ipv6(ip, &place, inner),
                Layer::Fragment(_) if place.behind_ipv4 => inner,
                Layer::Fragment(fragment) => self.fragment(fragment, &place, inner),
                Layer::Extension(extension) => self.extension(extension, &place, inner),
                Layer::Tcp(tcp) => self.tcp(tcp, &place, inner),
                Layer::Udp(udp) => self.udp(udp, &place, inner),
                Layer::Sctp(sctp) => self.sctp(sctp, inner),
                Layer::Icmp(icmp) => self.icmp(icmp, &place, inner),
                Layer::Neighbour(neighbour) => self.neighbour(neighbour, &place, inner),
                Layer::Bytes(bytes) => [bytes.as_slice(), &inner].concat(),
                Layer::Trailer(bytes) => {
                    trailer.clone_from(bytes);
                    inner
                }
                Layer::Cut(len) => {
                    cut = Some(*len);
                    inner
                }
            };
        }
        let bare = match layers.first() {
            Some(Layer::Ethernet(_) | Layer::Bytes(_) | Layer::Cut(_)) | None => false,
            Some(_) => true,
        };
        if bare {
            let next = layers.first().and_then(number).map_or_else(
                || if matches!(layers.first(), Some(Layer::Arp(_))) { ethertype::ARP } else { ethertype::EXPERIMENT },
                ethertype_of,
            );
            inner = self.ethernet(&mut Ethernet::default(), next, inner);
        } else if let [Layer::Ethernet(ethernet), Layer::Arp(_), ..] = layers {
            // An ARP layer has no protocol number: its EtherType is known only here.
            let value = self.auto(&mut ethernet.ethertype, ethertype::ARP);
            inner[12..14].copy_from_slice(&value.to_be_bytes());
        }
        inner.extend_from_slice(&trailer);
        if let Some(len) = cut {
            inner.truncate(len);
        }
        inner
    }

    fn ethernet(&self, ethernet: &mut Ethernet, computed: u16, inner: Vec<u8>) -> Vec<u8> {
        let mut out = Vec::with_capacity(14 + inner.len());
        out.extend_from_slice(&self.auto(&mut ethernet.destination, self.defaults.destination));
        out.extend_from_slice(&self.auto(&mut ethernet.source, self.defaults.source));
        // What is computed for ARP is known one level up.
        let arp = ethernet.ethertype == Some(ethertype::ARP);
        let value = if arp { ethertype::ARP } else { self.auto(&mut ethernet.ethertype, computed) };
        out.extend_from_slice(&value.to_be_bytes());
        out.extend_from_slice(&inner);
        out
    }

    fn arp(&self, arp: &mut Arp, place: &Place, inner: Vec<u8>) -> Vec<u8> {
        let source = place.frame.source.unwrap_or(self.defaults.source);
        let destination = place.frame.destination.unwrap_or(self.defaults.destination);
        let target = if arp.operation == 1 { [0; 6] } else { destination };
        let mut out = Vec::with_capacity(28);
        out.extend_from_slice(&arp.hardware.to_be_bytes());
        out.extend_from_slice(&arp.protocol.to_be_bytes());
        out.extend_from_slice(&[arp.hardware_len, arp.protocol_len]);
        out.extend_from_slice(&arp.operation.to_be_bytes());
        out.extend_from_slice(&self.auto(&mut arp.sender_mac, source));
        out.extend_from_slice(&arp.sender.octets());
        out.extend_from_slice(&self.auto(&mut arp.target_mac, target));
        out.extend_from_slice(&arp.target.octets());
        out.extend_from_slice(&inner);
        out
    }

    fn ipv4(&self, ip: &mut Ipv4, place: &Place, inner: Vec<u8>) -> Vec<u8> {
        let len = 20 + ip.options.len();
        let ihl = self.auto(&mut ip.ihl, low8(len / 4) & 0xf);
        let total = self.auto(&mut ip.total_len, low16(len + inner.len()));
        let protocol = self.auto(&mut ip.protocol, place.next);
        let mut flags = if ip.dont_fragment { 0x4000 } else { 0 };
        let mut id = ip.id;
        if let Some(part) = place.fragment {
            flags |= (part.offset / 8) & 0x1fff;
            flags |= if part.more { 0x2000 } else { 0 };
            id = low16(usize::try_from(part.id).unwrap_or(0));
        }
        let mut out = vec![ip.version << 4 | ihl & 0xf, ip.tos];
        out.extend_from_slice(&total.to_be_bytes());
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&[ip.ttl, protocol, 0, 0]);
        out.extend_from_slice(&ip.source.octets());
        out.extend_from_slice(&ip.destination.octets());
        out.extend_from_slice(&ip.options);
        let sum = self.auto(&mut ip.checksum, checksum::internet_checksum(&[&out]));
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        out.extend_from_slice(&inner);
        out
    }

    fn ipv6(&self, ip: &mut Ipv6, place: &Place, inner: Vec<u8>) -> Vec<u8> {
        let len = self.auto(&mut ip.payload_len, low16(inner.len()));
        let next = self.auto(&mut ip.next, place.next);
        let word = u32::from(ip.version) << 28 | u32::from(ip.class) << 20 | ip.flow & 0xf_ffff;
        let mut out = word.to_be_bytes().to_vec();
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&[next, ip.hop_limit]);
        out.extend_from_slice(&ip.source.octets());
        out.extend_from_slice(&ip.destination.octets());
        out.extend_from_slice(&inner);
        out
    }

    fn fragment(&self, fragment: &mut Fragment, place: &Place, inner: Vec<u8>) -> Vec<u8> {
        let next = self.auto(&mut fragment.next, place.next);
        let mut out = vec![next, 0];
        let offset = fragment.offset & 0xfff8 | u16::from(fragment.more);
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&fragment.id.to_be_bytes());
        out.extend_from_slice(&inner);
        out
    }

    fn extension(&self, extension: &mut Extension, place: &Place, inner: Vec<u8>) -> Vec<u8> {
        let bytes = extension.data.len() + 2;
        let len = match extension.kind {
            ExtensionKind::Authentication => (bytes / 4).saturating_sub(2),
            ExtensionKind::HopByHop | ExtensionKind::Routing | ExtensionKind::Destination => {
                (bytes / 8).saturating_sub(1)
            }
        };
        let next = self.auto(&mut extension.next, place.next);
        let len = self.auto(&mut extension.len, low8(len));
        let mut out = vec![next, len];
        out.extend_from_slice(&extension.data);
        out.extend_from_slice(&inner);
        out
    }

    fn tcp(&self, tcp: &mut Tcp, place: &Place, inner: Vec<u8>) -> Vec<u8> {
        let words = self.auto(&mut tcp.words, low8(5 + tcp.options.len() / 4) & 0xf);
        let mut out = [tcp.source.to_be_bytes(), tcp.destination.to_be_bytes()].concat();
        out.extend_from_slice(&tcp.sequence.to_be_bytes());
        out.extend_from_slice(&tcp.acknowledgement.to_be_bytes());
        out.extend_from_slice(&[words << 4, tcp.flags]);
        out.extend_from_slice(&tcp.window.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&tcp.urgent.to_be_bytes());
        out.extend_from_slice(&tcp.options);
        out.extend_from_slice(&inner);
        let sum = self.auto(&mut tcp.checksum, pseudo(place, 6, &out));
        out[16..18].copy_from_slice(&sum.to_be_bytes());
        out
    }

    fn udp(&self, udp: &mut Udp, place: &Place, inner: Vec<u8>) -> Vec<u8> {
        let len = self.auto(&mut udp.len, low16(8 + inner.len()));
        let mut out = [udp.source.to_be_bytes(), udp.destination.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
        out.extend_from_slice(&inner);
        // RFC 768: a sum of zero is sent as all ones.
        let computed = match pseudo(place, 17, &out) {
            0 => u16::MAX,
            sum => sum,
        };
        let sum = self.auto(&mut udp.checksum, computed);
        out[6..8].copy_from_slice(&sum.to_be_bytes());
        out
    }

    fn sctp(&self, sctp: &mut Sctp, inner: Vec<u8>) -> Vec<u8> {
        let mut out = [sctp.source.to_be_bytes(), sctp.destination.to_be_bytes()].concat();
        out.extend_from_slice(&sctp.tag.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&inner);
        let sum = self.auto(&mut sctp.checksum, checksum::crc32c(&out));
        out[8..12].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn icmp(&self, icmp: &mut Icmp, place: &Place, inner: Vec<u8>) -> Vec<u8> {
        let mut out = vec![icmp.kind, icmp.code, 0, 0];
        out.extend_from_slice(&icmp.rest);
        out.extend_from_slice(&inner);
        let computed = if icmp.v6 { pseudo(place, 58, &out) } else { checksum::internet_checksum(&[&out]) };
        let sum = self.auto(&mut icmp.checksum, computed);
        out[2..4].copy_from_slice(&sum.to_be_bytes());
        out
    }

    fn neighbour(&self, message: &mut Neighbour, place: &Place, inner: Vec<u8>) -> Vec<u8> {
        let (kind, option) = if message.advertisement { (136, 2) } else { (135, 1) };
        let mut out = vec![kind, message.code, 0, 0];
        out.extend_from_slice(&message.flags);
        out.extend_from_slice(&message.target.octets());
        if let Some(mac) = message.link_layer {
            out.extend_from_slice(&[option, 1]);
            out.extend_from_slice(&mac);
        }
        out.extend_from_slice(&inner);
        let sum = self.auto(&mut message.checksum, pseudo(place, 58, &out));
        out[2..4].copy_from_slice(&sum.to_be_bytes());
        out
    }
}

fn ethertype_of(next: u8) -> u16 {
    match next {
        4 => ethertype::IPV4,
        41 => ethertype::IPV6,
        _ => ethertype::EXPERIMENT,
    }
}

/// The checksum over pseudo header and packet (RFC 9293 3.1, RFC 8200 8.1).
fn pseudo(place: &Place, protocol: u8, packet: &[u8]) -> u16 {
    let len = u32::try_from(packet.len()).unwrap_or(u32::MAX).to_be_bytes();
    checksum::internet_checksum(&[&place.addresses, &len, &[0, 0, 0, protocol], packet])
}
