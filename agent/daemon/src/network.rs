//! The node's own network: tunnel, host device, routes to pods, and what of it other nodes are reached by.
//!
//! | `routing-mode` | pods of other nodes | routes |
//! |---|---|---|
//! | `tunnel` | through `weir_vxlan` or `weir_geneve`; identity and node are in each packet's metadata | every pod prefix leads to `weir_host` |
//! | `native` | as they are; identity follows from the address | own prefixes to `weir_host`, others to their nodes (`direct-routes`) or wherever the network says |

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_core::Prefix;
use agent_core::model::Node;

use crate::agent::{Agent, GATEWAY_MAC};
use crate::net::Addresses;
use crate::net::routes::{Route, Way};
use crate::settings::{RoutingMode, TunnelProtocol};
use crate::{Failure, sysctl};

/// Bytes that a tunnel adds over IPv4, and over IPv6; VXLAN and Geneve (without options) alike.
const OVERHEAD: [u32; 2] = [50, 70];
/// Bytes, where there is no device to other nodes.
const ETHERNET_MTU: u32 = 1500;

/// What was made of the node's own network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Bytes of an IP packet in a pod, at most.
    pub mtu: u32,
    /// The gateway of each family.
    pub gateways: Vec<IpAddr>,
    /// Number of the tunnel device; 0: there is none.
    pub tunnel: u32,
    /// Number of the host device.
    pub host: u32,
    /// Devices to other nodes.
    pub underlay: BTreeMap<String, u32>,
    /// Why there is no route to pods of other nodes.
    pub unreachable: Vec<String>,
}

impl Agent {
    /// Tunnel, host device, routes: looks at all of it, and changes what is not as it should be. Returns whether the node's
    /// network is another than before.
    ///
    /// # Errors
    /// The first thing that cannot be had.
    pub(crate) async fn make_network(&mut self, own: &Node, nodes: &[Node]) -> Result<bool, Failure> {
        let (links, addresses) = (self.net.links().await?, self.net.addresses().await?);
        let mut underlay = BTreeMap::new();
        for name in &self.settings.devices {
            let link = links.get(name).ok_or_else(|| Failure::input(format!("there is no device `{name}`")))?;
            underlay.insert(name.clone(), link.index);
        }
        if self.settings.devices.is_empty() {
            let holders = own.addresses.iter().flat_map(|own| devices_with(&addresses, *own));
            let holders: BTreeSet<u32> = holders.collect();
            let found = links.iter().filter(|(_, link)| link.index != 1 && holders.contains(&link.index));
            underlay.extend(found.map(|(name, link)| (name.clone(), link.index)));
            if underlay.is_empty() && nodes.len() > 1 {
                let own: Vec<String> = own.addresses.iter().map(ToString::to_string).collect();
                let own = own.join(" or ");
                return Err(Failure::input(format!(
                    "no device has this node's address {own}: give it one, or set `devices`"
                )));
            }
        }
        let tunnelled = self.settings.routing_mode == RoutingMode::Tunnel;
        let smallest = underlay.keys().filter_map(|name| links.get(name)).map(|link| link.mtu).min();
        let over_ipv6 = own.underlay().is_some_and(|address| address.is_ipv6());
        let overhead = if tunnelled { OVERHEAD[usize::from(over_ipv6)] } else { 0 };
        let room = smallest.unwrap_or(ETHERNET_MTU).saturating_sub(overhead);
        let mtu = if self.settings.mtu == 0 { room } else { self.settings.mtu };
        // Without a tunnel the device goes when no program refers to it any more.
        let tunnel = if tunnelled { self.make_tunnel(mtu).await? } else { 0 };
        let host = self.net.ensure_host(mtu).await?;
        let gateways: Vec<IpAddr> = own.gateways().collect();
        for gateway in &gateways {
            for device in [host, tunnel] {
                let wanted = device == host || (gateway.is_ipv4() && tunnelled);
                if wanted && !addresses.contains(&(*gateway, device)) {
                    self.net.ensure_address(device, *gateway).await?;
                }
            }
        }
        let source = |to: Prefix| {
            let usable = |address: &&IpAddr| {
                address.is_ipv4() == to.is_ipv4() && devices_with(&addresses, **address).next().is_some()
            };
            own.addresses.iter().find(usable).copied()
        };
        let (mut routes, mut unreachable) = (Vec::new(), Vec::new());
        for node in nodes {
            for &to in &node.pod_cidrs {
                let way = if tunnelled || node.name == own.name {
                    Way::Device(host)
                } else if !self.settings.direct_routes {
                    continue;
                } else if let Some(gateway) = node.addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4()) {
                    Way::Gateway(*gateway)
                } else {
                    let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
                    unreachable.push(format!("route to {to}: node `{}` has no {family} address", node.name));
                    continue;
                };
                routes.push(Route { to, way, source: source(to) });
            }
        }
        unreachable.extend(self.net.ensure_routes(&routes).await?);
        for name in underlay.keys() {
            for (setting, value) in sysctl::underlay_device(name)? {
                self.change_sysctl(&setting, value)?;
            }
        }
        let made = Network { mtu, gateways, tunnel, host, underlay, unreachable };
        if self.network.as_ref() == Some(&made) {
            return Ok(false);
        }
        for line in &made.unreachable {
            tracing::warn!("{line}");
        }
        self.network = Some(made);
        Ok(true)
    }

    async fn make_tunnel(&self, mtu: u32) -> Result<u32, Failure> {
        let protocol = self.settings.tunnel_protocol;
        let made = self.net.ensure_tunnel(protocol, self.settings.port(), mtu, GATEWAY_MAC).await;
        made.map_err(|error| match error.errno() {
            Some(rustix::io::Errno::OPNOTSUPP) => {
                let (name, other) = match protocol {
                    TunnelProtocol::Vxlan => ("vxlan", "tunnel-protocol = \"geneve\""),
                    TunnelProtocol::Geneve => ("geneve", "tunnel-protocol = \"vxlan\""),
                };
                Failure::input(format!(
                    "this kernel has no {name} devices: load its module `{name}`, or set {other} or routing-mode = \"native\" on all nodes"
                ))
            }
            Some(_) | None => error.into(),
        })
    }

    /// Changes a setting of the node that outlives weir's devices; its value before is remembered first.
    pub(crate) fn change_sysctl(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        if let Some(before) = sysctl::get(name)? {
            self.state.change(|saved| {
                saved.sysctls.entry(name.to_owned()).or_insert(before);
            })?;
            sysctl::set(name, value)?;
        }
        Ok(())
    }
}

/// Numbers of the devices that have an address.
fn devices_with(addresses: &Addresses, address: IpAddr) -> impl Iterator<Item = u32> {
    addresses.range((address, 0)..=(address, u32::MAX)).map(|(_, device)| *device)
}
