//! A cluster on this machine: a namespace for each node and pod, the object on their devices, maps filled by `agent-core`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use agent_core::model::Name;
use agent_core::{Compiled, IdentityAllocator, Limits, LocalEndpoint, Model, Settings, reconcile};
use anyhow::{Context, Result};
use datapath_abi::{
    Addr4, Addr6, CallSlot, Config, Direction, DropReason, Event, EventKind, Hook, Mac, MapId, MetricsEntry, config,
    metrics_index,
};
use datapath_kernel::{LoadOptions, Loaded, RingReader, TcxLink, TcxPoint};
use datapath_maps::TableView;
use zerocopy::{FromBytes, IntoBytes};

use crate::place::Place;

/// Ethernet address of the host side of every pod's veth.
const HOST_MAC: [u8; 6] = [0x02, 0x77, 0, 0, 0, 1];
const HOST_IFINDEX: u32 = 400;
const TUNNEL_IFINDEX: u32 = 401;
const UNDERLAY_IFINDEX: u32 = 402;
/// IANA numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Room for 50 bytes of outer headers in 1500.
const POD_MTU: u32 = 1450;

/// One node.
#[derive(Debug)]
struct Node {
    place: Place,
    endpoints: Vec<LocalEndpoint>,
    object: Loaded,
    events: RingReader,
    /// Programs on devices, as long as these are held.
    _links: Vec<TcxLink>,
}

/// A cluster on this machine.
#[derive(Debug)]
pub struct World {
    model: Model,
    identities: IdentityAllocator,
    /// Dropped before the namespaces: no program outlives its device.
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<Name, Place>,
    _wire: Option<Place>,
}

impl World {
    /// Builds what the manifests say.
    ///
    /// # Errors
    /// Wrong manifests, missing privileges or devices.
    pub fn new(manifests: &str) -> Result<Self> {
        let model = read(manifests)?;
        let mut pods = BTreeMap::new();
        for name in model.pods().keys() {
            pods.insert(name.clone(), Place::new(&name.to_string())?);
        }
        let wire = if model.nodes().len() > 1 { Some(bridge()?) } else { None };
        let mut nodes = BTreeMap::new();
        for number in 0..model.nodes().len() {
            let node = node(&model, number, &pods, wire.as_ref())?;
            nodes.insert(model.nodes()[number].name.clone(), node);
        }
        let mut world = Self { model, identities: IdentityAllocator::default(), nodes, pods, _wire: wire };
        world.reconcile()?;
        Ok(world)
    }

    /// Other objects on the same nodes and pods: what an agent does when it sees a change.
    ///
    /// # Errors
    /// Wrong manifests, or a map refuses.
    pub fn apply(&mut self, manifests: &str) -> Result<()> {
        self.model = read(manifests)?;
        self.reconcile()
    }

    fn reconcile(&mut self) -> Result<()> {
        let compiled = Compiled::new(&self.model, &mut self.identities)?;
        for (name, node) in &mut self.nodes {
            let desired = compiled.desired(name, &node.endpoints)?;
            reconcile(&desired, &Limits::default(), node.object.maps_mut())?;
        }
        Ok(())
    }

    /// Where a pod is, by `NAMESPACE/NAME`.
    ///
    /// # Errors
    /// No such pod.
    pub fn pod(&self, name: &str) -> Result<&Place> {
        let found = self.pods.iter().find(|(known, _)| known.to_string() == name);
        found.map(|(_, place)| place).with_context(|| format!("no pod {name}"))
    }

    /// A pod's address of one family, with a port.
    ///
    /// # Errors
    /// No such pod, or no such address.
    pub fn address(&self, name: &str, ipv6: bool, port: u16) -> Result<SocketAddr> {
        let pod = self.model.pods().values().find(|pod| pod.name.to_string() == name);
        let addresses = pod.with_context(|| format!("no pod {name}"))?.addresses.iter();
        let address = addresses.copied().find(|address| address.is_ipv6() == ipv6);
        Ok(SocketAddr::new(address.with_context(|| format!("{name} has no address of that family"))?, port))
    }

