//! OpenAPI documents of what is served: version 2 in one, version 3 one a group version.
//!
//! A document is megabytes as text and ten times that as a tree, so it is written piece by piece and kept by nobody
//! here. Descriptions come from outside. The deprecated `/watch/` paths are left out.

mod paths;
mod proto;
mod schemas;

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::kind::{Kind, Kinds};
use paths::{Path, of_discovery, of_kind};
use schemas::{Definitions, is_custom};

/// The description of a type (field ``) or of one of its fields.
pub type Describe<'a> = &'a dyn Fn(&str, &str) -> Option<&'a str>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V2,
    V3,
}

impl Version {
    fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// The documents of one snapshot of kinds.
#[derive(Clone, Copy)]
pub struct Documents<'a> {
    pub kinds: &'a Kinds,
    /// The server's version, `v1.37.0`.
    pub version: &'a str,
    pub describe: Describe<'a>,
}

/// A part of the API with a document of its own: `api/v1`, `apis/apps/v1`, or discovery alone: `api`, `apis/apps`.
struct Part<'a> {
    /// Without a leading slash.
    name: String,
    group: &'a str,
    /// Empty for discovery alone.
    version: &'a str,
}

impl<'a> Part<'a> {
    fn has(&self, kind: &Kind) -> bool {
        !self.version.is_empty() && (kind.gvk.group.as_str(), kind.gvk.version.as_str()) == (self.group, self.version)
    }

    fn discovery(&self) -> Path {
        let answer = match (self.name.as_str(), self.version) {
            ("api", _) => "APIVersions",
            ("apis", _) => "APIGroupList",
            (_, "") => "APIGroup",
            _ => "APIResourceList",
        };
        of_discovery(&format!("/{}/", self.name), self.group, self.version, answer)
    }
}

