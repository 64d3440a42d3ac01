//! Every published kind against upstream's own test data: JSON ↔ protobuf byte for byte, YAML ↔ JSON, and the laws of
//! decoding and encoding.

use std::collections::BTreeMap;
use std::io::Read;

use proptest::prelude::*;
use serde_json::Value;

use super::{MediaType, decode, encode, json_to_proto};
use crate::kind::{Gvk, split_api_version, type_name};
use crate::schema::table::load_all;
use crate::schema::{Schema, Type, TypeId};

/// The three forms of one kind.
#[derive(Default)]
struct Case {
    json: Vec<u8>,
    yaml: Vec<u8>,
    proto: Vec<u8>,
}

fn cases() -> BTreeMap<String, Case> {
    let packed = include_bytes!("../../../../schema/golden/golden.tar.gz");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&packed[..]));
    let mut cases: BTreeMap<String, Case> = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let Some((name, form)) = path.rsplit_once('.') else { continue };
        let case = cases.entry(name.into()).or_default();
        let bytes = match form {
            "json" => &mut case.json,
            "yaml" => &mut case.yaml,
            "pb" => &mut case.proto,
            _ => continue,
        };
        entry.read_to_end(bytes).unwrap();
    }
    cases.retain(|_, case| !case.json.is_empty());
    cases
}

/// Kinds that stand in another package than their group says.
fn type_of(schema: &Schema, gvk: &Gvk) -> Option<TypeId> {
    let meta = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{}", gvk.kind);
    let short = gvk.group.split('.').next().unwrap_or_default();
    let imagepolicy = format!("io.k8s.api.{short}.{}.{}", gvk.version, gvk.kind);
    [type_name(gvk), imagepolicy, meta].iter().find_map(|name| schema.named(name))
}

fn gvk_of(object: &Value) -> Gvk {
    let (group, version) = split_api_version(object["apiVersion"].as_str().unwrap_or_default());
    let kind = object["kind"].as_str().unwrap_or_default();
    Gvk { group: group.into(), version: version.into(), kind: kind.into() }
}

/// JSON without white space, keys in their order.
fn compact(json: &[u8]) -> String {
    let (mut out, mut quoted, mut escaped) = (Vec::new(), false, false);
    for byte in json {
        if !quoted && byte.is_ascii_whitespace() {
            continue;
        }
        out.push(*byte);
        quoted ^= *byte == b'"' && !escaped;
        escaped = quoted && *byte == b'\\' && !escaped;
    }
    String::from_utf8(out).unwrap()
}

/// The canonical bytes with the resourceVersion put back.
fn stamped(schema: &Schema, root: TypeId, object: &Value) -> String {
    let encoded = encode(schema, root, object);
    let mut text = String::from_utf8(encoded.bytes).unwrap();
    if let Some(at) = encoded.stamp {
        let quoted = serde_json::to_string(crate::object::resource_version(object)).unwrap();
        text.insert_str(at as usize, &quoted[1..quoted.len() - 1]);
    }
    text
}

