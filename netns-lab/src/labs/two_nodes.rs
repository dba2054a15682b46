//! Pods of two nodes: their packets cross the underlay in VXLAN, whose VNI is the sender's identity.

use anyhow::Result;
use datapath_abi::metrics::FORWARDED;
use datapath_abi::{Direction, DropReason};

use crate::probe::{PATIENCE, SILENCE, connect, datagram};
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
kind: Node
metadata: {name: right}
spec: {podCIDRs: [10.60.2.0/24, "fd60:0:0:2::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.12}, {type: InternalIP, address: "fd30::12"}]}
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
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec: {nodeName: right, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 8080}, {port: 8080, protocol: UDP}]}]
"#;

const SERVER: &str = "default/server";
const FRIEND: &str = "default/friend";
const STRANGER: &str = "default/stranger";

pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        let address = world.address(SERVER, ipv6, 8080)?;
        let (server, friend) = (world.pod(SERVER)?, world.pod(FRIEND)?);
        let before = world.counted("right", Direction::Ingress, FORWARDED)?;
        let echoed = match connect(friend, server, address, PATIENCE)? {
            Some(mut connection) => connection.echo(4_000_000, PATIENCE)?,
            None => false,
        };
        report.equal(format!("{family}: a friend's connection carries 4 MB and back"), &echoed, &true);
        let after = world.counted("right", Direction::Ingress, FORWARDED)?;
        report.check(
            format!("{family}: its packets were counted on the server's node"),
            (after < before + 6).then(|| format!("{before} before, {after} after")),
        );
        report.equal(
            format!("{family}: a friend's datagram is answered"),
            &datagram(friend, server, address, PATIENCE)?,
            &true,
        );
        report.equal(format!("{family}: the sender's node dropped nothing"), &world.drops("left")?, &Vec::new());
        report.equal(format!("{family}: the server's node dropped nothing"), &world.drops("right")?, &Vec::new());

        let silent = connect(world.pod(STRANGER)?, world.pod(SERVER)?, address, SILENCE)?.is_none();
        report.equal(format!("{family}: a stranger's connection is met by silence"), &silent, &true);
        let drops = world.drops("right")?;
        let reason = !drops.is_empty() && drops.iter().all(|drop| *drop == DropReason::PolicyNoMatch);
        report.check(
            format!("{family}: dropped on the server's node, by policy"),
            (!reason).then(|| format!("{drops:?}")),
        );
        let reached =
            connect(world.pod(FRIEND)?, world.pod(STRANGER)?, world.address(STRANGER, ipv6, 9000)?, PATIENCE)?;
        report.equal(format!("{family}: pods of one node reach each other beside it"), &reached.is_some(), &true);
    }
    Ok(())
}
