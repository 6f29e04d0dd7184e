//! A whole worker with real ranks, against a launcher that follows a script.

mod data;
mod processes;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use datapath::plane::Role;
use quinn::Endpoint;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::config::{Framework, RunConfig};
use crate::rendezvous::message::{Assignment, CauseKind, ExitStatus, ToLauncher, ToWorker};
use crate::rendezvous::testing::{PATIENCE, Peer, accept, authority, listen};
use crate::sweep::find;
use crate::units::{Generation, Rank, Step, WorkerId};

struct Rig {
    folder: TempDir,
    uid: String,
    launcher: Endpoint,
    worker: JoinHandle<Outcome>,
    /// Dropping it is the launcher's end.
    lifeline: Option<io::PipeWriter>,
    registration: Registration,
    peer: Peer,
}

/// A worker whose ranks run `script`, after its welcome.
async fn rig(name: &str, script: &str, lease_ms: u64) -> Rig {
    rig_with(name, script, lease_ms, |_| ()).await
}

async fn rig_with(name: &str, script: &str, lease_ms: u64, edit: impl FnOnce(&mut WorkerConfig)) -> Rig {
    let folder = TempDir::new().unwrap();
    let authority = authority();
    let launcher = listen(&authority.identity("launcher"));
    let uid = format!("agent-{name}-{}", std::process::id());
    let config = config(folder.path(), &uid, launcher.local_addr().unwrap(), script);
    let mut config = WorkerConfig { identity: authority.identity("worker-0"), ..config };
    edit(&mut config);
    let (reader, writer) = io::pipe().unwrap();
    let worker = tokio::spawn(live(config, Some(Box::new(reader)), Family::OwnOnly));
    let mut peer = accept(&launcher).await;
    let registration = peer.hear_registration().await;
    assert_eq!((registration.worker, registration.running), (WorkerId(0), None));
    peer.say(&ToWorker::Welcome { lease_ms, heartbeat_ms: 50 }).await;
    Rig { folder, uid, launcher, worker, lifeline: Some(writer), registration, peer }
}

fn config(folder: &Path, uid: &str, launcher: SocketAddr, script: &str) -> WorkerConfig {
    WorkerConfig {
        job: "test-0000".into(),
        job_uid: uid.to_owned(),
        worker: WorkerId(0),
        role: Role::Worker,
        launcher,
        launcher_name: "launcher".into(),
        bind: launcher.ip(),
        identity: authority().identity("nobody"),
        run: RunConfig {
            command: vec!["sh".into(), "-c".into(), script.to_owned()],
            env: BTreeMap::from([("FOLDER".into(), folder.display().to_string())]),
            workdir: folder.to_owned(),
            ranks_per_worker: 2,
            framework: Framework::Torch,
        },
        cpus: Vec::new(),
        data: None,
        log_folder: folder.join("logs"),
        checkpoint_folder: folder.join("checkpoints"),
        python_folder: folder.join("python"),
        hang_ms: None,
    }
}

fn assignment(generation: u64) -> Assignment {
    Assignment {
        generation: Generation(generation),
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
    }
}

impl Rig {
    /// The next message that is no heartbeat.
    async fn hear(&mut self) -> ToLauncher {
        loop {
            match timeout(PATIENCE, self.peer.hear()).await.unwrap() {
                ToLauncher::Heartbeat { .. } => {}
                other => return other,
            }
        }
    }

    /// From gathering to started; returns where the store is.
    async fn start(&mut self, generation: u64) -> SocketAddr {
        self.start_with(assignment(generation)).await
    }

    async fn start_with(&mut self, assignment: Assignment) -> SocketAddr {
        let generation = assignment.generation;
        self.peer.say(&ToWorker::Gather { generation }).await;
        assert_eq!(self.hear().await, ToLauncher::Ready { generation, faults: Vec::new() });
        self.peer.say(&ToWorker::Assign(assignment)).await;
        let master = match self.hear().await {
            ToLauncher::StoreOpen { generation: of, address } if of == generation => address,
            other => panic!("{other:?}"),
        };
        self.peer.say(&ToWorker::Start { generation, master }).await;
        match self.hear().await {
            ToLauncher::Started { generation: of, pids } if of == generation => assert_eq!(pids.len(), 2),
            other => panic!("{other:?}"),
        }
        master
    }

