//! Whatever is written is read back; whatever is read is harmless.

use proptest::prelude::*;

use super::*;
use crate::dataset::ChunkId;

/// A tar manifest of that many chunks of samples, each with fields of those lengths.
fn tar_manifest(chunks: &[Vec<Vec<u32>>]) -> Manifest {
    let fields = vec!["cls".to_owned(), "jpg".to_owned(), "txt".to_owned()];
    let shards = ["a.tar", "b/c.tar"].map(|name| Shard { name: name.into(), bytes: 1 << 40 });
    let mut draft = Draft::new(Format::Tar, fields, shards.to_vec());
    let (mut shard, mut next) = (0, 512u64);
    for (at, samples) in chunks.iter().enumerate() {
        if at == chunks.len() / 2 && at > 0 {
            (shard, next) = (1, 0);
        }
        let first_sample = SampleId(count(draft.sample_crcs.len()));
        let mut end = 0;
        for lens in samples {
            for (field, len) in (0u16..).zip(lens) {
                let offset = end + 512;
                draft.spans.push(FieldSpan { field, offset, len: *len });
                end = offset + len;
            }
            draft.span_starts.push(u32::try_from(draft.spans.len()).unwrap());
            draft.sample_crcs.push(end.wrapping_mul(0x9E37_79B9));
        }
        let samples = u32::try_from(samples.len()).unwrap();
        draft.chunks.push(Chunk {
            shard: ShardId(shard),
            offset: next,
            len: end,
            crc32c: end ^ 7,
            first_sample,
            samples,
        });
        next += u64::from(end) + 1000;
    }
    draft.finish().unwrap()
}

fn record_manifest() -> Manifest {
    let layout = RecordLayout { dtype: Dtype::U16, items: 3, header_bytes: 8 };
    let shards = vec![Shard { name: "a.bin".into(), bytes: 8 + 60 }];
    let mut draft = Draft::new(Format::Records(layout), vec!["data".into()], shards);
    for (offset, first, samples) in [(8, 0, 7), (50, 7, 3)] {
        let len = samples * 6;
        draft.chunks.push(Chunk {
            shard: ShardId(0),
            offset,
            len,
            crc32c: 9,
            first_sample: SampleId(first),
            samples,
        });
    }
    draft.sample_crcs = (0..10).collect();
    draft.finish().unwrap()
}

#[test]
fn the_accessors_agree_with_the_tables() {
    let manifest = tar_manifest(&[vec![vec![10, 20], vec![5]], vec![vec![0, 1, 2]]]);
    assert_eq!((manifest.sample_count(), manifest.bytes(), manifest.max_sample_bytes()), (3, 38, 30));
    assert_eq!(manifest.chunk_of(SampleId(1)), ChunkId(0));
    assert_eq!(manifest.chunk_of(SampleId(2)), ChunkId(1));
    let spans: Vec<_> = manifest.spans(SampleId(1)).collect();
    assert_eq!(spans, [FieldSpan { field: 0, offset: 512 + 10 + 512 + 20 + 512, len: 5 }]);
    assert_eq!(manifest.sample_bytes(SampleId(2)), 3);

    let manifest = record_manifest();
    assert_eq!((manifest.sample_count(), manifest.bytes(), manifest.max_sample_bytes()), (10, 60, 6));
    let spans: Vec<_> = manifest.spans(SampleId(8)).collect();
    assert_eq!(spans, [FieldSpan { field: 0, offset: 6, len: 6 }]);
    assert_eq!(manifest.sample_crc32c(SampleId(8)), 8);
}

/// The digest is in checkpoints and decides the order: it must never change for the same data.
#[test]
fn the_bytes_are_fixed() {
    let bytes = encode(&record_manifest());
    let body = &bytes[HEAD_BYTES..HEAD_BYTES + 24];
    assert_eq!(body, b"\x01\x02\x03\x08\x01\x04data\x01\x05a.bin\x44\x02\x00\x08\x2a\x07\x09");
    assert_eq!(
        record_manifest().digest().to_string(),
        "4618369d104455674dacb8d96a6ee4cacc3986f43627bb9d01cfa5ecc18fc44c"
    );
}

