//! Values seen through a schema: which fields they set, how two differ, how one is laid over another, how fields are
//! taken away. The rules are those of `structured-merge-diff` (package `typed`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::set::{Set, field_element, key_element, path_text, value_element};
use crate::schema::{Field, ListKind, Scalar, Schema, StructType, Type, TypeId};

/// What has no type is free-form.
type Ty = Option<TypeId>;

/// How a value is divided into fields.
#[derive(Clone, Copy)]
enum Shape<'a> {
    /// Owned whole: scalars and whatever is atomic.
    Leaf,
    /// A list of distinct scalars.
    Set,
    Keyed(&'a [String], TypeId),
    Map(Ty),
    Struct(&'a StructType),
}

impl Shape<'_> {
    fn is_list(self) -> bool {
        matches!(self, Self::Set | Self::Keyed(..))
    }

    /// The same division. The types of one field never differ, only those of free-form values.
    fn same(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// How an object became another. `added` and `removed` have structs and list items beside their fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    pub added: Set,
    pub removed: Set,
    pub modified: Set,
}

impl Difference {
    fn put(&mut self, element: impl FnOnce() -> String, child: Self) {
        if child.added.is_empty() && child.removed.is_empty() && child.modified.is_empty() {
            return;
        }
        let element = element();
        if !child.removed.is_empty() {
            self.removed.put(element.clone(), child.removed);
        }
        if !child.modified.is_empty() {
            self.modified.put(element.clone(), child.modified);
        }
        self.added.put(element, child.added);
    }

    /// Leaves out the fields `ignored` and all below them.
    pub fn without(mut self, ignored: &Set) -> Self {
        for set in [&mut self.added, &mut self.removed, &mut self.modified] {
            set.subtract_branches(ignored);
        }
        self
    }

    /// What was added or modified, and what was removed.
    pub fn into_changed_and_removed(self) -> (Set, Set) {
        (self.modified.union(self.added), self.removed)
    }
}

/// A value that does not fit its schema: an element of a keyed list without its key, a duplicate, a wrong type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Misfit {
    path: String,
    message: String,
}

impl Misfit {
    fn new(message: impl Into<String>) -> Self {
        Self { path: String::new(), message: message.into() }
    }

    fn below(mut self, element: &str) -> Self {
        self.path = format!("{}{}", path_text(&[element]), self.path);
        self
    }
}

const NULL: &Value = &Value::Null;

/// The items of one key: seldom more than one.
type Group<'v> = smallvec::SmallVec<[&'v Value; 1]>;

fn names(value: &Value) -> impl Iterator<Item = &String> {
    value.as_object().into_iter().flat_map(Map::keys)
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub struct Typed<'a> {
    pub schema: &'a Schema,
}

