//! The query parameters and bodies that steer a request: `CreateOptions`, `PatchOptions`, `ListOptions`,
//! `DeleteOptions`. Pure; refusals are upstream's (`metav1/validation`).

use sampan_api::selector::{FieldSelector, LabelSelector};
use sampan_api::{Failure, FieldErrors, FieldPath, Kind};
use sampan_store::Revision;
use serde::Deserialize;
use serde_json::Value;

use crate::request_info::RequestInfo;

/// What happens to unknown and duplicate fields of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_validation: FieldValidation,
    /// Empty: taken from the user agent.
    pub field_manager: String,
    pub force: bool,
}

impl WriteOptions {
    /// `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    pub fn parse(info: &RequestInfo, kind: &str, apply: bool) -> Result<Self, Failure> {
        let mut errors = FieldErrors::default();
        let dry_run = dry_run(info, &mut errors);
        let field_validation = match info.given("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                errors.not_supported(FieldPath::new("fieldValidation"), other, &["Ignore", "Strict", "Warn"]);
                FieldValidation::Warn
            }
        };
        let field_manager = info.given("fieldManager").unwrap_or_default().to_owned();
        if field_manager.len() > 128 {
            let kind = sampan_api::error::FieldErrorKind::TooLong { max: 128 };
            errors.push(FieldPath::new("fieldManager"), kind, "");
        }
        if field_manager.chars().any(char::is_control) {
            let detail = "should only contain printable characters";
            errors.invalid(FieldPath::new("fieldManager"), field_manager.clone(), detail);
        }
        let force = info.given("force");
        if apply && field_manager.is_empty() {
            errors.required(FieldPath::new("fieldManager"), "is required for apply patch");
        }
        if !apply && force.is_some() {
            errors.forbidden(FieldPath::new("force"), "may not be specified for non-apply patch");
        }
        errors.into_result("meta.k8s.io", kind, "")?;
        Ok(Self { dry_run, field_validation, field_manager, force: force.is_some() && info.flag("force") })
    }

    /// The field manager, or what the user agent begins with.
    pub fn manager(&self, user_agent: &str) -> String {
        if !self.field_manager.is_empty() {
            return self.field_manager.clone();
        }
        let agent = user_agent.split('/').next().unwrap_or_default();
        agent.chars().filter(|c| !c.is_control()).take(128).collect()
    }
}

fn dry_run(info: &RequestInfo, errors: &mut FieldErrors) -> bool {
    let mut dry = false;
    for (_, value) in info.query.iter().filter(|(key, value)| key == "dryRun" && !value.is_empty()) {
        if value == "All" {
            dry = true;
        } else {
            errors.not_supported(FieldPath::new("dryRun"), value.clone(), &["All"]);
        }
    }
    dry
}

/// `metav1.DeleteOptions`, from the body and, where the body does not say, the query.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation_policy: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub preconditions: Preconditions,
    #[serde(rename = "dryRun")]
    dry_run_values: Vec<String>,
    #[serde(skip)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// What becomes of the objects an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

impl DeleteOptions {
    pub fn parse(info: &RequestInfo, body: Option<Value>) -> Result<Self, Failure> {
        let mut options = match body {
            Some(body) => serde_json::from_value(without_nulls(body))
                .map_err(|error| Failure::bad_request(format!("cannot read DeleteOptions: {error}")))?,
            None => Self::default(),
        };
        let number = |name| info.given(name).map(str::parse::<i64>).transpose();
        if let Some(seconds) = number("gracePeriodSeconds").map_err(|error| Failure::bad_request(error.to_string()))? {
            options.grace_period_seconds = Some(seconds);
        }
        if let Some(policy) = info.given("propagationPolicy") {
            options.propagation_policy = Some(policy.into());
        }
        if info.given("orphanDependents").is_some() {
            options.orphan_dependents = Some(info.flag("orphanDependents"));
        }
        let mut errors = FieldErrors::default();
        options.dry_run = dry_run(info, &mut errors) | !options.dry_run_values.is_empty();
        for value in options.dry_run_values.iter().filter(|value| *value != "All") {
            errors.not_supported(FieldPath::new("dryRun"), value.clone(), &["All"]);
        }
        if options.orphan_dependents.is_some() && options.propagation_policy.is_some() {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.invalid(FieldPath::new("propagationPolicy"), options.propagation_policy.clone(), detail);
        }
        if let Some(policy) = &options.propagation_policy
            && options.propagation().is_none()
        {
            errors.not_supported(
                FieldPath::new("propagationPolicy"),
                policy.clone(),
                &["Background", "Foreground", "Orphan"],
            );
        }
        errors.into_result("meta.k8s.io", "DeleteOptions", "")?;
        Ok(options)
    }

