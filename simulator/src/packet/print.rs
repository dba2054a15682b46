//! Layers to text: the canonical line, shortest first.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::names::{self, protocol_name};
use super::{Arp, Ethernet, Extension, ExtensionKind, Fragment, Icmp, Ipv4, Ipv6, Layer, Mac, Neighbour, Sctp};
use super::{Tcp, Udp, ethertype, pattern};

/// The line that describes these layers.
#[must_use]
pub fn text(layers: &[Layer]) -> String {
    layers.iter().map(layer).collect::<Vec<_>>().join(" / ")
}

/// An Ethernet address.
pub(crate) fn mac(mac: &Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn protocol(number: u8) -> String {
    protocol_name(number).map_or_else(|| number.to_string(), str::to_owned)
}

/// A line that grows by words.
struct Line(String);

impl Line {
    fn word(&mut self, word: impl std::fmt::Display) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = write!(self.0, " {word}");
        self
    }

    fn field(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        self.word(name).word(value)
    }

    /// Only if the value is there.
    fn stated(&mut self, name: &str, value: Option<impl std::fmt::Display>) -> &mut Self {
        match value {
            Some(value) => self.field(name, value),
            None => self,
        }
    }

    /// Only if the value is not the default.
    fn unless<T: std::fmt::Display + PartialEq>(&mut self, default: T, name: &str, value: T) -> &mut Self {
        if value == default { self } else { self.field(name, value) }
    }

    fn flag(&mut self, on: bool, name: &str) -> &mut Self {
        if on { self.word(name) } else { self }
    }
}

fn layer(layer: &Layer) -> String {
    match layer {
        Layer::Ethernet(ethernet) => self::ethernet(ethernet),
        Layer::Arp(arp) => self::arp(arp),
        Layer::Ipv4(ip) => ipv4(ip),
        Layer::Ipv6(ip) => ipv6(ip),
        Layer::Fragment(part) => fragment(part),
        Layer::Extension(extension) => self::extension(extension),
        Layer::Tcp(tcp) => self::tcp(tcp),
        Layer::Udp(udp) => self::udp(udp),
        Layer::Sctp(sctp) => self::sctp(sctp),
        Layer::Icmp(icmp) => self::icmp(icmp),
        Layer::Neighbour(neighbour) => self::neighbour(neighbour),
        Layer::Bytes(bytes) => self::bytes(bytes),
        Layer::Trailer(bytes) => format!("trailer {}", hex(bytes)),
        Layer::Cut(len) => format!("cut {len}"),
    }
}

fn bytes(bytes: &[u8]) -> String {
    if let [kind, 0, 0, 4] = bytes
        && let Some(name) = names::name(&names::CHUNKS, *kind)
    {
        return format!("chunk {name}");
    }
    if bytes == pattern(bytes.len()) {
        return format!("payload {}", bytes.len());
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return format!("zeros {}", bytes.len());
    }
    format!("hex {}", hex(bytes))
}

fn ethernet(ethernet: &Ethernet) -> String {
    let mut line = Line("eth".to_owned());
    match (&ethernet.source, &ethernet.destination) {
        (Some(source), Some(destination)) => {
            line.word(mac(source)).word(">").word(mac(destination));
        }
        (source, destination) => {
            line.stated("src", source.as_ref().map(mac)).stated("dst", destination.as_ref().map(mac));
        }
    }
    line.stated("type", ethernet.ethertype.map(|number| format!("{number:#06x}")));
    line.0
}

fn arp(arp: &Arp) -> String {
    let operation = match arp.operation {
        1 => "request".to_owned(),
        2 => "reply".to_owned(),
        other => other.to_string(),
    };
    let mut line = Line(format!("arp {operation} {} > {}", arp.sender, arp.target));
    line.stated("sender", arp.sender_mac.as_ref().map(mac))
        .stated("target", arp.target_mac.as_ref().map(mac))
        .unless(1, "hardware", arp.hardware)
        .unless(ethertype::IPV4, "protocol", arp.protocol)
        .unless(6, "hardware-len", arp.hardware_len)
        .unless(4, "protocol-len", arp.protocol_len);
    line.0
}

fn ipv4(ip: &Ipv4) -> String {
    let (source, destination): (Ipv4Addr, Ipv4Addr) = (ip.source, ip.destination);
    let mut line = Line(format!("ipv4 {source} > {destination}"));
    line.unless(64, "ttl", ip.ttl)
        .unless(0, "tos", ip.tos)
        .unless(0, "id", ip.id)
        .flag(ip.dont_fragment, "df")
        .unless(4, "version", ip.version)
        .stated("ihl", ip.ihl)
        .stated("total-len", ip.total_len)
        .stated("proto", ip.protocol.map(protocol))
        .stated("checksum", ip.checksum.map(|sum| format!("{sum:#06x}")))
        .stated("options", (!ip.options.is_empty()).then(|| hex(&ip.options)));
    line.0
}

fn ipv6(ip: &Ipv6) -> String {
    let mut line = Line(format!("ipv6 {} > {}", ip.source, ip.destination));
    line.unless(64, "hop", ip.hop_limit)
        .unless(0, "class", ip.class)
        .unless(0, "flow", ip.flow)
        .unless(6, "version", ip.version)
        .stated("payload-len", ip.payload_len)
        .stated("next", ip.next.map(protocol));
    line.0
}

