//! Packets as one line of text, both ways: `ipv4 10.0.0.7 > 10.0.1.5 / tcp 40000 > 80 syn`.
//!
//! A packet is a list of [`Layer`]s, outermost first. A field that follows from the rest (a length, a checksum, the
//! number of the next protocol) is `None` and computed by [`to_bytes`]; a packet that lies about one states it.
//! [`from_bytes`] states only what differs, and what it cannot describe becomes plain bytes.
//!
//! Invariant: `to_bytes(&from_bytes(frame)) == frame` for every frame, and `parse(&text(layers)) == layers`.
//!
//! Formats: RFC 791, 8200, 4302, 826, 792, 4443, 4861, 9293, 768, 9260.

mod checksum;
mod dissect;
mod encode;
mod names;
mod parse;
mod print;

use std::net::{Ipv4Addr, Ipv6Addr};

pub use checksum::{crc32c, internet_checksum};
pub use dissect::from_bytes;
pub use encode::to_bytes;
pub use names::{protocol_name, protocol_number};
pub(crate) use parse::mac;
pub use parse::{PacketError, parse};
pub use print::text;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Ethernet addresses of a packet that does not state them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Source.
    pub source: Mac,
    /// Destination.
    pub destination: Mac,
}

/// One header, or a piece of payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Ethernet II; if a packet does not begin with one, a default one is meant (unless it is plain bytes).
    Ethernet(Ethernet),
    /// ARP.
    Arp(Arp),
    /// IPv4 header.
    Ipv4(Ipv4),
    /// IPv6 fixed header.
    Ipv6(Ipv6),
    /// Fragment: fields of the IPv4 header before it, or the IPv6 extension header.
    Fragment(Fragment),
    /// An IPv6 extension header other than fragment.
    Extension(Extension),
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// SCTP common header.
    Sctp(Sctp),
    /// ICMP or ICMPv6.
    Icmp(Icmp),
    /// ICMPv6 neighbour solicitation or advertisement.
    Neighbour(Neighbour),
    /// Payload.
    Bytes(Vec<u8>),
    /// Bytes behind the end that the IP header states.
    Trailer(Vec<u8>),
    /// The frame is cut off after so many bytes.
    Cut(usize),
}

/// Ethernet II header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ethernet {
    /// Source.
    pub source: Option<Mac>,
    /// Destination.
    pub destination: Option<Mac>,
    /// EtherType; follows from the next layer.
    pub ethertype: Option<u16>,
}

/// ARP for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Hardware type; 1.
    pub hardware: u16,
    /// Protocol type; 0x0800.
    pub protocol: u16,
    /// Length of a hardware address; 6.
    pub hardware_len: u8,
    /// Length of a protocol address; 4.
    pub protocol_len: u8,
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Sender's Ethernet address; the frame's source.
    pub sender_mac: Option<Mac>,
    /// Sender.
    pub sender: Ipv4Addr,
    /// Target's Ethernet address; zeros in a request, the frame's destination else.
    pub target_mac: Option<Mac>,
    /// Target.
    pub target: Ipv4Addr,
}

/// IPv4 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source.
    pub source: Ipv4Addr,
    /// Destination.
    pub destination: Ipv4Addr,
    /// Hops left; 64.
    pub ttl: u8,
    /// Type of service; 0.
    pub tos: u8,
    /// Identification; 0, or that of the fragment layer that follows.
    pub id: u16,
    /// Don't fragment.
    pub dont_fragment: bool,
    /// Version; 4.
    pub version: u8,
    /// Header length in words.
    pub ihl: Option<u8>,
    /// Length of header and payload.
    pub total_len: Option<u16>,
    /// Number of the next protocol.
    pub protocol: Option<u8>,
    /// Header checksum.
    pub checksum: Option<u16>,
    /// Options, a multiple of 4 bytes.
    pub options: Vec<u8>,
}

/// IPv6 fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Source.
    pub source: Ipv6Addr,
    /// Destination.
    pub destination: Ipv6Addr,
    /// Hops left; 64.
    pub hop_limit: u8,
    /// Traffic class; 0.
    pub class: u8,
    /// Flow label, 20 bits; 0.
    pub flow: u32,
    /// Version; 6.
    pub version: u8,
    /// Length of what follows.
    pub payload_len: Option<u16>,
    /// Number of the next header.
    pub next: Option<u8>,
}

/// Fragment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Identification; IPv4 has 16 bits of it.
    pub id: u32,
    /// Offset in bytes, a multiple of 8.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
    /// IPv6: number of the next header.
    pub next: Option<u8>,
}

/// Kinds of [`Extension`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtensionKind {
    /// Hop-by-hop options.
    HopByHop,
    /// Routing.
    Routing,
    /// Destination options.
    Destination,
    /// Authentication.
    Authentication,
}

/// An IPv6 extension header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Which.
    pub kind: ExtensionKind,
    /// Number of the next header.
    pub next: Option<u8>,
    /// The length byte.
    pub len: Option<u8>,
    /// What is behind next header and length.
    pub data: Vec<u8>,
}

/// TCP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128.
    pub flags: u8,
    /// Sequence number; 0.
    pub sequence: u32,
    /// Acknowledgement number; 0.
    pub acknowledgement: u32,
    /// Window; 65535.
    pub window: u16,
    /// Urgent pointer; 0.
    pub urgent: u16,
    /// Header length in words.
    pub words: Option<u8>,
    /// Checksum.
    pub checksum: Option<u16>,
    /// Options, a multiple of 4 bytes.
    pub options: Vec<u8>,
}

/// UDP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Length of header and payload.
    pub len: Option<u16>,
    /// Checksum.
    pub checksum: Option<u16>,
}

