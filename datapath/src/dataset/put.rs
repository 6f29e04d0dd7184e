//! Copies a dataset from one store to another: shards first, each compared with the manifest where it arrived, the manifest
//! last. Stopped and started again it goes on: a shard that is there and intact is kept.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use super::index::{self, ShardKind, reading_fault};
use super::verify::verify_shard;
use super::{DatasetFault, FaultCode, MANIFEST_NAME, Manifest, ShardId};
use crate::store::{Store, StoreError};

/// How a copy ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutReport {
    /// Shards of the dataset.
    pub shards: u64,
    /// Of them, those that were there already, and intact.
    pub kept: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// Bytes that were read again at the target and compared.
    pub verified_bytes: u64,
}

/// What is happening to a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutStep {
    /// It is there already and is compared.
    Comparing,
    /// It was there, and intact.
    Kept,
    /// It is being copied.
    Copying,
    /// It was copied, read again, and is intact.
    Copied,
}

/// Copies all shards of `manifest` and then the manifest itself. `news` hears of each shard as it goes.
///
/// # Errors
/// With the faults that ended it. What was copied until then stays, and is kept the next time; a dataset that is not
/// complete has no manifest of its own, or an older one that does not fit its shards.
pub async fn put(
    from: &Store,
    manifest: &Manifest,
    to: &Store,
    threads: NonZeroUsize,
    mut news: impl FnMut(usize, PutStep),
) -> Result<PutReport, Vec<DatasetFault>> {
    if from.is_same_place(to) {
        let hint = "name another place; to describe shards anew where they are, run `launcher data index`";
        return Err(vec![DatasetFault::new(FaultCode::SamePlace, "the data set is already there", hint)]);
    }
    let found = to.list().await.map_err(|error| vec![index::listing_fault(&error)])?;
    let sizes: BTreeMap<&str, u64> =
        found.iter().map(|object| (object.name.as_str(), object.bytes)).collect();
    let strangers = strangers(manifest, sizes.keys().copied());
    if !strangers.is_empty() {
        return Err(strangers);
    }
    let mut report = PutReport::default();
    for (number, (at, shard)) in (0..).zip(manifest.shards().iter().enumerate()) {
        let verified = async || verify_shard(to, manifest, ShardId(number), threads).await;
        report.shards += 1;
        if sizes.get(shard.name.as_str()) == Some(&shard.bytes) {
            news(at, PutStep::Comparing);
            match verified().await {
                Ok(()) => {
                    report.kept += 1;
                    report.verified_bytes += shard.bytes;
                    news(at, PutStep::Kept);
                    continue;
                }
                // It is not known to be bad, and what replaces it could not be compared either.
                Err(faults) if faults.iter().any(|fault| fault.code == FaultCode::Unreadable) => {
                    return Err(faults);
                }
                Err(_) => {}
            }
        }
        news(at, PutStep::Copying);
        let copied = to.copy_from(&shard.name, shard.bytes, from).await;
        copied.map_err(|error| vec![copy_fault(&error, &shard.name)])?;
        report.copied_bytes += shard.bytes;
        // What the store took is not what it gives until it was seen.
        verified().await?;
        report.verified_bytes += shard.bytes;
        news(at, PutStep::Copied);
    }
    index::save(to, manifest).await.map_err(|fault| vec![fault])?;
    Ok(report)
}

/// Shards at the target that are none of this dataset: together they would be another one.
fn strangers<'name>(manifest: &Manifest, names: impl Iterator<Item = &'name str>) -> Vec<DatasetFault> {
    let mut ours: Vec<&str> = manifest.shards().iter().map(|shard| shard.name.as_str()).collect();
    ours.sort_unstable();
    names
        .filter(|name| *name != MANIFEST_NAME && ShardKind::of(name).is_some())
        .filter(|name| ours.binary_search(name).is_err())
        .take(super::fault::MAX_FAULTS)
        .map(|name| {
            let hint = "put the data set under a prefix of its own";
            DatasetFault::new(FaultCode::ManifestStale, "it is at the target, but not in this data set", hint)
                .in_shard(name)
        })
        .collect()
}

