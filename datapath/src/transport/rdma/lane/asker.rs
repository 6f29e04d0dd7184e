//! Borrowing: chunks of other owners, read where they lie.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::cut::Runs;
use super::{ASKING, Adapter, CHAIN_READS_MAX, FLIGHTS_MAX, PIECE_BYTES};
use crate::memory::pool::Pooled;
use crate::session::Failure;
use crate::transport::quic::client::{Asking, cut_off, lost, refused};
use crate::transport::quic::{FrameError, STALL_TIMEOUT, read_frame};
use crate::transport::rdma::VerbsError;
use crate::transport::rdma::comeback::{Admission, Comeback};
use crate::transport::rdma::reason::{Class, Reason};
use crate::transport::rdma::verbs::{
    Broken, Chain, CompletionQueue, Path, Posted, QueuePair, Refusal, Remote,
};
use crate::transport::{Outcome, Part};
use crate::wire::{self, Ask, Frame, LEASE_MAX, Lease};

/// A queue pair that is not up after this long will not come up: one round trip, and two kernels.
const BRING_UP_MAX: Duration = Duration::from_secs(2);
/// A chain that has not ended by then is given up: some hundred times what a mebibyte takes on a slow fabric. Devices give up
/// sooner, but not when they are broken.
const TRANSFER_MAX: Duration = Duration::from_millis(1500);
/// A lease that was asked for so long ago is not begun to be used, and not believed in: half of what the owner grants is for clocks
/// that stand still, as those of a stopped process do.
const LEASE_TRUST: Duration = Duration::from_secs(5);
/// Chunks of one request that are asked for before they can be read: a round trip's worth.
const ASKS_AHEAD: usize = 8;

const _: () =
    assert!(LEASE_TRUST.as_millis() + TRANSFER_MAX.as_millis() < LEASE_MAX.as_millis(), "it ends in time");

/// The lane to one peer: brought up when it is first needed, and again after it has failed and rested.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    comeback: Mutex<Comeback>,
    place: tokio::sync::Mutex<Place>,
    /// Attempts to bring a queue pair up that failed.
    failures: AtomicU64,
}

#[derive(Debug, Default)]
struct Place {
    pair: Option<Arc<Pair>>,
    /// Why the last attempt failed.
    failed: Option<Stop>,
}

/// A queue pair to a peer, and the stream that keeps the other half.
struct Pair {
    pair: QueuePair,
    path: Path,
    /// The connection that it was agreed on over.
    connection: usize,
    /// The device's troubles when it was made.
    troubles: u64,
    flights: Arc<Semaphore>,
    _stream: (SendStream, RecvStream),
}

/// Why a transfer stops.
#[derive(Clone, Debug)]
enum Stop {
    /// The lane has failed.
    Lane(Reason),
    /// The connection has, and with it the other lane.
    Connection(Failure),
}

/// Why a chunk is not lent.
enum NotLent {
    Refused(Failure),
    Stop(Stop),
}

/// A chunk that is lent.
struct Lent {
    lease: Lease,
    asked: Instant,
    /// Dropped, it tells the owner to let go.
    _stream: (SendStream, RecvStream),
}

type Owner = (Pooled, OwnedSemaphorePermit);

/// A chain under way.
struct Flight {
    part: usize,
    bytes: usize,
    lent: Arc<Lent>,
    deadline: Instant,
    posted: Posted<Owner>,
}

/// A part of which something is still to be read.
struct Cutting {
    part: usize,
    runs: Runs,
    lent: Arc<Lent>,
}

impl From<VerbsError> for Stop {
    fn from(error: VerbsError) -> Self {
        tracing::debug!(%error, "a queue pair does not come up");
        Self::Lane(error.reason)
    }
}

impl Lent {
    fn is_old(&self) -> bool {
        self.asked.elapsed() > LEASE_TRUST
    }
}

impl Lane {
    fn comeback(&self) -> MutexGuard<'_, Comeback> {
        self.comeback.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request may use it now.
    pub(crate) fn admit(&self, now: Duration) -> Admission {
        self.comeback().admit(now)
    }

