//! Label selectors in their structured form (`metav1.LabelSelector`, node selector requirements) and matching.
//!
//! Not the string form of list queries. The rules are those of `k8s.io/apimachinery/pkg/labels`.

use std::collections::BTreeMap;

use serde::Deserialize;

pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    #[serde(default)]
    pub values: Vec<String>,
}

impl Requirement {
    pub fn equals(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), operator: Operator::In, values: vec![value.into()] }
    }

    /// `value` is the value of the label, `None` when it is absent.
    pub fn matches_value(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|one| one == value);
        let compare = |value: &str| {
            let ours = value.parse::<i64>().ok()?;
            let bound = self.values.first()?.parse::<i64>().ok()?;
            Some(ours.cmp(&bound))
        };
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => value.and_then(compare).is_some_and(std::cmp::Ordering::is_gt),
            Operator::Lt => value.and_then(compare).is_some_and(std::cmp::Ordering::is_lt),
        }
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_value(labels.get(&self.key).map(String::as_str))
    }
}

/// All requirements must hold; none selects everything. An absent `LabelSelector` is not this: it selects nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(from = "LabelSelector")]
pub struct Selector {
    pub requirements: Vec<Requirement>,
}

/// `metav1.LabelSelector` as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct LabelSelector {
    match_labels: Option<Labels>,
    match_expressions: Option<Vec<Requirement>>,
}

impl From<LabelSelector> for Selector {
    fn from(written: LabelSelector) -> Self {
        let equal = written.match_labels.unwrap_or_default().into_iter();
        let mut requirements: Vec<Requirement> = equal.map(|(key, value)| Requirement::equals(key, value)).collect();
        requirements.extend(written.match_expressions.unwrap_or_default());
        Self { requirements }
    }
}

impl Selector {
    pub fn equal_to(labels: &Labels) -> Self {
        Self { requirements: labels.iter().map(|(key, value)| Requirement::equals(key, value)).collect() }
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// An empty selector: it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn check(selector: &str, pairs: &[(&str, &str)], expected: bool) {
        let selector: Selector = serde_json::from_str(selector).expect("a selector");
        assert_eq!(selector.matches(&labels(pairs)), expected, "{selector:?} {pairs:?}");
    }

    #[test]
    fn operators() {
        check("{}", &[], true);
        check(r#"{"matchLabels":{"a":"1"}}"#, &[("a", "1"), ("b", "2")], true);
        check(r#"{"matchLabels":{"a":"1"}}"#, &[("a", "2")], false);
        let expression = |operator: &str, values: &str| {
            format!(r#"{{"matchExpressions":[{{"key":"a","operator":"{operator}","values":[{values}]}}]}}"#)
        };
        check(&expression("In", r#""1","2""#), &[("a", "2")], true);
        check(&expression("In", r#""1","2""#), &[], false);
        check(&expression("NotIn", r#""1""#), &[("a", "1")], false);
        check(&expression("NotIn", r#""1""#), &[], true);
        check(&expression("Exists", ""), &[("a", "")], true);
        check(&expression("DoesNotExist", ""), &[("a", "")], false);
        check(&expression("Gt", r#""5""#), &[("a", "10")], true);
        check(&expression("Gt", r#""5""#), &[("a", "x")], false);
        check(&expression("Lt", r#""5""#), &[("a", "5")], false);
    }
}
