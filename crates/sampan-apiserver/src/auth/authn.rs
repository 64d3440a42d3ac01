//! Who asks: the chain of authenticators and what it adds to a user. A request without credentials is anonymous, one with
//! wrong credentials is refused.

use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderMap, header};
use sampan_api::Failure;

use super::{ANONYMOUS, AUTHENTICATED, Authenticator, Peer, UNAUTHENTICATED, User, unauthorized};

/// Asks the authenticators in order; the first that knows the caller names him.
pub struct Chain(pub Vec<Arc<dyn Authenticator>>);

impl Chain {
    /// The caller, never absent: anonymous when there are no credentials. Bearer tokens nobody knows are refused, and not
    /// anonymous: their owner believes to be somebody.
    pub async fn identify(&self, peer: &Peer, headers: &HeaderMap) -> Result<User, Failure> {
        for authenticator in &self.0 {
            if let Some(user) = authenticator.authenticate(peer, headers).await? {
                return Ok(with_authenticated(user));
            }
        }
        if bearer(headers).is_some() {
            return Err(unauthorized());
        }
        Ok(User::new(ANONYMOUS, &[UNAUTHENTICATED]))
    }
}

/// Everybody who is known is in `system:authenticated`, unless already said to be in it or in its opposite.
pub(crate) fn with_authenticated(mut user: User) -> User {
    if user.name != ANONYMOUS && !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

/// The token of `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// What the transport verified: a client certificate, or a caller in this process.
pub struct Certified;

#[async_trait]
impl Authenticator for Certified {
    async fn authenticate(&self, peer: &Peer, _headers: &HeaderMap) -> Result<Option<User>, Failure> {
        // A certificate without a common name names nobody.
        Ok(peer.certified.clone().filter(|user| !user.name.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
        }
        headers
    }

    #[tokio::test]
    async fn certificates_anonymous_and_unknown_tokens() {
        let chain = Chain(vec![Arc::new(Certified)]);
        let alice = Peer { certified: Some(User::new("alice", &["dev"])), address: None };
        let user = chain.identify(&alice, &headers(None)).await.expect("known");
        assert_eq!(user, User::new("alice", &["dev", AUTHENTICATED]));
        let user = chain.identify(&Peer::default(), &headers(None)).await.expect("anonymous");
        assert_eq!(user, User::new(ANONYMOUS, &[UNAUTHENTICATED]));
        let refused = chain.identify(&Peer::default(), &headers(Some("Bearer x"))).await.expect_err("refused");
        assert_eq!(refused.code, 401);
    }
}
