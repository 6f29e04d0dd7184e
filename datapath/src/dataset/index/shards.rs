//! Which objects of a store are shards, and whether they are those of a manifest (pure).

use std::collections::BTreeMap;

use super::{
    DatasetFault, FaultCode, MANIFEST_NAME, MAX_FAULTS, MAX_SHARDS, Manifest, Object, REINDEX, Shard,
};
use crate::dataset::{Format, is_shard_name};

/// Kinds of shards, told by the names' ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShardKind {
    /// `.tar`
    Tar,
    /// `.npy`
    Npy,
    /// `.bin`
    Bin,
}

impl ShardKind {
    /// The kind of a shard of that name; `None`: it is no shard, and is left alone.
    pub fn of(name: &str) -> Option<Self> {
        let (_, end) = name.rsplit_once('.')?;
        match end.to_ascii_lowercase().as_str() {
            "tar" => Some(Self::Tar),
            "npy" => Some(Self::Npy),
            "bin" => Some(Self::Bin),
            _ => None,
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Self::Tar => ".tar",
            Self::Npy => ".npy",
            Self::Bin => ".bin",
        }
    }
}

/// The shards among the objects, all of one kind.
pub(super) fn pick(objects: &[Object]) -> Result<(ShardKind, Vec<Shard>), DatasetFault> {
    let mut kinds = BTreeMap::new();
    for object in objects {
        if let Some(kind) = ShardKind::of(&object.name) {
            kinds.entry(kind).or_insert(&object.name);
        }
    }
    let Some((kind, _)) = kinds.first_key_value() else { return Err(empty(objects)) };
    if let Some((other, name)) = kinds.iter().nth(1) {
        let message = format!("it is a {} file beside {} files", other.ending(), kind.ending());
        let hint = "put shards of different kinds into directories of their own";
        return Err(DatasetFault::new(FaultCode::MixedFormats, message, hint).in_shard(name.as_str()));
    }
    let of_kind = objects.iter().filter(|object| ShardKind::of(&object.name).is_some());
    let shards: Vec<_> =
        of_kind.map(|object| Shard { name: object.name.clone(), bytes: object.bytes }).collect();
    if shards.len() > MAX_SHARDS {
        let message = format!("there are {} shards, more than {MAX_SHARDS}", shards.len());
        return Err(DatasetFault::new(
            FaultCode::TooMany,
            message,
            "write fewer and larger shards, of 100 MB or more",
        ));
    }
    if let Some(shard) = shards.iter().find(|shard| !is_shard_name(&shard.name)) {
        let hint = "rename it: a name has at most 4096 bytes";
        return Err(
            DatasetFault::new(FaultCode::BadName, "its name cannot be used", hint).in_shard(&shard.name)
        );
    }
    Ok((*kind, shards))
}

fn empty(objects: &[Object]) -> DatasetFault {
    let packed = |object: &&Object| {
        let name = object.name.to_ascii_lowercase();
        name.ends_with(".tgz") || name.contains(".tar.")
    };
    if let Some(packed) = objects.iter().find(packed) {
        let hint = "unpack it (gunzip, unzstd): parts of a compressed archive cannot be read by themselves";
        return DatasetFault::new(FaultCode::Empty, "it is a compressed archive", hint)
            .in_shard(&packed.name);
    }
    let message = format!("there are no shards among {} files", objects.len());
    DatasetFault::new(FaultCode::Empty, message, "name a directory that holds .tar, .npy or .bin files")
}

/// All that differs between a manifest's shards and the objects.
pub(super) fn compare(manifest: &Manifest, objects: &[Object]) -> Vec<DatasetFault> {
    let there: BTreeMap<&str, u64> =
        objects.iter().map(|object| (object.name.as_str(), object.bytes)).collect();
    let mut faults = Vec::new();
    for shard in manifest.shards() {
        match there.get(shard.name.as_str()) {
            Some(bytes) if *bytes == shard.bytes => {}
            Some(bytes) => {
                let message = format!("it has {bytes} bytes, but {} when it was indexed", shard.bytes);
                let stale = DatasetFault::new(FaultCode::ManifestStale, message, REINDEX);
                faults.push(stale.in_shard(&shard.name).at(shard.bytes.min(*bytes)));
            }
            None => {
                let message = format!("it is in {MANIFEST_NAME}, but not in the store");
                let missing =
                    DatasetFault::new(FaultCode::ShardMissing, message, format!("put it back, or {REINDEX}"));
                faults.push(missing.in_shard(&shard.name).at(0));
            }
        }
    }
    let tar = *manifest.format() == Format::Tar;
    for object in objects {
        let shards = manifest.shards();
        let same_kind = ShardKind::of(&object.name).is_some_and(|kind| (kind == ShardKind::Tar) == tar);
        if same_kind && shards.binary_search_by(|shard| shard.name.cmp(&object.name)).is_err() {
            let message = format!("it is not in {MANIFEST_NAME}");
            faults.push(
                DatasetFault::new(FaultCode::ManifestStale, message, REINDEX).in_shard(&object.name).at(0),
            );
        }
    }
    faults.truncate(MAX_FAULTS);
    faults
}
