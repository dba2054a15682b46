//! From the TOML form to a scenario: texts read, defaults filled in, every error with its line.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::Range;

use datapath_abi::{Addr4, Addr6, CallSlot, Config, Direction, DropReason, Hook, IpEntry, Mac, config, metrics};
use simulator_vm::{Faults, Skb, TunnelKey};
use toml::Spanned;
use zerocopy::IntoBytes;

use super::file;
use super::state::{self, Clock, FlowText, FragText, Write};
use super::verdict::{EventText, Verdict};
use super::words::duration_ns;
use super::{Expect, Scenario, ScenarioError, Step};
use crate::engines::ticks;
use crate::packet::{self, Defaults};

/// The gateway's Ethernet address.
pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// Source of packets that no pod sends.
const STRANGER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
/// Interface indices of the node's devices.
const TUNNEL_IFINDEX: u32 = 2;
const HOST_IFINDEX: u32 = 3;
const NETDEV_IFINDEX: u32 = 4;
/// The clock of a scenario that does not set it.
const NOW_NS: u64 = 1_000_000_000_000;

/// Settings of a scenario's node before its own changes.
pub(crate) fn settings() -> Config {
    Config {
        tunnel_ifindex: TUNNEL_IFINDEX,
        host_ifindex: HOST_IFINDEX,
        node4: Addr4::from_octets([192, 168, 0, 11]),
        node6: Addr6::from_octets([0xfd, 0, 0xc0, 0xa8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11]),
        host_mac: Mac::from_octets(HOST_MAC),
        ..Config::with_defaults(250)
    }
}

struct Builder<'a> {
    text: &'a str,
    file: &'a str,
    config: Config,
    now_ns: u64,
    /// Address owners as they are at the current step.
    owners: BTreeMap<IpAddr, IpEntry>,
}

type Result<T> = std::result::Result<T, ScenarioError>;

pub(super) fn scenario(text: &str, file: &str) -> Result<Scenario> {
    let mut builder = Builder { text, file, config: settings(), now_ns: NOW_NS, owners: BTreeMap::new() };
    let raw: file::File = toml::from_str(text).map_err(|error| {
        builder.error(&error.span().unwrap_or(0..0), error.message().lines().collect::<Vec<_>>().join(" "))
    })?;
    builder.configure(&raw.config);
    if let Some(now) = &raw.now {
        builder.now_ns = builder.duration(now)?;
    }
    let now_ns = builder.now_ns;
    let mut writes = builder.tables(&raw.ipcache, &raw.cidr, &raw.policy)?;
    let clock = builder.clock();
    for line in &raw.ct {
        writes.push(builder.line(line, |text| FlowText::parse(text, clock.per_second))?.seed(&clock));
    }
    for line in &raw.frag {
        writes.push(builder.line(line, |text| FragText::parse(text, clock.per_second))?.seed(&clock));
    }
    let missing_calls = raw.missing_calls.iter().map(|name| builder.slot(name)).collect::<Result<_>>()?;
    let mut steps = Vec::new();
    for step in &raw.step {
        steps.push(builder.step(step, &raw.faults, raw.compare_only)?);
    }
    Ok(Scenario {
        file: file.to_owned(),
        title: raw.title,
        source: raw.source,
        config: builder.config,
        now_ns,
        writes,
        missing_calls,
        steps,
    })
}

