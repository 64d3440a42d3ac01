//! Descriptions of built-in types and fields for OpenAPI documents: what `kubectl explain` shows.
//!
//! The build takes them from the k8s-openapi dependency (`build.rs`). They are held compressed, unpacked while a
//! document is written, and dropped again.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

const COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.zst"));

/// Every kind's own two fields, which the dependency's types do not have.
const TYPE_META: [(&str, &str); 2] = [
    ("apiVersion", "Group and version of the schema that this object is written in."),
    ("kind", "The kind of this object. In CamelCase; it can't be changed."),
];

/// The unpacked descriptions, over a megabyte: keep them no longer than a document is written.
pub struct Descriptions {
    text: String,
    /// Type name → its record.
    types: HashMap<String, Range<usize>>,
}

/// Unpacks the descriptions.
pub fn load() -> io::Result<Descriptions> {
    let text = String::from_utf8(zstd::decode_all(COMPRESSED)?).map_err(io::Error::other)?;
    let mut types = HashMap::with_capacity(1000);
    let mut start = 0;
    for record in text.split('\u{1e}') {
        let name = record.split('\u{1f}').next().unwrap_or_default();
        types.insert(name.to_owned(), start..start + record.len());
        start += record.len() + 1;
    }
    Ok(Descriptions { text, types })
}

impl Descriptions {
    /// The description of a type (field ``) or of one of its fields.
    pub fn describe<'a>(&'a self, type_name: &str, field: &str) -> Option<&'a str> {
        let record = self.types.get(type_name).and_then(|range| self.text.get(range.clone()));
        let mut parts = record.unwrap_or_default().split('\u{1f}').skip(1);
        while let (Some(name), Some(text)) = (parts.next(), parts.next()) {
            if name == field {
                return Some(text);
            }
        }
        TYPE_META.iter().find(|(name, _)| *name == field).map(|(_, text)| *text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_show_descriptions() {
        let kinds = sampan_api::kind::builtin();
        let descriptions = load().expect("the build packed them");
        let describe = |ty: &str, field: &str| descriptions.describe(ty, field);
        let documents = sampan_api::openapi::Documents { kinds: &kinds, version: "v1.37.0", describe: &describe };
        let mut out = Vec::new();
        assert!(documents.v3("apis/apps/v1", &mut out).expect("memory takes it"));
        let document: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        let deployment = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        for described in [deployment, &deployment["properties"]["spec"], &deployment["properties"]["kind"]] {
            assert!(described["description"].as_str().is_some_and(|text| text.len() > 10), "{described}");
        }
    }

    #[test]
    fn types_and_fields_are_described() {
        let descriptions = load().expect("the build packed them");
        let has = |ty: &str, field: &str, word: &str| {
            let text = descriptions.describe(ty, field).unwrap_or_default();
            assert!(text.contains(word) && !text.contains(['\u{1e}', '\u{1f}']), "{ty} {field}: {text}");
        };
        has("io.k8s.api.core.v1.Pod", "", "containers");
        has("io.k8s.api.core.v1.Pod", "spec", "desired behavior");
        has("io.k8s.api.core.v1.ContainerPort", "hostIP", "host IP");
        has("io.k8s.api.core.v1.ContainerPort", "containerPort", "0 < x < 65536");
        has("io.k8s.api.apps.v1.Deployment", "kind", "kind");
        has("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences", "garbage collected");
        has(
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
            "x-kubernetes-list-type",
            "list",
        );
        assert_eq!(descriptions.describe("io.k8s.api.core.v1.Pod", "none"), None);
        assert_eq!(descriptions.describe("none", ""), None);
    }

    /// Those without are upstream's own gaps (`JSONSchemaProps`), and the options and reviews that are no kinds.
    #[test]
    fn nearly_every_field_is_described() {
        let kinds = sampan_api::kind::builtin();
        let descriptions = load().expect("the build packed them");
        let (mut described, mut silent) = (0, Vec::new());
        for ty in &kinds.all[0].schema.types {
            let sampan_api::schema::Type::Struct(fields) = ty else { continue };
            for field in fields.fields.iter().filter(|field| field.disabled_gate.is_none()) {
                match descriptions.describe(&fields.name, &field.name) {
                    Some(_) => described += 1,
                    None => silent.push(format!("{}.{}", fields.name, field.name)),
                }
            }
        }
        assert!(described > 15 * silent.len(), "{described} described, not so: {silent:?}");
    }
}
