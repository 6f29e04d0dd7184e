//! From a job file and flags to a checked job.
//!
//! Flags are laid over the file's fields (or over an empty document) as nodes that know which flag they came from, so
//! one set of checks serves both, and a fault names the line or the flag.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::cli::{DataFlags, RunFlags, Submit};
use crate::error::{ExitCode, Failure};
use crate::job::faults::{Faults, Place};
use crate::job::overlay::{self, Override};
use crate::job::source::{self, Entry, Node, SOURCE_BYTES_MAX, Value};
use crate::job::validate::build::{lacks, lacks_here};
use crate::job::{self, Job, Origin, resolve, validate};
use datapath::order::Shuffle;

/// The job that the command line describes.
///
/// # Errors
/// Usage, when flags contradict each other; every fault of the job otherwise.
pub fn job(flags: &Submit) -> Result<Job, Failure> {
    let (root, faults, origin) = document(flags, false)?;
    Ok(job::check(&root, faults, &origin)?)
}

/// The job that the command line describes, and the document to send to a cluster: its paths are those inside the pods.
///
/// # Errors
/// Usage, when flags contradict each other; every fault of the job otherwise.
pub fn job_for_cluster(flags: &Submit) -> Result<(serde_json::Value, Job), Failure> {
    let (root, faults, origin) = document(flags, true)?;
    let job = job::check_for_cluster(&root, faults, &origin.name)?;
    Ok((root.to_json(), job))
}

fn document(
    flags: &Submit,
    is_for_cluster: bool,
) -> Result<(Node, Vec<job::faults::Fault>, Origin), Failure> {
    check_usage(flags)?;
    let here = std::path::absolute(".").map_err(|error| {
        Failure::new(ExitCode::NotFound, "failed to find the current folder").because(&error)
    })?;
    let (mut root, mut faults, origin) = match &flags.file {
        Some(file) => read_file(file, &here)?,
        None => (overlay::skeleton(), Vec::new(), Origin { name: String::new(), folder: here.clone() }),
    };
    // In pods, paths begin where the job says (`spec.pod.folder`), not here.
    let begin = if is_for_cluster { Path::new("") } else { &here };
    faults.extend(overlay::apply(&mut root, &fields(flags, begin)?));
    Ok((root, faults, origin))
}

fn usage(message: impl Into<String>, hint: &str) -> Failure {
    Failure::new(ExitCode::Usage, message).hint(hint)
}

fn check_usage(flags: &Submit) -> Result<(), Failure> {
    let Submit { file, command, run, data, .. } = flags;
    if file.is_some() {
        if !command.is_empty() {
            let hint = "the file has the command; use --set 'spec.run.command=[…]' to replace it";
            return Err(usage("a job FILE and a COMMAND cannot be given together", hint));
        }
        return Ok(());
    }
    if command.is_empty() {
        let hint = "launcher job submit job.yaml, or launcher job submit --workers 2 -- python3 train.py";
        return Err(usage("a job FILE or a COMMAND after -- is needed", hint));
    }
    if run.workers.is_none() && !sets(flags, "spec.workers") {
        return Err(usage("--workers is needed when there is no job FILE", "for example --workers 2"));
    }
    let has_data = data.data.is_some() || sets(flags, "spec.data");
    let DataFlags { data: _, global_batch, epochs, seed, shuffle, remainder, record, transport } = data;
    let given = [
        ("--global-batch", global_batch.is_some()),
        ("--epochs", epochs.is_some()),
        ("--seed", seed.is_some()),
        ("--shuffle", shuffle.is_some()),
        ("--remainder", remainder.is_some()),
        ("--record", record.is_some()),
        ("--transport", transport.is_some()),
    ];
    if !has_data && let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        return Err(usage(
            format!("{flag} has no meaning without --data"),
            "name the data with --data SOURCE",
        ));
    }
    if data.data.is_some() && global_batch.is_none() && !sets(flags, "spec.data") {
        let hint = "for example --global-batch 256: samples of one step, over all ranks";
        return Err(usage("--global-batch is needed with --data", hint));
    }
    Ok(())
}

fn sets(flags: &Submit, prefix: &str) -> bool {
    flags.set.iter().any(|set| set.starts_with(prefix))
}

