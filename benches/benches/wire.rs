//! The frames between two data planes: a request for a batch of 256 small samples from 64 chunks.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use datapath::wire::{Frame, Group, Want, decode, encode};

fn want() -> Frame {
    let group = |chunk: u32| Group { chunk, until: 9, ranges: vec![(chunk * 4096, 4096); 4] };
    Frame::Want(Want { request: 1, fence: 2, step: 3, refresh: false, groups: (0..64).map(group).collect() })
}

fn bench(c: &mut Criterion) {
    let frame = want();
    let bytes = encode(&frame).expect("it fits");
    c.bench_function("wire/encode a want of 256 ranges", |b| b.iter(|| encode(black_box(&frame))));
    c.bench_function("wire/decode a want of 256 ranges", |b| b.iter(|| decode(black_box(&bytes[4..]))));
}

criterion_group!(benches, bench);
criterion_main!(benches);
