//! `kill -9` of a rank, of a sidecar and of the launcher, in each phase: the job recovers or ends with the right
//! cause, its order is unharmed, and nothing is left.

use rustix::process::Signal;
use serde_json::Value;
use tests::job::{Running, signal, status};
use tests::program::{User, root};
use tests::{dataset, leftovers};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("faults::a_rank_killed_while_joining", || kill(Victim::Rank, Moment::Joining)),
    ("faults::a_rank_killed_while_running", || kill(Victim::Rank, Moment::Running)),
    ("faults::a_rank_killed_after_a_commit", || kill(Victim::Rank, Moment::Committed)),
    ("faults::a_sidecar_killed_while_gathering", || kill(Victim::Sidecar, Moment::Gathering)),
    ("faults::a_sidecar_killed_in_preflight", || kill(Victim::Sidecar, Moment::Preflight)),
    ("faults::a_sidecar_killed_while_assigned", || kill(Victim::Sidecar, Moment::Assigned)),
    ("faults::a_sidecar_killed_while_joining", || kill(Victim::Sidecar, Moment::Joining)),
    ("faults::a_sidecar_killed_while_running", || kill(Victim::Sidecar, Moment::Running)),
    ("faults::a_sidecar_killed_after_a_commit", || kill(Victim::Sidecar, Moment::Committed)),
    ("faults::a_sidecar_killed_while_fencing", || kill(Victim::Sidecar, Moment::Fencing)),
    ("faults::the_launcher_killed_while_gathering", || kill_launcher(Moment::Gathering)),
    ("faults::the_launcher_killed_in_preflight", || kill_launcher(Moment::Preflight)),
    ("faults::the_launcher_killed_while_assigned", || kill_launcher(Moment::Assigned)),
    ("faults::the_launcher_killed_while_joining", || kill_launcher(Moment::Joining)),
    ("faults::the_launcher_killed_while_running", || kill_launcher(Moment::Running)),
    ("faults::the_launcher_killed_after_a_commit", || kill_launcher(Moment::Committed)),
    ("faults::the_launcher_killed_while_fencing", || kill_launcher(Moment::Fencing)),
    ("faults::a_rank_that_is_killed_for_ever_ends_with_its_signal", always_killed),
    ("faults::a_sidecar_killed_without_another_try_leaves_no_file", sidecar_killed_for_good),
    ("faults::descendants_that_left_their_group_are_found", daemons),
];

/// Steps of the job: 400 samples, 10 a step.
pub(crate) const STEPS: u64 = 40;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Rank,
    Sidecar,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    Gathering,
    Preflight,
    Assigned,
    Joining,
    Running,
    Committed,
    Fencing,
}

impl Moment {
    fn has_come(self, journal: &str) -> bool {
        let word = match self {
            Self::Gathering => "gathering",
            Self::Preflight => "preflight",
            Self::Assigned => "assigned",
            Self::Joining => "joining",
            Self::Running => "running",
            Self::Committed => return committed(journal) >= 8,
            Self::Fencing => "fencing",
        };
        journal.lines().any(|line| line.contains(&format!("\"{word}\"")))
    }
}

fn kill(victim: Victim, moment: Moment) {
    let user = User::new();
    let expected = audit(&user);
    let mut running = start(&user, moment);
    let id = running.wait_for(&format!("{moment:?}"), |journal| moment.has_come(journal));
    let command = match victim {
        Victim::Rank => "python3 ",
        Victim::Sidecar => "launcher worker-agent",
    };
    let pid = wait_for_process(&user, command);
    signal(pid, Signal::KILL);
    let run = running.finish();
    assert_eq!(run.code, 0, "{victim:?} killed at {moment:?} (job {id})\n{}\n{}", run.stdout, run.stderr);
    let status = run.json();
    assert_eq!(status["summary"]["steps"], STEPS, "{status:#}");
    assert_eq!(status["summary"]["orderDigest"], expected, "{status:#}");
    assert!(status["generation"].as_u64().unwrap() >= 2 || moment == Moment::Gathering, "{status:#}");
    leftovers::assert_none(&user);
}

