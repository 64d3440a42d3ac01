//! Pods: the kind with the most rules. Defaults, QoS, what a create sets, what an update may change.

pub mod defaults;
