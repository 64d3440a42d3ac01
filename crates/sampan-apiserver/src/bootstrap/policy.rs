//! The default roles and bindings: the table `policy.txt` read into objects, and how a stored one is brought back to it.

use std::collections::BTreeSet;

use sampan_api::object::{child_mut, lookup, text};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Object;
use crate::auth::rbac::GROUP;
use crate::auth::rule::{Rule, uncovered};

const TABLE: &str = include_str!("policy.txt");
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const CONTROLLER: &str = "system:controller:";

/// One role of the table.
#[derive(Debug, Default)]
struct Entry {
    name: String,
    /// Empty: a cluster role.
    namespace: String,
    /// It carries the label aggregate-to-X.
    aggregates_to: Vec<String>,
    /// It collects the roles that carry the label aggregate-to-X.
    aggregates: Vec<String>,
    rules: Vec<Rule>,
    bindings: Vec<Binding>,
}

#[derive(Debug)]
struct Binding {
    name: String,
    subjects: Vec<Value>,
}

fn entries() -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with(' ') {
            let entry = entries.last_mut().expect("the table starts with a role");
            entry.rules.extend(rule(line.trim()));
        } else if let Some(subjects) = line.strip_prefix("> ") {
            let entry = entries.last_mut().expect("the table starts with a role");
            entry.bindings.push(binding(&entry.name, subjects));
        } else {
            entries.push(role(line));
        }
    }
    entries
}

fn role(line: &str) -> Entry {
    let mut words = line.split_whitespace();
    let mut entry = Entry { name: words.next().unwrap_or_default().into(), ..Entry::default() };
    for word in words {
        let (mark, text) = word.split_at(1);
        match mark {
            "@" => entry.namespace = text.into(),
            "+" => entry.aggregates_to.push(text.into()),
            _ => entry.aggregates.push(text.into()),
        }
    }
    if let Some(account) = entry.name.strip_prefix(CONTROLLER).filter(|_| entry.namespace.is_empty()) {
        entry.bindings.push(binding(&entry.name, &format!("sa:kube-system/{account}")));
    }
    entry
}

/// Sorted, as upstream's builder leaves every list.
fn words(text: &str) -> Vec<String> {
    let sorted: BTreeSet<&str> = text.split_whitespace().collect();
    sorted.into_iter().map(|word| if word == "core" { String::new() } else { word.into() }).collect()
}

fn rule(line: &str) -> Vec<Rule> {
    let verbs = |text: &str| {
        words(match text.trim() {
            "read" => "get list watch",
            "write" => "create update patch delete deletecollection",
            "readwrite" => "get list watch create update patch delete deletecollection",
            "readupdate" => "get list watch update patch",
            verbs => verbs,
        })
    };
    if line == "events" {
        return rule("create update patch | core events.k8s.io | events");
    }
    if let Some((verb, urls)) = line.split_once(" > ") {
        return vec![Rule { verbs: verbs(verb), non_resource_urls: words(urls), ..Rule::default() }];
    }
    let mut columns = line.split('|');
    let mut column = || columns.next().unwrap_or_default();
    vec![Rule {
        verbs: verbs(column()),
        api_groups: words(column()),
        resources: words(column()),
        resource_names: words(column()),
        ..Rule::default()
    }]
}

fn binding(role: &str, line: &str) -> Binding {
    let mut words = line.split_whitespace().peekable();
    let mut name = role.to_owned();
    if words.next_if_eq(&"as").is_some() {
        name = words.next().unwrap_or_default().to_owned();
    }
    let subjects = words.filter_map(|word| {
        let (kind, name) = word.split_once(':')?;
        Some(match kind {
            "group" => json!({"kind": "Group", "apiGroup": GROUP, "name": name}),
            "user" => json!({"kind": "User", "apiGroup": GROUP, "name": name}),
            _ => {
                let (namespace, name) = name.split_once('/')?;
                json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
            }
        })
    });
    let subjects = subjects.collect();
    Binding { name, subjects }
}

