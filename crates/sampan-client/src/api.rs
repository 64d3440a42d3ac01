//! The verbs, typed by k8s-openapi where the caller wants types and in bytes where it does not.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::{Method, Request, header};
use k8s_openapi::{ListableResource, Metadata, Resource};
use sampan_api::Gvr;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::Status;
use crate::{Body, Error, Transport};

/// Where a resource lives in the URL space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    /// `None`: cluster scope, or all namespaces for list, watch and delete of collections.
    pub namespace: Option<&'a str>,
    pub name: Option<&'a str>,
    pub subresource: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// The collection of a typed resource.
    pub fn of<K: Resource>(namespace: Option<&'a str>) -> Self {
        Self {
            group: K::GROUP,
            version: K::VERSION,
            resource: K::URL_PATH_SEGMENT,
            namespace,
            name: None,
            subresource: None,
        }
    }

    pub fn of_gvr(gvr: &'a Gvr, namespace: Option<&'a str>) -> Self {
        Self {
            group: &gvr.group,
            version: &gvr.version,
            resource: &gvr.resource,
            namespace,
            name: None,
            subresource: None,
        }
    }

    #[must_use]
    pub fn name(mut self, name: &'a str) -> Self {
        self.name = Some(name);
        self
    }

    #[must_use]
    pub fn subresource(mut self, subresource: &'a str) -> Self {
        self.subresource = Some(subresource);
        self
    }

    /// `/api/v1/namespaces/default/pods/web/status`
    pub fn path(&self) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if let Some(namespace) = self.namespace {
            path.push_str("/namespaces/");
            path.push_str(namespace);
        }
        for part in [Some(self.resource), self.name, self.subresource].into_iter().flatten() {
            path.push('/');
            path.push_str(part);
        }
        path
    }
}

#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    pub limit: Option<u32>,
    pub continue_token: Option<String>,
    /// `Some("0")` accepts any state the server has at hand.
    pub resource_version: Option<String>,
    /// Only the metadata of each object (`PartialObjectMetadata`).
    pub metadata_only: bool,
}

#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub field_manager: Option<String>,
    /// Server-side apply only: take over fields others own.
    pub force: bool,
    pub dry_run: bool,
    /// Refuse the write unless this lease still stands as it was; see [`Fence`].
    pub fence: Option<Fence>,
}

/// A leader's proof that it still leads: compared with the Lease in the same transaction as the write, so that a
/// leader that was paused and wakes up cannot write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pub namespace: String,
    pub lease: String,
    pub holder: String,
    pub transitions: i64,
}

/// The header a fence travels in: `namespace/lease;holder;transitions`.
pub const FENCE_HEADER: &str = "sampan-fence";

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchKind {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// A list in bytes: each item stays as it came.
#[derive(Debug)]
pub struct RawList {
    pub resource_version: String,
    pub continue_token: String,
    pub items: Vec<Bytes>,
}

/// One frame of a watch; the object is its bytes.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    Added(Bytes),
    Modified(Bytes),
    Deleted(Bytes),
    /// Only `metadata.resourceVersion` is meaningful.
    Bookmark(Bytes),
}

/// Speaks to one API server with one identity. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    /// Carried by every write that brings no fence of its own.
    fence: Option<Arc<Fence>>,
    /// `User-Agent` of every request: the server takes the name of the field manager from it.
    agent: Option<http::HeaderValue>,
}

fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let mut serializer = form_urlencoded::Serializer::new(String::new());
    for (key, value) in pairs {
        if let Some(value) = value {
            serializer.append_pair(key, value);
        }
    }
    let text = serializer.finish();
    if text.is_empty() { text } else { format!("?{text}") }
}

impl WriteOptions {
    fn query(&self) -> String {
        query(&[
            ("fieldManager", self.field_manager.as_deref()),
            ("force", self.force.then_some("true")),
            ("dryRun", self.dry_run.then_some("All")),
        ])
    }
}

