//! What breaks, how soon it is noticed, and by which word.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use datapath::memory::pieces::Piece;
use datapath::transport::rdma::endpoint::PathMtu;
use datapath::transport::rdma::reason::{Class, Reason, WorkStatus};
use datapath::transport::rdma::verbs::{Broken, Chain, Event, MemoryRegion, QueuePair, Remote};
use tokio::time::timeout;

use crate::fabric::{Mended, PATIENCE, SIZES, Side, connect, pattern, run, system};
use crate::roles::{Peer, ROLE};

/// A peer that does not answer is given up within this time: seven times the device's 67 ms or some more, and what an emulated
/// processor adds.
const DEAD_MAX: Duration = Duration::from_secs(3);
const BYTES: usize = 64 << 10;

/// Reads once; says how long that took.
async fn read(
    pair: &QueuePair,
    memory: &MemoryRegion,
    piece: Piece,
    from: Remote,
) -> (Result<Piece, Broken<Piece>>, Duration) {
    let mut chain = Chain::new(memory, piece);
    chain.read(0, BYTES, from).unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test measures a bound")]
    let start = Instant::now();
    let result = timeout(PATIENCE, pair.try_post(chain).unwrap()).await.unwrap();
    (result, start.elapsed())
}

pub(crate) fn wrong_key() {
    run(async {
        let (a, b) = (Side::a(), Side::b());
        let (near, _far) = connect(&a, &b, SIZES);
        let source = b.source(BYTES);
        let (memory, mut targets) = a.targets(1, BYTES);
        let right = source.remote(0);
        let (result, _) =
            read(&near, &memory, targets.remove(0), Remote { key: right.key ^ 0xff00, ..right }).await;
        let broken = result.unwrap_err();
        assert_eq!(broken.failure.status, Some(WorkStatus::REMOTE_ACCESS));
        assert_eq!(
            (broken.failure.reason, broken.failure.reason.class()),
            (Reason::RemoteAccess, Class::Fatal)
        );
        // Registered, but not for that.
        let (near, _far) = connect(&a, &b, SIZES);
        let (_, mut other) = a.targets(1, BYTES);
        drop(other.remove(0));
        let own = a.source(BYTES);
        let mut chain = Chain::new(&own, ());
        chain.write(0, BYTES, source.remote(0)).unwrap();
        let broken = timeout(PATIENCE, near.try_post(chain).unwrap()).await.unwrap().unwrap_err();
        assert_eq!(broken.failure.reason, Reason::RemoteAccess, "{}", broken.failure);
    });
}

pub(crate) fn killed_peer() {
    run(async {
        let a = Side::a();
        let mut peer = Peer::start();
        let (near, from) = peer.connect(&a);
        let (memory, mut targets) = a.targets(1, BYTES);
        let (result, _) = read(&near, &memory, targets.remove(0), from).await;
        let piece = result.unwrap();
        assert!(*piece == *pattern(BYTES), "another process's bytes");
        peer.kill();
        let (result, took) = read(&near, &memory, piece, from).await;
        let broken = result.unwrap_err();
        assert_eq!(broken.failure.status, Some(WorkStatus::RETRY_EXCEEDED));
        assert_eq!(
            (broken.failure.reason, broken.failure.reason.class()),
            (Reason::PeerDead, Class::FailOver)
        );
        println!("a killed peer was noticed after {took:?}");
        assert!(took < DEAD_MAX, "{took:?}");
        assert!(broken.owner.is_some());
    });
}

/// Its device answers for it: one-sided work needs no processor of the peer's. So liveness is a matter for heartbeats.
pub(crate) fn stopped_peer() {
    run(async {
        let a = Side::a();
        let mut peer = Peer::start();
        let (near, from) = peer.connect(&a);
        let (memory, mut targets) = a.targets(1, BYTES);
        peer.signal("STOP");
        let (result, _) = read(&near, &memory, targets.remove(0), from).await;
        assert!(*result.unwrap() == *pattern(BYTES), "bytes of a peer that is stopped");
        peer.signal("CONT");
        peer.kill();
    });
}

pub(crate) fn link_down() {
    run(async {
        let (a, b) = (Side::a(), Side::b());
        let (near, far) = connect(&a, &b, SIZES);
        let source = b.source(BYTES);
        let (memory, mut targets) = a.targets(1, BYTES);
        let events = a.device.events().unwrap();
        assert!(a.device.events().is_err(), "events are given out once");
        let mended = Mended;
        system("ip link set va down");
        let event = timeout(PATIENCE, async {
            loop {
                let event = events.next().await.unwrap();
                if matches!(event, Event::PortDown(_)) {
                    return event;
                }
            }
        });
        assert_eq!(event.await.unwrap(), Event::PortDown(a.path.port));
        assert!(!a.device.is_up(a.path.port));
        let (result, took) = read(&near, &memory, targets.remove(0), source.remote(0)).await;
        let broken = result.unwrap_err();
        println!("a link that is down was noticed after {took:?}: {}", broken.failure);
        assert_eq!(
            (broken.failure.reason, broken.failure.reason.class()),
            (Reason::PortDown, Class::FailOver)
        );
        assert!(took < DEAD_MAX, "{took:?}");
        assert_eq!(a.device.path().unwrap_err().reason, Reason::PortDown);
        drop(mended);
        // A queue pair that failed stays so; a new one serves.
        near.close().await.unwrap();
        far.close().await.unwrap();
        let (a, b) = (Side::a(), Side::b());
        let (near, _far) = connect(&a, &b, SIZES);
        let source = b.source(BYTES);
        let (memory, mut targets) = a.targets(1, BYTES);
        let (result, _) = read(&near, &memory, targets.remove(0), source.remote(0)).await;
        assert!(*result.unwrap() == *pattern(BYTES), "bytes over a mended cable");
    });
}

