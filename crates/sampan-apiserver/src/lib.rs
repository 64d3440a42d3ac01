//! The API server: HTTP → authentication → authorization → admission → registry → state; watches; streaming to nodes.
//!
//! There is one generic handler per verb and none per kind. It is the only user of `sampan-store`.

pub mod admission;
pub mod auth;
pub mod descriptions;
