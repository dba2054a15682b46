//! Random worlds and packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_abi::{
    Addr4, Addr6, CallSlot, CidrKey4, CidrKey6, Config, Hook, IpEntry, IpFlags, Mac, MapId, PolicyEntry, PolicyFlags,
    PolicyKey, config, ids, policy,
};
use simulator_vm::{Faults, Skb, TunnelKey};
use zerocopy::IntoBytes;

use super::random::Random;
use crate::packet::{
    self, Arp, Defaults, Ethernet, Extension, ExtensionKind, Fragment, Icmp, Ipv4, Ipv6, Layer, Neighbour, Sctp, Tcp,
    Udp,
};
use crate::scenario::{Scenario, Step, Write};

/// Interface of the underlay device.
const NETDEV: u32 = 4;
/// Ports that policies and packets speak of.
const PORTS: [u16; 8] = [53, 80, 81, 443, 8, 128, 8472, 6081];
/// Identities of pods.
const IDENTITIES: [u32; 4] = [1000, 2000, 3000, 4000];

/// Where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A pod of this node, by number.
    Local(u16),
    /// A pod of another node.
    Remote,
    /// This node.
    Host,
    /// Another node.
    Node,
    /// Outside.
    World,
}

#[derive(Clone, Copy, Debug)]
struct End {
    address: IpAddr,
    place: Place,
}

/// A conversation.
#[derive(Clone, Copy, Debug)]
struct Flow {
    client: End,
    server: End,
    sport: u16,
    dport: u16,
    protocol: u8,
}

pub(super) struct World {
    config: Config,
    kernel: bool,
    ends4: Vec<End>,
    ends6: Vec<End>,
    flows: Vec<Flow>,
    writes: Vec<Write>,
    revision: u32,
}

fn entry(identity: u32, flags: u16) -> IpEntry {
    IpEntry { identity, flags: IpFlags(flags), ..IpEntry::default() }
}

/// A pod of this node. Endpoints are 7 to 9, on interfaces 10 to 12.
fn local_pod(number: u16, identity: u32, revision: u32) -> IpEntry {
    let [_, low] = number.to_be_bytes();
    IpEntry {
        ifindex: u32::from(number) + 3,
        endpoint: number,
        policy_revision: revision,
        mac: Mac::from_octets([2, 0, 0, 0, 0, low]),
        ..entry(identity, IpFlags::POD)
    }
}

fn owner(address: IpAddr, entry: &IpEntry) -> Write {
    let value = entry.as_bytes().to_vec();
    match address {
        IpAddr::V4(v4) => Write { map: MapId::Ipcache4, key: v4.octets().to_vec(), value },
        IpAddr::V6(v6) => Write { map: MapId::Ipcache6, key: v6.octets().to_vec(), value },
    }
}

fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    Ipv4Addr::new(a, b, c, d).into()
}

fn v6(c: u16, last: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, c, 0, 0, 0, 0, 0, last).into()
}

fn node4(last: u8) -> Addr6 {
    Addr6::from_v4(Addr4::from_octets([192, 168, 0, last]))
}

fn policy_write(random: &mut Random, endpoint: u16) -> Write {
    let mut key = PolicyKey { prefix_len: policy::FIXED_BITS, endpoint, ..PolicyKey::default() };
    key.direction = u8::from(random.once_in(2));
    let peers =
        [0, 0, 0, 1000, 2000, 3000, 4000, ids::HOST, ids::WORLD, ids::REMOTE_NODE, ids::WORLD_IPV4, 0x0100_0001];
    key.identity = random.pick(&peers, 0);
    if !random.once_in(3) {
        key.protocol = random.pick(&[6, 17, 1, 58, 132], 6);
        key.prefix_len = policy::PROTOCOL_BITS;
        if !random.once_in(3) {
            let bits = random.pick(&[16u32, 16, 15, 12, 8, 1], 16);
            let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
            let port = random.pick(&PORTS, 80) & mask;
            key.prefix_len += bits;
            key.port = port.to_be_bytes();
        }
    }
    let deny = random.once_in(4);
    let plain = if deny { policy::PRECEDENCE_DENY } else { policy::PRECEDENCE_ALLOW };
    let value = PolicyEntry {
        precedence: random.pick(&[plain, plain, plain, plain + 256, u32::MAX], plain),
        rule: u32::from(random.byte()),
        flags: PolicyFlags(if deny {
            PolicyFlags::DENY
        } else {
            random.pick(&[0, 0, 0, 0, PolicyFlags::REDIRECT, PolicyFlags::AUDIT], 0)
        }),
        l4_prefix: u8::try_from(key.prefix_len - policy::FIXED_BITS).unwrap_or(0),
        ..PolicyEntry::default()
    };
    Write { map: MapId::Policy, key: key.as_bytes().to_vec(), value: value.as_bytes().to_vec() }
}

