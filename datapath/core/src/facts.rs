//! What is known about a packet so far: filled stage by stage, read when an event is written.

use datapath_abi::{Be16, Direction, Event, Hook, events};

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
    /// The policy would have denied it, and only audits.
    pub audited: bool,
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
            audited: false,
            state: events::FlowState::Unknown,
            source_identity: 0,
            destination_identity: 0,
            rule: 0,
            port: Be16::ZERO,
            tuple: Tuple::default(),
        }
    }

    /// Writes an event about this packet, every field of it.
    #[inline(always)]
    pub fn write_event(&self, event: &mut Event, kind: events::EventKind, code: u8, verdict: i32) {
        let family = if F::IS_V6 { events::IPV6 } else { 0 };
        let direction = match self.direction {
            Direction::Ingress => events::INGRESS,
            Direction::Egress => 0,
        };
        event.kind = kind as u8;
        event.code = code;
        event.hook = self.hook as u8;
        event.flags = family | direction | if self.audited { events::AUDITED } else { 0 };
        event.endpoint = self.endpoint;
        event.state = self.state as u8;
        event.protocol = self.tuple.protocol;
        event.source_identity = self.source_identity;
        event.destination_identity = self.destination_identity;
        event.ifindex = self.ifindex;
        event.len = self.len;
        F::widen(&self.tuple.source, &mut event.source);
        F::widen(&self.tuple.destination, &mut event.destination);
        event.sport = self.tuple.sport;
        event.dport = self.port;
        event.rule = self.rule;
        event.verdict = verdict;
        event.tcp_flags = self.tcp_flags;
        event.pad = [0; 3];
    }
}
