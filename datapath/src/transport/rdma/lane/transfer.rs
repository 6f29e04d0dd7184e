//! One request's reads over one rail: chunks are borrowed, their ranges read into pieces, and copied from there into the slot.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn::Connection;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::asker::Way;
use super::cut::Runs;
use super::pair::{Lent, NotLent, Pair, Stop, borrow};
use super::{CHAIN_READS_MAX, FLIGHTS_MAX, PIECE_BYTES};
use crate::memory::pool::Pooled;
use crate::session::Failure;
use crate::transport::quic::client::Asking;
use crate::transport::rdma::reason::Reason;
use crate::transport::rdma::verbs::{Broken, Chain, Posted, Refusal, Remote};
use crate::transport::{Outcome, Part};
use crate::wire::Ask;

/// A chain that has not ended by then is given up: some hundred times what a mebibyte takes on a slow fabric. Devices give up
/// sooner, but not when they are broken.
pub(super) const TRANSFER_MAX: Duration = Duration::from_millis(1500);
/// Chunks of one request that are asked for before they can be read: a round trip's worth.
const ASKS_AHEAD: usize = 8;

/// What a chain writes to, and its place among the chains of its queue pair.
pub(super) type Owner = (Pooled, OwnedSemaphorePermit);

/// A chain under way.
struct Flight<'a> {
    part: usize,
    bytes: usize,
    lent: Arc<Lent>,
    begun: Duration,
    deadline: Instant,
    posted: Posted<Owner>,
    counted: UnderWay<'a>,
}

/// Is counted as under way until it has come through; dropped before, it is given up.
struct UnderWay<'a>(Option<&'a Way>);

/// A part of which something is still to be read.
struct Cutting {
    part: usize,
    runs: Runs,
    lent: Arc<Lent>,
}

/// One request's reads.
pub(super) struct Transfer<'a, 'b> {
    way: &'a Way,
    pair: &'a Pair,
    connection: &'a Connection,
    asking: &'a Asking<'b>,
    flying: VecDeque<Flight<'a>>,
}

impl<'a, 'b> Transfer<'a, 'b> {
    pub(super) fn new(
        way: &'a Way,
        pair: &'a Pair,
        connection: &'a Connection,
        asking: &'a Asking<'b>,
    ) -> Self {
        Self { way, pair, connection, asking, flying: VecDeque::new() }
    }

    /// Reads all parts; what is none afterwards another lane is to be asked for.
    pub(super) async fn run(
        &mut self,
        parts: &mut [&mut Part<'_>],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Stop> {
        let mut trouble = self.pair.adapter.trouble.clone();
        let before = self.pair.troubles;
        let mut leases = JoinSet::new();
        let (mut asked, mut ready) = (0, VecDeque::new());
        self.pair.leases.pass(self.asking.step);
        loop {
            while asked < parts.len() && leases.len() + ready.len() < ASKS_AHEAD {
                let (index, ask) = (asked, self.ask(parts[asked]));
                asked += 1;
                if let Some(lent) = self.pair.leases.get(ask.chunk, |lent| lent.is_fresh()) {
                    ready.extend(begin(index, lent, parts[index], &mut outcomes[index]));
                } else {
                    let connection = self.connection.clone();
                    leases.spawn(async move { (index, borrow(connection, ask).await) });
                }
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
                ended = self.way.first(&mut self.flying), if !self.flying.is_empty() => {
                    let Some(flight) = self.flying.pop_front() else { continue };
                    self.land(flight, ended?, parts, outcomes)?;
                }
                Some(joined) = leases.join_next(), if !leases.is_empty() => {
                    let Ok((index, lent)) = joined else { return Err(Stop::Connection(Failure::Gone)) };
                    match lent {
                        Ok(lent) => {
                            let lent = Arc::new(lent);
                            self.pair.leases.keep(lent.ask.chunk, lent.ask.until, Arc::clone(&lent));
                            ready.extend(begin(index, lent, parts[index], &mut outcomes[index]));
                        }
                        Err(NotLent::Refused(failure)) => outcomes[index] = Some(Err(failure)),
                        Err(NotLent::Stop(stop)) => return Err(stop),
                    }
                }
            }
        }
    }

    fn ask(&self, part: &Part<'_>) -> Ask {
        let (fence, refresh) = (self.asking.member.fence, self.asking.refresh);
        Ask { rail: self.pair.rail, fence, chunk: part.chunk().0, until: part.until(), refresh }
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
            let owner = if self.flying.is_empty() {
                // Waits only with nothing in its hands, so that nobody waits in a circle.
                self.pair.room(self.way).await?
            } else {
                let Some(owner) = self.pair.try_room() else { return Ok(()) };
                owner
            };
            let flight = self.post(cutting, owner)?;
            self.flying.push_back(flight);
        }
        Ok(())
    }

