//! A worker that dies has its ranks taken by a spare; one that cannot be started again is done without, down to the
//! job's minimum. Either way the order is unharmed.

use rustix::process::Signal;
use serde_json::Value;
use tests::job::{Running, signal, status};
use tests::leftovers;
use tests::program::User;

use crate::Story;
use crate::faults::{STEPS, audit, job_of_three};
use crate::order::committed;

pub(crate) const STORIES: &[Story] = &[
    ("elastic::a_spare_takes_a_dead_workers_ranks_and_no_others", spare),
    ("elastic::a_job_goes_on_without_a_worker_that_cannot_come_back", fewer),
    ("elastic::a_job_without_a_minimum_fails_then_and_says_who_was_lost", too_few),
    ("elastic::the_plan_says_what_spares_and_a_minimum_are_for", plan),
];

fn spare() {
    let user = User::new();
    let expected = audit(&user);
    let mut running = Running::start(&user, &job_of_three(&user, &["--spares", "1", "--max-restarts", "2"]));
    let id = running.wait_for("a commit", |journal| committed(journal) >= 8);
    assert_eq!(seats(&status(&user, &id)), [0, 1, 2]);
    signal(sidecar_of(&user, &id, 1), Signal::KILL);
    let end = running.finish().code(0).json();
    assert_eq!(seats(&end), [0, 3, 2], "{end:#}");
    assert_eq!((&end["generation"], &end["restarts"]), (&2.into(), &1.into()), "{end:#}");
    assert_whole(&end, &expected);
    leftovers::assert_none(&user);
}

fn fewer() {
    let user = User::new();
    let expected = audit(&user);
    let end = lose_worker_two(&user, &["--min-workers", "2", "--max-restarts", "2"]).code(0).json();
    assert_eq!(seats(&end), [0, 1], "{end:#}");
    assert_whole(&end, &expected);
    leftovers::assert_none(&user);
}

fn too_few() {
    let user = User::new();
    let run = lose_worker_two(&user, &["--max-restarts", "2"]).code(1).says("worker 2 was lost");
    assert_eq!(run.json()["cause"]["code"], "worker_lost", "{}", run.stdout);
    leftovers::assert_none(&user);
}

/// Kills worker 2 and sees to it that it cannot be started again: its log is a folder.
fn lose_worker_two(user: &User, flags: &[&str]) -> tests::program::Finished {
    let mut running = Running::start(user, &job_of_three(user, flags));
    let id = running.wait_for("a commit", |journal| committed(journal) >= 8);
    let log = user.state().join("jobs").join(&id).join("logs/worker-2.log");
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    std::fs::write(log.join("why"), "an empty folder would count as left behind").unwrap();
    signal(sidecar_of(user, &id, 2), Signal::KILL);
    running.finish()
}

fn plan() {
    let user = User::new();
    let args = ["job", "submit", "--dry-run", "--workers", "3", "--min-workers", "2", "--spares", "1"];
    let shown = user.run(args.iter().chain(&["--", "true"])).code(0).stdout;
    assert!(shown.contains("takes the ranks of a worker that dies"), "{shown}");
    assert!(shown.contains("down to 2 workers"), "{shown}");
}

fn assert_whole(end: &Value, digest: &Value) {
    assert_eq!(end["summary"]["steps"], STEPS, "{end:#}");
    assert_eq!(&end["summary"]["orderDigest"], digest, "{end:#}");
}

/// The workers of the ranks, in the ranks' order.
fn seats(status: &Value) -> Vec<u64> {
    status["rankStatus"].as_array().unwrap().iter().map(|rank| rank["worker"].as_u64().unwrap()).collect()
}

/// The process that is the parent of a rank's.
fn sidecar_of(user: &User, id: &str, rank: usize) -> u32 {
    let status = status(user, id);
    let pid = &status["rankStatus"][rank]["pid"];
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.split(' ').nth(1).unwrap().parse().unwrap()
}
