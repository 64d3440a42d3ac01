//! Service accounts as users: their names, the tokens that prove them (`TokenRequest`), the check of such a token, and the
//! documents that let others check them (OpenID discovery).
//!
//! Claims are those of v1.37 (`pkg/serviceaccount/claims.go`). A token lives as long as what it is bound to: deleting the pod,
//! secret, node or account revokes it. Tokens in secrets that never expire (`kubernetes.io/service-account-token`) are not taken.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderMap;
use jiff::Timestamp;
use sampan_api::object::{Meta, child_mut, lookup, text};
use sampan_api::{Failure, FieldErrors, FieldPath};
use sampan_base::{Clock, Dice};
use sampan_wire::pki::TokenKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Authenticator, Peer, User, authn, jwt, unauthorized};
use crate::lookup::Lookup;

const USER_PREFIX: &str = "system:serviceaccount:";
pub const ALL_GROUP: &str = "system:serviceaccounts";
/// Clocks may differ by this much (go-jose's default).
const LEEWAY_SECONDS: i64 = 60;
/// What a kubelet asks for when a pod did not say otherwise; such tokens get a longer life, so that clients that never read
/// the file again go on working (`pkg/serviceaccount`, safe roll-out of bound tokens).
const INJECTED_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// How many verified signatures are remembered. Times and bindings are checked on every use.
const CACHE: usize = 4096;

pub fn username(namespace: &str, name: &str) -> String {
    format!("{USER_PREFIX}{namespace}:{name}")
}

