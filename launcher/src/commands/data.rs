//! `launcher data …`: index, verify and list data sets.

use std::num::NonZeroUsize;

use datapath::dataset::index::{self, IndexOptions, Origin};
use datapath::dataset::put::{self, PutReport, PutStep};
use datapath::dataset::verify::{self, VerifyReport};
use datapath::dataset::{FaultCode, Format, Manifest};
use serde::Serialize;

use super::order;
use crate::cli::{DataCommand, Index, Put, Source};
use crate::dataset::{self, faults_failure, index_options};
use crate::error::{ExitCode, Failure};
use crate::output::{Printer, bytes, table};

/// Runs one of the verbs.
///
/// # Errors
/// When it failed.
pub async fn run(command: DataCommand, printer: Printer) -> Result<ExitCode, Failure> {
    match command {
        DataCommand::Index(flags) => index(flags, printer).await?,
        DataCommand::Verify { source, threads } => verify(source, threads, printer).await?,
        DataCommand::Ls { source } => {
            let listing =
                Listing::new(&dataset::open(&source.source, &index_options(source.record)).await?.manifest);
            printer.data(&listing, list)?;
        }
        DataCommand::Put(flags) => put(flags, printer).await?,
        DataCommand::Order(flags) => order::run(&flags, printer).await?,
    }
    Ok(ExitCode::Ok)
}

async fn index(flags: Index, printer: Printer) -> Result<(), Failure> {
    let Index { source, chunk_bytes, threads } = flags;
    let defaults = index_options(source.record);
    let options = IndexOptions {
        chunk_bytes: chunk_bytes.unwrap_or(defaults.chunk_bytes),
        threads: threads.unwrap_or(defaults.threads),
        ..defaults
    };
    let store = dataset::open_store(&source.source).await?;
    let manifest =
        index::index(&store, &options).await.map_err(|faults| faults_failure(&source.source, &faults))?;
    if let Err(fault) = index::save(&store, &manifest).await {
        let mut failure = faults_failure(&source.source, &[fault]);
        failure.code = ExitCode::CannotCreate;
        failure.message = format!("failed to write the manifest into {}", source.source);
        return Err(failure);
    }
    printer.data(&Listing::new(&manifest), Listing::totals)
}

async fn verify(source: Source, threads: Option<NonZeroUsize>, printer: Printer) -> Result<(), Failure> {
    let options = index_options(source.record);
    let opened = dataset::open(&source.source, &options).await?;
    if opened.origin == Origin::Indexed {
        printer.note("warning: there is no manifest, so the shards are only checked for being readable");
    }
    let report = verify::verify(&opened.store, &opened.manifest, threads.unwrap_or(options.threads)).await;
    let report = report.map_err(|faults| faults_failure(&source.source, &faults))?;
    printer.data(&report, |report| {
        let VerifyReport { shards, chunks, samples, bytes: read } = *report;
        format!("{samples} samples in {chunks} chunks of {shards} shards are intact ({})\n", bytes(read))
    })
}

async fn put(flags: Put, printer: Printer) -> Result<(), Failure> {
    let Put { source, target, threads } = flags;
    let options = index_options(source.record);
    let opened = dataset::open(&source.source, &options).await?;
    let to = dataset::open_store(&target).await?;
    let shards = opened.manifest.shards();
    let news = |number: usize, step: PutStep| {
        let Some(shard) = shards.get(number) else { return };
        let what = match step {
            PutStep::Comparing | PutStep::Copying => return,
            PutStep::Kept => "is there already",
            PutStep::Copied => "copied",
        };
        printer.note(format_args!(
            "{}/{} {} {what} ({})",
            number + 1,
            shards.len(),
            shard.name,
            bytes(shard.bytes)
        ));
    };
    let threads = threads.unwrap_or(options.threads);
    let report = put::put(&opened.store, &opened.manifest, &to, threads, news).await.map_err(|faults| {
        let mut failure = faults_failure(&target, &faults);
        failure.message = format!("failed to put {} into {target}", source.source);
        if faults.iter().any(|fault| fault.code == FaultCode::Unwritable) {
            failure.code = ExitCode::CannotCreate;
        }
        if faults.iter().any(|fault| fault.code == FaultCode::SamePlace) {
            failure.code = ExitCode::Usage;
        }
        failure
    })?;
    printer.data(&report, |report| {
        let PutReport { shards, kept, copied_bytes, .. } = *report;
        format!(
            "{shards} shards are at {to}, every chunk compared: {kept} were there, {} copied\n",
            bytes(copied_bytes)
        )
    })
}

/// A data set in short.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    digest: String,
    format: String,
    fields: Vec<String>,
    samples: u64,
    chunks: usize,
    /// Of the shards, with what frames the samples in them.
    bytes: u64,
    sample_bytes: u64,
    max_sample_bytes: u64,
    shards: Vec<ListedShard>,
}

#[derive(Debug, Serialize)]
struct ListedShard {
    name: String,
    bytes: u64,
    chunks: u64,
    samples: u64,
}

impl Listing {
    fn new(manifest: &Manifest) -> Self {
        let mut shards: Vec<ListedShard> = manifest
            .shards()
            .iter()
            .map(|shard| ListedShard { name: shard.name.clone(), bytes: shard.bytes, chunks: 0, samples: 0 })
            .collect();
        for chunk in manifest.chunks() {
            let shard = usize::try_from(chunk.shard.0).ok().and_then(|index| shards.get_mut(index));
            if let Some(shard) = shard {
                shard.chunks += 1;
                shard.samples += u64::from(chunk.samples);
            }
        }
        let format = match manifest.format() {
            Format::Tar => "tar".to_owned(),
            Format::Records(layout) => format!("records {}:{}", layout.dtype, layout.items),
        };
        Self {
            digest: manifest.digest().to_string(),
            format,
            fields: manifest.fields().to_vec(),
            samples: manifest.sample_count(),
            chunks: manifest.chunks().len(),
            bytes: manifest.shards().iter().map(|shard| shard.bytes).sum(),
            sample_bytes: manifest.bytes(),
            max_sample_bytes: manifest.max_sample_bytes(),
            shards,
        }
    }

    fn totals(&self) -> String {
        format!(
            "{} samples in {} chunks of {} shards, {} ({}; fields {})\ndigest {}\n",
            self.samples,
            self.chunks,
            self.shards.len(),
            bytes(self.bytes),
            self.format,
            self.fields.join(", "),
            self.digest
        )
    }
}

fn list(listing: &Listing) -> String {
    let mut rows = vec![["SHARD", "BYTES", "CHUNKS", "SAMPLES"].map(str::to_owned).to_vec()];
    rows.extend(listing.shards.iter().map(|shard| {
        vec![shard.name.clone(), shard.bytes.to_string(), shard.chunks.to_string(), shard.samples.to_string()]
    }));
    format!("{}{}", table(&rows), listing.totals())
}
