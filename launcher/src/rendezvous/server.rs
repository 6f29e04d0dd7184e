//! The launcher's end of the rendezvous: a QUIC endpoint with mutual TLS, one task per connection, no decisions.
//!
//! One endpoint serves any number of jobs, which come and go ([`Server::enlist`]); [`directory`] tells them apart.
//! A connection becomes a session when its first frame is a registration whose worker number belongs to the
//! certificate that the peer showed. From then on it turns frames into [`Inbound`] and [`ToWorker`]s into frames.
//! Every queue is bounded; a worker that does not read is disconnected and comes again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use datapath::transport::quic::tls::{TlsError, peer_fingerprint, shared_server_config};
use quinn::{Connection, Endpoint, IdleTimeout, RecvStream, SendStream, TransportConfig, VarInt};
use tokio::sync::mpsc;
use worker::rendezvous::message::{
    ALPN, FrameError, Registration, ToLauncher, ToWorker, body_length, decode, encode,
};
use worker::units::{Incarnation, WorkerId};

use super::authority::{Authority, AuthorityError, launcher_name};
use directory::{Directory, Seat};

mod directory;

pub use directory::Entry;

/// What all connections together may have said before the group has heard it. A heartbeat of every one of a few
/// hundred workers; beyond it the senders wait.
pub const INBOUND_MAX: usize = 1024;
/// What one worker may be told before it has read it: a generation takes six messages.
const OUTBOUND_MAX: usize = 64;
/// From a connection to its registration.
const REGISTER_MAX: Duration = Duration::from_secs(10);
/// A peer that acknowledges nothing for this long is disconnected; its lease goes on.
const SILENCE_MAX_MS: u32 = 8_000;
/// How often a silent worker is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// What connections say.
#[derive(Debug)]
pub enum Inbound {
    /// A new session.
    Registered {
        /// Who.
        registration: Box<Registration>,
        /// What is to be sent to it.
        outbound: Outbound,
    },
    /// A session's message.
    Message {
        /// Who.
        worker: WorkerId,
        /// Which process.
        incarnation: Incarnation,
        /// What.
        message: Box<ToLauncher>,
    },
}

/// The way to one session.
#[derive(Clone, Debug)]
pub struct Outbound(mpsc::Sender<ToWorker>);

impl Outbound {
    /// Queues a message; false when the session is over or so far behind that it must come again.
    #[must_use]
    pub fn send(&self, message: ToWorker) -> bool {
        self.0.try_send(message).is_ok()
    }

