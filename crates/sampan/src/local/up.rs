//! `sampan up`: from nothing to a cluster whose nodes are ready and whose DNS answers. Everything it does is idempotent:
//! interrupted, it is finished by calling it again; on a running cluster it says so and succeeds.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use sampan_base::Clock;
use sampan_base::disk::{Disk, RealDisk};
use sampan_client::{Client, ListOptions};
use sampan_net::netns;
use serde_json::json;

use super::{Cluster, FORMAT, Processes, hostnet, init};
use crate::output::{Steps, text};
use crate::{Exit, cli, doctor, kubeconfig, node, server};

/// Where kubectl expects an API server; the next free one after it is taken.
const FIRST_PORT: u16 = 6443;

pub fn run(options: &cli::Up) -> anyhow::Result<()> {
    require_root()?;
    super::check_name(&options.named.name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(up(options))
}

pub fn require_root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a cluster needs root on this machine (namespaces, mounts, cgroups); run it with sudo");
    }
    Ok(())
}

async fn up(options: &cli::Up) -> anyhow::Result<()> {
    let clock = Clock::system();
    let mut steps = Steps::new(clock.clone());
    // What cannot be written later is better found now.
    let kubeconfig_path = match &options.kubeconfig {
        Some(path) => path.clone(),
        None => kubeconfig::default_path()?,
    };
    kubeconfig::read(&kubeconfig_path)?;

    let running = super::find(&options.named.name)?;
    let supervised = match &running {
        Some(cluster) => match Processes::load(cluster).supervisor {
            Some(process) => process.open()?.is_some(),
            None => false,
        },
        None => false,
    };
    let cluster = match running {
        Some(cluster) if supervised => {
            steps.note(&format!("cluster {:?} is running already", cluster.name));
            if usize::from(options.nodes) != cluster.nodes.len() && options.nodes != 1 {
                steps.note(&format!("it keeps its {} node(s); take it down to change that", cluster.nodes.len()));
            }
            cluster
        }
        _ => {
            doctor::require()?;
            let cluster = plan(options, &clock)?;
            prepare(&cluster, &clock).await?;
            steps.done("prepared state, certificates and configuration");
            start_supervisor(&cluster)?;
            cluster
        }
    };

    // Also when not all of it becomes ready: kubectl is how one finds out why.
    let own: serde_json::Value = serde_saphyr::from_str(&fs::read_to_string(cluster.admin_kubeconfig())?)?;
    kubeconfig::change(&kubeconfig_path, |config| kubeconfig::merged(config, &own))?;
    steps.done(format!("context {:?} is current in {}", cluster.context(), kubeconfig_path.display()));

    let waiting = ready(&cluster, &clock, &mut steps);
    if clock.timeout(options.timeout, waiting).await.transpose()?.is_none() {
        return Err(Exit::Timeout(format!(
            "cluster {:?} is not ready after {}; `sampan status` and `sampan logs` tell more, `sampan down` removes it",
            cluster.name,
            text(options.timeout)
        ))
        .into());
    }
    if options.output.output.is_some() {
        let done = steps.done.iter().map(|(step, took)| json!({"step": step, "milliseconds": took.as_millis() as u64}));
        let report = json!({
            "name": cluster.name, "context": cluster.context(), "nodes": cluster.nodes,
            "server": format!("https://127.0.0.1:{}", cluster.port),
            "steps": done.collect::<Vec<_>>(), "milliseconds": steps.total().as_millis() as u64,
        });
        println!("{report:#}");
    } else {
        steps.note(&format!("cluster {:?} is ready after {}", cluster.name, text(steps.total())));
    }
    Ok(())
}

/// What the cluster will be: kept data decides, then the options.
fn plan(options: &cli::Up, clock: &Clock) -> anyhow::Result<Cluster> {
    let name = options.named.name.clone();
    let data = options.data_dir.clone().unwrap_or_else(|| super::default_data(&name));
    fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
    let data = data.canonicalize()?;
    let others: Vec<Cluster> = super::all()?.into_iter().filter(|other| other.name != name).collect();
    let taken_ports: Vec<u16> = others.iter().map(|other| other.port).collect();
    let mut cluster = if data.join("cluster.json").exists() {
        let kept = Cluster::load(&data)?;
        if kept.name != name {
            bail!("{} holds the cluster {:?}, not {name:?}", data.display(), kept.name);
        }
        if let Some(other) = others.iter().find(|other| other.index == kept.index) {
            bail!("the addresses of cluster {name:?} are in use by cluster {:?}; take that one down first", other.name);
        }
        kept
    } else {
        let taken: Vec<u8> = others.iter().map(|other| other.index).collect();
        Cluster {
            format: FORMAT,
            index: super::free_index(&taken, &hostnet::routes()?)?,
            nodes: (0..options.nodes).map(|number| node_name(&name, number)).collect(),
            port: free_port(&taken_ports)?,
            publish: Vec::new(),
            mounts: Vec::new(),
            created: Timestamp::UNIX_EPOCH.max(clock.now()),
            name,
            data,
        }
    };
    cluster.publish.clone_from(&options.publish);
    cluster.mounts.clone_from(&options.mount);
    for publish in &cluster.publish {
        TcpListener::bind(publish.listen)
            .with_context(|| format!("--publish: {} cannot be listened on", publish.listen))?;
    }
    Ok(cluster)
}

