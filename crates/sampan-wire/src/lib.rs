//! TLS, certificates, WebSocket and stream framing: what the API server and the node both speak. Not HTTP routing, and
//! no policy: who may do what is decided elsewhere.

pub mod dial;
pub mod pipe;
pub mod pki;
pub mod spdy;
pub mod streams;
pub mod tls;
pub mod websocket;
