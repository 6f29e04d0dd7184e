//! A pod as two processes of one host: the real `worker pod` and the real `worker exec`, against a launcher that follows a
//! script. What a pod has and this has not: two images, two process numberings, a kubelet.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus as ChildStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use quinn::Endpoint;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::timeout;
use worker::config::{Framework, PodJob, RunConfig};
use worker::pod::identity::{SEED_BYTES, encode, pkcs8};
use worker::pod::process_number;
use worker::rendezvous::message::{
    Assignment, CauseKind, Evidence, ExitStatus, Registration, ToLauncher, ToWorker,
};
use worker::sweep::find;
use worker::units::{Generation, Rank, Step, WorkerId};

use testing::{Authority, PATIENCE, Peer, accept, authority, listen};

#[path = "../src/rendezvous/testing.rs"]
mod testing;

/// Where `testing` looks for it.
mod message {
    pub(super) use worker::rendezvous::message::*;
}

/// Prints what it inherited, and stays until it is told to go.
const STAYS: &str = "echo \"$GREETING from $RANK in $PWD\"; trap 'echo bye; exit 0' TERM; \
                     : > \"$SHARED/up-$SLIPWAY_GENERATION-$RANK\"; while :; do sleep 0.02; done";

struct Pod {
    root: TempDir,
    uid: String,
    job_uid: String,
    authority: Authority,
    launcher: Endpoint,
    sidecar: Option<Process>,
    ranks: Option<Process>,
    http: SocketAddr,
}

