//! Doing something inside another network namespace. A namespace belongs to a thread, so the work runs on a thread of
//! its own that ends with it; nothing else of the process ever leaves its namespace.

use std::fs::File;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::NetError;

/// Runs `work` on a thread inside the namespace at `path` (`/proc/PID/ns/net`). The current tokio runtime is entered, so
/// sockets made inside can be used outside: a socket stays in the namespace it was made in.
pub async fn run_in<T, F>(path: &Path, work: F) -> Result<T, NetError>
where
    T: Send + 'static,
    F: FnOnce() -> std::io::Result<T> + Send + 'static,
{
    let file = File::open(path).map_err(|error| NetError::step(format!("open {}", path.display()), error))?;
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            let _runtime = runtime.enter();
            let result = setns(&file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from).and_then(|()| work());
            // The caller may have gone away; then nobody wants the result.
            let _ = sender.send(result);
        })
        .map_err(|error| NetError::step("start a thread", error))?;
    match receiver.await {
        Ok(result) => result.map_err(|error| NetError::step(format!("inside {}", path.display()), error)),
        Err(_) => Err(NetError::System("the thread inside the network namespace died".into())),
    }
}
