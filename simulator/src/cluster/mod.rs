//! A whole cluster in one process: nodes that run the committed object over maps which the real control plane filled,
//! the devices and stacks between them, and one virtual clock.
//!
//! What is modelled of the network, and nothing else:
//! - each pod's veth pair, each node's underlay device `eth0`, tunnel device (VXLAN or Geneve in metadata mode) and host device;
//! - each node's stack: own addresses are answered by a process; pods are reached over the host device (with
//!   `routingMode: native` only the node's own, others over the underlay), everything else over the underlay; forwarding
//!   takes a hop off; neighbours are always known;
//! - outside, a router that knows every node's addresses and pods, and hosts that answer from every other address.
//!
//! Invariant: no clock, no random source and no order but the seed's and the input's: two runs give the same bytes.

pub mod capture;
pub mod engine;
pub mod explain;
pub mod frame;
pub mod matrix;
pub mod probe;
pub mod proxy;
pub mod scenario;
pub mod trail;
pub mod tunnel;
pub mod why;

mod ecn;
mod update;
mod walk;

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_core::model::Name;
use agent_core::{Compiled, IdentityAllocator, Model};
use simulator_vm::Skb;

pub use engine::{Datapath, EngineError, EngineKind};
pub use probe::{Family, Outcome, Party, Probe, Protocol};
pub use trail::{Drop, End, Hop, Lost};
pub use update::{ClusterError, Options, TICKS_PER_SECOND};
pub use why::{Audited, Said, Spoke, Verdict, Why};

use capture::Captures;
use frame::MacBytes;

/// Interface numbers of a node.
pub mod device {
    /// Underlay.
    pub const ETH0: u32 = 2;
    /// Tunnel.
    pub const TUNNEL: u32 = 3;
    /// weir's host device.
    pub const HOST: u32 = 4;
    /// First pod's veth.
    pub const FIRST_VETH: u32 = 10;
}

/// A source address of the world when none is asked for (RFC 5737, RFC 3849).
pub const WORLD4: &str = "203.0.113.7";
/// The same over IPv6.
pub const WORLD6: &str = "2001:db8::7";

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its tunnels end.
    underlay: Option<IpAddr>,
    eth0: MacBytes,
    gateway: MacBytes,
    /// Its datapath.
    pub datapath: Datapath,
    settings: datapath_abi::Config,
    /// Pods by interface, from the first veth on.
    veths: Vec<Option<usize>>,
    packets: u16,
}

/// One pod with a network of its own.
#[derive(Debug)]
pub struct Nic {
    /// Its name.
    pub name: Name,
    /// Its node.
    pub node: usize,
    /// Host side of its veth.
    pub ifindex: u32,
    /// Its endpoint number.
    pub endpoint: u16,
    mac: MacBytes,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A pod.
    Pod(usize),
    /// A node.
    Node(usize),
}

/// The cluster. See the module.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    model: Model,
    identities: IdentityAllocator,
    compiled: Compiled,
    nodes: Vec<Node>,
    nics: Vec<Nic>,
    owners: BTreeMap<IpAddr, Owner>,
    now_ns: u64,
    runs: u64,
    flows: u64,
    skb: Skb,
    scratch: Vec<u8>,
    trail: Option<Vec<Hop>>,
    leg: usize,
    /// Some policy only audits: what it would have denied is listened for.
    audits: bool,
    /// What policies said about the last probe: all of it with [`Options::verdicts`], else what they only audit.
    said: Vec<why::Spoken>,
    captures: Option<Captures>,
}

impl Cluster {
    /// The objects.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Compiled policies.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// Identities in use.
    pub fn identities(&self) -> &IdentityAllocator {
        &self.identities
    }

    /// Nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Pods with a network of their own.
    pub fn nics(&self) -> &[Nic] {
        &self.nics
    }

    /// Virtual time in nanoseconds since the nodes booted.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Lets virtual time pass.
    pub fn advance(&mut self, ns: u64) {
        self.now_ns = self.now_ns.saturating_add(ns);
    }

    /// Hook programs run so far.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// From here on hops are written down; [`Self::take_trail`] hands them over.
    pub fn start_trail(&mut self) {
        self.trail = Some(Vec::new());
    }

    /// Hops since [`Self::start_trail`], which ends with this.
    pub fn take_trail(&mut self) -> Vec<Hop> {
        self.trail.take().unwrap_or_default()
    }

    /// Ends the captures.
    ///
    /// # Errors
    /// When their last bytes cannot be written.
    pub fn finish_captures(&mut self) -> std::io::Result<()> {
        self.captures.take().map_or(Ok(()), Captures::finish)
    }

    fn owner(&self, address: IpAddr) -> Option<Owner> {
        self.owners.get(&address).copied()
    }

    /// The pod of an endpoint.
    pub fn nic_of_endpoint(&self, node: usize, endpoint: u16) -> Option<&Nic> {
        self.nics.iter().find(|nic| nic.node == node && nic.endpoint == endpoint)
    }
}
