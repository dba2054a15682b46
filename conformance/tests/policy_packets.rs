//! Random clusters with policies of every kind: real packets through the bytecode of every hop must end as the oracle
//! reads in the API texts.
//!
//! `WEIR_SEED=N` runs one seed, `WEIR_CLUSTERS=N` more or fewer clusters.

use std::net::IpAddr;

use agent_core::policy::{Direction, PolicySettings};
use agent_core::{Model, Settings};
use conformance::oracle::generate::{self, PORTS, Random};
use conformance::oracle::{Oracle, Outcome, Question, Subject};
use simulator::cluster::probe::{Family, Party, Probe, Protocol};
use simulator::cluster::{Cluster, Options};

/// Hosts outside that have a way into the cluster and back.
const OUTSIDE: [&str; 4] = ["203.0.113.7", "203.0.113.200", "198.51.100.1", "2001:db8::7"];
/// Flows per cluster.
const FLOWS: usize = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn protocol(random: &mut Random) -> Protocol {
    let ports: Vec<u16> = PORTS.iter().copied().filter(|port| *port > 0).collect();
    let port = ports[random.below(ports.len())];
    match random.below(7) {
        0 => Protocol::Udp(port),
        1 => Protocol::Sctp(port),
        2 => Protocol::Icmp(None),
        _ => Protocol::Tcp(port),
    }
}

/// Number and port as policies see them.
fn l4(protocol: Protocol, ipv4: bool) -> (u8, u16) {
    match (protocol, ipv4) {
        (Protocol::Tcp(port), _) => (6, port),
        (Protocol::Udp(port), _) => (17, port),
        (Protocol::Sctp(port), _) => (132, port),
        (Protocol::Icmp(_), true) => (1, 8),
        (Protocol::Icmp(_), false) => (58, 128),
    }
}

/// Whether both policies let a flow pass.
fn allowed(model: &Model, from: IpAddr, to: IpAddr, protocol: Protocol) -> bool {
    let settings = PolicySettings::default();
    let oracle = Oracle { model, settings: &settings };
    let pod = |address: IpAddr| model.pods().values().find(|pod| !pod.host_network && pod.addresses.contains(&address));
    let (number, port) = l4(protocol, from.is_ipv4());
    let passes = |own: IpAddr, peer: IpAddr, direction: Direction| {
        pod(own).is_none_or(|pod| {
            let question = Question { subject: Subject::Pod(pod), direction, peer, protocol: number, port };
            oracle.ask(&question).outcome == Outcome::Allow
        })
    };
    passes(from, to, Direction::Egress) && passes(to, from, Direction::Ingress)
}

#[test]
fn packets_end_as_the_apis_say() {
    let one = number("WEIR_SEED");
    let clusters = number("WEIR_CLUSTERS").unwrap_or(150);
    let (mut asked, mut passed) = (0, 0);
    for seed in one.map_or(1..=clusters, |seed| seed..=seed) {
        let mut random = Random::new(seed);
        let documents = generate::documents(&mut random).join("---\n");
        let settings = match seed % 3 {
            0 => Settings { ipv6: false, ..Settings::default() },
            1 => Settings { ipv4: false, ..Settings::default() },
            _ => Settings::default(),
        };
        let model = Model::parse(&[("cluster.yaml".to_owned(), documents.clone())], settings).unwrap();
        let mut cluster = Cluster::new(model.clone(), Options { tunnel: seed % 2 == 0, ..Options::default() }).unwrap();
        let mut parties: Vec<Party> = model.pods().keys().cloned().map(Party::Pod).collect();
        let pods = parties.len();
        parties.extend(model.nodes().iter().map(|node| Party::Node(node.name.clone())));
        parties.extend(OUTSIDE.iter().map(|text| Party::Address(text.parse().unwrap())));
        for _ in 0..FLOWS {
            // One end at least is a pod.
            let (a, b) = (random.below(pods), random.below(parties.len()));
            let (from, to) = if random.one_in(2) { (a, b) } else { (b, a) };
            let family = if random.one_in(2) { Family::Ipv4 } else { Family::Ipv6 };
            let (from, to) = (cluster.endpoint(&parties[from]).unwrap(), cluster.endpoint(&parties[to]).unwrap());
            let protocol = protocol(&mut random);
            let Some(probe) = Probe::between(&from, &to, protocol, Some(family)) else { continue };
            if probe.source == probe.destination || probe.from == probe.to {
                continue;
            }
            let expected = allowed(&model, probe.source, probe.destination, protocol);
            let outcome = cluster.probe(&probe).unwrap();
            asked += 1;
            passed += usize::from(expected);
            assert_eq!(
                outcome.allowed(),
                expected,
                "seed {seed}: {} > {} {protocol}: {outcome:?}\n{documents}",
                probe.source,
                probe.destination
            );
        }
    }
    println!("{asked} flows, {passed} allowed");
    assert!(one.is_some() || (passed * 10 > asked && passed * 10 < asked * 9));
}
