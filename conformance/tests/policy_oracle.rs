//! Random clusters with policies of every kind: the policy maps, asked as the datapath asks them, must say what the
//! oracle reads in the API texts. A failure is shrunk and printed as a scenario file.
//!
//! `WEIR_SEED=N` runs one seed, `WEIR_CLUSTERS=N` more or fewer clusters.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use agent_core::model::read_objects;
use agent_core::policy::{Direction, PolicySettings, PolicyState};
use agent_core::{Compiled, IdentityAllocator, Model, Settings};
use conformance::oracle::generate::{self, OUTSIDE, PORTS, Random, TYPES};
use conformance::oracle::{Answer, Oracle, Outcome, Question, Subject, found};
use datapath_abi::policy::FULL_BITS;
use datapath_abi::{MapId, PolicyEntry, PolicyFlags, PolicyKey};
use datapath_maps::{MapSpec, MapStore, MemoryMaps, UpdateMode};
use simulator::cluster::scenario::Config;
use zerocopy::{FromBytes, IntoBytes};

/// One policy map with the entries of all subjects.
struct Maps {
    store: MemoryMaps,
    endpoints: u16,
}

impl Maps {
    fn new() -> Self {
        let spec = MapSpec { max_entries: 200_000, ..MapSpec::of(MapId::Policy) };
        Self { store: MemoryMaps::new([spec], 1).unwrap(), endpoints: 0 }
    }

    fn add(&mut self, states: [PolicyState; 2]) -> u16 {
        self.endpoints += 1;
        for (state, direction) in states.iter().zip([Direction::Ingress, Direction::Egress]) {
            for (key, entry) in state.map_entries(self.endpoints, direction) {
                self.store.update(MapId::Policy, key.as_bytes(), entry.as_bytes(), UpdateMode::Any).unwrap();
            }
        }
        self.endpoints
    }

    /// Two longest-prefix look-ups, one winner, as `datapath_abi::policy` says.
    fn ask(&self, endpoint: u16, direction: Direction, identity: u32, protocol: u8, port: u16) -> Answer {
        let ask = |identity| {
            let (direction, port) = (direction.number(), port.to_be_bytes());
            let key =
                PolicyKey { prefix_len: FULL_BITS, endpoint, direction, pad: 0, identity, protocol, port, pad2: 0 };
            let bytes = self.store.lookup(MapId::Policy, key.as_bytes()).unwrap()?;
            Some(PolicyEntry::read_from_bytes(&bytes).unwrap())
        };
        let winner = match (ask(identity), ask(0)) {
            (Some(exact), Some(any)) => {
                let any_wins = (any.precedence, any.l4_prefix) > (exact.precedence, exact.l4_prefix);
                Some(if any_wins { any } else { exact })
            }
            (exact, any) => exact.or(any),
        };
        let outcome = match winner {
            None => Outcome::Deny,
            Some(entry) if entry.flags.has(PolicyFlags::REDIRECT) => Outcome::Redirect,
            Some(entry) if entry.flags.has(PolicyFlags::DENY) => Outcome::Deny,
            Some(_) => Outcome::Allow,
        };
        Answer { outcome, audit: winner.is_some_and(|entry| entry.flags.has(PolicyFlags::AUDIT)) }
    }
}

fn families(seed: u64) -> Settings {
    Settings { ipv4: seed % 3 != 1, ipv6: !seed.is_multiple_of(3) }
}

fn cluster(documents: &[String], seed: u64) -> Result<Model, String> {
    let text = documents.join("---\n");
    Model::parse(&[("cluster.yaml".to_owned(), text)], families(seed)).map_err(|errors| errors.to_string())
}

#[derive(Debug, Default)]
struct Count {
    asked: usize,
    by: BTreeMap<(Outcome, bool), usize>,
}

