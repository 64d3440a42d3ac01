//! The proxy's tables against the kernel: real connections in a network namespace that lives as long as its thread.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use sampan_net::nft;
use sampan_net::proxy::compile::{Element, Fate, Front, Protocol};
use sampan_net::proxy::netlink::{self, Balancer};
use sampan_net::proxy::skeleton;

/// Runs `test` in a network namespace of its own; needs root.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("skipped: needs root");
        return;
    }
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ip("link set lo up");
        // A way out, so that packets are routed as on a real node.
        ip("link add v0 type veth peer name v1");
        ip("link set v1 up");
        ip("link set v0 up");
        ip("addr add 192.168.7.1/24 dev v0");
        ip("route add default via 192.168.7.2 dev v0");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("run ip");
    assert!(status.success(), "ip {arguments}");
}

/// Answers each connection with its own address.
fn serve(address: &str) {
    let listener = TcpListener::bind(address).expect("bind");
    let name = address.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.and_then(|mut stream| stream.write_all(name.as_bytes())).expect("answer");
        }
    });
}

fn call(address: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn connections_reach_the_endpoints() {
    in_namespace(|| {
        for endpoint in ["10.1.0.2", "10.1.0.3"] {
            ip(&format!("addr add {endpoint}/32 dev lo"));
            serve(&format!("{endpoint}:8080"));
        }
        nft::run(&skeleton::script()).expect("the table");
        let front = Front::Address(address("10.0.0.7"), Protocol::Tcp, 80);
        let port = Front::NodePort(true, Protocol::Tcp, 30080);
        let mut add = Vec::new();
        for front in [front, port] {
            add.push(Element::Front(front, Fate::Balance(2)));
            add.push(Element::Endpoint(front, 0, address("10.1.0.2"), 8080));
            add.push(Element::Endpoint(front, 1, address("10.1.0.3"), 8080));
        }
        let refused = Front::Address(address("10.0.0.8"), Protocol::Tcp, 80);
        add.push(Element::Refuse(refused));
        let balancers =
            [Balancer { v4: true, node_port: false, count: 2 }, Balancer { v4: true, node_port: true, count: 2 }];
        add.push(Element::Masquerade(port));
        netlink::fill(&balancers, &add).expect("fill");

        for knock in ["10.0.0.7:80", "192.168.7.1:30080"] {
            let answers: BTreeSet<String> = (0..40).map(|_| call(knock).expect(knock)).collect();
            assert_eq!(answers.into_iter().collect::<Vec<_>>(), ["10.1.0.2:8080", "10.1.0.3:8080"], "{knock}");
        }
        let error = call("10.0.0.8:80").expect_err("no endpoints");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);

        // One endpoint goes: a change of elements, one transaction.
        let remove = [
            Element::Front(front, Fate::Balance(2)),
            Element::Endpoint(front, 0, address("10.1.0.2"), 8080),
            Element::Endpoint(front, 1, address("10.1.0.3"), 8080),
        ];
        let add = [Element::Front(front, Fate::Balance(1)), Element::Endpoint(front, 0, address("10.1.0.3"), 8080)];
        let one = Balancer { v4: true, node_port: false, count: 1 };
        netlink::commit(&[one], &remove, &add).expect("commit");
        assert!((0..20).all(|_| call("10.0.0.7:80").is_ok_and(|answer| answer == "10.1.0.3:8080")));
        // What is not there cannot be removed, and nothing of that transaction happens.
        let bad = [Element::Endpoint(front, 0, address("10.1.0.3"), 8080), Element::Hairpin(address("10.9.9.9"))];
        netlink::commit(&[], &bad, &[]).expect_err("an absent element");
        assert_eq!(call("10.0.0.7:80").expect("still there"), "10.1.0.3:8080");
    });
}

#[test]
fn affinity_keeps_a_client_at_its_endpoint() {
    in_namespace(|| {
        let endpoints = ["10.1.0.2", "10.1.0.3", "10.1.0.4"];
        for endpoint in endpoints {
            ip(&format!("addr add {endpoint}/32 dev lo"));
            serve(&format!("{endpoint}:8080"));
        }
        nft::run(&skeleton::script()).expect("the table");
        let front = Front::Address(address("10.0.0.7"), Protocol::Tcp, 80);
        let targets: Vec<(IpAddr, u16)> = endpoints.iter().map(|endpoint| (address(endpoint), 8080)).collect();
        nft::run(&skeleton::sticky(front, &targets, 60)).expect("the chains");
        netlink::commit(&[], &[], &[Element::Front(front, Fate::Sticky(3, 60))]).expect("commit");
        let answers: BTreeSet<String> = (0..30).map(|_| call("10.0.0.7:80").expect("an answer")).collect();
        assert_eq!(answers.len(), 1, "{answers:?}");
    });
}

#[test]
fn ten_thousand_services_are_one_transaction() {
    in_namespace(|| {
        nft::run(&skeleton::script()).expect("the table");
        let mut add = Vec::new();
        for number in 0..10_000_u32 {
            let front = Front::Address(IpAddr::from([10, 8, (number >> 8) as u8, number as u8]), Protocol::Tcp, 80);
            add.push(Element::Front(front, Fate::Balance(2)));
            for index in 0..2 {
                add.push(Element::Endpoint(front, index, address("10.1.0.2"), 8080));
            }
        }
        let balancers = [Balancer { v4: true, node_port: false, count: 2 }];
        netlink::commit(&balancers, &[], &add).expect("commit");
        let listed = Command::new("nft").args(["list", "map", "inet", skeleton::TABLE, "services4"]).output();
        let text = String::from_utf8(listed.expect("run nft").stdout).expect("text");
        assert_eq!(text.matches("goto balance4-address-2").count(), 10_000);
    });
}
