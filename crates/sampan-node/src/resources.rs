//! From a pod's resources to limits: quality of service, cgroup path, CPU shares and quota, memory, OOM score.
//!
//! Formulas of upstream's `pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go` and
//! `pkg/apis/core/v1/helper/qos`. Knows no cgroup files: the runtime applies the numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sampan_runtime::Resources;

use crate::pod::PodExt;
use crate::pod::spec::is_sidecar;
use crate::quantity::{milli, value};

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const QUOTA_PERIOD_US: i64 = 100_000;
/// The kernel refuses a smaller quota.
const MIN_QUOTA_US: i64 = 1000;
const GUARANTEED_OOM_SCORE: i32 = -997;
const BEST_EFFORT_OOM_SCORE: i32 = 1000;

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(pod: &Pod) -> &'static str {
    if let Some(set) = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        match set {
            "Guaranteed" => return "Guaranteed",
            "Burstable" => return "Burstable",
            "BestEffort" => return "BestEffort",
            _ => {}
        }
    }
    let counts = |resources: Option<&ResourceRequirements>| {
        let nonzero = |list: Option<&BTreeMap<String, Quantity>>, name: &str| {
            list.and_then(|list| list.get(name)).map_or(0, milli)
        };
        ["cpu", "memory"].map(|name| {
            let of = |list: Option<&BTreeMap<String, Quantity>>| nonzero(list, name);
            (of(resources.and_then(|one| one.requests.as_ref())), of(resources.and_then(|one| one.limits.as_ref())))
        })
    };
    // Pod-level resources, where given, decide alone.
    let of_pod = pod.spec_ref().resources.as_ref();
    let all: Vec<[(i64, i64); 2]> = if of_pod.is_some_and(|one| one.requests.is_some() || one.limits.is_some()) {
        vec![counts(of_pod)]
    } else {
        pod.all_containers().map(|container| counts(container.resources.as_ref())).collect()
    };
    let nothing = all.iter().flatten().all(|(request, limit)| *request == 0 && *limit == 0);
    let everything = all.iter().flatten().all(|(request, limit)| *limit > 0 && (*request == *limit || *request == 0));
    match () {
        () if nothing => "BestEffort",
        () if everything => "Guaranteed",
        () => "Burstable",
    }
}

/// Below the runtime's prefix: `podUID`, `burstable/podUID`, `besteffort/podUID`.
pub fn cgroup(pod: &Pod) -> String {
    let uid = pod.uid();
    match qos_class(pod) {
        "Guaranteed" => format!("pod{uid}"),
        "Burstable" => format!("burstable/pod{uid}"),
        _ => format!("besteffort/pod{uid}"),
    }
}

fn request<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    container.resources.as_ref()?.requests.as_ref()?.get(name)
}

fn limit<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(name)
}

/// What a container asks for: its request, else its limit.
fn asked<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    request(container, name).or_else(|| limit(container, name))
}

fn shares(milli_cpu: i64) -> u64 {
    (milli_cpu * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES).unsigned_abs()
}

fn quota(milli_cpu: i64) -> i64 {
    (milli_cpu * QUOTA_PERIOD_US / 1000).max(MIN_QUOTA_US)
}

fn limits(cpu_request: i64, cpu_limit: Option<i64>, memory_limit: Option<i64>, memory_request: i64) -> Resources {
    Resources {
        cpu_shares: Some(shares(cpu_request)),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| QUOTA_PERIOD_US.unsigned_abs()),
        memory_limit_bytes: memory_limit,
        memory_request_bytes: Some(memory_request).filter(|bytes| *bytes > 0),
        pids_limit: None,
        oom_score_adj: None,
    }
}

pub fn of_container(pod: &Pod, container: &Container, node_memory: i64) -> Resources {
    let cpu = asked(container, "cpu").map_or(0, milli);
    let memory = asked(container, "memory").map_or(0, value);
    let cpu_limit = limit(container, "cpu").map(milli).filter(|limit| *limit > 0);
    let memory_limit = limit(container, "memory").map(value).filter(|limit| *limit > 0);
    let mut resources = limits(cpu, cpu_limit, memory_limit, memory);
    resources.oom_score_adj = Some(oom_score(pod, container, memory, node_memory));
    resources
}

