//! The paths that are measured: a node with endpoints, policies and flows, and one packet.

use anyhow::{Context, Result};
use datapath_abi::{
    Addr4, Addr6, Be16, Config, IpEntry, IpFlags, Mac, MapId, PolicyEntry, PolicyFlags, PolicyKey, config, policy,
};
use datapath_maps::{MapStore, UpdateMode};
use zerocopy::IntoBytes;

/// Host side of the client's veth.
pub const CLIENT_IFINDEX: u32 = 10;
/// Host side of the server's veth.
pub const SERVER_IFINDEX: u32 = 11;
/// The tunnel device.
pub const TUNNEL_IFINDEX: u32 = 5;
/// Ports of flow 0 start here.
const FIRST_PORT: u16 = 20_000;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// Type of an ICMP message that is no echo and no error (RFC 792).
const TIMESTAMP: u8 = 13;
/// The same of ICMPv6 (RFC 4620).
const NODE_QUERY: u8 = 139;

const CLIENT: u16 = 7;
const SERVER: u16 = 8;
const CLIENT_IDENTITY: u32 = 1000;
const SERVER_IDENTITY: u32 = 2000;
const REMOTE_IDENTITY: u32 = 3000;
const CLIENT4: [u8; 4] = [10, 244, 1, 7];
const SERVER4: [u8; 4] = [10, 244, 1, 8];
const REMOTE4: [u8; 4] = [10, 244, 2, 9];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// One measured path.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Name in tables.
    pub name: &'static str,
    /// Entry program.
    pub program: &'static str,
    /// Device of the hook.
    pub ifindex: u32,
    /// IPv6 (else IPv4).
    pub ipv6: bool,
    /// Ends: source, destination.
    pub ends: (End, End),
    /// ICMP that belongs to no flow: policies are asked about every packet. Else TCP.
    pub asked: bool,
}

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A pod of this node.
    Client,
    /// Another pod of this node.
    Server,
    /// A pod of another node.
    Remote,
}

const fn path(name: &'static str, program: &'static str, ifindex: u32, ipv6: bool, from: End, to: End) -> Path {
    Path { name, program, ifindex, ipv6, ends: (from, to), asked: false }
}

/// Every path, IPv4 then IPv6.
pub const PATHS: &[Path] = &[
    path("remote", "from_container", CLIENT_IFINDEX, false, End::Client, End::Remote),
    path("local", "from_container", CLIENT_IFINDEX, false, End::Client, End::Server),
    path("to_container", "to_container", SERVER_IFINDEX, false, End::Remote, End::Server),
    path("from_netdev", "from_netdev", 2, false, End::Remote, End::Server),
    path("remote6", "from_container", CLIENT_IFINDEX, true, End::Client, End::Remote),
    path("local6", "from_container", CLIENT_IFINDEX, true, End::Client, End::Server),
    path("to_container6", "to_container", SERVER_IFINDEX, true, End::Remote, End::Server),
];

/// What a verdict costs, of one policy and of both: paths on which policies are asked about every packet.
pub const VERDICTS: &[Path] = &[
    Path { asked: true, ..path("verdict", "from_container", CLIENT_IFINDEX, false, End::Client, End::Remote) },
    Path { asked: true, ..path("verdicts", "from_container", CLIENT_IFINDEX, false, End::Client, End::Server) },
    Path { asked: true, ..path("verdict6", "from_container", CLIENT_IFINDEX, true, End::Client, End::Remote) },
];

/// Settings of the measured node. `TUNNEL` is off for `from_netdev`, where a pod's bare packets are then allowed.
#[must_use]
pub fn settings(ticks_per_second: u32, tunnel: bool) -> Config {
    let mut settings = Config::with_defaults(ticks_per_second);
    settings.tunnel_ifindex = TUNNEL_IFINDEX;
    settings.node4 = Addr4::from_octets([192, 168, 0, 11]);
    settings.host_mac = Mac::from_octets(HOST_MAC);
    if !tunnel {
        settings.flags &= !config::TUNNEL;
    }
    settings
}

