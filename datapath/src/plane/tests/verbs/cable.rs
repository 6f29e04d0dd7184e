//! What happens to the cable and to the addresses on it.

use tokio::time::{sleep, timeout};

use super::cell::{Cell, beside, seconds};
use super::fabric::{Mended, lift_va, move_va, system};
use super::fed::Fed;
use super::*;

/// Within 0.2 s a link that is down is to be gone around. Where the processors are emulated by some that have other things to do,
/// more says nothing of this program; the figure itself is printed.
const TOLD_MAX: Duration = Duration::from_secs(1);
/// The same of 1.5 s for what nobody tells.
const SILENT_MAX: Duration = Duration::from_secs(3);
/// What a slow lane may take until it is given up: rates are known after a while only.
const SLOW_MAX: Duration = Duration::from_secs(5);
/// A mended lane is back by then: the longest rest, and the probes after it.
const BACK_MAX: Duration = Duration::from_secs(40);
/// How often a link flaps, and how long it stays up or down.
const FLAPS: u32 = 5;
const FLAP: Duration = Duration::from_millis(500);

/// A fault that is told at once, and mended by putting va back.
const TOLD: Cell = Cell {
    name: "",
    breaks: || {},
    heals: lift_va,
    reasons: &[],
    first_byte_max: TOLD_MAX,
    back_max: BACK_MAX,
    is_compared: true,
    may_stay: false,
};

