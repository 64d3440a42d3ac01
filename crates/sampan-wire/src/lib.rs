//! TLS, certificates, WebSocket and stream framing: what the API server and the node both speak. Not HTTP routing.
