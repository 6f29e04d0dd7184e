//! Whole planes in one process: from files on disk, over QUIC on 127.0.0.1, through the socket into a test trainer.

mod exchange;
mod handoff;
mod mtu;
mod servers;
mod silence;
#[cfg(feature = "rdma")]
mod sriov;
mod trainer;
#[cfg(feature = "rdma")]
mod verbs;

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::runtime::Handle;

use super::*;
use crate::order::{OrderSpec, Remainder, Shuffle};
use crate::testing::{Authority, Dataset, Size};
use crate::transport::quic::tls::fingerprint;

/// Nothing in these tests takes so long unless it hangs.
pub(super) const HANG: Duration = Duration::from_secs(60);

pub(super) fn order(dataset: &Dataset, global_batch: u32, remainder: Remainder) -> Order {
    let spec = OrderSpec {
        seed: 11,
        global_batch: NonZeroU32::new(global_batch).unwrap(),
        shuffle: Shuffle::Window { chunks: NonZeroU32::new(4).unwrap() },
        remainder,
    };
    Order::new(&dataset.manifest, spec).unwrap()
}

/// Some planes of one job, all entered into fence 1.
pub(super) struct Group {
    pub(super) planes: Vec<Plane>,
    pub(super) peers: Vec<Peer>,
    pub(super) order: Order,
    /// Planes with consumers; the others are servers.
    pub(super) workers: u32,
}

impl Group {
    pub(super) async fn start(dataset: &Dataset, order: &Order, of: u32, cache_bytes: u64) -> Self {
        Self::start_apart(dataset, order, of, cache_bytes, &Handle::current()).await
    }

    /// As [`Group::start`], with servers after the workers.
    pub(super) async fn start_with_servers(
        dataset: &Dataset,
        order: &Order,
        workers: u32,
        servers: u32,
        cache_bytes: u64,
    ) -> Self {
        let runtime = Handle::current();
        let mut group = Self::make(dataset, order, workers + servers, cache_bytes, &runtime).await;
        group.workers = workers;
        for peer in group.peers.iter_mut().filter(|peer| peer.id.0 >= workers) {
            peer.role = Role::Server;
        }
        for id in 0..workers + servers {
            group.enter(id, 1).await;
        }
        group
    }

    /// As [`Group::start`], but the last plane runs on a runtime of its own.
    pub(super) async fn start_apart(
        dataset: &Dataset,
        order: &Order,
        of: u32,
        cache_bytes: u64,
        apart: &Handle,
    ) -> Self {
        let group = Self::make(dataset, order, of, cache_bytes, apart).await;
        for id in 0..of {
            group.enter(id, 1).await;
        }
        group
    }

    async fn make(dataset: &Dataset, order: &Order, of: u32, cache_bytes: u64, apart: &Handle) -> Self {
        let authority = Authority::new();
        let (mut planes, mut peers) = (Vec::new(), Vec::new());
        for id in 0..of {
            let server_name = format!("worker-{id}");
            let identity = authority.identity(&server_name);
            let fingerprint = fingerprint(&identity.cert_der);
            let plane = Plane::start(PlaneConfig {
                identity,
                bind: [127, 0, 0, 1].into(),
                manifest: Arc::clone(&dataset.manifest),
                store: dataset.store(),
                order: order.clone(),
                cache_bytes,
                tier: None,
                transport: TransportPolicy::PreferRdma,
                // Who asks need not know how the owner holds back.
                congestion: if id % 2 == 0 { Congestion::Fixed } else { Congestion::Cubic },
                devices: DevicesWanted::default(),
            });
            let runtime = if id + 1 == of { apart.clone() } else { Handle::current() };
            let plane = runtime.spawn(plane).await.unwrap().unwrap();
            let (id, addr, role) = (PeerId(id), plane.local_addr(), Role::Worker);
            peers.push(Peer { id, addr, server_name, fingerprint, role });
            planes.push(plane);
        }
        Self { planes, peers, order: order.clone(), workers: of }
    }

    pub(super) async fn enter(&self, id: u32, fence: u64) {
        let peers = self.peers.clone();
        self.planes[usize::try_from(id).unwrap()]
            .enter(Membership { fence, me: PeerId(id), peers, roster: 0 })
            .await;
    }

    pub(super) fn feed_config(&self, id: u32, fence: u64, epochs: u64) -> FeedConfig {
        let of = NonZeroU32::new(self.workers).unwrap();
        FeedConfig {
            consumer: Consumer { index: id, of },
            start_step: 0,
            end_step: epochs * self.order.steps_per_epoch(),
            slots: 3,
            socket: socket_name(),
            fence,
            hello: serde_json::json!({ "extra": "word" }),
        }
    }
}

/// A name that no other test uses.
pub(super) fn socket_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("slipway-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(super) fn small() -> Dataset {
    Dataset::records(Size { samples: 203, sample_bytes: 700, samples_per_chunk: 8, chunks_per_shard: 5 })
}
