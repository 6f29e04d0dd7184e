//! Data servers: they alone read the store, the order does not know of them, and nothing that happens to them ends a
//! generation.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use tests::job::{Running, signal, status};
use tests::program::{User, root};
use tests::{dataset, leftovers};

use crate::Story;
use crate::order::committed;

pub(crate) const STORIES: &[Story] = &[
    ("servers::they_alone_read_the_store_and_the_order_is_the_same", alone),
    ("servers::the_plan_says_that_they_own_the_chunks", plan),
    ("servers::one_killed_in_mid_epoch_ends_nothing_and_comes_back", killed),
    ("servers::one_that_stands_still_holds_nobody_up", stands_still),
    ("servers::without_any_left_the_workers_read_the_store", all_killed),
    ("servers::a_job_starts_without_those_that_never_come_up", never_there),
    ("servers::a_rank_that_is_killed_restarts_the_job_with_them", rank_killed),
];

/// Files of the data set: each is a chunk or more.
const FILES: usize = 24;
const SAMPLES: u64 = 600;
const SAMPLE_BYTES: u64 = 64;
const EPOCHS: u64 = 2;
/// 10 samples a step.
const STEPS: u64 = EPOCHS * SAMPLES / 10;
/// Workers 0 and 1 have ranks.
const SERVERS: [usize; 2] = [2, 3];

fn alone() {
    let user = User::new();
    let expected = audit(&user);
    let alone = user.run(submit(&user, &["--set", "spec.data.servers.count=0"])).code(0).json();
    assert_eq!(alone["summary"]["orderDigest"], expected, "{alone:#}");
    assert_eq!(alone["summary"]["bytesReadByServers"], 0, "{alone:#}");
    assert_eq!(alone["serverStatus"], Value::Array(Vec::new()), "{alone:#}");

    let run = user.run(submit(&user, &[])).code(0);
    assert!(!run.stderr.contains("data server"), "nothing is wrong: {}", run.stderr);
    let served = run.json();
    assert_whole(&served, &expected);
    let summary = &served["summary"];
    let (read, by_servers) = (&summary["bytesRead"], &summary["bytesReadByServers"]);
    assert_eq!(read, by_servers, "workers read nothing: {served:#}");
    assert_eq!(
        by_servers.as_u64().unwrap(),
        SAMPLES * SAMPLE_BYTES,
        "each byte once, as all of it fits: {served:#}"
    );
    assert_eq!(summary["paths"]["local"], 0, "{served:#}");
    assert_eq!(summary["bytesExchanged"], SAMPLES * EPOCHS * SAMPLE_BYTES, "{served:#}");
    let text = user.run(["job", "status", served["id"].as_str().unwrap()]).code(0);
    text.prints("SERVER").prints("of it by data servers");
    leftovers::assert_none(&user);
}

