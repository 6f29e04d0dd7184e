//! Two sides of a fabric in one process, and the cable between them.

use std::path::Path as FilePath;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use datapath::memory::Block;
use datapath::memory::host::Region;
use datapath::memory::pieces::{Piece, pieces};
use datapath::transport::rdma::VerbsError;
use datapath::transport::rdma::verbs::{
    Access, CompletionQueue, Device, MemoryRegion, Path, ProtectionDomain, QueuePair, Sizes,
};

/// Longer than anything takes that is waited for, on an emulated processor.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const SIZES: Sizes = Sizes { sends: 64, receives: 16 };
/// Completions of a side: of several queue pairs of that size.
const COMPLETIONS: u32 = 512;

/// Runs a test's future.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(6 * PATIENCE, test).await.unwrap() });
}

/// One host's side of the fabric.
pub(crate) struct Side {
    pub(crate) device: Device,
    pub(crate) domain: ProtectionDomain,
    pub(crate) queue: Arc<CompletionQueue>,
    pub(crate) path: Path,
}

impl Side {
    pub(crate) fn open(device: &str) -> Self {
        let device = Device::open(device).unwrap();
        let domain = device.protection_domain().unwrap();
        let queue = CompletionQueue::new(&device, COMPLETIONS).unwrap();
        let path = device.path().unwrap();
        Self { device, domain, queue, path }
    }

    pub(crate) fn a() -> Self {
        Self::open("rxe_a")
    }

    pub(crate) fn b() -> Self {
        Self::open("rxe_b")
    }

    /// Registered memory with a pattern, which the other side may read.
    pub(crate) fn source(&self, bytes: usize) -> MemoryRegion {
        let mut block = Block::with_len(bytes);
        block.copy_from_slice(&pattern(bytes));
        self.domain.register(Arc::new(block), Access { remote_read: true, ..Access::default() }).unwrap()
    }

    /// Registered memory to read into, in pieces.
    pub(crate) fn targets(&self, count: usize, bytes: usize) -> (MemoryRegion, Vec<Piece>) {
        let region = Region::create((count * bytes).next_multiple_of(4096)).unwrap();
        let (region, mut pieces) = pieces(region, bytes);
        pieces.truncate(count);
        let access = Access { local_write: true, ..Access::default() };
        (self.domain.register(region, access).unwrap(), pieces)
    }
}

/// Two halves, connected to each other.
pub(crate) fn connect(one: &Side, other: &Side, sizes: Sizes) -> (QueuePair, QueuePair) {
    try_connect(one, other, sizes).unwrap()
}

pub(crate) fn try_connect(
    one: &Side,
    other: &Side,
    sizes: Sizes,
) -> Result<(QueuePair, QueuePair), VerbsError> {
    let first = one.domain.queue_pair(&one.queue, &one.path, sizes)?;
    let second = other.domain.queue_pair(&other.queue, &other.path, sizes)?;
    let (first_end, second_end) = (first.endpoint(), second.endpoint());
    Ok((first.connect(&second_end)?, second.connect(&first_end)?))
}

/// Bytes of which no two pages are alike.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    let word = |at: usize| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..bytes.div_ceil(8)).flat_map(word).take(bytes).collect()
}

/// Bytes that an end of the cable has sent or got.
pub(crate) fn counter(link: &str, direction: &str) -> u64 {
    let path = format!("/sys/class/net/{link}/statistics/{direction}_bytes");
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// Runs a command of the system's.
pub(crate) fn system(command: &str) {
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}");
}

/// Mends the cable when the test ends, however it ends.
pub(crate) struct Mended;

impl Mended {
    pub(crate) fn now() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/rig/rdma/fabric.sh");
        assert!(FilePath::new(script).exists());
        system(script);
    }
}

impl Drop for Mended {
    fn drop(&mut self) {
        Self::now();
    }
}
