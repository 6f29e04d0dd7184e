//! Data sets as commands and backends open them: what goes wrong becomes a [`Failure`] with every fault in it.

use std::fmt::Write as _;

use datapath::dataset::index::{self, IndexOptions, Origin};
use datapath::dataset::{DatasetFault, FaultCode, Manifest, RecordLayout};
use datapath::store::{Store, StoreError};

use crate::error::{ExitCode, Failure, Report};
use crate::job::Record;

/// A data set that can be read.
#[derive(Debug)]
pub struct Dataset {
    /// Where its shards are.
    pub store: Store,
    /// What is in them.
    pub manifest: Manifest,
    /// Where the manifest came from.
    pub origin: Origin,
}

/// Opens a data set: its manifest is read if there is one, else its shards are.
///
/// # Errors
/// When it is not there, or with everything that is wrong with it.
pub async fn open(source: &str, options: &IndexOptions) -> Result<Dataset, Failure> {
    let store = open_store(source).await?;
    let opened = index::open(&store, options).await;
    let (manifest, origin) = opened.map_err(|faults| faults_failure(source, &faults))?;
    Ok(Dataset { store, manifest, origin })
}

/// How a source without a manifest is read, when its records are so.
#[must_use]
pub fn index_options(record: Option<Record>) -> IndexOptions {
    let items = record.map(|record| record.items.get());
    let layout = |record: Record| RecordLayout {
        dtype: record.dtype.into(),
        items: record.items.get(),
        header_bytes: 0,
    };
    IndexOptions { record: record.map(layout), items, ..IndexOptions::default() }
}

/// Opens the place where shards are.
///
/// # Errors
/// When it is not there, or of a kind that is not known.
pub async fn open_store(source: &str) -> Result<Store, Failure> {
    Store::open(source).await.map_err(|error| store_failure(&error))
}

/// What a user sees of a store's error.
#[must_use]
pub fn store_failure(error: &StoreError) -> Failure {
    let code = match error {
        StoreError::Open { .. } | StoreError::NotFound { .. } => ExitCode::NotFound,
        StoreError::Connect { .. } | StoreError::NotBuilt { .. } => ExitCode::Unavailable,
        StoreError::Write { .. } => ExitCode::CannotCreate,
        StoreError::Stopped { .. } => ExitCode::Temporary,
        _ => ExitCode::Data,
    };
    Failure::from_error(code, error)
}

/// What a user sees of a data set's faults.
#[must_use]
pub fn faults_failure(source: &str, faults: &[DatasetFault]) -> Failure {
    let count = match faults.len() {
        1 => "1 fault".to_owned(),
        n => format!("{n} faults"),
    };
    let mut text = String::new();
    for fault in faults {
        writeln!(text, "{fault}").ok();
    }
    let has = |code: FaultCode| faults.iter().any(|fault| fault.code == code);
    let hint = if has(FaultCode::RecordLayout) {
        "say what a record is with --record DTYPE:ITEMS, for example --record u16:2048 (in a job file: spec.data.record)"
            .to_owned()
    } else if has(FaultCode::ManifestStale) || has(FaultCode::ManifestCorrupt) || has(FaultCode::ShardMissing)
    {
        format!("if the shards are as they should be, `launcher data index {source}` describes them anew")
    } else if has(FaultCode::ChunkCrc) || has(FaultCode::SampleCrc) {
        "copy the shards named above again; the manifest says what their bytes were".to_owned()
    } else {
        String::new()
    };
    let mut failure = Failure::new(ExitCode::Data, format!("the data set {source} has {count}")).hint(hint);
    let values = faults.iter().filter_map(|fault| serde_json::to_value(fault).ok()).collect();
    failure.report = Some(Box::new(Report { faults: values, text }));
    failure
}
