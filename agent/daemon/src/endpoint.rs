//! Endpoints come and go: the pair of devices, the pod's end, programs, entries in maps.

use std::collections::BTreeMap;
use std::path::Path;

use agent_core::model::Name;
use datapath_abi::Hook;

use crate::agent::{Agent, GATEWAY_MAC, device_name, parse_name};
use crate::net::pod::{Connection, Netns};
use crate::state::SavedEndpoint;
use crate::{Failure, net, sysctl};

impl Agent {
    /// Connects a pod. The same call again gives the same endpoint.
    ///
    /// # Errors
    /// A pod that is not of this node, a namespace that is not there, a device that is there already (or, where `device`
    /// gives one, is not).
    pub async fn add_endpoint(
        &mut self,
        pod: &str,
        netns: &str,
        ifname: &str,
        device: Option<&str>,
    ) -> Result<u16, Failure> {
        let model = self.model.clone().ok_or_else(|| Failure::input("the objects have not been read yet"))?;
        let name = parse_name(pod).ok_or_else(|| Failure::input(format!("`{pod}`: must be NAMESPACE/NAME")))?;
        let found = model.pods().get(&name).ok_or_else(|| Failure::input(format!("no pod `{name}`")))?;
        if found.node != self.settings.node {
            return Err(Failure::input(format!("pod `{name}` is on node `{}`", found.node)));
        }
        if found.host_network {
            return Err(Failure::input(format!("pod `{name}` is in its node's network")));
        }
        if ifname.is_empty() || ifname.len() > 15 || ifname.contains(['/', ' ']) {
            return Err(Failure::input(format!("`{ifname}`: must be a device's name of 1 to 15 characters")));
        }
        let namespace = Netns::open(Path::new(netns)).map_err(|error| Failure::input(error.to_string()))?;
        if namespace.id == Netns::own()?.id {
            return Err(Failure::input(format!("{netns} is the node's own network namespace")));
        }
        if let Some(id) = self.same_endpoint(&name, &namespace, ifname, device).await? {
            return Ok(id);
        }
        if let Some(device) = device {
            self.check_given(device).await?;
        }
        if self.network.is_none() || self.datapath.is_none() {
            self.sync().await?;
        }
        let network = self.network.clone().ok_or_else(|| Failure::input("the node's network is not there yet"))?;
        let id = self.free_number()?;
        let wanted = Connection {
            device: device.map_or_else(|| device_name(id), str::to_owned),
            device_mac: GATEWAY_MAC,
            ifname: ifname.to_owned(),
            mac: pod_mac(id),
            addresses: found.addresses.clone(),
            gateways: network.gateways.clone(),
            mtu: network.mtu,
        };
        let saved = SavedEndpoint {
            pod: name.to_string(),
            netns: namespace.id,
            path: netns.to_owned(),
            ifname: ifname.to_owned(),
            device: wanted.device.clone(),
            given: device.is_some(),
            mac: wanted.mac,
            addresses: wanted.addresses.clone(),
            ready: false,
        };
        self.state.change(|state| {
            state.endpoints.insert(id, saved);
        })?;
        let made = self.connect(id, &wanted, &namespace, device.is_some()).await;
        if let Err(error) = made {
            self.remove_endpoint(id).await?;
            return Err(error);
        }
        self.reconcile(&model)?;
        tracing::info!(endpoint = id, pod = %name, "connected");
        Ok(id)
    }

    async fn connect(&mut self, id: u16, wanted: &Connection, namespace: &Netns, given: bool) -> Result<(), Failure> {
        let ifindex = match given {
            true => self.net.take_over(wanted).await?,
            false => self.net.make_pair(namespace, wanted).await?,
        };
        if let Some((setting, value)) = sysctl::pod_device(&wanted.device)? {
            self.change_sysctl(setting, value)?;
        }
        if let Some(datapath) = &self.datapath {
            datapath.attach(Hook::ToContainer, ifindex)?;
            datapath.attach(Hook::FromContainer, ifindex)?;
        }
        for gateway in wanted.gateways.iter().filter(|gateway| gateway.is_ipv4()) {
            self.net.ensure_address(ifindex, *gateway).await?;
        }
        self.net.up(&wanted.device, ifindex).await?;
        wanted.configure(namespace)?;
        self.devices.insert(id, ifindex);
        self.state.change(|state| {
            if let Some(saved) = state.endpoints.get_mut(&id) {
                saved.ready = true;
            }
        })?;
        Ok(())
    }

