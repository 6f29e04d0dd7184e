//! Borrowing: chunks of other owners, read where they lie. Which rail brings what, and what becomes of one that failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use quinn::Connection;
use tokio::task::JoinSet;

use super::Rails;
use super::pair::{Place, Stop};
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
    /// Bytes that requests want by it now.
    load: AtomicU64,
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
        let loads: Vec<u64> = usable.iter().map(|way| way.load.load(Ordering::Relaxed)).collect();
        let rails_of_parts = spread(parts.iter().map(Part::bytes), &loads);
        let mut outcomes = vec![None; parts.len()];
        let mut shares: Vec<(Vec<usize>, Vec<&mut Part<'_>>)> = Vec::new();
        shares.resize_with(usable.len(), Default::default);
        for ((index, part), rail) in parts.iter_mut().enumerate().zip(rails_of_parts) {
            shares[rail].0.push(index);
            shares[rail].1.push(part);
        }
        let shares = usable.into_iter().zip(shares).filter(|(_, share)| !share.0.is_empty());
        let came = join_all(shares.map(|(way, (indices, mut share))| async move {
            let came = way.fetch(rails, connection, asking, &mut share).await;
            indices.into_iter().zip(came)
        }));
        for (index, outcome) in came.await.into_iter().flatten() {
            outcomes[index] = outcome;
        }
        outcomes
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
        let _load = Load::new(&self.load, parts.iter().map(|part| part.bytes()).sum());
        let mut outcomes = vec![None; parts.len()];
        let pair = self.place.pair(rails, self.rail, connection).await;
        let result = match &pair {
            Ok(pair) => Transfer::new(self, pair, connection, asking).run(parts, &mut outcomes).await,
            Err(stop) => Err(stop.clone()),
        };
        // A chunk that its store does not deliver is no failure of the lane.
        let is_lost = matches!(result, Err(Stop::Lane(_))) || connection.close_reason().is_some();
        let instead = match result {
            Ok(()) => None,
            Err(Stop::Lane(reason)) => {
                let reason = match &pair {
                    Ok(pair) => pair.named(reason).await,
                    Err(_) => reason,
                };
                if self.comeback().failed(reason, asking.now()) {
                    asking.counters.rdma_failures.add(1_u64);
                    let (peer, device) = (connection.remote_address(), self.device(rails));
                    let (word, hint) = (reason.word(), reason.hint());
                    tracing::warn!(%peer, device, reason = word, hint, "an RDMA lane failed");
                }
                (reason.class() == Class::Fatal).then_some(Failure::Lane { reason })
            }
            Err(Stop::Connection(failure)) => Some(failure),
        };
        if let (Ok(pair), true) = (&pair, is_lost) {
            // What others have under way by it would only fail later; it comes back at once. Said before: they are only flushed.
            drop(pair.pair.fail());
        }
        if let Some(failure) = instead {
            outcomes.iter_mut().for_each(|outcome| _ = outcome.get_or_insert(Err(failure.clone())));
        }
        outcomes
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
