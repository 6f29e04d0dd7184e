//! Medians over the rounds, the ratios between servers, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::{Case, Measured};

/// All runs.
#[derive(Debug, Default)]
pub(crate) struct Report {
    runs: BTreeMap<Case, BTreeMap<&'static str, Vec<Measured>>>,
}

/// How to take one number from a run, and what it is called.
type Column = (&'static str, fn(&Measured) -> f64);

const JOIN_COLUMNS: [Column; 4] = [
    ("join+barrier ms", |run| millis(run.wall)),
    ("join ms", |run| millis(run.join)),
    ("server cpu ms", |run| millis(run.server_cpu)),
    ("client cpu ms", |run| millis(run.client_cpu)),
];

const OPERATION_COLUMNS: [Column; 5] = [
    ("ops/s", |run| run.rate),
    ("p99 us", |run| micros(run.p99)),
    ("server cpu ms", |run| millis(run.server_cpu)),
    ("  outside kernel", |run| millis(run.server_user)),
    ("client cpu ms", |run| millis(run.client_cpu)),
];

impl Report {
    /// Notes a run.
    pub(crate) fn add(&mut self, case: Case, server: &'static str, measured: Measured) {
        self.runs.entry(case).or_default().entry(server).or_default().push(measured);
    }

    /// A line for each case and number: median (least–most) of each server, and ours divided by torch's.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<22} {:<16} {:>30} {:>30} {:>8}\n",
            "case", "median (range)", "slipway", "torch libuv", "ratio"
        );
        for (case, servers) in &self.runs {
            for (name, column) in columns(*case) {
                let ours = servers.get("slipway").map(|runs| spread(runs, *column));
                let torch = servers.get("torch").map(|runs| spread(runs, *column));
                let ratio = match (ours, torch) {
                    (Some(ours), Some(torch)) if torch.1 > 0.0 => format!("{:.2}", ours.1 / torch.1),
                    _ => String::new(),
                };
                let [ours, torch] = [ours, torch].map(|spread| spread.map(cell).unwrap_or_default());
                let _ = writeln!(text, "{:<22} {name:<16} {ours:>30} {torch:>30} {ratio:>8}", case.title());
            }
        }
        text
    }

    /// The same with all runs.
    pub(crate) fn json(&self) -> Value {
        let cases = self.runs.iter().map(|(case, servers)| {
            let servers: serde_json::Map<_, _> = servers
                .iter()
                .map(|(server, runs)| {
                    let numbers = columns(*case).iter().map(|(name, column)| {
                        let all: Vec<f64> = runs.iter().map(column).collect();
                        let (least, median, most) = spread(runs, *column);
                        (
                            (*name).trim().to_owned(),
                            json!({"median": median, "least": least, "most": most, "all": all}),
                        )
                    });
                    ((*server).to_owned(), Value::Object(numbers.collect()))
                })
                .collect();
            json!({"case": case.title(), "servers": servers})
        });
        json!({ "bench": "store", "cases": cases.collect::<Vec<_>>() })
    }
}

fn columns(case: Case) -> &'static [Column] {
    match case {
        Case::JoinOldBarrier(_) | Case::JoinNewBarrier(_) => &JOIN_COLUMNS,
        Case::Operations(..) => &OPERATION_COLUMNS,
    }
}

/// Least, median, most.
fn spread(runs: &[Measured], column: fn(&Measured) -> f64) -> (f64, f64, f64) {
    let mut all: Vec<f64> = runs.iter().map(column).collect();
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    let median = if all.len() % 2 == 1 { all[middle] } else { f64::midpoint(all[middle - 1], all[middle]) };
    (all[0], median, all[all.len() - 1])
}

fn cell((least, median, most): (f64, f64, f64)) -> String {
    let digits = if median < 100.0 { 1 } else { 0 };
    format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
