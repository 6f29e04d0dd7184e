//! Processes that may not lock the memory which devices read and write.

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::super::exchange::{check, digests};
use super::super::trainer::Trainer;
use super::child::{self, Child, Rights};
use super::fed::Fed;
use super::*;

/// What many distributions allow, which is too little for a pool.
const SCARCE: u64 = 64 << 10;
/// Enough for a pool of 16 MiB, and for two chunks besides.
const TIGHT: u64 = 17 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_may_lock_no_memory_is_fed_over_quic() {
    if !has_devices() {
        return;
    }
    if child::role().is_some() {
        return fed_over_quic().await;
    }
    Warnings::listen();
    let (dataset, order) = (small(), small_order());
    let test = "limits::a_worker_that_may_lock_no_memory_is_fed_over_quic";
    let mut child = Child::start(test, "asker", Rights::User { memlock: SCARCE });
    let (authority, mut group) =
        start_alone(&dataset, &order, &[("rxe_a", TransportPolicy::PreferRdma)]).await;
    group.peers.push(child.meet(1, &authority));
    child.enter(1, &group.peers);
    group.enter(0, 1).await;
    let (counters, mentioned): (Counters, Vec<String>) = child.hear();
    child.end();
    println!("cell memlock_asker: {} bytes by QUIC, told {mentioned:?}", counters.quic_in_bytes);
    assert_eq!((counters.rdma_in_bytes, group.planes[0].counters().rdma_lent_bytes), (0, 0));
    assert!(counters.quic_in_bytes > 0);
    let told = mentioned.iter().filter(|reason| reason.contains(Reason::Memlock.word())).count();
    assert_eq!(told, 1, "{mentioned:?}");
    assert_eq!(Warnings::reasons(), Vec::<String>::new());
}

/// The child: refuses what it cannot keep, and is fed all the same where that is allowed.
async fn fed_over_quic() {
    let (dataset, order) = (small(), small_order());
    let required =
        config(Authority::new().identity("worker-1"), &dataset, &order, TransportPolicy::RequireRdma);
    let error = fault::in_full(&Plane::start(with_devices("rxe_b", required)).await.unwrap_err());
    assert!(error.contains("memlock") && error.contains(Reason::Memlock.hint()), "{error}");
    println!("{error}");
    Warnings::listen();
    let group = child::plane(&dataset, &order, "rxe_b").await;
    assert!(matches!(group.planes[0].rails, Err(Reason::Memlock)));
    let config = group.feed_config(0, 1, 1);
    let name = config.socket.clone();
    let fed = digests(group.planes[0].feed(config).await.unwrap());
    let batches = spawn_blocking(move || Trainer::attach(&name).consume());
    let batches = timeout(HANG, batches).await.unwrap().unwrap();
    check(&dataset, &order, &[batches], order.steps_per_epoch());
    fed.await.unwrap();
    assert_eq!(Warnings::reasons(), Vec::<String>::new());
    child::say(&(group.planes[0].counters(), Warnings::mentioned()));
}

/// Its pool is locked, and then there is no more for its chunks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_may_lock_no_more_is_asked_over_quic() {
    if !has_devices() {
        return;
    }
    if child::role().is_some() {
        return child::own(large(), &large_order()).await;
    }
    Warnings::listen();
    let test = "limits::an_owner_that_may_lock_no_more_is_asked_over_quic";
    let mut owner = Child::start(test, "owner", Rights::User { memlock: TIGHT });
    let (authority, mut group) =
        start_alone(large(), &large_order(), &[("rxe_a", TransportPolicy::PreferRdma)]).await;
    group.peers.push(owner.meet(1, &authority));
    serve(&mut group);
    owner.enter(1, &group.peers);
    group.enter(0, 1).await;
    let fed = Fed::begin(group, large()).await;
    fed.grown(20, |counters| counters.quic_in_bytes).await;
    fed.warm().await;
    let (asked, owned) = (fed.asker().counters(), owner.counters());
    let (reasons, batches) = (Warnings::reasons(), fed.end().await);
    owner.end();
    println!(
        "cell memlock_owner: {} bytes lent, {} read by RDMA and {} by QUIC, {batches} batches, reasons {reasons:?}",
        owned.rdma_lent_bytes, asked.rdma_in_bytes, asked.quic_in_bytes
    );
    assert!(owned.rdma_lent_bytes > 0, "the pool is no hindrance");
    // While some of its chunks come and others do not, it may also be found too slow.
    let are_known = reasons.iter().all(|reason| ["memlock", "lossy"].contains(&reason.as_str()));
    assert!(are_known && reasons.iter().any(|reason| reason == "memlock"), "{reasons:?}");
}
