//! What a request is about, read from its method and path (`k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`).
//! Pure. Whether such a resource exists is decided later.

use http::{Method, Uri};
use sampan_api::selector::FieldSelector;

use crate::auth::{Attributes, User};

/// Path segments and query of one request, percent-decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub resource_request: bool,
    /// As it came.
    pub path: String,
    pub verb: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource, with a leading `/` (`…/proxy/healthz`).
    pub rest: String,
    pub query: Vec<(String, String)>,
}

impl RequestInfo {
    pub fn parse(method: &Method, uri: &Uri) -> Self {
        let query: Vec<(String, String)> =
            form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let mut info =
            Self { path: uri.path().to_owned(), verb: method.as_str().to_ascii_lowercase(), query, ..Self::default() };
        info.parse_path(method);
        info
    }

    fn parse_path(&mut self, method: &Method) {
        let trimmed = self.path.trim_matches('/');
        let decoded: Vec<String> = trimmed.split('/').map(percent_decoded).collect();
        let mut parts: &[String] = &decoded;
        match parts {
            [api, version, rest @ ..] if api == "api" && !rest.is_empty() => {
                self.version = version.clone();
                parts = rest;
            }
            [apis, group, version, rest @ ..] if apis == "apis" && !rest.is_empty() => {
                self.group = group.clone();
                self.version = version.clone();
                parts = rest;
            }
            _ => return,
        }
        self.resource_request = true;
        self.verb = match method.as_str() {
            "POST" => "create",
            "GET" | "HEAD" => "get",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" => "delete",
            _ => "",
        }
        .into();
        // The old form `/api/v1/watch/pods`.
        let watch_prefix = parts.len() > 1 && parts[0] == "watch" && self.verb == "get";
        if watch_prefix {
            parts = &parts[1..];
        }
        if let [namespaces, namespace, rest @ ..] = parts
            && namespaces == "namespaces"
        {
            self.namespace = namespace.clone();
            if let [first, ..] = rest
                && first != "status"
                && first != "finalize"
            {
                parts = rest;
            }
        }
        if let [resource, more @ ..] = parts {
            self.resource = resource.clone();
            if let [name, more @ ..] = more {
                self.name = name.clone();
                if let [subresource, more @ ..] = more {
                    self.subresource = subresource.clone();
                    if !more.is_empty() {
                        self.rest = format!("/{}", more.join("/"));
                    }
                }
            }
        }
        if watch_prefix {
            self.verb = "watch".into();
        } else if self.name.is_empty() && self.verb == "get" {
            self.verb = if self.flag("watch") { "watch" } else { "list" }.into();
        } else if self.name.is_empty() && self.verb == "delete" {
            self.verb = "deletecollection".into();
        }
    }

    /// The first value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that is not empty.
    pub fn given(&self, name: &str) -> Option<&str> {
        self.parameter(name).filter(|value| !value.is_empty())
    }

    /// Upstream takes every value but `false` and `0` as true.
    pub fn flag(&self, name: &str) -> bool {
        self.parameter(name).is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    pub fn attributes(&self, user: User) -> Attributes {
        let field_selector = self.field_requirements();
        // A list or watch of one object by its name is authorized as that object (upstream's `requestinfo.go`).
        let selected = field_selector.iter().find(|(field, _)| field == "metadata.name").map(|(_, name)| name.clone());
        let name = Some(self.name.clone()).filter(|name| !name.is_empty()).or(selected).unwrap_or_default();
        Attributes {
            user,
            verb: self.verb.clone(),
            resource_request: self.resource_request,
            group: self.group.clone(),
            version: self.version.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            namespace: self.namespace.clone(),
            name,
            path: self.path.clone(),
            field_selector,
        }
    }

    /// The `field=value` terms of the field selector; none when it does not parse (the handler says so later).
    fn field_requirements(&self) -> Vec<(String, String)> {
        let selector = self.given("fieldSelector").map(FieldSelector::parse);
        let Some(Ok(selector)) = selector else { return Vec::new() };
        let equal = selector.terms().iter().filter(|term| !term.negated);
        equal.map(|term| (term.path.clone(), term.value.clone())).collect()
    }

    /// How long the caller is willing to wait (`timeout=32s`).
    pub fn timeout(&self) -> Option<std::time::Duration> {
        let nanos = sampan_api::codec::parse_go_duration(self.given("timeout")?).ok()?;
        u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(std::time::Duration::from_nanos)
    }

    /// Watches and streams end when their caller or their own clock says so, not by the request timeout.
    pub fn long_running(&self) -> bool {
        self.verb == "watch"
            || matches!(self.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy")
            || (self.subresource == "log" && self.flag("follow"))
    }
}

/// `%41` → `A`. A sequence that is not UTF-8 or not hexadecimal stays as it came.
fn percent_decoded(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|byte| (*byte as char).to_digit(16));
        if bytes[at] == b'%'
            && let (Some(high), Some(low)) = (hex(1), hex(2))
        {
            out.push((high * 16 + low) as u8);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: Method, uri: &str) -> RequestInfo {
        RequestInfo::parse(&method, &uri.parse().expect("a URI"))
    }

    /// verb, group, version, namespace, resource, name, subresource
    fn shown(method: Method, uri: &str) -> String {
        let info = parse(method, uri);
        assert!(info.resource_request, "{uri}");
        [info.verb, info.group, info.version, info.namespace, info.resource, info.name, info.subresource].join("|")
    }

    #[test]
    fn resource_paths() {
        let table = [
            (Method::GET, "/api/v1/namespaces", "list||v1||namespaces||"),
            (Method::GET, "/api/v1/namespaces/other", "get||v1|other|namespaces|other|"),
            (Method::PUT, "/api/v1/namespaces/other/finalize", "update||v1|other|namespaces|other|finalize"),
            (Method::GET, "/api/v1/namespaces/other/pods", "list||v1|other|pods||"),
            (Method::GET, "/api/v1/namespaces/other/pods?watch=1", "watch||v1|other|pods||"),
            (Method::GET, "/api/v1/namespaces/other/pods?watch=false", "list||v1|other|pods||"),
            (Method::GET, "/api/v1/watch/namespaces/other/pods/foo", "watch||v1|other|pods|foo|"),
            (Method::DELETE, "/api/v1/namespaces/other/pods", "deletecollection||v1|other|pods||"),
            (Method::POST, "/api/v1/namespaces/a/pods/p/exec", "create||v1|a|pods|p|exec"),
            (Method::PATCH, "/apis/apps/v1/namespaces/a/deployments/d/scale", "patch|apps|v1|a|deployments|d|scale"),
            (
                Method::GET,
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "get|rbac.authorization.k8s.io|v1||clusterroles|system:node|",
            ),
        ];
        for (method, uri, expected) in table {
            assert_eq!(shown(method, uri), expected, "{uri}");
        }
        assert_eq!(parse(Method::GET, "/api/v1/nodes/n/proxy/a/b").rest, "/a/b");
    }

    #[test]
    fn other_paths() {
        for uri in [
            "/",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz/ping",
            "/openapi/v3/apis/apps/v1",
        ] {
            let info = parse(Method::GET, uri);
            assert!(!info.resource_request, "{uri}");
            assert_eq!(info.verb, "get");
        }
    }
}
