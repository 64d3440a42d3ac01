//! Time. Monotonic time and sleeping come from tokio's clock, which a paused runtime makes virtual; wall-clock time is
//! either the system's or a fixed start plus the monotonic time that has passed.
//!
//! Instants are [`tokio::time::Instant`]; wall-clock times are [`jiff::Timestamp`].

use std::time::Duration;

use jiff::Timestamp;
pub use tokio::time::Instant;

/// A cheap handle on time. Clone it freely.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    /// Virtual wall time: `epoch` plus the (paused) tokio time since `origin`.
    Virtual {
        epoch: Timestamp,
        origin: Instant,
    },
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that starts at `epoch` now and advances with tokio's time. On a runtime whose time is paused it moves
    /// only when every task sleeps, so a run is a function of its inputs. Must be called within a tokio runtime.
    pub fn simulated(epoch: Timestamp) -> Self {
        Self(Source::Virtual { epoch, origin: Instant::now() })
    }

    /// The wall-clock time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            #[allow(clippy::disallowed_methods, reason = "this is the seam")]
            Source::System => Timestamp::now(),
            Source::Virtual { epoch, origin } => {
                let passed = jiff::SignedDuration::try_from(origin.elapsed()).unwrap_or(jiff::SignedDuration::MAX);
                epoch.saturating_add(passed).unwrap_or(Timestamp::MAX)
            }
        }
    }

    /// Monotonic time.
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    pub async fn sleep_until(&self, deadline: Instant) {
        tokio::time::sleep_until(deadline).await;
    }

    /// Runs `future` for at most `limit`; `None` when the time ran out.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        tokio::time::timeout(limit, future).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn virtual_wall_time_follows_the_paused_runtime() {
        let start: Timestamp = "2030-01-01T00:00:00Z".parse().expect("a timestamp");
        let clock = Clock::simulated(start);
        clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!(clock.now().to_string(), "2030-01-01T01:00:00Z");
    }
}
