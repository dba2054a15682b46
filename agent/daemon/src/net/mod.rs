//! Devices, addresses, routes and neighbours, through route netlink. Every step can be repeated: what is there as it
//! should be is left alone.
//!
//! Invariant: devices called `weir_*` are weir's; no other device is ever made or removed. Others are changed in two cases:
//! devices to other nodes get programs and, where needed, one setting; a veth pair that is given for a pod is configured.

pub mod pod;
pub mod routes;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{
    InfoData, InfoGeneve, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkGeneve, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use agent_core::Prefix;

use crate::settings::TunnelProtocol;
use crate::sysctl;

/// What every device of weir is called first.
pub const OWN: &str = "weir_";
/// The node's way to pods: what the node sends there meets `from_host`.
pub const HOST: &str = "weir_host";
/// Its other end, which nothing comes out of.
const NET: &str = "weir_net";

/// Something could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct NetError {
    /// What, with its name.
    step: String,
    /// Why.
    source: io::Error,
}

impl NetError {
    /// The kernel's number for it.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        rustix::io::Errno::from_io_error(&self.source)
    }
}

pub(crate) fn failed(step: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetError {
    let step = step.into();
    move |error| NetError { step, source: to_io(error) }
}

fn failed_io(step: impl Into<String>) -> impl FnOnce(io::Error) -> NetError {
    let step = step.into();
    move |source| NetError { step, source }
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(message) = &error {
        return message.to_io();
    }
    io::Error::other(error.to_string())
}

fn is_errno(error: &rtnetlink::Error, errno: rustix::io::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if message.code.is_some_and(|code| code.get() == -errno.raw_os_error()))
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number.
    pub index: u32,
    /// Bytes of an IP packet, at most.
    pub mtu: u32,
    /// Ethernet address; empty where it has none.
    mac: Vec<u8>,
    /// Whether it was put up.
    pub up: bool,
    /// Whether addresses behind it are asked for.
    arp: bool,
    /// Whether it is one end of a veth pair.
    pub veth: bool,
    /// What it speaks and on which UDP port, for a tunnel device in metadata mode.
    metadata: Option<(TunnelProtocol, u16)>,
}

/// A route netlink socket of one network namespace.
#[derive(Clone, Debug)]
pub struct Net(Handle);

