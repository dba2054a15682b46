//! Records of the ring buffer as events with names: pods, reasons, the rule with its file and line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

use agent_api::{Event, EventKind, Peer, Rule};
use agent_core::Direction;
use datapath_abi::events::{self, FlowState};
use datapath_abi::{Addr6, DropReason, Hook, TracePoint};
use zerocopy::FromBytes as _;

use crate::agent::Agent;

/// Bits of TCP's flags byte, lowest first.
const TCP_FLAGS: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];

/// Name of a protocol number.
pub(crate) fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

/// Name and meaning of a drop reason.
pub(crate) fn drop_reason(number: u8) -> (String, String) {
    match DropReason::from_number(number) {
        Some(reason) => (reason.name().to_owned(), reason.text().to_owned()),
        None => (format!("Reason{number}"), "a reason of another version".to_owned()),
    }
}

fn flags(byte: u8) -> String {
    let set = TCP_FLAGS.iter().enumerate().filter(|(bit, _)| byte >> bit & 1 == 1);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

fn state(number: u8) -> &'static str {
    match FlowState::from_number(number) {
        Some(FlowState::New) => "new",
        Some(FlowState::Established) => "established",
        Some(FlowState::Reply) => "reply",
        Some(FlowState::Related) => "related",
        Some(FlowState::Unknown) | None => "",
    }
}

fn trace_point(number: u8) -> (&'static str, &'static str) {
    match TracePoint::from_number(number) {
        Some(TracePoint::ToEndpoint) => ("to-endpoint", "delivered to the pod"),
        Some(TracePoint::ToHost) => ("to-host", "to the node itself"),
        Some(TracePoint::ToStack) => ("to-stack", "to the node's stack, to be routed"),
        Some(TracePoint::ToOverlay) => ("to-overlay", "into the tunnel"),
        Some(TracePoint::ToNetwork) => ("to-network", "to another node's device"),
        None => ("unknown", "of another version"),
    }
}

/// An address as events hold it; `None`: neither IPv4 nor IPv6.
fn address(record: &events::Event, field: &Addr6) -> Option<IpAddr> {
    if record.flags & events::IPV6 != 0 {
        return Some(IpAddr::V6(Ipv6Addr::from(field.octets())));
    }
    (!field.is_zero()).then(|| IpAddr::V4(Ipv4Addr::from(field.first4().octets())))
}

impl Agent {
    /// A record with names; `None`: not a record of this version.
    pub fn event(&self, record: &[u8]) -> Option<Event> {
        let record = events::Event::read_from_bytes(record).ok()?;
        let kind = match events::EventKind::from_number(record.kind)? {
            events::EventKind::Drop => EventKind::Drop,
            events::EventKind::Trace => EventKind::Trace,
            events::EventKind::PolicyVerdict => EventKind::Verdict,
        };
        let (source, destination) = (address(&record, &record.source), address(&record, &record.destination));
        let ingress = record.flags & events::INGRESS != 0;
        let (outcome, text) = match kind {
            EventKind::Drop => drop_reason(record.code),
            EventKind::Trace => {
                let (outcome, text) = trace_point(record.code);
                (outcome.to_owned(), text.to_owned())
            }
            EventKind::Verdict if record.flags & events::AUDITED != 0 => {
                let (reason, text) = drop_reason(u8::try_from(record.verdict.unsigned_abs()).unwrap_or(u8::MAX));
                ("audited".to_owned(), format!("allowed, but would be {reason}: {text}"))
            }
            EventKind::Verdict if record.verdict > 0 => ("redirected".to_owned(), "for a proxy".to_owned()),
            EventKind::Verdict if record.verdict < 0 => {
                drop_reason(u8::try_from(record.verdict.unsigned_abs()).unwrap_or(u8::MAX))
            }
            EventKind::Verdict => ("allowed".to_owned(), "a policy allows it".to_owned()),
        };
        let denied = [DropReason::PolicyNoMatch, DropReason::PolicyDeny].iter().any(|reason| outcome == reason.name());
        let decided = kind == EventKind::Verdict || (kind == EventKind::Drop && denied);
        let protocol = if source.is_none() { String::new() } else { protocol(record.protocol) };
        Some(Event {
            time_ns: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)),
            kind,
            hook: Hook::from_number(record.hook).map_or("", Hook::name).to_owned(),
            ifindex: record.ifindex,
            direction: if ingress { "ingress" } else { "egress" }.to_owned(),
            endpoint: record.endpoint,
            tcp_flags: if record.protocol == 6 { flags(record.tcp_flags) } else { String::new() },
            protocol,
            len: record.len,
            source: self.peer(source, record.sport.get(), record.source_identity),
            destination: self.peer(destination, record.dport.get(), record.destination_identity),
            state: state(record.state).to_owned(),
            outcome,
            text,
            rule: decided.then(|| self.rule(record.rule, record.endpoint, ingress, denied)),
        })
    }

    fn peer(&self, address: Option<IpAddr>, port: u16, identity: u32) -> Peer {
        let known = address.and_then(|address| self.name_of(address));
        Peer {
            address: address.map(|address| address.to_string()).unwrap_or_default(),
            port,
            identity,
            name: known.unwrap_or_else(|| if identity == 0 { String::new() } else { self.identity_name(identity) }),
        }
    }

    /// The rule, or, where none matched, the policies that isolate the pod.
    fn rule(&self, id: u32, endpoint: u16, ingress: bool, denied: bool) -> Rule {
        let Some(compiled) = &self.compiled else {
            return Rule { id, text: String::new() };
        };
        if id != 0 || !denied {
            return Rule { id, text: compiled.rules().origin(id).to_string() };
        }
        let direction = if ingress { Direction::Ingress } else { Direction::Egress };
        let isolating = self.pod_of(endpoint).map(|pod| compiled.isolating(&pod, direction)).unwrap_or_default();
        let names: Vec<String> =
            isolating.iter().map(|policy| format!("{} ({})", policy.name, policy.position)).collect();
        Rule { id, text: format!("no rule of {}", names.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_flags_have_names() {
        assert_eq!(flags(0x12), "SYN,ACK");
        assert_eq!(flags(0), "");
    }
}
