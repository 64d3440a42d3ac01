//! What the server is handed beside its state: admission, computed resources, streaming, pages, audit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderMap, Response};
use sampan_api::Failure;
use sampan_apiserver::admission::Plugin;
use sampan_apiserver::auth::Authorizer;
use sampan_apiserver::auth::escalation::Escalation;
use sampan_apiserver::auth::rbac::Rbac;
use sampan_apiserver::auth::review::Reviews;
use sampan_apiserver::auth::serviceaccount::Tokens;
use sampan_apiserver::body::ResponseBody;
use sampan_apiserver::hooks::{Audit, Call, Computed, Streaming};
use sampan_apiserver::lookup::Lookup;
use sampan_apiserver::request_info::RequestInfo;
use sampan_apiserver::server::Pages;
use sampan_apiserver::services::Ranges;
use sampan_apiserver::{Server, respond};
use sampan_base::{Clock, Dice};
use sampan_client::api::Target;
use sampan_client::{Client, Error, WriteOptions};
use sampan_wire::pki::Identity;
use serde_json::{Value, json};

use super::Config;

/// Admission in upstream's order.
pub fn plugins(
    _lookup: &Arc<dyn Lookup>,
    rbac: &Arc<Rbac>,
    authorizer: &Arc<dyn Authorizer>,
    _dice: &Dice,
) -> Vec<Arc<dyn Plugin>> {
    vec![Arc::new(Escalation { rbac: rbac.clone(), authorizer: authorizer.clone() })]
}

/// Resources whose create is a question.
pub fn computed(reviews: Arc<Reviews>, tokens: Arc<Tokens>) -> BTreeMap<(String, String), Arc<dyn Computed>> {
    let reviews: Arc<dyn Computed> = Arc::new(Asked(reviews));
    let of = |group: &str, resource: &str| ((group.to_owned(), resource.to_owned()), reviews.clone());
    let mut all = BTreeMap::from([
        of("authentication.k8s.io", "tokenreviews"),
        of("authentication.k8s.io", "selfsubjectreviews"),
        of("authorization.k8s.io", "subjectaccessreviews"),
        of("authorization.k8s.io", "selfsubjectaccessreviews"),
        of("authorization.k8s.io", "localsubjectaccessreviews"),
        of("authorization.k8s.io", "selfsubjectrulesreviews"),
    ]);
    all.insert((String::new(), "serviceaccounts/token".into()), Arc::new(Requested(tokens)));
    all
}

struct Asked(Arc<Reviews>);

#[async_trait]
impl Computed for Asked {
    async fn create(&self, call: Call<'_>, object: Value) -> Result<Value, Failure> {
        self.0.review(call.kind, call.namespace, object, call.user).await
    }
}

struct Requested(Arc<Tokens>);

#[async_trait]
impl Computed for Requested {
    async fn create(&self, call: Call<'_>, object: Value) -> Result<Value, Failure> {
        self.0.create(call.namespace, call.name, object)
    }
}

pub fn streaming(_identity: &Identity, _ca: &str) -> anyhow::Result<Option<Arc<dyn Streaming>>> {
    Ok(None)
}

pub fn audit(_data: &Path, _clock: &Clock) -> anyhow::Result<Option<Arc<dyn Audit>>> {
    Ok(None)
}

pub fn pages(config: &Config, tokens: Arc<Tokens>) -> Vec<Arc<dyn Pages>> {
    vec![Arc::new(Issuer(tokens, format!("https://{}", config.advertise)))]
}

/// What others need to check our service-account tokens.
struct Issuer(Arc<Tokens>, String);

const CONFIGURATION: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

#[async_trait]
impl Pages for Issuer {
    async fn answer(&self, _: &Server, info: &RequestInfo, _: &HeaderMap) -> Option<Response<ResponseBody>> {
        match info.path.as_str() {
            CONFIGURATION => Some(respond::json(200, &self.0.openid_configuration(&self.1))),
            KEYS => Some(respond::json(200, &self.0.jwks())),
            _ => None,
        }
    }

    fn paths(&self) -> Vec<String> {
        vec![CONFIGURATION.into(), KEYS.into()]
    }
}

pub fn ranges(config: &Config) -> anyhow::Result<Ranges> {
    Ok(Ranges { cluster: config.service_ranges.clone(), ..Ranges::default() })
}

/// The Service that leads to the DNS every node answers itself; clients and tools look for it by this name.
pub async fn dns_service(client: &Client, config: &Config) -> Result<(), Error> {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": 53});
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"},
        },
        "spec": {"clusterIP": config.dns, "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")]},
    });
    let target = Target {
        group: "",
        version: "v1",
        resource: "services",
        namespace: Some("kube-system"),
        name: None,
        subresource: None,
    };
    match client.create_raw(&target, object.to_string().into(), &WriteOptions::default()).await {
        Err(error) if error.is_already_exists() => Ok(()),
        // The address is taken by this very Service: it was made by an earlier start.
        Err(error) if error.is_invalid() => client.get_raw(&target.name("kube-dns")).await.map(drop),
        other => other.map(drop),
    }
}
