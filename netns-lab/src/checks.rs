//! Checks that are no scenario, because they look at more than who reaches whom: open connections, counters, forged
//! addresses. A lab file names them.

use std::net::{IpAddr, Ipv4Addr};

use agent_api::{Counter, Request};
use anyhow::{Context as _, Result};
use datapath_abi::DropReason;

use crate::clients;
use crate::impaired;
use crate::probe::{PATIENCE, SILENCE, connect, datagram, eventually, shout};
use crate::report::Report;
use crate::wire;
use crate::world::World;

/// A check.
#[derive(Debug)]
pub struct Check {
    /// Name, as lab files have it.
    pub name: &'static str,
    /// Kubernetes objects that it begins with.
    pub cluster: &'static str,
    /// Looks whether all is as it should be.
    pub look: fn(&mut World, &mut Report) -> Result<()>,
}

/// Every check.
pub const ALL: &[Check] = &[
    Check { name: "open-connection", cluster: CLUSTER, look: open_connection },
    Check { name: "counters", cluster: CLUSTER, look: counters },
    Check { name: "forged-source", cluster: CLUSTER, look: forged_source },
    Check { name: "wire", cluster: wire::cluster::CLUSTER, look: wire::look },
    Check { name: "wire-sizes", cluster: wire::cluster::CLUSTER, look: wire::sizes::look },
    Check { name: "wire-neighbours", cluster: wire::cluster::CLUSTER, look: wire::neighbours::look },
    Check { name: "wire-simulated", cluster: wire::cluster::CLUSTER, look: wire::simulated::look },
    Check { name: "wire-decoded", cluster: wire::cluster::CLUSTER, look: wire::decoded::look },
    Check { name: "wire-received", cluster: wire::cluster::CLUSTER, look: wire::received::look },
    Check { name: "offloads", cluster: wire::cluster::CLUSTER, look: wire::offloads::look },
    Check { name: "clients", cluster: wire::cluster::CLUSTER, look: clients::look },
    Check { name: "wire-over-ipv6", cluster: wire::cluster::CLUSTER6, look: wire::over_ipv6 },
    Check { name: "impaired", cluster: wire::cluster::CLUSTER, look: impaired::look },
    Check { name: "impaired-over-ipv6", cluster: wire::cluster::CLUSTER6, look: impaired::look },
    Check { name: "path-mtu", cluster: wire::path_mtu::CLUSTER, look: wire::path_mtu::look },
    Check { name: "path-mtu-native", cluster: wire::path_mtu::CLUSTER, look: wire::path_mtu::look_native },
    Check { name: "path-mtu-ipv6", cluster: wire::path_mtu::CLUSTER6, look: wire::path_mtu::look6 },
];

/// Three pods of one node, and one of another; only friends may reach the server.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: left}
spec: {podCIDRs: [10.60.1.0/24, "fd60:0:0:1::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.11}, {type: InternalIP, address: "fd30::11"}]}
---
apiVersion: v1
kind: Node
metadata: {name: right}
spec: {podCIDRs: [10.60.2.0/24, "fd60:0:0:2::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.12}, {type: InternalIP, address: "fd30::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec: {nodeName: left, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, labels: {app: friend}}
spec: {nodeName: left, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far-friend, labels: {app: friend}}
spec: {nodeName: right, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {app: stranger}}
spec: {nodeName: left, containers: [{name: c}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 8080}, {port: 8080, protocol: UDP}]}]
"#;

/// Nobody may reach the server.
const NOBODY: &str = r#"
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}
"#;

const SERVER: &str = "default/server";
const FRIEND: &str = "default/friend";
const FAR_FRIEND: &str = "default/far-friend";
const STRANGER: &str = "default/stranger";
const PORT: u16 = 8080;

/// The cluster with other policies.
fn with(policy: &str) -> String {
    let objects = CLUSTER.split_once("\n---\napiVersion: networking").map_or(CLUSTER, |(objects, _)| objects);
    format!("{objects}{policy}")
}

/// A flow that was allowed is asked again when the policy changes, and a change back lets it go on.
fn open_connection(world: &mut World, report: &mut Report) -> Result<()> {
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        for client in [FRIEND, FAR_FRIEND] {
            let address = world.address(SERVER, ipv6, PORT)?;
            let mut open = connect(world.pod(client)?, world.pod(SERVER)?, address, PATIENCE)?
                .with_context(|| format!("{client} cannot connect over {family}"))?;
            let echoed = open.echo(4_000_000, PATIENCE)?;
            report.equal(format!("{family}: {client}'s connection carries 4 MB and back"), &echoed, &true);
            world.apply(&with(NOBODY))?;
            report.equal(format!("{family}: {client} is cut off by a new policy"), &open.echo(10, SILENCE)?, &false);
            world.apply(CLUSTER)?;
            let again = connect(world.pod(client)?, world.pod(SERVER)?, address, PATIENCE)?;
            report.equal(format!("{family}: {client} connects again when it may"), &again.is_some(), &true);
        }
    }
    world.apply(&with(""))?;
    let address = world.address(SERVER, false, PORT)?;
    let reached = connect(world.pod(STRANGER)?, world.pod(SERVER)?, address, PATIENCE)?;
    report.equal("without policies a stranger gets through", &reached.is_some(), &true);
    Ok(())
}

