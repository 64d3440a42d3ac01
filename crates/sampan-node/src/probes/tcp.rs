//! `tcpSocket`: a connection that opens is success.

use k8s_openapi::api::core::v1::TCPSocketAction;
use tokio::net::TcpStream;

use super::{Answer, Target, host, port};

pub async fn attempt(target: &Target, action: &TCPSocketAction) -> Answer {
    let Some(port) = port(&target.container, &action.port) else {
        return Answer::Broken("the probe's port is not a port of the container".into());
    };
    let Some(host) = host(target, action.host.as_ref()) else {
        return Answer::Broken("the pod has no address yet".into());
    };
    match TcpStream::connect((host.as_str(), port)).await {
        Ok(_) => Answer::Success,
        Err(error) => Answer::Failure(format!("dial tcp {host}:{port}: {error}")),
    }
}
