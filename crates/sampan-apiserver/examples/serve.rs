//! A bare API server for trying clients against: memory only, everything allowed, a certificate made at the start.
//!
//! ```text
//! cargo run -p sampan-apiserver --example serve -- /tmp/kubeconfig
//! kubectl --kubeconfig /tmp/kubeconfig get namespaces
//! ```

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use sampan_apiserver::auth::authn::{Certified, Chain};
use sampan_apiserver::auth::{Attributes, Authorizer, Decision, MASTERS};
use sampan_apiserver::{Config, Local, Server, Version, listener, services};
use sampan_base::disk::MemoryDisk;
use sampan_base::{Clock, Dice, task};
use sampan_client::{Client, InProcess};
use sampan_store::{Config as StoreConfig, History, KeyRing, Store};
use sampan_wire::pki::{self, Ca, Subject, Usage};
use sampan_wire::tls;

struct AllowAll;

#[async_trait]
impl Authorizer for AllowAll {
    async fn authorize(&self, _: &Attributes) -> Decision {
        Decision::Allow { reason: String::new() }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    sampan_base::logging::init("info");
    let (clock, dice) = (Clock::system(), Dice::system());
    let store = Store::open(StoreConfig {
        disk: Arc::new(MemoryDisk::default()),
        dir: "state".into(),
        clock: clock.clone(),
        dice: dice.clone(),
        keys: KeyRing::plain(),
        history: History::default(),
    })
    .await?;
    let server = Server::new(Config {
        store,
        kinds: Arc::new(ArcSwap::new(sampan_api::kind::builtin())),
        authenticators: Chain(vec![Arc::new(Certified)]),
        authorizer: Arc::new(AllowAll),
        plugins: Vec::new(),
        computed: Default::default(),
        streaming: None,
        audit: None,
        pages: Vec::new(),
        writable: None,
        clock: clock.clone(),
        dice: dice.clone(),
        version: Version::default(),
        ranges: services::Ranges::default(),
        form_cache_bytes: 16 << 20,
    });
    let client = Client::new(Arc::new(InProcess::new(Arc::new(Local(server.clone())), "system:apiserver", &[MASTERS])));
    for name in ["default", "kube-system", "kube-public"] {
        let object = serde_json::json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}});
        let target = sampan_client::api::Target {
            group: "",
            version: "v1",
            resource: "namespaces",
            namespace: None,
            name: None,
            subresource: None,
        };
        client.create_raw(&target, object.to_string().into(), &Default::default()).await?;
    }
    let day = Duration::from_secs(24 * 3600);
    let (ca, _) = Ca::generate("sampan-example", day, &clock, &dice)?;
    let usage = Usage::Server { dns: vec!["localhost".into()], ips: vec![[127, 0, 0, 1].into()] };
    let serving = ca.issue(&Subject::new("apiserver", &[]), &usage, day, &clock, &dice)?;
    let admin = ca.issue(&Subject::new("admin", &[MASTERS]), &Usage::Client, day, &clock, &dice)?;
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("https://{}", socket.local_addr()?);
    let file = std::env::args().nth(1).unwrap_or_else(|| "kubeconfig".into());
    std::fs::write(&file, pki::kubeconfig("example", &address, ca.certificate_pem(), &admin))?;
    println!("serving on {address}; kubeconfig in {file}");
    let config = tls::server_config(&serving, &[ca.certificate_pem()])?;
    task::spawn("listener", listener::serve(socket, config, server)).await?;
    Ok(())
}
