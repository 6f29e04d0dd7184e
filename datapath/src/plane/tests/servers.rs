//! Servers: planes without consumers, which own the chunks while one of them is there.

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::exchange::{check, digests};
use super::trainer::Trainer;
use super::*;

/// Everything fits, so that whatever is read twice is read by two owners.
const CACHE_BYTES: u64 = 1 << 20;

/// Consumes two epochs with two workers; `then` runs after both have begun.
async fn consume(group: &Group, dataset: &Dataset, then: impl AsyncFnOnce()) {
    let (mut events, mut trainers) = (Vec::new(), Vec::new());
    for id in 0..group.workers {
        let config = group.feed_config(id, 1, 2);
        let name = config.socket.clone();
        events.push(digests(group.planes[usize::try_from(id).unwrap()].feed(config).await.unwrap()));
        trainers.push(spawn_blocking(move || Trainer::attach(&name).consume()));
    }
    then().await;
    let mut batches = Vec::new();
    for trainer in trainers {
        batches.push(timeout(HANG, trainer).await.unwrap().unwrap());
    }
    check(dataset, &group.order, &batches, 2 * group.order.steps_per_epoch());
    for events in events {
        timeout(HANG, events).await.unwrap().unwrap();
    }
}

fn store_reads(group: &Group) -> (u64, u64) {
    let workers = usize::try_from(group.workers).unwrap();
    let sum = |planes: &[Plane]| planes.iter().map(|plane| plane.counters().store_reads).sum();
    (sum(&group.planes[..workers]), sum(&group.planes[workers..]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_servers_read_the_store_and_they_read_ahead() {
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Pad);
    let group = Group::start_with_servers(&dataset, &order, 2, 2, CACHE_BYTES).await;
    let chunks = u64::try_from(dataset.manifest.chunks().len()).unwrap();
    let end = 2 * order.steps_per_epoch();
    for server in &group.planes[2..] {
        server.read_ahead(1, 0, end).await.unwrap();
        assert!(server.read_ahead(2, 0, end).await.is_err(), "not of another membership");
    }
    // Nobody has asked for anything yet.
    let read = async {
        while store_reads(&group).1 < chunks {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANG, read).await.unwrap();
    consume(&group, &dataset, async || {}).await;
    assert_eq!(store_reads(&group), (0, chunks), "each chunk is read once, by servers");
    let counters: Vec<Counters> = group.planes.iter().map(Plane::counters).collect();
    assert!(counters[..2].iter().all(|worker| worker.local_bytes == 0 && worker.quic_in_bytes > 0));
    assert!(counters[2..].iter().all(|server| server.quic_out_bytes > 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_is_replaced_by_the_other_and_the_last_one_by_the_workers() {
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Pad);
    let mut group = Group::start_with_servers(&dataset, &order, 2, 2, CACHE_BYTES).await;
    let chunks = u64::try_from(dataset.manifest.chunks().len()).unwrap();
    let last = group.planes.pop().unwrap();
    // Nobody says so: it is found out by asking.
    drop(last);
    consume(&group, &dataset, async || {}).await;
    assert_eq!(store_reads(&group), (0, chunks), "the other server owns all of them");

    let mut peers = group.peers.clone();
    peers.truncate(2);
    let server = group.planes.pop().unwrap();
    server.close().await;
    for plane in &group.planes {
        plane.meet(1, 1, peers.clone()).await;
    }
    consume(&group, &dataset, async || {}).await;
    assert_eq!(store_reads(&group).0, chunks, "the workers own them, each chunk once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_later_takes_the_chunks_over() {
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Pad);
    let group = Group::start_with_servers(&dataset, &order, 2, 1, CACHE_BYTES).await;
    let chunks = u64::try_from(dataset.manifest.chunks().len()).unwrap();
    let (mut without, all) = (group.peers.clone(), group.peers.clone());
    without.truncate(2);
    for plane in &group.planes[..2] {
        plane.meet(1, 1, without.clone()).await;
    }
    consume(&group, &dataset, async || {
        for plane in &group.planes[..2] {
            plane.meet(1, 2, all.clone()).await;
            plane.meet(1, 1, Vec::new()).await;
            plane.meet(7, 9, Vec::new()).await;
        }
    })
    .await;
    let before = store_reads(&group).0;
    consume(&group, &dataset, async || {}).await;
    assert_eq!(store_reads(&group), (before, chunks), "workers read nothing any more");
}
