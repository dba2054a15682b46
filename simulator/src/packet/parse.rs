//! Text to layers.

use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::names::{self, protocol_number};
use super::{Arp, Ethernet, Extension, ExtensionKind, Fragment, Icmp, Ipv4, Ipv6, Layer, Mac, Neighbour, Sctp};
use super::{Tcp, Udp, pattern};

/// A line that is no packet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packet layer `{layer}`: {reason}")]
pub struct PacketError {
    /// The layer's text.
    pub layer: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// The words of one layer.
struct Words<'a> {
    layer: &'a str,
    rest: std::str::SplitWhitespace<'a>,
}

type Result<T> = std::result::Result<T, PacketError>;

impl<'a> Words<'a> {
    fn new(layer: &'a str) -> Self {
        Self { layer, rest: layer.split_whitespace() }
    }

    fn error(&self, reason: impl Display) -> PacketError {
        PacketError { layer: self.layer.to_owned(), reason: reason.to_string() }
    }

    fn next(&mut self) -> Option<&'a str> {
        self.rest.next()
    }

    fn word(&mut self, what: &str) -> Result<&'a str> {
        self.rest.next().ok_or_else(|| self.error(format_args!("{what} is missing")))
    }

    fn value<T: FromStr>(&mut self, what: &str) -> Result<T> {
        let word = self.word(what)?;
        word.parse().map_err(|_| self.error(format_args!("`{word}` is not {what}")))
    }

    /// A number, decimal or `0x` hexadecimal.
    fn number<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T> {
        let word = self.word(what)?;
        let parsed = match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => word.parse().ok(),
        };
        parsed
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| self.error(format_args!("`{word}` is not {what}")))
    }

    fn arrow(&mut self) -> Result<()> {
        match self.next() {
            Some(">") => Ok(()),
            other => Err(self.error(format_args!("`>` expected, not `{}`", other.unwrap_or("")))),
        }
    }

    fn mac(&mut self) -> Result<Mac> {
        let word = self.word("an Ethernet address")?;
        mac(word).ok_or_else(|| self.error(format_args!("`{word}` is not an Ethernet address")))
    }

    fn protocol(&mut self) -> Result<u8> {
        let word = self.word("a protocol")?;
        protocol_number(word).ok_or_else(|| self.error(format_args!("`{word}` is not a protocol")))
    }

    fn hex(&mut self) -> Result<Vec<u8>> {
        let word = self.word("hexadecimal bytes")?;
        hex(word).ok_or_else(|| self.error(format_args!("`{word}` is not hexadecimal bytes")))
    }

    fn unknown(&self, word: &str, known: &str) -> PacketError {
        self.error(format_args!("`{word}` is not known here; known: {known}"))
    }

    fn end(&mut self) -> Result<()> {
        match self.next() {
            None => Ok(()),
            Some(word) => Err(self.error(format_args!("`{word}` is too much"))),
        }
    }

    fn ports(&mut self) -> Result<(u16, u16)> {
        let source = self.number("a source port")?;
        self.arrow()?;
        Ok((source, self.number("a destination port")?))
    }
}

