//! Rules of volumes and of mounts. Sources of drivers that left the tree years ago are only counted: their fields are
//! stored as they come.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::containers::{VOLUME_FIELDS, field_reference, resource_reference};
use crate::error::FieldErrors;
use crate::names;
use crate::quantity::Quantity;
use crate::strategy::at::At;

/// The valid volumes of a pod by name.
pub type Volumes<'v> = BTreeMap<&'v str, &'v Value>;

/// In the order in which upstream looks for a second one.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// `pod_name` is empty in templates.
pub fn volumes<'v>(list: &At<'_, 'v>, pod_name: &str, errors: &mut FieldErrors) -> Volumes<'v> {
    let created: BTreeSet<String> = list
        .items()
        .filter(|volume| !pod_name.is_empty() && volume.get("ephemeral").is_set())
        .map(|volume| format!("{pod_name}-{}", volume.get("name").text()))
        .collect();
    let mut valid = Volumes::new();
    for volume in list.items() {
        let before = errors.0.len();
        source(&volume, errors);
        let name = volume.get("name");
        match name.text() {
            "" => name.required(errors, ""),
            text => name.invalid_all(errors, names::dns1123_label(text)),
        }
        if valid.contains_key(name.text()) {
            name.duplicate(errors);
        }
        if errors.0.len() == before {
            valid.insert(name.text(), volume.value);
        }
        let claim = volume.get("persistentVolumeClaim");
        if created.contains(claim.get("claimName").text()) {
            claim
                .get("claimName")
                .invalid(errors, "must not reference a PVC that gets created for an ephemeral volume");
        }
    }
    valid
}

fn source(volume: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut found = 0;
    for kind in SOURCES {
        let source = volume.get(kind);
        if !source.is_set() {
            continue;
        }
        found += 1;
        if found > 1 {
            source.forbidden(errors, "may not specify more than 1 volume type");
            continue;
        }
        match kind {
            "emptyDir" => {
                let limit = source.get("sizeLimit");
                if limit.text().parse::<Quantity>().is_ok_and(|limit| limit.is_negative()) {
                    limit.forbidden(errors, "SizeLimit field must be a valid resource quantity");
                }
            }
            "hostPath" => host_path(&source, errors),
            "secret" => {
                need(&source, "secretName", errors);
                mode(&source.get("defaultMode"), errors);
                keys(&source.get("items"), errors);
            }
            "configMap" => {
                need(&source, "name", errors);
                mode(&source.get("defaultMode"), errors);
                keys(&source.get("items"), errors);
            }
            "persistentVolumeClaim" => need(&source, "claimName", errors),
            "nfs" => {
                need(&source, "server", errors);
                need(&source, "path", errors);
                let path = source.get("path");
                if !path.text().is_empty() && !path.text().starts_with('/') {
                    path.invalid(errors, "must be an absolute path");
                }
            }
            "downwardAPI" => {
                mode(&source.get("defaultMode"), errors);
                downward(&source.get("items"), errors);
            }
            "projected" => projected(&source, errors),
            "csi" => need(&source, "driver", errors),
            "ephemeral" => {
                let template = source.get("volumeClaimTemplate");
                if !template.is_set() {
                    template.required(errors, "");
                } else {
                    super::super::volume::claim_spec(&template.get("spec"), errors);
                }
            }
            "image" => {
                source.get("pullPolicy").none_or_one_of(errors, &["Always", "IfNotPresent", "Never"]);
            }
            _ => {}
        }
    }
    if found == 0 {
        volume.required(errors, "must specify a volume type");
    }
}

fn need(source: &At<'_, '_>, field: &'static str, errors: &mut FieldErrors) {
    if source.value.get(field).and_then(Value::as_str).unwrap_or_default().is_empty() {
        errors.required(source.path().child(field), "");
    }
}

fn host_path(source: &At<'_, '_>, errors: &mut FieldErrors) {
    let path = source.get("path");
    if path.text().is_empty() {
        return path.required(errors, "");
    }
    no_backsteps(&path, errors);
    source.get("type").none_or_one_of(
        errors,
        &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"],
    );
}

