//! `launcher data order`: which samples each rank is given in each step, or one hash of them.

use std::fmt::Write as _;

use datapath::order::{Consumer, EpochOrder, Order, OrderDigest, OrderSpec, Placed};
use serde::Serialize;

use crate::cli;
use crate::dataset;
use crate::error::{ExitCode, Failure};
use crate::output::Printer;

/// Written at once: a job has millions of short lines, and each write is a system call.
const WRITE_BYTES: usize = 64 << 10;

/// Lists or hashes the steps that the flags name.
///
/// # Errors
/// When the data cannot be opened or is smaller than a batch, or the steps do not exist.
pub async fn run(flags: &cli::Order, printer: Printer) -> Result<(), Failure> {
    let manifest =
        dataset::open(&flags.source.source, &dataset::index_options(flags.source.record)).await?.manifest;
    let spec = OrderSpec {
        seed: flags.seed,
        global_batch: flags.global_batch,
        shuffle: flags.shuffle,
        remainder: flags.remainder.into(),
    };
    if flags.workers > flags.global_batch {
        let message =
            format!("--workers {} is more than --global-batch {}", flags.workers, flags.global_batch);
        return Err(
            Failure::new(ExitCode::Usage, message).hint("every consumer needs at least one sample of a step")
        );
    }
    let order = Order::new(&manifest, spec).map_err(|error| Failure::from_error(ExitCode::Data, &error))?;
    let steps = Steps::new(flags, &order)?;
    if flags.digest {
        let audit = audit(flags, &order, steps, manifest.digest().to_string())?;
        return printer.data(&audit, |audit| format!("{}\n", audit.digest));
    }
    let mut pending = String::new();
    steps.each(&order, |step| {
        let line = Line::new(&step, flags);
        pending.push_str(&if printer.json { line.json()? } else { line.text() });
        if pending.len() >= WRITE_BYTES {
            printer.text(&std::mem::take(&mut pending))?;
        }
        Ok(())
    })?;
    printer.text(&pending)
}

/// The steps that are asked for, counted over all epochs.
#[derive(Clone, Copy, Debug)]
struct Steps {
    first: u64,
    end: u64,
    whole_job: bool,
}

impl Steps {
    fn new(flags: &cli::Order, order: &Order) -> Result<Self, Failure> {
        let per_epoch = order.steps_per_epoch();
        let too_many =
            || Failure::new(ExitCode::Usage, "there are no more than 2^64 steps").hint("lower --epoch");
        let (base, end) = match flags.epochs {
            Some(epochs) => (0, per_epoch.checked_mul(epochs.get()).ok_or_else(too_many)?),
            None => {
                let base = per_epoch.checked_mul(flags.epoch.unwrap_or(0)).ok_or_else(too_many)?;
                (base, base.checked_add(per_epoch).ok_or_else(too_many)?)
            }
        };
        let first = base.checked_add(flags.from).filter(|first| *first < end).ok_or_else(|| {
            let message = format!("--from {} is behind the last of {} steps", flags.from, end - base);
            Failure::new(ExitCode::Usage, message).hint(format!("steps count from 0 to {}", end - base - 1))
        })?;
        let end = flags.steps.map_or(end, |steps| first.saturating_add(steps).min(end));
        Ok(Self { first, end, whole_job: flags.epochs.is_some() })
    }

    /// Visits the steps in order; each epoch's permutation is made once.
    fn each(
        self,
        order: &Order,
        mut visit: impl FnMut(StepOrder<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let per_epoch = order.steps_per_epoch();
        let mut step = self.first;
        while step < self.end {
            let epoch = step / per_epoch;
            let permutation = order.epoch(epoch);
            let epoch_end = epoch.saturating_add(1).saturating_mul(per_epoch).min(self.end);
            for step in step..epoch_end {
                let in_epoch = step % per_epoch;
                let number = if self.whole_job { step } else { in_epoch };
                visit(StepOrder { epoch, in_epoch, number, permutation: &permutation })?;
            }
            step = epoch_end;
        }
        Ok(())
    }
}

/// One step of an epoch.
struct StepOrder<'a> {
    epoch: u64,
    in_epoch: u64,
    /// What it is shown as.
    number: u64,
    permutation: &'a EpochOrder,
}

impl StepOrder<'_> {
    fn slice(&self, index: u32, flags: &cli::Order) -> Vec<Placed> {
        self.permutation.slice(self.in_epoch, Consumer { index, of: flags.workers })
    }
}

/// One hash, and everything that it depends on: enough to repeat it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Audit {
    digest: OrderDigest,
    dataset: String,
    seed: u64,
    global_batch: u32,
    workers: u32,
    steps_per_epoch: u64,
    first_step: u64,
    steps: u64,
    samples: u64,
}

/// The digest is summed over the consumers' slices, as a job does it; padding is delivered, so it counts there.
fn audit(flags: &cli::Order, order: &Order, steps: Steps, dataset: String) -> Result<Audit, Failure> {
    let (mut digest, mut samples) = (OrderDigest::default(), 0);
    steps.each(order, |step| {
        for Placed { position, sample, padding } in
            (0..flags.workers.get()).flat_map(|index| step.slice(index, flags))
        {
            digest.add(step.epoch, step.in_epoch, position, sample);
            samples += u64::from(!padding);
        }
        Ok(())
    })?;
    Ok(Audit {
        digest,
        dataset,
        seed: flags.seed,
        global_batch: flags.global_batch.get(),
        workers: flags.workers.get(),
        steps_per_epoch: order.steps_per_epoch(),
        first_step: steps.first,
        steps: steps.end - steps.first,
        samples,
    })
}

/// One step.
#[derive(Debug, Serialize)]
struct Line {
    epoch: u64,
    step: u64,
    ranks: Vec<Vec<Item>>,
}

#[derive(Debug, Serialize)]
struct Item {
    sample: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    padding: bool,
}

impl Line {
    fn new(step: &StepOrder<'_>, flags: &cli::Order) -> Self {
        let slice = |index| {
            let placed = step.slice(index, flags).into_iter();
            placed.map(|Placed { sample, padding, .. }| Item { sample: sample.0, padding }).collect()
        };
        Self { epoch: step.epoch, step: step.number, ranks: (0..flags.workers.get()).map(slice).collect() }
    }

    fn json(&self) -> Result<String, Failure> {
        let json = serde_json::to_string(self);
        json.map(|json| json + "\n")
            .map_err(|error| Failure::new(ExitCode::Internal, "failed to print JSON").because(&error))
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (rank, items) in self.ranks.iter().enumerate() {
            let ids: Vec<_> = items
                .iter()
                .map(|item| format!("{}{}", item.sample, if item.padding { "+" } else { "" }))
                .collect();
            writeln!(text, "{}\t{rank}\t{}", self.step, ids.join(" ")).ok();
        }
        text
    }
}
