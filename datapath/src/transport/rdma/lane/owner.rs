//! Lending: chunks of this worker's cache, to be read where they lie.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;

use super::adapter::Adapter;
use super::{ANSWERING, RAILS_MAX, Rails};
use crate::cache::Held;
use crate::memory::span::Stable;
use crate::transport::rdma::VerbsError;
use crate::transport::rdma::endpoint::Endpoint;
use crate::transport::rdma::reason::{Operation, Reason};
#[cfg(test)]
use crate::transport::rdma::verbs::Remote;
use crate::transport::rdma::verbs::{Access, MemoryRegion, QueuePair};
use crate::wire::Lease;

/// A queue pair by which this host's device answers a peer, as long as it exists.
#[derive(Debug)]
pub(crate) struct Answering {
    _pair: QueuePair,
    _permit: OwnedSemaphorePermit,
}

/// A block's memory, as each rail's device knows it.
#[derive(Clone)]
struct Known {
    place: Arc<dyn Stable>,
    by_rail: Arc<[Mutex<Option<MemoryRegion>>; RAILS_MAX]>,
}

/// A chunk that is lent as long as this exists.
#[derive(Debug)]
pub(crate) struct Lending {
    _held: Held,
    _region: MemoryRegion,
}

impl Rails {
    /// The other half of a peer's queue pair, connected to it, on the rail that the peer wants.
    pub(crate) async fn answer(&self, rail: u8, peer: &Endpoint) -> Result<(Answering, Endpoint), Reason> {
        let answered = async {
            let (adapter, path) = self.rail(rail).1.ready().await?;
            let permit = adapter.answering.clone().try_acquire_owned().map_err(|_| {
                let what = "as many peers as one device answers have queue pairs already";
                VerbsError::saying(Operation::Create, adapter.device.name(), Reason::Refused, what)
            })?;
            let half = adapter.domain.queue_pair(&adapter.answers, &path, ANSWERING)?;
            let own = half.endpoint();
            Ok((Answering { _pair: half.connect(peer)?, _permit: permit }, own))
        };
        answered.await.map_err(|error: VerbsError| {
            tracing::debug!(%error, "a peer's queue pair is not answered");
            error.reason
        })
    }

    /// Lends a chunk to be read by that rail: registers its memory, unless that is known already from another chunk that lay there.
    pub(crate) async fn lend(&self, rail: u8, held: Held) -> Result<(Lending, Lease), Reason> {
        let (number, rail) = self.rail(rail);
        let adapter = rail.adapter();
        let known = held.block().and_then(|block| block.attached(Known::new).map(|Ok(known)| known));
        let missing = || VerbsError::saying(Operation::Register, &rail.name, Reason::Misuse, "no memory");
        let region = match known {
            Some(known) => known.to(number, &adapter).await,
            None => Err(missing()),
        };
        let region = region.map_err(|error| {
            tracing::debug!(%error, "a chunk is not lent");
            error.reason
        })?;
        let place = region.remote(0);
        #[cfg(test)]
        let place = {
            let is_lying = self.is_lying.load(std::sync::atomic::Ordering::Acquire);
            Remote { key: place.key ^ if is_lying { 0xff00 } else { 0 }, ..place }
        };
        let len = u32::try_from(held.len()).map_err(|_| Reason::Refused)?;
        let lease = Lease { address: place.address, key: place.key, len };
        Ok((Lending { _held: held, _region: region }, lease))
    }
}

impl Known {
    #[expect(clippy::unnecessary_wraps, reason = "what is attached may fail elsewhere")]
    fn new(place: Arc<dyn Stable>) -> Result<Self, Infallible> {
        Ok(Self { place, by_rail: Arc::default() })
    }

    fn by(&self, rail: usize) -> MutexGuard<'_, Option<MemoryRegion>> {
        self.by_rail[rail].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registration with a rail's device, made now if need be: a device that was opened again knows nothing of before.
    async fn to(&self, rail: usize, adapter: &Arc<Adapter>) -> Result<MemoryRegion, VerbsError> {
        let known = self.by(rail).clone();
        if let Some(region) = known.filter(|region| region.is_of(&adapter.domain)) {
            return Ok(region);
        }
        // Read only, and by whoever knows the key: the peers of this membership, over their queue pairs.
        let access = Access { remote_read: true, ..Access::default() };
        let (place, domain) = (Arc::clone(&self.place), adapter.domain.clone());
        // The driver pins every page.
        let registered = spawn_blocking(move || domain.register(place, access)).await;
        let stopped = |_| {
            VerbsError::saying(
                Operation::Register,
                adapter.device.name(),
                Reason::Flushed,
                "the runtime stops",
            )
        };
        let region = registered.map_err(stopped)??;
        // When somebody was faster, either of the two goes on, and the other one with who uses it.
        *self.by(rail) = Some(region.clone());
        Ok(region)
    }
}
