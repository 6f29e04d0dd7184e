//! From a store's shards to a manifest: every shard is read once, from its beginning to its end, in bounded memory.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use tokio::task::JoinSet;

use super::build::{Draft, ShardTable};
use super::fault::MAX_FAULTS;
use super::records::{MAX_NPY_HEADER_BYTES, NpyHeader, RecordIndexer, parse_npy};
use super::tar::{TarIndexer, too_many_fields};
use super::{
    CHUNK_TARGET_BYTES, DatasetFault, FaultCode, Format, MANIFEST_NAME, MAX_FIELDS, MAX_SHARDS, Manifest,
};
use super::{RecordLayout, Shard, ShardId, count, index_of, manifest};
use crate::fault::in_full;
use crate::memory::Block;
use crate::store::{Object, Store, StoreError};

mod shards;

pub use shards::ShardKind;
use shards::{compare, pick};

/// Bytes of one read: large enough for a store's full speed, small enough to stay in a core's cache for the checksums. Each
/// shard that is read at the same time has two.
const READ_BYTES: usize = 1 << 20;

/// Largest manifest that is read: 10^8 tar samples.
const MAX_MANIFEST_BYTES: u64 = 4 << 30;

/// How to index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexOptions {
    /// The layout of `.bin` shards; `.npy` shards say their own.
    pub record: Option<RecordLayout>,
    /// Items per record of `.npy` shards of one dimension.
    pub items: Option<u32>,
    /// The size of a chunk that is aimed at, in bytes; at most [`super::MAX_CHUNK_BYTES`].
    pub chunk_bytes: u32,
    /// Shards that are read at the same time.
    pub threads: NonZeroUsize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { record: None, items: None, chunk_bytes: CHUNK_TARGET_BYTES, threads }
    }
}

/// Where a manifest came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was stored beside the shards, and describes those that are there.
    Stored,
    /// There was none; the shards were read.
    Indexed,
}

/// Reads every shard once and makes the table of the dataset; or says all that is wrong with it.
pub async fn index(store: &Store, options: &IndexOptions) -> Result<Manifest, Vec<DatasetFault>> {
    let objects = store.list().await.map_err(|error| vec![listing_fault(&error)])?;
    index_objects(store, &objects, options).await
}

/// Takes the stored manifest if there is one, else indexes in memory. A manifest that describes other shards than there
/// are, by name or size, is a fault.
pub async fn open(store: &Store, options: &IndexOptions) -> Result<(Manifest, Origin), Vec<DatasetFault>> {
    let objects = store.list().await.map_err(|error| vec![listing_fault(&error)])?;
    let Some(stored) = objects.iter().find(|object| object.name == MANIFEST_NAME) else {
        return Ok((index_objects(store, &objects, options).await?, Origin::Indexed));
    };
    let manifest = load(store, stored).await.map_err(|fault| vec![fault])?;
    let faults = compare(&manifest, &objects);
    if faults.is_empty() { Ok((manifest, Origin::Stored)) } else { Err(faults) }
}

/// Stores a manifest beside its shards.
pub async fn save(store: &Store, manifest: &Manifest) -> Result<(), DatasetFault> {
    store.write(MANIFEST_NAME, manifest::encode(manifest)).await.map_err(|error| {
        let hint = "make the directory writable, or index on a host where it is";
        DatasetFault::new(FaultCode::Unwritable, failed(&error), hint).in_shard(MANIFEST_NAME)
    })
}

async fn index_objects(
    store: &Store,
    objects: &[Object],
    options: &IndexOptions,
) -> Result<Manifest, Vec<DatasetFault>> {
    let (kind, shards) = pick(objects).map_err(|fault| vec![fault])?;
    let tables = read_all(store, kind, &shards, options).await?;
    let format = common_format(&shards, &tables).map_err(|fault| vec![fault])?;
    let fields: BTreeSet<&String> = tables.iter().flat_map(|(_, table)| &table.fields).collect();
    if fields.len() > MAX_FIELDS {
        return Err(vec![too_many_fields()]);
    }
    let mut draft = Draft::new(format, fields.into_iter().cloned().collect(), shards);
    for (number, (_, table)) in (0..).zip(tables) {
        draft.append(ShardId(number), table).ok_or_else(|| vec![too_many_samples()])?;
    }
    if draft.sample_crcs.is_empty() {
        let hint = "put samples into the shards, or name another directory";
        return Err(vec![DatasetFault::new(FaultCode::NoSamples, "the shards hold no samples", hint)]);
    }
    draft.finish().map_err(|error| {
        let hint = "this should not happen: please report it with the dataset's listing";
        vec![DatasetFault::new(FaultCode::ManifestCorrupt, error.to_string(), hint)]
    })
}

