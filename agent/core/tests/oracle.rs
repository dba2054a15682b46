//! Random small clusters: the maps, asked as the datapath asks them, must say what the API's text says.
//!
//! The oracle below reads policies object by object and knows neither identities nor tries.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::fmt::Write as _;
use std::net::IpAddr;

use agent_core::desired::Op;
use agent_core::model::{
    NetworkPolicy, PeerSelector, Pod, PolicyPeer, PolicyPort, PortSelector, Protocol, read_objects,
};
use agent_core::{Direction, Model, Plan, Settings, Snapshot};
use datapath_maps::{MapStore, MemoryMaps, UpdateMode};
use support::Cluster;

/// A small generator (xorshift64*), so that a seed is all that a failure needs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next()).unwrap() % count
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const APPS: [&str; 3] = ["web", "api", "db"];
/// Block and what may be cut out of it.
const BLOCKS: [(&str, &[&str]); 14] = [
    ("0.0.0.0/0", &["10.0.0.0/8", "10.244.1.0/24", "203.0.113.0/24", "192.168.0.12/32"]),
    ("10.0.0.0/8", &["10.244.1.0/30", "10.244.2.0/24", "10.244.1.3/32"]),
    ("10.244.1.0/24", &["10.244.1.2/31", "10.244.1.4/32"]),
    ("10.244.1.0/30", &["10.244.1.2/32"]),
    ("10.244.1.3/32", &[]),
    ("192.168.0.0/16", &["192.168.0.11/32"]),
    ("192.168.0.12/32", &[]),
    ("203.0.0.0/8", &["203.0.113.0/24", "203.0.113.7/32"]),
    ("203.0.113.0/24", &["203.0.113.7/32", "203.0.113.4/30"]),
    ("203.0.113.7/32", &[]),
    ("::/0", &["fd00::/8", "2001:db8::/32"]),
    ("fd00::/8", &["fd00:10:244:1::/64", "fd00:10:244:2::3/128"]),
    ("fd00:10:244:1::/64", &["fd00:10:244:1::2/127"]),
    ("2001:db8::/32", &["2001:db8::1/128"]),
];
const PORTS: [u16; 11] = [1, 79, 80, 81, 99, 443, 1023, 1024, 8080, 8443, 65_535];
const OUTSIDE: [&str; 7] =
    ["203.0.113.7", "203.0.113.5", "203.0.114.1", "8.8.8.8", "2001:db8::1", "2001:db8::2", "2600::1"];

fn selector(random: &mut Random, keys: &[(&str, &[&str])]) -> String {
    let (key, values) = keys[random.below(keys.len())];
    let value = random.pick(values);
    match random.below(7) {
        0 => "{}".to_owned(),
        1 | 2 => format!("{{matchLabels: {{{key}: {value}}}}}"),
        3 => {
            format!("{{matchExpressions: [{{key: {key}, operator: In, values: [{value}, {}]}}]}}", random.pick(values))
        }
        4 => format!("{{matchExpressions: [{{key: {key}, operator: NotIn, values: [{value}]}}]}}"),
        5 => format!("{{matchExpressions: [{{key: {key}, operator: Exists}}]}}"),
        _ => format!("{{matchExpressions: [{{key: {key}, operator: DoesNotExist}}]}}"),
    }
}

const POD_KEYS: &[(&str, &[&str])] = &[("app", &APPS), ("tier", &["front", "back"])];
const NAMESPACE_KEYS: &[(&str, &[&str])] = &[("team", &["a", "b"]), ("kubernetes.io/metadata.name", &NAMESPACES)];

fn peer(random: &mut Random) -> String {
    match random.below(5) {
        0 => format!("{{podSelector: {}}}", selector(random, POD_KEYS)),
        1 => format!("{{namespaceSelector: {}}}", selector(random, NAMESPACE_KEYS)),
        2 => {
            let pods = selector(random, POD_KEYS);
            format!("{{podSelector: {pods}, namespaceSelector: {}}}", selector(random, NAMESPACE_KEYS))
        }
        _ => {
            let (block, holes) = BLOCKS[random.below(BLOCKS.len())];
            let holes: Vec<&str> = holes.iter().copied().filter(|_| random.one_in(3)).collect();
            format!("{{ipBlock: {{cidr: \"{block}\", except: [{}]}}}}", quoted(&holes))
        }
    }
}

