//! Packets from the underlay. Those for pods of this node, and for the node itself where it has policies, meet their
//! ingress policy; the rest is the stack's.

use core::mem::size_of;

use datapath_abi::{CallSlot, Config, DropReason, IpFlags, config};

use super::{Outcome, dispatch, is_infrastructure, police, receive, side};
use crate::conntrack::{self, Side};
use crate::facts::Facts;
use crate::family::{Family, V4};
use crate::ipcache;
use crate::packet::Packet;
use crate::parse::length;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::geneve::{self, UdpGeneve};
use crate::wire::l4;

/// The entry program: IPv4 here, the rest by continuation.
#[inline(always)]
pub fn entry<P: Packet, T: Tables<V4>>(packet: &mut P, tables: &T, facts: &mut Facts<V4>) -> Outcome {
    dispatch(packet, tables, facts, run, CallSlot::FromNetdev6, |_| Ok(Verdict::PASS))
}

/// The whole path for one family.
#[inline(always)]
pub fn run<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, facts: &mut Facts<F>) -> Outcome {
    F::addresses(packet, facts)?;
    if tables.config().flags & config::GENEVE != 0 {
        check_geneve(packet, tables.config(), facts)?;
    }
    let destination = match tables.owner(&facts.tuple.destination) {
        Some(owner) if owner.endpoint != 0 => owner,
        Some(_) | None => return Ok(Verdict::PASS),
    };
    let parsed = F::parse(packet, tables, facts)?;
    let found = conntrack::find(tables, facts, &parsed);
    let for_host = destination.flags.has(IpFlags::LOCAL_HOST);
    facts.destination_identity = destination.identity;
    let source = ipcache::resolve(tables, &facts.tuple.source);
    if for_host && is_infrastructure(tables.config(), facts, source.has_any(IpFlags::NODE)) {
        return Ok(Verdict::PASS);
    }
    facts.endpoint = destination.endpoint;
    // In tunnel mode a pod's packets to pods come out of the tunnel, never bare.
    if !for_host && source.has_any(IpFlags::POD) && tables.config().flags & config::TUNNEL != 0 {
        return Err(DropReason::InvalidSourceIp);
    }
    if source.has_any(IpFlags::LOCAL_HOST) {
        return Err(DropReason::InvalidSourceIp);
    }
    facts.source_identity = source.identity();
    let receiver = side(&destination, facts.source_identity);
    let report = police(packet, tables, facts, &parsed, found, &Side::default(), &receiver)?;
    receive(packet, tables, facts, &destination, report)
}

/// Refuses Geneve that an endpoint must not unwrap, and that the kernel's device would.
#[inline(always)]
fn check_geneve<F: Family, P: Packet>(packet: &mut P, config: &Config, facts: &Facts<F>) -> Result<(), DropReason> {
    if facts.tuple.protocol != l4::UDP {
        return Ok(());
    }
    let Some(start) = F::plain_l4(packet) else {
        return Ok(());
    };
    packet.pull(length(start + size_of::<UdpGeneve>()));
    match packet.load::<UdpGeneve>(start) {
        Some(header)
            if header.destination == config.geneve_port && header.flags & (geneve::CONTROL | geneve::CRITICAL) != 0 =>
        {
            Err(DropReason::UnsupportedGeneve)
        }
        Some(_) | None => Ok(()),
    }
}
