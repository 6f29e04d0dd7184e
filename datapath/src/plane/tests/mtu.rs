//! Two planes whose lane crosses a real interface of a given MTU: bulk data must not stall there, and must come in
//! packets of the size that the interface carries. Elsewhere only the packet size is limited; here the kernel refuses.

use std::io::Write;
use std::process::Command;

use tokio::time::timeout;

use super::*;
use crate::dataset::{ChunkId, SampleId};
use crate::transport::{Part, Piece};

/// The MTU of the namespace that this very test is running in, for the second of its two processes.
const INSIDE: &str = "SLIPWAY_TEST_LOOPBACK_MTU";
const NAME: &str = "plane::tests::mtu::the_lane_uses_each_interfaces_mtu_and_never_stalls";
const IN_NAMESPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/rig/loopback.py");

const SAMPLE_BYTES: u32 = 64 << 10;
const SAMPLES_PER_CHUNK: u32 = 64;
const CHUNKS: u32 = 8;
/// Passes over all chunks of one connection: packets of the last one are looked at, when the MTU is long found.
const PASSES: u32 = 3;
/// A chunk that takes longer has stalled: 4 MiB take a fraction of a second, unoptimised and on a busy machine too.
const STALL: Duration = Duration::from_secs(8);
/// A probe of a larger packet that a busy machine delays counts as lost, and discovery settles below it: so many
/// connections have the chance to find what is possible.
const TRIES: u64 = 4;

#[test]
fn the_lane_uses_each_interfaces_mtu_and_never_stalls() {
    if let Some(mtu) = std::env::var_os(INSIDE) {
        let mtu = mtu.into_string().unwrap().parse().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        return runtime.unwrap().block_on(exchange(mtu));
    }
    let tried = Command::new("python3").args([IN_NAMESPACE, "1500", "true"]).output().unwrap();
    if !tried.status.success() {
        let why = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
        let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!ci, "cannot make a network namespace: {why}");
        // Past the capture of a test that passes: nobody is to take it for one that ran.
        let _ = writeln!(std::io::stderr(), "not run: cannot make a network namespace: {why}");
        return;
    }
    for mtu in ["1500", "9000", "65536"] {
        let mut command = Command::new("python3");
        command.arg(IN_NAMESPACE).arg(mtu).arg(std::env::current_exe().unwrap());
        let ran = command.args(["--exact", NAME, "--nocapture"]).env(INSIDE, mtu).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "MTU {mtu}:\n{said}");
        // A name that no longer fits would run no test and succeed.
        assert!(said.contains("1 passed"), "MTU {mtu}:\n{said}");
        print!("{said}");
    }
}

/// Asks a peer for everything, over one connection after the other, until its packets are as large as they may be.
async fn exchange(mtu: u64) {
    let route = crate::transport::quic::tuning::route_mtu(([127, 0, 0, 1], 9).into());
    // No IP packet is larger than this.
    assert_eq!(u64::from(route), mtu.min(65_535), "the namespace's loopback");
    // Less the headers of IPv6 and UDP; and what one UDP send takes, with some room.
    let possible = (mtu - 48).min(65_400);
    let size = Size {
        samples: CHUNKS * SAMPLES_PER_CHUNK,
        sample_bytes: SAMPLE_BYTES,
        samples_per_chunk: SAMPLES_PER_CHUNK,
        chunks_per_shard: CHUNKS,
    };
    let dataset = Dataset::records(size);
    let order = order(&dataset, 10, Remainder::Drop);
    let group = Group::start(&dataset, &order, 2, dataset.stored_bytes()).await;
    let mut found = Vec::new();
    for fence in 2..2 + TRIES {
        // The asked one first: it refuses who is not in its membership yet.
        group.enter(1, fence).await;
        group.enter(0, fence).await;
        let lane = group.planes[0].lane(PeerId(1)).unwrap();
        let mut before = None;
        for pass in 0..PASSES {
            if pass + 1 == PASSES {
                before = lane.stats().await;
            }
            for chunk in 0..CHUNKS {
                let fetched = timeout(STALL, fetch(&lane, &dataset, ChunkId(chunk))).await;
                let stats = lane.stats().await;
                fetched
                    .unwrap_or_else(|_| panic!("MTU {mtu}: chunk {chunk} of pass {pass} stalls: {stats:?}"));
            }
        }
        let (before, after) = (before.unwrap().udp_rx, lane.stats().await.unwrap().udp_rx);
        let packet = (after.bytes - before.bytes) / (after.datagrams - before.datagrams);
        assert!(packet <= possible, "packets of {packet} bytes, more than {possible}");
        found.push(packet);
        // Discovery stops when the next step is not worth it, and each request's last packet is a short one.
        if packet * 100 >= possible * 90 {
            println!("MTU {mtu}: packets of {packet} bytes on average, of {possible} possible");
            return;
        }
    }
    panic!(
        "MTU {mtu}: {TRIES} connections came in packets of {found:?} bytes on average, of {possible} possible"
    );
}

/// One chunk from the peer, compared with what it must be.
async fn fetch(lane: &PeerLane, dataset: &Dataset, chunk: ChunkId) {
    let first = dataset.manifest.chunk(chunk).first_sample.0;
    let mut slot = vec![0; usize::try_from(SAMPLE_BYTES * SAMPLES_PER_CHUNK).unwrap()];
    let targets = slot.chunks_mut(usize::try_from(SAMPLE_BYTES).unwrap()).zip(0_u32..);
    let pieces = targets.map(|(target, at)| {
        let sample = SampleId(first + u64::from(at));
        let ends_with = Some(dataset.manifest.sample_crc32c(sample));
        Piece { offset: at * SAMPLE_BYTES, target, sample, ends_with }
    });
    let mut parts = [Part::new(chunk, 0, pieces.collect())];
    assert_eq!(lane.fetch(&mut parts).await, [Ok(())]);
    let expected = &dataset.samples[usize::try_from(first).unwrap()..];
    for (came, expected) in slot.chunks(usize::try_from(SAMPLE_BYTES).unwrap()).zip(expected) {
        assert!(came == expected, "chunk {}: other bytes", chunk.0);
    }
}
