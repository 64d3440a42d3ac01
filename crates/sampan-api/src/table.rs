//! `meta.k8s.io/v1 Table`: which columns kubectl shows of a kind, and a row of cells of an object.
//!
//! Columns are upstream's (`pkg/printers/internalversion/printers.go`, and the table converters of API services and
//! custom resources). Descriptions of columns are left empty.

mod cells;
mod pod;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Cell, Column, Kind};
use cells::{at, containers, integer, labels, length, of, or, quantity, selector, text};

pub use crate::duration::human as duration_text;

type Compute = fn(&Value, Timestamp) -> Value;

const fn compute(cell: Compute) -> Cell {
    Cell::Compute(cell)
}

fn column(name: &str, ty: &'static str, priority: i32, cell: Cell) -> Column {
    let format = if name == "Name" { "name" } else { "" };
    Column { name: name.into(), ty, format, priority, cell }
}

fn path(name: &str, path: &'static str) -> Column {
    column(name, "string", 0, Cell::Path(path))
}

fn string(name: &str, cell: Compute) -> Column {
    column(name, "string", 0, compute(cell))
}

fn number(name: &str, cell: Compute) -> Column {
    column(name, "integer", 0, compute(cell))
}

fn flag(name: &str, cell: Compute) -> Column {
    column(name, "boolean", 0, compute(cell))
}

fn wide(name: &str, cell: Compute) -> Column {
    column(name, "string", 1, compute(cell))
}

fn name() -> Column {
    path("Name", "metadata.name")
}

fn age() -> Column {
    string("Age", cells::age)
}

/// `Containers`, `Images` and `Selector` of the kinds that make pods from a template.
fn template() -> Vec<Column> {
    vec![
        wide("Containers", |o, _| containers(o, "spec.template.spec", "name")),
        wide("Images", |o, _| containers(o, "spec.template.spec", "image")),
        wide("Selector", |o, _| selector(o, "spec.selector")),
    ]
}

fn flagged(object: &Value, path: &str, default: bool) -> Value {
    at(object, path).as_bool().unwrap_or(default).into()
}

