//! The routed pod network: a veth pair and a /32 route for each pod, no bridge. The pod's default route leads to a
//! link-local address that every host end carries, so pods need no gateway in their range.
//!
//! Addresses are on disk before they are used: one small file for each sandbox below the data directory. That file is the
//! only record; links and routes follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net};
use sampan_base::disk::SharedDisk;
use sampan_base::task;

use crate::link::{Links, Route, everywhere};
use crate::{NetError, PodLink, PodNetwork};

/// The address of the host end of every pod's link.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The names of the host ends begin with it.
pub const PREFIX: &str = "smp";
/// The pod's own link, as everywhere in this field.
const POD_LINK: &str = "eth0";

/// The pods of one node.
pub struct RoutedPods {
    ranges: Vec<IpNet>,
    /// What this node's own traffic to pods comes from.
    node_address: Option<IpAddr>,
    disk: SharedDisk,
    directory: PathBuf,
    links: Links,
    leases: Mutex<Leases>,
}

/// Who has which address. Freed addresses go to the back: an address is not used again at once, so that what still
/// knows the old pod does not reach the new one.
#[derive(Default)]
struct Leases {
    by_sandbox: BTreeMap<String, Vec<IpAddr>>,
    taken: BTreeSet<IpAddr>,
    /// Per range: where the next search starts.
    cursor: BTreeMap<IpNet, IpAddr>,
}

impl Leases {
    /// The next free address of a range after the cursor. The first address of a range is never given out (it is the
    /// network's own), nor is the last of an IPv4 range (broadcast, to those who think in subnets).
    fn pick(&mut self, range: IpNet) -> Option<IpAddr> {
        let hosts = || range.hosts().filter(|address| *address != range.network());
        let from = self.cursor.get(&range).copied();
        let after = hosts().skip_while(|address| from.is_some_and(|from| *address <= from));
        let free = after.chain(hosts()).find(|address| !self.taken.contains(address))?;
        self.cursor.insert(range, free);
        Some(free)
    }
}

/// A link name for a sandbox: at most 15 characters, the same after a restart.
fn link_name(sandbox: &str) -> String {
    // FNV-1a: short names only need to differ among the pods of one node.
    let hash = sandbox
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{PREFIX}{:012x}", hash & 0xffff_ffff_ffff)
}

impl RoutedPods {
    /// Reads the allocations of a former process. `node_address` is this node's own.
    pub async fn open(
        ranges: Vec<IpNet>,
        node_address: Option<IpAddr>,
        disk: SharedDisk,
        directory: PathBuf,
    ) -> Result<Self, NetError> {
        let reading = (disk.clone(), directory.clone());
        let leases = task::spawn_blocking(move || read_leases(&*reading.0, &reading.1))
            .await
            .map_err(|error| NetError::System(format!("read the address allocations: {error}")))??;
        let links = Links::open(None).await?;
        Ok(Self { ranges, node_address, disk, directory, links, leases: Mutex::new(leases) })
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The addresses of a sandbox, new ones when it has none; durable when this returns.
    async fn lease(&self, sandbox: &str) -> Result<Vec<IpAddr>, NetError> {
        let addresses = {
            let mut leases = self.lock();
            if let Some(addresses) = leases.by_sandbox.get(sandbox) {
                return Ok(addresses.clone());
            }
            let mut addresses = Vec::new();
            for range in &self.ranges {
                let Some(address) = leases.pick(*range) else {
                    for address in &addresses {
                        leases.taken.remove(address);
                    }
                    return Err(NetError::Exhausted(self.ranges.clone()));
                };
                leases.taken.insert(address);
                addresses.push(address);
            }
            leases.by_sandbox.insert(sandbox.into(), addresses.clone());
            addresses
        };
        let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        let (disk, path) = (self.disk.clone(), self.directory.join(sandbox));
        let written = task::spawn_blocking(move || disk.replace(&path, text.as_bytes())).await;
        let written = written.map_err(|error| error.to_string());
        if let Err(error) = written.and_then(|result| result.map_err(|error| error.to_string())) {
            self.forget(sandbox);
            return Err(NetError::System(format!("record the addresses of {sandbox}: {error}")));
        }
        Ok(addresses)
    }

    fn forget(&self, sandbox: &str) {
        let mut leases = self.lock();
        for address in leases.by_sandbox.remove(sandbox).unwrap_or_default() {
            leases.taken.remove(&address);
        }
    }
}

fn read_leases(disk: &dyn sampan_base::disk::Disk, directory: &std::path::Path) -> Result<Leases, NetError> {
    let failed = |error| NetError::step(format!("read {}", directory.display()), error);
    disk.create_dir_all(directory).map_err(failed)?;
    let mut leases = Leases::default();
    for name in disk.list(directory).map_err(failed)? {
        let Some(sandbox) = name.to_str().filter(|name| !name.ends_with(".tmp")) else { continue };
        let bytes = disk.read(&directory.join(&name)).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes);
        let addresses: Vec<IpAddr> = text.lines().filter_map(|line| line.parse().ok()).collect();
        leases.taken.extend(&addresses);
        leases.by_sandbox.insert(sandbox.into(), addresses);
    }
    Ok(leases)
}

