//! A cluster on this machine: a namespace for each node and pod, a real agent on each node, real devices between them, and
//! the world outside.
//!
//! ```text
//!  pod  pod        pod          what the agents make: devices of pods, weir_vxlan, weir_host, programs, maps
//!    \  |           |
//!    node-1       node-2        what a lab makes: namespaces, `eth0` of nodes, the switch, the outside
//!      eth0         eth0
//!        \          /
//!      switch: a bridge for each segment
//!             |
//!      outside: a router between segments, and the owner of every address that is nobody's
//! ```
//!
//! The outside knows which node has which pods, as a router of a cluster does; nodes have their default route there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;

use agent_api::{Endpoint, Request};
use agent_core::model::{Name, Node as NodeSpec, read_documents};
use agent_core::{Model, Settings};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use datapath_abi::MapId;
use datapath_kernel::KernelMap;
use datapath_maps::MapSpec;

use crate::manifest;
use crate::node::NodeAgent;
use crate::place::Place;
use crate::registry::{self, Run};
use crate::topology::Topology;
use crate::watch::Watch;

/// Addresses of the outside on every segment: no node's.
const GATEWAY4: &str = "169.254.77.1";
const GATEWAY6: &str = "fe80::1";

/// An object that means nothing.
const MARK: &str = "\n---\n{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: weir-lab-mark}}\n";

/// A node: its namespace and its agent.
#[derive(Debug)]
struct Node {
    agent: NodeAgent,
    place: Place,
    spec: NodeSpec,
}

/// A pod with a network of its own.
#[derive(Debug)]
struct Pod {
    place: Place,
    node: String,
    addresses: Vec<IpAddr>,
}

/// A cluster on this machine.
#[derive(Debug)]
pub struct World {
    model: Model,
    topology: Topology,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<Name, Pod>,
    outside: Place,
    outside_has: BTreeSet<IpAddr>,
    switch: Place,
    watch: Arc<Watch>,
    generation: u64,
    /// Objects that the agents have.
    objects: usize,
    /// Dropped last: it removes everything.
    run: Run,
}

impl World {
    /// Builds what the manifests say, on one segment.
    ///
    /// # Errors
    /// Wrong manifests, missing privileges or devices.
    pub fn new(manifests: &str) -> Result<Self> {
        let model = Model::parse(&[("lab.yaml".to_owned(), manifests.to_owned())], Settings::default())?;
        Self::build(Run::begin(None)?, &model, manifests, Topology::default())
    }