/// A fault in what leaves vb, where whatever is read comes from.
const NETEM: Cell = Cell {
    heals: || system("tc qdisc del dev vb root"),
    reasons: &["peer_dead"],
    first_byte_max: SILENT_MAX,
    ..TOLD
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_goes_down_in_mid_stream_loses_nothing() {
    if has_devices() {
        let breaks = || system("ip link set va down");
        Cell { name: "link_down", breaks, reasons: &["port_down"], ..TOLD }.run().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_goes_is_named() {
    if has_devices() {
        let breaks = || system("ip addr flush dev va");
        let reasons = &["gid_missing"];
        Cell { name: "gid_removed", breaks, reasons, first_byte_max: SILENT_MAX, is_compared: false, ..TOLD }
            .run()
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_come_too_late_land_nowhere() {
    if has_devices() {
        let breaks = || system("tc qdisc add dev vb root netem delay 3s");
        // What waits for seconds is slow, before it is given up.
        let reasons = &["peer_dead", "lossy"];
        Cell { name: "delay_3s", breaks, reasons, is_compared: false, ..NETEM }.run().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_gone_around() {
    if has_devices() {
        let breaks = || system("tc qdisc add dev vb root netem loss 100%");
        Cell { name: "loss_100", breaks, ..NETEM }.run().await;
    }
}

/// Losses. Where one read has too many of them in a row, its device gives up.
const LOSSY: Cell = Cell { reasons: &["lossy", "peer_dead"], first_byte_max: SLOW_MAX, ..NETEM };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fabric_that_loses_one_in_a_hundred_slows_nobody_down() {
    if has_devices() {
        let breaks = || system("tc qdisc add dev vb root netem loss 1%");
        Cell { name: "loss_1", breaks, is_compared: false, may_stay: true, ..LOSSY }.run().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fabric_that_loses_one_in_twenty_slows_nobody_down() {
    if has_devices() {
        let breaks = || system("tc qdisc add dev vb root netem loss 5%");
        Cell { name: "loss_5", breaks, is_compared: false, may_stay: true, ..LOSSY }.run().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fabric_that_loses_one_in_three_is_gone_around() {
    if has_devices() {
        let breaks = || system("tc qdisc add dev vb root netem loss 33%");
        Cell { name: "loss_33", breaks, ..LOSSY }.run().await;
    }
}

/// Each time it goes down costs no more than the first, and when it stays up the lane is used again, soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_flaps_is_left_alone_until_it_stays_up() {
    if !has_devices() {
        return;
    }
    let group = start_served(TransportPolicy::PreferRdma).await;
    let fed = Fed::begin(group, large()).await;
    fed.ready().await;
    let mended = Mended;
    let first = fed.growth(|counters| counters.quic_in_bytes);
    let (begun, down) = beside(|| system("ip link set va down")).await;
    let mut up = down;
    let mut gaps = Vec::new();
    for flap in 0..FLAPS {
        if flap > 0 {
            beside(|| system("ip link set va down")).await;
        }
        sleep(FLAP).await;
        up = beside(lift_va).await.1;
        if flap + 1 < FLAPS {
            sleep(FLAP).await;
        }
        gaps.push(fed.longest_gap());
    }
    let first = timeout(Duration::ZERO, first).await.expect("QUIC has brought something").unwrap();
    let alone = timeout(BACK_MAX, fed.settled()).await.expect("the lane is used again");
    let (longest, reasons, batches) = (gaps.iter().max().unwrap(), Warnings::reasons(), fed.end().await);
    drop(mended);
    let first = seconds(down, first);
    println!(
        "cell flapping: command {} ms, first QUIC byte {:.0} ms after, alone after {:.2} s, longest gap {:.2} s of {gaps:?}, {batches} batches, reasons {reasons:?}",
        (down - begun).as_millis(),
        first * 1e3,
        (alone - up).as_secs_f64(),
        longest.as_secs_f64()
    );
    assert!(first < TOLD_MAX.as_secs_f64());
    assert!(*longest < SILENT_MAX, "{gaps:?}");
    // What was just brought up, or is being brought up, may end with it.
    let are_known = reasons
        .iter()
        .all(|reason| ["port_down", "peer_dead", "flushed", "gid_wrong"].contains(&reason.as_str()));
    assert!(are_known && reasons[0] == "port_down", "{reasons:?}");
}

/// Changes something for good: the lane is left, and made again as it is now. `undo` must disturb nobody, where there is one.
async fn follow(name: &str, change: fn(), undo: Option<fn()>) -> Vec<String> {
    let group = start_served(TransportPolicy::PreferRdma).await;
    let fed = Fed::begin(group, large()).await;
    fed.ready().await;
    let mended = Mended;
    let first = fed.growth(|counters| counters.quic_in_bytes);
    let (begun, broken) = beside(change).await;
    let first = timeout(2 * SILENT_MAX, first).await.expect("a byte comes over QUIC").unwrap();
    let alone = timeout(BACK_MAX, fed.settled()).await.expect("the lane is used again");
    let longest = fed.longest_gap();
    if let Some(undo) = undo {
        let before = fed.asker().counters();
        beside(undo).await;
        fed.grown(20, |counters| counters.rdma_in_bytes).await;
        assert_eq!(fed.asker().counters().quic_in_bytes, before.quic_in_bytes, "{name}: nobody is disturbed");
    }
    let (reasons, batches) = (Warnings::reasons(), fed.end().await);
    drop(mended);
    let first = seconds(broken, first);
    println!(
        "cell {name}: command {} ms, first QUIC byte {:.0} ms after, alone after {:.2} s (not mended), longest gap {:.2} s, {batches} batches, reasons {reasons:?}",
        (broken - begun).as_millis(),
        first * 1e3,
        (alone - broken).as_secs_f64(),
        longest.as_secs_f64()
    );
    assert!(first < SILENT_MAX.as_secs_f64());
    reasons
}

/// Packets that an end of the cable does not take are lost, until both ends agree on smaller ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mtu_that_shrinks_in_mid_stream_is_followed() {
    if has_devices() {
        let (change, undo) = (|| system("ip link set vb mtu 1500"), || system("ip link set vb mtu 9000"));
        let reasons = follow("mtu_shrinks", change, Some(undo)).await;
        let are_known = reasons.iter().all(|reason| ["peer_dead", "lossy"].contains(&reason.as_str()));
        assert!(are_known && !reasons.is_empty(), "{reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_changes_is_named_and_followed() {
    if has_devices() {
        let reasons = follow("gid_changed", move_va, None).await;
        // Between the two addresses there may be a look at none.
        assert!(["gid_changed", "gid_missing"].contains(&reasons[0].as_str()), "{reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_of_unequal_mtu_agree_on_the_smaller() {
    if !has_devices() {
        return;
    }
    Warnings::listen();
    let mended = Mended;
    system("ip link set vb mtu 1500");
    let group = start_served(TransportPolicy::PreferRdma).await;
    let fed = Fed::begin(group, large()).await;
    fed.warm().await;
    let rdma = fed.rate(Duration::from_millis(500), |counters| counters.rdma_in_bytes).await;
    assert_eq!((fed.asker().counters().quic_in_bytes, Warnings::reasons()), (0, Vec::new()));
    let batches = fed.end().await;
    drop(mended);
    println!("cell mtu_unequal: RDMA {:.1} MB/s, {batches} batches, no byte over QUIC", rdma / 1e6);
}
