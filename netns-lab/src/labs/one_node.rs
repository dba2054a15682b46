//! Three pods of one node.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use datapath_abi::metrics::FORWARDED;
use datapath_abi::{Direction, DropReason};

use crate::probe::{PATIENCE, SILENCE, connect, datagram, eventually, shout};
use crate::report::Report;
use crate::world::World;

pub const CLUSTER: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: left}
spec: {podCIDRs: [10.60.1.0/24, "fd60:0:0:1::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.11}, {type: InternalIP, address: "fd30::11"}]}
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
metadata: {name: stranger, labels: {app: stranger}}
spec: {nodeName: left, containers: [{name: c}]}
"#;

pub const FRIENDS_ONLY: &str = r#"
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 8080}, {port: 8080, protocol: UDP}]}]
"#;

const NOBODY: &str = r#"
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}
"#;

const SERVER: &str = "default/server";
const FRIEND: &str = "default/friend";
const STRANGER: &str = "default/stranger";

pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        let address = world.address(SERVER, ipv6, 8080)?;
        let (server, friend) = (world.pod(SERVER)?, world.pod(FRIEND)?);
        let before = world.counted("left", Direction::Egress, FORWARDED)?;
        let echoed = match connect(friend, server, address, PATIENCE)? {
            Some(mut connection) => connection.echo(100_000, PATIENCE)?,
            None => false,
        };
        report.equal(format!("{family}: a friend's connection carries 100 kB and back"), &echoed, &true);
        let after = world.counted("left", Direction::Egress, FORWARDED)?;
        report.check(
            format!("{family}: its packets were counted"),
            (after < before + 6).then(|| format!("{before} before, {after} after")),
        );
        report.equal(
            format!("{family}: a friend's datagram is answered"),
            &datagram(friend, server, address, PATIENCE)?,
            &true,
        );
        report.equal(format!("{family}: nothing was dropped so far"), &world.drops("left")?, &Vec::new());

        let dropped = |world: &World| world.counted("left", Direction::Ingress, DropReason::PolicyNoMatch as u8);
        let before = dropped(world)?;
        let silent = connect(world.pod(STRANGER)?, world.pod(SERVER)?, address, SILENCE)?.is_none();
        report.equal(format!("{family}: a stranger's connection is met by silence"), &silent, &true);
        report.equal(format!("{family}: counted as PolicyNoMatch"), &(dropped(world)? > before), &true);
        let drops = world.drops("left")?;
        let reason = !drops.is_empty() && drops.iter().all(|drop| *drop == DropReason::PolicyNoMatch);
        report.check(format!("{family}: told by events"), (!reason).then(|| format!("{drops:?}")));

        let node = world.node("left")?;
        let reached = connect(node, world.pod(SERVER)?, address, PATIENCE)?.is_some();
        report.equal(format!("{family}: the pod's own node reaches it"), &reached, &true);
    }
    policy_changes(world, report)?;
    forged_source(world, report)
}

/// A flow that was allowed is asked again when the policy changes, and a change back lets it go on.
fn policy_changes(world: &mut World, report: &mut Report) -> Result<()> {
    let address = world.address(SERVER, false, 8080)?;
    let mut open = connect(world.pod(FRIEND)?, world.pod(SERVER)?, address, PATIENCE)?.context("no connection")?;
    world.apply(&[CLUSTER, NOBODY].concat())?;
    report.equal("an open connection is cut off by a new policy", &open.echo(10, SILENCE)?, &false);
    world.apply(CLUSTER)?;
    let reached = connect(world.pod(STRANGER)?, world.pod(SERVER)?, address, PATIENCE)?.is_some();
    report.equal("without policies a stranger gets through", &reached, &true);
    world.drops("left")?;
    Ok(())
}

/// A pod that takes another address is not heard.
fn forged_source(world: &mut World, report: &mut Report) -> Result<()> {
    let forged = Ipv4Addr::new(10, 60, 1, 200);
    let stranger = world.pod(STRANGER)?;
    stranger.ip(&format!("addr add {forged}/32 dev eth0"))?;
    let to = world.address(SERVER, false, 8080)?;
    let dropped = |world: &World| world.counted("left", Direction::Egress, DropReason::InvalidSourceIp as u8);
    let before = dropped(world)?;
    shout(stranger, IpAddr::V4(forged), to)?;
    let counted = eventually(|| Ok(dropped(world)? > before))?;
    report.equal("a forged source address is dropped and counted as InvalidSourceIp", &counted, &true);
    Ok(())
}