#[test]
fn what_is_wrong_is_named() {
    let bytes = encode(&record_manifest());
    assert_eq!(decode(b"something else"), Err(ManifestError::NotAManifest));
    assert_eq!(decode(b""), Err(ManifestError::NotAManifest));
    let mut other = bytes.clone();
    other[8] = 2;
    assert_eq!(decode(&other), Err(ManifestError::Version { found: 2 }));
    let (found, announced) = (count(bytes.len()) - 1, count(bytes.len()));
    assert_eq!(decode(&bytes[..bytes.len() - 1]), Err(ManifestError::Length { found, announced }));
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(decode(&longer), Err(ManifestError::Length { .. })));
    for bit in HEAD_BYTES * 8..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode(&flipped), Err(ManifestError::Checksum), "bit {bit}");
    }
    assert_eq!(decode(&bytes), Ok(record_manifest()));
}

#[test]
fn impossible_tables_are_refused() {
    let valid = record_manifest();
    type Change = fn(&mut Manifest);
    let changes: [(Change, DraftError); 9] = [
        (|m| m.shards[0].bytes = 67, DraftError::Chunk(1)),
        (|m| m.shards[0].name = "../a.bin".into(), DraftError::Shard(0)),
        (|m| m.shards[0].name = "/a.bin".into(), DraftError::Shard(0)),
        (|m| m.shards.push(m.shards[0].clone()), DraftError::Shard(1)),
        (|m| m.fields[0] = "other".into(), DraftError::Fields),
        (
            |m| m.format = Format::Records(RecordLayout { dtype: Dtype::U16, items: 0, header_bytes: 0 }),
            DraftError::Layout,
        ),
        (
            |m| m.format = Format::Records(RecordLayout { dtype: Dtype::U32, items: 3, header_bytes: 0 }),
            DraftError::Sample(0),
        ),
        (|m| m.chunks = std::sync::Arc::new([]), DraftError::NoSamples),
        (|m| m.fields = vec!["data".into(), "data".into()], DraftError::Fields),
    ];
    for (at, (change, error)) in changes.into_iter().enumerate() {
        let mut manifest = valid.clone();
        change(&mut manifest);
        manifest.digest = digest_of(&manifest);
        assert_eq!(decode(&encode(&manifest)), Err(ManifestError::Impossible(error)), "{at}");
    }
}

#[test]
fn a_longer_form_of_a_number_is_refused() {
    let body = encode_body(&record_manifest());
    // The record's items, 3, in two bytes.
    let longer = [&body[..2], b"\x83\x00", &body[3..]].concat();
    assert_eq!(decode_body(&longer), Err(ManifestError::Malformed { at: 4 }));
    decode_body(&body).unwrap();
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_back(
        chunks in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec(0u32..100_000, 1..4), 1..8), 1..8),
    ) {
        let manifest = tar_manifest(&chunks);
        prop_assert_eq!(decode(&encode(&manifest)).unwrap(), manifest);
    }

    #[test]
    fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(decode(&body));
        // What is accepted is the only form of what it means.
        if let Ok(manifest) = decode_body(&body) {
            prop_assert_eq!(encode_body(&manifest), body);
        }
    }

    #[test]
    fn damaged_bodies_never_panic_and_stay_canonical(
        records in any::<bool>(),
        damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let manifest = if records { record_manifest() } else { tar_manifest(&[vec![vec![10, 300], vec![5]], vec![vec![0, 1, 2]]]) };
        let mut body = encode_body(&manifest);
        for (at, byte) in damage {
            let at = at % body.len();
            body[at] = byte;
        }
        if let Ok(manifest) = decode_body(&body) {
            prop_assert_eq!(encode_body(&manifest), body);
        }
    }

    /// A few bytes that announce a great deal must not be believed.
    #[test]
    fn announced_counts_cost_nothing(at in 0usize..30, count in any::<u32>()) {
        let mut body = encode_body(&tar_manifest(&[vec![vec![1]]]));
        let mut number = Vec::new();
        put(&mut number, count.into());
        let at = at.min(body.len());
        body.splice(at..at, number);
        let mut reader = Reader { body: &body, at: 0 };
        if let Some(draft) = reader.draft() {
            prop_assert!(draft.sample_crcs.capacity() * 4 + draft.spans.capacity() * 12 <= body.len() * 64);
        }
    }
}
