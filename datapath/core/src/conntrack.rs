//! Which flow does the packet belong to, and may it go without asking the policy?
//!
//! One look-up per packet: the key is the same from both directions (see `datapath_abi::conntrack`). A flow counts on a
//! side only where that side's policy accepted it, so an entry of one pod is no pass for the other.
//! States and timeouts follow Cilium: a FIN or RST closes its direction, an RST before both SYNs closes both, a flow
//! closed on both sides lives `tcp_closing` more, a SYN on a closing flow opens a new one, a first segment without SYN
//! gets the long timeout at once.

use datapath_abi::events::FlowState;
use datapath_abi::{Config, CtEntry, CtFlags, CtSide};

use crate::facts::Facts;
use crate::family::{Ends, Family};
use crate::packet::Packet;
use crate::parse::{self, Class, Parsed, Tuple};
use crate::tables::{CtTable, Node, TableFull};
use crate::wire::l4;

/// TCP flags that are worth an event when first seen.
const REPORTED: u8 = l4::SYN | l4::FIN | l4::RST;

/// An endpoint of this node whose policy is asked at this hook.
#[derive(Clone, Copy, Debug, Default)]
pub struct Side {
    /// Its number; 0 = this side is not asked here.
    pub endpoint: u16,
    /// Revision of its policy.
    pub revision: u32,
    /// Identity of its peer.
    pub peer: u32,
}

impl Side {
    #[inline(always)]
    const fn asked(&self) -> bool {
        self.endpoint != 0
    }

    #[inline(always)]
    const fn remembers(&self, side: &CtSide) -> bool {
        side.revision == self.revision && side.identity == self.peer
    }
}

/// What connection tracking says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track {
    /// State of the flow for this packet.
    pub state: FlowState,
    /// The sender's policy need not be asked.
    pub source_done: bool,
    /// The receiver's policy need not be asked.
    pub destination_done: bool,
    /// Worth a trace event.
    pub report: bool,
}

impl Track {
    /// Nothing is known of the flow.
    pub const NEW: Self = Self { state: FlowState::New, source_done: false, destination_done: false, report: true };
}

/// A flow's key, and which end the packet at hand comes from.
#[derive(Clone, Copy, Debug)]
pub struct Flow<F: Family> {
    /// Key of the flow table.
    pub key: F::CtKey,
    /// The packet comes from the key's `lo` end.
    pub source_is_lo: bool,
}

impl<F: Family> Flow<F> {
    /// The flow of a packet with these ends.
    #[inline(always)]
    pub fn of(tuple: &Tuple<F>) -> Self {
        let Tuple { source, destination, sport, dport, protocol } = tuple;
        let ends = Ends { source, destination, sport: *sport, dport: *dport, protocol: *protocol };
        let mut key = F::CtKey::default();
        let source_is_lo = F::ct_key(&mut key, &ends);
        Self { key, source_is_lo }
    }

    /// The flow that an ICMP error quotes, seen in the direction of the error; `None` if too little is quoted, or if the
    /// error does not go to who sent what it quotes, or (`from_pod`: pods are no routers) comes from neither end.
    #[inline(always)]
    pub fn quoted<P: Packet>(packet: &mut P, parsed: &Parsed, error: &Tuple<F>, from_pod: bool) -> Option<Self> {
        let mut key = F::CtKey::default();
        let source_is_lo = parse::quoted::<F, P>(packet, parsed, error, from_pod, &mut key)?;
        Some(Self { key, source_is_lo })
    }
}

/// A packet's flow and what the table knows of it.
#[derive(Clone, Copy)]
pub struct Found<F: Family, E> {
    /// The flow.
    pub flow: Flow<F>,
    /// Its entry.
    pub entry: Option<E>,
}

/// Looks the packet's flow up; `None` for packets that are no flow. Done before anything that does not need the answer:
/// where there are many flows, waiting for memory is most of the cost, and the processor goes on meanwhile.
#[inline(always)]
pub fn find<'a, F: Family, T: CtTable<F>>(
    tables: &'a T,
    facts: &Facts<F>,
    parsed: &Parsed,
) -> Option<Found<F, T::Flow<'a>>> {
    match parsed.class {
        Class::Tcp | Class::Datagram => {
            let flow = Flow::of(&facts.tuple);
            let entry = tables.flow(&flow.key);
            Some(Found { flow, entry })
        }
        Class::Error | Class::Single => None,
    }
}

