//! Who asks, for what, and may they: the contracts of authentication and authorization. Implementations stand in the
//! modules below.

pub mod authn;
pub mod escalation;
pub mod hooks;
pub mod impersonate;
pub mod jwt;
pub mod node;
pub mod rbac;
pub mod review;
pub mod rule;
pub mod serviceaccount;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::{Failure, Reason};

/// An authenticated caller (`user.Info`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const ANONYMOUS: &str = "system:anonymous";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const MASTERS: &str = "system:masters";

impl User {
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Self { name: name.into(), groups, ..Self::default() }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }
}

impl From<sampan_wire::pki::Subject> for User {
    /// A client certificate names the user in its common name and the groups in its organisations.
    fn from(subject: sampan_wire::pki::Subject) -> Self {
        Self { name: subject.cn, groups: subject.orgs, ..Self::default() }
    }
}

/// The answer to missing or wrong credentials. It never says which part was wrong.
pub fn unauthorized() -> Failure {
    Failure::new(Reason::Unauthorized, "Unauthorized")
}

/// What the transport knows of the caller.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// A verified client certificate's common name and organisations, or an in-process identity.
    pub certified: Option<User>,
    pub address: Option<std::net::SocketAddr>,
}

/// Turns credentials into a user. `Ok(None)`: no credentials this authenticator knows; `Err`: they are there and wrong.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    async fn authenticate(&self, peer: &Peer, headers: &http::HeaderMap) -> Result<Option<User>, Failure>;
}

/// What a request asks for (`authorizer.Attributes`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub user: User,
    /// `get list watch create update patch delete deletecollection`, and kind-specific ones (`bind`, `impersonate`, …); the
    /// lower-case HTTP method for non-resource requests.
    pub verb: String,
    pub resource_request: bool,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Non-resource requests.
    pub path: String,
    /// The equality requirements (`field=value`) of the request's field selector: what a node may list depends on them.
    pub field_selector: Vec<(String, String)>,
}

impl Attributes {
    /// `pods`, `pods/exec`.
    pub fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow { reason: String },
    Deny { reason: String },
    NoOpinion { reason: String },
}

#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    async fn authorize(&self, attributes: &Attributes) -> Decision;
}

/// Asks again before it refuses: the indexes that authorizers decide by follow the commits, and a right that was granted
/// a moment ago must count. Only refusals wait.
pub struct Current {
    pub authorizer: Arc<dyn Authorizer>,
    pub feed: crate::state::Feed,
}

#[async_trait]
impl Authorizer for Current {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        match self.authorizer.authorize(attributes).await {
            Decision::NoOpinion { .. } => {
                self.feed.caught_up().await;
                self.authorizer.authorize(attributes).await
            }
            decided => decided,
        }
    }
}

/// Asks one authorizer after the other; the first that has an opinion decides (upstream's `union`). The group
/// `system:masters` may do everything and is asked for first, so that no mistake in a role locks the administrator out.
pub struct Union(pub Vec<Arc<dyn Authorizer>>);

#[async_trait]
impl Authorizer for Union {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        if attributes.user.in_group(MASTERS) {
            return Decision::Allow { reason: String::new() };
        }
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            match authorizer.authorize(attributes).await {
                Decision::NoOpinion { reason } if reason.is_empty() => {}
                Decision::NoOpinion { reason } => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion { reason: reasons.join("\n") }
    }
}

/// Allows or fails with the message upstream gives.
pub async fn require(authorizer: &dyn Authorizer, attributes: &Attributes) -> Result<(), Failure> {
    match authorizer.authorize(attributes).await {
        Decision::Allow { .. } => Ok(()),
        Decision::Deny { reason } | Decision::NoOpinion { reason } => Err(forbidden(attributes, &reason)),
    }
}

/// `pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default"`, with the reason
/// behind it where an authorizer gave one (`k8s.io/apiserver/pkg/endpoints/handlers/responsewriters`).
pub fn forbidden(attributes: &Attributes, reason: &str) -> Failure {
    let Attributes { user, verb, group, resource, namespace, name, path, .. } = attributes;
    let user = &user.name;
    let mut message = if !attributes.resource_request {
        format!("User {user:?} cannot {verb} path {path:?}")
    } else {
        let scope = match namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!("User {user:?} cannot {verb} resource {:?} in API group {group:?} {scope}", attributes.resource_path())
    };
    // Browsers may show it as HTML; upstream escapes these three.
    message = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    if attributes.resource_request {
        Failure::forbidden(group, resource, name, message)
    } else {
        Failure::forbidden("", "", "", message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_messages_are_upstreams() {
        let mut attributes = Attributes {
            user: User::new("x", &[]),
            verb: "list".into(),
            resource_request: true,
            resource: "pods".into(),
            namespace: "default".into(),
            ..Attributes::default()
        };
        let message = |attributes: &Attributes| forbidden(attributes, "").message;
        assert_eq!(
            message(&attributes),
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        attributes.namespace.clear();
        attributes.group = "apps".into();
        attributes.subresource = "scale".into();
        attributes.resource = "deployments".into();
        attributes.name = "web".into();
        assert_eq!(
            message(&attributes),
            r#"deployments.apps "web" is forbidden: User "x" cannot list resource "deployments/scale" in API group "apps" at the cluster scope"#
        );
        let path =
            Attributes { user: User::new("x", &[]), verb: "get".into(), path: "/".into(), ..Attributes::default() };
        let failure = forbidden(&path, "RBAC: why");
        assert_eq!(failure.message, r#"forbidden: User "x" cannot get path "/": RBAC: why"#);
        assert_eq!(failure.code, 403);
    }
}
