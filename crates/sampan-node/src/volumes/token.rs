//! Service account tokens bound to a pod, renewed before they expire (upstream's `pkg/kubelet/token`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use sampan_base::Clock;
use sampan_client::api::{Target, decode};
use sampan_client::{Client, WriteOptions};
use serde::Deserialize;
use serde_json::json;

use super::Error;
use crate::pod::PodExt;
use crate::pod::state::after;

/// Upstream's default of `expirationSeconds`.
const LIFETIME_SECONDS: i64 = 3600;
/// A token older than this is renewed however long it lives.
const LONGEST_USE: Duration = Duration::from_secs(24 * 3600);

pub struct Tokens {
    client: Client,
    clock: Clock,
    /// By pod UID, audience and lifetime.
    held: Mutex<BTreeMap<(String, String, i64), Held>>,
}

#[derive(Clone)]
struct Held {
    token: String,
    refresh_at: Timestamp,
    expires_at: Timestamp,
}

#[derive(Deserialize)]
struct Answer {
    status: AnswerStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerStatus {
    token: String,
    expiration_timestamp: Timestamp,
}

impl Tokens {
    pub fn new(client: Client, clock: Clock) -> Self {
        Self { client, clock, held: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String, i64), Held>> {
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The token to show now: the held one until 80 % of its life or a day has passed, then a new one. When the API
    /// can't be reached the held one serves until it expires.
    pub async fn get(&self, pod: &Pod, source: &ServiceAccountTokenProjection) -> Result<String, Error> {
        let lifetime = source.expiration_seconds.unwrap_or(LIFETIME_SECONDS);
        let audience = source.audience.clone().unwrap_or_default();
        let key = (pod.uid().to_owned(), audience.clone(), lifetime);
        let held = self.lock().get(&key).cloned();
        let now = self.clock.now();
        if let Some(held) = &held
            && now < held.refresh_at
        {
            return Ok(held.token.clone());
        }
        match self.request(pod, &audience, lifetime, now).await {
            Ok(fresh) => {
                let token = fresh.token.clone();
                self.lock().insert(key, fresh);
                Ok(token)
            }
            Err(error) => match held.filter(|held| now < held.expires_at) {
                Some(held) => {
                    tracing::warn!(pod = pod.full_name(), %error, "cannot renew a token yet");
                    Ok(held.token)
                }
                None => Err(error),
            },
        }
    }

    async fn request(&self, pod: &Pod, audience: &str, lifetime: i64, now: Timestamp) -> Result<Held, Error> {
        let account =
            pod.spec_ref().service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
        let failed = |source| Error::Token { account: account.into(), source };
        let audiences: Vec<&str> = Some(audience).filter(|one| !one.is_empty()).into_iter().collect();
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": lifetime,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name(), "uid": pod.uid()},
            },
        });
        let target = Target::of::<ServiceAccount>(Some(pod.namespace())).name(account).subresource("token");
        let body = Bytes::from(body.to_string());
        let answer = self.client.create_raw(&target, body, &WriteOptions::default()).await.map_err(failed)?;
        let Answer { status } = decode(&answer).map_err(failed)?;
        let life = super::super::pod::state::elapsed(now, status.expiration_timestamp);
        let refresh_at = after(now, (life * 4 / 5).min(LONGEST_USE));
        Ok(Held { token: status.token, refresh_at, expires_at: status.expiration_timestamp })
    }

    /// When the next token of a pod is due.
    pub fn refresh_at(&self, uid: &str) -> Option<Timestamp> {
        self.lock().iter().filter(|((pod, ..), _)| pod == uid).map(|(_, held)| held.refresh_at).min()
    }

    pub fn forget(&self, uid: &str) {
        self.lock().retain(|(pod, ..), _| pod != uid);
    }
}
