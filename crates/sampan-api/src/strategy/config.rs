//! ConfigMaps, Secrets, ServiceAccounts and Namespaces.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::at::{At, same};
use super::{GENERIC, NameRule, Strategy, set};
use crate::error::{FieldErrorKind, FieldErrors};
use crate::{names, object};

const SIZE_MAX: usize = 1024 * 1024;
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

pub const CONFIG_MAP: Strategy = Strategy {
    validate_create: validate_config_map,
    validate_update: |new, old| {
        let mut errors = frozen(new, old, &["data", "binaryData"]);
        errors.0.extend(validate_config_map(new).0);
        errors
    },
    ..GENERIC
};

pub const SECRET: Strategy = Strategy {
    default: default_secret,
    validate_create: validate_secret,
    validate_update: |new, old| {
        let mut errors = FieldErrors::default();
        At::root(new).get("type").immutable(&mut errors, &At::root(old).get("type"));
        errors.0.extend(frozen(new, old, &["data"]).0);
        errors.0.extend(validate_secret(new).0);
        errors
    },
    ..GENERIC
};

pub const NAMESPACE: Strategy = Strategy {
    default: |namespace| {
        name_label(namespace);
        if let Some(status) = set::at(namespace, &["status"]) {
            set::empty(status, "phase", "Active");
        }
    },
    prepare_create: |namespace| {
        name_label(namespace);
        namespace["status"] = json!({"phase": "Active"});
        let spec = object::child_mut(namespace, "spec");
        set::unset(spec, "finalizers", json!([]));
        if let Some(finalizers) = spec.get_mut("finalizers").and_then(Value::as_array_mut)
            && !finalizers.iter().any(|finalizer| finalizer == "kubernetes")
        {
            finalizers.push("kubernetes".into());
        }
    },
    prepare_update: |namespace, old| {
        // Finalizers change through /finalize only.
        let finalizers = old["spec"]["finalizers"].clone();
        object::child_mut(namespace, "spec").insert("finalizers".into(), finalizers);
        name_label(namespace);
    },
    validate_create: |namespace| namespace_finalizers(namespace),
    validate_subresource: |subresource, new, old| match subresource {
        "status" => namespace_status(new, old),
        _ => namespace_finalizers(new),
    },
    name: NameRule::Label,
    ..GENERIC
};

fn name_label(namespace: &mut Value) {
    let name = object::name(namespace).to_owned();
    if name.is_empty() {
        return;
    }
    let metadata = object::metadata_mut(namespace);
    set::unset(metadata, "labels", json!({}));
    if let Some(labels) = set::child(metadata, "labels") {
        labels.insert(NAMESPACE_LABEL.into(), name.into());
    }
}

fn namespace_finalizers(namespace: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(namespace);
    let spec = root.get("spec");
    let finalizers = spec.get("finalizers");
    for finalizer in finalizers.items() {
        let name = finalizer.text();
        for detail in names::qualified_name(name) {
            errors.invalid(finalizers.path(), name, detail);
        }
        if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid(finalizers.path(), name, detail);
        }
    }
    errors
}

/// The phase follows from whether the namespace is being deleted.
fn namespace_status(new: &Value, _old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(new);
    let status = root.get("status");
    let phase = status.get("phase");
    let deleting = root.get("metadata").get("deletionTimestamp").is_set();
    if !deleting && phase.text() != "Active" {
        phase.invalid_as(&mut errors, phase.text(), "may only be 'Active' if `deletionTimestamp` is empty");
    }
    if deleting && phase.text() != "Terminating" {
        phase.invalid_as(&mut errors, phase.text(), "may only be 'Terminating' if `deletionTimestamp` is not empty");
    }
    errors
}

/// Data that is declared immutable stays, and stays declared so.
fn frozen(new: &Value, old: &Value, fields: &[&str]) -> FieldErrors {
    let mut errors = FieldErrors::default();
    if old["immutable"] != Value::Bool(true) {
        return errors;
    }
    let (root, before) = (At::root(new), At::root(old));
    let detail = "field is immutable when `immutable` is set";
    if !root.get("immutable").flag() {
        root.get("immutable").forbidden(&mut errors, detail);
    }
    for field in fields {
        if !same(root.get(field).value, before.get(field).value) {
            root.get(field).forbidden(&mut errors, detail);
        }
    }
    errors
}

/// Bytes behind base64 text.
fn decoded_length(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take_while(|byte| *byte == b'=').count()
}