fn kill_launcher(moment: Moment) {
    let user = User::new();
    let expected = audit(&user);
    let mut running = start(&user, moment);
    let id = running.wait_for(&format!("{moment:?}"), |journal| moment.has_come(journal));
    signal(running.pid(), Signal::KILL);
    assert_eq!(running.finish().code, -1);
    leftovers::assert_none(&user);
    let orphan = status(&user, &id);
    assert_eq!(orphan["phase"], "failed", "{orphan:#}");
    assert_eq!(orphan["cause"]["code"], "launcher_died", "{orphan:#}");
    let resumed = user.run(["job", "resume", &id, "--output", "json"]).code(0).json();
    assert_eq!(resumed["summary"]["steps"], STEPS, "{resumed:#}");
    assert_eq!(resumed["summary"]["orderDigest"], expected, "{resumed:#}");
    leftovers::assert_none(&user);
}

fn always_killed() {
    let user = User::new();
    let script = "test $RANK = 1 && kill -9 $$; sleep 60";
    let args = [
        "job",
        "submit",
        "--workers",
        "2",
        "--max-restarts",
        "1",
        "--output",
        "json",
        "--",
        "sh",
        "-c",
        script,
    ];
    let run = user.run(args).code(1).says("rank 1");
    let status = run.json();
    assert_eq!(status["cause"]["code"], "signal", "{status:#}");
    assert_eq!(status["cause"]["exit"]["signal"], 9, "{status:#}");
    leftovers::assert_none(&user);
}

/// Nobody of its number comes after it who would clean up.
fn sidecar_killed_for_good() {
    let user = User::new();
    let args =
        ["job", "submit", "--workers", "2", "--max-restarts", "0", "--output", "json", "--", "sleep", "600"];
    let mut running = Running::start(&user, &args);
    running.wait_for("the ranks run", |journal| Moment::Running.has_come(journal));
    signal(wait_for_process(&user, "launcher worker-agent"), Signal::KILL);
    let status = running.finish().code(1).json();
    assert_eq!(status["cause"]["code"], "worker_lost", "{status:#}");
    leftovers::assert_none(&user);
}

fn daemons() {
    let user = User::new();
    // Each rank leaves a process behind that is in a session of its own and has lost its parent.
    let script = "setsid sh -c 'sleep 601 & sleep 602' & sleep 0.3; exit 0";
    user.run(["job", "submit", "--workers", "2", "--", "sh", "-c", script]).code(0);
    leftovers::assert_none(&user);
}

/// A job of 3 workers and 40 steps that commits every 4; for [`Moment::Fencing`] it fails once by itself.
fn start(user: &User, moment: Moment) -> Running<'_> {
    let mut flags = vec!["--max-restarts", "4"];
    if moment == Moment::Fencing {
        flags.extend(["--env", "FAIL_AT_STEP=10"]);
    }
    Running::start(user, &job_of_three(user, &flags))
}

/// The command line of a job of 3 workers and [`STEPS`] steps that commits every 4; its digest is that of [`audit`].
pub(crate) fn job_of_three(user: &User, flags: &[&str]) -> Vec<String> {
    let data = dataset::tokens(user, "tokens", 4, 100, 16);
    let trainer = root().join("tests/trainers/consume.py");
    let mut args =
        vec!["job", "submit", "--output", "json", "--workers", "3", "--data", data.to_str().unwrap()];
    args.extend(["--record", "u16:16", "--global-batch", "10", "--seed", "3"]);
    args.extend(["--env", "COMMIT_EVERY=4", "--env", "STEP_MS=10"]);
    args.extend(flags);
    args.extend(["--", "python3", trainer.to_str().unwrap()]);
    args.into_iter().map(str::to_owned).collect()
}

pub(crate) fn audit(user: &User) -> Value {
    let data = dataset::tokens(user, "tokens", 4, 100, 16);
    let mut args = vec!["data", "order", data.to_str().unwrap(), "--record", "u16:16", "--workers", "3"];
    args.extend(["--global-batch", "10", "--seed", "3", "--epoch", "0", "--digest", "--output", "json"]);
    user.run(args).code(0).json()["digest"].clone()
}

fn wait_for_process(user: &User, command: &str) -> u32 {
    let deadline = leftovers::now() + std::time::Duration::from_secs(30);
    loop {
        // The last one: not rank 0's, where something else would be tested as well.
        if let Some(pid) = leftovers::pids(user, command).last() {
            return *pid;
        }
        assert!(leftovers::now() < deadline, "no process {command}");
        leftovers::pause();
    }
}

fn committed(journal: &str) -> u64 {
    crate::order::committed(journal)
}