fn aggregate_label(to: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{to}")
}

impl Entry {
    fn kind(&self) -> &'static str {
        if self.namespace.is_empty() { "ClusterRole" } else { "Role" }
    }

    fn metadata(&self, name: &str) -> Value {
        let mut metadata = json!({
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {AUTO_UPDATE: "true"},
        });
        if !self.namespace.is_empty() {
            metadata["namespace"] = self.namespace.as_str().into();
        }
        metadata
    }

    fn objects(&self, all: &[Entry]) -> Vec<Object> {
        let (roles, bindings) = match self.kind() {
            "Role" => ("roles", "rolebindings"),
            _ => ("clusterroles", "clusterrolebindings"),
        };
        let api_version = format!("{GROUP}/v1");
        let object = |resource, value| Object { group: GROUP, version: "v1", resource, value };
        let mut role = json!({"apiVersion": api_version, "kind": self.kind(), "metadata": self.metadata(&self.name)});
        for to in &self.aggregates_to {
            role["metadata"]["labels"][aggregate_label(to)] = "true".into();
        }
        role["rules"] = json!(self.effective(all));
        if !self.aggregates.is_empty() {
            let selectors = self.aggregates.iter().map(|from| json!({"matchLabels": {aggregate_label(from): "true"}}));
            role["aggregationRule"] = json!({"clusterRoleSelectors": selectors.collect::<Vec<_>>()});
        }
        let mut objects = vec![object(roles, role)];
        for binding in &self.bindings {
            let role_ref = json!({"apiGroup": GROUP, "kind": self.kind(), "name": self.name});
            let value = json!({
                "apiVersion": api_version, "kind": format!("{}Binding", self.kind()),
                "metadata": self.metadata(&binding.name), "roleRef": role_ref, "subjects": binding.subjects,
            });
            objects.push(object(bindings, value));
        }
        objects
    }

    /// The rules, those collected included, so that the role works before a controller aggregates it.
    fn effective(&self, all: &[Entry]) -> Vec<Rule> {
        let mut rules = self.rules.clone();
        for from in all.iter().filter(|from| from.aggregates_to.iter().any(|to| self.aggregates.contains(to))) {
            for rule in from.effective(all) {
                if !rules.contains(&rule) {
                    rules.push(rule);
                }
            }
        }
        rules
    }
}

/// All default roles and bindings.
pub fn objects() -> Vec<Object> {
    let entries = entries();
    entries.iter().flat_map(|entry| entry.objects(&entries)).collect()
}

/// What the Node authorizer allows every node: the rules of `system:node`.
pub fn node_rules() -> Vec<Rule> {
    entries().into_iter().find(|entry| entry.name == "system:node").map(|entry| entry.rules).unwrap_or_default()
}

fn list<T: serde::de::DeserializeOwned>(object: &Value, key: &str) -> Vec<T> {
    let found = lookup(object, &[key]).filter(|value| !value.is_null());
    found.and_then(|value| Vec::deserialize(value).ok()).unwrap_or_default()
}

