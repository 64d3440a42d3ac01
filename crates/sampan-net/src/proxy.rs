//! The service proxy: Services and EndpointSlices become nftables elements, a change of one a change of few. Every start
//! makes the table anew in one transaction, so that nothing of a former process is left over.

pub mod compile;
pub mod netlink;
pub mod skeleton;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sampan_api::Gvr;
use sampan_base::{Clock, task};
use sampan_client::informer::{Informer, Key};
use sampan_client::{Client, ListOptions};
use tokio::sync::watch;

use crate::views::{Service, Slice};
use crate::{NetError, ServiceProxy, nft};
use compile::{Book, Delta, Element, Fate, Front};
use netlink::Balancer;

/// Changes that come together are programmed together.
const GATHER: Duration = Duration::from_millis(1);
const RETRY: Duration = Duration::from_secs(1);
/// After this node's proxy has let go of an endpoint: the proxies of other nodes hear of the same change at the same time
/// and may need a little longer, and connections on their way still arrive.
const SETTLE: Duration = Duration::from_millis(150);

#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// This node's name: which endpoints are local.
    pub node: String,
    /// Addresses this node answers itself (its DNS): left alone.
    pub own: Vec<IpAddr>,
}

/// The running proxy. Dropping it leaves the rules in place: connections go on.
pub struct Proxy {
    /// `None` until this process has programmed the kernel: what a former one left leads nobody knows where.
    in_force: watch::Receiver<Option<Arc<BTreeSet<IpAddr>>>>,
    clock: Clock,
    _tasks: task::Group,
}

impl Proxy {
    pub fn spawn(client: Client, config: ProxyConfig, clock: Clock) -> Self {
        let gvr =
            |group: &str, resource: &str| Gvr { group: group.into(), version: "v1".into(), resource: resource.into() };
        let services = Informer::spawn(client.clone(), gvr("", "services"), ListOptions::default(), clock.clone());
        let slices =
            Informer::spawn(client, gvr("discovery.k8s.io", "endpointslices"), ListOptions::default(), clock.clone());
        let (sender, in_force) = watch::channel(None);
        let mut tasks = task::Group::default();
        tasks.spawn("service proxy", run(services, slices, config, clock.clone(), sender));
        Self { in_force, clock, _tasks: tasks }
    }
}

#[async_trait]
impl ServiceProxy for Proxy {
    async fn withdrawn(&self, addresses: &[IpAddr]) {
        let mut in_force = self.in_force.clone();
        // The sender ends with the proxy; then nothing is programmed any more.
        let Ok(known) = in_force.wait_for(Option::is_some).await.map(|known| known.clone()) else { return };
        let leads = |known: &Option<Arc<BTreeSet<IpAddr>>>| {
            known.as_ref().is_some_and(|known| addresses.iter().any(|address| known.contains(address)))
        };
        if leads(&known) {
            let _ = in_force.wait_for(|known| !leads(known)).await;
            self.clock.sleep(SETTLE).await;
        }
    }
}

struct State {
    config: ProxyConfig,
    services: BTreeMap<Key, Arc<Service>>,
    slices: BTreeMap<Key, BTreeMap<String, Arc<Slice>>>,
    book: Book,
    balancers: BTreeSet<Balancer>,
}

async fn run(
    services: Informer<Service>,
    slices: Informer<Slice>,
    config: ProxyConfig,
    clock: Clock,
    in_force: watch::Sender<Option<Arc<BTreeSet<IpAddr>>>>,
) {
    // With half of the lists in, Services would be refused that have endpoints.
    services.synced().await;
    slices.synced().await;
    let (mut of_services, mut of_slices) = (services.subscribe(), slices.subscribe());
    let mut state = State {
        config,
        services: BTreeMap::new(),
        slices: BTreeMap::new(),
        book: Book::default(),
        balancers: BTreeSet::new(),
    };
    let mut in_kernel = false;
    loop {
        let mut dirty = BTreeSet::new();
        tokio::select! {
            biased;
            Some(change) = of_services.recv() => state.take_service(change.key, change.new, &mut dirty),
            Some(change) = of_slices.recv() => {
                state.take_slice(&change.key, change.old.as_deref(), change.new, &mut dirty);
            }
            else => return,
        }
        clock.sleep(GATHER).await;
        while let Ok(change) = of_services.try_recv() {
            state.take_service(change.key, change.new, &mut dirty);
        }
        while let Ok(change) = of_slices.try_recv() {
            state.take_slice(&change.key, change.old.as_deref(), change.new, &mut dirty);
        }
        let delta = state.update(dirty);
        loop {
            // Anything the kernel refuses is mended by making the table anew.
            let step = if in_kernel { state.changed(&delta) } else { state.everything() };
            let result = task::spawn_blocking(move || step.perform()).await;
            match result.map_err(|error| NetError::System(error.to_string())).and_then(|result| result) {
                Ok(()) => break,
                Err(error) => tracing::error!(%error, "cannot program the service proxy"),
            }
            if !in_kernel {
                clock.sleep(RETRY).await;
            }
            in_kernel = false;
        }
        in_kernel = true;
        in_force.send_replace(Some(Arc::new(state.endpoints())));
    }
}

