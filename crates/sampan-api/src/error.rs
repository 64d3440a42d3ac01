//! What goes wrong with a request, in upstream's vocabulary: the reasons and codes of `metav1.Status` and the field
//! errors of `k8s.io/apimachinery/pkg/util/validation/field`.
//!
//! Every error that reaches a client is a [`Failure`]; it is turned into a `Status` object here and nowhere else.

use std::fmt;

use serde_json::{Value, json};

/// `metav1.StatusReason`, with the HTTP code each stands for (`k8s.io/apimachinery/pkg/api/errors`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    StoreReadError,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
    Unknown,
}

impl Reason {
    pub fn code(self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::Invalid => 422,
            Self::ServerTimeout | Self::StoreReadError | Self::InternalError | Self::Unknown => 500,
            Self::Timeout => 504,
            Self::TooManyRequests => 429,
            Self::BadRequest => 400,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::ServiceUnavailable => 503,
        }
    }

    /// The word in `status.reason`. [`Reason::Unknown`] is the empty string.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Invalid => "Invalid",
            Self::ServerTimeout => "ServerTimeout",
            Self::StoreReadError => "StorageReadError",
            Self::Timeout => "Timeout",
            Self::TooManyRequests => "TooManyRequests",
            Self::BadRequest => "BadRequest",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::InternalError => "InternalError",
            Self::Expired => "Expired",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }
}

/// One cause in `status.details.causes`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// A refused or failed request. Becomes a `Status` object with [`Failure::to_status`].
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub reason: Reason,
    /// Differs from `reason.code()` in few places (an eviction that must wait answers 429, say).
    pub code: u16,
    pub message: String,
    /// `details`: the object the request was about.
    pub name: String,
    pub group: String,
    /// A kind (`Pod`) for validation errors, a resource (`pods`) elsewhere, as upstream does.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: Option<u32>,
    /// `metadata.continue`: how to go on with a list whose snapshot is gone.
    pub continue_token: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            code: reason.code(),
            message: message.into(),
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: None,
            continue_token: String::new(),
        }
    }

    /// Fills `details` with the object the failure is about.
    pub fn about(mut self, group: &str, kind_or_resource: &str, name: &str) -> Self {
        self.group = group.into();
        self.kind = kind_or_resource.into();
        self.name = name.into();
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {message}"))
    }

    /// `resource.group "name" not found`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::new(Reason::NotFound, format!("{} {name:?} not found", qualified(resource, group)))
            .about(group, resource, name)
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::new(Reason::AlreadyExists, format!("{} {name:?} already exists", qualified(resource, group)))
            .about(group, resource, name)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(resource, group));
        Self::new(Reason::Conflict, message).about(group, resource, name)
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let message = match (resource, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{} is forbidden: {why}", qualified(resource, group)),
            _ => format!("{} {name:?} is forbidden: {why}", qualified(resource, group)),
        };
        Self::new(Reason::Forbidden, message).about(group, resource, name)
    }

    /// `Kind.group "name" is invalid: …`, one cause a field error.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &FieldErrors) -> Self {
        let mut failure = Self::new(
            Reason::Invalid,
            format!("{} {name:?} is invalid: {}", qualified(kind, group), errors.aggregate()),
        )
        .about(group, kind, name);
        failure.causes = errors
            .0
            .iter()
            .map(|error| Cause {
                reason: error.kind.cause_reason().into(),
                message: error.body(),
                field: error.field.to_string(),
            })
            .collect();
        failure
    }

    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind \"{}\"", qualified(resource, group));
        Self::new(Reason::MethodNotAllowed, message).about(group, resource, "")
    }

    /// The `v1` `Status` object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message,
        });
        if !self.continue_token.is_empty() {
            status["metadata"]["continue"] = self.continue_token.as_str().into();
        }
        if !self.reason.as_str().is_empty() {
            status["reason"] = self.reason.as_str().into();
        }
        let mut details = serde_json::Map::new();
        for (key, value) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !value.is_empty() {
                details.insert(key.into(), value.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|cause| {
                let mut entry = serde_json::Map::new();
                for (key, value) in [("reason", &cause.reason), ("message", &cause.message), ("field", &cause.field)] {
                    if !value.is_empty() {
                        entry.insert(key.into(), value.as_str().into());
                    }
                }
                Value::Object(entry)
            });
            details.insert("causes".into(), causes.collect());
        }
        if let Some(seconds) = self.retry_after_seconds {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status["code"] = self.code.into();
        status
    }
}

/// `resource.group`, or `resource` for the core group.
pub fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.into() } else { format!("{resource}.{group}") }
}

