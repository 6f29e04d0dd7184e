//! What this crate's tests share: a certificate authority in memory, and datasets on disk.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::dataset::{
    Chunk, DatasetDigest, Dtype, FieldSpan, Format, Manifest, RecordLayout, SampleId, Shard, ShardId,
};
use crate::integrity::crc32c;
use crate::store::{DirectoryStore, Store};
use crate::transport::quic::tls::Identity;

/// A job's authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A fresh one.
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    /// A party of this job.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            ca_der: self.issuer.der().to_vec(),
            cert_der: cert.der().to_vec(),
            key_der: key.serialize_der(),
        }
    }
}

/// A small dataset in a folder of its own, and what its samples are.
pub(crate) struct Dataset {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) samples: Vec<Vec<u8>>,
}

/// How large a [`Dataset`] is.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) samples: u32,
    pub(crate) sample_bytes: u32,
    pub(crate) samples_per_chunk: u32,
    pub(crate) chunks_per_shard: u32,
}

impl Dataset {
    /// Records of equal size.
    pub(crate) fn records(size: Size) -> Self {
        let layout = RecordLayout { dtype: Dtype::U8, items: size.sample_bytes, header_bytes: 0 };
        let lengths = vec![vec![Some(size.sample_bytes)]; usize::try_from(size.samples).unwrap()];
        Self::build(Format::Records(layout), &["data"], &lengths, size)
    }

    /// Samples of two fields of many lengths, the second missing from every third sample, with gaps as in a tar.
    pub(crate) fn fields(size: Size) -> Self {
        let lengths: Vec<_> = (0..size.samples)
            .map(|sample| {
                vec![Some(sample * 7 % (size.sample_bytes + 1)), (sample % 3 != 0).then_some(sample % 9)]
            })
            .collect();
        Self::build(Format::Tar, &["cls", "png"], &lengths, size)
    }

    fn build(format: Format, fields: &[&str], lengths: &[Vec<Option<u32>>], size: Size) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let gap = if format == Format::Tar { 5 } else { 0 };
        let (mut shards, mut chunks, mut samples) = (Vec::new(), Vec::new(), Vec::new());
        let (mut crcs, mut spans, mut span_starts) = (Vec::new(), Vec::new(), vec![0]);
        let per_shard = usize::try_from(size.samples_per_chunk * size.chunks_per_shard).unwrap();
        let mut fill = 0_u64;
        for (shard, shard_samples) in lengths.chunks(per_shard).enumerate() {
            let mut file = Vec::new();
            for chunk_samples in shard_samples.chunks(usize::try_from(size.samples_per_chunk).unwrap()) {
                let start = file.len();
                let first_sample = SampleId(u64::try_from(samples.len()).unwrap());
                for fields in chunk_samples {
                    let mut sample = Vec::new();
                    for (field, len) in fields.iter().enumerate().filter_map(|(at, len)| Some((at, (*len)?)))
                    {
                        file.extend(vec![0xEE; gap]);
                        let offset = u32::try_from(file.len() - start).unwrap();
                        spans.push(FieldSpan { field: u16::try_from(field).unwrap(), offset, len });
                        let start = sample.len();
                        sample.resize(start + usize::try_from(len).unwrap(), 0);
                        for bytes in sample[start..].chunks_mut(4) {
                            fill = fill.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            // The upper half, as the lower one's bits have short periods.
                            bytes.copy_from_slice(&fill.to_le_bytes()[4..4 + bytes.len()]);
                        }
                        file.extend(&sample[start..]);
                    }
                    file.extend(vec![0xEE; gap]);
                    crcs.push(crc32c(&sample));
                    span_starts.push(u32::try_from(spans.len()).unwrap());
                    samples.push(sample);
                }
                chunks.push(Chunk {
                    shard: ShardId(u32::try_from(shard).unwrap()),
                    offset: u64::try_from(start).unwrap(),
                    len: u32::try_from(file.len() - start).unwrap(),
                    crc32c: crc32c(&file[start..]),
                    first_sample,
                    samples: u32::try_from(chunk_samples.len()).unwrap(),
                });
            }
            let name = format!("shard-{shard:03}.bin");
            std::fs::write(folder.path().join(&name), &file).unwrap();
            shards.push(Shard { name, bytes: u64::try_from(file.len()).unwrap() });
        }
        let records = format != Format::Tar;
        let manifest = Manifest {
            format,
            fields: fields.iter().map(|&field| field.to_owned()).collect(),
            shards,
            chunks: chunks.into(),
            sample_crcs: crcs,
            span_starts: if records { Vec::new() } else { span_starts },
            spans: if records { Vec::new() } else { spans },
            bytes: samples.iter().map(|sample| u64::try_from(sample.len()).unwrap()).sum(),
            max_sample_bytes: samples
                .iter()
                .map(|sample| u64::try_from(sample.len()).unwrap())
                .max()
                .unwrap(),
            digest: DatasetDigest([7; 32]),
        };
        Self { folder, manifest: Arc::new(manifest), samples }
    }

    /// The folder as a store.
    pub(crate) fn store(&self) -> Store {
        Store::Directory(DirectoryStore::open(self.folder.path()).unwrap())
    }

    /// Bytes of all chunks: what a full read takes from the store.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.manifest.chunks().iter().map(|chunk| u64::from(chunk.len)).sum()
    }

    /// Turns one byte of a chunk around, on disk.
    pub(crate) fn corrupt(&self, chunk: u32, at: u32) {
        use std::os::unix::fs::FileExt;
        let place = self.manifest.chunks()[usize::try_from(chunk).unwrap()];
        let path = self.folder.path().join(&self.manifest.shard(place.shard).name);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, place.offset + u64::from(at)).unwrap();
        file.write_all_at(&[!byte[0]], place.offset + u64::from(at)).unwrap();
    }
}
