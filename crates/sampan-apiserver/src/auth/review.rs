//! The kinds that are questions: TokenReview, the access reviews and SelfSubjectReview. They are not stored; the answer is the
//! object with its status (`pkg/registry/authorization`, `pkg/registry/authentication`).

use std::collections::BTreeMap;
use std::sync::Arc;

use sampan_api::object::{child_mut, lookup, text};
use sampan_api::{Failure, FieldErrors, FieldPath};
use serde_json::{Map, Value, json};

use super::rbac::Rbac;
use super::serviceaccount::Tokens;
use super::{Attributes, Authorizer, Decision, User, authn, node};

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Answers reviews.
pub struct Reviews {
    pub authorizer: Arc<dyn Authorizer>,
    pub rbac: Arc<Rbac>,
    pub tokens: Arc<Tokens>,
}

impl Reviews {
    /// The review with its status. `namespace` is that of the path, empty for the cluster-scoped kinds.
    pub async fn review(&self, kind: &str, namespace: &str, mut object: Value, user: &User) -> Result<Value, Failure> {
        let status = match kind {
            "TokenReview" => self.token(&object)?,
            "SelfSubjectReview" => json!({"userInfo": user_info(user)}),
            "SelfSubjectAccessReview" => self.access(kind, &object, user.clone()).await?,
            "SubjectAccessReview" => self.access(kind, &object, subject(kind, &object)?).await?,
            "LocalSubjectAccessReview" => {
                let asked = text(&object, &["spec", "resourceAttributes", "namespace"]);
                if asked != namespace {
                    let why = format!("must match metadata.namespace: {namespace}");
                    let mut errors = FieldErrors::default();
                    errors.invalid(resource_field().child("namespace"), asked, why);
                    errors.into_result(AUTHORIZATION, kind, "")?;
                }
                self.access(kind, &object, subject(kind, &object)?).await?
            }
            "SelfSubjectRulesReview" => self.rules(&object, user)?,
            other => return Err(Failure::internal(format_args!("{other} is no review"))),
        };
        child_mut(&mut object, "metadata");
        object["status"] = status;
        Ok(object)
    }

    fn token(&self, object: &Value) -> Result<Value, Failure> {
        let token = text(object, &["spec", "token"]);
        if token.is_empty() {
            return Err(Failure::bad_request("token is required for TokenReview in authentication"));
        }
        let mut targets = strings(object, &["spec", "audiences"]);
        if targets.is_empty() {
            targets = self.tokens.audiences().to_vec();
        }
        Ok(match self.tokens.check(token, &targets) {
            Ok((user, audiences)) => {
                let user = user_info(&authn::with_authenticated(user));
                json!({"authenticated": true, "user": user, "audiences": audiences})
            }
            Err(invalid) => json!({"user": {}, "error": format!("[invalid bearer token, {invalid}]")}),
        })
    }

    async fn access(&self, kind: &str, object: &Value, user: User) -> Result<Value, Failure> {
        let attributes = attributes(kind, object, user)?;
        let mut status = Map::new();
        let (allowed, reason) = match self.authorizer.authorize(&attributes).await {
            Decision::Allow { reason } => (true, reason),
            Decision::Deny { reason } => {
                status.insert("denied".into(), true.into());
                (false, reason)
            }
            Decision::NoOpinion { reason } => (false, reason),
        };
        status.insert("allowed".into(), allowed.into());
        if !reason.is_empty() {
            status.insert("reason".into(), reason.into());
        }
        Ok(Value::Object(status))
    }

    fn rules(&self, object: &Value, user: &User) -> Result<Value, Failure> {
        let namespace = text(object, &["spec", "namespace"]);
        if namespace.is_empty() {
            return Err(Failure::bad_request("no namespace on request"));
        }
        let held = self.rbac.rules_for(user, namespace);
        let mut errors = held.errors;
        let is_node = node::node_name(user).is_some();
        if is_node {
            errors.push("node authorizer does not support user rule resolution".into());
        }
        let (urls, resources): (Vec<_>, Vec<_>) =
            held.rules.into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
        let mut status =
            json!({"resourceRules": resources, "nonResourceRules": urls, "incomplete": !errors.is_empty()});
        if !errors.is_empty() {
            status["evaluationError"] = errors.join(", ").into();
        }
        Ok(status)
    }
}

