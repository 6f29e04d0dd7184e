//! The loop over ready sockets.
//!
//! Polling is edge-triggered, so that a socket costs no call to the kernel but its reads and writes: a read that does
//! not fill the buffer has emptied the socket, which saves the second read that would say so. A new connection is
//! read before it is registered, since its first command mostly has come already.

use std::io;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::peer::{Came, PeerSocket};
use super::{Limits, Peer, Question, Stats};
use crate::torch_store::protocol::{Fault, Reply, Step};
use crate::torch_store::table::{Connection, Refusal, STOP_WAITING, Table};

pub(super) const LISTENER: Token = Token(usize::MAX);
pub(super) const WAKER: Token = Token(usize::MAX - 1);

/// Ready sockets taken from the kernel at once.
const EVENTS: usize = 1024;
/// Bytes of one read: the largest burst that is worth decoding in place. Larger values come in several.
const READ_BYTES: usize = 64 << 10;
/// Reads from one socket before the others get their turn.
const READS_IN_TURN: u32 = 16;
/// Connections accepted before the others get their turn.
const ACCEPTS_IN_TURN: u32 = 64;
/// How often strangers are looked at.
const SWEEP: Duration = Duration::from_millis(250);
/// Pause after accept failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Reactor {
    poll: Poll,
    listener: mio::net::TcpListener,
    limits: Limits,
    asked: Receiver<Question>,
    table: Table,
    peers: Vec<Option<PeerSocket>>,
    /// Numbers of closed connections.
    free: Vec<u32>,
    open: u32,
    strangers: u32,
    input_bytes: usize,
    /// Sockets that have more to read than their turn allowed, and whether that ends.
    unfinished: Vec<(Connection, bool)>,
    accepting: Accepting,
    /// Somebody was turned away, which is said once until there is room again.
    full: bool,
    reply: Reply,
    woken: Vec<Connection>,
    now: Instant,
    stats: Stats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    /// The kernel will say when there is somebody.
    Idle,
    More,
    /// It failed then; for some time there is no point in trying.
    Paused(Instant),
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the client closed")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("failed to {0}")]
    Fault(#[from] Fault),
    #[error("failed to {0}")]
    Refusal(#[from] Refusal),
    #[error("failed to send answers: the client has left {0} bytes unread")]
    Unread(usize),
    #[error("failed to receive: incomplete commands of all clients have {0} bytes")]
    Input(usize),
    #[error("failed to wait any longer for VALIDATE")]
    Silent,
}

impl Reactor {
    pub(super) fn new(
        poll: Poll,
        listener: mio::net::TcpListener,
        limits: Limits,
        asked: Receiver<Question>,
    ) -> Self {
        Self {
            poll,
            listener,
            limits,
            asked,
            table: Table::new(limits.total_bytes),
            peers: Vec::new(),
            free: Vec::new(),
            open: 0,
            strangers: 0,
            input_bytes: 0,
            unfinished: Vec::new(),
            accepting: Accepting::Idle,
            full: false,
            reply: Reply::with_limit(limits.unread_bytes),
            woken: Vec::new(),
            now: now(),
            stats: Stats::default(),
        }
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; READ_BYTES];
        let mut swept = self.now;
        loop {
            match self.poll.poll(&mut events, self.timeout()) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    // Cannot happen to a descriptor that we own; going on would spin.
                    tracing::error!(%error, "the torch store cannot poll and ends");
                    return;
                }
                _ => self.now = now(),
            }
            for event in &events {
                match event.token() {
                    LISTENER if !matches!(self.accepting, Accepting::Paused(_)) => {
                        self.accepting = Accepting::More;
                    }
                    LISTENER => {}
                    WAKER => {
                        if self.answer_questions() {
                            return;
                        }
                    }
                    Token(number) => {
                        let connection = Connection(u32::try_from(number).unwrap_or(u32::MAX));
                        if event.is_writable() {
                            self.flush(connection);
                        }
                        let ended = event.is_read_closed() || event.is_error();
                        if event.is_readable() || ended {
                            self.receive(connection, &mut buffer, ended);
                        }
                    }
                }
            }
            for (connection, ended) in std::mem::take(&mut self.unfinished) {
                self.receive(connection, &mut buffer, ended);
            }
            match self.accepting {
                Accepting::More => self.accept(&mut buffer),
                Accepting::Paused(since) if self.now.duration_since(since) >= ACCEPT_PAUSE => {
                    self.accept(&mut buffer);
                }
                Accepting::Paused(_) | Accepting::Idle => {}
            }
            if self.strangers > 0 && self.now.duration_since(swept) >= SWEEP {
                swept = self.now;
                self.sweep();
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.unfinished.is_empty() || self.accepting == Accepting::More {
            return Some(Duration::ZERO);
        }
        let pause = matches!(self.accepting, Accepting::Paused(_)).then_some(ACCEPT_PAUSE);
        let sweep = (self.strangers > 0).then_some(SWEEP);
        pause.or(sweep)
    }

    fn accept(&mut self, buffer: &mut [u8]) {
        for _ in 0..ACCEPTS_IN_TURN {
            let (stream, address) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.accepting = match error.kind() {
                        io::ErrorKind::WouldBlock => Accepting::Idle,
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => Accepting::More,
                        _ => {
                            tracing::warn!(%error, "the torch store cannot accept; trying again");
                            Accepting::Paused(self.now)
                        }
                    };
                    return;
                }
            };
            self.stats.accepted += 1;
            if self.open >= self.limits.connections {
                self.stats.refused += 1;
                if !std::mem::replace(&mut self.full, true) {
                    let limit = self.limits.connections;
                    tracing::warn!(%address, limit, "the torch store has as many connections as it may");
                }
                continue;
            }
            let number = self.free.pop().unwrap_or_else(|| {
                self.peers.push(None);
                u32::try_from(self.peers.len() - 1).unwrap_or(u32::MAX)
            });
            let connection = Connection(number);
            self.table.open(connection);
            self.peers[index(connection)] =
                Some(PeerSocket::new(stream, address, self.now, self.limits.command));
            self.open += 1;
            self.strangers += 1;
            // Registered first, the socket would be reported for what is read here already.
            self.receive(connection, buffer, false);
            self.register(connection);
        }
    }

    fn register(&mut self, connection: Connection) {
        let Some(peer) = &mut self.peers[index(connection)] else { return };
        let writable = (peer.unread_bytes() > 0).then_some(Interest::WRITABLE);
        let interest = writable.map_or(Interest::READABLE, |writable| writable | Interest::READABLE);
        if let Err(error) = self.poll.registry().register(&mut peer.stream, token(connection), interest) {
            self.end(connection, &End::Io(error));
        }
    }

    /// Reads and serves what has come. `ended`: the kernel says that no more will come, so read to the end.
    fn receive(&mut self, connection: Connection, buffer: &mut [u8], ended: bool) {
        for _ in 0..READS_IN_TURN {
            let Some(Some(peer)) = self.peers.get_mut(index(connection)) else { return };
            let length = match peer.read(buffer) {
                Came::Some(length) => length,
                Came::Nothing => return,
                Came::End => return self.end(connection, &End::Closed),
            };
            peer.heard = self.now;
            if let Err(end) = self.serve(connection, &buffer[..length]) {
                return self.end(connection, &end);
            }
            self.wake();
            if length < buffer.len() && !ended {
                return;
            }
        }
        self.unfinished.push((connection, ended));
    }

    /// Serves all whole commands, sends their answers in one write, and keeps the rest.
    fn serve(&mut self, connection: Connection, bytes: &[u8]) -> Result<(), End> {
        let Some(peer) = &mut self.peers[index(connection)] else { return Ok(()) };
        let mut kept = std::mem::take(&mut peer.input);
        let before = kept.len();
        let bytes = if kept.is_empty() {
            bytes
        } else {
            kept.extend_from_slice(bytes);
            kept.as_slice()
        };
        let stranger = !self.table.is_validated(connection);
        self.reply.clear();
        let mut at = 0;
        let outcome = loop {
            match peer.decoder.decode(&bytes[at..]) {
                Ok(Step::Request(request, used)) => {
                    at += used;
                    self.stats.commands += 1;
                    let applied = self.table.apply(connection, &request, &mut self.reply, &mut self.woken);
                    if let Err(refusal) = applied {
                        break Err(End::from(refusal));
                    }
                    if self.reply.len() > self.limits.unread_bytes {
                        let length = self.reply.len();
                        // It is not whole.
                        self.reply.clear();
                        break Err(End::Unread(length));
                    }
                }
                Ok(Step::Need(_)) => break Ok(()),
                Err(fault) => break Err(End::from(fault)),
            }
        };
        if stranger && self.table.is_validated(connection) {
            self.strangers -= 1;
        }
        if at < bytes.len() && outcome.is_ok() {
            peer.input = if before == 0 {
                bytes[at..].to_vec()
            } else {
                drop(kept.drain(..at));
                kept
            };
        }
        self.input_bytes = self.input_bytes - before + peer.input.len();
        if !self.reply.is_empty() {
            let sent = peer.send(&self.reply);
            self.sent(connection, sent)?;
        }
        outcome?;
        if self.input_bytes > self.limits.input_bytes {
            return Err(End::Input(self.input_bytes));
        }
        Ok(())
    }

    /// Tells those whose wait is over. One that breaks on it may pass an offer on, so the list may grow meanwhile.
    fn wake(&mut self) {
        let mut at = 0;
        while let Some(&connection) = self.woken.get(at) {
            at += 1;
            let Some(peer) = &mut self.peers[index(connection)] else { continue };
            let sent = peer.send_slice(&[STOP_WAITING]);
            if let Err(end) = self.sent(connection, sent) {
                self.drop_peer(connection, &end);
            }
        }
        self.woken.clear();
    }

    fn flush(&mut self, connection: Connection) {
        let Some(Some(peer)) = self.peers.get_mut(index(connection)) else { return };
        if peer.unread_bytes() == 0 {
            return;
        }
        let sent = peer.flush();
        if let Err(end) = self.sent(connection, sent) {
            self.end(connection, &end);
        }
    }

    /// After a write: if something is left, ask the kernel to say when there is room, within the limit.
    fn sent(&mut self, connection: Connection, sent: io::Result<bool>) -> Result<(), End> {
        let all = sent?;
        let Some(peer) = &mut self.peers[index(connection)] else { return Ok(()) };
        if all {
            return Ok(());
        }
        if peer.unread_bytes() > self.limits.unread_bytes {
            return Err(End::Unread(peer.unread_bytes()));
        }
        let both = Interest::READABLE | Interest::WRITABLE;
        match self.poll.registry().reregister(&mut peer.stream, token(connection), both) {
            // A new connection is registered right after its first read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => Ok(other?),
        }
    }

    fn end(&mut self, connection: Connection, end: &End) {
        self.drop_peer(connection, end);
        self.wake();
    }

    fn drop_peer(&mut self, connection: Connection, end: &End) {
        let Some(peer) = self.peers[index(connection)].take() else { return };
        match end {
            End::Closed | End::Io(_) => tracing::debug!(address = %peer.address, %end, "store client gone"),
            _ => {
                self.stats.refused += 1;
                tracing::warn!(address = %peer.address, reason = %end, "torch store closes a connection");
            }
        }
        if !self.table.is_validated(connection) {
            self.strangers -= 1;
        }
        self.open -= 1;
        self.full = false;
        self.input_bytes -= peer.input.len();
        self.table.close(connection, &mut self.woken);
        self.free.push(connection.0);
    }

    fn sweep(&mut self) {
        let late = |peer: &PeerSocket| self.now.duration_since(peer.opened) >= self.limits.validate_within;
        let late: Vec<_> = (0..)
            .map(Connection)
            .zip(&self.peers)
            .filter(|(connection, peer)| {
                peer.as_ref().is_some_and(late) && !self.table.is_validated(*connection)
            })
            .map(|(connection, _)| connection)
            .collect();
        late.into_iter().for_each(|connection| self.end(connection, &End::Silent));
    }

    /// True: the store is to end.
    fn answer_questions(&self) -> bool {
        for question in self.asked.try_iter() {
            match question {
                Question::Close => return true,
                // Whoever asked may have given up.
                Question::Stats(answer) => drop(answer.try_send(self.stats())),
            }
        }
        false
    }

    fn stats(&self) -> Stats {
        let peers = (0..).map(Connection).zip(&self.peers);
        Stats {
            progress: self.table.progress(),
            peers: peers
                .filter_map(|(connection, peer)| {
                    let PeerSocket { address, opened, heard, .. } = peer.as_ref()?;
                    let (age, quiet) = (self.now.duration_since(*opened), self.now.duration_since(*heard));
                    Some(Peer { connection, address: *address, age, quiet })
                })
                .collect(),
            ..self.stats.clone()
        }
    }
}

fn index(connection: Connection) -> usize {
    usize::try_from(connection.0).unwrap_or(usize::MAX)
}

fn token(connection: Connection) -> Token {
    Token(index(connection))
}

#[expect(clippy::disallowed_methods, reason = "the shell owns the clock; one reading for each turn")]
fn now() -> Instant {
    Instant::now()
}
