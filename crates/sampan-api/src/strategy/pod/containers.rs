//! Rules of containers: names, images, ports, environment, mounts, probes, lifecycle, security context.

use std::collections::BTreeSet;

use serde_json::Value;

use super::resources;
use super::volumes::{self, Volumes};
use crate::error::{FieldErrorKind, FieldErrors};
use crate::names;
use crate::strategy::at::At;

/// What containers need to know of their pod.
pub struct Pod<'v> {
    pub volumes: Volumes<'v>,
    /// Names in `resourceClaims`, sorted.
    pub claims: Vec<&'v str>,
    pub grace: Option<i64>,
    pub restart_policy: &'v str,
    pub host_users: bool,
}

pub fn regular(list: &At<'_, '_>, pod: &Pod<'_>, errors: &mut FieldErrors) {
    if list.is_empty() {
        return list.required(errors, "");
    }
    let mut names = BTreeSet::new();
    for container in list.items() {
        common(&container, pod, errors);
        let name = container.get("name");
        if !names.insert(name.text()) {
            name.duplicate(errors);
        }
        hooks_and_probes(&container, pod, errors);
        let policy = container.get("restartPolicy");
        if policy.is_set() {
            container_restart(&container, errors);
        } else if !container.get("restartPolicyRules").is_empty() {
            policy.required(errors, "must specify restartPolicy when restart rules are used");
        }
    }
    host_ports(list, list.items(), errors);
}

pub fn init(list: &At<'_, '_>, regular: &At<'_, '_>, pod: &Pod<'_>, errors: &mut FieldErrors) {
    let mut names: BTreeSet<&str> = regular.items().map(|container| container.get("name").text()).collect();
    for container in list.items() {
        common(&container, pod, errors);
        let policy = container.get("restartPolicy");
        if policy.is_set() {
            container_restart(&container, errors);
        }
        let name = container.get("name");
        if !name.text().is_empty() && !names.insert(name.text()) {
            name.duplicate(errors);
        }
        if policy.text() == "Always" {
            hooks_and_probes(&container, pod, errors);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            let field = container.get(field);
            if field.is_set() {
                field.forbidden(errors, "may not be set for init containers without restartPolicy=Always");
            }
        }
        let resize = container.get("resizePolicy");
        if !resize.is_empty() {
            resize.invalid(errors, "must not be set for init containers");
        }
    }
}

/// Fields an ephemeral container may have.
const EPHEMERAL: [&str; 17] = [
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "envFrom",
    "env",
    "volumeMounts",
    "volumeDevices",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "targetContainerName",
];

