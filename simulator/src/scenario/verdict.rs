//! Verdicts and events as text.

use std::fmt;
use std::net::IpAddr;

use datapath_abi::events::{self, FlowState};
use datapath_abi::{DropReason, Event, EventKind, Hook, MatchType, TracePoint};

use super::words::{Result, Words, identity_text, tcp_flags, tcp_flags_text};
use crate::packet;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the stack or the device.
    Pass,
    /// Dropped; `None`: the reason is nowhere to be seen.
    Drop(Option<DropReason>),
    /// Into the pod behind this interface.
    Deliver(u32),
    /// Back out of where it came from.
    Reflect,
    /// Out of this interface.
    Redirect(u32),
    /// Into the tunnel, with this identity, to this node.
    Tunnel(u32, IpAddr),
    /// A code that nothing should give.
    Code(u32),
}

impl Verdict {
    pub(super) fn parse(line: &str) -> Result<Self> {
        let mut words = Words::new(line);
        let verdict = match words.word("a verdict")? {
            "pass" => Self::Pass,
            "drop" => {
                let name = words.word("a drop reason")?;
                Self::Drop(Some(reason(&words, name)?))
            }
            "deliver" => Self::Deliver(words.value("an interface index")?),
            "reflect" => Self::Reflect,
            "redirect" => Self::Redirect(words.value("an interface index")?),
            "tunnel" => {
                words.expect("id")?;
                let identity = words.identity()?;
                words.expect("to")?;
                Self::Tunnel(identity, words.address()?)
            }
            other => {
                return Err(words.unknown(
                    other,
                    "pass, drop REASON, deliver IFINDEX, redirect IFINDEX, reflect, tunnel id N to ADDRESS",
                ));
            }
        };
        words.end()?;
        Ok(verdict)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Drop(Some(reason)) => write!(f, "drop {}", reason.name()),
            Self::Drop(None) => f.write_str("drop without a reason"),
            Self::Deliver(ifindex) => write!(f, "deliver {ifindex}"),
            Self::Reflect => f.write_str("reflect"),
            Self::Redirect(ifindex) => write!(f, "redirect {ifindex}"),
            Self::Tunnel(identity, node) => write!(f, "tunnel id {} to {node}", identity_text(*identity)),
            Self::Code(code) => write!(f, "code {code}"),
        }
    }
}

fn reason(words: &Words<'_>, name: &str) -> Result<DropReason> {
    DropReason::ALL
        .iter()
        .copied()
        .find(|reason| reason.name() == name)
        .ok_or_else(|| words.unknown(name, &DropReason::ALL.iter().map(|r| r.name()).collect::<Vec<_>>().join(", ")))
}

const POINTS: [(TracePoint, &str); 5] = [
    (TracePoint::ToEndpoint, "to-endpoint"),
    (TracePoint::ToHost, "to-host"),
    (TracePoint::ToStack, "to-stack"),
    (TracePoint::ToOverlay, "to-overlay"),
    (TracePoint::ToNetwork, "to-network"),
];

const MATCHES: [(MatchType, &str); 7] = [
    (MatchType::None, "none"),
    (MatchType::L3Only, "l3"),
    (MatchType::L3L4, "l3-l4"),
    (MatchType::L4Only, "l4"),
    (MatchType::All, "all"),
    (MatchType::L3Protocol, "l3-proto"),
    (MatchType::ProtocolOnly, "proto"),
];

const STATES: [(FlowState, &str); 5] = [
    (FlowState::New, "new"),
    (FlowState::Established, "established"),
    (FlowState::Reply, "reply"),
    (FlowState::Related, "related"),
    (FlowState::Unknown, "unknown"),
];

/// An event as a line describes it: what is not mentioned is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventText {
    line: String,
    kind: u8,
    code: Option<u8>,
    verdict: Option<i32>,
    endpoint: Option<u16>,
    ingress: Option<bool>,
    audited: bool,
    state: Option<u8>,
    from: Option<u32>,
    to: Option<u32>,
    rule: Option<u32>,
    protocol: Option<u8>,
    sport: Option<u16>,
    dport: Option<u16>,
    ifindex: Option<u32>,
    len: Option<u32>,
    hook: Option<u8>,
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    tcp: Option<u8>,
}

