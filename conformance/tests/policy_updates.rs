//! Random changes of random clusters with policies of every kind: what is brought up to date is what is made from scratch,
//! entry by entry, and while the maps are written one entry at a time every packet meets the old verdict or the new one.
//!
//! `WEIR_SEED=N` runs one seed, `WEIR_CLUSTERS=N` more or fewer clusters.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_core::desired::{OWNED, Op};
use agent_core::model::{Name, read_objects};
use agent_core::{
    Compiled, IdentityAllocator, Limits, LocalEndpoint, Model, NodeMaps, Plan, Settings, Snapshot, reconcile_known,
};
use conformance::oracle::generate::{self, OUTSIDE, PORTS, Random, TYPES};
use datapath_abi::policy::FULL_BITS;
use datapath_abi::{Addr4, Addr6, CidrKey4, CidrKey6, IpEntry, Mac, MapId, PolicyEntry, PolicyFlags, PolicyKey, ids};
use datapath_maps::{MapSpec, MapStore, MemoryMaps, UpdateMode};
use zerocopy::{FromBytes, IntoBytes};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn maps() -> MemoryMaps {
    MemoryMaps::new(OWNED.map(|map| MapSpec { max_entries: 65_536, ..MapSpec::of(map) }), 1).unwrap()
}

/// One node's maps.
struct Node {
    wanted: NodeMaps,
    store: MemoryMaps,
    held: Option<Snapshot>,
}

/// What one packet is asked about: whose policy (by address), in which direction, the other end, protocol, port.
type Packet = (IpAddr, u8, IpAddr, u8, u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nobody here has this address.
    Absent,
    Allow,
    Deny,
    Redirect,
}

fn owner(store: &MemoryMaps, address: IpAddr) -> Option<IpEntry> {
    let bytes = match address {
        IpAddr::V4(address) => store.lookup(MapId::Ipcache4, Addr4::from_octets(address.octets()).as_bytes()),
        IpAddr::V6(address) => store.lookup(MapId::Ipcache6, Addr6::from_octets(address.octets()).as_bytes()),
    };
    Some(IpEntry::read_from_bytes(&bytes.unwrap()?).unwrap())
}

/// As the datapath finds an identity: the address, the longest prefix, the world.
fn identity(store: &MemoryMaps, address: IpAddr, dual_stack: bool) -> u32 {
    let prefix = || {
        let bytes = match address {
            IpAddr::V4(address) => {
                let key = CidrKey4 { prefix_len: 32, addr: Addr4::from_octets(address.octets()) };
                store.lookup(MapId::Cidr4, key.as_bytes())
            }
            IpAddr::V6(address) => {
                let key = CidrKey6 { prefix_len: 128, addr: Addr6::from_octets(address.octets()) };
                store.lookup(MapId::Cidr6, key.as_bytes())
            }
        };
        Some(IpEntry::read_from_bytes(&bytes.unwrap()?).unwrap())
    };
    let world = match (dual_stack, address.is_ipv4()) {
        (false, _) => ids::WORLD,
        (true, true) => ids::WORLD_IPV4,
        (true, false) => ids::WORLD_IPV6,
    };
    owner(store, address).or_else(prefix).map_or(world, |entry| entry.identity)
}

fn ask(store: &MemoryMaps, (own, direction, peer, protocol, port): Packet, dual_stack: bool) -> Outcome {
    let Some(endpoint) = owner(store, own).map(|entry| entry.endpoint).filter(|endpoint| *endpoint != 0) else {
        return Outcome::Absent;
    };
    let look_up = |identity| {
        let port = port.to_be_bytes();
        let key = PolicyKey { prefix_len: FULL_BITS, endpoint, direction, pad: 0, identity, protocol, port, pad2: 0 };
        let bytes = store.lookup(MapId::Policy, key.as_bytes()).unwrap()?;
        Some(PolicyEntry::read_from_bytes(&bytes).unwrap())
    };
    let winner = match (look_up(identity(store, peer, dual_stack)), look_up(0)) {
        (Some(exact), Some(any)) => {
            let any_wins = (any.precedence, any.l4_prefix) > (exact.precedence, exact.l4_prefix);
            Some(if any_wins { any } else { exact })
        }
        (exact, any) => exact.or(any),
    };
    match winner {
        None => Outcome::Deny,
        Some(entry) if entry.flags.has(PolicyFlags::REDIRECT) => Outcome::Redirect,
        Some(entry) if entry.flags.has(PolicyFlags::DENY) => Outcome::Deny,
        Some(_) => Outcome::Allow,
    }
}