    fn post(&self, cutting: &mut Cutting, owner: Owner) -> Result<Flight<'a>, Stop> {
        let most = self.pair.message_bytes_max();
        let from = Remote { address: cutting.lent.lease.address, key: cutting.lent.lease.key };
        let mut chain = Chain::new(&self.pair.adapter.memory, owner);
        let mut bytes = 0;
        while chain.len() < CHAIN_READS_MAX
            && let Some((offset, len)) = cutting.runs.next(most.min(PIECE_BYTES - bytes))
        {
            chain.read(bytes, len, from.plus(offset)).map_err(|_| Stop::Lane(Reason::Misuse))?;
            bytes += len;
        }
        let begun = self.asking.now();
        let posted = self.pair.post(chain).map_err(|reason| cutting.lent.stop(reason))?;
        let counted = UnderWay::new(self.way, begun);
        let deadline = Instant::now() + TRANSFER_MAX;
        let lent = Arc::clone(&cutting.lent);
        Ok(Flight { part: cutting.part, bytes, lent, begun, deadline, posted, counted })
    }

    /// Copies what has come to where it belongs, and checks it there.
    fn land(
        &self,
        flight: Flight<'_>,
        owner: Owner,
        parts: &mut [&mut Part<'_>],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Stop> {
        let (piece, permit) = owner;
        // The device is done, so the next chain may go.
        drop(permit);
        let slow = flight.counted.done(self.asking.now(), flight.bytes, self.pair);
        let part = &mut parts[flight.part];
        part.accept(&piece[..flight.bytes]);
        self.asking.counters.rdma_in_bytes.add(flight.bytes);
        if part.is_full() {
            outcomes[flight.part] = match part.verdict() {
                Ok(()) => Some(Ok(())),
                // Its owner may have read something else into that memory.
                Err(_) if flight.lent.is_old() => None,
                Err(sample) => {
                    self.pair.leases.forget(flight.lent.ask.chunk);
                    Some(Err(Failure::Corrupt { sample: Some(sample.0) }))
                }
            };
        }
        slow
    }
}

impl Lent {
    /// Why a transfer stops that wanted to read it. A key that is no longer known is a mistake, unless the lease may have ended
    /// meanwhile.
    fn stop(&self, reason: Reason) -> Stop {
        match reason {
            Reason::RemoteAccess if self.is_old() => Stop::Lane(Reason::PeerDead),
            Reason::RemoteAccess => Stop::Forbidden { ask: self.ask, lease: self.lease },
            reason => Stop::Lane(reason),
        }
    }
}

impl Pair {
    /// The largest read.
    pub(super) fn message_bytes_max(&self) -> usize {
        usize::try_from(self.path.message_bytes_max).unwrap_or(usize::MAX)
    }

    /// A piece of the pool, and a place among the chains, when there are both. Waits as long as others' chains come through.
    pub(super) async fn room(&self, way: &Way) -> Result<Owner, Stop> {
        let flights = Arc::clone(&self.flights);
        let mut room = pin!(async { (flights.acquire_owned().await, self.adapter.pool.take().await) });
        loop {
            let before = way.goodput().last_end();
            match timeout(TRANSFER_MAX, &mut room).await {
                Ok((Ok(permit), piece)) => return Ok((piece, permit)),
                Err(_) if way.goodput().last_end() > before => {}
                // All are with devices that do not give them back in time.
                _ => return Err(Stop::Lane(Reason::PeerDead)),
            }
        }
    }

    fn try_room(&self) -> Option<Owner> {
        let permit = Arc::clone(&self.flights).try_acquire_owned().ok()?;
        Some((self.adapter.pool.try_take()?, permit))
    }

    /// Hands a chain over. There is room for as many as have permits.
    pub(super) fn post(&self, chain: Chain<Owner>) -> Result<Posted<Owner>, Reason> {
        self.pair.try_post(chain).map_err(|refused| match refused.why {
            Refusal::Broken(failure) => failure.reason,
            Refusal::Driver(error) => error.reason,
            Refusal::Full | Refusal::Unfit { .. } | Refusal::Stranger => Reason::Misuse,
        })
    }
}

impl Way {
    /// The end of the first chain, which is the next one to end.
    async fn first(&self, flying: &mut VecDeque<Flight<'_>>) -> Result<Owner, Stop> {
        let Some(flight) = flying.front_mut() else { return std::future::pending().await };
        let reason = match timeout_at(flight.deadline, &mut flight.posted).await {
            Ok(Ok(owner)) => return Ok(owner),
            Ok(Err(Broken { failure, .. })) => failure.reason,
            Err(_) => Reason::PeerDead,
        };
        Err(flight.lent.stop(self.goodput().explain(reason, flight.begun)))
    }
}

impl<'a> UnderWay<'a> {
    fn new(way: &'a Way, now: Duration) -> Self {
        way.goodput().begun(now);
        Self(Some(way))
    }

    /// It has come through. An error when the lane has become too slow to be used.
    fn done(mut self, now: Duration, bytes: usize, pair: &Pair) -> Result<(), Stop> {
        let Some(way) = self.0.take() else { return Ok(()) };
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        pair.adapter.bytes.fetch_add(bytes, Ordering::Relaxed);
        let window = way.goodput().ended(now, bytes);
        let Some(window) = window else { return Ok(()) };
        let counted = pair.adapter.counted(pair.path.port);
        match way.goodput().judge(window, counted, pair.path.mtu.bytes()) {
            None => Ok(()),
            Some(slow) => {
                tracing::debug!(rate = slow.rate, best = slow.best, lost = ?slow.lost, "an RDMA lane is slow");
                Err(Stop::Lane(Reason::Lossy))
            }
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(way) = self.0 {
            way.goodput().given_up();
        }
    }
}

/// A part whose chunk is lent; none when nothing of it is to be read.
fn begin(
    index: usize,
    lent: Arc<Lent>,
    part: &mut Part<'_>,
    outcome: &mut Option<Outcome>,
) -> Option<Cutting> {
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
    Some(Cutting { part: index, runs, lent })
}
