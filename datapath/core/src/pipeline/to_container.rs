//! Packets that the node's stack sends to a pod, at the host side of the pod's veth.
//!
//! parse → source identity (mark, or owner of the source) → conntrack → ingress policy → on to the pod.

use datapath_abi::{CallSlot, DropReason, IpFlags, TracePoint, ids};

use super::{Outcome, dispatch, police, side, trace};
use crate::conntrack::{self, Side};
use crate::facts::Facts;
use crate::family::{Family, V4};
use crate::ipcache;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::ethernet;
use crate::wire::icmp;
use crate::wire::l4;

/// Mark bits that say what a mark means.
const MARK_MASK: u32 = 0x0f00;
/// The packet comes from a process of the node.
const MARK_HOST: u32 = 0x0c00;
/// The upper half of the mark is an identity, the low byte its upper bits.
const MARK_IDENTITY: u32 = 0x0f00;

/// The entry program: IPv4 here, the rest by continuation.
#[inline(always)]
pub fn entry<P: Packet, T: Tables<V4>>(packet: &mut P, tables: &T, facts: &mut Facts<V4>) -> Outcome {
    dispatch(packet, tables, facts, run, CallSlot::ToContainer6, |ethertype| {
        if ethertype == ethernet::ARP { Ok(Verdict::PASS) } else { Err(DropReason::UnknownL3) }
    })
}

/// The whole path for one family.
#[inline(always)]
pub fn run<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, facts: &mut Facts<F>) -> Outcome {
    let parsed = F::parse(packet, tables, facts)?;
    let found = conntrack::find(tables, facts, &parsed);
    if F::IS_V6 && facts.tuple.protocol == l4::ICMP6 && is_neighbour(parsed.port.octets()[1]) {
        return Ok(Verdict::PASS);
    }
    let destination = tables.owner(&facts.tuple.destination).ok_or(DropReason::Unroutable)?;
    if destination.endpoint == 0 || destination.ifindex != facts.ifindex {
        return Err(DropReason::Unroutable);
    }
    facts.endpoint = destination.endpoint;
    facts.destination_identity = destination.identity;
    facts.source_identity = source_identity(packet, tables, facts);
    let receiver = side(&destination, facts.source_identity);
    let report = police(packet, tables, facts, &parsed, found, &Side::default(), &receiver)?;
    if report {
        trace(tables, facts, TracePoint::ToEndpoint);
    }
    Ok(Verdict::PASS)
}

#[inline(always)]
const fn is_neighbour(kind: u8) -> bool {
    kind == icmp::NEIGHBOUR_SOLICITATION || kind == icmp::NEIGHBOUR_ADVERTISEMENT
}

#[inline(always)]
fn source_identity<F: Family, P: Packet, T: Tables<F>>(packet: &P, tables: &T, facts: &Facts<F>) -> u32 {
    let mark = packet.mark();
    if mark & MARK_MASK == MARK_HOST {
        return ids::HOST;
    }
    if mark & MARK_MASK == MARK_IDENTITY {
        return (mark & 0xff) << 16 | mark >> 16;
    }
    let source = ipcache::resolve(tables, &facts.tuple.source);
    if source.has_any(IpFlags::LOCAL_HOST) { ids::HOST } else { source.identity() }
}
