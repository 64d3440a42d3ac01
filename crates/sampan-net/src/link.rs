//! Links, addresses and routes by netlink: the few operations that pod networks and local clusters are made of. Each is
//! idempotent: what is there already counts as done.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use sampan_base::task;

use crate::{NetError, netns};

/// A netlink connection into one network namespace.
pub struct Links {
    handle: Handle,
    _connection: task::Group,
}

/// Where a route leads.
#[derive(Clone, Debug, Default)]
pub struct Route {
    pub gateway: Option<IpAddr>,
    /// The gateway need not lie in a subnet of the link.
    pub onlink: bool,
    /// The source address of what this machine itself sends.
    pub source: Option<IpAddr>,
}

impl Links {
    /// Connects to the namespace at `netns`, or to the caller's own.
    pub async fn open(netns: Option<&Path>) -> Result<Self, NetError> {
        let (connection, handle, _) = match netns {
            Some(path) => netns::run_in(path, rtnetlink::new_connection).await?,
            None => rtnetlink::new_connection().map_err(|error| NetError::step("open netlink", error))?,
        };
        let mut tasks = task::Group::default();
        tasks.spawn("netlink", connection);
        Ok(Self { handle, _connection: tasks })
    }

    /// The index of a link, `None` when there is none of that name.
    pub async fn find(&self, name: &str) -> Result<Option<u32>, NetError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if is(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("look up link {name}"), error)),
        }
    }

    pub async fn index(&self, name: &str) -> Result<u32, NetError> {
        self.find(name).await?.ok_or_else(|| NetError::System(format!("link {name} does not exist")))
    }

    /// The names of all links.
    pub async fn names(&self) -> Result<Vec<String>, NetError> {
        let mut links = self.handle.link().get().execute();
        let mut names = Vec::new();
        while let Some(link) = links.try_next().await.map_err(|error| failed("list links", error))? {
            names.extend(link.attributes.into_iter().filter_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            }));
        }
        Ok(names)
    }

    /// A veth pair: `name` here and `peer` in the namespace `there`.
    pub async fn add_veth(&self, name: &str, peer: &str, there: BorrowedFd<'_>) -> Result<(), NetError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(peer).setns_by_fd(there.as_raw_fd()).build();
        let link = LinkVeth::new(name, "").set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
        done(self.handle.link().add(link).execute().await, || format!("create veth {name}"))
    }

    pub async fn add_bridge(&self, name: &str) -> Result<(), NetError> {
        done(self.handle.link().add(LinkBridge::new(name).build()).execute().await, || format!("create bridge {name}"))
    }

    /// Puts a link under a bridge.
    pub async fn enslave(&self, link: u32, bridge: u32) -> Result<(), NetError> {
        let change = LinkUnspec::new_with_index(link).controller(bridge).build();
        done(self.handle.link().set(change).execute().await, || format!("put link {link} under bridge {bridge}"))
    }

    pub async fn up(&self, link: u32) -> Result<(), NetError> {
        let change = LinkUnspec::new_with_index(link).up().build();
        done(self.handle.link().set(change).execute().await, || format!("set link {link} up"))
    }

    /// Deletes a link; an absent one counts as deleted.
    pub async fn delete(&self, name: &str) -> Result<(), NetError> {
        let Some(index) = self.find(name).await? else { return Ok(()) };
        match self.handle.link().del(index).execute().await {
            Err(error) if !is(&error, libc::ENODEV) => Err(failed(format!("delete link {name}"), error)),
            _ => Ok(()),
        }
    }

    pub async fn add_address(&self, link: u32, address: IpNet) -> Result<(), NetError> {
        let request = self.handle.address().add(link, address.addr(), address.prefix_len());
        done(request.execute().await, || format!("add address {address}"))
    }

    /// Adds or replaces the route to `to` through `link`.
    pub async fn route(&self, to: IpNet, link: u32, route: &Route) -> Result<(), NetError> {
        self.add_route(to, Some(link), route).await
    }

    /// Adds or replaces the route to `to` through whatever link its gateway is on.
    pub async fn route_via(&self, to: IpNet, route: &Route) -> Result<(), NetError> {
        self.add_route(to, None, route).await
    }

    async fn add_route(&self, to: IpNet, link: Option<u32>, route: &Route) -> Result<(), NetError> {
        let invalid = |error| NetError::System(format!("route to {to}: {error}"));
        let mut message =
            RouteMessageBuilder::<IpAddr>::new().destination_prefix(to.network(), to.prefix_len()).map_err(invalid)?;
        if let Some(link) = link {
            message = message.output_interface(link);
        }
        if let Some(gateway) = route.gateway {
            message = message.gateway(gateway).map_err(invalid)?;
        } else if to.addr().is_ipv4() {
            message = message.scope(RouteScope::Link);
        }
        if route.onlink {
            message = message.onlink();
        }
        if let Some(source) = route.source {
            message = message.pref_source(source).map_err(invalid)?;
        }
        let request = self.handle.route().add(message.build()).replace();
        done(request.execute().await, || format!("route to {to}"))
    }

    /// Deletes the route to exactly `to`; an absent one counts as deleted.
    pub async fn delete_route(&self, to: IpNet) -> Result<(), NetError> {
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .map_err(|error| NetError::System(format!("route to {to}: {error}")))?;
        match self.handle.route().del(message.build()).execute().await {
            Err(error) if !is(&error, libc::ESRCH) => Err(failed(format!("delete the route to {to}"), error)),
            _ => Ok(()),
        }
    }
}

/// `0.0.0.0/0` or `::/0`.
pub fn everywhere(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::from(ipnet::Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => IpNet::from(ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    }
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

fn failed(step: impl Into<String>, error: rtnetlink::Error) -> NetError {
    let text = match &error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    };
    NetError::System(format!("{}: {text}", step.into()))
}

/// What is there already counts as done.
fn done(result: Result<(), rtnetlink::Error>, step: impl FnOnce() -> String) -> Result<(), NetError> {
    match result {
        Err(error) if !is(&error, libc::EEXIST) => Err(failed(step(), error)),
        _ => Ok(()),
    }
}