/// A path to a field: `spec.containers[0].name`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath(String);

impl FieldPath {
    pub fn root() -> Self {
        Self::default()
    }

    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.into()) } else { Self(format!("{}.{name}", self.0)) }
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// The kinds of field errors (`field.ErrorType`).
#[derive(Clone, Debug, PartialEq)]
pub enum FieldErrorKind {
    NotFound(Value),
    Required,
    Duplicate(Value),
    Invalid(Value),
    NotSupported { value: Value, valid: Vec<String> },
    Forbidden,
    TooLong { max: usize },
    TooMany { actual: usize, max: usize },
    Internal,
    TypeInvalid(Value),
}

impl FieldErrorKind {
    /// The word in a cause's `reason`.
    pub fn cause_reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate(_) => "FieldValueDuplicate",
            Self::Invalid(_) => "FieldValueInvalid",
            Self::NotSupported { .. } => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong { .. } => "FieldValueTooLong",
            Self::TooMany { .. } => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid(_) => "FieldValueTypeInvalid",
        }
    }
}

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub field: FieldPath,
    pub kind: FieldErrorKind,
    /// May be empty.
    pub detail: String,
}

/// A value as upstream prints it inside an error: strings quoted, numbers plain, structures as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        other => other.to_string(),
    }
}

impl FieldError {
    /// The message without the field: `Invalid value: "x": must be …`.
    pub fn body(&self) -> String {
        let detail = |head: String| {
            if self.detail.is_empty() { head } else { format!("{head}: {}", self.detail) }
        };
        match &self.kind {
            FieldErrorKind::NotFound(value) => detail(format!("Not found: {}", shown(value))),
            FieldErrorKind::Required => detail("Required value".into()),
            FieldErrorKind::Duplicate(value) => detail(format!("Duplicate value: {}", shown(value))),
            FieldErrorKind::Invalid(value) => detail(format!("Invalid value: {}", shown(value))),
            FieldErrorKind::TypeInvalid(value) => detail(format!("Invalid value: {}", shown(value))),
            FieldErrorKind::Forbidden => detail("Forbidden".into()),
            FieldErrorKind::Internal => detail("Internal error".into()),
            FieldErrorKind::TooLong { max } => {
                format!("Too long: may not be more than {max} bytes")
            }
            FieldErrorKind::TooMany { actual, max } => {
                format!("Too many: {actual}: must have at most {max} items")
            }
            FieldErrorKind::NotSupported { value, valid } => {
                let mut head = format!("Unsupported value: {}", shown(value));
                if !valid.is_empty() {
                    let quoted: Vec<String> = valid.iter().map(|one| format!("{one:?}")).collect();
                    head = format!("{head}: supported values: {}", quoted.join(", "));
                }
                head
            }
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// Collects field errors during validation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldErrors(pub Vec<FieldError>);

impl FieldErrors {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn push(&mut self, field: FieldPath, kind: FieldErrorKind, detail: impl Into<String>) {
        self.0.push(FieldError { field, kind, detail: detail.into() });
    }

    pub fn required(&mut self, field: FieldPath, detail: impl Into<String>) {
        self.push(field, FieldErrorKind::Required, detail);
    }

    pub fn invalid(&mut self, field: FieldPath, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(field, FieldErrorKind::Invalid(value.into()), detail);
    }

    pub fn forbidden(&mut self, field: FieldPath, detail: impl Into<String>) {
        self.push(field, FieldErrorKind::Forbidden, detail);
    }

    pub fn duplicate(&mut self, field: FieldPath, value: impl Into<Value>) {
        self.push(field, FieldErrorKind::Duplicate(value.into()), "");
    }

    /// `valid` in the order it is shown (upstream sorts it).
    pub fn not_supported(&mut self, field: FieldPath, value: impl Into<Value>, valid: &[&str]) {
        let valid = valid.iter().map(|one| (*one).to_owned()).collect();
        self.push(field, FieldErrorKind::NotSupported { value: value.into(), valid }, "");
    }

    /// One error as it is, several as `[a, b]`, each message once (`ErrorList.ToAggregate`).
    pub fn aggregate(&self) -> String {
        let mut messages: Vec<String> = Vec::new();
        for error in &self.0 {
            let message = error.to_string();
            if !messages.contains(&message) {
                messages.push(message);
            }
        }
        match messages.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        }
    }

    /// `Ok` when nothing was found, else the `Invalid` failure for this object.
    pub fn into_result(self, group: &str, kind: &str, name: &str) -> Result<(), Failure> {
        if self.is_empty() { Ok(()) } else { Err(Failure::invalid(group, kind, name, &self)) }
    }
}
