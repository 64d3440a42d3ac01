//! The server: its parts and the one entry every request takes, over TLS or in process.
//!
//! The order of the filters is upstream's (`k8s.io/apiserver/pkg/server/config.go`, `DefaultBuildHandlerChain`):
//! request info → panic guard → timeout → authentication → audit → impersonation → authorization → handler.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use sampan_api::{Failure, Kinds, Reason};
use sampan_base::{Clock, Dice};
use sampan_store::Store;

use crate::admission::Plugin;
use crate::auth::authn::Chain;
use crate::auth::impersonate::impersonate;
use crate::auth::{self, Authorizer, Decision, Peer, User};
use crate::body::{RequestBody, ResponseBody};
use crate::forms::{Forms, Shared};
use crate::hooks::{Audit, AuditEvent, Computed, Stage, Streaming};
use crate::metrics::Metrics;
use crate::request_info::RequestInfo;
use crate::select::Facts;
use crate::services::Ranges;
use crate::{respond, route};

/// What a server is made of.
pub struct Config {
    pub store: Store,
    /// All kinds served; swapped whole when one comes, changes or goes.
    pub kinds: Arc<ArcSwap<Kinds>>,
    pub authenticators: Chain,
    pub authorizer: Arc<dyn Authorizer>,
    /// In the order they run.
    pub plugins: Vec<Arc<dyn Plugin>>,
    /// (group, resource) or (group, resource/subresource) → who computes its creates.
    pub computed: BTreeMap<(String, String), Arc<dyn Computed>>,
    pub streaming: Option<Arc<dyn Streaming>>,
    pub audit: Option<Arc<dyn Audit>>,
    /// Answers paths outside the API (`/openapi/…`, `/.well-known/…`, …), asked before the built-in ones.
    pub pages: Vec<Arc<dyn Pages>>,
    /// Whether writes can be made, for the health checks; absent, they can.
    pub writable: Option<Arc<dyn Fn() -> Result<(), String> + Send + Sync>>,
    pub clock: Clock,
    pub dice: Dice,
    pub version: Version,
    pub ranges: Ranges,
    /// How many bytes of other forms of objects than the stored one are kept.
    pub form_cache_bytes: usize,
}

