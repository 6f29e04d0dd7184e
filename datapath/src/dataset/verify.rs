//! Reads a dataset again and compares every byte with its manifest.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::fault::MAX_FAULTS;
use super::index::reading_fault;
use super::{Chunk, DatasetFault, FaultCode, Manifest, SampleId, ShardId, index_of};
use crate::integrity::{Crc32c, crc32c};
use crate::memory::Block;
use crate::store::Store;

/// What was found intact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Shards that were read.
    pub shards: u64,
    /// Chunks whose bytes match.
    pub chunks: u64,
    /// Samples whose bytes match.
    pub samples: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

/// Reads every chunk and compares it and each sample in it; or says all that is wrong. `threads` chunks are read at the same
/// time; comparing them is much faster than reading, so it is done in between.
pub async fn verify(
    store: &Store,
    manifest: &Manifest,
    threads: NonZeroUsize,
) -> Result<VerifyReport, Vec<DatasetFault>> {
    let report = verify_chunks(store, manifest, manifest.chunks().iter(), threads).await?;
    Ok(VerifyReport { shards: super::count(manifest.shards().len()), ..report })
}

/// As [`verify`], of one shard.
pub(super) async fn verify_shard(
    store: &Store,
    manifest: &Manifest,
    shard: ShardId,
    threads: NonZeroUsize,
) -> Result<(), Vec<DatasetFault>> {
    // Chunks are in the order of their shards.
    let chunks = manifest.chunks();
    let first = chunks.partition_point(|chunk| chunk.shard < shard);
    let end = chunks.partition_point(|chunk| chunk.shard <= shard);
    verify_chunks(store, manifest, chunks[first..end].iter(), threads).await.map(|_| ())
}

async fn verify_chunks(
    store: &Store,
    manifest: &Manifest,
    mut waiting: impl Iterator<Item = &Chunk>,
    threads: NonZeroUsize,
) -> Result<VerifyReport, Vec<DatasetFault>> {
    let mut report = VerifyReport::default();
    let mut faults = Vec::new();
    let mut running = JoinSet::new();
    loop {
        while running.len() < threads.get() && faults.len() < MAX_FAULTS {
            let Some(chunk) = waiting.next().copied() else { break };
            let (store, name) = (store.clone(), manifest.shard(chunk.shard).name.clone());
            running.spawn(async move {
                let block = Block::with_len(index_of(chunk.len.into()));
                (chunk, store.read(&name, chunk.offset, block).await)
            });
        }
        match running.join_next().await {
            None => break,
            Some(Ok((chunk, (block, read)))) => {
                let found = match read {
                    Ok(()) => verify_chunk(manifest, &chunk, &block),
                    // Where a file ends does not depend on the chunk; anything else is said of the chunk.
                    Err(error) => {
                        let fault = reading_fault(&error);
                        vec![if fault.offset.is_none() { fault.at(chunk.offset) } else { fault }]
                    }
                };
                report.chunks += 1;
                report.samples += u64::from(chunk.samples);
                report.bytes += u64::from(chunk.len);
                let shard = &manifest.shard(chunk.shard).name;
                faults.extend(found.into_iter().map(|fault| fault.in_shard(shard)));
            }
            Some(Err(_)) => {
                faults.push(DatasetFault::new(FaultCode::Unreadable, "reading was stopped", "try again"))
            }
        }
    }
    if faults.is_empty() {
        return Ok(report);
    }
    faults.sort_by(|a, b| (&a.shard, a.offset).cmp(&(&b.shard, b.offset)));
    // A shard that is gone or cut short is one fault, not one for each of its chunks.
    faults.dedup_by(|a, b| a.shard == b.shard && a.code == b.code && a.message == b.message);
    faults.truncate(MAX_FAULTS);
    Err(faults)
}

fn verify_chunk(manifest: &Manifest, chunk: &Chunk, block: &[u8]) -> Vec<DatasetFault> {
    let damaged_chunk = crc32c(block) != chunk.crc32c;
    let samples = chunk.first_sample.0..chunk.first_sample.0 + u64::from(chunk.samples);
    let mut faults: Vec<_> = samples
        .filter_map(|sample| verify_sample(manifest, chunk, SampleId(sample), block))
        .take(MAX_FAULTS)
        .collect();
    if damaged_chunk && faults.is_empty() {
        let message = "bytes between the samples are not those that were indexed";
        faults.push(DatasetFault::new(FaultCode::ChunkCrc, message, RESTORE).at(chunk.offset));
    }
    faults
}

fn verify_sample(manifest: &Manifest, chunk: &Chunk, sample: SampleId, block: &[u8]) -> Option<DatasetFault> {
    let mut crc = Crc32c::new();
    let mut first = None;
    for span in manifest.spans(sample) {
        let (from, len) = (index_of(span.offset.into()), index_of(span.len.into()));
        first = first.or(Some(span.offset));
        // A checked manifest's spans lie inside their chunk.
        crc.update(block.get(from..from + len)?);
    }
    if crc.value() == manifest.sample_crc32c(sample) {
        return None;
    }
    let message = format!("the bytes of sample {sample} are not those that were indexed");
    let offset = chunk.offset + u64::from(first.unwrap_or(0));
    Some(DatasetFault::new(FaultCode::SampleCrc, message, RESTORE).at(offset))
}

const RESTORE: &str = "copy the shard again; if it was changed on purpose, launcher data index DIRECTORY";