    /// What the caller asked for; `None`: the kind's default.
    pub fn propagation(&self) -> Option<Propagation> {
        match (self.propagation_policy.as_deref(), self.orphan_dependents) {
            (Some("Orphan"), _) => Some(Propagation::Orphan),
            (Some("Background"), _) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some(_), _) | (None, None) => None,
            (None, Some(true)) => Some(Propagation::Orphan),
            (None, Some(false)) => Some(Propagation::Background),
        }
    }
}

/// Drops null members: Go reads them as absent.
fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(map) = &mut value {
        map.retain(|_, member| !member.is_null());
    }
    value
}

/// How a read relates to the revision it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest, confirmed with the log.
    Consistent,
    /// Whatever is at hand.
    Any,
    NotOlderThan(Revision),
    Exact(Revision),
}

#[derive(Clone, Debug)]
pub struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    pub limit: usize,
    pub continue_token: Option<String>,
    pub at: At,
    /// The raw parameter, for watches.
    pub resource_version: Option<Revision>,
    pub bookmarks: bool,
    pub timeout_seconds: Option<u64>,
    pub send_initial_events: Option<bool>,
}

pub fn revision(text: &str) -> Result<Revision, Failure> {
    let invalid = || {
        let mut errors = FieldErrors::default();
        let detail = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        errors.invalid(FieldPath::new("resourceVersion"), text, detail);
        Failure::bad_request(errors.aggregate())
    };
    text.parse().map(Revision).map_err(|_| invalid())
}

impl ListOptions {
    pub fn parse(info: &RequestInfo, kind: &Kind) -> Result<Self, Failure> {
        let watch = info.verb == "watch";
        let labels = LabelSelector::parse(info.parameter("labelSelector").unwrap_or_default())
            .map_err(|error| Failure::bad_request(format!("unable to parse requirement: {error}")))?;
        let fields = FieldSelector::parse(info.parameter("fieldSelector").unwrap_or_default())
            .map_err(|error| Failure::bad_request(error.to_string()))?;
        for term in fields.terms() {
            let path = term.path.as_str();
            let known = path == "metadata.name"
                || (path == "metadata.namespace" && kind.namespaced())
                || kind.selectable_fields.iter().any(|field| field == path);
            if !known {
                return Err(Failure::bad_request(format!("field label not supported: {path}")));
            }
        }
        let number = |name: &str| {
            info.given(name)
                .map(|text| text.parse::<u64>().map_err(|error| Failure::bad_request(format!("{name}: {error}"))))
                .transpose()
        };
        let resource_version = info.given("resourceVersion").map(revision).transpose()?;
        let continue_token = info.given("continue").map(str::to_owned);
        let rule = info.given("resourceVersionMatch");
        let send_initial_events = info.given("sendInitialEvents").map(|_| info.flag("sendInitialEvents"));
        let mut errors = FieldErrors::default();
        let field = || FieldPath::new("resourceVersionMatch");
        if let Some(rule) = rule {
            let forbidden = match rule {
                "Exact" | "NotOlderThan" if watch && send_initial_events.is_none() => {
                    Some("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
                }
                "Exact" if watch => Some("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
                "Exact" if resource_version == Some(Revision(0)) => {
                    Some("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
                }
                "Exact" | "NotOlderThan" if continue_token.is_some() => {
                    Some("resourceVersionMatch is forbidden when continue is provided")
                }
                "Exact" | "NotOlderThan" if resource_version.is_none() && !watch => {
                    Some("resourceVersionMatch is forbidden unless resourceVersion is provided")
                }
                "Exact" | "NotOlderThan" => None,
                other => {
                    errors.not_supported(field(), other, &["Exact", "NotOlderThan"]);
                    None
                }
            };
            if let Some(why) = forbidden {
                errors.forbidden(field(), why);
            }
        } else if send_initial_events.is_some() && watch {
            errors.forbidden(field(), "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        if send_initial_events.is_some() && !watch {
            errors.forbidden(FieldPath::new("sendInitialEvents"), "sendInitialEvents is forbidden for list");
        }
        errors.into_result("meta.k8s.io", "ListOptions", "")?;
        let limit = number("limit")?.unwrap_or(0) as usize;
        let at = match (resource_version, rule) {
            (None, _) => At::Consistent,
            (Some(Revision(0)), _) => At::Any,
            (Some(revision), Some("Exact")) => At::Exact(revision),
            // The old behaviour of a limited list without a rule is that of an exact one.
            (Some(revision), None) if limit > 0 => At::Exact(revision),
            (Some(revision), _) => At::NotOlderThan(revision),
        };
        if continue_token.is_some() && resource_version.is_some_and(|revision| revision.0 != 0) {
            return Err(Failure::bad_request("specifying resource version is not allowed when using continue"));
        }
        Ok(Self {
            labels,
            fields,
            limit,
            continue_token,
            at,
            resource_version,
            bookmarks: info.flag("allowWatchBookmarks"),
            timeout_seconds: number("timeoutSeconds")?,
            send_initial_events,
        })
    }
}
