//! The built-in kinds: every resource that v1.37 serves by default, from `schema/kinds.txt`, joined with the few facts
//! that the published data does not hold.
//!
//! What a kind does beyond its data is in `strategy`; which kinds no controller acts on is in `inert`.

use std::sync::{Arc, OnceLock};

use super::inert::is_inert;
use super::{Gvk, Kind, Kinds, Scope, Subresource, split_api_version};
use crate::schema::{SharedSchema, table};

const KINDS: &str = include_str!("../../../../schema/kinds.txt");

/// Types that requests and answers carry beside the kinds themselves.
const COMPANIONS: [&str; 17] = [
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.CreateOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.GetOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta",
    "io.k8s.apimachinery.pkg.apis.meta.v1.ListOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata",
    "io.k8s.apimachinery.pkg.apis.meta.v1.PatchOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    "io.k8s.apimachinery.pkg.apis.meta.v1.UpdateOptions",
    "io.k8s.api.admission.v1.AdmissionReview",
    "io.k8s.api.core.v1.PodLogOptions",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.ConversionReview",
];

/// All built-in kinds in discovery order. Built once; later calls share it.
pub fn builtin() -> Arc<Kinds> {
    static KINDS: OnceLock<Arc<Kinds>> = OnceLock::new();
    KINDS.get_or_init(|| Arc::new(build())).clone()
}

/// The full name of the type behind a built-in kind: `io.k8s.api.apps.v1.Deployment`.
pub fn type_name(gvk: &Gvk) -> String {
    let package = match gvk.group.as_str() {
        "" => "io.k8s.api.core",
        "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration",
        "meta.k8s.io" => "io.k8s.apimachinery.pkg.apis.meta",
        "internal.apiserver.k8s.io" => "io.k8s.api.apiserverinternal",
        other => return format!("io.k8s.api.{}.{}.{}", first_label(other), gvk.version, gvk.kind),
    };
    format!("{package}.{}.{}", gvk.version, gvk.kind)
}

fn first_label(group: &str) -> &str {
    group.split('.').next().unwrap_or(group)
}

/// One line of the table.
struct Line<'a> {
    group: &'a str,
    version: &'a str,
    resource: &'a str,
    scope: Scope,
    gvk: Gvk,
    verbs: Vec<String>,
    singular: &'a str,
    short_names: Vec<String>,
    categories: Vec<String>,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Self {
        let cells: Vec<&str> = line.split(' ').map(|cell| if cell == "-" { "" } else { cell }).collect();
        let [group, version, resource, scope, kind, verbs, singular, short_names, categories] = cells[..] else {
            panic!("a line of schema/kinds.txt has nine cells: {line}");
        };
        let (api_version, kind) = kind.rsplit_once('/').expect("a kind has a version");
        let (kind_group, kind_version) = split_api_version(api_version);
        Self {
            group,
            version,
            resource,
            scope: if scope == "Cluster" { Scope::Cluster } else { Scope::Namespaced },
            gvk: Gvk { group: kind_group.into(), version: kind_version.into(), kind: kind.into() },
            verbs: list(verbs),
            singular,
            short_names: list(short_names),
            categories: list(categories),
        }
    }
}

fn list(cell: &str) -> Vec<String> {
    cell.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect()
}

fn build() -> Kinds {
    let lines: Vec<Line<'_>> = KINDS.lines().filter(|line| !line.starts_with('#')).map(Line::read).collect();
    let mut names: Vec<String> = lines.iter().map(|line| type_name(&line.gvk)).collect();
    names.extend(COMPANIONS.iter().map(|name| (*name).to_owned()));
    let schema: SharedSchema = Arc::new(table::load(names.iter().map(String::as_str)));

    let mut kinds: Vec<Kind> = Vec::with_capacity(100);
    for line in lines {
        let Some((_, subresource)) = line.resource.split_once('/') else {
            kinds.push(kind(line, &schema));
            continue;
        };
        // Subresources follow their resource in the table.
        let parent = kinds.last_mut().expect("a resource comes before its subresources");
        parent.has_status |= subresource == "status";
        parent.subresources.push(Subresource { name: subresource.into(), gvk: line.gvk, verbs: line.verbs });
    }
    Kinds::new(kinds.into_iter().map(Arc::new).collect(), 0)
}

