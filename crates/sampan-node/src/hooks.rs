//! Lifecycle hooks: postStart and preStop by exec, HTTP or sleep.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use sampan_runtime::{ExecRequest, Runtime};
use tokio::io::AsyncReadExt as _;

use crate::node::Node;
use crate::probes::{self, http};

/// Runs a hook to its end. Errors are texts for events and statuses.
pub async fn run(
    node: &Node,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    address: Option<IpAddr>,
) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        return exec(&*node.parts.runtime, id, action.command.clone().unwrap_or_default()).await;
    }
    if let Some(action) = &handler.sleep {
        node.parts.clock.sleep(Duration::from_secs(action.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    if let Some(action) = &handler.http_get {
        let target = probes::Target {
            runtime: node.parts.runtime.clone(),
            clock: node.parts.clock.clone(),
            container_id: id.into(),
            container: container.clone(),
            address,
            started_at: node.parts.clock.now(),
        };
        // Any answer will do: upstream checks that there is one.
        return http::get(&target, action, "kube-lifecycle/1.37").await.map(|_| ());
    }
    Err("invalid handler".into())
}

async fn exec(runtime: &dyn Runtime, id: &str, command: Vec<String>) -> Result<(), String> {
    let shown = command.join(" ");
    let request = ExecRequest { command, stdout: true, stderr: true, ..ExecRequest::default() };
    let session = runtime.exec(id, &request).await.map_err(|error| error.to_string())?;
    let read = |stream: Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>| async move {
        let mut text = Vec::new();
        if let Some(mut stream) = stream {
            // What came before an error is still worth showing.
            let _ = (&mut stream).take(1024).read_to_end(&mut text).await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    let (out, err, exit) = tokio::join!(read(session.stdout), read(session.stderr), session.exit);
    match exit {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(code)) => Err(format!("command '{shown}' exited with {code}: {out}{err}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the runtime gave no exit code".into()),
    }
}
