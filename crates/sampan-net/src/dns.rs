//! Cluster DNS on every node: answers for the cluster's domain from the node's own watches, forwards the rest. It goes on
//! answering from what it has while the API server is away.

pub mod forward;
pub mod zone;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use ipnet::IpNet;
use sampan_api::Gvr;
use sampan_base::{Clock, Dice, task};
use sampan_client::informer::Informer;
use sampan_client::{Client, ListOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::NetError;
use crate::link::Links;
use crate::views::{Service, Slice};
use forward::{Forwarder, Upstream};
use zone::{Answer, Zone};

/// The link that carries the cluster's DNS address on this node: pods reach it without leaving the node.
const LINK: &str = "lo";
/// A UDP answer without EDNS (RFC 1035).
const PLAIN_MAX: usize = 512;
/// What we offer and use at most by UDP: survives any path without fragments.
const UDP_MAX: u16 = 1232;
/// An idle TCP client is let go.
const TCP_IDLE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// The cluster's DNS Service address; answered on this node.
    pub address: IpAddr,
    /// `cluster.local`
    pub domain: String,
    pub upstream: Upstream,
}

/// The running server. Dropping it ends it.
pub struct Dns {
    _tasks: task::Group,
}

struct Resolver {
    zone: RwLock<Zone>,
    forwarder: Forwarder,
}

impl Dns {
    /// Puts the address on the node's loopback link and answers there, once the first lists are in.
    pub async fn start(client: Client, config: DnsConfig, clock: Clock, dice: Dice) -> Result<Self, NetError> {
        let links = Links::open(None).await?;
        let link = links.index(LINK).await?;
        links.add_address(link, IpNet::from(config.address)).await?;
        let address = SocketAddr::new(config.address, 53);
        let failed = |error| NetError::step(format!("listen on {address}"), error);
        let udp = Arc::new(UdpSocket::bind(address).await.map_err(failed)?);
        let tcp = TcpListener::bind(address).await.map_err(failed)?;

        let zone = RwLock::new(Zone::new(&config.domain));
        let forwarder = Forwarder::new(config.upstream, clock.clone(), dice);
        let resolver = Arc::new(Resolver { zone, forwarder });
        let gvr =
            |group: &str, resource: &str| Gvr { group: group.into(), version: "v1".into(), resource: resource.into() };
        let services = Informer::spawn(client.clone(), gvr("", "services"), ListOptions::default(), clock.clone());
        let slices =
            Informer::spawn(client, gvr("discovery.k8s.io", "endpointslices"), ListOptions::default(), clock.clone());
        let mut tasks = task::Group::default();
        tasks.spawn("dns zone", follow(services.clone(), slices.clone(), resolver.clone()));
        tasks.spawn("dns", serve(udp, tcp, services, slices, resolver, clock));
        Ok(Self { _tasks: tasks })
    }
}

async fn follow(services: Informer<Service>, slices: Informer<Slice>, resolver: Arc<Resolver>) {
    let (mut of_services, mut of_slices) = (services.subscribe(), slices.subscribe());
    loop {
        tokio::select! {
            biased;
            Some(change) = of_services.recv() => {
                resolver.zone.write().unwrap_or_else(PoisonError::into_inner).set_service(change.key, change.new);
            }
            Some(change) = of_slices.recv() => {
                let mut zone = resolver.zone.write().unwrap_or_else(PoisonError::into_inner);
                zone.set_slice(&change.key, change.old.as_deref(), change.new);
            }
            else => return,
        }
    }
}

