//! Planes that exchange over verbs: two in one process, each with its device, in the emulated machine (`tests/run rdma`, which sets
//! `SLIPWAY_RDMA=1`). Their QUIC connections go over 127.0.0.1, so that it is only the lane that breaks with the cable.
//!
//! One test at a time: what one does to the cable all of them feel.

use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::exchange::{check, digests, sum};
use super::trainer::{Content, Trainer};
use super::*;
use crate::fault;

mod busy;
mod cable;
mod cell;
mod child;
mod devices;
pub(super) mod fabric;
mod fed;
mod limits;
mod peers;
mod rails;
pub(super) mod warnings;

use fabric::on_cable;
use warnings::Warnings;

/// Is set for this program started again, where something is hidden from it.
const HIDDEN: &str = "SLIPWAY_VERBS_HIDDEN";

fn has_devices() -> bool {
    let is_there = variable("SLIPWAY_RDMA").as_deref() == Some("1");
    if !is_there {
        println!("not run: SLIPWAY_RDMA=1 is not set");
    }
    is_there
}

#[expect(clippy::disallowed_methods, reason = "the switches of a test")]
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Planes on these devices, which have entered nothing yet. More peers may come besides.
async fn start_alone(dataset: &Dataset, order: &Order, on: &[(&str, TransportPolicy)]) -> (Authority, Group) {
    let authority = Authority::new();
    let (mut planes, mut peers) = (Vec::new(), Vec::new());
    for (id, &(device, policy)) in (0..).zip(on) {
        let server_name = format!("worker-{id}");
        let identity = authority.identity(&server_name);
        let fingerprint = fingerprint(&identity.cert_der);
        let plane =
            Plane::start(with_devices(device, config(identity, dataset, order, policy))).await.unwrap();
        let (id, addr) = (PeerId(id), plane.local_addr());
        peers.push(Peer { id, addr, server_name, fingerprint, role: Role::Worker });
        planes.push(plane);
    }
    let workers = u32::try_from(planes.len()).unwrap();
    (authority, Group { planes, peers, order: order.clone(), workers })
}

/// Makes servers of all but the first: then all of its chunks are theirs, and every byte has to come by some lane.
fn serve(group: &mut Group) {
    group.peers[1..].iter_mut().for_each(|peer| peer.role = Role::Server);
}

/// As [`start`], with [`large`], and the second one serves.
async fn start_served(policy: TransportPolicy) -> Group {
    let on = [("rxe_a", policy), ("rxe_b", policy)];
    let (_, mut group) = start_alone(large(), &large_order(), &on).await;
    serve(&mut group);
    for id in 0..2 {
        group.enter(id, 1).await;
    }
    group
}

/// Two planes, the first on rxe_a, the second on rxe_b.
async fn start(dataset: &Dataset, order: &Order, policies: [TransportPolicy; 2]) -> Group {
    let on = [("rxe_a", policies[0]), ("rxe_b", policies[1])];
    let (_, group) = start_alone(dataset, order, &on).await;
    for id in 0..2 {
        group.enter(id, 1).await;
    }
    group
}

/// With these devices, parted by commas, and no others.
fn with_devices(devices: &str, mut config: PlaneConfig) -> PlaneConfig {
    config.devices.names = Some(devices.split(',').map(str::to_owned).collect());
    config
}

pub(super) fn config(
    identity: Identity,
    dataset: &Dataset,
    order: &Order,
    transport: TransportPolicy,
) -> PlaneConfig {
    PlaneConfig {
        identity,
        bind: [127, 0, 0, 1].into(),
        manifest: Arc::clone(&dataset.manifest),
        store: dataset.store(),
        order: order.clone(),
        cache_bytes: 64 << 20,
        tier: None,
        transport,
        congestion: Congestion::Fixed,
        devices: DevicesWanted::default(),
    }
}

/// Samples of several packets, chunks of several pieces. Made once, as an emulated processor takes its time for that.
fn large() -> &'static Dataset {
    static LARGE: OnceLock<Dataset> = OnceLock::new();
    let size = Size { samples: 80, sample_bytes: 50_000, samples_per_chunk: 8, chunks_per_shard: 5 };
    LARGE.get_or_init(|| Dataset::records(size))
}

fn large_order() -> Order {
    order(large(), 10, Remainder::Drop)
}

fn small_order() -> Order {
    order(&small(), 10, Remainder::Drop)
}

