//! A cluster whose nodes have maps in memory, written by `reconcile`, and asked as the datapath asks them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_core::model::{Name, read_objects};
use agent_core::policy::PolicySettings;
use agent_core::{
    Compiled, Desired, IdentityAllocator, Limits, LocalEndpoint, Model, Plan, RuleId, Settings, reconcile,
};
use datapath_abi::policy::{self, FULL_BITS};
use datapath_abi::{Addr4, Addr6, CidrKey4, CidrKey6, IpEntry, Mac, MapId, PolicyEntry, PolicyFlags, PolicyKey, ids};
use datapath_maps::{MapSpec, MapStore, MemoryMaps};
use zerocopy::{FromBytes, IntoBytes};

pub const TCP: u8 = 6;

/// Empty maps of one node, smaller than the real ones.
pub fn maps() -> MemoryMaps {
    let owned = agent_core::desired::OWNED;
    MemoryMaps::new(owned.map(|map| MapSpec { max_entries: 8192, ..MapSpec::of(map) }), 1).unwrap()
}

pub fn file(text: &str) -> Vec<(String, String)> {
    vec![("test.yaml".to_owned(), text.to_owned())]
}

pub struct Cluster {
    pub model: Model,
    pub identities: IdentityAllocator,
    pub compiled: Compiled,
    pub settings: PolicySettings,
    pub nodes: BTreeMap<String, MemoryMaps>,
    numbers: BTreeMap<Name, u16>,
}

impl Cluster {
    pub fn new(text: &str) -> Self {
        Self::with(text, Settings::default())
    }

    pub fn with(text: &str, settings: Settings) -> Self {
        let model = Model::parse(&file(text), settings).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        let mut identities = IdentityAllocator::default();
        let compiled = Compiled::new(&model, &mut identities).unwrap();
        let settings = PolicySettings::default();
        let mut cluster =
            Self { model, identities, compiled, settings, nodes: BTreeMap::new(), numbers: BTreeMap::new() };
        cluster.sync();
        cluster
    }

    pub fn apply(&mut self, text: &str) -> BTreeMap<String, Plan> {
        self.model.apply(read_objects(&file(text)).unwrap()).unwrap();
        self.sync()
    }

    pub fn delete(&mut self, text: &str) -> BTreeMap<String, Plan> {
        let keys: Vec<_> = read_objects(&file(text)).unwrap().iter().map(|object| object.key()).collect();
        self.model.delete(&keys).unwrap();
        self.sync()
    }

    /// Compiles and writes every node's maps.
    pub fn sync(&mut self) -> BTreeMap<String, Plan> {
        self.compiled = Compiled::with(&self.model, &mut self.identities, self.settings.clone()).unwrap();
        for pod in self.model.pods().values().filter(|pod| !pod.host_network) {
            let next = u16::try_from(self.numbers.len() + 1).unwrap();
            self.numbers.entry(pod.name.clone()).or_insert(next);
        }
        let names: Vec<String> = self.model.nodes().iter().map(|node| node.name.clone()).collect();
        let mut plans = BTreeMap::new();
        for name in names {
            let desired = self.desired(&name);
            let store = self.nodes.entry(name.clone()).or_insert_with(maps);
            plans.insert(name, reconcile(&desired, &Limits::default(), store).unwrap());
        }
        plans
    }

    pub fn desired(&self, node: &str) -> Desired {
        self.compiled.desired(node, &self.locals(node)).unwrap()
    }

    pub fn locals(&self, node: &str) -> Vec<LocalEndpoint> {
        let pods = self.model.pods().values().filter(|pod| pod.node == node && !pod.host_network);
        pods.map(|pod| {
            let id = self.numbers[&pod.name];
            LocalEndpoint { pod: pod.name.clone(), id, ifindex: u32::from(id) + 100, mac: Mac::from_octets([2; 6]) }
        })
        .collect()
    }

    pub fn dump(&self, node: &str) -> String {
        self.desired(node).dump(self.compiled.rules()).to_string()
    }

    /// An address of `ns/pod` (IPv4 unless `6` is asked for), of `node/NAME`, or the address itself.
    pub fn address(&self, name: &str, ipv4: bool) -> IpAddr {
        if let Ok(address) = name.parse() {
            return address;
        }
        let (namespace, rest) = name.split_once('/').unwrap();
        let all = match self.model.pods().get(&Name::new(namespace, rest)) {
            Some(pod) => &pod.addresses,
            None => &self.model.node(rest).unwrap().addresses,
        };
        *all.iter().find(|address| address.is_ipv4() == ipv4).unwrap()
    }

    /// Node that holds an address.
    pub fn node_of(&self, address: IpAddr) -> Option<&str> {
        let pod = self.model.pods().values().find(|pod| pod.addresses.contains(&address));
        let node = self.model.nodes().iter().find(|node| node.addresses.contains(&address));
        pod.map(|pod| pod.node.as_str()).or(node.map(|node| node.name.as_str()))
    }