impl<'a> Documents<'a> {
    /// In discovery order.
    fn parts(&self) -> Vec<Part<'a>> {
        let part = |name: String, group: &'a str, version: &'a str| Part { name, group, version };
        let mut parts = vec![part("api".into(), "", ""), part("apis".into(), "", "")];
        for kind in &self.kinds.all {
            let (group, version) = (kind.gvk.group.as_str(), kind.gvk.version.as_str());
            let root = if group.is_empty() { "api".into() } else { format!("apis/{group}") };
            for (name, version) in [(root.clone(), ""), (format!("{root}/{version}"), version)] {
                if !parts.iter().any(|part| part.name == name) {
                    parts.push(part(name, group, version));
                }
            }
        }
        parts
    }

    /// `/openapi/v2` as JSON.
    pub fn v2(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut definitions = Definitions::default();
        definitions.add_common(self.kinds, &["APIGroup", "APIGroupList", "APIResourceList", "APIVersions"]);
        definitions.add_common(self.kinds, &["DeleteOptions", "Patch", "Status"]);
        for kind in &self.kinds.all {
            definitions.add_kind(self.kinds, kind);
        }
        write!(out, "{{\"swagger\":\"2.0\",\"info\":{},\"paths\":", self.info())?;
        let parts = self.parts();
        let discovery = parts.iter().map(Part::discovery);
        let resources = self.kinds.all.iter().flat_map(|kind| of_kind(self.kinds, kind));
        self.write_paths(Version::V2, discovery.chain(resources), out)?;
        out.write_all(b",\"definitions\":")?;
        self.write_definitions(Version::V2, &definitions, out)?;
        let security = json!({"BearerToken": bearer_token()});
        write!(out, ",\"securityDefinitions\":{security},\"security\":[{{\"BearerToken\":[]}}]}}")
    }

    /// `/openapi/v2` in protobuf.
    pub fn v2_proto(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut json = Vec::new();
        self.v2(&mut json)?;
        out.write_all(&proto::encode(&json)?)
    }

    /// `/openapi/v3`: where the documents are. The hash in an address changes with the document, so that clients may
    /// keep what they fetched from it.
    pub fn v3_index(&self) -> Value {
        let entry = |part: &Part<'_>| {
            let address = format!("/openapi/v3/{}?hash={:016X}", part.name, self.hash(part));
            (part.name.clone(), json!({"serverRelativeURL": address}))
        };
        json!({"paths": self.parts().iter().map(entry).collect::<Map<_, _>>()})
    }

    /// The document of one part (`apis/apps/v1`) of version 3. False when there is no such part; then nothing is
    /// written.
    pub fn v3(&self, name: &str, out: &mut dyn Write) -> io::Result<bool> {
        match self.parts().iter().find(|part| part.name == name) {
            Some(part) => self.write_part(part, out).map(|()| true),
            None => Ok(false),
        }
    }

    fn write_part(&self, part: &Part<'_>, out: &mut dyn Write) -> io::Result<()> {
        let mut definitions = Definitions::default();
        let common: &[&str] = match (part.name.as_str(), part.version) {
            ("api", _) => &["APIVersions"],
            ("apis", _) => &["APIGroupList"],
            (_, "") => &["APIGroup"],
            _ => &["APIResourceList", "DeleteOptions", "Patch", "Status"],
        };
        definitions.add_common(self.kinds, common);
        let own = || self.kinds.all.iter().filter(|kind| part.has(kind));
        for kind in own() {
            definitions.add_kind(self.kinds, kind);
        }
        write!(out, "{{\"openapi\":\"3.0.0\",\"info\":{},\"paths\":", self.info())?;
        let paths = std::iter::once(part.discovery()).chain(own().flat_map(|kind| of_kind(self.kinds, kind)));
        self.write_paths(Version::V3, paths, out)?;
        out.write_all(b",\"components\":{\"schemas\":")?;
        self.write_definitions(Version::V3, &definitions, out)?;
        let security = json!({"BearerToken": bearer_token()});
        write!(out, ",\"securitySchemes\":{security}}}}}")
    }

    fn info(&self) -> Value {
        json!({"title": "Kubernetes", "version": self.version})
    }

    fn write_paths(&self, version: Version, paths: impl Iterator<Item = Path>, out: &mut dyn Write) -> io::Result<()> {
        let mut object = Object::open(out)?;
        for path in paths {
            object.entry(&path.path, &path.write(version, self.describe))?;
        }
        object.close()
    }

    fn write_definitions(&self, version: Version, definitions: &Definitions, out: &mut dyn Write) -> io::Result<()> {
        let mut object = Object::open(out)?;
        definitions.write(version, self.describe, |name, body| object.entry(name, &body))?;
        object.close()
    }

    /// Built-in kinds change with the server's version alone; what custom resources are is in their document.
    fn hash(&self, part: &Part<'_>) -> u64 {
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        let own = || self.kinds.all.iter().filter(|kind| part.has(kind));
        let written = if own().any(|kind| is_custom(kind)) {
            self.write_part(part, &mut hash)
        } else {
            let names = own().map(|kind| format!("{}{:?}{:?}", kind.resource, kind.verbs, kind.subresources));
            write!(hash, "{}{}{}", self.version, part.name, names.collect::<String>())
        };
        debug_assert!(written.is_ok(), "hashing can't fail");
        hash.0
    }
}

fn bearer_token() -> Value {
    json!({
        "type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication",
    })
}

/// A JSON object written one entry at a time.
struct Object<'a> {
    out: &'a mut dyn Write,
    first: bool,
}

impl<'a> Object<'a> {
    fn open(out: &'a mut dyn Write) -> io::Result<Self> {
        out.write_all(b"{")?;
        Ok(Self { out, first: true })
    }

    fn entry(&mut self, key: &str, value: &Value) -> io::Result<()> {
        if !std::mem::take(&mut self.first) {
            self.out.write_all(b",")?;
        }
        write!(self.out, "{}:", Value::from(key))?;
        serde_json::to_writer(&mut *self.out, value)?;
        Ok(())
    }

    fn close(self) -> io::Result<()> {
        self.out.write_all(b"}")
    }
}

/// FNV-1a: a hash that stays the same from build to build.
struct Fnv(u64);

impl Write for Fnv {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
