//! One worker's data plane: owns chunks and serves them to its peers, and feeds this worker's trainers.
//!
//! ```text
//! start ── enter(fence 1) ── feed … feed ── enter(fence 2) ── feed … ── close
//! ```
//! Entering a membership ends the one before: its feeds stop (their events end), its connections are closed, and its
//! requests refused. The cache stays, so a restart after a failure reads nothing twice that it still has.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use crate::cache::Cache;
use crate::counters::{Counters, Counting};
use crate::dataset::Manifest;
use crate::fault::DataFault;
use crate::handoff::{ListenError, Listener};
use crate::loader::feed::FeedTask;
use crate::membership::Member;
use crate::order::{Consumer, Order, OrderDigest};
use crate::ring::RingError;
use crate::ring::layout::{SlotNeeds, slot_bytes};
use crate::select::{Congestion, TransportPolicy, lane};
use crate::store::Store;
use crate::tier::{Tier, TierConfig, TierError};
use crate::transport::quic::server::{Serving, serve};
use crate::transport::quic::tls::Identity;
use crate::transport::quic::{QuicError, QuicLane};
use crate::transport::rdma::lane::Rails;
use crate::transport::rdma::reason::Reason;

mod ahead;
mod lane;

pub use crate::membership::{Membership, Peer};
pub use crate::select::{PeerId, Role};
pub use crate::transport::rdma::choose::{DevicesWanted, FarDevices};
pub use lane::PeerLane;

/// Events of a feed that the worker has not taken yet; beyond it the trainer's acknowledgements wait.
const EVENTS_MAX: usize = 256;

/// What a plane is made of.
#[derive(Debug)]
pub struct PlaneConfig {
    /// Its certificate.
    pub identity: Identity,
    /// The interface's address that it listens on; the port is the kernel's choice.
    pub bind: IpAddr,
    /// The dataset.
    pub manifest: Arc<Manifest>,
    /// Where its shards lie.
    pub store: Store,
    /// The order of its samples.
    pub order: Order,
    /// Bytes of chunks held at the most (never less than two chunks). To read every chunk once, it must hold this
    /// worker's share of one shuffle window, and of two to read ahead.
    pub cache_bytes: u64,
    /// Where chunks are kept on this host besides; none keeps them in memory only.
    pub tier: Option<TierConfig>,
    /// Which lanes may be used.
    pub transport: TransportPolicy,
    /// What its QUIC lanes take for a full network.
    pub congestion: Congestion,
    /// Which RDMA devices of the host are its.
    pub devices: DevicesWanted,
}

/// What one consumer is to be fed. Steps count over all epochs.
#[derive(Clone, Debug)]
pub struct FeedConfig {
    /// Whose share of each batch.
    pub consumer: Consumer,
    /// The first step.
    pub start_step: u64,
    /// The step after the last.
    pub end_step: u64,
    /// Batches in flight.
    pub slots: u32,
    /// The abstract unix socket's name, without the leading NUL.
    pub socket: String,
    /// The membership it belongs to.
    pub fence: u64,
    /// An object whose keys are merged into the hello; other values are ignored.
    pub hello: serde_json::Value,
}

/// What happened at a feed.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedEvent {
    /// A trainer maps the ring.
    Attached {
        /// The process, as it says itself.
        pid: u32,
    },
    /// It has acknowledged a step.
    Consumed {
        /// Which.
        step: u64,
        /// This consumer's share of the step's order digest, padding included.
        digest: OrderDigest,
        /// Its samples, padding not included.
        samples: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// It has durably saved everything before `step`.
    Committed {
        /// Steps done: the next one to run after a resume.
        step: u64,
    },
    /// It reported numbers.
    Reported {
        /// By name.
        values: BTreeMap<String, f64>,
    },
    /// Its socket is closed. The next trainer goes on at the first step that was not acknowledged.
    Detached,
    /// It has acknowledged the last step.
    Ended,
    /// The data cannot be had: the feed stands still until a trainer seeks elsewhere or a membership is entered.
    Fault(DataFault),
}

