use std::sync::Arc;

use super::*;
use crate::kind::{Gvk, Scope};
use crate::schema::{Schema, TypeId};

fn kind(group: &str, resource: &str) -> Kind {
    let gvk = Gvk { group: group.into(), version: "v1".into(), kind: "Any".into() };
    Kind {
        resource: resource.into(),
        singular: String::new(),
        list_kind: String::new(),
        scope: Scope::Namespaced,
        short_names: Vec::new(),
        categories: Vec::new(),
        verbs: Vec::new(),
        subresources: Vec::new(),
        schema: Arc::new(Schema::default()),
        root: TypeId(0),
        storage: gvk.clone(),
        gvk,
        storage_resource: (group.into(), resource.into()),
        columns: columns(group, resource),
        selectable_fields: Vec::new(),
        inert: false,
        has_generation: true,
        has_status: true,
        virtual_kind: false,
    }
}

const NOW: &str = "2030-01-01T01:00:00Z";
const HOUR_AGO: &str = "2030-01-01T00:00:00Z";

/// The row as `NAME=cell`, without the name and the age of an hour.
fn shown(group: &str, resource: &str, object: Value) -> Vec<String> {
    let kind = kind(group, resource);
    let mut object = object;
    object["metadata"]["name"] = "x".into();
    object["metadata"]["creationTimestamp"] = HOUR_AGO.into();
    let cells = row(&kind, &object, NOW.parse().expect("a timestamp"));
    assert_eq!(cells.len(), kind.columns.len());
    let cell = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let pairs = kind.columns.iter().zip(&cells).map(|(column, value)| (column.name.as_str(), cell(value)));
    pairs
        .filter(|(name, value)| !matches!((*name, value.as_str()), ("Name", "x") | ("Age", "60m")))
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

#[track_caller]
fn check(group: &str, resource: &str, object: Value, expected: &[&str]) {
    assert_eq!(shown(group, resource, object), expected);
}

/// Ready, status and restarts.
#[track_caller]
fn check_pod(object: Value, expected: [&str; 3]) {
    let cells = shown("", "pods", object);
    let cells: Vec<&str> = cells.iter().take(3).filter_map(|cell| cell.split_once('=')).map(|(_, cell)| cell).collect();
    assert_eq!(cells, expected);
}

fn two() -> Value {
    json!([{"name": "a"}, {"name": "b"}])
}

fn running(name: &str) -> Value {
    json!({"name": name, "ready": true, "restartCount": 0, "state": {"running": {}}})
}

#[test]
fn pods() {
    check(
        "",
        "pods",
        json!({
            "spec": {"containers": two(), "nodeName": "n", "readinessGates": [{"conditionType": "g"}]},
            "status": {
                "phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "g", "status": "True"}],
                "containerStatuses": [running("a"), running("b")],
            },
        }),
        &[
            "Ready=2/2",
            "Status=Running",
            "Restarts=0",
            "IP=10.0.0.1",
            "Node=n",
            "Nominated Node=<none>",
            "Readiness Gates=1/1",
        ],
    );
    let pending = json!({"spec": {"containers": two()}, "status": {"phase": "Pending"}});
    check_pod(pending.clone(), ["0/2", "Pending", "0"]);
    let mut gated = pending.clone();
    gated["status"]["conditions"] = json!([{"type": "PodScheduled", "reason": "SchedulingGated"}]);
    check_pod(gated, ["0/2", "SchedulingGated", "0"]);
    let mut deleted = pending;
    deleted["metadata"] = json!({"deletionTimestamp": NOW});
    check_pod(deleted.clone(), ["0/2", "Terminating", "0"]);
    deleted["status"]["reason"] = "NodeLost".into();
    check_pod(deleted.clone(), ["0/2", "Unknown", "0"]);
    deleted["status"] = json!({"phase": "Failed", "reason": "Evicted"});
    check_pod(deleted, ["0/2", "Evicted", "0"]);
}

#[test]
fn pods_whose_containers_fail() {
    let pod = |statuses: Value| json!({"spec": {"containers": two()}, "status": {"phase": "Running", "containerStatuses": statuses}});
    let crashing = json!({
        "name": "b", "ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"finishedAt": "2030-01-01T00:55:00Z", "exitCode": 1}},
    });
    check_pod(pod(json!([running("a"), crashing])), ["1/2", "CrashLoopBackOff", "3 (5m ago)"]);
    let ended = |terminated: Value| json!({"name": "b", "restartCount": 0, "state": {"terminated": terminated}});
    check_pod(pod(json!([running("a"), ended(json!({"exitCode": 3}))])), ["1/2", "ExitCode:3", "0"]);
    check_pod(pod(json!([running("a"), ended(json!({"exitCode": 137, "signal": 9}))])), ["1/2", "Signal:9", "0"]);
    check_pod(pod(json!([running("a"), ended(json!({"exitCode": 1, "reason": "Error"}))])), ["1/2", "Error", "0"]);
    let completed = ended(json!({"exitCode": 0, "reason": "Completed"}));
    let mut half = pod(json!([running("a"), completed]));
    check_pod(half.clone(), ["1/2", "NotReady", "0"]);
    half["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    check_pod(half, ["1/2", "Running", "0"]);
    check_pod(pod(json!([completed, completed])), ["0/2", "Completed", "0"]);
}

#[test]
fn pods_that_initialize() {
    let pod = |specs: Value, statuses: Value| {
        json!({
            "spec": {"containers": two(), "initContainers": specs},
            "status": {"phase": "Pending", "initContainerStatuses": statuses, "containerStatuses": [running("a")]},
        })
    };
    let done = json!({"name": "i", "restartCount": 1, "state": {"terminated": {"exitCode": 0}}});
    let waiting = json!({"name": "j", "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}});
    let specs = json!([{"name": "i"}, {"name": "j"}]);
    check_pod(pod(specs.clone(), json!([done, waiting])), ["0/2", "Init:1/2", "1"]);
    let failed = json!({"name": "j", "restartCount": 2, "state": {"terminated": {"exitCode": 7}}});
    check_pod(pod(specs.clone(), json!([done, failed])), ["0/2", "Init:ExitCode:7", "3"]);
    let backing_off = json!({"name": "j", "restartCount": 2, "state": {"waiting": {"reason": "ImagePullBackOff"}}});
    check_pod(pod(specs, json!([done, backing_off])), ["0/2", "Init:ImagePullBackOff", "3"]);
    // A sidecar counts as a container and does not hold the others up.
    let specs = json!([{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]);
    let sidecar = json!({"name": "s", "ready": true, "started": true, "restartCount": 4, "state": {"running": {}}});
    let mut object = pod(specs, json!([done, sidecar]));
    object["status"]["phase"] = "Running".into();
    check_pod(object, ["2/3", "Running", "4"]);
}

#[test]
fn workloads() {
    let spec = json!({
        "replicas": 3, "selector": {"matchLabels": {"a": "b"}},
        "template": {"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}},
    });
    let template = ["Containers=c,d", "Images=i,j", "Selector=a=b"];
    let with = |cells: &[&'static str]| -> Vec<&'static str> { cells.iter().copied().chain(template).collect() };
    let object = json!({"spec": spec, "status": {"replicas": 2, "readyReplicas": 1, "updatedReplicas": 2}});
    check("apps", "deployments", object.clone(), &with(&["Ready=1/3", "Up-to-date=2", "Available=0"]));
    check("apps", "replicasets", object.clone(), &with(&["Desired=3", "Current=2", "Ready=1"]));
    check("apps", "statefulsets", object, &["Ready=1/3", "Containers=c,d", "Images=i,j"]);
    check(
        "batch",
        "jobs",
        json!({
            "spec": {"completions": 4, "selector": {}, "template": {}},
            "status": {"succeeded": 4, "startTime": HOUR_AGO, "completionTime": "2030-01-01T00:00:42Z",
                "conditions": [{"type": "Complete", "status": "True"}]},
        }),
        &["Status=Complete", "Completions=4/4", "Duration=42s", "Containers=", "Images=", "Selector=<none>"],
    );
    let mut job = json!({"spec": {"parallelism": 2}, "status": {"startTime": HOUR_AGO}});
    assert_eq!(shown("batch", "jobs", job.clone())[..3], ["Status=Running", "Completions=0/1 of 2", "Duration=60m"]);
    job["status"]["conditions"] = json!([{"type": "Suspended", "status": "True"}]);
    assert_eq!(shown("batch", "jobs", job)[0], "Status=Suspended");
    check(
        "batch",
        "cronjobs",
        json!({"spec": {"schedule": "* * * * *", "suspend": false}, "status": {"lastScheduleTime": HOUR_AGO}}),
        &[
            "Schedule=* * * * *",
            "Timezone=<none>",
            "Suspend=False",
            "Active=0",
            "Last Schedule=60m",
            "Containers=",
            "Images=",
            "Selector=<none>",
        ],
    );
}

#[test]
fn network() {
    let service = |ty: &str, more: Value| {
        let mut object = json!({
            "spec": {"type": ty, "clusterIPs": ["10.1.0.1"], "selector": {"a": "b", "c": "d"}, "ports": [
                {"port": 80, "protocol": "TCP"}, {"port": 53, "nodePort": 30053, "protocol": "UDP"}]},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        object
    };
    check(
        "",
        "services",
        service("NodePort", json!({})),
        &[
            "Type=NodePort",
            "Cluster-IP=10.1.0.1",
            "External-IP=<none>",
            "Port(s)=80/TCP,53:30053/UDP",
            "Selector=a=b,c=d",
        ],
    );
    let external = |object: Value| shown("", "services", object)[2].clone();
    assert_eq!(external(service("LoadBalancer", json!({}))), "External-IP=<pending>");
    assert_eq!(external(service("ExternalName", json!({"externalName": "x.y"}))), "External-IP=x.y");
    let mut balanced = service("LoadBalancer", json!({"externalIPs": ["1.2.3.4"]}));
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "9.9.9.9"}, {"hostname": "h"}]}});
    assert_eq!(external(balanced), "External-IP=9.9.9.9,h,1.2.3.4");
    let headless = shown("", "services", json!({"spec": {"type": "ClusterIP", "clusterIPs": ["None"]}}));
    assert_eq!(headless[1..4], ["Cluster-IP=None", "External-IP=<none>", "Port(s)=<none>"]);
    check(
        "",
        "endpoints",
        json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "ports": [{"port": 80}, {"port": 81}]}]}),
        &["Endpoints=10.0.0.1:80,[fd00::1]:80,10.0.0.1:81 + 1 more..."],
    );
    check("", "endpoints", json!({}), &["Endpoints=<none>"]);
    check(
        "discovery.k8s.io",
        "endpointslices",
        json!({"addressType": "IPv4", "ports": [{"port": 80}, {"name": "x"}], "endpoints": [{"addresses": ["10.0.0.1"]}]}),
        &["AddressType=IPv4", "Ports=80,x", "Endpoints=10.0.0.1"],
    );
    check(
        "discovery.k8s.io",
        "endpointslices",
        json!({"addressType": "IPv4"}),
        &["AddressType=IPv4", "Ports=<unset>", "Endpoints=<unset>"],
    );
    check(
        "networking.k8s.io",
        "ingresses",
        json!({"spec": {"rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}], "tls": [{}]}}),
        &["Class=<none>", "Hosts=a,b,c + 1 more...", "Address=", "Ports=80, 443"],
    );
}

#[test]
fn nodes() {
    check(
        "",
        "nodes",
        json!({
            "metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "Hostname", "address": "h"}, {"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian"},
            },
        }),
        &[
            "Status=Ready,SchedulingDisabled",
            "Roles=control-plane,worker",
            "Version=v1.37.0",
            "Internal-IP=10.0.0.1",
            "External-IP=<none>",
            "OS-Image=Debian",
            "Kernel-Version=<unknown>",
            "Container-Runtime=<unknown>",
        ],
    );
    assert_eq!(shown("", "nodes", json!({}))[..2], ["Status=Unknown", "Roles=<none>"]);
    let unknown = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    assert_eq!(shown("", "nodes", unknown)[0], "Status=NotReady");
}

#[test]
fn events_of_both_groups() {
    let expected = [
        "Last Seen=60m",
        "Type=Normal",
        "Reason=Pulled",
        "Object=pod/p",
        "Subobject=spec.containers{c}",
        "Source=kubelet, n",
        "Message=hello",
        "First Seen=60m",
        "Count=2",
    ];
    let object = json!({"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"});
    check(
        "",
        "events",
        json!({
            "type": "Normal", "reason": "Pulled", "involvedObject": object, "message": " hello\n", "count": 2,
            "firstTimestamp": HOUR_AGO, "lastTimestamp": HOUR_AGO, "source": {"component": "kubelet", "host": "n"},
        }),
        &expected,
    );
    check(
        "events.k8s.io",
        "events",
        json!({
            "type": "Normal", "reason": "Pulled", "regarding": object, "note": "hello", "eventTime": HOUR_AGO,
            "series": {"count": 2, "lastObservedTime": HOUR_AGO}, "reportingController": "kubelet",
            "reportingInstance": "n",
        }),
        &expected,
    );
}

#[test]
fn volumes() {
    check(
        "",
        "persistentvolumes",
        json!({
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "n", "name": "c"},
                "storageClassName": "fast", "volumeMode": "Block"},
            "status": {"phase": "Bound"},
        }),
        &[
            "Capacity=1Gi",
            "Access Modes=RWO,RWX",
            "Reclaim Policy=Retain",
            "Status=Bound",
            "Claim=n/c",
            "StorageClass=fast",
            "VolumeAttributesClass=<unset>",
            "Reason=",
            "VolumeMode=Block",
        ],
    );
    let claim = json!({
        "spec": {"volumeName": "v", "storageClassName": "fast"},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOncePod"]},
    });
    assert_eq!(
        shown("", "persistentvolumeclaims", claim)[..5],
        ["Status=Bound", "Volume=v", "Capacity=1Gi", "Access Modes=RWOP", "StorageClass=fast"]
    );
    let class = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"});
    assert_eq!(
        shown("storage.k8s.io", "storageclasses", class)[..3],
        ["Name=x (default)", "Provisioner=p", "ReclaimPolicy=Delete"]
    );
}

