//! A whole server as it is shipped, over TLS, with its state in memory.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, header};
use sampan_apiserver::auth::authn::{Certified, Chain};
use sampan_apiserver::auth::node::NodeAuthorizer;
use sampan_apiserver::auth::rbac::Rbac;
use sampan_apiserver::auth::review::Reviews;
use sampan_apiserver::auth::serviceaccount::Tokens;
use sampan_apiserver::auth::{Authorizer, MASTERS, Union, hooks};
use sampan_apiserver::bootstrap::{self, policy};
use sampan_apiserver::lookup::Lookup;
use sampan_apiserver::streaming::Nodes;
use sampan_apiserver::{Config, Local, Server, StoreLookup, Version, admission, feed, listener, services};
use sampan_base::disk::MemoryDisk;
use sampan_base::{Clock, Dice, task};
use sampan_client::tls::Tls;
use sampan_client::{Client, Error, InProcess};
use sampan_store::{Config as StoreConfig, History, KeyRing, Store};
use sampan_wire::pki::{Ca, Identity, LEAF_LIFETIME, Subject, TokenKey, Usage};
use sampan_wire::tls;
use serde_json::Value;

pub struct Cluster {
    pub ca: Ca,
    pub address: String,
    pub clock: Clock,
    pub dice: Dice,
    pub own: Client,
    pub kubernetes: bootstrap::kubernetes::Config,
}

impl Cluster {
    pub async fn start() -> Self {
        let (clock, dice) = (Clock::system(), Dice::system());
        let store = Store::open(StoreConfig {
            disk: Arc::new(MemoryDisk::default()),
            dir: "state".into(),
            clock: clock.clone(),
            dice: dice.clone(),
            keys: KeyRing::plain(),
            history: History::default(),
        })
        .await
        .expect("a store");
        let lookup: Arc<dyn Lookup> = Arc::new(StoreLookup(store.clone()));
        let rbac = Arc::new(Rbac::default());
        let nodes = Arc::new(NodeAuthorizer::new(policy::node_rules()));
        feed(&store, &clock, vec![rbac.clone(), nodes.clone()]).await.expect("a feed");
        let (key, _) = TokenKey::generate().expect("a key");
        let tokens = Arc::new(Tokens::new("https://issuer", &[], key, lookup.clone(), clock.clone(), dice.clone()));
        let authorizer: Arc<dyn Authorizer> = Arc::new(Union(vec![nodes, rbac.clone()]));
        let reviews = Reviews { authorizer: authorizer.clone(), rbac: rbac.clone(), tokens: tokens.clone() };
        let (ca, _) = Ca::generate("test", LEAF_LIFETIME, &clock, &dice).expect("an authority");
        let kubelet_client = ca
            .issue(&Subject::new("kube-apiserver-kubelet-client", &[]), &Usage::Client, LEAF_LIFETIME, &clock, &dice)
            .expect("a certificate");
        let streaming = Nodes::new(&[ca.certificate_pem()], &kubelet_client, clock.clone()).expect("streaming");
        let server = Server::new(Config {
            store,
            kinds: Arc::new(ArcSwap::new(sampan_api::kind::builtin())),
            authenticators: Chain(vec![Arc::new(Certified), tokens.clone()]),
            authorizer: authorizer.clone(),
            plugins: admission::plugins(&lookup, &rbac, &authorizer, &clock, &dice),
            computed: hooks::computed(reviews, &tokens, &lookup),
            streaming: Some(Arc::new(streaming)),
            audit: None,
            pages: vec![Arc::new(hooks::OpenId { tokens, server: "https://server".into() })],
            writable: None,
            clock: clock.clone(),
            dice: dice.clone(),
            version: Version::default(),
            ranges: services::Ranges::default(),
            form_cache_bytes: 1 << 20,
        });
        let entry = Arc::new(Local(server.clone()));
        let own = Client::new(Arc::new(InProcess::new(entry, bootstrap::USER, &[MASTERS])));
        let kubernetes = bootstrap::kubernetes::Config {
            service_ip: [10, 96, 0, 1].into(),
            endpoints: vec![[10, 0, 0, 2].into()],
            port: 6443,
        };
        bootstrap::run(&own, &kubernetes).await.expect("the objects every cluster has");
        let names = Usage::Server { dns: vec![], ips: vec![[127, 0, 0, 1].into()] };
        let serving =
            ca.issue(&Subject::new("apiserver", &[]), &names, LEAF_LIFETIME, &clock, &dice).expect("a certificate");
        let config = tls::server_config(&serving, &[ca.certificate_pem()]).expect("a configuration");
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("bound").to_string();
        task::spawn("listener", listener::serve(socket, config, server));
        Self { ca, address, clock, dice, own, kubernetes }
    }

    pub fn identity(&self, user: &str, groups: &[&str]) -> Identity {
        let subject = Subject::new(user, groups);
        self.ca.issue(&subject, &Usage::Client, LEAF_LIFETIME, &self.clock, &self.dice).expect("a certificate")
    }

    pub fn transport(&self, identity: Option<&Identity>) -> Tls {
        let servers = [self.address.clone()];
        Tls::new(&servers, &[self.ca.certificate_pem()], identity, self.clock.clone()).expect("a transport")
    }

    pub fn user(&self, name: &str, groups: &[&str]) -> Client {
        Client::new(Arc::new(self.transport(Some(&self.identity(name, groups)))))
    }

    pub fn anonymous(&self) -> Client {
        Client::new(Arc::new(self.transport(None)))
    }

    pub fn bearer(&self, token: &str) -> Client {
        Client::new(Arc::new(self.transport(None).with_token(token).expect("a token")))
    }
}

pub async fn call(
    client: &Client,
    method: Method,
    path: &str,
    body: Value,
    headers: &[(&str, &str)],
) -> Result<Value, Error> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = request.header(header::CONTENT_TYPE, "application/json").body(body).expect("a request");
    let answer = client.request(request).await?;
    Ok(serde_json::from_slice(&answer).unwrap_or_else(|_| String::from_utf8_lossy(&answer).into()))
}

pub async fn get(client: &Client, path: &str) -> Result<Value, Error> {
    call(client, Method::GET, path, Value::Null, &[]).await
}

pub async fn post(client: &Client, path: &str, body: Value) -> Result<Value, Error> {
    call(client, Method::POST, path, body, &[]).await
}

pub fn message(outcome: Result<Value, Error>) -> String {
    outcome.expect_err("refused").to_string()
}
