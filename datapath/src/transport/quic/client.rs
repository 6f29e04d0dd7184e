//! Asking other owners: one connection to each, opened when it is first needed, and one stream for each request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{FrameError, QuicLane, STALL_TIMEOUT, read_frame, tls};
use crate::counters::Counting;
use crate::fault;
use crate::membership::{Member, Peer};
use crate::session::Failure;
use crate::transport::rdma::lane::{Lane, Rails};
use crate::transport::{Outcome, Part};
use crate::wire::{self, Frame, Group, Refusal, Want};

/// A connection that is not up after this long will not come up: the handshake is two round trips. With the idle
/// timeout of [`super::tuning`] this bounds how long a batch waits for an owner that is dead or stopped.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Pieces of a stream taken at once: a window of small packets.
const READ_PIECES: usize = 32;

/// The way to one peer.
#[derive(Debug)]
pub(crate) struct Link {
    peer: Peer,
    requests: AtomicU64,
    /// Attempts to connect that failed.
    failures: AtomicU64,
    way: Mutex<Way>,
    verbs: Lane,
}

#[derive(Debug, Default)]
struct Way {
    open: Option<Open>,
    /// Why the last attempt failed.
    failed: Option<Failure>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    control: SendStream,
}

/// What a request needs besides its parts.
pub(crate) struct Asking<'a> {
    pub(crate) lane: &'a QuicLane,
    /// This host's devices, where lanes over verbs may be used.
    pub(crate) rails: Option<&'a Arc<Rails>>,
    /// The moment that times are counted from.
    pub(crate) epoch: Instant,
    pub(crate) member: &'a Arc<Member>,
    pub(crate) dataset: [u8; 32],
    pub(crate) counters: &'a Arc<Counting>,
    /// The step it is for.
    pub(crate) step: u64,
    /// Whether the owner's copies are under suspicion.
    pub(crate) refresh: bool,
}

impl Asking<'_> {
    /// Time since the plane's start.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }
}

impl Link {
    pub(crate) fn new(peer: Peer) -> Self {
        Self {
            peer,
            requests: AtomicU64::new(1),
            failures: AtomicU64::new(0),
            way: Mutex::default(),
            verbs: Lane::default(),
        }
    }

