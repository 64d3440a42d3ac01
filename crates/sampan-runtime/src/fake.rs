//! A machine that exists in memory only: [`Fake`] implements [`Runtime`] and [`Images`] in virtual time, so that the
//! node's pod state machine is tested without root. It obeys the same contract suite as the real runtime.
//!
//! Deterministic: ids come from the dice, ends of processes from the clock. Containers run until they are stopped unless
//! [`Fake::behave`] or the command ([`Behaviour::of_command`]) says otherwise; calls fail as [`Fake::fail_next`] says.

mod behaviour;
mod images;
mod machine;
#[cfg(test)]
mod tests;

pub use behaviour::Behaviour;
pub use machine::{Fake, Operation};
