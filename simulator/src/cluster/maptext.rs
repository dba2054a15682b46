//! Keys and values of the datapath's maps as short text, for people.

use std::fmt::Write as _;
use std::net::IpAddr;

use datapath_abi::policy::{FIXED_BITS, INGRESS};
use datapath_abi::{
    Addr6, CidrKey4, CidrKey6, CtEntry, CtFlags, CtKey4, CtKey6, IpEntry, IpFlags, MapId, PolicyEntry, PolicyFlags,
    PolicyKey,
};
use zerocopy::FromBytes;

/// A key.
pub fn key(map: &str, bytes: &[u8]) -> String {
    let text = MapId::from_name(map).and_then(|map| match map {
        MapId::Ipcache4 | MapId::Ipcache6 => address(bytes).map(|address| address.to_string()),
        MapId::Cidr4 => read::<CidrKey4>(bytes).map(|key| format!("{:?}/{}", key.addr, key.prefix_len)),
        MapId::Cidr6 => read::<CidrKey6>(bytes).map(|key| format!("{:?}/{}", key.addr, key.prefix_len)),
        MapId::Policy => read(bytes).map(|key| policy_key(&key)),
        MapId::Ct4 => read::<CtKey4>(bytes).map(|key| {
            format!("{:?}:{:?} ↔ {:?}:{:?} {}", key.lo, key.lo_port, key.hi, key.hi_port, protocol(key.protocol))
        }),
        MapId::Ct6 => read::<CtKey6>(bytes).map(|key| {
            format!("[{:?}]:{:?} ↔ [{:?}]:{:?} {}", key.lo, key.lo_port, key.hi, key.hi_port, protocol(key.protocol))
        }),
        MapId::Metrics | MapId::Calls => read::<u32>(bytes).map(|key| key.to_string()),
        MapId::Frag4 | MapId::Frag6 | MapId::Events => None,
    });
    text.unwrap_or_else(|| hex(bytes))
}

/// A value.
pub fn value(map: &str, bytes: &[u8]) -> String {
    let text = MapId::from_name(map).and_then(|map| match map {
        MapId::Ipcache4 | MapId::Ipcache6 | MapId::Cidr4 | MapId::Cidr6 => read(bytes).map(|entry| ip_entry(&entry)),
        MapId::Policy => read(bytes).map(|entry| policy_entry(&entry)),
        MapId::Ct4 | MapId::Ct6 => read(bytes).map(|entry| ct_entry(&entry)),
        MapId::Metrics => Some("counter".to_owned()),
        MapId::Frag4 | MapId::Frag6 | MapId::Calls | MapId::Events => None,
    });
    text.unwrap_or_else(|| hex(bytes))
}

fn read<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_bytes(bytes).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(bytes));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn protocol(number: u8) -> String {
    match number {
        0 => "any".to_owned(),
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("protocol {other}"),
    }
}

fn policy_key(key: &PolicyKey) -> String {
    let direction = if key.direction == INGRESS { "ingress" } else { "egress" };
    let peer = if key.identity == 0 { "any".to_owned() } else { key.identity.to_string() };
    let mut text = format!("endpoint {} {direction} identity {peer}", key.endpoint);
    if key.prefix_len > FIXED_BITS {
        let _ = write!(text, " {} {}", protocol(key.protocol), u16::from_be_bytes(key.port));
    }
    text
}

fn policy_entry(entry: &PolicyEntry) -> String {
    let verdict = if entry.flags.has(PolicyFlags::DENY) { "deny" } else { "allow" };
    format!("{verdict}, rule {}, precedence {}", entry.rule, entry.precedence)
}

fn ip_entry(entry: &IpEntry) -> String {
    let mut text = format!("identity {}", entry.identity);
    if entry.endpoint != 0 {
        let _ = write!(text, ", endpoint {} behind device {}", entry.endpoint, entry.ifindex);
    } else if let Some(node) = node(entry.node, entry.flags.has(IpFlags::UNDERLAY6)) {
        let _ = write!(text, ", at node {node}");
    }
    for (flag, name) in [(IpFlags::LOCAL_HOST, "this node"), (IpFlags::NODE, "a node's address"), (IpFlags::POD, "pod")]
    {
        if entry.flags.has(flag) {
            let _ = write!(text, ", {name}");
        }
    }
    text
}

fn node(address: Addr6, ipv6: bool) -> Option<IpAddr> {
    if address.is_zero() {
        None
    } else if ipv6 {
        Some(IpAddr::from(address.octets()))
    } else {
        Some(IpAddr::from(address.first4().octets()))
    }
}

fn ct_entry(entry: &CtEntry) -> String {
    let mut text =
        format!("opened by the {} end", if entry.flags.has(CtFlags::CLIENT_LO) { "first" } else { "second" });
    for (flag, name) in [
        (CtFlags::EGRESS, "egress accepted"),
        (CtFlags::INGRESS, "ingress accepted"),
        (CtFlags::SEEN_NON_SYN, "handshake seen"),
        (CtFlags::CLIENT_CLOSING, "client closing"),
        (CtFlags::SERVER_CLOSING, "server closing"),
    ] {
        if entry.flags.has(flag) {
            let _ = write!(text, ", {name}");
        }
    }
    let _ = write!(text, ", expires at tick {}", entry.expires);
    text
}