    /// Asks for all parts at once, over verbs where that can be had; what does not come by them is asked for over QUIC. One
    /// outcome for each, in their order.
    pub(crate) async fn fetch(&self, asking: &Asking<'_>, parts: &mut [Part<'_>]) -> Vec<Outcome> {
        let mut outcomes = self.by_verbs(asking, parts).await;
        let missing = parts.iter_mut().zip(&outcomes).filter(|(_, outcome)| outcome.is_none());
        let mut missing: Vec<_> = missing.map(|(part, _)| part).collect();
        let mut came = Vec::new();
        if !missing.is_empty() {
            came = self.by_quic(asking, &mut missing).await;
        }
        let mut came = came.into_iter();
        // As many came as were missing.
        outcomes.iter_mut().for_each(|outcome| *outcome = outcome.take().or_else(|| came.next()));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(Failure::Gone))).collect()
    }

    /// None for what is to be asked for by another lane.
    async fn by_verbs(&self, asking: &Asking<'_>, parts: &mut [Part<'_>]) -> Vec<Option<Outcome>> {
        let all = |outcome| vec![outcome; parts.len()];
        let Some(rails) = asking.rails else { return all(None) };
        // What was bad once comes the other way: then it is known whether this one did it.
        if asking.refresh {
            return all(None);
        }
        let admitted = match self.verbs.admit(rails, asking.now()) {
            Ok(admitted) if admitted.is_empty() => return all(None),
            Ok(admitted) => admitted,
            Err(reason) => return all(Some(Err(Failure::Lane { reason }))),
        };
        match self.connection(asking).await {
            Ok(connection) => self.verbs.fetch(rails, &connection, asking, &admitted, parts).await,
            // The other lane is over the same connection.
            Err(failure) => all(Some(Err(failure))),
        }
    }

    async fn by_quic(&self, asking: &Asking<'_>, parts: &mut [&mut Part<'_>]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(parts.len());
        let failure = match self.start(asking, parts).await {
            Ok(mut stream) => receive(&mut stream, asking.counters, parts, &mut outcomes).await.err(),
            Err(failure) => Some(failure),
        };
        if let Some(failure) = failure {
            outcomes.resize(parts.len(), Err(failure));
        }
        outcomes
    }

    /// Whether the owner answers; opens the connection if need be.
    pub(crate) async fn probe(&self, asking: &Asking<'_>) -> bool {
        self.connection(asking).await.is_ok()
    }

    /// Tells the owner a position, if there is a connection; an owner that was never asked has nothing to release.
    pub(crate) async fn tell(&self, frame: &Frame) {
        let Ok(bytes) = wire::encode(frame) else { return };
        // While someone connects there is nobody to tell, and the next position says all that this one does.
        let Ok(mut way) = self.way.try_lock() else { return };
        if let Some(open) = way.open.as_mut() {
            // A broken connection is found by the next request.
            drop(open.control.write_all(&bytes).await);
        }
    }

    /// The connection's numbers, if there is one.
    pub(crate) async fn stats(&self) -> Option<quinn::ConnectionStats> {
        self.way.lock().await.open.as_ref().map(|open| open.connection.stats())
    }

    pub(crate) async fn close(&self) {
        if let Some(open) = self.way.lock().await.open.take() {
            open.connection.close(VarInt::from_u32(Refusal::Fenced.code().into()), b"fenced");
        }
    }

    /// Sends the request and waits for the owner's word.
    async fn start(&self, asking: &Asking<'_>, parts: &[&mut Part<'_>]) -> Result<RecvStream, Failure> {
        let connection = self.connection(asking).await?;
        timeout(STALL_TIMEOUT, self.ask(&connection, asking, parts)).await.map_err(|_| Failure::Gone)?
    }

    async fn ask(
        &self,
        connection: &Connection,
        asking: &Asking<'_>,
        parts: &[&mut Part<'_>],
    ) -> Result<RecvStream, Failure> {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| lost(&error))?;
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        let group = |part: &&mut Part<'_>| Group {
            chunk: part.chunk().0,
            until: part.until(),
            ranges: part.ranges().collect(),
        };
        let want = Want {
            request,
            fence: asking.member.fence,
            step: asking.step,
            refresh: asking.refresh,
            groups: parts.iter().map(group).collect(),
        };
        let frame = wire::encode(&Frame::Want(want))
            .map_err(|error| Failure::Store { reason: fault::STORE_FAILED, message: error.to_string() })?;
        send.write_all(&frame).await.map_err(|_| Failure::Gone)?;
        // Nothing more to say; a failure shows when reading.
        drop(send.finish());
        let expected: u64 = parts.iter().map(|part| part.bytes()).sum();
        match read_frame(&mut receive).await.map_err(|error| cut_off(&error))? {
            Frame::Have { request: answered, bytes } if answered == request && bytes == expected => {
                Ok(receive)
            }
            Frame::Nack { refusal, retry_after_ms, .. } => Err(refused(refusal, retry_after_ms)),
            _ => Err(Failure::Gone),
        }
    }

    /// The connection, opened now if need be. Only one opens it; the others wait for that, and for no attempt more.
    async fn connection(&self, asking: &Asking<'_>) -> Result<Connection, Failure> {
        let failures = self.failures.load(Ordering::Acquire);
        let mut way = self.way.lock().await;
        if let Some(open) = &way.open
            && open.connection.close_reason().is_none()
        {
            return Ok(open.connection.clone());
        }
        if self.failures.load(Ordering::Acquire) != failures {
            return Err(way.failed.clone().unwrap_or(Failure::Gone));
        }
        way.open = None;
        let opened = timeout(CONNECT_TIMEOUT, self.connect(asking)).await.unwrap_or(Err(Failure::Gone));
        match opened {
            Ok(open) => {
                let connection = open.connection.clone();
                way.open = Some(open);
                Ok(connection)
            }
            Err(failure) => {
                way.failed = Some(failure.clone());
                self.failures.fetch_add(1, Ordering::Release);
                Err(failure)
            }
        }
    }

    async fn connect(&self, asking: &Asking<'_>) -> Result<Open, Failure> {
        let senders = asking.member.roster().links.len();
        let config = asking.lane.client_config(self.peer.addr, senders);
        let connecting = asking.lane.endpoint.connect_with(config, self.peer.addr, &self.peer.server_name);
        let connection = connecting.map_err(|_| Failure::Gone)?.await.map_err(|error| lost(&error))?;
        if tls::peer_fingerprint(&connection) != Some(self.peer.fingerprint) {
            tracing::warn!(peer = self.peer.id.0, "another certificate than this generation's answers there");
            connection.close(VarInt::from_u32(Refusal::Stranger.code().into()), b"stranger");
            return Err(Failure::Gone);
        }
        let (mut control, mut answers) = connection.open_bi().await.map_err(|error| lost(&error))?;
        // Positions and pings never wait behind data.
        drop(control.set_priority(1));
        let hello = Frame::Hello {
            version: wire::VERSION,
            dataset: asking.dataset,
            fence: asking.member.fence,
            peer: asking.member.me.0,
        };
        let hello = wire::encode(&hello).map_err(|_| Failure::Gone)?;
        control.write_all(&hello).await.map_err(|_| Failure::Gone)?;
        match read_frame(&mut answers).await.map_err(|error| cut_off(&error))? {
            Frame::Welcome { fence } if fence == asking.member.fence => Ok(Open { connection, control }),
            Frame::Nack { refusal, retry_after_ms, .. } => Err(refused(refusal, retry_after_ms)),
            _ => Err(Failure::Gone),
        }
    }
}