fn plan() {
    let user = User::new();
    let plan = user.run(submit(&user, &["--dry-run"])).code(0).json();
    let owned: Vec<(bool, u64)> = plan["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| (worker["serves"].as_bool().unwrap(), worker["chunksOwned"].as_u64().unwrap()))
        .collect();
    assert_eq!(owned.iter().map(|(serves, _)| *serves).collect::<Vec<_>>(), [false, false, true, true]);
    assert_eq!((owned[0].1, owned[1].1), (0, 0), "{plan:#}");
    assert_eq!(owned[2].1 + owned[3].1, u64::try_from(FILES).unwrap(), "{plan:#}");
}

fn killed() {
    let user = User::new();
    let expected = audit(&user);
    let records = user.work().join("records");
    std::fs::create_dir(&records).unwrap();
    let written = format!("RECORD_FOLDER={}", records.display());
    let mut running = start(&user, &["--env", &written]);
    let id = running.wait_for("20 steps are committed", |journal| committed(journal) >= 20);
    let before = server(&status(&user, &id), 0);
    assert_eq!(before["phase"], "serving", "{before:#}");
    signal(pid(&before), Signal::KILL);
    let after =
        wait_for(&user, &id, |server| server["message"].as_str().is_some_and(|why| why.contains("SIGKILL")));
    assert_ne!(after["phase"], "serving", "{after:#}");
    let back = wait_for(&user, &id, |server| server["phase"] == "serving");
    assert_ne!(back["pid"], before["pid"], "it was started again");
    assert_eq!(back["message"], "", "{back:#}");
    let end = running.finish().code(0);
    let named = end.stderr.matches("data server 0 (worker 2) was lost").count();
    assert_eq!(named, 1, "the loss is named once\n{}", end.stderr);
    assert!(end.stderr.contains("the other data server owns its chunks"), "{}", end.stderr);
    let end = end.json();
    assert_whole(&end, &expected);
    assert_eq!((&end["generation"], &end["restarts"]), (&1.into(), &0.into()), "{end:#}");
    assert_each_sample_once_per_epoch(&records);
    let summary = &end["summary"];
    assert_eq!(summary["bytesRead"], summary["bytesReadByServers"], "the other one took over: {end:#}");
    leftovers::assert_none(&user);
}

/// Nobody says that it is gone: the readers find out, and its launcher sees to its end.
fn stands_still() {
    let user = User::new();
    let expected = audit(&user);
    let mut running = start(&user, &[]);
    let id = running.wait_for("20 steps are committed", |journal| committed(journal) >= 20);
    signal(pid(&server(&status(&user, &id), 0)), Signal::STOP);
    let end = running.finish().code(0).json();
    assert_whole(&end, &expected);
    assert_eq!((&end["generation"], &end["restarts"]), (&1.into(), &0.into()), "{end:#}");
    assert_eq!(end["summary"]["paths"]["local"], 0, "the other one took over: {end:#}");
    leftovers::assert_none(&user);
}

fn all_killed() {
    let user = User::new();
    let expected = audit(&user);
    let mut running = start(&user, &[]);
    let id = running.wait_for("20 steps are committed", |journal| committed(journal) >= 20);
    let servers = status(&user, &id);
    SERVERS.iter().for_each(|worker| make_unstartable(&user, &id, *worker));
    for number in 0..SERVERS.len() {
        signal(pid(&server(&servers, number)), Signal::KILL);
    }
    let end = running.finish().code(0).says("the workers with ranks read its chunks themselves").json();
    assert_whole(&end, &expected);
    assert_eq!((&end["generation"], &end["restarts"]), (&1.into(), &0.into()), "{end:#}");
    assert_eq!(server(&end, 0)["phase"], "lost", "{end:#}");
    assert!(end["summary"]["paths"]["local"].as_u64().unwrap() > 0, "workers own chunks: {end:#}");
    leftovers::assert_none(&user);
}

fn never_there() {
    let user = User::new();
    let expected = audit(&user);
    let mut running = start(&user, &[]);
    let id = running.wait_for("20 steps are committed", |journal| committed(journal) >= 20);
    user.run(["job", "cancel", &id]).code(0);
    running.finish().code(130);
    SERVERS.iter().for_each(|worker| make_unstartable(&user, &id, *worker));
    let resumed = user.run(["job", "resume", &id, "--output", "json"]).code(0);
    let resumed = resumed.says("data server 0 (worker 2) is missing: its process cannot be started");
    let resumed = resumed.says("data server 1 (worker 3) is missing");
    let end = resumed.json();
    assert_whole(&end, &expected);
    assert_eq!(end["summary"]["bytesReadByServers"], 0, "{end:#}");
    assert!(end["summary"]["bytesRead"].as_u64().unwrap() > 0, "{end:#}");
    leftovers::assert_none(&user);
}

fn rank_killed() {
    let user = User::new();
    let expected = audit(&user);
    let mut running = start(&user, &["--max-restarts", "2"]);
    let id = running.wait_for("20 steps are committed", |journal| committed(journal) >= 20);
    let before = status(&user, &id);
    signal(u32::try_from(before["rankStatus"][1]["pid"].as_u64().unwrap()).unwrap(), Signal::KILL);
    let end = running.finish().code(0);
    assert!(!end.stderr.contains("data server"), "{}", end.stderr);
    let end = end.json();
    assert_whole(&end, &expected);
    assert_eq!((&end["generation"], &end["restarts"]), (&2.into(), &1.into()), "{end:#}");
    let read = end["summary"]["bytesReadByServers"].as_u64().unwrap();
    assert_eq!(read, SAMPLES * SAMPLE_BYTES, "what they had read is still there: {end:#}");
    leftovers::assert_none(&user);
}

/// Two workers and two data servers, slow enough that something can happen meanwhile.
fn start<'user>(user: &'user User, flags: &[&str]) -> Running<'user> {
    let slow = ["--env", "STEP_MS=25", "--env", "COMMIT_EVERY=5", "--env", "LOCKSTEP=1"];
    Running::start(user, &submit(user, &[&slow, flags].concat()))
}

