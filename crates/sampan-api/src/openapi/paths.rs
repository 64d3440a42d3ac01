//! The operations of each resource, in the shape both versions of OpenAPI are written from.

use serde_json::{Map, Value, json};

use super::schemas::{META, builtin_schema, gvk_json, is_options, kind_name};
use super::{Describe, Version};
use crate::kind::{Gvk, Kind, Kinds, Subresource, type_name};
use crate::schema::{Scalar, Type};

/// Media types of objects.
const OBJECTS: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const LISTS: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const TEXT: &[&str] = &["text/plain"];
const ANY: &[&str] = &["*/*"];

/// One path and what can be done there.
pub struct Path {
    pub path: String,
    /// Of every operation: the names in the path, `pretty`.
    pub parameters: Vec<Parameter>,
    pub operations: Vec<Operation>,
}

#[derive(Clone)]
pub struct Parameter {
    name: String,
    /// `path` or `query`.
    place: &'static str,
    ty: &'static str,
    /// The type and field whose description it is.
    described_by: (String, String),
}

pub struct Operation {
    method: &'static str,
    /// `x-kubernetes-action`; empty for discovery.
    action: &'static str,
    id: String,
    description: String,
    tag: String,
    gvk: Option<Gvk>,
    parameters: Vec<Parameter>,
    body: Option<Body>,
    produces: &'static [&'static str],
    codes: &'static [&'static str],
    /// A definition, or a plain string.
    answer: Option<String>,
}

struct Body {
    definition: String,
    required: bool,
    consumes: &'static [&'static str],
}

fn query(name: &str, ty: &'static str, options: &str) -> Parameter {
    let described_by = (format!("{META}.{options}"), name.to_owned());
    Parameter { name: name.into(), place: "query", ty, described_by }
}

fn in_path(name: &str) -> Parameter {
    let described_by = (format!("{META}.ObjectMeta"), name.to_owned());
    Parameter { name: name.into(), place: "path", ty: "string", described_by }
}

fn write_parameters(options: &str) -> Vec<Parameter> {
    ["dryRun", "fieldManager", "fieldValidation"].map(|name| query(name, "string", options)).to_vec()
}

fn list_parameters() -> Vec<Parameter> {
    [
        ("allowWatchBookmarks", "boolean"),
        ("continue", "string"),
        ("fieldSelector", "string"),
        ("labelSelector", "string"),
        ("limit", "integer"),
        ("resourceVersion", "string"),
        ("resourceVersionMatch", "string"),
        ("sendInitialEvents", "boolean"),
        ("timeoutSeconds", "integer"),
        ("watch", "boolean"),
    ]
    .map(|(name, ty)| query(name, ty, "ListOptions"))
    .to_vec()
}

fn delete_parameters() -> Vec<Parameter> {
    [
        ("dryRun", "string"),
        ("gracePeriodSeconds", "integer"),
        ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
        ("orphanDependents", "boolean"),
        ("propagationPolicy", "string"),
    ]
    .map(|(name, ty)| query(name, ty, "DeleteOptions"))
    .to_vec()
}

/// `rbac.authorization.k8s.io` → `RbacAuthorization`; the core group is `Core`.
fn group_words(group: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    group.split(['.', '-']).map(capitalized).collect()
}

fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn tag(group: &str, version: &str) -> String {
    let words = group_words(group);
    let mut chars = words.chars();
    let words: String = chars.next().into_iter().flat_map(char::to_lowercase).chain(chars).collect();
    if version.is_empty() { words } else { format!("{words}_{version}") }
}

