//! What the server serves: every resource once, in its group's preferred version.

use bytes::Bytes;
use sampan_api::Gvr;
use sampan_api::object::nullable;
use sampan_client::api::decode;
use sampan_client::{Client, Error};
use serde::Deserialize;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiResource {
    pub gvr: Gvr,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl ApiResource {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|one| one == verb)
    }
}

/// Resources in the server's order, subresources left out; and the group versions that could not be read (an aggregated
/// server that is down), with the reason.
#[derive(Debug, Default)]
pub struct Discovered {
    pub resources: Vec<ApiResource>,
    pub failures: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Groups {
    #[serde(deserialize_with = "nullable", default)]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    preferred_version: GroupVersion,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupVersion {
    group_version: String,
}

#[derive(Deserialize)]
struct Resources {
    #[serde(deserialize_with = "nullable", default)]
    resources: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(deserialize_with = "nullable", default)]
    verbs: Vec<String>,
}

async fn read<T: serde::de::DeserializeOwned>(client: &Client, path: String) -> Result<T, Error> {
    let request = http::Request::get(path).header(http::header::ACCEPT, "application/json").body(Bytes::new());
    decode(&client.request(request.map_err(|error| Error::Request(error.to_string()))?).await?)
}

/// Fails only when the server does not say which groups it has.
pub async fn discover(client: &Client) -> Result<Discovered, Error> {
    let groups: Groups = read(client, "/apis".into()).await?;
    let mut discovered = Discovered::default();
    let versions = groups.groups.into_iter().map(|group| group.preferred_version.group_version);
    for version in std::iter::once("v1".to_owned()).chain(versions) {
        let path = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
        let listed: Resources = match read(client, path).await {
            Ok(listed) => listed,
            Err(error) => {
                discovered.failures.push((version, error.to_string()));
                continue;
            }
        };
        let (group, number) = sampan_api::kind::split_api_version(&version);
        let resources = listed.resources.into_iter().filter(|entry| !entry.name.contains('/'));
        discovered.resources.extend(resources.map(|entry| ApiResource {
            gvr: Gvr { group: group.into(), version: number.into(), resource: entry.name },
            kind: entry.kind,
            namespaced: entry.namespaced,
            verbs: entry.verbs,
        }));
    }
    Ok(discovered)
}