/// Namespace and name of a service account's user name.
pub fn split_username(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(USER_PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

pub fn groups(namespace: &str) -> Vec<String> {
    vec![ALL_GROUP.into(), format!("{ALL_GROUP}:{namespace}")]
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ref {
    name: String,
    #[serde(default)]
    uid: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Ref>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Ref>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Ref>,
    serviceaccount: Ref,
    #[serde(skip_serializing_if = "Option::is_none")]
    warnafter: Option<i64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    #[serde(default)]
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
    nbf: i64,
    sub: String,
}

/// Makes and checks tokens.
pub struct Tokens {
    /// The `iss` of every token and the base of the discovery document.
    issuer: String,
    /// What a token is for when the request names no audience, and whom this server takes tokens for.
    audiences: Vec<String>,
    key: TokenKey,
    lookup: Arc<dyn Lookup>,
    clock: Clock,
    dice: Dice,
    verified: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

/// Why a token is not taken. Goes to the log and, from `TokenReview`, to those who may ask; never to the caller.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    #[error("invalid bearer token")]
    Token(#[from] jwt::Error),
    #[error("token is from another issuer")]
    Issuer,
    #[error("token audiences {0} is invalid for the target audiences {1}")]
    Audience(String, String),
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    Early,
    #[error("service account {0}/{1} has been deleted")]
    Account(String, String),
    #[error("service account token has been invalidated")]
    Bound,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    metadata: Meta,
}

impl Tokens {
    pub fn new(
        issuer: &str,
        audiences: &[String],
        key: TokenKey,
        lookup: Arc<dyn Lookup>,
        clock: Clock,
        dice: Dice,
    ) -> Self {
        // The issuer itself is always an audience, as upstream's default is.
        let audiences = if audiences.is_empty() { vec![issuer.to_owned()] } else { audiences.to_vec() };
        Self { issuer: issuer.into(), audiences, key, lookup, clock, dice, verified: Mutex::default() }
    }

    /// Whom this server takes tokens for.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// `POST …/serviceaccounts/NAME/token`: the `TokenRequest` with its status. `request` is decoded but not validated.
    pub fn create(&self, namespace: &str, name: &str, mut request: Value) -> Result<Value, Failure> {
        let seconds = validate(&request)?;
        let account: Named = self
            .lookup
            .view("", "serviceaccounts", namespace, name)
            .ok_or_else(|| Failure::not_found("", "serviceaccounts", name))?;
        let (mut pod, mut secret, mut node) = (None, None, None);
        if let Some(bound) = lookup(&request, &["spec", "boundObjectRef"]).filter(|bound| !bound.is_null()) {
            let found = self.bound_object(namespace, name, bound)?;
            match text(bound, &["kind"]) {
                "Pod" => {
                    let host = text(&found, &["spec", "nodeName"]);
                    node = (!host.is_empty()).then(|| {
                        let uid = self.lookup.view::<Named>("", "nodes", "", host).unwrap_or_default().metadata.uid;
                        Ref { name: host.into(), uid }
                    });
                    pod = Some(reference(&found));
                }
                "Node" => node = Some(reference(&found)),
                _ => secret = Some(reference(&found)),
            }
        }
        let mut audiences: Vec<String> = strings(lookup(&request, &["spec", "audiences"]));
        if audiences.is_empty() {
            audiences = self.audiences.clone();
        }
        let extend = pod.is_some() && seconds == INJECTED_SECONDS && audiences == self.audiences;
        let now = self.clock.now().as_second();
        let claims = Claims {
            aud: audiences.clone(),
            exp: now + if extend { EXTENDED_SECONDS } else { seconds },
            iat: now,
            iss: self.issuer.clone(),
            jti: self.dice.uid(),
            kubernetes: Bound {
                namespace: namespace.into(),
                node,
                pod,
                secret,
                serviceaccount: Ref { name: name.into(), uid: account.metadata.uid },
                warnafter: extend.then_some(now + seconds),
            },
            nbf: now,
            sub: username(namespace, name),
        };
        let token = jwt::sign(&claims, &self.key).map_err(Failure::internal)?;
        let time = |seconds| Timestamp::from_second(seconds).map(|time| time.to_string()).map_err(Failure::internal);
        let metadata = child_mut(&mut request, "metadata");
        metadata.insert("name".into(), name.into());
        metadata.insert("namespace".into(), namespace.into());
        metadata.insert("creationTimestamp".into(), time(now)?.into());
        let spec = child_mut(&mut request, "spec");
        spec.insert("audiences".into(), audiences.into());
        spec.insert("expirationSeconds".into(), seconds.into());
        // Clients are told the short life, so that they fetch the next token in time.
        request["status"] = json!({"token": token, "expirationTimestamp": time(now + seconds)?});
        Ok(request)
    }

    fn bound_object(&self, namespace: &str, account: &str, bound: &Value) -> Result<Value, Failure> {
        let (kind, name, uid) = (text(bound, &["kind"]), text(bound, &["name"]), text(bound, &["uid"]));
        let (resource, scope) = match (text(bound, &["apiVersion"]), kind) {
            ("v1", "Pod") => ("pods", namespace),
            ("v1", "Secret") => ("secrets", namespace),
            ("v1", "Node") => ("nodes", ""),
            (version, kind) => {
                let (group, version) = sampan_api::kind::split_api_version(version);
                let kind = if group.is_empty() {
                    format!("/{version}, Kind={kind}")
                } else {
                    format!("{group}/{version}, Kind={kind}")
                };
                return Err(Failure::bad_request(format!("cannot bind token to object of type {kind}")));
            }
        };
        let found = self.lookup.value("", resource, scope, name);
        let found = found.ok_or_else(|| Failure::not_found("", resource, name))?;
        if kind == "Pod" && text(&found, &["spec", "serviceAccountName"]) != account {
            return Err(Failure::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
            )));
        }
        let record = sampan_api::object::uid(&found);
        if !uid.is_empty() && uid != record {
            return Err(Failure::conflict(
                "",
                kind,
                name,
                format_args!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object might \
                     have been deleted and then recreated"
                ),
            ));
        }
        Ok(found)
    }

    /// Who holds this token, and which of `targets` it is for.
    pub fn check(&self, token: &str, targets: &[String]) -> Result<(User, Vec<String>), Invalid> {
        let claims = self.verified(token)?;
        if claims.iss != self.issuer {
            return Err(Invalid::Issuer);
        }
        let audiences: Vec<String> = targets.iter().filter(|target| claims.aud.contains(target)).cloned().collect();
        if audiences.is_empty() {
            return Err(Invalid::Audience(super::rule::quoted(&claims.aud), super::rule::quoted(targets)));
        }
        let now = self.clock.now().as_second();
        if claims.exp < now - LEEWAY_SECONDS {
            return Err(Invalid::Expired);
        }
        if claims.nbf > now + LEEWAY_SECONDS || claims.iat > now + LEEWAY_SECONDS {
            return Err(Invalid::Early);
        }
        self.check_bindings(&claims.kubernetes, now)?;
        Ok((user(&claims), audiences))
    }

    fn verified(&self, token: &str) -> Result<Arc<Claims>, Invalid> {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let cache = || self.verified.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(claims) = cache().get(&key) {
            return Ok(claims.clone());
        }
        let claims: Arc<Claims> = Arc::new(jwt::verify(token, &[&self.key])?);
        let mut cache = cache();
        if cache.len() >= CACHE {
            cache.clear();
        }
        cache.insert(key, claims.clone());
        Ok(claims)
    }

    /// The account and what the token is bound to still exist, are the same objects, and are not long being deleted.
    fn check_bindings(&self, bound: &Bound, now: i64) -> Result<(), Invalid> {
        let stands = |resource: &str, namespace: &str, reference: &Ref| {
            let found: Option<Named> = self.lookup.view("", resource, namespace, &reference.name);
            found.is_some_and(|Named { metadata }| {
                let deleted = metadata.deletion_timestamp.is_some_and(|at| at.as_second() < now - LEEWAY_SECONDS);
                metadata.uid == reference.uid && !deleted
            })
        };
        let namespace = &bound.namespace;
        if !stands("serviceaccounts", namespace, &bound.serviceaccount) {
            return Err(Invalid::Account(namespace.clone(), bound.serviceaccount.name.clone()));
        }
        let secret = bound.secret.as_ref().is_none_or(|secret| stands("secrets", namespace, secret));
        let pod = bound.pod.as_ref().is_none_or(|pod| stands("pods", namespace, pod));
        // With a pod, the node is information; the pod ends the token.
        let node = bound.pod.is_some() || bound.node.as_ref().is_none_or(|node| stands("nodes", "", node));
        if secret && pod && node { Ok(()) } else { Err(Invalid::Bound) }
    }

    /// `/.well-known/openid-configuration`. `server` is the base of the JWKS URI: `https://HOST:PORT`.
    pub fn openid_configuration(&self, server: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{server}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`, served as `application/jwk-set+json`.
    pub fn jwks(&self) -> Value {
        json!({"keys": [jwt::jwk(&self.key)]})
    }
}

fn reference(object: &Value) -> Ref {
    Ref { name: sampan_api::object::name(object).into(), uid: sampan_api::object::uid(object).into() }
}

fn strings(list: Option<&Value>) -> Vec<String> {
    let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

/// The life asked for, in seconds (`pkg/apis/authentication/validation`).
fn validate(request: &Value) -> Result<i64, Failure> {
    let asked = lookup(request, &["spec", "expirationSeconds"]).filter(|asked| !asked.is_null());
    let seconds = asked.map_or(Some(DEFAULT_SECONDS), Value::as_i64).unwrap_or_default();
    let mut errors = FieldErrors::default();
    let field = FieldPath::new("spec").child("expirationSeconds");
    if seconds < MIN_SECONDS {
        errors.invalid(field, seconds, "may not specify a duration less than 10 minutes");
    } else if seconds > MAX_SECONDS {
        errors.invalid(field, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    errors.into_result("authentication.k8s.io", "TokenRequest", "").map(|()| seconds)
}

fn user(claims: &Claims) -> User {
    let bound = &claims.kubernetes;
    let mut extra = BTreeMap::new();
    let mut say = |key: &str, value: String| {
        if !value.is_empty() {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        }
    };
    if !claims.jti.is_empty() {
        say("credential-id", format!("JTI={}", claims.jti));
    }
    for (what, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
        if let Some(reference) = reference {
            say(&format!("{what}-name"), reference.name.clone());
            say(&format!("{what}-uid"), reference.uid.clone());
        }
    }
    User {
        name: username(&bound.namespace, &bound.serviceaccount.name),
        uid: bound.serviceaccount.uid.clone(),
        groups: groups(&bound.namespace),
        extra,
    }
}

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, _peer: &Peer, headers: &HeaderMap) -> Result<Option<User>, Failure> {
        let Some(token) = authn::bearer(headers) else { return Ok(None) };
        match self.check(token, &self.audiences) {
            Ok((user, _)) => Ok(Some(user)),
            // Not one of ours: another authenticator may know it.
            Err(Invalid::Token(jwt::Error::Malformed | jwt::Error::UnknownKey) | Invalid::Issuer) => Ok(None),
            Err(invalid) => {
                tracing::debug!(%invalid, "a bearer token was refused");
                Err(unauthorized())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lookup::testing::Objects;

    struct Fixture {
        objects: Arc<Objects>,
        tokens: Tokens,
        clock: Clock,
    }

    fn fixture() -> Fixture {
        let objects = Arc::new(Objects::default());
        let meta = |name: &str, uid: &str| json!({"namespace": "ns", "name": name, "uid": uid});
        objects.put("", "serviceaccounts", &json!({"metadata": meta("bot", "u-bot")}));
        objects.put("", "nodes", &json!({"metadata": {"name": "n1", "uid": "u-n1"}}));
        let spec = json!({"serviceAccountName": "bot", "nodeName": "n1"});
        objects.put("", "pods", &json!({"metadata": meta("web", "u-web"), "spec": spec}));
        let clock = Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a time"));
        let (key, _) = TokenKey::generate().expect("a key");
        let tokens = Tokens::new("https://i", &[], key, objects.clone(), clock.clone(), Dice::seeded(1));
        Fixture { objects, tokens, clock }
    }

    fn bound_to_web(seconds: i64) -> Value {
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "u-web"});
        json!({"spec": {"audiences": [], "expirationSeconds": seconds, "boundObjectRef": bound}})
    }

    fn token(answer: &Value) -> &str {
        text(answer, &["status", "token"])
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_names_its_account_pod_and_node() {
        let Fixture { tokens, .. } = fixture();
        let answer = tokens.create("ns", "bot", bound_to_web(600)).expect("a token");
        assert_eq!(text(&answer, &["status", "expirationTimestamp"]), "2030-01-01T00:10:00Z");
        let (user, audiences) = tokens.check(token(&answer), tokens.audiences()).expect("valid");
        assert_eq!(user.name, "system:serviceaccount:ns:bot");
        assert_eq!((user.uid.as_str(), user.groups), ("u-bot", groups("ns")));
        assert_eq!(audiences, ["https://i"]);
        let extra = |key: &str| user.extra.get(&format!("authentication.kubernetes.io/{key}")).cloned();
        assert_eq!(extra("pod-name"), Some(vec!["web".into()]));
        assert_eq!(extra("node-uid"), Some(vec!["u-n1".into()]));
        assert!(extra("credential-id").is_some_and(|ids| ids[0].starts_with("JTI=")));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_end_with_time_and_with_what_they_are_bound_to() {
        let Fixture { tokens, clock, objects } = fixture();
        let answer = tokens.create("ns", "bot", bound_to_web(600)).expect("a token");
        let check = || tokens.check(token(&answer), tokens.audiences());
        assert!(matches!(tokens.check(token(&answer), &["other".into()]), Err(Invalid::Audience(..))));
        clock.sleep(Duration::from_secs(650)).await;
        check().expect("within the leeway");
        clock.sleep(Duration::from_secs(11)).await;
        assert!(matches!(check(), Err(Invalid::Expired)));

        let answer = tokens.create("ns", "bot", bound_to_web(600)).expect("a token");
        let check = || tokens.check(token(&answer), tokens.audiences());
        check().expect("valid");
        objects.remove("", "pods", "ns", "web");
        assert!(matches!(check(), Err(Invalid::Bound)));
        let again = json!({"metadata": {"namespace": "ns", "name": "web", "uid": "another"}});
        objects.put("", "pods", &again);
        assert!(matches!(check(), Err(Invalid::Bound)), "another pod of the same name");
        objects.remove("", "serviceaccounts", "ns", "bot");
        assert!(matches!(check(), Err(Invalid::Account(..))));
    }

    #[tokio::test(start_paused = true)]
    async fn injected_tokens_live_longer_than_they_say() {
        let Fixture { tokens, clock, .. } = fixture();
        let answer = tokens.create("ns", "bot", bound_to_web(INJECTED_SECONDS)).expect("a token");
        assert_eq!(text(&answer, &["status", "expirationTimestamp"]), "2030-01-01T01:00:07Z");
        clock.sleep(Duration::from_secs(24 * 3600)).await;
        tokens.check(token(&answer), tokens.audiences()).expect("valid for a year");
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_requests() {
        let Fixture { tokens, .. } = fixture();
        let refuse = |name: &str, request: Value| tokens.create("ns", name, request).expect_err("refused");
        assert_eq!(refuse("nobody", json!({})).message, r#"serviceaccounts "nobody" not found"#);
        let short = refuse("bot", bound_to_web(1));
        assert_eq!(short.code, 422);
        assert_eq!(short.causes[0].field, "spec.expirationSeconds");
        let mut stale = bound_to_web(600);
        stale["spec"]["boundObjectRef"]["uid"] = "old".into();
        assert_eq!(refuse("bot", stale).code, 409);
        let mut other = bound_to_web(600);
        other["spec"]["boundObjectRef"]["kind"] = "ConfigMap".into();
        assert_eq!(refuse("bot", other).message, "cannot bind token to object of type /v1, Kind=ConfigMap");
    }

    #[test]
    fn user_names() {
        assert_eq!(split_username(&username("a", "b")), Some(("a", "b")));
        for wrong in ["alice", "system:serviceaccount:a", "system:serviceaccount::b", "system:serviceaccount:a:b:c"] {
            assert_eq!(split_username(wrong), None, "{wrong}");
        }
    }
}
