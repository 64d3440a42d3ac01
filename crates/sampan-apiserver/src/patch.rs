//! `patch`: JSON patch, merge patch, strategic merge patch and server-side apply, each made again on the newer object
//! when another writer was faster.

use http::Response;
use sampan_api::apply;
use sampan_api::{Failure, FieldErrors, FieldPath, codec, object, patch, schema};
use serde_json::Value;

use crate::body::ResponseBody;
use crate::negotiate::{self, Format, Wire};
use crate::options::FieldValidation;
use crate::respond;
use crate::write::{self, Change, Target, Written};
use crate::{convert, keys};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

const TYPES: [(&str, PatchType); 4] = [
    ("application/json-patch+json", PatchType::Json),
    ("application/merge-patch+json", PatchType::Merge),
    ("application/strategic-merge-patch+json", PatchType::Strategic),
    ("application/apply-patch+yaml", PatchType::Apply),
];

impl PatchType {
    /// Custom resources know no strategic merge.
    pub fn of(headers: &http::HeaderMap, custom: bool) -> Result<Self, Failure> {
        let media = negotiate::media_type(headers);
        let offered = TYPES.iter().filter(|(_, kind)| !custom || *kind != Self::Strategic);
        let names: Vec<&str> = offered.clone().map(|(name, _)| *name).collect();
        let found = offered.clone().find(|(name, _)| *name == media);
        found.map(|(_, kind)| *kind).ok_or_else(|| negotiate::unsupported_media(&names))
    }
}

/// A patch as it was sent.
pub(crate) struct Patch<'a> {
    pub kind: PatchType,
    pub body: &'a [u8],
}

impl Patch<'_> {
    fn tree(&self) -> Result<Value, Failure> {
        serde_json::from_slice(self.body)
            .map_err(|error| codec::syntax_error(&error, self.body))
            .map_err(|error| Failure::bad_request(format!("error decoding patch: {error}")))
    }

    /// The document after the patch, for everything but apply.
    pub fn onto(&self, schema: &schema::Schema, root: schema::TypeId, mut document: Value) -> Result<Value, Failure> {
        let tree = self.tree()?;
        match self.kind {
            PatchType::Json => patch::json_patch(&mut document, &tree).map_err(patch::PatchError::into_failure)?,
            PatchType::Strategic => {
                patch::strategic(schema, root, &mut document, &tree).map_err(patch::PatchError::into_failure)?;
            }
            PatchType::Merge | PatchType::Apply => patch::merge_patch(&mut document, &tree),
        }
        Ok(document)
    }
}

/// Patches an object or, with apply, creates it.
pub(crate) async fn object(
    target: &Target<'_>,
    format: Format,
    patch: &Patch<'_>,
) -> Result<Response<ResponseBody>, Failure> {
    let Written { code, object } = if patch.kind == PatchType::Apply {
        applied(target, patch).await?
    } else {
        write::update(target, |old| merged(target, patch, old).map(Change::Sent)).await?
    };
    respond::object(target.call, format, code, target.kind, object)
}

fn merged(target: &Target<'_>, patch: &Patch<'_>, old: &Value) -> Result<Value, Failure> {
    let kind = target.kind;
    let current = convert::from_storage(kind, old.clone())?;
    let document = patch.onto(&kind.schema, kind.root, current)?;
    // What the patch brought in is checked like a body.
    let invalid = |document: String, error: String| {
        let mut errors = FieldErrors::default();
        errors.invalid(FieldPath::new("patch"), document, error);
        Failure::invalid("", "", "", &errors)
    };
    let decoded = codec::decode_value(&kind.schema, kind.root, document.clone())
        .map_err(|error| invalid(document.to_string(), error.to_string()))?;
    if !decoded.problems.is_empty() {
        match target.options.field_validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => decoded.problems.iter().for_each(|one| target.call.warn(one.to_string())),
            FieldValidation::Strict => {
                let all: Vec<String> = decoded.problems.iter().map(ToString::to_string).collect();
                let error = format!("strict decoding error: {}", all.join(", "));
                return Err(invalid(document.to_string(), error));
            }
        }
    }
    write::complete(kind, decoded.object)
}

async fn applied(target: &Target<'_>, patch: &Patch<'_>) -> Result<Written, Failure> {
    let kind = target.kind;
    let wanted = write::decode(target.call, kind, Wire::Yaml, patch.body, target.options.field_validation)?;
    if object::lookup(&wanted, &["metadata", "managedFields"]).is_some_and(|fields| !fields.is_null()) {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    let root = respond::storage_root(kind);
    let wanted = convert::to_storage(kind, wanted)?;
    let merge = |live: Option<&Value>| {
        target.as_writer(|writer| apply::apply(&kind.schema, root, live, &wanted, writer, target.options.force))
    };
    loop {
        let key = keys::key(kind, target.namespace, target.name);
        if target.subresource.is_empty() && target.call.server.config.store.get(&key).is_none() {
            if !object::uid(&wanted).is_empty() {
                let why = format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    object::uid(&wanted)
                );
                return Err(target.conflict(why));
            }
            let mut fresh = merge(None)?;
            object::metadata_mut(&mut fresh).remove("resourceVersion");
            let fresh = write::complete(kind, convert::from_storage(kind, fresh)?)?;
            match write::create_owned(target, fresh).await {
                Err(failure) if failure.reason == sampan_api::Reason::AlreadyExists => continue,
                other => return other,
            }
        }
        return write::update(target, |old| {
            let merged = merge(Some(old))?;
            write::complete(kind, convert::from_storage(kind, merged)?).map(Change::Owned)
        })
        .await;
    }
}
