//! Services, names, and pods of several nodes.

use std::net::SocketAddr;
use std::time::Duration;

use sampan_e2e::{Cluster, Namespace, eventually, load};

fn wget(here: &Namespace<'_>, url: &str) -> String {
    eventually(&format!("an answer of {url}"), || {
        let done = here.sh("caller", &format!("timeout 5 wget -q -O - {url}"));
        done.succeeded().then_some(done.stdout)
    })
}

#[test]
fn a_cluster_ip_reaches_every_pod() {
    let here = Cluster::shared().namespace("cluster-ip");
    here.hello();
    here.shell_pod("caller");
    let address = here.field("service/hello", "{.spec.clusterIP}");
    let mut pods = std::collections::BTreeSet::new();
    eventually("answers of all three pods", || {
        let answer: serde_json::Value = serde_json::from_str(&wget(&here, &format!("http://{address}/"))).ok()?;
        pods.insert(answer["pod"].as_str()?.to_owned());
        (pods.len() == 3).then_some(())
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let here = Cluster::shared().namespace("hairpin");
    here.kubectl(&[
        "run",
        "caller",
        "--image=busybox:1",
        "--port=8080",
        "--command",
        "--",
        "httpd",
        "-f",
        "-p",
        "8080",
        "-h",
        "/bin",
    ]);
    here.ready("caller");
    here.kubectl(&["expose", "pod", "caller", "--name=myself", "--port=80", "--target-port=8080"]);
    eventually("an answer of itself", || {
        here.sh("caller", "timeout 5 wget -q -O /dev/null http://myself/busybox").succeeded().then_some(())
    });
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let here = Cluster::shared().namespace("nobody");
    here.kubectl(&["create", "service", "clusterip", "nobody", "--tcp=80:80"]);
    here.shell_pod("caller");
    let address = here.field("service/nobody", "{.spec.clusterIP}");
    eventually("a refusal", || {
        let done = here.sh("caller", &format!("timeout 5 wget -q -O - http://{address}/"));
        done.stderr.contains("refused").then_some(())
    });
}

#[test]
fn a_node_port_and_a_load_balancer_answer_on_the_node() {
    let here = Cluster::shared().namespace("node-port");
    here.hello();
    let host = here.cluster.kubectl(&[
        "get",
        "nodes",
        "-o",
        "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}",
    ]);
    let port = here.field("service/hello", "{.spec.ports[0].nodePort}");
    let ask = |address: &str| {
        let address: SocketAddr = address.parse().expect("an address");
        eventually(&format!("an answer of {address}"), || load::get(address, "/", Duration::from_secs(2)).ok())
    };
    assert!(ask(&format!("{host}:{port}")).contains("\"pod\":\"hello-"));
    let balancer = eventually("the address of the load balancer", || {
        let address = here.field("service/hello", "{.status.loadBalancer.ingress[0].ip}");
        (!address.is_empty()).then_some(address)
    });
    assert!(ask(&format!("{balancer}:80")).contains("\"pod\":\"hello-"));
}

#[test]
fn names_are_resolved_in_pods() {
    let here = Cluster::shared().namespace("names");
    here.hello();
    here.shell_pod("caller");
    let lookup = |name: &str| here.sh("caller", &format!("nslookup {name}"));
    let address = here.field("service/hello", "{.spec.clusterIP}");
    let full = eventually("the Service's full name", || {
        let done = lookup("hello.names.svc.cluster.local");
        done.succeeded().then_some(done.stdout)
    });
    assert!(full.contains(&address), "{full}");
    let api = lookup("kubernetes.default.svc.cluster.local").ok();
    let kubernetes = here.cluster.kubectl(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]);
    assert!(api.contains(&kubernetes), "{api}");
    let absent = lookup("absent.names.svc.cluster.local");
    assert!(absent.stdout.contains("NXDOMAIN") || absent.stderr.contains("NXDOMAIN"), "{absent:?}");
    // By the search list: the short name works as a host name.
    assert!(wget(&here, "http://hello/").contains("\"pod\""));
}

#[test]
fn a_headless_service_names_its_pods() {
    let here = Cluster::shared().namespace("headless");
    here.hello();
    here.kubectl(&["expose", "deployment", "hello", "--name=each", "--cluster-ip=None", "--port=8080"]);
    here.shell_pod("caller");
    let pods = here.kubectl(&["get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].status.podIP}"]);
    eventually("the addresses of all pods", || {
        let answer = here.sh("caller", "nslookup each.headless.svc.cluster.local").stdout;
        pods.split(' ').all(|pod| answer.contains(pod)).then_some(())
    });
}

#[test]
fn pods_of_two_nodes_reach_each_other() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    cluster.load_images();
    let here = cluster.namespace("two-nodes");
    for (position, name) in ["caller", "other"].into_iter().enumerate() {
        here.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  nodeName: {}\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n    - {{name: main, image: 'busybox:1', \
             command: [httpd, -f, -p, '8080', -h, /bin]}}\n",
            cluster.node(position)
        ));
        here.ready(name);
    }
    let address = here.field("pod/other", "{.status.podIP}");
    assert_ne!(here.field("pod/caller", "{.status.hostIP}"), here.field("pod/other", "{.status.hostIP}"));
    eventually("the other node's pod", || {
        let done = here.sh("caller", &format!("timeout 5 wget -q -O /dev/null http://{address}:8080/busybox"));
        done.succeeded().then_some(())
    });
    here.kubectl(&["expose", "pod", "other", "--port=80", "--target-port=8080"]);
    eventually("the other node's pod through its Service", || {
        here.sh("caller", "timeout 5 wget -q -O /dev/null http://other/busybox").succeeded().then_some(())
    });
}

#[test]
fn a_published_port_answers_on_this_machine() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("an address").port();
    let cluster = Cluster::up(&["--publish", &format!("{port}:80")]);
    cluster.load_images();
    let here = cluster.namespace("published");
    here.hello();
    let address = ([127, 0, 0, 1], port).into();
    let answer = eventually("an answer", || load::get(address, "/", Duration::from_secs(2)).ok());
    assert!(answer.contains("\"pod\":\"hello-"), "{answer}");
}
