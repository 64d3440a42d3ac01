//! The controllers: one file each, on one small framework.
//!
//! They know the API only through `sampan-client`. What is hard in each is a pure function of what its caches hold; the
//! rest performs the writes. They patch, create and delete; they never put a typed object back.

pub mod conditions;
pub mod deployment;
pub mod framework;
pub mod ownership;
pub mod replicaset;
pub mod views;

#[cfg(test)]
mod testing;