fn read_file(file: &Path, here: &Path) -> Result<(Node, Vec<job::faults::Fault>, Origin), Failure> {
    let name = file.display().to_string();
    let (bytes, folder) = if name == "-" {
        (read_limited(std::io::stdin().lock(), "standard input")?, here.to_owned())
    } else {
        let absolute = here.join(file);
        let missing = |error: &std::io::Error| {
            Failure::new(ExitCode::NotFound, format!("failed to read the job file {name}"))
                .because(error)
                .hint("a relative path begins at the current folder")
        };
        let opened = std::fs::File::open(&absolute).map_err(|error| missing(&error))?;
        if opened.metadata().map_err(|error| missing(&error))?.is_dir() {
            return Err(Failure::new(ExitCode::NotFound, format!("{name} is a folder, not a job file"))
                .hint(format!("name the file in it, for example {}", file.join("job.yaml").display())));
        }
        let folder = absolute.parent().map_or_else(|| here.to_owned(), Path::to_owned);
        (read_limited(opened, &name)?, folder)
    };
    let origin = Origin { name, folder };
    let text = source::decode(&bytes).map_err(|fault| Faults::new(&origin.name, vec![fault]))?;
    let (root, faults) = source::read(text);
    match root {
        Some(root) => Ok((root, faults, origin)),
        None => Err(Faults::new(&origin.name, faults).into()),
    }
}

/// One byte more than the limit is read, so that the check behind this sees that there is more.
fn read_limited(reader: impl Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let limit = SOURCE_BYTES_MAX as u64 + 1;
    match reader.take(limit).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => {
            Err(Failure::new(ExitCode::NotFound, format!("failed to read the job file {name}"))
                .because(&error))
        }
    }
}

/// The fields that flags give; `--set` last, so that it wins.
fn fields(flags: &Submit, here: &Path) -> Result<Vec<Override>, Failure> {
    let mut fields = Vec::new();
    let name = match (&flags.name, &flags.file) {
        (Some(name), _) => Some(("--name", name.clone())),
        (None, None) => Some(("COMMAND", name_of(&flags.command))),
        (None, Some(_)) => None,
    };
    if let Some((flag, name)) = name {
        fields.push(Override::new(flag, "metadata.name", Value::Text(name)));
    }
    if !flags.command.is_empty() {
        let place = Place::flag("COMMAND");
        let words =
            flags.command.iter().map(|word| Node { place: place.clone(), value: Value::Text(word.clone()) });
        fields.push(Override::new("COMMAND", "spec.run.command", Value::List(words.collect())));
    }
    fields.extend(run_fields(&flags.run, here));
    fields.extend(data_fields(&flags.data, here));
    for argument in &flags.set {
        let field = Override::parse(argument).map_err(|message| {
            usage(format!("--set {argument} {message}"), "`launcher schema` describes every field")
        })?;
        fields.push(field);
    }
    Ok(fields)
}

fn run_fields(flags: &RunFlags, here: &Path) -> Vec<Override> {
    let RunFlags {
        workers,
        min_workers,
        spares,
        ranks_per_worker,
        cpus,
        gpus,
        memory,
        env,
        workdir,
        max_restarts,
        hang_timeout,
    } = flags;
    let number =
        |flag, path, value: Option<u32>| Some(Override::new(flag, path, Value::Integer(value?.into())));
    let text = |flag, path, value: Option<String>| Some(Override::new(flag, path, Value::Text(value?)));
    let mut fields: Vec<Override> = [
        number("--workers", "spec.workers.count", *workers),
        number("--min-workers", "spec.workers.min", *min_workers),
        number("--spares", "spec.workers.spares", *spares),
        number("--ranks-per-worker", "spec.run.ranksPerWorker", *ranks_per_worker),
        number("--cpus", "spec.resources.cpus", *cpus),
        number("--gpus", "spec.resources.gpus", *gpus),
        text("--memory", "spec.resources.memory", memory.clone()),
        text("--workdir", "spec.run.workdir", workdir.as_ref().map(|folder| lossy(&here.join(folder)))),
        number("--max-restarts", "spec.restarts.max", *max_restarts),
        text("--hang-timeout", "spec.hang.timeout", hang_timeout.clone()),
    ]
    .into_iter()
    .flatten()
    .collect();
    fields.extend(env.iter().map(|(name, value)| Override {
        flag: "--env".to_owned(),
        keys: ["spec", "run", "env", name].map(str::to_owned).to_vec(),
        value: Value::Text(value.clone()),
    }));
    fields
}

