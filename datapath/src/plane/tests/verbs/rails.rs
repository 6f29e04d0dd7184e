//! Two devices on each side, each with a cable of its own: a request is spread over both, and what one of them loses the other takes.

use tokio::time::timeout;

use super::cell::beside;
use super::fabric::{Mended, lift_va, second_cable, sent_by, system};
use super::fed::Fed;
use super::*;

const BOTH: [(&str, TransportPolicy); 2] =
    [("rxe_a,rxe_c", TransportPolicy::PreferRdma), ("rxe_b,rxe_d", TransportPolicy::PreferRdma)];

/// Planes with two rails each, of which the first feeds a trainer.
async fn begin() -> Fed {
    second_cable();
    let (_, mut group) = start_alone(large(), &large_order(), &BOTH).await;
    serve(&mut group);
    for id in 0..2 {
        group.enter(id, 1).await;
    }
    let fed = Fed::begin(group, large()).await;
    fed.ready().await;
    fed
}

/// Bytes that the owner's ends of both cables have sent in this time.
async fn by_cable(fed: &Fed, window: Duration) -> [u64; 2] {
    let before = ["vb", "vd"].map(sent_by);
    fed.rate(window, |counters| counters.rdma_in_bytes).await;
    let after = ["vb", "vd"].map(sent_by);
    [after[0] - before[0], after[1] - before[1]]
}

fn carries(bytes: [u64; 2]) -> [bool; 2] {
    bytes.map(|own| own * 4 > bytes.iter().sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rails_share_the_load_and_one_takes_over_for_the_other() {
    const WINDOW: Duration = Duration::from_millis(1500);
    const BACK_MAX: Duration = Duration::from_secs(40);
    if !has_devices() {
        return;
    }
    let fed = begin().await;
    let together = by_cable(&fed, WINDOW).await;
    assert_eq!(carries(together), [true, true], "{together:?}");
    assert_eq!((fed.asker().counters().quic_in_bytes, Warnings::reasons()), (0, Vec::new()));

    let mended = Mended;
    beside(|| system("ip link set va down")).await;
    // What was on its way comes over QUIC, and nothing else does.
    timeout(HANG, fed.settled()).await.expect("one rail carries all");
    let by_quic = fed.asker().counters().quic_in_bytes;
    fed.longest_gap();
    let left = by_cable(&fed, WINDOW).await;
    assert_eq!(carries(left), [false, true], "{left:?}");
    assert_eq!(fed.asker().counters().quic_in_bytes, by_quic, "the other rail carries all");

    beside(lift_va).await;
    let mut back = [0; 2];
    let shared_again = async {
        while carries(back) != [true, true] {
            back = by_cable(&fed, WINDOW / 3).await;
        }
    };
    timeout(BACK_MAX, shared_again).await.expect("both are used again");
    let (reasons, counters) = (Warnings::reasons(), fed.asker().counters());
    let batches = fed.end().await;
    drop(mended);
    println!(
        "cell two_rails: bytes by cable {together:?}, one down {left:?} ({by_quic} bytes by QUIC in between), again {back:?}, {batches} batches, reasons {reasons:?}"
    );
    assert_eq!(reasons, ["port_down"]);
    assert_eq!((counters.rdma_failures, counters.rdma_returns), (1, 1));
}