fn fragment(part: &Fragment) -> String {
    let mut line = Line("frag".to_owned());
    line.field("id", part.id)
        .field("offset", part.offset)
        .flag(part.more, "more")
        .stated("next", part.next.map(protocol));
    line.0
}

fn extension(extension: &Extension) -> String {
    let name = match extension.kind {
        ExtensionKind::HopByHop => "hop-by-hop",
        ExtensionKind::Routing => "routing",
        ExtensionKind::Destination => "dest-opts",
        ExtensionKind::Authentication => "auth",
    };
    let mut line = Line(name.to_owned());
    let words = u8::try_from((extension.data.len() + 2) / 8).unwrap_or(u8::MAX);
    if extension.data == Extension::padding(extension.kind, 1).data {
        // The default.
    } else if extension.data == Extension::padding(extension.kind, words).data {
        line.field("words", words);
    } else {
        line.field("data", hex(&extension.data));
    }
    line.stated("next", extension.next.map(protocol)).stated("len", extension.len);
    line.0
}

fn tcp(tcp: &Tcp) -> String {
    let mut line = Line(format!("tcp {} > {}", tcp.source, tcp.destination));
    for (bit, name) in names::TCP_FLAGS {
        line.flag(tcp.flags & bit != 0, name);
    }
    line.unless(0, "seq", tcp.sequence)
        .unless(0, "ack-no", tcp.acknowledgement)
        .unless(u16::MAX, "window", tcp.window)
        .unless(0, "urgent", tcp.urgent)
        .stated("words", tcp.words)
        .stated("checksum", tcp.checksum.map(|sum| format!("{sum:#06x}")))
        .stated("options", (!tcp.options.is_empty()).then(|| hex(&tcp.options)));
    line.0
}

fn udp(udp: &Udp) -> String {
    let mut line = Line(format!("udp {} > {}", udp.source, udp.destination));
    line.stated("len", udp.len).stated("checksum", udp.checksum.map(|sum| format!("{sum:#06x}")));
    line.0
}

fn sctp(sctp: &Sctp) -> String {
    let mut line = Line(format!("sctp {} > {}", sctp.source, sctp.destination));
    line.unless(0, "tag", sctp.tag).stated("checksum", sctp.checksum.map(|sum| format!("{sum:#010x}")));
    line.0
}

fn icmp(icmp: &Icmp) -> String {
    let mut line = Line(if icmp.v6 { "icmp6" } else { "icmp" }.to_owned());
    let [a, b, c, d] = icmp.rest;
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let rest = u32::from_be_bytes(icmp.rest);
    let rest_text = format!("{rest:#x}");
    match (icmp.v6, icmp.kind) {
        (false, 8 | 0) | (true, 128 | 129) => {
            line.word(if matches!(icmp.kind, 8 | 128) { "echo" } else { "echo-reply" });
            line.unless(0, "code", icmp.code).field("id", high).field("seq", low);
        }
        (false, 3) => {
            line.word("unreachable");
            match names::name(&names::UNREACHABLE, icmp.code) {
                Some(name) => line.word(name),
                None => line.field("code", icmp.code),
            };
            if high == 0 {
                line.unless(0, "mtu", low);
            } else {
                line.field("rest", rest_text);
            }
        }
        (true, 1) => {
            line.word("unreachable");
            match names::name(&names::UNREACHABLE6, icmp.code) {
                Some(name) => line.word(name),
                None => line.field("code", icmp.code),
            };
            if rest != 0 {
                line.field("rest", rest_text);
            }
        }
        (true, 2) => {
            line.word("packet-too-big").unless(0, "code", icmp.code).field("mtu", rest);
        }
        (v6, kind) => {
            let name = match (v6, kind) {
                (false, 11) | (true, 3) => Some("time-exceeded"),
                (false, 12) | (true, 4) => Some("param-problem"),
                (true, 133) => Some("rs"),
                (true, 134) => Some("ra"),
                _ => None,
            };
            match name {
                Some(name) => line.word(name),
                None => line.field("type", kind),
            };
            line.unless(0, "code", icmp.code);
            if rest != 0 {
                line.field("rest", rest_text);
            }
        }
    }
    line.stated("checksum", icmp.checksum.map(|sum| format!("{sum:#06x}")));
    line.0
}

fn neighbour(message: &Neighbour) -> String {
    let mut line = Line(format!("icmp6 {} {}", if message.advertisement { "na" } else { "ns" }, message.target));
    let [first, rest @ ..] = message.flags;
    if rest == [0; 3] && first & 0x1f == 0 {
        line.flag(first & 0x80 != 0, "router").flag(first & 0x40 != 0, "solicited").flag(first & 0x20 != 0, "override");
    } else {
        line.field("flags", format!("{:#x}", u32::from_be_bytes(message.flags)));
    }
    line.stated("link", message.link_layer.as_ref().map(mac))
        .unless(0, "code", message.code)
        .stated("checksum", message.checksum.map(|sum| format!("{sum:#06x}")));
    line.0
}
