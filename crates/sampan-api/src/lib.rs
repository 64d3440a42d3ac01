//! The object model: kinds, schemas, defaulting, validation, patching, apply, selectors, quantities, tables and wire
//! formats.
//!
//! Pure: no IO, no clock, no async, no global state but immutable tables. Objects are `serde_json::Value` trees while
//! they are being written and canonical JSON bytes everywhere else.

pub mod error;
pub mod kind;
pub mod labels;
pub mod object;
pub mod quantity;
pub mod schema;
pub mod strategy;

pub use error::{Failure, FieldError, FieldErrors, FieldPath, Reason};
pub use kind::{Gvk, Gvr, Kind, Kinds, Scope};
