//! Writes `schema/types.txt` and `schema/kinds.txt`: the facts of the published API in a compact form that diffs well.
//! The format is described in `schema/README.md`. Descriptions are left out on purpose.
//!
//! What the reader derives (wire type, cardinality, when a protobuf field is written) is not in the files; this program
//! checks that the derivation agrees with the published columns and refuses to write otherwise.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::tsv::{Row, Table};

const HEADER: &str = "# Made by `cargo xtask schema` from the published Kubernetes API (Apache-2.0). Do not edit.\n";

pub fn generate(data: &Path, target: &Path) -> Result<()> {
    let types = types(data)?;
    std::fs::write(target.join("types.txt"), types).context("writing types.txt")?;
    let kinds = kinds(&Table::read(&data.join("resources.tsv"))?)?;
    std::fs::write(target.join("kinds.txt"), kinds).context("writing kinds.txt")?;
    Ok(())
}

fn types(data: &Path) -> Result<String> {
    let types = Table::read(&data.join("types.tsv"))?;
    let fields = Table::read(&data.join("fields.tsv"))?;
    let enums = Table::read(&data.join("enums.tsv"))?;

    let mut fields_of: HashMap<(&str, &str), Vec<Row<'_>>> = HashMap::new();
    for row in fields.rows() {
        fields_of.entry((row.get("package"), row.get("type"))).or_default().push(row);
    }
    let closed = closed_enums(&types, &enums);
    let mut packages: BTreeMap<&str, Vec<Row<'_>>> = BTreeMap::new();
    for row in types.rows().filter(|row| row.get("kind") == "struct" || is_wrapper(*row, &fields_of)) {
        packages.entry(row.get("package")).or_default().push(row);
    }

    let wrappers: Vec<String> = types
        .rows()
        .filter(|row| is_wrapper(*row, &fields_of))
        .map(|row| format!("{}.{}", row.get("package"), row.get("type")))
        .collect();

    let mut out = String::from(HEADER);
    for (package, rows) in packages {
        writeln!(out, "\npackage {} {package}", short_package(package))?;
        for row in rows {
            let name = row.get("type");
            out.push_str(name);
            if row.get("tags").split(' ').any(|tag| tag == "structType=atomic") {
                out.push_str(" atomic");
            }
            if is_wrapper(row, &fields_of) {
                out.push_str(" strings");
            }
            out.push('\n');
            for field in fields_of.get(&(package, name)).into_iter().flatten() {
                if !matches!(field.get("inline"), "hidden" | "self") {
                    out.push_str(
                        &field_line(*field, package, &closed, &wrappers)
                            .with_context(|| format!("{package}.{name}"))?,
                    );
                }
            }
        }
    }
    Ok(out)
}

/// An array of strings in JSON and a message in protobuf.
fn is_wrapper(row: Row<'_>, fields: &HashMap<(&str, &str), Vec<Row<'_>>>) -> bool {
    fields
        .get(&(row.get("package"), row.get("type")))
        .is_some_and(|fields| fields.iter().any(|field| field.get("inline") == "self"))
}

/// `core.v1` for `io.k8s.api.core.v1`.
fn short_package(package: &str) -> &str {
    let cuts = [
        "io.k8s.api.",
        "io.k8s.apimachinery.pkg.apis.",
        "io.k8s.apimachinery.pkg.",
        "io.k8s.apiextensions-apiserver.pkg.apis.",
        "io.k8s.kube-aggregator.pkg.apis.",
        "io.k8s.metrics.pkg.apis.",
    ];
    cuts.iter().find_map(|cut| package.strip_prefix(cut)).unwrap_or(package)
}

/// `core.v1.Pod`, or `Pod` inside its own package.
fn short_name(full: &str, here: &str) -> String {
    match full.rsplit_once('.') {
        Some((package, name)) if package == here => name.into(),
        Some((package, name)) => format!("{}.{name}", short_package(package)),
        None => full.into(),
    }
}

/// Enumerations that the server enforces by declaration: full type name → sorted values.
fn closed_enums<'a>(types: &'a Table, enums: &'a Table) -> HashMap<String, Vec<&'a str>> {
    let mut closed: HashMap<String, Vec<&str>> = types
        .rows()
        .filter(|row| row.get("tags").contains("k8s:enum") && !row.get("tags").contains("k8s:alpha"))
        .map(|row| (format!("{}.{}", row.get("package"), row.get("type")), Vec::new()))
        .collect();
    for row in enums.rows() {
        if let Some(values) = closed.get_mut(&format!("{}.{}", row.get("package"), row.get("type"))) {
            values.push(row.get("value"));
        }
    }
    closed.values_mut().for_each(|values| values.sort_unstable());
    closed
}

