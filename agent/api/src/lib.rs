//! What is spoken on the agent's local socket (a Unix stream socket, permissions 0600).
//!
//! A client writes one [`Request`] as JSON on one line and reads one line, a [`Reply`]. A connection takes any number of
//! requests, one after the other. After [`Request::Monitor`] the agent goes on with one [`Line`] a line until the client
//! hangs up.
//!
//! ```json
//! {"request":"endpoint-add","pod":"shop/web-0","netns":"/var/run/netns/web","ifname":"eth0"}
//! {"ok":{"id":1,"pod":"shop/web-0","device":"weir_1","addresses":["10.244.1.2"]}}
//! ```
//!
//! Addresses and prefixes are text; identities, ports and numbers of devices are numbers.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod event;
mod filter;

use serde::{Deserialize, Serialize};

pub use event::{Event, EventKind, Line, Peer, Rule};
pub use filter::Filter;

/// Where the socket is unless the settings say otherwise.
pub const SOCKET: &str = "/run/weir/agent.sock";

/// What a client asks for. `endpoint` is a number, `NAMESPACE/NAME`, an address, or the
/// name of the node's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the agent is: [`Status`].
    Status {},
    /// Every endpoint: list of [`Endpoint`].
    EndpointList {},
    /// One [`Endpoint`].
    EndpointGet {
        /// Which.
        endpoint: String,
    },
    /// Connects a pod of this node: makes a veth pair (unless it is given one), configures the pod's end, attaches the
    /// datapath. Returns the [`Endpoint`]; the same call again returns the same endpoint.
    EndpointAdd {
        /// `NAMESPACE/NAME`.
        pod: String,
        /// File of the pod's network namespace, as the agent sees it.
        netns: String,
        /// Name of the device in the pod.
        #[serde(default = "eth0")]
        ifname: String,
        /// The node's end of a veth pair that is there already, whose other end is the pod's device. Stays when the
        /// endpoint goes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// Disconnects a pod and removes its devices: [`Endpoint`] that went.
    EndpointDelete {
        /// Which.
        endpoint: String,
    },
    /// Every identity in use: list of [`Identity`].
    IdentityList {},
    /// Policy entries of an endpoint, from the kernel's map: list of [`PolicyEntry`].
    PolicyGet {
        /// Which.
        endpoint: String,
    },
    /// Who owns which address, from the kernel's maps: list of [`Address`].
    IpcacheList {},
    /// Flows, from the kernel's maps: list of [`Flow`].
    CtList {},
    /// Counters, from the kernel's map: list of [`Counter`].
    Metrics {},
    /// Events as they happen: a [`Line`] each, without end.
    Monitor(Filter),
}

fn eth0() -> String {
    "eth0".to_owned()
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply<T> {
    /// What was asked for.
    Ok(T),
    /// Why not.
    Error(Refusal),
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Whether the request is wrong (an endpoint that is not there), rather than the agent unable to do it.
    pub input: bool,
    /// What is wrong.
    pub message: String,
}

/// How the agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether everything below is as it should be.
    pub healthy: bool,
    /// Version of the agent.
    pub version: String,
    /// This node.
    pub node: String,
    /// Where the cluster's objects come from.
    pub source: Source,
    /// What is wrong between the cluster's objects and the maps, if anything.
    pub reconcile_error: Option<String>,
    /// Changes to maps by the last pass that read new objects, and the microseconds from reading to the last change.
    pub last_pass: Option<Pass>,
    /// Endpoints that are remembered, and those of them that are in the maps.
    pub endpoints: (usize, usize),
    /// How pods of other nodes are reached: `tunnel` or `native`.
    pub routing: String,
    /// What tunnels speak: `vxlan` or `geneve`; absent with native routing.
    pub tunnel_protocol: Option<String>,
    /// Bytes of an IP packet in a pod, at most; 0: not known yet.
    pub mtu: u32,
    /// Routes to other nodes that cannot be made, devices of pods that cannot be mended.
    pub problems: Vec<String>,
    /// Endpoints that are not in the maps, each with the reason.
    pub waiting: Vec<String>,
    /// How programs are attached: `tcx` or `clsact`.
    pub attach: String,
    /// Devices with the datapath's programs: `device: program, program`.
    pub attached: Vec<String>,
    /// Folder with the pinned maps and links.
    pub bpffs: String,
    /// Events that found no room in the ring buffer, since the maps were made.
    pub events_lost: u64,
    /// Flows in the tables when they were swept last, and those that had expired.
    pub flows: (usize, usize),
}

/// Where the cluster's objects come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The folder.
    pub directory: String,
    /// Files in it.
    pub files: usize,
    /// Objects in them.
    pub objects: usize,
    /// What is wrong with them; the last good ones are in force.
    pub error: Option<String>,
}

/// One pass over the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// Changes to maps; 0 when they were as they should be.
    pub changes: usize,
    /// Microseconds from the beginning of reading to the last change.
    pub micros: u64,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Number, valid on this node.
    pub id: u16,
    /// `NAMESPACE/NAME`.
    pub pod: String,
    /// Device of the node that leads to the pod.
    pub device: String,
    /// Its number; 0: it is not there.
    pub ifindex: u32,
    /// The pod's Ethernet address.
    pub mac: String,
    /// The pod's addresses.
    pub addresses: Vec<String>,
    /// Security identities of these addresses.
    pub identities: Vec<u32>,
    /// Policies that isolate it for packets to it, `NAMESPACE/NAME (file:line)`.
    pub ingress_policies: Vec<String>,
    /// Policies that isolate it for packets from it.
    pub egress_policies: Vec<String>,
    /// `ready`, or what it waits for.
    pub state: String,
}

/// A security identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Number.
    pub id: u32,
    /// Labels, sorted.
    pub labels: Vec<String>,
}

/// One entry of an endpoint's policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyEntry {
    /// `ingress` or `egress`.
    pub direction: String,
    /// Peer; 0: any.
    pub identity: u32,
    /// What the peer's identity stands for.
    pub peer: String,
    /// `any`, `TCP`, …
    pub protocol: String,
    /// Ports, both ends included; `None`: every port.
    pub ports: Option<(u16, u16)>,
    /// `allow` or `deny`.
    pub verdict: String,
    /// The higher one wins.
    pub precedence: u32,
    /// The rule, with file and line.
    pub rule: String,
}

/// The owner of an address or prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Address, or prefix with its length.
    pub prefix: String,
    /// Security identity.
    pub identity: u32,
    /// The pod or node, or what the identity stands for.
    pub owner: String,
    /// Endpoint of this node; 0: none.
    pub endpoint: u16,
    /// Underlay address of the node that holds it.
    pub node: Option<String>,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `TCP`, `UDP`, …
    pub protocol: String,
    /// Who opened it: address and port.
    pub client: String,
    /// The pod, if it is one.
    pub client_pod: Option<String>,
    /// To whom: address and port.
    pub server: String,
    /// The pod, if it is one.
    pub server_pod: Option<String>,
    /// Seconds until it is forgotten; negative: it is forgotten already.
    pub expires_seconds: i64,
    /// `syn`, `established`, `closing`, or empty.
    pub state: String,
    /// Policies of this node's pods that accepted it: `egress`, `ingress`.
    pub accepted: Vec<String>,
}

/// A counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// `ingress` or `egress`, seen from the pods.
    pub direction: String,
    /// `Forwarded`, `EventLost`, or a drop reason.
    pub reason: String,
    /// What it means.
    pub text: String,
    /// Packets, on all CPUs.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}
