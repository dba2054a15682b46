//! Map entries as text, both ways.
//!
//! * `ipcache`, `cidr`: `id 1000 endpoint 7 ifindex 10 pod`, `id 2000 node 192.168.0.12 pod`, `id remote-node node-address`
//! * `policy`: `7 egress 2000 tcp 80-81` = `allow rule 3`
//! * `ct`: `10.0.0.7:40000 > 10.0.1.5:80 tcp egress peer 2000 ingress client-closing expires 10s`
//! * `frag`: `10.0.0.7 > 10.0.1.5 udp id 5 ports 1000 > 53 expires 30s`

use std::net::{IpAddr, SocketAddr};

use datapath_abi::{
    Addr4, Addr6, Be16, CidrKey4, CidrKey6, CtEntry, CtFlags, CtKey4, CtKey6, CtSide, FragEntry, FragKey4, FragKey6,
    IpEntry, IpFlags, Mac, MapId, PolicyEntry, PolicyFlags, PolicyKey, ids, policy,
};
use datapath_core::family::{Ends, Family};
use datapath_core::{V4, V6};
use zerocopy::{FromBytes, IntoBytes};

use super::words::{Result, TextError, Words, identity_text, tcp_flags, tcp_flags_text, ticks, ticks_text};
use crate::packet;

/// One entry to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Map.
    pub map: MapId,
    /// Key bytes.
    pub key: Vec<u8>,
    /// Value bytes.
    pub value: Vec<u8>,
}

/// Time of the texts that speak of it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// `jiffies64`.
    pub now: u64,
    /// Ticks of it per second.
    pub per_second: u32,
}

impl Clock {
    fn at(&self, offset: i64) -> u64 {
        self.now.saturating_add_signed(offset)
    }

    fn text(&self, ticks: u64) -> String {
        let offset = i64::try_from(i128::from(ticks) - i128::from(self.now)).unwrap_or(i64::MAX);
        ticks_text(offset, self.per_second)
    }
}

fn error(line: &str, reason: &str) -> TextError {
    TextError { line: line.to_owned(), reason: reason.to_owned() }
}

/// Map and key of an address.
pub(super) fn address_key(line: &str) -> Result<(MapId, Vec<u8>, IpAddr)> {
    let address: IpAddr = line.parse().map_err(|_| error(line, "not an address"))?;
    Ok(match address {
        IpAddr::V4(v4) => (MapId::Ipcache4, v4.octets().to_vec(), address),
        IpAddr::V6(v6) => (MapId::Ipcache6, v6.octets().to_vec(), address),
    })
}

