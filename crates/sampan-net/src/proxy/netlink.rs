//! Changes of the proxy's maps and sets, straight to the kernel's nf_tables: one batch is one transaction, all or nothing.
//!
//! Only what the proxy needs is encoded: rules of the balancing chains (whose keys are built in registers, which nft's own
//! language cannot say) and elements. Numbers are those of the kernel's `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::compile::{Element, Fate, Front};
use super::skeleton::{self, Set};
use crate::NetError;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
const NLMSG_ERROR: u16 = 2;

const NFT_GOTO: i32 = -4;
const NF_DROP: i32 = 0;
/// The first of the 32-bit registers.
const REG32: u32 = 8;

/// Elements in one message: an attribute is at most 64 KiB long.
const CHUNK: usize = 400;
/// Room for the largest batch in the socket's buffer.
const SEND_BUFFER: i32 = 64 << 20;

/// Builds one message stream.
struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

/// Position of a length that is written when the thing it counts is complete.
struct Open(usize);

impl Batch {
    fn new() -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(4096), messages: 0 };
        batch.control(NFNL_MSG_BATCH_BEGIN);
        batch
    }

    fn control(&mut self, kind: u16) {
        let message = self.header(kind, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES);
        self.close_message(message);
    }

    fn open_message(&mut self, kind: u16, flags: u16) -> Open {
        self.header((NFNL_SUBSYS_NFTABLES << 8) | kind, NLM_F_REQUEST | NLM_F_ACK | flags, NFPROTO_INET, 0)
    }

    /// `nlmsghdr` and `nfgenmsg`.
    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16) -> Open {
        let open = Open(self.bytes.len());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.messages.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.messages += 1;
        open
    }

    fn close_message(&mut self, Open(at): Open) {
        let length = (self.bytes.len() - at) as u32;
        self.bytes[at..at + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = (value.len() + 4) as u16;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    fn open(&mut self, kind: u16) -> Open {
        let open = Open(self.bytes.len());
        self.bytes.extend(0_u16.to_ne_bytes());
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        open
    }

    fn close(&mut self, Open(at): Open) {
        let length = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    /// One expression of a rule: NFTA_LIST_ELEM { NFTA_EXPR_NAME, NFTA_EXPR_DATA { … } }.
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        let element = self.open(1);
        self.text(1, name);
        let data = self.open(2);
        fill(self);
        self.close(data);
        self.close(element);
    }
}

/// A chain that sends to one of `count` endpoints at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Balancer {
    pub v4: bool,
    /// For node ports, whose key has no address.
    pub node_port: bool,
    pub count: u32,
}

impl Balancer {
    pub fn chain(self) -> String {
        let family = if self.v4 { 4 } else { 6 };
        let front = if self.node_port { "port" } else { "address" };
        format!("balance{family}-{front}-{}", self.count)
    }
}

fn balancer(batch: &mut Batch, balancer: Balancer) {
    let chain = batch.open_message(NFT_MSG_NEWCHAIN, NLM_F_CREATE);
    batch.text(1, skeleton::TABLE);
    batch.text(3, &balancer.chain());
    batch.close_message(chain);

    // Registers: address, protocol, port, index; the endpoint behind them.
    let words = if balancer.v4 { 1 } else { 4 };
    let (protocol, port, index) = (REG32 + words, REG32 + words + 1, REG32 + words + 2);
    let found = if balancer.v4 { REG32 + 4 } else { REG32 + 8 };
    let rule = batch.open_message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
    batch.text(1, skeleton::TABLE);
    batch.text(2, &balancer.chain());
    let expressions = batch.open(4);
    if balancer.node_port {
        for word in 0..words {
            batch.expression("immediate", |batch| {
                batch.number(1, REG32 + word);
                let data = batch.open(2);
                batch.attribute(1, &[0; 4]);
                batch.close(data);
            });
        }
    } else {
        let (offset, length) = if balancer.v4 { (16, 4) } else { (24, 16) };
        // NFTA_PAYLOAD_{DREG,BASE,OFFSET,LEN}; base 1 is the network header.
        batch.expression("payload", |batch| {
            for (kind, value) in [(1, REG32), (2, 1), (3, offset), (4, length)] {
                batch.number(kind, value);
            }
        });
    }
    // NFTA_META_{DREG,KEY}; key 16 is the layer-4 protocol.
    batch.expression("meta", |batch| {
        batch.number(1, protocol);
        batch.number(2, 16);
    });
    // Base 2 is the transport header; offset 2 the destination port.
    batch.expression("payload", |batch| {
        for (kind, value) in [(1, port), (2, 2), (3, 2), (4, 2)] {
            batch.number(kind, value);
        }
    });
    // NFTA_NG_{DREG,MODULUS,TYPE}; type 1 is random.
    batch.expression("numgen", |batch| {
        for (kind, value) in [(1, index), (2, balancer.count), (3, 1)] {
            batch.number(kind, value);
        }
    });
    // NFTA_LOOKUP_{SET,SREG,DREG}.
    batch.expression("lookup", |batch| {
        batch.text(1, Set::Endpoints.name(balancer.v4));
        batch.number(2, REG32);
        batch.number(3, found);
    });
    // NFTA_NAT_{TYPE,FAMILY,REG_ADDR_MIN,REG_PROTO_MIN}; type 1 is the destination.
    batch.expression("nat", |batch| {
        batch.number(1, 1);
        batch.number(2, if balancer.v4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 });
        batch.number(3, found);
        batch.number(5, found + words);
    });
    batch.close(expressions);
    batch.close_message(rule);
}

