//! Reads the published types from the embedded table (`schema/types.txt`, format in `schema/README.md`) into an arena.
//!
//! Only what the asked-for types reach is built: the text lists every type of every version, the arena of a server holds
//! those it serves. Inline structs are flattened here. A malformed table is a defect of the build and panics.

use std::collections::HashMap;

use super::{
    Cardinality, Field, ListKind, ListType, MapType, PatchRule, Proto, Scalar, Schema, StructType, Type, TypeId, Wire,
};

const TYPES: &str = include_str!("../../../../schema/types.txt");
const GATES: &str = include_str!("../../../../schema/gates.txt");

const TYPE_META: &str = "meta.v1.TypeMeta";

/// Types whose JSON form is not that of their fields.
const SPECIAL: [&str; 4] =
    ["JSONSchemaPropsOrBool", "JSONSchemaPropsOrArray", "JSONSchemaPropsOrStringArray", "GroupVersion"];

/// Where each type stands in the text, by short package and name (`core.v1`, `Pod`).
struct Index {
    places: HashMap<&'static str, HashMap<&'static str, Place>>,
    /// Short and full package names.
    packages: Vec<(&'static str, &'static str)>,
}

#[derive(Clone, Copy)]
struct Place {
    /// `io.k8s.api.core.v1`
    package: &'static str,
    /// `core.v1`
    short: &'static str,
    head: &'static str,
    /// The lines of its fields.
    body: &'static str,
}

impl Index {
    fn read(text: &'static str) -> Self {
        let mut places: HashMap<&str, HashMap<&str, Place>> = HashMap::with_capacity(80);
        let mut packages = Vec::with_capacity(80);
        let (mut package, mut short) = ("", "");
        let mut rest = text;
        while let Some((line, after)) = rest.split_once('\n') {
            rest = after;
            if line.is_empty() || line.starts_with('#') {
            } else if let Some(names) = line.strip_prefix("package ") {
                (short, package) = names.split_once(' ').expect("a package has a short and a full name");
                packages.push((short, package));
            } else {
                let end = body_length(after);
                let name = line.split(' ').next().unwrap_or_default();
                places
                    .entry(short)
                    .or_default()
                    .insert(name, Place { package, short, head: line, body: &after[..end] });
                rest = &after[end..];
            }
        }
        Self { places, packages }
    }

    fn find(&self, short_name: &str) -> Option<&Place> {
        let (short, name) = short_name.rsplit_once('.')?;
        self.places.get(short)?.get(name)
    }

    fn place(&self, short_name: &str) -> Place {
        *self.find(short_name).unwrap_or_else(|| panic!("schema/types.txt lacks {short_name}"))
    }

    /// The type of a full name (`io.k8s.api.core.v1.Pod`).
    fn find_full(&self, full: &str) -> Option<Place> {
        let (package, name) = full.rsplit_once('.')?;
        let (short, _) = self.packages.iter().find(|(_, full)| *full == package)?;
        self.places.get(short)?.get(name).copied()
    }
}

/// Field lines begin with a blank.
fn body_length(text: &str) -> usize {
    text.split_inclusive('\n').take_while(|line| line.starts_with(' ')).map(str::len).sum()
}

impl Place {
    fn name(&self) -> &'static str {
        self.head.split(' ').next().unwrap_or_default()
    }

    fn full_name(&self) -> String {
        format!("{}.{}", self.package, self.name())
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.head.split(' ').skip(1).any(|one| one == flag)
    }

    fn fields(&self) -> impl Iterator<Item = Line> + use<> {
        self.body.lines().map(Line::read)
    }

    /// `core.v1.Container` for `Container` inside `core.v1`.
    fn qualify(&self, name: &str) -> String {
        if name.contains('.') { name.to_owned() } else { format!("{}.{name}", self.short) }
    }
}

/// One field line.
struct Line {
    name: &'static str,
    ty: &'static str,
    number: Option<u32>,
    pointer: bool,
    flags: &'static str,
}

impl Line {
    fn read(line: &'static str) -> Self {
        let mut cells = line.trim_start().splitn(4, ' ');
        let name = cells.next().expect("a field has a name");
        let ty = cells.next().expect("a field has a type");
        let number = cells.next().and_then(|number| number.parse().ok());
        let flags = cells.next().unwrap_or_default();
        Self { name, ty: ty.trim_start_matches('*'), number, pointer: ty.starts_with('*'), flags }
    }

    fn is_inline(&self) -> bool {
        self.name == "~"
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|one| one == flag)
    }

    fn argument(&self, key: &str) -> Option<&'static str> {
        self.flags.split(' ').find_map(|one| one.strip_prefix(key)?.strip_prefix('='))
    }
}

