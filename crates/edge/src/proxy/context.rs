//! What is known of a request besides its head and body.

use std::net::IpAddr;

use tokio::time::Instant;

/// What the connection, and those who are believed, say of a request.
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    /// The client, behind the proxies that are believed.
    pub(crate) client: IpAddr,
    /// Whether the client speaks TLS.
    pub(crate) secure: bool,
    /// When the head was there.
    pub(crate) started: Instant,
}
