//! The roles that speak to the API as clients: scheduler and controllers. Each leads by a lease and starts again when it
//! ends.

use std::sync::Arc;

use sampan_apiserver::auth::serviceaccount;
use sampan_base::{Clock, Dice, task};
use sampan_client::leader::Candidate;
use sampan_client::transport::Entry;
use sampan_client::{Client, InProcess};
use sampan_controllers::framework::ClientFor;

use super::Config;

/// A client of this process under a user's name.
fn client(entry: &Arc<dyn Entry>, user: &str) -> Client {
    let mut groups = vec!["system:authenticated".to_owned()];
    if let Some((namespace, _)) = serviceaccount::split_username(user) {
        groups.extend(serviceaccount::groups(namespace));
    }
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    Client::new(Arc::new(InProcess::new(entry.clone(), user, &groups)))
}

pub fn start(tasks: &mut task::Group, config: &Config, entry: Arc<dyn Entry>, ca: &str, clock: &Clock, dice: &Dice) {
    let led = Led { entry, identity: format!("sampan-{}", config.name), clock: clock.clone() };
    {
        let (clock, dice) = (clock.clone(), dice.clone());
        led.start(tasks, "kube-scheduler", "system:kube-scheduler", move |client_for| {
            sampan_scheduler::run(client_for("system:kube-scheduler"), clock.clone(), dice.clone())
        });
    }
    let settings = sampan_controllers::Config {
        cluster_ranges: config.pod_ranges.clone(),
        node_prefixes: (config.node_mask_v4, 64),
        root_ca: ca.into(),
        load_balancer_addresses: config.load_balancer_addresses.clone(),
    };
    let (clock, dice) = (clock.clone(), dice.clone());
    led.start(tasks, "kube-controller-manager", sampan_controllers::READER, move |client_for| {
        sampan_controllers::run(client_for, settings.clone(), clock.clone(), dice.clone())
    });
}

/// Starts roles under leadership.
struct Led {
    entry: Arc<dyn Entry>,
    /// Of this installation: after a crash it takes its own leases up at once.
    identity: String,
    clock: Clock,
}

impl Led {
    /// Runs `role` whenever this server holds `lease` as `user`. It is given clients by user name, whose writes carry the
    /// leader's fence.
    fn start<F, Fut>(&self, tasks: &mut task::Group, lease: &'static str, user: &'static str, role: F)
    where
        F: Fn(ClientFor) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (entry, clock, identity) = (self.entry.clone(), self.clock.clone(), self.identity.clone());
        let role = Arc::new(role);
        tasks.adopt(task::supervise(lease, clock.clone(), move || {
            let (entry, clock, role) = (entry.clone(), clock.clone(), role.clone());
            let candidate =
                Candidate { namespace: "kube-system".into(), lease: lease.into(), identity: identity.clone() };
            async move {
                let leader = candidate.lead(client(&entry, user).named(lease), clock).await;
                let fence = leader.fence().clone();
                let client_for: ClientFor =
                    Arc::new(move |user: &str| client(&entry, user).named(lease).fenced(fence.clone()));
                tokio::select! {
                    () = role(client_for) => {}
                    () = leader.lost() => {}
                }
            }
        }));
    }
}
