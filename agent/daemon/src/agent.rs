//! The agent of one node: files → model → maps, level-triggered. What is missing is made, what is there is left alone, so
//! that every start heals what the last one left, wherever it was killed.
//!
//! Order: identities and endpoints are on disk before they are in maps; programs are on a device before it is up; an
//! endpoint's entries leave the maps before its device goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use agent_api::Pass;
use agent_core::model::{Name, Node, Object, Pod, Sources};
use agent_core::{
    Changes, Compiled, IdentityAllocator, Limits, LocalEndpoint, Map, Model, NodeMaps, Snapshot, reconcile_known,
};
use datapath_abi::{Addr4, Addr6, Be16, Config, CtEntry, Hook, Mac, MapId, config};
use datapath_kernel::{Jiffies, RingReader};
use zerocopy::FromBytes as _;

use crate::Failure;
use crate::datapath::{Datapath, Folder};
use crate::net::{self, Net};
use crate::network::Network;
use crate::settings::{Settings, TunnelProtocol};
use crate::source::{Directory, Files};
use crate::state::{Placement, Saved, StateFile};

/// Ethernet address of the node's side of every veth.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, b'w', b'e', b'i', b'r'];
/// The agent.
#[derive(Debug)]
pub struct Agent {
    pub(crate) settings: Settings,
    pub(crate) net: Net,
    pub(crate) folder: Folder,
    pub(crate) state: StateFile,
    pub(crate) directory: Directory,
    clock: Jiffies,
    ticks_per_second: u32,
    pub(crate) identities: IdentityAllocator,
    /// The last good objects.
    pub(crate) model: Option<Model>,
    pub(crate) compiled: Option<Compiled>,
    /// What this node's maps should hold, as last worked out, and what has changed since.
    wanted: Option<(NodeMaps, Changes)>,
    /// What they hold, if it is known.
    held: Option<Snapshot>,
    /// The pods whose nodes and addresses are on disk.
    placed: Option<Map<Name, Pod>>,
    sources: Sources,
    files: Files,
    /// What is wrong with the files.
    pub(crate) source_error: Option<String>,
    /// They cannot even be read.
    unreadable: bool,
    /// What of the last pass could not be had.
    pub(crate) error: Option<String>,
    pub(crate) last_pass: Option<Pass>,
    pub(crate) network: Option<Network>,
    pub(crate) datapath: Option<Datapath>,
    /// Programs were loaded that endpoints' devices do not have yet.
    attach_again: bool,
    /// What of an endpoint's devices could not be mended.
    pub(crate) broken: BTreeMap<u16, String>,
    /// Numbers of the endpoints' devices.
    pub(crate) devices: BTreeMap<u16, u32>,
    /// Endpoints that are not in the maps, with the reason.
    pub(crate) waiting: BTreeMap<u16, String>,
    /// Flows at the last sweep, and those that had expired.
    pub(crate) flows: (usize, usize),
}