/// SCTP common header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sctp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Verification tag; 0.
    pub tag: u32,
    /// CRC32c.
    pub checksum: Option<u32>,
}

/// The first 8 bytes of ICMP and ICMPv6. An error message quotes the layers that follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// ICMPv6.
    pub v6: bool,
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Bytes 4 to 7: identifier and sequence number, MTU, pointer.
    pub rest: [u8; 4],
    /// Checksum.
    pub checksum: Option<u16>,
}

/// Neighbour solicitation or advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Type 136 (else 135).
    pub advertisement: bool,
    /// Code; 0.
    pub code: u8,
    /// Bytes 4 to 7: flags of an advertisement.
    pub flags: [u8; 4],
    /// Target.
    pub target: Ipv6Addr,
    /// Link-layer address option: source (1) in a solicitation, target (2) in an advertisement.
    pub link_layer: Option<Mac>,
    /// Checksum.
    pub checksum: Option<u16>,
}

impl Default for Arp {
    fn default() -> Self {
        Self {
            hardware: 1,
            protocol: ethertype::IPV4,
            hardware_len: 6,
            protocol_len: 4,
            operation: 1,
            sender_mac: None,
            sender: Ipv4Addr::UNSPECIFIED,
            target_mac: None,
            target: Ipv4Addr::UNSPECIFIED,
        }
    }
}

impl Ipv4 {
    /// A header with defaults.
    #[must_use]
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self {
            source,
            destination,
            ttl: 64,
            tos: 0,
            id: 0,
            dont_fragment: false,
            version: 4,
            ihl: None,
            total_len: None,
            protocol: None,
            checksum: None,
            options: Vec::new(),
        }
    }
}

impl Ipv6 {
    /// A header with defaults.
    #[must_use]
    pub fn new(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self { source, destination, hop_limit: 64, class: 0, flow: 0, version: 6, payload_len: None, next: None }
    }
}

impl Tcp {
    /// A header with defaults.
    #[must_use]
    pub fn new(source: u16, destination: u16, flags: u8) -> Self {
        Self {
            source,
            destination,
            flags,
            sequence: 0,
            acknowledgement: 0,
            window: u16::MAX,
            urgent: 0,
            words: None,
            checksum: None,
            options: Vec::new(),
        }
    }
}

impl Icmp {
    /// A message without identifier.
    #[must_use]
    pub fn new(v6: bool, kind: u8, code: u8) -> Self {
        Self { v6, kind, code, rest: [0; 4], checksum: None }
    }

    /// An echo request or reply.
    #[must_use]
    pub fn echo(v6: bool, reply: bool, id: u16, sequence: u16) -> Self {
        let kind = match (v6, reply) {
            (false, false) => 8,
            (false, true) => 0,
            (true, false) => 128,
            (true, true) => 129,
        };
        let ([a, b], [c, d]) = (id.to_be_bytes(), sequence.to_be_bytes());
        Self { v6, kind, code: 0, rest: [a, b, c, d], checksum: None }
    }

    /// Whether the message quotes a packet.
    #[must_use]
    pub fn is_error(&self) -> bool {
        if self.v6 { (1..=4).contains(&self.kind) } else { matches!(self.kind, 3 | 4 | 5 | 11 | 12) }
    }
}

impl ExtensionKind {
    /// Number as a next header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::HopByHop => 0,
            Self::Routing => 43,
            Self::Authentication => 51,
            Self::Destination => 60,
        }
    }

    /// From the number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::HopByHop),
            43 => Some(Self::Routing),
            51 => Some(Self::Authentication),
            60 => Some(Self::Destination),
            _ => None,
        }
    }

    /// Bytes of a header whose length byte is `len`.
    #[must_use]
    pub fn bytes(self, len: u8) -> usize {
        match self {
            Self::Authentication => (usize::from(len) + 2) * 4,
            Self::HopByHop | Self::Routing | Self::Destination => (usize::from(len) + 1) * 8,
        }
    }
}

impl Extension {
    /// A header that carries nothing: padding options of `words` times 8 bytes (authentication: zeros, 24 bytes).
    #[must_use]
    pub fn padding(kind: ExtensionKind, words: u8) -> Self {
        let bytes = match kind {
            ExtensionKind::Authentication => 22,
            ExtensionKind::HopByHop | ExtensionKind::Routing | ExtensionKind::Destination => {
                usize::from(words.max(1)) * 8 - 2
            }
        };
        let mut data = vec![0; bytes];
        let option = match kind {
            ExtensionKind::HopByHop | ExtensionKind::Destination => true,
            ExtensionKind::Authentication | ExtensionKind::Routing => false,
        };
        // PadN options of at most 255 bytes of content.
        let mut at = 0;
        while option && at + 1 < bytes {
            let content = (bytes - at - 2).min(255);
            data[at] = 1;
            data[at + 1] = u8::try_from(content).unwrap_or(u8::MAX);
            at += content + 2;
        }
        Self { kind, next: None, len: None, data }
    }
}

/// EtherTypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// What a frame has whose payload says nothing: local experiments (IEEE 802).
    pub const EXPERIMENT: u16 = 0x88b5;
}

/// Payload of `len` bytes as `payload N` writes it.
#[must_use]
pub fn pattern(len: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(len).collect()
}

/// A frame's text.
#[must_use]
pub fn describe(frame: &[u8], defaults: &Defaults) -> String {
    text(&from_bytes(frame, defaults))
}

/// A frame from its text.
///
/// # Errors
/// [`PacketError`]: which word is wrong and what would be right.
pub fn frame(line: &str, defaults: &Defaults) -> Result<Vec<u8>, PacketError> {
    parse(line).map(|layers| to_bytes(&layers, defaults))
}

#[cfg(test)]
mod tests;
