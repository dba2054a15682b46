//! Random clusters with policies of every kind and with settings of every kind: real packets through the bytecode of every
//! hop must end as the oracle reads in the API texts, stopped by whom it says, and audited if it says so.
//!
//! A difference is shrunk and printed as a scenario file; that this works is tested with misreadings made on purpose.
//! `WEIR_SEED=N` runs one seed, `WEIR_CLUSTERS=N` more or fewer clusters. A million flows:
//! `WEIR_CLUSTERS=1750 cargo test --release -p conformance --test policy_packets -- --nocapture packets`
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use agent_core::policy::Direction;
use agent_core::{Model, Settings};
use conformance::oracle::flow::{Flow, Said};
use conformance::oracle::found::{scenario, smallest};
use conformance::oracle::generate::{self, PORTS, Random};
use conformance::oracle::{Answer, Oracle, Outcome};
use simulator::cluster::probe::{Family, Party, Probe, Protocol};
use simulator::cluster::scenario::Config;
use simulator::cluster::why::{Ended, Said as Spoken, Spoke, Why};
use simulator::cluster::{Cluster, Options, tunnel};

/// Hosts outside that have a way into the cluster and back.
const OUTSIDE: [&str; 5] = ["203.0.113.7", "203.0.113.200", "198.51.100.1", "2001:db8::7", "2001:db8:1::1"];
/// Flows per cluster that are tried; some have no family in common, or were there before.
const FLOWS: usize = 1_600;

/// A cluster and how it is run.
#[derive(Clone, Debug)]
struct Case {
    documents: Vec<String>,
    config: Config,
}

/// A flow, by names.
#[derive(Clone, Debug)]
struct Ends {
    from: Party,
    to: Party,
    protocol: Protocol,
    family: Family,
}

/// Changes what the oracle reads: as the documents are, but for misreadings on purpose.
type Reading = fn(&str) -> String;

fn as_written(text: &str) -> String {
    text.to_owned()
}

impl Case {
    fn random(seed: u64, random: &mut Random) -> Self {
        let documents = generate::documents(random);
        let policy = generate::settings(random);
        let tunnel = [Some(tunnel::Protocol::Vxlan), None, Some(tunnel::Protocol::Geneve), None][random.below(4)];
        let config = Config { tunnel, ipv4: seed % 3 != 1, ipv6: !seed.is_multiple_of(3), policy };
        Self { documents, config }
    }

    fn model(&self, reading: Reading) -> Option<Model> {
        let settings = Settings { ipv4: self.config.ipv4, ipv6: self.config.ipv6 };
        Model::parse(&[("cluster.yaml".to_owned(), reading(&self.documents.join("---\n")))], settings).ok()
    }

    fn cluster(&self) -> Option<Cluster> {
        let policy = self.config.policy.clone();
        let options = Options { tunnel: self.config.tunnel, verdicts: true, policy, ..Options::default() };
        Cluster::new(self.model(as_written)?, options).ok()
    }

    /// What differs about one flow.
    fn ask(&self, ends: &Ends, reading: Reading) -> Option<Difference> {
        let mut cluster = self.cluster()?;
        let probe = cluster.probe_between(&ends.from, &ends.to, ends.protocol, Some(ends.family)).ok()?;
        let said = self.read(&self.model(reading)?, &probe);
        let why = cluster.probe_why(&probe).ok()?;
        (!agrees(&said, &why)).then_some(Difference { said, why })
    }

    fn read(&self, model: &Model, probe: &Probe) -> Said {
        let (protocol, port) = l4(probe.protocol, probe.source.is_ipv4());
        let flow = Flow { from: probe.source, to: probe.destination, protocol, port };
        Oracle { model, settings: &self.config.policy }.flow(&flow)
    }
}

/// What the oracle says, and what the packets did.
#[derive(Clone, Copy, Debug)]
struct Difference {
    said: Said,
    why: Why,
}