    /// Where a node is.
    ///
    /// # Errors
    /// No such node.
    pub fn node(&self, name: &str) -> Result<&Place> {
        Ok(&self.nodes.get(name).with_context(|| format!("no node {name}"))?.place)
    }

    /// Every node and pod.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.nodes.values().map(|node| &node.place).chain(self.pods.values())
    }

    /// Packets counted at a node under a reason, all CPUs together. 0: forwarded.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counted(&self, node: &str, direction: Direction, reason: u8) -> Result<u64> {
        let node = self.nodes.get(node).with_context(|| format!("no node {node}"))?;
        let counters = TableView::<u32, MetricsEntry>::new(node.object.maps(), MapId::Metrics);
        let each = counters.get_per_cpu(&metrics_index(direction, reason))?.unwrap_or_default();
        Ok(each.iter().map(|counter| counter.packets).sum())
    }

    /// Reasons of the events about dropped TCP and UDP at a node since the last call, in order. (IPv6 stacks talk on every
    /// link, about routers and multicast groups, and the datapath says no.)
    ///
    /// # Errors
    /// A record that is no event.
    pub fn drops(&mut self, node: &str) -> Result<Vec<DropReason>> {
        let node = self.nodes.get_mut(node).with_context(|| format!("no node {node}"))?;
        let mut drops = Vec::new();
        for record in node.events.drain() {
            let event = Event::read_from_bytes(&record).ok().context("a record of another size")?;
            if event.kind == EventKind::Drop as u8 && matches!(event.protocol, TCP | UDP) {
                drops.push(DropReason::from_number(event.code).context("an unknown drop reason")?);
            }
        }
        Ok(drops)
    }
}

fn read(manifests: &str) -> Result<Model> {
    Ok(Model::parse(&[("lab.yaml".to_owned(), manifests.to_owned())], Settings::default())?)
}

/// The wire between nodes: a switch.
fn bridge() -> Result<Place> {
    let wire = Place::new("wire")?;
    wire.ip("link add switch type bridge")?;
    wire.ip("link set switch up")?;
    Ok(wire)
}

fn node(model: &Model, number: usize, pods: &BTreeMap<Name, Place>, wire: Option<&Place>) -> Result<Node> {
    let spec = &model.nodes()[number];
    let place = Place::new(&spec.name)?;
    for setting in ["ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"] {
        place.set(setting, "0")?;
    }
    devices(&place, model, number, wire)?;
    let mut endpoints = Vec::new();
    let here = model.pods().values().filter(|pod| pod.node == spec.name && !pod.host_network);
    for (id, pod) in (1u16..).zip(here) {
        let inside = pods.get(&pod.name).with_context(|| format!("no place for {}", pod.name))?;
        let [high, low] = id.to_be_bytes();
        let mac = [0x02, 0x77, 1, u8::try_from(number)?, high, low];
        let ifindex = 500 + u32::from(id);
        veth(&place, inside, ifindex, mac, &pod.addresses)?;
        endpoints.push(LocalEndpoint { pod: pod.name.clone(), id, ifindex, mac: Mac::from_octets(mac) });
    }
    let settings = settings(model, &spec.addresses, spec.underlay());
    let globals = [(config::SYMBOL, settings.as_bytes())];
    let object = Loaded::open(
        datapath_bytecode::OBJECT,
        &LoadOptions { globals: &globals, max_entries: Some(16_384), ..LoadOptions::default() },
    )?;
    for (slot, program) in CallSlot::ALL {
        object.set_call(MapId::Calls.name(), *slot as u32, program)?;
    }
    let links = attach(&place, &object, &endpoints, wire.is_some())?;
    let events = object.ring(MapId::Events.name())?;
    Ok(Node { place, endpoints, object, events, _links: links })
}

