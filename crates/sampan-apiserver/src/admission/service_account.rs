//! ServiceAccount: every pod has an account that exists, and its token, authority and namespace mounted
//! (`plugin/pkg/admission/serviceaccount`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sampan_api::Failure;
use sampan_api::object::{child_mut, lookup, text};
use sampan_base::{Clock, Dice};
use serde_json::{Value, json};

use super::{Operation, Plugin, Request, forbidden, list_mut};
use crate::lookup::Lookup;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// An hour and a bit: by the odd number the API server knows tokens that were not asked for.
const TOKEN_SECONDS: i64 = 3607;
/// A controller makes the account `default` of a new namespace; a pod that comes right after it waits a little.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

pub struct ServiceAccount {
    pub lookup: Arc<dyn Lookup>,
    pub clock: Clock,
    pub dice: Dice,
}

impl ServiceAccount {
    async fn account(&self, namespace: &str, name: &str) -> Option<Value> {
        let attempts = if name == "default" { ATTEMPTS } else { 1 };
        for attempt in 0..attempts {
            if attempt > 0 {
                self.clock.sleep(PAUSE).await;
            }
            if let Some(account) = self.lookup.value("", "serviceaccounts", namespace, name) {
                return Some(account);
            }
        }
        None
    }
}

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Failure> {
        if request.operation != Operation::Create || !request.is_for("", "pods") {
            return Ok(());
        }
        if lookup(&request.object, &["metadata", "annotations", MIRROR_POD]).is_some() {
            return mirror(request);
        }
        let spec = child_mut(&mut request.object, "spec");
        let mut asked = ["serviceAccountName", "serviceAccount"].iter().filter_map(|key| spec.get(*key)?.as_str());
        let name = asked.find(|name| !name.is_empty()).unwrap_or("default").to_owned();
        // The old name of the field follows the new one.
        for key in ["serviceAccountName", "serviceAccount"] {
            spec.insert(key.into(), name.as_str().into());
        }
        let namespace = request.namespace;
        let Some(account) = self.account(namespace, &name).await else {
            let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
            return Err(forbidden(request, why));
        };
        let automount = |object: &Value, path: &[&str]| lookup(object, path).and_then(Value::as_bool);
        if automount(&request.object, &["spec", "automountServiceAccountToken"])
            .or(automount(&account, &["automountServiceAccountToken"]))
            .unwrap_or(true)
        {
            mount(&mut request.object, &self.dice);
        }
        let secrets = account.get("imagePullSecrets").and_then(Value::as_array).filter(|list| !list.is_empty());
        let own = list_mut(child_mut(&mut request.object, "spec"), "imagePullSecrets");
        match secrets {
            Some(secrets) if own.is_empty() => own.clone_from(secrets),
            _ if own.is_empty() => drop(child_mut(&mut request.object, "spec").remove("imagePullSecrets")),
            _ => {}
        }
        Ok(())
    }
}

/// Pods that stand for a file on a node run without the API: they name no account and no secret.
fn mirror(request: &Request<'_>) -> Result<(), Failure> {
    if !text(&request.object, &["spec", "serviceAccountName"]).is_empty() {
        return Err(forbidden(request, "a mirror pod may not reference service accounts"));
    }
    let volumes = lookup(&request.object, &["spec", "volumes"]).and_then(Value::as_array);
    if volumes.into_iter().flatten().any(|volume| volume.get("secret").is_some_and(|secret| !secret.is_null())) {
        return Err(forbidden(request, "a mirror pod may not reference secrets"));
    }
    Ok(())
}

/// Mounts the token in every container that mounts nothing there itself.
fn mount(pod: &mut Value, dice: &Dice) {
    let spec = child_mut(pod, "spec");
    let volumes = list_mut(spec, "volumes");
    let names: BTreeSet<&str> = volumes.iter().map(|volume| text(volume, &["name"])).collect();
    // A pod written from another one's manifest brings the volume along.
    let known = names.iter().find(|name| name.starts_with(VOLUME_PREFIX)).map(|name| (*name).to_owned());
    let fresh = || {
        let candidates = std::iter::repeat_with(|| format!("{VOLUME_PREFIX}{}", dice.suffix(5)));
        candidates.take(10).find(|name| !names.contains(name.as_str())).unwrap_or_else(|| VOLUME_PREFIX.into())
    };
    let name = known.clone().unwrap_or_else(fresh);
    if volumes.is_empty() {
        spec.remove("volumes");
    }
    let mut needed = false;
    for containers in ["initContainers", "containers"] {
        let containers = spec.get_mut(containers).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let mounts = list_mut(container, "volumeMounts");
            if !mounts.iter().any(|mount| text(mount, &["mountPath"]) == MOUNT_PATH) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                needed = true;
            }
        }
    }
    if needed && known.is_none() {
        list_mut(spec, "volumes").push(volume(&name));
    }
}

fn volume(name: &str) -> Value {
    let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{kind, request};
    use crate::auth::User;
    use crate::lookup::testing::Objects;

    async fn admit(accounts: &[Value], pod: Value) -> Result<Value, Failure> {
        let objects = Objects::default();
        for account in accounts {
            objects.put("", "serviceaccounts", account);
        }
        let plugin = ServiceAccount { lookup: Arc::new(objects), clock: Clock::system(), dice: Dice::seeded(1) };
        let (kind, user) = (kind("", "v1", "pods", true), User::default());
        let mut asked = request(&kind, &user, Operation::Create, "ns", "p");
        asked.object = pod;
        plugin.mutate(&mut asked).await.map(|()| asked.object)
    }

    fn account(more: Value) -> Value {
        let mut account = json!({"metadata": {"namespace": "ns", "name": "default"}});
        account.as_object_mut().expect("a map").extend(more.as_object().cloned().unwrap_or_default());
        account
    }

    #[tokio::test]
    async fn the_token_is_mounted_in_every_container() {
        let own = json!({"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]});
        let pod = json!({"spec": {"containers": [{"name": "a"}, own], "initContainers": [{"name": "i"}]}});
        let secrets = account(json!({"imagePullSecrets": [{"name": "pull"}]}));
        let pod = admit(&[secrets], pod).await.expect("admitted");
        let spec = &pod["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
        let name = spec["volumes"][0]["name"].as_str().expect("a name");
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5, "{name}");
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], name);
        assert_eq!(spec["initContainers"][0]["volumeMounts"][0]["name"], name);
        assert_eq!(spec["containers"][1], own);
        // Admitting the result again changes nothing.
        assert_eq!(
            admit(&[account(json!({}))], pod.clone()).await.expect("admitted")["spec"]["volumes"],
            spec["volumes"]
        );
    }

    #[tokio::test]
    async fn the_pod_decides_before_the_account() {
        let pod = |automount: Option<bool>| {
            let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
            if let Some(automount) = automount {
                pod["spec"]["automountServiceAccountToken"] = automount.into();
            }
            pod
        };
        let silent = account(json!({"automountServiceAccountToken": false}));
        let mounted = |pod: Value| pod["spec"].get("volumes").is_some();
        assert!(!mounted(admit(std::slice::from_ref(&silent), pod(None)).await.expect("admitted")));
        assert!(mounted(admit(&[silent], pod(Some(true))).await.expect("admitted")));
        assert!(!mounted(admit(&[account(json!({}))], pod(Some(false))).await.expect("admitted")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_that_is_not_there() {
        let refused = admit(&[], json!({"spec": {"serviceAccountName": "x"}})).await.expect_err("refused");
        let why = r#"pods "p" is forbidden: error looking up service account ns/x: serviceaccount "x" not found"#;
        assert_eq!(refused.message, why);
    }
}