    /// Reads all parts, after [`Lane::admit`] allowed it. None for those that another lane is to be asked for.
    pub(crate) async fn fetch(
        &self,
        adapter: &Arc<Adapter>,
        connection: &Connection,
        asking: &Asking<'_>,
        parts: &mut [Part<'_>],
    ) -> Vec<Option<Outcome>> {
        let mut outcomes = vec![None; parts.len()];
        let pair = self.pair(adapter, connection).await;
        let result = match &pair {
            Ok(pair) => {
                let mut transfer = Transfer { adapter, pair, connection, asking, flying: VecDeque::new() };
                transfer.run(parts, &mut outcomes).await
            }
            Err(stop) => Err(stop.clone()),
        };
        let peer = connection.remote_address();
        let instead = match &result {
            Ok(()) => {
                if self.comeback().succeeded() {
                    tracing::info!(%peer, "the RDMA lane is used again");
                }
                None
            }
            Err(Stop::Lane(reason)) => {
                if self.comeback().failed(*reason, asking.now()) {
                    let (word, hint) = (reason.word(), reason.hint());
                    tracing::warn!(%peer, reason = word, hint, "an RDMA lane failed");
                }
                (reason.class() == Class::Fatal).then_some(Failure::Lane { reason: *reason })
            }
            Err(Stop::Connection(failure)) => Some(failure.clone()),
        };
        // A chunk that its store does not deliver is no failure of the lane.
        let is_lost = matches!(result, Err(Stop::Lane(_))) || connection.close_reason().is_some();
        if let (Ok(pair), true) = (&pair, is_lost) {
            // What others have under way by it would only fail later; it comes back at once. Said before: they are only flushed.
            drop(pair.pair.fail());
        }
        if let Some(failure) = instead {
            outcomes.iter_mut().for_each(|outcome| _ = outcome.get_or_insert(Err(failure.clone())));
        }
        outcomes
    }

    /// The queue pair, made now if need be. Only one makes it; the others wait for that, and for no attempt more.
    async fn pair(&self, adapter: &Adapter, connection: &Connection) -> Result<Arc<Pair>, Stop> {
        let failures = self.failures.load(Ordering::Acquire);
        let mut place = self.place.lock().await;
        if let Some(pair) = &place.pair
            && pair.connection == connection.stable_id()
            && pair.troubles == adapter.trouble.borrow().count
            && pair.pair.cause().is_none()
        {
            return Ok(Arc::clone(pair));
        }
        if self.failures.load(Ordering::Acquire) != failures
            && let Some(stop) = &place.failed
        {
            return Err(stop.clone());
        }
        place.pair = None;
        let made = timeout(BRING_UP_MAX, bring_up(adapter, connection)).await;
        match made.unwrap_or(Err(Stop::Lane(Reason::PeerDead))) {
            Ok(pair) => {
                let pair = Arc::new(pair);
                place.pair = Some(Arc::clone(&pair));
                Ok(pair)
            }
            Err(stop) => {
                place.failed = Some(stop.clone());
                self.failures.fetch_add(1, Ordering::Release);
                Err(stop)
            }
        }
    }
}

async fn bring_up(adapter: &Adapter, connection: &Connection) -> Result<Pair, Stop> {
    let troubles = adapter.trouble.borrow().count;
    // Looked for each time: an address may have changed since the last.
    let path = adapter.device.path()?;
    let queue = CompletionQueue::new(&adapter.device, ASKING.sends + ASKING.receives)?;
    let half = adapter.domain.queue_pair(&queue, &path, ASKING)?;
    let (answer, stream) = ask(connection, &Frame::Offer(half.endpoint())).await?;
    let pair = match answer {
        Frame::Accept(peer) => half.connect(&peer)?,
        Frame::Decline(reason) => return Err(Stop::Lane(reason)),
        _ => return Err(Stop::Lane(Reason::NotBuilt)),
    };
    Ok(Pair {
        pair,
        path,
        connection: connection.stable_id(),
        troubles,
        flights: Arc::new(Semaphore::new(FLIGHTS_MAX)),
        _stream: stream,
    })
}

/// Asks on a stream of its own, which is kept.
async fn ask(connection: &Connection, frame: &Frame) -> Result<(Frame, (SendStream, RecvStream)), Stop> {
    let (mut send, mut receive) =
        connection.open_bi().await.map_err(|error| Stop::Connection(lost(&error)))?;
    let frame = wire::encode(frame).map_err(|_| Stop::Lane(Reason::Misuse))?;
    let answer = async {
        // A failure shows when reading.
        drop(send.write_all(&frame).await);
        read_frame(&mut receive).await
    };
    match timeout(STALL_TIMEOUT, answer).await {
        Ok(Ok(frame)) => Ok((frame, (send, receive))),
        Err(_) => Err(Stop::Connection(Failure::Gone)),
        Ok(Err(error)) if connection.close_reason().is_some() => Err(Stop::Connection(cut_off(&error))),
        // The owner has let go of the membership, and its connection is about to say so.
        Ok(Err(FrameError::Read(quinn::ReadExactError::FinishedEarly(_)))) => {
            Err(Stop::Lane(Reason::Flushed))
        }
        // A release without this lane resets a stream that it does not understand; a newer one may say what is not understood here.
        Ok(Err(FrameError::Read(_) | FrameError::Wire(_))) => Err(Stop::Lane(Reason::NotBuilt)),
    }
}

async fn borrow(connection: Connection, wanted: Ask) -> Result<Lent, NotLent> {
    // Before it is asked for: the owner counts from later.
    let asked = Instant::now();
    match ask(&connection, &Frame::Ask(wanted)).await {
        Ok((Frame::Lease(lease), stream)) => Ok(Lent { lease, asked, _stream: stream }),
        Ok((Frame::Nack { refusal, retry_after_ms, .. }, _)) => {
            Err(NotLent::Refused(refused(refusal, retry_after_ms)))
        }
        Ok((Frame::Decline(reason), _)) => Err(NotLent::Stop(Stop::Lane(reason))),
        Ok(_) => Err(NotLent::Stop(Stop::Lane(Reason::NotBuilt))),
        Err(stop) => Err(NotLent::Stop(stop)),
    }
}

/// One request's reads.
struct Transfer<'a, 'b> {
    adapter: &'a Arc<Adapter>,
    pair: &'a Pair,
    connection: &'a Connection,
    asking: &'a Asking<'b>,
    flying: VecDeque<Flight>,
}

impl Transfer<'_, '_> {
    async fn run(&mut self, parts: &mut [Part<'_>], outcomes: &mut [Option<Outcome>]) -> Result<(), Stop> {
        let mut trouble = self.adapter.trouble.clone();
        let before = self.pair.troubles;
        let mut leases = JoinSet::new();
        let (mut asked, mut ready) = (0, VecDeque::new());
        loop {
            while asked < parts.len() && leases.len() + ready.len() < ASKS_AHEAD {
                let (index, connection, ask) = (asked, self.connection.clone(), self.ask(&parts[asked]));
                leases.spawn(async move { (index, borrow(connection, ask).await) });
                asked += 1;
            }
            self.launch(&mut ready).await?;
            if self.flying.is_empty() && leases.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                told = trouble.wait_for(|trouble| trouble.count != before) => {
                    return Err(Stop::Lane(told.map_or(Reason::DeviceFatal, |trouble| trouble.last)));
                }
                ended = first(&mut self.flying), if !self.flying.is_empty() => {
                    let Some(flight) = self.flying.pop_front() else { continue };
                    self.land(&flight, ended?, parts, outcomes);
                }
                Some(joined) = leases.join_next(), if !leases.is_empty() => {
                    let Ok((index, lent)) = joined else { return Err(Stop::Connection(Failure::Gone)) };
                    match lent {
                        Ok(lent) => ready.extend(begin(index, lent, &mut parts[index], &mut outcomes[index])),
                        Err(NotLent::Refused(failure)) => outcomes[index] = Some(Err(failure)),
                        Err(NotLent::Stop(stop)) => return Err(stop),
                    }
                }
            }
        }
    }