/// The node's own devices: towards its stack, the tunnel, and (with other nodes) the underlay.
fn devices(place: &Place, model: &Model, number: usize, wire: Option<&Place>) -> Result<()> {
    let spec = &model.nodes()[number];
    place.ip(&format!("link add weir_host index {HOST_IFINDEX} arp off type veth peer name weir_net"))?;
    place.ip("link set weir_net up")?;
    place.ip("link set weir_host up")?;
    place
        .ip(&format!("link add weir_vxlan index {TUNNEL_IFINDEX} type vxlan external dstport 8472"))
        .context("a vxlan device in metadata mode")?;
    place.ip(&format!("link set weir_vxlan mtu {POD_MTU} up"))?;
    let device = if let Some(wire) = wire {
        place.ip(&format!(
            "link add eth0 index {UNDERLAY_IFINDEX} type veth peer name port{number} netns {}",
            wire.path()
        ))?;
        wire.ip(&format!("link set port{number} master switch up"))?;
        place.ip("link set eth0 up")?;
        "eth0"
    } else {
        "lo"
    };
    for address in &spec.addresses {
        match address {
            IpAddr::V4(address) => place.ip(&format!("addr add {address}/24 dev {device}"))?,
            IpAddr::V6(address) => place.ip(&format!("addr add {address}/64 dev {device} nodad"))?,
        }
    }
    for prefix in model.nodes().iter().flat_map(|node| &node.pod_cidrs) {
        place.ip(&format!("route add {prefix} dev weir_host mtu {POD_MTU}"))?;
    }
    Ok(())
}

/// A pod's device: every address is behind it, and the datapath answers for all of them.
fn veth(node: &Place, pod: &Place, ifindex: u32, mac: [u8; 6], addresses: &[IpAddr]) -> Result<()> {
    let (gateway, own) = (Mac::from_octets(HOST_MAC), Mac::from_octets(mac));
    node.ip(&format!(
        "link add lxc{ifindex} index {ifindex} address {gateway:?} type veth peer name eth0 address {own:?} netns {}",
        pod.path()
    ))?;
    node.ip(&format!("link set lxc{ifindex} mtu {POD_MTU} up"))?;
    pod.ip(&format!("link set eth0 mtu {POD_MTU} up"))?;
    for address in addresses {
        match address {
            IpAddr::V4(address) => {
                pod.ip(&format!("addr add {address}/32 dev eth0"))?;
                pod.ip("-4 route add default dev eth0")?;
            }
            IpAddr::V6(address) => {
                pod.ip(&format!("addr add {address}/128 dev eth0 nodad"))?;
                pod.ip("-6 route add default dev eth0")?;
            }
        }
    }
    Ok(())
}

/// The node's settings. Ticks per second only stretch timeouts, and a lab is over before any of them.
fn settings(model: &Model, addresses: &[IpAddr], underlay: Option<IpAddr>) -> Config {
    let mut settings = Config::with_defaults(1000);
    settings.host_mac = Mac::from_octets(HOST_MAC);
    settings.host_ifindex = HOST_IFINDEX;
    settings.tunnel_ifindex = TUNNEL_IFINDEX;
    if model.dual_stack() {
        settings.flags |= config::DUAL_STACK;
    }
    for address in addresses.iter().chain(&underlay) {
        match address {
            IpAddr::V4(address) => settings.node4 = Addr4::from_octets(address.octets()),
            IpAddr::V6(address) => settings.node6 = Addr6::from_octets(address.octets()),
        }
    }
    settings
}

fn attach(place: &Place, object: &Loaded, endpoints: &[LocalEndpoint], underlay: bool) -> Result<Vec<TcxLink>> {
    let mut wanted =
        vec![(HOST_IFINDEX, TcxPoint::Egress, Hook::FromHost), (TUNNEL_IFINDEX, TcxPoint::Ingress, Hook::FromOverlay)];
    if underlay {
        wanted.push((UNDERLAY_IFINDEX, TcxPoint::Ingress, Hook::FromNetdev));
        wanted.push((UNDERLAY_IFINDEX, TcxPoint::Egress, Hook::ToNetdev));
    }
    for endpoint in endpoints {
        wanted.push((endpoint.ifindex, TcxPoint::Ingress, Hook::FromContainer));
        wanted.push((endpoint.ifindex, TcxPoint::Egress, Hook::ToContainer));
    }
    let _inside = place.enter()?;
    let mut links = Vec::new();
    for (ifindex, point, hook) in wanted {
        let link = TcxLink::attach(object.program(hook.name())?, ifindex, point);
        links.push(link.with_context(|| format!("{} on device {ifindex} (TCX needs Linux 6.6)", hook.name()))?);
    }
    Ok(links)
}