fn push_address(key: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => key.extend(v4.octets()),
        IpAddr::V6(v6) => key.extend(v6.octets()),
    }
}

/// Parts of a key begin at four-byte borders.
fn push_port(key: &mut Vec<u8>, port: u16) {
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
}

fn push_front(key: &mut Vec<u8>, front: Front, with_address: bool) {
    let (protocol, port) = match front {
        Front::Address(address, protocol, port) => {
            push_address(key, address);
            (protocol, port)
        }
        Front::NodePort(v4, protocol, port) => {
            if with_address {
                key.extend(std::iter::repeat_n(0, if v4 { 4 } else { 16 }));
            }
            (protocol, port)
        }
    };
    key.extend([protocol.number(), 0, 0, 0]);
    push_port(key, port);
}

/// The set an element is in, its key, and what a map holds for it.
enum Data {
    Nothing,
    Value(Vec<u8>),
    Drop,
    Goto(String),
}

/// The chain of a sticky front; made by text when it is needed.
pub fn sticky_chain(front: Front) -> String {
    let text = match front {
        Front::Address(address, protocol, port) => format!("{address}-{}-{port}", protocol.number()),
        Front::NodePort(v4, protocol, port) => format!("{}-{}-{port}", if v4 { 4 } else { 6 }, protocol.number()),
    };
    format!("sticky-{}", text.replace([':', '.'], "_"))
}

fn encode(element: &Element) -> (Set, bool, Vec<u8>, Data) {
    let mut key = Vec::with_capacity(32);
    match *element {
        Element::Front(front, fate) => {
            push_front(&mut key, front, false);
            let node_port = matches!(front, Front::NodePort(..));
            let data = match fate {
                Fate::Drop => Data::Drop,
                Fate::Sticky(..) => Data::Goto(sticky_chain(front)),
                Fate::Balance(count) => Data::Goto(Balancer { v4: front.is_ipv4(), node_port, count }.chain()),
            };
            (if node_port { Set::NodePorts } else { Set::Services }, front.is_ipv4(), key, data)
        }
        Element::Endpoint(front, index, address, port) => {
            push_front(&mut key, front, true);
            key.extend(index.to_ne_bytes());
            let mut value = Vec::with_capacity(20);
            push_address(&mut value, address);
            push_port(&mut value, port);
            (Set::Endpoints, front.is_ipv4(), key, Data::Value(value))
        }
        Element::Refuse(front) => {
            push_front(&mut key, front, false);
            let set = if matches!(front, Front::NodePort(..)) { Set::RefusedPorts } else { Set::Refused };
            (set, front.is_ipv4(), key, Data::Nothing)
        }
        Element::Masquerade(front) => {
            push_front(&mut key, front, false);
            let set = if matches!(front, Front::NodePort(..)) { Set::MasqueradedPorts } else { Set::Masqueraded };
            (set, front.is_ipv4(), key, Data::Nothing)
        }
        Element::Hairpin(address) => {
            push_address(&mut key, address);
            push_address(&mut key, address);
            (Set::Hairpins, address.is_ipv4(), key, Data::Nothing)
        }
    }
}

fn elements(batch: &mut Batch, kind: u16, all: &[Element]) {
    let mut by_set: std::collections::BTreeMap<(Set, bool), Vec<(Vec<u8>, Data)>> = std::collections::BTreeMap::new();
    for element in all {
        let (set, v4, key, data) = encode(element);
        by_set.entry((set, v4)).or_default().push((key, data));
    }
    for ((set, v4), entries) in by_set {
        for chunk in entries.chunks(CHUNK) {
            let message = batch.open_message(kind, if kind == NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 });
            // NFTA_SET_ELEM_LIST_{TABLE,SET,ELEMENTS}.
            batch.text(1, skeleton::TABLE);
            batch.text(2, set.name(v4));
            let list = batch.open(3);
            for (key, data) in chunk {
                let element = batch.open(1);
                let holder = batch.open(1);
                batch.attribute(1, key);
                batch.close(holder);
                if kind == NFT_MSG_NEWSETELEM {
                    element_data(batch, data);
                }
                batch.close(element);
            }
            batch.close(list);
            batch.close_message(message);
        }
    }
}

