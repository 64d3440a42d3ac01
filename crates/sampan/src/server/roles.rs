//! The roles that speak to the API as clients: scheduler and controllers. Each leads by a lease and starts again when it
//! ends.

use std::sync::Arc;

use sampan_base::{Clock, Dice, task};
use sampan_client::leader::Candidate;
use sampan_client::transport::Entry;
use sampan_client::{Client, InProcess};

use super::Config;

/// A client of this process under a user's name.
fn client(entry: &Arc<dyn Entry>, user: &str, groups: &[&str]) -> Client {
    Client::new(Arc::new(InProcess::new(entry.clone(), user, groups)))
}

pub fn start(tasks: &mut task::Group, config: &Config, entry: Arc<dyn Entry>, ca: &str, clock: &Clock, dice: &Dice) {
    let _ = (ca, config);
    let authenticated = "system:authenticated";
    let identity = format!("sampan-{}", config.name);
    {
        let (clock, dice) = (clock.clone(), dice.clone());
        let scheduler = client(&entry, "system:kube-scheduler", &[authenticated]);
        let lease = Candidate { namespace: "kube-system".into(), lease: "kube-scheduler".into(), identity };
        let supervised = task::supervise("scheduler", clock.clone(), move || {
            let (scheduler, clock, dice, lease) = (scheduler.clone(), clock.clone(), dice.clone(), lease.clone());
            async move {
                let leader = lease.lead(scheduler, clock.clone()).await;
                tokio::select! {
                    _ = sampan_scheduler::run(leader.client(), clock, dice) => {}
                    () = leader.lost() => {}
                }
            }
        });
        tasks.adopt(supervised);
    }
}
