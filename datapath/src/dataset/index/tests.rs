//! Whole datasets on a disk: indexed, stored, opened, verified; and each kind of damage named.

use std::fs;
use std::path::Path;

use super::*;
use crate::dataset::tar::tests::archive;
use crate::dataset::verify::{VerifyReport, verify};
use crate::dataset::{Dtype, SampleId};
use crate::integrity::crc32c;
use crate::store::DirectoryStore;

/// Names and contents.
type Files<'a> = [(&'a str, &'a [u8])];

struct Dataset {
    directory: tempfile::TempDir,
    store: Store,
}

impl Dataset {
    fn new(files: &Files<'_>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let store = Store::Directory(DirectoryStore::open(directory.path()).unwrap());
        Self { directory, store }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        Path::join(self.directory.path(), name)
    }

    async fn index(&self) -> Result<Manifest, Vec<DatasetFault>> {
        index(&self.store, &options()).await
    }

    /// The only fault.
    async fn fault(&self, options: &IndexOptions) -> DatasetFault {
        let faults = index(&self.store, options).await.unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(!faults[0].hint.is_empty());
        faults.into_iter().next().unwrap()
    }

    async fn verify(&self, manifest: &Manifest) -> Result<VerifyReport, Vec<DatasetFault>> {
        verify(&self.store, manifest, NonZeroUsize::new(3).unwrap()).await
    }
}

fn options() -> IndexOptions {
    IndexOptions { chunk_bytes: 10_000, threads: NonZeroUsize::new(2).unwrap(), ..IndexOptions::default() }
}