fn field_line(row: Row<'_>, package: &str, closed: &HashMap<String, Vec<&str>>, wrappers: &[String]) -> Result<String> {
    let (json_type, go) = (row.get("json_type"), row.get("go_ref"));
    let number = row.get("proto_number");
    if row.get("inline") == "inline" {
        ensure!(number.is_empty() || row.get("proto_emit") == "always", "an inline message that may be absent");
        ensure!(!go.starts_with('*'), "an inline pointer");
        return Ok(format!(" ~ {} {number}\n", short_name(json_type, package)).replace(" \n", "\n"));
    }
    check_derived(row).with_context(|| format!("field {:?}", row.get("json")))?;

    let ty = wrapped(go, package, wrappers).unwrap_or_else(|| short_type(json_type, package));
    let pointer = if go.starts_with('*') { "*" } else { "" };
    let mut line = format!(" {} {pointer}{ty}", row.get("json"));
    let mut put = |text: &str| {
        line.push(' ');
        line.push_str(text);
    };
    put(if number.is_empty() { "-" } else { number });
    match row.get("omitempty") {
        "omitempty" => {}
        "" => put("keep"),
        _ => put("omitzero"),
    }
    let (presence, omitempty) = (row.get("presence"), row.get("omitempty"));
    if presence == "required" || (presence.is_empty() && omitempty.is_empty()) {
        put("required");
    }
    match row.get("list_type") {
        "set" => put("set"),
        "map" => put(&format!("map={}", row.get("list_map_keys").replace(';', ","))),
        _ => {}
    }
    if !row.get("map_or_struct_type").is_empty() {
        put(row.get("map_or_struct_type"));
    }
    if !row.get("patch_strategy").is_empty() {
        put(&format!("patch={}/{}", row.get("patch_strategy"), row.get("patch_merge_key")));
    }
    if !row.get("default").is_empty() {
        put(&format!("default={}", row.get("default").replace(": ", ":")));
    }
    if !row.get("feature_gate").is_empty() {
        put(&format!("gate={}", row.get("feature_gate").replace(' ', "")));
    }
    if let Some(values) = closed.get(go.trim_start_matches('*')) {
        put(&format!("enum={}", values.join(",")));
    }
    for rule in enforced_rules(row.get("declarative_validation")) {
        put(&format!("rule:{rule}"));
    }
    let go_name = go_name(go);
    if go_name != derived_go_name(json_type) {
        put(&format!("go={go_name}"));
    }
    line.push('\n');
    Ok(line)
}

/// What the reader derives from the JSON type must be what upstream publishes.
fn check_derived(row: Row<'_>) -> Result<()> {
    if row.get("proto_number").is_empty() {
        return Ok(());
    }
    let json_type = row.get("json_type");
    let wrapper = row.get("go_ref").ends_with(".Verbs");
    let many = (json_type.starts_with("[]") || json_type.starts_with("map[")) && !wrapper;
    let cardinality = match json_type {
        _ if wrapper => "optional",
        ty if ty.starts_with("[]") => "repeated",
        ty if ty.starts_with("map[") => "map",
        _ => "optional",
    };
    let wire = match json_type.trim_start_matches("[]") {
        "boolean" | "int32" | "int64" => "varint",
        "number" => "fixed64",
        _ => "bytes",
    };
    let pointer = row.get("go_ref").starts_with('*') || json_type == "bytes" || wrapper;
    let emit = match (many, pointer) {
        (true, _) => "each",
        (_, true) => "set",
        _ => "always",
    };
    ensure!(row.get("proto_cardinality") == cardinality, "cardinality {}", row.get("proto_cardinality"));
    ensure!(row.get("proto_wire") == wire, "wire {}", row.get("proto_wire"));
    ensure!(row.get("proto_emit") == emit, "emit {}", row.get("proto_emit"));
    Ok(())
}

