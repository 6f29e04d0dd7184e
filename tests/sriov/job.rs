//! A job over two virtual functions, each on another NUMA node: sample bytes come by RDMA, and each is the one of its file.
//!
//! An emulated processor beside compilers may stand still for longer than a device waits for its peer. Then the lane is given up for a
//! while, as it should be, and the worker says so; where none was given up, no byte may come by QUIC.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tests::job::Running;
use tests::program::{User, root};
use tests::{dataset, leftovers};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[("job::over_two_functions_every_byte_is_right", over_two_functions)];

const FILES: usize = 8;
const RECORDS: usize = 64;
/// Of two bytes each.
const ITEMS: usize = 128;

fn over_two_functions() {
    let (by_quic, _) = finished(&User::new(), "quic", |_, _| ());
    assert_eq!(by_quic["summary"]["paths"]["rdma"], 0);
    let (by_rdma, logs) = finished(&User::new(), "require-rdma", look_at_the_workers);
    let (summary, expected) = (&by_rdma["summary"], &by_quic["summary"]);
    assert_eq!(summary["orderDigest"], expected["orderDigest"], "the digest does not depend on the lane");
    let paths = &summary["paths"];
    let bytes = |lane: &str| paths[lane].as_u64().unwrap();
    let given_up = logs.lines().filter(|line| line.contains("an RDMA lane failed")).collect::<Vec<_>>();
    #[expect(clippy::print_stdout, reason = "the figures of the run")]
    {
        println!(
            "{paths}, digest {}, in {} s; given up: {given_up:?}",
            summary["orderDigest"], summary["seconds"]
        );
    }
    assert!(bytes("rdma") > 0, "{paths}\n{logs}");
    assert!(given_up.iter().all(|line| line.contains("reason=\"peer_dead\"")), "{logs}");
    assert!(!given_up.is_empty() || bytes("quic") == 0, "{paths}\n{logs}");
    assert_eq!(bytes("rdma") + bytes("quic"), expected["paths"]["quic"].as_u64().unwrap(), "{paths}");
}

/// The status of a job that has succeeded, and what its workers said; `look` is called while it runs.
fn finished(user: &User, transport: &str, look: impl Fn(&User, &str)) -> (Value, String) {
    let data = dataset::tokens(user, "tokens", FILES, RECORDS, ITEMS);
    let compared = user.work().join("compared");
    fs::create_dir(&compared).unwrap();
    let job = serde_json::json!({
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": { "name": "functions" },
        "spec": {
            "workers": { "count": 2 },
            "resources": { "cpus": 2, "locality": "numa" },
            "run": {
                "command": ["python3", root().join("tests/trainers/verify.py")],
                "env": {
                    "DATA_FOLDER": data,
                    "RECORD_BYTES": (2 * ITEMS).to_string(),
                    "COMPARED_FOLDER": compared,
                    "STEP_MS": "100",
                },
            },
            "data": {
                "source": data,
                "record": { "dtype": "u16", "items": ITEMS },
                "globalBatch": 32,
                "epochs": 2,
                "seed": 7,
                "transport": transport,
            },
            "restarts": { "max": 0 },
        },
    });
    let file = user.write("job.yaml", job.to_string());
    let mut running = Running::start(user, &["job", "submit", "--output", "json", file.to_str().unwrap()]);
    let steps = |rank| fs::read_to_string(compared.join(format!("rank-{rank}"))).unwrap_or_default();
    let id =
        running.wait_for("both ranks have samples", |_| (0..2).all(|rank| steps(rank).lines().count() > 2));
    look(user, &id);
    let ended = running.finish();
    let logs = logs(user, &id);
    assert_eq!(ended.code, 0, "{}\n{logs}", ended.stderr);
    let status = ended.json();
    let samples = u64::try_from(2 * FILES * RECORDS).unwrap();
    assert_eq!(status["summary"]["samples"], samples, "{status:#}");
    let right: u64 = (0..2).map(|rank| steps(rank).lines().last().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(right, samples, "every sample was compared with its file");
    leftovers::assert_none(user);
    (status, logs)
}

/// All logs of a job: nobody else can see into that machine.
fn logs(user: &User, id: &str) -> String {
    let mut logs = String::new();
    for entry in fs::read_dir(user.state().join("jobs").join(id).join("logs")).unwrap().flatten() {
        logs += &format!("--- {}\n", entry.path().display());
        logs += &fs::read_to_string(entry.path()).unwrap_or_default();
    }
    logs
}

/// The processes of workers, and what the kernel says of them. Asking the launcher would take as long as the job.
fn workers() -> Vec<(PathBuf, String)> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_worker = |process: &PathBuf| {
        fs::read(process.join("cmdline")).is_ok_and(|line| line.ends_with(b"\0worker-agent\0"))
    };
    let with_facts =
        |process: PathBuf| Some((process.clone(), fs::read_to_string(process.join("status")).ok()?));
    processes.filter(is_worker).filter_map(with_facts).collect()
}

/// Each worker is on its node, has the device of its node, and all of its shared memory there.
fn look_at_the_workers(user: &User, id: &str) {
    let processes = workers();
    for (worker, cpus, device) in [(0, "0-1", "rxe_a"), (1, "2-3", "rxe_b")] {
        let bound = format!("Cpus_allowed_list:\t{cpus}\n");
        let process = processes.iter().find(|(_, facts)| facts.contains(&bound));
        let (process, _) = process.unwrap_or_else(|| panic!("no worker stays on {cpus}: {processes:?}"));
        let log = user.state().join("jobs").join(id).join(format!("logs/worker-{worker}.log"));
        let log = fs::read_to_string(log).unwrap();
        assert!(log.contains(&format!("uses RDMA devices=\"{device}\"")), "{log}");
        let maps = fs::read_to_string(process.join("numa_maps")).unwrap();
        let nodes: BTreeSet<&str> = maps
            .lines()
            .filter(|line| line.contains("memfd"))
            .flat_map(str::split_whitespace)
            .filter_map(|word| word.strip_prefix('N')?.split_once('='))
            .map(|(node, _)| node)
            .collect();
        assert_eq!(nodes, BTreeSet::from([worker.to_string().as_str()]), "{maps}");
    }
}
