//! A rail's queue pair to one peer: agreed on over the workers' connection, kept as long as it serves, and what is lent by it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::adapter::Adapter;
use super::leases::Leases;
use super::{ASKING, FLIGHTS_MAX, Rails};
use crate::session::Failure;
use crate::transport::quic::client::{cut_off, lost, refused};
use crate::transport::quic::{FrameError, STALL_TIMEOUT, read_frame};
use crate::transport::rdma::VerbsError;
use crate::transport::rdma::reason::Reason;
use crate::transport::rdma::verbs::{CompletionQueue, Path, QueuePair};
use crate::wire::{self, Ask, Frame, LEASE_MAX, Lease};

use super::transfer::TRANSFER_MAX;

/// A queue pair that is not up after this long will not come up: one round trip, and two kernels.
const BRING_UP_MAX: Duration = Duration::from_secs(2);
/// A lease that was asked for so long ago is not begun to be used, and not believed in: half of what the owner grants is for clocks
/// that stand still, as those of a stopped process do.
const LEASE_TRUST: Duration = Duration::from_secs(5);
/// And not used for another part: that must have been read before the lease is old.
const LEASE_FRESH: Duration = Duration::from_secs(3);

/// An owner that is alive answers within this time.
const LIFE_MAX: Duration = Duration::from_secs(2);
/// A peer that lives acknowledges what is sent to it within this time: far more than a round trip, and well before the connection is
/// given up by itself.
const SILENCE: Duration = Duration::from_millis(500);
/// How often its sign of life is looked for.
const GLANCE: Duration = Duration::from_millis(5);
/// How long after its consequences the device tells what has happened to it: its port goes down in several steps.
const TELLING_MAX: Duration = Duration::from_millis(20);

const _: () =
    assert!(LEASE_TRUST.as_millis() + TRANSFER_MAX.as_millis() < LEASE_MAX.as_millis(), "it ends in time");

/// Where a rail's queue pair to a peer is: brought up when it is first needed, and again after it has failed.
#[derive(Debug, Default)]
pub(super) struct Place {
    kept: Mutex<Kept>,
    /// Attempts to bring a queue pair up that failed.
    failures: AtomicU64,
    /// How often the owner's rail of now was found not to answer.
    turns: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    pair: Option<Arc<Pair>>,
    /// Why the last attempt failed.
    failed: Option<Stop>,
}

/// A queue pair to a peer, and the stream that keeps the other half.
pub(super) struct Pair {
    pub(super) adapter: Arc<Adapter>,
    pub(super) pair: QueuePair,
    pub(super) path: Path,
    /// The owner's rail that it ends at.
    pub(super) rail: u8,
    /// The device's troubles when it was made.
    pub(super) troubles: u64,
    /// As many as chains may be under way.
    pub(super) flights: Arc<Semaphore>,
    /// What the owner has lent to be read by it.
    pub(super) leases: Leases<Arc<Lent>>,
    /// The connection that it was agreed on over.
    connection: usize,
    _stream: (SendStream, RecvStream),
}

/// Why a transfer stops.
#[derive(Clone, Debug)]
pub(super) enum Stop {
    /// The lane has failed.
    Lane(Reason),
    /// The owner says so of its side.
    Declined(Reason),
    /// The owner's device forbids to read what the owner has lent.
    Forbidden { ask: Ask, lease: Lease },
    /// The connection has, and with it the other lane.
    Connection(Failure),
}

/// Why a chunk is not lent.
pub(super) enum NotLent {
    Refused(Failure),
    Stop(Stop),
}

/// A chunk that is lent.
pub(super) struct Lent {
    pub(super) ask: Ask,
    pub(super) lease: Lease,
    asked: Instant,
    /// Dropped, it tells the owner to let go.
    _stream: (SendStream, RecvStream),
}

impl From<VerbsError> for Stop {
    fn from(error: VerbsError) -> Self {
        tracing::debug!(%error, "a queue pair does not come up");
        Self::Lane(error.reason)
    }
}

impl Lent {
    pub(super) fn is_old(&self) -> bool {
        self.asked.elapsed() > LEASE_TRUST
    }

    /// Whether a part can be begun with it that is to be read to its end.
    pub(super) fn is_fresh(&self) -> bool {
        self.asked.elapsed() < LEASE_FRESH
    }
}

impl Pair {
    /// A failure by its cause: what a queue pair says of itself may come before the device tells why.
    pub(super) async fn named(&self, reason: Reason) -> Reason {
        if !matches!(reason, Reason::DeviceFatal | Reason::Flushed) {
            return reason;
        }
        let mut trouble = self.adapter.trouble.clone();
        let told = timeout(TELLING_MAX, trouble.wait_for(|trouble| trouble.count != self.troubles)).await;
        match told {
            Ok(Ok(trouble)) => trouble.last,
            _ => reason,
        }
    }
}

