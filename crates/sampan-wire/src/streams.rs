//! Remote commands (exec, attach) and port-forwarding as a node serves them: the same for WebSocket and SPDY clients.
//!
//! A server calls [`negotiate`] with the request's headers, sends the response, takes the upgraded connection and hands it to
//! [`remote_command`] or [`port_forward`].

mod forward;
mod remote;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

pub use self::forward::{Forward, PortForward, port_forward};
pub use self::remote::{Outcome, Remote, Size, StatusWriter, Wants, remote_command};
use crate::websocket::{self, Framing};

const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
const ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";

/// What the streams are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    RemoteCommand,
    PortForward,
}

/// How they travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Channels(Framing),
    Spdy,
    /// SPDY inside a WebSocket.
    SpdyTunnel,
}

/// The answer to an upgrade request, and what to speak after it.
#[derive(Debug)]
pub struct Accepted {
    /// `101 Switching Protocols`.
    pub response: Response<()>,
    pub protocol: Protocol,
}

/// Why a request was not accepted: to be sent as it is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub status: StatusCode,
    pub message: String,
    /// For the header `X-Accepted-Stream-Protocol-Versions`, when not empty.
    pub supported: &'static [&'static str],
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Spdy(#[from] crate::spdy::frame::Error),
    /// The client did not open all streams in time, or went.
    #[error("the client did not open the streams it asked for")]
    Incomplete,
}

const CHANNELS: &[(&str, Framing)] = &[
    ("v5.channel.k8s.io", Framing { base64: false, half_close: true }),
    ("v4.channel.k8s.io", Framing { base64: false, half_close: false }),
    ("v4.base64.channel.k8s.io", Framing { base64: true, half_close: false }),
];
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const SPDY_COMMAND: &[&str] = &["v4.channel.k8s.io"];
const SPDY_FORWARD: &[&str] = &["portforward.k8s.io"];

fn channels(name: &str, purpose: Purpose) -> Option<Protocol> {
    if name == TUNNEL && purpose == Purpose::PortForward {
        return Some(Protocol::SpdyTunnel);
    }
    let (_, framing) = CHANNELS.iter().find(|(one, _)| *one == name)?;
    // Port-forwarding over channels knows no ends of its own.
    (purpose == Purpose::RemoteCommand || !framing.half_close).then_some(Protocol::Channels(*framing))
}

/// Chooses the first protocol of the client's that this side speaks.
pub fn negotiate(headers: &HeaderMap, purpose: Purpose) -> Result<Accepted, Refused> {
    if websocket::requested(headers) {
        return negotiate_websocket(headers, purpose);
    }
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        let message = "unable to upgrade: missing upgrade headers in request";
        return Err(Refused { status: StatusCode::BAD_REQUEST, message: message.into(), supported: &[] });
    }
    let supported = match purpose {
        Purpose::RemoteCommand => SPDY_COMMAND,
        Purpose::PortForward => SPDY_FORWARD,
    };
    let values = headers.get_all(STREAM_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    let chosen = offered.iter().find(|one| supported.contains(one));
    let Some(chosen) = chosen.or(supported.first().filter(|_| offered.is_empty() && purpose == Purpose::PortForward))
    else {
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {supported:?}"
        );
        return Err(Refused { status: StatusCode::FORBIDDEN, message, supported });
    };
    let response = switching("SPDY/3.1", Some((STREAM_PROTOCOL, chosen)));
    Ok(Accepted { response, protocol: Protocol::Spdy })
}

fn negotiate_websocket(headers: &HeaderMap, purpose: Purpose) -> Result<Accepted, Refused> {
    let offered = websocket::offered(headers);
    let chosen = offered.iter().find_map(|name| channels(name, purpose).map(|protocol| (*name, protocol)));
    let (Some((name, protocol)), Some(key)) = (chosen, headers.get(header::SEC_WEBSOCKET_KEY)) else {
        let message = format!("unable to upgrade: no sub-protocol of {offered:?} is supported");
        return Err(Refused { status: StatusCode::BAD_REQUEST, message, supported: &[] });
    };
    let mut response = switching("websocket", Some(("sec-websocket-protocol", name)));
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, websocket::accept_key(key));
    Ok(Accepted { response, protocol })
}

fn switching(upgrade: &'static str, more: Option<(&'static str, &str)>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
    if let Some((name, value)) = more
        && let Ok(value) = HeaderValue::from_str(value)
    {
        headers.insert(name, value);
    }
    response
}

impl Refused {
    /// The response: plain text, as upstream's is.
    pub fn response(&self) -> Response<String> {
        let mut response = Response::new(self.message.clone());
        *response.status_mut() = self.status;
        for name in self.supported {
            response.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_clients_first_choice_wins() {
        let socket = |protocols| {
            headers(&[("upgrade", "websocket"), ("sec-websocket-key", "x"), ("sec-websocket-protocol", protocols)])
        };
        let choose = |protocols, purpose| negotiate(&socket(protocols), purpose).map(|accepted| accepted.protocol);
        let v5 = Protocol::Channels(Framing { base64: false, half_close: true });
        assert_eq!(choose("v5.channel.k8s.io, v4.channel.k8s.io", Purpose::RemoteCommand), Ok(v5));
        assert_eq!(choose("v9.channel.k8s.io, v5.channel.k8s.io", Purpose::RemoteCommand), Ok(v5));
        assert_eq!(choose(TUNNEL, Purpose::PortForward), Ok(Protocol::SpdyTunnel));
        assert_eq!(choose(TUNNEL, Purpose::RemoteCommand).expect_err("refused").status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn spdy_answers_with_the_version() {
        let offer = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            (STREAM_PROTOCOL, "v5.channel.k8s.io"),
            (STREAM_PROTOCOL, "v4.channel.k8s.io"),
        ]);
        let accepted = negotiate(&offer, Purpose::RemoteCommand).expect("accepted");
        assert_eq!(accepted.response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(accepted.response.headers()[STREAM_PROTOCOL], "v4.channel.k8s.io");
        let old = headers(&[("upgrade", "SPDY/3.1"), (STREAM_PROTOCOL, "v1.channel.k8s.io")]);
        let refused = negotiate(&old, Purpose::RemoteCommand).expect_err("refused");
        assert_eq!(refused.response().headers()[ACCEPTED_PROTOCOLS], "v4.channel.k8s.io");
        assert_eq!(
            negotiate(&HeaderMap::new(), Purpose::PortForward).expect_err("refused").status,
            StatusCode::BAD_REQUEST
        );
    }
}