fn data_fields(flags: &DataFlags, here: &Path) -> Vec<Override> {
    let DataFlags { data, global_batch, epochs, seed, shuffle, remainder, record, transport } = flags;
    let number =
        |flag, path, value: Option<u64>| Some(Override::new(flag, path, Value::Integer(value?.into())));
    let text = |flag, path, value: Option<String>| Some(Override::new(flag, path, Value::Text(value?)));
    let map = |flag: &str, path: &str, entries: &[(&str, Value)]| {
        let place = Place::flag(flag);
        let entry = |(key, value): &(&str, Value)| Entry {
            key: (*key).to_owned(),
            place: place.clone(),
            node: Node { place: place.clone(), value: value.clone() },
        };
        Override::new(flag, path, Value::Map(entries.iter().map(entry).collect()))
    };
    let word = |text: &str| Value::Text(text.to_owned());
    let shuffle = shuffle.map(|shuffle| match shuffle {
        Shuffle::None => map("--shuffle", "spec.data.shuffle", &[("mode", word("none"))]),
        Shuffle::Window { chunks } => {
            let chunks = Value::Integer(chunks.get().into());
            map("--shuffle", "spec.data.shuffle", &[("mode", word("window")), ("chunks", chunks)])
        }
    });
    let record = record.map(|record| {
        let items = Value::Integer(record.items.get().into());
        map("--record", "spec.data.record", &[("dtype", word(record.dtype.name())), ("items", items)])
    });
    let remainder = remainder.map(|remainder| match remainder {
        crate::cli::RemainderFlag::Drop => "drop".to_owned(),
        crate::cli::RemainderFlag::Pad => "pad".to_owned(),
    });
    let source = data.as_ref().map(|data| resolve::absolute_source(data, here));
    [
        text(
            "--data",
            "spec.data.source",
            source.filter(|_| data.as_ref().is_some_and(|data| !data.is_empty())),
        ),
        text("--data", "spec.data.source", data.clone().filter(String::is_empty)),
        number("--global-batch", "spec.data.globalBatch", global_batch.map(u64::from)),
        number("--epochs", "spec.data.epochs", *epochs),
        number("--seed", "spec.data.seed", *seed),
        shuffle,
        text("--remainder", "spec.data.remainder", remainder),
        record,
        text("--transport", "spec.data.transport", transport.clone()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A name out of a command: its script's, else its program's.
fn name_of(command: &[String]) -> String {
    let stem = |word: &String| {
        PathBuf::from(word).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let script = command.iter().find(|word| word.ends_with(".py") || word.ends_with(".sh"));
    validate::name_from(&script.or_else(|| command.first()).map(stem).unwrap_or_default())
}

fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// What a job may ask for and no backend has, all of it at once.
///
/// # Errors
/// When it asks for any of that.
pub fn refuse_what_this_build_lacks(job: &Job) -> Result<(), Failure> {
    refuse(&lacks(job))
}

/// The same, what only a cluster has, and what this build leaves out.
///
/// # Errors
/// When it asks for any of that.
pub fn refuse_what_this_host_lacks(job: &Job) -> Result<(), Failure> {
    let mut lacks: Vec<_> = lacks_here(job).into_iter().chain(lacks(job)).collect();
    if job.queue.is_some() {
        lacks.push(("spec.queue", "no queue with --on local"));
    }
    if job.suspend {
        lacks.push(("spec.suspend", "no suspension with --on local"));
    }
    refuse(&lacks)
}

fn refuse(lacks: &[(&str, &str)]) -> Result<(), Failure> {
    if lacks.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = lacks.iter().map(|(name, _)| *name).collect();
    let instead: Vec<_> = lacks.iter().map(|(name, instead)| format!("{name} -> {instead}")).collect();
    Err(Failure::new(ExitCode::Unavailable, format!("this build cannot do {}", names.join(", ")))
        .hint(format!("use instead: {}", instead.join("; "))))
}

#[cfg(test)]
mod tests;