fn node_name(cluster: &str, number: u8) -> String {
    if cluster == super::DEFAULT_NAME { format!("node-{number}") } else { format!("{cluster}-node-{number}") }
}

fn free_port(taken: &[u16]) -> anyhow::Result<u16> {
    let free = |port: &u16| !taken.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (FIRST_PORT..FIRST_PORT + 200).find(free).context("no free port between 6443 and 6642 for the API server")
}

/// Directories, certificates and configuration files of all processes.
async fn prepare(cluster: &Cluster, clock: &Clock) -> anyhow::Result<()> {
    cluster.save()?;
    let run = cluster.run_dir();
    fs::create_dir_all(run.join("logs")).with_context(|| format!("create {}", run.display()))?;
    let link = run.join("data");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&cluster.data, &link).with_context(|| format!("create {}", link.display()))?;

    let service = cluster.service_range();
    let server = server::Config {
        name: cluster.name.clone(),
        data: cluster.data.join("server"),
        pki: cluster.data.join("pki"),
        listen: vec![SocketAddr::from((cluster.server_address(), FIRST_PORT))],
        inherited_socket: true,
        advertise: SocketAddr::from((cluster.server_address(), FIRST_PORT)),
        names: Vec::new(),
        pod_ranges: vec![cluster.pod_range()],
        node_mask_v4: 24,
        service_ranges: vec![service],
        dns: cluster.dns_address(),
        domain: "cluster.local".into(),
        load_balancer_addresses: (0..cluster.nodes.len())
            .map(|position| IpAddr::from(cluster.node_address(position)))
            .collect(),
    };
    let pki = server::Pki::prepare(&server, clock).context("prepare the certificates")?;
    let url = format!("https://127.0.0.1:{}", cluster.port);
    RealDisk.replace(&cluster.admin_kubeconfig(), pki.admin_kubeconfig(&cluster.context(), &url)?.as_bytes())?;
    RealDisk.replace(&cluster.data.join("server.json"), &serde_json::to_vec_pretty(&server)?)?;
    for (position, name) in cluster.nodes.iter().enumerate() {
        let directory = cluster.node_dir(name);
        RealDisk.create_dir_all(&directory)?;
        let address = IpAddr::from(cluster.node_address(position));
        pki.issue_node(&directory, name, &[address], clock)?;
        let config = node::Config::local(&server, name, address);
        RealDisk.replace(&directory.join(init::NODE_CONFIG), &serde_json::to_vec_pretty(&config)?)?;
    }
    Ok(())
}

/// In the background and out of the caller's session, so that it outlives the terminal.
fn start_supervisor(cluster: &Cluster) -> anyhow::Result<()> {
    let path = cluster.log("supervisor");
    let log = fs::File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("open {}", path.display()))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("sampan").args(["supervise", "--name", &cluster.name]).current_dir("/");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: setsid is a plain system call.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    command.spawn().context("start the supervisor")?;
    Ok(())
}

/// Waits for the API, the nodes and DNS, and says how long each took.
async fn ready(cluster: &Cluster, clock: &Clock, steps: &mut Steps) -> anyhow::Result<()> {
    const PROBE: Duration = Duration::from_millis(5);
    let client = server::admin_client(cluster, clock)?;
    while client.request(get("/readyz")?).await.is_err() {
        clock.sleep(PROBE).await;
    }
    steps.done("API server answers");
    while !nodes_ready(&client, cluster).await {
        clock.sleep(PROBE).await;
    }
    steps.done(format!("{} node(s) ready", cluster.nodes.len()));
    for name in &cluster.nodes {
        while !dns_answers(cluster, name).await {
            clock.sleep(PROBE).await;
        }
    }
    steps.done("cluster DNS answers");
    Ok(())
}

fn get(path: &str) -> anyhow::Result<http::Request<bytes::Bytes>> {
    Ok(http::Request::get(path).body(bytes::Bytes::new())?)
}

async fn nodes_ready(client: &Client, cluster: &Cluster) -> bool {
    let Ok(nodes) = client.list::<Node>(None, &ListOptions::default()).await else { return false };
    cluster.nodes.iter().all(|name| {
        nodes.iter().any(|node| {
            let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
            node.metadata.name.as_deref() == Some(name)
                && conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
        })
    })
}

/// Asks the cluster's DNS address from inside the node, as a pod would.
async fn dns_answers(cluster: &Cluster, node: &str) -> bool {
    let Some(init) = Processes::load(cluster).nodes.get(node).copied() else { return false };
    let path = format!("/proc/{}/ns/net", init.pid);
    let address = SocketAddr::from((cluster.dns_address(), 53));
    let asked = netns::run_in(path.as_ref(), move || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.connect(address)?;
        socket.send(DNS_QUERY)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        // Our id, an answer, no error, at least one record.
        Ok(length > 12
            && answer[..2] == DNS_QUERY[..2]
            && answer[2] & 0x80 != 0
            && answer[3] & 0x0f == 0
            && answer[7] > 0)
    });
    asked.await.unwrap_or(false)
}

/// A question for the A record of `kubernetes.default.svc.cluster.local`.
const DNS_QUERY: &[u8] = b"\x53\x4d\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0akubernetes\x07default\x03svc\x07cluster\
                           \x05local\x00\x00\x01\x00\x01";
