//! Leader election on a Lease (`coordination.k8s.io/v1`), with a fence: the leader's writes carry proof that the lease
//! still stands as it was, compared in the same transaction, so that a leader that was paused and wakes up cannot write.
//!
//! The identity belongs to an installation, not to a process: after a crash the same server takes its own lease up again
//! at once, with one more transition, which fences off whatever is left of its former self.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sampan_base::Clock;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{Fence, Target, decode, encode};
use crate::{Client, Error, WriteOptions};

/// Upstream's defaults (`k8s.io/component-base/config`).
const DURATION: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// Who wants to lead what.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub namespace: String,
    pub lease: String,
    pub identity: String,
}

/// Held leadership. Writes of the leader go through [`Leader::client`]; [`Leader::lost`] ends when it must stop.
pub struct Leader {
    client: Client,
    candidate: Candidate,
    fence: Fence,
    /// As it was when leadership began.
    lease: Value,
    clock: Clock,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    holder_identity: Option<String>,
    lease_transitions: i64,
    renew_time: Option<Timestamp>,
    lease_duration_seconds: Option<i64>,
}

impl Spec {
    /// A lease that does not fit is one nobody holds.
    fn of(lease: &Value) -> Self {
        lease.get("spec").and_then(|spec| Self::deserialize(spec).ok()).unwrap_or_default()
    }
}

/// What a candidate does about the lease it sees.
#[derive(Debug, PartialEq)]
enum Move {
    Take { transitions: i64 },
    Wait,
}

/// `unchanged` is how long, on the candidate's own clock, the lease has not changed: clocks of machines are not
/// compared.
fn decide(spec: &Spec, identity: &str, unchanged: Duration) -> Move {
    let held = spec.holder_identity.as_deref().unwrap_or_default();
    let lasts = Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
    if held.is_empty() || held == identity || unchanged >= lasts {
        Move::Take { transitions: spec.lease_transitions + 1 }
    } else {
        Move::Wait
    }
}

impl Candidate {
    fn collection(&self) -> Target<'_> {
        Target {
            group: "coordination.k8s.io",
            version: "v1",
            resource: "leases",
            namespace: Some(&self.namespace),
            name: None,
            subresource: None,
        }
    }

    /// Waits until this candidate leads.
    pub async fn lead(self, client: Client, clock: Clock) -> Leader {
        let mut observed: Option<(Spec, sampan_base::clock::Instant)> = None;
        loop {
            match self.attempt(&client, &clock, &mut observed).await {
                Ok(Some((fence, lease))) => return Leader { client, candidate: self, fence, lease, clock },
                Ok(None) => {}
                Err(error) if error.is_conflict() || error.is_already_exists() => {}
                Err(error) => tracing::warn!(lease = self.lease, %error, "cannot take the lease"),
            }
            clock.sleep(RETRY).await;
        }
    }

    async fn attempt(
        &self,
        client: &Client,
        clock: &Clock,
        observed: &mut Option<(Spec, sampan_base::clock::Instant)>,
    ) -> Result<Option<(Fence, Value)>, Error> {
        let now = micro(clock.now());
        let mut lease: Value = match client.get_raw(&self.collection().name(&self.lease)).await {
            Ok(bytes) => decode(&bytes)?,
            Err(error) if error.is_not_found() => {
                let object = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": self.lease, "namespace": self.namespace},
                    "spec": self.spec(0, &now),
                });
                let created = client.create_raw(&self.collection(), encode(&object)?, &WriteOptions::default()).await?;
                return Ok(Some((self.fence(0), decode(&created)?)));
            }
            Err(error) => return Err(error),
        };
        let spec = Spec::of(&lease);
        if observed.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            *observed = Some((spec.clone(), clock.instant()));
        }
        let unchanged = observed.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let Move::Take { transitions } = decide(&spec, &self.identity, unchanged) else { return Ok(None) };
        lease["spec"] = self.spec(transitions, &now);
        let lease = self.replace(client, &lease, &WriteOptions::default()).await?;
        Ok(Some((self.fence(transitions), lease)))
    }

    /// Upstream's roles let a component update its lease, not patch it. The lease is written back as it was read, so that
    /// nothing of it is lost, and its resourceVersion makes the write conditional.
    async fn replace(&self, client: &Client, lease: &Value, options: &WriteOptions) -> Result<Value, Error> {
        decode(&client.replace_raw(&self.collection().name(&self.lease), encode(lease)?, options).await?)
    }

    fn fence(&self, transitions: i64) -> Fence {
        Fence {
            namespace: self.namespace.clone(),
            lease: self.lease.clone(),
            holder: self.identity.clone(),
            transitions,
        }
    }

    fn spec(&self, transitions: i64, now: &str) -> Value {
        json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": DURATION.as_secs(),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions,
        })
    }
}