#[test]
fn autoscalers_of_both_versions() {
    let target = |object: Value| shown("autoscaling", "horizontalpodautoscalers", object)[1].clone();
    let old = json!({"spec": {"targetCPUUtilizationPercentage": 80}, "status": {"currentCPUUtilizationPercentage": 5}});
    assert_eq!(target(old), "Targets=cpu: 5%/80%");
    let resource = |target: Value| json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
    let metrics = json!([
        resource(json!({"averageUtilization": 80})),
        resource(json!({"averageValue": "500m"})),
        {"type": "External", "external": {"target": {"averageValue": "3"}}},
    ]);
    let current = json!([{"resource": {"current": {"averageUtilization": 5, "averageValue": "10m"}}}]);
    let object = json!({"spec": {"metrics": metrics}, "status": {"currentMetrics": current}});
    assert_eq!(target(object), "Targets=cpu: 5%/80%, cpu: <unknown>/500m + 1 more...");
    let external = json!([{"type": "External", "external": {"target": {"averageValue": "3"}}}]);
    assert_eq!(target(json!({"spec": {"metrics": external}})), "Targets=<unknown>/3 (avg)");
    assert_eq!(target(json!({})), "Targets=<none>");
}

#[test]
fn the_rest() {
    check("", "configmaps", json!({"data": {"a": ""}, "binaryData": {"b": ""}}), &["Data=2"]);
    check("", "secrets", json!({"type": "Opaque"}), &["Type=Opaque", "Data=0"]);
    check("", "limitranges", json!({}), &["Created At=2030-01-01T00:00:00Z"]);
    check(
        "",
        "resourcequotas",
        json!({"status": {"hard": {"limits.cpu": "2", "pods": "10", "cpu": "1"}, "used": {"pods": "3"}}}),
        &["Request=cpu: 0/1, pods: 3/10", "Limit=limits.cpu: 0/2"],
    );
    check(
        "rbac.authorization.k8s.io",
        "rolebindings",
        json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}, {"kind": "User", "name": "v"}]}),
        &["Role=Role/r", "Users=u, v", "Groups=", "ServiceAccounts=n/s"],
    );
    check(
        "certificates.k8s.io",
        "certificatesigningrequests",
        json!({"spec": {"username": "u", "expirationSeconds": 3600}, "status": {"certificate": "x", "conditions": [
            {"type": "Approved", "status": "True"}]}}),
        &["SignerName=<none>", "Requestor=u", "RequestedDuration=60m", "Condition=Approved,Issued"],
    );
    check(
        "policy",
        "poddisruptionbudgets",
        json!({"spec": {"maxUnavailable": 1, "minAvailable": "50%"}}),
        &["Min Available=50%", "Max Unavailable=1", "Allowed Disruptions=0"],
    );
    check(
        "apps",
        "controllerrevisions",
        json!({"revision": 2, "metadata": {"ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "controller": true}]}}),
        &["Controller=daemonset.apps/d", "Revision=2"],
    );
}

#[test]
fn definitions_and_conditions() {
    let pods = kind("", "pods");
    let definitions = definitions(&pods);
    assert_eq!(
        definitions[0],
        json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0})
    );
    assert_eq!(definitions[5]["priority"], 1);
    assert_eq!(row_conditions(&pods, &json!({"status": {"phase": "Running"}})), None);
    assert!(row_conditions(&pods, &json!({"status": {"phase": "Failed"}})).is_some());
}

#[test]
fn fields_by_the_type_of_their_column() {
    let now = NOW.parse().expect("a timestamp");
    for (ty, value, expected) in [
        ("string", json!({"a": 1}), json!("{\"a\":1}")),
        ("string", Value::Null, json!("")),
        ("integer", json!(3), json!(3)),
        ("integer", json!("3"), Value::Null),
        ("number", json!(1.5), json!(1.5)),
        ("boolean", json!(true), json!(true)),
        ("date", json!(HOUR_AGO), json!("60m")),
        ("date", json!("soon"), json!("<unknown>")),
    ] {
        assert_eq!(by_path(ty, &value, now), expected, "{ty} {value}");
    }
}
