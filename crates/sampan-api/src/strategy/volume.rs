//! PersistentVolumes, their claims and StorageClasses.

use serde_json::{Value, json};

use super::at::{At, same};
use super::pod::{defaults, node_selector, quantity_value, topology_selector_terms};
use super::{GENERIC, Strategy, set};
use crate::error::FieldErrors;
use crate::meta;
use crate::names;
use crate::quantity::Quantity;

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub const CLAIM: Strategy = Strategy {
    default: |claim| {
        if let Some(spec) = set::at(claim, &["spec"]) {
            defaults::claim_spec(spec);
        }
    },
    prepare_create: |claim| claim["status"] = json!({"phase": "Pending"}),
    validate_create: |claim| {
        let mut errors = FieldErrors::default();
        claim_spec(&At::root(claim).get("spec"), &mut errors);
        errors
    },
    validate_update: validate_claim_update,
    ..GENERIC
};

pub const VOLUME: Strategy = Strategy {
    default: |volume| {
        if let Some(spec) = set::at(volume, &["spec"]) {
            set::empty(spec, "persistentVolumeReclaimPolicy", "Retain");
            set::unset(spec, "volumeMode", "Filesystem");
            defaults::round_up(spec, "capacity");
        }
    },
    prepare_create: |volume| volume["status"] = json!({"phase": "Pending"}),
    validate_create: |volume| {
        let mut errors = FieldErrors::default();
        volume_spec(&At::root(volume).get("spec"), &mut errors);
        errors
    },
    validate_update: validate_volume_update,
    ..GENERIC
};

pub const CLASS: Strategy = Strategy {
    default: |class| {
        if let Some(fields) = class.as_object_mut() {
            set::unset(fields, "reclaimPolicy", "Delete");
            set::unset(fields, "volumeBindingMode", "Immediate");
        }
    },
    validate_create: validate_class,
    validate_update: validate_class_update,
    ..GENERIC
};

/// `ValidatePersistentVolumeClaimSpec`.
pub fn claim_spec(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    let modes = spec.get("accessModes");
    if modes.is_empty() {
        modes.required(errors, "at least 1 access mode is required");
    }
    meta::validate_selector(&spec.get("selector"), errors);
    access_modes(&modes, errors);
    let resources = spec.get("resources");
    let requests = resources.get("requests");
    let storage = requests.key("storage");
    let path = resources.path().key("storage");
    match storage.text().parse::<Quantity>() {
        Err(_) => errors.required(path, ""),
        Ok(amount) if amount.is_negative() => errors.invalid(path, storage.text(), names::NOT_NEGATIVE),
        Ok(amount) if amount.is_zero() => errors.invalid(path, storage.text(), "must be greater than zero"),
        Ok(_) => {}
    }
    let class = spec.get("storageClassName");
    if !class.text().is_empty() {
        class.invalid_all(errors, names::dns1123_subdomain(class.text()));
    }
    spec.get("volumeMode").none_or_one_of(errors, &["Block", "Filesystem"]);
    for field in ["dataSource", "dataSourceRef"] {
        let source = spec.get(field);
        if !source.is_set() {
            continue;
        }
        for part in ["kind", "name"] {
            if source.get(part).text().is_empty() {
                source.get(part).required(errors, "");
            }
        }
        let core = source.get("apiGroup").text().is_empty();
        if core && source.get("kind").text() != "PersistentVolumeClaim" {
            source.invalid_as(
                errors,
                source.get("kind").text(),
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            );
        }
    }
}

fn access_modes(modes: &At<'_, '_>, errors: &mut FieldErrors) {
    let (mut single, mut other) = (false, false);
    for mode in modes.items() {
        if !MODES.contains(&mode.text()) {
            errors.not_supported(modes.path(), mode.text(), &MODES);
        }
        single |= mode.text() == "ReadWriteOncePod";
        other |= mode.text() != "ReadWriteOncePod";
    }
    if single && other {
        modes.forbidden(errors, "may not use ReadWriteOncePod with other access modes");
    }
}

