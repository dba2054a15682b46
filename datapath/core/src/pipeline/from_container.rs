//! Packets leaving a pod, at the host side of its veth.
//!
//! parse → neighbour discovery → source check → owner of the destination → conntrack → policies (the sender's egress
//! and, for a pod of this node, the receiver's ingress) → delivery, tunnel, or the node's stack.
//!
//! Look-ups of an established flow: owner of the source, owner of the destination, flow, counter.

use datapath_abi::{DropReason, IpEntry, IpFlags, TracePoint, config};

use super::{Outcome, deliver, has_tunnel, police, side, trace};
use crate::conntrack::Side;
use crate::facts::Facts;
use crate::family::Family;
use crate::ipcache;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::l4;

/// The whole path for one family.
#[inline(always)]
pub fn run<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    facts: &mut Facts<F>,
) -> Outcome {
    let parsed = F::parse(packet, tables, facts)?;
    if let Some(outcome) = F::on_link(packet, tables, facts, parsed.l4) {
        return outcome;
    }
    let source = tables
        .owner(&facts.tuple.source)
        .ok_or(DropReason::InvalidSourceIp)?;
    if source.ifindex != facts.ifindex {
        return Err(DropReason::InvalidSourceIp);
    }
    facts.endpoint = source.endpoint;
    facts.source_identity = source.identity;
    let destination = ipcache::resolve(tables, &facts.tuple.destination);
    facts.destination_identity = destination.identity;
    prohibit_tunnels(tables, facts, &destination)?;
    let sender = side(&source, destination.identity);
    let receiver = side(&destination, source.identity);
    let report = police(tables, facts, &parsed, &sender, &receiver)?;
    facts.direction = datapath_abi::Direction::Egress;
    forward(
        packet,
        tables,
        facts,
        &source,
        &destination,
        &receiver,
        report,
    )
}

/// A pod that could send tunnel packets to nodes could claim any identity.
#[inline(always)]
fn prohibit_tunnels<F: Family, T: Tables<F>>(
    tables: &T,
    facts: &Facts<F>,
    destination: &IpEntry,
) -> Result<(), DropReason> {
    if facts.tuple.protocol != l4::UDP
        || destination.flags.0 & (IpFlags::NODE | IpFlags::LOCAL_HOST) == 0
    {
        return Ok(());
    }
    let config = tables.config();
    if facts.tuple.dport == config.vxlan_port || facts.tuple.dport == config.geneve_port {
        return Err(DropReason::EncapProhibited);
    }
    Ok(())
}

#[inline(always)]
fn forward<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    facts: &mut Facts<F>,
    source: &IpEntry,
    destination: &IpEntry,
    receiver: &Side,
    report: bool,
) -> Outcome {
    let (outcome, point) = if receiver.endpoint != 0 {
        let outcome = deliver::<F, P>(packet, tables.config(), destination);
        if outcome.is_ok() {
            tables.count(
                datapath_abi::Direction::Ingress,
                datapath_abi::metrics::FORWARDED,
                facts.len,
            );
        }
        (outcome, TracePoint::ToEndpoint)
    } else if destination.flags.has(IpFlags::LOCAL_HOST) {
        (Ok(Verdict::Pass), TracePoint::ToHost)
    } else if tables.config().flags & config::TUNNEL == 0 {
        (Ok(Verdict::Pass), TracePoint::ToStack)
    } else if has_tunnel(destination) {
        let verdict = Verdict::Tunnel {
            identity: source.identity,
            node: destination.node,
            underlay6: destination.flags.has(IpFlags::UNDERLAY6),
        };
        (Ok(verdict), TracePoint::ToOverlay)
    } else if destination.flags.has(IpFlags::POD) {
        (Err(DropReason::NoTunnelEndpoint), TracePoint::ToOverlay)
    } else {
        (Ok(Verdict::Pass), TracePoint::ToStack)
    };
    if report && outcome.is_ok() {
        trace(tables, facts, point);
    }
    outcome
}
