//! The worker's end of the rendezvous: one QUIC connection with mutual TLS at a time, made anew whenever it breaks.
//!
//! A session registers, then carries frames both ways on one bidirectional stream. It never gives up by itself:
//! whether the launcher is lost is decided by whoever knows the lease. A message belongs to the session that was
//! open when it was made; one that missed it is dropped, because [`crate::agent`] says everything again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use datapath::transport::quic::tls::{Identity, TlsError, client_config};
use quinn::{ConnectionError, Endpoint, IdleTimeout, RecvStream, SendStream, TransportConfig, VarInt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::message::{ALPN, FrameError, Registration, ToLauncher, ToWorker, body_length, decode, encode};

/// A peer that says nothing (not even an acknowledgement) for this long is gone: four keep-alives are lost, or the
/// host stood still.
const SILENCE_MAX_MS: u32 = 4_000;
/// How often a quiet connection is kept alive.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// One attempt to connect and register.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Pause before the second attempt; doubled for each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(25);
/// The longest pause: a launcher that restarts is found within a second.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long the last messages may take to be acknowledged at the end.
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// Messages that wait for the network: a heartbeat, and per rank a few words about its end.
const OUTGOING_MAX: usize = 1_024;
/// Messages that wait for the agent: the launcher speaks rarely.
const INCOMING_MAX: usize = 64;

/// Whom to call.
#[derive(Debug)]
pub struct ClientConfig<'a> {
    /// The launcher.
    pub launcher: SocketAddr,
    /// The name in its certificate.
    pub launcher_name: &'a str,
    /// The interface to call from.
    pub bind: IpAddr,
    /// This worker's certificate.
    pub identity: &'a Identity,
}

/// Counts the connections of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// What the client tells.
#[derive(Debug)]
pub enum SessionEvent {
    /// A new connection; the registration is on its way.
    Connected(SessionId),
    /// The launcher said something.
    Message(ToWorker),
    /// The connection broke; another one is being tried.
    Lost {
        /// How long the launcher had been silent when that was noticed.
        silent: Duration,
        /// Why.
        reason: String,
    },
    /// The launcher speaks another version; trying again is of no use.
    Incompatible {
        /// What is wrong.
        reason: String,
    },
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The certificates are of no use.
    #[error("prepare the connection to the launcher")]
    Tls(#[from] TlsError),
    /// No UDP socket.
    #[error("open a UDP socket on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The running client.
#[derive(Debug)]
pub struct Client {
    outgoing: mpsc::Sender<(SessionId, ToLauncher)>,
    task: JoinHandle<()>,
}

impl Client {
    /// Begins to call the launcher. Every connection starts with what `registration` holds then. Needs a runtime.
    ///
    /// # Errors
    /// When the identity is malformed or no socket can be bound.
    pub fn start(
        config: &ClientConfig<'_>,
        registration: watch::Receiver<Registration>,
    ) -> Result<(Self, mpsc::Receiver<SessionEvent>), ClientError> {
        let mut tls = client_config(config.identity, ALPN)?;
        tls.transport_config(Arc::new(transport()));
        let address = SocketAddr::new(local_address(config.bind, config.launcher.ip()), 0);
        let mut endpoint =
            Endpoint::client(address).map_err(|source| ClientError::Bind { address, source })?;
        endpoint.set_default_client_config(tls);
        let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
        let (events, inbox) = mpsc::channel(INCOMING_MAX);
        let (launcher, name) = (config.launcher, config.launcher_name.to_owned());
        let caller = Caller { dial: Dial { endpoint, launcher, name, registration }, queue, events };
        Ok((Self { outgoing, task: tokio::spawn(caller.run()) }, inbox))
    }

    /// Sends a message on a session; nothing happens when that session is over. False if the queue is full: the
    /// network stands still, and the session is as good as lost.
    pub fn send(&self, session: SessionId, message: ToLauncher) -> bool {
        !matches!(self.outgoing.try_send((session, message)), Err(mpsc::error::TrySendError::Full(_)))
    }

    /// Sends what is queued, waits a bounded time for its acknowledgement, and closes.
    pub async fn close(self) {
        drop(self.outgoing);
        let abort = self.task.abort_handle();
        if timeout(FLUSH_MAX, self.task).await.is_err() {
            abort.abort();
        }
    }
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(SILENCE_MAX_MS))));
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    // The launcher opens no streams and sends no datagrams.
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport
}