impl Place {
    /// The queue pair of that rail, made now if need be. Only one makes it; the others wait for that, and for no attempt more.
    pub(super) async fn pair(
        &self,
        rails: &Rails,
        rail: usize,
        connection: &Connection,
    ) -> Result<Arc<Pair>, Stop> {
        let failures = self.failures.load(Ordering::Acquire);
        let mut kept = self.kept.lock().await;
        if let Some(pair) = &kept.pair
            && pair.connection == connection.stable_id()
            && pair.troubles == pair.adapter.trouble.borrow().count
            && pair.pair.cause().is_none()
        {
            return Ok(Arc::clone(pair));
        }
        if self.failures.load(Ordering::Acquire) != failures
            && let Some(stop) = &kept.failed
        {
            return Err(stop.clone());
        }
        kept.pair = None;
        let wanted = self.wanted(rail);
        let made = timeout(BRING_UP_MAX, bring_up(rails, rail, wanted, connection)).await;
        match made.unwrap_or(Err(Stop::Lane(Reason::PeerDead))) {
            Ok(pair) => {
                let pair = Arc::new(pair);
                kept.pair = Some(Arc::clone(&pair));
                Ok(pair)
            }
            Err(stop) => {
                // One that wants no lane wants none by any rail.
                if matches!(stop, Stop::Lane(Reason::GidWrong | Reason::PeerDead) | Stop::Declined(_)) {
                    self.turn();
                }
                kept.failed = Some(stop.clone());
                self.failures.fetch_add(1, Ordering::Release);
                Err(stop)
            }
        }
    }

    /// The owner's rail that is asked for: at first the one of the same number, as on some fabrics no other can be reached.
    fn wanted(&self, rail: usize) -> u8 {
        let turns = self.turns.load(Ordering::Relaxed);
        u64::try_from(rail).unwrap_or(0).wrapping_add(turns).to_le_bytes()[0]
    }

    /// Beginning anew with the rail of the same number.
    pub(super) fn straighten(&self) {
        self.turns.store(0, Ordering::Relaxed);
    }

    /// The owner's rail of now does not answer: the next attempt is made with another one.
    pub(super) fn turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }
}

async fn bring_up(rails: &Rails, rail: usize, wanted: u8, connection: &Connection) -> Result<Pair, Stop> {
    let (adapter, path) = rails.rails[rail].ready().await?;
    let troubles = adapter.trouble.borrow().count;
    let queue = CompletionQueue::new(&adapter.device, ASKING.sends + ASKING.receives)?;
    let half = adapter.domain.queue_pair(&queue, &path, ASKING)?;
    let offer = Frame::Offer { rail: wanted, half: half.endpoint() };
    let (answer, stream) = ask(connection, &offer).await?;
    let pair = match answer {
        Frame::Accept(peer) => half.connect(&peer)?,
        Frame::Decline(reason) => return Err(Stop::Declined(reason)),
        _ => return Err(Stop::Lane(Reason::NotBuilt)),
    };
    Ok(Pair {
        adapter,
        pair,
        path,
        rail: wanted,
        troubles,
        flights: Arc::new(Semaphore::new(FLIGHTS_MAX)),
        leases: Leases::default(),
        connection: connection.stable_id(),
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

/// Whether an owner that is alive lends the same again: then its device forbids what it lends, which only a wrong program causes.
/// What is forbidden otherwise is memory that was let go: a process that is being killed loses its memory before its queue pairs.
pub(super) async fn is_lent_still(connection: &Connection, ask: Ask, lease: Lease) -> bool {
    let again = timeout(LIFE_MAX, borrow(connection.clone(), ask)).await;
    matches!(again, Ok(Ok(lent)) if lent.lease == lease)
}

/// Whether nothing at all comes from the peer, though something is sent to it: then it is dead, and not only its device.
pub(super) async fn is_silent(connection: &Connection) -> bool {
    let heard = || connection.stats().udp_rx.datagrams;
    let before = heard();
    let sign_of_life = async {
        // It has no answer to that; but whoever lives acknowledges it.
        let Ok((mut send, _receive)) = connection.open_bi().await else { return };
        let Ok(ping) = wire::encode(&Frame::Ping) else { return };
        drop(send.write_all(&ping).await);
        while heard() == before {
            sleep(GLANCE).await;
        }
    };
    timeout(SILENCE, sign_of_life).await.is_err()
}

/// Asks for a chunk.
pub(super) async fn borrow(connection: Connection, wanted: Ask) -> Result<Lent, NotLent> {
    // Before it is asked for: the owner counts from later.
    let asked = Instant::now();
    match ask(&connection, &Frame::Ask(wanted)).await {
        Ok((Frame::Lease(lease), stream)) => Ok(Lent { ask: wanted, lease, asked, _stream: stream }),
        Ok((Frame::Nack { refusal, retry_after_ms, .. }, _)) => {
            Err(NotLent::Refused(refused(refusal, retry_after_ms)))
        }
        Ok((Frame::Decline(reason), _)) => Err(NotLent::Stop(Stop::Declined(reason))),
        Ok(_) => Err(NotLent::Stop(Stop::Lane(Reason::NotBuilt))),
        Err(stop) => Err(NotLent::Stop(stop)),
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("pair", &self.pair).field("rail", &self.rail).finish_non_exhaustive()
    }
}
