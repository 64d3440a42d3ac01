//! `sampan status` and `sampan kubeconfig`: what runs, and what of this machine was changed for it.

use anyhow::Context;
use serde_json::{Value, json};

use super::{Cluster, Processes};
use crate::cli;
use crate::process::Process;

pub fn run(options: &cli::Status) -> anyhow::Result<()> {
    let clusters = match &options.name {
        Some(name) => vec![super::find_or_fail(name)?],
        None => super::all()?,
    };
    let reports: Vec<Value> = clusters.iter().map(report).collect();
    if options.output.output.is_some() {
        println!("{:#}", json!({"clusters": reports}));
        return Ok(());
    }
    if reports.is_empty() {
        println!("no cluster runs on this machine; `sampan up` makes one");
    }
    for (cluster, report) in clusters.iter().zip(&reports) {
        println!("cluster {} ({}, context {})", cluster.name, text(&report["server"]), cluster.context());
        println!("  data      {}", cluster.data.display());
        for (process, state) in report["processes"].as_object().into_iter().flatten() {
            let memory = state["pssKiB"].as_u64().map(|kib| format!(", {:.1} MiB", kib as f64 / 1024.0));
            println!("  {process:<9} {}{}", text(&state["state"]), memory.unwrap_or_default());
        }
        for publish in &cluster.publish {
            println!("  published {} -> port {} of LoadBalancer Services", publish.listen, publish.port);
        }
        println!("  on this machine: {}", report["changes"].as_array().map(|all| join(all)).unwrap_or_default());
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn join(values: &[Value]) -> String {
    values.iter().map(text).collect::<Vec<_>>().join("; ")
}

fn report(cluster: &Cluster) -> Value {
    let processes = Processes::load(cluster);
    let state = |process: Option<&Process>| {
        let running = process.is_some_and(|process| matches!(process.open(), Ok(Some(_))));
        json!({
            "pid": process.map(|process| process.pid),
            "state": if running { "running" } else { "not running" },
            "pssKiB": process.filter(|_| running).and_then(|process| proportional_kib(process.pid)),
        })
    };
    let mut all = serde_json::Map::new();
    all.insert("supervisor".into(), state(processes.supervisor.as_ref()));
    all.insert("server".into(), state(processes.server.as_ref()));
    for node in &cluster.nodes {
        all.insert(node.clone(), state(processes.nodes.get(node)));
    }
    json!({
        "name": cluster.name,
        "context": cluster.context(),
        "server": format!("https://127.0.0.1:{}", cluster.port),
        "data": cluster.data,
        "nodes": cluster.nodes,
        "publish": cluster.publish,
        "podRange": cluster.pod_range(),
        "serviceRange": cluster.service_range(),
        "nodeRange": cluster.node_range(),
        "processes": all,
        "changes": [
            format!("link {}", cluster.link_name()),
            format!("route {}", cluster.node_range()),
            format!("nftables table inet sampan-{}", cluster.name),
            "net.ipv4.ip_forward=1",
            format!("cgroups below sampan/{}", cluster.name),
        ],
    })
}

/// Proportional set size: shared pages count by their share.
fn proportional_kib(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

pub fn kubeconfig(named: &cli::Named) -> anyhow::Result<()> {
    let path = super::find_or_fail(&named.name)?.admin_kubeconfig();
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    print!("{text}");
    Ok(())
}
