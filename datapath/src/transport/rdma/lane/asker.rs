//! Borrowing: chunks of other owners, read where they lie. Which rail brings what, and what becomes of one that failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use quinn::Connection;
use tokio::task::JoinSet;

use super::Rails;
use super::pair::{Pair, Place, Stop, is_lent_still, is_silent};
use super::probe::Probe;
use super::transfer::Transfer;
use crate::session::Failure;
use crate::transport::quic::client::Asking;
use crate::transport::rdma::comeback::{Admission, Comeback};
use crate::transport::rdma::goodput::Goodput;
use crate::transport::rdma::reason::{Class, Reason};
use crate::transport::rdma::spread::spread;
use crate::transport::{Outcome, Part};
use crate::wire::Ask;

/// The lane to one peer: a way by each rail.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// Made when the rails are first known.
    ways: OnceLock<Arc<[Way]>>,
    /// Probes under way, one of a way at the most; they end with the lane.
    probes: Mutex<JoinSet<()>>,
}

/// One rail to that peer.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) rail: usize,
    pub(super) place: Place,
    comeback: Mutex<Comeback>,
    goodput: Mutex<Goodput>,
}

/// The ways that a request may use, and those that are to be probed.
#[derive(Debug)]
pub(crate) struct Admitted {
    usable: Vec<usize>,
    due: Vec<usize>,
}

impl Admitted {
    /// Whether there is nothing to do for this lane.
    pub(crate) fn is_empty(&self) -> bool {
        self.usable.is_empty() && self.due.is_empty()
    }
}

impl Lane {
    fn ways(&self, rails: &Rails) -> &Arc<[Way]> {
        self.ways.get_or_init(|| (0..rails.len()).map(|rail| Way { rail, ..Way::default() }).collect())
    }

    /// By which rails a request may go now.
    ///
    /// # Errors
    /// When one of them is broken by what only a wrong program does.
    pub(crate) fn admit(&self, rails: &Rails, now: Duration) -> Result<Admitted, Reason> {
        let mut admitted = Admitted { usable: Vec::new(), due: Vec::new() };
        for way in self.ways(rails).iter() {
            match way.comeback().admit(now) {
                Admission::Use => admitted.usable.push(way.rail),
                Admission::Probe => admitted.due.push(way.rail),
                Admission::Other => {}
                Admission::Broken(reason) => return Err(reason),
            }
        }
        Ok(admitted)
    }

    /// Reads all parts by the rails that were admitted. None for those that another lane is to be asked for.
    pub(crate) async fn fetch(
        &self,
        rails: &Arc<Rails>,
        connection: &Connection,
        asking: &Asking<'_>,
        admitted: &Admitted,
        parts: &mut [Part<'_>],
    ) -> Vec<Option<Outcome>> {
        let ways = self.ways(rails);
        self.probe(rails, connection, asking, admitted, parts);
        let usable: Vec<&Way> = admitted.usable.iter().map(|&rail| &ways[rail]).collect();
        let loads: Vec<u64> = usable.iter().map(|way| way.load(rails).load(Ordering::Relaxed)).collect();
        let first = rails.requests.fetch_add(1, Ordering::Relaxed);
        let rails_of_parts = spread(parts.iter().map(Part::bytes), &loads, first);
        let mut outcomes = vec![None; parts.len()];
        let mut shares: Vec<(Vec<usize>, Vec<&mut Part<'_>>)> = Vec::new();
        shares.resize_with(usable.len(), Default::default);
        for ((index, part), rail) in parts.iter_mut().enumerate().zip(rails_of_parts) {
            shares[rail].0.push(index);
            shares[rail].1.push(part);
        }
        let shares = usable.into_iter().zip(shares).filter(|(_, share)| !share.0.is_empty());
        let came = join_all(shares.map(|(way, (indices, mut share))| {
            let load = Load::new(way.load(rails), share.iter().map(|part| part.bytes()).sum());
            async move {
                let came = way.fetch(rails, connection, asking, &mut share).await;
                drop(load);
                indices.into_iter().zip(came)
            }
        }));
        for (index, outcome) in came.await.into_iter().flatten() {
            outcomes[index] = outcome;
        }
        outcomes
    }

    /// Ends its probes.
    pub(crate) fn close(&self) {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// Begins the probes that are due, each with the chunk that is asked for now.
    fn probe(
        &self,
        rails: &Arc<Rails>,
        connection: &Connection,
        asking: &Asking<'_>,
        admitted: &Admitted,
        parts: &[Part<'_>],
    ) {
        let Some(part) = parts.first().filter(|_| !admitted.due.is_empty()) else { return };
        let fence = asking.member.fence;
        let chunk = Ask { rail: 0, fence, chunk: part.chunk().0, until: part.until(), refresh: false };
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        while probes.try_join_next().is_some() {}
        for &rail in &admitted.due {
            let ways = Arc::clone(self.ways(rails));
            if !ways[rail].comeback().probe(asking.now()) {
                continue;
            }
            let (rails, connection, epoch) = (Arc::clone(rails), connection.clone(), asking.epoch);
            let counters = Arc::clone(asking.counters);
            let probe = Probe { rails, connection, chunk, epoch, counters };
            probes.spawn(async move { probe.run(&ways[rail]).await });
        }
    }
}

impl Way {
    pub(super) fn comeback(&self) -> MutexGuard<'_, Comeback> {
        self.comeback.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn goodput(&self) -> MutexGuard<'_, Goodput> {
        self.goodput.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load<'rails>(&self, rails: &'rails Rails) -> &'rails AtomicU64 {
        &rails.rails[self.rail].load
    }

    /// The device's name.
    pub(super) fn device<'rails>(&self, rails: &'rails Rails) -> &'rails str {
        &rails.rails[self.rail].name
    }