/// Writes the node's addresses and policies: per endpoint and direction four entries, one of which matches, and
/// `more_policy` entries with other identities and ports.
///
/// # Errors
/// A map refuses.
pub fn fill(store: &mut dyn MapStore, more_policy: u32) -> Result<()> {
    let pods = [
        (CLIENT4, CLIENT_IDENTITY, CLIENT, CLIENT_IFINDEX, CLIENT_MAC),
        (SERVER4, SERVER_IDENTITY, SERVER, SERVER_IFINDEX, SERVER_MAC),
    ];
    let empty = IpEntry { flags: IpFlags(IpFlags::POD), ..IpEntry::default() };
    for (address, identity, endpoint, ifindex, mac) in pods {
        let entry = IpEntry { identity, endpoint, ifindex, mac: Mac::from_octets(mac), policy_revision: 1, ..empty };
        owner(store, address, &entry)?;
    }
    let node = Addr6::from_v4(Addr4::from_octets([192, 168, 0, 12]));
    owner(store, REMOTE4, &IpEntry { identity: REMOTE_IDENTITY, node, ..empty })?;
    let peers = [(CLIENT, policy::EGRESS, REMOTE_IDENTITY), (CLIENT, policy::EGRESS, SERVER_IDENTITY)];
    let peers = peers
        .into_iter()
        .chain([(SERVER, policy::INGRESS, CLIENT_IDENTITY), (SERVER, policy::INGRESS, REMOTE_IDENTITY)]);
    for (endpoint, direction, identity) in peers {
        for (protocol, port) in [(TCP, 80), (ICMP, u16::from(TIMESTAMP)), (ICMP6, u16::from(NODE_QUERY))] {
            allow(store, endpoint, direction, identity, protocol, port)?;
        }
    }
    for endpoint in [CLIENT, SERVER] {
        for direction in [policy::INGRESS, policy::EGRESS] {
            for identity in [4001, 4002, 4003] {
                allow(store, endpoint, direction, identity, TCP, 443)?;
            }
            for other in 0..more_policy {
                allow(store, endpoint, direction, 5000 + other % 100, TCP, u16::try_from(1000 + other / 100)?)?;
            }
        }
    }
    Ok(())
}

fn owner(store: &mut dyn MapStore, address: [u8; 4], entry: &IpEntry) -> Result<()> {
    store.update(MapId::Ipcache4, &address, entry.as_bytes(), UpdateMode::Any).context("ipcache4")?;
    store.update(MapId::Ipcache6, &wide(address), entry.as_bytes(), UpdateMode::Any).context("ipcache6")
}

/// The IPv6 address of whoever has this IPv4 address.
fn wide(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
}

fn allow(store: &mut dyn MapStore, endpoint: u16, direction: u8, identity: u32, protocol: u8, port: u16) -> Result<()> {
    let key = PolicyKey {
        prefix_len: policy::FULL_BITS,
        endpoint,
        direction,
        pad: 0,
        identity,
        protocol,
        port: port.to_be_bytes(),
        pad2: 0,
    };
    let entry = PolicyEntry {
        precedence: policy::PRECEDENCE_ALLOW,
        rule: 1,
        proxy_port: Be16::ZERO,
        flags: PolicyFlags(0),
        l4_prefix: 24,
    };
    store.update(MapId::Policy, key.as_bytes(), entry.as_bytes(), UpdateMode::Any).context("policy")
}

/// TCP flags of the frames that make a flow and keep it going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// First segment.
    Syn,
    /// Any later segment.
    Ack,
}

impl Path {
    /// A frame of flow number `flow` (one source port each): TCP without options, to port 80, or ICMP of the same size; 74
    /// bytes or 94 (IPv6).
    #[must_use]
    pub fn frame(&self, flow: u16, segment: Segment) -> Vec<u8> {
        let (source, destination) = (address(self.ends.0), address(self.ends.1));
        let protocol = match (self.asked, self.ipv6) {
            (false, _) => TCP,
            (true, false) => ICMP,
            (true, true) => ICMP6,
        };
        let mut frame = Vec::with_capacity(94);
        frame.extend(HOST_MAC);
        frame.extend(CLIENT_MAC);
        if self.ipv6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, protocol, 64]);
            frame.extend(wide(source));
            frame.extend(wide(destination));
        } else {
            let mut header = [0x45, 0, 0, 60, 0, 1, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            header[12..16].copy_from_slice(&source);
            header[16..20].copy_from_slice(&destination);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([0x08, 0]);
            frame.extend(header);
        }
        let flags = match segment {
            Segment::Syn => 0x02,
            Segment::Ack => 0x10,
        };
        if self.asked {
            frame.extend([if self.ipv6 { NODE_QUERY } else { TIMESTAMP }, 0]);
            frame.extend([0; 18]);
        } else {
            frame.extend(FIRST_PORT.wrapping_add(flow).to_be_bytes());
            frame.extend(80u16.to_be_bytes());
            frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0xa0, flags, 0xff, 0xff, 0, 0, 0, 0]);
        }
        frame.extend([1; 20]);
        frame
    }
}

const fn address(end: End) -> [u8; 4] {
    match end {
        End::Client => CLIENT4,
        End::Server => SERVER4,
        End::Remote => REMOTE4,
    }
}

fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
