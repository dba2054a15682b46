//! Probes through two nodes that run the committed object.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use agent_core::model::Name;
use agent_core::{Model, Settings};
use datapath_abi::DropReason;
use simulator::cluster::{Cluster, EngineKind, Options, Outcome, Party, Protocol};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x, labels: {app: a}}
spec: {nodeName: node-1, containers: [{name: c, image: i, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: x, labels: {app: b}}
spec: {nodeName: node-2, containers: [{name: c, image: i, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: x, labels: {app: c}}
spec: {nodeName: node-1, containers: [{name: c, image: i}]}
";

const DENY: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: x}
spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress]}
";

fn cluster(text: &str, engine: EngineKind) -> Cluster {
    let model = Model::parse(&[("test.yaml".to_owned(), text.to_owned())], Settings::default()).unwrap();
    Cluster::new(model, Options { engine, ..Options::default() }).unwrap()
}

fn pod(name: &str) -> Party {
    Party::Pod(Name::new("x", name))
}

fn all_parties() -> Vec<Party> {
    vec![pod("a"), pod("b"), pod("c"), Party::World, Party::Node("node-1".into()), Party::Node("node-2".into())]
}

#[test]
fn without_policies_everybody_reaches_everybody_in_both_families() {
    use simulator::cluster::Family;
    for engine in [EngineKind::Checked, EngineKind::Rbpf] {
        let mut cluster = cluster(PODS, engine);
        let mut hooks = std::collections::BTreeSet::new();
        for family in [Family::Ipv4, Family::Ipv6] {
            for from in all_parties() {
                for to in all_parties() {
                    for protocol in [Protocol::Tcp(80), Protocol::Udp(53), Protocol::Sctp(9), Protocol::Icmp(None)] {
                        let probe = cluster.probe_between(&from, &to, protocol, Some(family)).unwrap();
                        cluster.start_trail();
                        let outcome = cluster.probe(&probe).unwrap();
                        let trail = cluster.take_trail();
                        assert_eq!(outcome, Outcome::Allowed, "{from} > {to} {protocol} {family:?}: {trail:#?}");
                        hooks.extend(trail.iter().filter_map(|hop| hop.hook));
                    }
                }
            }
        }
        assert!(hooks.iter().eq(datapath_abi::Hook::ALL), "every hook took part: {hooks:?}");
    }
}

#[test]
fn a_remote_probe_crosses_the_tunnel_with_the_senders_identity() {
    let mut cluster = cluster(PODS, EngineKind::Checked);
    let probe = cluster.probe_between(&pod("a"), &pod("b"), Protocol::Tcp(80), None).unwrap();
    cluster.start_trail();
    assert_eq!(cluster.probe(&probe).unwrap(), Outcome::Allowed);
    let trail = cluster.take_trail();
    let hooks: Vec<&str> =
        trail.iter().filter(|hop| hop.leg == 0).filter_map(|hop| hop.hook).map(datapath_abi::Hook::name).collect();
    assert_eq!(hooks, ["from_container", "to_netdev", "from_netdev", "from_overlay"]);
    assert!(trail.iter().any(|hop| hop.before.contains("/ vxlan vni 256 / ipv4 10.244.1.2 > 10.244.2.2 ttl 64")));
}

#[test]
fn a_default_deny_drops_at_the_receivers_node_with_its_reason() {
    let mut cluster = cluster(&format!("{PODS}{DENY}"), EngineKind::Rbpf);
    let probe = cluster.probe_between(&pod("a"), &pod("b"), Protocol::Tcp(80), None).unwrap();
    let Outcome::Dropped { leg: 0, drop } = cluster.probe(&probe).unwrap() else { panic!("not dropped") };
    assert_eq!((drop.node, drop.reason, drop.at()), (1, Some(DropReason::PolicyNoMatch), "ingress"));
    let back = cluster.probe_between(&pod("b"), &pod("a"), Protocol::Tcp(80), None).unwrap();
    assert_eq!(cluster.probe(&back).unwrap(), Outcome::Allowed);
    let host = cluster.probe_between(&Party::Node("node-2".into()), &pod("b"), Protocol::Tcp(80), None).unwrap();
    assert_eq!(cluster.probe(&host).unwrap(), Outcome::Allowed, "the node reaches its own pods");
    let other = cluster.probe_between(&Party::Node("node-1".into()), &pod("b"), Protocol::Tcp(80), None).unwrap();
    assert!(!cluster.probe(&other).unwrap().allowed(), "other nodes are no exception");
}

#[test]
fn the_matrix_is_the_same_however_many_clusters_are_asked_at_once() {
    use simulator::cluster::matrix::{Cell, Question, declared_ports, endpoints};
    let model = Model::parse(&[("test.yaml".to_owned(), format!("{PODS}{DENY}"))], Settings::default()).unwrap();
    let options = Options::default();
    let parties = endpoints(&model);
    let ports = [declared_ports(&model), vec![Protocol::Icmp(None), Protocol::Udp(53)]].concat();
    let ask = |threads| {
        let (model, options, parties, ports) = (&model, &options, &parties, &ports);
        let question = Question { model, options, parties, ports, wanted: None, class: None, family: None, threads };
        question.ask(&|_| {}).unwrap()
    };
    let (one, three) = (ask(1), ask(3));
    assert_eq!(one.matrix, three.matrix);
    assert_eq!(one.runs, three.runs);
    let letters: Vec<String> =
        one.matrix.tables[0].rows.iter().map(|row| row.iter().copied().map(Cell::letter).collect()).collect();
    // a, b, c, world: only b is closed.
    assert_eq!(letters, [".011", "1.11", "10.1", "101."]);
    assert_eq!(one.matrix.tables.len(), 3);
}

#[test]
fn a_pod_that_is_deleted_and_made_again_gets_a_device_and_the_policies_that_hold() {
    use agent_core::model::{ObjectKey, read_objects};
    let mut cluster = cluster(&format!("{PODS}{DENY}"), EngineKind::Checked);
    let before: Vec<(u32, u16)> = cluster.nics().iter().map(|nic| (nic.ifindex, nic.endpoint)).collect();
    let removed = cluster.delete(&[ObjectKey { kind: "Pod", name: Name::new("x", "b") }]).unwrap();
    assert_eq!(removed, 1);
    assert!(cluster.probe_between(&pod("a"), &pod("b"), Protocol::Tcp(80), None).is_err());
    let text = PODS.split("---").nth(1).unwrap().to_owned();
    cluster.apply(read_objects(&[("again.yaml".to_owned(), text)]).unwrap()).unwrap();
    let after: Vec<(u32, u16)> = cluster.nics().iter().map(|nic| (nic.ifindex, nic.endpoint)).collect();
    assert_eq!(before, after);
    let probe = cluster.probe_between(&pod("a"), &pod("b"), Protocol::Tcp(80), None).unwrap();
    assert!(!cluster.probe(&probe).unwrap().allowed());
}
