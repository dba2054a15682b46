//! Routes to pods: over the host device, where the datapath takes them, or straight to another node.
//!
//! Invariant: routes of protocol [`PROTOCOL`] in the main table, and no others, are weir's. A route of somebody else to the
//! same prefix is never replaced.
//!
//! Sources: `include/uapi/linux/rtnetlink.h`, `net/ipv4/fib_semantics.c`, `net/ipv6/route.c`.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use agent_core::Prefix;
use futures_util::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rustix::io::Errno;

use super::{Net, NetError, failed, failed_io, is_errno};

/// Who made a route, `rtm_protocol`: a number that nobody else has in `/etc/iproute2/rt_protos`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(b'w');
/// `IP6_RT_PRIO_USER`, which an IPv6 route has that names no metric.
const METRIC6: u32 = 1024;

/// Where packets to a prefix go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// To a device, on which everything of the prefix is.
    Device(u32),
    /// To the node with this address, wherever that is on a network of this node.
    Gateway(IpAddr),
}

/// A route to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// To whom.
    pub to: Prefix,
    /// Where they go.
    pub way: Way,
    /// The source address of the node's own packets.
    pub source: Option<IpAddr>,
}

/// A route as the kernel has it, in the main table.
struct Found {
    to: Prefix,
    device: Option<u32>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    metric: u32,
    message: RouteMessage,
}

impl Found {
    fn is_own(&self) -> bool {
        self.message.header.protocol == PROTOCOL
    }

    /// Whether packets take this route rather than one of weir's, or take its place.
    fn is_in_the_way(&self) -> bool {
        !self.is_own() && self.metric <= metric(self.to)
    }

    fn is(&self, route: &Route) -> bool {
        let way = match route.way {
            Way::Device(device) => self.gateway.is_none() && self.device == Some(device),
            Way::Gateway(gateway) => self.gateway == Some(gateway),
        };
        self.to == route.to && way && self.source == route.source && self.metric == metric(self.to)
    }
}

fn metric(to: Prefix) -> u32 {
    if to.is_ipv4() { 0 } else { METRIC6 }
}

impl Net {
    /// Makes these the only routes of weir. Returns why there is none to a prefix behind a gateway; without one to a device
    /// nothing works, so that is an error.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn ensure_routes(&self, wanted: &[Route]) -> Result<Vec<String>, NetError> {
        let before = self.routes().await?;
        let mut without = Vec::new();
        for route in wanted.iter().filter(|route| !before.iter().any(|found| found.is_own() && found.is(route))) {
            let other = before.iter().find(|found| found.to == route.to && found.is_in_the_way());
            let added = match other {
                Some(_) => Err(Failed::Other),
                None => self.add_route(route).await?,
            };
            match (added, route.way) {
                (Ok(()), _) => {}
                (Err(why), Way::Gateway(gateway)) => {
                    without.push(format!("route to {}: {}", route.to, why.text(gateway)))
                }
                (Err(_), Way::Device(_)) => {
                    let other = io::Error::new(io::ErrorKind::AlreadyExists, "there is one that is not weir's");
                    return Err(failed_io(format!("route to {}", route.to))(other));
                }
            }
        }
        let wanted: BTreeSet<Prefix> = wanted.iter().map(|route| route.to).collect();
        for found in before.into_iter().filter(|found| found.is_own() && !wanted.contains(&found.to)) {
            self.remove_route(found).await?;
        }
        Ok(without)
    }

    /// Removes every route of weir.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn remove_routes(&self) -> Result<(), NetError> {
        self.ensure_routes(&[]).await.map(|_| ())
    }

    async fn remove_route(&self, found: Found) -> Result<(), NetError> {
        match self.0.route().del(found.message).execute().await {
            // It went with its device.
            Err(error) if !is_errno(&error, Errno::SRCH) => {
                Err(failed(format!("remove the route to {}", found.to))(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn add_route(&self, route: &Route) -> Result<Result<(), Failed>, NetError> {
        let message = message(route)?;
        let Err(error) = self.0.route().add(message).replace().execute().await else {
            return Ok(Ok(()));
        };
        let gone = [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::NETDOWN, Errno::INVAL];
        if matches!(route.way, Way::Gateway(_)) && gone.into_iter().any(|errno| is_errno(&error, errno)) {
            return Ok(Err(Failed::OffLink));
        }
        Err(failed(format!("route to {}", route.to))(error))
    }

    /// The main table.
    async fn routes(&self) -> Result<Vec<Found>, NetError> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            question.header.table = RouteHeader::RT_TABLE_MAIN;
            let mut found = std::pin::pin!(self.0.route().get(question).execute());
            while let Some(message) = found.try_next().await.map_err(failed("list routes"))? {
                let main = message.header.table == RouteHeader::RT_TABLE_MAIN;
                if main && message.header.kind == RouteType::Unicast {
                    all.extend(read(message));
                }
            }
        }
        Ok(all)
    }
}

/// Why there is no route.
enum Failed {
    /// The gateway is on no network of this node.
    OffLink,
    /// Somebody else made one.
    Other,
}

impl Failed {
    fn text(&self, gateway: IpAddr) -> String {
        match self {
            Self::OffLink => format!(
                "{gateway} is on no network of this node: set `direct-routes = false` where routers know the way, or \
                 `routing-mode = \"tunnel\"`"
            ),
            Self::Other => "there is one that is not weir's: remove it, or set `direct-routes = false`".to_owned(),
        }
    }
}

fn message(route: &Route) -> Result<RouteMessage, NetError> {
    let wrong = |error| failed_io(format!("route to {}", route.to))(io::Error::other(format!("{error:?}")));
    let on_link = matches!(route.way, Way::Device(_)) && route.to.is_ipv4();
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .protocol(PROTOCOL)
        .scope(if on_link { RouteScope::Link } else { RouteScope::Universe })
        .destination_prefix(route.to.address(), route.to.length())
        .map_err(wrong)?;
    let builder = match route.way {
        Way::Device(device) => builder.output_interface(device),
        Way::Gateway(gateway) => builder.gateway(gateway).map_err(wrong)?,
    };
    Ok(match route.source {
        Some(source) => builder.pref_source(source).map_err(wrong)?.build(),
        None => builder.build(),
    })
}

fn read(message: RouteMessage) -> Option<Found> {
    let ipv6 = message.header.address_family == AddressFamily::Inet6;
    let unspecified = if ipv6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
    let length = message.header.destination_prefix_length;
    let mut found =
        Found { to: Prefix::new(unspecified, 0)?, device: None, gateway: None, source: None, metric: 0, message };
    let mut to = unspecified;
    for attribute in &found.message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            to = ip(address)?;
        } else if let RouteAttribute::Oif(device) = attribute {
            found.device = Some(*device);
        } else if let RouteAttribute::Gateway(address) = attribute {
            found.gateway = ip(address);
        } else if let RouteAttribute::PrefSource(address) = attribute {
            found.source = ip(address);
        } else if let RouteAttribute::Priority(metric) = attribute {
            found.metric = *metric;
        }
    }
    found.to = Prefix::new(to, length)?;
    Some(found)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        Some(IpAddr::V4(*address))
    } else if let RouteAddress::Inet6(address) = address {
        Some(IpAddr::V6(*address))
    } else {
        None
    }
}
