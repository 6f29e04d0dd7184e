//! The same batches at any world size: what running jobs record is what `data order` computes, and what the trainers
//! themselves wrote down; also when a job is resumed in mid-epoch at another world size.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tests::job::Running;
use tests::program::{User, root};
use tests::{dataset, leftovers};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("order::one_hash_at_any_world_size", any_world_size),
    ("order::one_hash_through_a_resume_at_another_world_size", resumed_elsewhere),
    ("order::padding_is_marked_and_no_sample_is_lost", padded),
];

/// Records of the data set: 5 files of 210.
const SAMPLES: u64 = 1050;
const EPOCHS: u64 = 2;
const GLOBAL_BATCH: &str = "25";

fn any_world_size() {
    let expected = digest(&audited(&User::new(), "drop"));
    for workers in ["1", "2", "3", "4", "6"] {
        let user = User::new();
        let records = user.work().join("records");
        std::fs::create_dir(&records).unwrap();
        let status = user.run(submit(&user, workers, "drop", &[])).code(0).json();
        assert_eq!(status["summary"]["orderDigest"], expected, "W = {workers}: {status:#}");
        assert_eq!(status["summary"]["samples"], SAMPLES * EPOCHS);
        assert_each_sample_once_per_epoch(&consumed(&records, u64::MAX));
        leftovers::assert_none(&user);
    }
}

fn resumed_elsewhere() {
    let user = User::new();
    let expected = digest(&audited(&user, "drop"));
    let records = user.work().join("records");
    std::fs::create_dir(&records).unwrap();
    let slow = ["--env", "STEP_MS=15", "--env", "COMMIT_EVERY=5"];
    let mut running = Running::start(&user, &as_strs(&submit(&user, "4", "drop", &slow)));
    // In mid-epoch: an epoch has 42 steps.
    let id = running.wait_for("20 steps are committed", |journal| committed(journal) >= 20);
    assert_eq!(user.run(["job", "cancel", &id, "--output", "json"]).code(0).json()["phase"], "cancelled");
    let cancelled = running.finish().code(130).json();
    let from = cancelled["committed"].as_u64().unwrap();
    assert!((20..84).contains(&from), "committed {from} of 84 steps");
    leftovers::assert_none(&user);

    let status = user.run(["job", "resume", &id, "--workers", "6", "--output", "json"]).code(0).json();
    assert_eq!(status["ranks"], 6);
    assert_eq!(status["summary"]["orderDigest"], expected, "{status:#}");
    assert_each_sample_once_per_epoch(&consumed(&records, from));
    leftovers::assert_none(&user);
}

fn padded() {
    let user = User::new();
    let records = user.work().join("records");
    std::fs::create_dir(&records).unwrap();
    let mut args = submit(&user, "4", "pad", &[]);
    replace(&mut args, "--global-batch", "64");
    let status = user.run(&args).code(0).json();
    let mut audit = order_args(&user, "pad");
    replace(&mut audit, "--global-batch", "64");
    assert_eq!(status["summary"]["orderDigest"], digest(&user.run(&audit).code(0).json()));
    assert_each_sample_once_per_epoch(&consumed(&records, u64::MAX));
}

fn submit(user: &User, workers: &str, remainder: &str, more: &[&str]) -> Vec<String> {
    let data = dataset::tokens(user, "tokens", 5, 210, 32);
    let trainer = root().join("tests/trainers/consume.py");
    let records = format!("RECORD_FOLDER={}", user.work().join("records").display());
    let mut args = vec!["job", "submit", "--output", "json", "--workers", workers];
    let data = data.to_str().unwrap();
    args.extend(["--data", data, "--record", "u16:32", "--global-batch", GLOBAL_BATCH, "--epochs", "2"]);
    args.extend(["--seed", "7", "--shuffle", "window:4", "--remainder", remainder, "--env", &records]);
    args.extend(more);
    args.extend(["--", "python3", trainer.to_str().unwrap()]);
    args.into_iter().map(str::to_owned).collect()
}

fn order_args(user: &User, remainder: &str) -> Vec<String> {
    let data = dataset::tokens(user, "tokens", 5, 210, 32);
    let mut args = vec!["data", "order", data.to_str().unwrap(), "--record", "u16:32", "--workers", "1"];
    args.extend(["--global-batch", GLOBAL_BATCH, "--seed", "7", "--epochs", "2", "--shuffle", "window:4"]);
    args.extend(["--remainder", remainder, "--digest", "--output", "json"]);
    args.into_iter().map(str::to_owned).collect()
}

fn audited(user: &User, remainder: &str) -> Value {
    user.run(order_args(user, remainder)).code(0).json()
}

fn digest(audit: &Value) -> Value {
    let digest = audit["digest"].clone();
    assert!(digest.as_str().is_some_and(|text| text.len() == 32), "{audit:#}");
    digest
}

fn replace(args: &mut [String], flag: &str, value: &str) {
    let at = args.iter().position(|arg| arg == flag).unwrap() + 1;
    value.clone_into(&mut args[at]);
}

fn as_strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// The committed step that a journal tells last.
pub(crate) fn committed(journal: &str) -> u64 {
    let entries = journal.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    entries.filter_map(|entry| find_number(&entry, "committed")).max().unwrap_or(0)
}

fn find_number(entry: &Value, key: &str) -> Option<u64> {
    match entry {
        Value::Object(map) => map
            .get(key)
            .and_then(Value::as_u64)
            .or_else(|| map.values().find_map(|value| find_number(value, key))),
        _ => None,
    }
}

/// What the trainers wrote down: step → sample ids of all ranks. Of a step that ran in two generations (it lay
/// at or behind `resumed_at`) the later generation counts.
fn consumed(folder: &Path, resumed_at: u64) -> BTreeMap<u64, Vec<u64>> {
    let mut steps: BTreeMap<u64, BTreeMap<u64, Vec<u64>>> = BTreeMap::new();
    for file in std::fs::read_dir(folder).unwrap() {
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            let entry: Value = serde_json::from_str(line).unwrap();
            let ids = entry["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
            let generations = steps.entry(entry["step"].as_u64().unwrap()).or_default();
            generations.entry(entry["generation"].as_u64().unwrap()).or_default().extend(ids);
        }
    }
    let latest = steps.into_iter().map(|(step, mut generations)| {
        assert!(
            generations.len() == 1 || step >= resumed_at,
            "step {step} ran again though it was committed"
        );
        (step, generations.pop_last().unwrap().1)
    });
    latest.collect()
}

fn assert_each_sample_once_per_epoch(steps: &BTreeMap<u64, Vec<u64>>) {
    let per_epoch = steps.len() as u64 / EPOCHS;
    for epoch in 0..EPOCHS {
        let range = epoch * per_epoch..(epoch + 1) * per_epoch;
        let mut ids: Vec<u64> = steps.range(range).flat_map(|(_, ids)| ids.clone()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..SAMPLES).collect::<Vec<_>>(), "epoch {epoch}: each sample once");
    }
}