impl ListOptions {
    fn query(&self, watch: bool) -> String {
        let limit = self.limit.map(|limit| limit.to_string());
        query(&[
            ("labelSelector", self.label_selector.as_deref()),
            ("fieldSelector", self.field_selector.as_deref()),
            ("limit", limit.as_deref()),
            ("continue", self.continue_token.as_deref()),
            ("resourceVersion", self.resource_version.as_deref()),
            ("watch", watch.then_some("true")),
            ("allowWatchBookmarks", watch.then_some("true")),
        ])
    }
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, fence: None, agent: None }
    }

    /// The same client; its writes are refused once the lease is no longer as the fence says.
    #[must_use]
    pub fn fenced(&self, fence: Fence) -> Self {
        Self { fence: Some(Arc::new(fence)), ..self.clone() }
    }

    /// The same client, which says that it is `component` (`kubelet`).
    #[must_use]
    pub fn named(&self, component: &str) -> Self {
        let agent = format!("{component}/{}", env!("CARGO_PKG_VERSION"));
        Self { agent: http::HeaderValue::from_str(&agent).ok(), ..self.clone() }
    }

    /// Any request; the answer is its body, an HTTP error status becomes [`Error::Status`].
    pub async fn request(&self, request: Request<Bytes>) -> Result<Bytes, Error> {
        collect(self.open(request).await?).await
    }

    /// Any request whose answer is streamed (logs, watches).
    pub async fn open(&self, mut request: Request<Bytes>) -> Result<Body, Error> {
        if let Some(agent) = &self.agent {
            request.headers_mut().entry(header::USER_AGENT).or_insert_with(|| agent.clone());
        }
        let response = self.transport.send(request).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(refusal(response).await)
    }

    pub async fn get_raw(&self, target: &Target<'_>) -> Result<Bytes, Error> {
        self.request(read(target.path())?).await
    }

    pub async fn list_raw(&self, target: &Target<'_>, options: &ListOptions) -> Result<RawList, Error> {
        let uri = target.path() + &options.query(false);
        let accept = if options.metadata_only { METADATA_LIST } else { JSON };
        let body = self.request(read_as(uri, accept)?).await?;
        #[derive(Deserialize)]
        struct List<'a> {
            #[serde(default)]
            metadata: ListMeta,
            #[serde(borrow, default)]
            items: Option<Vec<&'a RawValue>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct ListMeta {
            resource_version: String,
            #[serde(rename = "continue")]
            continue_token: String,
        }
        let list: List<'_> = decode(&body)?;
        let items = list.items.unwrap_or_default();
        let items = items.into_iter().map(|item| body.slice_ref(item.get().as_bytes())).collect();
        Ok(RawList {
            resource_version: list.metadata.resource_version,
            continue_token: list.metadata.continue_token,
            items,
        })
    }

    /// Watches from `options.resource_version`. The stream ends when the server ends it; an expired revision is an
    /// [`Error::Status`] with code 410, at the start or as an item.
    pub async fn watch_raw(
        &self,
        target: &Target<'_>,
        options: &ListOptions,
    ) -> Result<impl Stream<Item = Result<WatchEvent, Error>> + Send + use<>, Error> {
        let uri = target.path() + &options.query(true);
        let accept = if options.metadata_only { METADATA } else { JSON };
        let body = self.open(read_as(uri, accept)?).await?;
        let frames = futures::stream::unfold((body, BytesMut::new()), |(mut body, mut buffer)| async move {
            loop {
                if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line = buffer.split_to(end + 1).freeze();
                    return Some((watch_event(&line), (body, buffer)));
                }
                match body.next().await? {
                    Ok(chunk) => buffer.extend_from_slice(&chunk),
                    Err(error) => return Some((Err(error), (body, buffer))),
                }
            }
        });
        Ok(frames)
    }

    pub async fn create_raw(&self, target: &Target<'_>, object: Bytes, options: &WriteOptions) -> Result<Bytes, Error> {
        let uri = target.path() + &options.query();
        self.write(Method::POST, uri, "application/json", object, options.fence.as_ref()).await
    }

    pub async fn patch_raw(
        &self,
        target: &Target<'_>,
        kind: PatchKind,
        patch: Bytes,
        options: &WriteOptions,
    ) -> Result<Bytes, Error> {
        let uri = target.path() + &options.query();
        self.write(Method::PATCH, uri, kind.content_type(), patch, options.fence.as_ref()).await
    }

    /// Replaces the whole object. Controllers patch or apply instead: a typed object put back drops the fields its type
    /// does not know.
    pub async fn replace_raw(
        &self,
        target: &Target<'_>,
        object: Bytes,
        options: &WriteOptions,
    ) -> Result<Bytes, Error> {
        let uri = target.path() + &options.query();
        self.write(Method::PUT, uri, "application/json", object, options.fence.as_ref()).await
    }

    pub async fn delete(&self, target: &Target<'_>, options: &DeleteOptions) -> Result<Bytes, Error> {
        let body = encode(options)?;
        self.write(Method::DELETE, target.path(), "application/json", body, None).await
    }

    async fn write(
        &self,
        method: Method,
        uri: String,
        content_type: &str,
        body: Bytes,
        fence: Option<&Fence>,
    ) -> Result<Bytes, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, content_type);
        if let Some(Fence { namespace, lease, holder, transitions }) = fence.or(self.fence.as_deref()) {
            request = request.header(FENCE_HEADER, format!("{namespace}/{lease};{holder};{transitions}"));
        }
        self.request(request.body(body).map_err(|error| Error::Request(error.to_string()))?).await
    }

    pub async fn get<K>(&self, namespace: Option<&str>, name: &str) -> Result<K, Error>
    where
        K: Resource + DeserializeOwned,
    {
        decode(&self.get_raw(&Target::of::<K>(namespace).name(name)).await?)
    }

    pub async fn list<K>(&self, namespace: Option<&str>, options: &ListOptions) -> Result<Vec<K>, Error>
    where
        K: ListableResource + DeserializeOwned,
    {
        let list = self.list_raw(&Target::of::<K>(namespace), options).await?;
        list.items.iter().map(|item| decode(item)).collect()
    }

    /// Creates in the namespace the object names.
    pub async fn create<K>(&self, object: &K, options: &WriteOptions) -> Result<K, Error>
    where
        K: Resource
            + Metadata<Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>
            + Serialize
            + DeserializeOwned,
    {
        let namespace = object.metadata().namespace.as_deref();
        decode(&self.create_raw(&Target::of::<K>(namespace), encode(object)?, options).await?)
    }

    pub async fn patch<K>(
        &self,
        target: &Target<'_>,
        kind: PatchKind,
        patch: &serde_json::Value,
        options: &WriteOptions,
    ) -> Result<K, Error>
    where
        K: DeserializeOwned,
    {
        decode(&self.patch_raw(target, kind, encode(patch)?, options).await?)
    }
}