    async fn outcome(&mut self) -> Outcome {
        let outcome = timeout(PATIENCE, &mut self.worker).await.unwrap().unwrap();
        assert_eq!(find(&self.uid).unwrap(), [], "a rank is left");
        let logs = fs::read_dir(self.folder.path().join("logs")).unwrap();
        let strays: Vec<_> = logs
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("rank-"))
            .collect();
        assert_eq!(strays, Vec::<String>::new(), "a temporary file is left");
        outcome
    }

    async fn wait_for(&self, file: &str) {
        let path = self.folder.path().join(file);
        timeout(PATIENCE, async {
            while !path.exists() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_succeeds() {
    let mut rig = rig("success", "echo $RANK of $WORLD_SIZE at $MASTER_PORT", 10_000).await;
    let master = rig.start(1).await;
    let mut exited = Vec::new();
    for _ in 0..2 {
        match rig.hear().await {
            ToLauncher::Exited { rank, status, evidence, .. } => {
                assert_eq!((status, evidence), (ExitStatus::Code { code: 0 }, None));
                exited.push(rank);
            }
            other => panic!("{other:?}"),
        }
    }
    exited.sort();
    assert_eq!(exited, [Rank(0), Rank(1)]);
    rig.peer.say(&ToWorker::Finish).await;
    assert_eq!(rig.hear().await, ToLauncher::Fenced { generation: Generation(1) });
    assert_eq!(rig.outcome().await, Outcome::Finished);
    let log = fs::read_to_string(rig.folder.path().join("logs/rank-1.log")).unwrap();
    assert_eq!(log, format!("--- generation 1 ---\n1 of 2 at {}\n", master.port()));
    assert!(std::net::TcpStream::connect(master).is_err(), "the store is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_fails_the_rest_is_fenced_and_the_next_generation_runs() {
    let script = "[ $SLIPWAY_GENERATION = 1 ] || exit 0; [ $RANK = 1 ] || exec sleep 1000; \
                  echo '{\"message\":{\"message\":\"ValueError: bad\"}}' > $TORCHELASTIC_ERROR_FILE; exit 1";
    let mut rig = rig("failure", script, 10_000).await;
    rig.start(1).await;
    match rig.hear().await {
        ToLauncher::Exited { rank: Rank(1), evidence: Some(evidence), .. } => {
            assert_eq!(
                (evidence.cause, evidence.message.as_str()),
                (CauseKind::Exception, "ValueError: bad")
            );
        }
        other => panic!("{other:?}"),
    }
    rig.peer.say(&ToWorker::Fence { generation: Generation(1), grace_ms: 10_000 }).await;
    match rig.hear().await {
        ToLauncher::Exited { rank: Rank(0), evidence: Some(evidence), .. } => {
            assert_eq!(evidence.cause, CauseKind::KilledByUs);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.hear().await, ToLauncher::Fenced { generation: Generation(1) });
    assert_eq!(find(&rig.uid).unwrap(), [], "fenced means that nothing is left");
    rig.start(2).await;
    assert!(matches!(rig.hear().await, ToLauncher::Exited { generation: Generation(2), evidence: None, .. }));
    rig.peer.say(&ToWorker::Finish).await;
    assert_eq!(rig.outcome().await, Outcome::Finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_lifeline_is_the_end_of_the_ranks() {
    let mut rig =
        rig("lifeline", "trap 'echo bye; exit 0' TERM; : > ready$RANK; while :; do sleep 0.02; done", 60_000)
            .await;
    rig.start(1).await;
    rig.wait_for("ready0").await;
    rig.wait_for("ready1").await;
    drop(rig.lifeline.take());
    assert_eq!(rig.outcome().await, Outcome::LauncherLost);
    let log = fs::read_to_string(rig.folder.path().join("logs/rank-0.log")).unwrap();
    assert!(log.ends_with("bye\n"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_launcher_is_waited_for_as_long_as_the_lease() {
    let mut rig = rig("lease", "exec sleep 1000", 1_000).await;
    rig.start(1).await;
    rig.peer.connection.close(quinn::VarInt::from_u32(0), b"");
    rig.launcher.close(quinn::VarInt::from_u32(0), b"");
    assert_eq!(rig.outcome().await, Outcome::LauncherLost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launcher_that_comes_back_hears_everything_again() {
    let mut rig = rig("resume", "[ $RANK = 0 ] || exec sleep 1000; exit 4", 30_000).await;
    rig.start(1).await;
    let exited = rig.hear().await;
    assert!(matches!(exited, ToLauncher::Exited { rank: Rank(0), .. }), "{exited:?}");
    rig.peer.connection.close(quinn::VarInt::from_u32(0), b"");
    rig.peer = accept(&rig.launcher).await;
    assert_eq!(rig.peer.hear_registration().await.running, Some(Generation(1)));
    rig.peer.say(&ToWorker::Welcome { lease_ms: 30_000, heartbeat_ms: 50 }).await;
    assert!(matches!(rig.hear().await, ToLauncher::Ready { .. }));
    assert!(matches!(rig.hear().await, ToLauncher::StoreOpen { .. }));
    assert!(matches!(rig.hear().await, ToLauncher::Started { .. }));
    assert_eq!(rig.hear().await, exited);
    rig.peer.say(&ToWorker::Refuse { reason: "test".into() }).await;
    assert_eq!(rig.outcome().await, Outcome::Refused { reason: "test".into() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preflight_names_all_that_is_wrong() {
    let folder = TempDir::new().unwrap();
    let config = config(folder.path(), "preflight", "127.0.0.1:1".parse().unwrap(), "");
    let run = RunConfig { command: vec!["no-such-program".into()], ..config.run.clone() };
    let broken = WorkerConfig { run, log_folder: "/proc/slipway".into(), ..config.clone() };
    let codes = |config: &WorkerConfig| {
        preflight::check(config, Some(&BTreeMap::new()))
            .into_iter()
            .map(|fault| fault.code)
            .collect::<Vec<_>>()
    };
    assert_eq!(codes(&broken), ["command_not_found", "folder_not_writable"]);
    assert_eq!(codes(&config), Vec::<String>::new());
}
