//! A manifest as bytes (pure): versioned, checksummed, compact, and safe to read from anywhere.
//!
//! ```text
//! file  = "SLIPWAYM" version:u32 body_bytes:u64 body sha256(body)          integers little-endian
//! body  = format fields shards chunks                                      numbers are LEB128, shortest form
//! format= 0 | 1 dtype items header_bytes
//! fields= count { len name }            shards = count { len name bytes }
//! chunks= count { shard_delta gap len samples crc:u32 { crc:u32 [count { field gap len }] } }
//! ```
//! A gap is counted from the previous end (of the chunk before in the same shard; of the span before in the same chunk),
//! so a tar sample of two fields takes about 17 bytes and a record 4. The form is canonical: two different bodies are two
//! different manifests, so the SHA-256 that guards the body also is the dataset's digest.

use sha2::{Digest, Sha256};

use super::build::{Draft, DraftError};
use super::records::{Dtype, RecordLayout};
use super::{
    Chunk, DatasetDigest, FieldSpan, Format, MAX_FIELDS, MAX_NAME_BYTES, MAX_SHARDS, Manifest, SampleId,
};
use super::{Shard, ShardId, count, index_of};

/// The version that is written and read.
pub const MANIFEST_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"SLIPWAYM";
const HEAD_BYTES: usize = 8 + 4 + 8;
const DIGEST_BYTES: usize = 32;

/// Why bytes are no manifest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Something else altogether.
    #[error("read the manifest: it does not begin like one")]
    NotAManifest,
    /// From another release.
    #[error("read the manifest: it has version {found}, this release reads {MANIFEST_VERSION}")]
    Version {
        /// The version that it has.
        found: u32,
    },
    /// Shorter or longer than it says.
    #[error("read the manifest: it has {found} bytes where its head announces {announced}")]
    Length {
        /// Bytes that are there.
        found: u64,
        /// Bytes that should be.
        announced: u64,
    },
    /// Damaged.
    #[error("read the manifest: its checksum does not match its content")]
    Checksum,
    /// The body ends early, goes on for too long, or a number in it is not in the shortest form.
    #[error("read the manifest: its body is malformed at byte {at}")]
    Malformed {
        /// Where, counted from the body's first byte.
        at: u64,
    },
    /// It can be read, but describes no possible dataset.
    #[error("read the manifest: {0}")]
    Impossible(#[from] DraftError),
}

/// The manifest as the bytes of its file.
pub fn encode(manifest: &Manifest) -> Vec<u8> {
    let body = encode_body(manifest);
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len() + DIGEST_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(MANIFEST_VERSION.to_le_bytes());
    bytes.extend(count(body.len()).to_le_bytes());
    bytes.extend(&body);
    bytes.extend(manifest.digest.0);
    bytes
}

/// Reads the bytes of a manifest's file. Memory is bounded by a small multiple of `bytes`, whatever they say.
pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(ManifestError::NotAManifest)?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or(ManifestError::NotAManifest)?;
    let found = u32::from_le_bytes(*version);
    if found != MANIFEST_VERSION {
        return Err(ManifestError::Version { found });
    }
    let (announced, rest) = rest.split_first_chunk::<8>().ok_or(ManifestError::NotAManifest)?;
    let announced = u64::from_le_bytes(*announced).saturating_add(count(HEAD_BYTES + DIGEST_BYTES));
    let found = count(bytes.len());
    let Some((body, digest)) = rest.split_last_chunk::<DIGEST_BYTES>().filter(|_| found == announced) else {
        return Err(ManifestError::Length { found, announced });
    };
    if body_digest(body).0 != *digest {
        return Err(ManifestError::Checksum);
    }
    decode_body(body)
}

/// The digest of a manifest that was just put together.
pub(super) fn digest_of(manifest: &Manifest) -> DatasetDigest {
    body_digest(&encode_body(manifest))
}

fn body_digest(body: &[u8]) -> DatasetDigest {
    DatasetDigest(Sha256::digest(body).into())
}

fn encode_body(manifest: &Manifest) -> Vec<u8> {
    let mut out = Vec::with_capacity(manifest.sample_crcs.len() * 4 + manifest.spans.len() * 6 + 4096);
    match &manifest.format {
        Format::Tar => out.push(0),
        Format::Records(layout) => {
            out.extend([1, layout.dtype.code()]);
            put(&mut out, layout.items.into());
            put(&mut out, layout.header_bytes);
        }
    }
    put(&mut out, count(manifest.fields.len()));
    for field in &manifest.fields {
        put_name(&mut out, field);
    }
    put(&mut out, count(manifest.shards.len()));
    for shard in &manifest.shards {
        put_name(&mut out, &shard.name);
        put(&mut out, shard.bytes);
    }
    put(&mut out, count(manifest.chunks.len()));
    let (mut shard, mut end) = (0, 0);
    for chunk in manifest.chunks.iter() {
        if chunk.shard.0 != shard {
            end = 0;
        }
        put(&mut out, (chunk.shard.0 - shard).into());
        put(&mut out, chunk.offset - end);
        put(&mut out, chunk.len.into());
        put(&mut out, chunk.samples.into());
        out.extend(chunk.crc32c.to_le_bytes());
        (shard, end) = (chunk.shard.0, chunk.offset + u64::from(chunk.len));
        put_samples(&mut out, manifest, chunk);
    }
    out
}