/// The columns of a built-in resource; `Name` and `Created At` for one that upstream has no printer for.
pub fn columns(group: &str, resource: &str) -> Vec<Column> {
    let own = match (group, resource) {
        ("", "pods") => vec![
            string("Ready", pod::ready),
            string("Status", pod::status),
            string("Restarts", pod::restarts),
            age(),
            wide("IP", |o, _| {
                cells::items(o, "status.podIPs").first().map_or("<none>".into(), |ip| or(ip, "ip", "<none>"))
            }),
            wide("Node", |o, _| or(o, "spec.nodeName", "<none>")),
            wide("Nominated Node", |o, _| or(o, "status.nominatedNodeName", "<none>")),
            wide("Readiness Gates", pod::readiness_gates),
        ],
        ("", "podtemplates") => vec![
            string("Containers", |o, _| containers(o, "template.spec", "name")),
            string("Images", |o, _| containers(o, "template.spec", "image")),
            string("Pod Labels", |o, _| labels(o, "template.metadata.labels")),
        ],
        ("", "replicationcontrollers") => {
            let mut columns = replicas();
            columns.extend(template());
            columns.pop();
            columns.push(wide("Selector", |o, _| labels(o, "spec.selector")));
            columns
        }
        ("apps", "replicasets") => {
            let mut columns = replicas();
            columns.extend(template());
            columns
        }
        ("apps", "deployments") => {
            let mut columns = vec![
                string("Ready", |o, _| of(o, "status.readyReplicas", "spec.replicas")),
                string("Up-to-date", |o, _| integer(o, "status.updatedReplicas").into()),
                string("Available", |o, _| integer(o, "status.availableReplicas").into()),
                age(),
            ];
            columns.extend(template());
            columns
        }
        ("apps", "statefulsets") => {
            let mut columns = vec![string("Ready", |o, _| of(o, "status.readyReplicas", "spec.replicas")), age()];
            columns.extend(template());
            columns.pop();
            columns
        }
        ("apps", "daemonsets") => {
            let mut columns = vec![
                number("Desired", |o, _| integer(o, "status.desiredNumberScheduled").into()),
                number("Current", |o, _| integer(o, "status.currentNumberScheduled").into()),
                number("Ready", |o, _| integer(o, "status.numberReady").into()),
                number("Up-to-date", |o, _| integer(o, "status.updatedNumberScheduled").into()),
                number("Available", |o, _| integer(o, "status.numberAvailable").into()),
                string("Node Selector", |o, _| labels(o, "spec.template.spec.nodeSelector")),
                age(),
            ];
            columns.extend(template());
            columns
        }
        ("apps", "controllerrevisions") => vec![
            string("Controller", cells::controller),
            string("Revision", |o, _| integer(o, "revision").into()),
            age(),
        ],
        ("batch", "jobs") => {
            let mut columns = vec![
                string("Status", cells::job_status),
                string("Completions", cells::job_completions),
                string("Duration", cells::job_duration),
                age(),
            ];
            columns.extend(template());
            columns
        }
        ("batch", "cronjobs") => vec![
            path("Schedule", "spec.schedule"),
            string("Timezone", |o, _| or(o, "spec.timeZone", "<none>")),
            flag("Suspend", |o, _| cells::boolean(o, "spec.suspend")),
            number("Active", |o, _| length(o, "status.active").into()),
            string("Last Schedule", cells::last_schedule),
            age(),
            wide("Containers", |o, _| containers(o, "spec.jobTemplate.spec.template.spec", "name")),
            wide("Images", |o, _| containers(o, "spec.jobTemplate.spec.template.spec", "image")),
            wide("Selector", |o, _| selector(o, "spec.jobTemplate.spec.selector")),
        ],
        ("", "services") => vec![
            path("Type", "spec.type"),
            string("Cluster-IP", cells::service_cluster_ip),
            string("External-IP", cells::service_external_ip),
            string("Port(s)", cells::service_ports),
            age(),
            wide("Selector", |o, _| labels(o, "spec.selector")),
        ],
        ("", "endpoints") => vec![string("Endpoints", cells::endpoints), age()],
        ("discovery.k8s.io", "endpointslices") => vec![
            path("AddressType", "addressType"),
            string("Ports", cells::slice_ports),
            string("Endpoints", cells::slice_endpoints),
            age(),
        ],
        ("networking.k8s.io", "ingresses") => vec![
            string("Class", |o, _| or(o, "spec.ingressClassName", "<none>")),
            string("Hosts", cells::ingress_hosts),
            string("Address", cells::load_balancer_address),
            string("Ports", |o, _| if length(o, "spec.tls") > 0 { "80, 443" } else { "80" }.into()),
            age(),
        ],
        ("networking.k8s.io", "ingressclasses") => {
            vec![path("Controller", "spec.controller"), string("Parameters", cells::ingress_class_parameters), age()]
        }
        ("networking.k8s.io", "networkpolicies") => {
            vec![string("Pod-Selector", |o, _| selector(o, "spec.podSelector")), age()]
        }
        ("networking.k8s.io", "servicecidrs") => {
            let cidrs: Compute = |o, _| {
                let cidrs = cells::items(o, "spec.cidrs").iter().filter_map(Value::as_str);
                cidrs.collect::<Vec<_>>().join(",").into()
            };
            vec![string("CIDRs", cidrs), age()]
        }
        ("networking.k8s.io", "ipaddresses") => vec![string("ParentRef", cells::ip_parent), age()],
        ("", "nodes") => vec![
            string("Status", cells::node_status),
            string("Roles", cells::node_roles),
            age(),
            path("Version", "status.nodeInfo.kubeletVersion"),
            wide("Internal-IP", |o, _| cells::node_address(o, "InternalIP")),
            wide("External-IP", |o, _| cells::node_address(o, "ExternalIP")),
            wide("OS-Image", |o, _| or(o, "status.nodeInfo.osImage", "<unknown>")),
            wide("Kernel-Version", |o, _| or(o, "status.nodeInfo.kernelVersion", "<unknown>")),
            wide("Container-Runtime", |o, _| or(o, "status.nodeInfo.containerRuntimeVersion", "<unknown>")),
        ],
        ("" | "events.k8s.io", "events") => return events(),
        ("", "namespaces") => vec![path("Status", "status.phase"), age()],
        ("", "secrets") => vec![path("Type", "type"), string("Data", |o, _| length(o, "data").into()), age()],
        ("", "configmaps") => {
            vec![string("Data", |o, _| (length(o, "data") + length(o, "binaryData")).into()), age()]
        }
        ("", "serviceaccounts") => vec![string("Secrets", |o, _| length(o, "secrets").into()), age()],
        ("", "persistentvolumes") => vec![
            string("Capacity", |o, _| quantity(at(o, "spec.capacity.storage")).into()),
            string("Access Modes", cells::volume_modes),
            path("Reclaim Policy", "spec.persistentVolumeReclaimPolicy"),
            string("Status", cells::volume_phase),
            string("Claim", cells::volume_claim),
            string("StorageClass", cells::storage_class),
            string("VolumeAttributesClass", |o, _| or(o, "spec.volumeAttributesClassName", "<unset>")),
            path("Reason", "status.reason"),
            age(),
            wide("VolumeMode", |o, _| or(o, "spec.volumeMode", "<unset>")),
        ],
        ("", "persistentvolumeclaims") => vec![
            string("Status", cells::volume_phase),
            path("Volume", "spec.volumeName"),
            string("Capacity", cells::claim_capacity),
            string("Access Modes", cells::claim_modes),
            string("StorageClass", cells::storage_class),
            string("VolumeAttributesClass", |o, _| or(o, "spec.volumeAttributesClassName", "<unset>")),
            age(),
            wide("VolumeMode", |o, _| or(o, "spec.volumeMode", "<unset>")),
        ],
        ("", "componentstatuses") => vec![
            string("Status", |o, _| cells::component(o, "status")),
            string("Message", |o, _| cells::component(o, "message")),
            string("Error", |o, _| cells::component(o, "error")),
        ],
        ("", "resourcequotas") => {
            vec![string("Request", |o, _| cells::quota(o, false)), string("Limit", |o, _| cells::quota(o, true)), age()]
        }
        ("policy", "poddisruptionbudgets") => vec![
            string("Min Available", |o, _| cells::int_or_string(o, "spec.minAvailable")),
            string("Max Unavailable", |o, _| cells::int_or_string(o, "spec.maxUnavailable")),
            number("Allowed Disruptions", |o, _| integer(o, "status.disruptionsAllowed").into()),
            age(),
        ],
        ("autoscaling", "horizontalpodautoscalers") => vec![
            string("Reference", |o, _| {
                let target = at(o, "spec.scaleTargetRef");
                format!("{}/{}", text(target, "kind"), text(target, "name")).into()
            }),
            string("Targets", cells::autoscaler_targets),
            string("MinPods", |o, _| match at(o, "spec.minReplicas") {
                Value::Null => "<unset>".into(),
                replicas => replicas.to_string().into(),
            }),
            string("MaxPods", |o, _| integer(o, "spec.maxReplicas").into()),
            string("Replicas", |o, _| integer(o, "status.currentReplicas").into()),
            age(),
        ],
        ("autoscaling", "scales") => vec![
            number("Desired", |o, _| integer(o, "spec.replicas").into()),
            number("Available", |o, _| integer(o, "status.replicas").into()),
            age(),
        ],
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => vec![
            string("Role", cells::role),
            age(),
            wide("Users", |o, _| cells::subjects(o, "User")),
            wide("Groups", |o, _| cells::subjects(o, "Group")),
            wide("ServiceAccounts", |o, _| cells::subjects(o, "ServiceAccount")),
        ],
        ("certificates.k8s.io", "certificatesigningrequests") => vec![
            age(),
            string("SignerName", |o, _| or(o, "spec.signerName", "<none>")),
            path("Requestor", "spec.username"),
            string("RequestedDuration", cells::requested_duration),
            string("Condition", cells::signing_request_condition),
        ],
        ("certificates.k8s.io", "clustertrustbundles") => {
            vec![string("SignerName", |o, _| or(o, "spec.signerName", "<none>"))]
        }
        ("coordination.k8s.io", "leases") => vec![path("Holder", "spec.holderIdentity"), age()],
        ("coordination.k8s.io", "leasecandidates") => vec![
            path("LeaseName", "spec.leaseName"),
            path("BinaryVersion", "spec.binaryVersion"),
            path("EmulationVersion", "spec.emulationVersion"),
            age(),
        ],
        ("storage.k8s.io", "storageclasses") => {
            let name: Compute = |o, _| {
                let keys = ["storageclass.kubernetes.io", "storageclass.beta.kubernetes.io"];
                cells::class_name(
                    o,
                    keys.map(|prefix| format!("{prefix}/is-default-class")).each_ref().map(String::as_str),
                )
            };
            return vec![
                string("Name", name),
                path("Provisioner", "provisioner"),
                string("ReclaimPolicy", |o, _| or(o, "reclaimPolicy", "Delete")),
                string("VolumeBindingMode", |o, _| or(o, "volumeBindingMode", "Immediate")),
                string("AllowVolumeExpansion", |o, _| flagged(o, "allowVolumeExpansion", false)),
                age(),
            ];
        }
        ("storage.k8s.io", "volumeattributesclasses") => {
            let name: Compute =
                |o, _| cells::class_name(o, ["volumeattributesclass.alpha.kubernetes.io/is-default-class"; 2]);
            return vec![string("Name", name), path("DriverName", "driverName"), age()];
        }
        ("storage.k8s.io", "volumeattachments") => vec![
            Column { format: "name", ..path("Attacher", "spec.attacher") },
            path("PV", "spec.source.persistentVolumeName"),
            path("Node", "spec.nodeName"),
            flag("Attached", |o, _| flagged(o, "status.attached", false)),
            age(),
        ],
        ("storage.k8s.io", "csinodes") => vec![number("Drivers", |o, _| length(o, "spec.drivers").into()), age()],
        ("storage.k8s.io", "csidrivers") => vec![
            flag("AttachRequired", |o, _| flagged(o, "spec.attachRequired", true)),
            flag("PodInfoOnMount", |o, _| flagged(o, "spec.podInfoOnMount", false)),
            flag("StorageCapacity", |o, _| flagged(o, "spec.storageCapacity", false)),
            string("TokenRequests", cells::csi_token_requests),
            flag("RequiresRepublish", |o, _| flagged(o, "spec.requiresRepublish", false)),
            string("Modes", cells::csi_modes),
            age(),
        ],
        ("storage.k8s.io", "csistoragecapacities") => vec![
            path("StorageClassName", "storageClassName"),
            string("Capacity", |o, _| match at(o, "capacity") {
                Value::Null => "<unset>".into(),
                capacity => quantity(capacity).into(),
            }),
        ],
        ("scheduling.k8s.io", "priorityclasses") => vec![
            number("Value", |o, _| integer(o, "value").into()),
            flag("Global-Default", |o, _| flagged(o, "globalDefault", false)),
            age(),
            path("PreemptionPolicy", "preemptionPolicy"),
        ],
        ("node.k8s.io", "runtimeclasses") => vec![path("Handler", "handler"), age()],
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations" | "validatingwebhookconfigurations") => {
            vec![number("Webhooks", |o, _| length(o, "webhooks").into()), age()]
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => vec![
            number("Validations", |o, _| length(o, "spec.validations").into()),
            string("ParamKind", cells::param_kind),
            age(),
        ],
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies") => vec![
            number("Mutations", |o, _| length(o, "spec.mutations").into()),
            string("ParamKind", cells::param_kind),
            age(),
        ],
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings") => {
            vec![path("PolicyName", "spec.policyName"), string("ParamRef", cells::param_ref), age()]
        }
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => vec![
            path("PriorityLevel", "spec.priorityLevelConfiguration.name"),
            string("MatchingPrecedence", |o, _| integer(o, "spec.matchingPrecedence").into()),
            string("DistinguisherMethod", |o, _| or(o, "spec.distinguisherMethod.type", "<none>")),
            age(),
            string("MissingPL", cells::missing_priority_level),
        ],
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => vec![
            path("Type", "spec.type"),
            string("NominalConcurrencyShares", |o, _| or(o, "spec.limited.nominalConcurrencyShares", "<none>")),
            string("Queues", |o, _| or(o, "spec.limited.limitResponse.queuing.queues", "<none>")),
            string("HandSize", |o, _| or(o, "spec.limited.limitResponse.queuing.handSize", "<none>")),
            string("QueueLengthLimit", |o, _| or(o, "spec.limited.limitResponse.queuing.queueLengthLimit", "<none>")),
            age(),
        ],
        ("internal.apiserver.k8s.io", "storageversions") => vec![
            string("CommonEncodingVersion", |o, _| or(o, "status.commonEncodingVersion", "<unset>")),
            string("StorageVersions", cells::storage_versions),
            age(),
        ],
        ("storagemigration.k8s.io", "storageversionmigrations") => {
            vec![string("Resource", cells::migration_resource)]
        }
        ("resource.k8s.io", "deviceclasses" | "resourceclaimtemplates") => vec![age()],
        ("resource.k8s.io", "resourceclaims") => vec![string("State", cells::claim_state), age()],
        ("resource.k8s.io", "resourceslices") => {
            vec![path("Node", "spec.nodeName"), path("Driver", "spec.driver"), path("Pool", "spec.pool.name"), age()]
        }
        ("apiregistration.k8s.io", "apiservices") => {
            vec![string("Service", cells::api_service), string("Available", cells::api_service_available), age()]
        }
        _ => vec![column("Created At", "date", 0, Cell::Compute(|o, _| at(o, "metadata.creationTimestamp").clone()))],
    };
    std::iter::once(name()).chain(own).collect()
}