fn watch_event(line: &Bytes) -> Result<WatchEvent, Error> {
    #[derive(Deserialize)]
    struct Frame<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let frame: Frame<'_> = decode(line)?;
    let object = line.slice_ref(frame.object.get().as_bytes());
    match frame.kind {
        "ADDED" => Ok(WatchEvent::Added(object)),
        "MODIFIED" => Ok(WatchEvent::Modified(object)),
        "DELETED" => Ok(WatchEvent::Deleted(object)),
        "BOOKMARK" => Ok(WatchEvent::Bookmark(object)),
        "ERROR" => Err(Error::Status(Box::new(decode(&object)?))),
        other => Err(Error::Decode(format!("watch event of type {other:?}"))),
    }
}

const JSON: &str = "application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

fn read(uri: String) -> Result<Request<Bytes>, Error> {
    read_as(uri, JSON)
}

fn read_as(uri: String, accept: &'static str) -> Result<Request<Bytes>, Error> {
    let request = Request::builder().method(Method::GET).uri(uri).header(header::ACCEPT, accept);
    request.body(Bytes::new()).map_err(|error| Error::Request(error.to_string()))
}

/// The error an unsuccessful response stands for.
pub(crate) async fn refusal(response: http::Response<Body>) -> Error {
    let status = response.status();
    let body = match collect(response.into_body()).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    Error::Status(Box::new(serde_json::from_slice::<Status>(&body).unwrap_or_else(|_| Status {
        message: format!("{status}: {}", String::from_utf8_lossy(&body)),
        code: status.as_u16(),
        ..Status::default()
    })))
}

async fn collect(mut body: Body) -> Result<Bytes, Error> {
    let Some(first) = body.next().await.transpose()? else { return Ok(Bytes::new()) };
    let Some(second) = body.next().await.transpose()? else { return Ok(first) };
    let mut all = BytesMut::from(first);
    all.extend_from_slice(&second);
    while let Some(chunk) = body.next().await.transpose()? {
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::Decode(error.to_string()))
}

pub fn encode<T: Serialize>(value: &T) -> Result<Bytes, Error> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| Error::Request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        use k8s_openapi::api::apps::v1::Deployment;
        use k8s_openapi::api::core::v1::Pod;
        let pod = Target::of::<Pod>(Some("default")).name("web").subresource("status");
        assert_eq!(pod.path(), "/api/v1/namespaces/default/pods/web/status");
        assert_eq!(Target::of::<Deployment>(None).path(), "/apis/apps/v1/deployments");
    }

    #[test]
    fn watch_frames_keep_the_object_bytes() {
        let line = Bytes::from_static(b"{\"type\":\"ADDED\",\"object\":{\"a\": 1}}\n");
        let Ok(WatchEvent::Added(object)) = watch_event(&line) else { panic!("an ADDED event") };
        assert_eq!(object, "{\"a\": 1}");
        let gone = Bytes::from_static(b"{\"type\":\"ERROR\",\"object\":{\"code\":410,\"reason\":\"Expired\"}}\n");
        assert!(watch_event(&gone).expect_err("an error").is_expired());
    }
}