fn copy_fault(error: &StoreError, shard: &str) -> DatasetFault {
    match error {
        StoreError::Write { .. } => {
            let hint = "is there room, and may this user write there? run the same command again to go on";
            DatasetFault::new(FaultCode::Unwritable, index::failed(error), hint)
        }
        error => reading_fault(error),
    }
    .in_shard(shard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DirectoryStore;

    fn store(folder: &tempfile::TempDir) -> Store {
        Store::Directory(DirectoryStore::open(folder.path()).unwrap())
    }

    async fn source() -> (tempfile::TempDir, Store, Manifest) {
        let folder = tempfile::tempdir().unwrap();
        for (name, seed) in [("a.bin", 1_u8), ("b.bin", 2)] {
            let bytes: Vec<u8> =
                (0..4096_u32).map(|number| number.to_le_bytes()[0].wrapping_mul(seed)).collect();
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let store = store(&folder);
        let record =
            super::super::RecordLayout { dtype: super::super::Dtype::U8, items: 64, header_bytes: 0 };
        let options = index::IndexOptions { record: Some(record), ..index::IndexOptions::default() };
        let manifest = index::index(&store, &options).await.unwrap();
        (folder, store, manifest)
    }

    async fn run(
        from: &Store,
        manifest: &Manifest,
        to: &Store,
    ) -> (Result<PutReport, Vec<DatasetFault>>, Vec<PutStep>) {
        let mut steps = Vec::new();
        let report = put(from, manifest, to, NonZeroUsize::MIN, |_, step| steps.push(step)).await;
        (report, steps)
    }

    #[tokio::test]
    async fn a_second_run_keeps_what_is_intact_and_mends_what_is_not() {
        let (_folder, from, manifest) = source().await;
        let target = tempfile::tempdir().unwrap();
        let to = store(&target);
        let (report, steps) = run(&from, &manifest, &to).await;
        let all = PutReport { shards: 2, kept: 0, copied_bytes: 8192, verified_bytes: 8192 };
        assert_eq!(report.unwrap(), all);
        assert_eq!(steps, [PutStep::Copying, PutStep::Copied, PutStep::Copying, PutStep::Copied]);
        let (opened, _) = index::open(&to, &index::IndexOptions::default()).await.unwrap();
        assert_eq!(opened.digest(), manifest.digest());

        let mut bytes = std::fs::read(target.path().join("b.bin")).unwrap();
        bytes[77] ^= 1;
        std::fs::write(target.path().join("b.bin"), bytes).unwrap();
        let (report, steps) = run(&from, &manifest, &store(&target)).await;
        assert_eq!(
            report.unwrap(),
            PutReport { shards: 2, kept: 1, copied_bytes: 4096, verified_bytes: 8192 }
        );
        let expected =
            [PutStep::Comparing, PutStep::Kept, PutStep::Comparing, PutStep::Copying, PutStep::Copied];
        assert_eq!(steps, expected);
    }

    #[tokio::test]
    async fn a_data_set_is_not_copied_onto_itself() {
        let (folder, from, manifest) = source().await;
        let link = folder.path().join(".self");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        let to = Store::Directory(DirectoryStore::open(link).unwrap());
        let faults = run(&from, &manifest, &to).await.0.unwrap_err();
        assert_eq!(faults.iter().map(|fault| fault.code).collect::<Vec<_>>(), [FaultCode::SamePlace]);
    }

    #[tokio::test]
    async fn other_shards_at_the_target_are_named_and_nothing_is_written() {
        let (_folder, from, manifest) = source().await;
        let target = tempfile::tempdir().unwrap();
        std::fs::write(target.path().join("c.bin"), b"x").unwrap();
        let faults = run(&from, &manifest, &store(&target)).await.0.unwrap_err();
        assert_eq!(faults.iter().map(|fault| fault.shard.as_deref()).collect::<Vec<_>>(), [Some("c.bin")]);
        assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 1);
    }
}