/// Adds missing rules, subjects, labels and annotations; takes nothing away (upstream's `reconciliation` without
/// removal). `roleRef` cannot be changed: a binding to another role stays as it is.
pub fn reconciled(wanted: &Value, stored: &Value) -> Option<Value> {
    if text(stored, &["metadata", "annotations", AUTO_UPDATE]) == "false" {
        return None;
    }
    let mut new = stored.clone();
    let missing = uncovered(&list(stored, "rules"), &list(wanted, "rules"));
    if !missing.is_empty() && lookup(wanted, &["aggregationRule"]).is_none() {
        let mut rules: Vec<Value> = list(stored, "rules");
        rules.extend(missing.iter().map(|rule| json!(rule)));
        new["rules"] = rules.into();
    }
    let mut subjects: Vec<Value> = list(stored, "subjects");
    let before = subjects.len();
    let same =
        |a: &Value, b: &Value| ["kind", "name", "namespace"].iter().all(|key| text(a, &[key]) == text(b, &[key]));
    for subject in list::<Value>(wanted, "subjects") {
        if !subjects.iter().any(|one| same(one, &subject)) {
            subjects.push(subject);
        }
    }
    if subjects.len() > before && stored.get("roleRef") == wanted.get("roleRef") {
        new["subjects"] = subjects.into();
    }
    for map in ["labels", "annotations"] {
        for (key, value) in lookup(wanted, &["metadata", map]).and_then(Value::as_object).into_iter().flatten() {
            if lookup(stored, &["metadata", map, key]).is_none() {
                let metadata = child_mut(&mut new, "metadata");
                let entries = metadata.entry(map).or_insert_with(|| json!({}));
                entries[key] = value.clone();
            }
        }
    }
    (new != *stored).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(kind: &str, name: &str) -> Value {
        let mut found = objects().into_iter().map(|object| object.value);
        found
            .find(|value| text(value, &["kind"]) == kind && text(value, &["metadata", "name"]) == name)
            .unwrap_or_else(|| panic!("{kind} {name} is in the table"))
    }

    #[test]
    fn every_line_of_the_table_makes_a_whole_object() {
        let all = objects();
        let mut seen = BTreeSet::new();
        for Object { resource, value, .. } in &all {
            let key = (*resource, text(value, &["metadata", "namespace"]), text(value, &["metadata", "name"]));
            assert!(seen.insert(key), "{key:?} twice");
            for rule in list::<Rule>(value, "rules") {
                let resource = !rule.api_groups.is_empty() && !rule.resources.is_empty();
                assert!(!rule.verbs.is_empty() && resource == rule.non_resource_urls.is_empty(), "{key:?}: {rule}");
            }
        }
    }

    #[test]
    fn aggregated_roles_hold_what_they_collect() {
        let rules = |name: &str| list::<Rule>(&find("ClusterRole", name), "rules");
        assert!(uncovered(&rules("admin"), &rules("edit")).is_empty());
        assert!(uncovered(&rules("edit"), &rules("view")).is_empty());
        assert!(!uncovered(&rules("view"), &rules("edit")).is_empty());
        assert!(uncovered(&rules("admin"), &rules("system:aggregate-to-admin")).is_empty());
    }

    #[test]
    fn bindings_point_at_their_role() {
        let dns = find("ClusterRoleBinding", "system:kube-dns");
        assert_eq!(
            dns["subjects"],
            json!([{"kind": "ServiceAccount", "namespace": "kube-system", "name": "kube-dns"}])
        );
        assert_eq!(find("ClusterRoleBinding", "system:node")["subjects"], json!([]));
        let reader = find("RoleBinding", "system::extension-apiserver-authentication-reader");
        assert_eq!(reader["roleRef"]["name"], "extension-apiserver-authentication-reader");
        let controller = find("ClusterRoleBinding", "system:controller:job-controller");
        assert_eq!(controller["subjects"][0]["name"], "job-controller");
    }

    #[test]
    fn reconciliation_adds_and_never_takes_away() {
        let wanted = find("ClusterRole", "system:discovery");
        assert_eq!(reconciled(&wanted, &wanted), None);
        let mut stored = wanted.clone();
        let own = json!({"verbs": ["get"], "nonResourceURLs": ["/own"]});
        stored["rules"] = json!([own]);
        let new = reconciled(&wanted, &stored).expect("rules are missing");
        let rules = list::<Rule>(&new, "rules");
        assert!(uncovered(&rules, &list::<Rule>(&wanted, "rules")).is_empty());
        assert_eq!(new["rules"][0], own);
        assert_eq!(reconciled(&wanted, &new), None);
        stored["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        assert_eq!(reconciled(&wanted, &stored), None);

        let wanted = find("ClusterRoleBinding", "system:kube-dns");
        let mut stored = wanted.clone();
        stored["subjects"] = Value::Null;
        assert_eq!(reconciled(&wanted, &stored).expect("a subject is missing")["subjects"], wanted["subjects"]);
    }
}