fn allow_all(endpoint: u16, direction: u8) -> Write {
    let key = PolicyKey { prefix_len: policy::FIXED_BITS, endpoint, direction, ..PolicyKey::default() };
    let value = PolicyEntry { precedence: policy::PRECEDENCE_ALLOW, ..PolicyEntry::default() };
    Write { map: MapId::Policy, key: key.as_bytes().to_vec(), value: value.as_bytes().to_vec() }
}

impl World {
    pub(super) fn new(config: &Config, kernel: bool, random: &mut Random) -> Self {
        let mut world = Self {
            config: *config,
            kernel,
            ends4: Vec::new(),
            ends6: Vec::new(),
            flows: Vec::new(),
            writes: Vec::new(),
            revision: 1,
        };
        for number in 7..=9u16 {
            let [_, low] = number.to_be_bytes();
            let pod = local_pod(number, random.pick(&IDENTITIES, 1000), 1);
            world.add(v4(10, 0, 0, low), Place::Local(number), Some(pod));
            world.add(v6(0, number), Place::Local(number), Some(pod));
        }
        for last in 5..=7u8 {
            let mut pod = entry(random.pick(&IDENTITIES, 2000), IpFlags::POD);
            pod.node = match last {
                5 => node4(12),
                6 => Addr6::from_octets([0xfd, 0, 0xc0, 0xa8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12]),
                _ => Addr6::ZERO,
            };
            pod.flags.0 |= if last == 6 { IpFlags::UNDERLAY6 } else { 0 };
            world.add(v4(10, 0, 1, last), Place::Remote, Some(pod));
            world.add(v6(1, u16::from(last)), Place::Remote, Some(pod));
        }
        let mut host = entry(ids::HOST, IpFlags::LOCAL_HOST | IpFlags::NODE);
        if config.flags & config::HOST_POLICY != 0 {
            (host.endpoint, host.policy_revision) = (ids::HOST_ENDPOINT, 1);
        }
        let node = entry(ids::REMOTE_NODE, IpFlags::NODE);
        for (address, place, entry) in [
            (v4(192, 168, 0, 11), Place::Host, host),
            (v6(0xc0a8, 0x11), Place::Host, host),
            (v4(192, 168, 0, 12), Place::Node, node),
            (v6(0xc0a8, 0x12), Place::Node, node),
        ] {
            world.add(address, place, Some(entry));
        }
        for address in [v4(203, 0, 113, 5), v4(198, 51, 100, 1), v6(0xdb8, 5), v4(10, 0, 0, 99)] {
            world.add(address, Place::World, None);
        }
        let prefix = entry(0x0100_0001, 0);
        let key4 = CidrKey4 { prefix_len: 24, addr: Addr4::from_octets([203, 0, 113, 0]) };
        let key6 = CidrKey6 {
            prefix_len: 32,
            addr: Addr6::from_octets([0xfd, 0, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        };
        let value = prefix.as_bytes().to_vec();
        world.writes.push(Write { map: MapId::Cidr4, key: key4.as_bytes().to_vec(), value: value.clone() });
        world.writes.push(Write { map: MapId::Cidr6, key: key6.as_bytes().to_vec(), value });
        for endpoint in [7, 8, 9, ids::HOST_ENDPOINT] {
            for direction in [policy::INGRESS, policy::EGRESS] {
                if !random.once_in(3) {
                    world.writes.push(allow_all(endpoint, direction));
                }
            }
            for _ in 0..random.below(6) {
                let write = policy_write(random, endpoint);
                world.writes.push(write);
            }
        }
        world
    }

    fn add(&mut self, address: IpAddr, place: Place, entry: Option<IpEntry>) {
        let ends = if address.is_ipv4() { &mut self.ends4 } else { &mut self.ends6 };
        ends.push(End { address, place });
        if let Some(entry) = entry {
            self.writes.push(owner(address, &entry));
        }
    }

    /// The world without packets yet.
    pub(super) fn scenario(&self, seed: u64, number: u64, random: &mut Random) -> Scenario {
        // As while an upgrade swaps programs.
        let missing_calls = if random.once_in(10) {
            CallSlot::ALL.iter().map(|(slot, _)| *slot).filter(|_| random.once_in(3)).collect()
        } else {
            Vec::new()
        };
        Scenario {
            file: "fuzz-difference.toml".to_owned(),
            title: format!("Engines differ (seed {seed}, world {number})"),
            source: "weir-sim fuzz".to_owned(),
            config: self.config,
            now_ns: 1_000_000_000_000,
            writes: self.writes.clone(),
            missing_calls,
            steps: Vec::new(),
        }
    }

    /// The next packet, and what happens before it.
    pub(super) fn step(&mut self, random: &mut Random) -> Step {
        let mut skb = self.packet(random);
        while self.kernel && (skb.0.data.len() < crate::engines::shortest(&skb.0.data) || skb.0.data.len() > 3000) {
            skb = self.packet(random);
        }
        let (mut skb, hook) = skb;
        let mut faults = Faults::default();
        if random.once_in(400) {
            match random.below(if self.kernel { 3 } else { 5 }) {
                0 => faults.map_update = true,
                1 => faults.set_tunnel_key = true,
                2 => faults.get_tunnel_key = true,
                3 => faults.ring_full = true,
                _ => {
                    faults.packet_memory = true;
                    skb.linear_len = 14 + u32::from(random.byte() % 64);
                }
            }
        } else if !self.kernel && random.once_in(20) {
            skb.linear_len = 14 + u32::from(random.byte() % 64);
        }
        let advance_ns = match random.below(100) {
            0 => 61_000_000_000,
            1 | 2 => 10_000_000_000,
            3..=10 => 1_000_000_000,
            11..=50 => 4_000_000,
            _ => 0,
        };
        let writes = if random.once_in(100) { self.change(random) } else { Vec::new() };
        Step {
            line: 0,
            note: String::new(),
            hook,
            skb,
            defaults: Defaults::default(),
            advance_ns,
            writes,
            deletes: Vec::new(),
            faults,
            expect: None,
        }
    }

    /// User space changes its mind: a policy entry, and with it the revision of its endpoint.
    fn change(&mut self, random: &mut Random) -> Vec<Write> {
        let endpoint = random.pick(&[7u16, 8, 9], 7);
        let [_, low] = endpoint.to_be_bytes();
        self.revision += 1;
        let pod = local_pod(endpoint, random.pick(&IDENTITIES, 1000), self.revision);
        vec![policy_write(random, endpoint), owner(v4(10, 0, 0, low), &pod), owner(v6(0, endpoint), &pod)]
    }

    fn end(&self, random: &mut Random, six: bool) -> End {
        let ends = if six { &self.ends6 } else { &self.ends4 };
        let stranger = End { address: v4(192, 0, 2, 1), place: Place::World };
        // Pods of this node come first in the list, and most often.
        let index = if random.once_in(2) { random.below(3) } else { random.below(ends.len()) };
        ends.get(index).copied().unwrap_or(stranger)
    }

    fn flow(&mut self, random: &mut Random) -> Flow {
        if !self.flows.is_empty() && !random.once_in(5) {
            let index = random.below(self.flows.len());
            if let Some(flow) = self.flows.get(index) {
                return *flow;
            }
        }
        let six = random.once_in(2);
        let (client, server) = (self.end(random, six), self.end(random, six));
        let flow = Flow {
            client,
            server,
            sport: 40_000 + random.half() % 16,
            dport: random.pick(&PORTS, 80),
            protocol: random.pick(&[6, 6, 6, 17, 17, 132, if six { 58 } else { 1 }], 6),
        };
        if self.flows.len() < 24 {
            self.flows.push(flow);
        } else {
            let index = random.below(self.flows.len());
            self.flows[index] = flow;
        }
        flow
    }

    fn packet(&mut self, random: &mut Random) -> (Skb, Hook) {
        let flow = self.flow(random);
        let reply = random.once_in(3);
        let (from, to) = if reply { (flow.server, flow.client) } else { (flow.client, flow.server) };
        let mut layers = match random.below(40) {
            0 => link_layer(random, from, to),
            1 | 2 => error(random, &flow, from, to),
            _ => conversation(random, &flow, reply, from, to),
        };
        if random.once_in(12) {
            fragment(random, &mut layers);
        } else if random.once_in(20) {
            extensions(random, &mut layers);
        }
        layers.insert(
            0,
            Layer::Ethernet(Ethernet {
                source: Some([2, 0, 0, 0, 0, 0x42]),
                destination: Some([2, 0, 0, 0, 0, 0xfe]),
                ethertype: None,
            }),
        );
        let mut frame = packet::to_bytes(&layers, &Defaults::default());
        if random.once_in(12) {
            damage(random, &mut frame);
        }
        self.attach(random, frame, from, to)
    }

    /// The hook where such a packet is seen, most of the time.
    fn attach(&self, random: &mut Random, frame: Vec<u8>, from: End, to: End) -> (Skb, Hook) {
        let likely = match (from.place, to.place) {
            (Place::Local(_), _) => Hook::FromContainer,
            (Place::Remote | Place::Node, _) => Hook::FromOverlay,
            (Place::Host, Place::Local(_)) => random.pick(&[Hook::FromHost, Hook::ToContainer], Hook::FromHost),
            (Place::Host, _) => Hook::FromHost,
            (Place::World, _) => Hook::FromNetdev,
        };
        let hook = if random.once_in(15) { random.pick(Hook::ALL, likely) } else { likely };
        let pod = |end: End| match end.place {
            Place::Local(number) => u32::from(number) + 3,
            Place::Remote | Place::Host | Place::Node | Place::World => 10,
        };
        let mut ifindex = match hook {
            Hook::FromContainer => pod(from),
            Hook::ToContainer => pod(to),
            Hook::FromOverlay => self.config.tunnel_ifindex,
            Hook::FromHost => self.config.host_ifindex,
            Hook::FromNetdev | Hook::ToNetdev => NETDEV,
        };
        if random.once_in(40) {
            ifindex = random.pick(&[10, 11, 12, 4], 10);
        }
        let mut skb = Skb::new(frame, ifindex);
        if hook == Hook::FromOverlay && !random.once_in(30) {
            let remote = match random.below(12) {
                0 => v4(192, 168, 0, 99),
                1 => v6(0xc0a8, 0x12),
                2 => v4(10, 0, 1, 5),
                _ => v4(192, 168, 0, 12),
            };
            let id = random.pick(&[1000, 2000, 3000, 4000, 2000, 3000, 6, 2, 1, 0, 0x00ff_ffff], 3000);
            skb.tunnel_key = Some(TunnelKey { id, remote, ttl: 64, ..TunnelKey::default() });
        }
        if hook == Hook::ToContainer && random.once_in(2) {
            skb.mark = random.pick(&[0x0c00, 1000 << 16 | 0x0f00, 0x0a00, 0xffff_ffff], 0);
        }
        (skb, hook)
    }
}

fn ip(random: &mut Random, from: IpAddr, to: IpAddr) -> Layer {
    let hops = random.pick(&[64, 64, 64, 64, 255, 2, 1, 0], 64);
    match (from, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let options = if random.once_in(20) { vec![1; 4 + 4 * random.below(10)] } else { Vec::new() };
            Layer::Ipv4(Ipv4 { ttl: hops, id: random.half(), tos: random.byte() & 3, options, ..Ipv4::new(a, b) })
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => Layer::Ipv6(Ipv6 { hop_limit: hops, ..Ipv6::new(a, b) }),
        (IpAddr::V4(a), IpAddr::V6(_)) => Layer::Ipv4(Ipv4::new(a, a)),
        (IpAddr::V6(a), IpAddr::V4(_)) => Layer::Ipv6(Ipv6::new(a, a)),
    }
}

fn upper(random: &mut Random, flow: &Flow, reply: bool) -> Layer {
    let (source, destination) = if reply { (flow.dport, flow.sport) } else { (flow.sport, flow.dport) };
    match flow.protocol {
        6 => {
            // SYN, SYN+ACK, ACK, PSH+ACK, FIN+ACK, RST, RST+ACK, nothing, everything.
            let flags = random.pick(&[2, 2, 18, 16, 16, 16, 24, 17, 4, 20, 0, 255], 16);
            let options = if random.once_in(4) { vec![1; 4 * random.below(10)] } else { Vec::new() };
            Layer::Tcp(Tcp { options, ..Tcp::new(source, destination, flags) })
        }
        17 => Layer::Udp(Udp { source, destination, len: None, checksum: None }),
        132 => Layer::Sctp(Sctp { source, destination, tag: 7, checksum: Some(0) }),
        protocol => {
            let v6 = protocol == 58;
            if random.once_in(10) {
                Layer::Icmp(Icmp::new(v6, random.byte(), 0))
            } else {
                Layer::Icmp(Icmp::echo(v6, reply, flow.sport, 1))
            }
        }
    }
}

fn conversation(random: &mut Random, flow: &Flow, reply: bool, from: End, to: End) -> Vec<Layer> {
    let mut layers = vec![ip(random, from.address, to.address), upper(random, flow, reply)];
    let payload = random.pick(&[0, 0, 0, 1, 8, 33, 400], 0);
    if payload != 0 {
        layers.push(Layer::Bytes(vec![0x5a; payload]));
    }
    layers
}

/// An ICMP error that quotes a packet of the flow, mostly one that its receiver has sent.
fn error(random: &mut Random, flow: &Flow, from: End, to: End) -> Vec<Layer> {
    let v6 = from.address.is_ipv6();
    let kinds: &[u8] = if v6 { &[1, 2, 3, 4] } else { &[3, 3, 4, 5, 11, 12] };
    let mut icmp = Icmp::new(v6, random.pick(kinds, 3), random.byte() % 6);
    icmp.rest = [0, 0, 5, 0x78];
    let forward = to.address == flow.client.address;
    let quoted =
        if random.once_in(6) { ip(random, from.address, to.address) } else { ip(random, to.address, from.address) };
    let mut layers =
        vec![ip(random, from.address, to.address), Layer::Icmp(icmp), quoted, upper(random, flow, !forward)];
    if random.once_in(4) {
        layers.truncate(3);
        layers.push(Layer::Bytes(vec![0; random.below(8)]));
    }
    layers
}

/// ARP and neighbour discovery.
fn link_layer(random: &mut Random, from: End, to: End) -> Vec<Layer> {
    match (from.address, to.address) {
        (IpAddr::V4(sender), IpAddr::V4(target)) => {
            let operation = random.pick(&[1, 1, 1, 2, 3], 1);
            let sender = if random.once_in(10) { Ipv4Addr::UNSPECIFIED } else { sender };
            vec![Layer::Arp(Arp { operation, sender, target, ..Arp::default() })]
        }
        (IpAddr::V6(sender), IpAddr::V6(target)) => {
            let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
            let sender = random.pick(&[sender, sender, sender, link_local, Ipv6Addr::UNSPECIFIED], sender);
            let hop_limit = random.pick(&[255, 255, 255, 64], 255);
            let message = if random.once_in(6) {
                Layer::Icmp(Icmp::new(true, 130 + random.byte() % 14, 0))
            } else {
                Layer::Neighbour(Neighbour {
                    advertisement: random.once_in(4),
                    code: 0,
                    flags: [0; 4],
                    target,
                    link_layer: (!random.once_in(3)).then_some([2, 0, 0, 0, 0, 0x42]),
                    checksum: None,
                })
            };
            vec![Layer::Ipv6(Ipv6 { hop_limit, ..Ipv6::new(sender, target) }), message]
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => vec![Layer::Bytes(vec![0; 40])],
    }
}

/// Makes the packet a first or later fragment of one of a few datagrams.
fn fragment(random: &mut Random, layers: &mut Vec<Layer>) {
    let protocol = match layers.get(1) {
        Some(Layer::Tcp(_)) => 6,
        Some(Layer::Udp(_)) => 17,
        Some(Layer::Sctp(_)) => 132,
        Some(Layer::Icmp(icmp)) => {
            if icmp.v6 {
                58
            } else {
                1
            }
        }
        Some(_) | None => return,
    };
    let first = random.once_in(2);
    let mut part = Fragment { id: 1 + u32::from(random.byte() % 4), offset: 0, more: true, next: None };
    if !first {
        part.offset = 8 + 8 * u16::from(random.byte());
        part.more = random.once_in(2);
        layers.truncate(1);
        layers.push(Layer::Bytes(vec![0xaa; random.below(40)]));
        match layers.first_mut() {
            Some(Layer::Ipv4(ip)) => ip.protocol = Some(protocol),
            Some(_) | None => part.next = Some(protocol),
        }
    }
    layers.insert(1, Layer::Fragment(part));
}

fn extensions(random: &mut Random, layers: &mut Vec<Layer>) {
    if !matches!(layers.first(), Some(Layer::Ipv6(_))) {
        return;
    }
    let kinds =
        [ExtensionKind::HopByHop, ExtensionKind::Destination, ExtensionKind::Routing, ExtensionKind::Authentication];
    for _ in 0..=random.below(5) {
        let words = random.pick(&[1, 1, 1, 2, 5, 31], 1);
        let kind = random.pick(&kinds, ExtensionKind::HopByHop);
        layers.insert(1, Layer::Extension(Extension::padding(kind, words)));
    }
}

/// Wrong bytes, a wrong end.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let at = random.below(frame.len().min(100));
        frame[at] = random.pick(&[0, 1, 4, 5, 0x0f, 0x45, 0x60, 0x80, 0xff], 0) ^ (random.byte() & random.byte());
    }
    if random.once_in(3) {
        frame.truncate(14 + random.below(frame.len()));
    }
    if random.once_in(8) {
        let more = random.below(64);
        frame.resize(frame.len() + more, 0);
    }
}