fn spoke(answer: Option<Answer>) -> Option<Spoke> {
    answer.map(|answer| match (answer.outcome, answer.audit) {
        (Outcome::Deny, _) => Spoke::Deny,
        (Outcome::Redirect, _) => Spoke::Redirect,
        (Outcome::Allow, true) => Spoke::Audit,
        (Outcome::Allow, false) => Spoke::Allow,
    })
}

/// Whether packets ended as they should, and each policy said what it should.
fn agrees(said: &Said, why: &Why) -> bool {
    use datapath_abi::DropReason::{PolicyDeny, PolicyNoMatch, ProxyLookupFailed};
    let of = |said: Option<Spoken>| said.map(|said| said.spoke);
    let ended = match said.outcome() {
        Outcome::Allow => why.ended == Ended::Allowed,
        Outcome::Deny => [PolicyDeny, PolicyNoMatch].iter().any(|reason| why.ended == Ended::Dropped(Some(*reason))),
        Outcome::Redirect => why.ended == Ended::Dropped(Some(ProxyLookupFailed)),
    };
    ended && of(why.egress) == spoke(said.egress) && of(why.ingress) == spoke(said.ingress)
}

fn protocol(random: &mut Random, family: Family) -> Protocol {
    let ports: Vec<u16> = PORTS.iter().copied().filter(|port| *port > 0).collect();
    let port = ports[random.below(ports.len())];
    let types: [u8; 5] = if family == Family::Ipv4 { [0, 3, 8, 11, 13] } else { [1, 3, 8, 128, 129] };
    match random.below(12) {
        0 | 1 => Protocol::Udp(port),
        2 | 3 => Protocol::Sctp(port),
        4 => Protocol::Icmp(None),
        5 => Protocol::Icmp(Some(types[random.below(types.len())])),
        _ => Protocol::Tcp(port),
    }
}