struct Builder<'a> {
    index: &'a Index,
    types: Vec<Type>,
    names: HashMap<String, TypeId>,
    /// Lists and maps that are the same are one type.
    derived: HashMap<(String, String), TypeId>,
    /// Structs whose id is given out and whose fields are not yet read.
    pending: Vec<(TypeId, Place, bool)>,
    off: Vec<&'static str>,
}

/// The arena of these types (full names, `io.k8s.api.core.v1.Pod`) and all they reach.
pub fn load<'a>(roots: impl IntoIterator<Item = &'a str>) -> Schema {
    let index = Index::read(TYPES);
    let mut builder = Builder::new(&index);
    for root in roots {
        let place = index.find_full(root).unwrap_or_else(|| panic!("schema/types.txt lacks {root}"));
        builder.placed(place, false);
    }
    builder.finish()
}

/// The arena of every published type.
pub fn load_all() -> Schema {
    let index = Index::read(TYPES);
    let mut all: Vec<Place> = index.places.values().flat_map(HashMap::values).copied().collect();
    all.sort_by_key(|place| (place.package, place.name()));
    let mut builder = Builder::new(&index);
    for place in all {
        builder.placed(place, false);
    }
    builder.finish()
}

/// A feature gate that is off in v1.37.
pub(super) fn gate_is_off(gate: &str) -> bool {
    GATES.lines().any(|line| line == gate)
}

/// A field's type as Go prints it in an error (`int32`, `v1.RestartPolicy`, `[]v1.Container`). Reads the text again, so
/// for errors only.
pub(crate) fn go_type(struct_name: &str, field: &str) -> Option<String> {
    let index = Index::read(TYPES);
    go_type_in(&index, &index.find_full(struct_name)?, field)
}

fn go_type_in(index: &Index, place: &Place, field: &str) -> Option<String> {
    place.fields().find_map(|line| {
        if line.is_inline() {
            return go_type_in(index, &index.place(&place.qualify(line.ty)), field);
        }
        (line.name == field)
            .then(|| line.argument("go").map_or_else(|| derived_go_type(line.ty, place.short), str::to_owned))
    })
}

fn derived_go_type(ty: &str, here: &str) -> String {
    if let Some(item) = ty.strip_prefix("[]") {
        return format!("[]{}", derived_go_type(item, here));
    }
    if let Some(value) = ty.strip_prefix("{}") {
        return format!("map[string]{}", derived_go_type(value, here));
    }
    match ty {
        "string" | "bool" | "int32" | "int64" => ty.into(),
        "number" => "float64".into(),
        "bytes" => "[]uint8".into(),
        "quantity" => "resource.Quantity".into(),
        "time" => "v1.Time".into(),
        "microtime" => "v1.MicroTime".into(),
        "duration" => "v1.Duration".into(),
        "intorstring" => "intstr.IntOrString".into(),
        "any" => "runtime.RawExtension".into(),
        name => {
            let full = if name.contains('.') { name.to_owned() } else { format!("{here}.{name}") };
            let mut segments: Vec<&str> = full.rsplitn(3, '.').take(2).collect();
            segments.reverse();
            segments.join(".")
        }
    }
}

impl<'a> Builder<'a> {
    fn new(index: &'a Index) -> Self {
        let off = GATES.lines().filter(|line| !line.starts_with('#')).collect();
        Self { index, types: Vec::new(), names: HashMap::new(), derived: HashMap::new(), pending: Vec::new(), off }
    }

    fn finish(mut self) -> Schema {
        while let Some((id, place, granular)) = self.pending.pop() {
            self.types[id.0 as usize] = self.structure(place, granular);
        }
        self.types.shrink_to_fit();
        Schema { types: self.types, names: self.names }
    }

    fn push(&mut self, ty: Type) -> TypeId {
        self.types.push(ty);
        TypeId(u32::try_from(self.types.len() - 1).expect("fewer types than u32 counts"))
    }

    /// `granular`: a field that merges deeply although its type says atomic.
    fn placed(&mut self, place: Place, granular: bool) -> TypeId {
        let full = place.full_name();
        let key = if granular { format!("{full} granular") } else { full };
        if let Some(id) = self.names.get(&key) {
            return *id;
        }
        let id = self.push(Type::Any);
        self.names.insert(key, id);
        self.pending.push((id, place, granular));
        id
    }

    fn structure(&mut self, place: Place, granular: bool) -> Type {
        let mut fields = Vec::new();
        self.collect(place, &mut fields, &[]);
        fields.shrink_to_fit();
        let by_name = fields
            .iter()
            .enumerate()
            .map(|(index, field)| (field.name.clone(), u32::try_from(index).expect("few fields")))
            .collect();
        Type::Struct(StructType {
            name: place.full_name(),
            fields,
            by_name,
            atomic: place.has_flag("atomic") && !granular,
            preserve_unknown: false,
            special: place.has_flag("strings") || SPECIAL.contains(&place.name()),
        })
    }