fn put_samples(out: &mut Vec<u8>, manifest: &Manifest, chunk: &Chunk) {
    let mut end = 0;
    for sample in chunk.first_sample.0..chunk.first_sample.0 + u64::from(chunk.samples) {
        out.extend(manifest.sample_crcs[index_of(sample)].to_le_bytes());
        if manifest.format == Format::Tar {
            put(out, count(manifest.spans(SampleId(sample)).count()));
            for span in manifest.spans(SampleId(sample)) {
                put(out, span.field.into());
                put(out, (span.offset - end).into());
                put(out, span.len.into());
                end = span.offset + span.len;
            }
        }
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    put(out, count(name.len()));
    out.extend(name.as_bytes());
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7F {
        out.push(u8::try_from(number & 0x7F).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or(0));
}

fn decode_body(body: &[u8]) -> Result<Manifest, ManifestError> {
    let mut reader = Reader { body, at: 0 };
    match reader.draft() {
        Some(draft) if reader.at == body.len() => Ok(draft.finish_as(body_digest(body))?),
        _ => Err(ManifestError::Malformed { at: count(reader.at) }),
    }
}

/// Reads a body; `None` where it is malformed.
struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn draft(&mut self) -> Option<Draft> {
        let format = match self.byte()? {
            0 => Format::Tar,
            1 => {
                let dtype = Dtype::from_code(self.byte()?)?;
                Format::Records(RecordLayout { dtype, items: self.small()?, header_bytes: self.number()? })
            }
            _ => return None,
        };
        let fields = self.some_of(MAX_FIELDS, 1)?;
        let fields = (0..fields).map(|_| self.name()).collect::<Option<_>>()?;
        let shards = self.some_of(MAX_SHARDS, 2)?;
        let shards = (0..shards)
            .map(|_| Some(Shard { name: self.name()?, bytes: self.number()? }))
            .collect::<Option<_>>()?;
        let mut draft = Draft::new(format, fields, shards);
        // A chunk takes 8 bytes at least, and 4 for each of its one or more samples.
        let chunks = self.some_of(usize::MAX, 12)?;
        let (mut shard, mut end) = (0u32, 0u64);
        for _ in 0..chunks {
            let delta = self.small()?;
            if delta != 0 {
                end = 0;
            }
            shard = shard.checked_add(delta)?;
            let offset = end.checked_add(self.number()?)?;
            let (len, samples) = (self.small()?, self.small()?);
            let chunk = Chunk {
                shard: ShardId(shard),
                offset,
                len,
                crc32c: self.crc()?,
                first_sample: SampleId(count(draft.sample_crcs.len())),
                samples,
            };
            end = offset.checked_add(len.into())?;
            draft.chunks.push(chunk);
            self.samples(&mut draft, samples)?;
        }
        Some(draft)
    }

    fn samples(&mut self, draft: &mut Draft, samples: u32) -> Option<()> {
        let mut end = 0u32;
        for _ in 0..samples {
            draft.sample_crcs.push(self.crc()?);
            if draft.format == Format::Tar {
                let spans = self.some_of(MAX_FIELDS, 3)?;
                for _ in 0..spans {
                    let field = u16::try_from(self.number()?).ok()?;
                    let offset = end.checked_add(self.small()?)?;
                    let len = self.small()?;
                    end = offset.checked_add(len)?;
                    draft.spans.push(FieldSpan { field, offset, len });
                }
                draft.span_starts.push(u32::try_from(draft.spans.len()).ok()?);
            }
        }
        Some(())
    }

    /// A count of things of `min_bytes` each at least: never more than there is input for.
    fn some_of(&mut self, most: usize, min_bytes: usize) -> Option<usize> {
        let number = usize::try_from(self.number()?).ok()?;
        (number <= most && number <= (self.body.len() - self.at) / min_bytes).then_some(number)
    }

    fn name(&mut self) -> Option<String> {
        let len = self.some_of(MAX_NAME_BYTES, 1)?;
        let name = std::str::from_utf8(&self.body[self.at..self.at + len]).ok()?;
        self.at += len;
        Some(name.to_owned())
    }

    fn crc(&mut self) -> Option<u32> {
        let crc = self.body.get(self.at..)?.first_chunk::<4>()?;
        self.at += 4;
        Some(u32::from_le_bytes(*crc))
    }

    fn small(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            // The tenth byte has room for one bit only.
            if shift == 63 && bits > 1 {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                // A last byte of zero would be a longer form of the same number.
                return (byte != 0 || shift == 0).then_some(number);
            }
        }
        None
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.body.get(self.at)?;
        self.at += 1;
        Some(byte)
    }
}

#[cfg(test)]
mod tests;
