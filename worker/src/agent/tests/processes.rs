//! A worker in a process of its own, as the launcher runs it: how it ends, and that its ranks end with it.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Tests nothing: the worker's process, started by [`spawn`]. Returns at once elsewhere.
#[test]
#[expect(clippy::exit, reason = "the exit code is what is tested")]
fn helper_process_a_worker() {
    if std::env::var_os("SLIPWAY_TEST_WORKER").is_some() {
        let config = WorkerConfig::read(&mut io::stdin().lock()).unwrap();
        let outcome = run(config, Some(Box::new(io::stdin())));
        std::process::exit(i32::from(outcome.code()));
    }
}

struct ProcessRig {
    worker: Child,
    rig: Rig,
}

async fn spawn(name: &str, script: &str) -> ProcessRig {
    let folder = TempDir::new().unwrap();
    let authority = authority();
    let launcher = listen(&authority.identity("launcher"));
    let uid = format!("process-{name}-{}", std::process::id());
    let config = config(folder.path(), &uid, launcher.local_addr().unwrap(), script);
    let config = WorkerConfig { identity: authority.identity("worker-0"), ..config };
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent::tests::processes::helper_process_a_worker", "--nocapture"])
        .env("SLIPWAY_TEST_WORKER", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = serde_json::to_vec(&config).unwrap();
    line.push(b'\n');
    worker.stdin.as_mut().unwrap().write_all(&line).unwrap();
    let mut peer = accept(&launcher).await;
    let registration = peer.hear_registration().await;
    assert_eq!(registration.pid, worker.id());
    peer.say(&ToWorker::Welcome { lease_ms: 30_000, heartbeat_ms: 50 }).await;
    let rig = Rig {
        folder,
        uid,
        launcher,
        worker: tokio::spawn(async { Outcome::Finished }),
        lifeline: None,
        registration,
        peer,
    };
    ProcessRig { worker, rig }
}

impl ProcessRig {
    async fn exit_status(&mut self) -> std::process::ExitStatus {
        timeout(PATIENCE, async {
            loop {
                if let Some(status) = self.worker.try_wait().unwrap() {
                    return status;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap()
    }

    async fn nothing_is_left(&self) {
        timeout(PATIENCE, async {
            while !find(&self.rig.uid).unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("nothing is left");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.worker.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_worker_stops_its_ranks_gracefully() {
    let mut process =
        spawn("term", "trap 'echo bye; exit 0' TERM; : > ready$RANK; while :; do sleep 0.02; done").await;
    process.rig.start(1).await;
    process.rig.wait_for("ready0").await;
    process.rig.wait_for("ready1").await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_status().await.code(), Some(143));
    assert_eq!(find(&process.rig.uid).unwrap(), []);
    let log = fs::read_to_string(process.rig.folder.path().join("logs/rank-1.log")).unwrap();
    assert!(log.ends_with("bye\n"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_takes_its_ranks_along() {
    let mut process = spawn("kill", ": > ready$RANK; exec sleep 1000").await;
    process.rig.start(1).await;
    process.rig.wait_for("ready0").await;
    process.rig.wait_for("ready1").await;
    assert_eq!(find(&process.rig.uid).unwrap().len(), 2);
    process.signal(Signal::KILL);
    assert_eq!(process.exit_status().await.signal(), Some(9));
    process.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_pipe_is_the_launchers_end() {
    let mut process = spawn("pipe", "exec sleep 1000").await;
    process.rig.start(1).await;
    drop(process.worker.stdin.take());
    assert_eq!(process.exit_status().await.code(), Some(75));
    assert_eq!(find(&process.rig.uid).unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_descendant_without_group_parent_and_cookie_is_swept() {
    let script = "[ $RANK = 0 ] || exit 0; setsid env -i sh -c 'echo $$ > pid.new; mv pid.new pid; exec sleep 1000' & \
                  while [ ! -e pid ]; do sleep 0.02; done";
    let mut process = spawn("daemon", script).await;
    process.rig.start(1).await;
    process.rig.wait_for("pid").await;
    let pid = fs::read_to_string(process.rig.folder.path().join("pid")).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    assert!(Path::new(&stat).exists());
    process.rig.peer.say(&ToWorker::Fence { generation: Generation(1), grace_ms: 10_000 }).await;
    while !matches!(process.rig.hear().await, ToLauncher::Fenced { .. }) {}
    assert!(!Path::new(&stat).exists(), "killed, and reaped by the worker");
    process.rig.peer.say(&ToWorker::Finish).await;
    assert_eq!(process.exit_status().await.code(), Some(0));
}
