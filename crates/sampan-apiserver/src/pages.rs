//! Paths outside the resource space: discovery, version, health, metrics and the index.

use http::{Method, Request, Response};
use serde_json::json;

use crate::body::{RequestBody, ResponseBody};
use crate::server::{Call, Server};
use crate::{discovery, openapi, respond};

pub(crate) async fn answer(call: &Call, request: &Request<RequestBody>) -> Response<ResponseBody> {
    let server = &call.server;
    let path = call.info.path.as_str();
    for pages in &server.config.pages {
        if let Some(response) = pages.answer(server, &call.info, &call.headers).await {
            return response;
        }
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return respond::no_page();
    }
    if let Some(response) = discovery::answer(server, path, &call.headers) {
        return response;
    }
    if let Some(response) = openapi::answer(server, &call.info, &call.headers) {
        return response;
    }
    match path.trim_end_matches('/') {
        "" => index(server),
        "/version" => version(server),
        "/metrics" => {
            let store = &server.config.store;
            let gauges = [
                ("sampan_store_revision", store.revision().0 as f64),
                ("sampan_apiserver_form_encodings_total", server.encodings() as f64),
            ];
            respond::bytes(200, "text/plain; version=0.0.4; charset=utf-8", server.metrics.render(&gauges))
        }
        path => health(call, path),
    }
}

fn version(server: &Server) -> Response<ResponseBody> {
    let version = &server.config.version;
    let value = json!({
        "major": version.major, "minor": version.minor, "gitVersion": version.git_version,
        "gitCommit": version.git_commit, "gitTreeState": "clean", "buildDate": version.build_date,
        "goVersion": "none", "compiler": "rustc", "platform": format!("linux/{}", architecture()),
    });
    respond::json(200, &value)
}

/// Go's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn index(server: &Server) -> Response<ResponseBody> {
    let kinds = server.kinds();
    let mut paths: Vec<String> =
        ["/api", "/apis", "/healthz", "/livez", "/readyz", "/metrics", "/openapi/v2", "/openapi/v3", "/version"]
            .map(str::to_owned)
            .into();
    for kind in &kinds.all {
        let (group, version) = (&kind.gvk.group, &kind.gvk.version);
        if group.is_empty() {
            paths.push(format!("/api/{version}"));
        } else {
            paths.extend([format!("/apis/{group}"), format!("/apis/{group}/{version}")]);
        }
    }
    paths.extend(server.config.pages.iter().flat_map(|pages| pages.paths()));
    paths.sort();
    paths.dedup();
    respond::json(200, &json!({"paths": paths}))
}

/// The checks behind `/livez`, `/readyz` and `/healthz`.
fn checks(server: &Server) -> Vec<(&'static str, Result<(), String>)> {
    let store = server.config.writable.as_ref().map_or(Ok(()), |writable| writable());
    vec![("ping", Ok(())), ("log", Ok(())), ("etcd", store)]
}

fn health(call: &Call, path: &str) -> Response<ResponseBody> {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (endpoint, one) = (parts.next().unwrap_or_default(), parts.next());
    if !matches!(endpoint, "livez" | "readyz" | "healthz") {
        return respond::no_page();
    }
    let excluded: Vec<&str> =
        call.info.query.iter().filter(|(key, _)| key == "exclude").map(|(_, value)| value.as_str()).collect();
    let checks = checks(&call.server);
    let checks: Vec<_> =
        checks.into_iter().filter(|(name, _)| !excluded.contains(name) && one.is_none_or(|one| one == *name)).collect();
    if checks.is_empty() {
        return respond::no_page();
    }
    let failed = checks.iter().any(|(_, result)| result.is_err());
    if !failed && call.info.parameter("verbose").is_none() {
        return respond::text(200, "ok");
    }
    let mut text = String::new();
    for (name, result) in &checks {
        match result {
            Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
            // The reason is in the log: anybody may read this page.
            Err(reason) => {
                tracing::warn!(check = name, reason, "health check failed");
                text.push_str(&format!("[-]{name} failed: reason withheld\n"));
            }
        }
    }
    text.push_str(&format!("{endpoint} check {}\n", if failed { "failed" } else { "passed" }));
    respond::text(if failed { 500 } else { 200 }, text)
}
