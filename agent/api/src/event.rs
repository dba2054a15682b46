//! Events of the datapath, with names for their numbers.

use serde::{Deserialize, Serialize};

/// What an event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A packet was dropped.
    Drop,
    /// A packet went on.
    Trace,
    /// A policy decided about a new flow.
    Verdict,
}

/// One end of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Address; empty: neither IPv4 nor IPv6.
    pub address: String,
    /// Port (ICMP: identifier and type).
    pub port: u16,
    /// Security identity; 0: not known when the event was made.
    pub identity: u32,
    /// `NAMESPACE/NAME` of the pod, name of the node, or what the identity stands for.
    pub name: String,
}

/// The rule that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Number; 0: none.
    pub id: u32,
    /// Policy, direction, index, file and line; for a default deny the policies that isolate the pod.
    pub text: String,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since 1970, when the agent read it.
    pub time_ns: u64,
    /// What it tells.
    pub kind: EventKind,
    /// Where the packet was: name of the hook.
    pub hook: String,
    /// Device it was on.
    pub ifindex: u32,
    /// `ingress` (towards the endpoint) or `egress`.
    pub direction: String,
    /// Endpoint of this node; 0: none.
    pub endpoint: u16,
    /// `TCP`, `UDP`, …; empty: not IP.
    pub protocol: String,
    /// Flags as in `SYN,ACK`; empty unless TCP.
    pub tcp_flags: String,
    /// Bytes of the frame.
    pub len: u32,
    /// Sender.
    pub source: Peer,
    /// Receiver.
    pub destination: Peer,
    /// `new`, `established`, `reply`, `related`, or empty.
    pub state: String,
    /// Drop: name of the reason. Trace: where to. Verdict: `allowed`,
    /// `audited`, `redirected`, or name of the reason.
    pub outcome: String,
    /// The outcome in words.
    pub text: String,
    /// The rule that decided, where a policy did.
    pub rule: Option<Rule>,
}

/// One line of a monitor's stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// An event.
    Event(Box<Event>),
    /// So many events were left out: the client reads too slowly.
    Lost(u64),
}
