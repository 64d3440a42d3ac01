//! Spawning. Every background task has a name, and a panic in it is logged with that name instead of vanishing.

use std::future::Future;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};

/// Spawns a named task on the current runtime.
#[allow(clippy::disallowed_methods, reason = "this is the seam")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(async move {
        tracing::trace!(task = name, "started");
        future.await
    })
}

/// Runs blocking work (disk, archives) off the async threads.
#[allow(clippy::disallowed_methods, reason = "this is the seam")]
pub fn spawn_blocking<F, R>(work: F) -> JoinHandle<R>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    tokio::task::spawn_blocking(work)
}

/// Runs `role` for ever: when it ends or panics it is started again after a pause that doubles up to 30 s. A fault in
/// one role of a process must not take the others down.
pub fn supervise<F, Fut>(name: &'static str, clock: crate::Clock, mut role: F) -> JoinHandle<()>
where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    spawn(name, async move {
        let mut pause = Duration::from_millis(100);
        loop {
            let started = clock.instant();
            match spawn(name, role()).await {
                Ok(()) => tracing::warn!(task = name, "ended; starting it again"),
                Err(error) if error.is_cancelled() => return,
                Err(error) => tracing::error!(task = name, %error, "panicked; starting it again"),
            }
            if started.elapsed() > Duration::from_secs(60) {
                pause = Duration::from_millis(100);
            }
            clock.sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    })
}

/// Tasks that end with their owner: dropping the group aborts them.
#[derive(Default)]
pub struct Group(Vec<AbortHandle>);

impl Group {
    pub fn spawn<F>(&mut self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.retain(|task| !task.is_finished());
        self.0.push(spawn(name, future).abort_handle());
    }

    /// Takes over a task that runs already.
    pub fn adopt<T>(&mut self, task: JoinHandle<T>) {
        self.0.push(task.abort_handle());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}
