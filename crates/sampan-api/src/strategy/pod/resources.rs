//! Requests and limits: which names may be asked for, and which amounts (`ValidateResourceRequirements`).

use crate::error::{FieldErrorKind, FieldErrors};
use crate::names;
use crate::quantity::Quantity;
use crate::strategy::at::At;

/// Requirements of a container, or of a whole pod. `claims`: the names in the pod's `resourceClaims`.
pub fn requirements(requirements: &At<'_, '_>, claims: &[&str], errors: &mut FieldErrors) {
    let (limits, requests) = (requirements.get("limits"), requirements.get("requests"));
    let (mut compute, mut huge) = (false, false);
    for (name, amount) in limits.entries().chain(requests.entries()) {
        container_resource_name(name, &amount, errors);
        quantity_value(name, &amount, errors);
        compute |= matches!(name, "cpu" | "memory");
        if let Some(page) = name.strip_prefix("hugepages-") {
            huge = true;
            let (page, quantity) = (page.parse::<Quantity>(), parse(&amount));
            if let (Ok(page), Some(quantity)) = (page, quantity)
                && (page.value() <= 0 || quantity.value() <= 0 || quantity.value() % page.value() != 0)
            {
                amount.invalid(errors, format!("{quantity} is not positive integer multiple of {name}"));
            }
        }
    }
    for (name, request) in requests.entries() {
        let limit = limits.key(name);
        let Some(amount) = parse(&request) else { continue };
        match parse(&limit) {
            Some(most) if amount != most && !may_overcommit(name) => {
                requests.invalid_as(errors, amount.to_string(), format!("must be equal to {name} limit of {most}"));
            }
            Some(most) if amount > most => requests.invalid_as(
                errors,
                amount.to_string(),
                format!("must be less than or equal to {name} limit of {most}"),
            ),
            None if !may_overcommit(name) => {
                limits.required(errors, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    if huge && !compute {
        requirements.forbidden(errors, "HugePages require cpu or memory");
    }
    claim_names(&requirements.get("claims"), claims, errors);
}

fn claim_names(list: &At<'_, '_>, claims: &[&str], errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for claim in list.items() {
        let name = claim.get("name").text();
        if name.is_empty() {
            claim.required(errors, "");
            continue;
        }
        if seen.contains(&name) {
            errors.duplicate(claim.path(), name);
        }
        seen.push(name);
        if !claims.contains(&name) {
            // Upstream adds which names there are; the kind of error shows no detail.
            errors.push(claim.path(), FieldErrorKind::NotFound(name.into()), names_there(claims));
        }
    }
}

fn names_there(claims: &[&str]) -> String {
    let head = "must be one of the names in pod.spec.resourceClaims";
    if claims.is_empty() { format!("{head} which is empty") } else { format!("{head}: {}", claims.join(", ")) }
}

/// An amount is not negative; what is counted is whole.
pub fn quantity_value(name: &str, amount: &At<'_, '_>, errors: &mut FieldErrors) {
    let Some(quantity) = parse(amount) else { return };
    if quantity.is_negative() {
        amount.invalid(errors, names::NOT_NEGATIVE);
    }
    if is_counted(name) && quantity.milli_value() % 1000 != 0 {
        amount.invalid(errors, "must be an integer");
    }
}

fn container_resource_name(name: &str, at: &At<'_, '_>, errors: &mut FieldErrors) {
    let before = errors.0.len();
    for detail in names::qualified_name(name) {
        at.invalid_as(errors, name, detail);
    }
    if errors.0.len() > before {
        return;
    }
    let for_containers = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') {
        if !for_containers && !is_standard(name) {
            at.invalid_as(errors, name, "must be a standard resource type or fully qualified");
        }
        if !for_containers {
            at.invalid_as(errors, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        at.invalid_as(errors, name, "doesn't follow extended resource name standard");
    }
}

const STANDARD: [&str; 12] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "storage",
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
];

fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name)
        || name == "services.loadbalancers"
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
        || ["requests.", "limits."].iter().any(|prefix| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| matches!(rest, "cpu" | "memory" | "storage" | "ephemeral-storage"))
        })
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn is_counted(name: &str) -> bool {
    let objects = !matches!(name, "cpu" | "memory" | "ephemeral-storage" | "storage") && STANDARD.contains(&name);
    objects || name == "services.loadbalancers" || is_extended(name)
}

fn may_overcommit(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

fn parse(at: &At<'_, '_>) -> Option<Quantity> {
    at.value.as_str()?.parse().ok()
}