    /// Whether a new flow passes both policies.
    pub fn reaches(&self, from: &str, to: &str, port: u16) -> bool {
        self.flow(self.address(from, true), self.address(to, true), TCP, port)
    }

    pub fn reaches6(&self, from: &str, to: &str, port: u16) -> bool {
        self.flow(self.address(from, false), self.address(to, false), TCP, port)
    }

    pub fn flow(&self, from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> bool {
        self.egress(from, to, protocol, port).is_ok() && self.ingress(from, to, protocol, port).is_ok()
    }

    /// Verdict of the sender's node: the rule, or `Err` for a drop.
    pub fn egress(&self, from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> Result<RuleId, RuleId> {
        let Some(node) = self.node_of(from) else { return Ok(0) };
        let maps = &self.nodes[node];
        let source = owner(maps, from).unwrap();
        if source.endpoint == 0 {
            return Ok(0);
        }
        let peer = self.identity(maps, to);
        decide(maps, source.endpoint, policy::EGRESS, peer, protocol, port)
    }

    /// Verdict of the receiver's node.
    pub fn ingress(&self, from: IpAddr, to: IpAddr, protocol: u8, port: u16) -> Result<RuleId, RuleId> {
        let Some(node) = self.node_of(to) else { return Ok(0) };
        let maps = &self.nodes[node];
        let destination = owner(maps, to).unwrap();
        if destination.endpoint == 0 {
            return Ok(0);
        }
        let mut peer = self.identity(maps, from);
        if let Some(source_node) = self.node_of(from)
            && let Some(source) = owner(&self.nodes[source_node], from)
            && source.endpoint != 0
        {
            assert_eq!(peer, source.identity, "{from} has one identity on all nodes: it travels as VNI");
            assert!((ids::FIRST_ALLOCATED..=ids::LAST_ALLOCATED).contains(&peer));
            peer = source.identity;
        }
        decide(maps, destination.endpoint, policy::INGRESS, peer, protocol, port)
    }

    /// As `datapath-core` resolves an owner: exact, longest prefix, world.
    pub fn identity(&self, maps: &MemoryMaps, address: IpAddr) -> u32 {
        let world = match (self.model.dual_stack(), address.is_ipv4()) {
            (false, _) => ids::WORLD,
            (true, true) => ids::WORLD_IPV4,
            (true, false) => ids::WORLD_IPV6,
        };
        owner(maps, address).or_else(|| prefix_owner(maps, address)).map_or(world, |entry| entry.identity)
    }
}

pub fn owner(maps: &MemoryMaps, address: IpAddr) -> Option<IpEntry> {
    let bytes = match address {
        IpAddr::V4(a) => maps.lookup(MapId::Ipcache4, Addr4::from_octets(a.octets()).as_bytes()),
        IpAddr::V6(a) => maps.lookup(MapId::Ipcache6, Addr6::from_octets(a.octets()).as_bytes()),
    };
    bytes.unwrap().map(|bytes| IpEntry::read_from_bytes(&bytes).unwrap())
}

fn prefix_owner(maps: &MemoryMaps, address: IpAddr) -> Option<IpEntry> {
    let bytes = match address {
        IpAddr::V4(a) => {
            let key = CidrKey4 { prefix_len: 32, addr: Addr4::from_octets(a.octets()) };
            maps.lookup(MapId::Cidr4, key.as_bytes())
        }
        IpAddr::V6(a) => {
            let key = CidrKey6 { prefix_len: 128, addr: Addr6::from_octets(a.octets()) };
            maps.lookup(MapId::Cidr6, key.as_bytes())
        }
    };
    bytes.unwrap().map(|bytes| IpEntry::read_from_bytes(&bytes).unwrap())
}

/// Two longest-prefix look-ups, one winner, as `datapath_abi::policy` says.
pub fn decide(
    maps: &MemoryMaps,
    endpoint: u16,
    direction: u8,
    identity: u32,
    protocol: u8,
    port: u16,
) -> Result<RuleId, RuleId> {
    let ask = |identity| {
        let port = port.to_be_bytes();
        let key = PolicyKey { prefix_len: FULL_BITS, endpoint, direction, pad: 0, identity, protocol, port, pad2: 0 };
        let bytes = maps.lookup(MapId::Policy, key.as_bytes()).unwrap()?;
        Some(PolicyEntry::read_from_bytes(&bytes).unwrap())
    };
    let winner = match (ask(identity), ask(0)) {
        (Some(exact), Some(any)) => {
            let any_wins = (any.precedence, any.l4_prefix) > (exact.precedence, exact.l4_prefix);
            Some(if any_wins { any } else { exact })
        }
        (exact, any) => exact.or(any),
    };
    match winner {
        Some(entry) if !entry.flags.has(PolicyFlags::DENY) => Ok(entry.rule),
        Some(entry) => Err(entry.rule),
        None => Err(0),
    }
}
