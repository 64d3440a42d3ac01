//! The seams every other crate reaches the outside world through: time, randomness, the disk and task spawning.
//!
//! What this crate is not: it knows nothing of Kubernetes, HTTP or containers. Code outside this crate never calls the
//! standard short-cuts around a seam (`std::time::SystemTime::now`, `std::thread::spawn`, bare `tokio::spawn`, …);
//! `clippy.toml` bans them with the reason beside each ban. That is what lets the whole cluster run in virtual time on
//! one seed (see `ARCHITECTURE.md`, "Determinism").

pub mod clock;
pub mod dice;
pub mod disk;
pub mod logging;
pub mod task;

pub use clock::Clock;
pub use dice::Dice;
