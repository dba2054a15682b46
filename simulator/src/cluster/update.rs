//! Building the cluster and changing it: objects → maps of every node, through the control plane's own code.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use agent_core::model::{Name, Object, ObjectKey};
use agent_core::policy::{AUDIT, PolicySettings};
use agent_core::{
    Compiled, DesiredError, IdentityAllocator, IdentityError, InputErrors, Limits, LocalEndpoint, Model,
    ReconcileError, reconcile,
};
use datapath_abi::{Addr4, Addr6, Config, Mac, config};
use simulator_vm::Skb;

use super::capture::Captures;
use super::engine::{Datapath, EngineError, EngineKind};
use super::{Cluster, Nic, Node, Owner, device, tunnel};

/// `CONFIG_HZ` of the simulated kernels.
pub const TICKS_PER_SECOND: u32 = 250;
/// Nodes have been up for an hour when the cluster starts.
const START_NS: u64 = 3_600_000_000_000;

/// How a cluster is simulated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Engine of every node.
    pub engine: EngineKind,
    /// Seeds everything that is left to chance.
    pub seed: u64,
    /// Pods of other nodes are reached through this tunnel (`routingMode: tunnel`, `tunnelProtocol`), else by routes.
    pub tunnel: Option<tunnel::Protocol>,
    /// Programs report allowed flows and traces too; drops are always reported.
    pub events: bool,
    /// Programs report what policies said about new flows; [`Cluster::probe_why`] needs it.
    pub verdicts: bool,
    /// How policies are read.
    pub policy: PolicySettings,
    /// Folder for captures.
    pub pcap: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: EngineKind::default(),
            seed: 1,
            tunnel: Some(tunnel::Protocol::Vxlan),
            events: false,
            verdicts: false,
            policy: PolicySettings::default(),
            pcap: None,
        }
    }
}