/// Map and key of a prefix.
pub(super) fn prefix_key(line: &str) -> Result<(MapId, Vec<u8>)> {
    let wrong = || error(line, "not a prefix like 10.0.0.0/8");
    let (address, len) = line.split_once('/').ok_or_else(wrong)?;
    let prefix_len: u32 = len.parse().map_err(|_| wrong())?;
    match address.parse().map_err(|_| wrong())? {
        IpAddr::V4(v4) if prefix_len <= 32 => {
            let key = CidrKey4 { prefix_len, addr: Addr4::from_octets(v4.octets()) };
            Ok((MapId::Cidr4, key.as_bytes().to_vec()))
        }
        IpAddr::V6(v6) if prefix_len <= 128 => {
            let key = CidrKey6 { prefix_len, addr: Addr6::from_octets(v6.octets()) };
            Ok((MapId::Cidr6, key.as_bytes().to_vec()))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => Err(wrong()),
    }
}

/// Value of the address maps.
pub(super) fn ip_entry(line: &str) -> Result<IpEntry> {
    let mut words = Words::new(line);
    let mut entry = IpEntry::default();
    let mut mac = None;
    while let Some(word) = words.next() {
        match word {
            "id" => entry.identity = words.identity()?,
            "endpoint" => {
                entry.endpoint = endpoint(&mut words)?;
                entry.policy_revision = 1;
            }
            "ifindex" => entry.ifindex = words.value("an interface index")?,
            "revision" => entry.policy_revision = words.value("a number")?,
            "mac" => {
                let word = words.word("an Ethernet address")?;
                mac = Some(packet::mac(word).ok_or_else(|| words.error("not an Ethernet address"))?);
            }
            "node" => match words.address()? {
                IpAddr::V4(v4) => entry.node = Addr6::from_v4(Addr4::from_octets(v4.octets())),
                IpAddr::V6(v6) => {
                    entry.node = Addr6::from_octets(v6.octets());
                    entry.flags.0 |= IpFlags::UNDERLAY6;
                }
            },
            "pod" => entry.flags.0 |= IpFlags::POD,
            "node-address" => entry.flags.0 |= IpFlags::NODE,
            "local-host" => entry.flags.0 |= IpFlags::LOCAL_HOST,
            other => {
                return Err(
                    words.unknown(other, "id, endpoint, ifindex, revision, mac, node, pod, node-address, local-host")
                );
            }
        }
    }
    let [_, low] = entry.endpoint.to_be_bytes();
    let default =
        if entry.endpoint == 0 || entry.endpoint == ids::HOST_ENDPOINT { [0; 6] } else { [2, 0, 0, 0, 0, low] };
    entry.mac = Mac::from_octets(mac.unwrap_or(default));
    Ok(entry)
}

/// The number of an endpoint; `host` is the node's own.
fn endpoint(words: &mut Words<'_>) -> Result<u16> {
    match words.word("an endpoint number, or host")? {
        "host" => Ok(ids::HOST_ENDPOINT),
        number => number.parse().map_err(|_| words.unknown(number, "an endpoint number, or host")),
    }
}

fn endpoint_text(endpoint: u16) -> String {
    if endpoint == ids::HOST_ENDPOINT { "host".to_owned() } else { endpoint.to_string() }
}

fn ip_entry_text(entry: &IpEntry) -> String {
    let mut out = format!("id {}", identity_text(entry.identity));
    if entry.endpoint != 0 {
        out += &format!(" endpoint {}", endpoint_text(entry.endpoint));
    }
    if entry.ifindex != 0 {
        out += &format!(" ifindex {}", entry.ifindex);
    }
    if entry.mac.octets() != [0; 6] {
        out += &format!(" mac {:?}", entry.mac);
    }
    if entry.policy_revision != u32::from(entry.endpoint != 0) {
        out += &format!(" revision {}", entry.policy_revision);
    }
    if entry.flags.has(IpFlags::UNDERLAY6) {
        out += &format!(" node {:?}", entry.node);
    } else if !entry.node.is_zero() {
        out += &format!(" node {:?}", entry.node.first4());
    }
    for (bit, name) in [(IpFlags::POD, " pod"), (IpFlags::NODE, " node-address"), (IpFlags::LOCAL_HOST, " local-host")]
    {
        if entry.flags.has(bit) {
            out += name;
        }
    }
    out
}

/// Port blocks that together are exactly `from..=to`: port, and bits of it that count.
fn blocks(from: u16, to: u16) -> Vec<(u16, u32)> {
    let mut out = Vec::new();
    let (mut from, to) = (u32::from(from), u32::from(to));
    while from <= to {
        let mut size = if from == 0 { 1 << 16 } else { from & from.wrapping_neg() };
        while from + size - 1 > to {
            size /= 2;
        }
        out.push((u16::try_from(from).unwrap_or(0), 16 - size.trailing_zeros()));
        from += size;
    }
    out
}

/// Keys of a policy line: a port range becomes several.
pub(super) fn policy_keys(line: &str) -> Result<Vec<PolicyKey>> {
    let mut words = Words::new(line);
    let mut key = PolicyKey { prefix_len: policy::FIXED_BITS, ..PolicyKey::default() };
    key.endpoint = endpoint(&mut words)?;
    key.direction = match words.word("ingress or egress")? {
        "ingress" => policy::INGRESS,
        "egress" => policy::EGRESS,
        other => return Err(words.unknown(other, "ingress, egress")),
    };
    let peer = words.word("an identity or `any`")?;
    key.identity = if peer == "any" {
        0
    } else {
        super::words::identity(peer).ok_or_else(|| words.unknown(peer, "any, a number, host, world, remote-node"))?
    };
    match words.word("a protocol or `any`")? {
        "any" => {
            words.end()?;
            return Ok(vec![key]);
        }
        name => {
            key.protocol = packet::protocol_number(name).ok_or_else(|| words.unknown(name, "any, tcp, udp, sctp"))?;
        }
    }
    let Some(ports) = words.next() else {
        key.prefix_len = policy::PROTOCOL_BITS;
        return Ok(vec![key]);
    };
    words.end()?;
    let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
    let (Ok(from), Ok(to)) = (from.parse::<u16>(), to.parse::<u16>()) else {
        return Err(words.error("the last word is a port, an ICMP type, or a range of ports like 80-90"));
    };
    let whole = |(port, bits): (u16, u32)| PolicyKey {
        prefix_len: policy::PROTOCOL_BITS + bits,
        port: port.to_be_bytes(),
        ..key
    };
    Ok(blocks(from, to).into_iter().map(whole).collect())
}

/// Value of a policy line; `l4_prefix` is the key's.
pub(super) fn policy_entry(line: &str) -> Result<PolicyEntry> {
    let mut words = Words::new(line);
    let mut entry = PolicyEntry { precedence: policy::PRECEDENCE_ALLOW, ..PolicyEntry::default() };
    match words.word("allow, deny, redirect or audit")? {
        "allow" => {}
        "redirect" => entry.flags = PolicyFlags(PolicyFlags::REDIRECT),
        "audit" => entry.flags = PolicyFlags(PolicyFlags::AUDIT),
        "deny" => {
            entry.precedence = policy::PRECEDENCE_DENY;
            entry.flags = PolicyFlags(PolicyFlags::DENY);
        }
        other => return Err(words.unknown(other, "allow, deny, redirect, audit")),
    }
    while let Some(word) = words.next() {
        match word {
            "rule" => entry.rule = words.value("a number")?,
            "precedence" => entry.precedence = words.value("a number")?,
            "proxy" => entry.proxy_port = Be16::new(words.value("a port")?),
            other => return Err(words.unknown(other, "rule, precedence, proxy")),
        }
    }
    Ok(entry)
}

/// The writes of one policy line.
pub(super) fn policy_writes(key: &str, value: &str) -> Result<Vec<Write>> {
    let entry = policy_entry(value)?;
    Ok(policy_keys(key)?
        .into_iter()
        .map(|key| {
            let bits = key.prefix_len.saturating_sub(policy::FIXED_BITS);
            let entry = PolicyEntry { l4_prefix: u8::try_from(bits).unwrap_or(u8::MAX), ..entry };
            Write { map: MapId::Policy, key: key.as_bytes().to_vec(), value: entry.as_bytes().to_vec() }
        })
        .collect())
}

fn policy_key_text(key: &PolicyKey) -> String {
    let direction = if key.direction == policy::INGRESS { "ingress" } else { "egress" };
    let peer = if key.identity == 0 { "any".to_owned() } else { identity_text(key.identity) };
    let mut out = format!("{} {direction} {peer}", endpoint_text(key.endpoint));
    if key.prefix_len < policy::PROTOCOL_BITS {
        return out + " any";
    }
    out += " ";
    out += &packet::protocol_name(key.protocol).map_or_else(|| key.protocol.to_string(), str::to_owned);
    let port = u16::from_be_bytes(key.port);
    match key.prefix_len.saturating_sub(policy::PROTOCOL_BITS) {
        0 => {}
        16 => out += &format!(" {port}"),
        bits => {
            let last = u32::from(port) + (1u32 << 16u32.saturating_sub(bits)) - 1;
            out += &format!(" {port}-{last}");
        }
    }
    out
}

fn policy_entry_text(entry: &PolicyEntry) -> String {
    let deny = entry.flags.has(PolicyFlags::DENY);
    let kinds = [(PolicyFlags::DENY, "deny"), (PolicyFlags::REDIRECT, "redirect"), (PolicyFlags::AUDIT, "audit")];
    let kind = kinds.iter().find(|(bit, _)| entry.flags.has(*bit)).map_or("allow", |(_, name)| name);
    let mut out = kind.to_owned();
    if entry.rule != 0 {
        out += &format!(" rule {}", entry.rule);
    }
    if entry.precedence != (if deny { policy::PRECEDENCE_DENY } else { policy::PRECEDENCE_ALLOW }) {
        out += &format!(" precedence {}", entry.precedence);
    }
    out
}

/// A flow as a line describes it: what is not mentioned is `None`, but for the flags, which are always meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowText {
    /// Map.
    pub map: MapId,
    /// Key bytes.
    pub key: Vec<u8>,
    flags: u16,
    egress: SideText,
    ingress: SideText,
    expires: Option<i64>,
    client_report: Option<i64>,
    server_report: Option<i64>,
    client_tcp: Option<u8>,
    server_tcp: Option<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SideText {
    revision: Option<u32>,
    identity: Option<u32>,
    rule: Option<u32>,
}

impl SideText {
    fn seed(&self) -> CtSide {
        CtSide {
            revision: self.revision.unwrap_or(1),
            identity: self.identity.unwrap_or(0),
            rule: self.rule.unwrap_or(0),
        }
    }

    fn matches(&self, side: &CtSide) -> bool {
        self.revision.is_none_or(|wanted| wanted == side.revision)
            && self.identity.is_none_or(|wanted| wanted == side.identity)
            && self.rule.is_none_or(|wanted| wanted == side.rule)
    }
}

fn flow_key(client: SocketAddr, server: SocketAddr, protocol: u8) -> Option<(MapId, Vec<u8>, bool)> {
    let (sport, dport) = (Be16::new(client.port()), Be16::new(server.port()));
    match (client.ip(), server.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let (source, destination) = (&Addr4::from_octets(a.octets()), &Addr4::from_octets(b.octets()));
            let mut key = CtKey4::default();
            let lo = V4::ct_key(&mut key, &Ends { source, destination, sport, dport, protocol });
            Some((MapId::Ct4, key.as_bytes().to_vec(), lo))
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let (source, destination) = (&Addr6::from_octets(a.octets()), &Addr6::from_octets(b.octets()));
            let mut key = CtKey6::default();
            let lo = V6::ct_key(&mut key, &Ends { source, destination, sport, dport, protocol });
            Some((MapId::Ct6, key.as_bytes().to_vec(), lo))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

impl FlowText {
    /// Reads a line.
    pub(super) fn parse(line: &str, per_second: u32) -> Result<Self> {
        let mut words = Words::new(line);
        let client: SocketAddr = words.value("ADDRESS:PORT")?;
        words.expect(">")?;
        let server: SocketAddr = words.value("ADDRESS:PORT")?;
        let protocol = words.protocol()?;
        let (map, key, client_is_lo) =
            flow_key(client, server, protocol).ok_or_else(|| words.error("both ends must be of one family"))?;
        let mut flow = Self {
            map,
            key,
            flags: if client_is_lo { CtFlags::CLIENT_LO } else { 0 },
            egress: SideText::default(),
            ingress: SideText::default(),
            expires: None,
            client_report: None,
            server_report: None,
            client_tcp: None,
            server_tcp: None,
        };
        let mut ingress = false;
        while let Some(word) = words.next() {
            match word {
                "egress" => {
                    flow.flags |= CtFlags::EGRESS;
                    ingress = false;
                    continue;
                }
                "ingress" => {
                    flow.flags |= CtFlags::INGRESS;
                    ingress = true;
                    continue;
                }
                _ => {}
            }
            let side = if ingress { &mut flow.ingress } else { &mut flow.egress };
            match word {
                "revision" => side.revision = Some(words.value("a number")?),
                "peer" => side.identity = Some(words.identity()?),
                "rule" => side.rule = Some(words.value("a number")?),
                "client-closing" => flow.flags |= CtFlags::CLIENT_CLOSING,
                "server-closing" => flow.flags |= CtFlags::SERVER_CLOSING,
                "non-syn" => flow.flags |= CtFlags::SEEN_NON_SYN,
                "expires" => flow.expires = Some(offset(&mut words, per_second)?),
                "client-report" => flow.client_report = Some(offset(&mut words, per_second)?),
                "server-report" => flow.server_report = Some(offset(&mut words, per_second)?),
                "client-tcp" => flow.client_tcp = Some(flags(&mut words)?),
                "server-tcp" => flow.server_tcp = Some(flags(&mut words)?),
                other => {
                    return Err(words.unknown(
                        other,
                        "egress, ingress, revision, peer, rule, client-closing, server-closing, non-syn, expires, \
                         client-report, server-report, client-tcp, server-tcp",
                    ));
                }
            }
        }
        Ok(flow)
    }

    /// The entry to start with.
    pub(super) fn seed(&self, clock: &Clock) -> Write {
        let entry = CtEntry {
            expires: clock.at(self.expires.unwrap_or(60 * i64::from(clock.per_second))),
            client_report: low(clock.at(self.client_report.unwrap_or(0))),
            server_report: low(clock.at(self.server_report.unwrap_or(0))),
            egress: if self.flags & CtFlags::EGRESS == 0 { CtSide::default() } else { self.egress.seed() },
            ingress: if self.flags & CtFlags::INGRESS == 0 { CtSide::default() } else { self.ingress.seed() },
            flags: CtFlags(self.flags),
            client_tcp: self.client_tcp.unwrap_or(0),
            server_tcp: self.server_tcp.unwrap_or(0),
            pad: [0; 20],
        };
        Write { map: self.map, key: self.key.clone(), value: entry.as_bytes().to_vec() }
    }

    /// Whether an entry is as described.
    pub(super) fn matches(&self, value: &[u8], clock: &Clock) -> bool {
        let Ok(entry) = CtEntry::read_from_bytes(value) else {
            return false;
        };
        let report = |wanted: Option<i64>, found: u32| wanted.is_none_or(|offset| low(clock.at(offset)) == found);
        entry.flags.0 == self.flags
            && self.egress.matches(&entry.egress)
            && self.ingress.matches(&entry.ingress)
            && self.expires.is_none_or(|offset| clock.at(offset) == entry.expires)
            && report(self.client_report, entry.client_report)
            && report(self.server_report, entry.server_report)
            && self.client_tcp.is_none_or(|wanted| wanted == entry.client_tcp)
            && self.server_tcp.is_none_or(|wanted| wanted == entry.server_tcp)
    }
}

fn offset(words: &mut Words<'_>, per_second: u32) -> Result<i64> {
    let word = words.word("a time like 60s or 5t (ticks)")?;
    ticks(word, per_second).ok_or_else(|| words.error(format_args!("`{word}` is not a time like 60s or 5t (ticks)")))
}

fn flags(words: &mut Words<'_>) -> Result<u8> {
    let word = words.word("TCP flags like syn,ack")?;
    tcp_flags(word).ok_or_else(|| words.error(format_args!("`{word}` is not TCP flags like syn,ack")))
}

fn low(ticks: u64) -> u32 {
    u32::try_from(ticks & u64::from(u32::MAX)).unwrap_or(0)
}

fn flow_text(map: MapId, key: &[u8], value: &[u8], clock: &Clock) -> Option<String> {
    let entry = CtEntry::read_from_bytes(value).ok()?;
    let (lo, hi, protocol) = if map == MapId::Ct4 {
        let key = CtKey4::read_from_bytes(key).ok()?;
        let end = |addr: Addr4, port: Be16| SocketAddr::new(IpAddr::from(addr.octets()), port.get());
        (end(key.lo, key.lo_port), end(key.hi, key.hi_port), key.protocol)
    } else {
        let key = CtKey6::read_from_bytes(key).ok()?;
        let end = |addr: Addr6, port: Be16| SocketAddr::new(IpAddr::from(addr.octets()), port.get());
        (end(key.lo, key.lo_port), end(key.hi, key.hi_port), key.protocol)
    };
    let (client, server) = if entry.flags.has(CtFlags::CLIENT_LO) { (lo, hi) } else { (hi, lo) };
    let protocol = packet::protocol_name(protocol).map_or_else(|| protocol.to_string(), str::to_owned);
    let mut out = format!("{client} > {server} {protocol}");
    for (bit, name, side) in [(CtFlags::EGRESS, "egress", &entry.egress), (CtFlags::INGRESS, "ingress", &entry.ingress)]
    {
        if entry.flags.has(bit) {
            out += &format!(" {name} revision {} peer {}", side.revision, identity_text(side.identity));
            if side.rule != 0 {
                out += &format!(" rule {}", side.rule);
            }
        }
    }
    for (bit, name) in [
        (CtFlags::CLIENT_CLOSING, " client-closing"),
        (CtFlags::SERVER_CLOSING, " server-closing"),
        (CtFlags::SEEN_NON_SYN, " non-syn"),
    ] {
        if entry.flags.has(bit) {
            out += name;
        }
    }
    for (name, flags) in [("client-tcp", entry.client_tcp), ("server-tcp", entry.server_tcp)] {
        if flags != 0 {
            out += &format!(" {name} {}", tcp_flags_text(flags));
        }
    }
    out += &format!(" expires {}", clock.text(entry.expires));
    for (name, report) in [("client-report", entry.client_report), ("server-report", entry.server_report)] {
        let offset = i64::from(report.wrapping_sub(low(clock.now)).cast_signed());
        out += &format!(" {name} {}", ticks_text(offset, clock.per_second));
    }
    Some(out)
}

/// A fragmented datagram as a line describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FragText {
    /// Map.
    pub map: MapId,
    /// Key bytes.
    pub key: Vec<u8>,
    sport: u16,
    dport: u16,
    icmp_type: Option<u8>,
    expires: Option<i64>,
}

impl FragText {
    /// Reads a line.
    pub(super) fn parse(line: &str, per_second: u32) -> Result<Self> {
        let mut words = Words::new(line);
        let source = words.address()?;
        words.expect(">")?;
        let destination = words.address()?;
        let protocol = words.protocol()?;
        words.expect("id")?;
        let id = words.value::<u32>("an identification")?.to_be_bytes();
        words.expect("ports")?;
        let sport = words.value("a port")?;
        words.expect(">")?;
        let dport = words.value("a port")?;
        let (map, key) = match (source, destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let (source, destination) = (Addr4::from_octets(a.octets()), Addr4::from_octets(b.octets()));
                let key = FragKey4 { source, destination, id, protocol, pad: [0; 3] };
                (MapId::Frag4, key.as_bytes().to_vec())
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let (source, destination) = (Addr6::from_octets(a.octets()), Addr6::from_octets(b.octets()));
                let key = FragKey6 { source, destination, id, protocol, pad: [0; 3] };
                (MapId::Frag6, key.as_bytes().to_vec())
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                return Err(words.error("both ends must be of one family"));
            }
        };
        let mut fragment = Self { map, key, sport, dport, icmp_type: None, expires: None };
        while let Some(word) = words.next() {
            match word {
                "type" => fragment.icmp_type = Some(words.value("an ICMP type")?),
                "expires" => fragment.expires = Some(offset(&mut words, per_second)?),
                other => return Err(words.unknown(other, "type, expires")),
            }
        }
        Ok(fragment)
    }

    /// The entry to start with.
    pub(super) fn seed(&self, clock: &Clock) -> Write {
        let [_, low] = self.dport.to_be_bytes();
        let entry = FragEntry {
            expires: clock.at(self.expires.unwrap_or(30 * i64::from(clock.per_second))),
            sport: Be16::new(self.sport),
            dport: Be16::new(self.dport),
            icmp_type: self.icmp_type.unwrap_or(low),
            pad: [0; 3],
        };
        Write { map: self.map, key: self.key.clone(), value: entry.as_bytes().to_vec() }
    }

    /// Whether an entry is as described.
    pub(super) fn matches(&self, value: &[u8], clock: &Clock) -> bool {
        let Ok(entry) = FragEntry::read_from_bytes(value) else {
            return false;
        };
        entry.sport.get() == self.sport
            && entry.dport.get() == self.dport
            && self.icmp_type.is_none_or(|wanted| wanted == entry.icmp_type)
            && self.expires.is_none_or(|offset| clock.at(offset) == entry.expires)
    }
}

fn frag_text(map: MapId, key: &[u8], value: &[u8], clock: &Clock) -> Option<String> {
    let entry = FragEntry::read_from_bytes(value).ok()?;
    let (source, destination, id, protocol): (IpAddr, IpAddr, _, _) = if map == MapId::Frag4 {
        let key = FragKey4::read_from_bytes(key).ok()?;
        (key.source.octets().into(), key.destination.octets().into(), key.id, key.protocol)
    } else {
        let key = FragKey6::read_from_bytes(key).ok()?;
        (key.source.octets().into(), key.destination.octets().into(), key.id, key.protocol)
    };
    let protocol = packet::protocol_name(protocol).map_or_else(|| protocol.to_string(), str::to_owned);
    Some(format!(
        "{source} > {destination} {protocol} id {} ports {} > {} type {} expires {}",
        u32::from_be_bytes(id),
        entry.sport.get(),
        entry.dport.get(),
        entry.icmp_type,
        clock.text(entry.expires),
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key as scenarios write it (bytes in hexadecimal where they do not).
#[must_use]
pub fn key_text(map: MapId, key: &[u8]) -> String {
    let text = match map {
        MapId::Ipcache4 => Addr4::read_from_bytes(key).ok().map(|addr| format!("{addr:?}")),
        MapId::Ipcache6 => Addr6::read_from_bytes(key).ok().map(|addr| format!("{addr:?}")),
        MapId::Cidr4 => CidrKey4::read_from_bytes(key).ok().map(|key| format!("{:?}/{}", key.addr, key.prefix_len)),
        MapId::Cidr6 => CidrKey6::read_from_bytes(key).ok().map(|key| format!("{:?}/{}", key.addr, key.prefix_len)),
        MapId::Policy => PolicyKey::read_from_bytes(key).ok().map(|key| policy_key_text(&key)),
        MapId::Metrics | MapId::Calls => key.first_chunk().map(|key| u32::from_ne_bytes(*key).to_string()),
        MapId::Ct4 | MapId::Ct6 => {
            let entry = CtEntry { flags: CtFlags(CtFlags::CLIENT_LO), ..CtEntry::default() };
            let clock = Clock { now: 0, per_second: 1 };
            flow_text(map, key, entry.as_bytes(), &clock)
                .and_then(|text| text.split_once(" expires").map(|(key, _)| key.to_owned()))
        }
        MapId::Frag4 | MapId::Frag6 => {
            let clock = Clock { now: 0, per_second: 1 };
            frag_text(map, key, FragEntry::default().as_bytes(), &clock)
                .and_then(|text| text.split_once(" ports").map(|(key, _)| key.to_owned()))
        }
        MapId::Events => None,
    };
    text.unwrap_or_else(|| hex(key))
}

/// A value as scenarios write it; flows and fragments with their key.
#[must_use]
pub fn value_text(map: MapId, key: &[u8], value: &[u8], clock: &Clock) -> String {
    let text = match map {
        MapId::Ipcache4 | MapId::Ipcache6 | MapId::Cidr4 | MapId::Cidr6 => {
            IpEntry::read_from_bytes(value).ok().map(|entry| ip_entry_text(&entry))
        }
        MapId::Policy => PolicyEntry::read_from_bytes(value).ok().map(|entry| policy_entry_text(&entry)),
        MapId::Ct4 | MapId::Ct6 => flow_text(map, key, value, clock),
        MapId::Frag4 | MapId::Frag6 => frag_text(map, key, value, clock),
        MapId::Metrics | MapId::Events | MapId::Calls => None,
    };
    text.unwrap_or_else(|| hex(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock { now: 250_000, per_second: 250 };

    #[test]
    fn entries_come_back_from_their_text() {
        for line in [
            "id 1000 endpoint 7 ifindex 10 mac 02:00:00:00:00:07 pod",
            "id 2000 node 192.168.0.12 pod",
            "id remote-node node-address",
            "id host node fd00::12 node-address local-host",
            "id 1000 endpoint 7 ifindex 10 mac 02:00:00:00:00:aa revision 9",
        ] {
            let entry = ip_entry(line).unwrap();
            assert_eq!(value_text(MapId::Ipcache4, &[], entry.as_bytes(), &CLOCK), line);
        }
        for line in [
            "10.0.0.7:40000 > 10.0.1.5:80 tcp egress revision 1 peer 2000 rule 3 expires 60s client-report 0s server-report -5s",
            "[fd00::9]:40000 > [fd00::1]:80 udp ingress revision 4 peer host client-closing non-syn client-tcp syn,ack \
             expires -1t client-report 0s server-report 0s",
        ] {
            let flow = FlowText::parse(line, CLOCK.per_second).unwrap();
            let write = flow.seed(&CLOCK);
            assert!(flow.matches(&write.value, &CLOCK));
            assert_eq!(value_text(write.map, &write.key, &write.value, &CLOCK), line);
        }
        let line = "10.0.0.7 > 10.0.1.5 udp id 5 ports 1000 > 53 type 53 expires 30s";
        let write = FragText::parse(line, 250).unwrap().seed(&CLOCK);
        assert_eq!(value_text(write.map, &write.key, &write.value, &CLOCK), line);
    }

    #[test]
    fn ranges_become_blocks_that_cover_exactly_the_range() {
        for (from, to) in [(0, 0), (0, 65535), (1, 65535), (80, 81), (1, 1), (65535, 65535), (1000, 2047), (3, 17)] {
            let blocks = blocks(from, to);
            for port in 0..=u16::MAX {
                let inside = blocks.iter().filter(|(start, bits)| {
                    let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
                    port & mask == *start
                });
                assert_eq!(inside.count(), usize::from((from..=to).contains(&port)), "{from}-{to}: {port}");
            }
        }
        for line in ["7 egress 2000 tcp 80-81", "7 ingress any any", "7 ingress host udp", "7 ingress any icmp 8"] {
            let keys = policy_keys(line).unwrap();
            assert_eq!(keys.len(), 1);
            assert_eq!(key_text(MapId::Policy, keys[0].as_bytes()), line);
        }
    }
}
