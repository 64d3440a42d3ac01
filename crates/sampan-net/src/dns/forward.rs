//! Names outside the cluster: asked of the host's own name servers, from the host's network namespace where the node is
//! not the host. Answers are kept for as long as they say, up to a bounded number.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use sampan_base::{Clock, Dice, clock::Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::{NetError, netns};

/// How long one name server may take before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answers kept: some megabytes at the most.
const CACHE: usize = 4096;
/// No answer is kept longer, nor is a negative one.
const KEEP_MAX: Duration = Duration::from_secs(300);
const KEEP_NEGATIVE: Duration = Duration::from_secs(10);

/// Where questions go.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub servers: Vec<SocketAddr>,
    /// Sockets are opened in this network namespace.
    pub netns: Option<PathBuf>,
}

impl Upstream {
    /// The `nameserver` lines of a resolv.conf.
    pub fn parse(resolv_conf: &str, netns: Option<PathBuf>) -> Self {
        let servers = resolv_conf
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nameserver"))
            .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
            .map(|address| SocketAddr::new(address, 53))
            .collect();
        Self { servers, netns }
    }
}

pub struct Forwarder {
    upstream: Upstream,
    clock: Clock,
    dice: Dice,
    cache: Mutex<HashMap<(Name, RecordType), (Instant, Message)>>,
}

impl Forwarder {
    pub fn new(upstream: Upstream, clock: Clock, dice: Dice) -> Self {
        Self { upstream, clock, dice, cache: Mutex::default() }
    }

    /// The answer to a question, from memory or from the first name server that gives one. `None`: none did.
    pub async fn ask(&self, query: &Query) -> Option<Message> {
        let key = (query.name.to_lowercase(), query.query_type);
        if let Some(known) = self.recall(&key) {
            return Some(known);
        }
        for server in &self.upstream.servers {
            match self.clock.timeout(PATIENCE, self.exchange(*server, query)).await {
                Some(Ok(answer)) if answer.metadata.response_code != ResponseCode::ServFail => {
                    self.remember(key, &answer);
                    return Some(answer);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::debug!(%server, %error, "name server"),
                None => tracing::debug!(%server, "name server does not answer"),
            }
        }
        None
    }

    fn recall(&self, key: &(Name, RecordType)) -> Option<Message> {
        let cache = self.cache.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (until, message) = cache.get(key)?;
        let left = until.checked_duration_since(self.clock.instant())?;
        let mut message = message.clone();
        let left = u32::try_from(left.as_secs()).unwrap_or(u32::MAX);
        for record in message.answers.iter_mut().chain(&mut message.authorities) {
            record.ttl = record.ttl.min(left);
        }
        Some(message)
    }

    fn remember(&self, key: (Name, RecordType), answer: &Message) {
        let keep = match answer.answers.iter().map(|record| record.ttl).min() {
            Some(ttl) => Duration::from_secs(u64::from(ttl)).min(KEEP_MAX),
            None => KEEP_NEGATIVE,
        };
        let now = self.clock.instant();
        let mut cache = self.cache.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if cache.len() >= CACHE {
            cache.retain(|_, (until, _)| *until > now);
        }
        if cache.len() < CACHE {
            cache.insert(key, (now + keep, answer.clone()));
        }
    }

    async fn exchange(&self, server: SocketAddr, query: &Query) -> Result<Message, NetError> {
        let mut question = Message::query();
        question.metadata.id = (self.dice.next_u64() & 0xffff) as u16;
        question.metadata.recursion_desired = true;
        question.add_query(query.clone());
        let bytes = question.to_vec().map_err(|error| NetError::System(error.to_string()))?;
        let answer = self.by_udp(server, &bytes, question.metadata.id).await?;
        if answer.metadata.truncation { self.by_tcp(server, &bytes).await } else { Ok(answer) }
    }

    async fn by_udp(&self, server: SocketAddr, question: &[u8], id: u16) -> Result<Message, NetError> {
        let open = || {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        };
        let socket = match &self.upstream.netns {
            Some(path) => netns::run_in(path, open).await?,
            None => open().map_err(|error| NetError::step("open a socket", error))?,
        };
        let failed = |error| NetError::step(format!("ask {server}"), error);
        socket.connect(server).await.map_err(failed)?;
        socket.send(question).await.map_err(failed)?;
        let mut buffer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await.map_err(failed)?;
            // What does not parse or has another id is not our answer.
            match Message::from_vec(&buffer[..length]) {
                Ok(message) if message.metadata.id == id => return Ok(message),
                _ => {}
            }
        }
    }

    async fn by_tcp(&self, server: SocketAddr, question: &[u8]) -> Result<Message, NetError> {
        let failed = |error| NetError::step(format!("ask {server} by TCP"), error);
        let mut stream = match &self.upstream.netns {
            Some(path) => {
                let stream = netns::run_in(path, move || {
                    let stream = std::net::TcpStream::connect_timeout(&server, PATIENCE)?;
                    stream.set_nonblocking(true)?;
                    Ok(stream)
                });
                TcpStream::from_std(stream.await?).map_err(failed)?
            }
            None => TcpStream::connect(server).await.map_err(failed)?,
        };
        let length = u16::try_from(question.len()).map_err(|_| NetError::System("the question is too long".into()))?;
        stream.write_u16(length).await.map_err(failed)?;
        stream.write_all(question).await.map_err(failed)?;
        let length = stream.read_u16().await.map_err(failed)?;
        let mut buffer = vec![0; usize::from(length)];
        stream.read_exact(&mut buffer).await.map_err(failed)?;
        Message::from_vec(&buffer).map_err(|error| NetError::System(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn name_servers_of_a_resolv_conf() {
        let upstream =
            Upstream::parse("# x\nsearch a b\nnameserver 127.0.0.53\nnameserver  ::1 \nnameserver bad\n", None);
        let texts: Vec<String> = upstream.servers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(texts, ["127.0.0.53:53", "[::1]:53"]);
    }

    #[tokio::test]
    async fn asks_the_next_server_and_remembers() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let servers = vec![server.local_addr().expect("address")];
        let forwarder = Forwarder::new(Upstream { servers, netns: None }, Clock::system(), Dice::seeded(1));
        let query = Query::query(Name::from_str("example.com.").expect("a name"), RecordType::A);
        let answering = async {
            let mut buffer = [0; 512];
            let (length, client) = server.recv_from(&mut buffer).await.expect("a question");
            let mut answer = Message::from_vec(&buffer[..length]).expect("a message").into_response();
            let address = hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A(Ipv4Addr::new(1, 2, 3, 4)));
            let name = Name::from_str("example.com.").expect("a name");
            answer.add_answer(hickory_proto::rr::Record::from_rdata(name, 60, address));
            server.send_to(&answer.to_vec().expect("bytes"), client).await.expect("send");
        };
        let (first, ()) = tokio::join!(forwarder.ask(&query), answering);
        assert_eq!(first.expect("an answer").answers.len(), 1);
        // Nobody answers any more: this one comes from memory.
        drop((server, silent));
        assert_eq!(forwarder.ask(&query).await.expect("an answer").answers.len(), 1);
    }
}