/// The tables of all shards, in their order.
async fn read_all(
    store: &Store,
    kind: ShardKind,
    shards: &[Shard],
    options: &IndexOptions,
) -> Result<Vec<(Format, ShardTable)>, Vec<DatasetFault>> {
    let mut tables: Vec<Option<(Format, ShardTable)>> = Vec::new();
    tables.resize_with(shards.len(), || None);
    let mut faults = Vec::new();
    let mut running = JoinSet::new();
    let mut waiting = shards.iter().enumerate();
    loop {
        while running.len() < options.threads.get() && faults.len() < MAX_FAULTS {
            let Some((at, shard)) = waiting.next() else { break };
            let (store, shard, options) = (store.clone(), shard.clone(), options.clone());
            running.spawn(async move { (at, read_shard(&store, kind, &shard, &options).await) });
        }
        match running.join_next().await {
            None => break,
            Some(Ok((at, Ok(table)))) => tables[at] = Some(table),
            Some(Ok((at, Err(found)))) => {
                faults.extend(found.into_iter().map(|fault| fault.in_shard(&shards[at].name)));
            }
            Some(Err(_)) => {
                faults.push(DatasetFault::new(FaultCode::Unreadable, "reading was stopped", "try again"))
            }
        }
    }
    faults.sort_by(|a, b| (&a.shard, a.offset).cmp(&(&b.shard, b.offset)));
    faults.truncate(MAX_FAULTS);
    match tables.into_iter().collect::<Option<Vec<_>>>() {
        Some(tables) if faults.is_empty() => Ok(tables),
        _ => Err(faults),
    }
}

async fn read_shard(
    store: &Store,
    kind: ShardKind,
    shard: &Shard,
    options: &IndexOptions,
) -> Result<(Format, ShardTable), Vec<DatasetFault>> {
    if kind == ShardKind::Tar {
        let mut indexer = TarIndexer::new(shard.bytes, options.chunk_bytes);
        let read = stream(store, shard, |bytes| indexer.feed(bytes)).await;
        read.map_err(|error| vec![reading_fault(&error)])?;
        return Ok((Format::Tar, indexer.finish()?));
    }
    let (layout, data_offset) =
        record_layout(store, kind, shard, options).await.map_err(|fault| vec![fault])?;
    let mut indexer = RecordIndexer::new(layout, data_offset, options.chunk_bytes);
    let read = stream(store, shard, |bytes| {
        indexer.feed(bytes);
        true
    });
    read.await.map_err(|error| vec![reading_fault(&error)])?;
    Ok((Format::Records(layout), indexer.finish()))
}

/// The layout of a shard, where its records begin, and that they end where it ends.
async fn record_layout(
    store: &Store,
    kind: ShardKind,
    shard: &Shard,
    options: &IndexOptions,
) -> Result<(RecordLayout, u64), DatasetFault> {
    let (layout, data_offset) = if kind == ShardKind::Npy {
        let prefix = Block::with_len(index_of(shard.bytes).min(MAX_NPY_HEADER_BYTES));
        let (prefix, read) = store.read(&shard.name, 0, prefix).await;
        read.map_err(|error| reading_fault(&error))?;
        let header = parse_npy(&prefix)?;
        (npy_layout(&header, shard.bytes, options)?, header.data_offset)
    } else {
        let layout = options.record.ok_or_else(|| {
            let message = "a .bin file does not say what its records are";
            let hint = "name their type and items: data.record in the job file, --dtype and --items on the command line";
            DatasetFault::new(FaultCode::RecordLayout, message, hint)
        })?;
        (layout, layout.header_bytes)
    };
    layout.check()?;
    layout.records_in(data_offset, shard.bytes)?;
    Ok((layout, data_offset))
}

/// Two dimensions: a row is a record. One dimension: the options say how many items a record has.
fn npy_layout(
    header: &NpyHeader,
    shard_bytes: u64,
    options: &IndexOptions,
) -> Result<RecordLayout, DatasetFault> {
    let fault = |code, message: String, hint: &str| Err(DatasetFault::new(code, message, hint));
    let asked = options.items.or_else(|| options.record.map(|record| record.items));
    if let Some(record) = options.record.filter(|record| record.dtype != header.dtype) {
        let message = format!("its items are {}, not {}", header.dtype, record.dtype);
        return fault(FaultCode::RecordLayout, message, "leave the type out: a .npy file says its own");
    }
    let announced = header.data_bytes().and_then(|bytes| bytes.checked_add(header.data_offset));
    if announced.is_none_or(|announced| announced > shard_bytes) {
        let message = format!(
            "its header announces the shape {:?}, but the file has {shard_bytes} bytes",
            header.shape
        );
        let cut =
            DatasetFault::new(FaultCode::Truncated, message, "the file is cut short: copy or write it again");
        return Err(cut.at(shard_bytes));
    }
    if let Some(announced) = announced.filter(|announced| *announced < shard_bytes) {
        let message = format!("{} bytes follow the array", shard_bytes - announced);
        let trailing = DatasetFault::new(FaultCode::TrailingBytes, message, "write it again with numpy.save");
        return Err(trailing.at(announced));
    }
    let items = match (header.shape.as_slice(), asked) {
        ([_], None) => {
            let message = "it has one dimension, so it does not say what a record is".to_owned();
            let hint = "name the items per record, or save it with two dimensions: one row a record";
            return fault(FaultCode::RecordLayout, message, hint);
        }
        ([_], Some(items)) => items,
        ([_, items], asked) => {
            if let Some(asked) = asked.filter(|asked| u64::from(*asked) != *items) {
                let message = format!("its rows have {items} items, not {asked}");
                return fault(FaultCode::RecordLayout, message, "leave the items out: the file says its own");
            }
            u32::try_from(*items).unwrap_or(u32::MAX)
        }
        (shape, _) => {
            let message = format!("its shape is {shape:?}");
            return fault(FaultCode::Npy, message, "save array.reshape(len(array), -1): one row a record");
        }
    };
    Ok(RecordLayout { dtype: header.dtype, items, header_bytes: 0 })
}

