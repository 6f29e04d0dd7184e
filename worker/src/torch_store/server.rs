//! The store's thread: opens the listener, starts the reactor, and asks it things.
//!
//! One thread serves all connections: it reads from a socket, decodes in place, lets the table decide and writes the
//! answer at once. There is no task, queue or lock between a request and its answer, which is where a store that
//! serves thousands of small requests spends its time otherwise.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

use super::protocol::CommandLimits;
use super::table::{Connection, Progress};
use reactor::{LISTENER, Reactor, WAKER};

mod peer;
mod reactor;

/// Connections that may wait to be accepted: a whole job connects in the same instant. The kernel caps it at
/// `net.core.somaxconn`; beyond, a client's connect is repeated after a second.
const BACKLOG: i32 = 1 << 16;

/// Descriptors of this process that are not the store's connections.
const OTHER_DESCRIPTORS: u64 = 1024;

/// How long the reactor may take to answer a question about its state. It is only ever busy for as long as one
/// command takes, so this much means that it is gone or that the host is in deep trouble.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Questions to the reactor that may wait.
const QUESTIONS: usize = 16;

/// A silent host (power lost, cable cut) is noticed after `IDLE + PROBES × INTERVAL`: 90 s. Its waits are dropped.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// What one store may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of one command.
    pub command: CommandLimits,
    /// Bytes of all keys, values, queues and waits. A command that would go beyond ends its connection.
    pub total_bytes: usize,
    /// Bytes of incomplete commands, over all connections.
    pub input_bytes: usize,
    /// Bytes of answers that a client has not read. More, and it is closed: it is broken, or does not read at all.
    pub unread_bytes: usize,
    /// Connections at the same time; the next one is closed at once.
    pub connections: u32,
    /// A connection that has not sent VALIDATE after so long is closed.
    pub validate_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            command: CommandLimits::default(),
            // Full meshes of address keys of 10,000 ranks are some 10 MB; this leaves room for misuse.
            total_bytes: 1 << 30,
            input_bytes: 256 << 20,
            // One answer to a MULTI_GET of eight of the largest values.
            unread_bytes: 64 << 20,
            connections: 128 << 10,
            validate_within: Duration::from_secs(10),
        }
    }
}

/// Why a store could not be opened or asked.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StoreError {
    #[error("open a socket for the torch store on {address}; is the address one of this host's?")]
    Bind { address: IpAddr, source: io::Error },
    #[error("set up polling for the torch store")]
    Poll { source: io::Error },
    #[error("start the torch store's thread")]
    Spawn { source: io::Error },
    #[error("ask the torch store for its state: its thread does not answer")]
    NoAnswer,
}

/// What a store has done and who is there.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// How many processes are expected, if [`Server::world`] was told.
    pub world: Option<u32>,
    /// The table's state.
    pub progress: Progress,
    /// Where the connections come from, by number.
    pub peers: Vec<Peer>,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Connections that were closed because of what the client did.
    pub refused: u64,
    /// Commands served.
    pub commands: u64,
}

impl Stats {
    /// How many processes have not joined; none if nobody said how many there should be.
    pub fn missing(&self) -> Option<i64> {
        self.world.map(|world| self.progress.missing(world))
    }
}

/// One open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number, as in [`Progress`].
    pub connection: Connection,
    /// Its other end.
    pub address: SocketAddr,
    /// How long it has been open.
    pub age: Duration,
    /// For how long it has sent nothing; of a connection that waits: how long it has waited.
    pub quiet: Duration,
}

/// A running store. Dropping it closes it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    world: Option<u32>,
    questions: SyncSender<Question>,
    waker: Arc<mio::Waker>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Question {
    Stats(SyncSender<Stats>),
    Close,
}

impl Server {
    /// Opens a store on a free port of one interface (never all of them, unless `bind` says so) and serves it on a
    /// thread of its own. Raises this process's soft limit of descriptors as far as `limits.connections` and the
    /// hard limit allow.
    ///
    /// # Errors
    /// A [`StoreError`] if the address is not this host's, or if descriptors or threads have run out.
    pub fn open(bind: IpAddr, limits: Limits) -> Result<Self, StoreError> {
        raise_descriptors(u64::from(limits.connections) + OTHER_DESCRIPTORS);
        let (listener, address) =
            listen(bind).map_err(|source| StoreError::Bind { address: bind, source })?;
        let poll = |source| StoreError::Poll { source };
        let mut listener = mio::net::TcpListener::from_std(listener);
        let events = mio::Poll::new().map_err(poll)?;
        let waker = mio::Waker::new(events.registry(), WAKER).map_err(poll)?;
        events.registry().register(&mut listener, LISTENER, mio::Interest::READABLE).map_err(poll)?;
        let (questions, asked) = sync_channel(QUESTIONS);
        let reactor = Reactor::new(events, listener, limits, asked);
        let thread = std::thread::Builder::new()
            .name("torch-store".into())
            .spawn(move || reactor.run())
            .map_err(|source| StoreError::Spawn { source })?;
        tracing::debug!(%address, "torch store opened");
        Ok(Self { address, world: None, questions, waker: Arc::new(waker), thread: Some(thread) })
    }

    /// Where clients connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Says how many processes should join, for [`Stats::missing`].
    pub fn world(&mut self, processes: u32) {
        self.world = Some(processes);
    }

    /// Who joined, who waits, for what.
    ///
    /// # Errors
    /// [`StoreError::NoAnswer`] if the thread is gone.
    pub fn stats(&self) -> Result<Stats, StoreError> {
        let (answer, stats) = sync_channel(1);
        self.ask(Question::Stats(answer))?;
        let stats = stats.recv_timeout(ANSWER_WAIT).map_err(|_| StoreError::NoAnswer)?;
        Ok(Stats { world: self.world, ..stats })
    }

    /// Ends the store: every connection is closed, the port is free, and the thread is gone when this returns.
    pub fn close(mut self) {
        self.stop();
    }

    fn ask(&self, question: Question) -> Result<(), StoreError> {
        match self.questions.try_send(question) {
            // A full queue has been woken already; one more question than it holds is not worth a wait.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(StoreError::NoAnswer),
            Ok(()) => self.waker.wake().map_err(|_| StoreError::NoAnswer),
        }
    }

    fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // Blocks only while older questions are answered; fails only if the thread is gone.
        let _ = self.waker.wake();
        let _ = self.questions.send(Question::Close);
        let _ = self.waker.wake();
        if thread.join().is_err() {
            tracing::error!("the torch store's thread had panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the accepted sockets inherit is set here once instead of by a call for each: no delay for small answers, and
/// probes for hosts that vanish.
fn listen(bind: IpAddr) -> io::Result<(std::net::TcpListener, SocketAddr)> {
    let family = if bind.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
    rustix::net::bind(&socket, &SocketAddr::new(bind, 0))?;
    rustix::net::listen(&socket, BACKLOG)?;
    let listener = std::net::TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn raise_descriptors(wanted: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if current.is_some_and(|current| current < wanted) {
        // Not fatal: a job with fewer ranks than descriptors works all the same, and accept says when they end.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}

#[cfg(test)]
mod tests;
