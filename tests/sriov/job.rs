//! A job over two virtual functions, each on another NUMA node: every sample byte comes by RDMA, and is the one of its file.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use tests::job::{Running, status};
use tests::program::{User, root};
use tests::{dataset, leftovers};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[("job::over_two_functions_every_byte_is_right", over_two_functions)];

const FILES: usize = 8;
const RECORDS: usize = 128;
/// Of two bytes each.
const ITEMS: usize = 128;

fn over_two_functions() {
    let by_quic = finished(&User::new(), "quic", |_, _| ());
    assert_eq!(by_quic["summary"]["paths"]["rdma"], 0);
    let by_rdma = finished(&User::new(), "require-rdma", look_at_the_workers);
    let (summary, expected) = (&by_rdma["summary"], &by_quic["summary"]);
    assert_eq!(summary["orderDigest"], expected["orderDigest"], "the digest does not depend on the lane");
    let paths = &summary["paths"];
    assert_eq!(paths["quic"], 0, "{paths}");
    assert_eq!(paths["rdma"], expected["paths"]["quic"], "{paths}");
    assert!(paths["rdma"].as_u64().unwrap() > 0);
    #[expect(clippy::print_stdout, reason = "the figures of the run")]
    {
        println!("paths {paths}, digest {}, in {} s", summary["orderDigest"], summary["seconds"]);
    }
}

/// The status of a job that has succeeded; `look` is called while it runs.
fn finished(user: &User, transport: &str, look: impl Fn(&User, &str)) -> Value {
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
                    "STEP_MS": "50",
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
    let ended = running.finish().code(0).json();
    let samples = u64::try_from(2 * FILES * RECORDS).unwrap();
    assert_eq!(ended["summary"]["samples"], samples, "{ended:#}");
    let right: u64 = (0..2).map(|rank| steps(rank).lines().last().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(right, samples, "every sample was compared with its file");
    leftovers::assert_none(user);
    ended
}

/// Each worker is on its node, has the device of its node, and all of its shared memory there.
fn look_at_the_workers(user: &User, id: &str) {
    let workers = status(user, id)["workers"].clone();
    for (worker, cpus, device) in [(0, "0-1", "rxe_a"), (1, "2-3", "rxe_b")] {
        let process = format!("/proc/{}", workers[worker]["pid"]);
        let facts = fs::read_to_string(format!("{process}/status")).unwrap();
        assert!(facts.contains(&format!("Cpus_allowed_list:\t{cpus}\n")), "{facts}");
        let log = user.state().join("jobs").join(id).join(format!("logs/worker-{worker}.log"));
        let log = fs::read_to_string(log).unwrap();
        assert!(log.contains(&format!("uses RDMA device=\"{device}\"")), "{log}");
        let maps = fs::read_to_string(format!("{process}/numa_maps")).unwrap();
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
