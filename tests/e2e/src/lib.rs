//! What the end-to-end tests share.

#![allow(clippy::disallowed_methods, reason = "these tests stand outside the seams: real time, real processes")]

pub mod load;