impl EventText {
    pub(super) fn parse(line: &str) -> Result<Self> {
        let mut words = Words::new(line);
        let mut event = Self { line: line.to_owned(), ..Self::default() };
        match words.word("drop, trace or policy")? {
            "drop" => {
                event.kind = EventKind::Drop as u8;
                let name = words.word("a drop reason")?;
                event.code = Some(reason(&words, name)? as u8);
            }
            "trace" => {
                event.kind = EventKind::Trace as u8;
                let name = words.word("a trace point")?;
                let known = POINTS.iter().find(|(_, known)| *known == name);
                let (point, _) = known.ok_or_else(|| words.unknown(name, "to-endpoint, to-host, to-stack, ..."))?;
                event.code = Some(*point as u8);
            }
            "policy" => {
                event.kind = EventKind::PolicyVerdict as u8;
                event.verdict = Some(match words.word("allow, proxy, audit or a drop reason")? {
                    "allow" => 0,
                    "proxy" => words.value("a port")?,
                    "audit" => {
                        event.audited = true;
                        let name = words.word("a drop reason")?;
                        -i32::from(reason(&words, name)? as u8)
                    }
                    name => -i32::from(reason(&words, name)? as u8),
                });
            }
            other => return Err(words.unknown(other, "drop, trace, policy")),
        }
        while let Some(word) = words.next() {
            match word {
                "match" => {
                    let name = words.word("a match type")?;
                    let known = MATCHES.iter().find(|(_, known)| *known == name);
                    let (kind, _) =
                        known.ok_or_else(|| words.unknown(name, "none, l3, l3-l4, l4, all, l3-proto, proto"))?;
                    event.code = Some(*kind as u8);
                }
                "state" => {
                    let name = words.word("a state")?;
                    let known = STATES.iter().find(|(_, known)| *known == name);
                    let (state, _) =
                        known.ok_or_else(|| words.unknown(name, "new, established, reply, related, unknown"))?;
                    event.state = Some(*state as u8);
                }
                "ingress" => event.ingress = Some(true),
                "egress" => event.ingress = Some(false),
                "endpoint" => event.endpoint = Some(words.value("a number")?),
                "from" => event.from = Some(words.identity()?),
                "to" => event.to = Some(words.identity()?),
                "rule" => event.rule = Some(words.value("a number")?),
                "proto" => event.protocol = Some(words.protocol()?),
                "sport" => event.sport = Some(words.value("a port")?),
                "dport" => event.dport = Some(words.value("a port")?),
                "ifindex" => event.ifindex = Some(words.value("a number")?),
                "len" => event.len = Some(words.value("a number")?),
                "src" => event.source = Some(words.address()?),
                "dst" => event.destination = Some(words.address()?),
                "hook" => {
                    let name = words.word("a hook")?;
                    event.hook = Some(Hook::from_name(name).ok_or_else(|| words.unknown(name, "a hook's name"))? as u8);
                }
                "tcp" => {
                    let name = words.word("TCP flags")?;
                    event.tcp = Some(tcp_flags(name).ok_or_else(|| words.unknown(name, "syn,ack,..."))?);
                }
                other => {
                    return Err(words.unknown(
                        other,
                        "match, state, ingress, egress, endpoint, from, to, rule, proto, sport, dport, ifindex, len, \
                         src, dst, hook, tcp",
                    ));
                }
            }
        }
        Ok(event)
    }

