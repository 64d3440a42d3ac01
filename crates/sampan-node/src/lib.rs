//! The agent of one machine: what a kubelet is.

pub mod pod;
pub mod quantity;
pub mod resources;
