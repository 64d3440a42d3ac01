//! `exec`: exit code 0 is success.

use std::time::Duration;

use k8s_openapi::api::core::v1::ExecAction;
use sampan_runtime::{Error, ExecRequest};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{Answer, Target};

/// How much of the command's output an event shows.
const OUTPUT_MAX: u64 = 10 * 1024;

pub async fn attempt(target: &Target, action: &ExecAction, limit: Duration) -> Answer {
    let request = ExecRequest {
        command: action.command.clone().unwrap_or_default(),
        stdout: true,
        stderr: true,
        timeout: Some(limit),
        ..ExecRequest::default()
    };
    let session = match target.runtime.exec(&target.container_id, &request).await {
        Ok(session) => session,
        Err(error @ Error::Start(_)) => return Answer::Failure(error.to_string()),
        Err(error) => return Answer::Broken(error.to_string()),
    };
    let exit = session.exit;
    let (out, err) = (session.stdout, session.stderr);
    let (out, err, exit) = tokio::join!(read(out), read(err), exit);
    match exit {
        Ok(Ok(0)) => Answer::Success,
        Ok(Ok(_)) => Answer::Failure(out + &err),
        Ok(Err(Error::Timeout(limit))) => Answer::Failure(format!("command timed out after {limit:?}")),
        Ok(Err(error)) => Answer::Broken(error.to_string()),
        Err(_) => Answer::Broken("the runtime gave no exit code".into()),
    }
}

async fn read(stream: Option<Box<dyn AsyncRead + Send + Unpin>>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let mut stream = stream.take(OUTPUT_MAX);
        // What came before an error is still worth showing.
        let _ = stream.read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(stream.get_mut(), &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