/// Moves the flow's state on.
#[inline(always)]
pub fn track<T: Node>(
    tables: &T,
    entry: Option<&mut CtEntry>,
    source_is_lo: bool,
    class: Class,
    tcp_flags: u8,
    source: &Side,
    destination: &Side,
) -> Track {
    let now = tables.now();
    match entry {
        Some(entry) => advance(entry, source_is_lo, class, tcp_flags, source, destination, now, tables.config()),
        None => Track::NEW,
    }
}

/// Whether an ICMP error belongs to a flow that the sides accepted. Does not change the flow.
#[inline(always)]
pub fn related<F: Family, T: CtTable<F> + Node>(tables: &T, flow: &Flow<F>, source: &Side, destination: &Side) -> bool {
    let now = tables.now();
    match tables.flow(&flow.key) {
        Some(entry) => entry.expires > now && accepted(&entry, flow.source_is_lo, source, destination),
        None => false,
    }
}

/// Remembers a new flow that every asked side has accepted.
#[inline(always)]
pub fn create<F: Family, T: CtTable<F> + Node>(
    tables: &T,
    flow: &Flow<F>,
    class: Class,
    tcp_flags: u8,
    source: (&Side, u32),
    destination: (&Side, u32),
) -> Result<(), TableFull> {
    let now = tables.now();
    let settings = tables.config();
    let mut flags = if flow.source_is_lo { CtFlags::CLIENT_LO } else { 0 };
    let mut lifetime = settings.other;
    if class == Class::Tcp {
        lifetime = settings.tcp_syn;
        if tcp_flags & l4::SYN == 0 {
            flags |= CtFlags::SEEN_NON_SYN;
            lifetime = settings.tcp_established;
        }
        if tcp_flags & l4::RST != 0 {
            flags |= CtFlags::CLIENT_CLOSING | CtFlags::SERVER_CLOSING;
            lifetime = settings.tcp_closing;
        } else if tcp_flags & l4::FIN != 0 {
            flags |= CtFlags::CLIENT_CLOSING;
        }
    }
    if source.0.asked() {
        flags |= CtFlags::EGRESS;
    }
    if destination.0.asked() {
        flags |= CtFlags::INGRESS;
    }
    let entry = CtEntry {
        expires: now + u64::from(lifetime),
        client_report: low(now),
        server_report: 0,
        egress: CtSide { revision: source.0.revision, identity: source.0.peer, rule: source.1 },
        ingress: CtSide { revision: destination.0.revision, identity: destination.0.peer, rule: destination.1 },
        flags: CtFlags(flags),
        client_tcp: tcp_flags,
        server_tcp: 0,
        pad: [0; 20],
    };
    tables.remember_flow(&flow.key, &entry)
}

/// Whether a flow that is new here goes on as one that another hook of this node has let through: between a process of
/// the node and a pod, each side has a hook of its own. Only packets of the client join: what comes from the server opens
/// a flow in its own name, and its policy is asked about that.
#[inline(always)]
pub fn joins<T: Node>(tables: &T, entry: &CtEntry, source_is_lo: bool, tcp_flags: u8) -> bool {
    let closing = entry.flags.0 & (CtFlags::CLIENT_CLOSING | CtFlags::SERVER_CLOSING) != 0;
    let reopens = closing && tcp_flags & (l4::SYN | l4::ACK) == l4::SYN;
    entry.expires > tables.now() && entry.flags.has(CtFlags::CLIENT_LO) == source_is_lo && !reopens
}

/// Remembers that a side's policy, asked here or asked again, allows the flow.
#[inline(always)]
pub fn renew(entry: &mut CtEntry, source: (&Side, u32), destination: (&Side, u32)) {
    let mut flags = entry.flags.0;
    if source.0.asked() {
        flags |= CtFlags::EGRESS;
        entry.egress = CtSide { revision: source.0.revision, identity: source.0.peer, rule: source.1 };
    }
    if destination.0.asked() {
        flags |= CtFlags::INGRESS;
        entry.ingress = CtSide { revision: destination.0.revision, identity: destination.0.peer, rule: destination.1 };
    }
    if flags != entry.flags.0 {
        entry.flags = CtFlags(flags);
    }
}

