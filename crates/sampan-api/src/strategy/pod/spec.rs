//! Rules of a pod spec, in a Pod and in a template (`ValidatePodSpec`, `ValidatePodTemplateSpec`).

use std::collections::BTreeSet;

use serde_json::Value;

use super::containers::{self, Pod};
use super::{optional_name, resources, scheduling, volumes};
use crate::error::FieldErrors;
use crate::meta;
use crate::names;
use crate::strategy::NameRule;
use crate::strategy::at::At;

/// A Pod: its spec, and what is asked of pods but not of templates.
pub fn pod(pod: &At<'_, '_>, errors: &mut FieldErrors) {
    let (metadata, spec) = (pod.get("metadata"), pod.get("spec"));
    annotations(&metadata, &spec, errors);
    pod_spec(&spec, metadata.get("name").text(), true, errors);
    if spec.get("serviceAccountName").text().is_empty() {
        for volume in spec.get("volumes").items() {
            for source in volume.get("projected").get("sources").items() {
                let token = source.get("serviceAccountToken");
                if token.is_set() {
                    token.forbidden(errors, "must not be specified when serviceAccountName is not set");
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec.get(list).items() {
            containers::padded_image(&container, errors);
        }
    }
}

/// A pod template.
pub fn template(template: &At<'_, '_>, errors: &mut FieldErrors) {
    let (metadata, spec) = (template.get("metadata"), template.get("spec"));
    template_labels(template, errors);
    annotations(&metadata, &spec, errors);
    pod_spec(&spec, "", false, errors);
    let ephemeral = spec.get("ephemeralContainers");
    if !ephemeral.is_empty() {
        ephemeral.forbidden(errors, "ephemeral containers not allowed in pod template");
    }
}

/// The metadata of a template is checked under `template.labels`, without `metadata`.
fn template_labels(template: &At<'_, '_>, errors: &mut FieldErrors) {
    let metadata = template.get("metadata");
    let mut found = FieldErrors::default();
    meta::validate_labels(&metadata.get("labels"), &mut found);
    meta::validate_annotations(&metadata.get("annotations"), &mut found);
    let (long, short) = (metadata.path().to_string(), template.path());
    for mut error in found.0 {
        if let Some(rest) = error.field.to_string().strip_prefix(&format!("{long}.")) {
            error.field = short.child(rest);
        }
        errors.0.push(error);
    }
}

fn annotations(metadata: &At<'_, '_>, spec: &At<'_, '_>, errors: &mut FieldErrors) {
    let annotations = metadata.get("annotations");
    let mirror = annotations.key("kubernetes.io/config.mirror");
    if mirror.is_set() && spec.get("nodeName").text().is_empty() {
        mirror.invalid(errors, "must set spec.nodeName if mirror pod annotation is set");
    }
    let cost = annotations.key("controller.kubernetes.io/pod-deletion-cost");
    let text = cost.text();
    // As Go parses it: no plus sign, no leading zeros.
    let valid = text.parse::<i32>().is_ok_and(|number| number.to_string() == text);
    if cost.is_set() && !valid {
        cost.invalid(errors, "must be a 32bit integer");
    }
}

fn pod_spec(spec: &At<'_, '_>, pod_name: &str, is_pod: bool, errors: &mut FieldErrors) {
    let grace = spec.get("terminationGracePeriodSeconds");
    if !grace.is_set() {
        grace.required(errors, "");
    }
    let volumes = volumes::volumes(&spec.get("volumes"), pod_name, errors);
    resource_claims(&spec.get("resourceClaims"), errors);
    let mut claims: Vec<&str> = spec
        .get("resourceClaims")
        .value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|claim| claim["name"].as_str())
        .collect();
    claims.sort_unstable();
    let pod = Pod {
        volumes,
        claims,
        grace: grace.int(),
        restart_policy: spec.get("restartPolicy").text(),
        host_users: spec.get("hostUsers").value != &Value::Bool(false),
    };
    let regular = spec.get("containers");
    containers::regular(&regular, &pod, errors);
    containers::init(&spec.get("initContainers"), &regular, &pod, errors);
    containers::ephemeral(&spec.get("ephemeralContainers"), spec, &pod, errors);
    resources::requirements(&spec.get("resources"), &pod.claims, errors);
    host_network(spec, is_pod, errors);
    spec.get("restartPolicy").one_of(errors, &["Always", "OnFailure", "Never"]);
    spec.get("dnsPolicy").one_of(errors, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    meta::validate_labels(&spec.get("nodeSelector"), errors);
    security_context(spec, errors);
    scheduling::affinity(&spec.get("affinity"), errors);
    dns_config(spec, errors);
    for gate in spec.get("readinessGates").items() {
        let condition = gate.get("conditionType");
        for detail in names::qualified_name(condition.text()) {
            condition.invalid_as(errors, condition.text(), detail);
        }
    }
    scheduling::gates(&spec.get("schedulingGates"), errors);
    scheduling::topology_spread(&spec.get("topologySpreadConstraints"), errors);
    host_users(spec, &pod, errors);
    for field in ["serviceAccountName", "nodeName"] {
        optional_name(&spec.get(field), NameRule::Subdomain, errors);
    }
    let deadline = spec.get("activeDeadlineSeconds");
    if deadline.int().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        deadline.invalid(errors, names::inclusive_range(1, i64::from(i32::MAX)));
    }
    for field in ["hostname", "subdomain"] {
        optional_name(&spec.get(field), NameRule::Label, errors);
    }
    hostname_override(spec, errors);
    scheduling::tolerations(&spec.get("tolerations"), errors);
    for alias in spec.get("hostAliases").items() {
        let ip = alias.get("ip");
        if let Some(detail) = names::ip(ip.text()) {
            ip.invalid_as(errors, ip.text(), detail);
        }
        for name in alias.get("hostnames").items() {
            name.invalid_all(errors, names::dns1123_subdomain(name.text()));
        }
    }
    for field in ["priorityClassName", "runtimeClassName"] {
        optional_name(&spec.get(field), NameRule::Subdomain, errors);
    }
    spec.get("preemptionPolicy").none_or_one_of(errors, &["PreemptLowerPriority", "Never"]);
    for (name, amount) in spec.get("overhead").entries() {
        resources::quantity_value(name, &amount, errors);
    }
    let os = spec.get("os");
    if os.is_set() {
        os.get("name").one_of(errors, &["linux", "windows"]);
    }
}

fn hostname_override(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    let name = spec.get("hostnameOverride");
    if !name.is_set() {
        return;
    }
    if name.text().len() > 64 {
        errors.push(name.path(), crate::error::FieldErrorKind::TooLong { max: 64 }, "");
    } else {
        name.invalid_all(errors, names::dns1123_subdomain(name.text()));
    }
    if spec.get("setHostnameAsFQDN").flag() {
        name.forbidden(errors, "setHostnameAsFQDN and hostnameOverride cannot be both set");
    }
    if spec.get("hostNetwork").flag() {
        name.forbidden(errors, "may not be specified when hostNetwork is true");
    }
}

fn resource_claims(list: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for claim in list.items() {
        let name = claim.get("name");
        if name.text().is_empty() {
            name.required(errors, "");
        } else if !seen.insert(name.text()) {
            name.duplicate(errors);
        } else {
            name.invalid_all(errors, names::dns1123_label(name.text()));
        }
        let (own, template) = (claim.get("resourceClaimName"), claim.get("resourceClaimTemplateName"));
        match (own.is_set(), template.is_set()) {
            (true, true) => claim
                .invalid(errors, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"),
            (false, false) => {
                claim.invalid(errors, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`");
            }
            _ => {}
        }
        for at in [own, template] {
            if at.is_set() {
                at.invalid_all(errors, names::dns1123_subdomain(at.text()));
            }
        }
    }
}

/// On the host's network a container's port is the host's.
fn host_network(spec: &At<'_, '_>, is_pod: bool, errors: &mut FieldErrors) {
    if !spec.get("hostNetwork").flag() {
        return;
    }
    for container in spec.get("containers").items() {
        for port in container.get("ports").items() {
            let (host, own) = (port.get("hostPort"), port.get("containerPort"));
            let number = host.int().unwrap_or(0);
            if (is_pod || number != 0) && number != own.int().unwrap_or(0) {
                host.invalid_as(errors, number, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn host_users(spec: &At<'_, '_>, pod: &Pod<'_>, errors: &mut FieldErrors) {
    if pod.host_users {
        return;
    }
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.get(field).flag() {
            errors.forbidden(spec.path().child(shown), "when `hostUsers` is false");
        }
    }
}

fn security_context(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    let context = spec.get("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        containers::id(&context.get(field), errors);
    }
    for group in context.get("supplementalGroups").items() {
        containers::id(&group, errors);
    }
    if spec.get("shareProcessNamespace").flag() && spec.get("hostPID").flag() {
        errors.invalid(
            context.path().child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    sysctls(spec, &context.get("sysctls"), errors);
    context.get("fsGroupChangePolicy").none_or_one_of(errors, &["Always", "OnRootMismatch"]);
    containers::profile(&context.get("seccompProfile"), "seccomp", errors);
    containers::profile(&context.get("appArmorProfile"), "AppArmor", errors);
    context.get("supplementalGroupsPolicy").none_or_one_of(errors, &["Merge", "Strict"]);
}

const SYSCTL: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn sysctls(spec: &At<'_, '_>, list: &At<'_, '_>, errors: &mut FieldErrors) {
    let is_segment = |segment: &str| {
        let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        segment.starts_with(edge) && segment.ends_with(edge) && segment.bytes().all(inside)
    };
    let mut seen = BTreeSet::new();
    for sysctl in list.items() {
        let name = sysctl.get("name");
        if name.text().is_empty() {
            name.required(errors, "");
        } else if name.text().len() > 253 || !name.text().split(['.', '/']).all(is_segment) {
            name.invalid(errors, format!("must have at most 253 characters and match regex {SYSCTL}"));
        } else if !seen.insert(name.text()) {
            name.duplicate(errors);
        }
        let text = name.text().replace('/', ".");
        let of_ipc = text.starts_with("kernel.shm")
            || text.starts_with("kernel.msg")
            || text.starts_with("fs.mqueue.")
            || text == "kernel.sem";
        if spec.get("hostNetwork").flag() && text.starts_with("net.") {
            name.invalid(errors, "may not be specified when 'hostNetwork' is true");
        } else if spec.get("hostIPC").flag() && of_ipc {
            name.invalid(errors, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn dns_config(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    let config = spec.get("dnsConfig");
    let servers = config.get("nameservers");
    if spec.get("dnsPolicy").text() == "None" {
        if !config.is_set() {
            return config.required(errors, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            return servers.required(errors, "must provide at least one DNS nameserver when `dnsPolicy` is None");
        }
    }
    if servers.len() > 3 {
        servers.invalid(errors, "must not have more than 3 nameservers");
    }
    for server in servers.items() {
        server.invalid_all(errors, names::ip(server.text()));
    }
    let searches = config.get("searches");
    if searches.len() > 32 {
        searches.invalid(errors, "must not have more than 32 search paths");
    }
    let length: usize = searches.items().map(|search| search.text().len() + 1).sum();
    if length > 2049 {
        searches.invalid(errors, "must not have more than 2048 characters (including spaces) in the search list");
    }
    for search in searches.items() {
        // The root alone, a trailing dot and underscores are fine.
        let text = search.text().strip_suffix('.').unwrap_or(search.text());
        let text = text.replace('_', "-").trim_matches('-').to_owned();
        if search.text() != "." {
            search.invalid_all(errors, names::dns1123_subdomain(&text));
        }
    }
    for option in config.get("options").items() {
        if option.get("name").text().is_empty() {
            option.required(errors, "must not be empty");
        }
    }
}

/// Warnings about a pod spec at `path` below an object (`pkg/api/pod/warnings.go`).
pub fn warnings(object: &Value, path: &[&str]) -> Vec<String> {
    let spec = path.iter().fold(object, |value, key| &value[*key]);
    let prefix = path.join(".");
    let mut warnings = Vec::new();
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        warnings.push(format!(
            "{prefix}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    for list in ["initContainers", "containers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let mut seen = BTreeSet::new();
            for (at, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
                let name = variable["name"].as_str().unwrap_or_default();
                if !seen.insert(name) {
                    warnings.push(format!(
                        "{prefix}.{list}[{index}].env[{at}]: hides previous definition of {name:?}, which may be \
                         dropped when using apply"
                    ));
                }
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::STRATEGY;
    use super::*;

    fn found(mut object: Value) -> Vec<String> {
        (STRATEGY.default)(&mut object);
        (STRATEGY.validate_create)(&object).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_pod_is_valid() {
        let pod = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {
            "containers": [{"name": "a", "image": "nginx",
                "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}],
                "env": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi", "example.com/gpu": "1"}},
                "livenessProbe": {"httpGet": {"port": "http"}},
            }],
            "volumes": [{"name": "v", "configMap": {"name": "c"}}],
            "tolerations": [{"operator": "Exists"}],
        }});
        assert_eq!(found(pod), Vec::<String>::new());
    }

    #[test]
    fn messages_of_a_bad_pod() {
        assert_eq!(found(json!({"spec": {}})), ["spec.containers: Required value"]);
        let pod = json!({"spec": {"restartPolicy": "Sometimes", "containers": [
            {"name": "", "ports": [{"containerPort": 0, "protocol": "HTTP"}], "volumeMounts": [{"name": "x", "mountPath": "/"}],
             "imagePullPolicy": "Perhaps", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}},
             "livenessProbe": {"successThreshold": 2}},
            {"name": "b", "image": "x"}, {"name": "b", "image": " x"},
        ]}});
        assert_eq!(
            found(pod),
            [
                "spec.containers[0].name: Required value",
                "spec.containers[0].image: Required value",
                "spec.containers[0].ports[0].containerPort: Required value",
                "spec.containers[0].ports[0].protocol: Unsupported value: \"HTTP\": supported values: \"SCTP\", \"TCP\", \
                 \"UDP\"",
                "spec.containers[0].volumeMounts[0].name: Not found: \"x\"",
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Perhaps\": supported values: \"Always\", \
                 \"IfNotPresent\", \"Never\"",
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit \
                 of 1",
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
                "spec.containers[2].name: Duplicate value: \"b\"",
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \
                 \"Never\"",
                "spec.containers[2].image: Invalid value: \" x\": must not have leading or trailing whitespace",
            ]
        );
    }

    #[test]
    fn volumes_and_security() {
        let pod = json!({"spec": {
            "volumes": [{"name": "a", "emptyDir": {}, "hostPath": {"path": "/x"}}, {"name": "b", "secret": {}}],
            "securityContext": {"runAsUser": -1, "sysctls": [{"name": "net.x"}]},
            "hostNetwork": true,
            "containers": [{"name": "a", "image": "x", "securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}],
        }});
        assert_eq!(
            found(pod),
            [
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
                "spec.volumes[1].secret.secretName: Required value",
                "spec.containers[0].securityContext: Invalid value: \
                 {\"allowPrivilegeEscalation\":false,\"privileged\":true}: cannot set `allowPrivilegeEscalation` to \
                 false and `privileged` to true",
                "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                "spec.securityContext.sysctls[0].name: Invalid value: \"net.x\": may not be specified when \
                 'hostNetwork' is true",
            ]
        );
    }

    #[test]
    fn a_template_is_checked_at_its_own_path() {
        let object = json!({"metadata": {"labels": {"a": "-"}}, "spec": {"terminationGracePeriodSeconds": 1,
            "restartPolicy": "Always", "dnsPolicy": "Default", "containers": []}});
        let mut errors = FieldErrors::default();
        let root = json!({"template": object});
        let root = At::root(&root);
        template(&root.get("template"), &mut errors);
        let fields: Vec<String> = errors.0.iter().map(|error| error.field.to_string()).collect();
        assert_eq!(fields, ["template.labels", "template.spec.containers"]);
    }
}
