//! How everything but the API server reaches the API: one [`Client`] over a [`Transport`], in process or over TLS; on
//! top of it informers over bytes, work queues, an event recorder and leader election.
//!
//! The in-process transport is a function call that enters where TLS does: it carries user, groups and audit id and
//! passes authorization, admission and audit like any other request. One test-suite runs over both.

pub mod api;
pub mod error;
pub mod events;
pub mod informer;
pub mod leader;
pub mod queue;
pub mod tls;
pub mod transport;

pub use api::{Client, DeleteOptions, ListOptions, PatchKind, WatchEvent, WriteOptions};
pub use error::Error;
pub use transport::{Body, InProcess, Transport};
