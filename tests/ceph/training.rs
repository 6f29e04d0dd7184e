//! Jobs that are fed from a cluster: the same samples in the same order as from a directory, each byte read once per epoch.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::ceph::Ceph;
use tests::job::Running;
use tests::leftovers;
use tests::program::{User, root};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("training_digits_from_rados_and_from_the_gateway", digits),
    ("training_gigabytes_of_tokens_from_rados", || gigabytes(&[], |ceph| ceph.url("writer", "tokens"))),
    ("training_gigabytes_of_tokens_from_the_gateway", || {
        gigabytes(&[("RGW", "1")], |ceph| {
            ceph.make_bucket("tokens", None);
            ceph.s3_url("tokens", "train")
        });
    }),
    ("training_reads_each_byte_once_per_epoch_at_any_world_size", once_per_epoch),
    ("training_reads_hardly_more_when_a_worker_dies", worker_killed),
    ("training_stopped_for_a_minute_holds_bounded_memory_and_goes_on", stopped),
];

/// Of the bytes that are read: one and a twentieth of the data set for each epoch.
const READ_RATIO_MAX: f64 = 1.05;

fn digits() {
    let ceph = Ceph::start("digits", &[("RGW", "1")]);
    ceph.make_bucket("datasets", None);
    let job = root().join("examples/digits/job.yaml");
    let submit = |source: Option<&str>| {
        let user = User::new();
        let mut args = vec!["job", "submit", job.to_str().unwrap(), "--output", "json"];
        args.extend(source.iter().flat_map(|source| ["--data", source]));
        let status = user.run(args).code(0).json();
        leftovers::assert_none(&user);
        status["summary"].clone()
    };
    let local = submit(None);
    let shards = root().join("examples/digits/shards");
    let user = User::new();
    // Put by one user; trained with the key of another, who may only read this pool.
    user.run(["data", "put", shards.to_str().unwrap(), &ceph.url("writer", "digits")]).code(0);
    user.run(["data", "put", shards.to_str().unwrap(), &ceph.s3_url("datasets", "digits")]).code(0);
    for source in [ceph.url("reader", "digits"), ceph.s3_url("datasets", "digits")] {
        let summary = submit(Some(&source));
        assert_eq!(summary["orderDigest"], local["orderDigest"], "{source}: {summary:#}");
        assert_eq!(summary["reported"]["accuracy"], local["reported"]["accuracy"], "{source}");
    }
}

/// Records of 2048 tokens in 8 shards, 2.1 GB together.
fn gigabytes(settings: &[(&str, &str)], target: impl Fn(&Ceph) -> String) {
    let user = User::new();
    let source = write_tokens(&user, 8, 65_536);
    let ceph = Ceph::start("gigabytes", settings);
    let target = target(&ceph);
    user.run(["data", "put", source.to_str().unwrap(), &target, "--record", "u16:2048"]).code(0);
    let run = |source: &str| {
        let args = submit(&user, source, "2", &["--global-batch", "1024", "--shuffle", "window:16"]);
        user.run(args).code(0).json()["summary"].clone()
    };
    let (here, there) =
        (run(source.to_str().unwrap()), run(&target.replace("secret/writer", "secret/reader")));
    assert_eq!(here["samples"], 8 * 65_536);
    assert_eq!(here["orderDigest"], there["orderDigest"], "{there:#}");
    leftovers::assert_none(&user);
}

fn once_per_epoch() {
    let ceph = Ceph::start("once", &[]);
    let user = User::new();
    let (data, bytes) = put(&ceph, &user, 8, 4096);
    for workers in ["1", "2", "4", "8"] {
        let before = ceph.bytes_read(0);
        let args = submit(
            &user,
            &data,
            workers,
            &["--global-batch", "256", "--shuffle", "window:4", "--env", "LOCKSTEP=1"],
        );
        user.run(args).code(0);
        assert_ratio(&format!("W = {workers}"), ceph.bytes_read(0) - before, bytes);
    }
}

fn worker_killed() {
    let ceph = Ceph::start("killed", &[]);
    let user = User::new();
    // Large against a window of samples, of which the lost worker held a share.
    let (data, bytes) = put(&ceph, &user, 8, 16_384);
    let before = ceph.bytes_read(0);
    let more = [
        "--global-batch",
        "256",
        "--shuffle",
        "window:4",
        "--env",
        "LOCKSTEP=1",
        "--env",
        "STEP_MS=20",
        "--env",
        "COMMIT_EVERY=5",
    ];
    let mut running = Running::start(&user, &submit(&user, &data, "4", &more));
    running.wait_for("a third of the steps are committed", |journal| committed(journal) >= 170);
    let workers = leftovers::pids(&user, "launcher worker-agent");
    signal(workers[1], rustix::process::Signal::KILL);
    let status = running.finish().code(0).json();
    assert_eq!(status["restarts"], 1, "{status:#}");
    assert_ratio("with a worker killed", ceph.bytes_read(0) - before, bytes);
    leftovers::assert_none(&user);
}

/// What a sidecar may hold besides ring and cache.
const BESIDES_BYTES: u64 = 64 << 20;

