//! Jobs on this host as real processes: their ends, their deaths, cancelling and resuming.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longer than any wait here needs on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user with a state folder of their own.
struct User(tempfile::TempDir);

impl User {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_launcher"));
        command.args(args).env("SLIPWAY_HOME", self.0.path()).current_dir(self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> (i32, Value, String) {
        finished(&self.command(args).output().unwrap())
    }

    /// `job submit` of a shell script, JSON out.
    fn submit(&self, flags: &[&str], script: &str) -> Command {
        let mut args = vec!["job", "submit", "--output", "json"];
        args.extend(flags);
        args.extend(["--", "sh", "-c", script]);
        self.command(&args)
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(std::fs::read_dir(self.0.path().join("jobs")).ok()?.next()?.unwrap().path())
    }

    /// The only job's status, once it satisfies this.
    fn wait(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = now() + PATIENCE;
        loop {
            if let Some(folder) = self.folder()
                && folder.join("job.json").exists()
            {
                let id = folder.file_name().unwrap().to_str().unwrap().to_owned();
                let (_, status, _) = self.run(&["job", "status", &id, "--output", "json"]);
                if holds(&status) {
                    return status;
                }
            }
            assert!(now() < deadline, "waited for {what}");
        }
    }

    /// Fails unless every process that has this user's state folder in its environment ends soon.
    fn assert_nothing_is_left(&self) {
        let deadline = now() + PATIENCE;
        let mine = format!("SLIPWAY_HOME={}", self.0.path().display());
        let is_mine = |process: &Path| {
            let environment = std::fs::read(process.join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mine.as_bytes())
        };
        while std::fs::read_dir("/proc").unwrap().flatten().any(|entry| is_mine(&entry.path())) {
            assert!(now() < deadline, "processes are left");
        }
    }
}

fn finished(output: &Output) -> (i32, Value, String) {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap_or(-1), value, error)
}

fn end(child: Child) -> (i32, Value, String) {
    finished(&child.wait_with_output().unwrap())
}

fn kill(pid: u64, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "real processes live in real time")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn a_job_that_succeeds_leaves_its_logs_and_nothing_else() {
    let user = User::new();
    let script = "echo rank $RANK of $WORLD_SIZE";
    let (code, status, error) = end(user.submit(&["--workers", "2"], script).spawn().unwrap());
    assert_eq!((code, status["phase"].as_str()), (0, Some("succeeded")), "{error}");
    for rank in 0..2 {
        let log = std::fs::read_to_string(user.folder().unwrap().join(format!("logs/rank-{rank}.log")));
        assert_eq!(log.unwrap(), format!("--- generation 1 ---\nrank {rank} of 2\n"));
    }
    user.assert_nothing_is_left();
    let (code, jobs, _) = user.run(&["job", "list", "--output", "json"]);
    assert_eq!((code, jobs.as_array().unwrap().len()), (0, 1));
    let id = status["id"].as_str().unwrap();
    let (code, ..) = user.run(&["job", "resume", id]);
    assert_ne!(code, 0, "there is nothing to resume");
}

#[test]
fn a_code_other_than_zero_names_the_rank_and_shows_its_log() {
    let user = User::new();
    let script = "test $RANK = 1 || sleep 60; echo no such thing; exit 7";
    let (code, status, error) =
        end(user.submit(&["--workers", "2", "--max-restarts", "0"], script).spawn().unwrap());
    assert_eq!((code, status["phase"].as_str()), (1, Some("failed")), "{error}");
    let cause = &status["cause"];
    assert_eq!((cause["rank"].as_u64(), cause["exit"]["code"].as_i64()), (Some(1), Some(7)), "{cause}");
    assert_eq!(cause["logTail"][0], "no such thing");
    user.assert_nothing_is_left();
}

#[test]
fn a_killed_rank_is_restarted_and_the_job_succeeds() {
    let user = User::new();
    let script = "if [ $TORCHELASTIC_RESTART_COUNT = 0 ]; then \
                  if [ $RANK = 1 ]; then kill -9 $$; fi; sleep 60; fi";
    let (code, status, error) = end(user.submit(&["--workers", "2"], script).spawn().unwrap());
    assert_eq!((code, status["restarts"].as_u64()), (0, Some(1)), "{error}");
    assert_eq!(status["generation"], 2);
    user.assert_nothing_is_left();
}

#[test]
fn a_killed_worker_is_replaced_and_named() {
    let user = User::new();
    let script = "if [ $TORCHELASTIC_RESTART_COUNT = 0 ]; then \
                  if [ $RANK = 1 ]; then kill -9 $PPID; fi; sleep 60; fi";
    let child = user.submit(&["--workers", "2", "--max-restarts", "1"], script).spawn().unwrap();
    let (code, status, error) = end(child);
    assert_eq!((code, status["restarts"].as_u64()), (0, Some(1)), "{error}");
    let journal = std::fs::read_to_string(user.folder().unwrap().join("journal.jsonl")).unwrap();
    assert!(journal.contains("worker 1 was lost"), "{journal}");
    user.assert_nothing_is_left();
}

#[test]
fn a_killed_launcher_takes_its_job_along_and_resume_goes_on() {
    let user = User::new();
    let script = "test $SLIPWAY_GENERATION = 1 && sleep 60; exit 0";
    let child = user.submit(&["--workers", "2"], script).spawn().unwrap();
    let status = user.wait("the job runs", |status| status["phase"] == "running");
    kill(child.id().into(), Signal::KILL);
    assert_eq!(end(child).0, -1);
    user.assert_nothing_is_left();
    let id = status["id"].as_str().unwrap();
    let (_, orphan, _) = user.run(&["job", "status", id, "--output", "json"]);
    assert_eq!(orphan["cause"]["code"], "launcher_died");
    let (code, resumed, error) = user.run(&["job", "resume", id, "--workers", "3", "--output", "json"]);
    assert_eq!((code, resumed["ranks"].as_u64()), (0, Some(3)), "{error}");
    assert!(resumed["generation"].as_u64() >= Some(2));
    user.assert_nothing_is_left();
}

#[test]
fn a_detached_job_is_controlled_elsewhere_and_can_be_cancelled() {
    let user = User::new();
    let (code, status, error) =
        end(user.submit(&["--workers", "2", "--detach"], "sleep 60").spawn().unwrap());
    assert_eq!(code, 0, "{error}");
    let id = status["id"].as_str().unwrap();
    let running = user.wait("the job runs", |status| status["phase"] == "running");
    let (code, ..) = user.run(&["job", "resume", id]);
    assert_eq!(code, 75, "it is controlled already");
    assert!(running["controllerPid"].as_u64().is_some());
    let (code, cancelled, error) = user.run(&["job", "cancel", id, "--output", "json"]);
    assert_eq!((code, cancelled["phase"].as_str()), (0, Some("cancelled")), "{error}");
    user.assert_nothing_is_left();
}

#[test]
fn ranks_that_do_not_listen_are_killed_when_it_must_be_now() {
    let user = User::new();
    let child = user.submit(&["--workers", "2"], "trap '' TERM; while :; do sleep 1; done").spawn().unwrap();
    let status = user.wait("the job runs", |status| status["phase"] == "running");
    let begun = now();
    let (code, ..) = user.run(&["job", "cancel", status["id"].as_str().unwrap(), "--now"]);
    assert_eq!(code, 0);
    assert!(begun.elapsed() < Duration::from_secs(9), "the grace of 10 s is not waited for");
    assert_eq!(end(child).0, 130);
    user.assert_nothing_is_left();
}
