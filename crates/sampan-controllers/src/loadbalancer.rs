//! Services of type LoadBalancer on addresses of this cluster's own machines: writes them into the status. The nodes'
//! service proxy answers there. A Service with a `loadBalancerClass` belongs to another controller.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sampan_client::Error;
use sampan_client::informer::{Informer, Key};
use serde_json::{Value, json};

use crate::endpoints::Service;
use crate::framework::{Action, Context, Controller, Reconciler, SERVICES};

/// The status the Service should have, when it has another one.
fn plan(service: &Service, addresses: &[IpAddr]) -> Option<Value> {
    let present = service.status.load_balancer.get("ingress").cloned().unwrap_or_else(|| json!([]));
    let ours = service.spec.kind == "LoadBalancer" && service.spec.load_balancer_class.is_none();
    let wanted: Vec<Value> = if ours && service.metadata.deletion_timestamp.is_none() {
        let families = &service.spec.ip_families;
        let family = |address: &&IpAddr| {
            families.is_empty() || families.iter().any(|family| (family == "IPv4") == address.is_ipv4())
        };
        addresses.iter().filter(family).map(|ip| json!({"ip": ip.to_string(), "ipMode": "VIP"})).collect()
    } else if service.spec.kind == "LoadBalancer" {
        return None;
    } else {
        Vec::new()
    };
    (Value::from(wanted.clone()) != present)
        .then(|| json!({"metadata": {"uid": service.metadata.uid}, "status": {"loadBalancer": {"ingress": wanted}}}))
}

struct Balancers {
    context: Context,
    services: Informer<Service>,
    addresses: Vec<IpAddr>,
}

/// Wires the controller up; it runs until it is dropped.
pub fn start(context: Context, services: Informer<Service>, addresses: Vec<IpAddr>) -> Controller {
    let mut controller = Controller::new("service load balancer", &context.clock);
    controller.source(&services, |change| change.new.iter().map(|_| change.key.clone()).collect());
    let synced = services.clone();
    let ready = async move { synced.synced().await };
    controller.work(1, ready, Arc::new(Balancers { context, services, addresses }));
    controller
}

#[async_trait]
impl Reconciler for Balancers {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(service) = self.services.get(key) else { return Ok(None) };
        let Some(patch) = plan(&service, &self.addresses) else { return Ok(None) };
        match self.context.perform(&Action::merge(SERVICES, key.clone(), patch).on("status")).await {
            Err(error) if error.is_not_found() => Ok(None),
            outcome => outcome.map(|_| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_with_the_type_and_go_with_it() {
        let addresses: Vec<IpAddr> = ["10.0.0.1", "fd00::1"].map(|text| text.parse().expect("an address")).into();
        let check = |spec: Value, ingress: Value, expected: Option<Value>| {
            let object = json!({"spec": spec, "status": {"loadBalancer": {"ingress": ingress}}});
            let service: Service = serde_json::from_value(object).expect("a Service");
            let found = plan(&service, &addresses).map(|patch| patch["status"]["loadBalancer"]["ingress"].clone());
            assert_eq!(found, expected);
        };
        let v4 = json!([{"ip": "10.0.0.1", "ipMode": "VIP"}]);
        let balancer = json!({"type": "LoadBalancer", "ipFamilies": ["IPv4"]});
        check(balancer.clone(), json!([]), Some(v4.clone()));
        check(balancer, v4.clone(), None);
        check(json!({"type": "ClusterIP"}), v4.clone(), Some(json!([])));
        check(json!({"type": "ClusterIP"}), json!([]), None);
        check(json!({"type": "LoadBalancer", "loadBalancerClass": "other"}), v4, None);
    }
}