/// One transaction for the kernel.
struct Step {
    skeleton: Option<String>,
    sticky: Vec<String>,
    balancers: Vec<Balancer>,
    remove: Vec<Element>,
    add: Vec<Element>,
}

impl Step {
    fn perform(self) -> Result<(), NetError> {
        if let Some(script) = &self.skeleton {
            // The table is empty until it is filled; meanwhile a connection must not get past it.
            nft::run(&skeleton::pause(&self.add))?;
            nft::run(script)?;
        }
        if !self.sticky.is_empty() {
            nft::run(&self.sticky.concat())?;
        }
        match self.skeleton {
            Some(_) => {
                netlink::fill(&self.balancers, &self.add)?;
                nft::run(&skeleton::resume())
            }
            None => netlink::commit(&self.balancers, &self.remove, &self.add),
        }
    }
}

impl State {
    fn take_service(&mut self, key: Key, new: Option<Arc<Service>>, dirty: &mut BTreeSet<Key>) {
        match new {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(&key),
        };
        dirty.insert(key);
    }

    fn take_slice(&mut self, key: &Key, old: Option<&Slice>, new: Option<Arc<Slice>>, dirty: &mut BTreeSet<Key>) {
        let owner = |slice: &Slice| slice.service().map(|service| Key::new(key.namespace.clone(), service));
        if let Some(service) = old.and_then(owner) {
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.remove(&key.name);
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            dirty.insert(service);
        }
        if let Some((service, slice)) = new.and_then(|slice| Some((owner(&slice)?, slice))) {
            self.slices.entry(service.clone()).or_default().insert(key.name.clone(), slice);
            dirty.insert(service);
        }
    }

    fn update(&mut self, dirty: BTreeSet<Key>) -> Delta {
        let mut all = Delta::default();
        for key in dirty {
            let wanted = match self.services.get(&key) {
                Some(service) if !self.own(service) => {
                    let slices = self.slices.get(&key).into_iter().flat_map(BTreeMap::values).map(|slice| &**slice);
                    compile::compile(service, slices, &self.config.node)
                }
                _ => BTreeSet::new(),
            };
            let delta = self.book.set(&key.to_string(), wanted);
            all.remove.extend(delta.remove);
            all.add.extend(delta.add);
        }
        all
    }

    fn own(&self, service: &Service) -> bool {
        service.addresses().any(|address| self.config.own.contains(&address))
    }

    /// Where Services lead, but for endpoints on their way out that are used because there is no better one: waiting for
    /// those to be let go would gain nothing.
    fn endpoints(&self) -> BTreeSet<IpAddr> {
        let all = self.slices.values().flat_map(BTreeMap::values).flat_map(|slice| &slice.endpoints);
        let ending = all.filter(|one| one.conditions.terminating == Some(true));
        let ending: BTreeSet<IpAddr> = ending.flat_map(|one| one.addresses().next()).collect();
        let address = |element: &Element| match element {
            Element::Endpoint(_, _, address, _) if !ending.contains(address) => Some(*address),
            _ => None,
        };
        self.book.all().filter_map(address).collect()
    }

    fn changed(&mut self, delta: &Delta) -> Step {
        let sticky = self.sticky(&delta.add);
        let balancers = self.new_balancers(&delta.add);
        Step { skeleton: None, sticky, balancers, remove: delta.remove.clone(), add: delta.add.clone() }
    }

    fn everything(&mut self) -> Step {
        self.balancers.clear();
        let add: Vec<Element> = self.book.all().copied().collect();
        let sticky = self.sticky(&add);
        let balancers = self.new_balancers(&add);
        Step { skeleton: Some(skeleton::script()), sticky, balancers, remove: Vec::new(), add }
    }

    /// Chains for endpoint counts that were not seen before.
    fn new_balancers(&mut self, added: &[Element]) -> Vec<Balancer> {
        let mut new = Vec::new();
        for element in added {
            if let Element::Front(front, Fate::Balance(count)) = *element {
                let node_port = matches!(front, Front::NodePort(..));
                let balancer = Balancer { v4: front.is_ipv4(), node_port, count };
                if self.balancers.insert(balancer) {
                    new.push(balancer);
                }
            }
        }
        new
    }

    /// Chains of fronts with affinity that are new or whose endpoints changed.
    fn sticky(&self, added: &[Element]) -> Vec<String> {
        let touched: BTreeSet<Front> = added
            .iter()
            .filter_map(|element| match element {
                Element::Front(front, _) | Element::Endpoint(front, ..) => Some(*front),
                _ => None,
            })
            .collect();
        let seconds = |front: Front| {
            self.book.all().find_map(|element| match element {
                Element::Front(one, Fate::Sticky(_, seconds)) if *one == front => Some(*seconds),
                _ => None,
            })
        };
        let script = |front: Front| {
            let seconds = seconds(front)?;
            let endpoints: Vec<(IpAddr, u16)> = self
                .book
                .all()
                .filter_map(|element| match element {
                    Element::Endpoint(one, _, address, port) if *one == front => Some((*address, *port)),
                    _ => None,
                })
                .collect();
            Some(skeleton::sticky(front, &endpoints, seconds))
        };
        touched.into_iter().filter_map(script).collect()
    }
}