fn validate_config_map(object: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(object);
    let (data, binary) = (root.get("data"), root.get("binaryData"));
    let mut size = 0;
    for (key, value) in data.entries() {
        for detail in names::config_key(key) {
            value.invalid_as(&mut errors, key, detail);
        }
        if binary.key(key).is_set() {
            value.invalid_as(&mut errors, key, "duplicate of key present in binaryData");
        }
        size += value.text().len();
    }
    for (key, value) in binary.entries() {
        for detail in names::config_key(key) {
            value.invalid_as(&mut errors, key, detail);
        }
        size += decoded_length(value.text());
    }
    if size > SIZE_MAX {
        // Upstream names the empty path.
        errors.push(crate::FieldPath::new("[]"), FieldErrorKind::TooLong { max: SIZE_MAX }, "");
    }
    errors
}

/// `stringData` is only ever written: it overwrites `data` and is gone.
fn default_secret(secret: &mut Value) {
    let Some(fields) = secret.as_object_mut() else { return };
    set::empty(fields, "type", "Opaque");
    let Some(Value::Object(text)) = fields.remove("stringData") else { return };
    if text.is_empty() {
        return;
    }
    set::unset(fields, "data", json!({}));
    if let Some(data) = set::child(fields, "data") {
        for (key, value) in text {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
        }
    }
}

fn validate_secret(secret: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(secret);
    let data = root.get("data");
    let mut size = 0;
    for (key, value) in data.entries() {
        for detail in names::config_key(key) {
            value.invalid_as(&mut errors, key, detail);
        }
        size += decoded_length(value.text());
    }
    if size > SIZE_MAX {
        errors.push(data.path(), FieldErrorKind::TooLong { max: SIZE_MAX }, "");
    }
    let mut need = |key: &'static str| {
        if !data.key(key).is_set() {
            data.key(key).required(&mut errors, "");
        }
    };
    match root.get("type").text() {
        "kubernetes.io/service-account-token" => {
            let metadata = root.get("metadata");
            let annotations = metadata.get("annotations");
            let account = annotations.key("kubernetes.io/service-account.name");
            if account.text().is_empty() {
                account.required(&mut errors, "");
            }
        }
        "kubernetes.io/dockercfg" => docker_config(&data.key(".dockercfg"), &mut errors),
        "kubernetes.io/dockerconfigjson" => docker_config(&data.key(".dockerconfigjson"), &mut errors),
        "kubernetes.io/basic-auth" if !data.key("username").is_set() && !data.key("password").is_set() => {
            need("username");
            need("password");
        }
        "kubernetes.io/ssh-auth" if data.key("ssh-privatekey").text().is_empty() => {
            data.key("ssh-privatekey").required(&mut errors, "");
        }
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        _ => {}
    }
    errors
}

fn docker_config(at: &At<'_, '_>, errors: &mut FieldErrors) {
    if !at.is_set() {
        return at.required(errors, "");
    }
    let bytes = STANDARD.decode(at.text()).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        at.invalid_as(errors, "<secret contents redacted>", error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"a": "hi"}});
        default_secret(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "aGk=", "b": "eQ=="}, "type": "Opaque"}));
        default_secret(&mut secret);
        assert_eq!(secret["data"]["a"], "aGk=");
    }

    #[test]
    fn typed_secrets_need_their_keys() {
        let found = |secret: Value| validate_secret(&secret).aggregate();
        assert_eq!(
            found(json!({"type": "kubernetes.io/tls"})),
            "[data[tls.crt]: Required value, data[tls.key]: Required value]"
        );
        assert_eq!(found(json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""}})), "[]");
        assert!(
            found(json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}}))
                .starts_with("data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\"")
        );
    }

    #[test]
    fn immutable_data_stays() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let new = json!({"data": {"a": "2"}});
        assert_eq!(
            (CONFIG_MAP.validate_update)(&new, &old).aggregate(),
            "[immutable: Forbidden: field is immutable when `immutable` is set, data: Forbidden: field is immutable \
             when `immutable` is set]"
        );
    }

    #[test]
    fn a_namespace_is_labelled_and_active() {
        let mut namespace = json!({"metadata": {"name": "a"}});
        (NAMESPACE.default)(&mut namespace);
        (NAMESPACE.prepare_create)(&mut namespace);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "a", "labels": {NAMESPACE_LABEL: "a"}}, "spec": {"finalizers": ["kubernetes"]},
                "status": {"phase": "Active"}})
        );
        assert!((NAMESPACE.validate_create)(&namespace).is_empty());
    }
}
