//! The object model: kinds, schemas, defaulting, validation, patching, apply, selectors, quantities, tables and wire
//! formats.
//!
//! Pure: no IO, no clock, no async, no global state but immutable tables. Objects are `serde_json::Value` trees while
//! they are being written and canonical JSON bytes everywhere else.

pub mod apply;
pub mod codec;
pub mod default;
pub mod duration;
pub mod error;
pub mod kind;
pub mod labels;
pub mod meta;
pub mod names;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod strategy;
pub mod table;
#[cfg(test)]
mod testing;

pub use error::{Failure, FieldError, FieldErrors, FieldPath, Reason};
pub use kind::{Gvk, Gvr, Kind, Kinds, Scope};