/// Shards of tars with samples of two fields.
fn tars(shards: usize, samples: usize) -> Dataset {
    let shards: Vec<_> = (0..shards)
        .map(|shard| {
            let files: Vec<_> = (0..samples)
                .flat_map(|sample| {
                    let jpg: Vec<u8> = (0..sample * 97 % 3000)
                        .map(|at| u8::try_from((at ^ shard) & 0xFF).unwrap())
                        .collect();
                    [(format!("{sample:05}.jpg"), jpg), (format!("{sample:05}.cls"), vec![b'0'])]
                })
                .collect();
            let files: Vec<_> =
                files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
            (format!("train/{shard:03}.tar"), archive(&files))
        })
        .collect();
    let shards: Vec<_> = shards.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    Dataset::new(&shards)
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[tokio::test]
async fn a_tar_dataset_is_indexed_stored_opened_and_verified() {
    let dataset = tars(3, 40);
    fs::write(dataset.path("README.md"), "left alone").unwrap();
    let manifest = dataset.index().await.unwrap();
    assert_eq!((manifest.shards().len(), manifest.sample_count()), (3, 120));
    assert_eq!(manifest.fields(), ["cls", "jpg"]);
    assert!(manifest.chunks().len() > 6);
    // Every byte as the manifest places it.
    for sample in (0..120).map(SampleId) {
        let chunk = manifest.chunk(manifest.chunk_of(sample));
        let shard = fs::read(dataset.path(&manifest.shard(chunk.shard).name)).unwrap();
        let content: Vec<u8> = manifest
            .spans(sample)
            .flat_map(|span| {
                let from = index_of(chunk.offset + u64::from(span.offset));
                shard[from..from + index_of(span.len.into())].to_vec()
            })
            .collect();
        assert_eq!(crc32c(&content), manifest.sample_crc32c(sample));
        assert_eq!(count(content.len()), manifest.sample_bytes(sample));
        assert_eq!(manifest.spans(sample).next().unwrap().field, 1, "jpg comes first");
    }
    let (opened, origin) = open(&dataset.store, &options()).await.unwrap();
    assert_eq!((&opened, origin), (&manifest, Origin::Indexed));
    save(&dataset.store, &manifest).await.unwrap();
    let (opened, origin) = open(&dataset.store, &options()).await.unwrap();
    assert_eq!((&opened, origin), (&manifest, Origin::Stored));
    let report = dataset.verify(&manifest).await.unwrap();
    assert_eq!((report.shards, report.samples), (3, 120));
    assert_eq!(report.chunks, count(manifest.chunks().len()));

    // Elsewhere, and with more threads, it is the same dataset.
    let elsewhere = tars(3, 40);
    let options = IndexOptions { threads: NonZeroUsize::new(7).unwrap(), ..options() };
    assert_eq!(index(&elsewhere.store, &options).await.unwrap().digest(), manifest.digest());
    assert_ne!(tars(3, 41).index().await.unwrap().digest(), manifest.digest());
}

#[tokio::test]
async fn records_of_all_kinds_are_indexed() {
    let data: Vec<u8> = (0..=255u8).cycle().take(3_000_000).collect();
    let layout = RecordLayout { dtype: Dtype::U16, items: 250, header_bytes: 0 };
    let with_header = [&[9; 24][..], &data].concat();
    for (name, file, record, items) in [
        ("a.bin", data.clone(), Some(layout), None),
        ("a.bin", with_header, Some(RecordLayout { header_bytes: 24, ..layout }), None),
        ("a.npy", npy("<u2", "(6000, 250)", &data), None, None),
        ("a.npy", npy("<u2", "(1500000,)", &data), None, Some(250)),
    ] {
        let dataset = Dataset::new(&[(name, &file), ("b.txt", b"")]);
        // Records of 500 bytes are cut by the reads' ends.
        let manifest = index(&dataset.store, &IndexOptions { record, items, ..options() }).await.unwrap();
        assert_eq!((manifest.sample_count(), manifest.max_sample_bytes()), (6000, 500));
        assert_eq!((manifest.chunks().len(), manifest.chunks()[0].samples), (300, 20));
        let expected: Vec<_> = data.chunks(500).map(crc32c).collect();
        assert!((0..6000).all(|at| manifest.sample_crc32c(SampleId(at)) == expected[index_of(at)]), "{name}");
        assert_eq!(dataset.verify(&manifest).await.unwrap().bytes, 3_000_000);
    }
}

#[tokio::test]
async fn what_is_no_dataset() {
    let record = Some(RecordLayout { dtype: Dtype::U8, items: 4, header_bytes: 0 });
    let with_record = IndexOptions { record, ..options() };
    let tar = archive(&[("a.x", b"1")]);
    let empty_tar = archive(&[]);
    let big = npy(">u2", "(2, 2)", &[0; 8]);
    let flat = npy("<u2", "(4,)", &[0; 8]);
    let cube = npy("<u2", "(2, 2, 2)", &[0; 16]);
    let short = npy("<u2", "(3, 2)", &[0; 8]);
    let long = npy("<u2", "(2, 1)", &[0; 8]);
    let cases: [(&Files<'_>, FaultCode, Option<&str>); 13] = [
        (&[], FaultCode::Empty, None),
        (&[("README", b"")], FaultCode::Empty, None),
        (&[("a.tar.gz", b"")], FaultCode::Empty, Some("a.tar.gz")),
        (&[("a.tar", &tar), ("b.bin", b"1234")], FaultCode::MixedFormats, Some("b.bin")),
        (&[("a.tar", &empty_tar)], FaultCode::NoSamples, None),
        (&[("a.bin", b"")], FaultCode::NoSamples, None),
        (&[("a.bin", b"12345")], FaultCode::TrailingBytes, Some("a.bin")),
        (&[("a.tar", b"")], FaultCode::Truncated, Some("a.tar")),
        (&[("a.npy", b"PK")], FaultCode::Npy, Some("a.npy")),
        (&[("a.npy", &big)], FaultCode::Npy, Some("a.npy")),
        (&[("a.npy", &short)], FaultCode::RecordLayout, Some("a.npy")),
        (&[("a.npy", &long)], FaultCode::RecordLayout, Some("a.npy")),
        (&[("a.npy", &flat)], FaultCode::RecordLayout, Some("a.npy")),
    ];
    for (files, code, shard) in cases {
        let dataset = Dataset::new(files);
        let fault = dataset.fault(&with_record).await;
        assert_eq!((fault.code, fault.shard.as_deref()), (code, shard), "{fault}");
    }
    for (file, code) in [
        (&short, FaultCode::Truncated),
        (&long, FaultCode::TrailingBytes),
        (&cube, FaultCode::Npy),
        (&flat, FaultCode::RecordLayout),
    ] {
        let fault = Dataset::new(&[("a.npy", file)]).fault(&options()).await;
        assert_eq!(fault.code, code, "{fault}");
    }
    let fault = Dataset::new(&[("a.bin", b"1234")]).fault(&options()).await;
    assert_eq!(fault.code, FaultCode::RecordLayout, "{fault}");
    let (two, three) = (npy("<u2", "(2, 2)", &[0; 8]), npy("<u2", "(1, 3)", &[0; 6]));
    let fault = Dataset::new(&[("a.npy", &two), ("b.npy", &three)]).fault(&options()).await;
    assert_eq!((fault.code, fault.shard.as_deref()), (FaultCode::RecordLayout, Some("b.npy")));
}

#[tokio::test]
async fn the_faults_of_all_shards_are_said_at_once() {
    let good = archive(&[("a.x", b"1")]);
    let split = archive(&[("a.x", b"1"), ("b.x", b"1"), ("a.y", b"1")]);
    let dataset = Dataset::new(&[
        ("1.tar", &good[..700]),
        ("2.tar", &good),
        ("3.tar", &split),
        ("4.tar", b"\x1f\x8b not a tar"),
    ]);
    let faults = dataset.index().await.unwrap_err();
    let named: Vec<_> = faults.iter().map(|fault| (fault.shard.as_deref().unwrap(), fault.code)).collect();
    let expected =
        [("1.tar", FaultCode::Truncated), ("3.tar", FaultCode::SampleSplit), ("4.tar", FaultCode::Truncated)];
    assert_eq!(named, expected);
}

#[tokio::test]
async fn a_stale_manifest_is_a_fault_that_says_how_to_make_it_anew() {
    let dataset = tars(3, 5);
    save(&dataset.store, &dataset.index().await.unwrap()).await.unwrap();
    let shard = fs::read(dataset.path("train/001.tar")).unwrap();
    fs::write(dataset.path("train/001.tar"), [&shard[..], &[0; 512]].concat()).unwrap();
    fs::remove_file(dataset.path("train/002.tar")).unwrap();
    fs::write(dataset.path("train/003.tar"), &shard).unwrap();
    let faults = open(&dataset.store, &options()).await.unwrap_err();
    let named: Vec<_> = faults.iter().map(|fault| (fault.shard.as_deref().unwrap(), fault.code)).collect();
    let expected = [
        ("train/001.tar", FaultCode::ManifestStale),
        ("train/002.tar", FaultCode::ShardMissing),
        ("train/003.tar", FaultCode::ManifestStale),
    ];
    assert_eq!(named, expected);
    assert!(faults.iter().all(|fault| fault.hint.contains("launcher data index") && fault.offset.is_some()));
    fs::write(dataset.path(MANIFEST_NAME), b"SLIPWAYM damaged").unwrap();
    let faults = open(&dataset.store, &options()).await.unwrap_err();
    assert_eq!((faults[0].code, faults.len()), (FaultCode::ManifestCorrupt, 1));
}

#[tokio::test]
async fn every_kind_of_damage_is_found_and_placed() {
    let dataset = tars(3, 40);
    let manifest = dataset.index().await.unwrap();
    let chunk = manifest.chunk(manifest.chunk_of(SampleId(50)));
    let span = manifest.spans(SampleId(50)).next().unwrap();
    let path = dataset.path(&manifest.shard(chunk.shard).name);
    let intact = fs::read(&path).unwrap();

    let in_sample = chunk.offset + u64::from(span.offset);
    let mut damaged = intact.clone();
    damaged[index_of(in_sample) + 3] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let faults = dataset.verify(&manifest).await.unwrap_err();
    let place = |fault: &DatasetFault| (fault.shard.clone().unwrap(), fault.offset.unwrap(), fault.code);
    assert_eq!(
        faults.iter().map(place).collect::<Vec<_>>(),
        [("train/001.tar".into(), in_sample, FaultCode::SampleCrc)]
    );
    assert!(faults[0].message.contains("sample 50"), "{}", faults[0]);

    let mut damaged = intact.clone();
    damaged[index_of(chunk.offset)] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let faults = dataset.verify(&manifest).await.unwrap_err();
    assert_eq!(
        faults.iter().map(place).collect::<Vec<_>>(),
        [("train/001.tar".into(), chunk.offset, FaultCode::ChunkCrc)]
    );

    fs::write(&path, &intact[..intact.len() / 2]).unwrap();
    fs::remove_file(dataset.path("train/002.tar")).unwrap();
    // Another store, since this one still has the removed file open.
    let store = Store::Directory(DirectoryStore::open(dataset.directory.path()).unwrap());
    let faults = verify(&store, &manifest, NonZeroUsize::MIN).await.unwrap_err();
    let codes: Vec<_> = faults.iter().map(|fault| (fault.shard.as_deref().unwrap(), fault.code)).collect();
    assert_eq!(codes[0], ("train/001.tar", FaultCode::Truncated));
    assert_eq!(codes[codes.len() - 1], ("train/002.tar", FaultCode::ShardMissing));
    assert!(faults.iter().filter(|fault| fault.code == FaultCode::ShardMissing).count() == 1);
}
