//! The cluster that is measured, as a kubeconfig describes it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sampan_base::Clock;
use sampan_client::tls::Tls;
use sampan_client::{Client, WriteOptions, api};
use sampan_wire::pki::Identity;
use serde_json::{Value, json};

pub struct Target {
    server: String,
    ca: String,
    identity: Identity,
    clock: Clock,
}

impl Target {
    /// Reads the current context; certificates are expected inline, as `sampan up` writes them.
    pub fn read(path: &Path, clock: &Clock) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let config: Value = serde_saphyr::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        let context = named(&config, "contexts", "context", &config["current-context"])?;
        let cluster = named(&config, "clusters", "cluster", &context["cluster"])?;
        let user = named(&config, "users", "user", &context["user"])?;
        Ok(Self {
            server: cluster["server"].as_str().context("the cluster names no server")?.to_owned(),
            ca: inline(cluster, "certificate-authority-data")?,
            identity: Identity {
                certificate_pem: inline(user, "client-certificate-data")?,
                key_pem: inline(user, "client-key-data")?,
            },
            clock: clock.clone(),
        })
    }

    /// A transport with a connection of its own.
    pub fn transport(&self) -> anyhow::Result<Arc<Tls>> {
        let servers = std::slice::from_ref(&self.server);
        Ok(Arc::new(Tls::new(servers, &[&self.ca], Some(&self.identity), self.clock.clone())?))
    }

    /// A client with a connection of its own.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(self.transport()?))
    }

    /// A namespace, ready for pods.
    pub async fn namespace(&self, client: &Client, name: &str) -> anyhow::Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let (namespaces, options) = (core("namespaces", None), WriteOptions::default());
        match client.create_raw(&namespaces, object.to_string().into(), &options).await {
            Err(error) if error.is_already_exists() => {}
            other => drop(other?),
        }
        // Pods are refused until the namespace has its service account.
        let account = core("serviceaccounts", Some(name)).name("default");
        while client.get_raw(&account).await.is_err() {
            self.clock.sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

/// A collection of the core group.
pub fn core<'a>(resource: &'a str, namespace: Option<&'a str>) -> api::Target<'a> {
    api::Target { group: "", version: "v1", resource, namespace, name: None, subresource: None }
}

fn named<'a>(config: &'a Value, section: &str, entry: &str, name: &Value) -> anyhow::Result<&'a Value> {
    let entries = config[section].as_array().map(Vec::as_slice).unwrap_or_default();
    match entries.iter().find(|one| one["name"] == *name) {
        Some(found) => Ok(&found[entry]),
        None => bail!("the kubeconfig has no {entry} {name}"),
    }
}

fn inline(entry: &Value, field: &str) -> anyhow::Result<String> {
    let text = entry[field].as_str().with_context(|| format!("the kubeconfig has no {field}"))?;
    Ok(String::from_utf8(BASE64.decode(text).with_context(|| format!("read {field}"))?)?)
}