impl Net {
    /// Opens a socket in this thread's network namespace. Must be called in a tokio runtime, which it uses.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> Result<Self, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed_io("route netlink socket"))?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// A device by name.
    ///
    /// # Errors
    /// Anything but its absence.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetError> {
        let mut found = std::pin::pin!(self.0.link().get().match_name(name).execute());
        match found.try_next().await {
            Ok(message) => Ok(message.as_ref().map(read_link)),
            Err(error) if is_errno(&error, rustix::io::Errno::NODEV) => Ok(None),
            Err(error) => Err(failed(format!("look for device {name}"))(error)),
        }
    }

    /// Devices by name.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn links(&self) -> Result<BTreeMap<String, Link>, NetError> {
        let mut found = std::pin::pin!(self.0.link().get().execute());
        let mut links = BTreeMap::new();
        while let Some(message) = found.try_next().await.map_err(failed("list devices"))? {
            for attribute in &message.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    links.insert(name.clone(), read_link(&message));
                }
            }
        }
        Ok(links)
    }

    /// Removes a device; one that is not there is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn remove(&self, name: &str) -> Result<(), NetError> {
        let Some(link) = self.link(name).await? else {
            return Ok(());
        };
        match self.0.link().del(link.index).execute().await {
            Err(error) if !is_errno(&error, rustix::io::Errno::NODEV) => {
                Err(failed(format!("remove device {name}"))(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn add(&self, name: &str, message: LinkMessage) -> Result<Link, NetError> {
        self.0.link().add(message).execute().await.map_err(failed(format!("make device {name}")))?;
        self.link(name).await?.ok_or_else(|| failed_io(format!("make device {name}"))(io::ErrorKind::NotFound.into()))
    }

    async fn set(&self, name: &str, message: LinkMessage) -> Result<(), NetError> {
        self.0.link().set(message).execute().await.map_err(failed(format!("change device {name}")))
    }

    /// Puts a device up.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn up(&self, name: &str, index: u32) -> Result<(), NetError> {
        self.set(name, LinkUnspec::new_with_index(index).up().build()).await
    }

    /// The tunnel device, one for all nodes: where to and as whom is in each packet's metadata. It has the gateway's Ethernet
    /// address, which pods of other nodes send to, or the stack would not take their packets to this node.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn ensure_tunnel(
        &self,
        protocol: TunnelProtocol,
        port: u16,
        mtu: u32,
        mac: [u8; 6],
    ) -> Result<u32, NetError> {
        let name = protocol.device();
        let mut found = self.link(name).await?;
        if found.as_ref().is_some_and(|link| link.metadata != Some((protocol, port)) || link.mac != mac) {
            self.remove(name).await?;
            found = None;
        }
        let link = match found {
            Some(link) => link,
            None => {
                let wanted = match protocol {
                    TunnelProtocol::Vxlan => {
                        let device = LinkVxlan::new(name, 0).collect_metadata(true).learning(false).port(port);
                        device.mtu(mtu).address(mac.to_vec()).build()
                    }
                    TunnelProtocol::Geneve => {
                        let device = LinkMessageBuilder::<LinkGeneve>::new(name).collect_metadata().port(port);
                        device.mtu(mtu).address(mac.to_vec()).build()
                    }
                };
                self.add(name, wanted).await?
            }
        };
        self.finish(name, &link, mtu, true).await?;
        Ok(link.index)
    }

    /// The host device and its other end.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn ensure_host(&self, mtu: u32) -> Result<u32, NetError> {
        let link = match self.link(HOST).await? {
            Some(link) => link,
            None => self.add(HOST, LinkVeth::new(HOST, NET).build()).await?,
        };
        // Nobody answers for pods there: their addresses are put in by `from_host`.
        self.finish(HOST, &link, mtu, false).await?;
        if let Some(other) = self.link(NET).await? {
            self.finish(NET, &other, mtu, false).await?;
        }
        Ok(link.index)
    }

    /// Makes a device of weir like this, if it is not.
    async fn finish(&self, name: &str, link: &Link, mtu: u32, arp: bool) -> Result<(), NetError> {
        sysctl::own_device(name).map_err(failed_io(name))?;
        if link.up && link.mtu == mtu && link.arp == arp {
            return Ok(());
        }
        self.set(name, LinkUnspec::new_with_index(link.index).mtu(mtu).arp(arp).up().build()).await
    }

    /// Gives a device an address (no duplicate address detection: nobody else is there).
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn ensure_address(&self, index: u32, address: IpAddr) -> Result<(), NetError> {
        let length = Prefix::host(address).length();
        let mut request = self.0.address().add(index, address, length).replace();
        if address.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(failed(format!("address {address}")))
    }

    /// Every address of this namespace, with the number of its device.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn addresses(&self) -> Result<Addresses, NetError> {
        let mut found = std::pin::pin!(self.0.address().get().execute());
        let mut addresses = Addresses::new();
        while let Some(message) = found.try_next().await.map_err(failed("list addresses"))? {
            for attribute in &message.attributes {
                if let AddressAttribute::Address(address) | AddressAttribute::Local(address) = attribute {
                    addresses.insert((*address, message.header.index));
                }
            }
        }
        Ok(addresses)
    }

    /// Sets the size of packets.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn set_mtu(&self, name: &str, index: u32, mtu: u32) -> Result<(), NetError> {
        self.set(name, LinkUnspec::new_with_index(index).mtu(mtu).build()).await
    }
}

/// Addresses, each with the number of its device.
pub type Addresses = BTreeSet<(IpAddr, u32)>;

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        mtu: 0,
        mac: Vec::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        arp: !message.header.flags.contains(LinkFlags::Noarp),
        veth: false,
        metadata: None,
    };
    for attribute in &message.attributes {
        if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Address(mac) = attribute {
            link.mac.clone_from(mac);
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            link.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            link.metadata = infos.iter().find_map(metadata);
        }
    }
    link
}

fn metadata(info: &LinkInfo) -> Option<(TunnelProtocol, u16)> {
    let LinkInfo::Data(data) = info else {
        return None;
    };
    if let InfoData::Vxlan(vxlan) = data {
        let port = vxlan.iter().find_map(|info| if let InfoVxlan::Port(port) = info { Some(*port) } else { None })?;
        return vxlan.contains(&InfoVxlan::CollectMetadata(true)).then_some((TunnelProtocol::Vxlan, port));
    }
    if let InfoData::Geneve(geneve) = data {
        let port = geneve.iter().find_map(|info| if let InfoGeneve::Port(port) = info { Some(*port) } else { None })?;
        return geneve.contains(&InfoGeneve::CollectMetadata).then_some((TunnelProtocol::Geneve, port));
    }
    None
}

/// A message that makes a device of a kind.
fn of_kind(kind: InfoKind) -> LinkMessageBuilder<LinkUnspec> {
    LinkMessageBuilder::new_with_info_kind(kind)
}
