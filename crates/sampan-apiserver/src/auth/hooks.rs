//! How the core of the server reaches what this module answers: reviews and token requests as computed creates, the
//! documents of OpenID discovery as pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderMap, Response};
use sampan_api::Failure;
use serde_json::Value;

use super::review::Reviews;
use super::serviceaccount::Tokens;
use crate::admission::node_restriction::NodeRestriction;
use crate::body::ResponseBody;
use crate::hooks::{Call, Computed};
use crate::lookup::Lookup;
use crate::request_info::RequestInfo;
use crate::respond;
use crate::server::{Pages, Server};

#[async_trait]
impl Computed for Reviews {
    async fn create(&self, call: Call<'_>, object: Value) -> Result<Value, Failure> {
        self.review(call.kind, call.namespace, object, call.user).await
    }
}

/// `serviceaccounts/token`.
struct TokenRequests {
    tokens: Arc<Tokens>,
    restriction: NodeRestriction,
}

#[async_trait]
impl Computed for TokenRequests {
    async fn create(&self, call: Call<'_>, object: Value) -> Result<Value, Failure> {
        self.restriction.token(call.user, call.namespace, call.name, &object)?;
        self.tokens.create(call.namespace, call.name, object)
    }
}

/// What computes which create: for `Config::computed`.
pub fn computed(
    reviews: Reviews,
    tokens: &Arc<Tokens>,
    lookup: &Arc<dyn Lookup>,
) -> BTreeMap<(String, String), Arc<dyn Computed>> {
    let reviews: Arc<dyn Computed> = Arc::new(reviews);
    let restriction = NodeRestriction { lookup: lookup.clone() };
    let requests: Arc<dyn Computed> = Arc::new(TokenRequests { tokens: tokens.clone(), restriction });
    let authentication = ["tokenreviews", "selfsubjectreviews"].map(|resource| ("authentication.k8s.io", resource));
    let authorization =
        ["subjectaccessreviews", "localsubjectaccessreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"]
            .map(|resource| ("authorization.k8s.io", resource));
    let all = authentication.into_iter().chain(authorization).map(|key| (key, reviews.clone()));
    all.chain([(("", "serviceaccounts/token"), requests)])
        .map(|((group, resource), computed)| ((group.to_owned(), resource.to_owned()), computed))
        .collect()
}

/// `/.well-known/openid-configuration` and `/openid/v1/jwks`.
pub struct OpenId {
    pub tokens: Arc<Tokens>,
    /// Where others reach this server: `https://HOST:PORT`.
    pub server: String,
}

const CONFIGURATION: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

#[async_trait]
impl Pages for OpenId {
    async fn answer(&self, _: &Server, info: &RequestInfo, _: &HeaderMap) -> Option<Response<ResponseBody>> {
        let (content_type, document) = match info.path.as_str() {
            CONFIGURATION => ("application/json", self.tokens.openid_configuration(&self.server)),
            KEYS => ("application/jwk-set+json", self.tokens.jwks()),
            _ => return None,
        };
        Some(respond::bytes(200, content_type, document.to_string()))
    }

    fn paths(&self) -> Vec<String> {
        vec![CONFIGURATION.into(), KEYS.into()]
    }
}
