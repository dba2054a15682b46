//! What is known about a packet so far: filled stage by stage, read when an event is written.

use datapath_abi::{Addr6, Be16, Direction, DropReason, Event, Hook, events};

use crate::family::Family;
use crate::parse::Tuple;

/// What is known about a packet so far.
#[derive(Clone, Copy, Debug)]
pub struct Facts<F: Family> {
    /// Where the packet is.
    pub hook: Hook,
    /// Side of the endpoint the packet is counted for.
    pub direction: Direction,
    /// Interface of the hook.
    pub ifindex: u32,
    /// Frame length.
    pub len: u32,
    /// Local endpoint concerned; 0 = none yet.
    pub endpoint: u16,
    /// TCP flags.
    pub tcp_flags: u8,
    /// What connection tracking said.
    pub state: events::FlowState,
    /// Sender's identity; 0 = not known yet.
    pub source_identity: u32,
    /// Receiver's identity; 0 = not known yet.
    pub destination_identity: u32,
    /// Rule that decided; 0 = none.
    pub rule: u32,
    /// What policy knows as the port: destination port, or ICMP type.
    pub port: Be16,
    /// Addresses and ports; zeros until parsed.
    pub tuple: Tuple<F>,
}

impl<F: Family> Facts<F> {
    /// Nothing is known yet.
    #[inline(always)]
    pub fn new(hook: Hook, direction: Direction, ifindex: u32, len: u32) -> Self {
        Self {
            hook,
            direction,
            ifindex,
            len,
            endpoint: 0,
            tcp_flags: 0,
            state: events::FlowState::Unknown,
            source_identity: 0,
            destination_identity: 0,
            rule: 0,
            port: Be16::ZERO,
            tuple: Tuple::default(),
        }
    }

    /// An event about this packet.
    #[inline(always)]
    pub fn event(&self, kind: events::EventKind, code: u8) -> Event {
        let (source, destination): (Addr6, Addr6) = (
            F::widen(&self.tuple.source),
            F::widen(&self.tuple.destination),
        );
        let family = if F::IS_V6 { events::IPV6 } else { 0 };
        let direction = match self.direction {
            Direction::Ingress => events::INGRESS,
            Direction::Egress => 0,
        };
        Event {
            kind: kind as u8,
            code,
            hook: self.hook as u8,
            flags: family | direction,
            endpoint: self.endpoint,
            state: self.state as u8,
            protocol: self.tuple.protocol,
            source_identity: self.source_identity,
            destination_identity: self.destination_identity,
            ifindex: self.ifindex,
            len: self.len,
            source,
            destination,
            sport: self.tuple.sport,
            dport: self.port,
            rule: self.rule,
            verdict: 0,
            tcp_flags: self.tcp_flags,
            pad: [0; 3],
        }
    }

    /// The event of a drop.
    #[inline(always)]
    pub fn drop_event(&self, reason: DropReason) -> Event {
        self.event(events::EventKind::Drop, reason as u8)
    }
}