    async fn fetch(
        &self,
        rails: &Arc<Rails>,
        connection: &Connection,
        asking: &Asking<'_>,
        parts: &mut [&mut Part<'_>],
    ) -> Vec<Option<Outcome>> {
        let mut outcomes = vec![None; parts.len()];
        let pair = self.place.pair(rails, self.rail, connection).await;
        let begun = asking.now();
        let result = match &pair {
            Ok(pair) => Transfer::new(self, pair, connection, asking).run(parts, &mut outcomes).await,
            Err(stop) => Err(stop.clone()),
        };
        let instead = match result {
            Ok(()) => None,
            Err(Stop::Connection(failure)) => Some(failure),
            Err(stop) => {
                let (reason, side) = named(stop, pair.as_deref().ok(), connection).await;
                if self.comeback().failed(reason, begun, asking.now()) {
                    asking.counters.rdma_failures.add(1_u64);
                    self.place.straighten();
                    let (peer, device) = (connection.remote_address(), self.device(rails));
                    let (word, hint) = (reason.word(), reason.hint());
                    tracing::warn!(%peer, device, reason = word, side, hint, "an RDMA lane failed");
                }
                if let Ok(pair) = &pair {
                    // What others have under way by it would only fail later; it comes back at once. Said before: they are only flushed.
                    drop(pair.pair.fail());
                }
                match reason {
                    // Then the other lane would wait in vain.
                    Reason::PeerDead if is_silent(connection).await => Some(Failure::Gone),
                    reason => (reason.class() == Class::Fatal).then_some(Failure::Lane { reason }),
                }
            }
        };
        if let Ok(pair) = &pair
            && connection.close_reason().is_some()
        {
            drop(pair.pair.fail());
        }
        if let Some(failure) = instead {
            outcomes.iter_mut().for_each(|outcome| _ = outcome.get_or_insert(Err(failure.clone())));
        }
        outcomes
    }
}

/// On whose side a lane has failed: whoever lends.
const OWNER: &str = "owner";
/// Or whoever reads.
const ASKER: &str = "asker";

/// Why the lane has failed, and on whose side.
async fn named(stop: Stop, pair: Option<&Pair>, connection: &Connection) -> (Reason, &'static str) {
    match stop {
        Stop::Declined(reason) => (reason, OWNER),
        Stop::Forbidden { ask, lease } if is_lent_still(connection, ask, lease).await => {
            (Reason::RemoteAccess, OWNER)
        }
        Stop::Forbidden { .. } | Stop::Connection(_) => (Reason::PeerDead, OWNER),
        Stop::Lane(reason) => match pair {
            Some(pair) => (pair.named(reason).await, ASKER),
            None => (reason, ASKER),
        },
    }
}

/// Bytes that are wanted, as long as this exists.
struct Load<'a>(&'a AtomicU64, u64);

impl<'a> Load<'a> {
    fn new(load: &'a AtomicU64, bytes: u64) -> Self {
        load.fetch_add(bytes, Ordering::Relaxed);
        Self(load, bytes)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}