/// An Ethernet address: six hexadecimal bytes with colons.
pub(crate) fn mac(word: &str) -> Option<Mac> {
    let mut bytes = [0; 6];
    let mut parts = word.split(':');
    for byte in &mut bytes {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 2 {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

fn hex(word: &str) -> Option<Vec<u8>> {
    if !word.is_ascii() || !word.len().is_multiple_of(2) {
        return None;
    }
    (0..word.len()).step_by(2).map(|at| u8::from_str_radix(word.get(at..at + 2)?, 16).ok()).collect()
}

/// The layers that a line describes.
///
/// # Errors
/// [`PacketError`].
pub fn parse(line: &str) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    for text in line.split('/').map(str::trim) {
        let mut words = Words::new(text);
        let layer = layer(&mut words)?;
        words.end()?;
        if let (Layer::Fragment(part), Some(Layer::Ipv4(ip))) = (&layer, layers.last_mut()) {
            if part.id > u32::from(u16::MAX) || part.offset > 0xfff8 {
                return Err(words.error("IPv4 has 16 bits of identification"));
            }
            ip.id = 0;
        }
        layers.push(layer);
    }
    Ok(layers)
}

const KINDS: &str = "eth, arp, ipv4, ipv6, frag, hop-by-hop, routing, dest-opts, auth, tcp, udp, sctp, icmp, icmp6, \
                     payload, zeros, hex, trailer, cut";

fn layer(words: &mut Words<'_>) -> Result<Layer> {
    match words.word("a kind of layer")? {
        "eth" => ethernet(words),
        "arp" => arp(words),
        "ipv4" => ipv4(words),
        "ipv6" => ipv6(words),
        "frag" => fragment(words),
        "hop-by-hop" => extension(words, ExtensionKind::HopByHop),
        "routing" => extension(words, ExtensionKind::Routing),
        "dest-opts" => extension(words, ExtensionKind::Destination),
        "auth" => extension(words, ExtensionKind::Authentication),
        "tcp" => tcp(words),
        "udp" => udp(words),
        "sctp" => sctp(words),
        "icmp" => icmp(words),
        "icmp6" => icmp6(words),
        "payload" => Ok(Layer::Bytes(pattern(len(words)?))),
        "zeros" => Ok(Layer::Bytes(vec![0; len(words)?])),
        "hex" => Ok(Layer::Bytes(words.hex()?)),
        "chunk" => chunk(words),
        "trailer" => Ok(Layer::Trailer(words.hex()?)),
        "cut" => Ok(Layer::Cut(words.value("a number of bytes")?)),
        other => Err(words.unknown(other, KINDS)),
    }
}

fn len(words: &mut Words<'_>) -> Result<usize> {
    let len = words.value("a number of bytes")?;
    if len > 65_535 { Err(words.error("at most 65535 bytes")) } else { Ok(len) }
}

fn chunk(words: &mut Words<'_>) -> Result<Layer> {
    let word = words.word("a chunk")?;
    match names::number(&names::CHUNKS, word) {
        Some(kind) => Ok(Layer::Bytes(vec![kind, 0, 0, 4])),
        None => Err(words.unknown(word, "data, init, init-ack, abort, shutdown, cookie-echo, cookie-ack")),
    }
}

fn ethernet(words: &mut Words<'_>) -> Result<Layer> {
    let mut ethernet = Ethernet::default();
    while let Some(word) = words.next() {
        match word {
            "src" => ethernet.source = Some(words.mac()?),
            "dst" => ethernet.destination = Some(words.mac()?),
            "type" => ethernet.ethertype = Some(words.number("an EtherType")?),
            _ if ethernet == Ethernet::default() => {
                ethernet.source = Some(mac(word).ok_or_else(|| words.unknown(word, "src, dst, type, MAC > MAC"))?);
                words.arrow()?;
                ethernet.destination = Some(words.mac()?);
            }
            other => return Err(words.unknown(other, "src, dst, type")),
        }
    }
    Ok(Layer::Ethernet(ethernet))
}

fn arp(words: &mut Words<'_>) -> Result<Layer> {
    let operation = match words.word("request, reply or a number")? {
        "request" => 1,
        "reply" => 2,
        other => other.parse().map_err(|_| words.unknown(other, "request, reply, a number"))?,
    };
    let mut arp = Arp { operation, ..Arp::default() };
    arp.sender = words.value("an IPv4 address")?;
    words.arrow()?;
    arp.target = words.value("an IPv4 address")?;
    while let Some(word) = words.next() {
        match word {
            "sender" => arp.sender_mac = Some(words.mac()?),
            "target" => arp.target_mac = Some(words.mac()?),
            "hardware" => arp.hardware = words.number("a 16-bit number")?,
            "protocol" => arp.protocol = words.number("a 16-bit number")?,
            "hardware-len" => arp.hardware_len = words.number("an 8-bit number")?,
            "protocol-len" => arp.protocol_len = words.number("an 8-bit number")?,
            other => {
                return Err(words.unknown(other, "sender, target, hardware, protocol, hardware-len, protocol-len"));
            }
        }
    }
    Ok(Layer::Arp(arp))
}

fn ipv4(words: &mut Words<'_>) -> Result<Layer> {
    let source: Ipv4Addr = words.value("an IPv4 address")?;
    words.arrow()?;
    let mut ip = Ipv4::new(source, words.value("an IPv4 address")?);
    while let Some(word) = words.next() {
        match word {
            "ttl" => ip.ttl = words.number("a hop limit")?,
            "tos" => ip.tos = words.number("an 8-bit number")?,
            "id" => ip.id = words.number("a 16-bit number")?,
            "df" => ip.dont_fragment = true,
            "version" => ip.version = words.number::<u8>("a number below 16")? & 0xf,
            "ihl" => ip.ihl = Some(words.number::<u8>("a number below 16")? & 0xf),
            "total-len" => ip.total_len = Some(words.number("a 16-bit number")?),
            "proto" => ip.protocol = Some(words.protocol()?),
            "checksum" => ip.checksum = Some(words.number("a 16-bit number")?),
            "options" => ip.options = words.hex()?,
            other => {
                return Err(words.unknown(other, "ttl, tos, id, df, version, ihl, total-len, proto, checksum, options"));
            }
        }
    }
    Ok(Layer::Ipv4(ip))
}

fn ipv6(words: &mut Words<'_>) -> Result<Layer> {
    let source: Ipv6Addr = words.value("an IPv6 address")?;
    words.arrow()?;
    let mut ip = Ipv6::new(source, words.value("an IPv6 address")?);
    while let Some(word) = words.next() {
        match word {
            "hop" => ip.hop_limit = words.number("a hop limit")?,
            "class" => ip.class = words.number("an 8-bit number")?,
            "flow" => ip.flow = words.number::<u32>("a 20-bit number")? & 0xf_ffff,
            "version" => ip.version = words.number::<u8>("a number below 16")? & 0xf,
            "payload-len" => ip.payload_len = Some(words.number("a 16-bit number")?),
            "next" => ip.next = Some(words.protocol()?),
            other => return Err(words.unknown(other, "hop, class, flow, version, payload-len, next")),
        }
    }
    Ok(Layer::Ipv6(ip))
}

fn fragment(words: &mut Words<'_>) -> Result<Layer> {
    let mut part = Fragment::default();
    while let Some(word) = words.next() {
        match word {
            "id" => part.id = words.number("a 32-bit number")?,
            "offset" => {
                part.offset = words.number("a 16-bit number")?;
                if !part.offset.is_multiple_of(8) {
                    return Err(words.error("an offset is a multiple of 8"));
                }
            }
            "more" => part.more = true,
            "next" => part.next = Some(words.protocol()?),
            other => return Err(words.unknown(other, "id, offset, more, next")),
        }
    }
    Ok(Layer::Fragment(part))
}

fn extension(words: &mut Words<'_>, kind: ExtensionKind) -> Result<Layer> {
    let mut extension = Extension::padding(kind, 1);
    while let Some(word) = words.next() {
        match word {
            "words" => extension = Extension::padding(kind, words.number("a number of 8-byte words")?),
            "data" => extension.data = words.hex()?,
            "next" => extension.next = Some(words.protocol()?),
            "len" => extension.len = Some(words.number("an 8-bit number")?),
            other => return Err(words.unknown(other, "words, data, next, len")),
        }
    }
    Ok(Layer::Extension(extension))
}

fn tcp(words: &mut Words<'_>) -> Result<Layer> {
    let (source, destination) = words.ports()?;
    let mut tcp = Tcp::new(source, destination, 0);
    while let Some(word) = words.next() {
        match word {
            "seq" => tcp.sequence = words.number("a 32-bit number")?,
            "ack-no" => tcp.acknowledgement = words.number("a 32-bit number")?,
            "window" => tcp.window = words.number("a 16-bit number")?,
            "urgent" => tcp.urgent = words.number("a 16-bit number")?,
            "words" => tcp.words = Some(words.number::<u8>("a number below 16")? & 0xf),
            "checksum" => tcp.checksum = Some(words.number("a 16-bit number")?),
            "options" => tcp.options = words.hex()?,
            flag => match names::number(&names::TCP_FLAGS, flag) {
                Some(bit) => tcp.flags |= bit,
                None => {
                    return Err(words.unknown(
                        flag,
                        "syn, ack, fin, rst, psh, urg, ece, cwr, seq, ack-no, window, urgent, words, checksum, options",
                    ));
                }
            },
        }
    }
    Ok(Layer::Tcp(tcp))
}

fn udp(words: &mut Words<'_>) -> Result<Layer> {
    let (source, destination) = words.ports()?;
    let mut udp = Udp { source, destination, len: None, checksum: None };
    while let Some(word) = words.next() {
        match word {
            "len" => udp.len = Some(words.number("a 16-bit number")?),
            "checksum" => udp.checksum = Some(words.number("a 16-bit number")?),
            other => return Err(words.unknown(other, "len, checksum")),
        }
    }
    Ok(Layer::Udp(udp))
}

fn sctp(words: &mut Words<'_>) -> Result<Layer> {
    let (source, destination) = words.ports()?;
    let mut sctp = Sctp { source, destination, tag: 0, checksum: None };
    while let Some(word) = words.next() {
        match word {
            "tag" => sctp.tag = words.number("a 32-bit number")?,
            "checksum" => sctp.checksum = Some(words.number("a 32-bit number")?),
            other => return Err(words.unknown(other, "tag, checksum; chunks are a layer: / chunk init")),
        }
    }
    Ok(Layer::Sctp(sctp))
}

/// Key words that any ICMP message may have.
fn message(words: &mut Words<'_>, icmp: &mut Icmp, codes: &[(u8, &'static str)]) -> Result<()> {
    while let Some(word) = words.next() {
        let [_, _, c, d] = icmp.rest;
        let [a, b, ..] = icmp.rest;
        match word {
            "code" => icmp.code = words.number("an 8-bit number")?,
            "id" => {
                let [a, b] = words.number::<u16>("a 16-bit number")?.to_be_bytes();
                icmp.rest = [a, b, c, d];
            }
            "seq" => {
                let [c, d] = words.number::<u16>("a 16-bit number")?.to_be_bytes();
                icmp.rest = [a, b, c, d];
            }
            "mtu" if icmp.v6 => icmp.rest = words.number::<u32>("an MTU")?.to_be_bytes(),
            "mtu" => {
                let [c, d] = words.number::<u16>("an MTU")?.to_be_bytes();
                icmp.rest = [a, b, c, d];
            }
            "rest" => icmp.rest = words.number::<u32>("a 32-bit number")?.to_be_bytes(),
            "checksum" => icmp.checksum = Some(words.number("a 16-bit number")?),
            other => match names::number(codes, other) {
                Some(code) => icmp.code = code,
                None => return Err(words.unknown(other, "code, id, seq, mtu, rest, checksum")),
            },
        }
    }
    Ok(())
}

