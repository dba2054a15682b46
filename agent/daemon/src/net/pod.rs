//! A pod's end of the network: one device with the pod's addresses, a route to the gateway and everything behind it.
//!
//! The gateway is the first address of the node's pod prefix, with the Ethernet address of the node's side of every veth;
//! the pod has it as a permanent neighbour, so that its first packet waits for nothing.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use agent_core::Prefix;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Net, NetError, failed, failed_io};
use crate::sysctl;

/// A network namespace that is kept open.
#[derive(Debug)]
pub struct Netns {
    file: File,
    /// Device and inode: the same for the same namespace.
    pub id: (u64, u64),
}

impl Netns {
    /// Opens the file of a namespace (`/var/run/netns/NAME`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(path: &Path) -> Result<Self, NetError> {
        let named = || format!("network namespace {}", path.display());
        let file = File::open(path).map_err(failed_io(named()))?;
        let found = file.metadata().map_err(failed_io(named()))?;
        Ok(Self { file, id: (found.dev(), found.ino()) })
    }

    /// That of this thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn own() -> Result<Self, NetError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Does something in the namespace, on a thread that ends with it.
    fn inside<T: Send>(&self, work: impl AsyncFnOnce(Net) -> Result<T, NetError> + Send) -> Result<T, NetError> {
        let enter = || {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|errno| failed_io("enter the pod's network namespace")(errno.into()))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
            let runtime = runtime.map_err(failed_io("runtime for the pod's network namespace"))?;
            runtime.block_on(async { work(Net::open()?).await })
        };
        std::thread::scope(|scope| scope.spawn(enter).join())
            .unwrap_or_else(|_| Err(failed_io("thread for the pod's network namespace")(io::ErrorKind::Other.into())))
    }
}

/// What a pod's connection is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The node's device.
    pub device: String,
    /// Its Ethernet address: the gateway's.
    pub device_mac: [u8; 6],
    /// The pod's device.
    pub ifname: String,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The gateway's address for each family in use.
    pub gateways: Vec<IpAddr>,
    /// Bytes of an IP packet, at most.
    pub mtu: u32,
}

impl Net {
    /// Makes the veth pair, the pod's end in its namespace from the beginning. Both ends are down. Returns the number of
    /// the node's end.
    ///
    /// # Errors
    /// EEXIST when the pod has a device of that name.
    pub async fn make_pair(&self, pod: &Netns, wanted: &Connection) -> Result<u32, NetError> {
        let peer = LinkUnspec::new_with_name(&wanted.ifname)
            .mtu(wanted.mtu)
            .address(wanted.mac.to_vec())
            .append_extra_attribute(LinkAttribute::NetNsFd(pod.file.as_raw_fd()))
            .build();
        let message = super::of_kind(InfoKind::Veth)
            .name(&wanted.device)
            .mtu(wanted.mtu)
            .address(wanted.device_mac.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        Ok(self.add(&wanted.device, message).await?.index)
    }

    /// Makes the node's end of a pair that is there like one that is made. Returns its number.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn take_over(&self, wanted: &Connection) -> Result<u32, NetError> {
        let missing = || failed_io(format!("device {}", wanted.device))(io::ErrorKind::NotFound.into());
        let index = self.link(&wanted.device).await?.ok_or_else(missing)?.index;
        let message = LinkUnspec::new_with_index(index).mtu(wanted.mtu).address(wanted.device_mac.to_vec());
        self.set(&wanted.device, message.down().build()).await?;
        Ok(index)
    }
}

impl Netns {
    /// Sets the size of packets of a device in the namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_mtu(&self, ifname: &str, mtu: u32) -> Result<(), NetError> {
        self.inside(async |net| {
            let missing = || failed_io(format!("device {ifname} of the pod"))(io::ErrorKind::NotFound.into());
            let link = net.link(ifname).await?.ok_or_else(missing)?;
            if link.mtu == mtu { Ok(()) } else { net.set_mtu(ifname, link.index, mtu).await }
        })
    }
}

impl Connection {
    /// Configures the pod's end and puts it up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn configure(&self, pod: &Netns) -> Result<(), NetError> {
        pod.inside(async |net| self.configure_inside(&net).await)
    }

    async fn configure_inside(&self, net: &Net) -> Result<(), NetError> {
        let missing = || failed_io(format!("device {} of the pod", self.ifname))(io::ErrorKind::NotFound.into());
        net.up("lo", 1).await?;
        let index = net.link(&self.ifname).await?.ok_or_else(missing)?.index;
        // As it is already, unless the pair was given.
        let like = LinkUnspec::new_with_index(index).mtu(self.mtu).address(self.mac.to_vec());
        net.set(&self.ifname, like.build()).await?;
        for address in &self.addresses {
            net.ensure_address(index, *address).await?;
        }
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            // The gateway answers no router solicitations.
            let quiet = format!("net/ipv6/conf/{}/accept_ra", self.ifname);
            sysctl::set(&quiet, "0").map_err(failed_io("settings of the pod"))?;
        }
        net.up(&self.ifname, index).await?;
        for gateway in &self.gateways {
            let neighbour = net.0.neighbours().add(index, *gateway).link_layer_address(&self.device_mac);
            let neighbour = neighbour.state(NeighbourState::Permanent).replace();
            neighbour.execute().await.map_err(failed(format!("neighbour {gateway} of the pod")))?;
            let every = Prefix::host(*gateway);
            net.pod_route(index, every, None).await?;
            let unspecified = Prefix::new(gateway.to_owned(), 0).unwrap_or(every);
            net.pod_route(index, unspecified, Some(*gateway)).await?;
        }
        Ok(())
    }
}

impl Net {
    async fn pod_route(&self, index: u32, prefix: Prefix, gateway: Option<IpAddr>) -> Result<(), NetError> {
        let step = format!("route of the pod to {prefix}");
        let wrong = |error| failed_io(step.clone())(io::Error::other(format!("{error:?}")));
        let scope = if gateway.is_none() && prefix.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
        let builder = RouteMessageBuilder::<IpAddr>::new()
            .output_interface(index)
            .protocol(RouteProtocol::Static)
            .scope(scope)
            .destination_prefix(prefix.address(), prefix.length())
            .map_err(wrong)?;
        let message = match gateway {
            Some(gateway) => builder.gateway(gateway).map_err(wrong)?.build(),
            None => builder.build(),
        };
        self.0.route().add(message).replace().execute().await.map_err(failed(step.clone()))
    }
}
