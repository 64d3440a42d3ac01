//! Declared defaults, and fields whose feature is off: what the schema alone says of a new object. Defaults that upstream
//! computes in code are in `strategy`.

use serde_json::{Map, Value};

use crate::schema::{Schema, StructType, Type, TypeId};

/// Fills in declared defaults and drops fields behind feature gates that are off. Idempotent.
pub fn apply_defaults(schema: &Schema, root: TypeId, object: &mut Value) {
    match (schema.get(root), object) {
        (Type::Struct(structure), Value::Object(entries)) if !structure.special => {
            default_struct(schema, structure, entries);
        }
        (Type::List(list), Value::Array(items)) => {
            items.iter_mut().for_each(|item| apply_defaults(schema, list.item, item));
        }
        (Type::Map(map), Value::Object(entries)) => {
            entries.values_mut().for_each(|value| apply_defaults(schema, map.value, value));
        }
        _ => {}
    }
}

fn default_struct(schema: &Schema, structure: &StructType, entries: &mut Map<String, Value>) {
    for field in &structure.fields {
        if field.disabled_gate.is_some() {
            entries.remove(&field.name);
            continue;
        }
        if let Some(value) = entries.get_mut(&field.name).filter(|value| !value.is_null()) {
            apply_defaults(schema, field.ty, value);
            continue;
        }
        if let Some(default) = &field.default {
            entries.insert(field.name.clone(), default.clone());
            continue;
        }
        // A struct that is not a pointer is always there, with defaults of its own.
        let always = field.proto.as_ref().is_some_and(|proto| proto.always);
        if let (true, Type::Struct(inner)) = (always, schema.get(field.ty)) {
            let mut made = Map::new();
            default_struct(schema, inner, &mut made);
            if !made.is_empty() {
                entries.insert(field.name.clone(), Value::Object(made));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::table;

    fn defaulted(name: &str, mut object: Value) -> Value {
        let schema = table::load([name]);
        let root = schema.named(name).unwrap();
        apply_defaults(&schema, root, &mut object);
        let once = object.clone();
        apply_defaults(&schema, root, &mut object);
        assert_eq!(object, once, "defaulting twice changes nothing");
        object
    }

    #[test]
    fn declared_defaults_reach_into_lists() {
        let pod = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}]}]}});
        let pod = defaulted("io.k8s.api.core.v1.Pod", pod);
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
    }

    #[test]
    fn a_struct_that_is_always_there_gets_its_defaults() {
        let controller = defaulted("io.k8s.api.core.v1.ReplicationController", json!({}));
        assert_eq!(controller["spec"]["replicas"], 1);
    }

    #[test]
    fn a_field_behind_a_closed_gate_is_dropped() {
        let pod = json!({"spec": {"containers": [], "schedulingGroup": {"podGroupName": "x"}}});
        assert_eq!(defaulted("io.k8s.api.core.v1.Pod", pod)["spec"], json!({"containers": []}));
    }
}
