//! The kernel alone: namespaces, veth pairs, routes, its VXLAN. No program of weir's, no policy.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};

use super::{PORT, Pair};
use crate::place::Place;

/// Bytes of an IP packet inside VXLAN over IPv4 on Ethernet, as weir's pods have there.
const INNER_MTU: u32 = 1450;

/// Namespaces that the kernel alone connects.
#[derive(Debug)]
pub struct Baseline {
    client: Place,
    server: Place,
    address: SocketAddr,
    _between: Vec<Place>,
}

impl Baseline {
    /// Two namespaces and one that routes between them.
    ///
    /// # Errors
    /// No permission.
    pub fn routed() -> Result<Self> {
        let (client, router, server) = (Place::new("client")?, Place::new("router")?, Place::new("server")?);
        forwards(&router)?;
        behind(&client, &router, "left", "10.9.1", 1500)?;
        behind(&server, &router, "right", "10.9.2", 1500)?;
        Self::of(client, server, "10.9.2.2", vec![router])
    }

    /// Two nodes with a namespace behind each; with `tunnel` the nodes route through a VXLAN device.
    ///
    /// # Errors
    /// No permission.
    pub fn two_nodes(tunnel: bool) -> Result<Self> {
        let (client, server) = (Place::new("client")?, Place::new("server")?);
        let (one, two, switch) = nodes()?;
        let mtu = if tunnel { INNER_MTU } else { 1500 };
        for (node, pod, own, other, peer) in [(&one, &client, 1, 2, "192.0.2.2"), (&two, &server, 2, 1, "192.0.2.1")] {
            forwards(node)?;
            behind(pod, node, "pod", &format!("10.9.{own}"), mtu)?;
            if tunnel {
                vxlan(node, own, peer)?;
                node.ip(&format!("route add 10.9.{other}.0/24 via 10.8.0.{other}"))?;
            } else {
                node.ip(&format!("route add 10.9.{other}.0/24 via {peer}"))?;
            }
        }
        Self::of(client, server, "10.9.2.2", vec![one, two, switch])
    }

    /// Two namespaces with a VXLAN device each.
    ///
    /// # Errors
    /// No permission.
    pub fn vxlan() -> Result<Self> {
        let (client, server, switch) = nodes()?;
        vxlan(&client, 1, "192.0.2.2")?;
        vxlan(&server, 2, "192.0.2.1")?;
        Self::of(client, server, "10.8.0.2", vec![switch])
    }

    fn of(client: Place, server: Place, address: &str, between: Vec<Place>) -> Result<Self> {
        let address: IpAddr = address.parse().context("an address")?;
        Ok(Self { client, server, address: SocketAddr::new(address, PORT), _between: between })
    }

    /// Who talks to whom.
    pub(super) fn pair(&self) -> Pair<'_> {
        Pair { client: &self.client, server: &self.server, address: self.address }
    }
}

fn forwards(place: &Place) -> Result<()> {
    place.set("ipv4/ip_forward", "1")
}

/// A namespace behind a router: `.2` and `.1` of a /24.
fn behind(place: &Place, router: &Place, device: &str, prefix: &str, mtu: u32) -> Result<()> {
    router.ip_all(&format!(
        "link add name {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\naddr add {prefix}.1/24 dev {device}\nlink set {device} up",
        place.path()
    ))?;
    place.ip_all(&format!("addr add {prefix}.2/24 dev eth0\nlink set eth0 up\nroute add default via {prefix}.1"))
}

/// Two nodes on a switch: 192.0.2.1 and 192.0.2.2.
fn nodes() -> Result<(Place, Place, Place)> {
    let (one, two, switch) = (Place::new("node-1")?, Place::new("node-2")?, Place::new("switch")?);
    switch.ip_all("link add switch type bridge\nlink set switch up")?;
    for (number, node) in [(1, &one), (2, &two)] {
        switch.ip_all(&format!(
            "link add port{number} type veth peer name eth0 netns {}\nlink set port{number} master switch up",
            node.path()
        ))?;
        node.ip_all(&format!("addr add 192.0.2.{number}/24 dev eth0\nlink set eth0 up"))?;
    }
    Ok((one, two, switch))
}

fn vxlan(node: &Place, own: u8, peer: &str) -> Result<()> {
    node.ip_all(&format!(
        "link add vxlan0 mtu {INNER_MTU} type vxlan id 42 remote {peer} dstport 8472 dev eth0\naddr add 10.8.0.{own}/24 dev vxlan0\nlink set vxlan0 up"
    ))
}
