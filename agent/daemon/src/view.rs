//! What the agent knows and what its maps hold, as the socket's answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_api::{Address, Counter, Endpoint, Flow, Identity, PolicyEntry, Source, Status};
use agent_core::Direction;
use agent_core::identity::reserved_name;
use agent_core::model::Name;
use datapath_abi::metrics::{EVENT_LOST, FORWARDED};
use datapath_abi::policy::{self, FIXED_BITS, FULL_BITS};
use datapath_abi::{
    Addr4, Addr6, CidrKey4, CidrKey6, CtEntry, CtFlags, CtKey4, CtKey6, IpEntry, IpFlags, MapId, MetricsEntry,
    PolicyFlags, PolicyKey, ids, metrics,
};
use datapath_maps::TableView;

use crate::Failure;
use crate::agent::{Agent, parse_name};
use crate::datapath::Datapath;
use crate::monitor::{drop_reason, protocol};
use crate::settings::RoutingMode;

fn v4(address: Addr4) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(address.octets()))
}

fn v6(address: Addr6) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(address.octets()))
}

fn end(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}

impl Agent {
    fn datapath(&self) -> Result<&Datapath, Failure> {
        self.datapath.as_ref().ok_or_else(|| Failure::input("there are no maps yet: the objects have not been read"))
    }

