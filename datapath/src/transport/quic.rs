//! The QUIC lane: one UDP socket of a data plane, over which it asks other owners for ranges of chunks and answers them.
//!
//! [`tls`] says who may speak, [`tuning`] with which numbers, [`udp`] keeps jumbo frames from stalling it;
//! [`client`] asks and [`server`] answers, in the frames of [`crate::wire`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, EndpointConfig, TokioRuntime};

use crate::select::Congestion;
use crate::wire;

pub(crate) mod client;
pub(crate) mod server;
pub mod tls;
pub(crate) mod tuning;
mod udp;

use tls::{Identity, TlsError};

/// A request that brings no byte for this long is asked elsewhere, and an answer of which nothing is taken for this
/// long is given up. An owner that lives but waits for a slow store gets this long, since asking another means
/// reading the chunk twice.
pub(in crate::transport) const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no lane.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The identity is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No socket on this address.
    #[error("open a UDP socket on {address} (is it an address of this host?)")]
    Socket {
        /// The address.
        address: IpAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A data plane's socket and what its connections are made of.
#[derive(Debug)]
pub struct QuicLane {
    endpoint: Endpoint,
    server: quinn::ServerConfig,
    client: quinn::ClientConfig,
    local_addr: SocketAddr,
    receive_buffer: u64,
    congestion: Congestion,
    /// Packets are no larger than this allows, whatever the route would carry.
    mtu_limit: u32,
}

impl QuicLane {
    /// Opens a socket on an interface's address, on a port of the kernel's choice, whose senders hold back as told. Needs a
    /// tokio runtime.
    ///
    /// # Errors
    /// When the identity is unusable or there is no such address here.
    pub fn open(identity: &Identity, bind: IpAddr, congestion: Congestion) -> Result<Self, QuicError> {
        let failed = |source| QuicError::Socket { address: bind, source };
        let (socket, receive_buffer) = tuning::socket(bind).map_err(failed)?;
        let socket = quinn::Runtime::wrap_udp_socket(&TokioRuntime, socket).map_err(failed)?;
        Ok(Self { congestion, ..Self::over(identity, bind, socket, receive_buffer, u32::MAX)? })
    }

    /// A lane over a socket.
    fn over(
        identity: &Identity,
        bind: IpAddr,
        socket: Arc<dyn quinn::AsyncUdpSocket>,
        receive_buffer: u64,
        mtu_limit: u32,
    ) -> Result<Self, QuicError> {
        let server = tls::server_config(identity, tls::DATA_ALPN)?;
        let client = tls::client_config(identity, tls::DATA_ALPN)?;
        let failed = |source| QuicError::Socket { address: bind, source };
        let mut config = EndpointConfig::default();
        config
            .max_udp_payload_size(u16::MAX - 8)
            .map_err(|_| failed(io::Error::other("the largest UDP payload is not accepted")))?;
        let socket = Arc::new(udp::ClampedSocket::new(socket));
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(config, Some(server.clone()), socket, runtime)
            .map_err(failed)?;
        let local_addr = endpoint.local_addr().map_err(failed)?;
        let congestion = Congestion::default();
        Ok(Self { endpoint, server, client, local_addr, receive_buffer, congestion, mtu_limit })
    }

    /// The socket, for connections that are not of a plane: those of a bench.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How to connect to a peer, to which so many send in all.
    #[must_use]
    pub fn client_config(&self, peer: SocketAddr, senders: usize) -> quinn::ClientConfig {
        let mut config = self.client.clone();
        config.transport_config(Arc::new(self.transport(peer, senders)));
        config
    }

    /// How to accept a peer, to which so many send in all.
    #[must_use]
    pub fn server_config(&self, peer: SocketAddr, senders: usize) -> Arc<quinn::ServerConfig> {
        let mut config = self.server.clone();
        config.transport_config(Arc::new(self.transport(peer, senders)));
        Arc::new(config)
    }

    fn transport(&self, peer: SocketAddr, senders: usize) -> quinn::TransportConfig {
        let mtu = tuning::route_mtu(peer).min(self.mtu_limit);
        tuning::transport(mtu, tuning::window(self.receive_buffer, senders), self.congestion)
    }

    /// Closes every connection and waits until the peers have been told.
    pub(crate) async fn close(&self) {
        self.endpoint.close(0_u32.into(), b"closed");
        self.endpoint.wait_idle().await;
    }
}

/// Why a frame did not come.
#[derive(Debug, thiserror::Error)]
pub(in crate::transport) enum FrameError {
    #[error("read a frame")]
    Read(#[from] quinn::ReadExactError),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
}

pub(in crate::transport) async fn read_frame(
    stream: &mut quinn::RecvStream,
) -> Result<wire::Frame, FrameError> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut body = vec![0; wire::body_length(prefix)?];
    stream.read_exact(&mut body).await?;
    Ok(wire::decode(&body)?)
}

#[cfg(test)]
mod tests;
