//! What raw sockets send and take: the very packets of the simulator, without the headers that the kernel writes.

use std::net::IpAddr;

use simulator::cluster::Protocol;
use simulator::cluster::frame::{HOPS, Packet, Payload, sctp};

use super::Flow;

/// Bytes of an Ethernet header, and of IPv4's and IPv6's.
const ETHERNET: usize = 14;
const HEADERS: [usize; 2] = [20, 40];

/// ICMP types of an echo request and its reply, by family.
pub(super) const fn echo(ipv6: bool) -> (u8, u8) {
    if ipv6 { (128, 129) } else { (8, 0) }
}

/// The request of a flow; `None`: its protocol is not for raw sockets.
pub(super) fn request(flow: &Flow) -> Option<Payload> {
    match flow.protocol {
        Protocol::Sctp(port) => Some(Payload::Sctp {
            source: flow.source.port(),
            destination: port,
            tag: 0,
            chunk: sctp::INIT,
            initiate: flow.tag,
        }),
        Protocol::Icmp(kind) => Some(Payload::Icmp {
            kind: kind.unwrap_or(echo(flow.source.is_ipv6()).0),
            id: flow.source.port(),
            sequence: 1,
        }),
        Protocol::Tcp(_) | Protocol::Udp(_) => None,
    }
}

/// The answer to it; `None`: there is none.
pub(super) fn answer(flow: &Flow) -> Option<Payload> {
    match request(flow)? {
        Payload::Sctp { source, destination, initiate, .. } => Some(Payload::Sctp {
            source: destination,
            destination: source,
            tag: initiate,
            chunk: sctp::INIT_ACK,
            initiate: initiate.rotate_left(16) ^ 0x5a5a_5a5a,
        }),
        Payload::Icmp { kind, id, sequence } if kind == echo(flow.source.is_ipv6()).0 => {
            Some(Payload::Icmp { kind: echo(flow.source.is_ipv6()).1, id, sequence })
        }
        Payload::Icmp { .. } | Payload::Tcp { .. } | Payload::Udp { .. } => None,
    }
}

/// The bytes after the IP header.
pub(super) fn bytes(payload: Payload, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let mut frame = Vec::new();
    Packet { source, destination, hops: HOPS, payload }.write([0; 6], [0; 6], &mut frame);
    frame.split_off(ETHERNET + HEADERS[usize::from(source.is_ipv6())])
}

/// What a raw socket received, without the IP header that it has over IPv4.
pub(super) fn content(received: &[u8], ipv6: bool) -> &[u8] {
    if ipv6 {
        return received;
    }
    let words = received.first().map_or(0, |first| usize::from(first & 0x0f));
    received.get(words * 4..).unwrap_or_default()
}