#[test]
fn all_published_kinds_round_trip() {
    let schema = load_all();
    let cases = cases();
    assert_eq!(cases.len(), 193);
    let mut failures = Vec::new();
    for (name, case) in &cases {
        let raw: Value = serde_json::from_slice(&case.json).unwrap();
        let gvk = gvk_of(&raw);
        // A watch event is the one that does not name its type.
        let event = Gvk { group: String::new(), version: "v1".into(), kind: "WatchEvent".into() };
        let Some(root) = type_of(&schema, if gvk.kind.is_empty() { &event } else { &gvk }) else {
            failures.push(format!("{name}: no type for {gvk}"));
            continue;
        };
        let decoded = decode(&schema, root, MediaType::Json, &case.json).unwrap();
        if !decoded.problems.is_empty() {
            failures.push(format!("{name}: {:?}", decoded.problems));
        }
        let mut check = |what: &str, same: bool| {
            if !same {
                failures.push(format!("{name}: {what}"));
            }
        };
        let expected = compact(&case.json);
        check("json → json", stamped(&schema, root, &decoded.object) == expected);
        check("json → proto", json_to_proto(&schema, root, &gvk, &case.json).unwrap() == case.proto);
        let from_proto = decode(&schema, root, MediaType::Protobuf, &case.proto).unwrap();
        check("proto → json", stamped(&schema, root, &from_proto.object) == expected);
        let from_yaml = decode(&schema, root, MediaType::Yaml, &case.yaml).unwrap();
        check("yaml → json", from_yaml.problems.is_empty() && stamped(&schema, root, &from_yaml.object) == expected);
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// An arbitrary value of a type, at times with fields left out, wrong or unknown.
fn arbitrary(schema: &Schema, ty: TypeId, depth: u32) -> BoxedStrategy<Value> {
    use crate::schema::Scalar;
    if depth == 0 {
        return Just(Value::Null).boxed();
    }
    match schema.get(ty) {
        Type::Scalar(scalar) => match scalar {
            Scalar::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
            Scalar::Int32 | Scalar::IntOrString => any::<i32>().prop_map(Value::from).boxed(),
            Scalar::Int64 => any::<i64>().prop_map(Value::from).boxed(),
            Scalar::Number => (-1000..1000_i32).prop_map(|n| Value::from(f64::from(n) / 8.0)).boxed(),
            Scalar::String => "[a-z<&\"\\\\é\n]{0,4}".prop_map(Value::from).boxed(),
            Scalar::Bytes => prop::sample::select(vec!["", "YQ==", "YWI="]).prop_map(Value::from).boxed(),
            Scalar::Quantity => prop::sample::select(vec!["0", "1500m", "1Gi", "7"]).prop_map(Value::from).boxed(),
            Scalar::Time => prop::sample::select(vec!["2026-11-23T20:30:00Z"]).prop_map(Value::from).boxed(),
            Scalar::MicroTime => {
                prop::sample::select(vec!["2026-11-23T20:30:00.000001Z"]).prop_map(Value::from).boxed()
            }
            Scalar::Duration => prop::sample::select(vec!["0s", "1m30s"]).prop_map(Value::from).boxed(),
        },
        Type::Any => prop::sample::select(vec![serde_json::json!({"a": [1, null, "x"]}), serde_json::json!(1)]).boxed(),
        Type::List(list) => {
            prop::collection::vec(arbitrary(schema, list.item, depth - 1), 0..3).prop_map(Value::Array).boxed()
        }
        Type::Map(map) => prop::collection::btree_map("[a-c]{1,2}", arbitrary(schema, map.value, depth - 1), 0..3)
            .prop_map(|entries| Value::Object(entries.into_iter().collect()))
            .boxed(),
        Type::Struct(structure) if structure.special => Just(Value::Null).boxed(),
        Type::Struct(structure) => structure
            .fields
            .iter()
            .map(|field| {
                let name = field.name.clone();
                prop::option::weighted(0.4, arbitrary(schema, field.ty, depth - 1)).prop_map(move |v| (name.clone(), v))
            })
            .collect::<Vec<_>>()
            .prop_map(|fields| {
                let fields = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
                Value::Object(fields.collect())
            })
            .boxed(),
    }
}

fn schema_and_root(name: &str) -> (Schema, TypeId) {
    let schema = crate::schema::table::load([name]);
    let root = schema.named(name).unwrap();
    (schema, root)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Encoding is a fixed point of decoding, and protobuf carries what canonical JSON does.
    #[test]
    fn canonical_forms_are_stable(
        (name, object) in prop::sample::select(vec![
            "io.k8s.api.apps.v1.Deployment",
            "io.k8s.api.core.v1.Service",
            "io.k8s.api.core.v1.PersistentVolume",
            "io.k8s.api.networking.v1.Ingress",
        ])
        .prop_flat_map(|name| {
            let (schema, root) = schema_and_root(name);
            (Just(name), arbitrary(&schema, root, 6))
        })
    ) {
        let (schema, root) = schema_and_root(name);
        let body = serde_json::to_vec(&object).unwrap();
        let first = decode(&schema, root, MediaType::Json, &body).unwrap();
        prop_assert_eq!(&first.problems, &Vec::<String>::new());
        let canonical = stamped(&schema, root, &first.object);
        let again = decode(&schema, root, MediaType::Json, canonical.as_bytes()).unwrap();
        prop_assert_eq!(&stamped(&schema, root, &again.object), &canonical);

        let gvk = gvk_of(&first.object);
        let proto = json_to_proto(&schema, root, &gvk, canonical.as_bytes()).unwrap();
        let back = decode(&schema, root, MediaType::Protobuf, &proto).unwrap();
        let text = stamped(&schema, root, &back.object);
        prop_assert_eq!(json_to_proto(&schema, root, &gvk, text.as_bytes()).unwrap(), proto);
        // Protobuf does not tell an empty list from none.
        if !canonical.contains("[]") && !canonical.contains("{}") {
            prop_assert_eq!(text, canonical);
        }
    }

    /// Nothing a client sends makes the decoders panic.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (schema, root) = schema_and_root("io.k8s.api.core.v1.Pod");
        let mut proto = b"k8s\0".to_vec();
        proto.extend(&bytes);
        for (media, body) in [(MediaType::Json, &bytes), (MediaType::Yaml, &bytes), (MediaType::Protobuf, &proto)] {
            let _ = decode(&schema, root, media, body);
            let _ = super::type_meta(media, body);
        }
    }
}