fn quoted(items: &[&str]) -> String {
    items.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
}

fn port(random: &mut Random) -> String {
    let protocol = random.pick(&["TCP", "UDP", "SCTP"]);
    match random.below(5) {
        0 => format!("{{protocol: {protocol}}}"),
        1 => format!("{{protocol: {protocol}, port: {}}}", PORTS[random.below(PORTS.len())]),
        2 => {
            let (a, b) = (PORTS[random.below(PORTS.len())], PORTS[random.below(PORTS.len())]);
            format!("{{protocol: {protocol}, port: {}, endPort: {}}}", a.min(b), a.max(b))
        }
        _ => format!("{{protocol: {protocol}, port: {}}}", random.pick(&["http", "dns", "none"])),
    }
}

fn rules(random: &mut Random, peers: &str) -> String {
    let mut text = String::new();
    for _ in 0..random.below(4) {
        let from: Vec<String> = (0..random.below(4)).map(|_| peer(random)).collect();
        let ports: Vec<String> = (0..random.below(3)).map(|_| port(random)).collect();
        writeln!(text, "  - {{{peers}: [{}], ports: [{}]}}", from.join(", "), ports.join(", ")).unwrap();
    }
    if text.is_empty() { " []\n".to_owned() } else { format!("\n{text}") }
}

fn cluster(random: &mut Random) -> String {
    let mut text = String::new();
    for namespace in NAMESPACES {
        if !random.one_in(4) {
            let team = random.pick(&["a", "b"]);
            writeln!(
                text,
                "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{team: {team}}}}}"
            )
            .unwrap();
        }
    }
    for index in 0..2 + random.below(7) {
        let app = random.pick(&APPS);
        let ports = random.pick(&[
            "[{name: http, containerPort: 80}, {name: dns, protocol: UDP, containerPort: 99}]",
            "[{name: http, containerPort: 8080}, {name: dns, containerPort: 443}]",
            "[{name: http, containerPort: 80}]",
            "[]",
        ]);
        let tier =
            if random.one_in(2) { format!(", tier: {}", random.pick(&["front", "back"])) } else { String::new() };
        let host = if random.one_in(8) { ", hostNetwork: true" } else { "" };
        writeln!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{index}, namespace: {}, labels: {{app: {app}{tier}}}}}\n\
             spec: {{nodeName: {}{host}, containers: [{{name: c, ports: {ports}}}]}}",
            random.pick(&NAMESPACES),
            random.pick(&["node-1", "node-2"]),
        )
        .unwrap();
    }
    for index in 0..random.below(6) {
        write!(
            text,
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: np{index}, namespace: {}}}\n\
             spec:\n  podSelector: {}\n",
            random.pick(&NAMESPACES),
            selector(random, POD_KEYS),
        )
        .unwrap();
        let types = random.pick(&["", "[]", "[Ingress]", "[Egress]", "[Ingress, Egress]"]);
        if !types.is_empty() {
            writeln!(text, "  policyTypes: {types}").unwrap();
        }
        if !random.one_in(4) {
            write!(text, "  ingress:{}", rules(random, "from")).unwrap();
        }
        if !random.one_in(4) {
            write!(text, "  egress:{}", rules(random, "to")).unwrap();
        }
    }
    text
}

/// What the API's text says about one direction. `peer_pod`: the pod that has the peer's address, if any.
fn says(
    model: &Model,
    direction: Direction,
    subject: &Pod,
    peer: IpAddr,
    peer_pod: Option<&Pod>,
    protocol: u8,
    number: u16,
) -> bool {
    let selects = |policy: &&NetworkPolicy| {
        let isolates = match direction {
            Direction::Ingress => policy.isolates_ingress,
            Direction::Egress => policy.isolates_egress,
        };
        isolates && policy.meta.namespace == subject.name.namespace && policy.subject.matches(&subject.labels)
    };
    let own_node = model.node(&subject.node).unwrap();
    if direction == Direction::Ingress && own_node.addresses.contains(&peer) {
        return true;
    }
    let mut isolated = false;
    for policy in model.policies().values().filter(selects) {
        isolated = true;
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        for rule in rules {
            let peers =
                rule.peers.is_empty() || rule.peers.iter().any(|item| is_peer(model, policy, item, peer, peer_pod));
            let named = match direction {
                Direction::Ingress => Some(subject),
                Direction::Egress => peer_pod,
            };
            let ports = rule.ports.is_empty() || rule.ports.iter().any(|item| is_port(item, named, protocol, number));
            if peers && ports {
                return true;
            }
        }
    }
    !isolated
}