    /// The number of an endpoint that is named by number, pod, address or device.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_endpoint(&self, text: &str) -> Result<u16, Failure> {
        let address: Option<IpAddr> = text.parse().ok();
        let number: Option<u16> = text.parse().ok();
        let endpoints = &self.state.get().endpoints;
        let found = endpoints.iter().find(|(id, saved)| {
            number == Some(**id)
                || saved.pod == text
                || saved.device == text
                || address.is_some_and(|own| saved.addresses.contains(&own))
        });
        found.map(|(id, _)| *id).ok_or_else(|| Failure::input(format!(
            "no endpoint `{text}`: it is named by number, NAMESPACE/NAME, address or the node's device (`weir endpoint list`)"
        )))
    }

    pub(crate) fn pod_of(&self, endpoint: u16) -> Option<Name> {
        parse_name(&self.state.get().endpoints.get(&endpoint)?.pod)
    }

    /// What an identity stands for.
    pub(crate) fn identity_name(&self, identity: u32) -> String {
        if let Some(name) = reserved_name(identity) {
            return name.to_owned();
        }
        self.identities.owner(identity).map_or_else(|| format!("identity {identity}"), ToString::to_string)
    }

    fn owner_name(&self, address: IpAddr, identity: u32) -> String {
        self.name_of(address).unwrap_or_else(|| self.identity_name(identity))
    }

    /// How the agent is.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub async fn status(&self) -> Result<Status, Failure> {
        let remembered = self.state.get().endpoints.len();
        let lost = self.datapath.iter().map(events_lost).sum::<Result<u64, Failure>>()?;
        Ok(Status {
            healthy: self.source_error.is_none()
                && self.error.is_none()
                && self.last_pass.is_some()
                && self.waiting.is_empty()
                && self.problems().next().is_none(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.settings.node.clone(),
            source: Source {
                directory: self.settings.directory.display().to_string(),
                files: self.files(),
                objects: self.model.as_ref().map_or(0, |model| model.objects().len()),
                error: self.source_error.clone(),
            },
            reconcile_error: self.error.clone(),
            last_pass: self.last_pass,
            endpoints: (remembered, remembered - self.waiting.len().min(remembered)),
            routing: self.settings.routing_mode.name().to_owned(),
            tunnel_protocol: (self.settings.routing_mode == RoutingMode::Tunnel)
                .then(|| self.settings.tunnel_protocol.name().to_owned()),
            mtu: self.network.as_ref().map_or(0, |network| network.mtu),
            problems: self.problems().cloned().collect(),
            waiting: self.waiting.iter().map(|(id, why)| format!("endpoint {id}: {why}")).collect(),
            attach: self.folder.method().name().to_owned(),
            attached: self.attached().await?,
            bpffs: self.settings.bpffs.display().to_string(),
            events_lost: lost,
            flows: self.flows,
        })
    }

    /// Routes that cannot be made, devices that cannot be mended.
    fn problems(&self) -> impl Iterator<Item = &String> {
        self.network.iter().flat_map(|network| &network.unreachable).chain(self.broken.values())
    }

    async fn attached(&self) -> Result<Vec<String>, Failure> {
        let attached = self.folder.attached()?;
        let links = self.net.links().await?;
        let mut lines = Vec::new();
        for (name, link) in &links {
            let hooks = attached.iter().filter(|(ifindex, _)| *ifindex == link.index);
            let hooks: Vec<&str> = hooks.map(|(_, hook)| hook.name()).collect();
            if !hooks.is_empty() {
                lines.push(format!("{name}: {}", hooks.join(", ")));
            }
        }
        Ok(lines)
    }

    /// An endpoint.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn endpoint(&self, id: u16) -> Result<Endpoint, Failure> {
        let saved = self.state.get().endpoints.get(&id);
        let saved = saved.ok_or_else(|| Failure::input(format!("no endpoint `{id}`")))?;
        let [a, b, c, d, e, f] = saved.mac;
        let policies = |direction| {
            let found = self.compiled.as_ref().zip(parse_name(&saved.pod));
            let found = found.map(|(compiled, pod)| compiled.isolating(&pod, direction)).unwrap_or_default();
            found.iter().map(|policy| format!("{} ({})", policy.name, policy.position)).collect()
        };
        let identity = |address: &IpAddr| {
            self.compiled.as_ref().map_or(ids::UNKNOWN, |compiled| compiled.identity(&self.settings.node, *address))
        };
        Ok(Endpoint {
            id,
            pod: saved.pod.clone(),
            device: saved.device.clone(),
            ifindex: self.devices.get(&id).copied().unwrap_or(0),
            mac: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
            addresses: saved.addresses.iter().map(ToString::to_string).collect(),
            identities: saved.addresses.iter().map(identity).collect(),
            ingress_policies: policies(Direction::Ingress),
            egress_policies: policies(Direction::Egress),
            state: self.waiting.get(&id).cloned().unwrap_or_else(|| "ready".to_owned()),
        })
    }

    /// Every endpoint.
    ///
    /// # Errors
    /// As [`Self::endpoint`].
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, Failure> {
        self.state.get().endpoints.keys().map(|id| self.endpoint(*id)).collect()
    }

    /// Every identity in use, reserved ones first.
    pub fn identity_list(&self) -> Vec<Identity> {
        let reserved = (ids::HOST..ids::FIRST_ALLOCATED)
            .filter_map(|id| Some(Identity { id, labels: vec![format!("reserved:{}", reserved_name(id)?)] }));
        let allocated = self.identities.iter().map(|(id, owner)| Identity { id, labels: owner.labels() });
        reserved.chain(allocated).collect()
    }

    /// An endpoint's entries in the policy map.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn policy(&self, endpoint: u16) -> Result<Vec<PolicyEntry>, Failure> {
        let table = TableView::<PolicyKey, policy::PolicyEntry>::new(self.datapath()?.maps(), MapId::Policy);
        let mut entries = Vec::new();
        for (key, entry) in table.entries()?.into_iter().filter(|(key, _)| key.endpoint == endpoint) {
            let bits = key.prefix_len.saturating_sub(FIXED_BITS);
            let first = u16::from_be_bytes(key.port);
            let free = FULL_BITS.saturating_sub(key.prefix_len).min(16);
            let last = u32::from(first) + (1_u32 << free) - 1;
            let ports = (bits > 8).then(|| (first, u16::try_from(last).unwrap_or(u16::MAX)));
            let rule = self.compiled.as_ref().map(|compiled| compiled.rules().origin(entry.rule).to_string());
            entries.push(PolicyEntry {
                direction: if key.direction == policy::EGRESS { "egress" } else { "ingress" }.to_owned(),
                identity: key.identity,
                peer: if key.identity == 0 { "any".to_owned() } else { self.identity_name(key.identity) },
                protocol: if bits == 0 { "any".to_owned() } else { protocol(key.protocol) },
                ports,
                verdict: if entry.flags.has(PolicyFlags::DENY) { "deny" } else { "allow" }.to_owned(),
                precedence: entry.precedence,
                rule: rule.unwrap_or_default(),
            });
        }
        entries.sort_by(|a, b| {
            (&a.direction, a.identity, &a.protocol, a.ports).cmp(&(&b.direction, b.identity, &b.protocol, b.ports))
        });
        Ok(entries)
    }

    /// Owners of addresses and prefixes.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn ipcache(&self) -> Result<Vec<Address>, Failure> {
        let maps = self.datapath()?.maps();
        let mut all = Vec::new();
        for (key, entry) in TableView::<Addr4, IpEntry>::new(maps, MapId::Ipcache4).entries()? {
            all.push(self.address(v4(key), None, &entry));
        }
        for (key, entry) in TableView::<Addr6, IpEntry>::new(maps, MapId::Ipcache6).entries()? {
            all.push(self.address(v6(key), None, &entry));
        }
        for (key, entry) in TableView::<CidrKey4, IpEntry>::new(maps, MapId::Cidr4).entries()? {
            all.push(self.address(v4(key.addr), Some(key.prefix_len), &entry));
        }
        for (key, entry) in TableView::<CidrKey6, IpEntry>::new(maps, MapId::Cidr6).entries()? {
            all.push(self.address(v6(key.addr), Some(key.prefix_len), &entry));
        }
        Ok(all)
    }

    fn address(&self, address: IpAddr, length: Option<u32>, entry: &IpEntry) -> Address {
        let node = if entry.flags.has(IpFlags::UNDERLAY6) { v6(entry.node) } else { v4(entry.node.first4()) };
        Address {
            prefix: length.map_or_else(|| address.to_string(), |length| format!("{address}/{length}")),
            identity: entry.identity,
            owner: match length {
                None => self.owner_name(address, entry.identity),
                Some(_) => self.identity_name(entry.identity),
            },
            endpoint: entry.endpoint,
            node: (!entry.node.is_zero()).then(|| node.to_string()),
        }
    }

    /// Flows.
    ///
    /// # Errors
    /// When a map or the clock cannot be read.
    pub fn flows(&self) -> Result<Vec<Flow>, Failure> {
        let maps = self.datapath()?.maps();
        let (now, rate) = self.ticks()?;
        let mut all = Vec::new();
        for (key, flow) in TableView::<CtKey4, CtEntry>::new(maps, MapId::Ct4).entries()? {
            let ends = ((v4(key.lo), key.lo_port.get()), (v4(key.hi), key.hi_port.get()));
            all.push(self.flow(key.protocol, ends, &flow, now, rate));
        }
        for (key, flow) in TableView::<CtKey6, CtEntry>::new(maps, MapId::Ct6).entries()? {
            let ends = ((v6(key.lo), key.lo_port.get()), (v6(key.hi), key.hi_port.get()));
            all.push(self.flow(key.protocol, ends, &flow, now, rate));
        }
        Ok(all)
    }

    fn flow(&self, number: u8, (lo, hi): ((IpAddr, u16), (IpAddr, u16)), flow: &CtEntry, now: u64, rate: u32) -> Flow {
        let (client, server) = if flow.flags.has(CtFlags::CLIENT_LO) { (lo, hi) } else { (hi, lo) };
        let tcp = number == 6;
        let closing = CtFlags::CLIENT_CLOSING | CtFlags::SERVER_CLOSING;
        let state = match () {
            () if tcp && flow.flags.0 & closing != 0 => "closing",
            () if tcp && flow.flags.has(CtFlags::SEEN_NON_SYN) => "established",
            () if tcp => "syn",
            () => "",
        };
        let accepted = [(CtFlags::EGRESS, "egress"), (CtFlags::INGRESS, "ingress")];
        let seconds = |ticks: u64| i64::try_from(ticks / u64::from(rate.max(1))).unwrap_or(i64::MAX);
        Flow {
            protocol: protocol(number),
            client: end(client.0, client.1),
            client_pod: self.name_of(client.0),
            server: end(server.0, server.1),
            server_pod: self.name_of(server.0),
            expires_seconds: match flow.expires.checked_sub(now) {
                Some(left) => seconds(left),
                None => -seconds(now - flow.expires),
            },
            state: state.to_owned(),
            accepted: (accepted.iter())
                .filter(|(flag, _)| flow.flags.has(*flag))
                .map(|(_, name)| (*name).to_owned())
                .collect(),
        }
    }

    /// Counters that are not zero.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<Counter>, Failure> {
        let mut all = Vec::new();
        for index in 0..metrics::COUNT {
            let direction = match index >> 8 {
                1 => "ingress",
                2 => "egress",
                _ => continue,
            };
            let reason = u8::try_from(index & 0xff).unwrap_or(0);
            let (packets, bytes) = counter(self.datapath()?, index)?;
            if packets == 0 {
                continue;
            }
            let (reason, text) = match reason {
                FORWARDED => ("Forwarded".to_owned(), "went on".to_owned()),
                EVENT_LOST => ("EventLost".to_owned(), "event found no room".to_owned()),
                other => drop_reason(other),
            };
            all.push(Counter { direction: direction.to_owned(), reason, text, packets, bytes });
        }
        Ok(all)
    }
}

fn counter(datapath: &Datapath, index: u32) -> Result<(u64, u64), Failure> {
    let table = TableView::<u32, MetricsEntry>::new(datapath.maps(), MapId::Metrics);
    let cpus = table.get_per_cpu(&index)?.unwrap_or_default();
    Ok(cpus.iter().fold((0, 0), |sum, cpu| (sum.0 + cpu.packets, sum.1 + cpu.bytes)))
}

fn events_lost(datapath: &Datapath) -> Result<u64, Failure> {
    let mut lost = 0;
    for direction in [metrics::Direction::Ingress, metrics::Direction::Egress] {
        lost += counter(datapath, metrics::metrics_index(direction, EVENT_LOST))?.0;
    }
    Ok(lost)
}
