//! What a local cluster changes in the network of this machine, and its undoing: one veth link and one route, IPv4
//! forwarding, one nftables table. Everything else is inside the cluster's own network namespace.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, bail};
use ipnet::IpNet;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use sampan_net::link::{Links, Route, everywhere};
use sampan_net::{netns, nft};

use super::Cluster;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// The bridge of the nodes and the uplink, inside the cluster's namespace.
const BRIDGE: &str = "nodes";
const UPLINK: &str = "host";

fn table(cluster: &Cluster) -> String {
    format!("sampan-{}", cluster.name)
}

/// Makes the cluster's namespace, its bridge and its uplink. Idempotent.
pub async fn set_up(cluster: &Cluster) -> anyhow::Result<()> {
    let namespace = cluster.netns();
    make_netns(&namespace)?;
    let (host_end, cluster_end) = cluster.uplink();
    let host = Links::open(None).await?;
    let link = cluster.link_name();
    if host.find(&link).await?.is_none() {
        let there = std::fs::File::open(&namespace).with_context(|| format!("open {}", namespace.display()))?;
        host.add_veth(&link, UPLINK, there.as_fd()).await?;
    }
    let index = host.index(&link).await?;
    host.add_address(index, host_end.into()).await?;
    host.up(index).await?;
    let via = |gateway| Route { gateway: Some(gateway), ..Route::default() };

    let inside = Links::open(Some(&namespace)).await?;
    inside.up(inside.index("lo").await?).await?;
    inside.add_bridge(BRIDGE).await?;
    let bridge = inside.index(BRIDGE).await?;
    let nodes = cluster.node_range();
    inside.add_address(bridge, IpNet::new(cluster.server_address().into(), nodes.prefix_len())?).await?;
    inside.up(bridge).await?;
    let uplink = inside.index(UPLINK).await?;
    inside.add_address(uplink, cluster_end.into()).await?;
    inside.up(uplink).await?;
    inside.route(everywhere(host_end.addr().into()), uplink, &via(host_end.addr().into())).await?;
    netns::run_in(&namespace, || std::fs::write(FORWARDING, "1")).await?;

    host.route(nodes.into(), index, &via(cluster_end.addr().into())).await?;
    allow_forwarding(cluster)?;
    let chains = format!(
        "  chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n    \
             ip saddr {nodes} oifname != \"{link}\" masquerade\n  }}\n  \
           chain forward {{\n    type filter hook forward priority filter; policy accept;\n    \
             iifname \"{link}\" accept\n    oifname \"{link}\" ct state established,related accept\n  }}\n",
    );
    Ok(nft::run(&nft::replace("inet", &table(cluster), &chains))?)
}

/// Links a node's namespace to the bridge and gives it its address. Idempotent; a node that was started anew has a new
/// namespace and gets a new link.
pub async fn connect_node(cluster: &Cluster, position: usize, netns: &Path) -> anyhow::Result<()> {
    let namespace = cluster.netns();
    let inside = Links::open(Some(&namespace)).await?;
    let node = Links::open(Some(netns)).await?;
    let port = format!("node{position}");
    if node.find("eth0").await?.is_none() {
        inside.delete(&port).await?;
        let there = std::fs::File::open(netns).with_context(|| format!("open {}", netns.display()))?;
        inside.add_veth(&port, "eth0", there.as_fd()).await?;
    }
    let outer = inside.index(&port).await?;
    inside.enslave(outer, inside.index(BRIDGE).await?).await?;
    inside.up(outer).await?;
    node.up(node.index("lo").await?).await?;
    let inner = node.index("eth0").await?;
    let address = IpNet::new(cluster.node_address(position).into(), cluster.node_range().prefix_len())?;
    node.add_address(inner, address).await?;
    node.up(inner).await?;
    let gateway = cluster.server_address().into();
    node.route(everywhere(gateway), inner, &Route { gateway: Some(gateway), ..Route::default() }).await?;
    netns::run_in(netns, || std::fs::write(FORWARDING, "1")).await?;
    Ok(())
}

/// Undoes [`set_up`]. What is absent counts as undone.
pub async fn tear_down(cluster: &Cluster) -> anyhow::Result<()> {
    nft::run(&nft::delete("inet", &table(cluster)))?;
    let host = Links::open(None).await?;
    host.delete(&cluster.link_name()).await?;
    let namespace = cluster.netns();
    // Twice over if an interrupted `up` mounted it twice.
    while umount2(&namespace, MntFlags::MNT_DETACH).is_ok() {}
    match std::fs::remove_file(&namespace) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", namespace.display()));
        }
        _ => {}
    }
    restore_forwarding(cluster)
}

/// A network namespace that lives as long as a file names it.
fn make_netns(path: &Path) -> anyhow::Result<()> {
    if is_netns(path) {
        return Ok(());
    }
    std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let target = path.to_path_buf();
    // A namespace belongs to a thread: this one makes it, pins it by the mount, and ends.
    let made = std::thread::spawn(move || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    });
    match made.join() {
        Ok(result) => result.with_context(|| format!("make the network namespace {}", path.display())),
        Err(_) => bail!("the thread that makes the network namespace died"),
    }
}

fn is_netns(path: &Path) -> bool {
    const NSFS: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x6e73_6673);
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS)
}

/// Where the setting before us is kept.
fn forwarding_record(cluster: &Cluster) -> std::path::PathBuf {
    cluster.run_dir().join("ip_forward.before")
}

fn allow_forwarding(cluster: &Cluster) -> anyhow::Result<()> {
    let before = std::fs::read_to_string(FORWARDING).with_context(|| format!("read {FORWARDING}"))?;
    if before.trim() != "1" {
        std::fs::write(forwarding_record(cluster), before.trim())?;
        std::fs::write(FORWARDING, "1").with_context(|| format!("write {FORWARDING}"))?;
    }
    Ok(())
}

/// Puts the setting back when it was ours and no other cluster needs it: the record then passes to that one.
fn restore_forwarding(cluster: &Cluster) -> anyhow::Result<()> {
    let record = forwarding_record(cluster);
    let Ok(before) = std::fs::read_to_string(&record) else { return Ok(()) };
    match super::all()?.into_iter().find(|other| other.name != cluster.name) {
        Some(heir) => std::fs::write(forwarding_record(&heir), &before)?,
        None => std::fs::write(FORWARDING, &before).with_context(|| format!("write {FORWARDING}"))?,
    }
    std::fs::remove_file(&record).with_context(|| format!("remove {}", record.display()))
}

/// The ranges this machine has routes to, for choosing addresses.
pub fn routes() -> anyhow::Result<Vec<IpNet>> {
    let text = std::fs::read_to_string("/proc/net/route").context("read /proc/net/route")?;
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |field: &str| u32::from_str_radix(field, 16).ok().map(u32::swap_bytes);
        let (to, mask) = (number(fields.get(1)?)?, number(fields.get(7)?)?);
        ipnet::Ipv4Net::new(to.into(), mask.leading_ones() as u8).ok().map(IpNet::from)
    };
    Ok(text.lines().skip(1).filter_map(parse).collect())
}
