//! What happened to a packet, hop by hop.

use datapath_abi::{DropReason, Event, EventKind, Hook, events};
use zerocopy::FromBytes;

/// A map look-up of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Map.
    pub map: String,
    /// Key bytes.
    pub key: Vec<u8>,
    /// Value bytes; `None`: no entry.
    pub value: Option<Vec<u8>>,
}

/// One stop of a packet: a hook's program, a device or a stack.
#[derive(Clone, Debug)]
pub struct Hop {
    /// Which packet of the probe: 0 the request, 1 the reply, 2 the acknowledgement.
    pub leg: usize,
    /// Node; `None` outside of all.
    pub node: Option<usize>,
    /// Device or place, as `eth0` or `stack`.
    pub place: String,
    /// The hook whose program ran.
    pub hook: Option<Hook>,
    /// Virtual time in nanoseconds.
    pub now_ns: u64,
    /// The frame as it came, as text.
    pub before: String,
    /// The frame as it left, as text, when it is another.
    pub after: Option<String>,
    /// What became of it.
    pub verdict: String,
    /// What the program looked up (checked engine only).
    pub lookups: Vec<Lookup>,
    /// What the program reported.
    pub events: Vec<Event>,
    /// Instructions executed (checked engine only).
    pub instructions: u64,
}

/// A packet that a program dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drop {
    /// Node.
    pub node: usize,
    /// Hook.
    pub hook: Hook,
    /// Why; `None` when the program did not say.
    pub reason: Option<DropReason>,
    /// Whether the packet was counted as going towards an endpoint.
    pub ingress: bool,
    /// Endpoint concerned; 0 = none.
    pub endpoint: u16,
    /// Rule that decided; 0 = none.
    pub rule: u32,
}

impl Drop {
    /// From the events of the run that dropped the packet.
    pub fn from_events(node: usize, hook: Hook, records: &[Vec<u8>]) -> Self {
        let mut drop = Self { node, hook, reason: None, ingress: false, endpoint: 0, rule: 0 };
        for event in records.iter().filter_map(|record| read_event(record)) {
            if EventKind::from_number(event.kind) == Some(EventKind::Drop) {
                drop.reason = DropReason::from_number(event.code);
                drop.ingress = event.flags & events::INGRESS != 0;
                drop.endpoint = event.endpoint;
                drop.rule = event.rule;
            }
        }
        drop
    }

    /// `ingress` or `egress`, seen from the endpoint.
    pub const fn at(&self) -> &'static str {
        if self.ingress { "ingress" } else { "egress" }
    }
}

/// One record of the event ring.
pub fn read_event(record: &[u8]) -> Option<Event> {
    Event::read_from_prefix(record).ok().map(|(event, _)| event)
}

/// A packet that got lost outside of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Lost {
    /// No route to the destination.
    #[error("no route")]
    NoRoute,
    /// The hop limit is used up.
    #[error("hop limit used up")]
    HopLimit,
    /// The packet went in circles.
    #[error("more than 64 hops")]
    Loop,
    /// A device that does not exist, or that cannot take the packet so.
    #[error("redirected to a device that cannot take it")]
    Device,
    /// The tunnel device got a packet without metadata, or with addresses it cannot use.
    #[error("no usable tunnel metadata")]
    Metadata,
    /// A tunnel packet that the tunnel device refused.
    #[error("refused by the tunnel device")]
    Decapsulation,
    /// Ethernet destination of somebody else.
    #[error("for another Ethernet address")]
    OtherHost,
    /// Not an IP packet that a stack takes.
    #[error("malformed")]
    Malformed,
    /// The receiver got another packet than was sent.
    #[error("changed on the way")]
    Changed,
    /// The packet reached somebody it was not sent to.
    #[error("delivered to somebody else")]
    Astray,
}

/// Where a packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In a pod.
    Pod(usize),
    /// At a node's own processes.
    Host(usize),
    /// Outside of the cluster.
    World,
    /// Dropped by a program.
    Dropped(Drop),
    /// Lost outside of the programs.
    Lost {
        /// Node; `None`: outside.
        node: Option<usize>,
        /// How.
        lost: Lost,
    },
}