fn mode(at: &At<'_, '_>, errors: &mut FieldErrors) {
    if at.int().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        at.invalid(errors, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn keys(items: &At<'_, '_>, errors: &mut FieldErrors) {
    for item in items.items() {
        need(&item, "key", errors);
        need(&item, "path", errors);
        relative_path(&item.get("path"), errors);
        mode(&item.get("mode"), errors);
    }
}

fn downward(items: &At<'_, '_>, errors: &mut FieldErrors) {
    for item in items.items() {
        need(&item, "path", errors);
        relative_path(&item.get("path"), errors);
        let (field, resource) = (item.get("fieldRef"), item.get("resourceFieldRef"));
        match (field.is_set(), resource.is_set()) {
            (true, true) => {
                item.invalid_as(errors, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
            }
            (true, false) => field_reference(&field, &VOLUME_FIELDS, errors),
            (false, true) => resource_reference(&resource, true, errors),
            (false, false) => item.required(errors, "one of fieldRef and resourceFieldRef is required"),
        }
        mode(&item.get("mode"), errors);
    }
}

fn projected(source: &At<'_, '_>, errors: &mut FieldErrors) {
    mode(&source.get("defaultMode"), errors);
    let mut paths = BTreeSet::new();
    for part in source.get("sources").items() {
        let kinds =
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
        let mut found = 0;
        for kind in kinds {
            let at = part.get(kind);
            if !at.is_set() {
                continue;
            }
            found += 1;
            if found > 1 {
                at.forbidden(errors, "may not specify more than 1 volume type per source");
                continue;
            }
            match kind {
                "secret" | "configMap" => {
                    need(&at, "name", errors);
                    keys(&at.get("items"), errors);
                }
                "downwardAPI" => downward(&at.get("items"), errors),
                "serviceAccountToken" => token(&at, errors),
                _ => relative_path(&at.get("path"), errors),
            }
            let items = at.get("items");
            let own = at.get("path");
            let mut all: Vec<At<'_, '_>> = Vec::new();
            let item_list: Vec<At<'_, '_>> = items.items().collect();
            all.extend(item_list.iter().map(|item| item.get("path")));
            if !own.text().is_empty() {
                all.push(own);
            }
            for path in all {
                if !path.text().is_empty() && !paths.insert(path.text()) {
                    path.invalid(errors, "conflicting duplicate paths");
                }
            }
        }
        if found == 0 {
            part.required(errors, "must specify at least one volume source");
        }
    }
}

fn token(at: &At<'_, '_>, errors: &mut FieldErrors) {
    let seconds = at.get("expirationSeconds");
    match seconds.int() {
        None => seconds.required(errors, ""),
        Some(value) if value < 600 => seconds.invalid(errors, "may not specify a duration less than 10 minutes"),
        Some(value) if value > 1 << 32 => {
            seconds.invalid(errors, "may not specify a duration larger than 2^32 seconds")
        }
        Some(_) => {}
    }
    need(at, "path", errors);
    relative_path(&at.get("path"), errors);
}

/// Relative, without `..`.
pub fn descending_path(at: &At<'_, '_>, errors: &mut FieldErrors) {
    if at.text().starts_with('/') {
        at.invalid(errors, "must be a relative path");
    }
    no_backsteps(at, errors);
}

/// A file inside a volume, whose names beginning with `..` are reserved.
fn relative_path(at: &At<'_, '_>, errors: &mut FieldErrors) {
    descending_path(at, errors);
    if at.text().starts_with("..") && !at.text().starts_with("../") {
        at.invalid(errors, "must not start with '..'");
    }
}

fn no_backsteps(at: &At<'_, '_>, errors: &mut FieldErrors) {
    if at.text().split('/').any(|part| part == "..") {
        at.invalid(errors, "must not contain '..'");
    }
}

/// What a container mounts must be there, once.
pub fn mounts(container: &At<'_, '_>, volumes: &Volumes<'_>, errors: &mut FieldErrors) {
    let (mounts, devices) = (container.get("volumeMounts"), container.get("volumeDevices"));
    let privileged = container.get("securityContext").get("privileged").flag();
    let mut paths = BTreeSet::new();
    for mount in mounts.items() {
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        if name.text().is_empty() {
            name.required(errors, "");
        }
        if !volumes.contains_key(name.text()) {
            name.not_found(errors);
        }
        if path.text().is_empty() {
            path.required(errors, "");
        }
        if !paths.insert(path.text()) {
            path.invalid(errors, "must be unique");
        }
        if devices.items().any(|device| device.get("name").text() == name.text()) {
            name.invalid(errors, "must not already exist in volumeDevices");
        }
        if devices.items().any(|device| device.get("devicePath").text() == path.text()) {
            path.invalid(errors, "must not already exist as a path in volumeDevices");
        }
        let (sub, expression) = (mount.get("subPath"), mount.get("subPathExpr"));
        descending_path(&sub, errors);
        if !expression.text().is_empty() && !sub.text().is_empty() {
            expression.invalid(errors, "subPathExpr and subPath are mutually exclusive");
        }
        descending_path(&expression, errors);
        let propagation = mount.get("mountPropagation");
        propagation.none_or_one_of(errors, &["Bidirectional", "HostToContainer", "None"]);
        if propagation.text() == "Bidirectional" && !privileged {
            propagation.forbidden(errors, "Bidirectional mount propagation is available only to privileged containers");
        }
        recursive_read_only(&mount, errors);
    }
    block_devices(&mounts, &devices, volumes, errors);
}

fn recursive_read_only(mount: &At<'_, '_>, errors: &mut FieldErrors) {
    let recursive = mount.get("recursiveReadOnly");
    match recursive.value.as_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.get("readOnly").flag() {
                recursive.forbidden(errors, "may only be specified when readOnly is true");
            }
            if !matches!(mount.get("mountPropagation").text(), "" | "None") {
                recursive.forbidden(errors, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(_) => recursive.none_or_one_of(errors, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn block_devices(mounts: &At<'_, '_>, devices: &At<'_, '_>, volumes: &Volumes<'_>, errors: &mut FieldErrors) {
    let (mut names_seen, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for device in devices.items() {
        let (name, path) = (device.get("name"), device.get("devicePath"));
        let volume: Option<&Map<String, Value>> = volumes.get(name.text()).and_then(|volume| volume.as_object());
        if name.text().is_empty() {
            name.required(errors, "");
        } else if !names_seen.insert(name.text()) {
            name.invalid(errors, "must be unique");
        }
        match volume {
            None => name.not_found(errors),
            Some(volume) if !volume.contains_key("persistentVolumeClaim") && !volume.contains_key("ephemeral") => name
                .invalid(
                    errors,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ),
            Some(_) => {}
        }
        if path.text().is_empty() {
            path.required(errors, "");
        }
        if path.text().split('/').any(|part| part == "..") {
            path.invalid(errors, "can not contain backsteps ('..')");
        } else if !paths.insert(path.text()) {
            path.invalid(errors, "must be unique");
        }
        if mounts.items().any(|mount| mount.get("name").text() == name.text()) {
            name.invalid(errors, "must not already exist in volumeMounts");
        }
        if mounts.items().any(|mount| mount.get("mountPath").text() == path.text()) {
            path.invalid(errors, "must not already exist as a path in volumeMounts");
        }
    }
}