    fn ask(&self, part: &Part<'_>) -> Ask {
        let (fence, refresh) = (self.asking.member.fence, self.asking.refresh);
        Ask { fence, chunk: part.chunk().0, until: part.until(), refresh }
    }

    /// Hands over as many chains as there is room for.
    async fn launch(&mut self, ready: &mut VecDeque<Cutting>) -> Result<(), Stop> {
        while self.flying.len() < FLIGHTS_MAX
            && let Some(cutting) = ready.front_mut()
        {
            if cutting.runs.is_empty() || cutting.lent.is_old() {
                // Of what is old the rest is asked for by the other lane.
                ready.pop_front();
                continue;
            }
            let flights = Arc::clone(&self.pair.flights);
            let (permit, piece) = if self.flying.is_empty() {
                // Waits only with nothing in its hands, so that nobody waits in a circle.
                let room = async { (flights.acquire_owned().await, self.adapter.pool.take().await) };
                match timeout(TRANSFER_MAX, room).await {
                    Ok((Ok(permit), piece)) => (permit, piece),
                    // All are with devices that do not give them back in time.
                    _ => return Err(Stop::Lane(Reason::Refused)),
                }
            } else {
                let Ok(permit) = flights.try_acquire_owned() else { return Ok(()) };
                let Some(piece) = self.adapter.pool.try_take() else { return Ok(()) };
                (permit, piece)
            };
            let flight = self.post(cutting, (piece, permit))?;
            self.flying.push_back(flight);
        }
        Ok(())
    }