fn is_peer(model: &Model, policy: &NetworkPolicy, item: &PolicyPeer, peer: IpAddr, pod: Option<&Pod>) -> bool {
    match &item.selects {
        PeerSelector::Block(block) => {
            block.prefix.contains(peer) && !block.except.iter().any(|hole| hole.contains(peer))
        }
        PeerSelector::Pods { namespaces, pods } => pod.is_some_and(|pod| {
            let namespace = match namespaces {
                None => pod.name.namespace == policy.meta.namespace,
                Some(selector) => selector.matches(&model.namespaces()[&pod.name.namespace]),
            };
            namespace && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
        }),
    }
}

fn is_port(item: &PolicyPort, named: Option<&Pod>, protocol: u8, number: u16) -> bool {
    item.protocol.number() == protocol
        && match &item.ports {
            PortSelector::All => true,
            PortSelector::Range(first, last) => (*first..=*last).contains(&number),
            PortSelector::Named(name) => named.is_some_and(|pod| {
                pod.ports.iter().any(|port| {
                    port.name.as_ref() == Some(name) && port.protocol == item.protocol && port.port == number
                })
            }),
        }
}

fn check(seed: u64) -> (usize, usize) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let text = cluster(&mut random);
    let settings = Settings { ipv4: true, ipv6: true };
    let settings = match seed % 3 {
        0 => settings,
        1 => Settings { ipv6: false, ..settings },
        _ => Settings { ipv4: false, ..settings },
    };
    let cluster = if random.one_in(2) {
        Cluster::with(&text, settings)
    } else {
        // The same cluster, but other objects, identities and entries were there before.
        let earlier = self::cluster(&mut random);
        let mut cluster = Cluster::with(&earlier, settings);
        cluster.delete(&earlier);
        cluster.apply(&self::cluster(&mut random));
        cluster.apply(&earlier);
        let objects: Vec<_> = cluster.model.objects().iter().map(agent_core::model::Object::key).collect();
        cluster.apply(&text);
        let wanted: Vec<_> = read_objects(&support::file(&text)).unwrap().iter().map(|object| object.key()).collect();
        let others: Vec<_> = objects.into_iter().filter(|key| !wanted.contains(key)).collect();
        cluster.model.delete(&others).unwrap();
        cluster.sync();
        cluster
    };
    let model = &cluster.model;
    let pods: Vec<&Pod> = model.pods().values().filter(|pod| !pod.host_network).collect();
    let mut peers: Vec<(IpAddr, Option<&Pod>)> = Vec::new();
    for pod in &pods {
        peers.extend(pod.addresses.iter().map(|address| (*address, Some(*pod))));
    }
    for node in model.nodes() {
        peers.extend(node.addresses.iter().map(|address| (*address, None)));
    }
    peers.extend(OUTSIDE.iter().map(|text| (text.parse().unwrap(), None)));
    let (mut asked, mut allowed) = (0, 0);
    for subject in &pods {
        for &own in &subject.addresses {
            for &(peer, peer_pod) in peers.iter().filter(|(peer, _)| peer.is_ipv4() == own.is_ipv4()) {
                if peer == own {
                    continue;
                }
                let own_node = model.node(&subject.node).unwrap().addresses.contains(&peer);
                for protocol in Protocol::ALL.map(Protocol::number).into_iter().chain([1]) {
                    for port in PORTS {
                        let said = |direction| says(model, direction, subject, peer, peer_pod, protocol, port);
                        let ingress = cluster.ingress(peer, own, protocol, port).is_ok();
                        let egress = cluster.egress(own, peer, protocol, port).is_ok();
                        let context =
                            || format!("seed {seed}: {} {own}, {peer}, {protocol}/{port}\n{text}", subject.name);
                        assert_eq!(ingress, said(Direction::Ingress), "ingress {}", context());
                        // All addresses of the own node are one identity: what one of them may, all may.
                        if own_node {
                            assert!(egress || !said(Direction::Egress), "egress to own node {}", context());
                        } else {
                            assert_eq!(egress, said(Direction::Egress), "egress {}", context());
                        }
                        asked += 2;
                        allowed += usize::from(ingress) + usize::from(egress);
                    }
                }
            }
        }
    }
    (asked, allowed)
}