/// Packets that a node counted under a reason.
fn counted(world: &World, direction: &str, reason: &str) -> Result<u64> {
    let counters: Vec<Counter> = world.agent("left")?.ask(&Request::Metrics {})?;
    let found = counters.iter().filter(|counter| counter.direction == direction && counter.reason == reason);
    Ok(found.map(|counter| counter.packets).sum())
}

/// What goes on and what is dropped is counted, each under its name.
fn counters(world: &mut World, report: &mut Report) -> Result<()> {
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        let address = world.address(SERVER, ipv6, PORT)?;
        let (server, friend) = (world.pod(SERVER)?, world.pod(FRIEND)?);
        let before = counted(world, "egress", "Forwarded")?;
        let echoed = match connect(friend, server, address, PATIENCE)? {
            Some(mut connection) => connection.echo(100_000, PATIENCE)?,
            None => false,
        };
        report.equal(format!("{family}: a friend's connection carries 100 kB and back"), &echoed, &true);
        let answered = datagram(friend, server, address, PATIENCE)?;
        report.equal(format!("{family}: a friend's datagram is answered"), &answered, &true);
        let after = counted(world, "egress", "Forwarded")?;
        let wrong = (after < before + 8).then(|| format!("{before} before, {after} after"));
        report.check(format!("{family}: its packets are counted"), wrong);

        let refused = DropReason::PolicyNoMatch.name();
        let before = counted(world, "ingress", refused)?;
        let silent = connect(world.pod(STRANGER)?, server, address, SILENCE)?.is_none();
        report.equal(format!("{family}: a stranger's connection is met by silence"), &silent, &true);
        let more = counted(world, "ingress", refused)? > before;
        report.equal(format!("{family}: and counted as {refused}"), &more, &true);
    }
    Ok(())
}

/// A pod that takes another address is not heard.
fn forged_source(world: &mut World, report: &mut Report) -> Result<()> {
    let forged = Ipv4Addr::new(10, 60, 1, 200);
    let reason = DropReason::InvalidSourceIp.name();
    let stranger = world.pod(STRANGER)?;
    stranger.ip(&format!("addr add {forged}/32 dev eth0"))?;
    let to = world.address(FRIEND, false, PORT)?;
    let before = counted(world, "egress", reason)?;
    let _ = world.watch().take();
    shout(stranger, IpAddr::V4(forged), to)?;
    let mut heard = Vec::new();
    let told = eventually(|| {
        heard.extend(world.watch().take());
        Ok(heard.iter().any(|drop| drop.event.outcome == reason && drop.event.source.address == forged.to_string()))
    })?;
    report.equal(format!("a forged source address is dropped, and told as {reason}"), &told, &true);
    report.equal("and counted", &(counted(world, "egress", reason)? > before), &true);
    stranger.ip(&format!("addr del {forged}/32 dev eth0"))
}
