//! A registry on loopback: as much HTTP as pulling needs, and the faults it has to survive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use sampan_base::task;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

pub(super) struct Registry {
    /// `127.0.0.1:PORT`
    pub address: String,
    pub state: Arc<Mutex<State>>,
    _tasks: task::Group,
}

#[derive(Default)]
pub(super) struct State {
    /// By path.
    pub documents: BTreeMap<String, Vec<u8>>,
    /// `user:password` that gets a token; `None`: everybody may pull.
    pub password: Option<String>,
    /// Blobs are cut off after so many bytes, so many times.
    pub cuts: (usize, u32),
    pub requests: Vec<String>,
}

impl Registry {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let mut tasks = task::Group::default();
        let (shared, own) = (state.clone(), address.clone());
        tasks.spawn("registry", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, address) = (shared.clone(), own.clone());
                task::spawn("registry connection", async move {
                    let _ = serve(stream, &state, &address).await;
                });
            }
        });
        Self { address, state, _tasks: tasks }
    }

    /// Puts an image there: one gzip-compressed layer per archive given.
    pub(super) fn publish(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) {
        use std::io::Write as _;
        let mut state = self.state.lock().expect("not poisoned");
        let mut put = |kind: &str, name: Option<&str>, bytes: Vec<u8>| {
            let digest = crate::images::digest(&bytes);
            let size = bytes.len();
            state.documents.insert(format!("/v2/{repository}/{kind}/{digest}"), bytes.clone());
            if let Some(name) = name {
                state.documents.insert(format!("/v2/{repository}/{kind}/{name}"), bytes);
            }
            serde_json::json!({ "digest": digest, "size": size })
        };
        let diff_ids: Vec<String> = layers.iter().map(|layer| crate::images::digest(layer)).collect();
        let config = serde_json::json!({
            "config": { "Cmd": ["run"], "User": "5" },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = put("blobs", None, config.to_string().into_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(layer).expect("compressed");
                put("blobs", None, encoder.finish().expect("compressed"))
            })
            .collect();
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut manifest = put("manifests", None, manifest.to_string().into_bytes());
        let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        manifest["platform"] = serde_json::json!({ "architecture": architecture, "os": "linux" });
        let mut foreign = manifest.clone();
        foreign["platform"]["architecture"] = "s390x".into();
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [foreign, manifest] });
        put("manifests", Some(tag), index.to_string().into_bytes());
    }
}

async fn serve(stream: TcpStream, state: &Mutex<State>, address: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")));
        line.and_then(|line| line.split_once(": ")).map(|(_, value)| value.to_owned())
    };
    let length = header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let target = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let (answer, mut content, cut) = {
        let mut state = state.lock().expect("not poisoned");
        state.requests.push(path.clone());
        respond(&mut state, address, &path, &target, &body, &header)
    };
    let head = format!("HTTP/1.1 {answer}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len());
    if let Some(cut) = cut {
        content.truncate(cut);
    }
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&content).await?;
    stream.shutdown().await
}

fn respond(
    state: &mut State,
    address: &str,
    path: &str,
    target: &str,
    body: &[u8],
    header: &dyn Fn(&str) -> Option<String>,
) -> (String, Vec<u8>, Option<usize>) {
    use base64::Engine as _;
    let plain = |answer: &str| (answer.to_owned(), Vec::new(), None);
    if path == "/token" {
        let expected = state.password.clone().unwrap_or_default();
        let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(&expected));
        let by_identity = String::from_utf8_lossy(body).contains("refresh_token=identity");
        assert!(target.contains("service=test") || by_identity, "{target}");
        return match header("authorization").as_deref() == Some(&basic) || by_identity {
            true => ("200 OK".to_owned(), br#"{"token":"good"}"#.to_vec(), None),
            false => plain("401 Unauthorized"),
        };
    }
    if state.password.is_some() && header("authorization").as_deref() != Some("Bearer good") {
        let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"test\"");
        return plain(&format!("401 Unauthorized\r\nWWW-Authenticate: {challenge}"));
    }
    let Some(content) = state.documents.get(path).cloned() else { return plain("404 Not Found") };
    let mut cut = None;
    if path.contains("/blobs/") && content.len() > state.cuts.0 && state.cuts.1 > 0 {
        state.cuts.1 -= 1;
        cut = Some(state.cuts.0);
    }
    let from = header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) => ("206 Partial Content".to_owned(), content[from..].to_vec(), cut),
        None => ("200 OK".to_owned(), content, cut),
    }
}
