//! How fast an order says which samples a consumer gets: at any step, with and without a shuffle, and at an epoch's start.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

use std::hint::black_box;
use std::num::NonZeroU32;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use datapath::dataset::index::{IndexOptions, index};
use datapath::dataset::{Dtype, Manifest, RecordLayout};
use datapath::order::{Consumer, Order, OrderDigest, OrderSpec, Remainder, Shuffle};
use datapath::store::{DirectoryStore, Store};

const SAMPLES: usize = 10_000_000;
const GLOBAL_BATCH: u32 = 8192;

/// Ten million records of four bytes, 4096 a chunk.
fn dataset() -> Manifest {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.bin"), vec![0; SAMPLES * 4]).unwrap();
    let store = Store::Directory(DirectoryStore::open(directory.path()).unwrap());
    let record = Some(RecordLayout { dtype: Dtype::U32, items: 1, header_bytes: 0 });
    let options = IndexOptions { record, chunk_bytes: 16 << 10, ..IndexOptions::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    runtime.block_on(index(&store, &options)).unwrap()
}

fn order(criterion: &mut Criterion) {
    let manifest = dataset();
    let new = |shuffle| {
        let global_batch = NonZeroU32::new(GLOBAL_BATCH).unwrap();
        Order::new(&manifest, OrderSpec { seed: 1, global_batch, shuffle, remainder: Remainder::Drop })
            .unwrap()
    };
    let windows = |chunks| Shuffle::Window { chunks: NonZeroU32::new(chunks).unwrap() };

    let mut group = criterion.benchmark_group("order/slice");
    for (name, shuffle) in
        [("none", Shuffle::None), ("64 chunks", windows(64)), ("all chunks", windows(u32::MAX))]
    {
        let order = new(shuffle);
        let epoch = order.epoch(3);
        let consumer = Consumer { index: 2, of: NonZeroU32::new(4).unwrap() };
        group.throughput(Throughput::Elements((GLOBAL_BATCH / 4).into()));
        let mut step = 0;
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                // Steps far apart: a seek costs what a next step costs.
                step = (step + 619) % order.steps_per_epoch();
                black_box(epoch.slice(step, consumer))
            });
        });
    }
    group.finish();

    let order = new(windows(64));
    criterion.bench_function("order/epoch of 2442 chunks", |bencher| {
        let mut number = 0;
        bencher.iter(|| {
            number += 1;
            black_box(order.epoch(number))
        });
    });

    let mut group = criterion.benchmark_group("order/digest");
    let step = order.epoch(3).step(5);
    group.throughput(Throughput::Elements(GLOBAL_BATCH.into()));
    group.bench_function("a step", |bencher| {
        bencher.iter(|| {
            let mut digest = OrderDigest::default();
            for placed in &step {
                digest.add(3, 5, placed.position, placed.sample);
            }
            black_box(digest)
        });
    });
    group.finish();
}

criterion_group!(benches, order);
criterion_main!(benches);