    fn post(&self, cutting: &mut Cutting, owner: Owner) -> Result<Flight, Stop> {
        let most = usize::try_from(self.pair.path.message_bytes_max).unwrap_or(usize::MAX);
        let from = Remote { address: cutting.lent.lease.address, key: cutting.lent.lease.key };
        let mut chain = Chain::new(&self.adapter.memory, owner);
        let mut bytes = 0;
        while chain.len() < CHAIN_READS_MAX
            && let Some((offset, len)) = cutting.runs.next(most.min(PIECE_BYTES - bytes))
        {
            chain.read(bytes, len, from.plus(offset)).map_err(|_| Stop::Lane(Reason::Misuse))?;
            bytes += len;
        }
        let posted = self.pair.pair.try_post(chain).map_err(|refused| {
            Stop::Lane(match refused.why {
                Refusal::Broken(failure) => failure.reason,
                Refusal::Driver(error) => error.reason,
                // There is room for as many as have permits.
                Refusal::Full | Refusal::Unfit { .. } | Refusal::Stranger => Reason::Misuse,
            })
        })?;
        let deadline = Instant::now() + TRANSFER_MAX;
        Ok(Flight { part: cutting.part, bytes, lent: Arc::clone(&cutting.lent), deadline, posted })
    }

    /// Copies what has come to where it belongs, and checks it there.
    fn land(&self, flight: &Flight, owner: Owner, parts: &mut [Part<'_>], outcomes: &mut [Option<Outcome>]) {
        let (piece, permit) = owner;
        // The device is done, so the next chain may go.
        drop(permit);
        let part = &mut parts[flight.part];
        part.accept(&piece[..flight.bytes]);
        self.asking.counters.rdma_in_bytes.add(flight.bytes);
        if part.is_full() {
            outcomes[flight.part] = match part.verdict() {
                Ok(()) => Some(Ok(())),
                // Its owner may have read something else into that memory.
                Err(_) if flight.lent.is_old() => None,
                Err(sample) => Some(Err(Failure::Corrupt { sample: Some(sample.0) })),
            };
        }
    }
}

/// The end of the first chain, which is the next one to end.
async fn first(flying: &mut VecDeque<Flight>) -> Result<Owner, Stop> {
    let Some(flight) = flying.front_mut() else { return std::future::pending().await };
    match timeout_at(flight.deadline, &mut flight.posted).await {
        Ok(Ok(owner)) => Ok(owner),
        Ok(Err(Broken { failure, .. })) => {
            // A key that is no longer known is a mistake, unless the lease may have ended meanwhile.
            let is_excused = failure.reason == Reason::RemoteAccess && flight.lent.is_old();
            Err(Stop::Lane(if is_excused { Reason::PeerDead } else { failure.reason }))
        }
        Err(_) => Err(Stop::Lane(Reason::PeerDead)),
    }
}

/// A part whose chunk is lent; none when nothing of it is to be read.
fn begin(index: usize, lent: Lent, part: &mut Part<'_>, outcome: &mut Option<Outcome>) -> Option<Cutting> {
    let runs = Runs::new(part.ranges());
    part.restart();
    if runs.end() > lent.lease.len.into() {
        *outcome = Some(Err(Failure::Stranger));
        return None;
    }
    if runs.is_empty() {
        part.accept(&[]);
        *outcome = Some(part.verdict().map_err(|sample| Failure::Corrupt { sample: Some(sample.0) }));
        return None;
    }
    Some(Cutting { part: index, runs, lent: Arc::new(lent) })
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("pair", &self.pair).finish_non_exhaustive()
    }
}