fn validate_claim_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (root, before) = (At::root(new), At::root(old));
    let (spec, old_spec) = (root.get("spec"), before.get("spec"));
    claim_spec(&spec, &mut errors);

    let bound = before.get("status").get("phase").text() == "Bound";
    let mut munged = new["spec"].clone();
    if let (Some(fields), Some(old_fields)) = (munged.as_object_mut(), old["spec"].as_object()) {
        let mut keep = |field: &str| match old_fields.get(field) {
            Some(value) => fields.insert(field.into(), value.clone()),
            None => fields.remove(field),
        };
        // The binder names the volume, and a default class may come late.
        if old_spec.get("volumeName").text().is_empty() {
            keep("volumeName");
        }
        if !old_spec.get("storageClassName").is_set() {
            keep("storageClassName");
        }
        if bound {
            keep("volumeAttributesClassName");
            keep("resources");
        }
    }
    if !same(&munged, &old["spec"]) {
        spec.forbidden(
            &mut errors,
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let size =
        |spec: &Value| spec["resources"]["requests"]["storage"].as_str().and_then(|text| text.parse::<Quantity>().ok());
    let capacity = old["status"]["capacity"]["storage"].as_str().and_then(|text| text.parse::<Quantity>().ok());
    if let (Some(now), Some(then)) = (size(&new["spec"]), size(&old["spec"]))
        && now < then
        && capacity.is_none_or(|capacity| now < capacity)
    {
        let path = spec.get("resources").path().child("requests").child("storage");
        let detail = if capacity.is_some() {
            "field can not be less than status.capacity"
        } else {
            "field can not be less than previous value"
        };
        errors.forbidden(path, detail);
    }
    errors
}

/// Fields of a volume's spec that are not its source.
const NOT_SOURCES: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn volume_spec(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    let modes = spec.get("accessModes");
    if modes.is_empty() {
        modes.required(errors, "");
    }
    access_modes(&modes, errors);
    let capacity = spec.get("capacity");
    if capacity.is_empty() {
        capacity.required(errors, "");
    } else if capacity.len() > 1 || !capacity.key("storage").is_set() {
        errors.not_supported(capacity.path(), capacity.value.clone(), &["storage"]);
    }
    for (name, amount) in capacity.entries() {
        quantity_value(name, &amount, errors);
        if amount.text().parse::<Quantity>().is_ok_and(|amount| amount.is_zero()) {
            amount.invalid(errors, "must be greater than zero");
        }
    }
    spec.get("persistentVolumeReclaimPolicy").none_or_one_of(errors, &["Delete", "Recycle", "Retain"]);
    let required = spec.get("nodeAffinity");
    if required.is_set() {
        let selector = required.get("required");
        if selector.is_set() {
            node_selector(&selector, errors);
        } else {
            selector.required(errors, "must specify required node constraints");
        }
    }
    let mut found = 0;
    for key in spec.value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()).map(|(key, _)| key) {
        if NOT_SOURCES.contains(&key.as_str()) {
            continue;
        }
        found += 1;
        let source = spec.get(key);
        if found > 1 {
            source.forbidden(errors, "may not specify more than 1 volume type");
        } else if matches!(key.as_str(), "hostPath" | "local") && source.get("path").text().is_empty() {
            source.get("path").required(errors, "");
        }
    }
    if found == 0 {
        spec.required(errors, "must specify a volume type");
    }
    let path = spec.get("hostPath").get("path").text();
    if path == "/" && spec.get("persistentVolumeReclaimPolicy").text() == "Recycle" {
        errors.forbidden(
            spec.path().child("persistentVolumeReclaimPolicy"),
            "may not be 'recycle' for a hostPath mount of '/'",
        );
    }
    let class = spec.get("storageClassName");
    if !class.text().is_empty() {
        class.invalid_all(errors, names::dns1123_subdomain(class.text()));
    }
    spec.get("volumeMode").none_or_one_of(errors, &["Block", "Filesystem"]);
}

