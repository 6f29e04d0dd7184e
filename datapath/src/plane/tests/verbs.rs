//! Planes that exchange over verbs: two in one process, each with its device, in the emulated machine (`tests/run rdma`, which sets
//! `SLIPWAY_RDMA=1`). Their QUIC connections go over 127.0.0.1, so that it is only the lane that breaks with the cable.
//!
//! One test at a time: what one does to the cable all of them feel.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tracing::field::{Field, Visit};
use tracing::span;

use super::exchange::{check, digests, sum};
use super::trainer::{Content, Trainer};
use super::*;
use crate::fault;

/// Is set for this program started again, where something is hidden from it.
const HIDDEN: &str = "SLIPWAY_VERBS_HIDDEN";
/// How long after a link went down the other lane may take to bring a byte, with an emulated processor.
const FAILOVER_MAX: Duration = Duration::from_secs(2);

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

/// The reasons of all warnings, and of all other news.
#[derive(Debug)]
pub(super) struct Told;

static NEWS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static REASONS: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Told {
    pub(super) fn listen() {
        static ONCE: OnceLock<()> = OnceLock::new();
        ONCE.get_or_init(|| tracing::subscriber::set_global_default(Self).unwrap());
        REASONS.lock().unwrap_or_else(PoisonError::into_inner).clear();
        NEWS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn reasons() -> Vec<String> {
        REASONS.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn news() -> Vec<String> {
        NEWS.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Keeps what is told.
struct Kept(&'static Mutex<Vec<String>>);

impl Visit for Kept {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "reason" {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(value.to_owned());
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

impl tracing::Subscriber for Told {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let is_warning = *event.metadata().level() <= tracing::Level::WARN;
        event.record(&mut Kept(if is_warning { &REASONS } else { &NEWS }));
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Two planes, the first on rxe_a, the second on rxe_b.
async fn start(dataset: &Dataset, order: &Order, policies: [TransportPolicy; 2]) -> Group {
    let authority = Authority::new();
    let (mut planes, mut peers) = (Vec::new(), Vec::new());
    for (id, device, policy) in [(0, "rxe_a", policies[0]), (1, "rxe_b", policies[1])] {
        let server_name = format!("worker-{id}");
        let identity = authority.identity(&server_name);
        let fingerprint = fingerprint(&identity.cert_der);
        let plane = Plane::start_on(config(identity, dataset, order, policy), Some(device)).await.unwrap();
        let (id, addr) = (PeerId(id), plane.local_addr());
        peers.push(Peer { id, addr, server_name, fingerprint, role: Role::Worker });
        planes.push(plane);
    }
    let group = Group { planes, peers, order: order.clone(), workers: 2 };
    for id in 0..2 {
        group.enter(id, 1).await;
    }
    group
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

/// Samples of several packets, chunks of several pieces.
fn large() -> Dataset {
    Dataset::records(Size { samples: 160, sample_bytes: 50_000, samples_per_chunk: 8, chunks_per_shard: 5 })
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

/// Bytes that an end of the cable has sent.
fn on_cable() -> u64 {
    let sent = |link| std::fs::read_to_string(format!("/sys/class/net/{link}/statistics/tx_bytes")).unwrap();
    ["va", "vb"].map(|link| sent(link).trim().parse::<u64>().unwrap()).iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_samples_come_by_verbs_as_over_quic() {
    if !has_devices() {
        return;
    }
    for dataset in [
        small(),
        large(),
        Dataset::fields(Size { samples: 200, sample_bytes: 900, samples_per_chunk: 8, chunks_per_shard: 5 }),
    ] {
        let order = order(&dataset, 10, Remainder::Pad);
        let (expected, by_quic) = epoch(&dataset, &order, TransportPolicy::Quic).await;
        let before = on_cable();
        let (digests, by_verbs) = epoch(&dataset, &order, TransportPolicy::RequireRdma).await;
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

fn system(command: &str) {
    let mut words = command.split_whitespace();
    assert!(Command::new(words.next().unwrap()).args(words).status().unwrap().success(), "{command}");
}

/// Mends the cable when the test ends, however it ends.
pub(super) struct Mended;

impl Mended {
    pub(super) fn now() {
        // There may be nothing to remove.
        drop(Command::new("tc").args(["qdisc", "del", "dev", "vb", "root"]).output());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/rig/rdma/fabric.sh");
        assert!(Path::new(script).exists());
        system(script);
    }
}

impl Drop for Mended {
    fn drop(&mut self) {
        Self::now();
    }
}

/// Waits until a plane has counted more; says how long that took.
async fn grown(plane: &Plane, count: impl Fn(Counters) -> u64) -> Duration {
    let (begun, before) = (Instant::now(), count(plane.counters()));
    timeout(HANG, async {
        while count(plane.counters()) == before {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it goes on");
    begun.elapsed()
}

/// Breaks the fabric while a trainer is fed, and mends it again: every batch is what it should be, and the lane comes back.
async fn story(broken: &str) -> (Vec<String>, Duration) {
    Told::listen();
    let dataset = large();
    let order = order(&dataset, 10, Remainder::Drop);
    let group = start(&dataset, &order, [TransportPolicy::PreferRdma; 2]).await;
    let mut config = group.feed_config(0, 1, 1_000_000);
    config.consumer.of = NonZeroU32::MIN;
    let name = config.socket.clone();
    let fed = digests(group.planes[0].feed(config).await.unwrap());
    static OVER: AtomicBool = AtomicBool::new(false);
    OVER.store(false, Ordering::Release);
    let (samples, expected) = (dataset.samples.clone(), order.clone());
    let trainer = spawn_blocking(move || {
        let (trainer, per_epoch) = (Trainer::attach(&name), expected.steps_per_epoch());
        let mut step = 0;
        while !OVER.load(Ordering::Acquire) {
            let descriptor = trainer.descriptor();
            assert_eq!((descriptor.kind, descriptor.step), (1, step), "{descriptor:?}");
            let content = trainer.content(descriptor);
            let placed = expected.epoch(step / per_epoch).step(step % per_epoch);
            assert_eq!(content.samples.len(), placed.len());
            for ((id, bytes), placed) in content.samples.iter().zip(placed) {
                assert_eq!(*id, placed.sample.0, "step {step}");
                assert!(*bytes == samples[usize::try_from(*id).unwrap()], "step {step}: other bytes");
            }
            trainer.say(1, descriptor);
            step += 1;
        }
        step
    });
    let asker = &group.planes[0];
    for _ in 0..20 {
        grown(asker, |counters| counters.rdma_in_bytes).await;
    }
    assert_eq!(asker.counters().quic_in_bytes, 0);
    let mended = Mended;
    let pulled = Instant::now();
    system(broken);
    // Somewhere in this time it was broken.
    let breaking = pulled.elapsed();
    while asker.counters().quic_in_bytes == 0 {
        assert!(pulled.elapsed() < HANG, "it does not go on");
        sleep(Duration::from_millis(1)).await;
    }
    let took = pulled.elapsed();
    let reasons = Told::reasons();
    println!("{broken}: took {breaking:?}; the first byte over QUIC {took:?} after its begin, {reasons:?}");
    for _ in 0..20 {
        grown(asker, |counters| counters.quic_in_bytes).await;
    }
    drop(mended);
    let back = grown(asker, |counters| counters.rdma_in_bytes).await;
    println!("{broken}: mended, and back on RDMA after {back:?}");
    grown(asker, |counters| counters.batches).await;
    OVER.store(true, Ordering::Release);
    let steps = timeout(HANG, trainer).await.expect("the trainer ends").unwrap();
    println!(
        "{broken}: {steps} batches, all of them right; {} requests asked again",
        asker.counters().retries
    );
    let rails = asker.rails.clone().unwrap();
    for plane in group.planes {
        timeout(HANG, plane.close()).await.expect("a plane closes");
    }
    drop(fed);
    // What was in doubt was let go of by the device, and not before.
    timeout(HANG, async {
        while !rails.is_idle() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("every piece comes back");
    (reasons, took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_goes_down_in_mid_stream_loses_nothing() {
    if has_devices() {
        let (reasons, took) = story("ip link set va down").await;
        assert_eq!(reasons, ["port_down"]);
        assert!(took < FAILOVER_MAX, "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_come_too_late_land_nowhere() {
    if has_devices() {
        let (reasons, took) = story("tc qdisc add dev vb root netem delay 3s").await;
        assert_eq!(reasons, ["peer_dead"]);
        assert!(took < 2 * FAILOVER_MAX, "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_gone_around() {
    if has_devices() {
        let (reasons, took) = story("tc qdisc add dev vb root netem loss 100%").await;
        assert_eq!(reasons, ["peer_dead"]);
        assert!(took < 2 * FAILOVER_MAX, "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_goes_is_named() {
    if has_devices() {
        let (reasons, took) = story("ip addr flush dev va").await;
        assert_eq!(reasons, ["gid_missing"]);
        assert!(took < FAILOVER_MAX, "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_without_the_lane_is_asked_over_quic() {
    if !has_devices() {
        return;
    }
    Told::listen();
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Drop);
    let group = start(&dataset, &order, [TransportPolicy::PreferRdma, TransportPolicy::Quic]).await;
    let config = group.feed_config(0, 1, 1);
    let name = config.socket.clone();
    let fed = digests(group.planes[0].feed(config).await.unwrap());
    let mine = spawn_blocking(move || Trainer::attach(&name).consume());
    timeout(HANG, mine).await.unwrap().unwrap();
    fed.await.unwrap();
    assert_eq!(Told::reasons(), ["not_wanted"]);
    let counters = group.planes[0].counters();
    assert_eq!((counters.rdma_in_bytes, counters.retries), (0, 0));
    assert!(counters.quic_in_bytes > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_told_and_not_hidden_by_the_other_lane() {
    if !has_devices() {
        return;
    }
    Told::listen();
    let dataset = small();
    let order = order(&dataset, 10, Remainder::Drop);
    let group = start(&dataset, &order, [TransportPolicy::PreferRdma; 2]).await;
    group.planes[1].rails.as_ref().unwrap().is_lying.store(true, Ordering::Release);
    let mut feed = group.planes[0].feed(group.feed_config(0, 1, 1)).await.unwrap();
    let FeedEvent::Fault(fault) = timeout(HANG, feed.events.recv()).await.unwrap().unwrap() else { panic!() };
    println!("{fault:?}");
    assert_eq!(fault.reason, fault::LANE_BROKEN);
    assert!(fault.message.contains(Reason::RemoteAccess.word()), "{}", fault.message);
    assert_eq!(Told::reasons(), ["remote_access"]);
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
