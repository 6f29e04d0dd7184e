//! How fast shards are indexed and verified, beside plain reads of the same files; and manifests written and read.
//!
//! The files are in the page cache: what is measured is the processor's part.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops")]

use std::hint::black_box;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use datapath::dataset::index::{IndexOptions, index};
use datapath::dataset::manifest::{decode, encode};
use datapath::dataset::verify::verify;
use datapath::dataset::{Dtype, RecordLayout};
use datapath::store::{DirectoryStore, Store};

const SHARDS: usize = 2;
const SHARD_BYTES: usize = 64 << 20;

/// Shards of samples of two fields: a large one of `bytes`, and a label.
fn write_tars(directory: &Path, bytes: usize) {
    let content: Vec<u8> = (0..bytes).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
    for shard in 0..SHARDS {
        let file = std::fs::File::create(directory.join(format!("{shard:03}.tar"))).unwrap();
        let mut builder = tar::Builder::new(std::io::BufWriter::new(file));
        for sample in 0..SHARD_BYTES / (bytes + 2048) {
            for (field, content) in [("jpg", content.as_slice()), ("cls", b"7")] {
                let mut header = tar::Header::new_ustar();
                header.set_size(u64::try_from(content.len()).unwrap());
                builder.append_data(&mut header, format!("{sample:08}.{field}"), content).unwrap();
            }
        }
        builder.finish().unwrap();
    }
}

fn write_records(directory: &Path) {
    for shard in 0..SHARDS {
        std::fs::write(directory.join(format!("{shard:03}.bin")), vec![7; SHARD_BYTES]).unwrap();
    }
}

/// The least that can be done: every byte into one buffer.
fn read_plainly(directory: &Path) -> usize {
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let mut file = std::fs::File::open(entry.unwrap().path()).unwrap();
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => break,
                read => bytes += read,
            }
        }
    }
    bytes
}

fn manifest(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    for (name, sample_bytes) in [("tar, 128 KiB", 128 << 10), ("tar, 4 KiB", 4 << 10), ("records, 4 KiB", 0)]
    {
        let directory = tempfile::tempdir().unwrap();
        if sample_bytes > 0 {
            write_tars(directory.path(), sample_bytes);
        } else {
            write_records(directory.path());
        }
        let store = Store::Directory(DirectoryStore::open(directory.path()).unwrap());
        let record = Some(RecordLayout { dtype: Dtype::U16, items: 2048, header_bytes: 0 });
        let options = IndexOptions { record, threads: NonZeroUsize::MIN, ..IndexOptions::default() };
        let made = runtime.block_on(index(&store, &options)).unwrap();

        let mut group = criterion.benchmark_group(format!("dataset/{name}"));
        group.sample_size(10);
        group.throughput(Throughput::Bytes(u64::try_from(read_plainly(directory.path())).unwrap()));
        group.bench_function("plain read", |bencher| bencher.iter(|| read_plainly(directory.path())));
        group.bench_function("index, one shard at a time", |bencher| {
            bencher.iter(|| runtime.block_on(index(&store, &options)).unwrap());
        });
        group.bench_function("verify, one chunk at a time", |bencher| {
            bencher.iter(|| runtime.block_on(verify(&store, &made, options.threads)).unwrap());
        });
        group.finish();

        let bytes = encode(&made);
        let mut group = criterion.benchmark_group("manifest");
        group.sample_size(20);
        group.throughput(Throughput::Elements(made.sample_count()));
        let label = format!("{name}, {:.1} bytes a sample", per_sample(bytes.len(), made.sample_count()));
        group.bench_function(BenchmarkId::new("encode", &label), |bencher| {
            bencher.iter(|| black_box(encode(&made)))
        });
        group.bench_function(BenchmarkId::new("decode", &label), |bencher| {
            bencher.iter(|| decode(&bytes).unwrap())
        });
        group.finish();
    }
}

fn per_sample(bytes: usize, samples: u64) -> f64 {
    f64::from(u32::try_from(bytes).unwrap()) / f64::from(u32::try_from(samples).unwrap())
}

criterion_group!(benches, manifest);
criterion_main!(benches);