/// The pod's cgroup: the sum of its containers, or of its init phase where that is more; a limit only where every
/// container has one.
pub fn of_pod(pod: &Pod, pids_limit: Option<i64>) -> Resources {
    let total = |of: &dyn Fn(&Container) -> i64| {
        let sidecars: i64 = pod.init_containers().iter().filter(|one| is_sidecar(one)).map(of).sum();
        let regular: i64 = pod.containers().iter().map(of).sum::<i64>() + sidecars;
        let mut before = 0;
        let mut peak = 0;
        for init in pod.init_containers() {
            peak = peak.max(before + of(init));
            before += if is_sidecar(init) { of(init) } else { 0 };
        }
        regular.max(peak)
    };
    let all_have = |name: &str| pod.all_containers().all(|one| limit(one, name).is_some_and(|limit| milli(limit) > 0));
    fn named<'a>(list: Option<&'a BTreeMap<String, Quantity>>, name: &str) -> Option<&'a Quantity> {
        list?.get(name)
    }
    let own = pod.spec_ref().resources.as_ref();
    let own_request = |name: &str| named(own.and_then(|one| one.requests.as_ref()), name);
    let own_limit = |name: &str| named(own.and_then(|one| one.limits.as_ref()), name);
    let overhead = |name: &str| named(pod.spec_ref().overhead.as_ref(), name);
    let cpu = own_request("cpu").map_or_else(|| total(&|one| asked(one, "cpu").map_or(0, milli)), milli)
        + overhead("cpu").map_or(0, milli);
    let memory = own_request("memory").map_or_else(|| total(&|one| asked(one, "memory").map_or(0, value)), value)
        + overhead("memory").map_or(0, value);
    let cpu_limit = own_limit("cpu")
        .map(milli)
        .or_else(|| all_have("cpu").then(|| total(&|one| limit(one, "cpu").map_or(0, milli))))
        .map(|limit| limit + overhead("cpu").map_or(0, milli));
    let memory_limit = own_limit("memory")
        .map(value)
        .or_else(|| all_have("memory").then(|| total(&|one| limit(one, "memory").map_or(0, value))))
        .map(|limit| limit + overhead("memory").map_or(0, value));
    Resources { pids_limit, ..limits(cpu, cpu_limit, memory_limit, memory) }
}

fn oom_score(pod: &Pod, container: &Container, memory_request: i64, node_memory: i64) -> i32 {
    /// `scheduling.SystemCriticalPriority`
    const CRITICAL: i32 = 2_000_000_000;
    if pod.spec_ref().priority.is_some_and(|priority| priority >= CRITICAL) {
        return GUARANTEED_OOM_SCORE;
    }
    match qos_class(pod) {
        "Guaranteed" => GUARANTEED_OOM_SCORE,
        "BestEffort" => BEST_EFFORT_OOM_SCORE,
        _ => {
            let score = if node_memory > 0 {
                1000 - (1000 * i128::from(memory_request)) / i128::from(node_memory)
            } else {
                999
            };
            let score = i32::try_from(score.clamp(-1000, 1000)).unwrap_or(1000);
            // A sidecar serves the regular containers: it should not die before them.
            let floor = 1000 + GUARANTEED_OOM_SCORE;
            let lowest_regular = || {
                let requests = pod.containers().iter().map(|one| asked(one, "memory").map_or(0, value));
                requests.min().map(|least| 1000 - (1000 * i128::from(least)) / i128::from(node_memory.max(1)))
            };
            let score = if is_sidecar(container) {
                lowest_regular().and_then(|lowest| i32::try_from(lowest).ok()).map_or(score, |lowest| score.min(lowest))
            } else {
                score
            };
            if score < floor {
                floor
            } else if score == BEST_EFFORT_OOM_SCORE {
                BEST_EFFORT_OOM_SCORE - 1
            } else {
                score
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": containers}})).expect("a pod")
    }

    fn one(resources: serde_json::Value) -> Pod {
        pod(json!([{"name": "a", "resources": resources}]))
    }

    #[test]
    fn quality_of_service() {
        let check = |pod: Pod, class: &str, path: &str| {
            assert_eq!((qos_class(&pod), cgroup(&pod).as_str()), (class, path));
        };
        check(one(json!({})), "BestEffort", "besteffort/podu");
        check(one(json!({"requests": {"cpu": "1"}})), "Burstable", "burstable/podu");
        check(one(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed", "podu");
        check(
            one(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})),
            "Burstable",
            "burstable/podu",
        );
        check(one(json!({"requests": {"cpu": "0"}})), "BestEffort", "besteffort/podu");
    }

    #[test]
    fn limits_of_containers() {
        let pod =
            one(json!({"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1500m", "memory": "2Gi"}}));
        let resources = of_container(&pod, &pod.containers()[0], 4 << 30);
        assert_eq!(resources.cpu_shares, Some(256));
        assert_eq!((resources.cpu_quota_us, resources.cpu_period_us), (Some(150_000), Some(100_000)));
        assert_eq!(resources.memory_limit_bytes, Some(2 << 30));
        assert_eq!(resources.oom_score_adj, Some(750));
        let idle = one(json!({}));
        let resources = of_container(&idle, &idle.containers()[0], 4 << 30);
        assert_eq!(
            (resources.cpu_shares, resources.cpu_quota_us, resources.oom_score_adj),
            (Some(2), None, Some(1000))
        );
    }

    #[test]
    fn the_pod_is_limited_only_where_every_container_is() {
        let pod = pod(json!([
            {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}},
            {"name": "b", "resources": {"limits": {"memory": "1Gi"}}},
        ]));
        let resources = of_pod(&pod, Some(100));
        assert_eq!(resources.cpu_quota_us, None);
        assert_eq!(resources.memory_limit_bytes, Some(2 << 30));
        assert_eq!((resources.cpu_shares, resources.pids_limit), (Some(1024), Some(100)));
    }
}