    /// The fields of a type, those of inline structs in their place. `within`: the nested messages around them.
    fn collect(&mut self, place: Place, fields: &mut Vec<Field>, within: &[u32]) {
        for line in place.fields() {
            if !line.is_inline() {
                let field = self.field(&line, place, within);
                fields.push(field);
                continue;
            }
            let name = place.qualify(line.ty);
            let mut deeper = within.to_vec();
            deeper.extend(line.number);
            let start = fields.len();
            self.collect(self.index.place(&name), fields, &deeper);
            if name == TYPE_META {
                // The envelope carries the type in protobuf.
                fields[start..].iter_mut().for_each(|field| field.proto = None);
            }
        }
    }

    fn field(&mut self, line: &Line, place: Place, within: &[u32]) -> Field {
        let ty = self.type_of(line.ty, line, place);
        let disabled_gate = line
            .argument("gate")
            .and_then(|gates| gates.split(',').find(|gate| self.off.contains(gate)))
            .map(str::to_owned);
        let mut rules: Vec<(String, String)> = line
            .flags
            .split(' ')
            .filter_map(|flag| flag.strip_prefix("rule:"))
            .map(|rule| {
                let (name, argument) = rule.split_once('=').unwrap_or((rule, ""));
                (name.to_owned(), argument.trim_matches('"').to_owned())
            })
            .collect();
        if line.has("omitzero") {
            rules.push(("omitzero".into(), String::new()));
        }
        rules.shrink_to_fit();
        Field {
            name: line.name.to_owned(),
            ty,
            omit_empty: !line.has("keep"),
            required: line.has("required"),
            default: line.argument("default").map(|text| serde_json::from_str(text).expect("a default is JSON")),
            patch: patch_rule(line),
            enum_values: line
                .argument("enum")
                .map(|values| values.split(',').map(str::to_owned).collect())
                .unwrap_or_default(),
            proto: line.number.map(|number| {
                let (wire, cardinality) = self.wire(ty);
                let may_be_nil = match &self.types[ty.0 as usize] {
                    Type::Scalar(scalar) => *scalar == Scalar::Bytes,
                    _ => !line.ty.starts_with(['[', '{']) && self.is_wrapper(&place.qualify(line.ty)),
                };
                let always = !line.pointer && cardinality == Cardinality::Optional && !may_be_nil;
                Proto { number, wire, cardinality, always, inline: within.to_vec() }
            }),
            rules,
            disabled_gate,
        }
    }

    /// An array of strings that is a message in protobuf: unset is nil.
    fn is_wrapper(&self, short_name: &str) -> bool {
        self.index.find(short_name).is_some_and(|place| place.has_flag("strings"))
    }

    fn wire(&self, ty: TypeId) -> (Wire, Cardinality) {
        match &self.types[ty.0 as usize] {
            Type::List(list) => (self.wire(list.item).0, Cardinality::Repeated),
            Type::Map(_) => (Wire::Bytes, Cardinality::Map),
            Type::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64) => (Wire::Varint, Cardinality::Optional),
            Type::Scalar(Scalar::Number) => (Wire::Fixed64, Cardinality::Optional),
            Type::Scalar(_) | Type::Struct(_) | Type::Any => (Wire::Bytes, Cardinality::Optional),
        }
    }

    fn type_of(&mut self, ty: &str, line: &Line, place: Place) -> TypeId {
        let shape = || (place.qualify(ty.trim_start_matches(['[', ']', '{', '}'])), ty.to_owned());
        if let Some(item) = ty.strip_prefix("[]") {
            let kind = match line.argument("map") {
                Some(keys) => ListKind::Map(keys.split(',').map(str::to_owned).collect()),
                None if line.has("set") => ListKind::Set,
                None => ListKind::Atomic,
            };
            let (name, text) = shape();
            return self.derive((name, format!("{text} {kind:?}")), |builder| {
                let item = builder.type_of(item, &Line { flags: "", ..*line }, place);
                Type::List(ListType { item, kind })
            });
        }
        if let Some(value) = ty.strip_prefix("{}") {
            let atomic = line.has("atomic");
            let (name, text) = shape();
            return self.derive((name, format!("{text} {atomic}")), |builder| {
                let value = builder.type_of(value, &Line { flags: "", ..*line }, place);
                Type::Map(MapType { value, atomic })
            });
        }
        let scalar = match ty {
            "bool" => Scalar::Bool,
            "int32" => Scalar::Int32,
            "int64" => Scalar::Int64,
            "number" => Scalar::Number,
            "string" => Scalar::String,
            "bytes" => Scalar::Bytes,
            "intorstring" => Scalar::IntOrString,
            "quantity" => Scalar::Quantity,
            "time" => Scalar::Time,
            "microtime" => Scalar::MicroTime,
            "duration" => Scalar::Duration,
            "any" => return self.derive((String::new(), "any".into()), |_| Type::Any),
            name => return self.placed(self.index.place(&place.qualify(name)), line.has("granular")),
        };
        self.derive((String::new(), ty.into()), |_| Type::Scalar(scalar))
    }

    fn derive(&mut self, key: (String, String), make: impl FnOnce(&mut Self) -> Type) -> TypeId {
        if let Some(id) = self.derived.get(&key) {
            return *id;
        }
        let ty = make(self);
        let id = self.push(ty);
        self.derived.insert(key, id);
        id
    }
}