/// Paths outside the resource space.
#[async_trait::async_trait]
pub trait Pages: Send + Sync + 'static {
    /// `None`: not a path of these pages.
    async fn answer(&self, server: &Server, info: &RequestInfo, headers: &HeaderMap) -> Option<Response<ResponseBody>>;
    /// For the index at `/`.
    fn paths(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What `/version` says.
#[derive(Clone, Debug)]
pub struct Version {
    pub major: String,
    pub minor: String,
    pub git_version: String,
    pub git_commit: String,
    pub build_date: String,
}

impl Default for Version {
    fn default() -> Self {
        Self {
            major: "1".into(),
            minor: "37".into(),
            git_version: concat!("v1.37.0+sampan-", env!("CARGO_PKG_VERSION")).into(),
            git_commit: String::new(),
            build_date: String::new(),
        }
    }
}

/// How long a request may take that is neither a watch nor a stream.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// How much is kept of what selectors look at: enough for the changes that watchers are about to be told of.
const FACT_BYTES: usize = 2 << 20;

/// One API server. Shared by all connections.
pub struct Server {
    pub config: Config,
    pub(crate) forms: Forms,
    /// What the selectors of watches look at.
    pub(crate) facts: Shared<(), Arc<Facts>>,
    pub metrics: Metrics,
    /// Counts changes of the kinds, so that watches of a changed kind end.
    kinds_changed: tokio::sync::watch::Sender<u64>,
}

/// One request after authentication, with everything handlers read of it.
pub(crate) struct Call {
    pub server: Arc<Server>,
    pub info: RequestInfo,
    pub user: User,
    pub headers: HeaderMap,
    /// Texts that go out as `Warning` headers.
    pub warnings: std::sync::Mutex<Vec<String>>,
}

impl Call {
    pub fn warn(&self, text: impl Into<String>) {
        let mut warnings = self.warnings.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let text = text.into();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    pub fn user_agent(&self) -> &str {
        self.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Server {
    pub fn new(config: Config) -> Arc<Self> {
        let forms = Forms::new(config.form_cache_bytes);
        let (kinds_changed, _) = tokio::sync::watch::channel(0);
        let facts = Shared::new(FACT_BYTES);
        Arc::new(Self { config, forms, facts, metrics: Metrics::default(), kinds_changed })
    }

    pub fn kinds(&self) -> Arc<Kinds> {
        self.config.kinds.load_full()
    }

    /// Swaps the kinds; watches of kinds that changed or went end.
    pub fn set_kinds(&self, kinds: Arc<Kinds>) {
        self.config.kinds.store(kinds);
        self.forms.clear();
        self.facts.clear();
        self.kinds_changed.send_modify(|generation| *generation += 1);
    }

    pub(crate) fn kinds_changed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.kinds_changed.subscribe()
    }

    /// How many objects were encoded to another form than the stored one since the start.
    pub fn encodings(&self) -> u64 {
        self.forms.made()
    }

    /// Answers one request. Never fails and never panics: what goes wrong is a `Status`.
    pub async fn handle(self: &Arc<Self>, peer: Peer, request: Request<RequestBody>) -> Response<ResponseBody> {
        let info = RequestInfo::parse(request.method(), request.uri());
        let started = self.config.clock.instant();
        let audit_id = self.audit_id(request.headers());
        let long_running = info.long_running();
        let limit = info.timeout().map_or(REQUEST_TIMEOUT, |asked| asked.min(REQUEST_TIMEOUT));
        let labels = (info.verb.clone(), info.group.clone(), info.version.clone(), info.resource.clone());
        let work = AssertUnwindSafe(self.filtered(&peer, info, &audit_id, request)).catch_unwind();
        let outcome = if long_running { Some(work.await) } else { self.config.clock.timeout(limit, work).await };
        let mut response = match outcome {
            Some(Ok(response)) => response,
            // The panic itself was logged with its place by the hook of the process.
            Some(Err(_)) => respond::failure(&Failure::new(
                Reason::InternalError,
                "This request caused apiserver to panic. Look in the logs for details.",
            )),
            None => respond::failure(&Failure::new(
                Reason::Timeout,
                "Timeout: request did not complete within the allotted timeout",
            )),
        };
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(&audit_id) {
            headers.insert("audit-id", value);
        }
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        self.metrics.request(&labels, response.status().as_u16(), started.elapsed(), long_running);
        response
    }

    /// The caller's `Audit-ID` when it is sane, else a new one.
    fn audit_id(&self, headers: &HeaderMap) -> String {
        let given = headers.get("audit-id").and_then(|value| value.to_str().ok());
        given.filter(|id| !id.is_empty() && id.len() <= 64).map_or_else(|| self.config.dice.uid(), str::to_owned)
    }

    async fn filtered(
        self: &Arc<Self>,
        peer: &Peer,
        info: RequestInfo,
        audit_id: &str,
        request: Request<RequestBody>,
    ) -> Response<ResponseBody> {
        let received = self.config.clock.now();
        let authorizer = self.config.authorizer.as_ref();
        let identified = async {
            let user = self.config.authenticators.identify(peer, request.headers()).await?;
            let acting = impersonate(&user, request.headers(), authorizer).await?;
            Ok::<_, Failure>((user, acting))
        };
        let (user, acting) = match identified.await {
            Ok(users) => users,
            Err(failure) => return respond::failure(&failure),
        };
        let attributes = info.attributes(acting.clone());
        // Over HTTP/2 the URI has a scheme and an authority too.
        let uri = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
        let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let event = |stage, code, decision: &str| {
            if let Some(audit) = &self.config.audit {
                audit.record(&AuditEvent {
                    id: audit_id,
                    stage,
                    authenticated: &user,
                    impersonating: user != acting,
                    attributes: &attributes,
                    uri: &uri,
                    source: peer.address.map(|address| address.ip()),
                    user_agent: agent.as_deref().unwrap_or_default(),
                    code,
                    received,
                    now: self.config.clock.now(),
                    decision,
                });
            }
        };
        event(Stage::RequestReceived, 0, "");
        let decision = authorizer.authorize(&attributes).await;
        let (response, reason) = match decision {
            Decision::Allow { reason } => {
                let call = Call {
                    server: self.clone(),
                    user: acting.clone(),
                    headers: request.headers().clone(),
                    info,
                    warnings: Default::default(),
                };
                (route::answer(Arc::new(call), request).await, reason)
            }
            Decision::Deny { reason } | Decision::NoOpinion { reason } => {
                (respond::failure(&auth::forbidden(&attributes, &reason)), reason)
            }
        };
        let stage = if attributes.verb == "watch" { Stage::ResponseStarted } else { Stage::ResponseComplete };
        event(stage, response.status().as_u16(), &reason);
        response
    }
}
