//! What arrives, what is refused, and what is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datapath::memory::Block;
use datapath::memory::host::Region;
use datapath::memory::landing::Landing;
use datapath::transport::rdma::reason::Reason;
use datapath::transport::rdma::verbs::{Access, Chain, ChainError, Refusal, Sizes};
use tokio::time::{sleep, timeout};

use crate::fabric::{PATIENCE, SIZES, Side, connect, counter, pattern, run};

const BYTES: usize = 1 << 20;

/// Told when it is dropped.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn flag() -> (Flag, Arc<AtomicBool>) {
    let dropped = Arc::new(AtomicBool::new(false));
    (Flag(Arc::clone(&dropped)), dropped)
}

async fn until(dropped: &AtomicBool) {
    timeout(PATIENCE, async {
        while !dropped.load(Ordering::Acquire) {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

pub(crate) fn every_byte_arrives() {
    run(async {
        let (a, b) = (Side::a(), Side::b());
        let (near, far) = connect(&a, &b, SIZES);
        let expected = pattern(BYTES);
        let before = (counter("vb", "tx"), counter("va", "tx"));

        // Reads, of unequal ranges and out of order.
        let source = b.source(BYTES);
        let (memory, mut targets) = a.targets(1, BYTES);
        let mut chain = Chain::new(&memory, targets.remove(0));
        let cuts = [0, 1, 4095, 70_000, 300_001, 900_000, BYTES];
        for range in cuts.windows(2).rev() {
            chain.read(range[0], range[1] - range[0], source.remote(range[0])).unwrap();
        }
        let piece = near.try_post(chain).unwrap().await.unwrap();
        assert!(*piece == *expected, "a byte that was read is another one");

        // A write, and one that tells.
        let landing = Arc::new(Landing::new(Region::create(BYTES).unwrap()));
        let there = b.domain.register_exposed(Arc::clone(&landing)).unwrap();
        let told = far.receive_number().unwrap();
        let own = a.source(BYTES);
        let mut chain = Chain::new(&own, ());
        chain.write(0, BYTES / 2, there.remote(0)).unwrap();
        chain.write_and_tell(BYTES / 2, BYTES / 2, there.remote(BYTES / 2), 0xC0FF_EE01).unwrap();
        near.try_post(chain).unwrap().await.unwrap();
        let told = timeout(PATIENCE, told).await.unwrap().unwrap();
        assert_eq!(told.number, Some(0xC0FF_EE01));
        let mut copy = vec![0; BYTES];
        landing.copy_to(0, &mut copy);
        assert!(copy == expected, "a byte that was written is another one");

        // A message, which takes no memory here.
        let (memory, mut targets) = b.targets(1, 4096);
        let message = far.receive_into(&memory, targets.remove(0)).unwrap();
        near.try_post(Chain::message(b"a few words", ()).unwrap()).unwrap().await.unwrap();
        let message = timeout(PATIENCE, message).await.unwrap().unwrap();
        assert_eq!(&message.owner[..message.bytes], b"a few words");
        assert_eq!(message.number, None);

        // They went over the cable.
        let (read, written) = (counter("vb", "tx") - before.0, counter("va", "tx") - before.1);
        let bytes = u64::try_from(BYTES).unwrap();
        assert!(read > bytes && written > bytes, "{read} and {written} bytes on the cable");
        near.close().await.unwrap();
        far.close().await.unwrap();
    });
}

pub(crate) fn a_full_queue() {
    run(async {
        let (a, b) = (Side::a(), Side::b());
        let sizes = Sizes { sends: 8, receives: 0 };
        let (near, _far) = connect(&a, &b, sizes);
        let source = b.source(BYTES);
        let (memory, targets) = a.targets(16, BYTES / 16);
        let chain = |index: usize, piece| {
            let mut chain = Chain::new(&memory, piece);
            for part in 0..4 {
                let (at, len) = (part * BYTES / 64, BYTES / 64);
                chain.read(at, len, source.remote(index * BYTES / 16 + at)).unwrap();
            }
            chain
        };
        let (mut posted, mut full) = (Vec::new(), 0);
        for (index, piece) in targets.into_iter().enumerate() {
            // Refused, it comes back whole, and is handed over again.
            posted.push(match near.try_post(chain(index, piece)) {
                Ok(posted) => posted,
                Err(refused) => {
                    assert!(matches!(refused.why, Refusal::Full), "{:?}", refused.why);
                    full += 1;
                    near.post(refused.work).await.unwrap()
                }
            });
        }
        assert!(full > 0, "the queue was never full");
        let mut read = Vec::new();
        for posted in posted {
            read.extend_from_slice(&posted.await.unwrap());
        }
        assert!(read == pattern(BYTES), "nothing is lost or in another place");
        let (memory, mut targets) = a.targets(1, 4096);
        let mut chain = Chain::new(&memory, targets.remove(0));
        for _ in 0..9 {
            chain.read(0, 8, source.remote(0)).unwrap();
        }
        let refused = near.post(chain).await.unwrap_err();
        assert!(matches!(refused.why, Refusal::Unfit { len: 9, room: 8 }), "{:?}", refused.why);
    });
}

pub(crate) fn mistakes() {
    run(async {
        let (a, b) = (Side::a(), Side::b());
        let (near, _far) = connect(&a, &b, SIZES);
        let source = b.source(4096);
        let (memory, mut targets) = a.targets(2, 4096);
        let mut chain = Chain::new(&memory, targets.remove(0));
        assert_eq!(chain.read(4000, 97, source.remote(0)), Err(ChainError::OutOfRange));
        assert_eq!(chain.write(8192, 1, source.remote(0)), Err(ChainError::OutOfRange));
        let refused = near.try_post(chain).unwrap_err();
        assert!(matches!(refused.why, Refusal::Unfit { len: 0, .. }), "{:?}", refused.why);

        // Not the memory that was registered, and registered for reading only.
        let mut chain = Chain::new(&memory, Block::with_len(4096));
        assert_eq!(chain.read(0, 1, source.remote(0)), Err(ChainError::OutOfRange));
        let (region, mut pieces) = datapath::memory::pieces::pieces(Region::create(4096).unwrap(), 4096);
        let read_only = a.domain.register(region, Access::default()).unwrap();
        let mut chain = Chain::new(&read_only, pieces.remove(0));
        assert_eq!(chain.read(0, 1, source.remote(0)), Err(ChainError::ReadOnly));
        assert_eq!(Chain::message(&[0; 65], ()).map(|_| ()), Err(ChainError::TooLong));

        // Another domain's memory.
        let other = Side::a();
        let (memory, mut targets) = other.targets(1, 4096);
        let mut chain = Chain::new(&memory, targets.remove(0));
        chain.read(0, 1, source.remote(0)).unwrap();
        let refused = near.try_post(chain).unwrap_err();
        assert!(matches!(refused.why, Refusal::Stranger), "{:?}", refused.why);

        // More completions than the queue holds.
        let sizes = Sizes { sends: 512, receives: 1 };
        let error = a.domain.queue_pair(&a.queue, &a.path, sizes).unwrap_err();
        assert_eq!(error.reason, Reason::Misuse);
        let error = a.domain.queue_pair(&other.queue, &a.path, SIZES).unwrap_err();
        assert_eq!(error.reason, Reason::Misuse);
    });
}

pub(crate) fn a_dropped_future() {
    run(async {
        let (a, b) = (Side::a(), Side::b());
        let (near, _far) = connect(&a, &b, SIZES);
        let source = b.source(BYTES);
        let (memory, mut targets) = a.targets(1, BYTES);
        let (flag, dropped) = flag();
        let mut chain = Chain::new(&memory, (targets.remove(0), flag));
        drop(memory);
        for part in 0..16 {
            let (at, len) = (part * BYTES / 16, BYTES / 16);
            chain.read(at, len, source.remote(at)).unwrap();
        }
        drop(near.try_post(chain).unwrap());
        assert!(!dropped.load(Ordering::Acquire), "the owner went with its future");
        until(&dropped).await;
        assert_eq!(near.cause(), None, "what nobody waits for went well");
    });
}

pub(crate) fn giving_up() {
    /// What is on the cable is not yet in memory, so now and then nothing is when it is given up; more seldom than this in a row.
    const TRIES: u64 = 5;
    run(async {
        let (a, b) = (Side::a(), Side::b());
        for tries in 1..=TRIES {
            if give_up_in_the_middle(&a, &b, tries * 300_000).await {
                return;
            }
        }
        panic!("nothing had arrived, {TRIES} times");
    });
}

/// Gives up when so many bytes are on the cable; says whether that was in the middle.
async fn give_up_in_the_middle(a: &Side, b: &Side, sent: u64) -> bool {
    const LONG: usize = 4 * BYTES;
    let (near, _far) = connect(a, b, SIZES);
    let source = b.source(LONG);
    let (memory, mut targets) = a.targets(1, LONG);
    let mut chain = Chain::new(&memory, targets.remove(0));
    for part in 0..32 {
        let (at, len) = (part * LONG / 32, LONG / 32);
        chain.read(at, len, source.remote(at)).unwrap();
    }
    let before = counter("vb", "tx");
    let posted = near.try_post(chain).unwrap();
    // Some answers are there, and the next ones under way.
    timeout(PATIENCE, async {
        while counter("vb", "tx") < before + sent {
            // Not in a circle: that takes the processor on which the answers arrive.
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    near.fail().unwrap();
    let broken = timeout(PATIENCE, posted).await.unwrap().unwrap_err();
    assert_eq!(broken.failure.reason, Reason::Flushed);
    let mut piece = broken.owner.unwrap();
    // Of bytes that are not zero, as memory is from the start.
    let arrived = piece.iter().zip(pattern(LONG)).filter(|(byte, expected)| *byte == expected && **byte != 0);
    let arrived = arrived.count();
    assert!(arrived < LONG * 9 / 10, "{arrived} of {LONG} bytes: not in the middle");
    // It is used again; the answers that are still on their way must not show in it.
    piece.fill(0xAA);
    sleep(Duration::from_millis(500)).await;
    assert!(piece.iter().all(|&byte| byte == 0xAA), "a late answer landed in memory that is used again");
    let mut chain = Chain::new(&memory, piece);
    chain.read(0, 1, source.remote(0)).unwrap();
    let refused = near.try_post(chain).unwrap_err();
    assert!(matches!(refused.why, Refusal::Broken(_)), "{:?}", refused.why);
    arrived > 0
}

pub(crate) fn closing() {
    run(async {
        let (a, b) = (Side::a(), Side::b());
        let (near, far) = connect(&a, &b, SIZES);
        // One that waits for what never comes, one that nobody waits for, one under way.
        let (memory, mut targets) = a.targets(2, BYTES);
        let waiting = near.receive_into(&memory, targets.remove(0)).unwrap();
        let (flag, dropped) = flag();
        let source = b.source(BYTES);
        let mut chain = Chain::new(&memory, (targets.remove(0), flag));
        for part in 0..16 {
            chain.read(part * BYTES / 16, BYTES / 16, source.remote(0)).unwrap();
        }
        drop(near.try_post(chain).unwrap());
        timeout(Duration::from_secs(3), near.close()).await.unwrap().unwrap();
        assert!(dropped.load(Ordering::Acquire), "closed, and the device still has memory");
        let broken = waiting.await.unwrap_err();
        assert_eq!(broken.failure.reason, Reason::Flushed);
        assert!(broken.owner.is_some());
        far.close().await.unwrap();
        // As many queue pairs as one likes, one after the other, on one completion queue.
        for _ in 0..20 {
            let (near, far) = connect(&a, &b, SIZES);
            drop(near);
            far.close().await.unwrap();
        }
    });
}

pub(crate) fn dmabuf() {
    run(async {
        let a = Side::a();
        assert!(!a.domain.takes_dmabuf(), "Soft-RoCE of this kernel has no dma-buf, and says otherwise");
        let file = std::fs::File::open("/dev/null").unwrap();
        a.domain.register_dmabuf(file.into(), 0, 4096).unwrap_err();
    });
}

pub(crate) fn large_pages() {
    const CHUNK: usize = 4_000_000;
    const SWITCH: &str = "/proc/sys/vm/nr_hugepages";
    /// None stay set apart for the other tests.
    struct Apart;
    impl Drop for Apart {
        fn drop(&mut self) {
            std::fs::write(SWITCH, "0").unwrap();
        }
    }
    let free = || {
        let facts = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = facts.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).unwrap();
        line.trim().parse::<usize>().unwrap()
    };
    run(async {
        let _apart = Apart;
        std::fs::write(SWITCH, "5").unwrap();
        assert_eq!(free(), 5, "the guest has no memory for them");
        let (a, b) = (Side::a(), Side::b());
        let (near, _far) = connect(&a, &b, SIZES);
        // Two of two pages each; for the third there are not enough, and for a small one they would be wasted.
        let sources: Vec<_> = [CHUNK, CHUNK, CHUNK, 1 << 20].map(|bytes| b.source(bytes)).into();
        assert_eq!(free(), 1);
        for source in &sources {
            let bytes = source.span().len.min(CHUNK);
            let (memory, mut targets) = a.targets(1, bytes);
            let mut chain = Chain::new(&memory, targets.remove(0));
            chain.read(0, bytes, source.remote(0)).unwrap();
            assert!(*near.try_post(chain).unwrap().await.unwrap() == pattern(bytes)[..]);
        }
        near.close().await.unwrap();
        drop(sources);
        assert_eq!(free(), 5, "they come back");
    });
}