impl Agent {
    /// Opens everything, and tries how programs can be attached; nothing of the node is changed yet. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn open(settings: Settings) -> Result<Self, Failure> {
        let state = StateFile::open(&settings.state)?;
        let identities = state.identities()?;
        let clock = Jiffies::new()?;
        let ticks_per_second = clock.per_second()?;
        Ok(Self {
            net: Net::open()?,
            folder: Folder::make(&settings.bpffs, settings.attach.probe()?)?,
            directory: Directory::watch(&settings.directory)?,
            state,
            clock,
            ticks_per_second,
            identities,
            settings,
            model: None,
            compiled: None,
            wanted: None,
            held: None,
            placed: None,
            sources: Sources::default(),
            files: Files::new(),
            source_error: None,
            unreadable: false,
            error: None,
            last_pass: None,
            network: None,
            datapath: None,
            attach_again: false,
            broken: BTreeMap::new(),
            devices: BTreeMap::new(),
            waiting: BTreeMap::new(),
            flows: (0, 0),
        })
    }

    /// Number of files that were read last.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Whether the folder cannot even be read, which is tried again often: it may be made at any time.
    pub const fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    /// Whether it is worth trying again without a change of the files.
    pub fn is_behind(&self) -> bool {
        self.unreadable || self.error.is_some()
    }

    /// Reads the folder and makes everything as its files say. What is wrong is remembered for the status.
    pub async fn refresh(&mut self) {
        let began = Instant::now();
        match self.read() {
            Ok(changed) => {
                if self.source_error.take().is_some() {
                    tracing::info!("objects are good again");
                }
                if !changed && self.error.is_none() {
                    return;
                }
            }
            Err(error) => {
                if self.source_error.as_ref() != Some(&error) {
                    tracing::error!("objects are wrong, the last good ones stay in force: {error}");
                }
                self.source_error = Some(error);
                if self.error.is_none() {
                    return;
                }
            }
        }
        self.pass(began).await;
    }

    /// Reads the folder; whether the model changed.
    fn read(&mut self) -> Result<bool, String> {
        let files = self.directory.read();
        self.unreadable = files.is_err();
        let files = files.map_err(|error| error.to_string())?;
        if files == self.files && self.model.is_some() {
            return Ok(false);
        }
        let objects = self.sources.read(&files).map_err(|errors| errors.to_string())?;
        match &mut self.model {
            Some(model) => model.replace(objects).map_err(|errors| errors.to_string())?,
            None => {
                let fill = agent_core::Settings { ipv4: self.settings.ipv4, ipv6: self.settings.ipv6 };
                let kept = self.state.get().placements.iter().filter_map(|(name, placed)| {
                    Some((parse_name(name)?, placed.node.clone(), placed.addresses.clone()))
                });
                self.model = Some(Model::restored(objects, fill, kept).map_err(|errors| errors.to_string())?);
            }
        }
        self.files = files;
        Ok(true)
    }

    /// One pass: everything as the model says. Returns the number of changes to maps.
    ///
    /// # Errors
    /// The first thing that cannot be had.
    pub async fn sync(&mut self) -> Result<usize, Failure> {
        let (model, _) = self.own_model()?;
        let mut identities = self.identities.clone();
        // On copies: what is not on disk yet must not be in force.
        let compiled = match self.compiled.clone() {
            Some(mut compiled) => {
                let changes = compiled.update(&model, &mut identities)?;
                self.save(&model, &identities)?;
                if let Some((_, pending)) = &mut self.wanted {
                    pending.merge(changes);
                }
                compiled
            }
            None => {
                let compiled = Compiled::with(&model, &mut identities, self.settings.policy())?;
                self.save(&model, &identities)?;
                self.wanted = None;
                compiled
            }
        };
        self.identities = identities;
        self.compiled = Some(compiled);
        self.make_devices().await?;
        self.reconcile(&model)
    }

    /// Puts on disk what must survive, if it has changed.
    fn save(&mut self, model: &Model, identities: &IdentityAllocator) -> Result<(), Failure> {
        let same_pods = self.placed.as_ref().is_some_and(|placed| placed.is_same(model.pods()));
        if same_pods && identities.is_same(&self.identities) {
            return Ok(());
        }
        self.state.change(|saved| {
            saved.set_identities(identities);
            saved.placements = placements(model);
        })?;
        self.placed = Some(model.pods().clone());
        Ok(())
    }

    /// Who has an address: `NAMESPACE/NAME` of a pod, or `node/NAME`.
    pub(crate) fn name_of(&self, address: IpAddr) -> Option<String> {
        let holder = self.model.as_ref()?.holder(address)?;
        Some(if holder.namespace.is_empty() { format!("node/{}", holder.name) } else { holder.to_string() })
    }

    /// The model, and this node in it.
    fn own_model(&self) -> Result<(Model, Node), Failure> {
        let Some(model) = &self.model else {
            return Err(Failure::input("the objects have not been read yet"));
        };
        let own = model.node(&self.settings.node);
        let own = own.ok_or_else(|| Failure::input(format!("no node `{}` among the objects", self.settings.node)))?;
        Ok((model.clone(), own.clone()))
    }

    /// Devices, addresses, routes and programs. Returns whether entries of endpoints may have to change.
    async fn make_devices(&mut self) -> Result<bool, Failure> {
        let (model, own) = self.own_model()?;
        let other = self.make_network(&own, model.nodes()).await?;
        self.make_datapath(&own, model.dual_stack())?;
        if let Some(tunnel) = self.network.as_ref().map(|network| network.tunnel) {
            let kept = (tunnel != 0).then_some(self.settings.tunnel_protocol);
            for other in TunnelProtocol::ALL.into_iter().filter(|protocol| Some(*protocol) != kept) {
                self.net.remove(other.device()).await?;
            }
        }
        Ok(self.recover().await? || other)
    }

    /// Looks at devices, addresses and routes again, after something of them has changed.
    pub async fn heal(&mut self) {
        if self.compiled.is_none() {
            return;
        }
        let healed = match self.make_devices().await {
            Ok(true) => self.own_model().and_then(|(model, _)| self.reconcile(&model)),
            Ok(false) => {
                tracing::debug!("looked at devices");
                return;
            }
            Err(error) => Err(error),
        };
        match healed {
            Ok(changes) => tracing::info!(changes, "devices have changed; all is as it should be again"),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &Failure) {
        let error = error.to_string();
        if self.error.as_ref() != Some(&error) {
            tracing::error!("not as the objects say: {error}");
        }
        self.error = Some(error);
    }

    /// Tries again what could not be had.
    pub async fn retry(&mut self) {
        if self.unreadable {
            self.refresh().await;
        } else if self.error.is_some() {
            self.pass(Instant::now()).await;
        }
    }

    async fn pass(&mut self, began: Instant) {
        match self.sync().await {
            Ok(changes) => {
                let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                tracing::info!(changes, micros, "maps are as the objects say");
                self.last_pass = Some(Pass { changes, micros });
                self.error = None;
            }
            Err(error) => self.failed(&error),
        }
    }

    fn config(&self, own: &Node, network: &Network, dual_stack: bool) -> Config {
        let flags = [
            (network.tunnel != 0, config::TUNNEL),
            (self.settings.tunnel_protocol == TunnelProtocol::Geneve, config::GENEVE),
            (self.settings.redirect_peer, config::REDIRECT_PEER),
            (self.settings.verdict_events, config::VERDICT_EVENTS),
            (self.settings.trace_events, config::TRACE_EVENTS),
            (dual_stack, config::DUAL_STACK),
            (self.settings.host_firewall, config::HOST_POLICY),
        ];
        let mut config = Config {
            flags: flags.into_iter().filter(|(on, _)| *on).fold(0, |flags, (_, flag)| flags | flag),
            tunnel_ifindex: network.tunnel,
            host_ifindex: network.host,
            host_mac: Mac::from_octets(GATEWAY_MAC),
            ..Config::with_defaults(self.ticks_per_second)
        };
        match self.settings.tunnel_protocol {
            TunnelProtocol::Vxlan => config.vxlan_port = Be16::new(self.settings.port()),
            TunnelProtocol::Geneve => config.geneve_port = Be16::new(self.settings.port()),
        }
        for address in own.addresses.iter().rev() {
            match address {
                IpAddr::V4(address) => config.node4 = Addr4::from_octets(address.octets()),
                IpAddr::V6(address) => config.node6 = Addr6::from_octets(address.octets()),
            }
        }
        config
    }

    /// Programs with the right settings on the node's own devices; on those of endpoints they are put by [`Self::recover`],
    /// which knows whether the devices are there.
    fn make_datapath(&mut self, own: &Node, dual_stack: bool) -> Result<(), Failure> {
        let Some(network) = &self.network else {
            return Ok(());
        };
        let config = self.config(own, network, dual_stack);
        if self.datapath.as_ref().is_none_or(|datapath| *datapath.config() != config) {
            self.datapath = Some(Datapath::load(&self.folder, config, self.settings.flows)?);
            self.held = None;
            self.attach_again = true;
        }
        if let Some(datapath) = &self.datapath {
            if network.tunnel != 0 {
                datapath.attach(Hook::FromOverlay, network.tunnel)?;
            }
            datapath.attach(Hook::FromHost, network.host)?;
            for ifindex in network.underlay.values() {
                datapath.attach(Hook::FromNetdev, *ifindex)?;
                datapath.attach(Hook::ToNetdev, *ifindex)?;
            }
        }
        Ok(())
    }

    /// Compares what is remembered with the devices that are there. Endpoints that were not finished, or whose device went
    /// with the pod's namespace, are forgotten; devices of weir that belong to no endpoint are removed; the others are made
    /// as they should be. Returns whether endpoints, or numbers of their devices, are others than before.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn recover(&mut self) -> Result<bool, Failure> {
        let (links, addresses) = (self.net.links().await?, self.net.addresses().await?);
        let alive = |id: &u16| {
            self.state.get().endpoints.get(id).filter(|saved| saved.ready).and_then(|saved| links.get(&saved.device))
        };
        let remembered: Vec<u16> = self.state.get().endpoints.keys().copied().collect();
        let devices: BTreeMap<u16, u32> = remembered.iter().filter_map(|id| Some((*id, alive(id)?.index))).collect();
        let lost: Vec<u16> = remembered.into_iter().filter(|id| !devices.contains_key(id)).collect();
        for name in links.keys().filter(|name| is_endpoint_device(name)) {
            let owned = devices.keys().any(|id| *name == device_name(*id));
            if !owned {
                tracing::info!(device = name, "removed: of an endpoint that was never finished");
                self.net.remove(name).await?;
            }
        }
        for id in &lost {
            tracing::info!(endpoint = id, "forgotten: not finished, or its device is gone");
        }
        self.state.change(|saved| saved.endpoints.retain(|id, _| !lost.contains(id)))?;
        if let Some(datapath) = &self.datapath {
            for (id, ifindex) in &devices {
                if self.attach_again || self.devices.get(id) != Some(ifindex) {
                    datapath.attach(Hook::ToContainer, *ifindex)?;
                    datapath.attach(Hook::FromContainer, *ifindex)?;
                }
            }
            self.attach_again = false;
        }
        let changed = !lost.is_empty() || self.devices != devices;
        self.devices = devices;
        if let Some(network) = &self.network {
            let mut keep: BTreeSet<u32> = self.devices.values().chain(network.underlay.values()).copied().collect();
            keep.extend([network.tunnel, network.host]);
            self.folder.keep(&keep)?;
        }
        self.repair_endpoints(&links, &addresses).await?;
        Ok(changed)
    }

    /// The maps as the model and the endpoints say. Returns the number of changes.
    ///
    /// # Errors
    /// What a map refuses.
    pub fn reconcile(&mut self, model: &Model) -> Result<usize, Failure> {
        let (locals, waiting) = self.locals(model);
        self.waiting = waiting;
        let (Some(compiled), Some(datapath)) = (&self.compiled, &mut self.datapath) else {
            return Ok(0);
        };
        match &mut self.wanted {
            Some((wanted, changes)) => wanted.update(compiled, changes, &locals)?,
            None => {
                self.wanted = Some((NodeMaps::new(compiled, &self.settings.node, &locals)?, Changes::default()));
            }
        }
        let Some((wanted, changes)) = &mut self.wanted else { return Ok(0) };
        *changes = Changes::default();
        Ok(reconcile_known(&mut self.held, wanted.desired(), &Limits::default(), datapath.maps_mut())?.len())
    }

    /// The endpoints that go into the maps, and why others do not.
    fn locals(&self, model: &Model) -> (Vec<LocalEndpoint>, BTreeMap<u16, String>) {
        let (mut locals, mut waiting) = (Vec::new(), BTreeMap::new());
        for (&id, saved) in &self.state.get().endpoints {
            let name = parse_name(&saved.pod);
            let pod = name.as_ref().and_then(|name| model.pods().get(name));
            let why = match pod {
                _ if !saved.ready => "is being made or removed".to_owned(),
                None => "its pod is not among the objects".to_owned(),
                Some(pod) if pod.host_network => "its pod is in the node's network now".to_owned(),
                Some(pod) if pod.node != self.settings.node => format!("its pod is on node `{}` now", pod.node),
                Some(pod) if pod.addresses != saved.addresses => "its pod has other addresses now".to_owned(),
                Some(pod) => {
                    if let Some(ifindex) = self.devices.get(&id) {
                        let mac = Mac::from_octets(saved.mac);
                        locals.push(LocalEndpoint { pod: pod.name.clone(), id, ifindex: *ifindex, mac });
                        continue;
                    }
                    "its device is gone".to_owned()
                }
            };
            waiting.insert(id, why);
        }
        (locals, waiting)
    }

    /// Ticks of the flows' clock now, and ticks per second.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn ticks(&self) -> Result<(u64, u32), Failure> {
        Ok((self.clock.now()?, self.ticks_per_second))
    }

    /// Removes expired flows, and looks at devices in case something was not said.
    pub async fn sweep(&mut self) {
        let result = self.sweep_flows();
        if let Err(error) = result {
            tracing::warn!("expired flows were not removed: {error}");
        }
        self.heal().await;
        self.compare();
    }

    /// Reads the maps, in case somebody else has changed them, and makes them as they should be.
    fn compare(&mut self) {
        self.held = None;
        let Some(model) = self.model.clone().filter(|_| self.error.is_none()) else { return };
        match self.reconcile(&model) {
            Ok(0) => {}
            Ok(changes) => tracing::warn!(changes, "maps were not as weir left them; they are as they should be again"),
            Err(error) => self.failed(&error),
        }
    }

    fn sweep_flows(&mut self) -> Result<(), Failure> {
        let (now, _) = self.ticks()?;
        let Some(datapath) = &self.datapath else {
            return Ok(());
        };
        let (mut all, mut gone) = (0, 0);
        for map in [MapId::Ct4, MapId::Ct6] {
            if let Some(map) = datapath.maps().get(map.name()) {
                let counts =
                    map.retain(&mut |_, value| CtEntry::ref_from_bytes(value).is_ok_and(|flow| flow.expires > now))?;
                (all, gone) = (all + counts.0, gone + counts.1);
            }
        }
        self.flows = (all, gone);
        Ok(())
    }

    /// The reader of events, once there are maps. Only one may exist.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn events(&self) -> Result<Option<RingReader>, Failure> {
        Ok(self.datapath.as_ref().map(Datapath::events).transpose()?)
    }
}

