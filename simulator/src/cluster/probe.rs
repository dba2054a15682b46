//! Probes: one flow from one place to another, request and answer, judged by what really arrived.
//!
//! | protocol | request | answer | then |
//! |---|---|---|---|
//! | TCP | SYN | SYN+ACK | ACK |
//! | UDP | 8 bytes | 8 bytes | |
//! | SCTP | INIT | INIT ACK | |
//! | ICMP | type as asked (8; over IPv6 128) | echo reply; other types have no answer | |
//!
//! Allowed means: each of them arrived where it was sent, unchanged but for the hop limit.

use std::fmt;
use std::net::IpAddr;

use datapath_abi::DropReason;
use simulator_vm::RunError;

use super::frame::{HOPS, Packet, Payload, sctp, tcp};
use super::trail::{End, Lost};
use super::{Cluster, Drop, Owner};

/// First source port of probes, and how many they use in turn.
const PORTS: (u64, u64) = (32_768, 28_232);

/// Where packets are made and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a pod.
    Pod(usize),
    /// On a node.
    Node(usize),
    /// Outside.
    World,
}

/// One end of a probe, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// A pod; one in its node's network is that node.
    Pod(agent_core::model::Name),
    /// A node.
    Node(String),
    /// An address; outside unless somebody in the cluster has it.
    Address(IpAddr),
    /// Some host outside.
    World,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => name.fmt(f),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Address(address) => address.fmt(f),
            Self::World => f.write_str("world"),
        }
    }
}

/// Address family of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Family {
    /// IPv4.
    #[value(name = "IPv4", alias = "ipv4")]
    Ipv4,
    /// IPv6.
    #[value(name = "IPv6", alias = "ipv6")]
    Ipv6,
}

impl Family {
    const fn has(self, address: &IpAddr) -> bool {
        match self {
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }
}

/// What a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP to a port.
    Tcp(u16),
    /// UDP to a port.
    Udp(u16),
    /// SCTP to a port.
    Sctp(u16),
    /// ICMP of a type; `None`: echo of the family.
    Icmp(Option<u8>),
}

impl Protocol {
    /// Name as scenarios write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp(_) => "TCP",
            Self::Udp(_) => "UDP",
            Self::Sctp(_) => "SCTP",
            Self::Icmp(_) => "ICMP",
        }
    }

    /// Port, if it has one.
    pub const fn port(self) -> Option<u16> {
        match self {
            Self::Tcp(port) | Self::Udp(port) | Self::Sctp(port) => Some(port),
            Self::Icmp(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) | Self::Udp(port) | Self::Sctp(port) => write!(f, "{port}/{}", self.name()),
            Self::Icmp(Some(kind)) => write!(f, "ICMP type {kind}"),
            Self::Icmp(None) => f.write_str("ICMP"),
        }
    }
}

/// One end of a probe, found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    place: Place,
    ipv4: Option<IpAddr>,
    ipv6: Option<IpAddr>,
}

impl Endpoint {
    /// With the first address of each family.
    fn new(place: Place, addresses: &[IpAddr]) -> Self {
        let first = |family: Family| addresses.iter().copied().find(|address| family.has(address));
        Self { place, ipv4: first(Family::Ipv4), ipv6: first(Family::Ipv6) }
    }

    const fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.ipv4,
            Family::Ipv6 => self.ipv6,
        }
    }
}

impl Probe {
    /// From one end to the other; `None`: they have no family in common, or not the one that is asked for.
    pub fn between(from: &Endpoint, to: &Endpoint, protocol: Protocol, family: Option<Family>) -> Option<Self> {
        let pair = |family: Family| from.address(family).zip(to.address(family));
        let (source, destination) = match family {
            Some(family) => pair(family),
            None => pair(Family::Ipv4).or_else(|| pair(Family::Ipv6)),
        }?;
        Some(Self { from: from.place, source, to: to.place, destination, protocol, source_port: None })
    }
}