impl Builder<'_> {
    fn error(&self, span: &Range<usize>, message: impl Display) -> ScenarioError {
        let before = self.text.get(..span.start).unwrap_or("");
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        ScenarioError::Line { file: self.file.to_owned(), line, message: message.to_string() }
    }

    fn line<T, E: Display>(
        &self,
        text: &Spanned<String>,
        read: impl FnOnce(&str) -> std::result::Result<T, E>,
    ) -> Result<T> {
        read(text.get_ref()).map_err(|error| self.error(&text.span(), error))
    }

    fn duration(&self, text: &Spanned<String>) -> Result<u64> {
        duration_ns(text.get_ref())
            .ok_or_else(|| self.error(&text.span(), "a time is a number with ns, ms, s, m or h, like 61s"))
    }

    fn clock(&self) -> Clock {
        let per_second = self.config.ticks_per_second;
        Clock { now: ticks(self.now_ns, per_second), per_second }
    }

    fn configure(&mut self, raw: &file::Config) {
        if let Some(per_second) = raw.ticks_per_second {
            let timed = Config::with_defaults(per_second);
            self.config = Config {
                ticks_per_second: timed.ticks_per_second,
                tcp_established: timed.tcp_established,
                tcp_syn: timed.tcp_syn,
                tcp_closing: timed.tcp_closing,
                other: timed.other,
                fragment: timed.fragment,
                report_interval: timed.report_interval,
                ..self.config
            };
        }
        for (wanted, bit) in [
            (raw.tunnel, config::TUNNEL),
            (raw.redirect_peer, config::REDIRECT_PEER),
            (raw.verdict_events, config::VERDICT_EVENTS),
            (raw.trace_events, config::TRACE_EVENTS),
            (raw.dual_stack, config::DUAL_STACK),
            (raw.host_policy, config::HOST_POLICY),
            (raw.geneve, config::GENEVE),
        ] {
            match wanted {
                Some(true) => self.config.flags |= bit,
                Some(false) => self.config.flags &= !bit,
                None => {}
            }
        }
        self.config.tunnel_ifindex = raw.tunnel_ifindex.unwrap_or(self.config.tunnel_ifindex);
        self.config.host_ifindex = raw.host_ifindex.unwrap_or(self.config.host_ifindex);
        if let Some(port) = raw.vxlan_port {
            self.config.vxlan_port = datapath_abi::Be16::new(port);
        }
        if let Some(port) = raw.geneve_port {
            self.config.geneve_port = datapath_abi::Be16::new(port);
        }
        if raw.written == Some(false) {
            self.config.magic = 0;
        }
    }

    fn tables(&mut self, ipcache: &file::Table, cidr: &file::Table, policy: &file::Table) -> Result<Vec<Write>> {
        let mut writes = Vec::new();
        for (key, value) in ipcache {
            let entry = self.line(value, state::ip_entry)?;
            let (map, bytes, address) = state::address_key(key).map_err(|error| self.error(&value.span(), error))?;
            self.owners.insert(address, entry);
            writes.push(Write { map, key: bytes, value: entry.as_bytes().to_vec() });
        }
        for (key, value) in cidr {
            let entry = self.line(value, state::ip_entry)?;
            let (map, bytes) = state::prefix_key(key).map_err(|error| self.error(&value.span(), error))?;
            writes.push(Write { map, key: bytes, value: entry.as_bytes().to_vec() });
        }
        for (key, value) in policy {
            writes.extend(self.line(value, |text| state::policy_writes(key, text))?);
        }
        Ok(writes)
    }

    fn slot(&self, name: &Spanned<String>) -> Result<CallSlot> {
        let found = CallSlot::ALL.iter().find(|(_, known)| known == name.get_ref());
        found.map(|(slot, _)| *slot).ok_or_else(|| {
            let known: Vec<&str> = CallSlot::ALL.iter().map(|(_, name)| *name).collect();
            self.error(
                &name.span(),
                format_args!("`{}` is not in the call table; known: {}", name.get_ref(), known.join(", ")),
            )
        })
    }

    fn owner_of(&self, ifindex: u32) -> Option<&IpEntry> {
        self.owners.values().find(|entry| entry.endpoint != 0 && entry.ifindex == ifindex)
    }

    /// The interface of the pod whose address stands at this end of the packet, else that of the hook's device.
    fn ifindex(&self, hook: Hook, frame: &[u8]) -> u32 {
        let (source, destination) = addresses(frame);
        let pod = |address: Option<IpAddr>| {
            address.and_then(|address| self.owners.get(&address)).map(|entry| entry.ifindex).filter(|index| *index != 0)
        };
        match hook {
            Hook::FromContainer => pod(source).unwrap_or(10),
            Hook::ToContainer => pod(destination).unwrap_or(10),
            Hook::FromOverlay => self.config.tunnel_ifindex,
            Hook::FromHost => self.config.host_ifindex,
            Hook::FromNetdev | Hook::ToNetdev => NETDEV_IFINDEX,
        }
    }

    fn step(&mut self, raw: &Spanned<file::Step>, faults: &file::Faults, compare_only: bool) -> Result<Step> {
        let span = raw.span();
        let raw = raw.get_ref();
        if let Some(advance) = &raw.advance {
            self.now_ns = self.now_ns.saturating_add(self.duration(advance)?);
        }
        let advance_ns = raw.advance.as_ref().map_or(Ok(0), |advance| self.duration(advance))?;
        let mut deletes = Vec::new();
        for line in &raw.remove_policy {
            for key in self.line(line, state::policy_keys)? {
                deletes.push((datapath_abi::MapId::Policy, key.as_bytes().to_vec()));
            }
        }
        for line in &raw.remove_ipcache {
            let (map, key, address) = self.line(line, state::address_key)?;
            self.owners.remove(&address);
            deletes.push((map, key));
        }
        let writes = self.tables(&raw.ipcache, &raw.cidr, &raw.policy)?;
        let hook = Hook::from_name(raw.hook.get_ref()).ok_or_else(|| {
            let known: Vec<&str> = Hook::ALL.iter().map(|hook| hook.name()).collect();
            self.error(
                &raw.hook.span(),
                format_args!("`{}` is not a hook; known: {}", raw.hook.get_ref(), known.join(", ")),
            )
        })?;
        let layers = self.line(&raw.send, packet::parse)?;
        // Which pod sends is known from the addresses; then its Ethernet address is.
        let draft = packet::to_bytes(&layers, &Defaults::default());
        let ifindex = raw.ifindex.unwrap_or_else(|| self.ifindex(hook, &draft));
        let defaults = Defaults {
            source: self.owner_of(ifindex).map_or(STRANGER_MAC, |entry| entry.mac.octets()),
            destination: HOST_MAC,
        };
        let frame = packet::to_bytes(&layers, &defaults);
        let tunnel_key = match &raw.tunnel {
            None => None,
            Some(tunnel) => Some(TunnelKey {
                id: tunnel.id,
                remote: self.line(&tunnel.remote, |text| text.parse::<IpAddr>())?,
                ttl: 64,
                ..TunnelKey::default()
            }),
        };
        let skb = Skb {
            mark: raw.mark.unwrap_or(0),
            linear_len: raw.linear.unwrap_or(0),
            tunnel_key,
            ..Skb::new(frame, ifindex)
        };
        let expect = match &raw.verdict {
            Some(verdict) if !compare_only => Some(self.expect(raw, verdict, &skb, &defaults)?),
            Some(_) => None,
            None if compare_only => None,
            None => return Err(self.error(&span, "the step has no `verdict`")),
        };
        let line = match self.error(&raw.send.span(), "") {
            ScenarioError::Line { line, .. } => line,
            ScenarioError::Read { .. } => 0,
        };
        let faults = raw.faults.as_ref().unwrap_or(faults);
        let faults = Faults {
            map_update: faults.map_update_fails,
            set_tunnel_key: faults.set_tunnel_key_fails,
            get_tunnel_key: faults.get_tunnel_key_fails,
            ring_full: faults.ring_full,
            packet_memory: faults.packet_memory_fails,
            ..Faults::default()
        };
        Ok(Step { line, note: raw.note.clone(), hook, skb, defaults, advance_ns, writes, deletes, faults, expect })
    }

    fn expect(&self, raw: &file::Step, verdict: &Spanned<String>, skb: &Skb, defaults: &Defaults) -> Result<Expect> {
        let verdict = self.line(verdict, Verdict::parse)?;
        let pod = |ifindex| {
            self.owner_of(ifindex).map(|entry| Defaults { source: HOST_MAC, destination: entry.mac.octets() })
        };
        let changed = match verdict {
            Verdict::Deliver(ifindex) | Verdict::Redirect(ifindex) => pod(ifindex),
            Verdict::Reflect => Some(Defaults { source: HOST_MAC, destination: defaults.source }),
            Verdict::Pass | Verdict::Drop(_) | Verdict::Tunnel(..) | Verdict::Code(_) => None,
        };
        let frame = match (&raw.packet, &verdict, &changed) {
            (Some(line), ..) => {
                let layers = self.line(line, packet::parse)?;
                packet::to_bytes(&layers, changed.as_ref().unwrap_or(defaults))
            }
            (None, Verdict::Deliver(_) | Verdict::Redirect(_), Some(changed)) => routed(&skb.data, changed),
            (None, ..) => skb.data.clone(),
        };
        let counters = match &raw.counters {
            None => None,
            Some(raw) => Some(
                raw.iter()
                    .map(|(name, count)| {
                        counter(name).map(|key| (key, *count.get_ref())).ok_or_else(|| {
                            self.error(
                                &count.span(),
                                format_args!("`{name}` is not a counter; they are like `egress forwarded`, `ingress PolicyNoMatch`"),
                            )
                        })
                    })
                    .collect::<Result<_>>()?,
            ),
        };
        let events = match &raw.events {
            None => None,
            Some(lines) => Some(lines.iter().map(|line| self.line(line, EventText::parse)).collect::<Result<_>>()?),
        };
        let per_second = self.config.ticks_per_second;
        let flow = |line: &Spanned<String>| self.line(line, |text| FlowText::parse(text, per_second));
        let part = |line: &Spanned<String>| self.line(line, |text| FragText::parse(text, per_second));
        Ok(Expect {
            verdict,
            frame,
            counters,
            events,
            ct: raw.ct.iter().map(flow).collect::<Result<_>>()?,
            frag: raw.frag.iter().map(part).collect::<Result<_>>()?,
        })
    }
}