fn replicas() -> Vec<Column> {
    vec![
        number("Desired", |o, _| integer(o, "spec.replicas").into()),
        number("Current", |o, _| integer(o, "status.replicas").into()),
        number("Ready", |o, _| integer(o, "status.readyReplicas").into()),
        age(),
    ]
}

fn events() -> Vec<Column> {
    vec![
        string("Last Seen", cells::event_last_seen),
        path("Type", "type"),
        path("Reason", "reason"),
        string("Object", cells::event_object),
        wide("Subobject", cells::event_subobject),
        wide("Source", cells::event_source),
        string("Message", cells::event_message),
        wide("First Seen", cells::event_first_seen),
        wide("Count", cells::event_count),
        Column { priority: 1, ..name() },
    ]
}

/// The cells of an object, one for each of its kind's columns, whatever their priority.
pub fn row(kind: &Kind, object: &Value, now: Timestamp) -> Vec<Value> {
    let cell = |column: &Column| match column.cell {
        Cell::Compute(compute) => compute(object, now),
        Cell::Path(path) => by_path(column.ty, at(object, path), now),
    };
    kind.columns.iter().map(cell).collect()
}

/// A field as its column's type asks; null when it is of another type.
fn by_path(ty: &str, value: &Value, now: Timestamp) -> Value {
    match (ty, value) {
        ("string", Value::Null) => "".into(),
        ("string", Value::String(_)) => value.clone(),
        ("string", other) => other.to_string().into(),
        ("integer", number) => number.as_f64().map_or(Value::Null, |_| integer_of(number)),
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(_)) => cells::age_of(value, now).into(),
        _ => Value::Null,
    }
}

fn integer_of(number: &Value) -> Value {
    number.as_i64().or_else(|| number.as_f64().map(|float| float as i64)).map_or(Value::Null, Value::from)
}

/// `columnDefinitions`.
pub fn definitions(kind: &Kind) -> Value {
    let definition = |column: &Column| {
        json!({
            "name": column.name, "type": column.ty, "format": column.format, "description": "",
            "priority": column.priority,
        })
    };
    kind.columns.iter().map(definition).collect()
}

/// A row's `conditions`: that a pod has come to its end.
pub fn row_conditions(kind: &Kind, object: &Value) -> Option<Value> {
    if (kind.gvk.group.as_str(), kind.resource.as_str()) != ("", "pods") {
        return None;
    }
    let phase = text(object, "status.phase");
    ["Succeeded", "Failed"].contains(&phase).then(|| json!([{"type": "Completed", "status": "True", "reason": phase}]))
}

#[cfg(test)]
mod tests;
