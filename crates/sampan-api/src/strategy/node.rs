//! Nodes. A node registers with its status, so a create keeps it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::at::{At, same};
use super::pod::{quantity_value, taints};
use super::{GENERIC, Strategy, set};
use crate::error::{FieldErrors, FieldPath};
use crate::names;

pub const STRATEGY: Strategy = Strategy {
    default: |node| {
        if let Some(spec) = set::at(node, &["spec"]) {
            // The singular and the plural field say the same; the singular wins for old clients.
            let first = spec.get("podCIDRs").and_then(|all| all.get(0)).and_then(Value::as_str).unwrap_or_default();
            let single = set::text(spec, "podCIDR").to_owned();
            if single.is_empty() && !first.is_empty() {
                let first = first.to_owned();
                spec.insert("podCIDR".into(), first.into());
            } else if !single.is_empty() && single != first {
                spec.insert("podCIDRs".into(), Value::Array(vec![single.into()]));
            }
        }
        if let Some(status) = set::at(node, &["status"])
            && let Some(capacity) = status.get("capacity").cloned()
        {
            set::unset(status, "allocatable", capacity);
        }
    },
    validate_create: |node| {
        let mut errors = FieldErrors::default();
        let root = At::root(node);
        let spec = root.get("spec");
        node_taints(&spec, &mut errors);
        resources(&root, &mut errors);
        pod_ranges(&spec.get("podCIDRs"), &mut errors);
        errors
    },
    validate_update,
    validate_subresource: |_, new, old| validate_update(new, old),
    ..GENERIC
};

/// Upstream reports taints below the metadata.
fn node_taints(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut found = FieldErrors::default();
    taints(&spec.get("taints"), &mut found);
    for mut error in found.0 {
        let path = error.field.to_string();
        if let Some(rest) = path.strip_prefix("spec.") {
            error.field = FieldPath::new("metadata").child(rest);
        }
        errors.0.push(error);
    }
}

fn resources(root: &At<'_, '_>, errors: &mut FieldErrors) {
    let status = root.get("status");
    for list in ["capacity", "allocatable"] {
        let amounts = status.get(list);
        let mut found = FieldErrors::default();
        for (name, amount) in amounts.entries() {
            let before = found.0.len();
            quantity_value(name, &amount, &mut found);
            for error in &mut found.0[before..] {
                error.field = amounts.path().child(name);
            }
        }
        errors.0.extend(found.0);
    }
}

fn pod_ranges(ranges: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for range in ranges.items() {
        range.invalid_all(errors, names::cidr(range.text()));
        if ranges.len() > 1 && !seen.insert(range.text()) {
            range.duplicate(errors);
        }
    }
    let families: BTreeSet<bool> = ranges.items().map(|range| range.text().contains(':')).collect();
    if ranges.len() > 2 || (ranges.len() == 2 && families.len() == 1) {
        ranges.invalid(errors, "may specify no more than one CIDR for each IP family");
    }
}

fn validate_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (root, before) = (At::root(new), At::root(old));
    let (spec, old_spec) = (root.get("spec"), before.get("spec"));
    resources(&root, &mut errors);
    let status = root.get("status");
    let addresses = status.get("addresses");
    for (index, address) in addresses.items().enumerate() {
        if addresses.items().take(index).any(|earlier| earlier.value == address.value) {
            address.duplicate(&mut errors);
        }
    }
    let (ranges, old_ranges) = (spec.get("podCIDRs"), old_spec.get("podCIDRs"));
    if !old_ranges.is_empty() && !same(ranges.value, old_ranges.value) {
        ranges.forbidden(&mut errors, "node updates may not change podCIDR except from \"\" to valid");
    }
    let (provider, old_provider) = (spec.get("providerID"), old_spec.get("providerID"));
    if !old_provider.text().is_empty() && provider.text() != old_provider.text() {
        provider.forbidden(&mut errors, "node updates may not change providerID except from \"\" to valid");
    }
    node_taints(&spec, &mut errors);
    if spec.get("externalID").text() != old_spec.get("externalID").text() {
        spec.get("externalID").forbidden(&mut errors, "may not be updated");
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_keeps_its_status_and_gets_allocatable() {
        let mut node = json!({"spec": {"podCIDRs": ["10.0.0.0/24"]}, "status": {"capacity": {"cpu": "2"}}});
        (STRATEGY.default)(&mut node);
        (STRATEGY.prepare_create)(&mut node);
        assert_eq!(node["status"]["allocatable"], json!({"cpu": "2"}));
        assert_eq!(node["spec"]["podCIDR"], "10.0.0.0/24");
        assert!((STRATEGY.validate_create)(&node).is_empty());
    }

    #[test]
    fn what_is_set_once() {
        let old = json!({"spec": {"podCIDRs": ["10.0.0.0/24"], "providerID": "a"}});
        let new = json!({"spec": {"taints": [{"key": "k", "effect": "Never"}]}});
        assert_eq!(
            validate_update(&new, &old).0.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
                "spec.providerID: Forbidden: node updates may not change providerID except from \"\" to valid",
                "metadata.taints[0].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \
                 \"PreferNoSchedule\", \"NoExecute\"",
            ]
        );
    }
}