/// A running feed; dropping it stops it.
#[derive(Debug)]
pub struct Feed {
    /// What happens, in order. It ends when the feed is stopped, by a newer membership for instance.
    pub events: mpsc::Receiver<FeedEvent>,
    task: AbortHandle,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a plane or a feed does not start.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// No QUIC lane.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// The policy demands what this plane does not have.
    #[error("use RDMA, which the job requires: {reason} (or set `transport: prefer-rdma`)")]
    NoRdma {
        /// Why there is none.
        reason: String,
    },
    /// The node-local tier.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// The task that opens the tier was stopped with the runtime.
    #[error("open the tier: it was stopped")]
    Stopped,
    /// The trainer's socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The membership is not the current one.
    #[error("feed generation {asked} (this plane is in generation {current:?})")]
    Fenced {
        /// What the feed is for.
        asked: u64,
        /// What the plane is in.
        current: Option<u64>,
    },
    /// A range or share that cannot be.
    #[error("feed {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
}

/// A data plane.
#[derive(Debug)]
pub struct Plane {
    manifest: Arc<Manifest>,
    order: Order,
    cache: Cache,
    counters: Arc<Counting>,
    lane: Arc<QuicLane>,
    /// This host's RDMA devices, or why none is used.
    rails: Result<Arc<Rails>, Reason>,
    member: watch::Sender<Option<Arc<Member>>>,
    server: JoinHandle<()>,
    started: Instant,
}

impl Plane {
    /// Opens the socket and answers on it; without a membership every request is asked to wait.
    ///
    /// # Errors
    /// When the identity or the address is unusable, or the transport policy cannot be kept.
    pub async fn start(config: PlaneConfig) -> Result<Self, PlaneError> {
        let rails = rails(config.transport, &config.devices)?;
        let lane = Arc::new(QuicLane::open(&config.identity, config.bind, config.congestion)?);
        let counters = Arc::new(Counting::default());
        let manifest = config.manifest;
        let tier = match config.tier {
            Some(config) => Some(open_tier(config, &manifest, &counters).await?),
            None => None,
        };
        let (shuffle, room) = (config.order.spec().shuffle, config.cache_bytes);
        let cache =
            Cache::new(Arc::clone(&manifest), config.store, tier, shuffle, room, Arc::clone(&counters));
        let member = watch::Sender::new(None);
        let server = tokio::spawn(serve(Serving {
            lane: Arc::clone(&lane),
            rails: rails.clone(),
            manifest: Arc::clone(&manifest),
            cache: cache.clone(),
            counters: Arc::clone(&counters),
            member: member.subscribe(),
        }));
        #[expect(clippy::disallowed_methods, reason = "the shell that owns this plane's clock")]
        let started = Instant::now();
        Ok(Self { manifest, order: config.order, cache, counters, lane, rails, member, server, started })
    }