/// NFTA_SET_ELEM_DATA { NFTA_DATA_VALUE } or { NFTA_DATA_VERDICT { NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN } }.
fn element_data(batch: &mut Batch, data: &Data) {
    if matches!(data, Data::Nothing) {
        return;
    }
    let holder = batch.open(2);
    match data {
        Data::Nothing => {}
        Data::Value(value) => batch.attribute(1, value),
        Data::Drop => {
            let verdict = batch.open(2);
            batch.number(1, NF_DROP as u32);
            batch.close(verdict);
        }
        Data::Goto(chain) => {
            let verdict = batch.open(2);
            batch.number(1, NFT_GOTO as u32);
            batch.text(2, chain);
            batch.close(verdict);
        }
    }
    batch.close(holder);
}

/// The rules that let the node's address stand in for the client's, by what the connection was opened to.
fn masquerade(batch: &mut Batch, v4: bool, with_address: bool) {
    let rule = batch.open_message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
    batch.text(1, skeleton::TABLE);
    batch.text(2, skeleton::POSTROUTING);
    let expressions = batch.open(4);
    // Key 15 is the network protocol; NFTA_CMP_{SREG,OP,DATA}, operation 0 is equality.
    batch.expression("meta", |batch| {
        batch.number(1, REG32);
        batch.number(2, 15);
    });
    batch.expression("cmp", |batch| {
        batch.number(1, REG32);
        batch.number(2, 0);
        let data = batch.open(3);
        batch.attribute(1, &[if v4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 } as u8]);
        batch.close(data);
    });
    // NFTA_CT_{DREG,KEY,DIRECTION}; direction 0 is the original one.
    let mut original = |register, key| {
        batch.expression("ct", |batch| {
            batch.number(1, register);
            batch.number(2, key);
            batch.attribute(3, &[0]);
        });
    };
    let words = match (with_address, v4) {
        (false, _) => 0,
        (true, true) => 1,
        (true, false) => 4,
    };
    if with_address {
        original(REG32, if v4 { 20 } else { 22 });
    }
    original(REG32 + words, 10);
    original(REG32 + words + 1, 12);
    let set = if with_address { Set::Masqueraded } else { Set::MasqueradedPorts };
    batch.expression("lookup", |batch| {
        batch.text(1, set.name(v4));
        batch.number(2, REG32);
    });
    batch.expression("masq", |_| {});
    batch.close(expressions);
    batch.close_message(rule);
}

/// Completes a table just made from [`skeleton::script`], and fills it.
pub fn fill(balancers: &[Balancer], add: &[Element]) -> Result<(), NetError> {
    let mut batch = Batch::new();
    for v4 in [true, false] {
        for with_address in [true, false] {
            masquerade(&mut batch, v4, with_address);
        }
    }
    finish(batch, balancers, &[], add)
}

/// One transaction: new balancing chains, elements that go, elements that come.
pub fn commit(balancers: &[Balancer], remove: &[Element], add: &[Element]) -> Result<(), NetError> {
    finish(Batch::new(), balancers, remove, add)
}

fn finish(mut batch: Batch, balancers: &[Balancer], remove: &[Element], add: &[Element]) -> Result<(), NetError> {
    for one in balancers {
        balancer(&mut batch, *one);
    }
    elements(&mut batch, NFT_MSG_DELSETELEM, remove);
    elements(&mut batch, NFT_MSG_NEWSETELEM, add);
    let wanted = batch.messages - 1;
    batch.control(NFNL_MSG_BATCH_END);
    if wanted == 0 {
        return Ok(());
    }
    send(&batch.bytes, wanted)
}

fn send(bytes: &[u8], wanted: u32) -> Result<(), NetError> {
    let failed = |step: &'static str| move |error| NetError::step(step, error);
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed("open a netfilter socket"))?;
    socket.bind_auto().map_err(failed("bind the netfilter socket"))?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect the netfilter socket"))?;
    force_buffers(&socket).map_err(failed("enlarge the netfilter socket's buffers"))?;
    socket.send(bytes, 0).map_err(failed("send to nf_tables"))?;
    let mut answered = 0;
    let mut first_error = None;
    let mut buffer = vec![0_u8; 64 << 10];
    while answered < wanted {
        let length = socket.recv(&mut &mut buffer[..], 0).map_err(failed("receive from nf_tables"))?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, after)) = split(rest) {
            rest = after;
            if kind == NLMSG_ERROR {
                answered += 1;
                let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                if code != 0 && first_error.is_none() {
                    first_error = Some(-code);
                }
            }
        }
        // A refused transaction may be answered by fewer messages than it had.
        if first_error.is_some() {
            break;
        }
    }
    match first_error {
        None => Ok(()),
        Some(code) => Err(NetError::step("change the service proxy's tables", std::io::Error::from_raw_os_error(code))),
    }
}

/// The first message of a buffer: type, body, and what comes after.
fn split(buffer: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*buffer.first_chunk::<4>()?) as usize;
    let kind = u16::from_ne_bytes([*buffer.get(4)?, *buffer.get(5)?]);
    let body = buffer.get(16..length)?;
    let after = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, after))
}

fn force_buffers(socket: &Socket) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let size = SEND_BUFFER;
    for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
        // SAFETY: the option value is an i32 that outlives the call, and its length is given.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
