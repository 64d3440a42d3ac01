//! Acting as somebody else: the `Impersonate-*` headers, each of which the caller must be allowed to `impersonate`
//! (`k8s.io/apiserver/pkg/endpoints/filters/impersonation`).

use std::collections::BTreeMap;

use http::HeaderMap;
use sampan_api::Failure;

use super::{ANONYMOUS, AUTHENTICATED, Attributes, Authorizer, UNAUTHENTICATED, User, require, serviceaccount};

const EXTRA_PREFIX: &str = "impersonate-extra-";

/// Whom the request is carried out as: the caller himself without such headers, `Forbidden` when he may not be another.
pub async fn impersonate(caller: &User, headers: &HeaderMap, authorizer: &dyn Authorizer) -> Result<User, Failure> {
    let Some(asked) = requested(headers)? else { return Ok(caller.clone()) };
    for attributes in wishes(&asked) {
        require(authorizer, &Attributes { user: caller.clone(), ..attributes }).await?;
    }
    Ok(become_user(asked))
}

fn requested(headers: &HeaderMap) -> Result<Option<User>, Failure> {
    let texts = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|value| value.to_str().ok().map(str::to_owned)).collect()
    };
    let one = |name: &str| texts(name).into_iter().next().unwrap_or_default();
    let mut asked = User {
        name: one("impersonate-user"),
        uid: one("impersonate-uid"),
        groups: texts("impersonate-group"),
        extra: BTreeMap::new(),
    };
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA_PREFIX) {
            asked.extra.insert(percent_decoded(key), texts(name.as_str()));
        }
    }
    if !asked.name.is_empty() {
        return Ok(Some(asked));
    }
    if asked == User::default() {
        return Ok(None);
    }
    Err(Failure::internal("requested groups, uid or extra without impersonating a user"))
}

/// Keys of extras are percent-encoded, because a header name has few characters. What does not decode stays.
fn percent_decoded(key: &str) -> String {
    let mut decoded = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                decoded.push(hex(*high).unwrap_or_default() << 4 | hex(*low).unwrap_or_default());
                rest = after;
            }
            _ => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| key.to_owned())
}

/// What must be allowed, one by one.
fn wishes(asked: &User) -> Vec<Attributes> {
    let wish = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
        verb: "impersonate".into(),
        resource_request: true,
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..Attributes::default()
    };
    let mut wishes = vec![match serviceaccount::split_username(&asked.name) {
        Some((namespace, name)) => wish("", "serviceaccounts", "", namespace, name),
        None => wish("", "users", "", "", &asked.name),
    }];
    wishes.extend(asked.groups.iter().map(|group| wish("", "groups", "", "", group)));
    let authentication = "authentication.k8s.io";
    for (key, values) in &asked.extra {
        wishes.extend(values.iter().map(|value| wish(authentication, "userextras", key, "", value)));
    }
    if !asked.uid.is_empty() {
        wishes.push(wish(authentication, "uids", "", "", &asked.uid));
    }
    wishes
}

fn become_user(mut asked: User) -> User {
    if asked.groups.is_empty()
        && let Some((namespace, _)) = serviceaccount::split_username(&asked.name)
    {
        asked.groups = serviceaccount::groups(namespace);
    }
    if asked.name == ANONYMOUS {
        if !asked.in_group(UNAUTHENTICATED) {
            asked.groups.push(UNAUTHENTICATED.into());
        }
    } else if !asked.in_group(AUTHENTICATED) && !asked.in_group(UNAUTHENTICATED) {
        asked.groups.push(AUTHENTICATED.into());
    }
    asked
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::auth::Decision;

    /// Allows what it lists: `resource[/subresource] name`.
    struct Allows(&'static [&'static str]);

    #[async_trait]
    impl Authorizer for Allows {
        async fn authorize(&self, asked: &Attributes) -> Decision {
            assert_eq!(asked.verb, "impersonate");
            let text = format!("{} {}", asked.resource_path(), asked.name);
            let reason = String::new();
            if self.0.contains(&text.as_str()) { Decision::Allow { reason } } else { Decision::NoOpinion { reason } }
        }
    }

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    #[tokio::test]
    async fn each_part_must_be_allowed() {
        let caller = User::new("admin", &[]);
        let wanted = headers(&[
            ("impersonate-user", "bob"),
            ("impersonate-group", "dev"),
            ("impersonate-extra-acme.com%2fproject", "x"),
        ]);
        let all = Allows(&["users bob", "groups dev", "userextras/acme.com/project x"]);
        let bob = impersonate(&caller, &wanted, &all).await.expect("allowed");
        assert_eq!((bob.name.as_str(), bob.groups.as_slice()), ("bob", &["dev".to_owned(), AUTHENTICATED.into()][..]));
        assert_eq!(bob.extra["acme.com/project"], ["x"]);
        let refused = impersonate(&caller, &wanted, &Allows(&["users bob"])).await.expect_err("refused");
        assert!(refused.message.starts_with(r#"groups "dev" is forbidden: User "admin" cannot impersonate"#));
    }

    #[tokio::test]
    async fn service_accounts_get_their_groups() {
        let wanted = headers(&[("impersonate-user", "system:serviceaccount:ns:bot")]);
        let caller = User::new("admin", &[]);
        let bot = impersonate(&caller, &wanted, &Allows(&["serviceaccounts bot"])).await.expect("allowed");
        assert_eq!(bot.groups, [serviceaccount::ALL_GROUP, "system:serviceaccounts:ns", AUTHENTICATED]);
    }

    #[tokio::test]
    async fn without_headers_or_without_a_user() {
        let caller = User::new("admin", &[]);
        assert_eq!(impersonate(&caller, &HeaderMap::new(), &Allows(&[])).await.expect("himself"), caller);
        let orphan = headers(&[("impersonate-group", "dev")]);
        assert_eq!(impersonate(&caller, &orphan, &Allows(&[])).await.expect_err("refused").code, 500);
    }
}
