//! A job trains, and says what it did; and the verbs that look at it and stop it.

use serde_json::Value;
use tests::job::{Running, status};
use tests::leftovers;
use tests::program::{User, root};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("train::the_digits_reach_their_accuracy", digits),
    ("train::a_program_without_data_sees_its_ranks", ranks),
    ("train::ranks_per_worker_share_a_sidecar", ranks_per_worker),
    ("train::a_failed_rank_is_named_with_its_cause_and_log", failed_rank),
    ("train::a_dry_run_shows_the_plan_and_creates_nothing", dry_run),
    ("train::a_detached_job_is_followed_listed_and_cancelled", detached),
    ("train::an_attached_job_is_cancelled_by_a_signal", interrupted),
    ("train::a_failure_is_retried_within_the_budget", retried),
    ("train::a_flat_numpy_file_is_cut_into_records", flat_numpy),
];

fn digits() {
    let user = User::new();
    let job = root().join("examples/digits/job.yaml");
    let run = user.run(["job", "submit", job.to_str().unwrap(), "--output", "json"]).code(0);
    let status = run.json();
    let summary = &status["summary"];
    assert_eq!(status["phase"], "succeeded");
    assert!(number(summary, "/reported/accuracy") >= 0.92, "{status:#}");
    assert!(number(summary, "/bytesRead") > 0.0, "{status:#}");
    assert!(number(summary, "/bytesExchanged") > 0.0, "four workers own different chunks: {status:#}");
    assert!(number(summary, "/paths/quic") > 0.0, "{status:#}");
    assert!(number(summary, "/samplesPerSecond") > 0.0, "{status:#}");
    leftovers::assert_none(&user);
}

fn ranks() {
    let user = User::new();
    let script = "echo rank $RANK of $WORLD_SIZE local $LOCAL_RANK at $MASTER_ADDR; test -n \"$MASTER_PORT\"";
    let run =
        user.run(["job", "submit", "--workers", "3", "--name", "hello", "--", "sh", "-c", script]).code(0);
    assert!(run.stdout.contains("succeeded") || run.stderr.contains("succeeded"), "{run:?}");
    let id = user.jobs().pop().unwrap();
    let logs = user.run(["job", "logs", "hello"]).code(0).stdout;
    for rank in 0..3 {
        assert!(logs.contains(&format!("rank {rank} of 3 local 0")), "{logs}");
    }
    let one = user.run(["job", "logs", &id, "--rank", "2"]).code(0).stdout;
    assert!(one.contains("rank 2 of 3") && !one.contains("rank 1 of 3"), "{one}");
    leftovers::assert_none(&user);
}

fn ranks_per_worker() {
    let user = User::new();
    let script = "echo rank $RANK local $LOCAL_RANK of $LOCAL_WORLD_SIZE group $GROUP_RANK";
    let args = ["job", "submit", "--workers", "2", "--ranks-per-worker", "3", "--", "sh", "-c", script];
    user.run(args).code(0);
    let logs = user.run(["job", "logs", &user.jobs()[0]]).code(0).stdout;
    assert!(logs.contains("rank 4 local 1 of 3 group 1"), "{logs}");
}

fn failed_rank() {
    let user = User::new();
    let trainer = user.write("train.py", "import os, sys\nif os.environ['RANK'] == '2':\n    print('about to fail')\n    raise ValueError('loss is nan')\nimport time; time.sleep(60)\n");
    let args = [
        "job",
        "submit",
        "--workers",
        "4",
        "--max-restarts",
        "0",
        "--",
        "python3",
        trainer.to_str().unwrap(),
    ];
    let run = user.run(args).code(1).says("rank 2").says("ValueError: loss is nan").says("about to fail");
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    let status = status(&user, &user.jobs()[0]);
    assert_eq!(status["cause"]["rank"], 2, "{status:#}");
    assert_eq!(status["cause"]["code"], "exception", "{status:#}");
    leftovers::assert_none(&user);
}

