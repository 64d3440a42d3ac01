//! The proxy's nftables table as it stands before the first Service: maps, sets, and the chains that look into them.
//! Everything that comes and goes is an element. The table is our own; no rule outside it is read or written.

use super::compile::{Element, Front};
use super::netlink::sticky_chain;
use crate::nft;

pub const TABLE: &str = "sampan-services";
/// Gets its rules for [`Set::Masqueraded`] and [`Set::MasqueradedPorts`] by netlink: nft's language cannot put the port a
/// connection was opened to into a key.
pub const POSTROUTING: &str = "postrouting";

/// The maps and sets of the table, each once for IPv4 and once for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// address . protocol . port → verdict
    Services,
    /// protocol . port → verdict
    NodePorts,
    /// address . protocol . port . index → address . port
    Endpoints,
    Refused,
    RefusedPorts,
    Masqueraded,
    MasqueradedPorts,
    /// address . the same address
    Hairpins,
}

impl Set {
    pub fn name(self, v4: bool) -> &'static str {
        match (self, v4) {
            (Self::Services, true) => "services4",
            (Self::Services, false) => "services6",
            (Self::NodePorts, true) => "node-ports4",
            (Self::NodePorts, false) => "node-ports6",
            (Self::Endpoints, true) => "endpoints4",
            (Self::Endpoints, false) => "endpoints6",
            (Self::Refused, true) => "refused4",
            (Self::Refused, false) => "refused6",
            (Self::RefusedPorts, true) => "refused-ports4",
            (Self::RefusedPorts, false) => "refused-ports6",
            (Self::Masqueraded, true) => "masqueraded4",
            (Self::Masqueraded, false) => "masqueraded6",
            (Self::MasqueradedPorts, true) => "masqueraded-ports4",
            (Self::MasqueradedPorts, false) => "masqueraded-ports6",
            (Self::Hairpins, true) => "hairpins4",
            (Self::Hairpins, false) => "hairpins6",
        }
    }

    fn declaration(self, v4: bool) -> String {
        let address = if v4 { "ipv4_addr" } else { "ipv6_addr" };
        let front = format!("{address} . inet_proto . inet_service");
        let (kind, types) = match self {
            Self::Services => ("map", format!("{front} : verdict")),
            Self::NodePorts => ("map", "inet_proto . inet_service : verdict".into()),
            Self::Endpoints => ("map", format!("{front} . mark : {address} . inet_service")),
            Self::Refused | Self::Masqueraded => ("set", front),
            Self::RefusedPorts | Self::MasqueradedPorts => ("set", "inet_proto . inet_service".into()),
            Self::Hairpins => ("set", format!("{address} . {address}")),
        };
        format!("  {kind} {} {{ type {types}; }}\n", self.name(v4))
    }
}

const ALL: [Set; 8] = [
    Set::Services,
    Set::NodePorts,
    Set::Endpoints,
    Set::Refused,
    Set::RefusedPorts,
    Set::Masqueraded,
    Set::MasqueradedPorts,
    Set::Hairpins,
];

/// The script that makes the table anew, empty.
pub fn script() -> String {
    let mut body = String::new();
    for set in ALL {
        body += &set.declaration(true);
        body += &set.declaration(false);
    }
    let (mut services, mut refused, mut masquerade) = (String::new(), String::new(), String::new());
    for (v4, ip) in [(true, "ip"), (false, "ip6")] {
        let name = |set: Set| set.name(v4);
        let protocol = if v4 { "ipv4" } else { "ipv6" };
        services += &format!(
            "    {ip} daddr . meta l4proto . th dport vmap @{}\n    \
             meta nfproto {protocol} fib daddr type local meta l4proto . th dport vmap @{}\n",
            name(Set::Services),
            name(Set::NodePorts)
        );
        refused += &format!(
            "    ct state new {ip} daddr . meta l4proto . th dport @{} reject\n    \
             ct state new meta nfproto {protocol} fib daddr type local meta l4proto . th dport @{} reject\n",
            name(Set::Refused),
            name(Set::RefusedPorts)
        );
        masquerade += &format!("    {ip} saddr . {ip} daddr @{} masquerade\n", name(Set::Hairpins));
    }
    body += &format!("  chain services {{\n{services}  }}\n  chain refused {{\n{refused}  }}\n");
    for (name, hook) in [("prerouting", "prerouting priority dstnat"), ("output", "output priority -100")] {
        body += &format!("  chain {name} {{\n    type nat hook {hook}; policy accept;\n    jump services\n  }}\n");
    }
    for hook in ["input", "forward", "output"] {
        body += &format!(
            "  chain refuse-{hook} {{\n    type filter hook {hook} priority -5; policy accept;\n    jump refused\n  }}\n"
        );
    }
    body += &format!(
        "  chain {POSTROUTING} {{\n    type nat hook postrouting priority srcnat - 1; policy accept;\n{masquerade}  }}\n"
    );
    nft::replace("inet", TABLE, &body)
}