/// Whether every asked side has accepted the flow, for a packet from the `lo` end or not.
#[inline(always)]
fn accepted(entry: &CtEntry, source_is_lo: bool, source: &Side, destination: &Side) -> bool {
    let forward = entry.flags.has(CtFlags::CLIENT_LO) == source_is_lo;
    let (sender, receiver) =
        if forward { (CtFlags::EGRESS, CtFlags::INGRESS) } else { (CtFlags::INGRESS, CtFlags::EGRESS) };
    (!source.asked() || entry.flags.has(sender)) && (!destination.asked() || entry.flags.has(receiver))
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one inlined step; a struct would only move the list")]
fn advance(
    entry: &mut CtEntry,
    source_is_lo: bool,
    class: Class,
    tcp_flags: u8,
    source: &Side,
    destination: &Side,
    now: u64,
    settings: &Config,
) -> Track {
    if entry.expires <= now || !accepted(entry, source_is_lo, source, destination) {
        return Track::NEW;
    }
    let mut flags = entry.flags.0;
    let forward = (flags & CtFlags::CLIENT_LO != 0) == source_is_lo;
    let mut report = false;
    if class == Class::Tcp {
        let closing = CtFlags::CLIENT_CLOSING | CtFlags::SERVER_CLOSING;
        if tcp_flags & (l4::SYN | l4::ACK) == l4::SYN && flags & closing != 0 {
            return Track::NEW;
        }
        if tcp_flags & l4::SYN == 0 {
            flags |= CtFlags::SEEN_NON_SYN;
        }
        let seen = if forward { entry.client_tcp } else { entry.server_tcp };
        if tcp_flags & !seen & REPORTED != 0 {
            report = true;
        }
        if tcp_flags & !seen != 0 {
            if forward {
                entry.client_tcp = seen | tcp_flags;
            } else {
                entry.server_tcp = seen | tcp_flags;
            }
        }
        if tcp_flags & (l4::FIN | l4::RST) != 0 {
            flags |= if forward { CtFlags::CLIENT_CLOSING } else { CtFlags::SERVER_CLOSING };
            if tcp_flags & l4::RST != 0 && entry.client_tcp & entry.server_tcp & l4::SYN == 0 {
                flags |= closing;
            }
        }
        let lifetime = if flags & closing == closing {
            settings.tcp_closing
        } else if flags & CtFlags::SEEN_NON_SYN != 0 {
            settings.tcp_established
        } else {
            settings.tcp_syn
        };
        // Once both sides have closed, only the closing segments themselves keep the flow.
        if flags & closing != closing || tcp_flags & (l4::FIN | l4::RST) != 0 {
            extend(entry, now, lifetime, settings);
        }
        if flags != entry.flags.0 {
            entry.flags = CtFlags(flags);
        }
    } else if entry.expires < now + u64::from(settings.other) {
        extend(entry, now, settings.other, settings);
    }
    let last = if forward { entry.client_report } else { entry.server_report };
    if report || low(now).wrapping_sub(last) >= settings.report_interval {
        report = true;
        if forward {
            entry.client_report = low(now);
        } else {
            entry.server_report = low(now);
        }
    }
    if forward {
        Track {
            state: FlowState::Established,
            source_done: !source.asked() || source.remembers(&entry.egress),
            destination_done: !destination.asked() || destination.remembers(&entry.ingress),
            report,
        }
    } else {
        Track { state: FlowState::Reply, source_done: true, destination_done: true, report }
    }
}

/// Lets the flow live `lifetime` from now. Not written while it would change by less than an eighth of a second: a store
/// per packet keeps the cache lines of all flows dirty, and at 30,000 flows that costs more than the look-up.
#[inline(always)]
fn extend(entry: &mut CtEntry, now: u64, lifetime: u32, settings: &Config) {
    let expires = now + u64::from(lifetime);
    if expires.wrapping_sub(entry.expires) >= u64::from(settings.ticks_per_second >> 3) {
        entry.expires = expires;
    }
}

/// The low half of a tick, for intervals.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are wanted")]
const fn low(ticks: u64) -> u32 {
    ticks as u32
}