/// One epoch to two trainers: the digests, and what was counted.
async fn epoch(
    dataset: &Dataset,
    order: &Order,
    policy: TransportPolicy,
) -> (Vec<BTreeMap<u64, OrderDigest>>, Counters) {
    let group = start(dataset, order, [policy; 2]).await;
    let (mut trainers, mut feeds) = (Vec::new(), Vec::new());
    for id in 0..2 {
        let config = group.feed_config(id, 1, 1);
        let name = config.socket.clone();
        feeds.push(digests(group.planes[usize::try_from(id).unwrap()].feed(config).await.unwrap()));
        trainers.push(spawn_blocking(move || Trainer::attach(&name).consume()));
    }
    let mut batches: Vec<Vec<Content>> = Vec::new();
    for trainer in trainers {
        batches.push(timeout(HANG, trainer).await.expect("the trainer ends").unwrap());
    }
    check(dataset, order, &batches, order.steps_per_epoch());
    let mut all = Vec::new();
    for feed in feeds {
        all.push(feed.await.unwrap());
    }
    let counters = sum(&group);
    for plane in group.planes {
        timeout(HANG, plane.close()).await.expect("a plane closes");
    }
    (all, counters)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_samples_come_by_verbs_as_over_quic() {
    if !has_devices() {
        return;
    }
    let size = Size { samples: 200, sample_bytes: 900, samples_per_chunk: 8, chunks_per_shard: 5 };
    for dataset in [&small(), large(), &Dataset::fields(size)] {
        let order = order(dataset, 10, Remainder::Pad);
        let (expected, by_quic) = epoch(dataset, &order, TransportPolicy::Quic).await;
        let before = on_cable();
        let (digests, by_verbs) = epoch(dataset, &order, TransportPolicy::RequireRdma).await;
        let on_cable = on_cable() - before;
        assert_eq!(digests, expected, "the digest does not depend on the lane");
        assert_eq!((by_quic.rdma_in_bytes, by_quic.rdma_lent_bytes), (0, 0));
        assert_eq!((by_verbs.quic_in_bytes, by_verbs.quic_out_bytes), (0, 0), "{by_verbs:?}");
        assert_eq!(by_verbs.rdma_in_bytes, by_quic.quic_in_bytes);
        assert!(by_verbs.rdma_in_bytes > 0 && by_verbs.rdma_lent_bytes > 0);
        assert!(on_cable > by_verbs.rdma_in_bytes, "{on_cable} bytes on the cable: {by_verbs:?}");
        println!(
            "by verbs {} sample bytes, by QUIC none; {on_cable} bytes on the cable",
            by_verbs.rdma_in_bytes
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_without_the_lane_is_asked_over_quic() {
    if !has_devices() {
        return;
    }
    Warnings::listen();
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Drop);
    let group = start(&dataset, &order, [TransportPolicy::PreferRdma, TransportPolicy::Quic]).await;
    let config = group.feed_config(0, 1, 1);
    let name = config.socket.clone();
    let fed = digests(group.planes[0].feed(config).await.unwrap());
    let mine = spawn_blocking(move || Trainer::attach(&name).consume());
    timeout(HANG, mine).await.unwrap().unwrap();
    fed.await.unwrap();
    assert_eq!(Warnings::reasons(), ["not_wanted"]);
    let counters = group.planes[0].counters();
    assert_eq!((counters.rdma_in_bytes, counters.retries), (0, 0));
    assert!(counters.quic_in_bytes > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_told_and_not_hidden_by_the_other_lane() {
    if !has_devices() {
        return;
    }
    Warnings::listen();
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Drop);
    let group = start(&dataset, &order, [TransportPolicy::PreferRdma; 2]).await;
    group.planes[1].rails.as_ref().unwrap().is_lying.store(true, Ordering::Release);
    let mut feed = group.planes[0].feed(group.feed_config(0, 1, 1)).await.unwrap();
    let FeedEvent::Fault(fault) = timeout(HANG, feed.events.recv()).await.unwrap().unwrap() else { panic!() };
    println!("{fault:?}");
    assert_eq!(fault.reason, fault::LANE_BROKEN);
    assert!(fault.message.contains(Reason::RemoteAccess.word()), "{}", fault.message);
    assert_eq!(Warnings::reasons(), ["remote_access"]);
    let counters = group.planes[0].counters();
    assert_eq!((counters.rdma_in_bytes, counters.quic_in_bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requirement_is_refused_where_the_library_is_hidden() {
    if !has_devices() {
        return;
    }
    if variable(HIDDEN).is_none() {
        let own = std::env::current_exe().unwrap();
        let library = "/usr/lib/$(uname -m)-linux-gnu/libibverbs.so.1";
        let test = "plane::tests::verbs::a_requirement_is_refused_where_the_library_is_hidden";
        let hide = format!("mount --bind /dev/null {library} && exec \"$0\" --exact {test} --nocapture");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &hide]).arg(own).env(HIDDEN, "1");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        assert!(text.contains("no_library"), "{text}");
        return;
    }
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Drop);
    let authority = Authority::new();
    let with = |policy| Plane::start(config(authority.identity("worker-0"), &dataset, &order, policy));
    let error = fault::in_full(&with(TransportPolicy::RequireRdma).await.unwrap_err());
    println!("{error}");
    assert!(error.contains("no_library") && error.contains(Reason::NoLibrary.hint()), "{error}");
    assert!(matches!(with(TransportPolicy::PreferRdma).await.unwrap().rails, Err(Reason::NoLibrary)));
}