async fn serve(
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    services: Informer<Service>,
    slices: Informer<Slice>,
    resolver: Arc<Resolver>,
    clock: Clock,
) {
    // A name that exists must never be denied because the lists are not in yet.
    services.synced().await;
    slices.synced().await;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        tokio::select! {
            received = udp.recv_from(&mut buffer) => {
                let Ok((length, from)) = received else { continue };
                let Some(request) = parse(&buffer[..length]) else { continue };
                match resolver.at_once(&request) {
                    Some(answer) => reply(&udp, &request, answer, from).await,
                    None => {
                        let (udp, resolver) = (udp.clone(), resolver.clone());
                        task::spawn("dns forward", async move {
                            let answer = resolver.answer(&request).await;
                            reply(&udp, &request, answer, from).await;
                        });
                    }
                }
            }
            accepted = tcp.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let (resolver, clock) = (resolver.clone(), clock.clone());
                task::spawn("dns tcp", async move {
                    if let Err(error) = converse(stream, &resolver, &clock).await {
                        tracing::debug!(%error, "DNS by TCP");
                    }
                });
            }
        }
    }
}

/// A question; anything else is dropped, so that two servers never answer each other's answers.
fn parse(bytes: &[u8]) -> Option<Message> {
    Message::from_vec(bytes).ok().filter(|message| message.metadata.message_type == MessageType::Query)
}

async fn reply(udp: &UdpSocket, request: &Message, answer: Message, to: SocketAddr) {
    let limit = match &request.edns {
        Some(edns) => usize::from(edns.max_payload().clamp(PLAIN_MAX as u16, UDP_MAX)),
        None => PLAIN_MAX,
    };
    let bytes = match answer.to_vec() {
        Ok(bytes) if bytes.len() > limit => answer.truncate().to_vec(),
        other => other,
    };
    match bytes {
        Ok(bytes) => {
            let _ = udp.send_to(&bytes, to).await;
        }
        Err(error) => tracing::warn!(%error, "cannot encode a DNS answer"),
    }
}

async fn converse(mut stream: TcpStream, resolver: &Resolver, clock: &Clock) -> std::io::Result<()> {
    while let Some(Ok(length)) = clock.timeout(TCP_IDLE, stream.read_u16()).await {
        let mut buffer = vec![0; usize::from(length)];
        stream.read_exact(&mut buffer).await?;
        let Some(request) = parse(&buffer) else { return Ok(()) };
        let answer = resolver.answer(&request).await.to_vec().map_err(std::io::Error::other)?;
        let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&answer).await?;
    }
    Ok(())
}

impl Resolver {
    /// The answer where no other server has to be asked.
    fn at_once(&self, request: &Message) -> Option<Message> {
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(request.queries.iter().cloned());
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MAX);
            response.set_edns(edns);
        }
        if request.metadata.op_code != OpCode::Query {
            response.metadata.response_code = ResponseCode::NotImp;
            return Some(response);
        }
        let [query] = request.queries.as_slice() else {
            response.metadata.response_code = ResponseCode::FormErr;
            return Some(response);
        };
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        match zone.answer(&query.name, query.query_type) {
            Answer::NotOurs | Answer::Alias(..) => return None,
            Answer::NoSuchName => {
                response.metadata.response_code = ResponseCode::NXDomain;
                response.add_authority(zone.soa());
            }
            Answer::Records { answers, additionals } => {
                if answers.is_empty() {
                    response.add_authority(zone.soa());
                }
                response.add_answers(answers);
                response.add_additionals(additionals);
            }
        }
        response.metadata.authoritative = true;
        Some(response)
    }

    async fn answer(&self, request: &Message) -> Message {
        if let Some(answer) = self.at_once(request) {
            return answer;
        }
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(request.queries.iter().cloned());
        // `at_once` has seen that there is exactly one.
        let Some(query) = request.queries.first() else { return response };
        let alias = match self.zone.read().unwrap_or_else(PoisonError::into_inner).answer(&query.name, query.query_type)
        {
            Answer::Alias(alias) => Some(*alias),
            _ => None,
        };
        let mut question = query.clone();
        if let Some((record, target)) = alias {
            response.add_answer(record);
            question.set_name(target);
        }
        match self.forwarder.ask(&question).await {
            Some(answer) => {
                response.metadata.response_code = answer.metadata.response_code;
                response.add_answers(answer.answers);
                response.add_authorities(answer.authorities);
            }
            None => response.metadata.response_code = ResponseCode::ServFail,
        }
        response
    }
}