/// `NAMESPACE/NAME`.
pub(crate) fn parse_name(text: &str) -> Option<Name> {
    let (namespace, name) = text.split_once('/')?;
    Some(Name::new(namespace, name))
}

/// The node's device of an endpoint.
pub(crate) fn device_name(id: u16) -> String {
    format!("{}{id}", net::OWN)
}

fn is_endpoint_device(name: &str) -> bool {
    name.strip_prefix(net::OWN).is_some_and(|id| id.parse::<u16>().is_ok())
}

/// What was filled in: nodes and addresses of pods whose objects do not have them.
fn placements(model: &Model) -> BTreeMap<String, Placement> {
    let given = |object: &Object| {
        let Object::Pod(pod) = object else {
            return None;
        };
        (!pod.addresses.is_empty() && pod.spec.node.is_some()).then(|| pod.meta.full_name())
    };
    let given: BTreeSet<Name> = model.objects().iter().filter_map(given).collect();
    let filled = model.pods().values().filter(|pod| !pod.host_network && !given.contains(&pod.name));
    filled
        .map(|pod| (pod.name.to_string(), Placement { node: pod.node.clone(), addresses: pod.addresses.clone() }))
        .collect()
}

/// Used by tests and `--cleanup`: what of the state refers to the kernel.
pub(crate) fn sysctls(saved: &Saved) -> impl Iterator<Item = (&str, &str)> {
    saved.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}