fn dry_run() {
    let user = User::new();
    let job = root().join("examples/digits/job.yaml");
    let plan =
        user.run(["job", "submit", job.to_str().unwrap(), "--dry-run", "--output", "json"]).code(0).json();
    assert_eq!(plan["ranks"], 4, "{plan:#}");
    assert_eq!(plan["workers"].as_array().unwrap().len(), 4);
    assert!(plan["data"]["samples"].as_u64().unwrap() > 1000);
    assert_eq!(user.jobs(), Vec::<String>::new());
}

fn detached() {
    let user = User::new();
    let script = "echo started $RANK; exec sleep 600";
    let args = ["job", "submit", "--detach", "--name", "long", "--workers", "2", "--", "sh", "-c", script];
    user.run(args).code(0);
    let id = user.jobs().pop().unwrap();
    until(|| status(&user, &id)["phase"] == "running");
    let list = user.run(["job", "list", "--output", "json"]).code(0).json();
    assert_eq!(list[0]["id"], *id, "{list:#}");
    until(|| user.run(["job", "logs", "long"]).code(0).stdout.contains("started 1"));
    let cancelled = user.run(["job", "cancel", "long", "--output", "json"]).code(0).json();
    assert_eq!(cancelled["phase"], "cancelled", "{cancelled:#}");
    leftovers::assert_none(&user);
}

fn interrupted() {
    let user = User::new();
    let args = ["job", "submit", "--output", "json", "--workers", "2", "--", "sleep", "600"];
    let mut running = Running::start(&user, &args);
    running.wait_for("the ranks run", |journal| journal.contains("running"));
    tests::job::signal(running.pid(), rustix::process::Signal::INT);
    let run = running.finish().code(130);
    assert_eq!(run.json()["phase"], "cancelled");
    leftovers::assert_none(&user);
}

fn retried() {
    let user = User::new();
    let data = tests::dataset::tokens(&user, "tokens", 2, 100, 16);
    let trainer = root().join("tests/trainers/consume.py");
    let mut args =
        vec!["job", "submit", "--output", "json", "--workers", "2", "--data", data.to_str().unwrap()];
    args.extend(["--record", "u16:16", "--global-batch", "10", "--max-restarts", "2"]);
    args.extend([
        "--env",
        "COMMIT_EVERY=4",
        "--env",
        "FAIL_AT_STEP=10",
        "--",
        "python3",
        trainer.to_str().unwrap(),
    ]);
    let status = user.run(args).code(0).json();
    assert_eq!(status["restarts"], 1, "{status:#}");
    assert_eq!(status["summary"]["steps"], 20, "{status:#}");
    leftovers::assert_none(&user);
}

/// 40 records of 16 tokens in one dimension: the header says the type, the flag how many make a record.
fn flat_numpy() {
    let user = User::new();
    let header = "{'descr': '<u2', 'fortran_order': False, 'shape': (640,), }";
    let mut file = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    file.extend(format!("{header:<117}\n").bytes());
    file.extend((0..640_u16).flat_map(u16::to_le_bytes));
    user.write("tokens/a.npy", file);
    let trainer = root().join("tests/trainers/consume.py");
    let mut args = vec!["job", "submit", "--output", "json", "--workers", "2", "--data", "tokens"];
    args.extend(["--record", "u16:16", "--global-batch", "8", "--", "python3", trainer.to_str().unwrap()]);
    let status = user.run(args).code(0).json();
    assert_eq!(status["summary"]["samples"], 40, "{status:#}");
}

fn number(value: &Value, pointer: &str) -> f64 {
    value
        .pointer(pointer)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("no number at {pointer}: {value:#}"))
}

fn until(holds: impl Fn() -> bool) {
    let deadline = leftovers::now() + std::time::Duration::from_secs(60);
    while !holds() {
        assert!(leftovers::now() < deadline, "waited a minute");
        leftovers::pause();
    }
}