/// Compares everything that can be asked; the first difference in words.
fn compare(model: &Model, settings: &PolicySettings, count: &mut Count) -> Result<(), String> {
    let mut identities = IdentityAllocator::default();
    let compiled = Compiled::with(model, &mut identities, settings.clone()).unwrap();
    let oracle = Oracle { model, settings };
    let mut maps = Maps::new();
    let mut peers: Vec<IpAddr> = Vec::new();
    let pods = || model.pods().values().filter(|pod| !pod.host_network);
    peers.extend(pods().flat_map(|pod| pod.addresses.iter()));
    peers.extend(model.nodes().iter().flat_map(|node| node.addresses.iter()));
    peers.extend(OUTSIDE.iter().map(|text| text.parse::<IpAddr>().unwrap()));
    let mut subjects: Vec<(Subject<'_>, String, &str, Vec<IpAddr>)> = Vec::new();
    for pod in pods() {
        subjects.push((Subject::Pod(pod), pod.name.to_string(), &pod.node, pod.addresses.clone()));
    }
    for node in model.nodes() {
        subjects.push((Subject::Node(node), format!("node/{}", node.name), &node.name, node.addresses.clone()));
    }
    for (subject, name, node, own) in subjects {
        let states = |direction| match subject {
            Subject::Pod(pod) => compiled.state(&pod.name, direction),
            Subject::Node(node) => compiled.host_state(&node.name, direction),
        };
        let endpoint = maps.add([states(Direction::Ingress), states(Direction::Egress)]);
        // Only peers of a family that the subject has.
        let met = |peer: &&IpAddr| own.iter().any(|own| own.is_ipv4() == peer.is_ipv4()) && !own.contains(peer);
        for &peer in peers.iter().filter(met) {
            let identity = compiled.identity(node, peer);
            for direction in Direction::ALL {
                let ports = [6, 17, 132].into_iter().flat_map(|protocol| PORTS.map(|port| (protocol, port)));
                let types = [1, 58].into_iter().flat_map(|protocol| TYPES.map(|kind| (protocol, kind)));
                for (protocol, port) in ports.chain(types).chain([(47, 0)]) {
                    let said = oracle.ask(&Question { subject, direction, peer, protocol, port });
                    let got = maps.ask(endpoint, direction, identity, protocol, port);
                    count.asked += 1;
                    *count.by.entry((said.outcome, said.audit)).or_default() += 1;
                    if said != got {
                        let mut text = format!(
                            "{direction} of {name}, peer {peer} (identity {identity}), protocol {protocol}, port {port}:\n\
                             the API says {said:?}, the maps say {got:?}\nentries:\n"
                        );
                        for (key, entry) in states(direction).map_entries(endpoint, direction) {
                            writeln!(text, "  {key:?}\n    {entry:?} {}", compiled.rules().origin(entry.rule)).unwrap();
                        }
                        return Err(text);
                    }
                }
            }
        }
    }
    Ok(())
}

/// The smallest set of documents that still fails, as a scenario file, and why.
fn shrink(documents: Vec<String>, settings: &PolicySettings, seed: u64) -> (String, String) {
    let fails = |documents: &[String]| {
        let model = cluster(documents, seed).ok()?;
        compare(&model, settings, &mut Count::default()).err()
    };
    let documents = found::smallest(documents, |documents| fails(documents).is_some());
    let why = fails(&documents).unwrap_or_default();
    let Settings { ipv4, ipv6 } = families(seed);
    let config = Config { ipv4, ipv6, policy: settings.clone(), ..Config::default() };
    (found::scenario(&format!("seed {seed}"), "found by policy_oracle", &config, &[], &documents), why)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn the_maps_say_what_the_apis_say() {
    let one = number("WEIR_SEED");
    let clusters = number("WEIR_CLUSTERS").unwrap_or(300);
    let mut count = Count::default();
    for seed in one.map_or(1..=clusters, |seed| seed..=seed) {
        let mut random = Random::new(seed);
        let documents = generate::documents(&mut random);
        let settings = generate::settings(&mut random);
        let model = cluster(&documents, seed).unwrap_or_else(|errors| panic!("seed {seed}: {errors}"));
        if compare(&model, &settings, &mut count).is_err() {
            let (scenario, why) = shrink(documents, &settings, seed);
            let path = std::env::temp_dir().join(format!("policy-seed-{seed}.yaml"));
            std::fs::write(&path, &scenario).unwrap();
            panic!("seed {seed}: {why}\nsettings: {settings:?}\n{scenario}\nwritten to {}", path.display());
        }
    }
    println!("{} verdicts: {:?}", count.asked, count.by);
    if one.is_none() {
        // Every kind of answer is met, none of them hardly ever.
        for outcome in
            [(Outcome::Allow, false), (Outcome::Deny, false), (Outcome::Redirect, false), (Outcome::Allow, true)]
        {
            let met = count.by.get(&outcome).copied().unwrap_or(0);
            assert!(met * 3_000 > count.asked, "{outcome:?}: {met} of {}", count.asked);
        }
    }
}

/// Every pod's and node's entries.
fn all_states(compiled: &Compiled, model: &Model) -> BTreeMap<String, [PolicyState; 2]> {
    let pods = model.pods().keys();
    let pods = pods.map(|name| (name.to_string(), Direction::ALL.map(|direction| compiled.state(name, direction))));
    let nodes = model.nodes().iter().map(|node| {
        let states = Direction::ALL.map(|direction| compiled.host_state(&node.name, direction));
        (format!("node/{}", node.name), states)
    });
    pods.chain(nodes).collect()
}

#[test]
fn what_is_brought_up_to_date_is_what_is_compiled_from_scratch() {
    let one = number("WEIR_SEED");
    let mut updates = 0;
    let mut kept = 0;
    for seed in one.map_or(1..=120, |seed| seed..=seed) {
        let mut random = Random::new(seed);
        let settings = generate::settings(&mut random);
        let mut model = cluster(&generate::documents(&mut random), 2).unwrap();
        let mut identities = IdentityAllocator::default();
        let mut compiled = Compiled::with(&model, &mut identities, settings.clone()).unwrap();
        for step in 0..12 {
            let before = all_states(&compiled, &model);
            // Some documents of another cluster come, some objects go.
            let others = generate::documents(&mut random);
            let some: Vec<String> = others.into_iter().filter(|_| random.one_in(6)).collect();
            let objects = read_objects(&[("change.yaml".to_owned(), some.join("---\n"))]).unwrap();
            if model.apply(objects).is_err() {
                continue;
            }
            let keys: Vec<_> = model.objects().iter().map(agent_core::model::Object::key).collect();
            let gone: Vec<_> =
                keys.into_iter().filter(|key| !matches!(key.kind, "Namespace" | "Node") && random.one_in(8)).collect();
            let _ = model.delete(&gone);
            let mut fresh = identities.clone();
            let scratch = Compiled::with(&model, &mut fresh, settings.clone()).unwrap();
            let changes = compiled.update(&model, &mut identities).unwrap();
            assert!(fresh.iter().eq(identities.iter()), "seed {seed} step {step}: identities");
            let after = all_states(&compiled, &model);
            assert_eq!(after, all_states(&scratch, &model), "seed {seed} step {step}");
            assert!(compiled.rules().iter().eq(scratch.rules().iter()), "seed {seed} step {step}: rules");
            assert!(compiled.prefixes() == scratch.prefixes(), "seed {seed} step {step}: prefixes");
            for node in model.nodes() {
                assert!(
                    compiled.addresses(&node.name).eq(scratch.addresses(&node.name)),
                    "seed {seed} step {step}: addresses on {}",
                    node.name
                );
            }
            for (name, pod) in model.pods() {
                if !compiled.is_changed(&changes, name) {
                    let name = name.to_string();
                    assert_eq!(before.get(&name), after.get(&name), "seed {seed} step {step}: {name} ({})", pod.node);
                    kept += 1;
                }
            }
            updates += 1;
        }
    }
    println!("{updates} updates, {kept} pods whose entries stayed");
    assert!(one.is_some() || (updates > 500 && kept > 100));
}
