//! Acting as someone else: the `Impersonate-*` headers, each value authorized on its own
//! (`k8s.io/apiserver/pkg/endpoints/filters/impersonation.go`).

use http::HeaderMap;
use sampan_api::Failure;

use crate::auth::{ANONYMOUS, AUTHENTICATED, Attributes, Authorizer, Decision, UNAUTHENTICATED, User};
use crate::server::forbidden;

const EXTRA_PREFIX: &str = "impersonate-extra-";

/// Whom the headers name; `None` without such headers.
pub fn requested(headers: &HeaderMap) -> Result<Option<User>, Failure> {
    let one = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let groups = headers.get_all("impersonate-group").iter().filter_map(|value| value.to_str().ok().map(str::to_owned));
    let mut user =
        User { name: one("impersonate-user"), uid: one("impersonate-uid"), groups: groups.collect(), ..User::default() };
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA_PREFIX), value.to_str()) {
            let key = form_urlencoded::parse(format!("{key}=").as_bytes()).next().map(|(key, _)| key.into_owned());
            user.extra.entry(key.unwrap_or_default()).or_default().push(value.to_owned());
        }
    }
    if user == User::default() {
        return Ok(None);
    }
    if user.name.is_empty() {
        return Err(Failure::internal(format_args!("requested {user:?} impersonation without impersonating a user")));
    }
    Ok(Some(user))
}

/// The user to act as, when `caller` may impersonate every part of it.
pub async fn allowed(authorizer: &dyn Authorizer, caller: &User, mut asked: User) -> Result<User, Failure> {
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
        user: caller.clone(),
        verb: "impersonate".into(),
        resource_request: true,
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        path: String::new(),
    };
    let account = service_account(&asked.name).map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    let mut questions = vec![match &account {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name),
        None => ask("", "users", "", "", &asked.name),
    }];
    questions.extend(asked.groups.iter().map(|group| ask("", "groups", "", "", group)));
    for (key, values) in &asked.extra {
        questions.extend(values.iter().map(|value| ask("authentication.k8s.io", "userextras", key, "", value)));
    }
    if !asked.uid.is_empty() {
        questions.push(ask("authentication.k8s.io", "uids", "", "", &asked.uid));
    }
    for question in questions {
        match authorizer.authorize(&question).await {
            Decision::Allow { .. } => {}
            Decision::Deny { reason } | Decision::NoOpinion { reason } => return Err(forbidden(&question, &reason)),
        }
    }
    if let (Some((namespace, _)), true) = (&account, asked.groups.is_empty()) {
        asked.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let implied = if asked.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !asked.groups.iter().any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED) {
        asked.groups.push(implied.into());
    }
    Ok(asked)
}

/// `system:serviceaccount:NAMESPACE:NAME`
pub fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}