fn icmp(words: &mut Words<'_>) -> Result<Layer> {
    let mut codes: &[(u8, &'static str)] = &[];
    let kind = match words.word("a kind of message")? {
        "echo" => 8,
        "echo-reply" => 0,
        "unreachable" => {
            codes = &names::UNREACHABLE;
            3
        }
        "time-exceeded" => 11,
        "param-problem" => 12,
        "type" => words.number("an 8-bit number")?,
        other => {
            return Err(words.unknown(other, "echo, echo-reply, unreachable, time-exceeded, param-problem, type"));
        }
    };
    let mut icmp = Icmp::new(false, kind, 0);
    message(words, &mut icmp, codes)?;
    Ok(Layer::Icmp(icmp))
}

fn icmp6(words: &mut Words<'_>) -> Result<Layer> {
    let mut codes: &[(u8, &'static str)] = &[];
    let kind = match words.word("a kind of message")? {
        "echo" => 128,
        "echo-reply" => 129,
        "unreachable" => {
            codes = &names::UNREACHABLE6;
            1
        }
        "packet-too-big" => 2,
        "time-exceeded" => 3,
        "param-problem" => 4,
        "rs" => 133,
        "ra" => 134,
        "ns" => return neighbour(words, false),
        "na" => return neighbour(words, true),
        "type" => words.number("an 8-bit number")?,
        other => {
            return Err(words.unknown(
                other,
                "echo, echo-reply, unreachable, packet-too-big, time-exceeded, param-problem, rs, ra, ns, na, type",
            ));
        }
    };
    let mut icmp = Icmp::new(true, kind, 0);
    message(words, &mut icmp, codes)?;
    Ok(Layer::Icmp(icmp))
}

fn neighbour(words: &mut Words<'_>, advertisement: bool) -> Result<Layer> {
    let mut neighbour = Neighbour {
        advertisement,
        code: 0,
        flags: [0; 4],
        target: words.value("an IPv6 address")?,
        link_layer: None,
        checksum: None,
    };
    while let Some(word) = words.next() {
        match word {
            "router" => neighbour.flags[0] |= 0x80,
            "solicited" => neighbour.flags[0] |= 0x40,
            "override" => neighbour.flags[0] |= 0x20,
            "link" => neighbour.link_layer = Some(words.mac()?),
            "code" => neighbour.code = words.number("an 8-bit number")?,
            "flags" => neighbour.flags = words.number::<u32>("a 32-bit number")?.to_be_bytes(),
            "checksum" => neighbour.checksum = Some(words.number("a 16-bit number")?),
            other => {
                return Err(words.unknown(other, "router, solicited, override, link, code, flags, checksum"));
            }
        }
    }
    Ok(Layer::Neighbour(neighbour))
}