    /// Whether somebody is there to hear it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.0.is_closed()
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The launcher's certificate is unusable.
    #[error("prepare the rendezvous' certificate")]
    Tls(#[from] TlsError),
    /// The launcher's certificate cannot be made.
    #[error("prepare the job's rendezvous")]
    Authority(#[from] AuthorityError),
    /// No UDP socket.
    #[error("open a UDP socket on {address} for the rendezvous")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// A listening endpoint.
#[derive(Debug)]
pub struct Server {
    endpoint: Endpoint,
    address: SocketAddr,
    directory: Arc<Directory>,
}

impl Server {
    /// Listens on `bind` (port 0: a free one), for no job yet. Needs a runtime.
    ///
    /// # Errors
    /// When no socket can be bound.
    pub fn start(bind: SocketAddr) -> Result<Self, ServerError> {
        let directory = Directory::new();
        let mut config =
            shared_server_config(Arc::clone(&directory) as _, Arc::clone(&directory) as _, ALPN)?;
        config.transport_config(Arc::new(transport()));
        let bound = |source| ServerError::Bind { address: bind, source };
        let endpoint = Endpoint::server(config, bind).map_err(bound)?;
        let address = endpoint.local_addr().map_err(bound)?;
        tokio::spawn(accept(endpoint.clone(), Arc::clone(&directory)));
        Ok(Self { endpoint, address, directory })
    }

    /// Lets the workers of a job in, all of whose certificates `authority` has made, for as long as the entry is kept.
    ///
    /// # Errors
    /// When the launcher's identity cannot be made.
    pub fn enlist(
        &self,
        job_uid: &str,
        authority: &Authority,
    ) -> Result<(Entry, mpsc::Receiver<Inbound>), ServerError> {
        let (sender, inbound) = mpsc::channel(INBOUND_MAX);
        let name = launcher_name(job_uid);
        let entry = self.directory.enter(&name, &authority.launcher()?, authority.fingerprints(), &sender)?;
        Ok((entry, inbound))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection and waits until the peers know.
    pub async fn close(self) {
        self.endpoint.close(VarInt::from_u32(0), b"over");
        self.endpoint.wait_idle().await;
    }
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(SILENCE_MAX_MS))));
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    // One stream carries everything.
    transport.max_concurrent_bidi_streams(VarInt::from_u32(1));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport
}

async fn accept(endpoint: Endpoint, directory: Arc<Directory>) {
    while let Some(incoming) = endpoint.accept().await {
        let directory = Arc::clone(&directory);
        tokio::spawn(async move {
            let peer = incoming.remote_address();
            if let Err(end) = serve(incoming, &directory).await {
                tracing::debug!(%peer, %end, "a rendezvous connection ended");
            }
        });
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("keep the connection")]
    Connection(#[from] quinn::ConnectionError),
    #[error("receive")]
    Read(#[from] quinn::ReadExactError),
    #[error("send")]
    Write(#[from] quinn::WriteError),
    #[error("understand the peer: {0}")]
    Frame(#[from] FrameError),
    #[error("be registered within {} s", REGISTER_MAX.as_secs())]
    Late,
    #[error("accept a peer whose certificate is not of a worker of this job")]
    Stranger,
    #[error("accept a first message that is no registration of the certificate's worker")]
    NotItsNumber,
    #[error("tell the group, which is over")]
    Over,
    #[error("keep a session that was refused, replaced or is too far behind")]
    Dropped,
}

async fn serve(incoming: quinn::Incoming, directory: &Directory) -> Result<(), End> {
    let opened = async {
        let connection = incoming.await?;
        let shown = peer_fingerprint(&connection).ok_or(End::Stranger)?;
        let seat = directory.seat(&shown).ok_or(End::Stranger)?;
        let (send, mut receive) = connection.accept_bi().await?;
        match read_frame(&mut receive).await? {
            ToLauncher::Register(registration) if registration.worker == seat.worker => {
                Ok((connection, registration, seat, send, receive))
            }
            _ => Err(End::NotItsNumber),
        }
    };
    let (connection, registration, Seat { inbound, .. }, send, receive) =
        tokio::time::timeout(REGISTER_MAX, opened).await.map_err(|_| End::Late)??;
    let (worker, incarnation) = (registration.worker, registration.incarnation);
    let (sender, outbound) = mpsc::channel(OUTBOUND_MAX);
    let registered = Inbound::Registered { registration: Box::new(registration), outbound: Outbound(sender) };
    inbound.send(registered).await.map_err(|_| End::Over)?;
    let end = tokio::select! {
        end = read(receive, worker, incarnation, &inbound) => end,
        end = write(send, outbound, &connection) => end,
    };
    connection.close(VarInt::from_u32(0), b"");
    end
}

async fn read(
    mut receive: RecvStream,
    worker: WorkerId,
    incarnation: Incarnation,
    inbound: &mpsc::Sender<Inbound>,
) -> Result<(), End> {
    loop {
        let message = Box::new(read_frame(&mut receive).await?);
        let message = Inbound::Message { worker, incarnation, message };
        inbound.send(message).await.map_err(|_| End::Over)?;
    }
}

/// Ends when the group lets go of the session; then what was said is delivered before the connection is closed.
async fn write(
    mut send: SendStream,
    mut outbound: mpsc::Receiver<ToWorker>,
    connection: &Connection,
) -> Result<(), End> {
    while let Some(message) = outbound.recv().await {
        send.write_all(&encode(&message)?).await?;
        if matches!(message, ToWorker::Refuse { .. }) {
            break;
        }
    }
    if send.finish().is_ok() {
        tokio::select! {
            _ = send.stopped() => {}
            _ = connection.closed() => {}
        }
    }
    Err(End::Dropped)
}

async fn read_frame(receive: &mut RecvStream) -> Result<ToLauncher, End> {
    let mut prefix = [0; 4];
    receive.read_exact(&mut prefix).await?;
    let mut body = vec![0; body_length(prefix)?];
    receive.read_exact(&mut body).await?;
    Ok(decode(&body)?)
}

#[cfg(test)]
mod tests;
