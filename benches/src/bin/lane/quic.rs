//! Plain quinn: a stream for each request, which is two numbers, and the bytes as answer. Either with our socket,
//! transport parameters and ciphers, or all as it comes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use datapath::select::Congestion;
use datapath::transport::quic::QuicLane;
use datapath::transport::quic::tls::Identity;
use quinn::{ClientConfig, Connection, Endpoint, Incoming, RecvStream, SendStream, ServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;

use crate::server::{SERVER, Server};
use crate::work::{self, Client, Work};
use crate::{Failure, tls};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Pieces of a stream taken at once, as our lane does.
const READ_PIECES: usize = 32;

/// Starts to answer. Needs a runtime around it.
pub(crate) fn serve(identity: &Identity, folder: &Path, tuned: bool) -> Result<SocketAddr, Failure> {
    let data = Bytes::from(tls::data(folder)?);
    if tuned {
        let lane = QuicLane::open(identity, LOCALHOST, Congestion::Fixed)?;
        let address = lane.local_addr();
        tokio::spawn(async move {
            while let Some(incoming) = lane.endpoint().accept().await {
                let config = lane.server_config(incoming.remote_address(), 1);
                tokio::spawn(answer_all(incoming, Some(config), data.clone()));
            }
        });
        return Ok(address);
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key_der.clone()));
    let config = ServerConfig::with_single_cert(vec![identity.cert_der.clone().into()], key)?;
    let endpoint = Endpoint::server(config, SocketAddr::new(LOCALHOST, 0))?;
    let address = endpoint.local_addr()?;
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(answer_all(incoming, None, data.clone()));
        }
    });
    Ok(address)
}

async fn answer_all(
    incoming: Incoming,
    config: Option<Arc<ServerConfig>>,
    data: Bytes,
) -> Result<(), Failure> {
    let connecting = match config {
        Some(config) => incoming.accept_with(config)?,
        None => incoming.accept()?,
    };
    let connection = connecting.await?;
    loop {
        let (send, receive) = connection.accept_bi().await?;
        tokio::spawn(answer(send, receive, data.clone()));
    }
}

async fn answer(mut send: SendStream, mut receive: RecvStream, data: Bytes) -> Result<(), Failure> {
    let mut asked = [0; tls::ASK_BYTES];
    receive.read_exact(&mut asked).await?;
    send.write_chunk(data.slice(tls::range(asked)?)).await?;
    Ok(send.finish()?)
}

/// Measures it.
pub(crate) async fn run(server: Server, work: Work, tuned: bool, copied: bool) -> Result<Value, Failure> {
    let address = server.address;
    let (_endpoint, connecting) = if tuned {
        let lane = QuicLane::open(&server.identity, LOCALHOST, Congestion::Fixed)?;
        let connecting = lane.endpoint().connect_with(lane.client_config(address, 1), address, SERVER)?;
        (lane.endpoint().clone(), connecting)
    } else {
        let endpoint = Endpoint::client(SocketAddr::new(LOCALHOST, 0))?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(server.identity.ca_der.clone()))?;
        let config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        let connecting = endpoint.connect_with(config, address, SERVER)?;
        (endpoint, connecting)
    };
    let connection = connecting.await?;
    work::measure(server, work, Quinn { connection, copied }).await
}

struct Quinn {
    connection: Connection,
    /// Into the slot; otherwise only counted.
    copied: bool,
}

impl Client for Quinn {
    async fn fetch(&self, start: u64, slot: &mut [u8]) -> Result<(), Failure> {
        let (mut send, mut receive) = self.connection.open_bi().await?;
        send.write_all(&tls::ask(start, slot.len())).await?;
        send.finish()?;
        let mut pieces = [const { Bytes::new() }; READ_PIECES];
        let mut filled = 0;
        while let Some(count) = receive.read_chunks(&mut pieces).await? {
            for piece in &mut pieces[..count] {
                let end = filled + piece.len();
                if self.copied {
                    slot.get_mut(filled..end).ok_or("too many bytes")?.copy_from_slice(piece);
                }
                filled = end;
                *piece = Bytes::new();
            }
        }
        if filled == slot.len() { Ok(()) } else { Err(format!("{filled} bytes of {}", slot.len()).into()) }
    }

    async fn received(&self) -> (u64, u64) {
        let received = self.connection.stats().udp_rx;
        (received.datagrams, received.bytes)
    }
}
