//! `grpc`: the standard health service must answer `SERVING` (`grpc/health/v1/health.proto`).

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::GRPCAction;
use sampan_base::task;
use tokio::net::TcpStream;

use super::{Answer, Target};

pub async fn attempt(target: &Target, action: &GRPCAction) -> Answer {
    let Some(host) = target.address else { return Answer::Broken("the pod has no address yet".into()) };
    let Ok(port) = u16::try_from(action.port) else { return Answer::Broken("the probe's port is not a port".into()) };
    match check(&host.to_string(), port, action.service.as_deref().unwrap_or_default()).await {
        Ok(1) => Answer::Success,
        Ok(status) => {
            let word = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"].get(status as usize).unwrap_or(&"?");
            Answer::Failure(format!("service unhealthy (responded with {word:?})"))
        }
        Err(error) => Answer::Failure(error),
    }
}

/// The `ServingStatus`.
async fn check(host: &str, port: u16, service: &str) -> Result<u64, String> {
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| format!("timeout: failed to connect service \"{host}:{port}\": {error}"))?;
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
    let mut group = task::Group::default();
    group.spawn("probe connection", async move {
        // An error here ends the request below, which reports it.
        let _ = connection.await;
    });
    let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let request = Request::post(format!("http://{shown}:{port}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.37")
        .body(Full::new(frame(&request_message(service))))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(text)?;
    let in_headers = grpc_status(response.headers());
    let body = response.into_body().collect().await.map_err(text)?;
    let code = body.trailers().and_then(grpc_status).or(in_headers).unwrap_or(0);
    match code {
        0 => serving_status(&body.to_bytes()).ok_or_else(|| "the answer is not a HealthCheckResponse".into()),
        12 => Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".into()),
        code => Err(format!("rpc error: code = {code}")),
    }
}

fn grpc_status(headers: &http::HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// `HealthCheckRequest { service = 1 }`
fn request_message(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length as u8 & 0x7f) | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    message
}

/// Not compressed, length, message.
fn frame(message: &[u8]) -> Bytes {
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(message);
    Bytes::from(frame)
}

/// `HealthCheckResponse { status = 1 }`; an absent field is 0, `UNKNOWN`.
fn serving_status(frame: &[u8]) -> Option<u64> {
    let (head, message) = frame.split_at_checked(5)?;
    if head[0] != 0 {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, status, ..] => Some(u64::from(*status)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(request_message(""), b"");
        assert_eq!(request_message("a.b"), b"\x0a\x03a.b");
        assert_eq!(frame(b"xy"), &b"\0\0\0\0\x02xy"[..]);
        assert_eq!(serving_status(b"\0\0\0\0\x02\x08\x01"), Some(1));
        assert_eq!(serving_status(b"\0\0\0\0\0"), Some(0));
        assert_eq!(serving_status(b"\0"), None);
    }
}
