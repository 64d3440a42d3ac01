//! `sampan image`: images in the nodes of a local cluster, through each agent's control socket.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use sampan_base::task;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::cli;
use crate::local::{self, Cluster};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub fn run(command: &cli::Image) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match command {
            cli::Image::Load { archive, named } => load(&local::find_or_fail(&named.name)?, archive).await,
            cli::Image::Pull { reference, named } => {
                let cluster = local::find_or_fail(&named.name)?;
                for node in &cluster.nodes {
                    let image = call(&cluster, node, Method::POST, &query("/images/pull", reference), empty()).await?;
                    println!("{node}: {}", image["id"].as_str().unwrap_or_default());
                }
                Ok(())
            }
            cli::Image::Ls { named, output } => list(&local::find_or_fail(&named.name)?, output).await,
            cli::Image::Rm { reference, named } => {
                let cluster = local::find_or_fail(&named.name)?;
                for node in &cluster.nodes {
                    call(&cluster, node, Method::DELETE, &query("/images", reference), empty()).await?;
                }
                Ok(())
            }
        }
    })
}

fn query(path: &str, reference: &str) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("reference", reference).finish();
    format!("{path}?{query}")
}

/// All nodes read the same archive at the same time.
async fn load(cluster: &Cluster, archive: &Path) -> anyhow::Result<()> {
    let source: Box<dyn Read + Send> = if archive == Path::new("-") {
        if std::io::stdin().is_terminal() {
            bail!("standard input is a terminal; pipe an archive into it: docker save IMAGE | sampan image load -");
        }
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(archive).with_context(|| format!("open {}", archive.display()))?)
    };
    let (senders, receivers): (Vec<_>, Vec<_>) = cluster.nodes.iter().map(|_| mpsc::channel::<Bytes>(8)).unzip();
    let reading = task::spawn_blocking(move || read_out(source, &senders));
    let loads = cluster.nodes.iter().zip(receivers).map(|(node, receiver)| async move {
        let chunks = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|chunk| (Ok(Frame::data(chunk)), receiver))
        });
        let body = StreamBody::new(chunks).boxed_unsync();
        call(cluster, node, Method::POST, "/images/load", body).await
    });
    let loaded = futures::future::join_all(loads).await;
    reading.await?.with_context(|| format!("read {}", archive.display()))?;
    for (node, images) in cluster.nodes.iter().zip(loaded) {
        for image in images?.as_array().into_iter().flatten() {
            let tags: Vec<&str> = image["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            println!("{node}: {} {}", image["id"].as_str().unwrap_or_default(), tags.join(" "));
        }
    }
    Ok(())
}

/// A node that has failed takes no more; the others go on.
fn read_out(mut source: Box<dyn Read + Send>, nodes: &[mpsc::Sender<Bytes>]) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = source.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let chunk = Bytes::copy_from_slice(&buffer[..length]);
        let taken = nodes.iter().filter(|node| node.blocking_send(chunk.clone()).is_ok()).count();
        if taken == 0 {
            return Ok(());
        }
    }
}

async fn list(cluster: &Cluster, output: &cli::Output) -> anyhow::Result<()> {
    let mut all = serde_json::Map::new();
    for node in &cluster.nodes {
        all.insert(node.clone(), call(cluster, node, Method::GET, "/images", empty()).await?);
    }
    if output.output.is_some() {
        println!("{:#}", json!({"nodes": all}));
        return Ok(());
    }
    println!("{:<16} {:<72} {:>9}  TAGS", "NODE", "ID", "SIZE");
    for (node, images) in &all {
        for image in images.as_array().into_iter().flatten() {
            let tags: Vec<&str> = image["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let size = image["sizeBytes"].as_u64().unwrap_or_default() as f64 / (1024.0 * 1024.0);
            println!("{node:<16} {:<72} {size:>5.1} MiB  {}", image["id"].as_str().unwrap_or_default(), tags.join(" "));
        }
    }
    Ok(())
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

async fn call(cluster: &Cluster, node: &str, method: Method, uri: &str, body: Body) -> anyhow::Result<Value> {
    let path = cluster.node_socket(node);
    let stream = UnixStream::connect(&path).await.with_context(|| format!("reach the agent of {node}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    task::spawn("control connection", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "control connection");
        }
    });
    let request = Request::builder().method(method).uri(uri).header(http::header::HOST, "sampan").body(body)?;
    let response = sender.send_request(request).await.with_context(|| format!("ask the agent of {node}"))?;
    let failed = !response.status().is_success();
    let bytes = response.into_body().collect().await?.to_bytes();
    let value: Value = serde_json::from_slice(&bytes).with_context(|| format!("read the answer of {node}"))?;
    if failed {
        bail!("{node}: {}", value["error"].as_str().unwrap_or("the agent refused"));
    }
    Ok(value)
}
