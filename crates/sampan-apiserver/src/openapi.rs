//! `/openapi/v2` and `/openapi/v3` as JSON. Documents are made when they are asked for: clients keep version 3's by the
//! hash in their address, and version 2 is for old ones.

use std::io;

use sampan_api::Kinds;
use sampan_api::openapi::Documents;

use crate::descriptions;

/// The document at `path` (`/openapi/v3/apis/apps/v1`), `None` when there is none. `version` is the server's,
/// `v1.37.0`. Takes a tenth of a second for the largest: not for a thread that serves others.
pub fn document(kinds: &Kinds, version: &str, path: &str) -> io::Result<Option<Vec<u8>>> {
    let Some(path) = path.strip_prefix("/openapi/") else { return Ok(None) };
    let path = path.trim_end_matches('/');
    let mut out = Vec::new();
    if path == "v3" {
        let documents = Documents { kinds, version, describe: &|_, _| None };
        serde_json::to_writer(&mut out, &documents.v3_index())?;
        return Ok(Some(out));
    }
    let descriptions = descriptions::load()?;
    let describe = |type_name: &str, field: &str| descriptions.describe(type_name, field);
    let documents = Documents { kinds, version, describe: &describe };
    let found = match path.strip_prefix("v3/") {
        Some(part) => documents.v3(part, &mut out)?,
        None if path == "v2" => documents.v2(&mut out).map(|()| true)?,
        None => false,
    };
    Ok(found.then_some(out))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_document_of_the_index_is_there() {
        let kinds = sampan_api::kind::builtin();
        let fetch = |path: &str| -> Option<Value> {
            let bytes = document(&kinds, "v1.37.0", path).expect("written")?;
            Some(serde_json::from_slice(&bytes).expect("JSON"))
        };
        let index = fetch("/openapi/v3").expect("an index");
        let parts = index["paths"].as_object().expect("parts");
        assert!(parts.contains_key("api/v1") && parts.contains_key("apis/apps/v1"));
        for part in parts.values() {
            let address = part["serverRelativeURL"].as_str().expect("an address");
            let (path, _) = address.split_once('?').expect("a hash");
            assert_eq!(fetch(path).expect(path)["openapi"], "3.0.0");
        }
        assert_eq!(fetch("/openapi/v2").expect("a document")["swagger"], "2.0");
        for absent in ["/openapi", "/openapi/v4", "/openapi/v3/apis/none/v1", "/version"] {
            assert_eq!(fetch(absent), None, "{absent}");
        }
    }
}