/// A probe, resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Who sends.
    pub from: Place,
    /// With which address.
    pub source: IpAddr,
    /// Who should receive.
    pub to: Place,
    /// At which address.
    pub destination: IpAddr,
    /// What is spoken.
    pub protocol: Protocol,
    /// Source port or identifier; `None`: a fresh one.
    pub source_port: Option<u16>,
}

/// Why a probe cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// No such pod.
    #[error("no pod `{0}`")]
    NoPod(String),
    /// No such node.
    #[error("no node `{0}`")]
    NoNode(String),
    /// One end has no address of the family.
    #[error("`{party}` has no {family} address")]
    NoAddress {
        /// Who.
        party: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The ends' families differ.
    #[error("`{from}` and `{to}` are of different families")]
    Families {
        /// Sender.
        from: String,
        /// Receiver.
        to: String,
    },
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything arrived.
    Allowed,
    /// A program dropped a packet.
    Dropped {
        /// Which packet: 0 the request, 1 the answer, 2 what follows.
        leg: usize,
        /// Where and why.
        drop: Drop,
    },
    /// A packet got lost otherwise.
    Lost {
        /// As above.
        leg: usize,
        /// Where; `None`: outside.
        node: Option<usize>,
        /// Why.
        lost: Lost,
    },
}

impl Outcome {
    /// Whether everything arrived.
    pub const fn allowed(&self) -> bool {
        matches!(self, Self::Allowed)
    }

    /// The drop, if a packet was for a proxy: there is none here.
    pub fn redirected(&self) -> Option<&Drop> {
        match self {
            Self::Dropped { drop, .. } if drop.reason == Some(DropReason::ProxyLookupFailed) => Some(drop),
            Self::Allowed | Self::Dropped { .. } | Self::Lost { .. } => None,
        }
    }
}

impl Cluster {
    /// Finds who a party is, and where.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub fn endpoint(&self, party: &Party) -> Result<Endpoint, ProbeError> {
        match party {
            Party::World => Ok(Endpoint::new(Place::World, &world_addresses())),
            Party::Address(address) => Ok(Endpoint::new(self.place_of(*address), &[*address])),
            Party::Node(name) => {
                let found = self.nodes.iter().enumerate().find(|(_, node)| node.name == *name);
                let (index, node) = found.ok_or_else(|| ProbeError::NoNode(name.clone()))?;
                Ok(Endpoint::new(Place::Node(index), &node.addresses))
            }
            Party::Pod(name) => {
                let pod = self.model.pods().get(name).ok_or_else(|| ProbeError::NoPod(name.to_string()))?;
                let place = pod.addresses.first().map_or(Place::World, |address| self.place_of(*address));
                Ok(Endpoint::new(place, &pod.addresses))
            }
        }
    }

    fn place_of(&self, address: IpAddr) -> Place {
        match self.owner(address) {
            Some(Owner::Pod(nic)) => Place::Pod(nic),
            Some(Owner::Node(node)) => Place::Node(node),
            None => Place::World,
        }
    }

    /// Fills in who and where. Without a family: that of an address that is given, else IPv4 where both ends have it.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub fn probe_between(
        &self,
        from: &Party,
        to: &Party,
        protocol: Protocol,
        family: Option<Family>,
    ) -> Result<Probe, ProbeError> {
        let (sender, receiver) = (self.endpoint(from)?, self.endpoint(to)?);
        Probe::between(&sender, &receiver, protocol, family).ok_or_else(|| match family {
            None => ProbeError::Families { from: from.to_string(), to: to.to_string() },
            Some(family) => {
                let party = if sender.address(family).is_some() { to } else { from };
                let family = if family == Family::Ipv4 { "IPv4" } else { "IPv6" };
                ProbeError::NoAddress { party: party.to_string(), family }
            }
        })
    }

    /// Sends a probe.
    ///
    /// # Errors
    /// A fault of a program: a bug of the datapath, not an outcome.
    pub fn probe(&mut self, probe: &Probe) -> Result<Outcome, RunError> {
        self.said.clear();
        self.flows = self.flows.wrapping_add(1);
        let fresh = u16::try_from(PORTS.0 + self.flows % PORTS.1).unwrap_or(u16::MAX);
        let sport = probe.source_port.unwrap_or(fresh);
        let flow = self.flows ^ self.options.seed.rotate_left(17);
        let tag = u32::try_from(flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).unwrap_or(1) | 1;
        let ipv6 = probe.source.is_ipv6();
        for leg in 0..3 {
            let Some(payload) = payload(probe.protocol, leg, ipv6, sport, tag) else {
                break;
            };
            let back = leg == 1;
            let (from, to, source, destination) = if back {
                (probe.to, probe.from, probe.destination, probe.source)
            } else {
                (probe.from, probe.to, probe.source, probe.destination)
            };
            let packet = Packet { source, destination, hops: HOPS, payload };
            self.leg = leg;
            let end = self.send(|skb| packet.write([0; 6], [0; 6], &mut skb.data), from)?;
            let lost = match end {
                End::Dropped(drop) => return Ok(Outcome::Dropped { leg, drop }),
                End::Lost { node, lost } => return Ok(Outcome::Lost { leg, node, lost }),
                End::Pod(nic) => (to != Place::Pod(nic)).then_some(Lost::Astray),
                End::Host(node) => (to != Place::Node(node)).then_some(Lost::Astray),
                End::World => (to != Place::World).then_some(Lost::Astray),
            };
            let unchanged = Packet::read(&self.skb.data).is_ok_and(|got| Packet { hops: HOPS, ..got } == packet);
            let lost = lost.or((!unchanged).then_some(Lost::Changed));
            if let Some(lost) = lost {
                return Ok(Outcome::Lost { leg, node: None, lost });
            }
        }
        Ok(Outcome::Allowed)
    }
}

