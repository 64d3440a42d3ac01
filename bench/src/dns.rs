//! The cluster's DNS, asked from inside a node as a pod asks.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Service;
use sampan_base::{Clock, task};
use sampan_net::netns;

use crate::local::Cluster;
use crate::report::{Figure, percentile};
use crate::target::Target;

/// Each has one question open at a time.
const ASKERS: usize = 16;
const ASKING: Duration = Duration::from_secs(3);

/// The A record of `kubernetes.default.svc.cluster.local`; the first two bytes are the id.
const QUERY: &[u8] =
    b"\0\0\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0akubernetes\x07default\x03svc\x07cluster\x05local\0\
                       \x00\x01\x00\x01";

pub async fn answers(target: &Target, cluster: &Cluster, clock: &Clock) -> anyhow::Result<Vec<Figure>> {
    let service: Service = target.client()?.get(Some("kube-system"), "kube-dns").await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("kube-dns has no address")?;
    let server = SocketAddr::new(address.parse::<IpAddr>()?, 53);
    let node = cluster.node_netns().await?;
    let sockets = netns::run_in(&node, move || {
        let socket = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            tokio::net::UdpSocket::from_std(socket)
        };
        (0..ASKERS).map(|_| socket()).collect::<Result<Vec<_>, _>>()
    });
    let start = clock.instant();
    let askers = sockets.await?.into_iter().map(|socket| {
        let clock = clock.clone();
        task::spawn("asking", async move {
            let (mut took, mut query, mut answer) = (Vec::new(), QUERY.to_vec(), [0; 512]);
            while start.elapsed() < ASKING {
                query[..2].copy_from_slice(&(took.len() as u16).to_be_bytes());
                let sent = clock.instant();
                socket.send(&query).await?;
                let received = clock.timeout(Duration::from_secs(1), socket.recv(&mut answer)).await;
                let length = received.context("DNS does not answer")??;
                // The same id, no error, an answer.
                if length < 12 || answer[..2] != query[..2] || answer[3] & 0x0f != 0 || answer[7] == 0 {
                    bail!("DNS answers wrongly");
                }
                took.push(sent.elapsed());
            }
            anyhow::Ok(took)
        })
    });
    let done: Vec<_> = try_join_all(askers).await?.into_iter().collect::<anyhow::Result<_>>()?;
    let mut took = done.concat();
    let rate = took.len() as f64 / start.elapsed().as_secs_f64();
    Ok(vec![
        Figure::new(format!("DNS answers, {ASKERS} askers"), rate, "/s").at_least(30_000.0),
        Figure::new("  an answer, p99", percentile(&mut took, 0.99), "ms").at_most(1.0),
    ])
}