/// The operations of one kind.
pub fn of_kind(kinds: &Kinds, kind: &Kind) -> Vec<Path> {
    let root = if kind.gvk.group.is_empty() {
        format!("/api/{}", kind.gvk.version)
    } else {
        format!("/apis/{}/{}", kind.gvk.group, kind.gvk.version)
    };
    let can = |verb: &str| kind.verbs.iter().any(|one| one == verb);
    let maker = Maker { kinds, kind };
    let (scope, place) =
        if kind.namespaced() { ("/namespaces/{namespace}", vec![in_path("namespace")]) } else { ("", vec![]) };
    let pretty = || query("pretty", "string", "ListOptions");
    let mut paths = Vec::new();
    if kind.namespaced() && can("list") {
        let operation = maker.list(format!("{}ForAllNamespaces", kind.gvk.kind));
        paths.push(Path {
            path: format!("{root}/{}", kind.resource),
            parameters: vec![pretty()],
            operations: vec![operation],
        });
    }
    let collection = format!("{root}{scope}/{}", kind.resource);
    let operations = maker.collection();
    if !operations.is_empty() {
        let parameters = place.iter().cloned().chain([pretty()]).collect();
        paths.push(Path { path: collection.clone(), parameters, operations });
    }
    let named: Vec<Parameter> = [in_path("name")].into_iter().chain(place).collect();
    let with_pretty = || named.iter().cloned().chain([pretty()]).collect::<Vec<_>>();
    let operations = maker.item();
    if !operations.is_empty() {
        paths.push(Path { path: format!("{collection}/{{name}}"), parameters: with_pretty(), operations });
    }
    for subresource in &kind.subresources {
        let path = format!("{collection}/{{name}}/{}", subresource.name);
        if !is_options(&subresource.gvk) {
            let mut parameters = with_pretty();
            if subresource.name == "log" {
                parameters.extend(maker.options("io.k8s.api.core.v1.PodLogOptions"));
            }
            paths.push(Path { path, parameters, operations: maker.subresource(subresource) });
            continue;
        }
        let options = maker.options(&type_name(&subresource.gvk));
        let parameters: Vec<Parameter> = named.iter().cloned().chain(options).collect();
        let operations = maker.connect(subresource, "");
        paths.push(Path { path: path.clone(), parameters: parameters.clone(), operations });
        if subresource.name == "proxy" {
            let parameters = parameters.into_iter().chain([in_path("path")]).collect();
            let operations = maker.connect(subresource, "WithPath");
            paths.push(Path { path: format!("{path}/{{path}}"), parameters, operations });
        }
    }
    paths
}

/// `/apis/`, `/apis/apps/`, `/apis/apps/v1/`: discovery.
pub fn of_discovery(path: &str, group: &str, version: &str, answer: &str) -> Path {
    let (id, tag) = match (path.matches('/').count(), version) {
        (_, version) if !version.is_empty() => {
            (format!("get{}{}APIResources", group_words(group), capitalized(version)), tag(group, version))
        }
        (2, _) if answer == "APIVersions" => ("getCoreAPIVersions".into(), "core".into()),
        (2, _) => ("getAPIVersions".into(), "apis".into()),
        _ => (format!("get{}APIGroup", group_words(group)), tag(group, "")),
    };
    let operation = Operation {
        method: "get",
        action: "",
        id,
        description: format!("get {answer}"),
        tag,
        gvk: None,
        parameters: Vec::new(),
        body: None,
        produces: OBJECTS,
        codes: &["200"],
        answer: Some(format!("{META}.{answer}")),
    };
    Path { path: path.into(), parameters: Vec::new(), operations: vec![operation] }
}

struct Maker<'a> {
    kinds: &'a Kinds,
    kind: &'a Kind,
}