fn resource_field() -> FieldPath {
    FieldPath::new("spec").child("resourceAttributes")
}

fn strings(object: &Value, path: &[&str]) -> Vec<String> {
    let list = lookup(object, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

/// Whom an access review asks about.
fn subject(kind: &str, object: &Value) -> Result<User, Failure> {
    let mut extra = BTreeMap::new();
    for (key, _) in lookup(object, &["spec", "extra"]).and_then(Value::as_object).into_iter().flatten() {
        extra.insert(key.clone(), strings(object, &["spec", "extra", key]));
    }
    let user = User {
        name: text(object, &["spec", "user"]).into(),
        uid: text(object, &["spec", "uid"]).into(),
        groups: strings(object, &["spec", "groups"]),
        extra,
    };
    let mut errors = FieldErrors::default();
    if user.name.is_empty() && user.groups.is_empty() {
        let field = FieldPath::new("spec").child("user");
        errors.invalid(field, "", "at least one of user or group must be specified");
    }
    errors.into_result(AUTHORIZATION, kind, "")?;
    Ok(user)
}

fn attributes(kind: &str, object: &Value, user: User) -> Result<Attributes, Failure> {
    let part = |name: &str| lookup(object, &["spec", name]).filter(|part| !part.is_null());
    let (resource, url) = (part("resourceAttributes"), part("nonResourceAttributes"));
    let mut errors = FieldErrors::default();
    match (resource, url) {
        (Some(_), Some(_)) => errors.invalid(
            FieldPath::new("spec").child("nonResourceAttributes"),
            url.cloned().unwrap_or_default(),
            "cannot be specified in combination with resourceAttributes",
        ),
        (None, None) => errors.invalid(
            resource_field(),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
    errors.into_result(AUTHORIZATION, kind, "")?;
    let own = |value: &Value, key: &str| text(value, &[key]).to_owned();
    Ok(match (resource, url) {
        (Some(asked), _) => Attributes {
            user,
            verb: own(asked, "verb"),
            resource_request: true,
            group: own(asked, "group"),
            version: own(asked, "version"),
            resource: own(asked, "resource"),
            subresource: own(asked, "subresource"),
            namespace: own(asked, "namespace"),
            name: own(asked, "name"),
            path: String::new(),
            field_selector: field_selector(asked),
        },
        (None, asked) => {
            let asked = asked.unwrap_or(&Value::Null);
            Attributes { user, verb: own(asked, "verb"), path: own(asked, "path"), ..Attributes::default() }
        }
    })
}

/// The equality requirements of a review's field selector, given as text or as requirements.
fn field_selector(asked: &Value) -> Vec<(String, String)> {
    let raw = text(asked, &["fieldSelector", "rawSelector"]);
    let from_raw = raw.split(',').filter_map(|part| {
        let (field, value) = part.split_once("==").or_else(|| part.split_once('='))?;
        (!field.ends_with('!')).then(|| (field.to_owned(), value.to_owned()))
    });
    let requirements = lookup(asked, &["fieldSelector", "requirements"]).and_then(Value::as_array);
    let from_list = requirements.into_iter().flatten().filter_map(|one| {
        let values = strings(one, &["values"]);
        match (text(one, &["operator"]), values.as_slice()) {
            ("In", [value]) => Some((text(one, &["key"]).to_owned(), value.clone())),
            _ => None,
        }
    });
    from_raw.chain(from_list).collect()
}

/// `authentication/v1 UserInfo`.
pub fn user_info(user: &User) -> Value {
    let mut info = Map::new();
    info.insert("username".into(), user.name.as_str().into());
    if !user.uid.is_empty() {
        info.insert("uid".into(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        info.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        info.insert("extra".into(), json!(user.extra));
    }
    Value::Object(info)
}

/// Whether a kind is answered by [`Reviews::review`].
pub fn is_review(group: &str, kind: &str) -> bool {
    match group {
        AUTHENTICATION => matches!(kind, "TokenReview" | "SelfSubjectReview"),
        AUTHORIZATION => kind.ends_with("Review"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use sampan_base::{Clock, Dice};
    use sampan_wire::pki::TokenKey;

    use super::*;
    use crate::auth::rbac::GROUP;
    use crate::lookup::testing::Objects;
    use crate::lookup::{Change, Observer};

    fn reviews() -> Reviews {
        let rbac = Arc::new(Rbac::default());
        let put = |resource: &str, name: &str, object: Value| {
            let bytes = bytes::Bytes::from(object.to_string());
            rbac.observe(&Change { group: GROUP, resource, namespace: "", name, object: Some(&bytes) });
        };
        let rules = json!([
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
            {"verbs": ["get"], "nonResourceURLs": ["/healthz"]},
        ]);
        put("clusterroles", "r", json!({ "rules": rules }));
        let subjects = json!([{"kind": "User", "name": "u"}]);
        put("clusterrolebindings", "b", json!({"subjects": subjects, "roleRef": {"kind": "ClusterRole", "name": "r"}}));
        let (key, _) = TokenKey::generate().expect("a key");
        let objects = Arc::new(Objects::default());
        objects.put("", "serviceaccounts", &json!({"metadata": {"namespace": "ns", "name": "bot", "uid": "1"}}));
        let tokens = Tokens::new("https://i", &[], key, objects, Clock::system(), Dice::system());
        Reviews { authorizer: rbac.clone(), rbac, tokens: Arc::new(tokens) }
    }

    async fn ask(kind: &str, spec: Value) -> Result<Value, Failure> {
        let user = User::new("u", &["g"]);
        reviews().review(kind, "ns", json!({ "spec": spec }), &user).await.map(|answer| answer["status"].clone())
    }

    #[tokio::test]
    async fn access_reviews() {
        let pods = json!({"verb": "get", "resource": "pods", "namespace": "ns"});
        let own = ask("SelfSubjectAccessReview", json!({"resourceAttributes": pods})).await.expect("an answer");
        assert_eq!(own["allowed"], true);
        let other = json!({"user": "x", "resourceAttributes": pods});
        assert_eq!(ask("SubjectAccessReview", other.clone()).await.expect("an answer"), json!({"allowed": false}));
        assert_eq!(ask("LocalSubjectAccessReview", other).await.expect("an answer"), json!({"allowed": false}));
        let url = json!({"user": "u", "nonResourceAttributes": {"verb": "get", "path": "/healthz"}});
        assert_eq!(ask("SubjectAccessReview", url).await.expect("an answer")["allowed"], true);
    }

    #[tokio::test]
    async fn incomplete_questions() {
        assert_eq!(ask("SelfSubjectAccessReview", json!({})).await.expect_err("refused").code, 422);
        let pods = json!({"verb": "get", "resource": "pods", "namespace": "other"});
        assert_eq!(
            ask("SubjectAccessReview", json!({"resourceAttributes": pods})).await.expect_err("refused").code,
            422
        );
        let local = json!({"user": "x", "resourceAttributes": pods});
        assert_eq!(ask("LocalSubjectAccessReview", local).await.expect_err("refused").code, 422);
    }

    #[tokio::test]
    async fn who_and_what() {
        let who = ask("SelfSubjectReview", Value::Null).await.expect("an answer");
        assert_eq!(who, json!({"userInfo": {"username": "u", "groups": ["g"]}}));
        let rules = ask("SelfSubjectRulesReview", json!({"namespace": "ns"})).await.expect("an answer");
        assert_eq!(rules["resourceRules"], json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]));
        assert_eq!(rules["nonResourceRules"], json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]));
        assert_eq!(rules["incomplete"], false);
    }

    #[tokio::test]
    async fn tokens() {
        let reviews = reviews();
        let answer = reviews.tokens.create("ns", "bot", json!({})).expect("a token");
        let user = User::new("u", &[]);
        let review = |token: &str| {
            let object = json!({"spec": {"token": token}});
            let (reviews, user) = (&reviews, &user);
            async move { reviews.review("TokenReview", "", object, user).await.expect("an answer")["status"].clone() }
        };
        let good = review(text(&answer, &["status", "token"])).await;
        assert_eq!(good["authenticated"], true);
        assert_eq!(good["user"]["username"], "system:serviceaccount:ns:bot");
        assert_eq!(good["audiences"], json!(["https://i"]));
        let bad = review("x.y.z").await;
        assert!(bad.get("authenticated").is_none() && bad["error"].is_string());
    }
}
