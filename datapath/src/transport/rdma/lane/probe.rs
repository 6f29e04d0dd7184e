//! Finding out whether a rail that failed is back, beside the requests: none of them waits for that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::Connection;
use tokio::time::timeout;

use super::asker::Way;
use super::pair::{NotLent, Pair, Stop, borrow};
use super::transfer::TRANSFER_MAX;
use super::{PIECE_BYTES, Rails};
use crate::counters::Counting;
use crate::transport::rdma::goodput::Window;
use crate::transport::rdma::reason::Reason;
use crate::transport::rdma::verbs::{Broken, Chain, Remote};
use crate::wire::{Ask, Lease};

/// Reads of a probe, one after the other: a thousand packets, so that a fabric that loses one in a hundred is not taken for healed.
const READS: u32 = 16;

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
        let result = self.reads(way).await;
        let (peer, device) = (self.connection.remote_address(), way.device(&self.rails));
        let now = self.epoch.elapsed();
        match result {
            Ok(true) => {
                if way.comeback().succeeded(now) {
                    self.counters.rdma_returns.add(1_u64);
                    tracing::info!(%peer, device, "the RDMA lane is used again");
                }
            }
            // Nothing was found out: the next one tries, when this one's time is over.
            Ok(false) => {}
            Err(reason) => {
                tracing::debug!(%peer, device, reason = reason.word(), "a probe of an RDMA lane failed");
                way.comeback().failed(reason, now);
            }
        }
    }

    /// Whether bytes came as they did before. False when there were none to read.
    async fn reads(&self, way: &Way) -> Result<bool, Reason> {
        let lane = |stop| match stop {
            Stop::Lane(reason) => reason,
            // The next one tries over another connection.
            Stop::Connection(_) => Reason::PeerDead,
        };
        let pair = way.place.pair(&self.rails, way.rail, &self.connection).await.map_err(lane)?;
        let ask = Ask { rail: pair.rail, ..self.chunk };
        let lent = match borrow(self.connection.clone(), ask).await {
            Ok(lent) => lent,
            // Its store does not deliver.
            Err(NotLent::Refused(_)) => return Ok(false),
            Err(NotLent::Stop(stop)) => return Err(lane(stop)),
        };
        let counted = || pair.adapter.lost_packets_now(pair.path.port);
        let (before, begun) = (counted(), self.epoch.elapsed());
        let mut bytes = 0;
        for read in 0..READS {
            match self.read(&pair, lent.lease, read).await {
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
        let lost = counted().zip(before).map(|(now, before)| now.saturating_sub(before));
        let busy = (self.epoch.elapsed() - begun).max(Duration::from_nanos(1));
        let probe = Window { busy, bytes, chains: READS };
        if bytes == 0 {
            return Ok(false);
        }
        if way.goodput().is_restored(probe, lost, pair.path.mtu.bytes()) {
            Ok(true)
        } else {
            Err(Reason::Lossy)
        }
    }

    /// One piece of the chunk, as far as it goes.
    async fn read(&self, pair: &Pair, lease: Lease, number: u32) -> Result<u64, Reason> {
        let lane = |stop| match stop {
            Stop::Lane(reason) => reason,
            Stop::Connection(_) => Reason::PeerDead,
        };
        let whole = usize::try_from(lease.len).unwrap_or(usize::MAX);
        let len = whole.min(PIECE_BYTES).min(pair.message_bytes_max());
        let places = (whole - len) / PIECE_BYTES + 1;
        let at = usize::try_from(number).unwrap_or(0) % places * PIECE_BYTES;
        let from = Remote { address: lease.address, key: lease.key }.plus(u64::try_from(at).unwrap_or(0));
        let owner = pair.room().await.map_err(lane)?;
        let mut chain = Chain::new(&pair.adapter.memory, owner);
        if len == 0 {
            return Ok(0);
        }
        chain.read(0, len, from).map_err(|_| Reason::Misuse)?;
        match timeout(TRANSFER_MAX, pair.post(chain).map_err(lane)?).await {
            Ok(Ok(_)) => Ok(u64::try_from(len).unwrap_or(0)),
            Ok(Err(Broken { failure, .. })) => Err(failure.reason),
            Err(_) => Err(Reason::PeerDead),
        }
    }
}