fn patch_rule(line: &Line) -> PatchRule {
    let Some((strategies, key)) = line.argument("patch").and_then(|patch| patch.split_once('/')) else {
        return PatchRule::default();
    };
    let has = |name: &str| strategies.split(',').any(|one| one == name);
    PatchRule {
        merge: has("merge"),
        retain_keys: has("retainKeys"),
        replace: has("replace"),
        merge_key: (!key.is_empty()).then(|| key.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure<'a>(schema: &'a Schema, name: &str) -> &'a StructType {
        match schema.get(schema.named(name).unwrap()) {
            Type::Struct(structure) => structure,
            other => panic!("{name} is {other:?}"),
        }
    }

    #[test]
    fn every_type_loads() {
        let schema = load_all();
        assert!(schema.names.len() > 1000);
        assert!(schema.types.iter().filter(|ty| matches!(ty, Type::Struct(_))).count() > 1000);
    }

    #[test]
    fn inline_structs_are_flattened_with_their_message_number() {
        let schema = load(["io.k8s.api.core.v1.Volume"]);
        let volume = structure(&schema, "io.k8s.api.core.v1.Volume");
        assert_eq!(volume.fields[0].name, "name");
        let secret = volume.field("secret").unwrap();
        let proto = secret.proto.as_ref().unwrap();
        assert_eq!((proto.number, proto.inline.as_slice(), proto.always), (6, &[2][..], false));
    }

    #[test]
    fn the_type_is_first_and_not_encoded() {
        let schema = load(["io.k8s.api.core.v1.Pod"]);
        let pod = structure(&schema, "io.k8s.api.core.v1.Pod");
        let names: Vec<&str> = pod.fields.iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["kind", "apiVersion", "metadata", "spec", "status"]);
        assert_eq!(pod.field("kind").unwrap().proto, None);
        assert!(schema.named("io.k8s.api.apps.v1.Deployment").is_none());
    }

    #[test]
    fn list_and_struct_kinds_for_apply() {
        let schema = load(["io.k8s.api.core.v1.Pod", "io.k8s.api.core.v1.PersistentVolume"]);
        let ports = structure(&schema, "io.k8s.api.core.v1.Container").field("ports").unwrap();
        let Type::List(list) = schema.get(ports.ty) else { panic!("ports is a list") };
        assert_eq!(list.kind, ListKind::Map(vec!["containerPort".into(), "protocol".into()]));
        assert_eq!(ports.patch.merge_key.as_deref(), Some("containerPort"));
        assert!(structure(&schema, "io.k8s.api.core.v1.ObjectReference").atomic);
        let claim = structure(&schema, "io.k8s.api.core.v1.PersistentVolumeSpec").field("claimRef").unwrap();
        let Type::Struct(claim) = schema.get(claim.ty) else { panic!("claimRef is a struct") };
        assert!(!claim.atomic);
    }

    #[test]
    fn go_names_for_errors() {
        assert_eq!(go_type("io.k8s.api.apps.v1.DeploymentSpec", "replicas").as_deref(), Some("int32"));
        assert_eq!(go_type("io.k8s.api.core.v1.PodSpec", "restartPolicy").as_deref(), Some("v1.RestartPolicy"));
        assert_eq!(go_type("io.k8s.api.core.v1.PodSpec", "containers").as_deref(), Some("[]v1.Container"));
        assert_eq!(go_type("io.k8s.api.core.v1.Volume", "secret").as_deref(), Some("v1.SecretVolumeSource"));
        assert_eq!(go_type("io.k8s.api.core.v1.Pod", "metadata").as_deref(), Some("v1.ObjectMeta"));
    }

    #[test]
    fn a_gate_that_is_off_marks_the_field() {
        let schema = load(["io.k8s.api.core.v1.Pod"]);
        let spec = structure(&schema, "io.k8s.api.core.v1.PodSpec");
        assert_eq!(spec.field("schedulingGroup").unwrap().disabled_gate.as_deref(), Some("GenericWorkload"));
        assert_eq!(spec.field("resources").unwrap().disabled_gate, None);
    }
}