/// Reads a shard from its beginning to its end; the next read is under way while `take` works. `take` says whether to go on.
async fn stream(store: &Store, shard: &Shard, mut take: impl FnMut(&[u8]) -> bool) -> Result<(), StoreError> {
    let start_read = |offset: u64, recycled: Option<Block>| {
        let wanted = index_of(shard.bytes - offset).min(READ_BYTES);
        let block = recycled.filter(|block| block.len() == wanted).unwrap_or_else(|| Block::with_len(wanted));
        let (store, name) = (store.clone(), shard.name.clone());
        tokio::spawn(async move { store.read(&name, offset, block).await })
    };
    let mut ahead = (shard.bytes > 0).then(|| start_read(0, None));
    let mut spare = None;
    let mut offset = 0;
    while let Some(read) = ahead.take() {
        let stopped = |_| StoreError::Stopped { name: shard.name.clone() };
        let (block, done) = read.await.map_err(stopped)?;
        done?;
        offset += count(block.len());
        ahead = (offset < shard.bytes).then(|| start_read(offset, spare.take()));
        if !take(&block) {
            return Ok(());
        }
        spare = Some(block);
    }
    Ok(())
}

async fn load(store: &Store, stored: &Object) -> Result<Manifest, DatasetFault> {
    let corrupt = |message: String| {
        DatasetFault::new(FaultCode::ManifestCorrupt, message, REINDEX).in_shard(MANIFEST_NAME)
    };
    if stored.bytes > MAX_MANIFEST_BYTES {
        return Err(corrupt(format!("it has {} bytes, more than {MAX_MANIFEST_BYTES}", stored.bytes)));
    }
    let (block, read) = store.read(MANIFEST_NAME, 0, Block::with_len(index_of(stored.bytes))).await;
    read.map_err(|error| reading_fault(&error).in_shard(MANIFEST_NAME))?;
    manifest::decode(&block).map_err(|error| corrupt(format!("failed to {error}")))
}

/// What to do about a manifest that is not the shards'.
const REINDEX: &str = "make it anew: launcher data index DIRECTORY";

fn common_format(shards: &[Shard], tables: &[(Format, ShardTable)]) -> Result<Format, DatasetFault> {
    let first = tables.first().map_or(Format::Tar, |(format, _)| *format);
    let other = tables.iter().zip(shards).find(|((format, _), _)| *format != first);
    if let (Some(((Format::Records(other), _), shard)), Format::Records(first)) = (other, first) {
        let message = format!(
            "its records are {} x {}, those of {} are {} x {}",
            other.items, other.dtype, shards[0].name, first.items, first.dtype
        );
        let hint = "put shards of different layouts into directories of their own";
        return Err(DatasetFault::new(FaultCode::RecordLayout, message, hint).in_shard(&shard.name));
    }
    Ok(first)
}

pub(super) fn listing_fault(error: &StoreError) -> DatasetFault {
    let code =
        if matches!(error, StoreError::BadName { .. }) { FaultCode::BadName } else { FaultCode::Unreadable };
    DatasetFault::new(
        code,
        failed(error),
        "is the path right, mounted on this host, and may this user read it?",
    )
}

pub(super) fn reading_fault(error: &StoreError) -> DatasetFault {
    let (code, hint) = match error {
        StoreError::NotFound { .. } => (FaultCode::ShardMissing, "put it back, or index again"),
        StoreError::ShortRead { .. } => {
            (FaultCode::Truncated, "it became shorter while it was read: copy it again")
        }
        _ => (FaultCode::Unreadable, "is the store healthy, and may this user read it?"),
    };
    let fault = DatasetFault::new(code, failed(error), hint);
    match error {
        StoreError::ShortRead { end, .. } => fault.at(*end),
        _ => fault,
    }
}

/// The whole chain of an error.
pub(super) fn failed(error: &StoreError) -> String {
    format!("failed to {}", in_full(error))
}

fn too_many_samples() -> DatasetFault {
    let message = format!("there are more than {} files in all shards", u32::MAX);
    DatasetFault::new(FaultCode::TooMany, message, "split the dataset into several directories")
}

#[cfg(test)]
mod tests;