#[test]
fn the_maps_say_what_the_api_says() {
    let (mut asked, mut allowed) = (0, 0);
    for seed in 1..=300 {
        let (a, b) = check(seed);
        asked += a;
        allowed += b;
    }
    // The clusters are neither all open nor all closed.
    assert!(allowed * 10 > asked && allowed * 10 < asked * 9, "{allowed} of {asked} allowed");
}

/// Both verdicts of one node's maps about a flow that the node sees at `own`'s end.
fn verdicts(cluster: &Cluster, maps: &MemoryMaps, own: IpAddr, peer: IpAddr, port: u16) -> Option<[bool; 2]> {
    let endpoint = support::owner(maps, own).filter(|entry| entry.endpoint != 0)?.endpoint;
    let identity = cluster.identity(maps, peer);
    Some([0, 1].map(|direction| support::decide(maps, endpoint, direction, identity, support::TCP, port).is_ok()))
}

#[test]
fn between_any_two_steps_of_a_plan_what_is_allowed_before_and_after_is_allowed() {
    let (mut steps, mut compared) = (0, 0);
    for seed in 1..=60_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (old, new) = (cluster(&mut random), cluster(&mut random));
        let mut cluster = Cluster::new(&old);
        let old_pods = cluster.model.pods().clone();
        let keys: Vec<_> = read_objects(&support::file(&old)).unwrap().iter().map(|object| object.key()).collect();
        let wanted = read_objects(&support::file(&new)).unwrap();
        let others: Vec<_> = keys.into_iter().filter(|key| wanted.iter().all(|object| object.key() != *key)).collect();
        let mut stores = std::mem::take(&mut cluster.nodes);
        cluster.model.delete(&others).unwrap();
        cluster.model.apply(wanted).unwrap();
        cluster.sync();
        // Ends that are the same pods before and after, and some that are none.
        let stay = cluster.model.pods().values().filter(|pod| {
            old_pods.get(&pod.name).is_some_and(|old| old.node == pod.node && old.addresses == pod.addresses)
        });
        let mut ends: Vec<IpAddr> = stay.flat_map(|pod| pod.addresses.clone()).collect();
        ends.extend(OUTSIDE.iter().map(|text| text.parse::<IpAddr>().unwrap()));
        for (node, store) in &mut stores {
            let pairs = || {
                ends.iter().flat_map(|own| ends.iter().map(move |peer| (*own, *peer))).filter(|(own, peer)| own != peer)
            };
            let ask = |maps: &MemoryMaps| -> Vec<Option<[bool; 2]>> {
                let ports = [80, 443, 8080];
                pairs().flat_map(|(own, peer)| ports.map(|port| verdicts(&cluster, maps, own, peer, port))).collect()
            };
            let (before, after) = (ask(store), ask(&cluster.nodes[node]));
            let plan = Plan::between(&Snapshot::read(store).unwrap(), &cluster.desired(node));
            for op in plan.ops() {
                match op {
                    Op::Put { map, key, value } => store.update(*map, key, value, UpdateMode::Any).unwrap(),
                    Op::Delete { map, key } => assert!(store.delete(*map, key).unwrap()),
                }
                for ((now, before), after) in ask(store).iter().zip(&before).zip(&after) {
                    if let (Some(before), Some(after)) = (before, after) {
                        let now = now.unwrap_or_else(|| panic!("seed {seed}: an endpoint is gone after {op:?}"));
                        for direction in [0, 1] {
                            let kept = now[direction] || !before[direction] || !after[direction];
                            assert!(kept, "seed {seed}: closed after {op:?}\n{old}\n=>\n{new}");
                            compared += 1;
                        }
                    }
                }
                steps += 1;
            }
            assert!(Plan::between(&Snapshot::read(store).unwrap(), &cluster.desired(node)).is_empty());
        }
    }
    assert!(steps > 1_000 && compared > 100_000, "{steps} steps, {compared} comparisons");
}
