//! RBAC rules: what one rule matches, whether a set of rules covers another, and their texts. Pure
//! (`k8s.io/component-helpers/auth/rbac/validation`, `pkg/apis/rbac/v1/evaluation_helpers.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Attributes;

const ALL: &str = "*";

/// `rbac/v1 PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(deserialize_with = "or_default")]
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub non_resource_urls: Vec<String>,
}

/// Go writes an empty list as `null` where it may.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|one| one == value)
}

fn has_or_all(list: &[String], value: &str) -> bool {
    list.iter().any(|one| one == ALL || one == value)
}

impl Rule {
    pub fn allows(&self, request: &Attributes) -> bool {
        if request.resource_request {
            self.allows_verb(&request.verb)
                && has_or_all(&self.api_groups, &request.group)
                && self.allows_resource(&request.resource, &request.subresource)
                && self.allows_name(&request.name)
        } else {
            self.allows_verb(&request.verb) && self.allows_url(&request.path)
        }
    }

    fn allows_verb(&self, verb: &str) -> bool {
        has_or_all(&self.verbs, verb)
    }

    fn allows_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|rule| {
            if rule == ALL {
                return true;
            }
            match rule.split_once('/') {
                None => subresource.is_empty() && rule == resource,
                Some((main, sub)) => sub == subresource && !sub.is_empty() && (main == ALL || main == resource),
            }
        })
    }

    fn allows_name(&self, name: &str) -> bool {
        self.resource_names.is_empty() || has(&self.resource_names, name)
    }

    fn allows_url(&self, path: &str) -> bool {
        self.non_resource_urls.iter().any(|rule| covers_url(rule, path))
    }

    /// Splits into rules with one verb, group, resource and name (or one URL) each.
    fn atoms(&self) -> Vec<Atom<'_>> {
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let names = self.resource_names.iter().map(|name| Some(name.as_str()));
                    let all = self.resource_names.is_empty().then_some(None);
                    for name in names.chain(all) {
                        atoms.push(Atom::Resource { verb, group, resource, name });
                    }
                }
            }
            for url in &self.non_resource_urls {
                atoms.push(Atom::Url { verb, url });
            }
        }
        atoms
    }

    fn covers(&self, atom: &Atom<'_>) -> bool {
        match *atom {
            Atom::Resource { verb, group, resource, name } => {
                let (main, sub) = resource.split_once('/').unwrap_or((resource, ""));
                let covers_resource = has_or_all(&self.resources, resource)
                    || (!sub.is_empty() && has(&self.resources, &format!("*/{sub}")) && !main.is_empty());
                let covers_name =
                    self.resource_names.is_empty() || name.is_some_and(|name| has(&self.resource_names, name));
                self.allows_verb(verb) && has_or_all(&self.api_groups, group) && covers_resource && covers_name
            }
            Atom::Url { verb, url } => {
                self.allows_verb(verb) && self.non_resource_urls.iter().any(|rule| covers_url(rule, url))
            }
        }
    }
}

/// `*` covers all, `/a/*` everything below `/a/`.
fn covers_url(rule: &str, url: &str) -> bool {
    rule == ALL || rule == url || rule.strip_suffix('*').is_some_and(|prefix| url.starts_with(prefix))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Atom<'a> {
    Resource { verb: &'a str, group: &'a str, resource: &'a str, name: Option<&'a str> },
    Url { verb: &'a str, url: &'a str },
}

/// What of `wanted` is not covered by `held`, compacted for a message: equal but for the verb is one rule. Empty: all of
/// it is covered.
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let missing: BTreeSet<Atom<'_>> =
        wanted.iter().flat_map(Rule::atoms).filter(|atom| !held.iter().any(|rule| rule.covers(atom))).collect();
    let mut rules: BTreeMap<(&str, &str, Option<&str>, &str), Vec<String>> = BTreeMap::new();
    for atom in missing {
        let (key, verb) = match atom {
            Atom::Resource { verb, group, resource, name } => ((group, resource, name, ""), verb),
            Atom::Url { verb, url } => (("", "", None, url), verb),
        };
        rules.entry(key).or_default().push(verb.to_owned());
    }
    let one = |text: &str| vec![text.to_owned()];
    let rules = rules.into_iter().map(|((group, resource, name, url), verbs)| {
        if url.is_empty() {
            let resource_names = name.map(one).unwrap_or_default();
            Rule { verbs, api_groups: one(group), resources: one(resource), resource_names, ..Rule::default() }
        } else {
            Rule { verbs, non_resource_urls: one(url), ..Rule::default() }
        }
    });
    rules.collect()
}