fn kind(line: Line<'_>, schema: &SharedSchema) -> Kind {
    let gvk = line.gvk;
    debug_assert_eq!((gvk.group.as_str(), gvk.version.as_str()), (line.group, line.version));
    let (storage, storage_resource) = storage(&gvk, line.resource);
    Kind {
        list_kind: format!("{}List", gvk.kind),
        resource: line.resource.into(),
        singular: line.singular.into(),
        scope: line.scope,
        short_names: line.short_names,
        categories: line.categories,
        virtual_kind: !line.verbs.iter().any(|verb| verb == "watch"),
        verbs: line.verbs,
        subresources: Vec::new(),
        root: schema.named(&type_name(&gvk)).expect("the arena was built from these names"),
        schema: schema.clone(),
        storage,
        storage_resource,
        columns: crate::table::columns(line.group, line.resource),
        selectable_fields: selectable_fields(&gvk).iter().map(|field| (*field).to_owned()).collect(),
        inert: is_inert(&gvk.group, &gvk.kind),
        has_generation: has_generation(&gvk.group, &gvk.kind),
        has_status: false,
        gvk,
    }
}

/// Kinds that are served in two forms are stored in one (`pkg/kubeapiserver/default_storage_factory_builder.go`).
fn storage(gvk: &Gvk, resource: &str) -> (Gvk, (String, String)) {
    let (group, version) = match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("events.k8s.io", "Event") => ("", "v1"),
        ("autoscaling", "HorizontalPodAutoscaler") => ("autoscaling", "v2"),
        _ => (gvk.group.as_str(), gvk.version.as_str()),
    };
    let storage = Gvk { group: group.into(), version: version.into(), kind: gvk.kind.clone() };
    (storage, (group.into(), resource.into()))
}

/// Field selectors beyond name and namespace (the field label conversions of `pkg/apis/*/v1/conversion.go`).
fn selectable_fields(gvk: &Gvk) -> &'static [&'static str] {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "Node") => &["spec.unschedulable"],
        ("", "Namespace") => &["status.phase"],
        ("", "Secret") => &["type"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => &["status.replicas"],
        ("", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "Event") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ("batch", "Job") => &["status.successful"],
        ("certificates.k8s.io", "CertificateSigningRequest" | "ClusterTrustBundle") => &["spec.signerName"],
        ("certificates.k8s.io", "PodCertificateRequest") => &["spec.signerName", "spec.podName", "spec.nodeName"],
        ("resource.k8s.io", "ResourceSlice") => &["spec.nodeName", "spec.driver"],
        _ => &[],
    }
}

/// Kinds whose strategy upstream counts `metadata.generation`.
fn has_generation(group: &str, kind: &str) -> bool {
    matches!(
        (group, kind),
        ("", "Pod" | "ReplicationController")
            | ("apps", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet")
            | ("batch", "CronJob" | "Job")
            | ("discovery.k8s.io", "EndpointSlice")
            | ("networking.k8s.io", "Ingress" | "IngressClass" | "NetworkPolicy")
            | ("policy", "PodDisruptionBudget")
            | ("resource.k8s.io", "DeviceClass" | "DeviceTaintRule" | "ResourceSlice")
            | ("admissionregistration.k8s.io" | "apiextensions.k8s.io" | "flowcontrol.apiserver.k8s.io", _)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_in_discovery_order_with_their_parts() {
        let kinds = builtin();
        let mut groups: Vec<&str> = kinds.all.iter().map(|kind| kind.gvk.group.as_str()).collect();
        groups.dedup();
        assert_eq!(groups[..4], ["", "apiregistration.k8s.io", "apps", "events.k8s.io"]);

        let pods = kinds.resource("", "v1", "pods").unwrap();
        assert_eq!((pods.singular.as_str(), pods.list_kind.as_str()), ("pod", "PodList"));
        assert!(pods.has_status && pods.namespaced() && pods.has_generation && !pods.virtual_kind);
        assert_eq!(pods.subresource("eviction").unwrap().gvk.to_string(), "policy/v1, Kind=Eviction");
        assert_eq!(pods.subresource("binding").unwrap().verbs, ["create"]);

        assert!(kinds.resource("authorization.k8s.io", "v1", "subjectaccessreviews").unwrap().virtual_kind);
        assert!(kinds.kind("apps", "v1", "Deployment").unwrap().subresource("scale").is_some());
        assert!(kinds.resource("resource.k8s.io", "v1beta1", "deviceclasses").is_none());
    }

    #[test]
    fn autoscaler_versions_and_events_share_one_stored_form() {
        let kinds = builtin();
        let versions: Vec<&str> =
            kinds.all.iter().filter(|kind| kind.gvk.group == "autoscaling").map(|k| k.gvk.version.as_str()).collect();
        assert_eq!(versions, ["v2", "v1"]);
        let old = kinds.resource("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        assert_eq!(old.storage.version, "v2");
        let events = kinds.resource("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(events.storage.to_string(), "v1, Kind=Event");
        assert_eq!(events.storage_resource, (String::new(), "events".into()));
    }
}