impl Leader {
    /// The client whose writes carry the fence.
    pub fn client(&self) -> Client {
        self.client.fenced(self.fence.clone())
    }

    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Renews the lease; returns when it is held by someone else or could not be renewed in time.
    pub async fn lost(&self) {
        let mut renewed = self.clock.instant();
        let mut lease = self.lease.clone();
        loop {
            self.clock.sleep(RETRY).await;
            match self.renew(&mut lease).await {
                Ok(true) => renewed = self.clock.instant(),
                Ok(false) => return,
                Err(error) if renewed.elapsed() >= RENEW_DEADLINE => {
                    return tracing::warn!(lease = self.candidate.lease, %error, "leadership lost");
                }
                Err(error) => tracing::debug!(lease = self.candidate.lease, %error, "cannot renew"),
            }
        }
    }

    /// Whether the lease is still ours; `lease` is brought up to date.
    async fn renew(&self, lease: &mut Value) -> Result<bool, Error> {
        // A renewal is itself a fenced write: it fails when somebody else has taken over.
        let options = WriteOptions { fence: Some(self.fence.clone()), ..WriteOptions::default() };
        lease["spec"]["renewTime"] = micro(self.clock.now()).into();
        match self.candidate.replace(&self.client, lease, &options).await {
            Ok(stored) => *lease = stored,
            Err(error) if error.is_conflict() => {
                let target = self.candidate.collection();
                *lease = decode(&self.client.get_raw(&target.name(&self.candidate.lease)).await?)?;
                let spec = Spec::of(lease);
                return Ok(spec.holder_identity.as_deref() == Some(self.fence.holder.as_str())
                    && spec.lease_transitions == self.fence.transitions);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

/// A `metav1.MicroTime`.
fn micro(at: Timestamp) -> String {
    let whole = at.round(jiff::Unit::Microsecond).unwrap_or(at);
    let micros = SignedDuration::from_nanos(i64::from(whole.subsec_nanosecond())).as_micros();
    format!("{}.{micros:06}Z", whole.strftime("%Y-%m-%dT%H:%M:%S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_free_own_or_expired() {
        let held = Spec {
            holder_identity: Some("a".into()),
            lease_transitions: 3,
            lease_duration_seconds: Some(15),
            renew_time: None,
        };
        assert_eq!(decide(&held, "b", Duration::from_secs(14)), Move::Wait);
        assert_eq!(decide(&held, "b", Duration::from_secs(15)), Move::Take { transitions: 4 });
        assert_eq!(decide(&held, "a", Duration::ZERO), Move::Take { transitions: 4 });
        assert_eq!(decide(&Spec::default(), "b", Duration::ZERO), Move::Take { transitions: 1 });
    }

    #[test]
    fn micro_time_has_six_digits() {
        let at: Timestamp = "2030-01-01T00:00:00.000123Z".parse().expect("a timestamp");
        assert_eq!(micro(at), "2030-01-01T00:00:00.000123Z");
    }
}
