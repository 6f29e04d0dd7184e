//! Filling one slot with one batch: drives a [`Transfer`] over the lanes.
//!
//! The parts borrow the slot and move into the requests, so a request that is dropped or fails can no longer write,
//! and a slot is complete exactly when every part has come back.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use crate::cache::Cache;
use crate::counters::Counting;
use crate::dataset::Manifest;
use crate::fault::{self, DataFault};
use crate::loader::plan::Plan;
use crate::membership::Member;
use crate::ring::Slot;
use crate::select::PeerId;
use crate::session::{Ask, Failure, Transfer, Verdict};
use crate::transport::quic::QuicLane;
use crate::transport::quic::client::{Asking, Link};
use crate::transport::rdma::lane::Rails;
use crate::transport::{Outcome, Part, local};
use crate::wire::{GROUPS_MAX, RANGES_MAX};

/// What a fill works with.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) cache: Cache,
    pub(crate) counters: Arc<Counting>,
    pub(crate) lane: Arc<QuicLane>,
    /// For lanes over verbs.
    pub(crate) rails: Option<Arc<Rails>>,
    pub(crate) member: Arc<Member>,
    /// The moment that times are counted from.
    pub(crate) epoch: Instant,
}

/// Why a slot was not filled.
#[derive(Debug)]
pub(crate) enum FillError {
    /// The membership is over.
    Fenced,
    /// The data cannot be had.
    Fault(Box<DataFault>),
}

type Answer<'slot> = (Vec<usize>, Vec<Part<'slot>>, Vec<Outcome>);
type Request<'slot, 'a> = Pin<Box<dyn Future<Output = Answer<'slot>> + Send + 'a>>;

/// Fills the slot; afterwards it is complete and verified.
pub(crate) async fn fill(source: &Source, plan: &Plan, slot: &mut Slot) -> Result<(), FillError> {
    let generation = slot.generation();
    let bytes = slot.bytes_mut();
    plan.write_table(bytes, generation);
    let mut parts: Vec<Option<Part<'_>>> = plan.split(bytes).into_iter().map(Some).collect();
    let mut transfer = Transfer::new(plan.parts().iter().map(|part| part.chunk));
    let member = &source.member;
    // The sample that made a part suspicious: a chunk that is then found corrupt as a whole does not say which.
    let mut suspects = vec![None; parts.len()];
    let mut requests: Vec<Request<'_, '_>> = Vec::new();
    loop {
        let now = source.now();
        for peer in member.health(|health| health.probes(now)) {
            source.probe(peer);
        }
        let roster = member.roster();
        member.note_servers(&roster);
        for ask in member.health(|health| transfer.asks(member.me, &roster.candidates, health, now)) {
            let link = roster.links.get(&ask.owner);
            for (indices, asked) in cut(&ask, &mut parts) {
                let step = plan.place().step;
                let link = link.cloned();
                requests.push(Box::pin(request(source, link, ask.refresh, step, indices, asked)));
            }
        }
        match transfer.verdict() {
            Verdict::Done => return Ok(()),
            Verdict::Fenced => return Err(FillError::Fenced),
            Verdict::GaveUp { part, failure } => {
                let chunk = plan.parts()[part].chunk;
                return Err(FillError::Fault(Box::new(describe(
                    &source.manifest,
                    chunk.0,
                    suspects[part],
                    &failure,
                ))));
            }
            Verdict::Pending => {}
        }
        let due = transfer.next_due().map(|due| due.saturating_sub(source.now()));
        let answer = tokio::select! {
            answer = first(&mut requests), if !requests.is_empty() => answer,
            () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => continue,
            // A pending transfer has asked for something or waits for a moment.
            else => continue,
        };
        let now = source.now();
        for ((index, part), outcome) in answer.0.into_iter().zip(answer.1).zip(answer.2) {
            match outcome {
                Ok(()) => {
                    if let Some(owner) = transfer.owner(index).filter(|&owner| owner != member.me) {
                        member.health(|health| health.succeeded(owner));
                    }
                    transfer.done(index);
                }
                Err(failure) => {
                    parts[index] = Some(part);
                    if let Failure::Corrupt { sample: Some(sample) } = failure {
                        suspects[index] = Some(sample);
                    }
                    source.counters.retries.add(1_u64);
                    tracing::debug!(chunk = plan.parts()[index].chunk.0, ?failure, "a chunk did not come");
                    member.health(|health| transfer.failed(index, failure, health, now));
                }
            }
        }
    }
}

impl Source {
    /// Time since the plane's start.
    pub(crate) fn now(&self) -> std::time::Duration {
        self.epoch.elapsed()
    }

