//! The API server: HTTP → authentication → authorization → admission → registry → state; watches; streaming to nodes.
//!
//! There is one generic handler per verb and none per kind. It is the only user of `sampan-store`.

pub mod admission;
pub mod audit;
pub mod auth;
pub mod body;
pub mod bootstrap;
mod convert;
mod delete;
mod discovery;
mod encoding;
pub mod expire;
mod fence;
mod forms;
pub mod hooks;
mod keys;
pub mod listener;
mod local;
pub mod lookup;
mod metrics;
mod namespaces;
mod negotiate;
mod openapi;
mod options;
mod pages;
mod patch;
mod pods;
mod pretty;
mod read;
pub mod request_info;
pub mod respond;
mod route;
mod scale;
mod select;
pub mod server;
pub mod services;
mod state;
pub mod streaming;
mod table;
mod watch;
mod write;

#[cfg(test)]
mod tests;

pub use local::Local;
pub use server::{Config, Server, Version};
pub use state::{Feed, StoreLookup, feed};
pub mod descriptions;
