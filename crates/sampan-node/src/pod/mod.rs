//! One pod on this node, as pure functions of data: [`lifecycle`] decides what to do next, [`status`] says what the API
//! should see. Nothing here does IO, reads a clock or knows the API client.

pub mod conditions;
pub mod lifecycle;
pub mod restart;
#[cfg(test)]
mod simulation;

pub mod spec;
pub mod state;
pub mod status;

pub use lifecycle::{Plan, plan};
pub use spec::PodExt;
pub use state::{Action, Done, Fact, Failure, Op, ProbeKind, State};