/// The named type where JSON shows only its array of strings.
fn wrapped(go: &str, package: &str, wrappers: &[String]) -> Option<String> {
    let (shape, name) = match go.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
        Some((_, value)) => ("{}", value),
        None => ("", go),
    };
    wrappers.iter().any(|wrapper| wrapper == name).then(|| format!("{shape}{}", short_name(name, package)))
}

fn short_type(json_type: &str, package: &str) -> String {
    if let Some(item) = json_type.strip_prefix("[]") {
        return format!("[]{}", short_type(item, package));
    }
    if let Some(value) = json_type.strip_prefix("map[string]") {
        return format!("{{}}{}", short_type(value, package));
    }
    match json_type.rsplit('.').next().unwrap_or_default() {
        "boolean" => "bool".into(),
        "Quantity" | "QuantityValue" => "quantity".into(),
        "Time" => "time".into(),
        "MicroTime" => "microtime".into(),
        "Duration" => "duration".into(),
        "IntOrString" => "intorstring".into(),
        "RawExtension" | "FieldsV1" | "JSON" => "any".into(),
        _ => short_name(json_type, package),
    }
}

/// The type as Go prints it in an error: `v1.RestartPolicy`, `[]v1.Container`.
fn go_name(go: &str) -> String {
    let go = go.trim_start_matches('*');
    if let Some(item) = go.strip_prefix("[]") {
        let star = if item.starts_with('*') { "*" } else { "" };
        return if item == "byte" { "[]uint8".into() } else { format!("[]{star}{}", go_name(item)) };
    }
    if let Some((key, value)) = go.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
        return format!("map[{}]{}", go_name(key), go_name(value));
    }
    let mut segments: Vec<&str> = go.rsplitn(3, '.').collect();
    segments.truncate(2);
    segments.reverse();
    segments.join(".")
}

/// The same, as the reader derives it from the JSON type.
fn derived_go_name(json_type: &str) -> String {
    if let Some(item) = json_type.strip_prefix("[]") {
        return format!("[]{}", derived_go_name(item));
    }
    if let Some(value) = json_type.strip_prefix("map[string]") {
        return format!("map[string]{}", derived_go_name(value));
    }
    match json_type {
        "boolean" => "bool".into(),
        "number" => "float64".into(),
        "bytes" => "[]uint8".into(),
        other => go_name(other),
    }
}

/// Declarative rules of the stages that v1.37 enforces (stable and beta), without those that say nothing about values.
fn enforced_rules(tags: &str) -> Vec<String> {
    let silent = ["optional", "opaqueType", "listType", "listMapKey"];
    split_tags(tags)
        .into_iter()
        .filter_map(|tag| {
            let rule = if tag.starts_with("k8s:alpha(") {
                return None;
            } else if let Some(rest) = tag.strip_prefix("k8s:beta(") {
                rest.split_once(")=+k8s:")?.1.to_owned()
            } else {
                tag.strip_prefix("k8s:")?.to_owned()
            };
            let name = rule.split(['=', '(']).next().unwrap_or_default().to_owned();
            (!silent.contains(&name.as_str())).then(|| rule.replace("+k8s:", "").replace(' ', ""))
        })
        .collect()
}

/// Tags are separated by spaces, but arguments in parentheses hold spaces too.
fn split_tags(tags: &str) -> Vec<String> {
    let (mut depth, mut out, mut current) = (0_i32, Vec::new(), String::new());
    for c in tags.chars() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if c == ' ' && depth == 0 {
            out.push(std::mem::take(&mut current));
        } else {
            current.push(c);
        }
    }
    out.push(current);
    out.retain(|tag| !tag.is_empty());
    out
}

/// Groups in the order of upstream's discovery documents; within a group the published order is kept.
const GROUPS: [&str; 24] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "storagemigration.k8s.io",
    "lifecycle.k8s.io",
];

fn kinds(resources: &Table) -> Result<String> {
    let mut out = String::from(HEADER);
    for row in resources.rows() {
        ensure!(GROUPS.contains(&row.get("group")), "group {:?} has no place in discovery", row.get("group"));
    }
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    for group in GROUPS {
        for row in resources.rows().filter(|row| row.get("group") == group && row.get("served_by_default") == "yes") {
            let cells =
                ["group", "version", "resource", "scope", "kind", "verbs", "singular", "short_names", "categories"];
            let cells: Vec<String> = cells.iter().map(|cell| or_dash(row.get(cell))).collect();
            writeln!(out, "{}", cells.join(" "))?;
        }
    }
    Ok(out)
}