/// Number and port as policies see them.
fn l4(protocol: Protocol, ipv4: bool) -> (u8, u16) {
    match (protocol, ipv4) {
        (Protocol::Tcp(port), _) => (6, port),
        (Protocol::Udp(port), _) => (17, port),
        (Protocol::Sctp(port), _) => (132, port),
        (Protocol::Icmp(kind), true) => (1, u16::from(kind.unwrap_or(8))),
        (Protocol::Icmp(kind), false) => (58, u16::from(kind.unwrap_or(128))),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[derive(Debug, Default)]
struct Count {
    flows: usize,
    /// By how the flow ended, and whether an end of it was a node with policies.
    by: BTreeMap<(Outcome, bool, bool), usize>,
}

/// Sends random flows through the cluster of a seed; the first that ends otherwise than read.
fn run(seed: u64, reading: Reading, count: &mut Count) -> Result<(), Box<(Case, Ends)>> {
    let mut random = Random::new(seed);
    let case = Case::random(seed, &mut random);
    let model = case.model(as_written).unwrap();
    let Some(read) = case.model(reading) else { return Ok(()) };
    let mut cluster = case.cluster().unwrap();
    let mut parties: Vec<Party> = model.pods().keys().cloned().map(Party::Pod).collect();
    parties.extend(model.nodes().iter().map(|node| Party::Node(node.name.clone())));
    let own = parties.len();
    parties.extend(OUTSIDE.iter().map(|text| Party::Address(text.parse::<IpAddr>().unwrap())));
    let found: Vec<_> = parties.iter().map(|party| cluster.endpoint(party).unwrap()).collect();
    let mut seen = BTreeSet::new();
    for _ in 0..FLOWS {
        // One end at least is in the cluster.
        let (a, b) = (random.below(own), random.below(parties.len()));
        let (from, to) = if random.one_in(2) { (a, b) } else { (b, a) };
        let family = if random.one_in(2) { Family::Ipv4 } else { Family::Ipv6 };
        let protocol = protocol(&mut random, family);
        let Some(probe) = Probe::between(&found[from], &found[to], protocol, Some(family)) else { continue };
        let is_new = seen.insert((probe.source, probe.destination, protocol));
        if probe.source == probe.destination || probe.from == probe.to || !is_new {
            continue;
        }
        let said = case.read(&read, &probe);
        let why = cluster.probe_why(&probe).unwrap();
        if !agrees(&said, &why) {
            let ends = Ends { from: parties[from].clone(), to: parties[to].clone(), protocol, family };
            return Err(Box::new((case, ends)));
        }
        let is_node = |party: &Party| matches!(party, Party::Node(_));
        let nodes =
            (is_node(&parties[from]) && said.egress.is_some()) || (is_node(&parties[to]) && said.ingress.is_some());
        count.flows += 1;
        *count.by.entry((said.outcome(), said.audited(), nodes)).or_default() += 1;
    }
    Ok(())
}

/// The smallest cluster in which a flow still ends otherwise than read, and how.
fn shrink(case: &Case, ends: &Ends, reading: Reading) -> (Case, Difference) {
    let with = |documents: &[String]| Case { documents: documents.to_vec(), config: case.config.clone() };
    let documents = smallest(case.documents.clone(), |documents| with(documents).ask(ends, reading).is_some());
    let mut case = with(&documents);
    // Settings that are not needed go, too.
    let usual = Config::default();
    let plain: [fn(&mut Config, &Config); 8] = [
        |own, usual| own.tunnel = usual.tunnel,
        |own, usual| (own.ipv4, own.ipv6) = (usual.ipv4, usual.ipv6),
        |own, usual| own.policy.enforcement = usual.policy.enforcement,
        |own, usual| own.policy.cluster.clone_from(&usual.policy.cluster),
        |own, usual| own.policy.identity_labels = usual.policy.identity_labels.clone(),
        |own, _| own.policy.cidrs_match_pods = false,
        |own, _| own.policy.cidrs_match_nodes = false,
        |own, _| own.policy.names.clear(),
    ];
    for change in plain {
        let mut other = case.clone();
        change(&mut other.config, &usual);
        if other.ask(ends, reading).is_some() {
            case = other;
        }
    }
    let difference = case.ask(ends, reading).unwrap();
    (case, difference)
}

/// A scenario that expects what was read.
fn write(seed: u64, case: &Case, ends: &Ends, difference: &Difference) -> String {
    let at = |direction: Direction| if direction == Direction::Ingress { "ingress" } else { "egress" };
    let expect = match (difference.said.outcome(), difference.said.stopped_at(), difference.why.ended) {
        (Outcome::Redirect, Some(direction), _) => format!("{{drop: ProxyLookupFailed, at: {}}}", at(direction)),
        // Stopped by somebody else: the reason is then that of the wrong one.
        (Outcome::Deny, Some(direction), Ended::Dropped(Some(reason))) => {
            format!("{{drop: {}, at: {}}}", reason.name(), at(direction))
        }
        (Outcome::Deny, ..) | (Outcome::Redirect, None, _) => "deny".to_owned(),
        (Outcome::Allow, ..) => "allow".to_owned(),
    };
    let port = match ends.protocol {
        Protocol::Tcp(port) | Protocol::Udp(port) | Protocol::Sctp(port) => format!("port: {port}, "),
        Protocol::Icmp(Some(kind)) => format!("type: {kind}, "),
        Protocol::Icmp(None) => String::new(),
    };
    let family = if ends.family == Family::Ipv4 { "IPv4" } else { "IPv6" };
    let step = format!(
        "probe: {{from: \"{}\", to: \"{}\", protocol: {}, {port}family: {family}, expect: {expect}}}",
        ends.from,
        ends.to,
        ends.protocol.name(),
    );
    scenario(&format!("seed {seed}"), "found by policy_packets", &case.config, &[step], &case.documents)
}

fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("weir-conformance-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// How many of the scenario's probes end otherwise than it says, as `weir-sim run` runs it.
fn failures(name: &str, text: &str) -> u64 {
    let path = folder().join(name);
    std::fs::write(&path, text).unwrap();
    let loaded = simulator::cluster::scenario::load(&path).unwrap();
    let report = simulator::cluster::scenario::run(&loaded, &Options::default(), false);
    std::fs::remove_file(&path).unwrap();
    assert!(report.error.is_none() && report.probes == 1, "{report:?}\n{text}");
    report.failed
}

#[test]
fn packets_end_as_the_apis_say() {
    let one = number("WEIR_SEED");
    let last = one.unwrap_or_else(|| number("WEIR_CLUSTERS").unwrap_or(60));
    let next = AtomicU64::new(one.unwrap_or(1));
    let stop = AtomicBool::new(false);
    let work = || {
        let mut count = Count::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > last || stop.load(Ordering::Relaxed) {
                return count;
            }
            if let Err(found) = run(seed, as_written, &mut count) {
                let (case, ends) = *found;
                stop.store(true, Ordering::Relaxed);
                let (case, difference) = shrink(&case, &ends, as_written);
                let text = write(seed, &case, &ends, &difference);
                let path = folder().join(format!("seed-{seed}.yaml"));
                std::fs::write(&path, &text).unwrap();
                panic!("seed {seed}: {difference:?}\n{text}\nweir-sim run {}", path.display());
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let counts: Vec<Count> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut all = Count::default();
    for count in counts {
        all.flows += count.flows;
        for (kind, number) in count.by {
            *all.by.entry(kind).or_default() += number;
        }
    }
    println!("seeds {} to {last}: {} flows, no difference; {:?}", one.unwrap_or(1), all.flows, all.by);
    if one.is_none() && last >= 50 {
        // Every kind of end is met, by pods and by nodes, none of them hardly ever.
        for outcome in [Outcome::Allow, Outcome::Deny, Outcome::Redirect] {
            for (audited, nodes) in [(false, false), (false, true), (true, false), (true, true)] {
                let met = all.by.get(&(outcome, audited, nodes)).copied().unwrap_or(0);
                // Only what passes is audited; policies of nodes know no proxies.
                let possible = match outcome {
                    Outcome::Allow => true,
                    Outcome::Deny => !audited,
                    Outcome::Redirect => !audited && !nodes,
                };
                assert!(!possible || met * 4_000 > all.flows, "{outcome:?}, audited {audited}, nodes {nodes}: {met}");
            }
        }
    }
}

/// A comparison that finds nothing is worth what it would find: the oracle is made to misread, one rule at a time.
#[test]
fn a_misreading_is_found_made_small_and_written_as_a_scenario_that_fails() {
    let misreadings: [(&str, Reading); 4] = [
        ("deny-is-accept", |text| text.replace("action: Deny", "action: Accept")),
        ("not-in-is-in", |text| text.replace("operator: NotIn", "operator: In")),
        ("ranges-end-early", |text| text.replace("endPort: 8080", "endPort: 8079")),
        ("nodes-are-open", |text| text.replace("nodeSelector: {}", "nodeSelector: {matchLabels: {no: such}}")),
    ];
    for (name, reading) in misreadings {
        let (seed, found) = (1..=400)
            .find_map(|seed| run(seed, reading, &mut Count::default()).err().map(|found| (seed, found)))
            .unwrap_or_else(|| panic!("{name}: nothing found"));
        let (case, ends) = *found;
        let whole = case.documents.concat().len();
        let (case, difference) = shrink(&case, &ends, reading);
        let small = case.documents.concat().len();
        let text = write(seed, &case, &ends, &difference);
        println!("{name}: seed {seed}, {whole} bytes, then {small}\n{text}");
        assert!(small * 3 < whole, "{name}: {small} of {whole} bytes\n{text}");
        assert_eq!(failures(&format!("{name}.yaml"), &text), 1, "{name}\n{text}");
        // Read as it is written, the same file holds.
        let mut cluster = case.cluster().unwrap();
        let probe = cluster.probe_between(&ends.from, &ends.to, ends.protocol, Some(ends.family)).unwrap();
        let said = case.read(&case.model(as_written).unwrap(), &probe);
        let text = write(seed, &case, &ends, &Difference { said, why: cluster.probe_why(&probe).unwrap() });
        assert_eq!(failures(&format!("{name}-as-written.yaml"), &text), 0, "{name}\n{text}");
    }
    std::fs::remove_dir(folder()).unwrap();
}
