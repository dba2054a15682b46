//! One pair of a class answers for all of it: verdicts and reasons must be those of asking every pair.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

mod support;

use agent_core::Model;
use simulator::cluster::matrix::{Question, endpoints_with_nodes};
use simulator::cluster::scenario::Config;
use simulator::cluster::{Family, Options, Protocol, tunnel};
use simulator::report::alike::{Side, Version};
use simulator::report::class::Classes;
use support::{Random, pods, policy};

/// `WEIR_SEED=N` runs one seed.
fn seeds() -> Vec<u64> {
    let one = std::env::var("WEIR_SEED").ok().and_then(|text| text.parse().ok());
    one.map_or_else(|| (1..=120).collect(), |seed| vec![seed])
}

/// Pods twice or three times, under other names, so that there are some that are alike.
fn replicas(documents: &mut Vec<String>, random: &mut Random) {
    let originals: Vec<String> = documents.iter().filter(|text| text.contains("kind: Pod")).cloned().collect();
    for copy in 0..1 + random.below(2) {
        for text in &originals {
            let (head, tail) = text.split_once("{name: n").unwrap();
            documents.push(format!("{head}{{name: r{copy}{tail}"));
        }
    }
}

#[test]
fn a_pair_of_a_class_answers_for_all_of_it() {
    let (mut all_probes, mut sent) = (0, 0);
    for seed in seeds() {
        let mut random = Random(seed);
        let mut documents = pods(&mut random);
        documents.truncate(5);
        replicas(&mut documents, &mut random);
        documents.extend((0..random.below(6)).map(|number| policy(number, &mut random)));
        let tunnel = [Some(tunnel::Protocol::Vxlan), Some(tunnel::Protocol::Geneve), None];
        let tunnel = tunnel[usize::try_from(random.below(3)).unwrap()];
        let mut config = Config { tunnel, ..Config::default() };
        match random.below(3) {
            0 => config.ipv4 = false,
            1 => config.ipv6 = false,
            _ => {}
        }
        config.policy.host_firewall = random.below(2) == 0;
        config.policy.cidrs_match_pods = random.below(2) == 0;
        let family = [None, None, Some(Family::Ipv4), Some(Family::Ipv6)];
        let family = family[usize::try_from(random.below(4)).unwrap()];
        let model = Model::parse(&[("c.yaml".to_owned(), documents.join("---\n"))], config.families()).unwrap();
        let parties = endpoints_with_nodes(&model);
        let version = Version::new(model, config).unwrap();
        let states = version.states(&parties);
        let classes = Classes::new(Side { version: &version, states: &states }, &parties, family);
        let class = |from: usize, to: usize| classes.of(from, to);
        let options = version.config.options(Options { verdicts: true, ..Options::default() });
        let question = Question {
            model: &version.model,
            options: &options,
            parties: &parties,
            ports: &[Protocol::Tcp(80), Protocol::Tcp(81), Protocol::Udp(80), Protocol::Icmp(None)],
            wanted: None,
            class: None,
            family,
            threads: 1,
        };
        let all = question.ask(&|_| {}).unwrap();
        let some = Question { class: Some(&class), threads: 2, ..question }.ask(&|_| {}).unwrap();
        assert!(all.matrix == some.matrix, "seed {seed}\n{}", documents.join("---\n"));
        all_probes += all.probes;
        sent += some.probes;
    }
    println!("{sent} probes in place of {all_probes}");
    assert!(sent * 10 < all_probes * 9, "{sent} probes in place of {all_probes}");
}
