//! Owners in processes of their own, which are killed or stopped. A second owner is there for what they would have answered.

use tokio::time::{Instant, sleep};

use super::cell::seconds;
use super::child::{self, Child, Rights};
use super::fed::Fed;
use super::*;
use crate::transport::quic::client::CONNECT_TIMEOUT;
use crate::transport::quic::tuning::IDLE_TIMEOUT;

/// What a batch may wait at the most: until a connection is known to be dead and no new one comes up, and for emulated processors.
const WAIT_MAX: Duration =
    IDLE_TIMEOUT.saturating_add(CONNECT_TIMEOUT).saturating_add(Duration::from_secs(1));
/// For how long it is looked at.
const WHILE_SILENT: Duration = Duration::from_secs(4);

/// The first plane on rxe_a and the second on rxe_b, in this process; the third on rxe_b in another one.
async fn three(test: &str) -> (Fed, Child) {
    let mut child = Child::start(test, "owner", Rights::Root);
    let (authority, mut group) = start_alone(
        large(),
        &large_order(),
        &[("rxe_a", TransportPolicy::PreferRdma), ("rxe_b", TransportPolicy::PreferRdma)],
    )
    .await;
    group.peers.push(child.meet(2, &authority));
    serve(&mut group);
    child.enter(2, &group.peers);
    for id in 0..2 {
        group.enter(id, 1).await;
    }
    let fed = Fed::begin(group, large()).await;
    fed.ready().await;
    assert!(child.counters().rdma_lent_bytes > 0, "some chunks are the child's");
    (fed, child)
}

/// The longest time without a batch from now on, and the rate of all bytes after it.
async fn silence(fed: &Fed) -> (Duration, f64) {
    sleep(WHILE_SILENT / 2).await;
    let all = |counters: Counters| counters.rdma_in_bytes + counters.quic_in_bytes + counters.local_bytes;
    let rate = fed.rate(WHILE_SILENT / 2, all).await;
    (fed.longest_gap(), rate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_killed_costs_one_bounded_wait() {
    if !has_devices() {
        return;
    }
    if child::role().is_some() {
        return child::own(large(), &large_order()).await;
    }
    let (fed, mut owner) = three("peers::an_owner_that_is_killed_costs_one_bounded_wait").await;
    let before = fed.asker().counters();
    let begun = Instant::now();
    owner.kill();
    let killed = Instant::now();
    let (longest, rate) = silence(&fed).await;
    fed.grown(20, |counters| counters.rdma_in_bytes).await;
    let after = fed.asker().counters();
    let (reasons, batches) = (Warnings::reasons(), fed.end().await);
    println!(
        "cell peer_killed: command {:.0} ms, longest gap {:.2} s, {:.1} MB/s afterwards from the others, {} bytes by QUIC, {batches} batches, reasons {reasons:?}",
        seconds(begun, killed) * 1e3,
        longest.as_secs_f64(),
        rate / 1e6,
        after.quic_in_bytes - before.quic_in_bytes
    );
    assert!(longest < WAIT_MAX, "{longest:?}");
    // Whoever's read was cut off says so; what the connection's end cut off is no failure of the lane.
    assert!(reasons.iter().all(|reason| reason == "peer_dead"), "{reasons:?}");
}

/// Its device answers for it, so what it has lent can be read; but it lends nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_stopped_is_gone_around_and_used_again() {
    if !has_devices() {
        return;
    }
    if child::role().is_some() {
        return child::own(large(), &large_order()).await;
    }
    let (fed, mut owner) = three("peers::an_owner_that_is_stopped_is_gone_around_and_used_again").await;
    let before = fed.asker().counters();
    let begun = Instant::now();
    owner.signal("STOP");
    let stopped = Instant::now();
    let (longest, rate) = silence(&fed).await;
    owner.signal("CONT");
    let goes_on = Instant::now();
    let lent = owner.counters().rdma_lent_bytes;
    while owner.counters().rdma_lent_bytes == lent {
        assert!(goes_on.elapsed() < HANG, "it is not used again: {:?}", Warnings::reasons());
        sleep(Duration::from_millis(10)).await;
    }
    let again = goes_on.elapsed();
    let after = fed.longest_gap();
    let counters = fed.asker().counters();
    let (reasons, batches) = (Warnings::reasons(), fed.end().await);
    println!(
        "cell peer_stopped: command {:.0} ms, longest gap {:.2} s, {:.1} MB/s meanwhile from the others, used again after {:.2} s (longest gap {:.2} s), {} bytes by QUIC, {batches} batches, reasons {reasons:?}",
        seconds(begun, stopped) * 1e3,
        longest.as_secs_f64(),
        rate / 1e6,
        again.as_secs_f64(),
        after.as_secs_f64(),
        counters.quic_in_bytes - before.quic_in_bytes
    );
    assert!(longest < WAIT_MAX, "{longest:?}");
    assert!(reasons.iter().all(|reason| reason == "peer_dead"), "{reasons:?}");
}