/// Some packets that a node may meet.
fn packets(models: [&Model; 2], node: &str, random: &mut Random, count: usize) -> BTreeSet<Packet> {
    let (mut own, mut all): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) = (BTreeSet::new(), BTreeSet::new());
    for model in models {
        for pod in model.pods().values().filter(|pod| !pod.host_network) {
            all.extend(&pod.addresses);
            own.extend(pod.addresses.iter().filter(|_| pod.node == node));
        }
        for found in model.nodes() {
            all.extend(&found.addresses);
            own.extend(found.addresses.iter().filter(|_| found.name == node));
        }
    }
    all.extend(OUTSIDE.iter().map(|text| text.parse::<IpAddr>().unwrap()));
    let (own, all): (Vec<IpAddr>, Vec<IpAddr>) = (own.into_iter().collect(), all.into_iter().collect());
    let mut packets = BTreeSet::new();
    for _ in 0..count {
        let (own, peer) = (own[random.below(own.len())], all[random.below(all.len())]);
        let (protocol, port) = match random.below(5) {
            0 => ([1, 58][random.below(2)], TYPES[random.below(TYPES.len())]),
            1 => (17, PORTS[random.below(PORTS.len())]),
            _ => (6, PORTS[random.below(PORTS.len())]),
        };
        if own != peer && own.is_ipv4() == peer.is_ipv4() {
            packets.insert((own, u8::try_from(random.below(2)).unwrap(), peer, protocol, port));
        }
    }
    packets
}

#[derive(Debug, Default)]
struct Count {
    updates: usize,
    kept: usize,
    steps: usize,
    /// Verdicts asked between two steps, and of packets that have another one afterwards.
    asked: usize,
    changing: usize,
    /// Of them, refused behind a gate though old and new entries let them pass.
    refused: usize,
    plans: usize,
    /// Endpoints and directions whose entries changed, and those that needed a gate.
    sides: usize,
    gated: usize,
}

fn side(op: &Op) -> Option<(u16, u8)> {
    let key = PolicyKey::read_from_bytes(op.key()).ok().filter(|_| op.map() == MapId::Policy)?;
    Some((key.endpoint, key.direction))
}

/// Writes a plan entry by entry and asks between.
fn walk(
    plan: &Plan,
    node: &mut Node,
    packets: &BTreeSet<Packet>,
    dual_stack: bool,
    after: &MemoryMaps,
    at: &str,
    count: &mut Count,
) {
    let before: Vec<Outcome> = packets.iter().map(|packet| ask(&node.store, *packet, dual_stack)).collect();
    let wanted: Vec<Outcome> = packets.iter().map(|packet| ask(after, *packet, dual_stack)).collect();
    let own = packets.iter().map(|packet| packet.0);
    let endpoints: BTreeMap<IpAddr, u16> =
        own.filter_map(|address| Some((address, owner(&node.store, address)?.endpoint))).collect();
    let mut refused = 0;
    for op in plan.ops() {
        match op {
            Op::Put { map, key, value } => node.store.update(*map, key, value, UpdateMode::Any).unwrap(),
            Op::Delete { map, key } => assert!(node.store.delete(*map, key).unwrap(), "{at}"),
        }
        count.steps += 1;
        for ((packet, old), new) in packets.iter().zip(&before).zip(&wanted) {
            let now = ask(&node.store, *packet, dual_stack);
            count.asked += 1;
            count.changing += usize::from(old != new);
            if now != *old && now != *new {
                let (was, is) = (endpoints.get(&packet.0), owner(after, packet.0).map(|entry| entry.endpoint));
                if now == Outcome::Absent && was.copied() != is {
                    // The address is another pod's: meanwhile it is nobody's.
                    continue;
                }
                let side = is.map(|endpoint| (endpoint, packet.1));
                // Behind a gate new flows are refused.
                let gated = now == Outcome::Deny && side.is_some_and(|side| plan.gated().contains(&side));
                assert!(gated, "{at}: {packet:?} {old:?} -> {now:?} -> {new:?} after {op:?}");
                refused += 1;
            }
        }
    }
    count.refused += refused;
    count.plans += 1;
    count.sides += plan.ops().iter().filter_map(side).collect::<BTreeSet<_>>().len();
    count.gated += plan.gated().len();
}

fn random_change(model: &mut Model, random: &mut Random) -> bool {
    let before = model.clone();
    if !random.one_in(4) {
        let few = 3 + random.below(12);
        let others = generate::documents(random);
        let some: Vec<String> = others.into_iter().filter(|_| random.one_in(few)).collect();
        let objects = read_objects(&[("change.yaml".to_owned(), some.join("---\n"))]).unwrap();
        if model.apply(objects).is_err() {
            return false;
        }
    }
    if random.one_in(2) {
        let few = 4 + random.below(20);
        let keys: Vec<_> = model.objects().iter().map(agent_core::model::Object::key).collect();
        let goes = |random: &mut Random, kind: &str| {
            random.one_in(if matches!(kind, "Namespace" | "Node") { 40 } else { few })
        };
        let gone: Vec<_> = keys.into_iter().filter(|key| goes(random, key.kind)).collect();
        let _ = model.delete(&gone);
    }
    before.dual_stack() == model.dual_stack()
}