/// A host route: `address/32` or `/128`.
fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

#[async_trait]
impl PodNetwork for RoutedPods {
    async fn attach(&self, pod: &PodLink<'_>) -> Result<Vec<IpAddr>, NetError> {
        let addresses = self.lease(pod.sandbox).await?;
        let name = link_name(pod.sandbox);
        let inside = Links::open(Some(pod.netns)).await?;
        if inside.find(POD_LINK).await?.is_none() {
            // A link without its other end is the rest of an attempt that was cut short.
            self.links.delete(&name).await?;
            let netns = File::open(pod.netns).map_err(|error| NetError::step("open the pod's namespace", error))?;
            self.links.add_veth(&name, POD_LINK, netns.as_fd()).await?;
        }
        let outer = self.links.index(&name).await?;
        let inner = inside.index(POD_LINK).await?;
        let gateway = IpNet::from(Ipv4Net::new_assert(GATEWAY, 32));
        self.links.add_address(outer, gateway).await?;
        self.links.up(outer).await?;
        for address in &addresses {
            inside.add_address(inner, host(*address)).await?;
        }
        inside.up(inner).await?;
        for address in &addresses {
            let to_pod = Route { source: self.node_address, ..Route::default() };
            self.links.route(host(*address), outer, &to_pod).await?;
            if address.is_ipv4() {
                let out = Route { gateway: Some(GATEWAY.into()), onlink: true, source: Some(*address) };
                inside.route(everywhere(*address), inner, &out).await?;
            }
        }
        Ok(addresses)
    }

    async fn detach(&self, sandbox: &str) -> Result<(), NetError> {
        // The routes go with the link; the allocation goes last, so that a crash in between is found by `sweep`.
        self.links.delete(&link_name(sandbox)).await?;
        let (disk, path) = (self.disk.clone(), self.directory.join(sandbox));
        let removed = task::spawn_blocking(move || disk.remove(&path)).await;
        match removed.map_err(|error| NetError::System(error.to_string()))? {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(NetError::step(format!("free the addresses of {sandbox}"), error));
            }
            _ => {}
        }
        self.forget(sandbox);
        Ok(())
    }

    async fn sweep(&self, live: &[String]) -> Result<(), NetError> {
        let known: Vec<String> = self.lock().by_sandbox.keys().cloned().collect();
        for sandbox in known.iter().filter(|sandbox| !live.contains(sandbox)) {
            self.detach(sandbox).await?;
        }
        let expected: BTreeSet<String> = live.iter().map(|sandbox| link_name(sandbox)).collect();
        for name in self.links.names().await? {
            let ours = name.len() == 15
                && name.starts_with(PREFIX)
                && name[PREFIX.len()..].bytes().all(|b| b.is_ascii_hexdigit());
            if ours && !expected.contains(&name) {
                self.links.delete(&name).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_not_reused_at_once() {
        let range: IpNet = "10.1.2.0/29".parse().expect("a range");
        let mut leases = Leases::default();
        let take = |leases: &mut Leases| {
            let address = leases.pick(range)?;
            leases.taken.insert(address);
            Some(address.to_string())
        };
        assert_eq!(take(&mut leases).as_deref(), Some("10.1.2.1"));
        leases.taken.clear();
        let rest: Vec<String> = std::iter::from_fn(|| take(&mut leases)).collect();
        assert_eq!(rest, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6", "10.1.2.1"]);
    }

    #[test]
    fn link_names_fit_and_differ() {
        let (a, b) = (link_name("sandbox-a"), link_name("sandbox-b"));
        assert_eq!(a.len(), 15);
        assert_ne!(a, b);
    }
}