/// The table that holds new connections off while [`TABLE`] is made anew.
const PAUSE: &str = "sampan-services-pause";

/// Drops what opens a connection to one of these fronts: the client tries again by itself, where without the table it would
/// be refused, or leave the node, for good.
pub fn pause(elements: &[Element]) -> String {
    let mut rules = String::new();
    for (v4, ip, family) in [(true, "ip", "ipv4"), (false, "ip6", "ipv6")] {
        let (mut addresses, mut ports) = (Vec::new(), Vec::new());
        for element in elements {
            match element {
                Element::Front(Front::Address(address, protocol, port), _) if address.is_ipv4() == v4 => {
                    addresses.push(format!("{address} . {} . {port}", protocol.number()));
                }
                Element::Front(Front::NodePort(of, protocol, port), _) if *of == v4 => {
                    ports.push(format!("{} . {port}", protocol.number()));
                }
                _ => {}
            }
        }
        if !addresses.is_empty() {
            rules +=
                &format!("    ct state new {ip} daddr . meta l4proto . th dport {{ {} }} drop\n", addresses.join(", "));
        }
        if !ports.is_empty() {
            let local = format!("meta nfproto {family} fib daddr type local");
            rules += &format!("    ct state new {local} meta l4proto . th dport {{ {} }} drop\n", ports.join(", "));
        }
    }
    let chain = |hook: &str| {
        format!("  chain {hook} {{\n    type filter hook {hook} priority -150; policy accept;\n{rules}  }}\n")
    };
    nft::replace("inet", PAUSE, &(chain("prerouting") + &chain("output")))
}

/// Ends [`pause`].
pub fn resume() -> String {
    nft::delete("inet", PAUSE)
}

/// The chain and sets of one front whose clients stay with their endpoint: each endpoint remembers its clients.
pub fn sticky(front: Front, endpoints: &[(std::net::IpAddr, u16)], seconds: u32) -> String {
    let chain = sticky_chain(front);
    let (ip, kind) = if front.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
    let (count, protocol) = (endpoints.len(), front.protocol().number());
    let mut text = format!("add chain inet {TABLE} {chain}\nflush chain inet {TABLE} {chain}\n");
    let mut choices = Vec::new();
    for (index, (address, port)) in endpoints.iter().enumerate() {
        let label = format!("{address}-{port}").replace([':', '.'], "_");
        let (clients, leaf) = (format!("{chain}-{label}-c"), format!("{chain}-{label}"));
        let to = if address.is_ipv4() { format!("{address}:{port}") } else { format!("[{address}]:{port}") };
        text += &format!(
            "add set inet {TABLE} {clients} {{ type {kind}; flags dynamic,timeout; timeout {seconds}s; }}\n\
             add chain inet {TABLE} {leaf}\nflush chain inet {TABLE} {leaf}\n\
             add rule inet {TABLE} {leaf} meta l4proto {protocol} update @{clients} {{ {ip} saddr }} dnat {ip} to {to}\n\
             add rule inet {TABLE} {chain} {ip} saddr @{clients} goto {leaf}\n"
        );
        choices.push(format!("{index} : goto {leaf}"));
    }
    text + &format!("add rule inet {TABLE} {chain} numgen random mod {count} vmap {{ {} }}\n", choices.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::compile::{Fate, Protocol};

    #[test]
    fn the_pause_covers_every_front_and_nothing_else() {
        let front = |front| Element::Front(front, Fate::Balance(1));
        let script = pause(&[
            front(Front::Address([10, 0, 0, 1].into(), Protocol::Tcp, 80)),
            front(Front::NodePort(true, Protocol::Udp, 30053)),
            Element::Hairpin([10, 1, 0, 7].into()),
        ]);
        assert_eq!(
            script.matches("ct state new ip daddr . meta l4proto . th dport { 10.0.0.1 . 6 . 80 } drop").count(),
            2
        );
        assert_eq!(script.matches("meta l4proto . th dport { 17 . 30053 } drop").count(), 2, "{script}");
        assert!(!script.contains("10.1.0.7") && !script.contains("ip6"), "{script}");
    }

    #[test]
    fn every_set_is_declared_once_and_used() {
        let script = script();
        for set in ALL {
            for v4 in [true, false] {
                let name = set.name(v4);
                assert_eq!(script.matches(&format!(" {name} {{")).count(), 1, "{name}");
                let by_netlink = matches!(set, Set::Endpoints | Set::Masqueraded | Set::MasqueradedPorts);
                let used = script.contains(&format!("@{name} ")) || script.contains(&format!("@{name}\n"));
                assert!(used != by_netlink, "{name}");
            }
        }
    }
}
