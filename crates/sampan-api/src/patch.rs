//! The three kinds of patches that are merged without an owner: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and
//! the strategic merge patch. Server-side apply is in [`crate::apply`].

mod strategic;

use serde_json::Value;

use crate::error::{Cause, Failure, Reason};

pub use strategic::strategic;

/// As upstream: a longer JSON patch is refused.
pub const JSON_PATCH_OPERATIONS: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    #[error("The allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS}, got {0}")]
    TooLong(usize),
    /// The patch does not fit the object: a test failed, a path or a merge key is missing.
    #[error("{0}")]
    Inapplicable(String),
}

impl PatchError {
    /// What the client is told: 400, 413 or 422.
    pub fn into_failure(self) -> Failure {
        let message = self.to_string();
        match self {
            Self::Malformed(_) => Failure::bad_request(message),
            Self::TooLong(_) => Failure::new(Reason::RequestEntityTooLarge, message),
            Self::Inapplicable(_) => {
                let text = "the server rejected our request due to an error in our request";
                let mut failure = Failure::new(Reason::Invalid, text);
                let cause = Cause { reason: "UnexpectedServerResponse".into(), message, field: "patch".into() };
                failure.causes.push(cause);
                failure
            }
        }
    }
}

/// All operations or, with an error, none.
pub fn json_patch(document: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if let Some(length) = patch.as_array().map(Vec::len).filter(|length| *length > JSON_PATCH_OPERATIONS) {
        return Err(PatchError::TooLong(length));
    }
    let patch: json_patch::Patch =
        serde::Deserialize::deserialize(patch).map_err(|error| PatchError::Malformed(error.to_string()))?;
    json_patch::patch(document, &patch.0).map_err(|error| PatchError::Inapplicable(error.to_string()))
}

/// Null removes a key; anything that is not an object replaces what was there.
pub fn merge_patch(document: &mut Value, patch: &Value) {
    json_patch::merge(document, patch);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_json_patch_is_all_or_nothing() {
        let before = json!({"a": 1, "list": [1, 2]});
        let mut document = before.clone();
        let failing = json!([{"op": "remove", "path": "/a"}, {"op": "test", "path": "/list/0", "value": 7}]);
        let error = json_patch(&mut document, &failing).expect_err("the test fails");
        assert_eq!((error.clone().into_failure().code, document), (422, before));

        let mut document = json!({"a": 1, "list": [1, 2]});
        let good = json!([{"op": "add", "path": "/list/-", "value": 3}, {"op": "move", "from": "/a", "path": "/b~1c"}]);
        json_patch(&mut document, &good).expect("applies");
        assert_eq!(document, json!({"b/c": 1, "list": [1, 2, 3]}));
    }

    #[test]
    fn a_json_patch_is_refused() {
        let operation = json!({"op": "test", "path": "", "value": {}});
        let long = Value::Array(vec![operation.clone(); JSON_PATCH_OPERATIONS + 1]);
        let error = json_patch(&mut json!({}), &long).expect_err("too long");
        assert_eq!(
            error.into_failure().to_string(),
            "The allowed maximum operations in a JSON patch is 10000, got 10001"
        );
        assert!(json_patch(&mut json!({}), &Value::Array(vec![operation; JSON_PATCH_OPERATIONS])).is_ok());
        let error = json_patch(&mut json!({}), &json!([{"op": "jump", "path": "/a"}])).expect_err("no such operation");
        assert_eq!(error.into_failure().code, 400);
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..3).prop_map(Value::from)];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    /// The smallest merge patch that turns `from` into `to`.
    fn diff(from: &Value, to: &Value) -> Value {
        let (Value::Object(old), Value::Object(new)) = (from, to) else { return to.clone() };
        let removed = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
        let set = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
        let set = set.map(|(key, value)| (key.clone(), old.get(key).map_or(value.clone(), |old| diff(old, value))));
        removed.chain(set).collect()
    }

    proptest! {
        #[test]
        fn a_merge_patch_of_the_difference_gives_the_target(from in tree(), to in tree()) {
            let mut document = from.clone();
            merge_patch(&mut document, &diff(&from, &to));
            prop_assert_eq!(&document, &to);
            merge_patch(&mut document, &json!({}));
            prop_assert!(!to.is_object() || document == to);
        }
    }
}