/// `egress forwarded`, `ingress PolicyNoMatch`, `egress event-lost`.
fn counter(name: &str) -> Option<(Direction, u8)> {
    let (direction, reason) = name.split_once(' ')?;
    let direction = match direction {
        "ingress" => Direction::Ingress,
        "egress" => Direction::Egress,
        _ => return None,
    };
    let reason = match reason {
        "forwarded" => metrics::FORWARDED,
        "event-lost" => metrics::EVENT_LOST,
        name => *DropReason::ALL.iter().find(|reason| reason.name() == name)? as u8,
    };
    Some((direction, reason))
}

/// The addresses of an IP packet.
fn addresses(frame: &[u8]) -> (Option<IpAddr>, Option<IpAddr>) {
    let four = |at: usize| frame.get(at..)?.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
    let sixteen = |at: usize| frame.get(at..)?.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes));
    match frame.get(12..14) {
        Some([0x08, 0x00]) => (four(26), four(30)),
        Some([0x86, 0xdd]) => (sixteen(22), sixteen(38)),
        Some([0x08, 0x06]) => (four(28), four(38)),
        Some(_) | None => (None, None),
    }
}

/// The frame one hop on, with these Ethernet addresses.
fn routed(frame: &[u8], addresses: &Defaults) -> Vec<u8> {
    let mut out = frame.to_vec();
    if let Some(header) = out.get_mut(..12) {
        header[..6].copy_from_slice(&addresses.destination);
        header[6..].copy_from_slice(&addresses.source);
    }
    match (out.get(12), out.len()) {
        (Some(0x08), 34..) => {
            // RFC 1624, the other way round than the datapath does it.
            let old = u16::from_be_bytes([out[22], out[23]]);
            out[22] = out[22].wrapping_sub(1);
            let new = u16::from_be_bytes([out[22], out[23]]);
            let sum = u32::from(!u16::from_be_bytes([out[24], out[25]])) + u32::from(!old) + u32::from(new);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            let [.., high, low] = (!sum).to_be_bytes();
            out[24..26].copy_from_slice(&[high, low]);
        }
        (Some(0x86), 54..) => out[21] = out[21].wrapping_sub(1),
        _ => {}
    }
    out
}
