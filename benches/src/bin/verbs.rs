//! Reads and writes over verbs from one device of this host to another, as fast as they go:
//! `verbs read|write BYTES COUNT DEPTH` prints MiB per second. `benches/run rdma` runs it beside perftest.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops where it fails, and prints what it measured"
)]

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::memory::Block;
use datapath::memory::host::Region;
use datapath::memory::landing::Landing;
use datapath::memory::pieces::pieces;
use datapath::transport::rdma::verbs::{
    Access, Chain, CompletionQueue, Device, Posted, ProtectionDomain, QueuePair, SIGNAL_EVERY, Sizes,
};

/// Completions of a side at the most.
const COMPLETIONS: u32 = 1024;
/// Whatever region is made, it is of whole pages.
const PAGE_BYTES: usize = 4096;

struct Side {
    domain: ProtectionDomain,
    queue: Arc<CompletionQueue>,
    device: Device,
}

fn side(name: &str) -> Side {
    let device = Device::open(name).unwrap();
    let domain = device.protection_domain().unwrap();
    let queue = CompletionQueue::new(&device, COMPLETIONS).unwrap();
    Side { domain, queue, device }
}

fn connect(near: &Side, far: &Side, depth: u32) -> (QueuePair, QueuePair) {
    let sizes = Sizes { sends: depth, receives: 1 };
    let half =
        |side: &Side| side.domain.queue_pair(&side.queue, &side.device.path().unwrap(), sizes).unwrap();
    let (one, other) = (half(near), half(far));
    let (one_end, other_end) = (one.endpoint(), other.endpoint());
    (one.connect(&other_end).unwrap(), other.connect(&one_end).unwrap())
}

/// What one run does.
struct Run {
    bytes: usize,
    count: usize,
    depth: usize,
    /// Requests of a chain.
    chain: usize,
}

/// Keeps the queue full until all requests have ended, and says how long that took, as perftest does: without what is made
/// before. `plan` makes a chain of an owner that is free.
async fn pump<K: Send + Debug + 'static>(
    run: &Run,
    pair: &QueuePair,
    mut owners: Vec<K>,
    plan: impl Fn(K) -> Chain<K>,
) -> Duration {
    let mut under_way: VecDeque<Posted<K>> = VecDeque::new();
    #[expect(clippy::disallowed_methods, reason = "a bench measures time")]
    let start = Instant::now();
    for _ in 0..run.count.div_ceil(run.chain) {
        let owner = match owners.pop() {
            Some(owner) => owner,
            None => under_way.pop_front().unwrap().await.unwrap(),
        };
        under_way.push_back(pair.post(plan(owner)).await.unwrap());
    }
    for posted in under_way {
        posted.await.unwrap();
    }
    start.elapsed()
}

async fn read(run: &Run, near: &Side, far: &Side) -> Duration {
    let (pair, _other) = connect(near, far, u32::try_from(run.depth).unwrap());
    let source = Arc::new(Block::with_len(run.bytes));
    let source = far.domain.register(source, Access { remote_read: true, ..Access::default() }).unwrap();
    let span = run.chain * run.bytes;
    let region = Region::create((run.depth / run.chain * span).next_multiple_of(PAGE_BYTES)).unwrap();
    let (region, mut owners) = pieces(region, span);
    owners.truncate(run.depth / run.chain);
    let memory = near.domain.register(region, Access { local_write: true, ..Access::default() }).unwrap();
    pump(run, &pair, owners, |owner| {
        let mut chain = Chain::new(&memory, owner);
        for at in 0..run.chain {
            chain.read(at * run.bytes, run.bytes, source.remote(0)).unwrap();
        }
        chain
    })
    .await
}

async fn write(run: &Run, near: &Side, far: &Side) -> Duration {
    let (pair, _other) = connect(near, far, u32::try_from(run.depth).unwrap());
    let source = near.domain.register(Arc::new(Block::with_len(run.bytes)), Access::default()).unwrap();
    let region = Region::create(run.bytes.next_multiple_of(PAGE_BYTES)).unwrap();
    let landing = far.domain.register_exposed(Arc::new(Landing::new(region))).unwrap();
    pump(run, &pair, vec![(); run.depth / run.chain], |()| {
        let mut chain = Chain::new(&source, ());
        for _ in 0..run.chain {
            chain.write(0, run.bytes, landing.remote(0)).unwrap();
        }
        chain
    })
    .await
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments[at].parse::<usize>().unwrap();
    let (bytes, count, depth) = (number(1), number(2), number(3));
    let run = Run { bytes, count, depth, chain: (depth / 2).clamp(1, SIGNAL_EVERY) };
    let (near, far) = (side("rxe_a"), side("rxe_b"));
    let took = match arguments[0].as_str() {
        "read" => read(&run, &near, &far).await,
        _ => write(&run, &near, &far).await,
    };
    let mib = (run.count.next_multiple_of(run.chain) * bytes) as f64 / f64::from(1 << 20);
    println!("{:.3}", mib / took.as_secs_f64());
}
