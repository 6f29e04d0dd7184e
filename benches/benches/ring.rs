//! What a batch costs at the ring, besides its bytes: taking and returning a slot, and a first touch of its pages.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use datapath::ring::Ring;

const SLOT_BYTES: u64 = 2 << 20;

fn bench(c: &mut Criterion) {
    let ring = Ring::create(4, SLOT_BYTES).expect("a ring of 8 MiB");
    c.bench_function("ring/take and return a slot", |b| b.iter(|| ring.try_take()));
    c.bench_function("ring/create, and touch a slot of 2 MiB", |b| {
        b.iter_batched(
            || (),
            |()| {
                let ring = Ring::create(4, SLOT_BYTES).expect("a ring of 8 MiB");
                ring.try_take().expect("a free slot").bytes_mut().fill(1);
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