#[expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "figures are shown; the pause is the story"
)]
fn stopped() {
    let ceph = Ceph::start("paused", &[]);
    let user = User::new();
    let (data, _) = put(&ceph, &user, 8, 16_384);
    // A window of 8 chunks of 4 MiB and 16 that are being read; four slots of a batch of 1 MiB, of whole pages.
    let budget = ((8 + 16) * (4 << 20) + 4 * ((1 << 20) + (1 << 16))) + BESIDES_BYTES;
    let more =
        ["--global-batch", "256", "--shuffle", "window:8", "--env", "STEP_MS=10", "--env", "COMMIT_EVERY=5"];
    let mut running = Running::start(&user, &submit(&user, &data, "1", &more));
    running.wait_for("some steps are committed", |journal| committed(journal) >= 20);
    let before = leftovers::now();
    running.wait_for("more steps are committed", |journal| committed(journal) >= 120);
    let hundred = before.elapsed();
    let rank = leftovers::pids(&user, "python3 ")[0];
    let sidecar = leftovers::pids(&user, "launcher worker-agent")[0];
    signal(rank, rustix::process::Signal::STOP);
    std::thread::sleep(std::time::Duration::from_secs(60));
    let read = ceph.bytes_read(0);
    let [anonymous, shared, file, peak] =
        ["RssAnon:", "RssShmem:", "RssFile:", "VmHWM:"].map(|which| memory_bytes(sidecar, which));
    // The text of a program that was not optimised is tens of megabytes.
    let resident = anonymous + shared;
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(ceph.bytes_read(0), read, "nothing is read for a trainer that stands still");
    eprintln!(
        "sidecar: {resident} bytes resident and {file} of files, {budget} allowed; {peak} at the most since its start"
    );
    assert!(resident <= budget, "{resident} bytes resident, {budget} allowed");
    let at = std::cell::Cell::new(0);
    running.wait_for("the last committed step", |journal| {
        at.set(committed(journal));
        true
    });
    signal(rank, rustix::process::Signal::CONT);
    let after = leftovers::now();
    running.wait_for("it goes on", |journal| committed(journal) >= at.get() + 100);
    eprintln!("100 steps: {hundred:?} before, {:?} after", after.elapsed());
    assert!(after.elapsed() < 2 * hundred, "{hundred:?} before, {:?} after", after.elapsed());
    running.finish().code(0);
    leftovers::assert_none(&user);
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Memory of a process by the kernel's count.
fn memory_bytes(pid: u32, which: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[expect(clippy::print_stderr, reason = "the figure is part of what the story shows")]
fn assert_ratio(what: &str, read: u64, wanted: u64) {
    let ratio = f64::from(u32::try_from(read).unwrap()) / f64::from(u32::try_from(wanted).unwrap());
    eprintln!("{what}: {read} bytes read from Ceph, {ratio:.4} of the data");
    assert!((1.0..=READ_RATIO_MAX).contains(&ratio), "{what}: {ratio:.4} of the data were read");
}

/// A data set of that many records of 2048 tokens per shard, in the cluster; its address for the reader, and its bytes.
pub(crate) fn put(ceph: &Ceph, user: &User, shards: usize, records: usize) -> (String, u64) {
    let source = write_tokens(user, shards, records);
    let target = ceph.url("writer", "tokens");
    user.run(["data", "put", source.to_str().unwrap(), &target, "--record", "u16:2048"]).code(0);
    (ceph.url("reader", "tokens"), u64::try_from(shards * records * 4096).unwrap())
}

/// `launcher job submit` of a job that only consumes.
pub(crate) fn submit(user: &User, data: &str, workers: &str, more: &[&str]) -> Vec<String> {
    let trainer = root().join("tests/trainers/consume.py");
    let mut args =
        vec!["job", "submit", "--output", "json", "--name", "tokens", "--workers", workers, "--data", data];
    if Path::new(data).is_dir() {
        args.extend(["--record", "u16:2048"]);
    }
    args.extend(["--seed", "7"]);
    args.extend(more);
    let work = user.work();
    args.extend(["--workdir", work.to_str().unwrap(), "--", "python3", trainer.to_str().unwrap()]);
    args.into_iter().map(str::to_owned).collect()
}

/// Shards whose records all differ: each begins with its number.
fn write_tokens(user: &User, shards: usize, records: usize) -> PathBuf {
    let folder = user.work().join("tokens");
    std::fs::create_dir_all(&folder).unwrap();
    let mut bytes: Vec<u8> =
        (0..records * 4096).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    for shard in 0..shards {
        for record in 0..records {
            let number = u64::try_from(shard * records + record).unwrap();
            bytes[record * 4096..record * 4096 + 8].copy_from_slice(&number.to_le_bytes());
        }
        std::fs::write(folder.join(format!("tokens-{shard:03}.bin")), &bytes).unwrap();
    }
    folder
}

/// The committed step that a journal tells last.
pub(crate) fn committed(journal: &str) -> u64 {
    let entries = journal.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    entries.filter_map(|entry| find_number(&entry, "committed")).max().unwrap_or(0)
}

fn find_number(entry: &Value, key: &str) -> Option<u64> {
    let map = entry.as_object()?;
    map.get(key).and_then(Value::as_u64).or_else(|| map.values().find_map(|value| find_number(value, key)))
}
