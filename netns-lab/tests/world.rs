//! A world with its agents, as root; otherwise the skip line.
#![expect(clippy::unwrap_used, reason = "test code: a failing helper is a failing test")]

use std::path::Path;

use agent_api::{Endpoint, Request};
use agent_core::{Model, Settings};
use datapath_kernel::skip_line;
use netns_lab::node;
use netns_lab::probe::{PATIENCE, SILENCE, connect};
use netns_lab::prober::{Ask, Prober, Seen, Simulated};
use netns_lab::world::World;
use simulator::cluster::{Cluster, Options, Party, Protocol};

const CLUSTER: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: n}}
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec: {nodeName: n, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: n, containers: [{name: c}]}
"#;

const CLOSED: &str = r#"
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{port: 81}]}]}
"#;

fn world(manifests: &str) -> Option<World> {
    if let Some(line) = skip_line() {
        println!("{line}");
        return None;
    }
    node::use_program(Path::new(env!("CARGO_BIN_EXE_netns-lab")));
    Some(World::new(manifests).unwrap())
}

/// One probe of a simulated cluster, asked in a world that has other objects.
fn ask(world: &World, manifests: &str, protocol: Protocol) -> (Simulated, Seen) {
    let model = Model::parse(&[("test.yaml".to_owned(), manifests.to_owned())], Settings::default()).unwrap();
    let mut cluster = Cluster::new(model, Options::default()).unwrap();
    let party = |name: &str| Party::Pod(agent_core::model::Name::new("default", name));
    let probe = cluster.probe_between(&party("client"), &party("server"), protocol, None).unwrap();
    let outcome = cluster.probe(&probe).unwrap();
    let (from, to) = (world.pod("default/client").unwrap(), world.pod("default/server").unwrap());
    let seen = Prober::default().probe(Ask { probe: &probe, from, to, silence: false }, world.watch()).unwrap();
    (Simulated::new(&outcome, |_| "n".to_owned()), seen)
}

#[test]
fn a_kernel_that_does_something_else_than_the_simulator_is_noticed() {
    let closed = [CLUSTER, CLOSED].concat();
    let Some(mut world) = world(&closed) else { return };
    let protocols = [Protocol::Tcp(80), Protocol::Udp(80), Protocol::Sctp(80), Protocol::Icmp(None)];
    for protocol in protocols {
        let (simulated, seen) = ask(&world, &closed, protocol);
        assert!(matches!(&seen, Seen::Dropped { reason, leg: 0, .. } if reason == "PolicyNoMatch"), "{seen}");
        assert!(simulated.is(&seen), "{protocol}: {} and {seen}", simulated.0);
        let (simulated, seen) = ask(&world, CLUSTER, protocol);
        assert!(!simulated.is(&seen), "{protocol}: {} and {seen}", simulated.0);
    }
    world.apply(CLUSTER).unwrap();
    for protocol in protocols {
        let (simulated, seen) = ask(&world, &closed, protocol);
        assert!(!simulated.is(&seen), "{protocol}: {} and {seen}", simulated.0);
        let (simulated, seen) = ask(&world, CLUSTER, protocol);
        assert!(simulated.is(&seen) && seen == Seen::Allowed, "{protocol}: {} and {seen}", simulated.0);
    }
}

#[test]
fn an_agent_can_be_killed_and_started_under_an_open_connection() {
    let Some(world) = world(&[CLUSTER, CLOSED].concat()) else { return };
    let (client, server) = (world.pod("default/client").unwrap(), world.pod("default/server").unwrap());
    let address = |port| world.address("default/server", false, port).unwrap();
    let mut open = connect(client, server, address(81), PATIENCE).unwrap().unwrap();
    let agent = world.agent("n").unwrap();
    let before: Vec<Endpoint> = agent.ask(&Request::EndpointList {}).unwrap();
    assert!(agent.pid().is_some() && agent.resident().unwrap() > 1 << 20);
    agent.kill().unwrap();
    assert!(agent.pid().is_none() && agent.ask::<Vec<Endpoint>>(&Request::EndpointList {}).is_err());
    // While it is away, what it had said stays in force.
    assert!(open.echo(100_000, PATIENCE).unwrap());
    assert!(connect(client, server, address(80), SILENCE).unwrap().is_none());
    world.start_agent("n").unwrap();
    assert!(open.echo(100_000, PATIENCE).unwrap());
    let after: Vec<Endpoint> = agent.ask(&Request::EndpointList {}).unwrap();
    assert_eq!(before, after);
    // The next one is heard, too.
    let (_, seen) = ask(&world, &[CLUSTER, CLOSED].concat(), Protocol::Tcp(80));
    assert!(matches!(seen, Seen::Dropped { .. }), "{seen}");
}