#[test]
fn every_update_ends_where_a_fresh_start_ends_and_goes_there_without_a_third_verdict() {
    let one = number("WEIR_SEED");
    let mut count = Count::default();
    for seed in one.map_or(1..=number("WEIR_CLUSTERS").unwrap_or(120), |seed| seed..=seed) {
        let mut random = Random::new(seed);
        let settings = generate::settings(&mut random);
        let families = Settings { ipv4: seed % 3 != 1, ipv6: seed % 3 != 0 };
        let text = generate::documents(&mut random).join("---\n");
        let mut model = Model::parse(&[("cluster.yaml".to_owned(), text)], families).unwrap();
        let mut identities = IdentityAllocator::default();
        let mut compiled = Compiled::with(&model, &mut identities, settings.clone()).unwrap();
        let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
        let mut numbers: BTreeMap<Name, u16> = BTreeMap::new();
        for step in 0..12 {
            let at = format!("seed {seed} step {step}");
            let (before, old) = (model.clone(), compiled.clone());
            if !random_change(&mut model, &mut random) {
                model = before;
                continue;
            }
            let mut fresh = identities.clone();
            let scratch = Compiled::with(&model, &mut fresh, settings.clone()).unwrap();
            let changes = compiled.update(&model, &mut identities).unwrap();
            assert!(fresh.iter().eq(identities.iter()), "{at}: identities");
            assert!(compiled.rules().iter().eq(scratch.rules().iter()), "{at}: rules");
            for name in model.pods().keys().filter(|name| !compiled.is_changed(&changes, name)) {
                for direction in agent_core::Direction::ALL {
                    assert_eq!(old.state(name, direction), compiled.state(name, direction), "{at}: {name}");
                }
                count.kept += 1;
            }
            count.updates += 1;
            let names: BTreeSet<String> = model.nodes().iter().map(|node| node.name.clone()).collect();
            nodes.retain(|name, _| names.contains(name));
            for name in names {
                let mut locals = Vec::new();
                for pod in model.pods().values().filter(|pod| pod.node == name && !pod.host_network) {
                    let next = u16::try_from(numbers.len() + 1).unwrap();
                    let id = *numbers.entry(pod.name.clone()).or_insert(next);
                    // Some have no endpoint for a while, or another device.
                    let ifindex = 100 + u32::from(id) + u32::from(random.one_in(10));
                    if !random.one_in(8) {
                        locals.push(LocalEndpoint {
                            pod: pod.name.clone(),
                            id,
                            ifindex,
                            mac: Mac::from_octets([2; 6]),
                        });
                    }
                }
                let wanted = scratch.desired(&name, &locals).unwrap();
                let Some(node) = nodes.get_mut(&name) else {
                    let made = NodeMaps::new(&compiled, &name, &locals).unwrap();
                    assert_eq!(*made.desired(), wanted, "{at} {name}");
                    let (mut store, mut held) = (maps(), None);
                    reconcile_known(&mut held, made.desired(), &Limits::default(), &mut store).unwrap();
                    nodes.insert(name, Node { wanted: made, store, held });
                    continue;
                };
                node.wanted.update(&compiled, &changes, &locals).unwrap();
                assert_eq!(*node.wanted.desired(), wanted, "{at} {name}");
                let plan = Plan::between(node.held.as_ref().unwrap(), &wanted);
                assert_eq!(plan, Plan::between(&Snapshot::read(&node.store).unwrap(), &wanted), "{at} {name}");
                let mut after = maps();
                reconcile_known(&mut None, &wanted, &Limits::default(), &mut after).unwrap();
                let packets = packets([&before, &model], &name, &mut random, 150);
                walk(&plan, node, &packets, model.dual_stack(), &after, &format!("{at} {name}"), &mut count);
                node.held = Some(Snapshot::from(&wanted));
                assert_eq!(Snapshot::read(&node.store).unwrap(), Snapshot::from(&wanted), "{at} {name}");
            }
        }
    }
    println!("{count:?}");
    assert!(one.is_some() || (count.updates > 400 && count.kept > 100 && count.changing > 10_000), "{count:?}");
    assert!(one.is_some() || (count.gated > 0 && count.gated * 10 < count.sides), "gates are rare: {count:?}");
}