    /// Endpoints' devices as they should be: up, with the gateway's address and the node's MTU, also in the pod.
    pub(crate) async fn repair_endpoints(
        &mut self,
        links: &BTreeMap<String, net::Link>,
        addresses: &net::Addresses,
    ) -> Result<(), Failure> {
        let Some(network) = &self.network else { return Ok(()) };
        let mut broken = BTreeMap::new();
        for id in self.devices.keys() {
            let Some(saved) = self.state.get().endpoints.get(id) else { continue };
            let Some(link) = links.get(&saved.device) else { continue };
            if link.mtu != network.mtu {
                // First the pod's end: a packet that is too large for the node's end would be dropped without a word.
                match resize(saved, network.mtu) {
                    Ok(()) => self.net.set_mtu(&saved.device, link.index, network.mtu).await?,
                    Err(error) => {
                        let wanted = network.mtu;
                        broken.insert(*id, format!("endpoint {id}: MTU is {}, not {wanted}: {error}", link.mtu));
                    }
                }
            }
            for gateway in network.gateways.iter().filter(|gateway| gateway.is_ipv4()) {
                if !addresses.contains(&(*gateway, link.index)) {
                    self.net.ensure_address(link.index, *gateway).await?;
                }
            }
            if !link.up {
                self.net.up(&saved.device, link.index).await?;
            }
        }
        for line in broken.iter().filter(|(id, line)| self.broken.get(id) != Some(line)).map(|(_, line)| line) {
            tracing::warn!("{line}");
        }
        self.broken = broken;
        Ok(())
    }

    /// The endpoint that a pod has already, if it is what is asked for.
    async fn same_endpoint(
        &self,
        pod: &Name,
        namespace: &Netns,
        ifname: &str,
        device: Option<&str>,
    ) -> Result<Option<u16>, Failure> {
        let pod = pod.to_string();
        let Some((id, saved)) = self.state.get().endpoints.iter().find(|(_, saved)| saved.pod == pod) else {
            return Ok(None);
        };
        let there = self.net.link(&saved.device).await?.is_some();
        let same_device = device.map_or(!saved.given, |device| saved.given && saved.device == device);
        if saved.ready && there && same_device && saved.netns == namespace.id && saved.ifname == ifname {
            return Ok(Some(*id));
        }
        Err(Failure::input(format!("pod `{pod}` has endpoint {id} in another place: delete it first")))
    }

    /// A device that is given must be nobody's yet.
    async fn check_given(&self, device: &str) -> Result<(), Failure> {
        if device.starts_with(net::OWN) {
            return Err(Failure::input(format!("device `{device}`: names that begin with `{}` are weir's", net::OWN)));
        }
        let found = self.net.link(device).await?;
        let found = found.ok_or_else(|| Failure::input(format!("there is no device `{device}`")))?;
        if !found.veth {
            return Err(Failure::input(format!("device `{device}` is no end of a veth pair")));
        }
        let endpoints = self.state.get().endpoints.iter();
        match endpoints.into_iter().find(|(_, saved)| saved.device == device) {
            Some((id, _)) => Err(Failure::input(format!("device `{device}` is that of endpoint {id}"))),
            None => Ok(()),
        }
    }

    /// Disconnects a pod: first its entries go, then its device.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn remove_endpoint(&mut self, id: u16) -> Result<(), Failure> {
        self.state.change(|state| {
            if let Some(saved) = state.endpoints.get_mut(&id) {
                saved.ready = false;
            }
        })?;
        if let Some(model) = self.model.clone() {
            self.reconcile(&model)?;
        }
        // A device that was given only loses its programs, with `recover`.
        self.net.remove(&device_name(id)).await?;
        self.state.change(|state| {
            state.endpoints.remove(&id);
        })?;
        self.waiting.remove(&id);
        self.recover().await?;
        Ok(())
    }

    /// The number after the highest in use, or else the lowest free one: a number that was just freed is not another
    /// pod's at once.
    fn free_number(&self) -> Result<u16, Failure> {
        let endpoints = &self.state.get().endpoints;
        let next = endpoints.keys().next_back().map_or(Some(1), |last| last.checked_add(1));
        next.or_else(|| (1..=u16::MAX).find(|id| !endpoints.contains_key(id)))
            .ok_or_else(|| Failure::input("65535 endpoints: there is no number left"))
    }
}

/// Sets the MTU of the pod's end.
fn resize(saved: &SavedEndpoint, mtu: u32) -> Result<(), Failure> {
    let namespace = Netns::open(Path::new(&saved.path))?;
    if namespace.id != saved.netns {
        return Err(Failure::input(format!("{} is another network namespace now", saved.path)));
    }
    Ok(namespace.set_mtu(&saved.ifname, mtu)?)
}

/// The Ethernet address of a pod: locally administered, the endpoint's number at the end.
fn pod_mac(id: u16) -> [u8; 6] {
    let [high, low] = id.to_be_bytes();
    [0x02, 0, 0, 0, high, low]
}