/// The wanted interface where it is of the launcher's family, else any.
fn local_address(bind: IpAddr, launcher: IpAddr) -> IpAddr {
    match (bind, launcher) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => bind,
        (_, IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (_, IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// How to reach the launcher.
struct Dial {
    endpoint: Endpoint,
    launcher: SocketAddr,
    name: String,
    registration: watch::Receiver<Registration>,
}

struct Caller {
    dial: Dial,
    queue: mpsc::Receiver<(SessionId, ToLauncher)>,
    events: mpsc::Sender<SessionEvent>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The agent closed the client and everything is sent.
    #[error("finish")]
    Closed,
    #[error("connect to the launcher: {0}")]
    Connect(#[from] quinn::ConnectError),
    #[error("keep the connection to the launcher: {0}")]
    Connection(#[from] ConnectionError),
    #[error("reach the launcher in time")]
    Timeout,
    #[error("send to the launcher: {0}")]
    Write(#[from] quinn::WriteError),
    #[error("receive from the launcher: {0}")]
    Read(#[from] quinn::ReadExactError),
    #[error("understand the launcher: {0}")]
    Frame(#[from] FrameError),
}

impl Caller {
    async fn run(mut self) {
        let mut backoff = BACKOFF_FIRST;
        let mut session = SessionId(0);
        loop {
            let attempt = tokio::select! {
                attempt = self.dial.connect() => attempt,
                () = closed(&mut self.queue) => break,
            };
            let end = match attempt {
                Ok((connection, send, receive)) => {
                    backoff = BACKOFF_FIRST;
                    session.0 += 1;
                    if self.events.send(SessionEvent::Connected(session)).await.is_err() {
                        break;
                    }
                    let end = self.carry(session, send, receive).await;
                    connection.close(VarInt::from_u32(0), b"");
                    end
                }
                Err(end) => end,
            };
            if matches!(end, End::Closed) || self.events.send(lost(&end)).await.is_err() {
                break;
            }
            tokio::select! {
                () = sleep(jittered(backoff)) => backoff = (backoff * 2).min(BACKOFF_MAX),
                () = closed(&mut self.queue) => break,
            }
        }
        self.dial.endpoint.wait_idle().await;
    }

    /// Until the connection breaks or the agent closes the client.
    async fn carry(&mut self, session: SessionId, send: SendStream, receive: RecvStream) -> End {
        let events = self.events.clone();
        tokio::select! {
            end = write(&mut self.queue, session, send) => end.err().unwrap_or(End::Closed),
            end = read(&events, receive) => end.err().unwrap_or(End::Closed),
        }
    }
}

impl Dial {
    async fn connect(&self) -> Result<(quinn::Connection, SendStream, RecvStream), End> {
        let attempt = async {
            let connection = self.endpoint.connect(self.launcher, &self.name)?.await?;
            let (mut send, receive) = connection.open_bi().await?;
            let registration = self.registration.borrow().clone();
            send.write_all(&encode(&ToLauncher::Register(registration))?).await?;
            Ok((connection, send, receive))
        };
        timeout(CONNECT_MAX, attempt).await.map_err(|_| End::Timeout)?
    }
}

/// Until the agent closes the client. Throws away what was meant for an earlier session.
async fn closed(queue: &mut mpsc::Receiver<(SessionId, ToLauncher)>) {
    while queue.recv().await.is_some() {}
}

/// Frames out. Ends well when the queue is closed and the launcher has acknowledged all of it.
async fn write(
    queue: &mut mpsc::Receiver<(SessionId, ToLauncher)>,
    session: SessionId,
    mut send: SendStream,
) -> Result<(), End> {
    while let Some((of, message)) = queue.recv().await {
        if of == session {
            send.write_all(&encode(&message)?).await?;
        }
    }
    if send.finish().is_ok() {
        // Either all is acknowledged or the connection is gone; both are the end.
        let _ = send.stopped().await;
    }
    Ok(())
}

/// Frames in. Ends well when nobody listens any more.
async fn read(events: &mpsc::Sender<SessionEvent>, mut receive: RecvStream) -> Result<(), End> {
    loop {
        let mut prefix = [0; 4];
        receive.read_exact(&mut prefix).await?;
        let mut body = vec![0; body_length(prefix)?];
        receive.read_exact(&mut body).await?;
        let message = decode(&body)?;
        if events.send(SessionEvent::Message(message)).await.is_err() {
            return Ok(());
        }
    }
}

fn lost(end: &End) -> SessionEvent {
    let timed_out = [
        matches!(end, End::Connection(ConnectionError::TimedOut)),
        matches!(end, End::Write(quinn::WriteError::ConnectionLost(ConnectionError::TimedOut))),
        matches!(
            end,
            End::Read(quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(
                ConnectionError::TimedOut
            )))
        ),
    ];
    let reason = end.to_string();
    match end {
        End::Frame(FrameError::Version { .. }) => SessionEvent::Incompatible { reason },
        _ if timed_out.contains(&true) => {
            SessionEvent::Lost { silent: Duration::from_millis(SILENCE_MAX_MS.into()), reason }
        }
        _ => SessionEvent::Lost { silent: Duration::ZERO, reason },
    }
}

/// Between half of it and all of it: the workers of a launcher that restarts must not come all at once.
fn jittered(backoff: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    backoff / 2 + (backoff / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