/// Why a cluster cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The objects are wrong.
    #[error(transparent)]
    Input(#[from] InputErrors),
    /// Too many identities.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An engine cannot run the object.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The control plane was asked for something that is not there.
    #[error(transparent)]
    Desired(Box<DesiredError>),
    /// The maps cannot hold what they should.
    #[error("node `{node}`: {source}")]
    Reconcile {
        /// Node.
        node: String,
        /// Why.
        source: ReconcileError,
    },
    /// A capture cannot be written.
    #[error("capture: {0}")]
    Capture(#[from] io::Error),
    /// More pods on one node than endpoint numbers.
    #[error("node `{0}` has more than 65535 pods")]
    Endpoints(String),
}

impl From<DesiredError> for ClusterError {
    fn from(error: DesiredError) -> Self {
        Self::Desired(Box::new(error))
    }
}

impl Cluster {
    /// A cluster of these objects.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn new(model: Model, options: Options) -> Result<Self, ClusterError> {
        let mut identities = IdentityAllocator::default();
        let compiled = Compiled::with(&model, &mut identities, options.policy.clone())?;
        let captures = options.pcap.as_deref().map(Captures::new).transpose()?;
        let mut cluster = Self {
            model,
            identities,
            compiled,
            nodes: Vec::new(),
            nics: Vec::new(),
            owners: BTreeMap::new(),
            now_ns: START_NS,
            runs: 0,
            flows: options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16,
            skb: Skb::default(),
            scratch: Vec::new(),
            trail: None,
            leg: 0,
            audits: false,
            said: Vec::new(),
            captures,
            options,
        };
        cluster.settle()?;
        Ok(cluster)
    }

    /// Adds or replaces objects, and brings every node's maps up to date.
    ///
    /// # Errors
    /// See [`ClusterError`]; when the objects are wrong, nothing has changed.
    pub fn apply(&mut self, objects: Vec<Object>) -> Result<(), ClusterError> {
        self.model.apply(objects)?;
        self.compiled.update(&self.model, &mut self.identities)?;
        self.settle()
    }

    /// Removes objects; returns how many there were.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn delete(&mut self, keys: &[ObjectKey]) -> Result<usize, ClusterError> {
        let removed = self.model.delete(keys)?;
        self.compiled.update(&self.model, &mut self.identities)?;
        self.settle()?;
        Ok(removed)
    }

    /// Devices and maps as the model wants them.
    fn settle(&mut self) -> Result<(), ClusterError> {
        self.audits = audits(&self.model);
        self.settle_nodes()?;
        self.settle_nics()?;
        for index in 0..self.nodes.len() {
            let locals = self.locals(index);
            let Some(node) = self.nodes.get_mut(index) else { continue };
            let desired = self.compiled.desired(&node.name, &locals)?;
            reconcile(&desired, &Limits::default(), node.datapath.engine().maps_mut())
                .map_err(|source| ClusterError::Reconcile { node: node.name.clone(), source })?;
        }
        Ok(())
    }

    fn locals(&self, node: usize) -> Vec<LocalEndpoint> {
        let own = self.nics.iter().filter(|nic| nic.node == node);
        own.map(|nic| LocalEndpoint {
            pod: nic.name.clone(),
            id: nic.endpoint,
            ifindex: nic.ifindex,
            mac: Mac::from_octets(nic.mac),
        })
        .collect()
    }

    /// Nodes keep their maps as long as their settings stay.
    fn settle_nodes(&mut self) -> Result<(), ClusterError> {
        let mut old: BTreeMap<String, Node> =
            std::mem::take(&mut self.nodes).into_iter().map(|node| (node.name.clone(), node)).collect();
        for (index, wanted) in self.model.nodes().iter().enumerate() {
            let number = u16::try_from(index + 1).unwrap_or(u16::MAX).to_be_bytes();
            let mac = |kind: u8| [0x02, 0x77, kind, 0x00, number[0], number[1]];
            let settings = settings(&self.options, wanted, self.model.dual_stack(), mac(1));
            let node = match old.remove(&wanted.name) {
                Some(node) if node.settings == settings => {
                    Node { addresses: wanted.addresses.clone(), underlay: wanted.underlay(), ..node }
                }
                Some(_) | None => Node {
                    name: wanted.name.clone(),
                    addresses: wanted.addresses.clone(),
                    underlay: wanted.underlay(),
                    eth0: mac(0),
                    gateway: mac(1),
                    datapath: Datapath::load(self.options.engine, &settings)?,
                    settings,
                    veths: Vec::new(),
                    packets: 0,
                },
            };
            self.nodes.push(node);
        }
        Ok(())
    }

    /// Pods keep their devices as long as they stay on their node.
    fn settle_nics(&mut self) -> Result<(), ClusterError> {
        let indices: BTreeMap<&str, usize> =
            self.nodes.iter().enumerate().map(|(index, node)| (node.name.as_str(), index)).collect();
        let mut old: BTreeMap<Name, Nic> =
            std::mem::take(&mut self.nics).into_iter().map(|nic| (nic.name.clone(), nic)).collect();
        let mut kept: Vec<Option<Nic>> = Vec::new();
        let mut taken: Vec<Vec<u16>> = vec![Vec::new(); self.nodes.len()];
        let pods: Vec<_> = self.model.pods().values().filter(|pod| !pod.host_network).collect();
        for pod in &pods {
            let node = indices.get(pod.node.as_str()).copied().unwrap_or_default();
            let nic = old.remove(&pod.name).filter(|nic| nic.node == node);
            let nic = nic.map(|nic| Nic { addresses: pod.addresses.clone(), ..nic });
            if let (Some(nic), Some(taken)) = (&nic, taken.get_mut(node)) {
                taken.push(nic.endpoint);
            }
            kept.push(nic);
        }
        for taken in &mut taken {
            taken.sort_unstable();
        }
        let mut next: Vec<u16> = vec![1; self.nodes.len()];
        for (pod, kept) in pods.iter().zip(kept) {
            let node = indices.get(pod.node.as_str()).copied().unwrap_or_default();
            let nic = match kept {
                Some(nic) => nic,
                None => {
                    let (Some(next), Some(taken)) = (next.get_mut(node), taken.get(node)) else { continue };
                    while taken.binary_search(next).is_ok() {
                        *next = next.saturating_add(1);
                    }
                    let endpoint = *next;
                    if endpoint == u16::MAX {
                        return Err(ClusterError::Endpoints(pod.node.clone()));
                    }
                    *next += 1;
                    let [a, b] = u16::try_from(node + 1).unwrap_or(u16::MAX).to_be_bytes();
                    let [c, d] = endpoint.to_be_bytes();
                    Nic {
                        name: pod.name.clone(),
                        node,
                        ifindex: device::FIRST_VETH + u32::from(endpoint) - 1,
                        endpoint,
                        mac: [0x02, 0x70, a, b, c, d],
                        addresses: pod.addresses.clone(),
                    }
                }
            };
            self.nics.push(nic);
        }
        self.owners.clear();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            self.owners.extend(node.addresses.iter().map(|address| (*address, Owner::Node(index))));
            node.veths.clear();
        }
        for (index, nic) in self.nics.iter().enumerate() {
            self.owners.extend(nic.addresses.iter().map(|address| (*address, Owner::Pod(index))));
            let place = usize::from(nic.endpoint) - 1;
            if let Some(node) = self.nodes.get_mut(nic.node) {
                if node.veths.len() <= place {
                    node.veths.resize(place + 1, None);
                }
                if let Some(veth) = node.veths.get_mut(place) {
                    *veth = Some(index);
                }
            }
        }
        Ok(())
    }
}

/// Whether some policy is reported and not enforced.
fn audits(model: &Model) -> bool {
    let own = model.policies().values().map(|policy| &policy.meta);
    let cilium = model.cilium_policies().values().map(|policy| &policy.meta);
    let tiers = model.cluster_policies().values().map(|policy| &policy.meta);
    let mut all = own.chain(cilium).chain(tiers);
    all.any(|meta| meta.annotations.get(AUDIT).is_some_and(|value| value == "true"))
}

fn settings(options: &Options, node: &agent_core::model::Node, dual_stack: bool, gateway: [u8; 6]) -> Config {
    let mut settings = Config::with_defaults(TICKS_PER_SECOND);
    settings.flags = config::REDIRECT_PEER;
    for (on, flag) in [
        (options.tunnel.is_some(), config::TUNNEL),
        (options.tunnel == Some(tunnel::Protocol::Geneve), config::GENEVE),
        (options.events, config::VERDICT_EVENTS | config::TRACE_EVENTS),
        (options.verdicts, config::VERDICT_EVENTS),
        (dual_stack, config::DUAL_STACK),
        (options.policy.host_firewall, config::HOST_POLICY),
    ] {
        if on {
            settings.flags |= flag;
        }
    }
    settings.tunnel_ifindex = device::TUNNEL;
    settings.host_ifindex = device::HOST;
    for address in node.addresses.iter().rev() {
        match address {
            IpAddr::V4(address) => settings.node4 = Addr4::from_octets(address.octets()),
            IpAddr::V6(address) => settings.node6 = Addr6::from_octets(address.octets()),
        }
    }
    settings.host_mac = Mac::from_octets(gateway);
    settings
}
