//! The scheduler: binds pods to nodes.
//!
//! [`engine`] decides and does no IO; [`queue`] orders the pods that wait; the loop in [`cycle`] feeds both from the
//! watches and acts on each event at once; `bind` performs what was decided. It speaks to the API through
//! `sampan-client` alone. Volumes do not take part in decisions, and no pod is preempted for another.

mod bind;
pub mod cycle;
pub mod engine;
pub mod queue;
pub mod view;

pub use cycle::run;