fn world_addresses() -> Vec<IpAddr> {
    [super::WORLD4, super::WORLD6].iter().filter_map(|address| address.parse().ok()).collect()
}

/// The packet of a leg; `None`: there is none.
fn payload(protocol: Protocol, leg: usize, ipv6: bool, sport: u16, tag: u32) -> Option<Payload> {
    let ends = |dport: u16| if leg == 1 { (dport, sport) } else { (sport, dport) };
    let server = tag.rotate_left(16) ^ 0x5a5a_5a5a;
    match protocol {
        Protocol::Tcp(port) => {
            let (source, destination) = ends(port);
            let (flags, sequence, acknowledged) = match leg {
                0 => (tcp::SYN, tag, 0),
                1 => (tcp::SYN | tcp::ACK, server, tag.wrapping_add(1)),
                _ => (tcp::ACK, tag.wrapping_add(1), server.wrapping_add(1)),
            };
            Some(Payload::Tcp { source, destination, flags, sequence, acknowledged })
        }
        Protocol::Udp(port) if leg < 2 => {
            let (source, destination) = ends(port);
            let data = if leg == 0 { *b"question" } else { *b"answered" };
            Some(Payload::Udp { source, destination, data })
        }
        Protocol::Sctp(port) if leg < 2 => {
            let (source, destination) = ends(port);
            let (chunk, verification, initiate) =
                if leg == 0 { (sctp::INIT, 0, tag) } else { (sctp::INIT_ACK, tag, server) };
            Some(Payload::Sctp { source, destination, tag: verification, chunk, initiate })
        }
        Protocol::Icmp(kind) if leg < 2 => {
            let (request, reply) = if ipv6 { (128, 129) } else { (8, 0) };
            let kind = kind.unwrap_or(request);
            if leg == 1 && kind != request {
                return None;
            }
            Some(Payload::Icmp { kind: if leg == 0 { kind } else { reply }, id: sport, sequence: 1 })
        }
        Protocol::Udp(_) | Protocol::Sctp(_) | Protocol::Icmp(_) => None,
    }
}