impl Maker<'_> {
    fn can(&self, verb: &str) -> bool {
        self.kind.verbs.iter().any(|one| one == verb)
    }

    /// `CoreV1`
    fn words(&self) -> String {
        format!("{}{}", group_words(&self.kind.gvk.group), capitalized(&self.kind.gvk.version))
    }

    /// `NamespacedPod`, `Node`
    fn noun(&self) -> String {
        format!("{}{}", if self.kind.namespaced() { "Namespaced" } else { "" }, self.kind.gvk.kind)
    }

    fn operation(
        &self,
        method: &'static str,
        action: &'static str,
        verb: &str,
        noun: &str,
        about: String,
    ) -> Operation {
        Operation {
            method,
            action,
            id: format!("{verb}{}{noun}", self.words()),
            description: about,
            tag: tag(&self.kind.gvk.group, &self.kind.gvk.version),
            gvk: Some(self.kind.gvk.clone()),
            parameters: Vec::new(),
            body: None,
            produces: OBJECTS,
            codes: &["200"],
            answer: Some(kind_name(self.kind)),
        }
    }

    fn body(&self, definition: String) -> Option<Body> {
        Some(Body { definition, required: true, consumes: ANY })
    }

    fn list(&self, noun: String) -> Operation {
        Operation {
            parameters: list_parameters(),
            produces: LISTS,
            answer: Some(format!("{}List", kind_name(self.kind))),
            ..self.operation(
                "get",
                "list",
                "list",
                &noun,
                format!("list or watch objects of kind {}", self.kind.gvk.kind),
            )
        }
    }

    fn collection(&self) -> Vec<Operation> {
        let (noun, kind) = (self.noun(), &self.kind.gvk.kind);
        let mut operations = Vec::new();
        if self.can("list") {
            operations.push(self.list(noun.clone()));
        }
        if self.can("create") {
            operations.push(Operation {
                parameters: write_parameters("CreateOptions"),
                body: self.body(kind_name(self.kind)),
                codes: &["200", "201", "202"],
                ..self.operation("post", "post", "create", &noun, format!("create a {kind}"))
            });
        }
        if self.can("deletecollection") {
            let parameters = delete_parameters().into_iter().chain(
                list_parameters()
                    .into_iter()
                    .filter(|one| !["watch", "allowWatchBookmarks"].contains(&one.name.as_str())),
            );
            operations.push(Operation {
                parameters: parameters.collect(),
                body: Some(Body { definition: format!("{META}.DeleteOptions"), required: false, consumes: ANY }),
                answer: Some(format!("{META}.Status")),
                ..self.operation(
                    "delete",
                    "deletecollection",
                    "delete",
                    &format!("Collection{noun}"),
                    format!("delete collection of {kind}"),
                )
            });
        }
        operations
    }

    fn item(&self) -> Vec<Operation> {
        let (noun, kind) = (self.noun(), &self.kind.gvk.kind);
        let mut operations = Vec::new();
        let definition = kind_name(self.kind);
        if self.can("get") {
            operations.push(self.operation("get", "get", "read", &noun, format!("read the specified {kind}")));
        }
        if self.can("update") {
            operations.push(self.replace(&noun, definition.clone(), &self.kind.gvk));
        }
        if self.can("delete") {
            operations.push(Operation {
                parameters: delete_parameters(),
                body: Some(Body { definition: format!("{META}.DeleteOptions"), required: false, consumes: ANY }),
                codes: &["200", "202"],
                answer: Some(if self.kind.returns_deleted() { definition.clone() } else { format!("{META}.Status") }),
                ..self.operation("delete", "delete", "delete", &noun, format!("delete a {kind}"))
            });
        }
        if self.can("patch") {
            operations.push(self.patch(&noun, definition, &self.kind.gvk));
        }
        operations
    }

    fn replace(&self, noun: &str, definition: String, gvk: &Gvk) -> Operation {
        Operation {
            parameters: write_parameters("UpdateOptions"),
            body: self.body(definition.clone()),
            codes: &["200", "201"],
            gvk: Some(gvk.clone()),
            answer: Some(definition),
            ..self.operation("put", "put", "replace", noun, format!("replace the specified {}", gvk.kind))
        }
    }

    fn patch(&self, noun: &str, definition: String, gvk: &Gvk) -> Operation {
        let mut parameters = write_parameters("PatchOptions");
        parameters.push(query("force", "boolean", "PatchOptions"));
        Operation {
            parameters,
            body: Some(Body { definition: format!("{META}.Patch"), required: true, consumes: PATCHES }),
            codes: &["200", "201"],
            gvk: Some(gvk.clone()),
            answer: Some(definition),
            ..self.operation("patch", "patch", "patch", noun, format!("partially update the specified {}", gvk.kind))
        }
    }

    fn subresource(&self, subresource: &Subresource) -> Vec<Operation> {
        let same = subresource.gvk == self.kind.gvk;
        let definition = if same { kind_name(self.kind) } else { type_name(&subresource.gvk) };
        let noun = format!("{}{}", self.noun(), capitalized(&subresource.name));
        let (gvk, kind) = (&subresource.gvk, &self.kind.gvk.kind);
        let verb = |verb: &String| match verb.as_str() {
            "get" if subresource.name == "log" => Some(Operation {
                produces: TEXT,
                answer: None,
                ..self.operation("get", "get", "read", &noun, format!("read log of the specified {kind}"))
            }),
            "get" => Some(Operation {
                gvk: Some(gvk.clone()),
                answer: Some(definition.clone()),
                ..self.operation(
                    "get",
                    "get",
                    "read",
                    &noun,
                    format!("read {} of the specified {kind}", subresource.name),
                )
            }),
            "update" => Some(self.replace(&noun, definition.clone(), gvk)),
            "patch" => Some(self.patch(&noun, definition.clone(), gvk)),
            "create" => Some(Operation {
                parameters: write_parameters("CreateOptions"),
                body: self.body(definition.clone()),
                codes: &["200", "201", "202"],
                gvk: Some(gvk.clone()),
                answer: Some(definition.clone()),
                ..self.operation("post", "post", "create", &noun, format!("create {} of a {kind}", subresource.name))
            }),
            _ => None,
        };
        subresource.verbs.iter().filter_map(verb).collect()
    }

    fn connect(&self, subresource: &Subresource, suffix: &str) -> Vec<Operation> {
        let methods: &[&'static str] = if subresource.name == "proxy" {
            &["get", "put", "post", "delete", "options", "head", "patch"]
        } else {
            &["get", "post"]
        };
        let operation = |method: &&'static str| {
            let noun = format!("{}{}{}{suffix}", capitalized(method), self.noun(), capitalized(&subresource.name));
            let about =
                format!("connect {} requests to {} of {}", method.to_uppercase(), subresource.name, self.kind.gvk.kind);
            Operation {
                gvk: Some(subresource.gvk.clone()),
                produces: ANY,
                answer: None,
                ..self.operation(method, "connect", "connect", &noun, about)
            }
        };
        methods.iter().map(operation).collect()
    }

    /// The fields of an options type as query parameters.
    fn options(&self, name: &str) -> Vec<Parameter> {
        let Some(schema) = builtin_schema(self.kinds) else { return Vec::new() };
        let Some(Type::Struct(fields)) = schema.named(name).map(|ty| schema.get(ty)) else { return Vec::new() };
        // A time is no plain query parameter.
        let plain = |ty| !matches!(schema.get(ty), Type::Scalar(Scalar::Time));
        let fields = fields.fields.iter().filter(|field| !["kind", "apiVersion"].contains(&field.name.as_str()));
        let fields = fields.filter(|field| plain(field.ty));
        let parameter = |ty: &Type| match ty {
            Type::Scalar(Scalar::Bool) => "boolean",
            Type::Scalar(Scalar::Int32 | Scalar::Int64) => "integer",
            _ => "string",
        };
        fields
            .map(|field| Parameter {
                name: field.name.clone(),
                place: "query",
                ty: match schema.get(field.ty) {
                    Type::List(list) => parameter(schema.get(list.item)),
                    ty => parameter(ty),
                },
                described_by: (name.to_owned(), field.name.clone()),
            })
            .collect()
    }
}