fn validate_volume_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = (VOLUME.validate_create)(new);
    let (root, before) = (At::root(new), At::root(old));
    let (spec, old_spec) = (root.get("spec"), before.get("spec"));
    let source = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|key, _| !NOT_SOURCES.contains(&key.as_str()));
        }
        spec
    };
    if !same(&source(spec.value), &source(old_spec.value)) {
        let path = spec.path().child("persistentvolumesource");
        errors.forbidden(path, "spec.persistentvolumesource is immutable after creation");
    }
    spec.get("volumeMode").immutable(&mut errors, &old_spec.get("volumeMode"));
    errors
}

fn validate_class(class: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(class);
    let provisioner = root.get("provisioner");
    match provisioner.text() {
        "" => provisioner.required(&mut errors, ""),
        text => provisioner.invalid_all(&mut errors, names::qualified_name(&text.to_lowercase())),
    }
    let parameters = root.get("parameters");
    if parameters.len() > 512 {
        let kind = crate::error::FieldErrorKind::TooLong { max: 512 };
        errors.push(crate::FieldPath::new("Provisioner Parameters Length"), kind, "");
    }
    root.get("reclaimPolicy").none_or_one_of(&mut errors, &["Delete", "Retain"]);
    root.get("volumeBindingMode").one_of(&mut errors, &["Immediate", "WaitForFirstConsumer"]);
    topology_selector_terms(&root.get("allowedTopologies"), &mut errors);
    errors
}

fn validate_class_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = validate_class(new);
    let (root, before) = (At::root(new), At::root(old));
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        if !same(root.get(field).value, before.get(field).value) {
            root.get(field).forbidden(&mut errors, format!("updates to {field} are forbidden."));
        }
    }
    root.get("volumeBindingMode").immutable(&mut errors, &before.get("volumeBindingMode"));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(size: &str) -> Value {
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}})
    }

    #[test]
    fn a_claim_asks_for_storage() {
        assert!((CLAIM.validate_create)(&claim("1Gi")).is_empty());
        assert_eq!(
            (CLAIM.validate_create)(&json!({"spec": {}})).aggregate(),
            "[spec.accessModes: Required value: at least 1 access mode is required, spec.resources[storage]: Required \
             value]"
        );
    }

    #[test]
    fn a_bound_claim_only_grows() {
        let mut old = claim("2Gi");
        old["status"] = json!({"phase": "Bound", "capacity": {"storage": "2Gi"}});
        let with = |size: &str| {
            let mut new = claim(size);
            new["status"] = old["status"].clone();
            validate_claim_update(&new, &old).aggregate()
        };
        assert_eq!(with("3Gi"), "[]");
        assert_eq!(
            with("1Gi"),
            "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"
        );
        let mut other = old.clone();
        other["spec"]["accessModes"] = json!(["ReadWriteMany"]);
        assert!(
            validate_claim_update(&other, &old).aggregate().starts_with("spec: Forbidden: spec is immutable after")
        );
    }

    #[test]
    fn a_class_is_defaulted_and_fixed() {
        let mut class = json!({"provisioner": "example.com/x"});
        (CLASS.default)(&mut class);
        assert_eq!((&class["reclaimPolicy"], &class["volumeBindingMode"]), (&json!("Delete"), &json!("Immediate")));
        assert!(validate_class(&class).is_empty());
        let mut new = class.clone();
        new["provisioner"] = "other/x".into();
        assert_eq!(
            validate_class_update(&new, &class).aggregate(),
            "provisioner: Forbidden: updates to provisioner are forbidden."
        );
    }

    #[test]
    fn a_volume_has_one_source_for_ever() {
        let volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/x"}}});
        assert!((VOLUME.validate_create)(&volume).is_empty());
        let mut moved = volume.clone();
        moved["spec"]["hostPath"]["path"] = "/y".into();
        assert_eq!(
            validate_volume_update(&moved, &volume).aggregate(),
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"
        );
    }
}