    /// Finds out by the way whether a peer that failed is back: no batch waits for that.
    fn probe(&self, peer: PeerId) {
        let source = self.clone();
        // Ends with the membership; one that has ended probes nobody.
        drop(self.member.spawn(async move {
            let Some(link) = source.member.roster().links.get(&peer).cloned() else { return };
            let back = link.probe(&source.asking(0, false)).await;
            let now = source.now();
            tracing::debug!(peer = peer.0, back, "an owner that failed was probed");
            source
                .member
                .health(|health| if back { health.succeeded(peer) } else { health.failed(peer, now) });
        }));
    }

    pub(crate) fn asking(&self, step: u64, refresh: bool) -> Asking<'_> {
        Asking {
            lane: &self.lane,
            rails: self.rails.as_ref(),
            epoch: self.epoch,
            member: &self.member,
            dataset: self.manifest.digest().0,
            counters: &self.counters,
            step,
            refresh,
        }
    }
}

/// Asks one owner for some parts; brings them back with what came of each. Without a link it is this plane itself.
async fn request<'slot>(
    source: &Source,
    link: Option<Arc<Link>>,
    refresh: bool,
    step: u64,
    indices: Vec<usize>,
    mut parts: Vec<Part<'slot>>,
) -> Answer<'slot> {
    let outcomes = match link {
        Some(link) => link.fetch(&source.asking(step, refresh), &mut parts).await,
        None => local::fetch(&source.cache, &source.counters, refresh, &mut parts).await,
    };
    (indices, parts, outcomes)
}

/// The parts of an ask, in requests that fit into a frame.
fn cut<'slot>(ask: &Ask, parts: &mut [Option<Part<'slot>>]) -> Vec<(Vec<usize>, Vec<Part<'slot>>)> {
    let mut requests = vec![(Vec::new(), Vec::new())];
    let mut ranges = 0;
    for &index in &ask.parts {
        // Whoever asks has the part back: it is here.
        let Some(part) = parts[index].take() else { continue };
        let more = part.ranges().len();
        if (ranges + more > RANGES_MAX || requests.last().is_some_and(|last| last.0.len() == GROUPS_MAX))
            && ranges > 0
        {
            requests.push((Vec::new(), Vec::new()));
            ranges = 0;
        }
        ranges += more;
        if let Some(last) = requests.last_mut() {
            last.0.push(index);
            last.1.push(part);
        }
    }
    requests
}

/// The first of several futures that is ready, which is taken out.
async fn first<T>(running: &mut Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> T {
    poll_fn(|cx| {
        for at in 0..running.len() {
            if let Poll::Ready(done) = running[at].as_mut().poll(cx) {
                drop(running.swap_remove(at));
                return Poll::Ready(done);
            }
        }
        Poll::Pending
    })
    .await
}

/// The fault that a user reads.
fn describe(manifest: &Manifest, chunk: u32, sample: Option<u64>, failure: &Failure) -> DataFault {
    let place = manifest.chunk(crate::dataset::ChunkId(chunk));
    let shard = manifest.shard(place.shard).name.clone();
    let reason = failure.reason();
    let within = format!(
        "chunk {chunk} (bytes {} to {} of {shard})",
        place.offset,
        place.offset + u64::from(place.len)
    );
    let (message, hint) = match failure {
        Failure::Corrupt { .. } => (
            match sample {
                Some(sample) => format!("sample {sample} in {within} is not what was indexed"),
                None => format!("{within} is not what was indexed"),
            },
            "restore the shard, or index the dataset again if it was changed on purpose (launcher data verify \
             lists all that is wrong)",
        ),
        Failure::Store { message, .. } => (
            format!("{within} cannot be read: {message}"),
            match reason {
                fault::NOT_FOUND => "put the shard back, and check that every host sees the same store",
                fault::SHORT_READ => "the shard was cut after it was indexed: restore it or index again",
                _ => "check the store's mount or service on this host, then resume the job",
            },
        ),
        Failure::Stranger => (
            format!("the owner of {within} refuses this worker: it has other data or another release"),
            "check that every host sees the same dataset and runs the same release, then resume the job",
        ),
        Failure::Lane { reason } => {
            (format!("the RDMA lane to the owner of {within} failed: {reason}"), reason.hint())
        }
        Failure::Gone | Failure::Early { .. } | Failure::Fenced => (
            format!("no worker delivered {within}"),
            "check the network between the workers (UDP on the data addresses), then resume the job",
        ),
    };
    DataFault { shard, chunk, sample, reason: reason.to_owned(), message, hint: hint.to_owned() }
}