    pub(super) fn matches(&self, event: &Event) -> bool {
        fn same<T: PartialEq>(wanted: &Option<T>, found: T) -> bool {
            wanted.as_ref().is_none_or(|wanted| *wanted == found)
        }
        let (source, destination) = addresses(event);
        self.kind == event.kind
            && same(&self.code, event.code)
            && same(&self.verdict, event.verdict)
            && same(&self.endpoint, event.endpoint)
            && self.audited == (event.flags & events::AUDITED != 0)
            && same(&self.ingress, event.flags & events::INGRESS != 0)
            && same(&self.state, event.state)
            && same(&self.from, event.source_identity)
            && same(&self.to, event.destination_identity)
            && same(&self.rule, event.rule)
            && same(&self.protocol, event.protocol)
            && same(&self.sport, event.sport.get())
            && same(&self.dport, event.dport.get())
            && same(&self.ifindex, event.ifindex)
            && same(&self.len, event.len)
            && same(&self.hook, event.hook)
            && same(&self.source, source)
            && same(&self.destination, destination)
            && same(&self.tcp, event.tcp_flags)
    }
}

impl fmt::Display for EventText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

fn addresses(event: &Event) -> (IpAddr, IpAddr) {
    if event.flags & events::IPV6 == 0 {
        (event.source.first4().octets().into(), event.destination.first4().octets().into())
    } else {
        (event.source.octets().into(), event.destination.octets().into())
    }
}

fn name<T: Copy, const N: usize>(table: &[(T, &'static str); N], found: impl Fn(T) -> bool) -> &'static str {
    table.iter().find(|(value, _)| found(*value)).map_or("?", |(_, name)| name)
}

/// Every field of an event.
#[must_use]
pub fn event_text(event: &Event) -> String {
    let outcome = |number: i32| match u8::try_from(-number).ok().and_then(DropReason::from_number) {
        Some(reason) => reason.name().to_owned(),
        None if number == 0 => "allow".to_owned(),
        None => format!("proxy {number}"),
    };
    let mut out = match EventKind::from_number(event.kind) {
        Some(EventKind::Drop) => {
            format!("drop {}", DropReason::from_number(event.code).map_or("?", DropReason::name))
        }
        Some(EventKind::Trace) => format!("trace {}", name(&POINTS, |point| point as u8 == event.code)),
        Some(EventKind::PolicyVerdict) => {
            let audit = if event.flags & events::AUDITED == 0 { "" } else { "audit " };
            format!(
                "policy {audit}{} match {}",
                outcome(event.verdict),
                name(&MATCHES, |kind| kind as u8 == event.code)
            )
        }
        None => format!("kind {} code {}", event.kind, event.code),
    };
    let (source, destination) = addresses(event);
    out += &format!(
        " {} endpoint {} state {} from {} to {} rule {} hook {} ifindex {} len {} src {source} dst {destination} \
         proto {} sport {} dport {} tcp {}",
        if event.flags & events::INGRESS == 0 { "egress" } else { "ingress" },
        event.endpoint,
        name(&STATES, |state| state as u8 == event.state),
        identity_text(event.source_identity),
        identity_text(event.destination_identity),
        event.rule,
        Hook::from_number(event.hook).map_or("?", Hook::name),
        event.ifindex,
        event.len,
        packet::protocol_name(event.protocol).map_or_else(|| event.protocol.to_string(), str::to_owned),
        event.sport.get(),
        event.dport.get(),
        tcp_flags_text(event.tcp_flags),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_and_events_come_back_from_their_text() {
        for line in
            ["pass", "drop PolicyNoMatch", "deliver 10", "reflect", "redirect 3", "tunnel id 2000 to 192.168.0.12"]
        {
            assert_eq!(Verdict::parse(line).unwrap().to_string(), line);
        }
        assert!(Verdict::parse("drop Nothing").unwrap_err().to_string().contains("InvalidSourceIp"));
        let event = Event { kind: 1, code: DropReason::PolicyDeny as u8, endpoint: 7, hook: 1, ..Event::default() };
        let text = EventText::parse(&event_text(&event)).unwrap();
        assert!(text.matches(&event));
        assert!(!text.matches(&Event { endpoint: 8, ..event }));
    }
}
