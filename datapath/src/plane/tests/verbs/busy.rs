//! More requests at once than a queue pair has room for.

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::super::exchange::{check, digests};
use super::super::trainer::Trainer;
use super::*;
use crate::dataset::{ChunkId, SampleId};
use crate::transport::{Part, Piece};

/// Consumers of each plane, each with so many batches under way that together they could fill a send queue several times over.
const CONSUMERS: u32 = 5;
const SLOTS: u32 = 16;
const EPOCHS: u64 = 3;
/// Between two questions before that.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks for a sample until it comes over RDMA: whatever is asked later finds the lane up.
async fn meet(plane: &Plane, peer: PeerId) {
    let (lane, manifest) = (plane.lane(peer).unwrap(), &large().manifest);
    let mut sample = vec![0; large().samples[0].len()];
    let met = async {
        while plane.counters().rdma_in_bytes == 0 {
            let ends_with = Some(manifest.sample_crc32c(SampleId(0)));
            let piece = Piece { offset: 0, target: &mut sample, sample: SampleId(0), ends_with };
            lane.fetch(&mut [Part::new(ChunkId(0), 0, vec![piece])]).await;
            sleep(PAUSE).await;
        }
    };
    timeout(HANG, met).await.expect("the lane comes up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_a_queue_takes_wait_and_break_nothing() {
    if !has_devices() {
        return;
    }
    let (dataset, order) = (large(), large_order());
    let mut group = start(dataset, &order, [TransportPolicy::PreferRdma; 2]).await;
    meet(&group.planes[0], PeerId(1)).await;
    meet(&group.planes[1], PeerId(0)).await;
    Warnings::listen();
    let before = sum(&group);
    group.workers = 2 * CONSUMERS;
    let (mut feeds, mut trainers) = (Vec::new(), Vec::new());
    for consumer in 0..2 * CONSUMERS {
        let mut config = group.feed_config(consumer, 1, EPOCHS);
        config.slots = SLOTS;
        let name = config.socket.clone();
        let plane = &group.planes[usize::try_from(consumer / CONSUMERS).unwrap()];
        feeds.push(digests(plane.feed(config).await.unwrap()));
        trainers.push(spawn_blocking(move || Trainer::attach(&name).consume()));
    }
    let mut batches = Vec::new();
    for trainer in trainers {
        batches.push(timeout(HANG, trainer).await.expect("the trainer ends").unwrap());
    }
    check(dataset, &order, &batches, EPOCHS * order.steps_per_epoch());
    for feed in feeds {
        timeout(HANG, feed).await.expect("the feed ends").unwrap();
    }
    let counters = sum(&group);
    let all: Vec<_> = group.planes.iter().map(|plane| plane.rails.clone().unwrap()).collect();
    for plane in group.planes {
        timeout(HANG, plane.close()).await.expect("a plane closes");
    }
    println!(
        "cell queue_full: {} consumers, {} bytes by RDMA, {} by QUIC, {} asked again, reasons {:?}",
        2 * CONSUMERS,
        counters.rdma_in_bytes - before.rdma_in_bytes,
        counters.quic_in_bytes - before.quic_in_bytes,
        counters.retries - before.retries,
        Warnings::reasons()
    );
    assert_eq!((counters.quic_in_bytes, Warnings::reasons()), (before.quic_in_bytes, Vec::new()));
    assert!(counters.rdma_in_bytes > before.rdma_in_bytes);
    assert!(all.iter().all(|rails| rails.is_idle()), "no piece is missing");
}