impl<'a> Typed<'a> {
    fn shape(&self, ty: Ty, value: &Value) -> Shape<'a> {
        let Some(ty) = ty else { return self.free_form(value) };
        match self.schema.get(ty) {
            Type::Scalar(_) => Shape::Leaf,
            Type::Any => self.free_form(value),
            Type::List(list) => match &list.kind {
                ListKind::Atomic => Shape::Leaf,
                ListKind::Set => Shape::Set,
                ListKind::Map(keys) => Shape::Keyed(keys, list.item),
            },
            Type::Map(map) if map.atomic => Shape::Leaf,
            Type::Map(map) => Shape::Map(Some(map.value)),
            Type::Struct(fields) if fields.atomic || fields.special => Shape::Leaf,
            Type::Struct(fields) => Shape::Struct(fields),
        }
    }

    /// Free-form values are owned whole in built-in kinds and field by field in custom resources, whose schema names
    /// its root ``.
    fn free_form(&self, value: &Value) -> Shape<'a> {
        if value.is_object() && self.schema.named("").is_some() { Shape::Map(None) } else { Shape::Leaf }
    }

    /// The type of a field below a map or struct.
    fn child(&self, shape: Shape<'a>, name: &str) -> Ty {
        match shape {
            Shape::Map(value) => value,
            Shape::Struct(fields) => fields.field(name).map(|field| field.ty),
            _ => None,
        }
    }

    /// The path element of a list's item.
    fn element(&self, shape: Shape<'a>, item: &Value) -> Result<String, Misfit> {
        let Shape::Keyed(keys, ty) = shape else {
            return match item {
                Value::Object(_) => Err(Misfit::new("associative list without keys has an element that's a map type")),
                Value::Array(_) => Err(Misfit::new("not supported: associative list with lists as elements")),
                Value::Null => Err(Misfit::new("associative list without keys has an element that's an explicit null")),
                scalar => Ok(value_element(scalar)),
            };
        };
        let Value::Object(item) = item else {
            return Err(Misfit::new("associative list with keys may not have non-map elements"));
        };
        let mut found = Map::new();
        for key in keys {
            let value = item.get(key).cloned().or_else(|| self.key_default(ty, key)).ok_or_else(|| {
                Misfit::new(format!(
                    "associative list with keys has an element that omits key field {key:?} (and doesn't have default \
                     value)"
                ))
            })?;
            found.insert(key.clone(), value);
        }
        Ok(key_element(found))
    }

    /// A declared default, else the zero value of a field that is always written.
    fn key_default(&self, item: TypeId, key: &str) -> Option<Value> {
        let Type::Struct(fields) = self.schema.get(item) else { return None };
        let field = fields.field(key)?;
        let zero = || match self.schema.get(field.ty) {
            Type::Scalar(scalar) if !field.omit_empty => zero(*scalar),
            _ => None,
        };
        field.default.clone().or_else(zero)
    }

    /// What an absent field stands for where upstream's typed objects always have it: a struct that is no pointer is
    /// `{}`, and what is written even when empty is null or zero.
    fn always_there(&self, field: &Field) -> Option<Value> {
        match self.schema.get(field.ty) {
            Type::Struct(_) => {
                field.proto.as_ref().is_some_and(|proto| proto.always).then(|| Value::Object(Map::new()))
            }
            Type::Scalar(scalar) if !field.omit_empty && field.proto.is_some() => zero(*scalar),
            Type::List(_) | Type::Map(_) if !field.omit_empty && field.proto.is_some() => Some(Value::Null),
            _ => None,
        }
    }

    /// The fields that `value` sets. `strict`: the value comes from a client who applies it, so types must fit and no
    /// key may come twice.
    pub fn fields(&self, ty: Ty, value: &Value, strict: bool) -> Result<Set, Misfit> {
        let shape = self.shape(ty, value);
        if strict {
            self.check(ty, value)?;
        }
        let mut set = Set::default();
        match (shape, value) {
            (Shape::Leaf, _) => set.member = true,
            (Shape::Set | Shape::Keyed(..), Value::Array(items)) => {
                for (element, items) in self.grouped(shape, items)? {
                    let mut child = match items.as_slice() {
                        [one] => self.fields(self.item(shape), one, strict).map_err(|misfit| misfit.below(&element))?,
                        _ if strict => {
                            return Err(Misfit::new(format!("duplicate entries for key {}", path_text(&[&element]))));
                        }
                        _ => Set::default(),
                    };
                    child.member = true;
                    set.put(element, child);
                }
            }
            (Shape::Map(_) | Shape::Struct(_), Value::Object(map)) => {
                for (name, value) in map {
                    let element = field_element(name);
                    let mut child =
                        self.fields(self.child(shape, name), value, strict).map_err(|misfit| misfit.below(&element))?;
                    let named = matches!(shape, Shape::Struct(fields) if fields.field(name).is_some());
                    child.member |= !named || value.is_null() || value.as_object().is_some_and(Map::is_empty);
                    set.put(element, child);
                }
            }
            _ => {}
        }
        Ok(set)
    }

    fn item(&self, shape: Shape<'a>) -> Ty {
        if let Shape::Keyed(_, item) = shape { Some(item) } else { None }
    }

    fn check(&self, ty: Ty, value: &Value) -> Result<(), Misfit> {
        let Some(ty) = ty else { return Ok(()) };
        let wanted = match self.schema.get(ty) {
            _ if value.is_null() => return Ok(()),
            Type::Any => return Ok(()),
            Type::Struct(fields) if fields.special => return Ok(()),
            Type::List(_) if !value.is_array() => "list",
            Type::Map(_) | Type::Struct(_) if !value.is_object() => "map",
            Type::Scalar(_) if value.is_array() || value.is_object() => "scalar",
            Type::Scalar(Scalar::String) if !value.is_string() => "string",
            Type::Scalar(Scalar::Bool) if !value.is_boolean() => "boolean",
            Type::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Number) if !value.is_number() => {
                "numeric (int or float)"
            }
            Type::Struct(fields) if !fields.preserve_unknown => {
                let unknown = value.as_object().into_iter().flatten().find(|(name, _)| fields.field(name).is_none());
                return match unknown {
                    Some((name, _)) => Err(Misfit::new("field not declared in schema").below(&field_element(name))),
                    None => Ok(()),
                };
            }
            _ => return Ok(()),
        };
        Err(Misfit::new(format!("expected {wanted}, got {value}")))
    }

    fn grouped<'v>(&self, shape: Shape<'a>, items: &'v [Value]) -> Result<BTreeMap<String, Group<'v>>, Misfit> {
        let mut groups: BTreeMap<String, Group<'v>> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            let element = self
                .element(shape, item)
                .map_err(|misfit| Misfit { message: format!("element {index}: {}", misfit.message), ..misfit })?;
            groups.entry(element).or_default().push(item);
        }
        Ok(groups)
    }

    pub fn compare(&self, ty: Ty, old: Option<&Value>, new: Option<&Value>) -> Result<Difference, Misfit> {
        let mut difference = Difference::default();
        if old == new {
            return Ok(difference);
        }
        let shapes = [old.map(|old| self.shape(ty, old)), new.map(|new| self.shape(ty, new))];
        let shapes = match shapes {
            [Some(left), Some(right)] if left.same(right) => [None, Some(right)],
            other => other,
        };
        for shape in shapes.into_iter().flatten() {
            self.compare_as(shape, old, new, &mut difference)?;
        }
        Ok(difference)
    }

    fn compare_as(
        &self,
        shape: Shape<'a>,
        old: Option<&Value>,
        new: Option<&Value>,
        difference: &mut Difference,
    ) -> Result<(), Misfit> {
        let list =
            |value: Option<&'_ Value>| value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().len();
        let map = |value: Option<&'_ Value>| value.and_then(Value::as_object).map_or(0, Map::len);
        let size = if shape.is_list() { list(old) + list(new) } else { map(old) + map(new) };
        if matches!(shape, Shape::Leaf) || size == 0 {
            match (old, new) {
                (None, _) => difference.added.member = true,
                (_, None) => difference.removed.member = true,
                _ => difference.modified.member = true,
            }
            return Ok(());
        }
        if shape.is_list() {
            self.compare_lists(shape, old.unwrap_or(NULL), new.unwrap_or(NULL), difference)?;
        } else {
            self.compare_maps(shape, old.unwrap_or(NULL), new.unwrap_or(NULL), difference)?;
        }
        difference.added.member |= old.is_none();
        difference.removed.member |= new.is_none();
        Ok(())
    }

    fn compare_maps(&self, shape: Shape<'a>, old: &Value, new: &Value, out: &mut Difference) -> Result<(), Misfit> {
        let gone = names(old).filter(|name| new.get(*name).is_none());
        for name in names(new).chain(gone) {
            let (mut left, mut right) = (old.get(name), new.get(name));
            if left == right {
                continue;
            }
            let field = match shape {
                Shape::Struct(fields) if left.is_none() || right.is_none() => fields.field(name),
                _ => None,
            };
            let implied = field.and_then(|field| self.always_there(field));
            // Of an object that is not there nothing is.
            left = left.or(implied.as_ref().filter(|_| old.is_object()));
            right = right.or(implied.as_ref().filter(|_| new.is_object()));
            let child = self
                .compare(self.child(shape, name), left, right)
                .map_err(|misfit| misfit.below(&field_element(name)))?;
            out.put(|| field_element(name), child);
        }
        Ok(())
    }

    /// Items that share a key are compared as one.
    fn compare_lists(&self, shape: Shape<'a>, old: &Value, new: &Value, out: &mut Difference) -> Result<(), Misfit> {
        let (left, mut right) = (self.grouped(shape, items(old))?, self.grouped(shape, items(new))?);
        let both: Vec<_> = left.into_iter().map(|(element, left)| (right.remove(&element), element, left)).collect();
        let pairs = both.into_iter().map(|(right, element, left)| (element, left, right.unwrap_or_default()));
        for (element, left, right) in
            pairs.chain(right.into_iter().map(|(element, right)| (element, Group::default(), right)))
        {
            let mut child = match (left.as_slice(), right.as_slice()) {
                ([] | [_], [] | [_]) => self.compare(self.item(shape), left.first().copied(), right.first().copied()),
                ([_, _, ..], [_, _, ..]) => {
                    let mut both = Difference::default();
                    both.modified.member = left != right;
                    Ok(both)
                }
                ([_, _, ..], _) if right.is_empty() => Ok(Difference::default()),
                ([_, _, ..], _) => self.compare(self.item(shape), None, right.first().copied()),
                (_, _) if left.is_empty() => Ok(Difference::default()),
                (_, _) => self.compare(self.item(shape), left.first().copied(), None),
            }
            .map_err(|misfit| misfit.below(&element))?;
            child.removed.member |= left.len() >= 2 && right.len() < 2;
            child.added.member |= right.len() >= 2 && left.len() < 2;
            out.put(|| element, child);
        }
        Ok(())
    }

    /// Lays `over` on `base`. Both fit the schema ([`Typed::fields`] says so).
    pub fn merge(&self, ty: Ty, base: &Value, over: &Value) -> Result<Value, Misfit> {
        let shape = self.shape(ty, over);
        let empty = |value: &Value| match value {
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => true,
        };
        match (shape, base, over) {
            (Shape::Leaf, _, _) => Ok(over.clone()),
            _ if empty(base) && empty(over) => Ok(over.clone()),
            (Shape::Set | Shape::Keyed(..), Value::Array(base), Value::Array(over)) => {
                self.merge_lists(shape, base, over)
            }
            (Shape::Map(_) | Shape::Struct(_), Value::Object(base), Value::Object(over)) => {
                let mut merged = base.clone();
                for (name, value) in over {
                    let value = match base.get(name) {
                        Some(old) => self
                            .merge(self.child(shape, name), old, value)
                            .map_err(|misfit| misfit.below(&field_element(name)))?,
                        None => value.clone(),
                    };
                    merged.insert(name.clone(), value);
                }
                Ok(Value::Object(merged))
            }
            // An explicit null asks for nothing where there are fields.
            (_, base, Value::Null) => Ok(base.clone()),
            _ => Ok(over.clone()),
        }
    }

    /// The order is that of `over`; items that only `base` has stay behind the item they stood behind, as far as that
    /// can be said.
    fn merge_lists(&self, shape: Shape<'a>, base: &[Value], over: &[Value]) -> Result<Value, Misfit> {
        let elements =
            |items: &[Value]| items.iter().map(|item| self.element(shape, item)).collect::<Result<Vec<_>, _>>();
        let (left, right) = (elements(base)?, elements(over)?);
        let applied: BTreeSet<&String> = right.iter().collect();
        // Items that stand twice in `base` are replaced, not merged.
        let counterpart = |element: &String| {
            let mut places = left.iter().zip(base).filter(|(other, _)| *other == element);
            places.next().filter(|_| places.next().is_none()).map(|(_, item)| item)
        };
        let merged = |index: usize| match counterpart(&right[index]) {
            Some(old) => self.merge(self.item(shape), old, &over[index]).map_err(|misfit| misfit.below(&right[index])),
            None => Ok(over[index].clone()),
        };
        let mut shared = right.iter().filter(|element| left.contains(element));
        let mut wanted = shared.next();
        let mut done: BTreeSet<&String> = BTreeSet::new();
        let mut out = Vec::with_capacity(base.len().max(over.len()));
        let (mut l, mut r) = (0, 0);
        while l < left.len() || r < right.len() {
            if let (Some(old), Some(new)) = (left.get(l), right.get(r)) {
                if old == new {
                    out.push(merged(r)?);
                    done.insert(new);
                    (l, r, wanted) = (l + 1, r + 1, shared.next());
                    continue;
                }
                if applied.contains(old) && wanted.is_some_and(|wanted| wanted != old) {
                    l += 1;
                    continue;
                }
            }
            if let Some(old) = left.get(l) {
                if !applied.contains(old) {
                    out.push(base[l].clone());
                    l += 1;
                    continue;
                }
                if done.contains(old) {
                    l += 1;
                }
            }
            if let Some(new) = right.get(r) {
                out.push(merged(r)?);
                done.insert(new);
                if wanted == Some(new) {
                    wanted = shared.next();
                }
                r += 1;
            }
        }
        Ok(Value::Array(out))
    }

    /// Takes the members of `gone` out of `value`. A container that empties stays, empty.
    pub fn remove(&self, ty: Ty, value: &mut Value, gone: &Set) {
        let shape = self.shape(ty, value);
        match (shape, value) {
            (Shape::Leaf, Value::Array(items)) => items.clear(),
            (Shape::Leaf, Value::Object(map)) => map.clear(),
            (Shape::Set | Shape::Keyed(..), Value::Array(items)) => items.retain_mut(|item| {
                let below = self.element(shape, item).ok().and_then(|element| gone.children.get(&element));
                self.keep(self.item(shape), item, below)
            }),
            (Shape::Map(_) | Shape::Struct(_), Value::Object(map)) => map
                .retain(|name, item| self.keep(self.child(shape, name), item, gone.children.get(&field_element(name)))),
            _ => {}
        }
    }

    fn keep(&self, ty: Ty, value: &mut Value, below: Option<&Set>) -> bool {
        match below {
            Some(below) if below.member => return false,
            Some(below) => self.remove(ty, value, below),
            None => {}
        }
        true
    }

    /// Adds every struct field that has members below it.
    pub fn name_fields(&self, ty: Ty, set: &mut Set) {
        for (element, child) in &mut set.children {
            let (ty, named) = self.step(ty, element);
            self.name_fields(ty, child);
            child.member |= named;
        }
    }

    /// The type that a path element leads to, and whether it is a struct's field.
    fn step(&self, ty: Ty, element: &str) -> (Ty, bool) {
        match (ty.map(|ty| self.schema.get(ty)), element.split_once(':')) {
            (Some(Type::Struct(fields)), Some(("f", name))) => {
                fields.field(name).map_or((None, false), |field| (Some(field.ty), true))
            }
            (Some(Type::Map(map)), Some(("f", _))) => (Some(map.value), false),
            (Some(Type::List(list)), Some(("k", _))) => (Some(list.item), false),
            _ => (None, false),
        }
    }

    /// Fits a recorded set to the present schema: of what has become atomic the whole is owned, nothing below it.
    pub fn reconcile(&self, ty: Ty, set: &mut Set) {
        if set.children.is_empty() {
            return;
        }
        let container =
            matches!(ty.map(|ty| self.schema.get(ty)), Some(Type::List(_) | Type::Map(_) | Type::Struct(_)));
        if container && matches!(self.shape(ty, NULL), Shape::Leaf) {
            *set = Set::leaf();
            return;
        }
        for (element, child) in &mut set.children {
            self.reconcile(self.step(ty, element).0, child);
        }
    }
}

fn zero(scalar: Scalar) -> Option<Value> {
    match scalar {
        Scalar::Bool => Some(false.into()),
        Scalar::Int32 | Scalar::Int64 | Scalar::Number => Some(0.into()),
        Scalar::String => Some("".into()),
        Scalar::Time | Scalar::MicroTime | Scalar::Bytes => Some(Value::Null),
        Scalar::IntOrString | Scalar::Quantity | Scalar::Duration => None,
    }
}