fn submit(user: &User, flags: &[&str]) -> Vec<String> {
    let data = dataset::tokens(user, "tokens", FILES, 25, 32);
    let trainer = root().join("tests/trainers/consume.py");
    let mut args =
        vec!["job", "submit", "--output", "json", "--workers", "2", "--data", data.to_str().unwrap()];
    args.extend(["--record", "u16:32", "--global-batch", "10", "--epochs", "2", "--seed", "3"]);
    args.extend(["--shuffle", "window:8", "--set", "spec.data.servers.count=2"]);
    args.extend(flags);
    args.extend(["--", "python3", trainer.to_str().unwrap()]);
    args.into_iter().map(str::to_owned).collect()
}

fn audit(user: &User) -> Value {
    let data = dataset::tokens(user, "tokens", FILES, 25, 32);
    let mut args = vec!["data", "order", data.to_str().unwrap(), "--record", "u16:32", "--workers", "2"];
    args.extend(["--global-batch", "10", "--seed", "3", "--epochs", "2", "--shuffle", "window:8"]);
    args.extend(["--digest", "--output", "json"]);
    user.run(args).code(0).json()["digest"].clone()
}

fn assert_whole(end: &Value, digest: &Value) {
    assert_eq!(end["summary"]["steps"], STEPS, "{end:#}");
    assert_eq!(&end["summary"]["orderDigest"], digest, "{end:#}");
}

fn server(status: &Value, number: usize) -> Value {
    status["serverStatus"][number].clone()
}

fn pid(server: &Value) -> u32 {
    u32::try_from(server["pid"].as_u64().unwrap()).unwrap()
}

/// Waits until data server 0 is so.
fn wait_for(user: &User, id: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = leftovers::now() + std::time::Duration::from_secs(30);
    loop {
        let seen = status(user, id);
        let found = server(&seen, 0);
        if holds(&found) {
            return found;
        }
        assert!(leftovers::now() < deadline, "{seen:#}");
        leftovers::pause();
    }
}

/// Sees to it that a worker's process cannot be started: its log is a folder.
fn make_unstartable(user: &User, id: &str, worker: usize) {
    let log = user.state().join("jobs").join(id).join(format!("logs/worker-{worker}.log"));
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    std::fs::write(log.join("why"), "an empty folder would count as left behind").unwrap();
}

/// What the trainers wrote down: every sample once in each epoch, and no step twice.
fn assert_each_sample_once_per_epoch(folder: &Path) {
    let mut steps: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for file in std::fs::read_dir(folder).unwrap() {
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            let entry: Value = serde_json::from_str(line).unwrap();
            let ids = entry["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
            steps.entry(entry["step"].as_u64().unwrap()).or_default().extend(ids);
        }
    }
    for epoch in 0..EPOCHS {
        let range = epoch * STEPS / EPOCHS..(epoch + 1) * STEPS / EPOCHS;
        let mut ids: Vec<u64> = steps.range(range).flat_map(|(_, ids)| ids.clone()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..SAMPLES).collect::<Vec<_>>(), "epoch {epoch}: each sample once");
    }
}
