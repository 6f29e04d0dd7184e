//! Lending: chunks of this worker's cache, to be read where they lie.

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;

use super::{ANSWERING, Adapter};
use crate::cache::Held;
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

/// A chunk that is lent as long as this exists.
#[derive(Debug)]
pub(crate) struct Lending {
    _held: Held,
    _region: MemoryRegion,
}

impl Adapter {
    /// The other half of a peer's queue pair, connected to it.
    pub(crate) fn answer(&self, peer: &Endpoint) -> Result<(Answering, Endpoint), Reason> {
        let permit = self.answering.clone().try_acquire_owned().map_err(|_| Reason::Refused)?;
        let connect = || {
            let path = self.device.path()?;
            let half = self.domain.queue_pair(&self.answers, &path, ANSWERING)?;
            let own = half.endpoint();
            Ok((half.connect(peer)?, own))
        };
        let (pair, own) = connect().map_err(|error: VerbsError| {
            tracing::debug!(%error, "a peer's queue pair is not answered");
            error.reason
        })?;
        Ok((Answering { _pair: pair, _permit: permit }, own))
    }

    /// Lends a chunk: registers its memory, unless that is known already from another chunk that lay there.
    pub(crate) async fn lend(&self, held: Held) -> Result<(Lending, Lease), Reason> {
        // Read only, and by whoever knows the key: the peers of this membership, over their queue pairs.
        let access = Access { remote_read: true, ..Access::default() };
        let missing = || VerbsError::saying(Operation::Register, self.device(), Reason::Misuse, "no memory");
        let known = held
            .block()
            .and_then(|block| block.attached(|_| Err::<MemoryRegion, _>(())).and_then(Result::ok));
        let (held, region) = match known {
            Some(region) => (held, region),
            None => {
                let domain = self.domain.clone();
                // The driver pins every page.
                let registered = spawn_blocking(move || {
                    let region =
                        held.block().and_then(|block| block.attached(|place| domain.register(place, access)));
                    (held, region)
                });
                let (held, region) = registered.await.map_err(|_| Reason::Flushed)?;
                let region = region.unwrap_or_else(|| Err(missing())).map_err(|error| {
                    tracing::debug!(%error, "a chunk is not lent");
                    error.reason
                })?;
                (held, region)
            }
        };
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