    /// Builds a cluster of these objects, which are those of `text`.
    ///
    /// # Errors
    /// Missing privileges or devices, or what an agent says.
    pub fn build(run: Run, model: &Model, text: &str, topology: Topology) -> Result<Self> {
        let watch = Watch::new()?;
        let switch = Place::named(&run, "switch")?;
        let outside = Place::named(&run, "outside")?;
        prepare_stack(&outside)?;
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            outside.set(setting, "1")?;
        }
        let mut world = Self {
            model: model.clone(),
            topology,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            outside,
            outside_has: BTreeSet::new(),
            switch,
            watch,
            generation: 0,
            objects: 0,
            run,
        };
        world.make_segments(model)?;
        let settings = world.topology.agent_settings();
        for spec in model.nodes() {
            let place = Place::named(&world.run, &spec.name)?;
            prepare_stack(&place)?;
            world.wire(&place, spec)?;
            let agent = NodeAgent::prepare(&world.run, &spec.name, &settings, &world.watch)?;
            world.nodes.insert(spec.name.clone(), Node { agent, place, spec: spec.clone() });
        }
        let text = world.numbered(model, text);
        for node in world.nodes.values() {
            node.agent.write_objects(&text)?;
            node.agent.spawn(&world.run, &node.place)?;
        }
        // While the verifier is at work.
        let places = world.make_pod_places(model)?;
        for node in world.nodes.values() {
            node.agent.wait_settled(world.objects).with_context(|| node.agent.last_words())?;
        }
        world.connect(model, places)?;
        Ok(world)
    }

    /// Other objects on the same nodes: what is given to the agents, and in force when this returns. Pods come and go with
    /// their objects.
    ///
    /// # Errors
    /// Wrong manifests, other nodes than there are, or what an agent says.
    pub fn apply(&mut self, manifests: &str) -> Result<()> {
        let mut report = agent_core::input::Report::default();
        let objects = read_documents(&manifest::parse(manifests)?, &mut report);
        let objects = report.finish(objects)?;
        let mut model = self.model.clone();
        model.replace(objects)?;
        self.change(&model, manifests)
    }

    /// As [`Self::apply`], of objects that are read already.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn change(&mut self, model: &Model, text: &str) -> Result<()> {
        ensure!(self.has_nodes(model), "a world has the nodes that it was built with");
        let text = self.numbered(model, text);
        for node in self.nodes.values() {
            node.agent.write_objects(&text)?;
        }
        for node in self.nodes.values() {
            node.agent.wait_settled(self.objects)?;
        }
        let stays = |name: &Name, pod: &Pod| {
            let wanted = model.pods().get(name).filter(|wanted| !wanted.host_network);
            wanted.is_some_and(|wanted| wanted.node == pod.node && wanted.addresses == pod.addresses)
        };
        let gone: Vec<Name> =
            self.pods.iter().filter(|(name, pod)| !stays(name, pod)).map(|(n, _)| n.clone()).collect();
        for name in gone {
            let Some(pod) = self.pods.remove(&name) else { continue };
            let node = self.nodes.get(&pod.node).with_context(|| format!("no node {}", pod.node))?;
            let _: Endpoint = node.agent.ask(&Request::EndpointDelete { endpoint: name.to_string() })?;
            if let Some(namespace) = pod.place.namespace() {
                registry::remove_namespace(namespace)?;
            }
        }
        let places = self.make_pod_places(model)?;
        self.connect(model, places)?;
        self.model = model.clone();
        Ok(())
    }

    /// Whether a model has just the nodes that this world was built with.
    #[must_use]
    pub fn has_nodes(&self, model: &Model) -> bool {
        let same = |spec: &NodeSpec| {
            self.nodes
                .get(&spec.name)
                .is_some_and(|node| node.spec.addresses == spec.addresses && node.spec.pod_cidrs == spec.pod_cidrs)
        };
        model.nodes().len() == self.nodes.len() && model.nodes().iter().all(same)
    }

    /// Every file is another one, with another number of objects than the one before: agents read it, read it once, and
    /// can be asked whether they have.
    fn numbered(&mut self, model: &Model, text: &str) -> String {
        self.generation += 1;
        let own = model.objects().len();
        let more = if own == self.objects { MARK } else { "" };
        self.objects = own + usize::from(!more.is_empty());
        format!("# Objects of this lab, number {}\n{text}{more}", self.generation)
    }

    /// A bridge for each segment, and the outside's device on it.
    fn make_segments(&self, model: &Model) -> Result<()> {
        for (number, segment) in self.topology.segments(model)?.iter().enumerate() {
            let mtu = segment.mtu;
            self.switch.ip_all(&format!(
                "link add sw{number} type bridge\nlink set sw{number} mtu {mtu} up\n\
                 link add up{number} mtu {mtu} type veth peer name seg{number} mtu {mtu} netns {}\n\
                 link set up{number} master sw{number} up",
                self.outside.path()
            ))?;
            self.outside.ip_all(&format!(
                "link set seg{number} up\naddr add {GATEWAY4}/32 dev seg{number}\n\
                 addr add {GATEWAY6}/64 dev seg{number} nodad"
            ))?;
        }
        Ok(())
    }

    /// A node's device on its segment, its addresses and routes, and the outside's routes to it and its pods.
    fn wire(&self, place: &Place, spec: &NodeSpec) -> Result<()> {
        let number = self.topology.segment_of(&self.model, &spec.name)?;
        let segments = self.topology.segments(&self.model)?;
        let mtu = segments.get(number).context("no such segment")?.mtu;
        // Names of devices are short.
        let port = format!("p{}", self.nodes.len());
        self.switch.ip_all(&format!(
            "link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\nlink set {port} master sw{number} up",
            place.path()
        ))?;
        let mut here = "link set eth0 up\n".to_owned();
        let mut there = String::new();
        for address in &spec.addresses {
            let (length, extra) = if address.is_ipv4() { (24, "") } else { (64, "nodad") };
            here.push_str(&format!("addr add {address}/{length} dev eth0 {extra}\n"));
            there.push_str(&format!("route add {address} dev seg{number}\n"));
        }
        here.push_str(&format!("route add default via {GATEWAY4} dev eth0 onlink\n"));
        here.push_str(&format!("route add ::/0 via {GATEWAY6} dev eth0\n"));
        for prefix in &spec.pod_cidrs {
            let first = |ipv4: bool| spec.addresses.iter().find(|address| address.is_ipv4() == ipv4);
            // IPv4 over a node that has only IPv6 addresses is routable too.
            let Some(via) = first(prefix.is_ipv4()).or_else(|| first(!prefix.is_ipv4())) else { continue };
            let family = if via.is_ipv4() { "inet" } else { "inet6" };
            there.push_str(&format!("route add {prefix} via {family} {via} dev seg{number} onlink\n"));
        }
        place.ip_all(&here)?;
        self.outside.ip_all(&there)
    }

    /// Namespaces of pods that have none yet.
    fn make_pod_places(&self, model: &Model) -> Result<BTreeMap<Name, Place>> {
        let mut places = BTreeMap::new();
        for pod in model.pods().values().filter(|pod| !pod.host_network) {
            if !self.pods.contains_key(&pod.name) {
                let place = Place::named(&self.run, &pod.name.to_string())?;
                prepare_stack(&place)?;
                places.insert(pod.name.clone(), place);
            }
        }
        Ok(places)
    }

    /// Gives these pods to the agents of their nodes, all nodes at the same time.
    fn connect(&mut self, model: &Model, places: BTreeMap<Name, Place>) -> Result<()> {
        let mut of_nodes: BTreeMap<&str, Vec<(&Name, &Place)>> = BTreeMap::new();
        for (name, place) in &places {
            let pod = model.pods().get(name).with_context(|| format!("no pod {name}"))?;
            of_nodes.entry(&pod.node).or_default().push((name, place));
        }
        let nodes = &self.nodes;
        let add = |node: &str, pods: &[(&Name, &Place)]| -> Result<()> {
            let node = nodes.get(node).with_context(|| format!("no node {node}"))?;
            for (name, place) in pods {
                let request = Request::EndpointAdd {
                    pod: name.to_string(),
                    netns: place.path(),
                    ifname: "eth0".to_owned(),
                    device: None,
                };
                let endpoint: Endpoint = node.agent.ask(&request)?;
                let wanted: Vec<String> = model
                    .pods()
                    .get(name)
                    .into_iter()
                    .flat_map(|pod| &pod.addresses)
                    .map(ToString::to_string)
                    .collect();
                if endpoint.addresses != wanted {
                    bail!("{name}: the agent gave it {:?}, the model {wanted:?}", endpoint.addresses);
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads: Vec<_> = of_nodes.iter().map(|(node, pods)| scope.spawn(|| add(node, pods))).collect();
            let ends = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread ended early"))?);
            ends.collect::<Result<Vec<()>>>()
        })?;
        for (name, place) in places {
            if let Some(pod) = model.pods().get(&name) {
                let pod = Pod { place, node: pod.node.clone(), addresses: pod.addresses.clone() };
                self.pods.insert(name, pod);
            }
        }
        Ok(())
    }

    /// The objects.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How its nodes are connected and set.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The run's name, which is part of its namespaces' names.
    #[must_use]
    pub fn name(&self) -> &str {
        self.run.name()
    }

    /// Where a pod is, by `NAMESPACE/NAME`. One in its node's network is there.
    ///
    /// # Errors
    /// No such pod.
    pub fn pod(&self, name: &str) -> Result<&Place> {
        let (space, own) = name.split_once('/').with_context(|| format!("`{name}`: must be NAMESPACE/NAME"))?;
        let key = Name::new(space, own);
        if let Some(pod) = self.pods.get(&key) {
            return Ok(&pod.place);
        }
        let pod = self.model.pods().get(&key).filter(|pod| pod.host_network);
        self.node(&pod.with_context(|| format!("no pod {name}"))?.node)
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

    fn node_of(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// Where a node is.
    ///
    /// # Errors
    /// No such node.
    pub fn node(&self, name: &str) -> Result<&Place> {
        Ok(&self.node_of(name)?.place)
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// No such node.
    pub fn agent(&self, node: &str) -> Result<&NodeAgent> {
        Ok(&self.node_of(node)?.agent)
    }

    /// Starts a node's agent again after it was killed, and waits until it has looked after everything.
    ///
    /// # Errors
    /// No such node, or what the agent says.
    pub fn start_agent(&self, node: &str) -> Result<()> {
        let node = self.node_of(node)?;
        node.agent.spawn(&self.run, &node.place)?;
        node.agent.wait_settled(self.objects)
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// Names of the pods that have networks of their own.
    pub fn pods(&self) -> impl Iterator<Item = &Name> {
        self.pods.keys()
    }

    /// Every node and pod.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.nodes.values().map(|node| &node.place).chain(self.pods.values().map(|pod| &pod.place))
    }

    /// The world outside.
    #[must_use]
    pub fn outside(&self) -> &Place {
        &self.outside
    }

    /// The switch between nodes.
    #[must_use]
    pub fn switch(&self) -> &Place {
        &self.switch
    }

    /// Makes an address one of the outside's.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn outside_with(&mut self, address: IpAddr) -> Result<&Place> {
        if self.outside_has.insert(address) {
            let (length, extra) = if address.is_ipv4() { (32, "") } else { (128, "nodad") };
            self.outside.ip(&format!("addr add {address}/{length} dev lo {extra}"))?;
        }
        Ok(&self.outside)
    }

    /// The outside has no addresses any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forget_outside(&mut self) -> Result<()> {
        for address in std::mem::take(&mut self.outside_has) {
            let length = if address.is_ipv4() { 32 } else { 128 };
            self.outside.ip(&format!("addr del {address}/{length} dev lo"))?;
        }
        Ok(())
    }

    /// No node remembers any flow: as after a start.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forget_flows(&self) -> Result<()> {
        for node in self.nodes.values() {
            for map in [MapId::Ct4, MapId::Ct6] {
                let spec = MapSpec { max_entries: self.topology.flows()?, ..MapSpec::of(map) };
                let path = node.agent.bpffs().join(map.name());
                KernelMap::open_pinned(spec, &path)?.retain(&mut |_, _| false)?;
            }
        }
        Ok(())
    }

    /// What agents report as it happens.
    #[must_use]
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Leaves everything standing, agents too, when this process ends.
    ///
    /// # Errors
    /// When it cannot be marked so.
    pub fn leave_standing(mut self) -> Result<()> {
        self.run.leave_standing()?;
        // Its agents go on: they are this process's children until it ends, and nobody's after that.
        std::mem::forget(self);
        Ok(())
    }
}

/// Settings of a stack that has nothing to do with weir.
fn prepare_stack(place: &Place) -> Result<()> {
    // Others make numbers of another kind. Only where the machine lets namespaces choose it.
    let _ = place.set("ipv4/tcp_congestion_control", "cubic");
    for (setting, value) in [
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
    ] {
        place.set(setting, value)?;
    }
    Ok(())
}