impl Parameter {
    fn write(&self, version: Version, describe: Describe<'_>) -> Value {
        let mut body = json!({"name": self.name, "in": self.place});
        if version == Version::V3 {
            body["schema"] = json!({"type": self.ty, "uniqueItems": true});
        } else {
            body["type"] = self.ty.into();
            body["uniqueItems"] = true.into();
        }
        if self.place == "path" {
            body["required"] = true.into();
        }
        if let Some(text) = describe(&self.described_by.0, &self.described_by.1) {
            body["description"] = text.into();
        }
        body
    }
}

impl Path {
    pub fn write(&self, version: Version, describe: Describe<'_>) -> Value {
        let operations = self.operations.iter();
        let mut item: Map<String, Value> =
            operations.map(|operation| (operation.method.to_owned(), operation.write(version, describe))).collect();
        if !self.parameters.is_empty() {
            let parameters = self.parameters.iter().map(|parameter| parameter.write(version, describe));
            item.insert("parameters".into(), parameters.collect());
        }
        Value::Object(item)
    }
}

impl Operation {
    fn write(&self, version: Version, describe: Describe<'_>) -> Value {
        let mut parameters: Vec<Value> = self.parameters.iter().map(|one| one.write(version, describe)).collect();
        let schema = match &self.answer {
            Some(definition) => version.reference(definition),
            None => json!({"type": "string"}),
        };
        let answer = |code: &str| {
            let text = match code {
                "201" => "Created",
                "202" => "Accepted",
                _ => "OK",
            };
            match version {
                Version::V2 => json!({"description": text, "schema": schema}),
                Version::V3 => {
                    let content = self.produces.iter().map(|media| ((*media).to_owned(), json!({"schema": schema})));
                    json!({"description": text, "content": content.collect::<Map<_, _>>()})
                }
            }
        };
        let mut responses: Map<String, Value> =
            self.codes.iter().map(|code| ((*code).to_owned(), answer(code))).collect();
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        let mut operation = json!({
            "description": self.description, "operationId": self.id, "tags": [self.tag], "responses": responses,
        });
        match (&self.body, version) {
            (Some(body), Version::V2) => {
                let mut parameter =
                    json!({"name": "body", "in": "body", "schema": version.reference(&body.definition)});
                if body.required {
                    parameter["required"] = true.into();
                }
                parameters.insert(0, parameter);
            }
            (Some(body), Version::V3) => {
                let schema = json!({"schema": version.reference(&body.definition)});
                let content: Map<String, Value> =
                    body.consumes.iter().map(|media| ((*media).to_owned(), schema.clone())).collect();
                operation["requestBody"] = json!({"content": content});
                if body.required {
                    operation["requestBody"]["required"] = true.into();
                }
            }
            (None, _) => {}
        }
        if version == Version::V2 {
            operation["consumes"] = self.body.as_ref().map_or(ANY, |body| body.consumes).into();
            operation["produces"] = self.produces.into();
            operation["schemes"] = json!(["https"]);
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if !self.action.is_empty() {
            operation["x-kubernetes-action"] = self.action.into();
        }
        if let Some(gvk) = &self.gvk {
            operation["x-kubernetes-group-version-kind"] = gvk_json(gvk);
        }
        operation
    }
}