/// A child in a group of its own; killed when the test ends.
struct Process {
    child: Child,
    stdout: Option<std::thread::JoinHandle<String>>,
    stderr: mpsc::Receiver<String>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        use std::os::unix::process::CommandExt;
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).unwrap();
            text
        });
        let errors = child.stderr.take().unwrap();
        let (lines, stderr) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                let _ = writeln!(std::io::stderr(), "{line}");
                let _ = lines.send(line);
            }
        });
        Self { child, stdout: Some(stdout), stderr }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    async fn end(&mut self) -> ChildStatus {
        timeout(PATIENCE, async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap()
    }

    fn output(&mut self) -> String {
        self.stdout.take().unwrap().join().unwrap()
    }

    /// What follows `mark` on the first line of the log that has it, up to a space.
    fn logged(&self, mark: &str) -> String {
        loop {
            let line = self.stderr.recv_timeout(PATIENCE).unwrap();
            if let Some((_, rest)) = line.split_once(mark) {
                return rest.split(' ').next().unwrap().to_owned();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pod whose sidecar runs, and its welcome.
async fn pod(name: &str, script: &str, lease_ms: u64) -> (Pod, Peer) {
    let root = TempDir::new().unwrap();
    let authority = authority();
    let launcher = listen(&authority.identity("launcher"));
    let uid = format!("{name}-{}", std::process::id());
    let job_uid = format!("job-{uid}");
    write_volumes(root.path(), &authority, launcher.local_addr().unwrap(), &job_uid, script);
    let http = "127.0.0.1:0".parse().unwrap();
    let mut pod = Pod { root, uid, job_uid, authority, launcher, sidecar: None, ranks: None, http };
    pod.start_sidecar();
    let (peer, registration) = pod.register(lease_ms).await;
    assert_eq!((registration.worker, registration.running), (WorkerId(0), None));
    assert_eq!(registration.pid, process_number(&pod.uid));
    assert_eq!(registration.host.name, "node-7");
    (pod, peer)
}

fn write_volumes(root: &Path, authority: &Authority, launcher: SocketAddr, job_uid: &str, script: &str) {
    let shared = root.join("slipway");
    let job = PodJob {
        job: "test-0000".into(),
        job_uid: job_uid.to_owned(),
        launcher,
        launcher_name: "launcher".into(),
        run: RunConfig {
            command: vec!["sh".into(), "-c".into(), script.to_owned()],
            env: BTreeMap::from([("SHARED".into(), shared.display().to_string())]),
            workdir: PathBuf::new(),
            ranks_per_worker: 2,
            framework: Framework::Torch,
        },
        data: None,
        checkpoint_folder: shared.join("checkpoints"),
        hang_ms: None,
        server_cache_bytes: None,
    };
    let seed = [7; SEED_BYTES];
    let key = rcgen::KeyPair::try_from(pkcs8(&seed).as_slice()).unwrap();
    let identity = authority.identity_of("worker-0", &key);
    for (path, bytes) in [
        ("slipway-config/job.json", serde_json::to_vec(&job).unwrap()),
        ("slipway-identity/ca", identity.ca_der.clone()),
        ("slipway-identity/worker", encode(&seed, &identity.cert_der)),
    ] {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

impl Pod {
    fn start_sidecar(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
        command
            .arg("pod")
            .env("SLIPWAY_ROOT", self.root.path())
            .env("SLIPWAY_WORKER", "0")
            .env("SLIPWAY_POD_IP", "127.0.0.1")
            .env("SLIPWAY_POD_UID", &self.uid)
            .env("SLIPWAY_NODE", "node-7")
            .env("SLIPWAY_HTTP", "127.0.0.1:0");
        let sidecar = Process::start(&mut command);
        self.http = sidecar.logged("probes=").parse().unwrap();
        self.sidecar = Some(sidecar);
    }

    fn start_ranks(&mut self) {
        let mut command = Command::new(self.root.path().join("slipway/bin/worker"));
        command
            .arg("exec")
            .env("SLIPWAY_POD_UID", &self.uid)
            .env("GREETING", "hello")
            .current_dir(self.root.path());
        self.ranks = Some(Process::start(&mut command));
    }

    /// The same, as the first process of a process numbering of its own; returns its number here.
    fn start_ranks_as_first(&mut self) -> Pid {
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--mount-proc"])
            .arg(self.root.path().join("slipway/bin/worker"))
            .arg("exec")
            .env("SLIPWAY_POD_UID", &self.uid)
            .current_dir(self.root.path());
        let ranks = Process::start(&mut command);
        let children = format!("/proc/{0}/task/{0}/children", ranks.child.id());
        self.ranks = Some(ranks);
        loop {
            let text = std::fs::read_to_string(&children).unwrap();
            if let Some(child) = text.split(' ').next().and_then(|child| child.parse().ok()) {
                return Pid::from_raw(child).unwrap();
            }
            std::thread::yield_now();
        }
    }

    async fn register(&self, lease_ms: u64) -> (Peer, Registration) {
        let mut peer = accept(&self.launcher).await;
        let registration = peer.hear_registration().await;
        peer.say(&ToWorker::Welcome { lease_ms, heartbeat_ms: 50 }).await;
        (peer, registration)
    }

    fn ready(&self) -> String {
        let mut stream = TcpStream::connect(self.http).unwrap();
        stream.write_all(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    }

    async fn wait_until_up(&self, generation: u64) {
        let up = |rank| self.root.path().join(format!("slipway/up-{generation}-{rank}"));
        timeout(PATIENCE, async {
            while !up(0).exists() || !up(1).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }

    fn assert_nothing_runs(&self) {
        assert_eq!(find(&self.job_uid).unwrap(), [], "a rank is left");
    }
}

/// The next message that is no heartbeat.
async fn hear(peer: &mut Peer) -> ToLauncher {
    let other = async {
        loop {
            match peer.hear().await {
                ToLauncher::Heartbeat { .. } => {}
                other => return other,
            }
        }
    };
    timeout(PATIENCE, other).await.unwrap()
}

/// From gathering to the order to start.
async fn order_start(peer: &mut Peer, generation: u64) {
    let generation = Generation(generation);
    peer.say(&ToWorker::Gather { generation }).await;
    assert_eq!(hear(peer).await, ToLauncher::Ready { generation, faults: Vec::new() });
    let assignment = Assignment {
        generation,
        world_size: 2,
        group_world_size: 1,
        group_rank: 0,
        ranks: vec![Rank(0), Rank(1)],
        restarts: 0,
        max_restarts: 1,
        serves_store: true,
        start_step: Step(0),
        peers: Vec::new(),
        roster: 0,
    };
    peer.say(&ToWorker::Assign(assignment)).await;
    let ToLauncher::StoreOpen { address, .. } = hear(peer).await else { panic!("no store") };
    peer.say(&ToWorker::Start { generation, master: address }).await;
}

async fn hear_started(peer: &mut Peer, expected: u64) {
    match hear(peer).await {
        ToLauncher::Started { generation: Generation(generation), pids } => {
            assert_eq!((generation, pids.len()), (expected, 2));
        }
        other => panic!("{other:?}"),
    }
}

async fn hear_exit(peer: &mut Peer) -> (Rank, ExitStatus, Option<Evidence>) {
    match hear(peer).await {
        ToLauncher::Exited { rank, status, evidence, .. } => (rank, status, evidence),
        other => panic!("{other:?}"),
    }
}

async fn fence(peer: &mut Peer, generation: u64) {
    peer.say(&ToWorker::Fence { generation: Generation(generation), grace_ms: 5_000 }).await;
}

/// Until the generation is told as fenced.
async fn hear_fenced(peer: &mut Peer, generation: u64) {
    loop {
        match hear(peer).await {
            ToLauncher::Fenced { generation: fenced } => {
                return assert_eq!(fenced, Generation(generation));
            }
            ToLauncher::Exited { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_barrier_opens_for_the_gang_and_the_same_container_runs_the_next_generation() {
    let (mut pod, mut peer) = pod("barrier", STAYS, 60_000).await;
    assert_eq!(pod.ready(), "503");
    order_start(&mut peer, 1).await;
    timeout(PATIENCE, async {
        while pod.ready() != "200" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    pod.assert_nothing_runs();
    pod.start_ranks();
    hear_started(&mut peer, 1).await;
    pod.wait_until_up(1).await;
    fence(&mut peer, 1).await;
    hear_fenced(&mut peer, 1).await;
    pod.assert_nothing_runs();
    order_start(&mut peer, 2).await;
    hear_started(&mut peer, 2).await;
    pod.wait_until_up(2).await;
    peer.say(&ToWorker::Finish).await;
    hear_fenced(&mut peer, 2).await;
    let mut ranks = pod.ranks.take().unwrap();
    assert_eq!(ranks.end().await.code(), Some(0));
    let output = ranks.output();
    let folder = std::fs::canonicalize(pod.root.path()).unwrap();
    for line in [
        "[rank 0] --- generation 1 ---".to_owned(),
        format!("[rank 1] hello from 1 in {}", folder.display()),
        "[rank 0] bye".to_owned(),
        "[rank 1] --- generation 2 ---".to_owned(),
    ] {
        assert!(output.lines().any(|shown| shown == line), "{line} in\n{output}");
    }
    assert_eq!(output.matches("] bye\n").count(), 4, "{output}");
    assert_eq!(pod.ready(), "200", "a container that starts late must be let in");
    let mut sidecar = pod.sidecar.take().unwrap();
    sidecar.signal(Signal::TERM);
    assert_eq!(sidecar.end().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_ranks_container_is_told_with_its_reason() {
    let (mut pod, mut peer) = pod("killed", STAYS, 60_000).await;
    pod.start_ranks();
    order_start(&mut peer, 1).await;
    hear_started(&mut peer, 1).await;
    pod.wait_until_up(1).await;
    let mut ranks = pod.ranks.take().unwrap();
    ranks.signal(Signal::KILL);
    ranks.end().await;
    for _ in 0..2 {
        let (_, status, evidence) = hear_exit(&mut peer).await;
        assert_eq!(status, ExitStatus::Signal { signal: 9 });
        assert_eq!(evidence.unwrap().cause, CauseKind::WorkerLost);
    }
    fence(&mut peer, 1).await;
    hear_fenced(&mut peer, 1).await;
    pod.assert_nothing_runs();
    order_start(&mut peer, 2).await;
    pod.start_ranks();
    hear_started(&mut peer, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_sidecar_no_rank_runs_and_the_next_sidecar_finds_its_container() {
    let (mut pod, mut peer) = pod("orphans", STAYS, 60_000).await;
    pod.start_ranks();
    order_start(&mut peer, 1).await;
    hear_started(&mut peer, 1).await;
    pod.wait_until_up(1).await;
    assert!(!find(&pod.job_uid).unwrap().is_empty());
    let mut sidecar = pod.sidecar.take().unwrap();
    sidecar.signal(Signal::KILL);
    sidecar.end().await;
    timeout(PATIENCE, async {
        while !find(&pod.job_uid).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    pod.start_sidecar();
    let (mut peer, registration) = pod.register(60_000).await;
    assert_eq!(registration.running, None);
    order_start(&mut peer, 2).await;
    hear_started(&mut peer, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_stops_the_container_gives_the_ranks_their_grace() {
    let (mut pod, mut peer) = pod("evicted", STAYS, 60_000).await;
    pod.start_ranks();
    order_start(&mut peer, 1).await;
    hear_started(&mut peer, 1).await;
    pod.wait_until_up(1).await;
    let mut ranks = pod.ranks.take().unwrap();
    ranks.signal(Signal::TERM);
    match hear(&mut peer).await {
        ToLauncher::Trouble { evidence, .. } => assert_eq!(evidence.cause, CauseKind::WorkerLost),
        other => panic!("{other:?}"),
    }
    for _ in 0..2 {
        // They return 0 after their last words: a success is none of our business to explain.
        let (_, status, evidence) = hear_exit(&mut peer).await;
        assert_eq!((status, evidence), (ExitStatus::Code { code: 0 }, None));
    }
    assert_eq!(ranks.end().await.code(), Some(143));
    assert_eq!(ranks.output().matches("] bye\n").count(), 2);
    pod.assert_nothing_runs();
}

/// Whether this user may make process numberings; where it may not, a test run that must be complete fails.
fn may_unshare() -> bool {
    let tried = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).status();
    let may = tried.is_ok_and(|status| status.success());
    assert!(may || std::env::var_os("CI").is_none_or(|value| value != "true"), "unshare --pid is refused");
    may
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_process_of_a_container_hears_sigterm_and_takes_everything_along() {
    if !may_unshare() {
        let _ = writeln!(std::io::stderr(), "not run: unshare --pid is refused to this user");
        return;
    }
    // The second process leaves its group, its parent and its environment.
    let script = format!("env -i setsid sleep 1000.4711 & {STAYS}");
    let (mut pod, mut peer) = pod("first", &script, 60_000).await;
    let first = pod.start_ranks_as_first();
    order_start(&mut peer, 1).await;
    hear_started(&mut peer, 1).await;
    pod.wait_until_up(1).await;
    fence(&mut peer, 1).await;
    hear_fenced(&mut peer, 1).await;
    pod.assert_nothing_runs();
    let status = |pid: Pid| std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    let children = format!("/proc/{0}/task/{0}/children", first.as_raw_nonzero());
    assert_eq!(std::fs::read_to_string(&children).unwrap(), "", "orphans are killed and reaped");
    order_start(&mut peer, 2).await;
    hear_started(&mut peer, 2).await;
    pod.wait_until_up(2).await;
    kill_process(first, Signal::TERM).unwrap();
    assert!(matches!(hear(&mut peer).await, ToLauncher::Trouble { .. }));
    assert_eq!(pod.ranks.take().unwrap().end().await.code(), Some(143));
    assert!(status(first).is_err());
    pod.assert_nothing_runs();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_starts_after_the_end_learns_that_all_is_over() {
    let (mut pod, mut peer) = pod("late", STAYS, 60_000).await;
    peer.say(&ToWorker::Finish).await;
    timeout(PATIENCE, async {
        while pod.ready() != "200" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    pod.start_ranks();
    assert_eq!(pod.ranks.take().unwrap().end().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launcher_that_stays_away_costs_the_generation_and_not_the_pod() {
    let (mut pod, mut peer) = pod("patient", STAYS, 1_000).await;
    pod.start_ranks();
    order_start(&mut peer, 1).await;
    hear_started(&mut peer, 1).await;
    pod.wait_until_up(1).await;
    let address = pod.launcher.local_addr().unwrap();
    peer.connection.close(quinn::VarInt::from_u32(0), b"");
    pod.launcher.close(quinn::VarInt::from_u32(0), b"");
    pod.launcher.wait_idle().await;
    timeout(PATIENCE, async {
        while !find(&pod.job_uid).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    drop(peer);
    let config =
        datapath::transport::quic::tls::server_config(&pod.authority.identity("launcher"), message::ALPN);
    pod.launcher = Endpoint::server(config.unwrap(), "127.0.0.1:0".parse().unwrap()).unwrap();
    // The old port, which the old endpoint may still be about to let go of.
    let rebound = timeout(PATIENCE, async {
        loop {
            match std::net::UdpSocket::bind(address) {
                Ok(socket) => return socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    pod.launcher.rebind(rebound.await.unwrap()).unwrap();
    let (mut peer, registration) = pod.register(60_000).await;
    assert_eq!(registration.running, None);
    assert_eq!(hear(&mut peer).await, ToLauncher::Fenced { generation: Generation(1) });
    order_start(&mut peer, 2).await;
    hear_started(&mut peer, 2).await;
}

#[test]
fn a_pod_that_says_nothing_hears_everything_that_is_missing() {
    let root = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_worker"))
        .arg("pod")
        .env("SLIPWAY_ROOT", root.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    for place in
        ["SLIPWAY_WORKER", "SLIPWAY_POD_IP", "SLIPWAY_POD_UID", "SLIPWAY_NODE", "job.json", "/ca", "/worker"]
    {
        assert!(text.contains(&format!("{place}: ")), "{place} in\n{text}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_worker")).arg("exec").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
}