pub fn ephemeral(list: &At<'_, '_>, spec: &At<'_, '_>, pod: &Pod<'_>, errors: &mut FieldErrors) {
    let (regular, init) = (spec.get("containers"), spec.get("initContainers"));
    let others: BTreeSet<&str> =
        regular.items().chain(init.items()).map(|container| container.get("name").text()).collect();
    let mut names = others.clone();
    for container in list.items() {
        common(&container, pod, errors);
        padded_image(&container, errors);
        let name = container.get("name");
        if !names.insert(name.text()) {
            name.duplicate(errors);
        }
        let target = container.get("targetContainerName");
        if !target.text().is_empty() && !others.contains(target.text()) {
            target.not_found(errors);
        }
        for key in container.value.as_object().into_iter().flatten().map(|(key, _)| key) {
            let field = container.get(key);
            let empty = field.value.as_object().is_some_and(serde_json::Map::is_empty) || !field.is_set();
            if !EPHEMERAL.contains(&key.as_str()) && !empty {
                field.forbidden(errors, "cannot be set for an Ephemeral Container");
            }
        }
        for mount in container.get("volumeMounts").items() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.get(field).text().is_empty() {
                    mount.get(field).forbidden(errors, "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

fn container_restart(container: &At<'_, '_>, errors: &mut FieldErrors) {
    container.get("restartPolicy").none_or_one_of(errors, &["Always", "Never", "OnFailure"]);
}

fn common(container: &At<'_, '_>, pod: &Pod<'_>, errors: &mut FieldErrors) {
    let name = container.get("name");
    match name.text() {
        "" => name.required(errors, ""),
        text => name.invalid_all(errors, names::dns1123_label(text)),
    }
    if container.get("image").text().is_empty() {
        container.get("image").required(errors, "");
    }
    container.get("terminationMessagePolicy").one_of(errors, &["File", "FallbackToLogsOnError"]);
    ports(&container.get("ports"), errors);
    environment(&container.get("env"), errors);
    environment_from(&container.get("envFrom"), errors);
    volumes::mounts(container, &pod.volumes, errors);
    container.get("imagePullPolicy").one_of(errors, &["Always", "IfNotPresent", "Never"]);
    resources::requirements(&container.get("resources"), &pod.claims, errors);
    resize_policy(&container.get("resizePolicy"), pod.restart_policy, errors);
    security_context(&container.get("securityContext"), pod.host_users, errors);
}

/// Pods only: templates may hold placeholders.
pub fn padded_image(container: &At<'_, '_>, errors: &mut FieldErrors) {
    let image = container.get("image");
    if image.text().trim() != image.text() {
        image.invalid(errors, "must not have leading or trailing whitespace");
    }
}

fn ports(list: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    for port in list.items() {
        let name = port.get("name");
        if !name.text().is_empty() {
            let wrong = names::port_name(name.text());
            if wrong.is_empty() && !names.insert(name.text()) {
                name.duplicate(errors);
            }
            name.invalid_all(errors, wrong);
        }
        let number = port.get("containerPort");
        match number.int().unwrap_or(0) {
            0 => number.required(errors, ""),
            value => number.invalid_all(errors, names::port_number(value)),
        }
        let host = port.get("hostPort");
        if let Some(value) = host.int().filter(|value| *value != 0) {
            host.invalid_all(errors, names::port_number(value));
        }
        port.get("protocol").one_of(errors, &["SCTP", "TCP", "UDP"]);
    }
}

/// No two containers that run together take the same port of the host.
fn host_ports<'q, 'v: 'q>(list: &At<'_, '_>, all: impl Iterator<Item = At<'q, 'v>>, errors: &mut FieldErrors) {
    let mut taken = BTreeSet::new();
    for (index, container) in all.enumerate() {
        for (at, port) in container.get("ports").items().enumerate() {
            let number = port.get("hostPort").int().unwrap_or(0);
            let key = format!("{}/{}/{number}", port.get("protocol").text(), port.get("hostIP").text());
            if number != 0 && !taken.insert(key.clone()) {
                errors.duplicate(list.path().index(index).child("ports").index(at).child("hostPort"), key);
            }
        }
    }
}

fn environment(list: &At<'_, '_>, errors: &mut FieldErrors) {
    for variable in list.items() {
        let name = variable.get("name");
        match name.text() {
            "" => name.required(errors, ""),
            text => name.invalid_all(errors, names::env_name(text)),
        }
        let from = variable.get("valueFrom");
        if !from.is_set() {
            continue;
        }
        let mut sources = 0;
        for source in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
            let source_at = from.get(source);
            if !source_at.is_set() {
                continue;
            }
            sources += 1;
            match source {
                "fieldRef" => field_reference(&source_at, &ENV_FIELDS, errors),
                "resourceFieldRef" => resource_reference(&source_at, false, errors),
                "configMapKeyRef" | "secretKeyRef" => key_reference(&source_at, errors),
                _ => file_key(&source_at, errors),
            }
        }
        let text = variable.get("value").text();
        if sources == 0 {
            from.invalid_as(
                errors,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            );
        } else if !text.is_empty() {
            from.invalid_as(errors, "", "may not be specified when `value` is not empty");
        } else if sources > 1 {
            from.invalid_as(errors, "", "may not have more than one field specified at a time");
        }
    }
}

fn key_reference(source: &At<'_, '_>, errors: &mut FieldErrors) {
    let (name, key) = (source.get("name"), source.get("key"));
    for detail in names::dns1123_subdomain(name.text()) {
        name.invalid_as(errors, name.text(), detail);
    }
    match key.text() {
        "" => key.required(errors, ""),
        text => key.invalid_all(errors, names::config_key(text)),
    }
}

fn file_key(source: &At<'_, '_>, errors: &mut FieldErrors) {
    let key = source.get("key");
    match key.text() {
        "" => key.required(errors, ""),
        text => key.invalid_all(errors, names::env_name(text)),
    }
    for field in ["volumeName", "path"] {
        if source.get(field).text().is_empty() {
            source.get(field).required(errors, "");
        }
    }
}

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
pub const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Fields the downward API knows at all.
const KNOWN_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase"];

/// A reference to a field of the pod, subscripts of labels and annotations included.
pub fn field_reference(source: &At<'_, '_>, allowed: &[&str], errors: &mut FieldErrors) {
    let (version, path) = (source.get("apiVersion"), source.get("fieldPath"));
    if version.text().is_empty() {
        return version.required(errors, "");
    }
    if path.text().is_empty() {
        return path.required(errors, "");
    }
    if version.text() != "v1" {
        let detail = format!("error converting fieldPath: unsupported pod version: {}", version.text());
        return path.invalid(errors, detail);
    }
    if let Some((map, rest)) = path.text().split_once("['")
        && let Some(key) = rest.strip_suffix("']")
    {
        let wrong = match map {
            "metadata.annotations" => names::qualified_name(&key.to_lowercase()),
            "metadata.labels" => names::qualified_name(key),
            _ => {
                let detail =
                    format!("error converting fieldPath: field label does not support subscript: {}", path.text());
                return path.invalid(errors, detail);
            }
        };
        for detail in wrong {
            source.invalid_as(errors, key, detail);
        }
        return;
    }
    if allowed.contains(&path.text()) {
        return;
    }
    if ENV_FIELDS.contains(&path.text()) || KNOWN_FIELDS.contains(&path.text()) {
        errors.not_supported(path.path(), path.text(), allowed);
    } else {
        path.invalid(errors, format!("error converting fieldPath: field label not supported: {}", path.text()));
    }
}

const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// A reference to a container's requests or limits.
pub fn resource_reference(source: &At<'_, '_>, in_volume: bool, errors: &mut FieldErrors) {
    let (container, resource) = (source.get("containerName"), source.get("resource"));
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.text().starts_with(prefix));
    if in_volume && container.text().is_empty() {
        container.required(errors, "");
    } else if resource.text().is_empty() {
        resource.required(errors, "");
    } else if !RESOURCE_FIELDS.contains(&resource.text()) && !huge {
        errors.not_supported(resource.path(), resource.text(), &RESOURCE_FIELDS);
    }
    let divisor = source.get("divisor");
    let sizes = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";
    let (valid, which) = match resource.text() {
        "limits.cpu" | "requests.cpu" => ("1m and 1", "cpu"),
        "limits.memory" | "requests.memory" => (sizes, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (sizes, "local ephemeral storage"),
        _ if huge => (sizes, "hugepages"),
        _ => return,
    };
    let listed = if which == "cpu" {
        matches!(divisor.text(), "1m" | "1")
    } else {
        sizes.split(", ").any(|size| size == divisor.text())
    };
    if !matches!(divisor.text(), "" | "0") && !listed {
        let detail = format!("only divisor's values {valid} are supported with the {which} resource");
        divisor.invalid_as(errors, resource.text(), detail);
    }
}

fn environment_from(list: &At<'_, '_>, errors: &mut FieldErrors) {
    for source in list.items() {
        let prefix = source.get("prefix");
        if !prefix.text().is_empty() {
            prefix.invalid_all(errors, names::env_name(prefix.text()));
        }
        let mut sources = 0;
        for kind in ["configMapRef", "secretRef"] {
            let reference = source.get(kind);
            if !reference.is_set() {
                continue;
            }
            sources += 1;
            let name = reference.get("name");
            match name.text() {
                "" => name.required(errors, ""),
                text => name.invalid_all(errors, names::dns1123_subdomain(text)),
            }
        }
        match sources {
            0 => list.invalid_as(errors, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => list.invalid_as(errors, "", "may not have more than one field specified at a time"),
        }
    }
}

fn hooks_and_probes(container: &At<'_, '_>, pod: &Pod<'_>, errors: &mut FieldErrors) {
    let lifecycle = container.get("lifecycle");
    for hook in ["postStart", "preStop"] {
        if lifecycle.get(hook).is_set() {
            handler(&lifecycle.get(hook), &["exec", "httpGet", "tcpSocket", "sleep"], pod, errors);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.get(name);
        if !probe.is_set() {
            continue;
        }
        handler(&probe, &["exec", "httpGet", "tcpSocket", "grpc"], pod, errors);
        for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            probe.get(field).not_negative(errors);
        }
        let grace = probe.get("terminationGracePeriodSeconds");
        if grace.int().is_some_and(|seconds| seconds <= 0) {
            grace.invalid(errors, "must be greater than 0");
        }
        let successes = probe.get("successThreshold");
        match name {
            "readinessProbe" if grace.is_set() => grace.invalid(errors, "must not be set for readinessProbes"),
            "readinessProbe" => {}
            _ if successes.int() != Some(1) => successes.invalid(errors, "must be 1"),
            _ => {}
        }
    }
}

fn handler(at: &At<'_, '_>, kinds: &[&'static str], pod: &Pod<'_>, errors: &mut FieldErrors) {
    let mut found = 0;
    for kind in kinds {
        let action = at.get(kind);
        if !action.is_set() {
            continue;
        }
        found += 1;
        if found > 1 {
            action.forbidden(errors, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if action.get("command").is_empty() => action.get("command").required(errors, ""),
            "httpGet" => http_get(&action, errors),
            "tcpSocket" | "grpc" => port_or_name(&action.get("port"), errors),
            "sleep" => {
                let seconds = action.get("seconds");
                let value = seconds.int().unwrap_or(0);
                if value < 0 || pod.grace.is_some_and(|grace| value > grace) {
                    let grace = pod.grace.unwrap_or(0);
                    let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    action.invalid_as(errors, value, detail);
                }
            }
            _ => {}
        }
    }
    if found == 0 {
        at.required(errors, "must specify a handler type");
    }
}

fn http_get(action: &At<'_, '_>, errors: &mut FieldErrors) {
    if action.get("path").text().is_empty() {
        action.get("path").required(errors, "");
    }
    port_or_name(&action.get("port"), errors);
    let scheme = action.get("scheme");
    if !matches!(scheme.text(), "HTTP" | "HTTPS") {
        errors.not_supported(scheme.path(), scheme.text(), &["HTTP", "HTTPS"]);
    }
    let headers = action.get("httpHeaders");
    for header in headers.items() {
        for detail in names::http_header_name(header.get("name").text()) {
            headers.invalid_as(errors, header.get("name").text(), detail);
        }
    }
}

/// A port by number or by name. Unset is 0.
pub fn port_or_name(at: &At<'_, '_>, errors: &mut FieldErrors) {
    match at.value {
        Value::String(name) => at.invalid_all(errors, names::port_name(name)),
        value => {
            let number = value.as_i64().unwrap_or(0);
            if let Some(detail) = names::port_number(number) {
                at.invalid_as(errors, number, detail);
            }
        }
    }
}

fn resize_policy(list: &At<'_, '_>, pod_restart: &str, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for policy in list.items() {
        let (resource, restart) = (policy.get("resourceName").text(), policy.get("restartPolicy").text());
        if !seen.insert(resource) {
            errors.duplicate(policy.path(), resource);
        }
        for (value, valid) in [(resource, ["cpu", "memory"]), (restart, ["NotRequired", "RestartContainer"])] {
            match value {
                "" => list.required(errors, ""),
                _ if !valid.contains(&value) => errors.not_supported(list.path(), value, &valid),
                _ => {}
            }
        }
        if pod_restart == "Never" && restart != "NotRequired" {
            list.invalid_as(errors, restart, "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
    }
}

/// User and group ids are 31 bits.
pub fn id(at: &At<'_, '_>, errors: &mut FieldErrors) {
    const MAX: i64 = i32::MAX as i64;
    if at.int().is_some_and(|id| !(0..=MAX).contains(&id)) {
        at.invalid(errors, names::inclusive_range(0, MAX));
    }
}

fn security_context(context: &At<'_, '_>, host_users: bool, errors: &mut FieldErrors) {
    if !context.is_set() {
        return;
    }
    id(&context.get("runAsUser"), errors);
    id(&context.get("runAsGroup"), errors);
    let mount = context.get("procMount");
    mount.none_or_one_of(errors, &["Default", "Unmasked"]);
    if host_users && mount.text() == "Unmasked" {
        mount.invalid(errors, "`hostUsers` must be false to use `Unmasked`");
    }
    profile(&context.get("seccompProfile"), "seccomp", errors);
    let escalation = context.get("allowPrivilegeEscalation");
    if escalation.is_set() && !escalation.flag() {
        if context.get("privileged").flag() {
            context.invalid(errors, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if context.get("capabilities").get("add").items().any(|one| one.text() == "CAP_SYS_ADMIN") {
            context
                .invalid(errors, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    profile(&context.get("appArmorProfile"), "AppArmor", errors);
}

/// A seccomp or AppArmor profile.
pub fn profile(at: &At<'_, '_>, which: &str, errors: &mut FieldErrors) {
    if !at.is_set() {
        return;
    }
    let (ty, local) = (at.get("type"), at.get("localhostProfile"));
    let field = if which == "seccomp" { "seccompProfile" } else { "appArmorProfile" };
    match ty.text() {
        "" => ty.required(errors, &format!("type is required when {field} is set")),
        _ => ty.none_or_one_of(errors, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    match (ty.text(), local.is_set()) {
        ("Localhost", false) => local.required(errors, &format!("must be set when {which} type is Localhost")),
        ("Localhost", true) if which == "seccomp" => volumes::descending_path(&local, errors),
        ("Localhost", true) if local.text().trim() != local.text() => {
            local.invalid(errors, "must not be padded with whitespace");
        }
        ("Localhost", true) if local.text().is_empty() => {
            local.required(errors, &format!("must be set when {which} type is Localhost"));
        }
        ("Localhost", true) if local.text().len() > 4095 => {
            errors.push(local.path(), FieldErrorKind::TooLong { max: 4095 }, "");
        }
        ("Localhost", true) | (_, false) => {}
        (_, true) => local.invalid(errors, format!("can only be set when {which} type is Localhost")),
    }
}
