//! Writes under a leader's fence: a header names a Lease, its holder and its number of transitions; the write commits
//! only while they hold. The check is part of the transaction, so a leader that was paused and wakes up cannot write.

use http::HeaderMap;
use sampan_api::{Failure, Reason};
use sampan_client::api::FENCE_HEADER;
use sampan_store::{Check, Expect, Store};
use serde::Deserialize;

use crate::keys;

#[derive(Debug, PartialEq, Eq)]
struct Fence<'a> {
    namespace: &'a str,
    lease: &'a str,
    holder: &'a str,
    transitions: i64,
}

fn parse(text: &str) -> Option<Fence<'_>> {
    let (place, rest) = text.split_once(';')?;
    let (namespace, lease) = place.split_once('/')?;
    // Holders may hold semicolons; the number comes last.
    let (holder, transitions) = rest.rsplit_once(';')?;
    Some(Fence { namespace, lease, holder, transitions: transitions.parse().ok()? })
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Lease {
    spec: LeaseSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LeaseSpec {
    holder_identity: Option<String>,
    lease_transitions: Option<i64>,
}

/// The check for a write with these headers. `None`: no fence. 409 when the lease has passed on. A lease that was
/// merely renewed in between makes the commit fail; the caller comes again and gets the check of its new revision.
pub fn check(store: &Store, headers: &HeaderMap) -> Result<Option<Check>, Failure> {
    let Some(value) = headers.get(FENCE_HEADER) else { return Ok(None) };
    let fence =
        value.to_str().ok().and_then(parse).ok_or_else(|| {
            Failure::bad_request(format!("{FENCE_HEADER} must be namespace/lease;holder;transitions"))
        })?;
    let lost = |why: String| {
        Failure::new(Reason::Conflict, format!("fence {}/{}: {why}", fence.namespace, fence.lease)).about(
            "coordination.k8s.io",
            "leases",
            fence.lease,
        )
    };
    let key = keys::lease_key(fence.namespace, fence.lease);
    let entry = store.get(&key).ok_or_else(|| lost("the lease is gone".into()))?;
    let lease: Lease = serde_json::from_slice(&entry.value).map_err(Failure::internal)?;
    let holder = lease.spec.holder_identity.unwrap_or_default();
    let transitions = lease.spec.lease_transitions.unwrap_or(0);
    if (holder.as_str(), transitions) != (fence.holder, fence.transitions) {
        return Err(lost(format!("held by {holder:?} after {transitions} transitions")));
    }
    Ok(Some(Check { key, expect: Expect::Modified(entry.modified) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let expected = Fence { namespace: "kube-system", lease: "scheduler", holder: "a;b", transitions: 3 };
        assert_eq!(parse("kube-system/scheduler;a;b;3"), Some(expected));
        for wrong in ["", "x", "a/b;c", "a/b;c;x", "ab;c;1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
