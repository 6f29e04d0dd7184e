//! Finding out whether a rail that failed is back, beside the requests: none of them waits for that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quinn::Connection;
use tokio::time::{sleep, timeout};

use super::asker::Way;
use super::pair::{NotLent, Pair, Stop, borrow};
use super::transfer::TRANSFER_MAX;
use super::{PIECE_BYTES, Rails};
use crate::counters::Counting;
use crate::transport::rdma::comeback::PROBE_MAX;
use crate::transport::rdma::goodput::Window;
use crate::transport::rdma::reason::Reason;
use crate::transport::rdma::verbs::{Broken, Chain, Remote};
use crate::wire::{Ask, Lease};

/// Reads of a probe, one after the other: a thousand packets, so that a fabric that loses one in a hundred is not taken for healed.
const READS: u32 = 16;

/// How long after something was lost the device's count is sure to show it: the kernel asks devices every ten milliseconds.
const COUNTS_SETTLE: Duration = Duration::from_millis(20);
/// A probe has ended so long before the next one may begin.
const MARGIN: Duration = Duration::from_secs(1);

/// A probe of one rail.
pub(super) struct Probe {
    pub(super) rails: Arc<Rails>,
    pub(super) connection: Connection,
    /// A chunk that the owner has at hand, since somebody asks for it now.
    pub(super) chunk: Ask,
    /// The moment that times are counted from.
    pub(super) epoch: Instant,
    pub(super) counters: Arc<Counting>,
}

impl Probe {
    /// Probes a rail, and tells it what came of that.
    pub(super) async fn run(self, way: &Way) {
        let result = timeout(PROBE_MAX - MARGIN, self.reads(way)).await.unwrap_or(Err(Reason::PeerDead));
        let (peer, device) = (self.connection.remote_address(), way.device(&self.rails));
        if let Err(reason) = result {
            tracing::debug!(%peer, device, reason = reason.word(), "a probe of an RDMA lane failed");
        }
        way.goodput().restart();
        if way.comeback().probed(result.unwrap_or(Some(false)), self.epoch.elapsed()) {
            self.counters.rdma_returns.add(1_u64);
            tracing::info!(%peer, device, "the RDMA lane is used again");
        }
    }

    /// Whether bytes came as they did before. None when there were none to read.
    async fn reads(&self, way: &Way) -> Result<Option<bool>, Reason> {
        let pair = way.place.pair(&self.rails, way.rail, &self.connection).await.map_err(Stop::reason)?;
        let ask = Ask { rail: pair.rail, ..self.chunk };
        let lent = match borrow(self.connection.clone(), ask).await {
            Ok(lent) => lent,
            // Its store does not deliver.
            Err(NotLent::Refused(_)) => return Ok(None),
            Err(NotLent::Stop(stop)) => return Err(stop.reason()),
        };
        let counted = || pair.adapter.counted_now(pair.path.port);
        let (before, begun) = (counted(), self.epoch.elapsed());
        let mut bytes = 0;
        for read in 0..READS {
            if lent.is_old() {
                return Ok(None);
            }
            match self.read(way, &pair, lent.lease, read).await {
                Ok(more) => bytes += more,
                Err(reason) => {
                    drop(pair.pair.fail());
                    if reason == Reason::PeerDead {
                        way.place.turn();
                    }
                    return Err(reason);
                }
            }
        }
        if bytes == 0 {
            return Ok(None);
        }
        let busy = (self.epoch.elapsed() - begun).max(Duration::from_nanos(1));
        // The kernel shows counts that may be somewhat old.
        sleep(COUNTS_SETTLE).await;
        let counted = counted().zip(before).map(|(now, before)| now.since(before));
        let probe = Window { busy, bytes, chains: READS };
        let is_restored = way.goodput().is_restored(probe, counted, pair.path.mtu.bytes());
        if is_restored { Ok(Some(true)) } else { Err(Reason::Lossy) }
    }

    /// One piece of the chunk, as far as it goes.
    async fn read(&self, way: &Way, pair: &Pair, lease: Lease, number: u32) -> Result<u64, Reason> {
        let whole = usize::try_from(lease.len).unwrap_or(usize::MAX);
        let len = whole.min(PIECE_BYTES).min(pair.message_bytes_max());
        if len == 0 {
            return Ok(0);
        }
        let places = (whole - len) / PIECE_BYTES + 1;
        let at = usize::try_from(number).unwrap_or(0) % places * PIECE_BYTES;
        let from = Remote { address: lease.address, key: lease.key }.plus(u64::try_from(at).unwrap_or(0));
        let owner = pair.room(way).await.map_err(Stop::reason)?;
        let mut chain = Chain::new(&pair.adapter.memory, owner);
        chain.read(0, len, from).map_err(|_| Reason::Misuse)?;
        let bytes = u64::try_from(len).unwrap_or(0);
        match timeout(TRANSFER_MAX, pair.post(chain)?).await {
            Ok(Ok(_)) => {
                pair.adapter.bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(bytes)
            }
            Ok(Err(Broken { failure, .. })) => Err(failure.reason),
            Err(_) => Err(Reason::PeerDead),
        }
    }
}

impl Stop {
    /// Why the lane cannot be used. With its connection it is gone as well; that a device forbids something, the next request finds
    /// out for certain.
    fn reason(self) -> Reason {
        match self {
            Self::Lane(reason) | Self::Declined(reason) => reason,
            Self::Connection(_) | Self::Forbidden { .. } => Reason::PeerDead,
        }
    }
}