/// A number for which the peer has no receive: it is asked again for a while, and then given up.
pub(crate) fn unready_peer() {
    run(async {
        let (a, b) = (Side::a(), Side::b());
        let (near, _far) = connect(&a, &b, SIZES);
        let posted = near.try_post(Chain::message(b"too early", ()).unwrap()).unwrap();
        let broken = timeout(PATIENCE, posted).await.unwrap().unwrap_err();
        assert_eq!(broken.failure.status.map(WorkStatus::name), Some("RNR_RETRY_EXC_ERR"));
        assert_eq!(broken.failure.reason, Reason::PeerDead);
    });
}

/// Each side says what its port takes, and both keep to the smaller: otherwise nothing larger than a packet would arrive.
pub(crate) fn unequal_mtu() {
    run(async {
        let (a, mut b) = (Side::a(), Side::b());
        assert_eq!(a.path.mtu, PathMtu::Bytes4096);
        system("ip link set vb mtu 1500");
        let mended = Mended;
        b.path = b.device.path().unwrap();
        assert_eq!(b.path.mtu, PathMtu::Bytes1024);
        for (one, other) in [(&a, &b), (&b, &a)] {
            let (near, _far) = connect(one, other, SIZES);
            let source = other.source(BYTES);
            let (memory, mut targets) = one.targets(1, BYTES);
            let (result, _) = read(&near, &memory, targets.remove(0), source.remote(0)).await;
            assert!(*result.unwrap() == *pattern(BYTES), "bytes in smaller packets");
        }
        drop(mended);
    });
}

pub(crate) fn black_hole() {
    run(async {
        let (a, b) = (Side::a(), Side::b());
        let (near, _far) = connect(&a, &b, SIZES);
        let source = b.source(BYTES);
        let (memory, mut targets) = a.targets(1, BYTES);
        struct Lossless;
        impl Drop for Lossless {
            fn drop(&mut self) {
                system("tc qdisc del dev va root");
            }
        }
        system("tc qdisc add dev va root netem loss 100%");
        let lossless = Lossless;
        let (result, took) = read(&near, &memory, targets.remove(0), source.remote(0)).await;
        let broken = result.unwrap_err();
        println!("a black hole was noticed after {took:?}");
        assert_eq!(broken.failure.reason, Reason::PeerDead, "{}", broken.failure);
        assert!(took < DEAD_MAX, "{took:?}");
        drop(lossless);
    });
}

pub(crate) fn gid_gone() {
    run(async {
        let (a, b) = (Side::a(), Side::b());
        let (near, _far) = connect(&a, &b, SIZES);
        let source = b.source(BYTES);
        let (memory, mut targets) = a.targets(1, BYTES);
        let mended = Mended;
        system("ip addr flush dev va");
        let (result, took) = read(&near, &memory, targets.remove(0), source.remote(0)).await;
        let broken = result.unwrap_err();
        println!("an address that is gone was noticed after {took:?}: {}", broken.failure);
        assert_eq!(broken.failure.reason, Reason::GidMissing, "{}", broken.failure);
        let error = a.device.path().unwrap_err();
        assert_eq!(error.reason, Reason::GidMissing, "{error}: {}", error.source);
        // The kernel would take the old index.
        let error = a.domain.queue_pair(&a.queue, &a.path, SIZES).unwrap_err();
        assert_eq!(error.reason, Reason::GidMissing, "{error}");
        drop(mended);
        a.domain.queue_pair(&a.queue, &a.device.path().unwrap(), SIZES).unwrap();
    });
}

pub(crate) fn memlock() {
    let reason = crate::roles::reason_of(crate::roles::as_user("memlock"));
    assert_eq!(reason, Reason::Memlock.word());
}

pub(crate) fn nothing_there() {
    let own = std::env::current_exe().unwrap();
    let hidden = |what: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &format!("{what} && exec \"$0\"")]).arg(&own);
        command.env(ROLE, "list").stdin(Stdio::null());
        crate::roles::reason_of(command)
    };
    assert_eq!(hidden("mount -t tmpfs none /dev/infiniband"), Reason::NoUverbsNode.word());
    // A program with the feature starts where there is no library.
    let library = "/usr/lib/$(uname -m)-linux-gnu/libibverbs.so.1";
    assert_eq!(hidden(&format!("mount --bind /dev/null {library}")), Reason::NoLibrary.word());
    assert_eq!(hidden("true"), "none");
}