/// Puts what comes where it belongs. On an error the outcomes of the parts so far stand.
async fn receive(
    stream: &mut RecvStream,
    counters: &Counting,
    parts: &mut [&mut Part<'_>],
    outcomes: &mut Vec<Outcome>,
) -> Result<(), Failure> {
    let mut pieces = [const { Bytes::new() }; READ_PIECES];
    let mut in_part = false;
    while outcomes.len() < parts.len() {
        let read =
            timeout(STALL_TIMEOUT, stream.read_chunks(&mut pieces)).await.map_err(|_| Failure::Gone)?;
        let count = read.map_err(|error| cut_off(&FrameError::Read(error.into())))?.ok_or(Failure::Gone)?;
        for piece in &mut pieces[..count] {
            let mut rest = &piece[..];
            while let Some(part) = parts.get_mut(outcomes.len()) {
                if !in_part {
                    let Some((&status, after)) = rest.split_first() else { break };
                    rest = after;
                    if status != wire::GROUP_FOLLOWS {
                        let refusal = Refusal::from_code(status.into()).ok_or(Failure::Gone)?;
                        outcomes.push(Err(refused(refusal, 0)));
                        continue;
                    }
                    part.restart();
                    in_part = true;
                }
                let before = rest.len();
                rest = part.accept(rest);
                counters.quic_in_bytes.add(before - rest.len());
                if !part.is_full() {
                    break;
                }
                outcomes.push(part.verdict().map_err(|sample| Failure::Corrupt { sample: Some(sample.0) }));
                in_part = false;
            }
            *piece = Bytes::new();
        }
    }
    Ok(())
}

pub(in crate::transport) fn refused(refusal: Refusal, retry_after_ms: u32) -> Failure {
    match refusal {
        Refusal::Fenced if retry_after_ms > 0 => {
            Failure::Early { retry_after: Duration::from_millis(retry_after_ms.into()) }
        }
        Refusal::Fenced => Failure::Fenced,
        Refusal::Stranger => Failure::Stranger,
        Refusal::Corrupt => Failure::Corrupt { sample: None },
        Refusal::Malformed => store(fault::STORE_FAILED, "the owner has another manifest"),
        Refusal::NotFound => store(fault::NOT_FOUND, "the shard is not in the owner's store"),
        Refusal::ShortRead => store(fault::SHORT_READ, "the shard is too short in the owner's store"),
        Refusal::StoreFailed => store(fault::STORE_FAILED, "the owner could not read the store"),
    }
}

fn store(reason: &'static str, message: &str) -> Failure {
    Failure::Store { reason, message: message.to_owned() }
}

/// A stream ended before its time: by a refusal, or with its connection.
pub(in crate::transport) fn cut_off(error: &FrameError) -> Failure {
    let FrameError::Read(error) = error else { return Failure::Gone };
    match error {
        quinn::ReadExactError::ReadError(ReadError::Reset(code)) => {
            Refusal::from_code(code.into_inner()).map_or(Failure::Gone, |refusal| refused(refusal, 0))
        }
        quinn::ReadExactError::ReadError(ReadError::ConnectionLost(error)) => lost(error),
        _ => Failure::Gone,
    }
}

/// A connection ended. When a fence ended it, this side may be the older or the newer one: asking again tells.
pub(in crate::transport) fn lost(error: &ConnectionError) -> Failure {
    match error {
        ConnectionError::ApplicationClosed(close)
            if close.error_code.into_inner() == u64::from(Refusal::Fenced.code()) =>
        {
            Failure::Early { retry_after: Member::EARLY_RETRY }
        }
        _ => Failure::Gone,
    }
}