    /// Where peers reach it.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.lane.local_addr()
    }

    /// Enters a membership and ends the one before; when this returns, nothing of that one speaks any more.
    /// One that is not newer is ignored.
    pub async fn enter(&self, membership: Membership) {
        let fence = membership.fence;
        // Those who own chunks as long as all goes well.
        let owning = membership.peers.iter().map(|peer| peer.role).max();
        let owners = membership.peers.iter().filter(|peer| Some(peer.role) == owning).count();
        let member = Arc::new(Member::new(membership));
        let mut old = None;
        let entered = self.member.send_if_modified(|current| {
            if current.as_ref().is_some_and(|current| current.fence >= fence) {
                return false;
            }
            old = current.replace(member);
            true
        });
        if !entered {
            tracing::warn!(fence, "a membership that is not newer than this plane's is ignored");
            return;
        }
        // Its consumers may start anywhere; what is released is decided by their own positions.
        self.cache.restart(0, owners);
        if let Some(old) = old {
            old.end().await;
        }
    }

    /// Goes on in the membership of `fence` with other peers: `number` says which list is the newer one. Connections to those
    /// that stay are kept; what was asked of those that left fails at once, and is asked of the next owner.
    pub async fn meet(&self, fence: u64, number: u64, peers: Vec<Peer>) {
        let member = self.member.borrow().clone();
        let Some(member) = member.filter(|member| member.fence == fence) else { return };
        let mut closing = JoinSet::new();
        for link in member.meet(number, peers) {
            closing.spawn(async move { link.close().await });
        }
        closing.join_all().await;
    }

    /// Starts to feed one consumer. Slots are filled at once; a trainer may come at any time.
    ///
    /// # Errors
    /// When the membership is another, the ring would be too large, or the socket's name is taken.
    #[expect(clippy::unused_async, reason = "needs the runtime that an async caller has")]
    pub async fn feed(&self, config: FeedConfig) -> Result<Feed, PlaneError> {
        let member = self.member.borrow().clone();
        let current = member.as_ref().map(|member| member.fence);
        let member = member
            .filter(|member| member.fence == config.fence)
            .ok_or(PlaneError::Fenced { asked: config.fence, current })?;
        if config.start_step > config.end_step {
            return Err(PlaneError::Malformed { what: "from a step after the last" });
        }
        if config.consumer.index >= config.consumer.of.get() {
            return Err(PlaneError::Malformed { what: "a consumer beyond their number" });
        }
        let needs = SlotNeeds {
            global_batch: self.order.spec().global_batch,
            consumers: config.consumer.of,
            fields: u32::try_from(self.manifest.fields().len()).unwrap_or(u32::MAX),
            max_sample_bytes: self.manifest.max_sample_bytes(),
        };
        let slot_bytes =
            slot_bytes(needs).ok_or(RingError::TooLarge { slots: config.slots, slot_bytes: u64::MAX })?;
        let listener = Listener::bind(&config.socket)?;
        let (events, taken) = mpsc::channel(EVENTS_MAX);
        let source = self.source(&member);
        let task = FeedTask::new(config, source, self.order.clone(), slot_bytes, events)?;
        let asked = member.fence;
        let current = || self.member.borrow().as_ref().map(|member| member.fence);
        let task = member
            .spawn(task.run(listener))
            .ok_or_else(|| PlaneError::Fenced { asked, current: current() })?;
        Ok(Feed { events: taken, task })
    }

    /// What it has done since its start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.read()
    }

    /// Stops everything and tells the peers.
    pub async fn close(self) {
        let member = self.member.send_replace(None);
        if let Some(member) = member {
            member.end().await;
        }
        self.server.abort();
        self.lane.close().await;
    }
}

/// This host's devices, if the policy wants them and there are some.
fn rails(policy: TransportPolicy, wanted: &DevicesWanted) -> Result<Result<Arc<Rails>, Reason>, PlaneError> {
    if policy == TransportPolicy::Quic {
        return Ok(Err(Reason::NotWanted));
    }
    let opened = Rails::open(wanted);
    let found = opened.as_ref().map(|_| ()).map_err(|absence| absence.words.as_str());
    let Some((_, downgraded)) = lane(policy, found) else {
        return Err(PlaneError::NoRdma {
            reason: opened.err().map(|absence| absence.words).unwrap_or_default(),
        });
    };
    match &opened {
        Ok(rails) => tracing::info!(devices = rails.devices(), "the data plane uses RDMA"),
        Err(_) => {
            let reason = downgraded.as_deref().unwrap_or_default();
            tracing::info!(reason, "the data plane uses QUIC instead of RDMA");
        }
    }
    Ok(opened.map_err(|absence| absence.reason))
}

async fn open_tier(
    config: TierConfig,
    manifest: &Arc<Manifest>,
    counters: &Arc<Counting>,
) -> Result<Tier, PlaneError> {
    let (manifest, counters) = (Arc::clone(manifest), Arc::clone(counters));
    let opened = tokio::task::spawn_blocking(move || Tier::open(&config, manifest, counters));
    Ok(opened.await.map_err(|_| PlaneError::Stopped)??)
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.server.abort();
        if let Some(member) = self.member.send_replace(None) {
            member.stop();
        }
    }
}

#[cfg(test)]
mod tests;
