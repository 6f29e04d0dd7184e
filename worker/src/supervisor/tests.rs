//! Real processes: how they end, how they are ended, and that nothing of them stays.

use std::fs;
use std::io::BufRead;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use tempfile::TempDir;

use super::*;
use crate::sweep::{COOKIE_VARIABLE, find};

/// Longer than any of these tests needs on a busy host; a test that waits for it fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// A grace time that a test must not need.
const LONG: Duration = Duration::from_secs(60);

struct Bench {
    folder: TempDir,
    supervisor: Supervisor,
    events: Receiver<SupervisorEvent>,
    uid: String,
}

fn bench(name: &str) -> Bench {
    let (tell, events) = channel();
    let supervisor = Supervisor::start(Family::OwnOnly, move |event| {
        let _ = tell.send(event);
    });
    let uid = format!("supervisor-{name}-{}", std::process::id());
    Bench { folder: TempDir::new().unwrap(), supervisor: supervisor.unwrap(), events, uid }
}

impl Bench {
    fn launch(&self, generation: u64, ranks: u32, command: &[&str]) {
        let cookie = format!("{}.{generation}.0", self.uid);
        let rank = |rank: u32| RankProcess {
            rank: Rank(rank),
            env: BTreeMap::from([
                (COOKIE_VARIABLE.to_owned(), cookie.clone()),
                ("RANK".to_owned(), rank.to_string()),
            ]),
            cpus: Vec::new(),
            log: self.log(rank),
        };
        self.supervisor.launch(Launch {
            generation: Generation(generation),
            cookie: cookie.clone(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            workdir: self.folder.path().to_owned(),
            ranks: (0..ranks).map(rank).collect(),
        });
    }

    fn log(&self, rank: u32) -> PathBuf {
        self.folder.path().join(format!("rank-{rank}.log"))
    }

    fn stop(&self, generation: u64, grace: Duration) {
        self.supervisor.stop(Generation(generation), grace);
    }

    fn next(&self) -> SupervisorEvent {
        self.events.recv_timeout(PATIENCE).expect("the supervisor says something")
    }

    fn started(&self) -> BTreeMap<Rank, u32> {
        match self.next() {
            SupervisorEvent::Started { pids, .. } => pids,
            other => panic!("{other:?}"),
        }
    }

    fn exited(&self) -> RankExit {
        match self.next() {
            SupervisorEvent::Exited(exit) => exit,
            other => panic!("{other:?}"),
        }
    }

    fn stopped(&self, generation: u64) {
        match self.next() {
            SupervisorEvent::Stopped { generation: of } => assert_eq!(of, Generation(generation)),
            other => panic!("{other:?}"),
        }
        assert_eq!(find(&self.uid).unwrap(), [], "something is left");
    }

    /// Waits for a file that a rank writes: the rank is where the test wants it.
    fn wait_for(&self, name: &str) {
        let end = now() + PATIENCE;
        while !self.folder.path().join(name).exists() {
            assert!(now() < end, "no file {name}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn codes_and_signals_are_told_apart() {
    let bench = bench("codes");
    bench.launch(1, 3, &["sh", "-c", "case $RANK in 0) exit 0;; 1) exit 7;; 2) kill -9 $$;; esac"]);
    assert_eq!(bench.started().len(), 3);
    let mut exits = [bench.exited(), bench.exited(), bench.exited()];
    exits.sort_by_key(|exit| exit.rank);
    let statuses = exits.each_ref().map(|exit| exit.status);
    assert_eq!(
        statuses,
        [ExitStatus::Code { code: 0 }, ExitStatus::Code { code: 7 }, ExitStatus::Signal { signal: 9 }]
    );
    assert!(exits.iter().all(|exit| !exit.stopped_by_us));
    bench.stop(1, LONG);
    bench.stopped(1);
}

#[test]
fn output_is_appended_under_a_line_per_generation() {
    let bench = bench("logs");
    for generation in 1..=2 {
        bench.launch(generation, 1, &["sh", "-c", "echo out; printf err >&2; cat; pwd >&2"]);
        bench.started();
        let exit = bench.exited();
        assert_eq!(exit.status, ExitStatus::Code { code: 0 });
        let log = fs::read_to_string(bench.log(0)).unwrap();
        let start = usize::try_from(exit.log_start).unwrap();
        assert!(log[start..].starts_with("out\nerr"), "{log}");
        bench.stop(generation, LONG);
        bench.stopped(generation);
    }
    let log = fs::read_to_string(bench.log(0)).unwrap();
    let folder = bench.folder.path().display();
    let each = |generation| format!("--- generation {generation} ---\nout\nerr{folder}\n");
    assert_eq!(log, each(1) + &each(2));
}

#[test]
fn a_program_that_is_not_there_is_not_started() {
    let bench = bench("missing");
    bench.launch(1, 2, &["/nonexistent/program"]);
    match bench.next() {
        SupervisorEvent::NotStarted { rank, error, .. } => {
            assert_eq!((rank, error.kind()), (Rank(0), io::ErrorKind::NotFound));
        }
        other => panic!("{other:?}"),
    }
    bench.stop(1, LONG);
    bench.stopped(1);
}

#[test]
fn a_stop_lets_a_rank_end_in_its_own_way() {
    let bench = bench("graceful");
    let script = "trap 'echo saved; exit 3' TERM; : > ready; while :; do sleep 0.02; done";
    bench.launch(1, 1, &["sh", "-c", script]);
    bench.started();
    bench.wait_for("ready");
    bench.stop(1, LONG);
    let exit = bench.exited();
    assert_eq!((exit.status, exit.stopped_by_us), (ExitStatus::Code { code: 3 }, true));
    bench.stopped(1);
    assert!(fs::read_to_string(bench.log(0)).unwrap().ends_with("saved\n"));
}

#[test]
fn a_stop_kills_after_the_grace_time_and_a_second_one_may_hurry_it() {
    let bench = bench("forced");
    bench.launch(1, 1, &["sh", "-c", "trap '' TERM; : > ready; while :; do sleep 0.02; done"]);
    bench.started();
    bench.wait_for("ready");
    bench.stop(1, LONG);
    bench.stop(1, Duration::from_millis(20));
    assert_eq!(bench.exited().status, ExitStatus::Signal { signal: 9 });
    bench.stopped(1);
}

#[test]
fn a_frozen_rank_ends_too() {
    let bench = bench("frozen");
    bench.launch(1, 1, &["sh", "-c", ": > ready; kill -STOP $$"]);
    bench.started();
    bench.wait_for("ready");
    bench.stop(1, LONG);
    assert_eq!(bench.exited().status, ExitStatus::Signal { signal: 15 });
    bench.stopped(1);
}

#[test]
fn descendants_that_left_the_group_die_with_the_generation() {
    let bench = bench("setsid");
    let script =
        "setsid sh -c ': > ready; exec sleep 1000' & while [ ! -e ready ]; do sleep 0.02; done; exit 5";
    bench.launch(1, 1, &["sh", "-c", script]);
    bench.started();
    assert_eq!(bench.exited().status, ExitStatus::Code { code: 5 });
    assert_eq!(find(&bench.uid).unwrap().len(), 1, "the descendant outlives its rank");
    bench.stop(1, LONG);
    bench.stopped(1);
}

#[test]
fn dropping_the_supervisor_kills_at_once() {
    let Bench { folder: _folder, supervisor, events, uid } = {
        let bench = bench("drop");
        bench.launch(1, 2, &["sh", "-c", "trap '' TERM; : > ready; while :; do sleep 0.02; done"]);
        bench.started();
        bench.wait_for("ready");
        bench
    };
    drop(supervisor);
    assert_eq!(find(&uid).unwrap(), []);
    assert_eq!(events.iter().filter(|event| matches!(event, SupervisorEvent::Exited(_))).count(), 2);
}

#[test]
fn ranks_are_bound_to_their_cpus() {
    let bench = bench("cpus");
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..rustix::thread::CpuSet::MAX_CPU).rfind(|cpu| allowed.is_set(*cpu)).unwrap();
    let cookie = format!("{}.1.0", bench.uid);
    let env = BTreeMap::from([(COOKIE_VARIABLE.to_owned(), cookie.clone())]);
    let cpus = vec![u32::try_from(cpu).unwrap()];
    bench.supervisor.launch(Launch {
        generation: Generation(1),
        cookie,
        command: ["grep", "Cpus_allowed_list", "/proc/self/status"].map(str::to_owned).to_vec(),
        workdir: bench.folder.path().to_owned(),
        ranks: vec![RankProcess { rank: Rank(0), env, cpus, log: bench.log(0) }],
    });
    bench.started();
    bench.exited();
    let log = fs::read_to_string(bench.log(0)).unwrap();
    assert!(log.ends_with(&format!("Cpus_allowed_list:\t{cpu}\n")), "{log}");
}

/// Tests nothing: the process that [`ranks_die_with_a_killed_worker`] starts and kills. Returns at once elsewhere.
#[test]
fn helper_process_a_worker_to_kill() {
    let Some(uid) = std::env::var_os("SLIPWAY_TEST_UID") else { return };
    let uid = uid.into_string().unwrap();
    let bench = Bench { uid, ..bench("victim") };
    bench.launch(1, 2, &["sh", "-c", ": > ready; exec sleep 1000"]);
    bench.started();
    bench.wait_for("ready");
    println!("\nranks run");
    std::thread::park_timeout(PATIENCE);
}

#[test]
fn ranks_die_with_a_killed_worker() {
    let uid = format!("supervisor-killed-{}", std::process::id());
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "supervisor::tests::helper_process_a_worker_to_kill", "--nocapture"])
        .env("SLIPWAY_TEST_UID", &uid)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = io::BufReader::new(worker.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "ranks run"));
    // A rank that is just becoming its program shows no environment for that moment.
    let end = now() + PATIENCE;
    while find(&uid).unwrap().len() < 2 {
        assert!(now() < end, "two ranks run");
        std::thread::yield_now();
    }
    worker.kill().unwrap();
    worker.wait().unwrap();
    let end = now() + PATIENCE;
    while !find(&uid).unwrap().is_empty() {
        assert!(now() < end, "ranks outlive their worker");
        std::thread::yield_now();
    }
}