/// A list as Go's `%q` prints it: `["a" "b"]`.
pub(crate) fn quoted(list: &[String]) -> String {
    let parts: Vec<String> = list.iter().map(|one| format!("{one:?}")).collect();
    format!("[{}]", parts.join(" "))
}

impl fmt::Display for Rule {
    /// `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:{}", quoted(list)))
            .collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        let own = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect();
        Rule {
            verbs: own(verbs),
            api_groups: own(groups),
            resources: own(resources),
            resource_names: own(names),
            ..Rule::default()
        }
    }

    fn asks(verb: &str, group: &str, resource: &str, subresource: &str, name: &str) -> Attributes {
        Attributes {
            verb: verb.into(),
            resource_request: true,
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn what_a_rule_allows() {
        let pods = rule(&["get"], &[""], &["pods"], &[]);
        assert!(pods.allows(&asks("get", "", "pods", "", "a")));
        assert!(!pods.allows(&asks("get", "", "pods", "log", "a")), "a subresource is not the resource");
        assert!(!pods.allows(&asks("get", "apps", "pods", "", "a")));
        assert!(rule(&["*"], &["*"], &["*/scale"], &[]).allows(&asks("get", "apps", "deployments", "scale", "")));
        assert!(!rule(&["*"], &["*"], &["*/scale"], &[]).allows(&asks("get", "apps", "deployments", "", "")));
        assert!(rule(&["*"], &["*"], &["*"], &[]).allows(&asks("get", "", "pods", "exec", "")));
        let named = rule(&["get"], &[""], &["pods"], &["a"]);
        assert!(named.allows(&asks("get", "", "pods", "", "a")) && !named.allows(&asks("get", "", "pods", "", "")));
    }

    #[test]
    fn urls() {
        assert!(covers_url("/healthz/*", "/healthz/ping") && !covers_url("/healthz/*", "/healthz"));
        assert!(covers_url("*", "/x") && covers_url("/x", "/x") && !covers_url("/x", "/x/y"));
    }

    #[test]
    fn the_text_is_upstreams() {
        let missing = uncovered(&[], &[rule(&["list", "get"], &[""], &["pods"], &[])]);
        let texts: Vec<String> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(texts, [r#"{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}"#]);
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let pick = |words: &'static [&'static str], size: std::ops::Range<usize>| {
            prop::collection::vec(prop::sample::select(words).prop_map(str::to_owned), size)
        };
        (
            pick(&["get", "list", "*"], 1..3),
            pick(&["", "apps", "*"], 1..3),
            pick(&["pods", "pods/log", "*/log", "*"], 1..3),
            pick(&["a", "b"], 0..3),
        )
            .prop_map(|(verbs, api_groups, resources, resource_names)| Rule {
                verbs,
                api_groups,
                resources,
                resource_names,
                ..Rule::default()
            })
    }

    proptest! {
        /// Whoever holds rules may grant them; and covering means allowing: no request is allowed by the granted rules alone.
        #[test]
        fn covered_rules_allow_nothing_new(
            held in prop::collection::vec(any_rule(), 0..4),
            wanted in prop::collection::vec(any_rule(), 0..3),
            verb in prop::sample::select(&["get", "list", "watch"][..]),
            group in prop::sample::select(&["", "apps", "batch"][..]),
            sub in prop::sample::select(&["", "log"][..]),
            name in prop::sample::select(&["", "a", "c"][..]),
        ) {
            prop_assert!(uncovered(&held, &held).is_empty());
            let request = asks(verb, group, "pods", sub, name);
            if uncovered(&held, &wanted).is_empty() && wanted.iter().any(|rule| rule.allows(&request)) {
                prop_assert!(held.iter().any(|rule| rule.allows(&request)));
            }
        }
    }
}
